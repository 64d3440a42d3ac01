//! The real runtime on this machine: needs root, static busybox, and a cgroup hierarchy.
//!
//! Each test runs in a PID and mount namespace of its own, in a copy of this program started there, so that nothing it
//! does can reach a process outside and everything ends with it. Its cgroups have a prefix of their own.

mod isolation;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use sampan_base::{Clock, Dice};
use serde_json::json;

use self::isolation::isolated;
use super::{Linux, RuntimeConfig};
use crate::contract::{self, IMAGE, Machine, container_config, ended, finish, sandbox_config};
use crate::images::{RegistryOptions, Store, writer};
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
        let images = Store::open(&self.config.data_dir, RegistryOptions::default(), Clock::system(), Dice::system())
            .expect("a store");
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

/// A pod of the default kind.
fn pod(machine: &Real, name: &str) -> SandboxConfig {
    sandbox_config(machine, name)
}

#[test]
fn a_container_is_confined() {
    isolated("a_container_is_confined", async {
        let machine = Real::new().await;
        let script = "
            grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\t' | tr '\n' ' '
            echo pid=$$ host=$(hostname) from=$FROM_IMAGE home=$HOME dir=$(pwd)
            unshare -n true 2>/dev/null && echo unshared
            mount -t tmpfs none /tmp 2>/dev/null && echo mounted
            (echo x > /proc/sys/kernel/hostname) 2>/dev/null && echo wrote
            cat /proc/kcore /proc/keys 2>/dev/null | wc -c; ls /sys/firmware | wc -l
            ls /dev | tr '\n' ' '; echo
            mknod /dev/disk b 8 0 && cat /dev/disk 2>&1 | head -c 100
            ip -o link | wc -l
            (echo 1 > /sys/kernel/mm/ksm/run) 2>/dev/null && echo sysfs is writable
            grep -c ' /sys/fs/cgroup' /proc/mounts > /dev/null && cat /proc/1/cgroup | grep -v ':/$' | wc -l
            df -P /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2
        ";
        let (output, status) =
            shell(&machine, pod(&machine, "confined"), |config| config.command.push(script.to_owned())).await;
        assert_eq!(status.exit_code, 0, "{output}");
        let lines: Vec<&str> = output.lines().collect();
        // Inside a sandbox whose root lacks a capability, the container lacks it too.
        assert!(
            lines[0].contains("NoNewPrivs:1 Seccomp:2")
                && lines[0].contains("pid=1 host=confined from=yes home=/root dir=/"),
            "{output}"
        );
        assert!(lines[0].contains("CapEff:00000000a80425fb CapBnd:00000000a80425fb"), "{output}");
        assert_eq!(
            &lines[1..4],
            ["0", "0", "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero "],
            "{output}"
        );
        assert!(lines[4].contains("Operation not permitted"), "{output}");
        assert_eq!(&lines[5..], ["1", "0", "65536"], "{output}");
    });
}

