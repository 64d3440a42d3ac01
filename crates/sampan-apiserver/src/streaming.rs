//! Requests that are carried on: to a node's own API (exec, attach, port-forward, logs, nodes/proxy) and to addresses of
//! the pod network (pods/proxy, services/proxy). Authorized before they come here.
//!
//! After an upgrade the bytes are copied both ways and not looked at: the node speaks every protocol clients do. Answers are
//! streamed chunk by chunk; when the client goes, the connection to the node goes.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyDataStream, BodyExt, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use sampan_api::{Failure, Reason};
use sampan_base::{Clock, task};
use sampan_wire::pki::{self, Identity};
use sampan_wire::{dial, tls};
use tokio::net::TcpStream;

use crate::body::{self, RequestBody, ResponseBody};
use crate::hooks::{Node, Streaming};

/// How long a node or pod may take to accept a connection.
const DIAL: Duration = Duration::from_secs(10);
/// What is read of a node's error message.
const MESSAGE: usize = 50_000;

/// Means something between two neighbours only (RFC 9110, 7.6.1).
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "proxy-authenticate",
    "proxy-authorization",
    "http2-settings",
];
/// The caller's credentials: the next hop trusts the API server, not him.
const CREDENTIALS: &[&str] = &["authorization", "cookie"];
const CREDENTIAL_PREFIXES: &[&str] = &["impersonate-", "x-remote-"];

/// Carries requests on.
pub struct Nodes {
    node: Arc<ClientConfig>,
    pod: Arc<ClientConfig>,
    clock: Clock,
}

impl Nodes {
    /// `ca_pems` are the authorities of the nodes' certificates, `identity` what this server shows to nodes.
    pub fn new(ca_pems: &[&str], identity: &Identity, clock: Clock) -> Result<Self, pki::Error> {
        let node = tls::client_config(ca_pems, Some(identity), tls::Http::One)?;
        Ok(Self { node, pod: tls::unverified_client_config()?, clock })
    }

    async fn dial(
        &self,
        host: &str,
        port: u16,
        config: Option<&Arc<ClientConfig>>,
    ) -> Result<SendRequest<RequestBody>, Failure> {
        let connect = async {
            let sender = match config {
                Some(config) => dial::http1(dial::tls(host, port, host, config.clone()).await?).await,
                None => {
                    let tcp = TcpStream::connect((host, port)).await?;
                    tcp.set_nodelay(true)?;
                    dial::http1(tcp).await
                }
            };
            sender.map_err(std::io::Error::other)
        };
        match self.clock.timeout(DIAL, connect).await {
            Some(Ok(sender)) => Ok(sender),
            Some(Err(error)) => Err(unreachable(format!("dial tcp {host}:{port}: {error}"))),
            None => Err(unreachable(format!("dial tcp {host}:{port}: i/o timeout"))),
        }
    }

    /// Sends the request and, where the answer says so, joins both connections.
    async fn forward(
        &self,
        mut sender: SendRequest<RequestBody>,
        authority: &str,
        mut request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, Failure> {
        let upgrade = request.headers().get(header::UPGRADE).cloned();
        let client = upgrade.is_some().then(|| hyper::upgrade::on(&mut request));
        *request.version_mut() = Version::HTTP_11;
        let headers = request.headers_mut();
        strip(headers, CREDENTIALS);
        let prefixed = |name: &HeaderName| CREDENTIAL_PREFIXES.iter().any(|prefix| name.as_str().starts_with(prefix));
        let secret: Vec<HeaderName> = headers.keys().filter(|name| prefixed(name)).cloned().collect();
        for name in secret {
            headers.remove(name);
        }
        strip_hops(headers);
        if let Some(upgrade) = upgrade {
            headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            headers.insert(header::UPGRADE, upgrade);
        }
        headers.insert(header::HOST, HeaderValue::from_str(authority).map_err(Failure::internal)?);
        let mut response = sender.send_request(request).await.map_err(|error| unreachable(error.to_string()))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let client = client.ok_or_else(|| unreachable("the node switched protocols unasked".into()))?;
            join(client, hyper::upgrade::on(&mut response));
        } else {
            strip_hops(response.headers_mut());
        }
        Ok(response)
    }
}

/// `error dialing backend: …`, without a reason, as clients know it.
fn unreachable(why: String) -> Failure {
    let mut failure = Failure::new(Reason::Unknown, format!("error dialing backend: {why}"));
    failure.code = 500;
    failure
}

fn strip(headers: &mut HeaderMap, names: &[&str]) {
    for name in names {
        headers.remove(*name);
    }
}

