//! The network of this node, kept in step with the Node objects: its own pod ranges, routes to the pods of other nodes,
//! and masquerading of what leaves the cluster.
//!
//! Nodes that share a link reach each other's pods by plain routes. A node that is not on a link of ours is reported: the
//! overlay for it is not built yet.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
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
use crate::pods::RoutedPods;
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

/// The pod network of this node. Attaching waits until the node has its ranges.
pub struct NodeNetwork {
    pods: watch::Receiver<Option<Arc<RoutedPods>>>,
    _tasks: task::Group,
}

impl NodeNetwork {
    pub fn spawn(client: Client, config: NodeConfig, clock: Clock) -> Self {
        let (sender, pods) = watch::channel(None);
        let gvr = Gvr { group: String::new(), version: "v1".into(), resource: "nodes".into() };
        let nodes = Informer::<Node>::spawn(client, gvr, ListOptions::default(), clock.clone());
        let mut tasks = task::Group::default();
        tasks.spawn("node network", follow(nodes, config, sender, clock));
        Self { pods, _tasks: tasks }
    }

    async fn ready(&self) -> Result<Arc<RoutedPods>, NetError> {
        let mut pods = self.pods.clone();
        let ready = pods.wait_for(Option::is_some).await;
        let lost = || NetError::System("the node's network has ended".into());
        ready.map_err(|_| lost())?.clone().ok_or_else(lost)
    }
}

async fn follow(nodes: Informer<Node>, config: NodeConfig, pods: watch::Sender<Option<Arc<RoutedPods>>>, clock: Clock) {
    let mut changes = nodes.subscribe();
    let links = loop {
        match Links::open(None).await {
            Ok(links) => break links,
            Err(error) => tracing::error!(%error, "cannot reach the kernel's routing"),
        }
        clock.sleep(RETRY).await;
    };
    while let Some(change) = changes.recv().await {
        let result = if change.key.name == config.name {
            own(&change, &config, &pods).await
        } else {
            other(&change, &config, &links).await
        };
        if let Err(error) = result {
            tracing::error!(node = change.key.name, %error, "cannot set up the network");
        }
    }
}

/// This node has got its ranges. They never change afterwards.
async fn own(
    change: &Change<Node>,
    config: &NodeConfig,
    pods: &watch::Sender<Option<Arc<RoutedPods>>>,
) -> Result<(), NetError> {
    let Some(node) = change.new.as_ref().filter(|node| !node.spec.pod_cidrs.is_empty()) else { return Ok(()) };
    if pods.borrow().is_some() {
        return Ok(());
    }
    let ranges = node.spec.pod_cidrs.clone();
    let script = masquerade(&ranges, &config.pod_ranges);
    let applied = task::spawn_blocking(move || nft::run(&script)).await;
    applied.map_err(|error| NetError::System(error.to_string()))??;
    let address = config.addresses.first().copied();
    let routed = RoutedPods::open(ranges, address, config.disk.clone(), config.directory.clone()).await?;
    pods.send_replace(Some(Arc::new(routed)));
    Ok(())
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
    nft::replace("inet", TABLE, &chain)
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
        self.ready().await?.sweep(live).await
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
}
