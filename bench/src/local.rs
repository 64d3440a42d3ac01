//! A local cluster of our own, through the binary's command line as a user would: made, restarted, and always taken down.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use sampan_base::task;
use serde_json::Value;

use crate::processes::Processes;
use crate::report::Figure;

const NAME: &str = "bench";

pub struct Cluster {
    pub binary: PathBuf,
    /// On a disk, not in memory: durability is measured.
    directory: tempfile::TempDir,
}

/// Milliseconds from the call of `up` to each state.
pub struct Started {
    pub api: f64,
    pub ready: f64,
    pub dns: f64,
}

impl Started {
    pub fn figures(&self, what: &str, [api, ready, dns]: [f64; 3]) -> [Figure; 3] {
        [
            Figure::new(format!("{what}: API answers"), self.api, "ms").at_most(api).gate(),
            Figure::new(format!("{what}: node Ready"), self.ready, "ms").at_most(ready).gate(),
            Figure::new(format!("{what}: DNS answers"), self.dns, "ms").at_most(dns).gate(),
        ]
    }
}

impl Cluster {
    /// Nothing runs yet; what an interrupted run left behind is removed.
    pub fn new(binary: &Path) -> anyhow::Result<Self> {
        let binary = binary.canonicalize().with_context(|| format!("no binary {}", binary.display()))?;
        let directory = tempfile::Builder::new().prefix("sampan-bench-").tempdir_in("/var/tmp")?;
        let cluster = Self { binary, directory };
        cluster.remove();
        Ok(cluster)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    pub async fn up(&self) -> anyhow::Result<Started> {
        let data = self.directory.path().join("data");
        let mut command = self.command("up");
        command.arg("--data-dir").arg(data).arg("--kubeconfig").arg(self.kubeconfig()).args(["-o", "json"]);
        let report: Value = serde_json::from_slice(&output(command).await?).context("read what `up` printed")?;
        let steps = report["steps"].as_array().context("`up` printed no steps")?;
        let mut at = 0.0;
        let times: Vec<f64> = steps
            .iter()
            .map(|step| {
                at += step["milliseconds"].as_f64().unwrap_or(f64::NAN);
                at
            })
            .collect();
        let [.., api, ready, dns] = times[..] else { bail!("`up` printed {} steps", times.len()) };
        Ok(Started { api, ready, dns })
    }

    pub async fn down(&self, keep_data: bool) -> anyhow::Result<()> {
        let mut command = self.command("down");
        command.arg("--kubeconfig").arg(self.kubeconfig());
        if keep_data {
            command.arg("--keep-data");
        }
        output(command).await.map(drop)
    }

    pub async fn load(&self, archive: &Path) -> anyhow::Result<()> {
        let mut command = Command::new(&self.binary);
        command.args(["image", "load", "--name", NAME]).arg(archive);
        output(command).await.map(drop)
    }

    /// The processes that run now.
    pub async fn processes(&self) -> anyhow::Result<Processes> {
        let status = self.status().await?;
        let mut roots = Vec::new();
        for (name, state) in status["processes"].as_object().into_iter().flatten() {
            let Some(pid) = state["pid"].as_i64() else { continue };
            let role = match name.as_str() {
                "supervisor" => "supervisor",
                "server" => "server",
                _ => "node init",
            };
            roots.push((pid as i32, role));
        }
        Processes::below(&self.binary, &roots)
    }

    /// The network namespace of the first node.
    pub async fn node_netns(&self) -> anyhow::Result<PathBuf> {
        let status = self.status().await?;
        let mut processes = status["processes"].as_object().into_iter().flatten();
        let node = processes.find(|(name, _)| !["supervisor", "server"].contains(&name.as_str()));
        let pid = node.and_then(|(_, state)| state["pid"].as_i64()).context("no node runs")?;
        Ok(format!("/proc/{pid}/ns/net").into())
    }

    async fn status(&self) -> anyhow::Result<Value> {
        let mut command = self.command("status");
        command.args(["-o", "json"]);
        let mut report: Value =
            serde_json::from_slice(&output(command).await?).context("read what `status` printed")?;
        Ok(report["clusters"][0].take())
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.args([verb, "--name", NAME]);
        command
    }

    /// Without a word where there is nothing to remove.
    fn remove(&self) {
        let mut command = self.command("down");
        command.arg("--kubeconfig").arg(self.kubeconfig()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = command.status();
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.remove();
    }
}

async fn output(mut command: Command) -> anyhow::Result<Vec<u8>> {
    let output = task::spawn_blocking(move || command.stdin(Stdio::null()).output()).await?;
    let output = output.context("start sampan")?;
    if !output.status.success() {
        bail!("sampan {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}