fn strip_hops(headers: &mut HeaderMap) {
    // `Connection` may name more of them.
    let named: Vec<String> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|name| name.trim().to_ascii_lowercase())
        .collect();
    for name in named {
        headers.remove(name);
    }
    strip(headers, HOP_BY_HOP);
}

/// Copies both ways as soon as both sides have switched.
fn join(client: hyper::upgrade::OnUpgrade, node: hyper::upgrade::OnUpgrade) {
    task::spawn("stream to a node", async move {
        let outcome = async {
            let (client, node) = futures::try_join!(client, node).map_err(std::io::Error::other)?;
            tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut TokioIo::new(node)).await
        };
        if let Err(error) = outcome.await {
            tracing::debug!(%error, "a stream to a node broke");
        }
    });
}

/// Marks an answer that comes from elsewhere: its length and encoding are not this server's, and it must not wait for a
/// compressor to fill up.
#[derive(Clone, Copy, Debug)]
pub struct CarriedOn;

fn streamed(mut response: Response<Incoming>) -> Response<ResponseBody> {
    response.extensions_mut().insert(CarriedOn);
    response.map(|incoming| {
        if http_body::Body::is_end_stream(&incoming) {
            return body::empty();
        }
        body::stream(BodyDataStream::new(incoming).map(|chunk| chunk.map(body::Chunk::from).map_err(Into::into)))
    })
}

/// Logs are answered with a `Status` when the node refuses them (`registry/generic/rest`, response checker).
async fn checked(response: Response<Incoming>) -> Result<Response<ResponseBody>, Failure> {
    let code = response.status();
    if code.is_success() {
        return Ok(streamed(response));
    }
    let text =
        Limited::new(response.into_body(), MESSAGE).collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Err(match code {
        StatusCode::BAD_REQUEST => Failure::bad_request(text),
        StatusCode::NOT_FOUND => {
            Failure::new(Reason::NotFound, format!("the server could not find the requested resource: {text}"))
        }
        StatusCode::INTERNAL_SERVER_ERROR => Failure::internal(text),
        code => {
            let mut failure = Failure::new(Reason::Unknown, text);
            failure.code = code.as_u16();
            failure
        }
    })
}

#[async_trait]
impl Streaming for Nodes {
    async fn connect(&self, node: &Node, request: Request<RequestBody>) -> Result<Response<ResponseBody>, Failure> {
        let logs = request.uri().path().starts_with("/containerLogs/");
        let sender = self.dial(&node.host, node.port, Some(&self.node)).await?;
        let response = self.forward(sender, &authority(&node.host, node.port), request).await?;
        if logs { checked(response).await } else { Ok(streamed(response)) }
    }

    async fn proxy(
        &self,
        address: &str,
        tls: bool,
        request: Request<RequestBody>,
    ) -> Result<Response<ResponseBody>, Failure> {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, if tls { "443" } else { "80" }));
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let port = port.parse().map_err(|_| Failure::bad_request(format!("invalid port {port:?}")))?;
        let sender = self.dial(host, port, tls.then_some(&self.pod)).await?;
        Ok(streamed(self.forward(sender, &authority(host, port), request).await?))
    }
}

fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body_util::Full;
    use hyper::service::service_fn;
    use sampan_base::Dice;
    use sampan_wire::pki::{Ca, LEAF_LIFETIME, Subject, Usage};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;

    use super::*;
    use crate::body::BoxError;

    struct Fixture {
        nodes: Arc<Nodes>,
        node: Node,
        /// Feeds the followed log; closed when the node sees its reader go.
        log: mpsc::Sender<Bytes>,
    }

    /// A node that answers `/containerLogs/…/follow` with what it is fed, others with an error, and upgrades to an echo.
    async fn answer(
        mut request: Request<Incoming>,
        log: Arc<tokio::sync::Mutex<Option<mpsc::Receiver<Bytes>>>>,
    ) -> Response<ResponseBody> {
        let headers = request.headers();
        assert!(!headers.contains_key(header::AUTHORIZATION) && !headers.contains_key("impersonate-user"));
        let mut response = Response::new(body::full("plain"));
        match request.uri().path() {
            "/containerLogs/follow" => {
                let feed = log.lock().await.take().expect("once");
                let feed = futures::stream::unfold(feed, |mut feed| async move {
                    let next = feed.recv().await?;
                    Some((Ok::<_, BoxError>(body::Chunk::from(next)), feed))
                });
                *response.body_mut() = body::stream(feed);
            }
            "/containerLogs/missing" => {
                *response.status_mut() = StatusCode::BAD_REQUEST;
                *response.body_mut() = body::full("container is waiting");
            }
            "/exec" => {
                assert_eq!(headers[header::UPGRADE], "echo");
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("echo"));
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
                let upgrade = hyper::upgrade::on(&mut request);
                task::spawn("echo", async move {
                    let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.expect("upgraded")));
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
            _ => {}
        }
        response
    }

    async fn fixture() -> Fixture {
        let (clock, dice) = (Clock::system(), Dice::system());
        let (ca, _) = Ca::generate("test", LEAF_LIFETIME, &clock, &dice).expect("an authority");
        let issue =
            |usage: &Usage| ca.issue(&Subject::new("x", &[]), usage, LEAF_LIFETIME, &clock, &dice).expect("issued");
        let serving = issue(&Usage::Server { dns: vec![], ips: vec![[127, 0, 0, 1].into()] });
        let config = tls::server_config(&serving, &[ca.certificate_pem()]).expect("a configuration");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (log, feed) = mpsc::channel(1);
        let feed = Arc::new(tokio::sync::Mutex::new(Some(feed)));
        task::spawn("test node", async move {
            let acceptor = tokio_rustls::TlsAcceptor::from(config);
            while let Ok((tcp, _)) = listener.accept().await {
                let (acceptor, feed) = (acceptor.clone(), feed.clone());
                task::spawn("test node", async move {
                    let stream = acceptor.accept(tcp).await.expect("a handshake");
                    assert!(
                        tls::peer(stream.get_ref().1, &Clock::system()).is_some(),
                        "the API server shows who it is"
                    );
                    let service = service_fn(move |request| {
                        let feed = feed.clone();
                        async move { Ok::<_, Infallible>(answer(request, feed).await) }
                    });
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .with_upgrades()
                        .await;
                });
            }
        });
        let nodes = Nodes::new(&[ca.certificate_pem()], &issue(&Usage::Client), clock).expect("nodes");
        Fixture { nodes: Arc::new(nodes), node: Node { name: "n1".into(), host: "127.0.0.1".into(), port }, log }
    }

    fn get(path: &str) -> Request<RequestBody> {
        Request::get(path)
            .header(header::AUTHORIZATION, "Bearer secret")
            .header("impersonate-user", "alice")
            .body(body::request(Bytes::new()))
            .expect("a request")
    }

    #[tokio::test]
    async fn logs_are_streamed_and_end_with_the_reader() {
        let Fixture { nodes, node, log } = fixture().await;
        let response = nodes.connect(&node, get("/containerLogs/follow?follow=true")).await.expect("logs");
        let mut body = response.into_body();
        for line in ["one\n", "two\n"] {
            log.send(line.into()).await.expect("the node is there");
            let frame = body.frame().await.expect("a frame").expect("data");
            assert_eq!(frame.into_data().expect("data").into_bytes(), line);
        }
        drop(body);
        // The node notices when it writes to a reader that is gone.
        while log.send("more\n".into()).await.is_ok() {}
    }

    #[tokio::test]
    async fn a_nodes_refusal_becomes_a_status() {
        let Fixture { nodes, node, .. } = fixture().await;
        let refused = nodes.connect(&node, get("/containerLogs/missing")).await.expect_err("refused");
        assert_eq!((refused.code, refused.message.as_str()), (400, "container is waiting"));
        let gone = Node { port: 1, ..node };
        let failure = nodes.connect(&gone, get("/exec")).await.expect_err("unreachable");
        assert!(failure.code == 500 && failure.message.starts_with("error dialing backend: dial tcp 127.0.0.1:1"));
    }

    #[tokio::test]
    async fn upgrades_are_joined() {
        let Fixture { nodes, node, .. } = fixture().await;
        // A client of a server whose only handler is the one under test.
        let (near, far) = tokio::io::duplex(4096);
        let service = service_fn(move |request: Request<Incoming>| {
            let (nodes, node) = (nodes.clone(), node.clone());
            let request = request.map(|body| body.map_err(Into::into).boxed());
            async move { Ok::<_, Infallible>(nodes.connect(&node, request).await.expect("an answer")) }
        });
        task::spawn("test server", async move {
            let server = hyper::server::conn::http1::Builder::new();
            let _ = server.serve_connection(TokioIo::new(far), service).with_upgrades().await;
        });
        let mut sender = dial::http1::<_, Full<Bytes>>(near).await.expect("a connection");
        let request = Request::get("/exec")
            .header(header::CONNECTION, "Upgrade")
            .header(header::UPGRADE, "echo")
            .body(Full::new(Bytes::new()))
            .expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
        let mut io = TokioIo::new(hyper::upgrade::on(response).await.expect("upgraded"));
        io.write_all(b"hello").await.expect("written");
        let mut echo = [0; 5];
        io.read_exact(&mut echo).await.expect("read");
        assert_eq!(&echo, b"hello");
    }
}
