//! What is special about namespaces: nothing is created in one that is absent or ending, three can't be deleted, and
//! one ends only when its own list of finalizers is empty too (`plugin/namespace/lifecycle`, `registry/core/namespace`).

use sampan_api::error::Cause;
use sampan_api::{Failure, Kind, object};
use sampan_store::{Check, Expect, Txn};
use serde::Deserialize;
use serde_json::Value;

use crate::keys;
use crate::server::Call;

const IMMORTAL: [&str; 3] = ["default", "kube-public", "kube-system"];

pub fn is_namespace(kind: &Kind) -> bool {
    kind.gvk.group.is_empty() && kind.resource == "namespaces"
}

/// Checks the namespace a new object goes to, and lets the transaction fail if it changes meanwhile.
pub(crate) fn admit_create(call: &Call, kind: &Kind, namespace: &str, txn: &mut Txn) -> Result<(), Failure> {
    if !kind.namespaced() {
        return Ok(());
    }
    #[derive(Deserialize)]
    struct Slim {
        metadata: object::Meta,
    }
    let key = keys::namespace_key(namespace);
    let entry = call.server.config.store.get(&key);
    let entry = entry.ok_or_else(|| Failure::not_found("", "namespaces", namespace))?;
    let slim: Slim = serde_json::from_slice(&entry.value).map_err(Failure::internal)?;
    if slim.metadata.deletion_timestamp.is_some() {
        let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut failure = Failure::forbidden(&kind.gvk.group, &kind.resource, &call.info.name, why);
        failure.causes.push(Cause {
            reason: "NamespaceTerminating".into(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".into(),
        });
        return Err(failure);
    }
    txn.checks.push(Check { key, expect: Expect::Modified(entry.modified) });
    Ok(())
}

pub fn admit_delete(kind: &Kind, name: &str) -> Result<(), Failure> {
    if is_namespace(kind) && IMMORTAL.contains(&name) {
        return Err(Failure::forbidden("", "namespaces", name, "this namespace may not be deleted"));
    }
    Ok(())
}

/// Something still has to happen before the object may go.
pub fn has_finalizers(kind: &Kind, tree: &Value) -> bool {
    let any = |path: &[&str]| {
        object::lookup(tree, path).and_then(Value::as_array).is_some_and(|finalizers| !finalizers.is_empty())
    };
    any(&["metadata", "finalizers"]) || (is_namespace(kind) && any(&["spec", "finalizers"]))
}

/// Marks a namespace as ending beside its deletion time.
pub fn terminate(kind: &Kind, tree: &mut Value) {
    if is_namespace(kind) {
        object::child_mut(tree, "status").insert("phase".into(), "Terminating".into());
    }
}
