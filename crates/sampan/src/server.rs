//! The control plane in one process: `sampan server`. This file is the composition root: it reads top to bottom.

mod pki;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

pub use pki::{Pki, admin_client};

/// `sampan server --config FILE`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    /// The cluster's name; the server's identity in leader election.
    pub name: String,
    /// Where the state is.
    pub data: PathBuf,
    /// Where certificates and keys are.
    pub pki: PathBuf,
    /// Addresses to serve on.
    pub listen: Vec<SocketAddr>,
    /// Also serve on the socket passed as descriptor 3.
    #[serde(default)]
    pub inherited_socket: bool,
    /// Where nodes and pods reach this server.
    pub advertise: SocketAddr,
    /// More names and addresses for the serving certificate.
    #[serde(default)]
    pub names: Vec<String>,
    /// The pods of the whole cluster; each node gets a part of each range.
    pub pod_ranges: Vec<IpNet>,
    /// How much of an IPv4 range a node gets.
    pub node_mask_v4: u8,
    pub service_ranges: Vec<IpNet>,
    /// The cluster's DNS address, inside the Service range.
    pub dns: IpAddr,
    pub domain: String,
    /// What Services of type LoadBalancer get as their addresses.
    #[serde(default)]
    pub load_balancer_addresses: Vec<IpAddr>,
}

impl Config {
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
    }

    /// The API's own Service address: the first of the range.
    pub fn service_address(&self) -> anyhow::Result<IpAddr> {
        let range = self.service_ranges.first().context("serviceRanges is empty")?;
        range.hosts().find(|address| *address != range.network()).context("the Service range is too small")
    }
}
