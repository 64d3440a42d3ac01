//! What stands behind a Service: EndpointSlices and, for old clients, Endpoints.
//!
//! [`backends`] says which pods serve under which ports; `slices` and `legacy` pack that into the two kinds with as few
//! writes as they can. The rules are upstream's (`k8s.io/endpointslice`, `pkg/controller/endpoint`). Services without a
//! selector are left to whoever wrote their endpoints. Topology hints are not made.

mod legacy;
mod slices;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sampan_api::labels::{Labels, Selector};
use sampan_api::object::{Meta, nullable};
use sampan_client::Error;
use sampan_client::api::decode;
use sampan_client::informer::{Informer, Key, View};
use sampan_client::queue::Queue;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::framework::{Context, Controller, ENDPOINT_SLICES, Expectations, Reconciler};
use crate::views::{Node, Pod};

pub use legacy::Endpoints;
pub use slices::Slice;

pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
pub const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
pub const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Service {
    pub metadata: Meta,
    pub spec: ServiceSpec,
    pub status: ServiceStatus,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpec {
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    #[serde(deserialize_with = "nullable")]
    pub selector: Labels,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<ServicePort>,
    #[serde(deserialize_with = "nullable")]
    pub ip_families: Vec<String>,
    pub publish_not_ready_addresses: bool,
    pub load_balancer_class: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServicePort {
    pub name: String,
    pub port: u16,
    pub protocol: String,
    pub target_port: Value,
    pub app_protocol: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceStatus {
    pub load_balancer: Value,
}

impl View for Service {
    fn decode(object: &Bytes) -> Result<Self, Error> {
        decode(object)
    }
}

impl Service {
    pub fn headless(&self) -> bool {
        self.spec.cluster_ip == "None"
    }

    fn selects(&self, pod: &Pod) -> bool {
        !self.spec.selector.is_empty() && Selector::equal_to(&self.spec.selector).matches(&pod.metadata.labels)
    }

    /// Labels that the Service's endpoints carry: its own, and what says that it is headless.
    fn passed_on(&self) -> Labels {
        let mut labels = self.metadata.labels.clone();
        labels.remove(HEADLESS);
        if self.headless() {
            labels.insert(HEADLESS.into(), String::new());
        }
        labels
    }
}

/// One port under which endpoints serve.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Port {
    pub name: String,
    pub port: u16,
    pub protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app_protocol: Option<String>,
}

/// One pod behind a Service, at one of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    pub address: IpAddr,
    pub ports: Vec<Port>,
    pub serving: bool,
    pub terminating: bool,
    pub ready: bool,
    pub node: String,
    pub zone: Option<String>,
    pub hostname: Option<String>,
    pub pod: String,
    pub uid: String,
}

/// The pods behind a Service, by name and address.
pub fn backends(service: &Service, pods: &[Arc<Pod>], zone: impl Fn(&str) -> Option<String>) -> Vec<Backend> {
    let mut all = Vec::new();
    for pod in pods.iter().filter(|pod| !pod.finished() && service.selects(pod)) {
        let ports = ports(service, pod);
        let (serving, terminating) = (pod.ready(), pod.terminating());
        let named = !pod.spec.hostname.is_empty() && pod.spec.subdomain == service.metadata.name;
        for address in pod.status.pod_ips.iter().filter_map(|one| one.ip.parse::<IpAddr>().ok()) {
            all.push(Backend {
                address,
                ports: ports.clone(),
                serving,
                terminating,
                ready: service.spec.publish_not_ready_addresses || serving && !terminating,
                node: pod.spec.node_name.clone(),
                zone: zone(&pod.spec.node_name),
                hostname: named.then(|| pod.spec.hostname.clone()),
                pod: pod.metadata.name.clone(),
                uid: pod.metadata.uid.clone(),
            });
        }
    }
    all.sort_by(|a, b| (&a.pod, a.address).cmp(&(&b.pod, b.address)));
    all
}

/// The Service's ports on this pod; one that the pod does not have is left out.
fn ports(service: &Service, pod: &Pod) -> Vec<Port> {
    let number = |port: &ServicePort| match &port.target_port {
        Value::String(name) => {
            let sidecars = pod.spec.init_containers.iter().filter(|one| one.restart_policy == "Always");
            let mut all = pod.spec.containers.iter().chain(sidecars).flat_map(|container| &container.ports);
            let protocol = |one: &str| if one.is_empty() { "TCP".to_owned() } else { one.to_owned() };
            all.find(|one| one.name == *name && protocol(&one.protocol) == protocol(&port.protocol))
                .map(|one| one.container_port)
        }
        Value::Number(number) => number.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|one| *one != 0),
        _ => None,
    };
    let mut found: Vec<Port> = Vec::new();
    for port in &service.spec.ports {
        // Without a target port the Service's own number is meant.
        let target = if port.target_port.is_null() { Some(port.port) } else { number(port) };
        let Some(number) = target else { continue };
        found.push(Port {
            name: port.name.clone(),
            port: number,
            protocol: if port.protocol.is_empty() { "TCP".into() } else { port.protocol.clone() },
            app_protocol: port.app_protocol.clone(),
        });
    }
    found.sort();
    found
}

