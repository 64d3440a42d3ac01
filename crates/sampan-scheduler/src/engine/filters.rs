//! What a node must satisfy on its own, in upstream's order: NodeUnschedulable, TaintToleration, NodeAffinity, NodePorts,
//! NodeResourcesFit (`pkg/scheduler/framework/plugins`). The first check that fails gives the reasons.
//!
//! NodeName has no check: a pod that names its node never comes to a scheduler.

use smallvec::{SmallVec, smallvec};

use super::diagnosis::Reason;
use super::nodes::{Nodes, Slot};
use super::requirements::Requirements;
use crate::view::{Node, Taint};

pub type Reasons = SmallVec<[Reason; 2]>;

const UNSCHEDULABLE_TAINT: &str = "node.kubernetes.io/unschedulable";

/// `None` when a pod with these requirements fits.
pub fn check(nodes: &Nodes, slot: Slot, requirements: &Requirements, wants: &[(usize, i64)]) -> Option<Reasons> {
    let Some(node) = nodes.shape(slot) else { return Some(smallvec![Reason::NoSuchNode]) };
    if node.unschedulable && !tolerates_unschedulable(requirements) {
        return Some(smallvec![Reason::Unschedulable]);
    }
    if !tolerates(node, requirements) {
        return Some(smallvec![Reason::Taint]);
    }
    if !matches_affinity(node, requirements) {
        return Some(smallvec![Reason::NodeAffinity]);
    }
    if !requirements.ports.is_empty() {
        let taken = nodes.ports(slot);
        if requirements.ports.iter().any(|port| taken.iter().any(|other| port.collides(other))) {
            return Some(smallvec![Reason::Ports]);
        }
    }
    resources(nodes, slot, wants)
}

fn resources(nodes: &Nodes, slot: Slot, wants: &[(usize, i64)]) -> Option<Reasons> {
    let mut reasons = Reasons::new();
    if nodes.free_pods(slot) < 1 {
        reasons.push(Reason::TooManyPods);
    }
    for (dimension, amount) in wants {
        if *amount > nodes.free(slot, *dimension) {
            reasons.push(Reason::Insufficient(nodes.resource_name(*dimension).into()));
        }
    }
    (!reasons.is_empty()).then_some(reasons)
}

fn tolerates_unschedulable(requirements: &Requirements) -> bool {
    let taint = Taint { key: UNSCHEDULABLE_TAINT.into(), value: String::new(), effect: "NoSchedule".into() };
    requirements.tolerations.iter().any(|toleration| toleration.tolerates(&taint))
}

/// All taints that keep pods away are tolerated.
pub fn tolerates(node: &Node, requirements: &Requirements) -> bool {
    node.taints
        .iter()
        .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        .all(|taint| requirements.tolerations.iter().any(|toleration| toleration.tolerates(taint)))
}

/// `nodeSelector` and required node affinity.
pub fn matches_affinity(node: &Node, requirements: &Requirements) -> bool {
    requirements.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && requirements
            .node_affinity
            .as_ref()
            .is_none_or(|terms| terms.iter().any(|term| term.matches(&node.name, &node.labels)))
}
