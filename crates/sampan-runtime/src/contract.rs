//! What every [`Runtime`] must do. [`run`] runs the whole suite against one machine; the fake and the real runtime both
//! pass it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use sampan_base::Clock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    AttachRequest, ContainerConfig, ContainerState, ContainerStatus, Error, Event, ExecRequest, ExecSession, Runtime,
    SandboxConfig, SandboxStatus, Security,
};

/// A machine the suite runs on. It has a busybox image of the name [`IMAGE`].
pub(crate) trait Machine {
    fn runtime(&self) -> Arc<dyn Runtime>;
    fn clock(&self) -> Clock;
    fn log_directory(&self) -> PathBuf;
    /// What the container wrote, both streams together, without the log's framing.
    fn output(&self, status: &ContainerStatus) -> String;
    /// The agent process dies and a new one takes over.
    async fn restart(&mut self);
}

pub(crate) const IMAGE: &str = "busybox:test";

pub(crate) async fn run(machine: &mut impl Machine) {
    a_container_runs_and_ends(machine).await;
    a_missing_command_is_a_start_error(machine).await;
    stopping_signals_and_then_kills(machine).await;
    what_is_gone_can_be_stopped_and_removed(machine).await;
    what_is_absent_is_not_found(machine).await;
    exec_runs_commands_beside_the_main_process(machine).await;
    attach_joins_the_streams(machine).await;
    a_new_agent_adopts(machine).await;
    stopping_a_sandbox_ends_its_containers(machine).await;
}

struct Pod<'a, M> {
    machine: &'a M,
    sandbox: SandboxStatus,
}

impl<'a, M: Machine> Pod<'a, M> {
    async fn new(machine: &'a M, name: &str) -> Self {
        let config = sandbox_config(machine, name);
        let sandbox = machine.runtime().run_sandbox(&config).await.expect("a sandbox");
        assert!(sandbox.ready);
        assert!(sandbox.netns.is_some());
        assert_eq!(sandbox.config, config);
        Self { machine, sandbox }
    }

    async fn create(&self, name: &str, command: &[&str]) -> String {
        self.create_with(ContainerConfig { stdin: false, ..container_config(name, command) }).await
    }

    async fn create_with(&self, config: ContainerConfig) -> String {
        self.machine.runtime().create_container(&self.sandbox.id, &config).await.expect("a container")
    }

    async fn start(&self, name: &str, command: &[&str]) -> String {
        let id = self.create(name, command).await;
        self.machine.runtime().start_container(&id).await.expect("it starts");
        id
    }

    async fn remove(self) {
        let runtime = self.machine.runtime();
        runtime.stop_sandbox(&self.sandbox.id).await.expect("the sandbox stops");
        runtime.remove_sandbox(&self.sandbox.id).await.expect("the sandbox goes");
        let left = runtime.sandboxes().await.expect("a list");
        assert!(left.iter().all(|other| other.id != self.sandbox.id));
        let left = runtime.containers().await.expect("a list");
        assert!(left.iter().all(|container| container.sandbox != self.sandbox.id));
    }
}

pub(crate) fn sandbox_config(machine: &impl Machine, name: &str) -> SandboxConfig {
    SandboxConfig {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        uid: format!("uid-of-{name}"),
        hostname: name.to_owned(),
        log_directory: machine.log_directory().join(name),
        cgroup: format!("besteffort/pod{name}"),
        ..SandboxConfig::default()
    }
}

pub(crate) fn container_config(name: &str, command: &[&str]) -> ContainerConfig {
    ContainerConfig {
        name: name.to_owned(),
        image: IMAGE.to_owned(),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        log_path: PathBuf::from(name).join("0.log"),
        security: Security { no_new_privileges: true, ..Security::default() },
        ..ContainerConfig::default()
    }
}

fn request(command: &[&str]) -> ExecRequest {
    ExecRequest {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        stdout: true,
        stderr: true,
        ..ExecRequest::default()
    }
}

