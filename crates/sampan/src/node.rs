//! The node agent in one process: `sampan node`. Composition only; the agent is `sampan-node`.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::local::root;
use crate::server;

/// `sampan node --config FILE`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Config {
    pub name: String,
    /// The API servers.
    pub servers: Vec<SocketAddr>,
    /// `ca.crt`, `node.crt` and `node.key`.
    pub pki: PathBuf,
    /// State of pods, images, addresses.
    pub data: PathBuf,
    /// Sockets and what ends with a reboot.
    pub run: PathBuf,
    pub addresses: Vec<IpAddr>,
    pub pod_ranges: Vec<IpNet>,
    pub service_ranges: Vec<IpNet>,
    pub dns: IpAddr,
    pub domain: String,
    /// The host's network namespace is descriptor 4: registries and name servers are reached from there.
    #[serde(default)]
    pub host_netns: bool,
}

impl Config {
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))
    }

    /// A node of a local cluster: paths are those inside its own root.
    pub fn local(server: &server::Config, name: &str, address: IpAddr) -> Self {
        let data = Path::new(root::DATA);
        Self {
            name: name.into(),
            servers: vec![server.advertise],
            pki: data.join("pki"),
            data: data.into(),
            run: "/run/sampan".into(),
            addresses: vec![address],
            pod_ranges: server.pod_ranges.clone(),
            service_ranges: server.service_ranges.clone(),
            dns: server.dns,
            domain: server.domain.clone(),
            host_netns: true,
        }
    }
}
