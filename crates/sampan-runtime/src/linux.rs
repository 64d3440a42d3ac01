//! The real runtime: sandboxes and containers made by holders (see `sampan-holder`) on this machine.
//!
//! What is true is on disk and with the holders; see [`record`]. In memory are handles only, so a new agent process knows
//! as much as the old one. Killed at any step, the agent leaves something that [`Linux::open`] either adopts or sweeps.

pub(crate) mod capability;
mod holder;
mod plan;
// The holder's own file: one definition of what the two say to each other.
#[path = "../../sampan-holder/src/protocol.rs"]
mod protocol;
mod record;
mod streams;
mod sweep;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use sampan_base::{Clock, Dice, task};
use tokio::sync::{broadcast, oneshot};

use self::holder::{Connection, Holder, Program, memory_file};
use self::protocol::{Reply, Request};
use self::record::{ContainerRecord, FORMAT, Progress, SandboxRecord};
use self::streams::Terminal;
use crate::cgroup::{CgroupPath, Cgroups, Prefix};
use crate::images::Store;
use crate::{
    AttachRequest, ContainerConfig, ContainerState, ContainerStatus, Duplex, Error, Event, ExecRequest, ExecSession,
    Resources, Runtime, SandboxConfig, SandboxStatus, Stats,
};

/// Where the runtime lives. Two runtimes share none of these.
#[derive(Clone)]
pub struct RuntimeConfig {
    /// Volatile state; does not outlive a reboot: `/run/sampan`.
    pub run_dir: PathBuf,
    /// Writable layers of containers, and images: `/var/lib/sampan`. Not on overlayfs.
    pub data_dir: PathBuf,
    /// Below each cgroup hierarchy's root: `sampan`, `system.slice/sampan.slice`.
    pub cgroup_prefix: String,
    pub clock: Clock,
    pub dice: Dice,
}

/// A handle on the runtime; clones share it.
#[derive(Clone)]
pub struct Linux(Arc<Inner>);

struct Inner {
    config: RuntimeConfig,
    cgroups: Cgroups,
    images: Arc<Store>,
    program: Program,
    state: Mutex<State>,
    events: broadcast::Sender<Event>,
}

#[derive(Default)]
struct State {
    sandboxes: BTreeMap<String, Sandbox>,
    containers: BTreeMap<String, Container>,
}

#[derive(Clone)]
struct Sandbox {
    id: String,
    directory: PathBuf,
    record: Arc<SandboxRecord>,
    /// `None`: it has ended.
    holder: Option<Arc<Holder>>,
}

#[derive(Clone)]
struct Container {
    id: String,
    sandbox: String,
    directory: PathBuf,
    record: Arc<ContainerRecord>,
    /// One start at a time: a second waits and then finds the container started.
    starting: Arc<tokio::sync::Mutex<()>>,
}

