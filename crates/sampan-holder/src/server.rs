//! The event loop: connections of the agent, ends of children, output of containers.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use crate::container;
use crate::log::{Log, Pending, Stream};
use crate::process;
use crate::protocol::{
    ContainerPlan, ExecPlan, Failure, FailureKind, PidNamespace, Reply, Request, VERSION, Wire as _,
};
use crate::read_plan;
use crate::sandbox::Sandbox;
use crate::sys::{self, Step as _};

/// How long a client that attached and does not read may hold the pod's output up before it is cut off.
const ATTACHED_PATIENCE_MS: i32 = 1000;

struct Server {
    epoll: OwnedFd,
    sandbox: Result<Sandbox, Failure>,
    /// By descriptor.
    sources: BTreeMap<RawFd, Source>,
    containers: BTreeMap<String, Container>,
    /// Children that are not a container's main process, by process id.
    commands: BTreeMap<i32, Command>,
    done: bool,
}

/// What becomes ready.
enum Source {
    Listener(OwnedFd),
    Children(OwnedFd),
    Connection {
        socket: OwnedFd,
        watches: bool,
        command: Option<i32>,
    },
    /// A child tells why it could not start, or closes the pipe in `execve`.
    Starting {
        pipe: File,
        text: Vec<u8>,
        started: Started,
    },
    Output {
        container: String,
        stream: Stream,
        pipe: File,
        pending: Pending,
    },
}

enum Started {
    Container { id: String, connection: RawFd },
    Command { pid: i32, connection: RawFd, terminal: Option<OwnedFd> },
}

struct Container {
    plan: ContainerPlan,
    pid: i32,
    pidfd: OwnedFd,
    /// To run commands in it.
    namespaces: Option<Namespaces>,
    terminals: Option<OwnedFd>,
    log: Log,
    /// The write end of its standard input, or the terminal.
    input: Option<OwnedFd>,
    attached: Vec<(Stream, OwnedFd)>,
    start_error: Option<Failure>,
    running: bool,
}

struct Namespaces {
    pids: OwnedFd,
}

struct Command {
    pidfd: OwnedFd,
    connection: RawFd,
    /// Its start failed: that has been told, its end is nobody's business.
    silent: bool,
}

/// Serves until the agent says so. With a sandbox that could not be made it tells that to the first who asks.
pub fn serve(listener: OwnedFd, sandbox: Result<Sandbox, Failure>) -> io::Result<()> {
    // SAFETY: plain calls on this process; the set is filled before it is used.
    let (epoll, children) = unsafe {
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const signals, std::ptr::null_mut());
        let children = libc::signalfd(-1, &raw const signals, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
        let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
        if children < 0 || epoll < 0 {
            return Err(io::Error::last_os_error());
        }
        (OwnedFd::from_raw_fd(epoll), OwnedFd::from_raw_fd(children))
    };
    sys::set_nonblocking(listener.as_fd())?;
    let mut server = Server {
        epoll,
        sandbox,
        sources: BTreeMap::new(),
        containers: BTreeMap::new(),
        commands: BTreeMap::new(),
        done: false,
    };
    server.add(Source::Listener(listener))?;
    server.add(Source::Children(children))?;
    while !server.done {
        for fd in server.wait()? {
            server.ready(fd);
        }
    }
    Ok(())
}

impl Source {
    fn fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Listener(fd) | Self::Children(fd) | Self::Connection { socket: fd, .. } => fd.as_fd(),
            Self::Starting { pipe, .. } | Self::Output { pipe, .. } => pipe.as_fd(),
        }
    }
}

