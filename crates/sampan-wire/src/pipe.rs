//! The two ends of one stream of a multiplexed connection, as ordinary byte streams. What is written goes through one
//! bounded queue a connection, so a slow peer slows the writers down.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use crate::spdy::frame::Frame;

/// The most one write takes: a round of the copy loops of the other end.
const CHUNK: usize = 32 * 1024;
/// Writes waiting in a connection.
pub(crate) const QUEUE: usize = 16;

/// What the writing half of a connection is asked to do.
pub(crate) enum Command {
    Data {
        stream: u32,
        data: Bytes,
    },
    /// No more data on this stream.
    End {
        stream: u32,
    },
    /// SPDY's own business: replies, pings, resets.
    Frame(Frame),
}

/// What comes in on one stream. Ends when the peer ends the stream or the connection goes.
pub struct Reader {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Reader {
    pub(crate) fn new() -> (mpsc::Sender<Bytes>, Self) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (sender, Self { receiver, current: Bytes::new() })
    }

    /// The next piece as it came; `None` at the end.
    pub async fn next(&mut self) -> Option<Bytes> {
        if self.current.is_empty() { self.receiver.recv().await } else { Some(std::mem::take(&mut self.current)) }
    }
}

impl AsyncRead for Reader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.receiver.poll_recv(cx)) {
                Some(next) => self.current = next,
                None => return Poll::Ready(Ok(())),
            }
        }
        let length = self.current.len().min(buffer.remaining());
        buffer.put_slice(self.current.get(..length).unwrap_or_default());
        self.current.advance(length);
        Poll::Ready(Ok(()))
    }
}

/// What goes out on one stream. Shutting it down ends the stream; dropping it does so too, unless the queue is full.
pub struct Writer {
    stream: u32,
    sender: PollSender<Command>,
    /// The peer wants no more.
    reset: Arc<AtomicBool>,
    ended: bool,
}

impl Writer {
    pub(crate) fn new(stream: u32, sender: mpsc::Sender<Command>) -> (Arc<AtomicBool>, Self) {
        let reset = Arc::new(AtomicBool::new(false));
        (reset.clone(), Self { stream, sender: PollSender::new(sender), reset, ended: false })
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, command: impl FnOnce(u32) -> Command) -> Poll<io::Result<()>> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        if self.ended || self.reset.load(Ordering::Relaxed) {
            return Poll::Ready(Err(gone()));
        }
        ready!(self.sender.poll_reserve(cx)).map_err(|_| gone())?;
        Poll::Ready(self.sender.send_item(command(self.stream)).map_err(|_| gone()))
    }
}

impl AsyncWrite for Writer {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let data = buffer.get(..CHUNK).unwrap_or(buffer);
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_send(cx, |stream| Command::Data { stream, data: Bytes::copy_from_slice(data) }))?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.ended {
            // A connection that is gone has ended the stream as well.
            let _ = ready!(self.poll_send(cx, |stream| Command::End { stream }));
            self.ended = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.ended
            && let Some(sender) = self.sender.get_ref()
        {
            let _ = sender.try_send(Command::End { stream: self.stream });
        }
    }
}
