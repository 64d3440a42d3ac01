//! What the controllers keep of objects: decoded from JSON, without building the rest.

use bytes::Bytes;
use jiff::Timestamp;
use sampan_api::labels::{Labels, Selector};
use sampan_api::object::{Meta, nullable};
use sampan_client::Error;
use sampan_client::api::decode;
use sampan_client::informer::View;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// Implements [`View`] for types that decode as they stand.
macro_rules! plain_views {
    ($($name:ty),*) => {
        $(impl View for $name {
            fn decode(object: &Bytes) -> Result<Self, Error> {
                decode(object)
            }
        })*
    };
}

plain_views!(Pod, ReplicaSet, Deployment, Node, Namespace, Lease);

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pod {
    pub metadata: Meta,
    pub spec: PodSpec,
    pub status: PodStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: String,
    pub hostname: String,
    pub subdomain: String,
    pub host_network: bool,
    #[serde(deserialize_with = "nullable")]
    pub containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    pub init_containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    pub tolerations: Vec<Toleration>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub restart_policy: String,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ContainerPort>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: String,
    pub container_port: u16,
    pub protocol: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    pub key: String,
    pub operator: String,
    pub value: String,
    pub effect: String,
    pub toleration_seconds: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: String,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<Condition>,
    #[serde(rename = "podIPs", deserialize_with = "nullable")]
    pub pod_ips: Vec<PodIp>,
    #[serde(deserialize_with = "nullable")]
    pub container_statuses: Vec<ContainerStatus>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: String,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub restart_count: i32,
}

/// A condition of any object; `lastUpdateTime` is a Deployment's.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
    pub reason: String,
    pub message: String,
    pub last_transition_time: Option<Timestamp>,
    pub last_update_time: Option<Timestamp>,
}

impl Pod {
    pub fn terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Succeeded or Failed.
    pub fn finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Neither finished nor terminating.
    pub fn active(&self) -> bool {
        !self.finished() && !self.terminating()
    }

    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.kind == kind)
    }

    pub fn ready(&self) -> bool {
        self.condition("Ready").is_some_and(|condition| condition.status == "True")
    }

    pub fn ready_since(&self) -> Option<Timestamp> {
        self.condition("Ready").filter(|condition| condition.status == "True")?.last_transition_time
    }
}

/// A pod template: its text for creating from, a digest for comparing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Template {
    pub text: String,
    pub labels: Labels,
    /// Of the template without its `pod-template-hash` label.
    pub digest: [u8; 32],
}

pub const TEMPLATE_HASH: &str = "pod-template-hash";

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = Box::<RawValue>::deserialize(deserializer)?;
        let mut tree: Value = serde_json::from_str(raw.get()).map_err(serde::de::Error::custom)?;
        let text = raw.get().to_owned();
        let mut labels = Labels::new();
        if let Some(map) = tree.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            let plain = map.iter().filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())));
            labels = plain.collect();
            map.remove(TEMPLATE_HASH);
        }
        // Maps of the tree are sorted, so its text is canonical.
        let digest = Sha256::digest(tree.to_string().as_bytes()).into();
        Ok(Self { text, labels, digest })
    }
}

