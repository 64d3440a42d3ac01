//! The contract of admission: what looks at, changes or refuses a write after it was authorized and before it is
//! validated and stored. One file per plug-in below this module.

pub mod default_tolerations;
pub mod node_restriction;
pub mod priority;
pub mod service_account;
pub mod storage;
pub mod taint_nodes;

use std::sync::Arc;

use async_trait::async_trait;
use sampan_api::{Failure, Kind};
use sampan_base::{Clock, Dice};
use serde_json::{Map, Value};

use crate::auth::escalation::Escalation;
use crate::auth::rbac::Rbac;
use crate::auth::{Authorizer, User};
use crate::lookup::Lookup;

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

impl Request<'_> {
    /// Whether it is a write of the resource itself, not of a subresource.
    pub fn is_for(&self, group: &str, resource: &str) -> bool {
        self.subresource.is_empty() && self.kind.gvk.group == group && self.kind.resource == resource
    }
}

/// The refusal of a plug-in.
pub fn forbidden(request: &Request<'_>, why: impl std::fmt::Display) -> Failure {
    Failure::forbidden(&request.kind.gvk.group, &request.kind.resource, request.name, why)
}

/// The list at `key`, made when it is absent or not a list.
pub(crate) fn list_mut<'a>(map: &'a mut Map<String, Value>, key: &str) -> &'a mut Vec<Value> {
    let entry = map.entry(key).or_insert(Value::Null);
    if !entry.is_array() {
        *entry = Value::Array(Vec::new());
    }
    let Value::Array(list) = entry else { unreachable!("made a list above") };
    list
}

/// The plug-ins of every server, in upstream's order (`pkg/kubeapiserver/options/plugins.go`). NamespaceLifecycle is not
/// among them: the core checks the namespace in the transaction of the write.
pub fn plugins(
    lookup: &Arc<dyn Lookup>,
    rbac: &Arc<Rbac>,
    authorizer: &Arc<dyn Authorizer>,
    clock: &Clock,
    dice: &Dice,
) -> Vec<Arc<dyn Plugin>> {
    let lookup = || lookup.clone();
    vec![
        Arc::new(service_account::ServiceAccount { lookup: lookup(), clock: clock.clone(), dice: dice.clone() }),
        Arc::new(node_restriction::NodeRestriction { lookup: lookup() }),
        Arc::new(taint_nodes::TaintNodesByCondition),
        Arc::new(priority::Priority { lookup: lookup() }),
        Arc::new(default_tolerations::DefaultTolerationSeconds),
        Arc::new(storage::DefaultStorageClass { lookup: lookup() }),
        Arc::new(storage::StorageObjectInUseProtection),
        Arc::new(Escalation { rbac: rbac.clone(), authorizer: authorizer.clone() }),
    ]
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

#[cfg(test)]
pub(crate) mod testing {
    use sampan_api::{Gvk, Scope};

    use super::*;

    /// A kind with nothing but its names.
    pub fn kind(group: &str, version: &str, resource: &str, namespaced: bool) -> Arc<Kind> {
        let gvk = Gvk { group: group.into(), version: version.into(), kind: resource.into() };
        Arc::new(Kind {
            gvk: gvk.clone(),
            resource: resource.into(),
            singular: String::new(),
            list_kind: String::new(),
            scope: if namespaced { Scope::Namespaced } else { Scope::Cluster },
            short_names: Vec::new(),
            categories: Vec::new(),
            verbs: Vec::new(),
            subresources: Vec::new(),
            schema: Arc::default(),
            root: sampan_api::schema::TypeId(0),
            storage: gvk,
            storage_resource: (group.into(), resource.into()),
            columns: Vec::new(),
            selectable_fields: Vec::new(),
            inert: false,
            has_generation: false,
            has_status: false,
            virtual_kind: false,
        })
    }

    pub fn request<'a>(
        kind: &'a Arc<Kind>,
        user: &'a User,
        operation: Operation,
        namespace: &'a str,
        name: &'a str,
    ) -> Request<'a> {
        Request {
            operation,
            kind,
            subresource: "",
            namespace,
            name,
            user,
            object: Value::Null,
            old: &Value::Null,
            options: Value::Null,
            dry_run: false,
            warnings: Vec::new(),
        }
    }
}
