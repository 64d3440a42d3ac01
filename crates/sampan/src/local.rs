//! Clusters on this machine: what is known of each, and where it lives.
//!
//! ```text
//! host ── veth smp-N ── cluster namespace (server, bridge) ── veth ── node namespaces (agent, pods)
//! ```
//! Each node is an isolated host (see [`init`]); the server runs in the cluster's network namespace and serves on a socket
//! opened in the host's. One supervisor per cluster on the host keeps them running and forwards published ports.

pub mod cgroup;
pub mod down;
pub mod hostnet;
pub mod init;
pub mod logs;
pub mod root;
pub mod status;
pub mod supervisor;
pub mod up;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use ipnet::{IpNet, Ipv4Net};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::cli::{Mount, Publish};
use crate::process::Process;

pub const DEFAULT_NAME: &str = "default";

/// Where clusters keep their state when `--data-dir` does not say otherwise.
const DATA: &str = "/var/lib/sampan/clusters";
/// Where the running ones are found: one directory a cluster, gone after a reboot.
pub const RUN: &str = "/run/sampan";

/// How many clusters fit on one machine: each has its own third of the address plan below.
const INDEX_MAX: u8 = 63;

/// What a cluster is, as `up` was told. Lives in `cluster.json` in its data directory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Cluster {
    /// Version of this file.
    pub format: u32,
    pub name: String,
    /// Which part of the address plan it has.
    pub index: u8,
    pub nodes: Vec<String>,
    /// The API server's port on 127.0.0.1.
    pub port: u16,
    pub publish: Vec<Publish>,
    pub mounts: Vec<Mount>,
    pub data: PathBuf,
    pub created: Timestamp,
}

pub const FORMAT: u32 = 1;

impl Cluster {
    /// The name of the kubeconfig context.
    pub fn context(&self) -> String {
        context(&self.name)
    }

    pub fn run_dir(&self) -> PathBuf {
        run_dir(&self.name)
    }

    pub fn log(&self, process: &str) -> PathBuf {
        self.run_dir().join("logs").join(format!("{process}.log"))
    }

    /// The cluster's network namespace, kept by a bind mount.
    pub fn netns(&self) -> PathBuf {
        self.run_dir().join("netns")
    }

    pub fn node_dir(&self, node: &str) -> PathBuf {
        self.data.join("nodes").join(node)
    }

    /// The socket an agent takes image commands on.
    pub fn node_socket(&self, node: &str) -> PathBuf {
        self.node_dir(node).join("agent.sock")
    }

    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.data.join("admin.kubeconfig")
    }

    /// Addresses of nodes; the first is the bridge, where the server is.
    pub fn node_range(&self) -> Ipv4Net {
        Ipv4Net::new_assert(Ipv4Addr::new(172, 30, self.index, 0), 24)
    }

    pub fn server_address(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, self.index, 1)
    }

    pub fn node_address(&self, position: usize) -> Ipv4Addr {
        // `--nodes` is at most 64.
        Ipv4Addr::new(172, 30, self.index, 10 + position as u8)
    }

    /// The link between host (even address) and cluster (odd).
    pub fn uplink(&self) -> (Ipv4Net, Ipv4Net) {
        let end = |last| Ipv4Net::new_assert(Ipv4Addr::new(172, 31, self.index, last), 31);
        (end(0), end(1))
    }

    pub fn pod_range(&self) -> IpNet {
        Ipv4Net::new_assert(Ipv4Addr::new(10, 128 + self.index, 0, 0), 16).into()
    }

    pub fn service_range(&self) -> IpNet {
        Ipv4Net::new_assert(Ipv4Addr::new(10, 192 + self.index, 0, 0), 16).into()
    }

    /// The first address of the Service range is the API's, the tenth DNS's, as everywhere.
    pub fn dns_address(&self) -> IpAddr {
        Ipv4Addr::new(10, 192 + self.index, 0, 10).into()
    }

    /// The host's end of the uplink.
    pub fn link_name(&self) -> String {
        format!("smp-{}", self.index)
    }

    pub fn load(data: &Path) -> anyhow::Result<Self> {
        let path = data.join("cluster.json");
        let text = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let cluster: Self = serde_json::from_slice(&text).with_context(|| format!("read {}", path.display()))?;
        if cluster.format > FORMAT {
            bail!(
                "{} was written by a newer version of sampan (format {}, this one knows {FORMAT})",
                path.display(),
                cluster.format
            );
        }
        Ok(cluster)
    }

    pub fn save(&self) -> anyhow::Result<()> {
        use sampan_base::disk::{Disk, RealDisk};
        let path = self.data.join("cluster.json");
        let text = serde_json::to_vec_pretty(self)?;
        RealDisk
            .create_dir_all(&self.data)
            .and_then(|()| RealDisk.replace(&path, &text))
            .with_context(|| format!("write {}", path.display()))
    }
}

