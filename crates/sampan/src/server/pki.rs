//! The certificates of a cluster: who gets which. Made at the first start, renewed by later ones, kept in one directory.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use sampan_base::disk::RealDisk;
use sampan_base::{Clock, Dice};
use sampan_client::Client;
use sampan_client::tls::Tls;
use sampan_wire::pki::{Ca, Identity, LEAF_LIFETIME, Subject, TokenKey, Usage, kubeconfig};

use super::Config;
use crate::local::Cluster;

/// Everything the server needs to prove who it is and to know others.
pub struct Pki {
    pub ca: Ca,
    /// What the API server shows.
    pub serving: Identity,
    /// What the API server shows to nodes.
    pub node_client: Identity,
    pub admin: Identity,
    /// Signs service-account tokens.
    pub tokens: TokenKey,
}

impl Pki {
    /// Reads or makes all of it.
    pub fn prepare(config: &Config, clock: &Clock) -> anyhow::Result<Self> {
        let (disk, dice, directory) = (RealDisk, Dice::system(), config.pki.clone());
        let ca = Ca::load_or_create(&disk, &directory, "ca", "sampan", clock, &dice)?;
        let mut dns: Vec<String> =
            ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"].map(str::to_owned).to_vec();
        dns.push(format!("kubernetes.default.svc.{}", config.domain));
        let mut ips: Vec<IpAddr> = vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        ips.extend([config.advertise.ip(), config.service_address()?]);
        ips.extend(config.listen.iter().map(|address| address.ip()).filter(|address| !address.is_unspecified()));
        for name in &config.names {
            match name.parse() {
                Ok(address) => ips.push(address),
                Err(_) => dns.push(name.clone()),
            }
        }
        ips.sort();
        ips.dedup();
        let issue = |name: &str, subject: Subject, usage: Usage| {
            ca.load_or_issue(&disk, &directory, name, &subject, &usage, LEAF_LIFETIME, clock, &dice)
        };
        let serving = issue("apiserver", Subject::new("kube-apiserver", &[]), Usage::Server { dns, ips })?;
        let node_client =
            issue("apiserver-kubelet-client", Subject::new("kube-apiserver-kubelet-client", &[]), Usage::Client)?;
        let admin = issue("admin", Subject::new("kubernetes-admin", &["system:masters"]), Usage::Client)?;
        let tokens = TokenKey::load_or_create(&disk, &directory, "service-account")?;
        Ok(Self { ca, serving, node_client, admin, tokens })
    }

    pub fn admin_kubeconfig(&self, context: &str, server: &str) -> anyhow::Result<String> {
        Ok(kubeconfig(context, server, self.ca.certificate_pem(), &self.admin))
    }

    /// The certificate of a local node, both ends of its connections, with the authority beside it.
    pub fn issue_node(&self, directory: &Path, name: &str, addresses: &[IpAddr], clock: &Clock) -> anyhow::Result<()> {
        let subject = Subject::new(&format!("system:node:{name}"), &["system:nodes"]);
        let usage = Usage::Peer { dns: vec![name.into()], ips: addresses.to_vec() };
        let pki = directory.join("pki");
        self.ca.load_or_issue(&RealDisk, &pki, "node", &subject, &usage, LEAF_LIFETIME, clock, &Dice::system())?;
        // The network of a node sees all Services and Nodes, which the node itself must not.
        let proxy = Subject::new("system:kube-proxy", &[]);
        self.ca.load_or_issue(
            &RealDisk,
            &pki,
            "proxy",
            &proxy,
            &Usage::Client,
            LEAF_LIFETIME,
            clock,
            &Dice::system(),
        )?;
        let ca = pki.join("ca.crt");
        std::fs::write(&ca, self.ca.certificate_pem()).with_context(|| format!("write {}", ca.display()))
    }
}

/// A client with the administrator's certificate, from the host.
pub fn admin_client(cluster: &Cluster, clock: &Clock) -> anyhow::Result<Client> {
    let directory = cluster.data.join("pki");
    let identity =
        Identity::load(&RealDisk, &directory, "admin")?.context("the administrator's certificate is missing")?;
    let ca = directory.join("ca.crt");
    let ca = std::fs::read_to_string(&ca).with_context(|| format!("read {}", ca.display()))?;
    let server = format!("127.0.0.1:{}", cluster.port);
    Ok(Client::new(Arc::new(Tls::new(&[server], &[&ca], Some(&identity), clock.clone())?)))
}
