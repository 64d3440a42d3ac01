//! Port-forwarding: connections to ports of a pod, each with a stream of data and one for an error
//! (`k8s.io/kubelet/pkg/cri/streaming/portforward`).

use std::collections::HashMap;
use std::io;

use sampan_base::{Clock, task};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

use super::{Error, Protocol};
use crate::pipe::{Reader, Writer};
use crate::spdy::{Connection, Stream};
use crate::websocket::{self, Channels, Framing};

/// Ports a WebSocket client may name: each takes two channels.
const MAX_PORTS: usize = 100;

/// The connections a client asks for.
pub struct PortForward(mpsc::Receiver<Forward>);

impl PortForward {
    /// The next connection; `None` when the client has gone (or, over channels, when all were handed out).
    pub async fn next(&mut self) -> Option<Forward> {
        self.0.recv().await
    }
}

/// One connection to make.
pub struct Forward {
    pub port: u16,
    data: (Reader, Writer),
    error: Writer,
}

impl Forward {
    /// Tells the client why this connection cannot be made.
    pub async fn fail(mut self, why: &str) {
        let _ = self.error.write_all(why.as_bytes()).await;
        let _ = self.error.shutdown().await;
    }

    /// Copies both ways until both sides have ended. An error of the backend is told to the client as well.
    pub async fn splice<T: AsyncRead + AsyncWrite + Unpin>(mut self, mut backend: T) -> io::Result<()> {
        let (reader, writer) = &mut self.data;
        let mut client = tokio::io::join(reader, writer);
        let copied = tokio::io::copy_bidirectional(&mut client, &mut backend).await;
        if let Err(error) = copied {
            let why = format!("error forwarding port {}: {error}", self.port);
            self.fail(&why).await;
            return Err(error);
        }
        let _ = self.data.1.shutdown().await;
        let _ = self.error.shutdown().await;
        Ok(())
    }
}

/// Takes the streams of an upgraded connection. `ports` are those of the request's query; SPDY clients name them later.
pub async fn port_forward<T>(io: T, protocol: Protocol, ports: &[u16], clock: Clock) -> Result<PortForward, Error>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(MAX_PORTS);
    match protocol {
        Protocol::Channels(framing) => channels(io, framing, ports, sender, clock).await,
        Protocol::Spdy => {
            task::spawn("port-forward", spdy(Connection::new(io, clock)?, sender));
        }
        Protocol::SpdyTunnel => {
            let tunnel = websocket::tunnel(websocket::server(io).await, clock.clone());
            task::spawn("port-forward", spdy(Connection::new(tunnel, clock)?, sender));
        }
    }
    Ok(PortForward(receiver))
}

/// Two channels a port; the first message on each names the port.
async fn channels<T>(io: T, framing: Framing, ports: &[u16], sender: mpsc::Sender<Forward>, clock: Clock)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let ports = ports.get(..MAX_PORTS).unwrap_or(ports);
    let socket = websocket::server(io).await;
    let Channels { readers, writers } = websocket::channels(socket, 2 * ports.len() as u8, framing, clock);
    let (mut readers, mut writers) = (readers.into_iter(), writers.into_iter());
    for port in ports {
        let (Some(reader), Some(_), Some(mut data), Some(mut error)) =
            (readers.next(), readers.next(), writers.next(), writers.next())
        else {
            return;
        };
        for writer in [&mut data, &mut error] {
            if writer.write_all(&port.to_le_bytes()).await.is_err() {
                return;
            }
        }
        if sender.send(Forward { port: *port, data: (reader, data), error }).await.is_err() {
            return;
        }
    }
}

/// Pairs the streams of each request. A stream without a partner waits as long as the connection lasts.
async fn spdy(mut connection: Connection, sender: mpsc::Sender<Forward>) {
    let mut waiting: HashMap<String, Stream> = HashMap::new();
    loop {
        let stream = tokio::select! {
            biased;
            () = sender.closed() => return,
            stream = connection.accept() => stream,
        };
        let Some(stream) = stream else { return };
        let Some((request, port)) = request(&stream) else {
            tracing::debug!(headers = ?stream.headers, "a stream of a port-forward names no port or type");
            continue;
        };
        let Some(other) = waiting.remove(&request) else {
            waiting.insert(request, stream);
            continue;
        };
        let (data, error) = match (stream.header("streamtype"), other.header("streamtype")) {
            (Some("data"), Some("error")) => (stream, other),
            (Some("error"), Some("data")) => (other, stream),
            _ => continue,
        };
        if sender.send(Forward { port, data: (data.reader, data.writer), error: error.writer }).await.is_err() {
            return;
        }
    }
}

