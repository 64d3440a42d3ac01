//! WebSockets on a connection that HTTP has already upgraded: the handshake's headers, and the two ways Kubernetes uses
//! one: numbered channels (`v4.channel.k8s.io`, `v5.channel.k8s.io`) and a tunnel for another protocol's bytes.

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, header};
use sampan_base::{Clock, task};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

use crate::pipe::{Command, QUEUE, Reader, Writer};

/// The largest message taken: far more than any client sends at once.
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// The channel on which v5 says that another one has ended.
const CLOSE_CHANNEL: u8 = 255;
/// How long to wait for the peer's half of the closing handshake.
const LINGER: Duration = Duration::from_secs(5);

/// Whether a request asks for a WebSocket.
pub fn requested(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    upgrade.eq_ignore_ascii_case("websocket") && headers.contains_key(header::SEC_WEBSOCKET_KEY)
}

/// The sub-protocols a client offers, in its order.
pub fn offered(headers: &HeaderMap) -> Vec<&str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|one| !one.is_empty()).collect()
}

/// The answer to `Sec-WebSocket-Key` (RFC 6455, 4.2.2).
pub fn accept_key(key: &HeaderValue) -> HeaderValue {
    let text = [key.as_bytes(), b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"].concat();
    let text = BASE64.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, &text));
    HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

fn config() -> WebSocketConfig {
    WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE))
}

/// The server's side of an upgraded connection.
pub async fn server<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config())).await
}

/// The client's side of an upgraded connection.
pub async fn client<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    WebSocketStream::from_raw_socket(io, Role::Client, Some(config())).await
}

/// How channels stand in messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Framing {
    /// Text messages: a digit for the channel, then Base64; else binary ones: a byte, then the data.
    pub base64: bool,
    /// A channel can be ended on its own (v5).
    pub half_close: bool,
}

impl Framing {
    fn encode(self, channel: u8, data: &[u8]) -> Message {
        if self.base64 {
            return Message::text(format!("{}{}", char::from(b'0' + channel % 10), BASE64.encode(data)));
        }
        let mut message = BytesMut::with_capacity(1 + data.len());
        message.put_u8(channel);
        message.extend_from_slice(data);
        Message::binary(message.freeze())
    }

    /// Channel and data; `None` for a message that is neither.
    fn decode(self, message: &Message) -> Option<(u8, Bytes)> {
        match message {
            Message::Binary(data) if !self.base64 => Some((*data.first()?, data.slice(1..))),
            Message::Text(text) if self.base64 => {
                let (channel, data) = text.split_at_checked(1)?;
                Some((channel.parse().ok()?, BASE64.decode(data).ok()?.into()))
            }
            _ => None,
        }
    }
}

/// A WebSocket as numbered channels. It closes when all writers are dropped.
pub struct Channels {
    pub readers: Vec<Reader>,
    pub writers: Vec<Writer>,
}

/// Opens channels `0..count` both ways; which of them a protocol uses is the caller's business.
pub fn channels<T>(socket: WebSocketStream<T>, count: u8, framing: Framing, clock: Clock) -> Channels
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (commands, queue) = mpsc::channel(QUEUE);
    let (inbound, readers): (Vec<_>, Vec<_>) = (0..count).map(|_| Reader::new()).map(|(tx, rx)| (Some(tx), rx)).unzip();
    let writers = (0..count).map(|channel| Writer::new(u32::from(channel), commands.clone()).1).collect();
    task::spawn("websocket", run(socket, inbound, queue, framing, clock));
    Channels { readers, writers }
}

