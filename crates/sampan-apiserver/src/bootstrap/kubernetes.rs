//! The Service `kubernetes` in `default`, through which pods reach the API server, and its endpoints
//! (`pkg/controlplane/controller/kubernetesservice`, `pkg/controlplane/reconcilers`).

use std::net::IpAddr;
use std::time::Duration;

use sampan_api::object::{lookup, text};
use sampan_base::Clock;
use sampan_client::{Client, Error};
use serde_json::{Value, json};

use super::{Object, ensure as ensure_object};

const NAME: &str = "kubernetes";
/// How soon a change by somebody else is put right (upstream's interval).
const INTERVAL: Duration = Duration::from_secs(10);

/// Where the API server is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The cluster address of the Service: the first one of the Service range.
    pub service_ip: IpAddr,
    /// The addresses of the API servers as pods reach them, and their port.
    pub endpoints: Vec<IpAddr>,
    pub port: u16,
}

fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn objects(config: &Config) -> Vec<Object> {
    let labels = json!({"component": "apiserver", "provider": "kubernetes"});
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": "default", "name": NAME, "labels": labels},
        "spec": {
            "type": "ClusterIP", "clusterIP": config.service_ip, "clusterIPs": [config.service_ip],
            "ipFamilies": [family(config.service_ip)], "ipFamilyPolicy": "SingleStack", "sessionAffinity": "None",
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": config.port}],
        },
    });
    let mut addresses: Vec<IpAddr> =
        config.endpoints.iter().copied().filter(|ip| ip.is_ipv4() == config.service_ip.is_ipv4()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let ip = addresses.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
    let port = json!([{"name": "https", "port": config.port, "protocol": "TCP"}]);
    // Its own slice is written below: nothing may mirror the Endpoints into a second one.
    let mirror = json!({"endpointslice.kubernetes.io/skip-mirror": "true"});
    let endpoints = json!({
        "apiVersion": "v1", "kind": "Endpoints",
        "metadata": {"namespace": "default", "name": NAME, "labels": mirror},
        "subsets": [{"addresses": ip, "ports": port}],
    });
    let ready: Vec<Value> =
        addresses.iter().map(|ip| json!({"addresses": [ip], "conditions": {"ready": true}})).collect();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"namespace": "default", "name": NAME, "labels": {"kubernetes.io/service-name": NAME}},
        "addressType": family(config.service_ip), "endpoints": ready, "ports": port,
    });
    vec![
        Object { group: "", version: "v1", resource: "services", value: service },
        Object { group: "", version: "v1", resource: "endpoints", value: endpoints },
        Object { group: "discovery.k8s.io", version: "v1", resource: "endpointslices", value: slice },
    ]
}

/// Creates the three objects, or sets them right.
pub async fn ensure(client: &Client, config: &Config) -> Result<(), Error> {
    for object in objects(config) {
        ensure_object(client, object).await?;
    }
    Ok(())
}

/// Sets them right for ever.
pub async fn keep(client: Client, config: Config, clock: Clock) {
    loop {
        clock.sleep(INTERVAL).await;
        if let Err(error) = ensure(&client, &config).await {
            tracing::warn!(%error, "the service \"kubernetes\" could not be checked");
        }
    }
}

/// What a field of `wanted` says must hold, member by member; what the server or others added stays. Addresses and ports are
/// lists of ours alone.
pub fn reconciled(wanted: &Value, stored: &Value) -> Option<Value> {
    let mut new = stored.clone();
    let paths: &[&[&str]] = match text(wanted, &["kind"]) {
        // The address of a Service cannot be changed; a wrong one is reported by the API when it is created.
        "Service" => &[&["spec", "ports"], &["spec", "type"]],
        "Endpoints" => &[&["subsets"]],
        _ => &[&["endpoints"], &["ports"]],
    };
    for path in paths {
        let (want, have) = (lookup(wanted, path), lookup(stored, path));
        if want.zip(have).is_none_or(|(want, have)| !holds(want, have)) {
            let want = want.cloned().unwrap_or_default();
            match path {
                [one] => new[*one] = want,
                [outer, inner] => new[*outer][*inner] = want,
                _ => {}
            }
        }
    }
    (new != *stored).then_some(new)
}

/// Whether `have` is `want` but for members of objects that `want` does not name (defaults).
fn holds(want: &Value, have: &Value) -> bool {
    match (want, have) {
        (Value::Object(want), Value::Object(have)) => {
            want.iter().all(|(key, value)| have.get(key).is_some_and(|have| holds(value, have)))
        }
        (Value::Array(want), Value::Array(have)) => {
            want.len() == have.len() && want.iter().zip(have).all(|(want, have)| holds(want, have))
        }
        _ => want == have,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_changed_is_put_right_and_defaults_are_kept() {
        let config = Config { service_ip: [10, 96, 0, 1].into(), endpoints: vec![[10, 0, 0, 2].into()], port: 6443 };
        for Object { value: wanted, .. } in objects(&config) {
            let mut stored = wanted.clone();
            stored["metadata"]["resourceVersion"] = "7".into();
            if text(&wanted, &["kind"]) == "EndpointSlice" {
                stored["ports"][0]["appProtocol"] = "x".into();
            }
            assert_eq!(reconciled(&wanted, &stored), None);
        }
        let moved = Config { endpoints: vec![[10, 0, 0, 3].into()], ..config.clone() };
        for (old, new) in objects(&config).into_iter().zip(objects(&moved)) {
            let changed = reconciled(&new.value, &old.value);
            assert_eq!(changed.is_some(), old.resource != "services");
            assert!(changed.is_none_or(|changed| holds(&new.value, &changed)));
        }
    }
}