/// Adds the Services whose endpoints a change concerns.
fn sources(controller: &mut Controller, services: &Informer<Service>, pods: &Informer<Pod>) {
    controller.source(services, |change| vec![change.key.clone()]);
    let known = services.clone();
    controller.source(pods, move |change| {
        let seen = [&change.old, &change.new];
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && same_endpoint(old, new)
        {
            return Vec::new();
        }
        let services = known.list_in(&change.key.namespace).into_iter();
        services
            .filter(|(_, service)| seen.iter().any(|side| side.as_ref().is_some_and(|pod| service.selects(pod))))
            .map(|(key, _)| key)
            .collect()
    });
}

/// Nothing has changed that endpoints are made of.
fn same_endpoint(old: &Pod, new: &Pod) -> bool {
    let facts = |pod: &Pod| (pod.ready(), pod.terminating(), pod.finished());
    old.metadata.uid == new.metadata.uid
        && old.metadata.labels == new.metadata.labels
        && old.spec == new.spec
        && old.status.pod_ips == new.status.pod_ips
        && facts(old) == facts(new)
}

struct Slices {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<Slice>,
    expectations: Expectations,
}

/// How soon to look again when the cache has not seen our writes; its events come sooner.
const STALE: Duration = Duration::from_secs(1);

/// Wires the EndpointSlice controller up; it runs until it is dropped.
pub fn start_slices(
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    slices: Informer<Slice>,
) -> Controller {
    let mut controller = Controller::new("endpointslice", &context.clock);
    sources(&mut controller, &services, &pods);
    controller.source(&slices, |change| {
        let sides = [&change.old, &change.new];
        let owners = sides.into_iter().flatten().filter_map(|slice| slice.service());
        let mut keys: Vec<Key> = owners.map(|name| Key::new(&change.key.namespace, name)).collect();
        keys.dedup();
        keys
    });
    on_zones(&mut controller, &nodes, services.clone());
    let ready = {
        let (services, pods, nodes, slices) = (services.clone(), pods.clone(), nodes.clone(), slices.clone());
        async move {
            services.synced().await;
            pods.synced().await;
            nodes.synced().await;
            slices.synced().await;
        }
    };
    let reconciler = Slices { context, services, pods, nodes, slices, expectations: Expectations::default() };
    controller.work(5, ready, Arc::new(reconciler));
    controller
}

/// A node that changes its zone, or comes with one, touches all Services.
fn on_zones(controller: &mut Controller, nodes: &Informer<Node>, services: Informer<Service>) {
    let queue: Queue<Key> = controller.queue.clone();
    controller.source(nodes, move |change| {
        let zone = |side: &Option<Arc<Node>>| side.as_ref().and_then(|node| node.metadata.labels.get(ZONE).cloned());
        if zone(&change.old) != zone(&change.new) {
            services.list().into_iter().for_each(|(key, _)| queue.add(key));
        }
        Vec::new()
    });
}