/// Waits for the end, by events and, after a gap, by asking.
pub(crate) async fn ended(machine: &impl Machine, id: &str) -> ContainerStatus {
    let runtime = machine.runtime();
    let mut events = runtime.events();
    loop {
        let status = runtime.container(id).await.expect("a status");
        if matches!(status.state, ContainerState::Exited | ContainerState::Unknown) {
            return status;
        }
        let wanted = |event: Event| matches!(event, Event::ContainerExited { container, .. } if container == id);
        let wait = async { while !events.next().await.is_some_and(wanted) {} };
        assert!(machine.clock().timeout(Duration::from_secs(60), wait).await.is_some(), "{id} never ended");
    }
}

/// Reads both streams to their ends: standard output, standard error and the exit code.
pub(crate) async fn finish(session: ExecSession) -> (String, String, Result<i32, Error>) {
    drop(session.stdin);
    let (mut out, mut err) = (String::new(), String::new());
    let read_out = async {
        if let Some(mut stream) = session.stdout {
            stream.read_to_string(&mut out).await.expect("standard output");
        }
    };
    let read_err = async {
        if let Some(mut stream) = session.stderr {
            stream.read_to_string(&mut err).await.expect("standard error");
        }
    };
    tokio::join!(read_out, read_err);
    let code = session.exit.await.expect("an exit");
    (out, err, code)
}

async fn a_container_runs_and_ends(machine: &impl Machine) {
    let pod = Pod::new(machine, "runs").await;
    let runtime = machine.runtime();
    let id = pod.create("main", &["sh", "-c", "echo hello; echo oops >&2; exit 3"]).await;
    let status = runtime.container(&id).await.expect("a status");
    assert_eq!((status.state, status.started_at), (ContainerState::Created, None));
    assert!(status.image_id.starts_with("sha256:"));
    assert_eq!(status.log_path, machine.log_directory().join("runs/main/0.log"));
    runtime.start_container(&id).await.expect("it starts");
    let status = ended(machine, &id).await;
    assert_eq!((status.state, status.exit_code, status.oom_killed), (ContainerState::Exited, 3, false));
    assert!(status.started_at.expect("a start") <= status.finished_at.expect("an end"));
    let output = machine.output(&status);
    assert!(output.contains("hello\n") && output.contains("oops\n"), "{output:?}");
    assert!(matches!(runtime.start_container(&id).await, Err(Error::Invalid(_))), "it started twice");
    pod.remove().await;
}

async fn a_missing_command_is_a_start_error(machine: &impl Machine) {
    let pod = Pod::new(machine, "missing").await;
    let runtime = machine.runtime();
    let id = pod.create("main", &["no-such-command", "-x"]).await;
    let message = r#"exec: "no-such-command": executable file not found in $PATH"#;
    assert_eq!(runtime.start_container(&id).await, Err(Error::Start(message.to_owned())));
    let status = runtime.container(&id).await.expect("a status");
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 128));
    assert_eq!(status.message, message);
    // Another attempt of the same name may follow.
    let again = ContainerConfig { attempt: 1, ..container_config("main", &["true"]) };
    let again = pod.create_with(again).await;
    runtime.start_container(&again).await.expect("it starts");
    assert_eq!(ended(machine, &again).await.exit_code, 0);
    pod.remove().await;
}

async fn stopping_signals_and_then_kills(machine: &impl Machine) {
    let pod = Pod::new(machine, "stops").await;
    let runtime = machine.runtime();
    let polite = pod.start("polite", &["sh", "-c", "trap 'exit 143' TERM; while :; do sleep 0.02; done"]).await;
    let stubborn = pod.start("stubborn", &["sh", "-c", "trap '' TERM; sleep 1000"]).await;
    // The trap is set a moment after the start.
    runtime.exec(&polite, &request(&["sleep", "1"])).await.expect("exec").exit.await.expect("an exit").expect("a code");
    let started = machine.clock().instant();
    runtime.stop_container(&polite, Duration::from_secs(30)).await.expect("it stops");
    assert_eq!(runtime.container(&polite).await.expect("a status").exit_code, 143);
    assert!(started.elapsed() < Duration::from_secs(10), "it waited {:?}", started.elapsed());
    let started = machine.clock().instant();
    runtime.stop_container(&stubborn, Duration::from_secs(1)).await.expect("it stops");
    let status = runtime.container(&stubborn).await.expect("a status");
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 137));
    assert!(started.elapsed() >= Duration::from_secs(1), "it killed after {:?}", started.elapsed());
    pod.remove().await;
}

