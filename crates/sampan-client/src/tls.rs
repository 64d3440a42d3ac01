//! The transport over TLS: one HTTP/2 connection for all requests and watches, made again when it breaks, to whichever of
//! several servers answers; and single HTTP/1.1 connections for what needs an upgrade.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyDataStream, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ClientConfig;
use sampan_base::{Clock, task};
use sampan_wire::pki::Identity;
use sampan_wire::tls::{Http, client_config};
use sampan_wire::{dial, websocket};
use tokio::sync::Mutex;

use crate::{Body, Error, Transport};

/// How long connecting to one server may take before the next is tried.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection on which nothing comes for so long is asked for a sign of life, and given up without one.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Flow-control windows: a large list must not wait for the reader's acknowledgements.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;

/// One API server: where it listens and the name its certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    pub host: String,
    pub port: u16,
}

impl Server {
    /// From `https://HOST:PORT`, `HOST:PORT` or `[V6]:PORT`; the port defaults to 6443.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        let uri: Uri = format!("https://{text}").parse().ok()?;
        let host = uri.host()?.trim_start_matches('[').trim_end_matches(']');
        (uri.path() == "/" && !host.is_empty())
            .then(|| Self { host: host.into(), port: uri.port_u16().unwrap_or(6443) })
    }

    fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

/// The transport.
pub struct Tls {
    servers: Vec<Server>,
    /// The one that answered last.
    preferred: AtomicUsize,
    multiplexed: Arc<ClientConfig>,
    single: Arc<ClientConfig>,
    authorization: Option<HeaderValue>,
    clock: Clock,
    connection: Mutex<Option<Open>>,
}

#[derive(Clone)]
struct Open {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

/// A connection after `101 Switching Protocols`.
pub struct Upgraded {
    /// The response's headers: the protocol chosen.
    pub headers: http::HeaderMap,
    pub io: TokioIo<hyper::upgrade::Upgraded>,
}

#[derive(Clone, Copy)]
struct Tasks;

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        task::spawn("http2 client", future);
    }
}

fn unreachable(error: impl std::fmt::Display) -> Error {
    Error::Transport(error.to_string())
}

impl Tls {
    /// `servers` as [`Server::parse`] takes them; `ca_pems` are the authorities that may have signed their certificates.
    pub fn new(servers: &[String], ca_pems: &[&str], identity: Option<&Identity>, clock: Clock) -> Result<Self, Error> {
        let parse = |text: &String| Server::parse(text).ok_or_else(|| Error::Request(format!("{text:?} is no server")));
        let config = |http| client_config(ca_pems, identity, http).map_err(|error| Error::Request(error.to_string()));
        Ok(Self {
            servers: servers.iter().map(parse).collect::<Result<_, _>>()?,
            preferred: AtomicUsize::new(0),
            multiplexed: config(Http::Any)?,
            single: config(Http::One)?,
            authorization: None,
            clock,
            connection: Mutex::new(None),
        })
    }

