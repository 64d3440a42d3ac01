//! The one list of kinds that something in this build acts on. All others are inert: they are stored and served exactly,
//! and a write answers with a warning that nothing will happen.

/// Kinds with a controller, a node, an authorizer or the API server itself behind them; `*` is every kind of the group.
const ALIVE: &[(&str, &[&str])] = &[
    (
        "",
        &[
            "Binding",
            "ComponentStatus",
            "ConfigMap",
            "Endpoints",
            "Event",
            "Namespace",
            "Node",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "Pod",
            "Secret",
            "Service",
            "ServiceAccount",
        ],
    ),
    ("apps", &["Deployment", "ReplicaSet"]),
    ("discovery.k8s.io", &["EndpointSlice"]),
    ("events.k8s.io", &["*"]),
    ("coordination.k8s.io", &["*"]),
    ("rbac.authorization.k8s.io", &["*"]),
    ("authentication.k8s.io", &["*"]),
    ("authorization.k8s.io", &["*"]),
    ("storage.k8s.io", &["StorageClass"]),
];

pub fn is_inert(group: &str, kind: &str) -> bool {
    !ALIVE.iter().any(|(alive, kinds)| *alive == group && kinds.iter().any(|one| *one == "*" || *one == kind))
}

#[cfg(test)]
mod tests {
    use super::is_inert;

    #[test]
    fn only_listed_kinds_are_alive() {
        assert!(!is_inert("apps", "Deployment"));
        assert!(is_inert("apps", "StatefulSet"));
        assert!(!is_inert("rbac.authorization.k8s.io", "Role"));
        assert!(is_inert("batch", "Job"));
    }
}
