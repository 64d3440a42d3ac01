//! The downward API: fields of the pod and resources of its containers as text, for environment variables and volumes
//! (upstream's `pkg/fieldpath` and `pkg/apis/core/v1/helper`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};

use crate::pod::PodExt;
use crate::quantity::{milli, value};

/// What of the node shows through.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    pub node_name: String,
    pub host_addresses: Vec<IpAddr>,
    pub pod_addresses: Vec<IpAddr>,
    /// Allocatable, for limits that are not set.
    pub milli_cpu: i64,
    pub memory: i64,
    pub ephemeral_storage: i64,
}

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    #[error("unsupported container resource : {0}")]
    Resource(String),
    #[error("container {0} not found")]
    Container(String),
}

/// The text of a field; absent labels and annotations are empty.
pub fn field(pod: &Pod, selector: &ObjectFieldSelector, around: &Surroundings) -> Result<String, Error> {
    let path = selector.field_path.as_str();
    let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let first = |ips: &[IpAddr]| ips.first().map(ToString::to_string).unwrap_or_default();
    let account = || pod.spec_ref().service_account_name.clone().unwrap_or_default();
    Ok(match path {
        "metadata.name" => pod.name().to_owned(),
        "metadata.namespace" => pod.namespace().to_owned(),
        "metadata.uid" => pod.uid().to_owned(),
        "metadata.labels" => listed(pod.metadata.labels.as_ref()),
        "metadata.annotations" => listed(pod.metadata.annotations.as_ref()),
        "spec.nodeName" => around.node_name.clone(),
        "spec.serviceAccountName" => account(),
        "status.hostIP" => first(&around.host_addresses),
        "status.hostIPs" => join(&around.host_addresses),
        "status.podIP" => first(&around.pod_addresses),
        "status.podIPs" => join(&around.pod_addresses),
        _ => {
            let Some((map, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) else {
                return Err(Error::Field(path.into()));
            };
            let map = match map {
                "metadata.labels" => pod.metadata.labels.as_ref(),
                "metadata.annotations" => pod.metadata.annotations.as_ref(),
                _ => return Err(Error::Field(path.into())),
            };
            map.and_then(|map| map.get(key)).cloned().unwrap_or_default()
        }
    })
}

/// `key="value"` lines, as a downward volume shows maps.
fn listed(map: Option<&BTreeMap<String, String>>) -> String {
    let lines = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}"));
    lines.collect::<Vec<_>>().join("\n")
}

/// The number of a resource in units of the divisor, rounded up; a limit that is not set is the node's allocatable.
pub fn resource(
    pod: &Pod,
    own: Option<&Container>,
    selector: &ResourceFieldSelector,
    around: &Surroundings,
) -> Result<String, Error> {
    let named = selector.container_name.as_deref().filter(|name| !name.is_empty());
    let container = match named {
        Some(name) => pod.container(name).ok_or_else(|| Error::Container(name.into()))?,
        None => own.ok_or_else(|| Error::Container(String::new()))?,
    };
    let unsupported = || Error::Resource(selector.resource.clone());
    let (side, name) = selector.resource.split_once('.').ok_or_else(unsupported)?;
    let resources = container.resources.as_ref();
    let quantity = match side {
        "limits" => resources.and_then(|one| one.limits.as_ref()),
        "requests" => resources.and_then(|one| one.requests.as_ref()),
        _ => return Err(unsupported()),
    }
    .and_then(|list| list.get(name));
    let fallback = |of_node: i64| if side == "limits" { of_node } else { 0 };
    let divisor = selector.divisor.as_ref();
    let amount = match name {
        "cpu" => {
            let amount = quantity.map_or_else(|| fallback(around.milli_cpu), milli);
            rounded_up(amount, divisor.map(milli), 1000)
        }
        "memory" | "ephemeral-storage" => {
            let of_node = if name == "memory" { around.memory } else { around.ephemeral_storage };
            rounded_up(quantity.map_or_else(|| fallback(of_node), value), divisor.map(value), 1)
        }
        name if name.starts_with("hugepages-") => rounded_up(quantity.map_or(0, value), divisor.map(value), 1),
        _ => return Err(unsupported()),
    };
    Ok(amount.to_string())
}

/// A divisor that is absent or zero is `one`.
fn rounded_up(amount: i64, divisor: Option<i64>, one: i64) -> i64 {
    let divisor = divisor.filter(|divisor| *divisor > 0).unwrap_or(one);
    amount / divisor + i64::from(amount % divisor > 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "ns", "uid": "u", "labels": {"a": "1", "b": "x\"y"}},
            "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": "250m", "memory": "10Mi"}}}]},
        }))
        .expect("a pod");
        let around = Surroundings {
            pod_addresses: vec!["10.0.0.2".parse().expect("ip"), "fd00::2".parse().expect("ip")],
            milli_cpu: 1500,
            memory: 1 << 30,
            ..Surroundings::default()
        };
        let get = |path: &str| {
            field(&pod, &ObjectFieldSelector { field_path: path.into(), ..ObjectFieldSelector::default() }, &around)
        };
        assert_eq!(get("metadata.labels['a']").as_deref(), Ok("1"));
        assert_eq!(get("metadata.labels['none']").as_deref(), Ok(""));
        assert_eq!(get("metadata.labels").as_deref(), Ok("a=\"1\"\nb=\"x\\\"y\""));
        assert_eq!(get("status.podIPs").as_deref(), Ok("10.0.0.2,fd00::2"));
        assert_eq!(get("spec.nope"), Err(Error::Field("spec.nope".into())));
        let ask = |name: &str, divisor: Option<&str>| {
            let divisor = divisor.map(|text| k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned()));
            let selector = ResourceFieldSelector { resource: name.into(), divisor, container_name: None };
            resource(&pod, Some(&pod.containers()[0]), &selector, &around)
        };
        assert_eq!(ask("requests.cpu", None).as_deref(), Ok("1"));
        assert_eq!(ask("requests.cpu", Some("1m")).as_deref(), Ok("250"));
        assert_eq!(ask("limits.cpu", None).as_deref(), Ok("2"));
        assert_eq!(ask("requests.memory", Some("1Mi")).as_deref(), Ok("10"));
        assert_eq!(ask("limits.memory", Some("1Mi")).as_deref(), Ok("1024"));
        assert_eq!(ask("requests.gpu", None), Err(Error::Resource("requests.gpu".into())));
    }
}