impl Linux {
    /// Adopts what an earlier process left, and removes what it had half made or half removed.
    pub async fn open(config: RuntimeConfig, images: Arc<Store>) -> Result<Self, Error> {
        let prefix = Prefix::new(&config.cgroup_prefix)?;
        for directory in [config.run_dir.join("sandboxes"), config.data_dir.join("containers")] {
            make_directory(&directory)?;
        }
        let program = Program::new().map_err(|error| Error::System(format!("hold the holder's program: {error}")))?;
        let inner = Inner {
            cgroups: Cgroups::open(prefix)?,
            images,
            program,
            state: Mutex::default(),
            events: broadcast::channel(1024).0,
            config,
        };
        let runtime = Self(Arc::new(inner));
        sweep::adopt(&runtime).await?;
        Ok(runtime)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn sandbox(&self, id: &str) -> Result<Sandbox, Error> {
        self.state().sandboxes.get(id).cloned().ok_or_else(|| not_found("sandbox", id))
    }

    fn find(&self, id: &str) -> Result<Container, Error> {
        self.state().containers.get(id).cloned().ok_or_else(|| not_found("container", id))
    }

    /// The sandbox of a container and a connection to its holder.
    async fn connect(&self, sandbox: &str) -> Result<(Sandbox, Connection), Error> {
        let sandbox = self.sandbox(sandbox)?;
        let connection = Connection::open(&sandbox.id, &sandbox.directory, &self.0.config.clock)?;
        Ok((sandbox, connection))
    }

    fn status(&self, container: &Container) -> ContainerStatus {
        let progress = Progress::read(&container.directory);
        let (alive, log_directory) = {
            let state = self.state();
            let sandbox = state.sandboxes.get(&container.sandbox);
            let log_directory = sandbox.map(|sandbox| sandbox.record.config.log_directory.clone());
            (sandbox.is_some_and(|sandbox| sandbox.holder.is_some()), log_directory.unwrap_or_default())
        };
        let state = progress.state(alive);
        let exit = progress.exit;
        ContainerStatus {
            id: container.id.clone(),
            sandbox: container.sandbox.clone(),
            config: container.record.config.clone(),
            state,
            image_id: container.record.image_id.clone(),
            created_at: container.record.created_at,
            started_at: progress.started_at,
            finished_at: exit.as_ref().map(|exit| exit.finished_at),
            exit_code: match (&exit, state) {
                (Some(exit), _) => exit.code,
                (None, ContainerState::Unknown) => 255,
                (None, _) => 0,
            },
            oom_killed: exit.as_ref().is_some_and(|exit| exit.oom_killed),
            message: exit.map(|exit| exit.message).unwrap_or_default(),
            log_path: log_directory.join(&container.record.config.log_path),
        }
    }

    fn pod_cgroup(&self, sandbox: &SandboxConfig) -> Result<CgroupPath, Error> {
        self.0.cgroups.prefix().join(&sandbox.cgroup)
    }

    fn cgroup(&self, container: &Container) -> Result<CgroupPath, Error> {
        self.pod_cgroup(&self.sandbox(&container.sandbox)?.record.config)?.join(&container.id)
    }

    fn writable(&self, container: &str) -> PathBuf {
        self.0.config.data_dir.join("containers").join(container)
    }

    /// Follows a holder: tells the ends of its containers and its own.
    async fn watch(&self, sandbox: &Sandbox) -> Result<Arc<Holder>, Error> {
        let connection = Connection::open(&sandbox.id, &sandbox.directory, &self.0.config.clock)?;
        let holder = Arc::new(connection.hello().await?);
        connection.ask(&Request::Watch, &[]).await?;
        // The task does not keep the runtime alive: an agent that has dropped it does not follow any more.
        let (inner, id) = (Arc::downgrade(&self.0), sandbox.id.clone());
        task::spawn("holder", async move {
            loop {
                let received = connection.receive().await;
                let Some(runtime) = inner.upgrade().map(Linux) else { return };
                match received {
                    Ok((Reply::ContainerExited { container }, _)) => {
                        let _ = runtime.0.events.send(Event::ContainerExited { sandbox: id.clone(), container });
                    }
                    Ok(_) => {}
                    Err(_) => return runtime.holder_ended(&id),
                }
            }
        });
        Ok(holder)
    }

    fn holder_ended(&self, sandbox: &str) {
        let ended = self.state().sandboxes.get_mut(sandbox).is_some_and(|sandbox| sandbox.holder.take().is_some());
        if ended {
            let _ = self.0.events.send(Event::SandboxExited { sandbox: sandbox.to_owned() });
        }
    }

    /// Kills what is left in a group until nothing is.
    async fn empty(&self, group: &CgroupPath) -> Result<(), Error> {
        for attempt in 0..500 {
            if self.0.cgroups.kill(group)? == 0 {
                return Ok(());
            }
            self.0.config.clock.sleep(Duration::from_millis(1 + attempt / 10)).await;
        }
        Err(Error::System("processes do not end after being killed".to_owned()))
    }

    /// Kills what is left in a group and removes it. A process that has just ended may still be counted in it.
    async fn remove_cgroup(&self, group: &CgroupPath) -> Result<(), Error> {
        self.empty(group).await?;
        let mut result = self.0.cgroups.remove(group);
        for _ in 0..100 {
            if result.is_ok() {
                break;
            }
            self.0.config.clock.sleep(Duration::from_millis(2)).await;
            result = self.0.cgroups.remove(group);
        }
        result
    }

    /// What `run_sandbox` made so far is removed again when it fails.
    async fn make_sandbox(&self, sandbox: &Sandbox) -> Result<Arc<Holder>, Error> {
        let config = &sandbox.record.config;
        let group = self.pod_cgroup(config)?;
        self.0.cgroups.create(&group)?;
        self.0.cgroups.limit(&group, &config.resources)?;
        make_directory(&config.log_directory)?;
        let plan = plan::sandbox(config, &sandbox.directory)?;
        let started = self.0.program.start(&sandbox.directory, &plan);
        started.map_err(|error| Error::System(format!("start the holder: {error}")))?;
        self.watch(sandbox).await
    }

    /// Ends every process of the sandbox and its holder.
    async fn end_sandbox(&self, sandbox: &Sandbox) -> Result<(), Error> {
        let containers: Vec<Container> =
            self.state().containers.values().filter(|c| c.sandbox == sandbox.id).cloned().collect();
        for container in &containers {
            self.stop(container, Duration::ZERO).await?;
        }
        if let Ok(connection) = Connection::open(&sandbox.id, &sandbox.directory, &self.0.config.clock) {
            let holder = connection.hello().await;
            let _ = connection.send(&Request::Shutdown, &[]).await;
            if let Ok(holder) = holder {
                let ended = self.0.config.clock.timeout(Duration::from_secs(2), holder.ended()).await;
                if ended.is_none() {
                    let _ = holder.kill().await;
                }
            }
        }
        self.holder_ended(&sandbox.id);
        for container in &containers {
            self.empty(&self.cgroup(container)?).await?;
        }
        Ok(())
    }

    async fn stop(&self, container: &Container, grace: Duration) -> Result<(), Error> {
        if self.status(container).state != ContainerState::Running {
            return Ok(());
        }
        let mut events = self.events();
        let wait = async {
            // The end is on disk before it is told; a gap in the events only delays.
            while self.status(container).state == ContainerState::Running {
                self.0.config.clock.timeout(Duration::from_millis(100), events.next()).await;
            }
        };
        let mut wait = std::pin::pin!(wait);
        if !grace.is_zero() {
            self.signal(container, self.stop_signal(container)?).await?;
            if self.0.config.clock.timeout(grace, wait.as_mut()).await.is_some() {
                return self.clean_after(container).await;
            }
        }
        self.signal(container, libc::SIGKILL).await?;
        wait.await;
        self.clean_after(container).await
    }

    /// With a PID namespace shared with others, processes of the container may be left.
    async fn clean_after(&self, container: &Container) -> Result<(), Error> {
        self.empty(&self.cgroup(container)?).await
    }

    fn stop_signal(&self, container: &Container) -> Result<i32, Error> {
        let image = self.0.images.by_id(&container.record.image_id).and_then(|image| image.config.stop_signal);
        let name = container.record.config.stop_signal.clone().or(image);
        name.map_or(Ok(libc::SIGTERM), |name| signal_number(&name))
    }

    async fn signal(&self, container: &Container, signal: i32) -> Result<(), Error> {
        let request = Request::Signal { container: container.id.clone(), signal };
        let result = match self.connect(&container.sandbox).await {
            Ok((_, connection)) => connection.ask(&request, &[]).await.map(drop),
            Err(error) => Err(error),
        };
        match result {
            // It has just ended, or its holder has: nothing is left to signal.
            Err(Error::Invalid(_) | Error::Lost(_)) => Ok(()),
            result => result,
        }
    }

    /// The plan of a container, from its records.
    fn plan(&self, container: &Container) -> Result<protocol::ContainerPlan, Error> {
        let sandbox = self.sandbox(&container.sandbox)?;
        let config = &container.record.config;
        let layers = self.0.images.layers(&container.record.image_id)?;
        let image = self.0.images.by_id(&container.record.image_id);
        let image = image.ok_or_else(|| not_found("image", &container.record.image_id))?;
        plan::container(&plan::Parts {
            id: &container.id,
            sandbox: &sandbox.record.config,
            config,
            image: &image.config,
            directory: &container.directory,
            log_path: &sandbox.record.config.log_directory.join(&config.log_path),
            layers: self.0.images.layers_directory(),
            layer_names: &layers,
            writable: &self.writable(&container.id),
            cgroups: &self.0.cgroups,
            cgroup: &self.cgroup(container)?,
        })
    }

    fn make_container(&self, container: &Container) -> Result<(), Error> {
        let config = &container.record.config;
        // Says what is wrong with the configuration now and not at the start.
        let plan = self.plan(container)?;
        if let Some(parent) = Path::new(&plan.log_path).parent() {
            make_directory(parent)?;
        }
        for part in ["upper", "work", "root"] {
            make_directory(&self.writable(&container.id).join(part))?;
        }
        let group = self.cgroup(container)?;
        self.0.cgroups.create(&group)?;
        self.0.cgroups.limit(&group, &config.resources)?;
        if !config.security.privileged {
            self.0.cgroups.restrict_devices(&group)?;
        }
        Ok(())
    }

    /// The opposite of making. The record goes first: what stays after a crash is swept.
    async fn forget(&self, container: &Container) -> Result<(), Error> {
        let group = self.cgroup(container)?;
        let _ = std::fs::remove_file(container.directory.join("container.json"));
        self.state().containers.remove(&container.id);
        self.0.images.release(&container.id);
        let cgroup = self.remove_cgroup(&group).await;
        let (directory, writable) = (container.directory.clone(), self.writable(&container.id));
        let removed = task::spawn_blocking(move || remove_directory(&directory).and(remove_directory(&writable))).await;
        cgroup?;
        removed.map_err(|error| Error::System(error.to_string()))?
    }
}

#[async_trait]
impl Runtime for Linux {
    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxStatus, Error> {
        self.pod_cgroup(config)?;
        let id = self.new_id();
        let record = SandboxRecord { format: FORMAT, created_at: self.0.config.clock.now(), config: config.clone() };
        let sandbox = Sandbox {
            directory: self.0.config.run_dir.join("sandboxes").join(&id),
            id: id.clone(),
            record: Arc::new(record),
            holder: None,
        };
        {
            let mut state = self.state();
            let twin = |other: &Sandbox| {
                other.record.config.uid == config.uid && other.record.config.attempt == config.attempt
            };
            if state.sandboxes.values().any(twin) {
                let (uid, attempt) = (&config.uid, config.attempt);
                return Err(Error::Invalid(format!("pod {uid} already has a sandbox of attempt {attempt}")));
            }
            state.sandboxes.insert(id.clone(), sandbox.clone());
        }
        let made = match make_directory(&sandbox.directory.join("containers"))
            .and_then(|()| record::write(&sandbox.directory, "sandbox.json", &*sandbox.record))
        {
            Ok(()) => self.make_sandbox(&sandbox).await,
            Err(error) => Err(error),
        };
        match made {
            Ok(holder) => {
                if let Some(sandbox) = self.state().sandboxes.get_mut(&id) {
                    sandbox.holder = Some(holder);
                }
                Ok(self.sandbox(&id)?.status())
            }
            Err(error) => {
                if let Err(second) = self.remove_sandbox(&id).await {
                    tracing::warn!(sandbox = id, error = %second, "cannot remove a sandbox that could not be made");
                }
                Err(error)
            }
        }
    }

