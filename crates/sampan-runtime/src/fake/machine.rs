//! The sandboxes and containers of a pretended machine.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use sampan_base::{Clock, Dice, task};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::Behaviour;
use super::images::Store;
use crate::{
    AttachRequest, ContainerConfig, ContainerState, ContainerStatus, Duplex, Error, Event, ExecRequest, ExecSession,
    Resources, Runtime, SandboxConfig, SandboxStatus, Stats,
};

/// The calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    RunSandbox,
    StopSandbox,
    RemoveSandbox,
    CreateContainer,
    StartContainer,
    StopContainer,
    RemoveContainer,
    UpdateContainer,
    List,
    Exec,
    Pull,
    RemoveImage,
}

/// A handle on a pretended machine; clones share it. Dropping every handle ends nothing: like the real runtime it
/// outlives the agent, so a test "restarts" the agent by going on with a clone.
#[derive(Clone)]
pub struct Fake {
    clock: Clock,
    dice: Dice,
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<Event>,
}

#[derive(Default)]
pub(super) struct State {
    sandboxes: BTreeMap<String, SandboxStatus>,
    containers: BTreeMap<String, Container>,
    pub(super) images: Store,
    /// By container name; the last one stays for all later attempts.
    behaviours: BTreeMap<String, VecDeque<Behaviour>>,
    failures: BTreeMap<Operation, VecDeque<Error>>,
    exec: Option<Arc<dyn Fn(&ContainerStatus, &[String]) -> Option<Behaviour> + Send + Sync>>,
    port: Option<Arc<dyn Fn(&SandboxStatus, u16, DuplexStream) + Send + Sync>>,
    calls: Vec<(Operation, String)>,
}

struct Container {
    status: ContainerStatus,
    behaviour: Behaviour,
    resources: Resources,
    output: String,
    stats: Stats,
    /// Tells those who wait that the process has ended.
    ended: watch::Sender<bool>,
}

/// Scripting.
impl Fake {
    pub fn new(clock: Clock, dice: Dice) -> Self {
        Self { clock, dice, state: Arc::default(), events: broadcast::channel(1024).0 }
    }

    /// What the containers of this name do: the first attempt the first entry, and so on; the last entry stays.
    pub fn behave(&self, container_name: &str, attempts: impl IntoIterator<Item = Behaviour>) {
        self.state().behaviours.insert(container_name.to_owned(), attempts.into_iter().collect());
    }

    /// The next call of this operation fails with `error`; several calls queue up.
    pub fn fail_next(&self, operation: Operation, error: Error) {
        self.state().failures.entry(operation).or_default().push_back(error);
    }

    /// What commands do that are run in containers; `None` leaves it to [`Behaviour::of_command`].
    pub fn on_exec(&self, answer: impl Fn(&ContainerStatus, &[String]) -> Option<Behaviour> + Send + Sync + 'static) {
        self.state().exec = Some(Arc::new(answer));
    }

    /// Serves connections to ports of sandboxes; without it they are refused.
    pub fn on_port_forward(&self, serve: impl Fn(&SandboxStatus, u16, DuplexStream) + Send + Sync + 'static) {
        self.state().port = Some(Arc::new(serve));
    }

    /// The process of a running container ends now.
    pub fn exit(&self, container: &str, exit_code: i32) {
        self.end(container, exit_code, false);
    }

    /// The kernel kills the container for its memory now.
    pub fn oom(&self, container: &str) {
        self.end(container, 128 + libc::SIGKILL, true);
    }

    /// The sandbox's holder dies: its containers are [`ContainerState::Unknown`].
    pub fn lose(&self, sandbox: &str) {
        let mut state = self.state();
        for container in state.containers.values_mut().filter(|c| c.status.sandbox == sandbox) {
            if container.status.state == ContainerState::Running {
                container.status.state = ContainerState::Unknown;
                container.status.exit_code = 255;
                container.ended.send_replace(true);
            }
        }
        if let Some(status) = state.sandboxes.get_mut(sandbox) {
            status.ready = false;
            status.netns = None;
            let _ = self.events.send(Event::SandboxExited { sandbox: sandbox.to_owned() });
        }
    }

    /// What [`Runtime::stats`] answers.
    pub fn set_stats(&self, container: &str, stats: Stats) {
        if let Some(container) = self.state().containers.get_mut(container) {
            container.stats = stats;
        }
    }

    /// The calls so far with what each was about: a pod's `NAMESPACE/NAME`, a container's name or an image.
    pub fn calls(&self) -> Vec<(Operation, String)> {
        self.state().calls.clone()
    }

