//! Who asks, for what, and may they: the contracts of authentication and authorization. Implementations stand in the
//! modules below.

use std::collections::BTreeMap;

use async_trait::async_trait;
use sampan_api::Failure;

/// An authenticated caller (`user.Info`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

pub const ANONYMOUS: &str = "system:anonymous";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const MASTERS: &str = "system:masters";

/// What the transport knows of the caller.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// A verified client certificate's common name and organisations, or an in-process identity.
    pub certified: Option<User>,
    pub address: Option<std::net::SocketAddr>,
}

/// Turns credentials into a user. `Ok(None)`: no credentials this authenticator knows; `Err`: they are there and wrong.
#[async_trait]
pub trait Authenticator: Send + Sync + 'static {
    async fn authenticate(&self, peer: &Peer, headers: &http::HeaderMap) -> Result<Option<User>, Failure>;
}

/// What a request asks for (`authorizer.Attributes`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    pub user: User,
    /// `get list watch create update patch delete deletecollection`, and kind-specific ones (`bind`, `impersonate`, …); the
    /// lower-case HTTP method for non-resource requests.
    pub verb: String,
    pub resource_request: bool,
    pub group: String,
    pub version: String,
    pub resource: String,
    pub subresource: String,
    pub namespace: String,
    pub name: String,
    /// Non-resource requests.
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow { reason: String },
    Deny { reason: String },
    NoOpinion { reason: String },
}

#[async_trait]
pub trait Authorizer: Send + Sync + 'static {
    async fn authorize(&self, attributes: &Attributes) -> Decision;
}
