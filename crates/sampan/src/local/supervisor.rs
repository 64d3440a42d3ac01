//! The host's side of one local cluster: keeps the server and the nodes running, connects nodes to the network, and
//! forwards published ports. `up` starts it in the background; SIGTERM ends it with everything it looks after.
//!
//! It may be killed at any instant: server and nodes go on, and the next supervisor adopts them by `processes.json`.

use std::ffi::CString;
use std::fs::File;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use sampan_base::{Clock, task};
use tokio::net::TcpStream;

use super::init::{HOST_NETNS_FD, InitConfig, READY_FD};
use super::{Cluster, Processes, hostnet, root};
use crate::cli::Publish;
use crate::process::Process;

/// The shortest and longest pause before a process that ended is started again.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// The descriptor the server finds its listening socket at (systemd's convention).
pub const LISTEN_FD: RawFd = 3;

struct Supervisor {
    cluster: Cluster,
    clock: Clock,
    processes: Mutex<Processes>,
    /// Opened in the host's namespace, used in the cluster's.
    api: TcpListener,
}

pub fn run(name: &str) -> anyhow::Result<()> {
    sampan_base::logging::init("info");
    let cluster = super::find_or_fail(name)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervise(cluster))
}

async fn supervise(cluster: Cluster) -> anyhow::Result<()> {
    let clock = Clock::system();
    let address = SocketAddr::from(([127, 0, 0, 1], cluster.port));
    let api = listen(address, &clock).await?;
    let mut processes = Processes::load(&cluster);
    processes.supervisor = Some(Process::of(std::process::id() as i32)?);
    processes.save(&cluster)?;
    hostnet::set_up(&cluster).await.context("set up the cluster's network")?;

    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut tasks = task::Group::default();
    for publish in cluster.publish.clone() {
        let targets = (0..cluster.nodes.len())
            .map(|position| SocketAddr::from((cluster.node_address(position), publish.port)))
            .collect();
        tasks.spawn("published port", forward(publish, targets, clock.clone()));
    }
    let nodes = cluster.nodes.clone();
    let supervisor = Arc::new(Supervisor { cluster, clock, processes: Mutex::new(processes), api });
    tasks.spawn("server", keep(supervisor.clone(), Role::Server));
    for (position, name) in nodes.into_iter().enumerate() {
        tasks.spawn("node", keep(supervisor.clone(), Role::Node { position, name }));
    }
    terminate.recv().await;
    drop(tasks);
    end_all(&supervisor.cluster).await
}

/// A former supervisor's socket may still be held by the server it left behind: that server keeps serving on it, and this
/// one shares the port.
async fn listen(address: SocketAddr, clock: &Clock) -> anyhow::Result<TcpListener> {
    use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, sockopt};
    use nix::sys::socket::{bind, listen, setsockopt, socket};
    let open = || -> nix::Result<TcpListener> {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&socket, sockopt::ReuseAddr, &true)?;
        setsockopt(&socket, sockopt::ReusePort, &true)?;
        let SocketAddr::V4(v4) = address else { return Err(nix::Error::EAFNOSUPPORT) };
        bind(socket.as_raw_fd(), &SockaddrIn::from(v4))?;
        listen(&socket, Backlog::new(1024)?)?;
        Ok(TcpListener::from(socket))
    };
    let mut attempts = 0;
    loop {
        match open() {
            Ok(listener) => return Ok(listener),
            Err(nix::Error::EADDRINUSE) if attempts < 50 => attempts += 1,
            Err(error) => return Err(error).with_context(|| format!("listen on {address}")),
        }
        clock.sleep(Duration::from_millis(100)).await;
    }
}

#[derive(Clone, Debug)]
enum Role {
    Server,
    Node { position: usize, name: String },
}

impl Role {
    fn name(&self) -> &str {
        match self {
            Self::Server => "server",
            Self::Node { name, .. } => name,
        }
    }

    fn slot<'a>(&self, processes: &'a mut Processes) -> Option<&'a Process> {
        match self {
            Self::Server => processes.server.as_ref(),
            Self::Node { name, .. } => processes.nodes.get(name),
        }
    }
}

