//! From one Service and its endpoints to the elements of the proxy's maps and sets. Pure: the same input gives the same
//! elements; what changed is the difference of two results.
//!
//! The layout is flat: a verdict map leads from each front (address, protocol, port) to a chain that only depends on the
//! number of endpoints; that chain draws an index and finds the endpoint in one big map. So a change of a Service is a
//! change of a few elements, whatever the number of Services (measured: `docs/performance.md`).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::views::{Service, ServicePort, Slice};

/// Upstream's protocols, by their IP numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "TCP" | "" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            "SCTP" => Some(Self::Sctp),
            _ => None,
        }
    }

    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// Where clients knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Front {
    /// A cluster address, load-balancer address or external address.
    Address(IpAddr, Protocol, u16),
    /// This port on every address of the node; the flag says IPv4.
    NodePort(bool, Protocol, u16),
}

impl Front {
    pub fn is_ipv4(self) -> bool {
        match self {
            Self::Address(address, ..) => address.is_ipv4(),
            Self::NodePort(v4, ..) => v4,
        }
    }

    pub fn protocol(self) -> Protocol {
        match self {
            Self::Address(_, protocol, _) | Self::NodePort(_, protocol, _) => protocol,
        }
    }
}

/// One element of a map or set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// Front → chain for that many endpoints.
    Front(Front, Fate),
    /// (Front, index) → endpoint.
    Endpoint(Front, u32, IpAddr, u16),
    /// The front has no endpoint anywhere: connections are refused.
    Refuse(Front),
    /// The client's address gives way to the node's, so that the answer comes back through here.
    Masquerade(Front),
    /// A pod of this node that may reach itself through a Service: same treatment.
    Hairpin(IpAddr),
}

/// What happens to a packet that knocks at a front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// One of so many endpoints, at random.
    Balance(u32),
    /// The same endpoint for the same client, for so many seconds.
    Sticky(u32, u32),
    /// The policy wants an endpoint of this node and there is none.
    Drop,
}

/// Upstream's default for `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_SECONDS: u32 = 10_800;

/// An endpoint that a front may lead to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Target {
    address: IpAddr,
    port: u16,
    local: bool,
}

/// All elements of one Service. `node` is this node's name.
pub fn compile<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: &str,
) -> BTreeSet<Element> {
    let mut elements = BTreeSet::new();
    if service.headless() || service.spec.kind == "ExternalName" {
        return elements;
    }
    for port in &service.spec.ports {
        let Some(protocol) = Protocol::parse(&port.protocol) else { continue };
        for v4 in [true, false] {
            let targets = targets(service, port, slices.clone(), v4, node);
            for (front, external) in
                fronts(service, port, protocol).into_iter().filter(|(front, _)| front.is_ipv4() == v4)
            {
                add_front(service, front, external, &targets, &mut elements);
            }
        }
    }
    elements
}

/// The fronts of a port, and whether each is for clients from outside.
fn fronts(service: &Service, port: &ServicePort, protocol: Protocol) -> Vec<(Front, bool)> {
    let mut fronts: Vec<(Front, bool)> =
        service.addresses().map(|address| (Front::Address(address, protocol, port.port), false)).collect();
    let balanced = service.status.load_balancer.ingress.iter();
    let balanced = balanced.filter(|one| one.ip_mode.as_deref() != Some("Proxy")).filter_map(|one| one.ip);
    let outside = service.spec.external_ips.iter().copied().chain(balanced);
    fronts.extend(outside.map(|address| (Front::Address(address, protocol, port.port), true)));
    if port.node_port != 0 {
        let families: BTreeSet<bool> = service.addresses().map(|address| address.is_ipv4()).collect();
        fronts.extend(families.into_iter().map(|v4| (Front::NodePort(v4, protocol, port.node_port), true)));
    }
    fronts
}

