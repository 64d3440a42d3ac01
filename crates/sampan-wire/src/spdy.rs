//! SPDY/3.1 as kubectl and client-go use it after `Upgrade: SPDY/3.1` or inside a WebSocket: many byte streams over one
//! connection. Flow control is the connection's own, as with moby/spdystream: WINDOW_UPDATE is neither sent nor needed.

pub mod frame;

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sampan_base::{Clock, task};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use self::frame::{Decoder, Encoder, Frame, Headers};
use crate::pipe::{Command, QUEUE, Reader, Writer};

/// Streams open at once. kubectl opens a handful, port-forward two a connection.
const MAX_STREAMS: usize = 1024;
/// How long to wait for the peer to hang up after saying good-bye: closing first could discard what it has not read yet.
const LINGER: Duration = Duration::from_secs(5);
const READ: usize = 32 * 1024;

const REFUSED_STREAM: u32 = 3;

/// One stream of a connection.
pub struct Stream {
    pub id: u32,
    /// What the side that opened it said of it.
    pub headers: Headers,
    pub reader: Reader,
    pub writer: Writer,
}

impl Stream {
    /// The first value of a header; names in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let value = self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())?;
        Some(value.split('\0').next().unwrap_or_default())
    }
}

/// A connection. It lives until this handle and all writers of its streams are dropped, then says good-bye; or until the
/// peer goes.
pub struct Connection {
    incoming: mpsc::Receiver<Stream>,
    commands: mpsc::Sender<Command>,
    opened: mpsc::Sender<(u32, Inbound)>,
    next: AtomicU32,
}

/// Where what comes in on a stream goes.
struct Inbound {
    data: mpsc::Sender<Bytes>,
    reset: Arc<AtomicBool>,
}

impl Connection {
    /// Speaks SPDY on `io`, for either side. Streams of the peer come from [`Connection::accept`].
    pub fn new<T>(io: T, clock: Clock) -> Result<Self, frame::Error>
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let encoder = Encoder::new()?;
        let (commands, queue) = mpsc::channel(QUEUE);
        let (accepted, incoming) = mpsc::channel(QUEUE);
        let (opened, own) = mpsc::channel(QUEUE);
        let (reading, writing) = tokio::io::split(io);
        let mut inbound = Inbounds { streams: HashMap::new(), own, accepted, commands: commands.downgrade() };
        task::spawn("spdy", async move {
            let mut read = std::pin::pin!(inbound.run(reading));
            tokio::select! {
                biased;
                // The peer is gone: what waits to be written has no reader.
                () = &mut read => {}
                () = write(writing, queue, encoder) => {
                    clock.timeout(LINGER, read).await;
                }
            }
        });
        Ok(Self { incoming, commands, opened, next: AtomicU32::new(1) })
    }

    /// The next stream the peer opens; `None` when it has gone.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.incoming.recv().await
    }

    /// Opens a stream, as a client. `None` when the connection is gone.
    pub async fn open(&self, headers: Headers) -> Option<Stream> {
        let id = self.next.fetch_add(2, Ordering::Relaxed);
        let (inbound, stream) = stream(id, headers.clone(), self.commands.clone());
        self.opened.send((id, inbound)).await.ok()?;
        self.commands.send(Command::Frame(Frame::SynStream { id, fin: false, headers })).await.ok()?;
        Some(stream)
    }
}

fn stream(id: u32, headers: Headers, commands: mpsc::Sender<Command>) -> (Inbound, Stream) {
    let (data, reader) = Reader::new();
    let (reset, writer) = Writer::new(id, commands);
    (Inbound { data, reset }, Stream { id, headers, reader, writer })
}

async fn write<T: AsyncWrite>(mut io: WriteHalf<T>, mut queue: mpsc::Receiver<Command>, mut encoder: Encoder) {
    let mut out = BytesMut::new();
    while let Some(command) = queue.recv().await {
        let mut next = Some(command);
        // What has piled up goes out together.
        while let Some(command) = next {
            let frame = match command {
                Command::Data { stream, data } => Frame::Data { id: stream, fin: false, data },
                Command::End { stream } => Frame::Data { id: stream, fin: true, data: Bytes::new() },
                Command::Frame(frame) => frame,
            };
            if encoder.encode(&frame, &mut out).is_err() {
                return;
            }
            next = if out.len() < READ { queue.try_recv().ok() } else { None };
        }
        if io.write_all(&out).await.is_err() || io.flush().await.is_err() {
            return;
        }
        out.clear();
    }
    if encoder.encode(&Frame::GoAway { last: 0, status: 0 }, &mut out).is_ok() {
        let _ = io.write_all(&out).await;
    }
    let _ = io.shutdown().await;
}

/// The reading half: hands data to the streams.
struct Inbounds {
    streams: HashMap<u32, Inbound>,
    /// Streams this side opened.
    own: mpsc::Receiver<(u32, Inbound)>,
    accepted: mpsc::Sender<Stream>,
    /// Weak: the connection lives no longer for being read.
    commands: mpsc::WeakSender<Command>,
}