    async fn stop_sandbox(&self, sandbox: &str) -> Result<(), Error> {
        match self.sandbox(sandbox) {
            Ok(sandbox) => self.end_sandbox(&sandbox).await,
            Err(_) => Ok(()),
        }
    }

    async fn remove_sandbox(&self, id: &str) -> Result<(), Error> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        self.end_sandbox(&sandbox).await?;
        let containers: Vec<Container> =
            self.state().containers.values().filter(|c| c.sandbox == id).cloned().collect();
        for container in containers {
            self.forget(&container).await?;
        }
        let cgroup = &sandbox.record.config.cgroup;
        let shared =
            self.state().sandboxes.values().any(|other| other.id != id && other.record.config.cgroup == *cgroup);
        if !shared {
            self.remove_cgroup(&self.pod_cgroup(&sandbox.record.config)?).await?;
        }
        let _ = std::fs::remove_file(sandbox.directory.join("sandbox.json"));
        remove_directory(&sandbox.directory)?;
        self.state().sandboxes.remove(id);
        Ok(())
    }

    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, Error> {
        Ok(self.state().sandboxes.values().map(Sandbox::status).collect())
    }

    async fn create_container(&self, sandbox: &str, config: &ContainerConfig) -> Result<String, Error> {
        let sandbox = self.sandbox(sandbox)?;
        if sandbox.holder.is_none() {
            return Err(Error::Lost(sandbox.id));
        }
        let image = self.0.images.find(&config.image)?.ok_or_else(|| not_found("image", &config.image))?;
        let id = self.new_id();
        let record = ContainerRecord {
            format: FORMAT,
            created_at: self.0.config.clock.now(),
            image_id: image.id.clone(),
            config: config.clone(),
        };
        let container = Container {
            directory: sandbox.directory.join("containers").join(&id),
            id: id.clone(),
            sandbox: sandbox.id.clone(),
            record: Arc::new(record),
            starting: Arc::default(),
        };
        {
            let mut state = self.state();
            let twin = |other: &Container| {
                let known = &other.record.config;
                other.sandbox == sandbox.id && known.name == config.name && known.attempt == config.attempt
            };
            if state.containers.values().any(twin) {
                let (name, attempt) = (&config.name, config.attempt);
                return Err(Error::Invalid(format!("container {name} already has an attempt {attempt}")));
            }
            state.containers.insert(id.clone(), container.clone());
        }
        self.0.images.hold(&id, &image.id);
        let made = make_directory(&container.directory)
            .and_then(|()| record::write(&container.directory, "container.json", &*container.record))
            .and_then(|()| self.make_container(&container));
        if let Err(error) = made {
            if let Err(second) = self.forget(&container).await {
                tracing::warn!(container = id, error = %second, "cannot remove a container that could not be made");
            }
            return Err(error);
        }
        Ok(id)
    }

