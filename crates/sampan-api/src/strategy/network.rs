//! Ingress, IngressClass and NetworkPolicy (`pkg/apis/networking`).

use serde_json::{Value, json};

use super::at::At;
use super::pod::port_or_name;
use super::{GENERIC, Strategy, drop_status, set};
use crate::error::FieldErrors;
use crate::{meta, names};

pub const INGRESS: Strategy = Strategy {
    prepare_create: drop_status,
    validate_create: validate_ingress,
    validate_update: |new, _| validate_ingress(new),
    ..GENERIC
};

pub const INGRESS_CLASS: Strategy = Strategy {
    default: |class| {
        if let Some(parameters) = set::at(class, &["spec", "parameters"]) {
            set::unset(parameters, "scope", "Cluster");
        }
    },
    validate_create: validate_class,
    validate_update: |new, old| {
        let mut errors = FieldErrors::default();
        let (root, before) = (At::root(new), At::root(old));
        root.get("spec").get("controller").immutable(&mut errors, &before.get("spec").get("controller"));
        errors.0.extend(validate_class(new).0);
        errors
    },
    ..GENERIC
};

pub const POLICY: Strategy = Strategy {
    default: |policy| {
        let Some(spec) = set::at(policy, &["spec"]) else { return };
        for (rules, _) in DIRECTIONS {
            for rule in set::each(spec, rules) {
                set::each(rule, "ports").for_each(|port| set::unset(port, "protocol", "TCP"));
            }
        }
        let egress = spec.get("egress").and_then(Value::as_array).is_some_and(|rules| !rules.is_empty());
        if spec.get("policyTypes").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
            spec.insert("policyTypes".into(), types);
        }
    },
    validate_create: validate_policy,
    validate_update: |new, _| validate_policy(new),
    ..GENERIC
};

const DIRECTIONS: [(&str, &str); 2] = [("ingress", "from"), ("egress", "to")];

fn validate_policy(policy: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(policy);
    let spec = root.get("spec");
    meta::validate_selector(&spec.get("podSelector"), &mut errors);
    for (rules, peers) in DIRECTIONS {
        for rule in spec.get(rules).items() {
            for port in rule.get("ports").items() {
                policy_port(&port, &mut errors);
            }
            for peer in rule.get(peers).items() {
                policy_peer(&peer, &mut errors);
            }
        }
    }
    let types = spec.get("policyTypes");
    if types.len() > 2 {
        types.invalid(&mut errors, "may not specify more than two policyTypes");
        return errors;
    }
    for ty in types.items() {
        if !matches!(ty.text(), "Ingress" | "Egress") {
            errors.not_supported(types.path(), ty.text(), &["Egress", "Ingress"]);
        }
    }
    errors
}

fn policy_port(port: &At<'_, '_>, errors: &mut FieldErrors) {
    port.get("protocol").none_or_one_of(errors, &["SCTP", "TCP", "UDP"]);
    let (number, end) = (port.get("port"), port.get("endPort"));
    if number.is_set() {
        port_or_name(&number, errors);
    }
    match (number.value, end.int()) {
        (_, None) => {}
        (Value::Null, Some(_)) => end.required(errors, "port must be specified when endPort is specified"),
        (Value::String(_), Some(_)) => {
            end.required(errors, "may not be specified when `port` is non-numeric");
        }
        (_, Some(last)) => {
            if last < number.int().unwrap_or(0) {
                end.invalid(errors, "must be greater than or equal to `port`");
            }
            end.invalid_all(errors, names::port_number(last));
        }
    }
}

fn policy_peer(peer: &At<'_, '_>, errors: &mut FieldErrors) {
    let block = peer.get("ipBlock");
    let mut found = 0;
    for selector in ["podSelector", "namespaceSelector"] {
        let selector = peer.get(selector);
        if selector.is_set() {
            found += 1;
            meta::validate_selector(&selector, errors);
        }
    }
    if block.is_set() {
        found += 1;
        ip_block(&block, errors);
        if found > 1 {
            peer.forbidden(errors, "may not specify both ipBlock and another peer");
        }
    }
    if found == 0 {
        peer.required(errors, "must specify a peer");
    }
}

fn ip_block(block: &At<'_, '_>, errors: &mut FieldErrors) {
    let cidr = block.get("cidr");
    if cidr.text().is_empty() {
        return;
    }
    if let Some(detail) = names::cidr(cidr.text()) {
        return cidr.invalid(errors, detail);
    }
    let outer: Option<ipnet::IpNet> = cidr.text().parse().ok();
    for except in block.get("except").items() {
        if let Some(detail) = names::cidr(except.text()) {
            except.invalid(errors, detail);
            continue;
        }
        let inner: Option<ipnet::IpNet> = except.text().parse().ok();
        if let (Some(outer), Some(inner)) = (outer, inner)
            && (!outer.contains(&inner) || outer.prefix_len() >= inner.prefix_len())
        {
            except.invalid(errors, format!("must be a strict subset of `cidr`: {:?}", cidr.text()));
        }
    }
}

