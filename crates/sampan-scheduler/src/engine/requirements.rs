//! Everything about a pod that decides where it may and should run. Pods whose requirements are equal form a class and
//! share the work of filtering and scoring.

use sampan_api::labels::{Labels, Requirement, Selector};
use serde::Deserialize;

use super::resources::Requests;
use crate::view::Taint;

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Requirements {
    pub namespace: String,
    pub labels: Labels,
    /// The UID of the controlling owner, or empty.
    pub owner: String,
    pub requests: Requests,
    /// Requests with upstream's floor for containers that name none: for scores only.
    pub scored_cpu: i64,
    pub scored_memory: i64,
    pub node_selector: Labels,
    /// One of the terms must hold; `None` asks for nothing, no term at all matches no node.
    pub node_affinity: Option<Vec<NodeTerm>>,
    pub preferred_nodes: Vec<Preferred>,
    pub tolerations: Vec<Toleration>,
    pub ports: Vec<HostPort>,
    pub images: Vec<String>,
    pub spread: Vec<SpreadConstraint>,
    pub pod_affinity: Vec<PodTerm>,
    pub pod_anti_affinity: Vec<PodTerm>,
    /// Anti-affinity has negative weights.
    pub preferred_pods: Vec<Weighted>,
}

impl Requirements {
    /// Whether a node's fitness depends on pods of other nodes.
    pub fn is_global(&self) -> bool {
        !(self.spread.is_empty()
            && self.pod_affinity.is_empty()
            && self.pod_anti_affinity.is_empty()
            && self.preferred_pods.is_empty())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct NodeTerm {
    pub expressions: Vec<Requirement>,
    /// Only `metadata.name` exists.
    pub fields: Vec<Requirement>,
}

impl NodeTerm {
    /// An empty term matches nothing.
    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        (!self.expressions.is_empty() || !self.fields.is_empty())
            && self.expressions.iter().all(|requirement| requirement.matches(labels))
            && self
                .fields
                .iter()
                .all(|requirement| requirement.key == "metadata.name" && requirement.matches_value(Some(name)))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Preferred {
    pub weight: i32,
    pub term: NodeTerm,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Toleration {
    pub key: String,
    pub operator: String,
    pub value: String,
    pub effect: String,
    pub toleration_seconds: Option<i64>,
}

impl Toleration {
    pub fn tolerates(&self, taint: &Taint) -> bool {
        if !self.effect.is_empty() && self.effect != taint.effect {
            return false;
        }
        if !self.key.is_empty() && self.key != taint.key {
            return false;
        }
        match self.operator.as_str() {
            "" | "Equal" => self.value == taint.value,
            "Exists" => true,
            _ => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    pub ip: String,
    pub protocol: String,
    pub port: u16,
}

impl HostPort {
    /// The wildcard address collides with every address.
    pub fn collides(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.ip == other.ip || self.ip == "0.0.0.0" || other.ip == "0.0.0.0")
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpreadConstraint {
    pub max_skew: i32,
    pub topology_key: String,
    /// `DoNotSchedule`
    pub hard: bool,
    /// `None` selects no pod.
    pub selector: Option<Selector>,
    pub min_domains: i32,
    pub honor_affinity: bool,
    pub honor_taints: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodTerm {
    /// `None` selects no pod.
    pub selector: Option<Selector>,
    pub namespaces: Vec<String>,
    pub namespace_selector: Option<Selector>,
    pub topology_key: String,
}

impl PodTerm {
    /// Whether the term selects a pod with these labels in a namespace with these labels.
    pub fn selects(&self, namespace: &str, labels: &Labels, namespace_labels: &Labels) -> bool {
        (self.namespaces.iter().any(|one| one == namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| selector.matches(namespace_labels)))
            && self.selector.as_ref().is_some_and(|selector| selector.matches(labels))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Weighted {
    pub weight: i32,
    pub term: PodTerm,
}
