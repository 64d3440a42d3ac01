//! The network of this node, kept in step with the Node objects: its own pod ranges, routes to the pods of other nodes,
//! and masquerading of what leaves the cluster.
//!
//! Nodes that share a link reach each other's pods by plain routes. A node that is not on a link of ours is reported: the
//! overlay for it is not built yet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use sampan_api::Gvr;
use sampan_base::disk::SharedDisk;
use sampan_base::{Clock, task};
use sampan_client::informer::{Change, Informer};
use sampan_client::{Client, ListOptions};
use tokio::sync::watch;

use crate::link::{Links, Route};
use crate::pods::{PREFIX, RoutedPods};
use crate::views::Node;
use crate::{NetError, PodLink, PodNetwork, nft};

const TABLE: &str = "sampan-node";
const RETRY: Duration = Duration::from_secs(1);

/// What the node knows of itself before it reads its Node object.
#[derive(Clone)]
pub struct NodeConfig {
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// All pods of the cluster: traffic to them keeps its source address.
    pub pod_ranges: Vec<IpNet>,
    pub disk: SharedDisk,
    /// Where the addresses of pods are recorded.
    pub directory: PathBuf,
}

/// The pod network of this node. Attaching waits until the node has its ranges; a node that had them before has them at
/// once, also while the API server is away.
pub struct NodeNetwork {
    pods: watch::Receiver<Option<Arc<RoutedPods>>>,
    /// What a sweep was told before the node had its ranges.
    swept: Arc<Mutex<Option<Vec<String>>>>,
    _tasks: task::Group,
}

/// The node's ranges, as it last knew them.
const RANGES: &str = "ranges.json";

impl NodeNetwork {
    pub fn spawn(client: Client, config: NodeConfig, clock: Clock) -> Self {
        let (sender, pods) = watch::channel(None);
        let gvr = Gvr { group: String::new(), version: "v1".into(), resource: "nodes".into() };
        let nodes = Informer::<Node>::spawn(client, gvr, ListOptions::default(), clock.clone());
        let mut tasks = task::Group::default();
        let swept = Arc::default();
        let own = Own { config, pods: sender, swept: Arc::clone(&swept) };
        tasks.spawn("node network", follow(nodes, own, clock));
        Self { pods, swept, _tasks: tasks }
    }

    async fn ready(&self) -> Result<Arc<RoutedPods>, NetError> {
        let mut pods = self.pods.clone();
        let ready = pods.wait_for(Option::is_some).await;
        let lost = || NetError::System("the node's network has ended".into());
        ready.map_err(|_| lost())?.clone().ok_or_else(lost)
    }
}

async fn follow(nodes: Informer<Node>, own: Own, clock: Clock) {
    let mut changes = nodes.subscribe();
    let links = loop {
        match Links::open(None).await {
            Ok(links) => break links,
            Err(error) => tracing::error!(%error, "cannot reach the kernel's routing"),
        }
        clock.sleep(RETRY).await;
    };
    if let Err(error) = own.resume().await {
        tracing::error!(%error, "cannot take up the node's former ranges");
    }
    while let Some(change) = changes.recv().await {
        let result = if change.key.name == own.config.name {
            let ranges = change.new.as_ref().map(|node| node.spec.pod_cidrs.clone());
            own.have(ranges.unwrap_or_default()).await
        } else {
            other(&change, &own.config, &links).await
        };
        if let Err(error) = result {
            tracing::error!(node = change.key.name, %error, "cannot set up the network");
        }
    }
}

/// What becomes of this node's own ranges.
struct Own {
    config: NodeConfig,
    pods: watch::Sender<Option<Arc<RoutedPods>>>,
    swept: Arc<Mutex<Option<Vec<String>>>>,
}

impl Own {
    fn record(&self) -> PathBuf {
        self.config.directory.with_file_name(RANGES)
    }

    async fn resume(&self) -> Result<(), NetError> {
        let (disk, path) = (self.config.disk.clone(), self.record());
        let read = task::spawn_blocking(move || disk.read(&path)).await;
        match read.map_err(|error| NetError::System(error.to_string()))? {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(ranges) => self.have(ranges).await,
                Err(error) => Err(NetError::System(format!("{}: {error}", self.record().display()))),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(NetError::step(format!("read {}", self.record().display()), error)),
        }
    }

    /// The node has its ranges. They never change afterwards.
    async fn have(&self, ranges: Vec<IpNet>) -> Result<(), NetError> {
        if ranges.is_empty() || self.pods.borrow().is_some() {
            return Ok(());
        }
        let script = masquerade(&ranges, &self.config.pod_ranges);
        let (disk, path) = (self.config.disk.clone(), self.record());
        let text = serde_json::to_vec(&ranges).map_err(|error| NetError::System(error.to_string()))?;
        let applied = task::spawn_blocking(move || {
            nft::run(&script)?;
            disk.replace(&path, &text).map_err(|error| NetError::step(format!("write {}", path.display()), error))
        });
        applied.await.map_err(|error| NetError::System(error.to_string()))??;
        let NodeConfig { addresses, disk, directory, .. } = &self.config;
        let routed = RoutedPods::open(ranges, addresses.first().copied(), disk.clone(), directory.clone()).await?;
        let live = self.swept.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(live) = live {
            routed.sweep(&live).await?;
        }
        self.pods.send_replace(Some(Arc::new(routed)));
        Ok(())
    }
}

