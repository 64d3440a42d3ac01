//! A remote command's streams: standard input, output and error, changes of the terminal's size, and the status that ends
//! it (`k8s.io/apimachinery/pkg/util/remotecommand`, protocols v4 and v5).

use std::time::Duration;

use bytes::BytesMut;
use sampan_base::{Clock, task};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{Error, Protocol};
use crate::pipe::{Reader, Writer};
use crate::spdy::{Connection, Stream};
use crate::websocket::{self, Channels};

/// How long a SPDY client may take to open its streams (upstream's `DefaultStreamCreationTimeout`).
const OPENING: Duration = Duration::from_secs(30);
/// A size is a few bytes; more than this without one is no size.
const MAX_SIZE_TEXT: usize = 4096;

/// Which streams the request asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wants {
    pub stdin: bool,
    pub stdout: bool,
    /// Must not be set together with `tty`: a terminal has one output.
    pub stderr: bool,
    pub tty: bool,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Size {
    #[serde(rename = "Width")]
    pub width: u16,
    #[serde(rename = "Height")]
    pub height: u16,
}

/// The streams asked for. The connection closes when all of this is dropped.
pub struct Remote {
    pub stdin: Option<Reader>,
    pub stdout: Option<Writer>,
    pub stderr: Option<Writer>,
    /// With a terminal.
    pub resize: Option<mpsc::Receiver<Size>>,
    pub status: StatusWriter,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    /// It ran and exited with this code, not 0.
    ExitCode(i32),
    /// It could not be run.
    Failure(String),
}

impl Outcome {
    /// The `metav1.Status` clients read.
    pub fn to_status(&self) -> Value {
        match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::ExitCode(code) => json!({
                "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
                "message": format!("command terminated with non-zero exit code: exit status {code}"),
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failure(why) => json!({
                "metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                "message": format!("Internal error occurred: {why}"),
                "details": {"causes": [{"message": why}]},
            }),
        }
    }
}

/// Says how it ended. Dropped without, the client reports a broken connection.
pub struct StatusWriter {
    writer: Writer,
    /// Kept until the end: the connection lives as long.
    _connection: Option<Connection>,
}

impl StatusWriter {
    /// Sends the outcome. Call it when all output has been written.
    pub async fn finish(mut self, outcome: &Outcome) {
        // A client that is gone needs no status.
        let _ = self.writer.write_all(outcome.to_status().to_string().as_bytes()).await;
        let _ = self.writer.shutdown().await;
    }
}

/// Takes the streams of an upgraded connection.
pub async fn remote_command<T>(io: T, protocol: Protocol, wants: Wants, clock: Clock) -> Result<Remote, Error>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    match protocol {
        Protocol::Channels(framing) => {
            let Channels { readers, writers } = websocket::channels(websocket::server(io).await, 5, framing, clock);
            let mut readers = readers.into_iter();
            let (stdin, resize) = (readers.next(), readers.nth(3));
            let mut writers = writers.into_iter().skip(1);
            let (stdout, stderr, status) = (writers.next(), writers.next(), writers.next());
            assemble(wants, stdin, stdout, stderr, resize, status, None)
        }
        Protocol::Spdy => spdy(Connection::new(io, clock.clone())?, wants, &clock).await,
        Protocol::SpdyTunnel => {
            let tunnel = websocket::tunnel(websocket::server(io).await, clock.clone());
            spdy(Connection::new(tunnel, clock.clone())?, wants, &clock).await
        }
    }
}

/// The client opens each stream and names it.
async fn spdy(mut connection: Connection, wants: Wants, clock: &Clock) -> Result<Remote, Error> {
    let expected = [true, wants.stdin, wants.stdout, wants.stderr && !wants.tty, wants.tty];
    let expected = expected.into_iter().filter(|wanted| *wanted).count();
    let opening = async {
        let mut streams: Vec<Stream> = Vec::new();
        while streams.len() < expected {
            streams.push(connection.accept().await.ok_or(Error::Incomplete)?);
        }
        Ok::<_, Error>(streams)
    };
    let mut streams = clock.timeout(OPENING, opening).await.ok_or(Error::Incomplete)??;
    let mut take = |name: &str| {
        let position = streams.iter().position(|stream| stream.header("streamtype") == Some(name))?;
        Some(streams.swap_remove(position))
    };
    let writer = |stream: Option<Stream>| stream.map(|stream| stream.writer);
    let reader = |stream: Option<Stream>| stream.map(|stream| stream.reader);
    let (stdin, resize) = (reader(take("stdin")), reader(take("resize")));
    let (stdout, stderr, status) = (writer(take("stdout")), writer(take("stderr")), writer(take("error")));
    assemble(wants, stdin, stdout, stderr, resize, status, Some(connection))
}

fn assemble(
    wants: Wants,
    stdin: Option<Reader>,
    stdout: Option<Writer>,
    stderr: Option<Writer>,
    resize: Option<Reader>,
    status: Option<Writer>,
    connection: Option<Connection>,
) -> Result<Remote, Error> {
    fn wanted<S>(wanted: bool, stream: Option<S>) -> Result<Option<S>, Error> {
        match (wanted, stream) {
            (true, None) => Err(Error::Incomplete),
            (true, stream) => Ok(stream),
            (false, _) => Ok(None),
        }
    }
    Ok(Remote {
        stdin: wanted(wants.stdin, stdin)?,
        stdout: wanted(wants.stdout, stdout)?,
        stderr: wanted(wants.stderr && !wants.tty, stderr)?,
        resize: wanted(wants.tty, resize)?.map(sizes),
        status: StatusWriter { writer: status.ok_or(Error::Incomplete)?, _connection: connection },
    })
}

