//! The cluster's names, after the published Kubernetes DNS specification (github.com/kubernetes/dns, docs/specification.md,
//! version 1.1.0): a pure answer from what the zone holds. No sockets, no clock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use sampan_client::informer::Key;

use crate::views::{Endpoint, Service, Slice};

/// Seconds a client may keep an answer: endpoints change at any time.
const TTL: u32 = 5;

/// Services and their endpoints, by name and by address.
#[derive(Debug)]
pub struct Zone {
    /// The cluster domain's labels, last first: `["local", "cluster"]`.
    domain: Vec<String>,
    services: BTreeMap<Key, Entry>,
    /// Addresses that have a name of their own: cluster addresses and endpoints of headless Services.
    by_address: HashMap<IpAddr, BTreeSet<String>>,
}

#[derive(Debug, Default)]
struct Entry {
    service: Option<Arc<Service>>,
    slices: BTreeMap<String, Arc<Slice>>,
    /// What this entry has put into `by_address`.
    names: Vec<(IpAddr, String)>,
}

/// What the zone says to a question.
#[derive(Debug, PartialEq)]
pub enum Answer {
    /// The name is not in the cluster's domain.
    NotOurs,
    /// The name does not exist.
    NoSuchName,
    /// Records of the asked type (none: the name exists without them), and addresses that go with them.
    Records { answers: Vec<Record>, additionals: Vec<Record> },
    /// The name stands for another one outside; the record leads there.
    Alias(Box<(Record, Name)>),
}

impl Answer {
    fn records(answers: Vec<Record>) -> Self {
        Self::Records { answers, additionals: Vec::new() }
    }
}

impl Zone {
    /// `domain` without the final dot: `cluster.local`.
    pub fn new(domain: &str) -> Self {
        let domain = domain.split('.').rev().map(str::to_ascii_lowercase).collect();
        Self { domain, services: BTreeMap::new(), by_address: HashMap::new() }
    }

    pub fn set_service(&mut self, key: Key, service: Option<Arc<Service>>) {
        self.change(key, |entry| entry.service = service);
    }

    /// A slice came, changed (`old` names its former Service) or went.
    pub fn set_slice(&mut self, key: &Key, old: Option<&Slice>, new: Option<Arc<Slice>>) {
        let owner = |slice: &Slice| slice.service().map(|service| Key::new(key.namespace.clone(), service));
        let before = old.and_then(owner);
        let after = new.as_deref().and_then(owner);
        if let Some(service) = before.filter(|before| Some(before) != after.as_ref()) {
            self.change(service, |entry| {
                entry.slices.remove(&key.name);
            });
        }
        if let (Some(service), Some(slice)) = (after, new) {
            self.change(service, |entry| {
                entry.slices.insert(key.name.clone(), slice);
            });
        }
    }

    fn change(&mut self, key: Key, change: impl FnOnce(&mut Entry)) {
        let mut entry = self.services.remove(&key).unwrap_or_default();
        for (address, name) in entry.names.drain(..) {
            if let Some(names) = self.by_address.get_mut(&address) {
                names.remove(&name);
                if names.is_empty() {
                    self.by_address.remove(&address);
                }
            }
        }
        change(&mut entry);
        if entry.service.is_none() && entry.slices.is_empty() {
            return;
        }
        entry.names = entry.reverse_names(&key, &self.suffix());
        for (address, name) in &entry.names {
            self.by_address.entry(*address).or_default().insert(name.clone());
        }
        self.services.insert(key, entry);
    }

    /// `svc.cluster.local.`
    fn suffix(&self) -> String {
        let mut text = "svc".to_owned();
        for label in self.domain.iter().rev() {
            text.push('.');
            text.push_str(label);
        }
        text.push('.');
        text
    }

    /// Answers one question.
    pub fn answer(&self, name: &Name, kind: RecordType) -> Answer {
        if let Ok(network) = name.parse_arpa_name() {
            return self.reverse(name, network.addr(), kind);
        }
        let labels: Vec<String> =
            name.iter().rev().map(|label| String::from_utf8_lossy(label).to_ascii_lowercase()).collect();
        let Some(rest) = labels.strip_prefix(self.domain.as_slice()) else { return Answer::NotOurs };
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        match rest.as_slice() {
            [] => Answer::records(if kind == RecordType::SOA { vec![self.soa()] } else { Vec::new() }),
            ["dns-version"] => Answer::records(match kind {
                RecordType::TXT => {
                    vec![Record::from_rdata(name.clone(), TTL, RData::TXT(TXT::new(vec!["1.1.0".into()])))]
                }
                _ => Vec::new(),
            }),
            ["svc" | "pod"] => Answer::records(Vec::new()),
            ["svc", namespace] => self.namespace(namespace),
            ["svc", namespace, service, rest @ ..] => match self.services.get(&Key::new(*namespace, *service)) {
                Some(entry) => self.service(name, entry, rest, kind),
                None => Answer::NoSuchName,
            },
            ["pod", _namespace] => Answer::records(Vec::new()),
            ["pod", _namespace, address] => match undashed(address) {
                Some(address) => Answer::records(addresses(name, [address].into_iter(), kind)),
                None => Answer::NoSuchName,
            },
            _ => Answer::NoSuchName,
        }
    }

