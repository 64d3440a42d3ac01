//! The contract of admission: what looks at, changes or refuses a write after it was authorized and before it is
//! validated and stored. One file per plug-in below this module.

use std::sync::Arc;

use async_trait::async_trait;
use sampan_api::{Failure, Kind};
use serde_json::Value;

use crate::auth::User;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Update,
    Delete,
    Connect,
}

/// One write on its way in.
pub struct Request<'a> {
    pub operation: Operation,
    pub kind: &'a Arc<Kind>,
    pub subresource: &'a str,
    pub namespace: &'a str,
    /// Empty for a create with `generateName`.
    pub name: &'a str,
    pub user: &'a User,
    /// The new object; plug-ins may change it in `mutate`. `Null` for deletes.
    pub object: Value,
    /// The stored object; `Null` for creates.
    pub old: &'a Value,
    /// Delete options, exec options, …
    pub options: Value,
    pub dry_run: bool,
    /// Sent back as `Warning` headers.
    pub warnings: Vec<String>,
}

/// Mutating plug-ins all run before the first validating one.
#[async_trait]
pub trait Plugin: Send + Sync + 'static {
    /// Upstream's name of the plug-in.
    fn name(&self) -> &'static str;
    async fn mutate(&self, _request: &mut Request<'_>) -> Result<(), Failure> {
        Ok(())
    }
    async fn validate(&self, _request: &Request<'_>) -> Result<(), Failure> {
        Ok(())
    }
}
