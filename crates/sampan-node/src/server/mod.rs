//! The node's own HTTPS API, which the API server calls for `logs`, `exec`, `attach` and `port-forward` and metrics are
//! read from: the paths and parameters of a kubelet's (`pkg/kubelet/server/server.go`).
//!
//! Nobody gets past the door without a certificate of the cluster that names one of the configured users; `/healthz` alone
//! is open to every certificate.

mod containers;
mod query;
mod stats;
mod streams;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use k8s_openapi::api::core::v1::Pod;
use sampan_base::task;
use sampan_wire::pki::Subject;
use sampan_wire::tls;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::agent::Pods;
use crate::config::NodeError;
use crate::node::Node;

pub type Body = BoxBody<Bytes, Infallible>;

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADER: Duration = Duration::from_secs(30);
/// When no connection can be accepted (out of descriptors): wait instead of spinning.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What requests are answered from.
#[derive(Clone)]
pub struct Server {
    pub node: Arc<Node>,
    pub pods: Pods,
    samples: Arc<stats::Samples>,
}

/// A refusal, as text: the API server passes it on to the caller.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
}

impl Refusal {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    fn response(self) -> Response<Body> {
        text(self.status, self.message)
    }
}

pub fn text(status: StatusCode, message: impl Into<Bytes>) -> Response<Body> {
    with_type(status, "text/plain; charset=utf-8", message)
}

fn with_type(status: StatusCode, kind: &'static str, message: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(message.into()).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

pub async fn listen(address: SocketAddr) -> Result<TcpListener, NodeError> {
    TcpListener::bind(address).await.map_err(|source| NodeError::Listen { address, source })
}

/// Serves until the task is dropped.
pub async fn serve(node: Arc<Node>, pods: Pods, listener: TcpListener, config: Arc<rustls::ServerConfig>) {
    let acceptor = TlsAcceptor::from(config);
    let server = Server { node, pods, samples: Arc::default() };
    let clock = server.node.parts.clock.clone();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                task::spawn("node API connection", connection(server.clone(), stream, acceptor.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                clock.sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(server: Server, stream: TcpStream, acceptor: TlsAcceptor) {
    // Terminals send single characters.
    let _ = stream.set_nodelay(true);
    let clock = server.node.parts.clock.clone();
    let stream = match clock.timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Some(Ok(stream)) => stream,
        Some(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        None => return,
    };
    let peer = tls::peer(stream.get_ref().1, &clock);
    let service = service_fn(move |request: Request<Incoming>| {
        let (server, peer) = (server.clone(), peer.clone());
        async move { Ok::<_, Infallible>(server.answer(peer, request).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER);
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "connection ended");
    }
}

impl Server {
    async fn answer(&self, peer: Option<Subject>, request: Request<Incoming>) -> Response<Body> {
        let path = request.uri().path().to_owned();
        match self.authorize(peer.as_ref(), &path) {
            Ok(()) => {}
            Err(refusal) => return refusal.response(),
        }
        let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
        let answer = match (request.method(), parts.as_slice()) {
            (&Method::GET, ["healthz"]) => Ok(text(StatusCode::OK, "ok")),
            (&Method::GET, ["pods"]) => Ok(self.pod_list()),
            (&Method::GET, ["containerLogs", namespace, pod, container]) => {
                containers::logs(self, namespace, pod, container, request.uri().query()).await
            }
            (&Method::GET | &Method::POST, ["exec", namespace, pod, container]) => {
                let (namespace, pod, container) = (*namespace, *pod, *container);
                streams::exec(self, namespace, pod, container, request).await
            }
            (&Method::GET | &Method::POST, ["attach", namespace, pod, container]) => {
                let (namespace, pod, container) = (*namespace, *pod, *container);
                streams::attach(self, namespace, pod, container, request).await
            }
            (&Method::GET | &Method::POST, ["portForward", namespace, pod]) => {
                let (namespace, pod) = (*namespace, *pod);
                streams::port_forward(self, namespace, pod, request).await
            }
            (&Method::GET, ["stats", "summary"]) => Ok(stats::summary(self).await),
            (&Method::GET, ["metrics"]) => Ok(stats::metrics(self)),
            (&Method::GET, ["metrics", "resource"]) => Ok(stats::resource_metrics(self).await),
            _ => Err(Refusal::not_found("404 page not found\n")),
        };
        answer.unwrap_or_else(Refusal::response)
    }

    /// Only those the configuration names, by user or by group.
    fn authorize(&self, peer: Option<&Subject>, path: &str) -> Result<(), Refusal> {
        let Some(peer) = peer else { return Err(Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized\n")) };
        let allowed = &self.node.config.api_users;
        if path == "/healthz" || allowed.contains(&peer.cn) || peer.orgs.iter().any(|group| allowed.contains(group)) {
            return Ok(());
        }
        Err(Refusal::new(
            StatusCode::FORBIDDEN,
            format!("Forbidden (user={}, resource=nodes, subresource=proxy)\n", peer.cn),
        ))
    }

    fn pod_list(&self) -> Response<Body> {
        let pods: Vec<Pod> = self
            .pods
            .all()
            .into_iter()
            .map(|one| Pod { status: Some((*one.status).clone()), ..(*one.pod).clone() })
            .collect();
        let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods});
        with_type(StatusCode::OK, "application/json", list.to_string())
    }
}

#[cfg(test)]
mod tests;
