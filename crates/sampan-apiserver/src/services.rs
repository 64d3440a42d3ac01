//! Cluster addresses and node ports of Services, allocated in the transaction that writes the Service: every allocation
//! is a key of its own, created with the check that it is absent. Two writers can't get the same one, and nothing has
//! to be repaired after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use bytes::Bytes;
use ipnet::IpNet;
use sampan_api::{Failure, FieldErrors, FieldPath, Kind, object};
use sampan_base::Dice;
use sampan_store::{Check, Expect, Payload, Store, Txn, Write};
use serde_json::{Value, json};

use crate::server::Config;

/// What is handed out.
#[derive(Clone, Debug)]
pub struct Ranges {
    /// One network a family; the first is the primary one.
    pub cluster: Vec<IpNet>,
    /// Inclusive.
    pub node_ports: (u16, u16),
}

impl Default for Ranges {
    fn default() -> Self {
        Self { cluster: vec![IpNet::new_assert([10, 96, 0, 0].into(), 16)], node_ports: (30000, 32767) }
    }
}

/// An allocation as a key below `/allocations/`, a place no API group can have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Lot {
    Address(IpAddr),
    Port(u16),
}

impl Lot {
    fn key(&self) -> String {
        match self {
            Self::Address(address) => format!("/allocations/clusterips/{address}"),
            Self::Port(port) => format!("/allocations/nodeports/{port}"),
        }
    }
}

pub fn is_service(kind: &Kind) -> bool {
    kind.gvk.group.is_empty() && kind.resource == "services"
}

fn service_type(service: &Value) -> &str {
    match object::text(service, &["spec", "type"]) {
        "" => "ClusterIP",
        ty => ty,
    }
}

fn spec_text<'a>(service: &'a Value, field: &str) -> &'a str {
    object::text(service, &["spec", field])
}

fn wants_address(service: &Value) -> bool {
    service_type(service) != "ExternalName" && spec_text(service, "clusterIP") != "None"
}

fn wants_ports(service: &Value) -> bool {
    match service_type(service) {
        "NodePort" => true,
        "LoadBalancer" => {
            object::lookup(service, &["spec", "allocateLoadBalancerNodePorts"]) != Some(&Value::Bool(false))
        }
        _ => false,
    }
}

fn wants_health_port(service: &Value) -> bool {
    service_type(service) == "LoadBalancer" && spec_text(service, "externalTrafficPolicy") == "Local"
}

/// Everything a stored Service holds.
fn held(service: &Value) -> BTreeSet<Lot> {
    let mut lots = BTreeSet::new();
    let addresses = object::lookup(service, &["spec", "clusterIPs"]).and_then(Value::as_array);
    let one = object::lookup(service, &["spec", "clusterIP"]);
    for address in addresses.into_iter().flatten().chain(one) {
        lots.extend(address.as_str().and_then(|text| text.parse().ok()).map(Lot::Address));
    }
    let number = |value: Option<&Value>| value.and_then(Value::as_u64).and_then(|port| u16::try_from(port).ok());
    let ports = object::lookup(service, &["spec", "ports"]).and_then(Value::as_array);
    let node_ports = ports.into_iter().flatten().filter_map(|port| number(port.get("nodePort")));
    let health = number(object::lookup(service, &["spec", "healthCheckNodePort"]));
    lots.extend(node_ports.chain(health).filter(|port| *port > 0).map(Lot::Port));
    lots
}

/// Completes a Service on its way to the store and adds its allocations to the transaction.
pub fn allocate(
    config: &Config,
    service: &mut Value,
    old: Option<&Value>,
    dry_run: bool,
    txn: &mut Txn,
) -> Result<(), Failure> {
    let before = old.map(held).unwrap_or_default();
    if let Some(old) = old {
        carry_over(service, old);
    }
    let mut pick =
        Pick { store: &config.store, dice: &config.dice, mine: before.clone(), errors: FieldErrors::default() };
    addresses(&config.ranges, service, &mut pick)?;
    ports(&config.ranges, service, &mut pick)?;
    let Pick { errors, .. } = pick;
    errors.into_result("", "Service", object::name(service))?;
    if dry_run {
        return Ok(());
    }
    let after = held(service);
    let owner = format!("{}/{}", object::namespace(service), object::name(service));
    for lot in after.difference(&before) {
        let key: sampan_store::Key = lot.key().into();
        txn.checks.push(Check { key: key.clone(), expect: Expect::Absent });
        let payload = Payload { bytes: Bytes::from(owner.clone()), stamp: None };
        txn.writes.push(Write::Put { key, payload });
    }
    free(before.difference(&after), txn);
    Ok(())
}