/// The request a stream belongs to, and its port. Old clients send no number: their error stream comes right before the data
/// stream, so the number of the former stands for it.
fn request(stream: &Stream) -> Option<(String, u16)> {
    let port = stream.header("port")?.parse().ok().filter(|port| *port > 0)?;
    let own = stream.header("requestid").map(str::to_owned);
    let request = match stream.header("streamtype")? {
        "error" => own.unwrap_or_else(|| format!("stream {}", stream.id)),
        "data" => own.unwrap_or_else(|| format!("stream {}", stream.id.saturating_sub(2))),
        _ => return None,
    };
    Some((request, port))
}

#[cfg(test)]
mod tests {
    use futures::{SinkExt, StreamExt};
    use tokio::io::{AsyncReadExt, DuplexStream};
    use tokio_tungstenite::tungstenite::Message;

    use super::*;

    /// Serves one connection to port 80 by a backend that echoes and one to another port by failing.
    async fn serve(io: DuplexStream, protocol: Protocol, ports: &'static [u16]) {
        let mut forward = port_forward(io, protocol, ports, Clock::system()).await.expect("a session");
        for _ in 0..2 {
            let one = forward.next().await.expect("a connection");
            if one.port != 80 {
                one.fail("connection refused").await;
                continue;
            }
            let (near, far) = tokio::io::duplex(4096);
            let echo = async {
                let (mut read, mut write) = tokio::io::split(far);
                tokio::io::copy(&mut read, &mut write).await.expect("copied");
                write.shutdown().await.expect("shut down");
            };
            let (done, ()) = tokio::join!(one.splice(near), echo);
            done.expect("copied both ways");
        }
    }

    async fn over_spdy(io: DuplexStream, number: bool) {
        let client = Connection::new(io, Clock::system()).expect("a connection");
        for (request, port, expected) in [("0", "80", ["", "ping"]), ("1", "81", ["connection refused", ""])] {
            let mut streams = Vec::new();
            for kind in ["error", "data"] {
                let mut headers = vec![("streamtype".to_owned(), kind.to_owned()), ("port".into(), port.into())];
                if number {
                    headers.push(("requestid".into(), request.into()));
                }
                streams.push(client.open(headers).await.expect("open"));
            }
            streams[0].writer.shutdown().await.expect("ended");
            // The failing side may have closed already.
            let _ = streams[1].writer.write_all(b"ping").await;
            let _ = streams[1].writer.shutdown().await;
            for (stream, expected) in streams.iter_mut().zip(expected) {
                let mut text = String::new();
                stream.reader.read_to_string(&mut text).await.expect("readable");
                assert_eq!(text, expected);
            }
        }
    }

    #[tokio::test]
    async fn spdy_with_and_without_request_numbers() {
        for number in [true, false] {
            let (left, right) = tokio::io::duplex(4096);
            tokio::join!(serve(right, Protocol::Spdy, &[]), over_spdy(left, number));
        }
    }

    #[tokio::test]
    async fn spdy_in_a_websocket() {
        let (left, right) = tokio::io::duplex(4096);
        let client = async { over_spdy(websocket::tunnel(websocket::client(left).await, Clock::system()), true).await };
        tokio::join!(serve(right, Protocol::SpdyTunnel, &[]), client);
    }

    #[tokio::test]
    async fn channels_announce_their_port() {
        let (left, right) = tokio::io::duplex(4096);
        let framing = Framing { base64: false, half_close: false };
        let client = async {
            let mut socket = websocket::client(left).await;
            let mut seen: [Vec<u8>; 4] = Default::default();
            socket.send(Message::binary(&b"\0ping"[..])).await.expect("sent");
            while seen[0].len() < 6 || seen[1].len() < 2 {
                let Some(Ok(Message::Binary(data))) = socket.next().await else { panic!("a message") };
                seen[usize::from(data[0])].extend_from_slice(&data[1..]);
            }
            assert_eq!((seen[0].as_slice(), seen[1].as_slice()), (&b"\x50\0ping"[..], &b"\x50\0"[..]));
        };
        let server = async {
            let mut forward =
                port_forward(right, Protocol::Channels(framing), &[80], Clock::system()).await.expect("a session");
            let one = forward.next().await.expect("a connection");
            let (near, far) = tokio::io::duplex(4096);
            let (mut read, mut write) = tokio::io::split(far);
            let (_, _) = tokio::join!(one.splice(near), tokio::io::copy(&mut read, &mut write));
        };
        tokio::select! {
            biased;
            () = client => {}
            () = server => panic!("the client ends first"),
        }
    }
}