/// What pods send out of the cluster carries the node's address.
fn masquerade(own: &[IpNet], cluster: &[IpNet]) -> String {
    let list = |ranges: Vec<&IpNet>| ranges.into_iter().map(IpNet::to_string).collect::<Vec<_>>().join(", ");
    let mut rules = String::new();
    for (family, v4) in [("ip", true), ("ip6", false)] {
        let of = |ranges: &[IpNet]| list(ranges.iter().filter(|range| range.addr().is_ipv4() == v4).collect());
        let (own, cluster) = (of(own), of(cluster));
        if !own.is_empty() {
            rules += &format!("    {family} saddr {{ {own} }} {family} daddr != {{ {cluster} }} masquerade\n");
        }
    }
    let chain =
        format!("  chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n{rules}  }}\n");
    nft::replace("inet", TABLE, &(chain + &strays(own)))
}

/// What is for a pod of this node that is not there (any more) must not leave by the default route. A connection through a
/// Service is dropped, so that the client's next try reaches another endpoint; one to the pod itself is refused.
fn strays(own: &[IpNet]) -> String {
    let (mut dropped, mut refused) = (String::new(), String::new());
    for (family, unreachable, v4) in [("ip", "icmp host-unreachable", true), ("ip6", "icmpv6 addr-unreachable", false)]
    {
        let own: Vec<String> = own.iter().filter(|range| range.addr().is_ipv4() == v4).map(IpNet::to_string).collect();
        if !own.is_empty() {
            let stray = format!("{family} daddr {{ {} }} oifname != \"{PREFIX}*\"", own.join(", "));
            dropped += &format!("    {stray} drop\n");
            refused += &format!("    {stray} reject with {unreachable}\n");
        }
    }
    let chain = |hook: &str, rules: &str| {
        format!("  chain strays-{hook} {{\n    type filter hook {hook} priority filter; policy accept;\n{rules}  }}\n")
    };
    // What a Service translated leads elsewhere than `output` still says; it is looked at where that is settled.
    let refused = format!("    ct status dnat accept\n{refused}");
    chain("forward", &refused) + &chain("output", &refused) + &chain("postrouting", &dropped)
}

/// Routes to another node's pods, by way of its address.
async fn other(change: &Change<Node>, config: &NodeConfig, links: &Links) -> Result<(), NetError> {
    let wanted = |node: &Option<Arc<Node>>| -> BTreeMap<IpNet, IpAddr> {
        let Some(node) = node else { return BTreeMap::new() };
        let via = |range: &IpNet| node.internal_ips().find(|address| address.is_ipv4() == range.addr().is_ipv4());
        node.spec.pod_cidrs.iter().filter_map(|range| Some((*range, via(range)?))).collect()
    };
    let (old, new) = (wanted(&change.old), wanted(&change.new));
    for (range, gateway) in &new {
        if old.get(range) == Some(gateway) {
            continue;
        }
        let source = config.addresses.iter().copied().find(|address| address.is_ipv4() == gateway.is_ipv4());
        links.route_via(*range, &Route { gateway: Some(*gateway), onlink: false, source }).await?;
    }
    for range in old.keys().filter(|range| !new.contains_key(*range)) {
        links.delete_route(*range).await?;
    }
    Ok(())
}

#[async_trait]
impl PodNetwork for NodeNetwork {
    async fn attach(&self, pod: &PodLink<'_>) -> Result<Vec<IpAddr>, NetError> {
        self.ready().await?.attach(pod).await
    }

    async fn detach(&self, sandbox: &str) -> Result<(), NetError> {
        self.ready().await?.detach(sandbox).await
    }

    async fn sweep(&self, live: &[String]) -> Result<(), NetError> {
        // The sweep belongs to the start, which must not wait for the ranges: they may need this node to be up.
        let pods = self.pods.borrow().clone();
        match pods {
            Some(pods) => pods.sweep(live).await,
            None => {
                *self.swept.lock().unwrap_or_else(PoisonError::into_inner) = Some(live.to_vec());
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_within_the_cluster_keeps_its_source() {
        let range = |text: &str| text.parse::<IpNet>().expect("a range");
        let script = masquerade(&[range("10.1.2.0/24")], &[range("10.1.0.0/16"), range("fd00::/48")]);
        assert!(script.contains("ip saddr { 10.1.2.0/24 } ip daddr != { 10.1.0.0/16 } masquerade"), "{script}");
        assert!(!script.contains("ip6 saddr"), "no IPv6 pods, no IPv6 rule");
    }

    #[test]
    fn a_pod_that_is_gone_is_not_looked_for_outside() {
        let script = strays(&["10.1.2.0/24".parse().expect("a range")]);
        let rule = "ip daddr { 10.1.2.0/24 } oifname != \"smp*\"";
        assert_eq!(script.matches(&format!("{rule} reject")).count(), 2, "{script}");
        assert_eq!(script.matches(&format!("{rule} drop")).count(), 1, "{script}");
        assert!(!script.contains("ip6"), "{script}");
    }
}
