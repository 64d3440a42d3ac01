//! The server as its clients see it: requests against a store in memory, everything allowed.
//!
//! The suite of verbs runs over both transports, in process and over TLS.

mod concurrency;
mod subresources;
mod verbs;
mod watches;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use sampan_base::disk::MemoryDisk;
use sampan_base::{Clock, Dice, task};
use sampan_client::transport::Body;
use sampan_client::{Error, InProcess, Transport};
use sampan_store::{Config as StoreConfig, History, KeyRing, Store};
use sampan_wire::pki::{Ca, Subject, Usage};
use sampan_wire::tls::{self, Http};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::auth::authn::{Certified, Chain};
use crate::auth::{Attributes, Authorizer, Decision, MASTERS};
use crate::{Config, Local, Server, Version, listener, services};

struct AllowAll;

#[async_trait]
impl Authorizer for AllowAll {
    async fn authorize(&self, _: &Attributes) -> Decision {
        Decision::Allow { reason: String::new() }
    }
}

async fn server_with(history: History, change: impl FnOnce(&mut Config)) -> Arc<Server> {
    let (clock, dice) = (Clock::system(), Dice::seeded(1));
    let store = Store::open(StoreConfig {
        disk: Arc::new(MemoryDisk::default()),
        dir: "state".into(),
        clock: clock.clone(),
        dice: dice.clone(),
        keys: KeyRing::plain(),
        history,
    });
    let mut config = Config {
        store: store.await.expect("an empty store opens"),
        kinds: Arc::new(ArcSwap::new(sampan_api::kind::builtin())),
        authenticators: Chain(vec![Arc::new(Certified)]),
        authorizer: Arc::new(AllowAll),
        plugins: Vec::new(),
        computed: Default::default(),
        streaming: None,
        audit: None,
        pages: Vec::new(),
        writable: None,
        clock,
        dice,
        version: Version::default(),
        ranges: services::Ranges::default(),
        form_cache_bytes: 16 << 20,
    };
    change(&mut config);
    let server = Server::new(config);
    let api = Api::local(server.clone());
    for name in ["default", "other"] {
        let namespace = json!({"kind": "Namespace", "apiVersion": "v1", "metadata": {"name": name}});
        api.post("/api/v1/namespaces", &namespace).await.code(201);
    }
    server
}

async fn server() -> Arc<Server> {
    server_with(History::default(), |_| {}).await
}

/// A client of one server.
#[derive(Clone)]
struct Api(Arc<dyn Transport>);

impl Api {
    fn local(server: Arc<Server>) -> Self {
        Self(Arc::new(InProcess::new(Arc::new(Local(server)), "admin", &[MASTERS])))
    }

    async fn remote(server: Arc<Server>) -> Self {
        Self(Arc::new(remote(server).await))
    }

    async fn send(&self, request: Request<Bytes>) -> Answer {
        let what = format!("{} {}", request.method(), request.uri());
        let response = self.0.send(request).await.expect("a response");
        let (parts, body) = response.into_parts();
        let body: Vec<Bytes> = body.map(|chunk| chunk.expect("a chunk")).collect().await;
        Answer { what, code: parts.status.as_u16(), headers: parts.headers, bytes: body.concat().into() }
    }

    async fn with(&self, method: Method, uri: &str, headers: &[(&str, &str)], body: impl Into<Bytes>) -> Answer {
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        self.send(request.body(body.into()).expect("a request")).await
    }

    async fn get(&self, uri: &str) -> Answer {
        self.with(Method::GET, uri, &[], "").await
    }

    async fn post(&self, uri: &str, body: &Value) -> Answer {
        self.with(Method::POST, uri, &[("content-type", "application/json")], body.to_string()).await
    }

    async fn put(&self, uri: &str, body: &Value) -> Answer {
        self.with(Method::PUT, uri, &[("content-type", "application/json")], body.to_string()).await
    }

    async fn patch(&self, uri: &str, kind: &str, body: &Value) -> Answer {
        let media = format!("application/{kind}");
        self.with(Method::PATCH, uri, &[("content-type", &media)], body.to_string()).await
    }

    async fn delete(&self, uri: &str, body: &Value) -> Answer {
        self.with(Method::DELETE, uri, &[("content-type", "application/json")], body.to_string()).await
    }