#[test]
fn users_and_privileges_are_as_asked() {
    isolated("users_and_privileges_are_as_asked", async {
        let machine = Real::new().await;
        let script =
            "id -u; id -g; id -G; echo $HOME; touch /tmp/mine && stat -c %u /tmp/mine; grep CapEff /proc/self/status";
        let run = async |name: &str, security: Security| {
            shell(&machine, pod(&machine, name), |config| {
                config.command.push(script.to_owned());
                config.security = security;
            })
            .await
            .0
        };
        let output = run(
            "named",
            Security { user_name: "nobody".to_owned(), supplementary_groups: vec![7], ..Security::default() },
        )
        .await;
        assert_eq!(output, "65534\n65534\n65534 7\n/home\n65534\nCapEff:\t0000000000000000\n");
        let output = run("numbered", Security { user: Some(1000), group: Some(2000), ..Security::default() }).await;
        assert_eq!(output, "1000\n2000\n2000\n/\n1000\nCapEff:\t0000000000000000\n");
        let drop_all = Security {
            drop_capabilities: vec!["ALL".to_owned()],
            add_capabilities: vec!["CHOWN".to_owned()],
            ..Security::default()
        };
        assert!(run("dropped", drop_all).await.ends_with("CapEff:\t0000000000000001\n"));

        let script = "mount -t tmpfs none /tmp && unshare -n true && ls /dev | wc -l; grep Seccomp: /proc/self/status; touch /sys/kernel/x 2>&1 | grep -c Read-only";
        let (output, _) = shell(&machine, pod(&machine, "privileged"), |config| {
            config.command.push(script.to_owned());
            config.security = Security { privileged: true, seccomp: Seccomp::Unconfined, ..Security::default() };
        })
        .await;
        let lines: Vec<&str> = output.lines().collect();
        assert!(lines[0].parse::<u32>().expect("a count") > 15, "{output}");
        assert_eq!(&lines[1..], ["Seccomp:\t0", "0"], "{output}");

        let runtime = machine.runtime();
        let sandbox = runtime.run_sandbox(&pod(&machine, "nobody")).await.expect("a sandbox");
        let config = ContainerConfig {
            security: Security { user_name: "stranger".to_owned(), ..Security::default() },
            ..container_config("main", &["true"])
        };
        let id = runtime.create_container(&sandbox.id, &config).await.expect("a container");
        let error = runtime.start_container(&id).await.expect_err("no such user");
        assert_eq!(error.to_string(), "unable to find user stranger: no matching entries in passwd file");
        runtime.remove_sandbox(&sandbox.id).await.expect("removed");
    });
}

#[test]
fn mounts_stay_inside_and_read_only_means_it() {
    isolated("mounts_stay_inside_and_read_only_means_it", async {
        let machine = Real::new().await;
        let volume = machine.directory.join("volume");
        std::fs::create_dir_all(&volume).expect("a directory");
        std::fs::write(volume.join("file"), "content").expect("a file");
        let mount = |target: &str, read_only| Mount {
            source: volume.clone(),
            target: target.into(),
            read_only,
            propagation: Propagation::Private,
        };
        let file = Mount { source: volume.join("file"), ..mount("/etc/one/deep.conf", true) };
        let script = "
            cat /data/file /etc/one/deep.conf; echo
            (echo changed > /data/file) 2>/dev/null || echo read-only data
            echo new > /work/added
            touch /x 2>/dev/null || echo read-only root
            cd /srv/app && pwd
            grep -c ' /work/nested ' /proc/mounts
        ";
        let (output, _) = shell(&machine, pod(&machine, "mounts"), |config| {
            config.command.push(script.to_owned());
            // Deeper targets come first: the runtime has to order them.
            config.mounts = vec![mount("/work/nested", false), file, mount("/work", false), mount("/data", true)];
            config.working_dir = "/srv/app".to_owned();
            config.security.read_only_root = true;
        })
        .await;
        assert_eq!(output, "contentcontent\nread-only data\nread-only root\n/srv/app\n1\n");
        assert_eq!(std::fs::read_to_string(volume.join("added")).expect("written"), "new\n");

        // An image whose directory is a link to a place outside: the mount must land inside the container.
        let mut evil = writer::Builder::new(json!({ "Cmd": ["/bin/busybox", "ls", "/host-tmp-marker"] }));
        let outside = machine.directory.join("outside");
        std::fs::create_dir_all(&outside).expect("a directory");
        let busybox = std::fs::read("/bin/busybox").expect("busybox");
        evil.file("bin/busybox", 0o755, &busybox).expect("a file");
        evil.symlink("trap", &format!("../../../..{}", outside.display())).expect("a link");
        let mut archive = Vec::new();
        evil.write(&["evil:1"], &mut archive).expect("an archive");
        machine.linux().0.images.load(&mut archive.as_slice()).await.expect("it loads");
        shell(&machine, pod(&machine, "evil"), |config| {
            config.image = "evil:1".to_owned();
            config.command = ["/bin/busybox", "touch", "/trap/escaped/x"].map(str::to_owned).to_vec();
            config.mounts = vec![mount("/trap/escaped", false)];
        })
        .await;
        assert!(volume.join("x").exists(), "the volume was not mounted");
        assert_eq!(std::fs::read_dir(&outside).expect("a directory").count(), 0, "the mount left the container");
    });
}

