//! Node IPAM: each node gets its own range of pod addresses out of the cluster's, one for each address family.
//!
//! A range is never given twice: what nodes have is read from the nodes themselves, and what was given and is not in the
//! cache yet is remembered. One worker, so that two nodes are never served at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use sampan_client::Error;
use sampan_client::informer::{Informer, Key};
use serde_json::json;

use crate::framework::{Action, Context, Controller, NODES, Reconciler, key_of};
use crate::views::Node;

/// The first range of prefix length `prefix` inside `cluster` that overlaps none of `taken`; the prefix is the cluster's own
/// where that is longer. `None`: all are taken.
fn free(cluster: IpNet, prefix: u8, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
    let prefix = prefix.max(cluster.prefix_len());
    let bits = cluster.max_prefix_len();
    let size = 1u128.checked_shl(u32::from(bits - prefix))?;
    let count = 1u128.checked_shl(u32::from(prefix - cluster.prefix_len())).unwrap_or(u128::MAX);
    let base = number(cluster.network());
    // At most one range more than are taken has to be looked at.
    (0..count.min(taken.len() as u128 + 1 + overlap_slack(taken, size))).find_map(|index| {
        let range = IpNet::new(address(base + index * size, cluster.addr().is_ipv4()), prefix).ok()?;
        let overlaps = taken.iter().any(|one| one.contains(&range) || range.contains(one));
        (!overlaps).then_some(range)
    })
}

/// A taken range larger than ours covers several of ours.
fn overlap_slack(taken: &BTreeSet<IpNet>, size: u128) -> u128 {
    let covers = |range: &IpNet| {
        let length = 1u128.checked_shl(u32::from(range.max_prefix_len() - range.prefix_len())).unwrap_or(u128::MAX);
        length / size
    };
    taken.iter().map(covers).fold(0, u128::saturating_add)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    if v4 { IpAddr::V4(Ipv4Addr::from(number as u32)) } else { IpAddr::V6(Ipv6Addr::from(number)) }
}

struct Ipam {
    context: Context,
    nodes: Informer<Node>,
    cluster: Vec<IpNet>,
    /// Prefix lengths of a node's range: IPv4, IPv6.
    prefixes: (u8, u8),
    /// Given to nodes, by name, until the cache shows it.
    given: Mutex<BTreeMap<String, Vec<IpNet>>>,
}

/// Wires the controller up; it runs until it is dropped. `cluster`: one range for each family, the primary first.
pub fn start(context: Context, nodes: Informer<Node>, cluster: Vec<IpNet>, prefixes: (u8, u8)) -> Controller {
    let mut controller = Controller::new("node IPAM", &context.clock);
    controller.source(&nodes, |change| {
        let bare = change.new.as_ref().is_some_and(|node| node.spec.pod_cidrs.is_empty());
        bare.then(|| change.key.clone()).into_iter().collect()
    });
    let synced = nodes.clone();
    let ready = async move { synced.synced().await };
    let reconciler = Ipam { context, nodes, cluster, prefixes, given: Mutex::default() };
    controller.work(1, ready, Arc::new(reconciler));
    controller
}

impl Ipam {
    fn choose(&self, name: &str) -> Option<Vec<IpNet>> {
        let nodes = self.nodes.list();
        let mut given = self.given.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // What the cache shows, or whose node is gone, need not be remembered.
        given.retain(|name, _| nodes.iter().any(|(key, node)| key.name == *name && node.spec.pod_cidrs.is_empty()));
        if let Some(ranges) = given.get(name) {
            return Some(ranges.clone());
        }
        let shown = nodes.iter().flat_map(|(_, node)| &node.spec.pod_cidrs).filter_map(|text| text.parse().ok());
        let taken: BTreeSet<IpNet> = shown.chain(given.values().flatten().copied()).collect();
        let prefix = |range: &IpNet| if range.addr().is_ipv4() { self.prefixes.0 } else { self.prefixes.1 };
        let chosen: Option<Vec<IpNet>> = self.cluster.iter().map(|range| free(*range, prefix(range), &taken)).collect();
        if let Some(chosen) = &chosen {
            given.insert(name.to_owned(), chosen.clone());
        }
        chosen
    }
}

#[async_trait]
impl Reconciler for Ipam {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(node) = self.nodes.get(key).filter(|node| node.spec.pod_cidrs.is_empty()) else { return Ok(None) };
        if self.cluster.is_empty() {
            return Ok(None);
        }
        let Some(ranges) = self.choose(&key.name) else {
            let about = NODES.reference(&node.metadata);
            let message = format!("Node {key} status is now: CIDRNotAvailable");
            self.context.recorder.warning(&about, "CIDRNotAvailable", message);
            return Ok(Some(Duration::from_secs(30)));
        };
        let texts: Vec<String> = ranges.iter().map(IpNet::to_string).collect();
        let patch = json!({
            "metadata": {"uid": node.metadata.uid}, "spec": {"podCIDR": texts.first(), "podCIDRs": texts},
        });
        self.context.perform(&Action::merge(NODES, key_of(&node.metadata), patch)).await.map(|_| None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    #[test]
    fn first_free_range() {
        let check = |cluster: &str, prefix, taken: &[&str], expected: Option<&str>| {
            let taken = taken.iter().map(|text| net(text)).collect();
            assert_eq!(free(net(cluster), prefix, &taken), expected.map(net));
        };
        check("10.42.0.0/16", 24, &[], Some("10.42.0.0/24"));
        check("10.42.0.0/16", 24, &["10.42.0.0/24", "10.42.2.0/24"], Some("10.42.1.0/24"));
        check("10.42.0.0/16", 24, &["10.42.0.0/22"], Some("10.42.4.0/24"));
        check("10.42.0.0/23", 24, &["10.42.0.128/25", "10.42.1.0/24"], None);
        check("10.42.0.0/25", 24, &[], Some("10.42.0.0/25"));
        check("10.42.0.0/16", 24, &["192.168.0.0/16"], Some("10.42.0.0/24"));
        check("fd00:1::/48", 64, &["fd00:1::/64"], Some("fd00:1:0:1::/64"));
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_and_are_all_used(prefix in 20u8..26, releases in prop::collection::vec(0usize..64, 0..20)) {
            let cluster = net("10.0.0.0/20");
            let mut taken = BTreeSet::new();
            let fill = |taken: &mut BTreeSet<IpNet>| {
                while let Some(range) = free(cluster, prefix, taken) {
                    assert!(cluster.contains(&range) && !taken.iter().any(|one| one.contains(&range) || range.contains(one)));
                    taken.insert(range);
                }
                taken.len()
            };
            let all = 1usize << (prefix - 20);
            prop_assert_eq!(fill(&mut taken), all);
            for release in releases {
                let range = taken.iter().nth(release % all).copied();
                taken.remove(&range.expect("full"));
                prop_assert_eq!(fill(&mut taken), all);
            }
        }
    }
}