async fn run<T: AsyncRead + AsyncWrite + Unpin>(
    socket: WebSocketStream<T>,
    mut inbound: Vec<Option<mpsc::Sender<Bytes>>>,
    mut queue: mpsc::Receiver<Command>,
    framing: Framing,
    clock: Clock,
) {
    let (mut sink, mut source) = socket.split();
    let read = async {
        while let Some(Ok(message)) = source.next().await {
            match framing.decode(&message) {
                Some((CLOSE_CHANNEL, data)) if framing.half_close => {
                    if let Some(slot) = data.first().and_then(|channel| inbound.get_mut(usize::from(*channel))) {
                        *slot = None;
                    }
                }
                Some((channel, data)) => {
                    let Some(slot) = inbound.get_mut(usize::from(channel)) else { continue };
                    // Empty messages open channels in old clients; nobody may be listening.
                    if !data.is_empty()
                        && let Some(sender) = slot
                        && sender.send(data).await.is_err()
                    {
                        *slot = None;
                    }
                }
                None => {}
            }
        }
        inbound.clear();
    };
    let write = async {
        while let Some(command) = queue.recv().await {
            if let Command::Data { stream, data } = command
                && sink.send(framing.encode(stream as u8, &data)).await.is_err()
            {
                return;
            }
        }
        let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        let _ = sink.send(Message::Close(Some(normal))).await;
    };
    let mut read = std::pin::pin!(read);
    tokio::select! {
        biased;
        () = &mut read => {}
        () = write => {
            clock.timeout(LINGER, read).await;
        }
    }
}

/// The bytes of another protocol inside binary messages, as one byte stream.
pub fn tunnel<T>(socket: WebSocketStream<T>, clock: Clock) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (near, far) = tokio::io::duplex(64 * 1024);
    let (mut out, mut into) = tokio::io::split(far);
    let (mut sink, mut source) = socket.split();
    task::spawn("websocket tunnel", async move {
        let read = async {
            while let Some(Ok(message)) = source.next().await {
                if let Message::Binary(data) = message
                    && into.write_all(&data).await.is_err()
                {
                    // Nobody reads the tunnel any more; go on, to see the peer's close.
                    continue;
                }
            }
            let _ = into.shutdown().await;
        };
        let write = async {
            let mut buffer = BytesMut::new();
            loop {
                buffer.reserve(32 * 1024);
                match out.read_buf(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(_) if sink.send(Message::binary(buffer.split().freeze())).await.is_err() => return,
                    Ok(_) => {}
                }
            }
            let normal = CloseFrame { code: CloseCode::Normal, reason: "".into() };
            let _ = sink.send(Message::Close(Some(normal))).await;
        };
        let mut read = std::pin::pin!(read);
        tokio::select! {
            biased;
            () = &mut read => {}
            () = write => {
                clock.timeout(LINGER, read).await;
            }
        }
    });
    near
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_key_of_the_standard() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept_key(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[tokio::test]
    async fn a_tunnel_carries_bytes_both_ways() {
        let (left, right) = tokio::io::duplex(1024);
        let clock = Clock::system();
        let (mut a, mut b) = (tunnel(client(left).await, clock.clone()), tunnel(server(right).await, clock));
        let big = vec![3u8; 200_000];
        let send = async {
            a.write_all(&big).await.expect("written");
            a.shutdown().await.expect("shut down");
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(send, b.read_to_end(&mut got));
        read.expect("readable");
        assert_eq!(got, big);
    }

    proptest! {
        #[test]
        fn framing_round_trips(channel in 0u8..5, data in prop::collection::vec(any::<u8>(), 0..200), base64: bool) {
            let framing = Framing { base64, half_close: false };
            let message = framing.encode(channel, &data);
            prop_assert_eq!(framing.decode(&message), Some((channel, Bytes::from(data))));
        }

        #[test]
        fn any_message_decodes_or_not(data in prop::collection::vec(any::<u8>(), 0..60), text in "\\PC{0,40}") {
            for base64 in [false, true] {
                let framing = Framing { base64, half_close: true };
                let _ = framing.decode(&Message::binary(data.clone()));
                let _ = framing.decode(&Message::text(text.clone()));
            }
        }
    }
}