impl Server {
    fn add(&mut self, source: Source) -> io::Result<()> {
        let fd = source.fd().as_raw_fd();
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: fd as u64 };
        // SAFETY: a valid event; closing the descriptor removes it again.
        if unsafe { libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) } < 0 {
            return Err(io::Error::last_os_error());
        }
        self.sources.insert(fd, source);
        Ok(())
    }

    fn wait(&self) -> io::Result<Vec<RawFd>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 16];
        // SAFETY: room for as many events as said.
        let count = unsafe { libc::epoll_wait(self.epoll.as_raw_fd(), events.as_mut_ptr(), events.len() as i32, -1) };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(Vec::new()) } else { Err(error) };
        }
        Ok(events.iter().take(count as usize).map(|event| event.u64 as RawFd).collect())
    }

    /// The source is taken out while it is handled and put back while it lives.
    fn ready(&mut self, fd: RawFd) {
        let Some(source) = self.sources.remove(&fd) else { return };
        let stays = match source {
            Source::Listener(listener) => {
                self.accept(listener.as_fd());
                Some(Source::Listener(listener))
            }
            Source::Children(signals) => {
                drain(signals.as_fd());
                self.reap();
                Some(Source::Children(signals))
            }
            Source::Connection { socket, watches, command } => match sys::receive(socket.as_fd()) {
                Ok(Some((packet, descriptors))) => {
                    self.sources.insert(fd, Source::Connection { socket, watches, command });
                    self.request(fd, &packet, descriptors);
                    None
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    Some(Source::Connection { socket, watches, command })
                }
                Ok(None) | Err(_) => None,
            },
            Source::Starting { mut pipe, mut text, started } => {
                let mut buffer = [0; 1024];
                match pipe.read(&mut buffer) {
                    Ok(length @ 1..) => {
                        text.extend_from_slice(&buffer[..length]);
                        Some(Source::Starting { pipe, text, started })
                    }
                    _ => {
                        drop(pipe);
                        self.started(started, Failure::decode(&text));
                        None
                    }
                }
            }
            Source::Output { container, stream, mut pipe, mut pending } => {
                match self.copy(&container, stream, &mut pipe, &mut pending) {
                    true => Some(Source::Output { container, stream, pipe, pending }),
                    false => None,
                }
            }
        };
        if let Some(source) = stays {
            self.sources.insert(fd, source);
        }
    }

    fn accept(&mut self, listener: BorrowedFd<'_>) {
        // SAFETY: no address is asked for; the descriptor is new.
        let socket = unsafe {
            let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            match libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags) {
                fd @ 0.. => OwnedFd::from_raw_fd(fd),
                _ => return,
            }
        };
        // A connection that cannot be watched is closed; the agent tries again.
        let _ = self.add(Source::Connection { socket, watches: false, command: None });
    }

    fn reply(&self, connection: RawFd, reply: &Reply, descriptors: &[BorrowedFd<'_>]) {
        if let Some(Source::Connection { socket, .. }) = self.sources.get(&connection) {
            // The agent may be gone; what it has to know is on disk.
            let _ = sys::send(socket.as_fd(), &reply.encode(), descriptors);
        }
    }

    fn request(&mut self, connection: RawFd, packet: &[u8], descriptors: Vec<OwnedFd>) {
        let result = match Request::decode(packet) {
            Some(request) => self.perform(connection, request, descriptors),
            None => Err(sys::system("the request is not of this protocol version".to_owned())),
        };
        match result {
            Ok(Some((reply, descriptors))) => {
                let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(|fd| fd.as_fd()).collect();
                self.reply(connection, &reply, &descriptors);
            }
            Ok(None) => {}
            Err(failure) => self.reply(connection, &Reply::Failed(failure), &[]),
        }
    }

    /// `Ok(None)`: the answer comes later.
    fn perform(
        &mut self,
        connection: RawFd,
        request: Request,
        descriptors: Vec<OwnedFd>,
    ) -> Result<Option<(Reply, Vec<OwnedFd>)>, Failure> {
        let mut descriptors = descriptors.into_iter();
        let mut next = || descriptors.next().ok_or_else(|| sys::system("a descriptor is missing".to_owned()));
        let done = || Ok(Some((Reply::Done, Vec::new())));
        match request {
            Request::Hello => {
                if let Err(failure) = &self.sandbox {
                    self.done = true;
                    return Err(failure.clone());
                }
                let running = self.containers.values().filter(|c| c.running).map(|c| c.plan.id.clone()).collect();
                // SAFETY: no arguments.
                let pidfd = sys::pidfd_open(unsafe { libc::getpid() }).step(|| "open the own pidfd".to_owned())?;
                Ok(Some((Reply::Hello { version: VERSION, running }, vec![pidfd])))
            }
            Request::Start => {
                let plan = read_plan(next()?)?;
                self.start(connection, plan)?;
                Ok(None)
            }
            Request::Exec => {
                let plan: ExecPlan = read_plan(next()?)?;
                let streams = descriptors.collect();
                self.exec(connection, &plan, streams)?;
                Ok(None)
            }
            Request::Kill => {
                if let Some(Source::Connection { command: Some(pid), .. }) = self.sources.get(&connection)
                    && let Some(command) = self.commands.get(pid)
                {
                    let _ = sys::pidfd_signal(command.pidfd.as_fd(), libc::SIGKILL);
                }
                Ok(None)
            }
            Request::Signal { container, signal } => {
                let container = self.running(&container)?;
                sys::pidfd_signal(container.pidfd.as_fd(), signal).step(|| format!("send signal {signal}"))?;
                done()
            }
            Request::Attach { container, stdin, stdout, stderr } => {
                let outputs = [stdout.then(&mut next).transpose()?, stderr.then(next).transpose()?];
                let container = self.running(&container)?;
                for (stream, output) in [Stream::Stdout, Stream::Stderr].into_iter().zip(outputs) {
                    if let Some(output) = output {
                        sys::set_nonblocking(output.as_fd()).step(|| "attach".to_owned())?;
                        container.attached.push((stream, output));
                    }
                }
                let input = match (stdin, container.plan.stdin_once && !container.plan.terminal) {
                    (false, _) => None,
                    // From now on the client's end is the only one: when it closes, the container reads the end.
                    (true, true) => container.input.take(),
                    (true, false) => container.input.as_ref().and_then(|input| input.try_clone().ok()),
                };
                Ok(Some((Reply::Done, input.into_iter().collect())))
            }
            Request::ReopenLog { container } => {
                let container = self.running(&container)?;
                container.log.reopen().step(|| "reopen the log".to_owned())?;
                done()
            }
            Request::Socket { ipv6 } => {
                let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
                // SAFETY: plain integers; a new descriptor.
                let socket = unsafe {
                    match libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0) {
                        fd @ 0.. => Ok(OwnedFd::from_raw_fd(fd)),
                        _ => Err(io::Error::last_os_error()),
                    }
                };
                Ok(Some((Reply::Done, vec![socket.step(|| "make a socket".to_owned())?])))
            }
            Request::Watch => {
                if let Some(Source::Connection { watches, .. }) = self.sources.get_mut(&connection) {
                    *watches = true;
                }
                done()
            }
            Request::Shutdown => {
                for container in self.containers.values().filter(|container| container.running) {
                    let _ = sys::pidfd_signal(container.pidfd.as_fd(), libc::SIGKILL);
                }
                self.done = true;
                Ok(None)
            }
        }
    }

    fn running(&mut self, id: &str) -> Result<&mut Container, Failure> {
        self.containers
            .get_mut(id)
            .filter(|container| container.running)
            .ok_or_else(|| Failure { kind: FailureKind::NotRunning, text: "the container does not run".to_owned() })
    }

    fn start(&mut self, connection: RawFd, plan: ContainerPlan) -> Result<(), Failure> {
        let sandbox = self.sandbox.as_ref().map_err(Clone::clone)?;
        if self.containers.get(&plan.id).is_some_and(|container| container.running) {
            return Err(sys::system("the container runs already".to_owned()));
        }
        let log = Log::open(plan.log_path.clone().into()).step(|| format!("open the log {}", plan.log_path))?;
        let (tree, terminals) = container::terminals(&plan)?.unzip();
        let mut input = None;
        let mut outputs = Vec::new();
        let streams: [OwnedFd; 3] = if plan.terminal {
            let root = terminals.as_ref().ok_or_else(|| sys::system("no devpts to open a terminal in".to_owned()))?;
            let (master, slave) = container::terminal(root.as_fd()).step(|| "open a terminal".to_owned())?;
            let duplicate = |fd: &OwnedFd| fd.try_clone().step(|| "open a terminal".to_owned());
            input = Some(duplicate(&master)?);
            outputs.push((Stream::Stdout, master));
            [duplicate(&slave)?, duplicate(&slave)?, slave]
        } else {
            let pipe = || sys::pipe(0).step(|| "make a pipe".to_owned());
            let stdin = match plan.stdin {
                true => {
                    let (read, write) = pipe()?;
                    input = Some(write);
                    read
                }
                false => sys::open(Path::new("/dev/null"), libc::O_RDONLY, 0).step(|| "open /dev/null".to_owned())?,
            };
            let (stdout, stdout_inside) = pipe()?;
            let (stderr, stderr_inside) = pipe()?;
            outputs.extend([(Stream::Stdout, stdout), (Stream::Stderr, stderr)]);
            [stdin, stdout_inside, stderr_inside]
        };
        let (flags, pids) = match plan.pid_namespace {
            PidNamespace::Own => (libc::CLONE_NEWPID as u64, None),
            PidNamespace::Sandbox => (0, sandbox.shared_pids.as_ref()),
            PidNamespace::Host => (0, None),
        };
        let (pid, pidfd, pipe) =
            spawn(flags, pids.map(|fd| (fd.as_fd(), sandbox.own_pids.as_fd())), cgroup(&plan)?, |errors| {
                let streams = [streams[0].as_fd(), streams[1].as_fd(), streams[2].as_fd()];
                match container::set_up(&plan, sandbox, tree, streams) {
                    Ok(()) => process::execute(&plan.process, errors),
                    Err(failure) => failure,
                }
            })?;
        let id = plan.id.clone();
        for (stream, pipe) in outputs {
            sys::set_nonblocking(pipe.as_fd()).step(|| "watch the output".to_owned())?;
            let source =
                Source::Output { container: id.clone(), stream, pipe: pipe.into(), pending: Pending::default() };
            self.add(source).step(|| "watch the output".to_owned())?;
        }
        let container = Container {
            plan,
            pid,
            pidfd,
            namespaces: None,
            terminals,
            log,
            input,
            attached: Vec::new(),
            start_error: None,
            running: true,
        };
        self.containers.insert(id.clone(), container);
        let started = Started::Container { id, connection };
        self.add(Source::Starting { pipe, text: Vec::new(), started }).step(|| "watch the start".to_owned())
    }

    fn exec(&mut self, connection: RawFd, plan: &ExecPlan, given: Vec<OwnedFd>) -> Result<(), Failure> {
        let own_pids = self.sandbox.as_ref().map_err(Clone::clone)?.own_pids.try_clone();
        let own_pids = own_pids.step(|| "hold the PID namespace".to_owned())?;
        let container = self.running(&plan.container)?;
        let namespaces = container.namespaces()?;
        let mut terminal = None;
        let mut given = given.into_iter();
        let streams: [OwnedFd; 3] = if plan.terminal {
            let root = container.terminals.as_ref();
            let root = root.ok_or_else(|| sys::system("no devpts to open a terminal in".to_owned()))?;
            let (master, slave) = container::terminal(root.as_fd()).step(|| "open a terminal".to_owned())?;
            terminal = Some(master);
            let duplicate = || slave.try_clone().step(|| "open a terminal".to_owned());
            [duplicate()?, duplicate()?, slave]
        } else {
            let mut stream = |wanted: bool| match wanted.then(|| given.next()).flatten() {
                Some(fd) => Ok(fd),
                None => sys::open(Path::new("/dev/null"), libc::O_RDWR, 0).step(|| "open /dev/null".to_owned()),
            };
            [stream(plan.stdin)?, stream(plan.stdout)?, stream(plan.stderr)?]
        };
        let (target, container_plan) = (&container.pidfd, &container.plan);
        let (pid, pidfd, pipe) =
            spawn(0, Some((namespaces.as_fd(), own_pids.as_fd())), cgroup(container_plan)?, |errors| {
                let prepare = || {
                    container::reset_signals();
                    container::oom_score(plan.process.oom_score_adj)?;
                    if !container_plan.cgroup_v2 {
                        container::join_cgroups(&container_plan.cgroups)?;
                    }
                    let kinds = libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP;
                    sys::setns(target.as_fd(), kinds).step(|| "enter the container".to_owned())?;
                    container::take_streams([streams[0].as_fd(), streams[1].as_fd(), streams[2].as_fd()], plan.terminal)
                };
                match prepare() {
                    Ok(()) => process::execute(&plan.process, errors),
                    Err(failure) => failure,
                }
            })?;
        self.commands.insert(pid, Command { pidfd, connection, silent: false });
        if let Some(Source::Connection { command, .. }) = self.sources.get_mut(&connection) {
            *command = Some(pid);
        }
        let started = Started::Command { pid, connection, terminal };
        self.add(Source::Starting { pipe, text: Vec::new(), started }).step(|| "watch the start".to_owned())
    }

    /// A child has reached its program, or said why it could not.
    fn started(&mut self, started: Started, failure: Option<Failure>) {
        match (started, failure) {
            (Started::Container { id, connection }, None) => {
                if let Some(container) = self.containers.get(&id) {
                    let _ = write_record(&container.plan.directory, "started", &sys::now().to_string());
                }
                self.reply(connection, &Reply::Done, &[]);
            }
            (Started::Container { id, connection }, Some(failure)) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.start_error = Some(failure.clone());
                }
                // The child is about to end; that is on disk before the agent hears of the failure.
                if let Some(container) = self.containers.get(&id) {
                    sys::wait_for_end(container.pidfd.as_fd());
                }
                self.reap();
                self.reply(connection, &Reply::Failed(failure), &[]);
            }
            (Started::Command { connection, terminal, .. }, None) => {
                let descriptors: Vec<BorrowedFd<'_>> = terminal.iter().map(|fd| fd.as_fd()).collect();
                self.reply(connection, &Reply::Done, &descriptors);
            }
            (Started::Command { pid, connection, .. }, Some(failure)) => {
                if let Some(command) = self.commands.get_mut(&pid) {
                    command.silent = true;
                }
                self.reply(connection, &Reply::Failed(failure), &[]);
            }
        }
    }

    /// Collects every child that has ended.
    fn reap(&mut self) {
        loop {
            let mut status = 0;
            // SAFETY: a valid pointer.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                return;
            }
            let code = if libc::WIFSIGNALED(status) { 128 + libc::WTERMSIG(status) } else { libc::WEXITSTATUS(status) };
            if let Some(command) = self.commands.remove(&pid) {
                // The program's start is told before its end.
                self.finish_start_of(|started| matches!(started, Started::Command { pid: other, .. } if *other == pid));
                if !command.silent {
                    self.reply(command.connection, &Reply::Exited { code }, &[]);
                }
                continue;
            }
            let container = self.containers.values().find(|container| container.running && container.pid == pid);
            if let Some(id) = container.map(|container| container.plan.id.clone()) {
                self.container_ended(&id, code);
            }
        }
    }

    /// Reads the rest of a start's pipe: its child is dead, so it ends.
    fn finish_start_of(&mut self, wanted: impl Fn(&Started) -> bool) {
        let found = self.sources.iter().find_map(|(fd, source)| match source {
            Source::Starting { started, .. } if wanted(started) => Some(*fd),
            _ => None,
        });
        if let Some(fd) = found
            && let Some(Source::Starting { mut pipe, mut text, started }) = self.sources.remove(&fd)
        {
            let _ = pipe.read_to_end(&mut text);
            drop(pipe);
            self.started(started, Failure::decode(&text));
        }
    }

    fn container_ended(&mut self, id: &str, code: i32) {
        self.finish_start_of(|started| matches!(started, Started::Container { id: other, .. } if other == id));
        // What it wrote before its end belongs in the log before its end is told.
        let outputs: Vec<RawFd> = self
            .sources
            .iter()
            .filter(|(_, source)| matches!(source, Source::Output { container, .. } if container == id))
            .map(|(fd, _)| *fd)
            .collect();
        for fd in outputs {
            self.ready(fd);
        }
        let Some(container) = self.containers.get_mut(id) else { return };
        if !container.running {
            return;
        }
        container.running = false;
        container.input = None;
        container.terminals = None;
        container.namespaces = None;
        container.attached.clear();
        let record = match &container.start_error {
            Some(failure) => format!("128 0 {} {}", sys::now(), failure.text),
            None => {
                let oom = code != 0 && oom_kills(&container.plan.oom_file) > 0;
                format!("{code} {} {} ", u8::from(oom), sys::now())
            }
        };
        // An agent that finds no record says that the exit code is unknown; nothing better can be done on a full disk.
        let _ = write_record(&container.plan.directory, "exit", &record);
        let event = Reply::ContainerExited { container: id.to_owned() };
        for (fd, source) in &self.sources {
            if matches!(source, Source::Connection { watches: true, .. }) {
                self.reply(*fd, &event, &[]);
            }
        }
        // The streams stay until their other ends close: a process outside the PID namespace may still write.
        let streams = self.sources.values().any(|s| matches!(s, Source::Output { container, .. } if container == id));
        if !streams {
            self.containers.remove(id);
        }
    }

    /// Copies what a stream has to the log and to those attached; `false` when it has ended.
    fn copy(&mut self, id: &str, stream: Stream, pipe: &mut File, pending: &mut Pending) -> bool {
        let Some(container) = self.containers.get_mut(id) else { return false };
        let mut buffer = [0; 16 << 10];
        loop {
            match pipe.read(&mut buffer) {
                Ok(length @ 1..) => {
                    let data = &buffer[..length];
                    container.log.write(stream, pending, data, sys::now());
                    container.attached.retain(|(of, client)| *of != stream || pass_on(client.as_fd(), data).is_ok());
                    // One stream that never pauses must not starve the others; a dead writer's rest is read whole.
                    if container.running && length < buffer.len() {
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The end; of a terminal it is an error.
                Ok(0) | Err(_) => {
                    container.log.finish(stream, pending, sys::now());
                    let last = !container.running
                        && !self
                            .sources
                            .values()
                            .any(|s| matches!(s, Source::Output { container, .. } if container == id));
                    if last {
                        self.containers.remove(id);
                    }
                    return false;
                }
            }
        }
    }
}

impl Container {
    fn namespaces(&mut self) -> Result<OwnedFd, Failure> {
        if self.namespaces.is_none() {
            let path = format!("/proc/{}/ns/pid", self.pid);
            let pids =
                sys::open(Path::new(&path), libc::O_RDONLY, 0).step(|| "find the container's PIDs".to_owned())?;
            self.namespaces = Some(Namespaces { pids });
        }
        match &self.namespaces {
            Some(namespaces) => namespaces.pids.try_clone().step(|| "hold the container's PIDs".to_owned()),
            None => Err(sys::system("no namespaces".to_owned())),
        }
    }
}

/// A child in the namespaces and cgroup given, which does `work` and ends with the failure it returns. The pipe ends
/// when the child has become another program or has told its failure. `pids`: a PID namespace to be born in, and our own.
fn spawn(
    flags: u64,
    pids: Option<(BorrowedFd<'_>, BorrowedFd<'_>)>,
    cgroup: Option<File>,
    work: impl FnOnce(BorrowedFd<'_>) -> Failure,
) -> Result<(i32, OwnedFd, File), Failure> {
    let (read, write) = sys::pipe(0).step(|| "make a pipe".to_owned())?;
    if let Some((pids, _)) = pids {
        sys::setns(pids, libc::CLONE_NEWPID).map_err(gone).step(|| "enter the PID namespace".to_owned())?;
    }
    let cloned = sys::clone(flags, cgroup.as_ref().map(|directory| directory.as_fd()));
    if matches!(cloned, Ok(None)) {
        let failure = work(write.as_fd());
        let _ = File::from(write).write_all(&failure.encode());
        // SAFETY: ends this child at once; nothing of the parent's is flushed or run twice.
        unsafe { libc::_exit(128) };
    }
    if let Some((_, own)) = pids {
        sys::setns(own, libc::CLONE_NEWPID).step(|| "return to the own PID namespace".to_owned())?;
    }
    match cloned.map_err(gone).step(|| "make a process".to_owned())? {
        Some((pid, pidfd)) => Ok((pid, pidfd, File::from(read))),
        None => Err(sys::system("unreachable in the child".to_owned())),
    }
}

/// A PID namespace whose first process has ended takes nobody in; the kernel calls that a lack of memory.
fn gone(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOMEM) => io::Error::from_raw_os_error(libc::ESRCH),
        _ => error,
    }
}

