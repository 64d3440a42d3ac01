//! What the binary tells the agent, and what it hands it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sampan_base::{Clock, Dice};
use sampan_client::Client;
use sampan_net::{PodNetwork, ServiceProxy};
use sampan_runtime::{Images, Runtime};

#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The node's name; `kubernetes.io/hostname` too.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// `key=value:Effect`, set at registration only.
    pub taints: Vec<k8s_openapi::api::core::v1::Taint>,
    /// Internal addresses, the primary family first.
    pub addresses: Vec<IpAddr>,
    /// Upstream's `/var/lib/kubelet`: pod directories, volumes, checkpoints.
    pub root: PathBuf,
    /// Upstream's `/var/log/pods`.
    pub log_root: PathBuf,
    /// Where volumes of the `local` class live: `CLAIM_ROOT/NAMESPACE_CLAIM`.
    pub claim_root: PathBuf,
    /// Addresses containers ask for names; empty: the host's own resolvers.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// The machine's resolver configuration.
    pub resolv_conf: PathBuf,
    pub max_pods: u32,
    /// Processes a pod may have, `None` for no limit.
    pub pod_pids_limit: Option<i64>,
    /// What is kept back from allocatable: CPU in thousandths, memory and disk in bytes.
    pub reserved_milli_cpu: i64,
    pub reserved_memory: i64,
    /// Where the node's own API listens; `None` does without.
    pub listen: Option<SocketAddr>,
    /// TLS of the node's own API, made by `sampan_wire::tls`; required with `listen`.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Who may call the node's own API: certificate common names or organisations.
    pub api_users: Vec<String>,
    /// `tmpfs` for secrets and memory volumes. Off where nothing may be mounted (tests, simulation).
    pub tmpfs: bool,
    /// `nodeInfo.kubeletVersion`
    pub version: String,
    pub heartbeat: Heartbeat,
}

/// How often the node tells that it is alive.
#[derive(Clone, Copy, Debug)]
pub struct Heartbeat {
    /// Renewal of the Lease.
    pub renew: Duration,
    pub lease: Duration,
    /// How often the status is looked at, and written when it changed.
    pub check: Duration,
    /// How often it is written although nothing changed.
    pub report: Duration,
}

impl Default for Heartbeat {
    /// Upstream's `nodeStatusUpdateFrequency`, `nodeStatusReportFrequency` and `nodeLeaseDurationSeconds`.
    fn default() -> Self {
        Self {
            renew: Duration::from_secs(10),
            lease: Duration::from_secs(40),
            check: Duration::from_secs(10),
            report: Duration::from_secs(300),
        }
    }
}

impl NodeConfig {
    /// A configuration with upstream's defaults for a node of this name.
    pub fn new(name: &str, root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self {
            name: name.into(),
            labels: BTreeMap::new(),
            taints: Vec::new(),
            addresses: Vec::new(),
            claim_root: root.join("claims"),
            root,
            log_root: "/var/log/pods".into(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".into(),
            resolv_conf: "/etc/resolv.conf".into(),
            max_pods: 110,
            pod_pids_limit: None,
            reserved_milli_cpu: 0,
            reserved_memory: 0,
            listen: None,
            tls: None,
            api_users: Vec::new(),
            tmpfs: true,
            version: concat!("v1.37.0+sampan", env!("CARGO_PKG_VERSION")).into(),
            heartbeat: Heartbeat::default(),
        }
    }
}

/// What the agent works with.
#[derive(Clone)]
pub struct Parts {
    pub client: Client,
    pub runtime: Arc<dyn Runtime>,
    pub images: Arc<dyn Images>,
    pub network: Arc<dyn PodNetwork>,
    pub proxy: Arc<dyn ServiceProxy>,
    pub clock: Clock,
    pub dice: Dice,
}

/// Why the agent cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("{path:?}: {source}")]
    Directory { path: PathBuf, source: std::io::Error },
    #[error("cannot list what the runtime has: {0}")]
    Runtime(#[from] sampan_runtime::Error),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: std::io::Error },
    #[error("{0}")]
    Config(&'static str),
}
