//! Endpoints and EndpointSlices.

use std::collections::BTreeSet;

use serde_json::Value;

use super::at::At;
use super::{GENERIC, Strategy, set};
use crate::error::{FieldErrorKind, FieldErrors};
use crate::names;

const PROTOCOLS: [&str; 3] = ["SCTP", "TCP", "UDP"];

pub const ENDPOINTS: Strategy = Strategy {
    default: |endpoints| {
        let Some(fields) = endpoints.as_object_mut() else { return };
        for subset in set::each(fields, "subsets") {
            set::each(subset, "ports").for_each(|port| set::empty(port, "protocol", "TCP"));
        }
    },
    validate_create: validate_endpoints,
    validate_update: |new, _| validate_endpoints(new),
    create_on_update: true,
    ..GENERIC
};

pub const SLICE: Strategy = Strategy {
    default: |slice| {
        let Some(fields) = slice.as_object_mut() else { return };
        for port in set::each(fields, "ports") {
            set::unset(port, "name", "");
            set::unset(port, "protocol", "TCP");
        }
    },
    validate_create: validate_slice,
    validate_update: |new, _| validate_slice(new),
    ..GENERIC
};

fn validate_endpoints(endpoints: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(endpoints);
    for subset in root.get("subsets").items() {
        let (ready, waiting, ports) = (subset.get("addresses"), subset.get("notReadyAddresses"), subset.get("ports"));
        if ready.len() + waiting.len() == 0 {
            subset.required(&mut errors, "must specify `addresses` or `notReadyAddresses`");
        }
        for address in ready.items().chain(waiting.items()) {
            let ip = address.get("ip");
            match names::parse_ip(ip.text()) {
                None => {
                    if let Some(detail) = names::ip(ip.text()) {
                        ip.invalid_as(&mut errors, ip.text(), detail);
                    }
                }
                Some(parsed) if parsed.is_unspecified() => {
                    ip.invalid(&mut errors, format!("may not be unspecified ({})", ip.text()));
                }
                Some(parsed) if parsed.is_loopback() => {
                    ip.invalid(&mut errors, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
                }
                Some(_) => {}
            }
            let host = address.get("hostname");
            if !host.text().is_empty() {
                host.invalid_all(&mut errors, names::dns1123_label(host.text()));
            }
        }
        for port in ports.items() {
            let name = port.get("name");
            if !name.text().is_empty() {
                name.invalid_all(&mut errors, names::dns1123_label(name.text()));
            } else if ports.len() > 1 {
                name.required(&mut errors, "");
            }
            let number = port.get("port");
            if let Some(detail) = names::port_number(number.int().unwrap_or(0)) {
                number.invalid_as(&mut errors, number.int().unwrap_or(0), detail);
            }
            port.get("protocol").one_of(&mut errors, &PROTOCOLS);
        }
    }
    errors
}

fn validate_slice(slice: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(slice);
    let ty = root.get("addressType").text();
    let endpoints = root.get("endpoints");
    if endpoints.len() > 1000 {
        let kind = FieldErrorKind::TooMany { actual: endpoints.len(), max: 1000 };
        errors.push(endpoints.path(), kind, "");
    }
    for endpoint in endpoints.items() {
        let addresses = endpoint.get("addresses");
        for address in addresses.items() {
            let text = address.text();
            match (ty, names::parse_ip(text)) {
                ("IPv4", Some(ip)) if ip.is_ipv4() => special(&address, ip, &mut errors),
                ("IPv6", Some(ip)) if ip.is_ipv6() => special(&address, ip, &mut errors),
                ("IPv4", Some(_)) => address.invalid(&mut errors, "must be an IPv4 address"),
                ("IPv6", Some(_)) => address.invalid(&mut errors, "must be an IPv6 address"),
                ("IPv4" | "IPv6", None) => address.invalid_all(&mut errors, names::ip(text)),
                ("FQDN", _) => address.invalid_all(&mut errors, names::dns1123_subdomain(text)),
                _ => {}
            }
        }
        let host = endpoint.get("hostname");
        if host.is_set() {
            host.invalid_all(&mut errors, names::dns1123_label(host.text()));
        }
        let node = endpoint.get("nodeName");
        if node.is_set() {
            node.invalid_all(&mut errors, names::dns1123_subdomain(node.text()));
        }
        if endpoint.get("deprecatedTopology").entries().any(|(key, _)| key == "kubernetes.io/hostname") {
            let topology = endpoint.get("deprecatedTopology");
            topology.key("kubernetes.io/hostname").forbidden(&mut errors, "may not be set, use nodeName instead");
        }
    }
    let ports = root.get("ports");
    if ports.len() > 20_000 {
        errors.push(ports.path(), FieldErrorKind::TooMany { actual: ports.len(), max: 20_000 }, "");
    }
    let mut seen = BTreeSet::new();
    for port in ports.items() {
        let name = port.get("name");
        if !name.text().is_empty() {
            name.invalid_all(&mut errors, names::dns1123_label(name.text()));
        }
        if !seen.insert(name.text()) {
            errors.duplicate(name.path(), name.text());
        }
        port.get("protocol").one_of(&mut errors, &PROTOCOLS);
        let application = port.get("appProtocol");
        if application.is_set() {
            application.invalid_all(&mut errors, names::qualified_name(application.text()));
        }
    }
    errors
}

fn special(at: &At<'_, '_>, ip: std::net::IpAddr, errors: &mut FieldErrors) {
    if ip.is_unspecified() {
        at.invalid(errors, format!("may not be unspecified ({})", at.text()));
    }
    if ip.is_loopback() {
        at.invalid(errors, "may not be in the loopback range (127.0.0.0/8, ::1/128)");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn slices() {
        let mut slice =
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"port": 80}]});
        (SLICE.default)(&mut slice);
        assert_eq!(slice["ports"][0], json!({"port": 80, "name": "", "protocol": "TCP"}));
        assert!(validate_slice(&slice).is_empty());
        slice["endpoints"][0]["addresses"] = json!(["::1"]);
        assert_eq!(
            validate_slice(&slice).aggregate(),
            "endpoints[0].addresses[0]: Invalid value: \"::1\": must be an IPv4 address"
        );
    }

    #[test]
    fn subsets_name_addresses() {
        assert_eq!(
            validate_endpoints(&json!({"subsets": [{"ports": [{"port": 80, "protocol": "TCP"}]}]})).aggregate(),
            "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"
        );
    }
}