/// Gives back what a deleted Service held.
pub fn release(kind: &Kind, service: &Value, txn: &mut Txn) {
    if is_service(kind) {
        free(held(service).iter(), txn);
    }
}

fn free<'a>(lots: impl Iterator<Item = &'a Lot>, txn: &mut Txn) {
    txn.writes.extend(lots.map(|lot| Write::Delete { key: lot.key().into(), last: None }));
}

/// An update that does not mention what was allocated keeps it (`registry/core/service/storage`, `patchAllocatedValues`).
fn carry_over(service: &mut Value, old: &Value) {
    if wants_address(old) && wants_address(service) {
        let missing = spec_text(service, "clusterIP").is_empty();
        for field in ["clusterIP", "clusterIPs"] {
            let value = object::lookup(old, &["spec", field]).cloned();
            let spec = object::child_mut(service, "spec");
            let empty =
                spec.get(field).is_none_or(|value| value.is_null() || value.as_array().is_some_and(Vec::is_empty));
            if (missing || empty)
                && let Some(value) = value
            {
                spec.insert(field.into(), value);
            }
        }
    }
    if wants_ports(old) && wants_ports(service) {
        let old_ports = object::lookup(old, &["spec", "ports"]).and_then(Value::as_array).cloned().unwrap_or_default();
        for port in ports_mut(service) {
            if port.get("nodePort").and_then(Value::as_u64).unwrap_or(0) > 0 {
                continue;
            }
            let same = |one: &&Value| one["port"] == port["port"] && one.get("protocol") == port.get("protocol");
            if let Some(node_port) = old_ports.iter().find(same).and_then(|one| one.get("nodePort")).cloned() {
                port["nodePort"] = node_port;
            }
        }
    }
    if wants_health_port(old) && wants_health_port(service) {
        let value = object::lookup(old, &["spec", "healthCheckNodePort"]).cloned();
        if let Some(value) = value {
            object::child_mut(service, "spec").entry("healthCheckNodePort").or_insert(value);
        }
    }
}

fn ports_mut(service: &mut Value) -> impl Iterator<Item = &mut Value> {
    service.pointer_mut("/spec/ports").and_then(Value::as_array_mut).into_iter().flatten()
}

/// Takes lots, remembering what this Service has already.
struct Pick<'a> {
    store: &'a Store,
    dice: &'a Dice,
    mine: BTreeSet<Lot>,
    errors: FieldErrors,
}

