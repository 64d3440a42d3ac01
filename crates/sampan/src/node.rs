//! The node agent in one process: `sampan node`. Composition only; the agent is `sampan-node`.

mod control;
mod parts;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use ipnet::IpNet;
use sampan_base::disk::{RealDisk, SharedDisk};
use sampan_base::{Clock, Dice};
use sampan_client::Client;
use sampan_client::tls::Tls;
use sampan_net::dns::forward::Upstream;
use sampan_net::dns::{Dns, DnsConfig};
use sampan_net::node::{NodeConfig as NodeNetworkConfig, NodeNetwork};
use sampan_net::proxy::{Proxy, ProxyConfig};
use sampan_node::{NodeConfig, Parts};
use sampan_runtime::images::RegistryOptions;
use sampan_wire::pki::Identity;
use sampan_wire::tls;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

use crate::local::init::HOST_NETNS_FD;
use crate::local::root;
use crate::server;

/// Where the node's own API is, as everywhere.
const AGENT_PORT: u16 = 10250;

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
    /// Mirrors, proxies and authorities for image registries; what is not set comes from the environment.
    #[serde(default)]
    pub registries: RegistryOptions,
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
            registries: RegistryOptions::default(),
        }
    }
}

/// Runs the agent until it is told to end. Pods outlive it.
pub fn run(path: &Path) -> anyhow::Result<()> {
    sampan_base::logging::init("info");
    let config = Config::load(path)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let (clock, dice) = (Clock::system(), Dice::system());
    let disk: SharedDisk = Arc::new(RealDisk);
    let load = |name: &str| {
        let identity = Identity::load(&RealDisk, &config.pki, name)?;
        identity.with_context(|| format!("{}/{name}.crt is missing", config.pki.display()))
    };
    let (identity, proxy) = (load("node")?, load("proxy")?);
    let ca = config.pki.join("ca.crt");
    let ca = std::fs::read_to_string(&ca).with_context(|| format!("read {}", ca.display()))?;
    let servers: Vec<String> = config.servers.iter().map(SocketAddr::to_string).collect();
    let client =
        |identity| anyhow::Ok(Client::new(Arc::new(Tls::new(&servers, &[&ca], Some(identity), clock.clone())?)));
    let (network_client, client) = (client(&proxy)?.named("kube-proxy"), client(&identity)?.named("kubelet"));
    // Registries and name servers are the host's business where the node is not the host.
    let outside = config.host_netns.then(|| PathBuf::from(format!("/proc/self/fd/{HOST_NETNS_FD}")));

    let network = NodeNetwork::spawn(
        network_client.clone(),
        NodeNetworkConfig {
            name: config.name.clone(),
            addresses: config.addresses.clone(),
            pod_ranges: config.pod_ranges.clone(),
            disk,
            directory: config.data.join("addresses"),
        },
        clock.clone(),
    );
    let proxy = Proxy::spawn(
        network_client.clone(),
        ProxyConfig { node: config.name.clone(), own: vec![config.dns] },
        clock.clone(),
    );
    let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let _dns = Dns::start(
        network_client,
        DnsConfig {
            address: config.dns,
            domain: config.domain.clone(),
            upstream: Upstream::parse(&resolv_conf, outside.clone()),
        },
        clock.clone(),
        dice.clone(),
    )
    .await?;

    let (runtime, images) = parts::runtime(&config, outside, &clock, &dice).await?;
    let mut agent = NodeConfig::new(&config.name, "/var/lib/kubelet");
    agent.addresses.clone_from(&config.addresses);
    agent.cluster_dns = vec![config.dns];
    agent.cluster_domain.clone_from(&config.domain);
    agent.listen = config.addresses.first().map(|address| SocketAddr::new(*address, AGENT_PORT));
    agent.tls = Some(tls::server_config(&identity, &[&ca])?);
    agent.api_users = vec!["kube-apiserver-kubelet-client".into()];
    let parts = Parts {
        client,
        runtime,
        images: images.clone(),
        network: Arc::new(network),
        proxy: Arc::new(proxy),
        clock,
        dice,
    };

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let socket = config.data.join("agent.sock");
    tokio::select! {
        ended = sampan_node::run(agent, parts) => match ended {
            Ok(never) => match never {},
            Err(error) => Err(error.into()),
        },
        ended = control::serve(&socket, images) => match ended {
            Ok(never) => match never {},
            Err(error) => Err(error),
        },
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
