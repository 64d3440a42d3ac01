//! What follows from the configuration: the address ranges, and the Service of the cluster's DNS.

use sampan_apiserver::services::Ranges;
use sampan_client::api::Target;
use sampan_client::{Client, Error, WriteOptions};
use serde_json::json;

use super::Config;

pub fn ranges(config: &Config) -> anyhow::Result<Ranges> {
    Ok(Ranges { cluster: config.service_ranges.clone(), ..Ranges::default() })
}

/// The Service that leads to the DNS every node answers itself; clients and tools look for it by this name.
pub async fn dns_service(client: &Client, config: &Config) -> Result<(), Error> {
    let port = |name: &str, protocol: &str| json!({"name": name, "port": 53, "protocol": protocol, "targetPort": 53});
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": "kube-dns", "namespace": "kube-system",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS", "kubernetes.io/cluster-service": "true"},
        },
        "spec": {"clusterIP": config.dns, "ports": [port("dns", "UDP"), port("dns-tcp", "TCP")]},
    });
    let target = Target {
        group: "",
        version: "v1",
        resource: "services",
        namespace: Some("kube-system"),
        name: None,
        subresource: None,
    };
    match client.create_raw(&target, object.to_string().into(), &WriteOptions::default()).await {
        Err(error) if error.is_already_exists() => Ok(()),
        // The address is taken by this very Service: it was made by an earlier start.
        Err(error) if error.is_invalid() => client.get_raw(&target.name("kube-dns")).await.map(drop),
        other => other.map(drop),
    }
}
