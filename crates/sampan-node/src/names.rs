//! What a pod is called and how it finds others: hostname, `/etc/hosts`, `/etc/resolv.conf`.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use crate::pod::PodExt;

/// The kernel takes no longer hostname.
const HOSTNAME_MAX: usize = 63;
/// What resolvers look at (`resolv.conf(5)`; upstream truncates to the same).
const NAMESERVERS_MAX: usize = 3;

/// The pod's hostname; a name that is too long is cut.
pub fn hostname(pod: &Pod, node: &str, domain: &str) -> String {
    let spec = pod.spec_ref();
    if pod.host_network() {
        return node.to_owned();
    }
    if let Some(name) = spec.hostname_override.as_deref().filter(|name| !name.is_empty()) {
        return name.to_owned();
    }
    let own = spec.hostname.as_deref().filter(|name| !name.is_empty()).unwrap_or_else(|| pod.name());
    let short = own.chars().take(HOSTNAME_MAX).collect::<String>();
    let short = short.trim_end_matches(['-', '.']);
    match (spec.set_hostname_as_fqdn, fqdn(pod, short, domain)) {
        (Some(true), Some(full)) => full,
        _ => short.to_owned(),
    }
}

/// `host.subdomain.namespace.svc.domain`, for pods with a subdomain.
fn fqdn(pod: &Pod, hostname: &str, domain: &str) -> Option<String> {
    let subdomain = pod.spec_ref().subdomain.as_deref().filter(|name| !name.is_empty())?;
    Some(format!("{hostname}.{subdomain}.{}.svc.{domain}", pod.namespace()))
}

/// The pod's `/etc/hosts`; `host_file` is the machine's, used with host networking.
pub fn hosts(pod: &Pod, addresses: &[IpAddr], hostname: &str, domain: &str, host_file: Option<&str>) -> String {
    let mut text = match host_file {
        Some(host_file) if pod.host_network() => {
            format!("# Kubernetes-managed hosts file (host network).\n{}", host_file.trim_end_matches('\n')) + "\n"
        }
        _ => {
            let mut text = String::from(
                "# Kubernetes-managed hosts file.\n\
                 127.0.0.1\tlocalhost\n\
                 ::1\tlocalhost ip6-localhost ip6-loopback\n\
                 fe00::\tip6-localnet\n\
                 fe00::\tip6-mcastprefix\n\
                 fe00::1\tip6-allnodes\n\
                 fe00::2\tip6-allrouters\n",
            );
            let short = hostname.split('.').next().unwrap_or(hostname);
            for address in addresses {
                match fqdn(pod, short, domain) {
                    Some(full) => text.push_str(&format!("{address}\t{full}\t{short}\n")),
                    None => text.push_str(&format!("{address}\t{hostname}\n")),
                }
            }
            text
        }
    };
    let aliases = pod.spec_ref().host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let names = alias.hostnames.as_deref().unwrap_or_default().join("\t");
            text.push_str(&format!("{}\t{names}\n", alias.ip));
        }
    }
    text
}

/// `/etc/resolv.conf` in parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

impl Resolver {
    pub fn parse(text: &str) -> Self {
        let mut resolver = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => resolver.nameservers.extend(words.next().map(str::to_owned)),
                Some("search") => resolver.searches = words.map(str::to_owned).collect(),
                Some("options") => resolver.options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
        resolver
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.searches.is_empty() {
            text.push_str(&format!("search {}\n", self.searches.join(" ")));
        }
        for server in &self.nameservers {
            text.push_str(&format!("nameserver {server}\n"));
        }
        if !self.options.is_empty() {
            text.push_str(&format!("options {}\n", self.options.join(" ")));
        }
        text
    }
}

