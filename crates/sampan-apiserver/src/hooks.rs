//! What the core of the API server leaves to others: streaming to nodes, computed resources and the audit log. Each is
//! a trait here, implemented elsewhere and handed in with the configuration.

use std::net::IpAddr;

use async_trait::async_trait;
use jiff::Timestamp;
use sampan_api::Failure;
use serde_json::Value;

use crate::auth::{Attributes, User};
use crate::body::{RequestBody, ResponseBody};

/// Where a node's own API answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    /// An IP address or a host name, from the addresses in the Node's status.
    pub host: String,
    pub port: u16,
}

/// Carries exec, attach, port-forward, logs and proxied requests to nodes.
#[async_trait]
pub trait Streaming: Send + Sync + 'static {
    /// The request's URI is the path and query of the node's API (`/exec/…`, `/containerLogs/…`). When the caller
    /// wants an upgrade, its connection is in the request's extensions ([`hyper::upgrade::on`]).
    async fn connect(
        &self,
        node: &Node,
        request: http::Request<RequestBody>,
    ) -> Result<http::Response<ResponseBody>, Failure>;

    /// The same to any address of the pod network: `pods/proxy` and `services/proxy`.
    async fn proxy(
        &self,
        address: &str,
        tls: bool,
        request: http::Request<RequestBody>,
    ) -> Result<http::Response<ResponseBody>, Failure> {
        let _ = (tls, request);
        Err(Failure::new(sampan_api::Reason::ServiceUnavailable, format!("nothing here can reach {address}")))
    }
}

/// A create that is answered by a computation.
pub struct Call<'a> {
    pub user: &'a User,
    pub namespace: &'a str,
    /// Of the parent object, for subresources.
    pub name: &'a str,
    /// The kind of the body: `TokenReview`, `TokenRequest`, …
    pub kind: &'a str,
    /// The object the subresource belongs to; `None` for resources without storage.
    pub parent: Option<&'a Value>,
    pub dry_run: bool,
}

/// A resource without storage (`tokenreviews`, `subjectaccessreviews`, …) or a subresource (`serviceaccounts/token`)
/// whose create computes its answer. The object is decoded and defaulted; the answer is encoded by the caller.
#[async_trait]
pub trait Computed: Send + Sync + 'static {
    async fn create(&self, call: Call<'_>, object: Value) -> Result<Value, Failure>;
}

/// When in the life of a request an audit event was made (`audit.k8s.io` stages).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    RequestReceived,
    ResponseStarted,
    ResponseComplete,
    Panic,
}

/// One audit event, of level Metadata.
#[derive(Debug)]
pub struct AuditEvent<'a> {
    pub id: &'a str,
    pub stage: Stage,
    /// Whom the credentials name; the user in `attributes` may be the one impersonated.
    pub authenticated: &'a User,
    pub impersonating: bool,
    pub attributes: &'a Attributes,
    /// Path and query as they came.
    pub uri: &'a str,
    pub source: Option<IpAddr>,
    pub user_agent: &'a str,
    /// HTTP status; 0 before there is one.
    pub code: u16,
    pub received: Timestamp,
    pub now: Timestamp,
    /// Why the authorizer allowed or refused; empty before it was asked.
    pub decision: &'a str,
}

/// Takes audit events. Must not block: a sink that cannot keep up drops and counts.
pub trait Audit: Send + Sync + 'static {
    fn record(&self, event: &AuditEvent<'_>);
}