    fn namespace(&self, namespace: &str) -> Answer {
        let first = self.services.range(Key::new(namespace, "")..).next();
        if first.is_some_and(|(key, _)| key.namespace == namespace) {
            Answer::records(Vec::new())
        } else {
            Answer::NoSuchName
        }
    }

    fn service(&self, name: &Name, entry: &Entry, rest: &[&str], kind: RecordType) -> Answer {
        let Some(service) = &entry.service else { return Answer::NoSuchName };
        if service.spec.kind == "ExternalName" {
            let target = Name::from_str(&format!("{}.", service.spec.external_name.trim_end_matches('.')));
            return match (rest, target) {
                ([], Ok(target)) => {
                    let record = Record::from_rdata(name.clone(), TTL, RData::CNAME(CNAME(target.clone())));
                    Answer::Alias(Box::new((record, target)))
                }
                _ => Answer::NoSuchName,
            };
        }
        match rest {
            [] if service.headless() => {
                let endpoints: BTreeSet<IpAddr> = entry.endpoints().flat_map(Endpoint::addresses).collect();
                // A headless Service without endpoints has no name.
                if endpoints.is_empty() {
                    Answer::NoSuchName
                } else {
                    Answer::records(addresses(name, endpoints.into_iter(), kind))
                }
            }
            [] => Answer::records(addresses(name, service.addresses(), kind)),
            [protocol, port] if protocol.starts_with('_') && port.starts_with('_') => {
                self.srv(name, entry, service, &port[1..], &protocol[1..], kind)
            }
            [protocol] if protocol.starts_with('_') => {
                let known = service.spec.ports.iter().any(|port| port.protocol.eq_ignore_ascii_case(&protocol[1..]));
                if known { Answer::records(Vec::new()) } else { Answer::NoSuchName }
            }
            [host] if service.headless() => {
                let named = entry.endpoints().filter(|endpoint| endpoint_names(endpoint).any(|one| one == *host));
                let found: BTreeSet<IpAddr> = named.flat_map(Endpoint::addresses).collect();
                if found.is_empty() {
                    Answer::NoSuchName
                } else {
                    Answer::records(addresses(name, found.into_iter(), kind))
                }
            }
            _ => Answer::NoSuchName,
        }
    }

    /// `_port._protocol.service.namespace.svc`: the Service itself, or each endpoint of a headless one.
    fn srv(
        &self,
        name: &Name,
        entry: &Entry,
        service: &Service,
        port: &str,
        protocol: &str,
        kind: RecordType,
    ) -> Answer {
        let base = name.trim_to(usize::from(name.num_labels()).saturating_sub(2));
        let mut targets: Vec<(Name, IpAddr, u16)> = Vec::new();
        if service.headless() {
            for (slice, endpoint) in entry.endpoints_with_slices() {
                let matching = slice.ports.iter().filter(|one| {
                    one.name.as_deref().unwrap_or_default() == port
                        && one.protocol.as_deref().unwrap_or("TCP").eq_ignore_ascii_case(protocol)
                });
                for number in matching.filter_map(|one| one.port) {
                    for address in endpoint.addresses() {
                        let host = endpoint.hostname.clone().unwrap_or_else(|| dashed(address));
                        if let Ok(target) = base.prepend_label(host.as_str()) {
                            targets.push((target, address, number));
                        }
                    }
                }
            }
        } else {
            let matching =
                service.spec.ports.iter().filter(|one| one.name == port && one.protocol.eq_ignore_ascii_case(protocol));
            for one in matching {
                targets.extend(service.addresses().map(|address| (base.clone(), address, one.port)));
            }
        }
        if targets.is_empty() {
            return Answer::NoSuchName;
        }
        if kind != RecordType::SRV {
            return Answer::records(Vec::new());
        }
        let pairs: BTreeSet<(Name, u16)> = targets.iter().map(|(target, _, port)| (target.clone(), *port)).collect();
        let weight = u16::try_from(100 / pairs.len().max(1)).unwrap_or(1).max(1);
        let answers = pairs
            .into_iter()
            .map(|(target, port)| Record::from_rdata(name.clone(), TTL, RData::SRV(SRV::new(0, weight, port, target))))
            .collect();
        let hosts: BTreeSet<(Name, IpAddr)> =
            targets.into_iter().map(|(target, address, _)| (target, address)).collect();
        let additionals = hosts.into_iter().map(|(target, address)| address_record(&target, address)).collect();
        Answer::Records { answers, additionals }
    }

