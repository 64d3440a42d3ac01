//! Callers in the same process: their requests enter where TLS does.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::BodyExt;
use sampan_client::transport::{Body, Entry, Identity};

use crate::auth::{Peer, User};
use crate::body;
use crate::server::Server;

/// A server as an entry for in-process clients.
pub struct Local(pub Arc<Server>);

#[async_trait]
impl Entry for Local {
    async fn enter(&self, identity: Identity, request: Request<Bytes>) -> Result<Response<Body>, sampan_client::Error> {
        let user = User { name: identity.user, groups: identity.groups, ..User::default() };
        let peer = Peer { certified: Some(user), address: None };
        let response = self.0.handle(peer, request.map(body::request)).await;
        Ok(response.map(|body| {
            let chunks = body.into_data_stream().map(|chunk| {
                chunk.map(body::Chunk::into_bytes).map_err(|error| sampan_client::Error::Transport(error.to_string()))
            });
            Box::pin(chunks) as Body
        }))
    }
}