impl Template {
    /// The template as a tree.
    pub fn tree(&self) -> Value {
        // The text was JSON when it was decoded.
        serde_json::from_str(&self.text).unwrap_or_default()
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ReplicaSet {
    pub metadata: Meta,
    pub spec: ReplicaSetSpec,
    pub status: ReplicaSetStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetSpec {
    pub replicas: Option<i32>,
    pub min_ready_seconds: i32,
    pub selector: Option<WorkloadSelector>,
    pub template: Template,
}

/// The selector of a workload, compiled and as it was written.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub struct WorkloadSelector {
    pub compiled: Selector,
    pub written: Value,
}

impl TryFrom<Value> for WorkloadSelector {
    type Error = serde_json::Error;
    fn try_from(written: Value) -> Result<Self, Self::Error> {
        Ok(Self { compiled: Selector::deserialize(&written)?, written })
    }
}

impl WorkloadSelector {
    /// An empty selector would take every pod of the namespace: it selects nothing instead.
    pub fn matches(selector: Option<&Self>, labels: &Labels) -> bool {
        selector.is_some_and(|selector| !selector.compiled.is_empty() && selector.compiled.matches(labels))
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplicaSetStatus {
    pub replicas: i32,
    pub fully_labeled_replicas: i32,
    pub ready_replicas: i32,
    pub available_replicas: i32,
    pub terminating_replicas: Option<i32>,
    pub observed_generation: i64,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<Condition>,
}

impl ReplicaSet {
    pub fn replicas(&self) -> i32 {
        self.spec.replicas.unwrap_or(1)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Deployment {
    pub metadata: Meta,
    pub spec: DeploymentSpec,
    pub status: DeploymentStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentSpec {
    pub replicas: Option<i32>,
    pub min_ready_seconds: i32,
    pub selector: Option<WorkloadSelector>,
    pub template: Template,
    pub paused: bool,
    pub revision_history_limit: Option<i32>,
    pub progress_deadline_seconds: Option<i32>,
    pub strategy: Strategy,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Strategy {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(deserialize_with = "nullable")]
    pub rolling_update: RollingUpdate,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RollingUpdate {
    pub max_surge: Option<IntOrPercent>,
    pub max_unavailable: Option<IntOrPercent>,
}

/// `3` or `"25%"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Value")]
pub enum IntOrPercent {
    Int(i32),
    Percent(i32),
}

impl From<Value> for IntOrPercent {
    fn from(value: Value) -> Self {
        match &value {
            Value::String(text) => match text.strip_suffix('%') {
                Some(percent) => Self::Percent(percent.parse().unwrap_or(0)),
                None => Self::Int(text.parse().unwrap_or(0)),
            },
            other => Self::Int(other.as_i64().and_then(|number| i32::try_from(number).ok()).unwrap_or(0)),
        }
    }
}

impl IntOrPercent {
    /// The number meant of `total`, percentages rounded up or down.
    pub fn of(self, total: i32, round_up: bool) -> i32 {
        match self {
            Self::Int(number) => number,
            Self::Percent(percent) => {
                let product = i64::from(percent) * i64::from(total);
                let rounded =
                    if round_up { product.div_euclid(100) + i64::from(product % 100 != 0) } else { product / 100 };
                i32::try_from(rounded).unwrap_or(i32::MAX)
            }
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DeploymentStatus {
    pub observed_generation: i64,
    pub replicas: i32,
    pub updated_replicas: i32,
    pub ready_replicas: i32,
    pub available_replicas: i32,
    pub unavailable_replicas: i32,
    pub terminating_replicas: Option<i32>,
    pub collision_count: Option<i32>,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Node {
    pub metadata: Meta,
    pub spec: NodeSpec,
    pub status: NodeStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
    #[serde(rename = "podCIDRs", deserialize_with = "nullable")]
    pub pod_cidrs: Vec<String>,
    pub unschedulable: bool,
    #[serde(deserialize_with = "nullable")]
    pub taints: Vec<Taint>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
    pub time_added: Option<Timestamp>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<Condition>,
}

impl Node {
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.kind == kind)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Namespace {
    pub metadata: Meta,
    pub spec: NamespaceSpec,
    pub status: NamespaceStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NamespaceSpec {
    #[serde(deserialize_with = "nullable")]
    pub finalizers: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct NamespaceStatus {
    pub phase: String,
    #[serde(deserialize_with = "nullable")]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Lease {
    pub metadata: Meta,
    pub spec: LeaseSpec,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LeaseSpec {
    pub renew_time: Option<Timestamp>,
}

/// Only what every object has.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bare {
    pub metadata: Meta,
}

impl View for Bare {
    fn decode(object: &Bytes) -> Result<Self, Error> {
        decode::<sampan_api::object::Envelope>(object).map(|envelope| Self { metadata: envelope.metadata })
    }
}