    fn reverse(&self, name: &Name, address: IpAddr, kind: RecordType) -> Answer {
        let Some(names) = self.by_address.get(&address) else { return Answer::NotOurs };
        if kind != RecordType::PTR {
            return Answer::records(Vec::new());
        }
        let records = names.iter().filter_map(|target| {
            let target = Name::from_str(target).ok()?;
            Some(Record::from_rdata(name.clone(), TTL, RData::PTR(PTR(target))))
        });
        Answer::records(records.collect())
    }

    /// What goes with a negative answer, so that clients remember it no longer than a positive one.
    pub fn soa(&self) -> Record {
        let text: Vec<&str> = self.domain.iter().rev().map(String::as_str).collect();
        let origin = Name::from_str(&format!("{}.", text.join("."))).unwrap_or_else(|_| Name::root());
        let host = |label: &str| origin.prepend_label(label).unwrap_or_else(|_| origin.clone());
        let soa = SOA::new(host("ns"), host("hostmaster"), 1, 7200, 1800, 86400, TTL);
        Record::from_rdata(origin.clone(), TTL, RData::SOA(soa))
    }
}

impl Entry {
    /// The endpoints that names lead to: ready ones, or all where the Service asks for it.
    fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.endpoints_with_slices().map(|(_, endpoint)| endpoint)
    }

    fn endpoints_with_slices(&self) -> impl Iterator<Item = (&Slice, &Endpoint)> {
        let all = self.service.as_ref().is_some_and(|service| service.spec.publish_not_ready_addresses);
        self.slices
            .values()
            .flat_map(|slice| slice.endpoints.iter().map(move |endpoint| (&**slice, endpoint)))
            .filter(move |(_, endpoint)| all || endpoint.ready())
    }

    fn reverse_names(&self, key: &Key, suffix: &str) -> Vec<(IpAddr, String)> {
        let Some(service) = &self.service else { return Vec::new() };
        let own = format!("{}.{}.{suffix}", key.name, key.namespace);
        if !service.headless() {
            return service.addresses().map(|address| (address, own.clone())).collect();
        }
        let named = |endpoint: &Endpoint| {
            let host = endpoint.hostname.clone();
            let own = own.clone();
            endpoint
                .addresses()
                .map(move |address| {
                    let host = host.clone().unwrap_or_else(|| dashed(address));
                    (address, format!("{host}.{own}"))
                })
                .collect::<Vec<_>>()
        };
        self.endpoints().flat_map(named).collect()
    }
}

/// The names below its Service that an endpoint answers to: its hostname, and its addresses with dashes.
fn endpoint_names(endpoint: &Endpoint) -> impl Iterator<Item = String> {
    endpoint.hostname.clone().into_iter().chain(endpoint.addresses().map(dashed))
}

/// `10-1-2-3`, `2001-db8--1`.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| label.replace('-', ":").parse::<Ipv6Addr>().map(IpAddr::V6)).ok()
}

fn address_record(name: &Name, address: IpAddr) -> Record {
    let data = match address {
        IpAddr::V4(v4) => RData::A(A(v4)),
        IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
    };
    Record::from_rdata(name.clone(), TTL, data)
}