/// Reads JSON documents one after the other, however they are cut.
fn sizes(mut reader: Reader) -> mpsc::Receiver<Size> {
    let (sender, receiver) = mpsc::channel(4);
    task::spawn("terminal size", async move {
        let mut buffer = BytesMut::new();
        while let Some(piece) = reader.next().await {
            buffer.extend_from_slice(&piece);
            let mut documents = serde_json::Deserializer::from_slice(&buffer).into_iter::<Size>();
            let mut found = Vec::new();
            let mut broken = false;
            for document in documents.by_ref() {
                match document {
                    Ok(size) => found.push(size),
                    Err(error) => {
                        broken = !error.is_eof();
                        break;
                    }
                }
            }
            let read = documents.byte_offset().min(buffer.len());
            let _ = buffer.split_to(read);
            for size in found {
                if sender.send(size).await.is_err() {
                    return;
                }
            }
            if broken || buffer.len() > MAX_SIZE_TEXT {
                return;
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use futures::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio_tungstenite::tungstenite::Message;

    use super::*;
    use crate::websocket::Framing;

    const ALL: Wants = Wants { stdin: true, stdout: true, stderr: true, tty: false };
    const TERMINAL: Wants = Wants { stdin: true, stdout: true, stderr: false, tty: true };

    /// What every transport must let a server do: echo input to both outputs until its end, then report an exit code.
    async fn serve(io: DuplexStream, protocol: Protocol) {
        let mut remote = remote_command(io, protocol, ALL, Clock::system()).await.expect("streams");
        let mut input = Vec::new();
        remote.stdin.take().expect("stdin").read_to_end(&mut input).await.expect("readable");
        remote.stdout.take().expect("stdout").write_all(&input).await.expect("written");
        remote.stderr.take().expect("stderr").write_all(b"warning").await.expect("written");
        remote.status.finish(&Outcome::ExitCode(3)).await;
    }

    fn code(status: &[u8]) -> Value {
        let status: Value = serde_json::from_slice(status).expect("a status");
        status["details"]["causes"][0].clone()
    }

    #[tokio::test]
    async fn over_a_websocket() {
        let (left, right) = tokio::io::duplex(64 * 1024);
        let framing = Framing { base64: false, half_close: true };
        let server = tokio::task::JoinSet::from_iter([serve(right, Protocol::Channels(framing))]);
        let mut socket = websocket::client(left).await;
        socket.send(Message::binary(&b"\0hello"[..])).await.expect("sent");
        socket.send(Message::binary(&[255, 0][..])).await.expect("sent");
        let mut channels: [Vec<u8>; 4] = Default::default();
        while let Some(Ok(Message::Binary(data))) = socket.next().await {
            channels[usize::from(data[0])].extend_from_slice(&data[1..]);
        }
        server.join_all().await;
        assert_eq!((channels[1].as_slice(), channels[2].as_slice()), (&b"hello"[..], &b"warning"[..]));
        assert_eq!(code(&channels[3]), json!({"reason": "ExitCode", "message": "3"}));
    }

    #[tokio::test]
    async fn over_spdy() {
        let (left, right) = tokio::io::duplex(64 * 1024);
        let server = tokio::task::JoinSet::from_iter([serve(right, Protocol::Spdy)]);
        let client = Connection::new(left, Clock::system()).expect("a connection");
        let mut streams = Vec::new();
        for name in ["error", "stdin", "stdout", "stderr"] {
            streams.push(client.open(vec![("streamtype".into(), name.into())]).await.expect("open"));
        }
        streams[1].writer.write_all(b"hello").await.expect("written");
        streams[1].writer.shutdown().await.expect("ended");
        let mut texts = Vec::new();
        for stream in &mut streams {
            let mut text = Vec::new();
            stream.reader.read_to_end(&mut text).await.expect("readable");
            texts.push(text);
        }
        server.join_all().await;
        assert_eq!((texts[2].as_slice(), texts[3].as_slice()), (&b"hello"[..], &b"warning"[..]));
        assert_eq!(code(&texts[0]), json!({"reason": "ExitCode", "message": "3"}));
    }

    #[tokio::test]
    async fn sizes_arrive_however_they_are_cut() {
        let (left, right) = tokio::io::duplex(64 * 1024);
        let framing = Framing { base64: false, half_close: false };
        let mut socket = websocket::client(left).await;
        let mut remote =
            remote_command(right, Protocol::Channels(framing), TERMINAL, Clock::system()).await.expect("streams");
        let mut resize = remote.resize.take().expect("a terminal");
        for piece in ["\x04{\"Width\":80,\"Hei", "\x04ght\":24}{\"Width\":1,\"Height\":2}"] {
            socket.send(Message::binary(piece.as_bytes().to_vec())).await.expect("sent");
        }
        assert_eq!(resize.recv().await, Some(Size { width: 80, height: 24 }));
        assert_eq!(resize.recv().await, Some(Size { width: 1, height: 2 }));
        assert!(remote.stderr.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_opens_too_little_is_given_up() {
        let (left, right) = tokio::io::duplex(64 * 1024);
        let client = Connection::new(left, Clock::system()).expect("a connection");
        let _only = client.open(vec![("streamtype".into(), "error".into())]).await.expect("open");
        let outcome = remote_command(right, Protocol::Spdy, ALL, Clock::system()).await;
        assert!(matches!(outcome, Err(Error::Incomplete)));
    }
}