/// What the pod's `dnsPolicy` and `dnsConfig` make of the machine's resolver and the cluster's DNS
/// (upstream's `pkg/kubelet/network/dns`).
pub fn resolver(pod: &Pod, machine: &Resolver, cluster: &[IpAddr], domain: &str) -> Resolver {
    let spec = pod.spec_ref();
    let of_cluster = || {
        let mut searches =
            vec![format!("{}.svc.{domain}", pod.namespace()), format!("svc.{domain}"), domain.to_owned()];
        searches.extend(machine.searches.iter().cloned());
        Resolver {
            nameservers: cluster.iter().map(ToString::to_string).collect(),
            searches,
            options: vec!["ndots:5".into()],
        }
    };
    let mut resolver = match spec.dns_policy.as_deref().unwrap_or("ClusterFirst") {
        "None" => Resolver::default(),
        "ClusterFirstWithHostNet" if !cluster.is_empty() => of_cluster(),
        "ClusterFirst" if !pod.host_network() && !cluster.is_empty() => of_cluster(),
        _ => machine.clone(),
    };
    if let Some(config) = &spec.dns_config {
        resolver.nameservers.extend(config.nameservers.iter().flatten().cloned());
        resolver.searches.extend(config.searches.iter().flatten().cloned());
        for option in config.options.iter().flatten() {
            let Some(name) = option.name.as_deref().filter(|name| !name.is_empty()) else { continue };
            // The pod's own option replaces one of the same name.
            resolver.options.retain(|old| old.split(':').next() != Some(name));
            resolver.options.push(match &option.value {
                Some(value) => format!("{name}:{value}"),
                None => name.to_owned(),
            });
        }
    }
    let mut seen = std::collections::BTreeSet::new();
    resolver.searches.retain(|domain| seen.insert(domain.clone()));
    let mut seen = std::collections::BTreeSet::new();
    resolver.nameservers.retain(|server| seen.insert(server.clone()));
    resolver.nameservers.truncate(NAMESERVERS_MAX);
    resolver
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec})).expect("a pod")
    }

    #[test]
    fn names_of_a_pod() {
        let plain = pod(json!({"containers": []}));
        assert_eq!(hostname(&plain, "node", "cluster.local"), "web-0");
        let sub = pod(json!({"containers": [], "hostname": "db", "subdomain": "dbs"}));
        assert_eq!(hostname(&sub, "node", "cluster.local"), "db");
        let ip: IpAddr = "10.0.0.9".parse().expect("ip");
        let text = hosts(&sub, &[ip], "db", "cluster.local", None);
        assert!(text.ends_with("10.0.0.9\tdb.dbs.ns.svc.cluster.local\tdb\n"), "{text}");
        let full = pod(json!({"containers": [], "subdomain": "dbs", "setHostnameAsFQDN": true}));
        assert_eq!(hostname(&full, "node", "cluster.local"), "web-0.dbs.ns.svc.cluster.local");
        let host = pod(
            json!({"containers": [], "hostNetwork": true, "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}),
        );
        assert_eq!(hostname(&host, "node", "cluster.local"), "node");
        let text = hosts(&host, &[], "node", "cluster.local", Some("127.0.0.1 localhost\n"));
        assert!(text.contains("127.0.0.1 localhost\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n"), "{text}");
    }

    #[test]
    fn resolver_configuration() {
        let machine = Resolver::parse("nameserver 9.9.9.9\nsearch corp.example\noptions ndots:1 edns0\n");
        let dns: Vec<IpAddr> = vec!["10.96.0.10".parse().expect("ip")];
        let text = |pod: &Pod| resolver(pod, &machine, &dns, "cluster.local").text();
        assert_eq!(
            text(&pod(json!({"containers": []}))),
            "search ns.svc.cluster.local svc.cluster.local cluster.local corp.example\nnameserver 10.96.0.10\noptions ndots:5\n"
        );
        assert_eq!(
            text(&pod(json!({"containers": [], "dnsPolicy": "Default"}))),
            "search corp.example\nnameserver 9.9.9.9\noptions ndots:1 edns0\n"
        );
        let own = json!({"nameservers": ["1.1.1.1"], "searches": ["x"], "options": [{"name": "ndots", "value": "2"}]});
        assert_eq!(
            text(&pod(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": own}))),
            "search x\nnameserver 1.1.1.1\noptions ndots:2\n"
        );
        let merged = pod(json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]}}));
        assert!(text(&merged).ends_with("options ndots:2\n"));
        let host = pod(json!({"containers": [], "hostNetwork": true}));
        assert!(text(&host).contains("9.9.9.9"), "host network falls back to the machine's resolver");
    }
}