#[test]
fn terminals_work() {
    isolated("terminals_work", async {
        let machine = Real::new().await;
        let runtime = machine.runtime();
        let sandbox = runtime.run_sandbox(&pod(&machine, "terminals")).await.expect("a sandbox");
        let config = ContainerConfig {
            tty: true,
            stdin: true,
            ..container_config("main", &["sh", "-c", "tty; echo $TERM; read line; echo got $line"])
        };
        let id = runtime.create_container(&sandbox.id, &config).await.expect("a container");
        runtime.start_container(&id).await.expect("it starts");

        let request = ExecRequest {
            command: ["sh", "-c", "tty; read line; stty size; exit 3"].map(str::to_owned).to_vec(),
            stdin: true,
            stdout: true,
            tty: true,
            ..ExecRequest::default()
        };
        let mut session = runtime.exec(&id, &request).await.expect("exec");
        session.resize.as_ref().expect("a terminal").send((132, 43)).await.expect("resized");
        let mut stdin = session.stdin.take().expect("standard input");
        let mut stdout = session.stdout.take().expect("standard output");
        let mut text = String::new();
        let mut buffer = [0; 256];
        // The size is set by a task of its own; by the time the shell has said its terminal it has been.
        while !text.contains("/dev/pts/") {
            let length = tokio::io::AsyncReadExt::read(&mut stdout, &mut buffer).await.expect("output");
            text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        tokio::io::AsyncWriteExt::write_all(&mut stdin, b"go\n").await.expect("input");
        tokio::io::AsyncReadExt::read_to_string(&mut stdout, &mut text).await.expect("output");
        assert!(text.contains("43 132"), "{text:?}");
        assert_eq!(session.exit.await.expect("an exit"), Ok(3));

        let attach = crate::AttachRequest { stdin: true, stdout: true, stderr: true, tty: true };
        let mut session = runtime.attach(&id, &attach).await.expect("attach");
        assert!(session.stderr.is_none() && session.resize.is_some());
        let mut stdin = session.stdin.take().expect("standard input");
        tokio::io::AsyncWriteExt::write_all(&mut stdin, b"me\n").await.expect("input");
        let status = ended(&machine, &id).await;
        let output = machine.output(&status).replace('\r', "");
        assert!(output.starts_with("/dev/pts/0\nxterm\n") && output.contains("got me"), "{output:?}");
        runtime.remove_sandbox(&sandbox.id).await.expect("removed");
    });
}

#[test]
fn limits_are_enforced_and_usage_is_told() {
    isolated("limits_are_enforced_and_usage_is_told", async {
        let machine = Real::new().await;
        let limits = Resources { memory_limit_bytes: Some(20 << 20), pids_limit: Some(20), ..Resources::default() };
        let (_, status) = shell(&machine, pod(&machine, "hungry"), |config| {
            config.command.push("tail /dev/zero".to_owned());
            config.resources = limits.clone();
        })
        .await;
        assert!(status.oom_killed, "{status:?}");
        assert_eq!(status.exit_code, 137);
        let (output, status) = shell(&machine, pod(&machine, "forking"), |config| {
            config.command.push("for i in $(seq 40); do sleep 5 & done; echo not reached".to_owned());
            config.resources = limits.clone();
        })
        .await;
        assert!(output.contains("can't fork") && !status.oom_killed, "{output}");

        let runtime = machine.runtime();
        let sandbox = runtime.run_sandbox(&pod(&machine, "measured")).await.expect("a sandbox");
        let id = runtime
            .create_container(
                &sandbox.id,
                &container_config("main", &["sh", "-c", "dd if=/dev/zero of=/big bs=1M count=3; sleep 1000"]),
            )
            .await
            .expect("a container");
        runtime.start_container(&id).await.expect("it starts");
        loop {
            let stats = runtime.stats(&id).await.expect("usage");
            if stats.writable_bytes >= 3 << 20 && stats.cpu_usage_nanoseconds > 0 && stats.memory_usage_bytes > 0 {
                break;
            }
            machine.clock().sleep(Duration::from_millis(10)).await;
        }
        runtime
            .update_container(&id, &Resources { pids_limit: Some(7), ..Resources::default() })
            .await
            .expect("updated");
        let group = machine.linux().cgroup(&machine.linux().find(&id).expect("it")).expect("a group");
        let directories = machine.linux().0.cgroups.directories(&group).into_iter();
        let limits: Vec<String> =
            directories.filter_map(|(path, _)| std::fs::read_to_string(path.join("pids.max")).ok()).collect();
        assert_eq!(limits, ["7\n"]);
        runtime.remove_sandbox(&sandbox.id).await.expect("removed");
    });
}

#[test]
fn logs_survive_the_agent_and_are_rotated() {
    isolated("logs_survive_the_agent_and_are_rotated", async {
        let mut machine = Real::new().await;
        let runtime = machine.runtime();
        let sandbox = runtime.run_sandbox(&pod(&machine, "logs")).await.expect("a sandbox");
        let id = runtime
            .create_container(
                &sandbox.id,
                &container_config(
                    "main",
                    &["sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; usleep 2000; done"],
                ),
            )
            .await
            .expect("a container");
        runtime.start_container(&id).await.expect("it starts");
        drop(runtime);
        let log = machine.runtime().container(&id).await.expect("a status").log_path;
        let lines = || std::fs::read_to_string(&log).unwrap_or_default().lines().count();
        let clock = machine.clock();
        let grows = async |from: usize| {
            while lines() <= from {
                clock.sleep(Duration::from_millis(2)).await;
            }
        };
        grows(3).await;
        // Nobody of the agent is there.
        machine.runtime = None;
        grows(lines() + 10).await;
        machine.restart().await;
        let old = log.with_extension("old");
        std::fs::rename(&log, &old).expect("renamed");
        machine.runtime().reopen_log(&id).await.expect("reopened");
        grows(3).await;
        let all =
            [std::fs::read_to_string(&old).expect("the old log"), std::fs::read_to_string(&log).expect("the new log")]
                .concat();
        for (index, line) in all.lines().enumerate() {
            let (time, rest) = line.split_once(' ').expect("a time");
            assert!(time.parse::<jiff::Timestamp>().is_ok() && time.len() == 30, "{line}");
            assert_eq!(rest, format!("stdout F line {}", index + 1));
        }
        machine.runtime().remove_sandbox(&sandbox.id).await.expect("removed");
    });
}

#[test]
fn namespaces_are_shared_as_asked() {
    isolated("namespaces_are_shared_as_asked", async {
        let machine = Real::new().await;
        let runtime = machine.runtime();
        let config = SandboxConfig {
            share_process_namespace: true,
            sysctls: [("net.ipv4.ip_unprivileged_port_start".to_owned(), "77".to_owned())].into(),
            ..pod(&machine, "shared")
        };
        let sandbox = runtime.run_sandbox(&config).await.expect("a sandbox");
        let start = async |name: &str, script: &str| {
            let config = container_config(name, &["sh", "-c", script]);
            let id = runtime.create_container(&sandbox.id, &config).await.expect("a container");
            runtime.start_container(&id).await.expect("it starts");
            id
        };
        let server = start("server", "echo shared > /dev/shm/note; (sleep 1000 &); nc -ll -p 7070 -e true").await;
        let client = start(
            "client",
            "until [ -s /dev/shm/note ] && nc 127.0.0.1 7070 < /dev/null 2> /dev/null; do usleep 10000; done
            cat /dev/shm/note; ps | grep -c '[s]leep 1000'; cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
        )
        .await;
        let output = machine.output(&ended(&machine, &client).await);
        assert_eq!(output.lines().next(), Some("shared"), "{output}");
        assert!(output.lines().nth(1).expect("a count").parse::<u32>().expect("a count") >= 1, "{output}");
        assert!(output.ends_with("77\n"), "{output}");
        // What the server left behind in the shared PID namespace goes with it.
        runtime.stop_container(&server, Duration::from_millis(50)).await.expect("it stops");
        let group = machine.linux().cgroup(&machine.linux().find(&server).expect("it")).expect("a group");
        assert_eq!(machine.linux().0.cgroups.processes(&group), Ok(Default::default()));
        runtime.remove_sandbox(&sandbox.id).await.expect("removed");

        let host = SandboxConfig { host_network: true, host_pid: true, host_ipc: true, ..pod(&machine, "host") };
        let script = "readlink /proc/self/ns/net; readlink /proc/self/ns/pid; readlink /proc/self/ns/ipc";
        let (output, _) = shell(&machine, host, |config| config.command.push(script.to_owned())).await;
        let own = ["net", "pid", "ipc"].map(|kind| {
            format!("{}\n", std::fs::read_link(format!("/proc/self/ns/{kind}")).expect("a link").display())
        });
        assert_eq!(output, own.concat());
    });
}

#[test]
fn ports_are_forwarded() {
    isolated("ports_are_forwarded", async {
        let machine = Real::new().await;
        let runtime = machine.runtime();
        let sandbox = runtime.run_sandbox(&pod(&machine, "ports")).await.expect("a sandbox");
        let command = ["nc", "-ll", "-p", "7070", "-e", "cat"];
        let id = runtime.create_container(&sandbox.id, &container_config("main", &command)).await.expect("a container");
        let refused = runtime.port_forward(&sandbox.id, 7070).await.err().expect("nobody listens");
        assert!(refused.to_string().contains("Connection refused"), "{refused}");
        runtime.start_container(&id).await.expect("it starts");
        let mut stream = loop {
            match runtime.port_forward(&sandbox.id, 7070).await {
                Ok(stream) => break stream,
                Err(_) => machine.clock().sleep(Duration::from_millis(5)).await,
            }
        };
        tokio::io::AsyncWriteExt::write_all(&mut stream, b"there and back").await.expect("sent");
        let mut answer = [0; 14];
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut answer).await.expect("received");
        assert_eq!(&answer, b"there and back");
        runtime.remove_sandbox(&sandbox.id).await.expect("removed");
    });
}