fn add_front(
    service: &Service,
    front: Front,
    external: bool,
    targets: &BTreeSet<Target>,
    elements: &mut BTreeSet<Element>,
) {
    let local_only = if external {
        service.spec.external_traffic_policy == "Local"
    } else {
        service.spec.internal_traffic_policy.as_deref() == Some("Local")
    };
    if targets.is_empty() {
        elements.insert(Element::Refuse(front));
        return;
    }
    let chosen: Vec<&Target> = targets.iter().filter(|target| target.local || !local_only).collect();
    let count = u32::try_from(chosen.len()).unwrap_or(u32::MAX);
    let fate = match service.spec.session_affinity.as_str() {
        _ if count == 0 => Fate::Drop,
        "ClientIP" => {
            let seconds = service.spec.session_affinity_config.client_ip.timeout_seconds;
            Fate::Sticky(count, seconds.unwrap_or(AFFINITY_SECONDS))
        }
        _ => Fate::Balance(count),
    };
    elements.insert(Element::Front(front, fate));
    for (index, target) in (0..).zip(&chosen) {
        elements.insert(Element::Endpoint(front, index, target.address, target.port));
        if target.local {
            elements.insert(Element::Hairpin(target.address));
        }
    }
    if external && !local_only && count > 0 {
        elements.insert(Element::Masquerade(front));
    }
}

/// The endpoints of a port: the ready ones; when there is none, those that still serve while they terminate, as
/// upstream's proxies do.
fn targets<'a>(
    service: &Service,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a Slice>,
    v4: bool,
    node: &str,
) -> BTreeSet<Target> {
    let mut ready = BTreeSet::new();
    let mut serving = BTreeSet::new();
    for slice in slices.filter(|slice| slice.address_type == if v4 { "IPv4" } else { "IPv6" }) {
        let number = slice.ports.iter().find(|one| {
            one.name.as_deref().unwrap_or_default() == port.name
                && one.protocol.as_deref().unwrap_or("TCP")
                    == if port.protocol.is_empty() { "TCP" } else { &port.protocol }
        });
        let Some(number) = number.and_then(|one| one.port) else { continue };
        for endpoint in &slice.endpoints {
            let local = endpoint.node_name.as_deref() == Some(node);
            // All addresses of an endpoint are the same backend: the first stands for it.
            let Some(address) = endpoint.addresses().next() else { continue };
            let target = Target { address, port: number, local };
            if endpoint.ready() || service.spec.publish_not_ready_addresses {
                ready.insert(target);
            } else if endpoint.conditions.serving.unwrap_or(true) && endpoint.conditions.terminating == Some(true) {
                serving.insert(target);
            }
        }
    }
    if ready.is_empty() { serving } else { ready }
}

/// What one change of one Service means for the kernel: elements that go and elements that come. An element two Services
/// claim stays with the first.
#[derive(Debug, Default)]
pub struct Book {
    /// Each element and how many Services want it (hairpins are shared; fronts should not be).
    counts: BTreeMap<Element, u32>,
    /// A front is unique in the kernel: who holds each.
    holders: BTreeMap<Front, String>,
    by_service: BTreeMap<String, BTreeSet<Element>>,
}

/// What must be unique: an element's front.
fn front(element: &Element) -> Option<Front> {
    match element {
        Element::Front(front, _)
        | Element::Endpoint(front, ..)
        | Element::Refuse(front)
        | Element::Masquerade(front) => Some(*front),
        Element::Hairpin(_) => None,
    }
}

/// The difference between two states.
#[derive(Debug, Default, PartialEq)]
pub struct Delta {
    pub remove: Vec<Element>,
    pub add: Vec<Element>,
}

impl Book {
    /// Sets the elements of one Service and returns what changes.
    pub fn set(&mut self, service: &str, wanted: BTreeSet<Element>) -> Delta {
        let before = self.by_service.remove(service).unwrap_or_default();
        for front in before.iter().filter_map(front) {
            if self.holders.get(&front).is_some_and(|holder| holder == service) {
                self.holders.remove(&front);
            }
        }
        let allowed: BTreeSet<Element> = wanted
            .into_iter()
            .filter(|element| match front(element) {
                Some(front) => self.holders.entry(front).or_insert_with(|| service.to_owned()) == service,
                None => true,
            })
            .collect();
        let mut delta = Delta::default();
        for element in before.difference(&allowed) {
            if let Some(count) = self.counts.get_mut(element) {
                *count -= 1;
                if *count == 0 {
                    self.counts.remove(element);
                    delta.remove.push(*element);
                }
            }
        }
        for element in allowed.difference(&before) {
            let count = self.counts.entry(*element).or_default();
            *count += 1;
            if *count == 1 {
                delta.add.push(*element);
            }
        }
        if !allowed.is_empty() {
            self.by_service.insert(service.to_owned(), allowed);
        }
        delta
    }

