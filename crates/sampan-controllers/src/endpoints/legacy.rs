//! Packs backends into the old Endpoints object: one per Service, subsets by ports, at most [`MAX`] addresses.

use std::collections::BTreeMap;

use bytes::Bytes;
use sampan_api::object::{Meta, nullable};
use sampan_client::Error;
use sampan_client::api::decode;
use sampan_client::informer::View;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{Backend, Service, grouped};
use crate::framework::{Action, ENDPOINTS, key_of};

const MAX: usize = 1000;
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Endpoints {
    pub metadata: Meta,
    #[serde(deserialize_with = "nullable")]
    pub subsets: Vec<Value>,
}

impl View for Endpoints {
    fn decode(object: &Bytes) -> Result<Self, Error> {
        decode(object)
    }
}

impl Endpoints {
    /// Made by this controller: only such are removed with their Service.
    pub fn managed(&self) -> bool {
        self.metadata.labels.contains_key(MANAGED_BY)
    }
}

pub fn delete(endpoints: &Endpoints) -> Action {
    Action::delete(ENDPOINTS, &endpoints.metadata)
}

/// Only addresses of the Service's first family; a terminating pod is none.
pub fn plan(service: &Service, backends: &[Backend], present: Option<&Endpoints>) -> Option<Action> {
    let v4 = service.spec.ip_families.first().is_none_or(|family| family == "IPv4");
    let mut listed: Vec<&Backend> = backends
        .iter()
        .filter(|one| one.address.is_ipv4() == v4)
        .filter(|one| service.spec.publish_not_ready_addresses || !one.terminating)
        .filter(|one| !one.ports.is_empty() || service.headless())
        .collect();
    // Of too many the ready ones stay.
    let truncated = listed.len() > MAX;
    if truncated {
        listed.sort_by_key(|one| !one.ready);
        listed.truncate(MAX);
    }
    let subsets: Vec<Value> = grouped(listed, |one| one.ports.clone())
        .into_iter()
        .map(|(ports, backends)| {
            let mut subset = Map::new();
            for (field, ready) in [("addresses", true), ("notReadyAddresses", false)] {
                let mut side: Vec<&Backend> = backends.iter().copied().filter(|one| one.ready == ready).collect();
                side.sort_by_key(|one| one.address);
                let addresses: Vec<Value> =
                    side.into_iter().map(|one| address(one, &service.metadata.namespace)).collect();
                if !addresses.is_empty() {
                    subset.insert(field.into(), addresses.into());
                }
            }
            if !ports.is_empty() {
                subset.insert("ports".into(), ports.iter().map(port).collect());
            }
            Value::Object(subset)
        })
        .collect();
    let mut labels = service.passed_on();
    labels.insert(MANAGED_BY.into(), "endpoint-controller".into());
    let capacity = if truncated { json!("truncated") } else { Value::Null };
    let Some(present) = present else {
        let mut metadata = json!({
            "name": service.metadata.name, "namespace": service.metadata.namespace, "labels": labels,
        });
        if truncated {
            metadata["annotations"] = json!({OVER_CAPACITY: capacity});
        }
        let object = json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": subsets});
        return Some(Action::create(ENDPOINTS, &service.metadata.namespace, object));
    };
    let marked = present.metadata.annotations.contains_key(OVER_CAPACITY);
    if present.subsets == subsets && present.metadata.labels == labels && marked == truncated {
        return None;
    }
    let mut changes: BTreeMap<&str, Value> =
        present.metadata.labels.keys().map(|key| (key.as_str(), Value::Null)).collect();
    changes.extend(labels.iter().map(|(key, value)| (key.as_str(), value.as_str().into())));
    let patch = json!({
        "metadata": {"uid": present.metadata.uid, "labels": changes, "annotations": {OVER_CAPACITY: capacity}},
        "subsets": subsets,
    });
    Some(Action::merge(ENDPOINTS, key_of(&present.metadata), patch))
}

fn address(backend: &Backend, namespace: &str) -> Value {
    let mut address = json!({
        "ip": backend.address.to_string(),
        "targetRef": {"kind": "Pod", "namespace": namespace, "name": backend.pod, "uid": backend.uid},
    });
    if !backend.node.is_empty() {
        address["nodeName"] = backend.node.as_str().into();
    }
    if let Some(hostname) = &backend.hostname {
        address["hostname"] = hostname.as_str().into();
    }
    address
}

/// Unlike a slice's, the only port of Endpoints has no name when the Service's has none.
fn port(port: &super::Port) -> Value {
    let mut value = json!({"port": port.port, "protocol": port.protocol});
    if !port.name.is_empty() {
        value["name"] = port.name.as_str().into();
    }
    if let Some(protocol) = &port.app_protocol {
        value["appProtocol"] = protocol.as_str().into();
    }
    value
}