    async fn start_container(&self, id: &str) -> Result<(), Error> {
        let container = self.find(id)?;
        let _one = container.starting.lock().await;
        if self.status(&container).state != ContainerState::Created {
            let name = &container.record.config.name;
            return Err(Error::Invalid(format!("container {name} was started before")));
        }
        let plan = memory_file(&self.plan(&container)?);
        let plan = plan.map_err(|error| Error::System(format!("write the plan: {error}")))?;
        let (_, connection) = self.connect(&container.sandbox).await?;
        connection.ask(&Request::Start, &[plan.as_fd()]).await.map(drop)
    }

    async fn stop_container(&self, container: &str, grace: Duration) -> Result<(), Error> {
        match self.find(container) {
            Ok(container) => self.stop(&container, grace).await,
            Err(_) => Ok(()),
        }
    }

    async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let Ok(container) = self.find(id) else { return Ok(()) };
        self.stop(&container, Duration::ZERO).await?;
        self.forget(&container).await
    }

    async fn containers(&self) -> Result<Vec<ContainerStatus>, Error> {
        let containers: Vec<Container> = self.state().containers.values().cloned().collect();
        Ok(containers.iter().map(|container| self.status(container)).collect())
    }

    async fn container(&self, id: &str) -> Result<ContainerStatus, Error> {
        Ok(self.status(&self.find(id)?))
    }

    async fn update_container(&self, id: &str, resources: &Resources) -> Result<(), Error> {
        let container = self.find(id)?;
        self.0.cgroups.limit(&self.cgroup(&container)?, resources)
    }

    async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        let container = self.find(id)?;
        let (_, connection) = self.connect(&container.sandbox).await?;
        connection.ask(&Request::ReopenLog { container: container.id }, &[]).await.map(drop)
    }

    async fn exec(&self, id: &str, request: &ExecRequest) -> Result<ExecSession, Error> {
        let container = self.find(id)?;
        if request.command.is_empty() {
            return Err(Error::Invalid("the command is empty".to_owned()));
        }
        if self.status(&container).state != ContainerState::Running {
            return Err(Error::Invalid(format!("container {} is not running", container.record.config.name)));
        }
        let plan = plan::exec(&self.plan(&container)?, request);
        let pipes = || {
            let stdin = plan.stdin.then(streams::input).transpose()?;
            let stdout = plan.stdout.then(streams::output).transpose()?;
            let stderr = plan.stderr.then(streams::output).transpose()?;
            Ok::<_, std::io::Error>((memory_file(&plan)?, stdin, stdout, stderr))
        };
        let (file, stdin, stdout, stderr) =
            pipes().map_err(|error| Error::System(format!("make the command's streams: {error}")))?;
        let ((stdin, stdin_end), (stdout, stdout_end), (stderr, stderr_end)) =
            (stdin.unzip(), stdout.unzip(), stderr.unzip());
        let ends = [Some(file), stdin_end, stdout_end, stderr_end];
        let descriptors: Vec<BorrowedFd<'_>> = ends.iter().flatten().map(|fd| fd.as_fd()).collect();
        let (_, connection) = self.connect(&container.sandbox).await?;
        let (_, received) = connection.ask(&Request::Exec, &descriptors).await?;
        // Our copies of the ends must not keep the streams open.
        drop(ends);
        let terminal = received.into_iter().next().map(Terminal::new).transpose();
        let terminal = terminal.map_err(|error| Error::System(format!("use the terminal: {error}")))?;
        let (sender, exit) = oneshot::channel();
        let (timeout, clock) = (request.timeout, self.0.config.clock.clone());
        task::spawn("exec", async move {
            let result = match timeout {
                None => exit_of(&connection).await,
                Some(limit) => match clock.timeout(limit, exit_of(&connection)).await {
                    Some(result) => result,
                    None => {
                        let _ = connection.send(&Request::Kill, &[]).await;
                        exit_of(&connection).await.and(Err(Error::Timeout(limit)))
                    }
                },
            };
            let _ = sender.send(result);
        });
        Ok(match terminal {
            Some(terminal) => ExecSession {
                stdin: request.stdin.then(|| Box::new(terminal.clone()) as _),
                resize: Some(terminal.sizes()),
                stdout: request.stdout.then(|| Box::new(terminal) as _),
                stderr: None,
                exit,
            },
            None => ExecSession {
                stdin: stdin.map(|pipe| Box::new(pipe) as _),
                stdout: stdout.map(|pipe| Box::new(pipe) as _),
                stderr: stderr.map(|pipe| Box::new(pipe) as _),
                resize: None,
                exit,
            },
        })
    }

    async fn attach(&self, id: &str, request: &AttachRequest) -> Result<ExecSession, Error> {
        let container = self.find(id)?;
        let config = &container.record.config;
        let (stdin, stderr) = (request.stdin && config.stdin, request.stderr && !config.tty);
        let pipes = || {
            let stdout = request.stdout.then(streams::wide_output).transpose()?;
            Ok::<_, std::io::Error>((stdout, stderr.then(streams::wide_output).transpose()?))
        };
        let (stdout, stderr) = pipes().map_err(|error| Error::System(format!("make the streams: {error}")))?;
        let ((stdout, stdout_end), (stderr, stderr_end)) = (stdout.unzip(), stderr.unzip());
        let mut events = self.events();
        let (_, connection) = self.connect(&container.sandbox).await?;
        let attach = Request::Attach {
            container: container.id.clone(),
            // A terminal is wanted for its size too.
            stdin: stdin || config.tty,
            stdout: stdout.is_some(),
            stderr: stderr.is_some(),
        };
        let ends = [stdout_end, stderr_end];
        let descriptors: Vec<BorrowedFd<'_>> = ends.iter().flatten().map(|fd| fd.as_fd()).collect();
        let (_, received) = connection.ask(&attach, &descriptors).await?;
        drop(ends);
        let (input, resize) = attached_input(received.into_iter().next(), config.tty, stdin)?;
        let (sender, exit) = oneshot::channel();
        let runtime = self.clone();
        task::spawn("attach", async move {
            while runtime.status(&container).state == ContainerState::Running {
                runtime.0.config.clock.timeout(Duration::from_secs(1), events.next()).await;
            }
            let _ = sender.send(Ok(runtime.status(&container).exit_code));
        });
        Ok(ExecSession {
            stdin: input,
            stdout: stdout.map(|pipe| Box::new(pipe) as _),
            stderr: stderr.map(|pipe| Box::new(pipe) as _),
            resize,
            exit,
        })
    }

    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>, Error> {
        let mut last = Error::System(format!("no address to connect to port {port}"));
        for (ipv6, address) in [(false, "127.0.0.1"), (true, "::1")] {
            let (_, connection) = self.connect(sandbox).await?;
            let (_, received) = connection.ask(&Request::Socket { ipv6 }, &[]).await?;
            let Some(socket) = received.into_iter().next() else { continue };
            let socket = tokio::net::TcpSocket::from_std_stream(socket.into());
            let ip: std::net::IpAddr = match ipv6 {
                false => std::net::Ipv4Addr::LOCALHOST.into(),
                true => std::net::Ipv6Addr::LOCALHOST.into(),
            };
            match socket.connect((ip, port).into()).await {
                Ok(stream) => return Ok(Box::new(stream)),
                // The first refusal says most; a host without IPv6 says nothing of interest.
                Err(error) if !ipv6 => last = Error::System(format!("connect to {address}:{port}: {error}")),
                Err(_) => {}
            }
        }
        Err(last)
    }

    async fn stats(&self, id: &str) -> Result<Stats, Error> {
        let container = self.find(id)?;
        if self.status(&container).state != ContainerState::Running {
            return Err(Error::Invalid(format!("container {} is not running", container.record.config.name)));
        }
        let group = self.cgroup(&container)?;
        let upper = self.writable(id).join("upper");
        let written = task::spawn_blocking(move || disk_usage(&upper)).await.unwrap_or(0);
        Ok(Stats { writable_bytes: written, ..self.0.cgroups.stats(&group) })
    }

    fn events(&self) -> BoxStream<'static, Event> {
        let events = self.0.events.subscribe();
        futures::stream::unfold(events, |mut events| async move {
            loop {
                match events.recv().await {
                    Ok(event) => return Some((event, events)),
                    // The contract allows a gap; who cares about it lists again.
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => return None,
                }
            }
        })
        .boxed()
    }
}

