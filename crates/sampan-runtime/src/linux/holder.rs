//! The agent's side of a holder: starting one, finding one again, asking it.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Write as _};
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{FcntlArg, SealFlag};
use nix::sys::memfd::MFdFlags;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
};
use sampan_base::Clock;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::protocol::{Failure, FailureKind, Reply, Request, SandboxPlan, VERSION, Wire};
use crate::Error;

/// The holder's program, built for the same target.
const PROGRAM: &[u8] = include_bytes!(env!("SAMPAN_HOLDER"));

/// An answer that takes longer means that the holder hangs; mounting and starting take milliseconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program in a sealed memory file: nobody can change it under running holders, which share its pages, and no file on
/// disk has to stay.
pub(super) struct Program(OwnedFd);

impl Program {
    pub(super) fn new() -> io::Result<Self> {
        let file =
            nix::sys::memfd::memfd_create(c"sampan-holder", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?;
        let mut file = File::from(file);
        file.write_all(PROGRAM)?;
        let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
        nix::fcntl::fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
        Ok(Self(file.into()))
    }

    /// Starts a holder that serves on `DIRECTORY/holder` and makes the sandbox of `plan`.
    pub(super) fn start(&self, directory: &Path, plan: &SandboxPlan) -> io::Result<()> {
        let listener =
            nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        let place = Place::open(directory)?;
        nix::sys::socket::bind(listener.as_raw_fd(), &place.address()?)?;
        nix::sys::socket::listen(&listener, Backlog::new(128)?)?;
        let plan = memory_file(plan)?;
        let inherited = [listener.as_raw_fd(), plan.as_raw_fd()];
        let mut command = tokio::process::Command::new(format!("/proc/self/fd/{}", self.0.as_raw_fd()));
        command.arg0("sampan-holder").args(inherited.map(|fd| fd.to_string())).env_clear();
        // SAFETY: fcntl is safe between fork and exec; it touches the child's table of descriptors only.
        unsafe {
            command.pre_exec(move || {
                for fd in inherited {
                    if libc::fcntl(fd, libc::F_SETFD, 0) < 0 {
                        return Err(io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        // Its end is seen on the connection; tokio collects the process.
        command.kill_on_drop(false).spawn().map(drop)
    }
}

/// A socket's place. Addresses are limited to 107 bytes; relative to an open directory any path fits.
struct Place {
    directory: File,
}

impl Place {
    fn open(directory: &Path) -> io::Result<Self> {
        Ok(Self { directory: File::open(directory)? })
    }

    fn address(&self) -> io::Result<UnixAddr> {
        Ok(UnixAddr::new(&PathBuf::from(format!("/proc/self/fd/{}/holder", self.directory.as_raw_fd())))?)
    }
}

/// A plan, ready to be sent.
pub(super) fn memory_file(plan: &impl Wire) -> io::Result<OwnedFd> {
    let mut file = File::from(nix::sys::memfd::memfd_create(c"sampan-plan", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&plan.encode())?;
    Ok(file.into())
}

/// A connection to a holder.
pub(super) struct Connection {
    socket: AsyncFd<OwnedFd>,
    clock: Clock,
    sandbox: String,
}

/// Watches a descriptor that belongs to what is returned.
pub(super) fn register<T: Into<OwnedFd>>(descriptor: T) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is open, and the same one, until the registration that holds it is dropped.
    unsafe { AsyncFd::register(descriptor.into()) }.map_err(io::Error::from)
}

/// A holder that answered.
pub(super) struct Holder {
    pub pidfd: OwnedFd,
}

impl Connection {
    /// [`Error::Lost`] when no holder serves there.
    pub(super) fn open(sandbox: &str, directory: &Path, clock: &Clock) -> Result<Self, Error> {
        let connect = || {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = nix::sys::socket::socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
            nix::sys::socket::connect(socket.as_raw_fd(), &Place::open(directory)?.address()?)?;
            register(socket)
        };
        match connect() {
            Ok(socket) => Ok(Self { socket, clock: clock.clone(), sandbox: sandbox.to_owned() }),
            Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => {
                Err(Error::Lost(sandbox.to_owned()))
            }
            Err(error) => Err(Error::System(format!("connect to the holder of sandbox {sandbox}: {error}"))),
        }
    }

    pub(super) async fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let packet = request.encode();
        let numbers: Vec<i32> = descriptors.iter().map(|fd| fd.as_raw_fd()).collect();
        let send = |socket: &OwnedFd| {
            let control = [ControlMessage::ScmRights(&numbers)];
            let control = if numbers.is_empty() { &control[..0] } else { &control[..] };
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let parts = [IoSlice::new(&packet)];
            Ok(nix::sys::socket::sendmsg::<()>(socket.as_raw_fd(), &parts, control, flags, None)?)
        };
        self.socket.async_io(Interest::WRITABLE, send).await.map(drop).map_err(|_| Error::Lost(self.sandbox.clone()))
    }

    /// The next answer with its descriptors. [`Error::Lost`] when the holder is gone.
    pub(super) async fn receive(&self) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let receive = |socket: &OwnedFd| {
            let mut buffer = vec![0; 64 << 10];
            let mut control = nix::cmsg_space!([i32; 8]);
            let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let message = nix::sys::socket::recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
            let mut descriptors = Vec::new();
            for control in message.cmsgs()? {
                if let ControlMessageOwned::ScmRights(numbers) = control {
                    // SAFETY: the kernel has just made them for us.
                    descriptors.extend(numbers.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
                }
            }
            let length = message.bytes;
            buffer.truncate(length);
            Ok((buffer, descriptors))
        };
        let lost = || Error::Lost(self.sandbox.clone());
        let (packet, descriptors) = self.socket.async_io(Interest::READABLE, receive).await.map_err(|_| lost())?;
        if packet.is_empty() {
            return Err(lost());
        }
        let reply = Reply::decode(&packet);
        let reply = reply.ok_or_else(|| Error::System("the holder's answer is not of this protocol".to_owned()))?;
        Ok((reply, descriptors))
    }

    /// Asks and waits for the answer; a [`Reply::Failed`] becomes the error it tells.
    pub(super) async fn ask(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(Reply, Vec<OwnedFd>), Error> {
        let answer = async {
            self.send(request, descriptors).await?;
            self.receive().await
        };
        match self.clock.timeout(PATIENCE, answer).await {
            Some(Ok((Reply::Failed(failure), _))) => Err(failure.into()),
            Some(answer) => answer,
            None => Err(Error::System(format!("the holder of sandbox {} does not answer", self.sandbox))),
        }
    }

    pub(super) async fn hello(&self) -> Result<Holder, Error> {
        match self.ask(&Request::Hello, &[]).await? {
            (Reply::Hello { version: VERSION, .. }, descriptors) => match descriptors.into_iter().next() {
                Some(pidfd) => Ok(Holder { pidfd }),
                None => Err(Error::System("the holder sent no pidfd".to_owned())),
            },
            (Reply::Hello { version, .. }, _) => Err(Error::System(format!(
                "the holder of sandbox {} speaks protocol {version}, this agent {VERSION}",
                self.sandbox
            ))),
            (reply, _) => Err(Error::System(format!("unexpected answer of the holder: {reply:?}"))),
        }
    }
}

impl Holder {
    /// Its process id in this PID namespace; `None` when it has ended.
    pub(super) fn pid(&self) -> Option<i32> {
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", self.pidfd.as_raw_fd())).ok()?;
        let pid = info.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())?;
        (pid > 0).then_some(pid)
    }

    /// Kills the holder and waits until it has ended.
    pub(super) async fn kill(&self) -> io::Result<()> {
        let _ = crate::cgroup::pidfd_kill(&self.pidfd);
        self.ended().await
    }

    /// Waits until the process has ended.
    pub(super) async fn ended(&self) -> io::Result<()> {
        register(self.pidfd.try_clone()?)?.readable().await.map(drop)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure.kind {
            FailureKind::System => Self::System(failure.text),
            FailureKind::Start => Self::Start(failure.text),
            FailureKind::NotRunning => Self::Invalid(failure.text),
        }
    }
}
