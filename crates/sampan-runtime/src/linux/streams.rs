//! The streams of commands: pipes the holder gives to its children, and terminals.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use nix::fcntl::{FcntlArg, OFlag};
use sampan_base::task;
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use super::holder::register;

/// A pipe we read from, and the end for the child.
pub(super) fn output() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

/// A pipe we write to, and the end for the child.
pub(super) fn input() -> io::Result<(pipe::Sender, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    Ok((pipe::Sender::from_owned_fd(write)?, read))
}

/// An output pipe that holds much, for a reader that must not hold up the writer.
pub(super) fn wide_output() -> io::Result<(pipe::Receiver, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    // More than the machine allows a user is refused; then it is the usual size.
    let _ = nix::fcntl::fcntl(&write, FcntlArg::F_SETPIPE_SZ(1 << 20));
    Ok((pipe::Receiver::from_owned_fd(read)?, write))
}

/// Our end of a terminal. Clones share it.
#[derive(Clone)]
pub(super) struct Terminal(Arc<AsyncFd<OwnedFd>>);

impl Terminal {
    pub(super) fn new(end: OwnedFd) -> io::Result<Self> {
        nix::fcntl::fcntl(&end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | OFlag::O_RDWR))?;
        Ok(Self(Arc::new(register(end)?)))
    }

    /// Sizes sent are set until the sender is dropped.
    pub(super) fn sizes(&self) -> mpsc::Sender<(u16, u16)> {
        let (sender, mut sizes) = mpsc::channel::<(u16, u16)>(8);
        let terminal = self.clone();
        task::spawn("terminal size", async move {
            while let Some((columns, rows)) = sizes.recv().await {
                let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
                // SAFETY: a valid struct for this request.
                unsafe { libc::ioctl(terminal.0.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
            }
        });
        sender
    }
}

impl AsyncRead for Terminal {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            let free = buffer.initialize_unfilled();
            match guard.try_io(|inner| nix::unistd::read(inner, free).map_err(io::Error::from)) {
                Ok(Ok(length)) => {
                    buffer.advance(length);
                    return Poll::Ready(Ok(()));
                }
                // What reading gives when the last one on the other end has gone.
                Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Poll::Ready(Ok(())),
                Ok(Err(error)) => return Poll::Ready(Err(error)),
                Err(_would_block) => {}
            }
        }
    }
}

impl AsyncWrite for Terminal {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            match guard.try_io(|inner| nix::unistd::write(inner, data).map_err(io::Error::from)) {
                Ok(result) => return Poll::Ready(result),
                Err(_would_block) => {}
            }
        }
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