impl Linux {
    fn new_id(&self) -> String {
        format!("{:016x}{:016x}", self.0.config.dice.next_u64(), self.0.config.dice.next_u64())
    }
}

impl Sandbox {
    fn status(&self) -> SandboxStatus {
        let pid = self.holder.as_ref().and_then(|holder| holder.pid());
        SandboxStatus {
            id: self.id.clone(),
            config: self.record.config.clone(),
            ready: pid.is_some(),
            created_at: self.record.created_at,
            netns: pid.filter(|_| !self.record.config.host_network).map(|pid| format!("/proc/{pid}/ns/net").into()),
        }
    }
}

async fn exit_of(connection: &Connection) -> Result<i32, Error> {
    match connection.receive().await?.0 {
        Reply::Exited { code } => Ok(code),
        Reply::Failed(failure) => Err(failure.into()),
        reply => Err(Error::System(format!("unexpected answer of the holder: {reply:?}"))),
    }
}

type Input = Option<Box<dyn tokio::io::AsyncWrite + Send + Unpin>>;
type Sizes = Option<tokio::sync::mpsc::Sender<(u16, u16)>>;

fn attached_input(end: Option<OwnedFd>, terminal: bool, wanted: bool) -> Result<(Input, Sizes), Error> {
    let Some(end) = end else { return Ok((None, None)) };
    let open = || {
        Ok::<_, std::io::Error>(if terminal {
            let terminal = Terminal::new(end)?;
            let sizes = terminal.sizes();
            (wanted.then(|| Box::new(terminal) as _), Some(sizes))
        } else {
            (Some(Box::new(tokio::net::unix::pipe::Sender::from_owned_fd(end)?) as _), None)
        })
    };
    open().map_err(|error| Error::System(format!("use the container's input: {error}")))
}

