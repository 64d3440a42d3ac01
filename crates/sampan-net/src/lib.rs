//! The network of one node: pod addresses and links, the overlay to other nodes, the service proxy and DNS.
//!
//! It never touches rules, routes or links it did not make: everything lives in its own nftables table and carries its
//! own names. It knows the API only through `sampan-client`.

pub mod dns;
pub mod link;
pub mod netns;
pub mod nft;
pub mod node;
pub mod pods;
pub mod proxy;
pub mod views;

use std::net::IpAddr;
use std::path::Path;

use async_trait::async_trait;
use ipnet::IpNet;

/// Connects pods. Idempotent: attaching an attached pod returns its addresses.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Gives the pod addresses out of the node's ranges and links its network namespace. Survives restarts of the agent:
    /// the allocation is on disk before this returns.
    async fn attach(&self, pod: &PodLink<'_>) -> Result<Vec<IpAddr>, NetError>;
    /// Frees what `attach` made; the namespace may be gone already.
    async fn detach(&self, sandbox: &str) -> Result<(), NetError>;
    /// Frees the allocations of sandboxes that are not in `live` (after a crash).
    async fn sweep(&self, live: &[String]) -> Result<(), NetError>;
}

/// What leads clients to pods.
#[async_trait]
pub trait ServiceProxy: Send + Sync + 'static {
    /// Waits until no Service of this cluster leads new connections to these addresses while it has others to lead them
    /// to, and returns at once for addresses no Service leads to. The caller bounds the wait.
    async fn withdrawn(&self, addresses: &[IpAddr]);
}

#[derive(Clone, Debug)]
pub struct PodLink<'a> {
    pub sandbox: &'a str,
    /// `/proc/PID/ns/net`
    pub netns: &'a Path,
    pub namespace: &'a str,
    pub name: &'a str,
}

/// What a node needs to know to set its network up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNetwork {
    pub node: String,
    /// Address ranges for pods of this node, from `spec.podCIDRs`.
    pub pod_ranges: Vec<IpNet>,
    /// The whole cluster's pod ranges: traffic to them is not masqueraded.
    pub cluster_ranges: Vec<IpNet>,
    /// The addresses of this node.
    pub addresses: Vec<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("no address left in {0:?}")]
    Exhausted(Vec<IpNet>),
    /// The step that failed and the kernel's word.
    #[error("{0}")]
    System(String),
    /// A program or kernel feature is missing, with the remedy.
    #[error("{missing}: {remedy}")]
    Missing { missing: String, remedy: String },
}

impl NetError {
    /// A step that failed with the kernel's word.
    pub fn step(step: impl Into<String>, error: std::io::Error) -> Self {
        Self::System(format!("{}: {error}", step.into()))
    }
}
