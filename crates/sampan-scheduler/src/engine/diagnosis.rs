//! Why no node takes a pod: reasons, how many nodes gave each, and the message in upstream's form
//! (`FitError` in `pkg/scheduler/framework/types.go`).

use std::collections::BTreeMap;
use std::fmt;

/// Why one node does not take a pod. `Display` is upstream's wording.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// Pods name the node, but it does not exist. Never shown.
    NoSuchNode,
    Unschedulable,
    Taint,
    NodeAffinity,
    Ports,
    TooManyPods,
    Insufficient(Box<str>),
    Spread,
    SpreadLabelMissing,
    PodAffinity,
    PodAntiAffinity,
    ExistingAntiAffinity,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchNode => f.write_str("node(s) did not exist"),
            Self::Unschedulable => f.write_str("node(s) were unschedulable"),
            Self::Taint => f.write_str("node(s) had untolerated taint(s)"),
            Self::NodeAffinity => f.write_str("node(s) didn't match Pod's node affinity/selector"),
            Self::Ports => f.write_str("node(s) didn't have free ports for the requested pod ports"),
            Self::TooManyPods => f.write_str("Too many pods"),
            Self::Insufficient(resource) => write!(f, "Insufficient {resource}"),
            Self::Spread => f.write_str("node(s) didn't match pod topology spread constraints"),
            Self::SpreadLabelMissing => {
                f.write_str("node(s) didn't match pod topology spread constraints (missing required label)")
            }
            Self::PodAffinity => f.write_str("node(s) didn't match pod affinity rules"),
            Self::PodAntiAffinity => f.write_str("node(s) didn't match pod anti-affinity rules"),
            Self::ExistingAntiAffinity => f.write_str("node(s) didn't satisfy existing pods anti-affinity rules"),
        }
    }
}

impl Reason {
    /// What would have to change before another attempt makes sense.
    pub fn wakes(&self) -> Wake {
        match self {
            Self::NoSuchNode | Self::Unschedulable | Self::Taint | Self::NodeAffinity => Wake::NODES,
            Self::Ports | Self::TooManyPods | Self::Insufficient(_) => Wake::NODES | Wake::FREED,
            Self::Spread
            | Self::SpreadLabelMissing
            | Self::PodAffinity
            | Self::PodAntiAffinity
            | Self::ExistingAntiAffinity => Wake::NODES | Wake::FREED | Wake::PODS,
        }
    }

    /// Whether removing pods from the node could help.
    fn resolvable(&self) -> bool {
        self.wakes().contains(Wake::FREED) && !matches!(self, Self::SpreadLabelMissing | Self::PodAffinity)
    }
}

/// Kinds of changes that can make a pod schedulable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wake(u8);

impl Wake {
    /// A node came or changed.
    pub const NODES: Self = Self(1);
    /// A pod left a node.
    pub const FREED: Self = Self(2);
    /// A pod came to a node, or its labels changed.
    pub const PODS: Self = Self(4);

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl std::ops::BitOr for Wake {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The verdict of a whole pass that found no node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnosis {
    /// How many nodes there are.
    pub nodes: usize,
    /// How many nodes gave each reason; a node may give several.
    pub reasons: BTreeMap<Reason, usize>,
    /// On so many nodes the removal of pods could help.
    pub resolvable: usize,
    pub wakes: Wake,
}

impl Diagnosis {
    pub fn count(&mut self, reasons: &[Reason]) {
        for reason in reasons {
            *self.reasons.entry(reason.clone()).or_default() += 1;
            self.wakes = self.wakes | reason.wakes();
        }
        if reasons.iter().all(Reason::resolvable) {
            self.resolvable += 1;
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes = self.nodes;
        if nodes == 0 {
            return f.write_str("no nodes available to schedule pods");
        }
        let listed = |mut parts: Vec<String>| {
            parts.sort();
            parts.join(", ")
        };
        let reasons = self.reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        write!(f, "0/{nodes} nodes are available: {}.", listed(reasons))?;
        let mut preemption = Vec::new();
        if self.resolvable > 0 {
            preemption.push(format!("{} Preemption of other pods is not supported by this version", self.resolvable));
        }
        if nodes > self.resolvable {
            preemption.push(format!("{} Preemption is not helpful for scheduling", nodes - self.resolvable));
        }
        write!(f, " preemption: 0/{nodes} nodes are available: {}.", listed(preemption))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_is_upstreams() {
        let mut diagnosis = Diagnosis { nodes: 3, ..Diagnosis::default() };
        diagnosis.count(&[Reason::Insufficient("cpu".into()), Reason::Insufficient("memory".into())]);
        diagnosis.count(&[Reason::Taint]);
        diagnosis.count(&[Reason::Taint]);
        assert_eq!(
            diagnosis.to_string(),
            "0/3 nodes are available: 1 Insufficient cpu, 1 Insufficient memory, 2 node(s) had untolerated taint(s). \
             preemption: 0/3 nodes are available: 1 Preemption of other pods is not supported by this version, \
             2 Preemption is not helpful for scheduling."
        );
        assert!(diagnosis.wakes.contains(Wake::FREED) && !diagnosis.wakes.contains(Wake::PODS));
    }

    #[test]
    fn an_empty_cluster_says_so() {
        assert_eq!(Diagnosis::default().to_string(), "no nodes available to schedule pods");
    }
}