fn not_found(what: &'static str, id: &str) -> Error {
    Error::NotFound { what, id: id.to_owned() }
}

fn make_directory(path: &Path) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(|error| Error::System(format!("make {}: {error}", path.display())))
}

fn remove_directory(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::System(format!("remove {}: {error}", path.display())))
        }
        _ => Ok(()),
    }
}

/// Bytes on disk below a directory.
fn disk_usage(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
        .map(|(path, metadata)| metadata.blocks() * 512 + if metadata.is_dir() { disk_usage(&path) } else { 0 })
        .sum()
}

/// `SIGTERM`, `TERM` or `15`.
fn signal_number(name: &str) -> Result<i32, Error> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("SIG") { upper.clone() } else { format!("SIG{upper}") };
    let realtime = |offset: Option<&str>, base: i32| offset.and_then(|text| text.parse::<i32>().ok()).map(|n| base + n);
    let number = upper
        .parse::<i32>()
        .ok()
        .or_else(|| full.parse::<nix::sys::signal::Signal>().ok().map(|signal| signal as i32))
        .or_else(|| realtime(full.strip_prefix("SIGRTMIN+"), libc::SIGRTMIN()))
        .or_else(|| realtime(full.strip_prefix("SIGRTMAX").filter(|rest| rest.starts_with('-')), libc::SIGRTMAX()));
    number
        .filter(|number| (1..=libc::SIGRTMAX()).contains(number))
        .ok_or_else(|| Error::Invalid(format!("unknown stop signal {name:?}")))
}
