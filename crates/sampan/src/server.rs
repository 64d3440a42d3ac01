//! The control plane in one process: `sampan server`. This file is the composition root: it reads top to bottom.

mod parts;
mod pki;
mod roles;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::FromRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use sampan_apiserver::audit::{self, AuditLog};
use sampan_apiserver::auth::authn::{Certified, Chain};
use sampan_apiserver::auth::node::NodeAuthorizer;
use sampan_apiserver::auth::rbac::Rbac;
use sampan_apiserver::auth::review::Reviews;
use sampan_apiserver::auth::serviceaccount::Tokens;
use sampan_apiserver::auth::{Authorizer, Current, MASTERS, Union, hooks};
use sampan_apiserver::bootstrap::{self, policy};
use sampan_apiserver::lookup::Lookup;
use sampan_apiserver::streaming::Nodes;
use sampan_apiserver::{Local, Server, StoreLookup, Version, admission, expire, feed, listener};
use sampan_base::disk::{RealDisk, SharedDisk};
use sampan_base::{Clock, Dice, task};
use sampan_client::transport::Entry;
use sampan_client::{Client, InProcess};
use sampan_store::{History, KeyRing, Store};
use sampan_wire::tls;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::local::supervisor::LISTEN_FD;

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

/// Runs the control plane until it is told to end.
pub fn run(path: &Path) -> anyhow::Result<()> {
    sampan_base::logging::init("info");
    let config = Config::load(path)?;
    // Two threads carry all roles: a server must not be the busiest thing on a small machine.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let (clock, dice) = (Clock::system(), Dice::system());
    let disk: SharedDisk = Arc::new(RealDisk);
    let pki = Pki::prepare(&config, &clock)?;
    let store = open_store(&config, disk.clone(), &clock, &dice).await?;

    let lookup: Arc<dyn Lookup> = Arc::new(StoreLookup(store.clone()));
    let rbac = Arc::new(Rbac::default());
    let nodes = Arc::new(NodeAuthorizer::new(policy::node_rules()));
    let feed = feed(&store, &clock, vec![rbac.clone(), nodes.clone()]).await?;
    let issuer = format!("https://kubernetes.default.svc.{}", config.domain);
    let tls = tls::server_config(&pki.serving, &[pki.ca.certificate_pem()])?;
    let ca = pki.ca.certificate_pem().to_owned();
    let tokens = Arc::new(Tokens::new(&issuer, &[], pki.tokens, lookup.clone(), clock.clone(), dice.clone()));
    let union = Arc::new(Union(vec![nodes, rbac.clone()]));
    let authorizer: Arc<dyn Authorizer> = Arc::new(Current { authorizer: union, feed });
    let reviews = Reviews { authorizer: authorizer.clone(), rbac: rbac.clone(), tokens: tokens.clone() };
    let streaming = Nodes::new(&[&ca], &pki.node_client, clock.clone())?;
    let audit = AuditLog::start(disk, &config.data.join("audit"), audit::Limits::default());
    let openid = hooks::OpenId { tokens: tokens.clone(), server: format!("https://{}", config.advertise) };

    let server = Server::new(sampan_apiserver::Config {
        store: store.clone(),
        kinds: Arc::new(ArcSwap::new(sampan_api::kind::builtin())),
        authenticators: Chain(vec![Arc::new(Certified), tokens.clone()]),
        authorizer: authorizer.clone(),
        plugins: admission::plugins(&lookup, &rbac, &authorizer, &clock, &dice),
        computed: hooks::computed(reviews, &tokens, &lookup),
        streaming: Some(Arc::new(streaming)),
        audit: Some(Arc::new(audit)),
        pages: vec![Arc::new(openid)],
        writable: None,
        clock: clock.clone(),
        dice: dice.clone(),
        version: Version::default(),
        ranges: parts::ranges(&config)?,
        form_cache_bytes: 8 << 20,
    });

    // Clients may come as soon as the essentials are there; `/readyz` says when.
    let entry: Arc<dyn Entry> = Arc::new(Local(server.clone()));
    let own = Client::new(Arc::new(InProcess::new(entry.clone(), bootstrap::USER, &[MASTERS])));
    let own = own.named("kube-apiserver");
    let kubernetes = bootstrap::kubernetes::Config {
        service_ip: config.service_address()?,
        endpoints: vec![config.advertise.ip()],
        port: config.advertise.port(),
    };
    bootstrap::run(&own, &kubernetes).await.context("write the objects every cluster has")?;
    parts::dns_service(&own, &config).await.context("write the Service kube-dns")?;
    let mut tasks = task::Group::default();
    for listener in listeners(&config).await? {
        tasks.spawn("api", listener::serve(listener, tls.clone(), server.clone()));
    }
    tasks.spawn("kubernetes service", bootstrap::kubernetes::keep(own, kubernetes, clock.clone()));
    tasks.spawn("expiry of events", expire::run(server.clone()));
    roles::start(&mut tasks, &config, entry, &ca, &clock, &dice);

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        why = store.fatal() => anyhow::bail!("the state cannot be written any more: {why}"),
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    drop(tasks);
    store.close().await;
    Ok(())
}

async fn open_store(config: &Config, disk: SharedDisk, clock: &Clock, dice: &Dice) -> anyhow::Result<Store> {
    let directory = config.data.clone();
    let keys = {
        let (disk, path, dice) = (disk.clone(), config.pki.join("encryption-keys.json"), dice.clone());
        task::spawn_blocking(move || KeyRing::load_or_create(&*disk, &path, &dice)).await??
    };
    // Watches reach five minutes back, or this much where writes are many.
    let history = History { bytes: 8 << 20, ..History::default() };
    let store = Store::open(sampan_store::Config {
        disk,
        dir: directory,
        clock: clock.clone(),
        dice: dice.clone(),
        keys,
        history,
    });
    store.await.with_context(|| format!("open the state in {}", config.data.display()))
}

async fn listeners(config: &Config) -> anyhow::Result<Vec<TcpListener>> {
    let mut all = Vec::new();
    if config.inherited_socket {
        // SAFETY: whoever started us passed this descriptor for us to use; nothing else in this process does.
        let socket = unsafe { std::net::TcpListener::from_raw_fd(LISTEN_FD) };
        socket.set_nonblocking(true).context("use the inherited socket (descriptor 3)")?;
        all.push(TcpListener::from_std(socket)?);
    }
    for address in &config.listen {
        all.push(TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?);
    }
    Ok(all)
}