#[async_trait]
impl Reconciler for Slices {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(service) = self.services.get(key) else {
            // Its slices go with it: they name it as owner.
            self.expectations.forget(key);
            return Ok(None);
        };
        if service.spec.selector.is_empty() {
            return Ok(None);
        }
        if self.expectations.get(key).unknown {
            self.expectations.known(key, self.context.newest(ENDPOINT_SLICES, &key.namespace).await?);
        }
        if self.slices.seen() < self.expectations.get(key).revision {
            return Ok(Some(STALE));
        }
        let pods: Vec<Arc<Pod>> = self.pods.list_in(&key.namespace).into_iter().map(|(_, pod)| pod).collect();
        let present: Vec<Arc<Slice>> = self
            .slices
            .list_in(&key.namespace)
            .into_iter()
            .map(|(_, slice)| slice)
            .filter(|slice| slice.service() == Some(&key.name) && slice.ours())
            .collect();
        let zone = |node: &str| self.nodes.get(&Key::new("", node))?.metadata.labels.get(ZONE).cloned();
        for action in slices::plan(&service, &backends(&service, &pods, zone), &present) {
            match self.context.perform(&action).await {
                Ok(written) => self.expectations.wrote(key, written.metadata.revision()),
                Err(error) if error.is_not_found() => {}
                Err(error) if error.is_namespace_terminating() => return Ok(None),
                Err(error) => {
                    if error.status().is_none() {
                        self.expectations.unknown(key);
                    }
                    let about = crate::framework::SERVICES.reference(&service.metadata);
                    let message = format!("Error updating Endpoint Slices for Service {key}: {error}");
                    self.context.recorder.warning(&about, "FailedToUpdateEndpointSlices", message);
                    return Err(error);
                }
            }
        }
        Ok(None)
    }
}

struct Legacy {
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
}

/// Wires the Endpoints controller up; it runs until it is dropped.
pub fn start_legacy(
    context: Context,
    services: Informer<Service>,
    pods: Informer<Pod>,
    endpoints: Informer<Endpoints>,
) -> Controller {
    let mut controller = Controller::new("endpoint", &context.clock);
    sources(&mut controller, &services, &pods);
    controller.source(&endpoints, |change| change.old.iter().map(|_| change.key.clone()).collect());
    let ready = {
        let (services, pods, endpoints) = (services.clone(), pods.clone(), endpoints.clone());
        async move {
            services.synced().await;
            pods.synced().await;
            endpoints.synced().await;
        }
    };
    controller.work(5, ready, Arc::new(Legacy { context, services, pods, endpoints }));
    controller
}

#[async_trait]
impl Reconciler for Legacy {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let present = self.endpoints.get(key);
        let action = match self.services.get(key) {
            // Upstream removes the Endpoints of a Service that is gone here and now: they have no owner reference.
            None => present.filter(|present| present.managed()).map(|present| legacy::delete(&present)),
            Some(service) if service.spec.selector.is_empty() => None,
            Some(service) => {
                let pods: Vec<Arc<Pod>> = self.pods.list_in(&key.namespace).into_iter().map(|(_, pod)| pod).collect();
                let backends = backends(&service, &pods, |_| None);
                legacy::plan(&service, &backends, present.as_deref())
            }
        };
        let Some(action) = action else { return Ok(None) };
        match self.context.perform(&action).await {
            Err(error) if error.is_namespace_terminating() || error.is_not_found() => Ok(None),
            // The cache is behind: its event brings the key back.
            Err(error) if error.is_already_exists() => Ok(Some(STALE)),
            outcome => outcome.map(|_| None),
        }
    }
}

/// Groups by a key, in its order.
fn grouped<T, K: Ord>(all: impl IntoIterator<Item = T>, key: impl Fn(&T) -> K) -> BTreeMap<K, Vec<T>> {
    let mut groups: BTreeMap<K, Vec<T>> = BTreeMap::new();
    for one in all {
        groups.entry(key(&one)).or_default().push(one);
    }
    groups
}