impl Pick<'_> {
    fn is_free(&self, lot: &Lot) -> bool {
        !self.mine.contains(lot) && self.store.get(&lot.key()).is_none()
    }

    /// A lot the client named.
    fn claim(&mut self, lot: Lot, field: FieldPath, value: Value) {
        if self.mine.contains(&lot) {
            return;
        }
        if self.store.get(&lot.key()).is_some() {
            let detail = match lot {
                Lot::Address(address) => format!("failed to allocate IP {address}: provided IP is already allocated"),
                Lot::Port(_) => "provided port is already allocated".to_owned(),
            };
            self.errors.invalid(field, value, detail);
        }
        self.mine.insert(lot);
    }

    /// Any free lot of `count`, a dozen by chance, then in order.
    fn any(&mut self, count: u64, lot: impl Fn(u64) -> Lot) -> Option<Lot> {
        let chance = (0..12).map(|_| self.dice.below(count)).collect::<Vec<_>>();
        let found = chance.into_iter().chain(0..count).map(lot).find(|lot| self.is_free(lot))?;
        self.mine.insert(found.clone());
        Some(found)
    }
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn addresses(ranges: &Ranges, service: &mut Value, pick: &mut Pick<'_>) -> Result<(), Failure> {
    let spec = FieldPath::new("spec");
    if service_type(service) == "ExternalName" {
        let map = object::child_mut(service, "spec");
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            map.remove(field);
        }
        return Ok(());
    }
    let families = families(ranges, service, pick);
    let headless = spec_text(service, "clusterIP") == "None";
    let mut chosen: Vec<String> = object::lookup(service, &["spec", "clusterIPs"])
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect())
        .unwrap_or_default();
    let one = spec_text(service, "clusterIP").to_owned();
    match chosen.first() {
        None if !one.is_empty() => chosen.push(one),
        Some(first) if !one.is_empty() && *first != one => {
            pick.errors.invalid(spec.child("clusterIPs"), json!(chosen), "first value must match `clusterIP`");
            return Ok(());
        }
        _ => {}
    }
    if headless {
        chosen = vec!["None".into()];
    } else {
        for (index, text) in chosen.iter().enumerate() {
            let field = spec.child("clusterIPs").index(index);
            match text.parse::<IpAddr>() {
                Ok(address) if ranges.cluster.iter().any(|range| range.contains(&address)) => {
                    pick.claim(Lot::Address(address), field, json!(chosen));
                }
                Ok(address) => {
                    let range = ranges.cluster.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
                    let detail = format!(
                        "failed to allocate IP {address}: the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
                    );
                    pick.errors.invalid(field, json!(chosen), detail);
                }
                Err(_) => pick.errors.invalid(
                    field,
                    text.clone(),
                    "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
                ),
            }
        }
        for family_name in families.iter().skip(chosen.len()) {
            let range = ranges.cluster.iter().find(|range| family(range.network()) == family_name);
            let lot = range.and_then(|range| pick.any(size(range), |index| Lot::Address(address(range, index))));
            match lot {
                Some(Lot::Address(address)) => chosen.push(address.to_string()),
                _ => return Err(Failure::internal("failed to allocate a serviceIP: range is full")),
            }
        }
    }
    let map = object::child_mut(service, "spec");
    if let Some(first) = chosen.first() {
        map.insert("clusterIP".into(), first.clone().into());
    }
    map.insert("clusterIPs".into(), chosen.into());
    map.insert("ipFamilies".into(), families.into());
    Ok(())
}

/// The families of a Service: what it names, else those of its policy.
fn families(ranges: &Ranges, service: &mut Value, pick: &mut Pick<'_>) -> Vec<String> {
    let available: Vec<&str> = ranges.cluster.iter().map(|range| family(range.network())).collect();
    let named: Vec<String> = object::lookup(service, &["spec", "ipFamilies"])
        .and_then(Value::as_array)
        .map(|list| list.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect())
        .unwrap_or_default();
    let policy = match spec_text(service, "ipFamilyPolicy") {
        "" if named.len() > 1 => "RequireDualStack".to_owned(),
        "" => "SingleStack".to_owned(),
        policy => policy.to_owned(),
    };
    for (index, name) in named.iter().enumerate() {
        if !available.contains(&name.as_str()) {
            let field = FieldPath::new("spec").child("ipFamilies").index(index);
            pick.errors.invalid(field, name.clone(), "not configured on this cluster");
        }
    }
    if policy == "RequireDualStack" && available.len() < 2 {
        let field = FieldPath::new("spec").child("ipFamilyPolicy");
        pick.errors.invalid(field, policy.clone(), "this cluster is not configured for dual-stack services");
    }
    let wanted = if policy == "SingleStack" { 1 } else { 2 };
    let address = spec_text(service, "clusterIP").parse::<IpAddr>().ok();
    let mut families = named;
    if let (true, Some(address)) = (families.is_empty(), address) {
        families.push(family(address).to_owned());
    }
    for name in available {
        if families.len() < wanted && !families.iter().any(|one| one == name) {
            families.push(name.to_owned());
        }
    }
    object::child_mut(service, "spec").insert("ipFamilyPolicy".into(), policy.into());
    families
}

/// How many addresses a network hands out: all but its first and, in IPv4, its last; at most 65,536.
fn size(range: &IpNet) -> u64 {
    let bits = range.max_prefix_len() - range.prefix_len();
    (1u64 << bits.min(16)) - 2
}