#[test]
fn a_dead_holder_loses_the_sandbox_and_nothing_else() {
    isolated("a_dead_holder_loses_the_sandbox_and_nothing_else", async {
        let mut machine = Real::new().await;
        let runtime = machine.runtime();
        let mut events = runtime.events();
        let config = SandboxConfig { host_pid: true, ..pod(&machine, "lost") };
        let sandbox = runtime.run_sandbox(&config).await.expect("a sandbox");
        let id = runtime
            .create_container(&sandbox.id, &container_config("main", &["sleep", "1000"]))
            .await
            .expect("a container");
        runtime.start_container(&id).await.expect("it starts");
        let holder = machine.linux().sandbox(&sandbox.id).expect("it").holder.expect("a holder");
        holder.kill().await.expect("killed");
        let lost = crate::Event::SandboxExited { sandbox: sandbox.id.clone() };
        assert_eq!(futures::StreamExt::next(&mut events).await, Some(lost));
        assert_eq!(runtime.container(&id).await.expect("a status").state, ContainerState::Unknown);
        let listed = runtime.sandboxes().await.expect("a list");
        assert!(!listed[0].ready && listed[0].netns.is_none());
        drop(runtime);
        machine.restart().await;
        let runtime = machine.runtime();
        assert_eq!(runtime.container(&id).await.expect("a status").state, ContainerState::Unknown);
        assert!(matches!(
            runtime.create_container(&sandbox.id, &container_config("next", &["true"])).await,
            Err(crate::Error::Lost(_))
        ));
        // The new agent has killed what outlived the holder.
        let group = machine.linux().cgroup(&machine.linux().find(&id).expect("it")).expect("a group");
        assert_eq!(machine.linux().0.cgroups.processes(&group), Ok(Default::default()));
        runtime.remove_sandbox(&sandbox.id).await.expect("removed");
    });
}