    /// Sends this bearer token with every request.
    pub fn with_token(mut self, token: &str) -> Result<Self, Error> {
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| Error::Request("the token has characters no header may have".into()))?;
        value.set_sensitive(true);
        self.authorization = Some(value);
        Ok(self)
    }

    /// A connection to the first server that answers, beginning with the one that did last.
    async fn dial<T, F>(&self, connect: impl Fn(Server) -> F) -> Result<(T, Server), Error>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let first = self.preferred.load(Ordering::Relaxed);
        let mut last = Error::Transport("no server is known".into());
        for step in 0..self.servers.len() {
            let index = (first + step) % self.servers.len();
            let Some(server) = self.servers.get(index) else { continue };
            match self.clock.timeout(CONNECT, connect(server.clone())).await {
                Some(Ok(connection)) => {
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok((connection, server.clone()));
                }
                Some(Err(error)) => last = error,
                None => last = Error::Transport(format!("{} does not answer", server.authority())),
            }
        }
        Err(last)
    }

    async fn connect(&self) -> Result<Open, Error> {
        let connect = |server: Server| async move {
            let Server { host, port } = &server;
            let stream = dial::tls(host, *port, host, self.multiplexed.clone())
                .await
                .map_err(|error| Error::Transport(format!("{}: {error}", server.authority())))?;
            if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                return Err(Error::Transport(format!("{} does not speak HTTP/2", server.authority())));
            }
            let (sender, connection) = hyper::client::conn::http2::Builder::new(Tasks)
                .timer(TokioTimer::new())
                .keep_alive_interval(KEEP_ALIVE)
                .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .handshake(TokioIo::new(stream))
                .await
                .map_err(unreachable)?;
            task::spawn("http2 client", async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "the connection to the API server broke");
                }
            });
            Ok(sender)
        };
        let (sender, server) = self.dial(connect).await?;
        Ok(Open { sender, authority: server.authority() })
    }

    /// The connection in use, or a new one. Callers that come while it is being made wait for the same one.
    async fn open(&self) -> Result<Open, Error> {
        let mut slot = self.connection.lock().await;
        if let Some(open) = slot.as_ref().filter(|open| !open.sender.is_closed()) {
            return Ok(open.clone());
        }
        let open = self.connect().await?;
        *slot = Some(open.clone());
        Ok(open)
    }

    fn prepare<B>(&self, request: &mut Request<B>, authority: Option<&str>) -> Result<(), Error> {
        if let Some(authority) = authority {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            let uri = format!("https://{authority}{path}").parse();
            *request.uri_mut() = uri.map_err(|error: http::uri::InvalidUri| Error::Request(error.to_string()))?;
        }
        if let Some(value) = &self.authorization {
            request.headers_mut().insert(header::AUTHORIZATION, value.clone());
        }
        Ok(())
    }

    /// Asks for another protocol on a connection of its own. The request carries the upgrade headers.
    pub async fn upgrade(&self, mut request: Request<Bytes>) -> Result<Upgraded, Error> {
        let connect = |server: Server| async move {
            let Server { host, port } = &server;
            let stream = dial::tls(host, *port, host, self.single.clone()).await.map_err(unreachable)?;
            dial::http1::<_, Full<Bytes>>(stream).await.map_err(unreachable)
        };
        let (mut sender, server) = self.dial(connect).await?;
        self.prepare(&mut request, None)?;
        let host = HeaderValue::from_str(&server.authority()).map_err(|error| Error::Request(error.to_string()))?;
        request.headers_mut().insert(header::HOST, host);
        let response = sender.send_request(request.map(Full::new)).await.map_err(unreachable)?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Err(crate::api::refusal(response.map(body)).await);
        }
        let headers = response.headers().clone();
        let io = hyper::upgrade::on(response).await.map_err(unreachable)?;
        Ok(Upgraded { headers, io: TokioIo::new(io) })
    }

    /// Opens a WebSocket at `path`, offering these sub-protocols.
    pub async fn websocket(&self, path: &str, protocols: &str) -> Result<Upgraded, Error> {
        // A fixed key: it guards against caches between the two ends, and TLS leaves none.
        let key = "c2FtcGFuLXdlYnNvY2tldA==";
        let request = Request::get(path)
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "websocket")
            .header(header::SEC_WEBSOCKET_VERSION, "13")
            .header(header::SEC_WEBSOCKET_KEY, key)
            .header(header::SEC_WEBSOCKET_PROTOCOL, protocols)
            .body(Bytes::new())
            .map_err(|error| Error::Request(error.to_string()))?;
        let upgraded = self.upgrade(request).await?;
        let expected = websocket::accept_key(&HeaderValue::from_static(key));
        if upgraded.headers.get(header::SEC_WEBSOCKET_ACCEPT) != Some(&expected) {
            return Err(Error::Decode("the server did not agree to a WebSocket".into()));
        }
        Ok(upgraded)
    }
}

fn body(incoming: Incoming) -> Body {
    Box::pin(BodyDataStream::new(incoming).map(|chunk| chunk.map_err(unreachable)))
}