    /// An open watch.
    async fn watch(&self, uri: &str) -> Frames {
        let request = Request::get(uri).body(Bytes::new()).expect("a request");
        let response = self.0.send(request).await.expect("a response");
        assert_eq!(response.status(), 200, "{uri}");
        Frames { body: response.into_body(), buffer: Vec::new() }
    }
}

struct Answer {
    what: String,
    code: u16,
    headers: http::HeaderMap,
    bytes: Bytes,
}

impl Answer {
    /// The answer as JSON, when it has this code.
    #[track_caller]
    fn code(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}: {}", self.what, String::from_utf8_lossy(&self.bytes));
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    /// The message of a `Status` with this code.
    #[track_caller]
    fn refused(self, code: u16) -> String {
        let status = self.code(code);
        assert_eq!(status["kind"], "Status", "{status}");
        assert_eq!(status["code"], code);
        status["message"].as_str().unwrap_or_default().to_owned()
    }
}

/// The JSON frames of a watch.
struct Frames {
    body: Body,
    buffer: Vec<u8>,
}

impl Frames {
    /// `ADDED name`, or the type alone for frames without a name. `None`: the watch has ended.
    async fn next_name(&mut self) -> Option<String> {
        let frame = self.next().await?;
        let name = frame["object"]["metadata"]["name"].as_str().unwrap_or_default();
        Some(format!("{} {name}", frame["type"].as_str().unwrap_or_default()).trim_end().to_owned())
    }

    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).expect("a frame is one line of JSON"));
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.body.next()).await;
            match chunk.expect("a frame in time") {
                Some(chunk) => self.buffer.extend_from_slice(&chunk.expect("a chunk")),
                None => return None,
            }
        }
    }
}

/// A listener for the server, and a client of it with a certificate.
async fn remote(server: Arc<Server>) -> Tls {
    let (clock, dice) = (Clock::system(), Dice::system());
    let day = Duration::from_secs(24 * 3600);
    let (ca, _) = Ca::generate("test", day, &clock, &dice).expect("a CA");
    let usage = Usage::Server { dns: vec!["localhost".into()], ips: Vec::new() };
    let serving = ca.issue(&Subject::new("server", &[]), &usage, day, &clock, &dice).expect("a certificate");
    let admin = ca.issue(&Subject::new("admin", &[MASTERS]), &Usage::Client, day, &clock, &dice);
    let admin = admin.expect("a certificate");
    let config = tls::server_config(&serving, &[ca.certificate_pem()]).expect("a TLS configuration");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a socket");
    let address = listener.local_addr().expect("an address");
    task::spawn("listener", listener::serve(listener, config, server));
    let client = tls::client_config(&[ca.certificate_pem()], Some(&admin), Http::One);
    Tls { address, config: client.expect("a TLS configuration") }
}

/// One connection a request: the least a TLS client can be.
struct Tls {
    address: std::net::SocketAddr,
    config: Arc<rustls::ClientConfig>,
}

impl Tls {
    async fn connect(&self) -> std::io::Result<TokioIo<TlsStream<TcpStream>>> {
        let stream = TcpStream::connect(self.address).await?;
        let name = "localhost".try_into().expect("a host name");
        Ok(TokioIo::new(TlsConnector::from(self.config.clone()).connect(name, stream).await?))
    }
}

#[async_trait]
impl Transport for Tls {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Transport(error.to_string());
        let stream = self.connect().await.map_err(|error| failed(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(stream).await.map_err(|error| failed(&error))?;
        task::spawn("test-connection", connection);
        let response = sender.send_request(request.map(Full::new)).await.map_err(|error| failed(&error))?;
        Ok(response.map(|body| {
            let stream =
                body.into_data_stream().map(|chunk| chunk.map_err(|error| Error::Transport(error.to_string())));
            Box::pin(stream) as Body
        }))
    }
}

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const PODS: &str = "/api/v1/namespaces/default/pods";

fn config_map(name: &str) -> Value {
    json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}, "data": {"a": "1"}})
}

fn pod(name: &str) -> Value {
    json!({
        "kind": "Pod", "apiVersion": "v1", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    })
}

fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(|item| item["metadata"]["name"].as_str()).collect()
}
