//! PID 1 of a local node: it enters the node's own root and cgroups, starts the agent, starts it again when it ends, and
//! reaps what is left behind. Killing it ends the node with everything in it.
//!
//! It is single-threaded and speaks to nobody: configuration in, processes out.

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use super::{cgroup, root};
use crate::cli::Mount;

/// What the supervisor tells a node's PID 1.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InitConfig {
    pub cluster: String,
    pub node: String,
    pub root: PathBuf,
    pub data: PathBuf,
    pub mounts: Vec<Mount>,
}

/// The supervisor closes this after it has connected the node; the agent starts then.
pub const READY_FD: i32 = 3;
/// The host's network namespace, for image pulls and name resolution with the host's own means.
pub const HOST_NETNS_FD: i32 = 4;
/// The agent's configuration, in the node's durable directory.
pub const NODE_CONFIG: &str = "node.json";

pub fn run(config: &Path) -> anyhow::Result<()> {
    if std::process::id() != 1 {
        bail!("node-init is PID 1 of a local node and is started by the supervisor");
    }
    let text = std::fs::read(config).with_context(|| format!("read {}", config.display()))?;
    let config: InitConfig = serde_json::from_slice(&text).context("read the node's configuration")?;
    let hierarchies = cgroup::current().context("read the cgroup mounts")?;
    for hierarchy in &hierarchies {
        hierarchy
            .join(&config.cluster, &config.node)
            .with_context(|| format!("join a cgroup below {}", hierarchy.path.display()))?;
    }
    unshare(CloneFlags::CLONE_NEWCGROUP).context("make a cgroup namespace")?;
    nix::unistd::sethostname(&config.node).context("set the host name")?;
    std::fs::create_dir_all(&config.root).with_context(|| format!("create {}", config.root.display()))?;
    root::enter(&root::Plan {
        hostname: &config.node,
        root: &config.root,
        data: &config.data,
        mounts: &config.mounts,
        hierarchies: &hierarchies,
    })
    .context("build the node's root filesystem")?;
    wait_until_connected()?;
    look_after_agent()
}

fn wait_until_connected() -> anyhow::Result<()> {
    // SAFETY: the supervisor opened this descriptor for us and nothing else in this process uses it.
    let mut ready = unsafe { File::from_raw_fd(READY_FD) };
    let mut rest = Vec::new();
    ready.read_to_end(&mut rest).context("wait for the node's network")?;
    if rest.is_empty() {
        bail!("the supervisor gave up before the node's network was ready");
    }
    Ok(())
}

/// The shortest and longest pause before the agent is started again.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

#[allow(
    clippy::disallowed_methods,
    reason = "PID 1 has no runtime: it waits for processes, and pauses between two starts"
)]
fn look_after_agent() -> anyhow::Result<()> {
    let mut pause = PAUSE_MIN;
    loop {
        let started = std::time::Instant::now();
        let agent = start_agent()?;
        loop {
            // Everything in the node that loses its parent becomes a child of PID 1.
            match waitpid(Pid::from_raw(-1), Some(WaitPidFlag::empty())) {
                Ok(WaitStatus::Exited(pid, code)) if pid == agent => {
                    eprintln!("sampan: the node agent ended with code {code}");
                    break;
                }
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == agent => {
                    eprintln!("sampan: the node agent was ended by {signal}");
                    break;
                }
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(error).context("wait for the node agent"),
            }
        }
        pause = if started.elapsed() > Duration::from_secs(10) { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        std::thread::sleep(pause);
    }
}

fn start_agent() -> anyhow::Result<Pid> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("sampan").args(["node", "--config"]).arg(Path::new(root::DATA).join(NODE_CONFIG));
    let child = command.spawn().context("start the node agent")?;
    Ok(Pid::from_raw(child.id() as i32))
}
