//! How good a node is for a pod that fits: upstream's scores with upstream's weights, each from 0 to [`FULL`].
//!
//! Upstream scales some scores by the best and worst node of the pass. Here each is a function of the node and the class
//! alone, so that a change of one node changes one key.

use super::ClassId;
use super::nodes::{Nodes, Slot};
use super::requirements::Requirements;
use crate::view::Node;

pub const FULL: u64 = 10_000;

/// Weights of `pkg/scheduler/apis/config/v1/default_plugins.go`.
const TAINTS: u64 = 3;
const NODE_AFFINITY: u64 = 2;
const SPREAD: u64 = 2;
const LEAST_ALLOCATED: u64 = 1;
const BALANCED: u64 = 1;
const IMAGES: u64 = 1;

/// `same` counts the pods of the class that are on the node already.
pub fn score(nodes: &Nodes, slot: Slot, requirements: &Requirements, same: u32) -> u64 {
    let Some(node) = nodes.shape(slot) else { return 0 };
    let (least, balanced) = allocation(nodes, slot, requirements);
    TAINTS * FULL / (1 + disliked_taints(node, requirements))
        + NODE_AFFINITY * preferred(node, requirements)
        + spread(requirements, same)
        + LEAST_ALLOCATED * least
        + BALANCED * balanced
        + IMAGES * images(nodes, node, requirements)
}

/// `PreferNoSchedule` taints that are not tolerated.
fn disliked_taints(node: &Node, requirements: &Requirements) -> u64 {
    let disliked = node.taints.iter().filter(|taint| {
        taint.effect == "PreferNoSchedule"
            && !requirements.tolerations.iter().any(|toleration| toleration.tolerates(taint))
    });
    disliked.count() as u64
}

fn preferred(node: &Node, requirements: &Requirements) -> u64 {
    let weight = |one: &super::requirements::Preferred| u64::from(one.weight.unsigned_abs());
    let all: u64 = requirements.preferred_nodes.iter().map(weight).sum();
    if all == 0 {
        return 0;
    }
    let met = requirements.preferred_nodes.iter().filter(|one| one.term.matches(&node.name, &node.labels));
    met.map(weight).sum::<u64>() * FULL / all
}

/// Pods of one owner apart from each other, unless the pod says itself how it wants to be spread.
fn spread(requirements: &Requirements, same: u32) -> u64 {
    if requirements.owner.is_empty() || !requirements.spread.is_empty() {
        return 0;
    }
    SPREAD * FULL / (1 + u64::from(same))
}

/// LeastAllocated and BalancedAllocation over CPU and memory, with the pod on the node.
fn allocation(nodes: &Nodes, slot: Slot, requirements: &Requirements) -> (u64, u64) {
    let [cpu, memory] = nodes.balance(slot);
    let fraction = |(allocatable, used): (i64, i64), more: i64| {
        if allocatable <= 0 { 1.0 } else { ((used + more) as f64 / allocatable as f64).min(1.0) }
    };
    let cpu = fraction(cpu, requirements.scored_cpu);
    let memory = fraction(memory, requirements.scored_memory);
    let full = FULL as f64;
    let least = (full * (1.0 - (cpu + memory) / 2.0)) as u64;
    // The standard deviation of two values is half their distance.
    let balanced = (full * (1.0 - (cpu - memory).abs() / 2.0)) as u64;
    (least, balanced)
}

/// ImageLocality: bytes that need not be pulled, less for images that few nodes have, so that they do not gather all pods.
fn images(nodes: &Nodes, node: &Node, requirements: &Requirements) -> u64 {
    const MB: i64 = 1024 * 1024;
    if node.images.is_empty() || requirements.images.is_empty() {
        return 0;
    }
    let all = nodes.count().max(1) as i64;
    let present = requirements.images.iter().map(|wanted| {
        let name = normalized(wanted);
        let image = node.images.iter().find(|image| image.names.contains(&name));
        image.map_or(0, |image| image.size_bytes.max(0) / all * i64::from(nodes.image_nodes(&name)))
    });
    let bytes: i64 = present.sum();
    let (least, most) = (23 * MB, 1000 * MB * requirements.images.len() as i64);
    let above = bytes.clamp(least, most) - least;
    (i128::from(above) * i128::from(FULL) / i128::from(most - least)) as u64
}

/// Upstream's `normalizedImageName`: a name without tag has the tag `latest`.
fn normalized(name: &str) -> String {
    let has_tag = name.rfind(':') > name.rfind('/');
    if has_tag { name.to_owned() } else { format!("{name}:latest") }
}

/// Orders by score, then by a fixed toss for each class and node. Never 0.
pub fn key(score: u64, seed: u64, class: ClassId, slot: Slot) -> u64 {
    ((score + 1) << 32) | (mix(seed ^ mix(((class as u64) << 32) | slot as u64)) >> 32)
}

/// SplitMix64's finalizer.
fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