pub fn context(name: &str) -> String {
    if name == DEFAULT_NAME { "sampan".into() } else { format!("sampan-{name}") }
}

pub fn run_dir(name: &str) -> PathBuf {
    Path::new(RUN).join(name)
}

pub fn default_data(name: &str) -> PathBuf {
    Path::new(DATA).join(name)
}

/// A running or interrupted cluster, found through its run directory.
pub fn find(name: &str) -> anyhow::Result<Option<Cluster>> {
    check_name(name)?;
    let link = run_dir(name).join("data");
    match std::fs::read_link(&link) {
        Ok(data) => Cluster::load(&data).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("read {}", link.display())),
    }
}

pub fn find_or_fail(name: &str) -> anyhow::Result<Cluster> {
    find(name)?.ok_or_else(|| crate::Exit::NoCluster(name.into()).into())
}

/// All clusters with a run directory, by name.
pub fn all() -> anyhow::Result<Vec<Cluster>> {
    let entries = match std::fs::read_dir(RUN) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context(format!("read {RUN}")),
    };
    let mut names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    names.sort();
    names.iter().filter_map(|name| find(name).transpose()).collect()
}

/// Names end in link names, paths and hostnames.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    if name.is_empty() || name.len() > 40 || !name.bytes().all(fine) || name.starts_with('-') || name.ends_with('-') {
        bail!("{name:?} is not a cluster name: lower-case letters, digits and dashes, 40 at most");
    }
    Ok(())
}

/// The lowest part of the address plan that no other cluster and no route of this machine uses.
pub fn free_index(taken: &[u8], routes: &[IpNet]) -> anyhow::Result<u8> {
    let overlaps = |index: u8| {
        let probe = Cluster {
            format: FORMAT,
            name: String::new(),
            index,
            nodes: Vec::new(),
            port: 0,
            publish: Vec::new(),
            mounts: Vec::new(),
            data: PathBuf::new(),
            created: Timestamp::UNIX_EPOCH,
        };
        let ranges = [probe.node_range().into(), probe.uplink().0.into(), probe.pod_range(), probe.service_range()];
        ranges.iter().any(|range: &IpNet| {
            routes.iter().any(|route| route.prefix_len() > 0 && (route.contains(range) || range.contains(route)))
        })
    };
    (0..=INDEX_MAX)
        .find(|index| !taken.contains(index) && !overlaps(*index))
        .context("no free address range for another cluster: take one down, or free 172.30.0.0/16 and 10.128.0.0/9")
}

/// The processes of a running cluster; `processes.json` in its run directory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Processes {
    pub supervisor: Option<Process>,
    pub server: Option<Process>,
    /// PID 1 of each node, by name.
    pub nodes: std::collections::BTreeMap<String, Process>,
}

impl Processes {
    pub fn load(cluster: &Cluster) -> Self {
        let path = cluster.run_dir().join("processes.json");
        std::fs::read(path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    pub fn save(&self, cluster: &Cluster) -> anyhow::Result<()> {
        use sampan_base::disk::{Disk, RealDisk};
        let path = cluster.run_dir().join("processes.json");
        RealDisk.replace(&path, &serde_json::to_vec(self)?).with_context(|| format!("write {}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_avoids_clusters_and_routes() {
        assert_eq!(free_index(&[], &[]).expect("free"), 0);
        let routes: Vec<IpNet> = ["0.0.0.0/0", "172.30.2.0/24", "10.131.4.0/24"]
            .iter()
            .map(|route| route.parse().expect("a route"))
            .collect();
        assert_eq!(free_index(&[0, 1], &routes).expect("free"), 4);
        let everything = ["10.0.0.0/8".parse().expect("a route")];
        assert!(free_index(&[], &everything).is_err());
    }

    #[test]
    fn names() {
        assert!(check_name("ci-2").is_ok());
        for bad in ["", "-a", "a/b", "..", "A"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }
}
