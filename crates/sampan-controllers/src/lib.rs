//! The controllers: one file each, on one small framework.
//!
//! They know the API only through `sampan-client`. What is hard in each is a pure function of what its caches hold; the
//! rest performs the writes. They patch, create and delete; they never put a typed object back. All read with one identity
//! (`system:kube-controller-manager`) from shared caches; each writes as its own service account.

pub mod conditions;
pub mod deployment;
pub mod discovery;
pub mod endpoints;
pub mod framework;
pub mod garbage;
pub mod ipam;
pub mod loadbalancer;
pub mod namespace;
pub mod namespaced;
pub mod node;
pub mod ownership;
pub mod podgc;
pub mod replicaset;
pub mod views;

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod testing;

use std::net::IpAddr;

use ipnet::IpNet;
use sampan_base::{Clock, Dice, task};
use sampan_client::ListOptions;
use sampan_client::informer::{Informer, View};

use framework::{ClientFor, Context, Resource, follow};

/// What the controllers have to know of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The ranges pods get addresses from, one for each address family.
    pub cluster_ranges: Vec<IpNet>,
    /// The prefix length of a node's own range: IPv4, IPv6.
    pub node_prefixes: (u8, u8),
    /// The authorities of the API server's certificate, PEM.
    pub root_ca: String,
    /// Given to Services of type LoadBalancer; none: they stay pending.
    pub load_balancer_addresses: Vec<IpAddr>,
}

/// The identity all controllers read with.
pub const READER: &str = "system:kube-controller-manager";

/// Runs all controllers until it is dropped. The caller leads (see `sampan_client::leader`), and `client_for` gives clients
/// with the leader's fence.
pub async fn run(client_for: ClientFor, config: Config, clock: Clock, dice: Dice) {
    let reader = client_for(READER);
    let context = |controller: &str| Context::new(controller, &client_for, &clock, &dice);
    fn all<V: View>(reader: &sampan_client::Client, resource: Resource, clock: &Clock) -> Informer<V> {
        follow(reader, resource, ListOptions::default(), clock)
    }
    let named =
        |name: &str| ListOptions { field_selector: Some(format!("metadata.name={name}")), ..ListOptions::default() };
    let pods = all::<views::Pod>(&reader, framework::PODS, &clock);
    let nodes = all::<views::Node>(&reader, framework::NODES, &clock);
    let namespaces = all::<views::Namespace>(&reader, framework::NAMESPACES, &clock);
    let replica_sets = all::<views::ReplicaSet>(&reader, framework::REPLICA_SETS, &clock);
    let deployments = all::<views::Deployment>(&reader, framework::DEPLOYMENTS, &clock);
    let services = all::<endpoints::Service>(&reader, framework::SERVICES, &clock);
    let slices = all::<endpoints::Slice>(&reader, framework::ENDPOINT_SLICES, &clock);
    let old_endpoints = all::<endpoints::Endpoints>(&reader, framework::ENDPOINTS, &clock);
    let accounts = follow::<namespaced::Present>(&reader, framework::SERVICE_ACCOUNTS, named("default"), &clock);
    let roots = follow::<namespaced::Present>(&reader, framework::CONFIG_MAPS, named(namespaced::ROOT_CA), &clock);
    let leases = Informer::<views::Lease>::spawn_in(
        reader.clone(),
        framework::LEASES.gvr(),
        Some(node::LEASES.into()),
        ListOptions::default(),
        clock.clone(),
    );
    let awake = node::Awake::new(clock.clone());
    let mut tasks = task::Group::default();
    tasks.spawn(
        "pod garbage collector",
        podgc::run(context("pod-garbage-collector"), pods.clone(), nodes.clone(), awake.clone()),
    );
    tasks.spawn("garbage collector", garbage::run(context("generic-garbage-collector"), reader.clone()));
    let (node_lifecycle, _ticker) =
        node::start(context("node-controller"), nodes.clone(), leases, pods.clone(), awake.clone());
    let _controllers = [
        node_lifecycle,
        node::start_eviction(context("node-controller"), nodes.clone(), pods.clone(), awake),
        ipam::start(context("node-controller"), nodes.clone(), config.cluster_ranges, config.node_prefixes),
        loadbalancer::start(context("service-controller"), services.clone(), config.load_balancer_addresses),
        namespaced::start(
            "service account",
            context("service-account-controller"),
            namespaces.clone(),
            accounts,
            namespaced::service_account(),
        ),
        namespaced::start(
            "root CA",
            context("root-ca-cert-publisher"),
            namespaces.clone(),
            roots,
            namespaced::root_ca(&config.root_ca),
        ),
        deployment::Deployments::start(
            context("deployment-controller"),
            deployments,
            replica_sets.clone(),
            pods.clone(),
        ),
        replicaset::ReplicaSets::start(context("replicaset-controller"), replica_sets, pods.clone()),
        endpoints::start_slices(
            context("endpointslice-controller"),
            services.clone(),
            pods.clone(),
            nodes.clone(),
            slices,
        ),
        endpoints::start_legacy(context("endpoint-controller"), services, pods, old_endpoints),
        namespace::Namespaces::start(context("namespace-controller"), namespaces),
    ];
    std::future::pending().await
}
