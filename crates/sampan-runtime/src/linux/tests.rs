//! The real runtime on this machine: needs root, static busybox, and a cgroup hierarchy.
//!
//! Each test runs in a PID and mount namespace of its own, in a copy of this program started there, so that nothing it
//! does can reach a process outside and everything ends with it. Its cgroups have a prefix of their own.

mod isolation;

use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use sampan_base::{Clock, Dice};
use serde_json::json;

use self::isolation::isolated;
use super::{Linux, RuntimeConfig};
use crate::contract::{self, IMAGE, Machine, container_config, ended, finish, sandbox_config};
use crate::images::{Store, writer};
use crate::{
    ContainerConfig, ContainerState, ContainerStatus, ExecRequest, Images as _, Mount, Propagation, Resources, Runtime,
    SandboxConfig, Seccomp, Security,
};

/// A runtime in directories of its own.
struct Real {
    runtime: Option<Linux>,
    config: RuntimeConfig,
    directory: PathBuf,
}

impl Real {
    async fn new() -> Self {
        let directory = isolation::directory();
        let config = RuntimeConfig {
            run_dir: directory.join("run"),
            data_dir: directory.join("data"),
            cgroup_prefix: isolation::cgroup_prefix(),
            clock: Clock::system(),
            dice: Dice::system(),
        };
        let mut machine = Self { runtime: None, config, directory };
        machine.restart().await;
        let store = machine.linux().0.images.clone();
        store.load(&mut busybox_archive().as_slice()).await.expect("busybox loads");
        machine
    }

    fn linux(&self) -> &Linux {
        self.runtime.as_ref().expect("the runtime is open")
    }
}

fn busybox_archive() -> Vec<u8> {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find_map(|path| std::fs::read(path).ok());
    let busybox = busybox.expect("the Debian package busybox-static is installed");
    let list = Command::new("busybox").arg("--list").output().expect("busybox runs");
    let applets = String::from_utf8(list.stdout).expect("names");
    let config = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin", "FROM_IMAGE=yes"] });
    let builder = writer::busybox(&busybox, &applets.lines().collect::<Vec<_>>(), config).expect("an image");
    let mut archive = Vec::new();
    builder.write(&[IMAGE], &mut archive).expect("an archive");
    archive
}

impl Machine for Real {
    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(self.linux().clone())
    }
    fn clock(&self) -> Clock {
        self.config.clock.clone()
    }
    fn log_directory(&self) -> PathBuf {
        self.directory.join("logs")
    }
    fn output(&self, status: &ContainerStatus) -> String {
        let text = std::fs::read_to_string(&status.log_path).unwrap_or_default();
        let line = |line: &str| line.splitn(4, ' ').nth(3).map(|text| format!("{text}\n"));
        text.lines().filter_map(line).collect()
    }
    async fn restart(&mut self) {
        self.runtime = None;
        let images = Store::open(&self.config.data_dir, Dice::system()).expect("a store");
        self.runtime = Some(Linux::open(self.config.clone(), Arc::new(images)).await.expect("a runtime"));
    }
}

/// One container that runs a shell script to its end: what it wrote, and its status.
async fn shell(
    machine: &Real,
    sandbox: SandboxConfig,
    change: impl FnOnce(&mut ContainerConfig),
) -> (String, ContainerStatus) {
    let runtime = machine.runtime();
    let sandbox = runtime.run_sandbox(&sandbox).await.expect("a sandbox");
    let mut config = container_config("main", &["sh", "-c"]);
    change(&mut config);
    let id = runtime.create_container(&sandbox.id, &config).await.expect("a container");
    runtime.start_container(&id).await.expect("it starts");
    let status = ended(machine, &id).await;
    let output = machine.output(&status);
    runtime.remove_sandbox(&sandbox.id).await.expect("the sandbox goes");
    (output, status)
}

#[test]
fn obeys_the_contract() {
    isolated("obeys_the_contract", async {
        contract::run(&mut Real::new().await).await;
    });
}

/// Prints what the runtime costs; run it with `--ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn measures() {
    isolated("measures", async {
        let machine = Real::new().await;
        let runtime = machine.runtime();
        let clock = machine.clock();
        let mut figures: std::collections::BTreeMap<&str, Vec<f64>> = Default::default();
        let mut note = |what, started: sampan_base::clock::Instant| {
            figures.entry(what).or_default().push(started.elapsed().as_secs_f64() * 1000.0);
        };
        for round in 0..30 {
            let started = clock.instant();
            let sandbox =
                runtime.run_sandbox(&sandbox_config(&machine, &format!("m{round}"))).await.expect("a sandbox");
            note("run sandbox", started);
            let started = clock.instant();
            let id = runtime.create_container(&sandbox.id, &container_config("main", &["sleep", "1000"])).await;
            let id = id.expect("a container");
            note("create", started);
            runtime.start_container(&id).await.expect("it starts");
            note("create + start", started);
            let started = clock.instant();
            let request = ExecRequest { command: vec!["true".to_owned()], ..ExecRequest::default() };
            finish(runtime.exec(&id, &request).await.expect("exec")).await.2.expect("a code");
            note("exec of true", started);
            if round == 29 {
                let pid =
                    machine.linux().sandbox(&sandbox.id).expect("it").holder.and_then(|h| h.pid()).expect("a pid");
                let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("memory");
                eprintln!("holder:\n{rollup}");
            }
            let started = clock.instant();
            runtime.stop_sandbox(&sandbox.id).await.expect("it stops");
            note("stop sandbox", started);
            let started = clock.instant();
            runtime.remove_sandbox(&sandbox.id).await.expect("it goes");
            note("remove sandbox", started);
        }
        for (what, mut times) in figures {
            times.sort_by(f64::total_cmp);
            eprintln!("{what}: median {:.1} ms, max {:.1} ms", times[times.len() / 2], times[times.len() - 1]);
        }
    });
}