async fn what_is_gone_can_be_stopped_and_removed(machine: &impl Machine) {
    let pod = Pod::new(machine, "gone").await;
    let runtime = machine.runtime();
    let id = pod.start("main", &["true"]).await;
    ended(machine, &id).await;
    for _ in 0..2 {
        assert_eq!(runtime.stop_container(&id, Duration::ZERO).await, Ok(()));
    }
    for _ in 0..2 {
        assert_eq!(runtime.remove_container(&id).await, Ok(()));
    }
    assert_eq!(runtime.stop_container(&id, Duration::ZERO).await, Ok(()));
    let sandbox = pod.sandbox.id.clone();
    pod.remove().await;
    assert_eq!(runtime.stop_sandbox(&sandbox).await, Ok(()));
    assert_eq!(runtime.remove_sandbox(&sandbox).await, Ok(()));
}

async fn what_is_absent_is_not_found(machine: &impl Machine) {
    let runtime = machine.runtime();
    assert!(matches!(runtime.container("absent").await, Err(Error::NotFound { .. })));
    assert!(matches!(runtime.start_container("absent").await, Err(Error::NotFound { .. })));
    let config = container_config("main", &["true"]);
    assert!(matches!(runtime.create_container("absent", &config).await, Err(Error::NotFound { .. })));
    let pod = Pod::new(machine, "absent").await;
    let no_image = ContainerConfig { image: "no/such:image".to_owned(), ..config.clone() };
    assert!(matches!(
        runtime.create_container(&pod.sandbox.id, &no_image).await,
        Err(Error::NotFound { what: "image", .. })
    ));
    let twin = sandbox_config(machine, "absent");
    assert!(matches!(runtime.run_sandbox(&twin).await, Err(Error::Invalid(_))), "one pod, two sandboxes");
    pod.create("main", &["true"]).await;
    assert!(matches!(runtime.create_container(&pod.sandbox.id, &config).await, Err(Error::Invalid(_))));
    pod.remove().await;
}