#[async_trait]
impl Transport for Tls {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let request = request.map(Full::new);
        // A connection that closed while idle is noticed only when it is used: the request was not sent, try a new one.
        let mut stale = 0;
        loop {
            let mut open = self.open().await?;
            if open.sender.ready().await.is_err() && stale < 2 {
                stale += 1;
                continue;
            }
            let mut request = request.clone();
            self.prepare(&mut request, Some(&open.authority))?;
            let mut error = match open.sender.try_send_request(request).await {
                Ok(response) => return Ok(response.map(body)),
                Err(error) => error,
            };
            // The request comes back only when nothing of it was sent.
            if stale == 2 || error.take_message().is_none() {
                return Err(unreachable(error.into_error()));
            }
            stale += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::BodyExt;
    use hyper::service::service_fn;
    use sampan_base::Dice;
    use sampan_wire::pki::{CA_LIFETIME, Ca, LEAF_LIFETIME, Subject, Usage};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers with what it was sent; `/close` ends its connection, `/upgrade` switches to echoing bytes.
    async fn serve(listener: TcpListener, config: Arc<rustls::ServerConfig>) {
        let acceptor = tokio_rustls::TlsAcceptor::from(config);
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            task::spawn("test server", async move {
                let Ok(stream) = acceptor.accept(tcp).await else { return };
                let peer = sampan_wire::tls::peer(stream.get_ref().1, &Clock::system()).unwrap_or_default();
                let (close, mut closed) = tokio::sync::mpsc::channel::<()>(1);
                let service = service_fn(move |mut request: Request<Incoming>| {
                    let (close, user) = (close.clone(), peer.cn.clone());
                    async move {
                        let mut response = Response::new(Full::new(Bytes::new()));
                        match request.uri().path() {
                            "/close" => drop(close.send(()).await),
                            "/upgrade" => {
                                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                                response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("echo"));
                                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                                let upgrade = hyper::upgrade::on(&mut request);
                                task::spawn("echo", async move {
                                    let Ok(io) = upgrade.await else { return };
                                    let (mut read, mut write) = tokio::io::split(TokioIo::new(io));
                                    let _ = tokio::io::copy(&mut read, &mut write).await;
                                });
                            }
                            path => {
                                let token = request.headers().get(header::AUTHORIZATION).cloned();
                                let token = token.and_then(|value| value.to_str().ok().map(str::to_owned));
                                let text = format!("{user} {path} {}", token.unwrap_or_default());
                                let body = request.into_body().collect().await.map(|body| body.to_bytes());
                                let text = [text.as_bytes(), &body.unwrap_or_default()].concat();
                                *response.body_mut() = Full::new(text.into());
                            }
                        }
                        Ok::<_, Infallible>(response)
                    }
                });
                let builder = hyper_util::server::conn::auto::Builder::new(Tasks);
                let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
                tokio::select! {
                    biased;
                    _ = closed.recv() => {}
                    _ = connection => {}
                }
            });
        }
    }

    async fn fixture() -> Tls {
        let (clock, dice) = (Clock::system(), Dice::system());
        let (ca, _) = Ca::generate("test", CA_LIFETIME, &clock, &dice).expect("an authority");
        let usage = Usage::Server { dns: vec![], ips: vec![[127, 0, 0, 1].into()] };
        let issue = |name, usage: &Usage| {
            ca.issue(&Subject::new(name, &[]), usage, LEAF_LIFETIME, &clock, &dice).expect("issued")
        };
        let server = issue("server", &usage);
        let config = sampan_wire::tls::server_config(&server, &[ca.certificate_pem()]).expect("a configuration");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        task::spawn("test server", serve(listener, config));
        let gone = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("bound").port();
        let servers = [gone, port].map(|port| format!("127.0.0.1:{port}"));
        let alice = issue("alice", &Usage::Client);
        let tls = Tls::new(&servers, &[ca.certificate_pem()], Some(&alice), clock).expect("a transport");
        tls.with_token("t").expect("a token")
    }

    async fn ask(tls: &Tls, path: &str) -> Result<String, Error> {
        let request = Request::get(path).body(Bytes::from_static(b"!")).expect("a request");
        let mut body = tls.send(request).await?.into_body();
        let mut all = Vec::new();
        while let Some(chunk) = body.next().await {
            all.extend_from_slice(&chunk?);
        }
        Ok(String::from_utf8(all).expect("text"))
    }

    #[tokio::test]
    async fn requests_go_to_the_server_that_answers_and_reconnect() {
        let tls = fixture().await;
        assert_eq!(ask(&tls, "/a?b=c").await.expect("an answer"), "alice /a Bearer t!");
        ask(&tls, "/close").await.expect_err("the connection broke");
        assert_eq!(ask(&tls, "/again").await.expect("an answer"), "alice /again Bearer t!");
        let many = futures::future::join_all((0..50).map(|_| ask(&tls, "/x"))).await;
        assert!(many.into_iter().all(|answer| answer.is_ok_and(|text| text == "alice /x Bearer t!")));
    }

    #[tokio::test]
    async fn upgrades_have_their_own_connection() {
        let tls = fixture().await;
        let request = Request::get("/upgrade")
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "echo")
            .body(Bytes::new())
            .expect("a request");
        let mut upgraded = tls.upgrade(request).await.expect("upgraded");
        assert_eq!(upgraded.headers[header::UPGRADE], "echo");
        upgraded.io.write_all(b"hello").await.expect("written");
        let mut echo = [0; 5];
        upgraded.io.read_exact(&mut echo).await.expect("read");
        assert_eq!(&echo, b"hello");
    }

    #[test]
    fn servers() {
        let server = |host: &str, port| Some(Server { host: host.into(), port });
        assert_eq!(Server::parse("https://10.0.0.1:6443/"), server("10.0.0.1", 6443));
        assert_eq!(Server::parse("[fd00::1]:443"), server("fd00::1", 443));
        assert_eq!(Server::parse("api"), server("api", 6443));
        assert_eq!(Server::parse("https://a/b"), None);
    }
}
