//! Other processes: who they are beyond a reused pid, and waiting for their end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;

/// A process that will not be confused with a later one of the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub pid: i32,
    /// Clock ticks after boot (`/proc/PID/stat`, field 22).
    pub started: u64,
}

impl Process {
    /// The process that has this pid now.
    pub fn of(pid: i32) -> io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The command name, field 2, may hold spaces and parentheses: count from the last one.
        let rest = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let started = rest.split_whitespace().nth(19).and_then(|field| field.parse().ok());
        let started = started.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "unreadable /proc/PID/stat"))?;
        Ok(Self { pid, started })
    }

    /// A handle on it, `None` when it has ended.
    pub fn open(self) -> io::Result<Option<Handle>> {
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, self.pid, 0) };
        if fd < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) };
        }
        // SAFETY: the descriptor was just returned to us and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        // The descriptor pins the pid: if it still is our process now, it stays so.
        match Self::of(self.pid) {
            Ok(now) if now == self && !zombie(self.pid) => Ok(Some(Handle(fd))),
            _ => Ok(None),
        }
    }
}

fn zombie(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X'])))
}

/// A pidfd.
#[derive(Debug)]
pub struct Handle(pub OwnedFd);

impl Handle {
    /// Sends a signal; a process that has ended counts as signalled.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> io::Result<()> {
        // SAFETY: pidfd_send_signal reads nothing through its null pointer argument.
        let result = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        let error = io::Error::last_os_error();
        if result == 0 || error.raw_os_error() == Some(libc::ESRCH) { Ok(()) } else { Err(error) }
    }

    /// Waits for the end of the process. A child stays a zombie until it is reaped.
    pub async fn ended(&self) -> io::Result<()> {
        // SAFETY: the descriptor is owned by the registration and closed after it has ended.
        let fd = unsafe {
            AsyncFd::register_with_interest(self.0.as_fd().try_clone_to_owned()?, tokio::io::Interest::READABLE)?
        };
        let _ready = fd.readable().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_handle_follows_one_process() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().expect("start sleep");
        let process = Process::of(child.id() as i32).expect("it runs");
        let handle = process.open().expect("open").expect("it runs");
        handle.signal(nix::sys::signal::Signal::SIGKILL).expect("signal");
        handle.ended().await.expect("wait");
        assert!(process.open().expect("open").is_none(), "a zombie has ended");
        child.wait().expect("reap");
        let other = Process { pid: std::process::id() as i32, started: 1 };
        assert!(other.open().expect("open").is_none(), "same pid, other process");
    }
}