    /// What the container wrote, both streams together.
    pub fn output(&self, container: &str) -> String {
        self.state().containers.get(container).map(|c| c.output.clone()).unwrap_or_default()
    }

    /// The limits in force.
    pub fn resources(&self, container: &str) -> Option<Resources> {
        self.state().containers.get(container).map(|c| c.resources.clone())
    }
}

impl Fake {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Notes the call and fails it when a test asked for that.
    pub(super) fn begin(&self, operation: Operation, about: &str) -> Result<(), Error> {
        let mut state = self.state();
        state.calls.push((operation, about.to_owned()));
        match state.failures.get_mut(&operation).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn begin_container(&self, operation: Operation, container: &str) -> Result<(), Error> {
        let name = self.state().containers.get(container).map(|c| c.status.config.name.clone());
        self.begin(operation, &name.unwrap_or_else(|| container.to_owned()))
    }

    fn id(&self) -> String {
        format!("{:016x}{:016x}", self.dice.next_u64(), self.dice.next_u64())
    }

    fn end(&self, id: &str, exit_code: i32, oom_killed: bool) {
        let mut state = self.state();
        let Some(container) = state.containers.get_mut(id) else { return };
        if container.status.state != ContainerState::Running {
            return;
        }
        container.status.state = ContainerState::Exited;
        container.status.exit_code = exit_code;
        container.status.oom_killed = oom_killed;
        container.status.finished_at = Some(self.clock.now());
        container.ended.send_replace(true);
        let sandbox = container.status.sandbox.clone();
        let _ = self.events.send(Event::ContainerExited { sandbox, container: id.to_owned() });
    }

    fn running(&self, id: &str) -> Result<ContainerStatus, Error> {
        let state = self.state();
        let container = state.containers.get(id).ok_or_else(|| not_found("container", id))?;
        match container.status.state {
            ContainerState::Running => Ok(container.status.clone()),
            _ => Err(Error::Invalid(format!("container {} is not running", container.status.config.name))),
        }
    }

    /// A process outside the container's main one: its streams are in memory, its end comes by the clock or, when it
    /// copies its input, with the end of that.
    fn session(&self, behaviour: Behaviour, request: &ExecRequest) -> ExecSession {
        let (exit_sender, exit) = oneshot::channel();
        let (stdin, stdin_inside) = tokio::io::duplex(64 << 10);
        let (stdout, mut stdout_inside) = tokio::io::duplex(64 << 10);
        let (stderr, mut stderr_inside) = tokio::io::duplex(64 << 10);
        let (resize, mut resized) = mpsc::channel(8);
        let (clock, timeout, with_stdin) = (self.clock.clone(), request.timeout, request.stdin);
        let tty = request.tty;
        task::spawn("fake exec", async move {
            let text = behaviour.stderr.as_bytes();
            let _ = if tty { stdout_inside.write_all(text).await } else { stderr_inside.write_all(text).await };
            let _ = stdout_inside.write_all(behaviour.stdout.as_bytes()).await;
            let run = async {
                if behaviour.copies_stdin && with_stdin {
                    let mut input = stdin_inside;
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = input.read(&mut buffer).await {
                        let _ = stdout_inside.write_all(&buffer[..length]).await;
                    }
                }
                match behaviour.ends_after {
                    Some(after) => clock.sleep(after).await,
                    None => std::future::pending().await,
                }
            };
            let ended = match timeout {
                Some(limit) => clock.timeout(limit, run).await.is_some(),
                None => {
                    run.await;
                    true
                }
            };
            let result = match timeout {
                Some(limit) if !ended => Err(Error::Timeout(limit)),
                _ => Ok(behaviour.exit_code),
            };
            drop((stdout_inside, stderr_inside));
            let _ = exit_sender.send(result);
        });
        task::spawn("fake terminal", async move { while resized.recv().await.is_some() {} });
        ExecSession {
            stdin: request.stdin.then(|| Box::new(stdin) as _),
            stdout: request.stdout.then(|| Box::new(stdout) as _),
            stderr: (request.stderr && !request.tty).then(|| Box::new(stderr) as _),
            resize: request.tty.then_some(resize),
            exit,
        }
    }
}

fn not_found(what: &'static str, id: &str) -> Error {
    Error::NotFound { what, id: id.to_owned() }
}

#[async_trait]
impl Runtime for Fake {
    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxStatus, Error> {
        self.begin(Operation::RunSandbox, &format!("{}/{}", config.namespace, config.name))?;
        let id = self.id();
        let mut state = self.state();
        if state.sandboxes.values().any(|s| s.config.uid == config.uid && s.config.attempt == config.attempt) {
            return Err(Error::Invalid(format!(
                "pod {} already has a sandbox of attempt {}",
                config.uid, config.attempt
            )));
        }
        let status = SandboxStatus {
            id: id.clone(),
            config: config.clone(),
            ready: true,
            created_at: self.clock.now(),
            netns: (!config.host_network).then(|| PathBuf::from(format!("/run/fake/{id}/netns"))),
        };
        state.sandboxes.insert(id, status.clone());
        Ok(status)
    }