fn address(range: &IpNet, index: u64) -> IpAddr {
    match range.network() {
        IpAddr::V4(base) => IpAddr::V4((u32::from(base) + index as u32 + 1).into()),
        IpAddr::V6(base) => IpAddr::V6((u128::from(base) + u128::from(index) + 1).into()),
    }
}

fn ports(ranges: &Ranges, service: &mut Value, pick: &mut Pick<'_>) -> Result<(), Failure> {
    let (first, last) = ranges.node_ports;
    let field = FieldPath::new("spec").child("ports");
    let wanted = wants_ports(service);
    let with_ports = matches!(service_type(service), "NodePort" | "LoadBalancer");
    let in_range = |port: u64| (u64::from(first)..=u64::from(last)).contains(&port);
    let outside = |port: u64| {
        format!("provided port is not in the valid range. The range of valid ports is {first}-{last}, got {port}")
    };
    // TCP and UDP of one port number may share a node port.
    let mut shared: BTreeMap<u64, u64> = BTreeMap::new();
    let mut named: Vec<(usize, u64)> = Vec::new();
    for (index, port) in ports_mut(service).enumerate() {
        if !with_ports {
            if let Value::Object(port) = port {
                port.remove("nodePort");
            }
            continue;
        }
        let node_port = port.get("nodePort").and_then(Value::as_u64).unwrap_or(0);
        if node_port > 0 {
            shared.insert(port["port"].as_u64().unwrap_or(0), node_port);
            named.push((index, node_port));
        }
    }
    for (index, node_port) in named {
        let field = field.index(index).child("nodePort");
        match u16::try_from(node_port) {
            Ok(port) if in_range(node_port) || pick.mine.contains(&Lot::Port(port)) => {
                pick.claim(Lot::Port(port), field, node_port.into());
            }
            _ => pick.errors.invalid(field, node_port, outside(node_port)),
        }
    }
    let count = u64::from(last.saturating_sub(first)) + 1;
    let full = || Failure::internal("failed to allocate a nodePort: range is full");
    let mut any = || match pick.any(count, |index| Lot::Port(first.saturating_add(index as u16))) {
        Some(Lot::Port(port)) => Ok(port),
        _ => Err(full()),
    };
    if wanted {
        for port in ports_mut(service) {
            if port.get("nodePort").and_then(Value::as_u64).unwrap_or(0) > 0 {
                continue;
            }
            let number = port["port"].as_u64().unwrap_or(0);
            let node_port = match shared.get(&number) {
                Some(node_port) => *node_port,
                None => u64::from(any()?),
            };
            shared.insert(number, node_port);
            port["nodePort"] = node_port.into();
        }
    }
    let health = object::lookup(service, &["spec", "healthCheckNodePort"]).and_then(Value::as_u64).unwrap_or(0);
    if !wants_health_port(service) {
        object::child_mut(service, "spec").remove("healthCheckNodePort");
    } else if health == 0 {
        let port = any()?;
        object::child_mut(service, "spec").insert("healthCheckNodePort".into(), port.into());
    } else if let Ok(port) = u16::try_from(health) {
        pick.claim(Lot::Port(port), FieldPath::new("spec").child("healthCheckNodePort"), health.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lots_of_a_service() {
        let service = json!({"spec": {
            "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00::7"],
            "ports": [{"port": 80, "nodePort": 30080}, {"port": 81}], "healthCheckNodePort": 30081,
        }});
        let keys: Vec<String> = held(&service).iter().map(Lot::key).collect();
        assert_eq!(
            keys,
            [
                "/allocations/clusterips/10.96.0.7",
                "/allocations/clusterips/fd00::7",
                "/allocations/nodeports/30080",
                "/allocations/nodeports/30081",
            ]
        );
        assert!(held(&json!({"spec": {"clusterIP": "None"}})).is_empty());
    }

    #[test]
    fn a_network_keeps_its_first_and_last_address() {
        let range: IpNet = "10.0.0.0/29".parse().expect("a network");
        let all: Vec<String> = (0..size(&range)).map(|index| address(&range, index).to_string()).collect();
        assert_eq!(all, ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    }
}