    /// Everything there is.
    pub fn all(&self) -> impl Iterator<Item = &Element> {
        self.counts.keys()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn service(spec: serde_json::Value) -> Service {
        let mut object = json!({"metadata": {"namespace": "default", "name": "web"}, "spec": {"type": "ClusterIP",
            "clusterIPs": ["10.0.0.7"], "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 0}]}});
        for (key, value) in spec.as_object().expect("an object") {
            object["spec"][key] = value.clone();
        }
        serde_json::from_value(object).expect("a service")
    }

    fn slice() -> Slice {
        serde_json::from_value(json!({"metadata": {"name": "web-1"}, "addressType": "IPv4",
            "ports": [{"name": "http", "protocol": "TCP", "port": 8080}],
            "endpoints": [
                {"addresses": ["10.1.0.2"], "nodeName": "here", "conditions": {"ready": true}},
                {"addresses": ["10.1.1.2"], "nodeName": "there", "conditions": {"ready": true}},
                {"addresses": ["10.1.1.3"], "nodeName": "there",
                 "conditions": {"ready": false, "serving": true, "terminating": true}}]}))
        .expect("a slice")
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    fn cluster_front() -> Front {
        Front::Address(address("10.0.0.7"), Protocol::Tcp, 80)
    }

    #[test]
    fn ready_endpoints_are_balanced() {
        let elements = compile(&service(json!({})), [&slice()].into_iter(), "here");
        let front = cluster_front();
        assert_eq!(
            elements.into_iter().collect::<Vec<_>>(),
            [
                Element::Front(front, Fate::Balance(2)),
                Element::Endpoint(front, 0, address("10.1.0.2"), 8080),
                Element::Endpoint(front, 1, address("10.1.1.2"), 8080),
                Element::Hairpin(address("10.1.0.2")),
            ]
        );
    }

    #[test]
    fn without_ready_endpoints_terminating_ones_serve_and_then_none() {
        let mut slice = slice();
        slice.endpoints.drain(..2);
        let elements = compile(&service(json!({})), [&slice].into_iter(), "here");
        assert!(elements.contains(&Element::Endpoint(cluster_front(), 0, address("10.1.1.3"), 8080)));
        let none = compile(&service(json!({})), std::iter::empty(), "here");
        assert_eq!(none.into_iter().collect::<Vec<_>>(), [Element::Refuse(cluster_front())]);
    }

    #[test]
    fn local_policies() {
        let spec = json!({"type": "NodePort", "externalTrafficPolicy": "Local",
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}]});
        let front = Front::NodePort(true, Protocol::Tcp, 30080);
        let here = compile(&service(spec.clone()), [&slice()].into_iter(), "here");
        assert!(here.contains(&Element::Front(front, Fate::Balance(1))));
        assert!(!here.contains(&Element::Masquerade(front)), "the client's address is kept");
        let elsewhere = compile(&service(spec), [&slice()].into_iter(), "elsewhere");
        assert!(elsewhere.contains(&Element::Front(front, Fate::Drop)));
    }

    #[test]
    fn the_first_service_keeps_a_front() {
        let mut book = Book::default();
        let front = cluster_front();
        let one = BTreeSet::from([Element::Front(front, Fate::Balance(1))]);
        let two = BTreeSet::from([Element::Front(front, Fate::Balance(2))]);
        assert_eq!(book.set("a", one.clone()).add.len(), 1);
        assert_eq!(book.set("b", two), Delta::default());
        assert_eq!(book.set("a", BTreeSet::new()).remove, one.into_iter().collect::<Vec<_>>());
    }

    proptest! {
        /// The kernel's state is what the book says, whatever the history.
        #[test]
        fn deltas_add_up(history in proptest::collection::vec((0..4_u8, proptest::collection::btree_set(0..6_u8, 0..4)), 0..40)) {
            let mut book = Book::default();
            let mut kernel = BTreeSet::new();
            for (service, addresses) in history {
                let wanted = addresses.iter().map(|last| Element::Hairpin(IpAddr::from([10, 0, 0, *last])));
                let front = Front::Address(IpAddr::from([10, 9, 0, addresses.len() as u8]), Protocol::Udp, 53);
                let wanted = wanted.chain([Element::Refuse(front)]).collect();
                let delta = book.set(&service.to_string(), wanted);
                for element in delta.remove {
                    prop_assert!(kernel.remove(&element));
                }
                for element in delta.add {
                    prop_assert!(kernel.insert(element));
                }
                prop_assert_eq!(&kernel, &book.all().copied().collect::<BTreeSet<_>>());
            }
        }
    }
}
