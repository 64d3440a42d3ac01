//! Where objects lie in the store: `/GROUP_or_core/RESOURCE/[NAMESPACE/]NAME` by the storage resource, so that all
//! versions of a kind share one place. Pure.

use sampan_api::Kind;
use sampan_store::Key;

/// The prefix of all objects of a kind, or of those in one namespace. Ends with `/`.
pub fn prefix(kind: &Kind, namespace: &str) -> String {
    let (group, resource) = &kind.storage_resource;
    let group = if group.is_empty() { "core" } else { group };
    if kind.namespaced() && !namespace.is_empty() {
        format!("/{group}/{resource}/{namespace}/")
    } else {
        format!("/{group}/{resource}/")
    }
}

pub fn key(kind: &Kind, namespace: &str, name: &str) -> Key {
    (prefix(kind, namespace) + name).into()
}

pub fn namespace_key(namespace: &str) -> Key {
    format!("/core/namespaces/{namespace}").into()
}

pub fn lease_key(namespace: &str, name: &str) -> Key {
    format!("/coordination.k8s.io/leases/{namespace}/{name}").into()
}

/// The namespace and name a key of `kind` stands for.
pub fn parts<'a>(kind: &Kind, key: &'a str) -> (&'a str, &'a str) {
    let mut parts = key.rsplitn(3, '/');
    let name = parts.next().unwrap_or_default();
    let namespace = if kind.namespaced() { parts.next().unwrap_or_default() } else { "" };
    (namespace, name)
}