/// Adopts or starts one process, and starts it again whenever it ends.
async fn keep(supervisor: Arc<Supervisor>, role: Role) {
    let mut pause = PAUSE_MIN;
    loop {
        let started = supervisor.clock.instant();
        if let Err(error) = supervisor.run_once(&role).await {
            tracing::error!(process = role.name(), error = format!("{error:#}"), "cannot run");
        }
        pause = if started.elapsed() > Duration::from_secs(10) { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        supervisor.clock.sleep(pause).await;
    }
}

impl Supervisor {
    async fn run_once(&self, role: &Role) -> anyhow::Result<()> {
        let known = role.slot(&mut self.lock()).copied();
        let process = match known {
            Some(process) if process.open()?.is_some() => process,
            _ => match role {
                Role::Server => self.start_server()?,
                Role::Node { position, name } => self.start_node(*position, name).await?,
            },
        };
        {
            let mut processes = self.lock();
            match role {
                Role::Server => processes.server = Some(process),
                Role::Node { name, .. } => {
                    processes.nodes.insert(name.clone(), process);
                }
            }
            processes.save(&self.cluster)?;
        }
        if let Some(handle) = process.open()? {
            handle.ended().await?;
        }
        // Reaps a child; an adopted process has another parent.
        let status = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
        tracing::warn!(process = role.name(), ?status, "ended; starting it again");
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The server: in the cluster's network namespace, with the API's socket from the host's.
    fn start_server(&self) -> anyhow::Result<Process> {
        let namespace = self.cluster.netns();
        let netns = File::open(&namespace).with_context(|| format!("open {}", namespace.display()))?;
        let socket = self.api.as_raw_fd();
        let mut command = Command::new("/proc/self/exe");
        command.arg0("sampan").args(["server", "--config"]).arg(self.cluster.data.join("server.json"));
        command.stdin(Stdio::null()).stdout(self.log("server")?).stderr(self.log("server")?);
        // SAFETY: between fork and exec only system calls are made.
        unsafe {
            command.pre_exec(move || {
                nix::sched::setns(&netns, CloneFlags::CLONE_NEWNET)?;
                nix::unistd::setsid()?;
                pass_fd(socket, LISTEN_FD)
            });
        }
        let child = command.spawn().context("start the server")?;
        Ok(Process::of(child.id() as i32)?)
    }

    /// A node: PID 1 of new namespaces, told when its network is there.
    async fn start_node(&self, position: usize, name: &str) -> anyhow::Result<Process> {
        let run = self.cluster.run_dir();
        let config = InitConfig {
            cluster: self.cluster.name.clone(),
            node: name.into(),
            root: root::build_dir(&run, name),
            data: self.cluster.node_dir(name),
            mounts: self.cluster.mounts.clone(),
        };
        let path = run.join(format!("{name}.json"));
        std::fs::write(&path, serde_json::to_vec(&config)?).with_context(|| format!("write {}", path.display()))?;
        let (ready, told) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).context("make a pipe")?;
        let host = File::open("/proc/self/ns/net").context("open the host's network namespace")?;
        let pid = spawn_init(&path, &self.log(name)?, &ready, &host)?;
        let process = Process::of(pid.as_raw())?;
        let netns = format!("/proc/{pid}/ns/net");
        hostnet::connect_node(&self.cluster, position, Path::new(&netns)).await.context("connect the node")?;
        nix::unistd::write(&told, b"1").context("tell the node")?;
        Ok(process)
    }

    fn log(&self, process: &str) -> anyhow::Result<File> {
        let path = self.cluster.log(process);
        File::options().create(true).append(true).open(&path).with_context(|| format!("open {}", path.display()))
    }
}

/// Makes `fd` available as `target` in the program that is about to be executed.
fn pass_fd(fd: RawFd, target: RawFd) -> std::io::Result<()> {
    // SAFETY: plain descriptor calls; `dup2` clears close-on-exec, and with equal numbers `fcntl` does.
    let result = unsafe { if fd == target { libc::fcntl(fd, libc::F_SETFD, 0) } else { libc::dup2(fd, target) } };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// Starts `node-init` as PID 1 of new PID, mount, network, UTS and IPC namespaces.
fn spawn_init(config: &Path, log: &File, ready: &OwnedFd, host_netns: &File) -> anyhow::Result<Pid> {
    let text = |bytes: &[u8]| CString::new(bytes).context("a path holds a zero byte");
    let program = text(b"/proc/self/exe")?;
    let arguments = [text(b"sampan")?, text(b"node-init")?, text(b"--config")?, text(config.as_os_str().as_bytes())?];
    let environment =
        root::environment().into_iter().map(|(name, value)| text(&[name.as_bytes(), b"=", value.as_bytes()].concat()));
    let environment = environment.collect::<anyhow::Result<Vec<_>>>()?;
    let argv: Vec<*const libc::c_char> = arguments.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
    let envp: Vec<*const libc::c_char> =
        environment.iter().map(|text| text.as_ptr()).chain([std::ptr::null()]).collect();
    // Copies above the numbers they are to get, so that none is overwritten before it is moved.
    let high = |fd: RawFd| {
        nix::fcntl::fcntl(
            // SAFETY: the descriptors are open for the length of this function.
            unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) },
            nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(20),
        )
    };
    let moves = [
        (high(log.as_raw_fd())?, 1),
        (high(log.as_raw_fd())?, 2),
        (high(ready.as_raw_fd())?, READY_FD),
        (high(host_netns.as_raw_fd())?, HOST_NETNS_FD),
    ];
    let null = File::open("/dev/null").context("open /dev/null")?;
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWNET | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC;
    // SAFETY: without CLONE_VM the child has its own copy of everything, as after fork; it makes only system calls on
    // values prepared above, then executes a new program or ends.
    let pid = unsafe { libc::syscall(libc::SYS_clone, (flags | libc::SIGCHLD) as libc::c_ulong, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: as above.
        unsafe {
            libc::setsid();
            libc::dup2(null.as_raw_fd(), 0);
            for (from, to) in moves {
                libc::dup2(from, to);
            }
            // Blocked signals survive exec; the node starts with none.
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
            libc::execve(program.as_ptr(), argv.as_ptr(), envp.as_ptr());
            libc::_exit(127);
        }
    }
    let failure = std::io::Error::last_os_error();
    for (fd, _) in moves {
        let _ = nix::unistd::close(fd);
    }
    if pid < 0 {
        return Err(failure).context("start a node (namespaces are not available?)");
    }
    Ok(Pid::from_raw(pid as i32))
}

/// Connections to a published port go to the first node that takes them.
async fn forward(publish: Publish, targets: Vec<SocketAddr>, clock: Clock) {
    let listener = loop {
        match tokio::net::TcpListener::bind(publish.listen).await {
            Ok(listener) => break listener,
            Err(error) => tracing::error!(address = %publish.listen, %error, "cannot publish"),
        }
        clock.sleep(Duration::from_secs(1)).await;
    };
    let targets = Arc::new(targets);
    loop {
        let Ok((mut client, _)) = listener.accept().await else {
            // Out of descriptors: wait for some to be closed.
            clock.sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (targets, clock) = (targets.clone(), clock.clone());
        task::spawn("published connection", async move {
            for target in targets.iter() {
                match clock.timeout(Duration::from_secs(2), TcpStream::connect(target)).await {
                    Some(Ok(mut server)) => {
                        let _ = server.set_nodelay(true);
                        let _ = client.set_nodelay(true);
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                        return;
                    }
                    _ => tracing::debug!(%target, "does not answer"),
                }
            }
        });
    }
}

/// Ends nodes and server and waits until they are gone. Used by the supervisor when it is told to end, and by `down` when
/// no supervisor is left.
pub async fn end_all(cluster: &Cluster) -> anyhow::Result<()> {
    let clock = Clock::system();
    let processes = Processes::load(cluster);
    // The end of a node's PID 1 is the end of everything in the node.
    for process in processes.nodes.values() {
        end(*process, Signal::SIGKILL, &clock).await?;
    }
    if let Some(server) = processes.server {
        end(server, Signal::SIGTERM, &clock).await?;
    }
    Ok(())
}

/// Signals a process and waits for its end; after ten seconds it is killed.
pub async fn end(process: Process, signal: Signal, clock: &Clock) -> anyhow::Result<()> {
    let Some(handle) = process.open()? else { return Ok(()) };
    handle.signal(signal)?;
    if clock.timeout(Duration::from_secs(10), handle.ended()).await.is_none() {
        handle.signal(Signal::SIGKILL)?;
        if clock.timeout(Duration::from_secs(10), handle.ended()).await.is_none() {
            bail!("process {} does not end", process.pid);
        }
    }
    // Reaps it when it is ours; else its parent does.
    let _ = waitpid(Pid::from_raw(process.pid), Some(WaitPidFlag::WNOHANG));
    Ok(())
}