/// Those of the asked family.
fn addresses(name: &Name, all: impl Iterator<Item = IpAddr>, kind: RecordType) -> Vec<Record> {
    let wanted = |address: &IpAddr| match kind {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    all.filter(wanted).map(|address| address_record(name, address)).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn zone() -> Zone {
        let mut zone = Zone::new("cluster.local");
        let mut add = |object: Value| {
            let key = Key::new(
                object["metadata"]["namespace"].as_str().unwrap_or_default(),
                object["metadata"]["name"].as_str().unwrap_or_default(),
            );
            if object.get("endpoints").is_some() {
                zone.set_slice(&key, None, Some(Arc::new(serde_json::from_value(object).expect("a slice"))));
            } else {
                zone.set_service(key, Some(Arc::new(serde_json::from_value(object).expect("a service"))));
            }
        };
        add(json!({"metadata": {"namespace": "default", "name": "web"}, "spec": {"type": "ClusterIP",
            "clusterIPs": ["10.0.0.7"], "ports": [{"name": "http", "protocol": "TCP", "port": 80}]}}));
        add(json!({"metadata": {"namespace": "default", "name": "db"}, "spec": {"type": "ClusterIP",
            "clusterIPs": ["None"], "ports": [{"name": "sql", "protocol": "TCP", "port": 5432}]}}));
        add(json!({"metadata": {"namespace": "default", "name": "away"},
            "spec": {"type": "ExternalName", "externalName": "example.com"}}));
        add(
            json!({"metadata": {"namespace": "default", "name": "db-1", "labels": {"kubernetes.io/service-name": "db"}},
            "addressType": "IPv4", "ports": [{"name": "sql", "protocol": "TCP", "port": 5432}],
            "endpoints": [
                {"addresses": ["10.1.0.2"], "hostname": "db-0", "conditions": {"ready": true}},
                {"addresses": ["10.1.0.3"], "conditions": {"ready": true}},
                {"addresses": ["10.1.0.4"], "conditions": {"ready": false}}]}),
        );
        zone
    }

    /// The answer as sorted text; `-` for a name without such records, `!` for no name, `?` for not ours.
    fn ask(zone: &Zone, name: &str, kind: RecordType) -> String {
        match zone.answer(&Name::from_str(name).expect("a name"), kind) {
            Answer::NotOurs => "?".into(),
            Answer::NoSuchName => "!".into(),
            Answer::Alias(alias) => format!("-> {}", alias.1),
            Answer::Records { answers, .. } if answers.is_empty() => "-".into(),
            Answer::Records { answers, .. } => {
                let mut texts: Vec<String> = answers.iter().map(|record| record.data.to_string()).collect();
                texts.sort();
                texts.join(" ")
            }
        }
    }

    #[test]
    fn the_published_specification() {
        use RecordType::{A, AAAA, PTR, SRV, TXT};
        let zone = zone();
        for (name, kind, expected) in [
            ("web.default.svc.cluster.local.", A, "10.0.0.7"),
            ("WEB.Default.svc.cluster.local.", A, "10.0.0.7"),
            ("web.default.svc.cluster.local.", AAAA, "-"),
            ("none.default.svc.cluster.local.", A, "!"),
            ("web.other.svc.cluster.local.", A, "!"),
            ("default.svc.cluster.local.", A, "-"),
            ("other.svc.cluster.local.", A, "!"),
            ("db.default.svc.cluster.local.", A, "10.1.0.2 10.1.0.3"),
            ("db-0.db.default.svc.cluster.local.", A, "10.1.0.2"),
            ("10-1-0-3.db.default.svc.cluster.local.", A, "10.1.0.3"),
            ("db-9.db.default.svc.cluster.local.", A, "!"),
            ("db-0.web.default.svc.cluster.local.", A, "!"),
            ("_http._tcp.web.default.svc.cluster.local.", SRV, "0 100 80 web.default.svc.cluster.local."),
            ("_http._udp.web.default.svc.cluster.local.", SRV, "!"),
            ("_tcp.web.default.svc.cluster.local.", SRV, "-"),
            (
                "_sql._tcp.db.default.svc.cluster.local.",
                SRV,
                "0 50 5432 10-1-0-3.db.default.svc.cluster.local. 0 50 5432 db-0.db.default.svc.cluster.local.",
            ),
            ("away.default.svc.cluster.local.", A, "-> example.com."),
            ("10-9-8-7.default.pod.cluster.local.", A, "10.9.8.7"),
            ("7.0.0.10.in-addr.arpa.", PTR, "web.default.svc.cluster.local."),
            ("2.0.1.10.in-addr.arpa.", PTR, "db-0.db.default.svc.cluster.local."),
            ("4.0.1.10.in-addr.arpa.", PTR, "?"),
            ("dns-version.cluster.local.", TXT, "1.1.0"),
            ("example.com.", A, "?"),
            ("foo.cluster.local.", A, "!"),
        ] {
            assert_eq!(ask(&zone, name, kind), expected, "{name} {kind}");
        }
    }

    #[test]
    fn names_go_with_their_objects() {
        let mut zone = zone();
        zone.set_service(Key::new("default", "web"), None);
        assert_eq!(ask(&zone, "web.default.svc.cluster.local.", RecordType::A), "!");
        assert_eq!(ask(&zone, "7.0.0.10.in-addr.arpa.", RecordType::PTR), "?");
    }
}