/// The agent that is killed: it makes and removes pods for ever.
#[test]
#[ignore = "a part of another test"]
fn victim() {
    isolated("victim", async {
        let machine = Real::new().await;
        println!("ready");
        let one = async |number: u32| {
            let runtime = machine.runtime();
            for round in 0.. {
                let config = sandbox_config(&machine, &format!("v{number}-{}-{round}", std::process::id()));
                let sandbox = runtime.run_sandbox(&config).await.expect("a sandbox");
                let config = container_config("main", &["sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"]);
                let id = runtime.create_container(&sandbox.id, &config).await.expect("a container");
                runtime.start_container(&id).await.expect("it starts");
                let request = ExecRequest { command: vec!["true".to_owned()], ..ExecRequest::default() };
                finish(runtime.exec(&id, &request).await.expect("exec")).await.2.expect("a code");
                runtime.stop_container(&id, Duration::from_millis(20)).await.expect("it stops");
                runtime.remove_container(&id).await.expect("it goes");
                runtime.remove_sandbox(&sandbox.id).await.expect("it goes");
            }
        };
        tokio::join!(one(0), one(1), one(2));
    });
}

#[test]
fn an_agent_killed_at_any_step_leaves_nothing_behind() {
    isolated("an_agent_killed_at_any_step_leaves_nothing_behind", async {
        use std::io::BufRead as _;
        let mut machine = Real::new().await;
        let dice = Dice::seeded(11);
        for round in 0..20 {
            machine.runtime = None;
            let mut victim = Command::new(std::env::current_exe().expect("the own program"))
                .args(["--exact", "linux::tests::victim", "--nocapture", "--ignored"])
                .stdout(std::process::Stdio::piped())
                .spawn()
                .expect("it runs");
            let mut lines = std::io::BufReader::new(victim.stdout.take().expect("its output")).lines();
            assert!(lines.any(|line| line.expect("a line").contains("ready")), "round {round}: the victim ended");
            machine.clock().sleep(Duration::from_micros(dice.below(120_000))).await;
            victim.kill().expect("killed");
            victim.wait().expect("it ended");
            // Half a fork may still be on its way to exec.
            machine.restart().await;
            let runtime = machine.runtime();
            for sandbox in runtime.sandboxes().await.expect("a list") {
                runtime.remove_sandbox(&sandbox.id).await.expect("an adopted sandbox can be removed");
            }
            let left = |path: PathBuf| std::fs::read_dir(path).expect("a directory").count();
            assert_eq!(left(machine.config.run_dir.join("sandboxes")), 0, "round {round}");
            assert_eq!(left(machine.config.data_dir.join("containers")), 0, "round {round}");
            let cgroups = &machine.linux().0.cgroups;
            let groups: Vec<_> =
                cgroups.children(None).iter().flat_map(|class| cgroups.children(Some(class))).collect();
            assert_eq!(groups, [], "round {round}");
            let until = machine.clock().instant() + Duration::from_secs(5);
            while let Some(process) = living_process() {
                assert!(machine.clock().instant() < until, "round {round}: {process} is left");
                machine.clock().sleep(Duration::from_millis(1)).await;
            }
        }
    });
}

/// A process of this PID namespace besides this one that has not ended.
fn living_process() -> Option<String> {
    std::fs::read_dir("/proc").expect("processes").flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let state = stat.rsplit_once(") ")?.1.chars().next()?;
        (pid != std::process::id() && state != 'Z').then_some(stat)
    })
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