async fn exec_runs_commands_beside_the_main_process(machine: &impl Machine) {
    let pod = Pod::new(machine, "exec").await;
    let runtime = machine.runtime();
    let id = pod.start("main", &["sleep", "1000"]).await;
    let exec = async |request: ExecRequest| runtime.exec(&id, &request).await;

    let session = exec(request(&["sh", "-c", "echo out; echo err >&2; exit 5"])).await.expect("exec");
    assert_eq!(finish(session).await, ("out\n".to_owned(), "err\n".to_owned(), Ok(5)));

    let mut session = exec(ExecRequest { stdin: true, ..request(&["cat"]) }).await.expect("exec");
    let mut stdin = session.stdin.take().expect("standard input");
    stdin.write_all(b"through").await.expect("a write");
    drop(stdin);
    assert_eq!(finish(session).await, ("through".to_owned(), String::new(), Ok(0)));

    let limit = Duration::from_millis(300);
    let session = exec(ExecRequest { timeout: Some(limit), ..request(&["sleep", "1000"]) }).await.expect("exec");
    assert_eq!(finish(session).await.2, Err(Error::Timeout(limit)));

    let missing = exec(request(&["no-such-command"])).await.err();
    assert_eq!(
        missing,
        Some(Error::Start(r#"exec: "no-such-command": executable file not found in $PATH"#.to_owned()))
    );
    assert!(matches!(exec(request(&[])).await.err(), Some(Error::Invalid(_))));

    runtime.stop_container(&id, Duration::ZERO).await.expect("it stops");
    assert!(matches!(exec(request(&["true"])).await.err(), Some(Error::Invalid(_))), "exec in a stopped container");
    pod.remove().await;
}

async fn attach_joins_the_streams(machine: &impl Machine) {
    let pod = Pod::new(machine, "attach").await;
    let runtime = machine.runtime();
    let id = pod.create_with(ContainerConfig { stdin: true, ..container_config("main", &["cat"]) }).await;
    runtime.start_container(&id).await.expect("it starts");
    let streams = AttachRequest { stdin: true, stdout: true, stderr: true, tty: false };
    let mut session = runtime.attach(&id, &streams).await.expect("attach");
    let mut stdin = session.stdin.take().expect("standard input");
    stdin.write_all(b"echo\n").await.expect("a write");
    let mut answer = [0; 5];
    session.stdout.as_mut().expect("standard output").read_exact(&mut answer).await.expect("an answer");
    assert_eq!(&answer, b"echo\n");
    runtime.stop_container(&id, Duration::ZERO).await.expect("it stops");
    assert_eq!(session.exit.await.expect("an exit"), Ok(137));
    pod.remove().await;
}

async fn a_new_agent_adopts(machine: &mut impl Machine) {
    let (sandbox, running, created, ended_before) = {
        let pod = Pod::new(machine, "adopt").await;
        let running = pod.start("running", &["sh", "-c", "echo before; sleep 2; exit 4"]).await;
        let created = pod.create("created", &["true"]).await;
        let ended_before = pod.start("ended", &["false"]).await;
        ended(machine, &ended_before).await;
        (pod.sandbox.clone(), running, created, ended_before)
    };
    let before = machine.runtime().container(&running).await.expect("a status");
    machine.restart().await;
    let runtime = machine.runtime();
    let adopted = runtime.sandboxes().await.expect("a list").into_iter().find(|other| other.id == sandbox.id);
    assert_eq!(adopted.as_ref(), Some(&sandbox));
    assert_eq!(runtime.container(&running).await, Ok(before));
    let status = runtime.container(&ended_before).await.expect("a status");
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 1));
    let session = runtime.exec(&running, &request(&["true"])).await.expect("exec after adoption");
    assert_eq!(finish(session).await.2, Ok(0));
    runtime.start_container(&created).await.expect("a container made before starts after");
    assert_eq!(ended(machine, &created).await.exit_code, 0);
    let status = ended(machine, &running).await;
    assert_eq!(status.exit_code, 4);
    assert!(machine.output(&status).contains("before"));
    Pod { machine: &*machine, sandbox }.remove().await;
}

async fn stopping_a_sandbox_ends_its_containers(machine: &impl Machine) {
    let pod = Pod::new(machine, "whole").await;
    let runtime = machine.runtime();
    let id = pod.start("main", &["sh", "-c", "echo said; sleep 1000"]).await;
    let said = async {
        while !machine.output(&runtime.container(&id).await.expect("a status")).contains("said") {
            machine.clock().sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(machine.clock().timeout(Duration::from_secs(60), said).await.is_some(), "it said nothing");
    runtime.stop_sandbox(&pod.sandbox.id).await.expect("it stops");
    let status = runtime.container(&id).await.expect("a status stays");
    assert_eq!((status.state, status.exit_code), (ContainerState::Exited, 137));
    assert!(machine.output(&status).contains("said"));
    let listed = runtime.sandboxes().await.expect("a list").into_iter().find(|other| other.id == pod.sandbox.id);
    let listed = listed.expect("a stopped sandbox is listed until it is removed");
    assert!(!listed.ready);
    assert_eq!(listed.netns, None);
    assert!(runtime.create_container(&pod.sandbox.id, &container_config("late", &["true"])).await.is_err());
    pod.remove().await;
}