fn validate_ingress(ingress: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(ingress);
    let spec = root.get("spec");
    let (rules, default) = (spec.get("rules"), spec.get("defaultBackend"));
    if rules.is_empty() && !default.is_set() {
        spec.invalid(&mut errors, "either `defaultBackend` or `rules` must be specified");
    }
    if default.is_set() {
        backend(&default, &mut errors);
    }
    for rule in rules.items() {
        let host = rule.get("host");
        if !host.text().is_empty() {
            if names::parse_ip(host.text()).is_some() {
                host.invalid(&mut errors, "must be a DNS name, not an IP address");
            }
            host.invalid_all(&mut errors, host_name(host.text()));
        }
        let http = rule.get("http");
        if !http.is_set() {
            continue;
        }
        let paths = http.get("paths");
        if paths.is_empty() {
            paths.required(&mut errors, "");
        }
        for path in paths.items() {
            ingress_path(&path, &mut errors);
        }
    }
    for tls in spec.get("tls").items() {
        for host in tls.get("hosts").items() {
            host.invalid_all(&mut errors, host_name(host.text()));
        }
        let secret = tls.get("secretName");
        if !secret.text().is_empty() {
            secret.invalid_all(&mut errors, names::dns1123_subdomain(secret.text()));
        }
    }
    let class = spec.get("ingressClassName");
    if class.is_set() {
        class.invalid_all(&mut errors, names::dns1123_subdomain(class.text()));
    }
    errors
}

fn host_name(host: &str) -> Vec<String> {
    if host.contains('*') { names::wildcard_subdomain(host) } else { names::dns1123_subdomain(host) }
}

fn ingress_path(at: &At<'_, '_>, errors: &mut FieldErrors) {
    let (path, ty) = (at.get("path"), at.get("pathType"));
    match ty.value.as_str() {
        None => ty.required(errors, "pathType must be specified"),
        Some("Exact" | "Prefix") => {
            if !path.text().starts_with('/') {
                path.invalid_as(errors, path.text(), "must be an absolute path");
            }
            for sequence in ["//", "/./", "/../", "%2f", "%2F"] {
                if path.text().contains(sequence) {
                    path.invalid(errors, format!("must not contain '{sequence}'"));
                }
            }
            for suffix in ["/..", "/."] {
                if path.text().ends_with(suffix) {
                    path.invalid(errors, format!("cannot end with '{suffix}'"));
                }
            }
        }
        Some("ImplementationSpecific") => {
            if !path.text().is_empty() && !path.text().starts_with('/') {
                path.invalid(errors, "must be an absolute path");
            }
        }
        Some(_) => ty.none_or_one_of(errors, &["Exact", "ImplementationSpecific", "Prefix"]),
    }
    backend(&at.get("backend"), errors);
}

fn backend(at: &At<'_, '_>, errors: &mut FieldErrors) {
    let (service, resource) = (at.get("service"), at.get("resource"));
    match (service.is_set(), resource.is_set()) {
        (true, true) => {
            at.invalid_as(errors, "", "cannot set both resource and service backends");
        }
        (false, false) => at.required(errors, "resource or service backend is required"),
        (false, true) => {
            for field in ["kind", "name"] {
                if resource.get(field).text().is_empty() {
                    resource.get(field).required(errors, "");
                }
            }
        }
        (true, false) => {
            let (name, port) = (service.get("name"), service.get("port"));
            match name.text() {
                "" => name.required(errors, ""),
                text => name.invalid_all(errors, names::dns1035_label(text)),
            }
            let (port_name, number) = (port.get("name"), port.get("number"));
            let value = number.int().unwrap_or(0);
            match (port_name.text(), value) {
                ("", 0) => port.required(errors, "port name or number is required"),
                ("", value) => number.invalid_all(errors, names::port_number(value)),
                (text, 0) => port_name.invalid_all(errors, names::port_name(text)),
                _ => port.invalid(errors, "cannot set both port name & port number"),
            }
        }
    }
}

fn validate_class(class: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(class);
    let spec = root.get("spec");
    let controller = spec.get("controller");
    match controller.text() {
        "" => controller.required(&mut errors, ""),
        text if text.len() > 250 => {
            errors.push(controller.path(), crate::error::FieldErrorKind::TooLong { max: 250 }, "");
        }
        text => {
            let valid = text
                .split_once('/')
                .is_some_and(|(domain, path)| names::dns1123_subdomain(domain).is_empty() && !path.is_empty());
            if !valid {
                controller.invalid(&mut errors, "must be a domain-prefixed path (such as \"acme.io/foo\")");
            }
        }
    }
    let parameters = spec.get("parameters");
    if parameters.is_set() {
        let (scope, namespace) = (parameters.get("scope"), parameters.get("namespace"));
        scope.none_or_one_of(&mut errors, &["Cluster", "Namespace"]);
        match (scope.text(), namespace.is_set()) {
            ("Namespace", false) => {
                namespace.required(&mut errors, "`parameters.scope` is set to 'Namespace'");
            }
            ("Cluster", true) => {
                namespace.forbidden(&mut errors, "`parameters.scope` is set to 'Cluster'");
            }
            _ => {}
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_covers_what_it_names() {
        let mut policy = json!({"spec": {"podSelector": {}, "egress": [{"ports": [{"port": 53}]}]}});
        (POLICY.default)(&mut policy);
        assert_eq!(policy["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
        assert_eq!(policy["spec"]["egress"][0]["ports"][0]["protocol"], "TCP");
        assert!(validate_policy(&policy).is_empty());
        policy["spec"]["ingress"] =
            json!([{"from": [{}, {"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]}]);
        assert_eq!(
            validate_policy(&policy).0.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "spec.ingress[0].from[0]: Required value: must specify a peer",
                "spec.ingress[0].from[1].ipBlock.except[0]: Invalid value: \"11.0.0.0/16\": must be a strict subset of \
                 `cidr`: \"10.0.0.0/8\"",
            ]
        );
    }

    #[test]
    fn an_ingress_leads_somewhere() {
        assert_eq!(
            validate_ingress(&json!({"spec": {}})).aggregate(),
            "spec: Invalid value: {}: either `defaultBackend` or `rules` must be specified"
        );
        let ingress = json!({"spec": {"rules": [{"host": "*.a.b", "http": {"paths": [
            {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": "a", "port": {"number": 80}}}},
        ]}}]}});
        assert!(validate_ingress(&ingress).is_empty());
    }
}
