//! Services: defaults, rules, and what a change of type lets go (`pkg/registry/core/service/strategy.go`). Addresses and
//! node ports are allocated by the API server before these rules run.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::at::{At, same};
use super::{GENERIC, NameRule, Strategy, drop_status, set};
use crate::error::FieldErrors;
use crate::{meta, names};

pub const STRATEGY: Strategy = Strategy {
    default,
    prepare_create: drop_status,
    prepare_update,
    validate_create: validate,
    validate_update,
    name: NameRule::Label1035,
    create_on_update: true,
    ..GENERIC
};

const AFFINITY_SECONDS: i64 = 10_800;
const AFFINITY_SECONDS_MAX: i64 = 86_400;
const KUBELET_PORT: i64 = 10_250;

fn default(service: &mut Value) {
    let Some(spec) = set::at(service, &["spec"]) else { return };
    set::empty(spec, "sessionAffinity", "None");
    match set::text(spec, "sessionAffinity") {
        "None" => {
            spec.remove("sessionAffinityConfig");
        }
        "ClientIP" if spec.get("sessionAffinityConfig").is_none_or(|c| c["clientIP"]["timeoutSeconds"].is_null()) => {
            spec.insert("sessionAffinityConfig".into(), json!({"clientIP": {"timeoutSeconds": AFFINITY_SECONDS}}));
        }
        _ => {}
    }
    set::empty(spec, "type", "ClusterIP");
    for port in set::each(spec, "ports") {
        set::empty(port, "protocol", "TCP");
        let unset = match port.get("targetPort") {
            None | Some(Value::Null) => true,
            Some(Value::String(name)) => name.is_empty(),
            Some(number) => number.as_i64() == Some(0),
        };
        if unset {
            let own = port.get("port").cloned().unwrap_or_else(|| 0.into());
            port.insert("targetPort".into(), own);
        }
    }
    let ty = set::text(spec, "type").to_owned();
    if externally_accessible(spec) {
        set::empty(spec, "externalTrafficPolicy", "Cluster");
    }
    if matches!(ty.as_str(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        set::unset(spec, "internalTrafficPolicy", "Cluster");
    }
    if ty == "LoadBalancer" {
        set::unset(spec, "allocateLoadBalancerNodePorts", true);
        if let Some(balancer) = set::at(service, &["status", "loadBalancer"]) {
            for ingress in set::each(balancer, "ingress") {
                if !set::text(ingress, "ip").is_empty() {
                    set::unset(ingress, "ipMode", "VIP");
                }
            }
        }
    }
}

fn externally_accessible(spec: &Map<String, Value>) -> bool {
    let external = spec.get("externalIPs").and_then(Value::as_array).is_some_and(|ips| !ips.is_empty());
    match set::text(spec, "type") {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => external,
        _ => false,
    }
}

fn has_cluster_ip(spec: &Map<String, Value>) -> bool {
    matches!(set::text(spec, "type"), "ClusterIP" | "NodePort" | "LoadBalancer")
}

fn has_node_ports(spec: &Map<String, Value>) -> bool {
    match set::text(spec, "type") {
        "NodePort" => true,
        "LoadBalancer" => spec.get("allocateLoadBalancerNodePorts") != Some(&Value::Bool(false)),
        _ => false,
    }
}

fn has_health_check(spec: &Map<String, Value>) -> bool {
    set::text(spec, "type") == "LoadBalancer" && set::text(spec, "externalTrafficPolicy") == "Local"
}

/// A change of type drops what only the old type has, unless the client changed it in the same write.
fn prepare_update(service: &mut Value, old: &Value) {
    let Some(old) = old["spec"].as_object() else { return };
    let Some(spec) = set::at(service, &["spec"]) else { return };
    let is = |spec: &Map<String, Value>, ty: &str| set::text(spec, "type") == ty;
    let rules: [(bool, bool, &[&str]); 5] = [
        (has_cluster_ip(old), has_cluster_ip(spec), &["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"]),
        (has_health_check(old), has_health_check(spec), &["healthCheckNodePort"]),
        (is(old, "LoadBalancer"), is(spec, "LoadBalancer"), &["allocateLoadBalancerNodePorts", "loadBalancerClass"]),
        (is(old, "ExternalName"), is(spec, "ExternalName"), &["externalName"]),
        (externally_accessible(old), externally_accessible(spec), &["externalTrafficPolicy"]),
    ];
    let old_ports: Vec<i64> = node_ports(old);
    let drop_ports = has_node_ports(old) && !has_node_ports(spec) && node_ports(spec) == old_ports;
    for (had, has, fields) in rules {
        for field in fields.iter().filter(|_| had && !has) {
            if spec.get(*field) == old.get(*field) {
                spec.remove(*field);
            }
        }
    }
    if drop_ports {
        for port in set::each(spec, "ports") {
            port.remove("nodePort");
        }
    }
}

fn node_ports(spec: &Map<String, Value>) -> Vec<i64> {
    let ports = spec.get("ports").and_then(Value::as_array).into_iter().flatten();
    let mut numbers: Vec<i64> = ports.filter_map(|port| port["nodePort"].as_i64()).filter(|port| *port != 0).collect();
    numbers.sort_unstable();
    numbers
}

fn validate(service: &Value) -> FieldErrors {
    let mut found = FieldErrors::default();
    let errors = &mut found;
    let root = At::root(service);
    let spec = root.get("spec");
    let ty = spec.get("type");
    let fields = spec.value.as_object();
    let ports = spec.get("ports");
    let addresses = spec.get("clusterIPs");
    let headless =
        addresses.items().next().is_some_and(|ip| ip.text() == "None") || spec.get("clusterIP").text() == "None";

    if ports.is_empty() && !headless && ty.text() != "ExternalName" {
        ports.required(errors, "");
    }
    match ty.text() {
        "LoadBalancer" => {
            for port in ports.items().filter(|port| port.get("port").int() == Some(KUBELET_PORT)) {
                let detail = format!("may not expose port {KUBELET_PORT} externally since it is used by kubelet");
                port.invalid_as(errors, KUBELET_PORT, detail);
            }
            if headless {
                errors.invalid(addresses.path().index(0), "None", "may not be set to 'None' for LoadBalancer services");
            }
        }
        "NodePort" if headless => {
            errors.invalid(addresses.path().index(0), "None", "may not be set to 'None' for NodePort services");
        }
        "ExternalName" => external_name(&spec, errors),
        _ => {}
    }
    service_ports(&ports, errors);
    meta::validate_labels(&spec.get("selector"), errors);
    affinity(&spec, errors);
    cluster_ips(&spec, errors);
    for ip in spec.get("externalIPs").items() {
        match names::parse_ip(ip.text()) {
            None => ip.invalid_all(errors, names::ip(ip.text())),
            Some(address) => not_special(&ip, address, errors),
        }
    }
    ty.one_of(errors, &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"]);
    port_numbers(&ports, ty.text(), errors);
    load_balancer(&spec, errors);
    external_traffic(&spec, fields, errors);
    let internal = spec.get("internalTrafficPolicy");
    if !internal.is_set() && matches!(ty.text(), "NodePort" | "LoadBalancer" | "ClusterIP") {
        internal.required(errors, "");
    }
    internal.none_or_one_of(errors, &["Cluster", "Local"]);
    spec.get("trafficDistribution").none_or_one_of(errors, &["PreferClose", "PreferSameNode", "PreferSameZone"]);
    found
}

fn external_name(spec: &At<'_, '_>, errors: &mut FieldErrors) {
    for field in ["clusterIPs", "ipFamilies"] {
        if !spec.get(field).is_empty() {
            spec.get(field).forbidden(errors, "may not be set for ExternalName services");
        }
    }
    if spec.get("ipFamilyPolicy").is_set() {
        spec.get("ipFamilyPolicy").forbidden(errors, "may not be set for ExternalName services");
    }
    let name = spec.get("externalName");
    match name.text().strip_suffix('.').unwrap_or(name.text()) {
        "" => name.required(errors, ""),
        text => name.invalid_all(errors, names::dns1123_subdomain(text)),
    }
}

fn service_ports(ports: &At<'_, '_>, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for port in ports.items() {
        let name = port.get("name");
        if name.text().is_empty() {
            if ports.len() > 1 {
                name.required(errors, "");
            }
        } else {
            name.invalid_all(errors, names::dns1123_label(name.text()));
            if !seen.insert(name.text()) {
                name.duplicate(errors);
            }
        }
        let number = port.get("port");
        let value = number.int().unwrap_or(0);
        if let Some(detail) = names::port_number(value) {
            number.invalid_as(errors, value, detail);
        }
        port.get("protocol").one_of(errors, &["SCTP", "TCP", "UDP"]);
        super::pod::port_or_name(&port.get("targetPort"), errors);
        let application = port.get("appProtocol");
        if application.is_set() {
            application.invalid_all(errors, names::qualified_name(application.text()));
        }
    }
}

fn affinity(spec: &At<'_, '_>, errors: &mut FieldErrors) {
    let (affinity, config) = (spec.get("sessionAffinity"), spec.get("sessionAffinityConfig"));
    affinity.one_of(errors, &["ClientIP", "None"]);
    match affinity.text() {
        "ClientIP" => {
            let client = config.get("clientIP");
            let timeout = client.get("timeoutSeconds");
            match timeout.int() {
                None => timeout.required(errors, "when session affinity type is ClientIP"),
                Some(seconds) if !(1..=AFFINITY_SECONDS_MAX).contains(&seconds) => {
                    let detail = format!("must be greater than 0 and less than {AFFINITY_SECONDS_MAX}");
                    timeout.invalid(errors, detail);
                }
                Some(_) => {}
            }
        }
        "None" if config.is_set() => config.forbidden(errors, "must not be set when session affinity is None"),
        _ => {}
    }
}

/// `ValidateServiceClusterIPsRelatedFields`, as far as it concerns what a client may send.
fn cluster_ips(spec: &At<'_, '_>, errors: &mut FieldErrors) {
    let (addresses, families, policy) = (spec.get("clusterIPs"), spec.get("ipFamilies"), spec.get("ipFamilyPolicy"));
    policy.none_or_one_of(errors, &["PreferDualStack", "RequireDualStack", "SingleStack"]);
    let mut seen = BTreeSet::new();
    for family in families.items() {
        family.none_or_one_of(errors, &["IPv4", "IPv6"]);
        if !seen.insert(family.text()) {
            family.duplicate(errors);
        }
    }
    let single = spec.get("clusterIP").text();
    let first = addresses.items().next().map(|ip| ip.text()).unwrap_or_default();
    if !addresses.is_empty() && single != first {
        if single.is_empty() {
            addresses.invalid(errors, "must be empty when `clusterIP` is not specified");
        } else {
            addresses.invalid(errors, "first value must match `clusterIP`");
        }
    }
    if first == "None" && addresses.len() > 1 {
        addresses.invalid(errors, "may hold exactly one value of None");
    }
    let mut kinds = Vec::new();
    for (index, ip) in addresses.items().enumerate() {
        match names::parse_ip(ip.text()) {
            Some(address) => kinds.push(address.is_ipv6()),
            None if matches!((index, ip.text()), (0, "" | "None")) => {}
            None => ip.invalid_all(errors, names::ip(ip.text())),
        }
    }
    if addresses.len() > 2 {
        addresses.invalid(errors, "may only hold up to 2 values");
    } else if kinds.len() == 2 && kinds[0] == kinds[1] {
        addresses.invalid(errors, "may specify no more than one IP for each IP family");
    }
    for (index, (family, v6)) in families.items().zip(&kinds).enumerate() {
        if (family.text() == "IPv6") != *v6 {
            let address = addresses.items().nth(index);
            if let Some(address) = address {
                address.invalid(
                    errors,
                    format!("expected an {} value as indicated by `ipFamilies[{index}]`", family.text()),
                );
            }
        }
    }
}

fn not_special(at: &At<'_, '_>, address: std::net::IpAddr, errors: &mut FieldErrors) {
    if address.is_unspecified() {
        at.invalid(errors, format!("may not be unspecified ({})", at.text()));
    }
    if address.is_loopback() {
        at.invalid(errors, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
    let (link_local, link_local_multicast) = match address {
        std::net::IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        std::net::IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    if link_local {
        at.invalid(errors, "may not be in the link-local range (169.254.0.0/16, fe80::/10)");
    }
    if link_local_multicast {
        at.invalid(errors, "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)");
    }
}

fn port_numbers(ports: &At<'_, '_>, ty: &str, errors: &mut FieldErrors) {
    let (mut nodes, mut own) = (BTreeSet::new(), BTreeSet::new());
    for port in ports.items() {
        let node = port.get("nodePort");
        if ty == "ClusterIP" && node.int().unwrap_or(0) != 0 {
            node.forbidden(errors, "may not be used when `type` is 'ClusterIP'");
        }
    }
    for port in ports.items() {
        let node = port.get("nodePort");
        let number = node.int().unwrap_or(0);
        if number != 0 && !nodes.insert((port.get("protocol").text(), number)) {
            node.duplicate(errors);
        }
    }
    for port in ports.items() {
        let (protocol, number) = (port.get("protocol").text(), port.get("port").int().unwrap_or(0));
        if !own.insert((protocol, number)) {
            errors.duplicate(port.path(), json!({"port": number, "protocol": protocol}));
        }
    }
}

fn load_balancer(spec: &At<'_, '_>, errors: &mut FieldErrors) {
    let is_balancer = spec.get("type").text() == "LoadBalancer";
    let ranges = spec.get("loadBalancerSourceRanges");
    let path = spec.path().child("LoadBalancerSourceRanges");
    if !ranges.is_empty() && !is_balancer {
        errors.forbidden(path.clone(), "may only be used when `type` is 'LoadBalancer'");
    }
    for (index, range) in ranges.items().enumerate() {
        let text = range.text().trim();
        if let Some(detail) = names::cidr(text) {
            errors.invalid(path.index(index), text, detail);
        }
    }
    let allocate = spec.get("allocateLoadBalancerNodePorts");
    if allocate.is_set() && !is_balancer {
        allocate.forbidden(errors, "may only be used when `type` is 'LoadBalancer'");
    }
    if !allocate.is_set() && is_balancer {
        errors.required(crate::FieldPath::new("allocateLoadBalancerNodePorts"), "");
    }
    let class = spec.get("loadBalancerClass");
    if class.is_set() && !is_balancer {
        class.forbidden(errors, "may only be used when `type` is 'LoadBalancer'");
    } else if class.is_set() {
        class.invalid_all(errors, names::qualified_name(class.text()));
    }
}

fn external_traffic(spec: &At<'_, '_>, fields: Option<&Map<String, Value>>, errors: &mut FieldErrors) {
    let (policy, health) = (spec.get("externalTrafficPolicy"), spec.get("healthCheckNodePort"));
    if !fields.is_some_and(externally_accessible) {
        if !policy.text().is_empty() {
            policy.invalid(errors, "may only be set for externally-accessible services");
        }
    } else {
        policy.one_of(errors, &["Cluster", "Local"]);
    }
    let port = health.int().unwrap_or(0);
    if !fields.is_some_and(has_health_check) {
        if port != 0 {
            health.invalid(
                errors,
                "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
            );
        }
    } else if port == 0 {
        health.required(errors, "");
    } else if let Some(detail) = names::port_number(port) {
        health.invalid(errors, detail);
    }
}

fn validate_update(new: &Value, old: &Value) -> FieldErrors {
    let mut found = FieldErrors::default();
    let errors = &mut found;
    let (root, before) = (At::root(new), At::root(old));
    let (spec, old_spec) = (root.get("spec"), before.get("spec"));
    let (ty, old_ty) = (spec.get("type").text(), old_spec.get("type").text());
    if ty != "ExternalName" && old_ty != "ExternalName" {
        for (list, word) in [("clusterIPs", "clusterIP"), ("ipFamilies", "ipFamily")] {
            let (now, then) = (spec.get(list), old_spec.get(list));
            let (first, old_first) = (now.items().next(), then.items().next());
            match (first, old_first) {
                (None, Some(_)) => {
                    errors.invalid(now.path().index(0), now.value.clone(), format!("primary {word} can not be unset"));
                }
                (Some(now_first), Some(then_first)) if now_first.text() != then_first.text() => {
                    errors.invalid(now.path().index(0), now.value.clone(), "may not change once set");
                }
                _ => {}
            }
            if let (Some(second), Some(old_second)) = (now.items().nth(1), then.items().nth(1))
                && second.text() != old_second.text()
            {
                errors.invalid(now.path().index(1), now.value.clone(), "may not change once set");
            }
        }
    }
    let (class, old_class) = (spec.get("loadBalancerClass"), old_spec.get("loadBalancerClass"));
    if ty == "LoadBalancer" && old_ty == "LoadBalancer" && !same(class.value, old_class.value) {
        class.invalid(errors, "may not change once set");
    }
    let health = |spec: &At<'_, '_>| spec.value.as_object().is_some_and(has_health_check);
    let (port, old_port) = (spec.get("healthCheckNodePort"), old_spec.get("healthCheckNodePort"));
    if health(&spec) && health(&old_spec) && port.int() != old_port.int() {
        port.forbidden(errors, "field is immutable");
    }
    errors.0.extend(validate(new).0);
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: Value) -> Value {
        let mut service = json!({"metadata": {"name": "a", "namespace": "b"}, "spec": spec});
        default(&mut service);
        service
    }

    fn messages(service: &Value) -> Vec<String> {
        validate(service).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_plain_service() {
        let service = service(json!({"ports": [{"port": 80}], "selector": {"app": "a"}}));
        assert_eq!(
            service["spec"],
            json!({"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}], "selector": {"app": "a"},
                "sessionAffinity": "None", "type": "ClusterIP", "internalTrafficPolicy": "Cluster"})
        );
        assert_eq!(messages(&service), Vec::<String>::new());
    }

    #[test]
    fn defaults_by_type() {
        let balancer = service(
            json!({"type": "LoadBalancer", "sessionAffinity": "ClientIP", "ports": [{"port": 1, "targetPort": "x"}]}),
        );
        let spec = &balancer["spec"];
        assert_eq!(
            (&spec["allocateLoadBalancerNodePorts"], &spec["externalTrafficPolicy"]),
            (&json!(true), &json!("Cluster"))
        );
        assert_eq!(spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"], 10_800);
        let name = service(json!({"type": "ExternalName", "externalName": "x.y"}));
        assert!(name["spec"].get("internalTrafficPolicy").is_none());
        assert_eq!(messages(&name), Vec::<String>::new());
    }

    #[test]
    fn messages_of_a_bad_service() {
        assert_eq!(messages(&service(json!({}))), ["spec.ports: Required value"]);
        let bad =
            service(json!({"ports": [{"port": 0, "nodePort": 30000}, {"name": "a", "port": 1, "protocol": "X"}]}));
        assert_eq!(
            messages(&bad),
            [
                "spec.ports[0].name: Required value",
                "spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive",
                "spec.ports[1].protocol: Unsupported value: \"X\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
                "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
            ]
        );
    }

    #[test]
    fn the_address_stays_and_a_change_of_type_drops_what_it_must() {
        let old = service(
            json!({"type": "NodePort", "clusterIP": "10.0.0.1", "clusterIPs": ["10.0.0.1"], "ports": [{"port": 80, "nodePort": 30000}]}),
        );
        let mut new = old.clone();
        new["spec"]["clusterIP"] = "10.0.0.2".into();
        new["spec"]["clusterIPs"] = json!(["10.0.0.2"]);
        assert_eq!(
            validate_update(&new, &old).aggregate(),
            "spec.clusterIPs[0]: Invalid value: [\"10.0.0.2\"]: may not change once set"
        );
        let mut new = old.clone();
        new["spec"]["type"] = "ClusterIP".into();
        prepare_update(&mut new, &old);
        assert!(new["spec"]["ports"][0].get("nodePort").is_none());
        assert!(new["spec"].get("externalTrafficPolicy").is_none());
        assert_eq!(new["spec"]["clusterIP"], "10.0.0.1");
        assert_eq!(validate_update(&new, &old).aggregate(), "[]");
    }
}