fn cgroup(plan: &ContainerPlan) -> Result<Option<File>, Failure> {
    match plan.cgroups.first() {
        Some(directory) if plan.cgroup_v2 => {
            File::open(directory).map(Some).step(|| format!("open the cgroup {directory}"))
        }
        _ => Ok(None),
    }
}

/// Gives a client its copy; one that does not read in time is cut off.
fn pass_on(client: BorrowedFd<'_>, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        // SAFETY: a pointer with its length, and one pollfd.
        unsafe {
            match libc::write(client.as_raw_fd(), data.as_ptr().cast(), data.len()) {
                written @ 0.. => data = &data[written as usize..],
                _ => {
                    let error = io::Error::last_os_error();
                    let mut wait = libc::pollfd { fd: client.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
                    if error.kind() != io::ErrorKind::WouldBlock
                        || libc::poll(&raw mut wait, 1, ATTACHED_PATIENCE_MS) != 1
                    {
                        return Err(error);
                    }
                }
            }
        }
    }
    Ok(())
}

fn drain(signals: BorrowedFd<'_>) {
    let mut buffer = [0u8; 1024];
    // SAFETY: a pointer with its length; the descriptor does not block.
    while unsafe { libc::read(signals.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) } > 0 {}
}

/// The `oom_kill` line of `memory.events` or `memory.oom_control`.
fn oom_kills(path: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok()).unwrap_or(0)
}

/// Whole or not at all. A power failure takes the container along, so it need not survive one.
fn write_record(directory: &str, name: &str, text: &str) -> io::Result<()> {
    let (temporary, path) = (Path::new(directory).join(format!(".{name}")), Path::new(directory).join(name));
    fs::write(&temporary, text)?;
    fs::rename(temporary, path)
}
