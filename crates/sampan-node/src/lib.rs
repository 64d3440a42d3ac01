//! The agent of one machine: what a kubelet is.
//!
//! ```text
//! API ──pods──▶ agent ──▶ worker (one per pod) ──▶ pod::lifecycle (pure) ──▶ actions ──▶ runtime, network, volumes
//!  ▲                          │  ▲                                                            │
//!  └── status, events ────────┘  └───────── facts: ends, probes, images, addresses ───────────┘
//! ```
//!
//! It knows no OCI and no netlink (those are `sampan-runtime`'s and `sampan-net`'s) and speaks to the API through
//! `sampan-client` only. Entry: [`run`].

mod agent;
mod checkpoint;
pub mod config;
mod container;
mod downward;
mod environment;
mod events;
mod execute;
mod expand;
mod heartbeat;
mod hooks;
mod image;
mod logs;
mod machine;
mod message;
mod names;
mod node;
mod objects;
pub mod pod;
mod probes;
mod publish;
mod quantity;
mod resources;
mod rotation;
mod security;
mod server;
mod volumes;
mod worker;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::convert::Infallible;

pub use config::{Heartbeat, NodeConfig, NodeError, Parts};
use sampan_base::task;
use tokio::sync::oneshot;

/// Runs the agent until it can't go on. Containers outlive it: dropping the future stops nothing.
pub async fn run(config: NodeConfig, parts: Parts) -> Result<Infallible, NodeError> {
    let node = node::Node::new(config, parts);
    let pods = agent::Pods::default();
    let (ready, adopted) = oneshot::channel();
    let mut tasks = task::Group::default();
    if let Some(address) = node.config.listen {
        let tls = node.config.tls.clone().ok_or(NodeError::Config("the node's own API needs TLS"))?;
        let listener = server::listen(address).await?;
        tasks.spawn("node API", server::serve(node.clone(), pods.clone(), listener, tls));
    }
    tasks.spawn("log rotation", rotation::run(node.clone(), pods.clone()));
    let of_heartbeat = node.clone();
    tasks.spawn("node heartbeat", async move {
        // A node that calls itself ready takes pods: first comes what it has already.
        if adopted.await.is_ok() {
            heartbeat::run(of_heartbeat).await;
        }
    });
    agent::Agent::run(node, pods, ready).await
}