    async fn stop_sandbox(&self, sandbox: &str) -> Result<(), Error> {
        self.begin(Operation::StopSandbox, sandbox)?;
        let running: Vec<String> = {
            let mut state = self.state();
            let Some(status) = state.sandboxes.get_mut(sandbox) else { return Ok(()) };
            status.ready = false;
            status.netns = None;
            state.containers.values().filter(|c| c.status.sandbox == sandbox).map(|c| c.status.id.clone()).collect()
        };
        for container in running {
            self.end(&container, 128 + libc::SIGKILL, false);
        }
        Ok(())
    }

    async fn remove_sandbox(&self, sandbox: &str) -> Result<(), Error> {
        self.stop_sandbox(sandbox).await?;
        self.begin(Operation::RemoveSandbox, sandbox)?;
        let mut state = self.state();
        state.sandboxes.remove(sandbox);
        state.containers.retain(|_, container| container.status.sandbox != sandbox);
        Ok(())
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, Error> {
        self.begin(Operation::List, "sandboxes")?;
        Ok(self.state().sandboxes.values().cloned().collect())
    }

    async fn create_container(&self, sandbox: &str, config: &ContainerConfig) -> Result<String, Error> {
        self.begin(Operation::CreateContainer, &config.name)?;
        let id = self.id();
        let mut state = self.state();
        let log_directory = match state.sandboxes.get(sandbox) {
            Some(status) if status.ready => status.config.log_directory.clone(),
            Some(_) => return Err(Error::Lost(sandbox.to_owned())),
            None => return Err(not_found("sandbox", sandbox)),
        };
        let image = state.images.get(&config.image)?.cloned().ok_or_else(|| not_found("image", &config.image))?;
        let twin = |c: &Container| {
            c.status.sandbox == sandbox
                && c.status.config.name == config.name
                && c.status.config.attempt == config.attempt
        };
        if state.containers.values().any(twin) {
            return Err(Error::Invalid(format!("container {} already has an attempt {}", config.name, config.attempt)));
        }
        let mut command =
            if config.command.is_empty() { image.config.entrypoint.clone() } else { config.command.clone() };
        let image_args = if config.command.is_empty() { image.config.cmd.as_slice() } else { &[] };
        command.extend_from_slice(if config.args.is_empty() { image_args } else { &config.args });
        let scripted = state.behaviours.get_mut(&config.name).and_then(|queue| match queue.len() {
            0 | 1 => queue.front().cloned(),
            _ => queue.pop_front(),
        });
        let mut behaviour = scripted.unwrap_or_else(|| match command.is_empty() {
            true => Behaviour::default(),
            false => Behaviour::of_command(&command),
        });
        if behaviour.copies_stdin && config.stdin {
            behaviour.ends_after = None;
        }
        let status = ContainerStatus {
            id: id.clone(),
            sandbox: sandbox.to_owned(),
            config: config.clone(),
            state: ContainerState::Created,
            image_id: image.id,
            created_at: self.clock.now(),
            started_at: None,
            finished_at: None,
            exit_code: 0,
            oom_killed: false,
            message: String::new(),
            log_path: log_directory.join(&config.log_path),
        };
        let container = Container {
            status,
            behaviour,
            resources: config.resources.clone(),
            output: String::new(),
            stats: Stats { pids: 1, ..Stats::default() },
            ended: watch::channel(false).0,
        };
        state.containers.insert(id.clone(), container);
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<(), Error> {
        self.begin_container(Operation::StartContainer, id)?;
        let now = self.clock.now();
        let mut state = self.state();
        let container = state.containers.get_mut(id).ok_or_else(|| not_found("container", id))?;
        if container.status.state != ContainerState::Created {
            return Err(Error::Invalid(format!("container {} was started before", container.status.config.name)));
        }
        let behaviour = container.behaviour.clone();
        if let Some(message) = behaviour.start_error {
            container.status.state = ContainerState::Exited;
            container.status.finished_at = Some(now);
            container.status.exit_code = 128;
            container.status.message.clone_from(&message);
            container.ended.send_replace(true);
            return Err(Error::Start(message));
        }
        container.status.state = ContainerState::Running;
        container.status.started_at = Some(now);
        container.output = format!("{}{}", behaviour.stdout, behaviour.stderr);
        drop(state);
        if let Some(after) = behaviour.ends_after {
            let (machine, id) = (self.clone(), id.to_owned());
            task::spawn("fake container", async move {
                machine.clock.sleep(after).await;
                machine.end(&id, behaviour.exit_code, behaviour.oom_killed);
            });
        }
        Ok(())
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error> {
        self.begin_container(Operation::StopContainer, id)?;
        let (mut ended, stops_after) = {
            let state = self.state();
            let Some(container) = state.containers.get(id) else { return Ok(()) };
            if container.status.state != ContainerState::Running {
                return Ok(());
            }
            (container.ended.subscribe(), container.behaviour.stops_after)
        };
        let reaction = match stops_after {
            Some(after) if after < grace => (after, 128 + libc::SIGTERM),
            _ => (grace, 128 + libc::SIGKILL),
        };
        // Whichever is first: the reaction to the signal or an end of its own.
        if self.clock.timeout(reaction.0, ended.wait_for(|ended| *ended)).await.is_none() {
            self.end(id, reaction.1, false);
        }
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<(), Error> {
        self.begin_container(Operation::RemoveContainer, id)?;
        self.end(id, 128 + libc::SIGKILL, false);
        self.state().containers.remove(id);
        Ok(())
    }

    async fn containers(&self) -> Result<Vec<ContainerStatus>, Error> {
        self.begin(Operation::List, "containers")?;
        Ok(self.state().containers.values().map(|container| container.status.clone()).collect())
    }

    async fn container(&self, id: &str) -> Result<ContainerStatus, Error> {
        self.state().containers.get(id).map(|c| c.status.clone()).ok_or_else(|| not_found("container", id))
    }

    async fn update_container(&self, id: &str, resources: &Resources) -> Result<(), Error> {
        self.begin_container(Operation::UpdateContainer, id)?;
        let mut state = self.state();
        let container = state.containers.get_mut(id).ok_or_else(|| not_found("container", id))?;
        container.resources = resources.clone();
        Ok(())
    }

    async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        self.running(id).map(drop)
    }

    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<ExecSession, Error> {
        self.begin_container(Operation::Exec, id)?;
        let status = self.running(id)?;
        if request.command.is_empty() {
            return Err(Error::Invalid("the command is empty".to_owned()));
        }
        let answer = self.state().exec.clone();
        let behaviour = answer
            .and_then(|answer| answer(&status, &request.command))
            .unwrap_or_else(|| Behaviour::of_command(&request.command));
        match behaviour.start_error {
            Some(message) => Err(Error::Start(message)),
            None => Ok(self.session(behaviour, request)),
        }
    }

    async fn attach(&self, id: &str, request: &AttachRequest) -> Result<ExecSession, Error> {
        self.running(id)?;
        let (mut ended, behaviour) = {
            let state = self.state();
            let container = state.containers.get(id).ok_or_else(|| not_found("container", id))?;
            // What it wrote at its start was written before anybody attached.
            let behaviour = Behaviour { stdout: String::new(), stderr: String::new(), ..container.behaviour.clone() };
            (container.ended.subscribe(), behaviour)
        };
        let streams = ExecRequest {
            command: Vec::new(),
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
            timeout: None,
        };
        let mut session = self.session(behaviour, &streams);
        let (sender, exit) = oneshot::channel();
        session.exit = exit;
        let (machine, id) = (self.clone(), id.to_owned());
        task::spawn("fake attach", async move {
            let _ = ended.wait_for(|ended| *ended).await;
            let _ = sender.send(machine.container(&id).await.map(|status| status.exit_code));
        });
        Ok(session)
    }

    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>, Error> {
        let (status, serve) = {
            let state = self.state();
            let status = state.sandboxes.get(sandbox).cloned().ok_or_else(|| not_found("sandbox", sandbox))?;
            (status, state.port.clone())
        };
        let serve = serve.ok_or_else(|| Error::System(format!("connect to 127.0.0.1:{port}: connection refused")))?;
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        serve(&status, port, theirs);
        Ok(Box::new(ours))
    }

    async fn stats(&self, id: &str) -> Result<Stats, Error> {
        self.running(id)?;
        self.state().containers.get(id).map(|c| c.stats.clone()).ok_or_else(|| not_found("container", id))
    }

    fn events(&self) -> BoxStream<'static, Event> {
        let events = self.events.subscribe();
        futures::stream::unfold(events, |mut events| async move {
            loop {
                match events.recv().await {
                    Ok(event) => return Some((event, events)),
                    // The subscriber lists again after a gap; the contract allows it to miss events.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }
}
