//! One request, one streamed response: the seam below the client.

use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;

use crate::Error;

/// A response body: chunks as they come.
pub type Body = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// Sends requests to an API server. The URI holds path and query only.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Fails only when no response came; an HTTP error status is a response.
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Error>;
}

/// Who an in-process caller is: what a client certificate would say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub user: String,
    pub groups: Vec<String>,
}

/// What the API server offers to its own process: requests with an identity, entering where TLS does.
#[async_trait]
pub trait Entry: Send + Sync + 'static {
    async fn enter(&self, identity: Identity, request: http::Request<Bytes>) -> Result<http::Response<Body>, Error>;
}

/// The in-process transport: an entry with an identity.
pub struct InProcess {
    entry: Arc<dyn Entry>,
    identity: Identity,
}

impl InProcess {
    pub fn new(entry: Arc<dyn Entry>, user: &str, groups: &[&str]) -> Self {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Self { entry, identity: Identity { user: user.into(), groups } }
    }
}

#[async_trait]
impl Transport for InProcess {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Error> {
        self.entry.enter(self.identity.clone(), request).await
    }
}