impl Inbounds {
    async fn run<T: AsyncRead>(&mut self, mut io: ReadHalf<T>) {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::new();
        loop {
            loop {
                match decoder.decode(&mut buffer) {
                    Ok(Some(frame)) => self.take(frame).await,
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%error, "a SPDY connection broke");
                        return;
                    }
                }
            }
            buffer.reserve(READ);
            match io.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    }

    async fn say(&self, frame: Frame) {
        if let Some(commands) = self.commands.upgrade() {
            let _ = commands.send(Command::Frame(frame)).await;
        }
    }

    async fn take(&mut self, frame: Frame) {
        while let Ok((id, inbound)) = self.own.try_recv() {
            self.streams.insert(id, inbound);
        }
        match frame {
            Frame::SynStream { id, fin, headers } => {
                let Some(commands) = self.commands.upgrade() else { return };
                if self.streams.len() >= MAX_STREAMS || self.streams.contains_key(&id) {
                    return self.say(Frame::RstStream { id, status: REFUSED_STREAM }).await;
                }
                let (inbound, stream) = stream(id, headers, commands);
                if !fin {
                    self.streams.insert(id, inbound);
                }
                self.say(Frame::SynReply { id, fin: false, headers: Headers::new() }).await;
                let _ = self.accepted.send(stream).await;
            }
            Frame::Data { id, fin, data } => {
                if let Some(inbound) = self.streams.get(&id) {
                    // Nobody listens any more: what comes is dropped.
                    if !data.is_empty() && inbound.data.send(data).await.is_err() {
                        self.streams.remove(&id);
                    }
                    if fin {
                        self.streams.remove(&id);
                    }
                }
            }
            Frame::RstStream { id, .. } => {
                if let Some(inbound) = self.streams.remove(&id) {
                    inbound.reset.store(true, Ordering::Relaxed);
                }
            }
            Frame::SynReply { id, fin: true, .. } | Frame::Headers { id, fin: true, .. } => {
                self.streams.remove(&id);
            }
            // Pings of clients have odd numbers; an even one answers ours, and we send none.
            Frame::Ping(id) if id % 2 == 1 => self.say(Frame::Ping(id)).await,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Connection, Connection) {
        let (left, right) = tokio::io::duplex(1024);
        let connect = |io| Connection::new(io, Clock::system()).expect("a connection");
        (connect(left), connect(right))
    }

    async fn rest(reader: &mut Reader) -> Vec<u8> {
        let mut all = Vec::new();
        reader.read_to_end(&mut all).await.expect("readable");
        all
    }

    #[tokio::test]
    async fn streams_carry_data_both_ways_and_close_by_halves() {
        let (client, mut server) = pair();
        let mut ours = client.open(vec![("streamtype".into(), "data".into())]).await.expect("open");
        let mut theirs = server.accept().await.expect("a stream");
        assert_eq!(theirs.header("streamtype"), Some("data"));
        let big = vec![7u8; 300_000];
        let send = async {
            ours.writer.write_all(&big).await.expect("written");
            ours.writer.shutdown().await.expect("ended");
        };
        let ((), got) = tokio::join!(send, rest(&mut theirs.reader));
        assert_eq!(got, big);
        theirs.writer.write_all(b"answer").await.expect("written after the peer ended");
        drop(theirs);
        assert_eq!(rest(&mut ours.reader).await, b"answer");
    }

    #[tokio::test]
    async fn dropping_one_side_ends_the_other_after_all_data() {
        let (client, mut server) = pair();
        let mut ours = client.open(Headers::new()).await.expect("open");
        let mut theirs = server.accept().await.expect("a stream");
        theirs.writer.write_all(b"last words").await.expect("written");
        drop(theirs);
        drop(server);
        assert_eq!(rest(&mut ours.reader).await, b"last words");
        let mut client = client;
        assert!(client.accept().await.is_none());
    }

    #[tokio::test]
    async fn pings_are_answered_and_a_reset_stops_the_writer() {
        let (left, mut right) = tokio::io::duplex(4096);
        let mut server = Connection::new(left, Clock::system()).expect("a connection");
        let mut encoder = Encoder::new().expect("an encoder");
        let mut out = BytesMut::new();
        encoder.encode(&Frame::SynStream { id: 1, fin: false, headers: Headers::new() }, &mut out).expect("encodes");
        encoder.encode(&Frame::RstStream { id: 1, status: 5 }, &mut out).expect("encodes");
        encoder.encode(&Frame::Ping(9), &mut out).expect("encodes");
        right.write_all(&out).await.expect("written");
        let mut stream = server.accept().await.expect("a stream");
        let (mut decoder, mut buffer, mut seen) = (Decoder::default(), BytesMut::new(), Vec::new());
        while !seen.contains(&Frame::Ping(9)) {
            right.read_buf(&mut buffer).await.expect("readable");
            while let Some(frame) = decoder.decode(&mut buffer).expect("frames") {
                seen.push(frame);
            }
        }
        assert_eq!(seen[0], Frame::SynReply { id: 1, fin: false, headers: Headers::new() });
        stream.writer.write_all(b"x").await.expect_err("the peer wants no more");
        assert!(rest(&mut stream.reader).await.is_empty());
    }
}
