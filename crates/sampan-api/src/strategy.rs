//! What upstream writes by hand for a kind beyond its schema: defaults that depend on other fields, what a create or an
//! update resets, validation across fields, warnings. One small file a kind in this module; most kinds need none.
//!
//! All functions are pure. The generic write path calls them in this order: `default` (after the schema's defaults),
//! `prepare_create` or `prepare_update`, `canonicalize`, `validate_create` or `validate_update`, `warnings`.

use serde_json::Value;

use crate::error::FieldErrors;

mod access;
pub mod at;
mod batch;
mod config;
mod endpoints;
mod network;
mod node;
pub mod pod;
mod policy;
mod service;
mod set;
mod volume;
mod workload;

/// The hooks of one kind. Objects are in the kind's storage version.
#[derive(Clone, Copy)]
pub struct Strategy {
    /// Defaults that the table of facts does not declare (upstream's `defaults.go`). Idempotent.
    pub default: fn(&mut Value),
    /// Drops what a client may not set on create (status).
    pub prepare_create: fn(&mut Value),
    /// Drops what a client may not change through the main resource. The generic path has already kept `status`.
    pub prepare_update: fn(new: &mut Value, old: &Value),
    pub validate_create: fn(&Value) -> FieldErrors,
    pub validate_update: fn(new: &Value, old: &Value) -> FieldErrors,
    /// `subresource` is `status` or a kind's own (`resize`, `ephemeralcontainers`).
    pub validate_subresource: fn(subresource: &str, new: &Value, old: &Value) -> FieldErrors,
    /// Texts for `Warning` headers.
    pub warnings: fn(new: &Value, old: Option<&Value>) -> Vec<String>,
    /// How the object's name is checked.
    pub name: NameRule,
    /// A `PUT` to a name that does not exist creates it.
    pub create_on_update: bool,
    /// An update without `resourceVersion` is accepted.
    pub unconditional_update: bool,
    /// Seconds before a graceful deletion ends by itself, from the object and what the client asked for; `None`: the
    /// kind knows no grace, delete at once. (Pods.)
    pub grace: Option<fn(&Value, Option<i64>) -> i64>,
}

/// `k8s.io/apimachinery/pkg/api/validation`: which characters a name may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// RFC 1123 subdomain, 253 characters.
    Subdomain,
    /// RFC 1123 label, 63 characters.
    Label,
    /// RFC 1035 label (Services).
    Label1035,
    /// A path segment: not `.`, `..`, no `/` or `%` (RBAC).
    PathSegment,
}

fn nothing(_: &mut Value) {}
fn nothing_changed(_: &mut Value, _: &Value) {}
fn accept(_: &Value) -> FieldErrors {
    FieldErrors::default()
}
fn accept_change(_: &Value, _: &Value) -> FieldErrors {
    FieldErrors::default()
}
fn accept_subresource(_: &str, _: &Value, _: &Value) -> FieldErrors {
    FieldErrors::default()
}
fn silent(_: &Value, _: Option<&Value>) -> Vec<String> {
    Vec::new()
}

/// What a kind without rules of its own does.
pub const GENERIC: Strategy = Strategy {
    default: nothing,
    prepare_create: nothing,
    prepare_update: nothing_changed,
    validate_create: accept,
    validate_update: accept_change,
    validate_subresource: accept_subresource,
    warnings: silent,
    name: NameRule::Subdomain,
    create_on_update: false,
    unconditional_update: true,
    grace: None,
};

/// What a kind without rules of its own does when its status is not the client's to set.
const PLAIN: Strategy = Strategy { prepare_create: drop_status, ..GENERIC };

/// Events have no status, may be made by an update, and are written often without a resourceVersion.
const EVENT: Strategy = Strategy { create_on_update: true, ..GENERIC };

fn drop_status(object: &mut Value) {
    if let Some(object) = object.as_object_mut() {
        object.remove("status");
    }
}

/// The strategy of a built-in kind; a plain one for all others.
pub fn of(group: &str, kind: &str) -> &'static Strategy {
    match (group, kind) {
        ("", "ConfigMap") => &config::CONFIG_MAP,
        ("", "Endpoints") => &endpoints::ENDPOINTS,
        ("", "Event") => &EVENT,
        ("", "Namespace") => &config::NAMESPACE,
        ("", "Node") => &node::STRATEGY,
        ("", "PersistentVolume") => &volume::VOLUME,
        ("", "PersistentVolumeClaim") => &volume::CLAIM,
        ("", "Pod") => &pod::STRATEGY,
        ("", "PodTemplate") => &pod::TEMPLATE,
        ("", "ReplicationController") => &workload::REPLICATION_CONTROLLER,
        ("", "Secret") => &config::SECRET,
        ("", "Service") => &service::STRATEGY,
        ("apps", "DaemonSet") => &workload::DAEMON_SET,
        ("apps", "Deployment") => &workload::DEPLOYMENT,
        ("apps", "ReplicaSet") => &workload::REPLICA_SET,
        ("apps", "StatefulSet") => &workload::STATEFUL_SET,
        ("autoscaling", "HorizontalPodAutoscaler") => &policy::AUTOSCALER,
        ("batch", "CronJob") => &batch::CRON_JOB,
        ("batch", "Job") => &batch::JOB,
        ("coordination.k8s.io", "Lease") => &policy::LEASE,
        ("discovery.k8s.io", "EndpointSlice") => &endpoints::SLICE,
        ("networking.k8s.io", "Ingress") => &network::INGRESS,
        ("networking.k8s.io", "IngressClass") => &network::INGRESS_CLASS,
        ("networking.k8s.io", "NetworkPolicy") => &network::POLICY,
        ("policy", "PodDisruptionBudget") => &policy::BUDGET,
        ("rbac.authorization.k8s.io", "ClusterRole") => &access::CLUSTER_ROLE,
        ("rbac.authorization.k8s.io", "ClusterRoleBinding") => &access::CLUSTER_BINDING,
        ("rbac.authorization.k8s.io", "Role") => &access::ROLE,
        ("rbac.authorization.k8s.io", "RoleBinding") => &access::BINDING,
        ("scheduling.k8s.io", "PriorityClass") => &policy::PRIORITY_CLASS,
        ("storage.k8s.io", "StorageClass") => &volume::CLASS,
        _ => &PLAIN,
    }
}
