//! Packs backends into EndpointSlices of at most [`MAX`], changing as few slices as it can: an endpoint stays in the slice
//! it is in; new ones fill slices that are written anyway, then the fullest that have room, then new slices.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use sampan_api::labels::Labels;
use sampan_api::object::{Meta, nullable};
use sampan_client::Error;
use sampan_client::api::decode;
use sampan_client::informer::View;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Backend, MANAGED_BY, MANAGER, Port, SERVICE_NAME, Service, grouped};
use crate::framework::{Action, ENDPOINT_SLICES, SERVICES, key_of};

/// Endpoints in one slice.
pub const MAX: usize = 100;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Slice {
    pub metadata: Meta,
    pub address_type: String,
    #[serde(deserialize_with = "nullable")]
    pub endpoints: Vec<Endpoint>,
    #[serde(deserialize_with = "nullable")]
    pub ports: Vec<Port>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Endpoint {
    #[serde(deserialize_with = "nullable")]
    pub addresses: Vec<String>,
    pub conditions: Conditions,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    pub target_ref: TargetRef,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Conditions {
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TargetRef {
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
}

impl View for Slice {
    fn decode(object: &Bytes) -> Result<Self, Error> {
        decode(object)
    }
}

impl Slice {
    /// The Service it belongs to.
    pub fn service(&self) -> Option<&str> {
        self.metadata.labels.get(SERVICE_NAME).map(String::as_str)
    }

    /// Made by this controller, not by a user or another one.
    pub fn ours(&self) -> bool {
        self.metadata.labels.get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
    }
}

impl Endpoint {
    fn of(backend: &Backend, namespace: &str) -> Self {
        let Backend { ready, serving, terminating, .. } = *backend;
        Self {
            addresses: vec![backend.address.to_string()],
            conditions: Conditions { ready, serving, terminating },
            hostname: backend.hostname.clone(),
            node_name: Some(backend.node.clone()).filter(|node| !node.is_empty()),
            zone: backend.zone.clone(),
            target_ref: TargetRef {
                kind: "Pod".into(),
                namespace: namespace.into(),
                name: backend.pod.clone(),
                uid: backend.uid.clone(),
            },
        }
    }

    /// What makes it the same endpoint over time.
    fn identity(&self) -> (String, String) {
        (self.target_ref.uid.clone(), self.addresses.join(","))
    }
}

/// A slice on its way from what it is to what it will be.
struct Draft<'a> {
    present: Option<&'a Slice>,
    endpoints: Vec<Endpoint>,
}

impl Draft<'_> {
    fn changed(&self) -> bool {
        self.present.is_none_or(|present| present.endpoints != self.endpoints)
    }
}

/// Deletions come last, so that no endpoint is missing in between.
pub fn plan(service: &Service, backends: &[Backend], present: &[Arc<Slice>]) -> Vec<Action> {
    let labels = labels(service);
    let mut families: Vec<&str> = service.spec.ip_families.iter().map(String::as_str).collect();
    if families.is_empty() {
        families.push("IPv4");
    }
    let mut writes = Vec::new();
    let mut deletions = Vec::new();
    for slice in present.iter().filter(|slice| !families.contains(&slice.address_type.as_str())) {
        deletions.push(Action::delete(ENDPOINT_SLICES, &slice.metadata));
    }
    for family in families {
        let of_family = backends.iter().filter(|one| one.address.is_ipv4() == (family == "IPv4"));
        let mut wanted = grouped(of_family, |backend| backend.ports.clone());
        let here = present.iter().map(Arc::as_ref).filter(|slice| slice.address_type == family);
        let mut slices = grouped(here, |slice| {
            let mut ports = slice.ports.clone();
            ports.sort();
            ports
        });
        if wanted.is_empty() {
            // An empty slice says that the Service is known and has nobody behind it.
            let ports = if slices.contains_key(&vec![]) { None } else { slices.keys().next().cloned() };
            wanted.insert(ports.unwrap_or_default(), Vec::new());
        }
        for (ports, backends) in wanted {
            let slices = slices.remove(&ports).unwrap_or_default();
            let endpoints = backends.into_iter().map(|one| Endpoint::of(one, &service.metadata.namespace)).collect();
            for draft in pack(endpoints, slices) {
                match draft.present {
                    Some(slice) if draft.endpoints.is_empty() && !draft.keep_empty => {
                        deletions.push(Action::delete(ENDPOINT_SLICES, &slice.metadata));
                    }
                    Some(slice) => writes.extend(update(slice, &draft.endpoints, &labels)),
                    None => writes.push(create(service, family, &ports, &draft.endpoints, &labels)),
                }
            }
        }
        let leftover = slices.into_values().flatten();
        deletions.extend(leftover.map(|slice| Action::delete(ENDPOINT_SLICES, &slice.metadata)));
    }
    writes.extend(deletions);
    writes
}

struct Packed<'a> {
    present: Option<&'a Slice>,
    endpoints: Vec<Endpoint>,
    keep_empty: bool,
}

fn pack<'a>(endpoints: Vec<Endpoint>, mut slices: Vec<&'a Slice>) -> Vec<Packed<'a>> {
    slices.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    let nobody = endpoints.is_empty();
    let mut wanted: BTreeMap<(String, String), Endpoint> =
        endpoints.into_iter().map(|endpoint| (endpoint.identity(), endpoint)).collect();
    let mut drafts: Vec<Draft<'a>> = Vec::new();
    for slice in slices {
        let kept = slice.endpoints.iter().filter_map(|endpoint| wanted.remove(&endpoint.identity())).collect();
        drafts.push(Draft { present: Some(slice), endpoints: kept });
    }
    let mut new: Vec<Endpoint> = wanted.into_values().collect();
    new.sort_by(|a, b| a.target_ref.name.cmp(&b.target_ref.name));
    let mut new = new.into_iter().peekable();
    // Those that are written anyway first, then the fullest.
    let mut order: Vec<usize> = (0..drafts.len()).collect();
    order.sort_by_key(|at| (!drafts[*at].changed(), MAX.saturating_sub(drafts[*at].endpoints.len()), *at));
    for at in order {
        let room = MAX.saturating_sub(drafts[at].endpoints.len());
        drafts[at].endpoints.extend(new.by_ref().take(room));
    }
    while new.peek().is_some() {
        drafts.push(Draft { present: None, endpoints: new.by_ref().take(MAX).collect() });
    }
    if drafts.is_empty() {
        drafts.push(Draft { present: None, endpoints: Vec::new() });
    }
    let first_empty = drafts.iter().position(|draft| draft.endpoints.is_empty());
    let keep = first_empty.filter(|_| nobody);
    drafts
        .into_iter()
        .enumerate()
        .map(|(at, draft)| Packed { present: draft.present, endpoints: draft.endpoints, keep_empty: keep == Some(at) })
        .collect()
}

fn labels(service: &Service) -> Labels {
    let mut labels = service.passed_on();
    labels.insert(SERVICE_NAME.into(), service.metadata.name.clone());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    labels
}

fn update(slice: &Slice, endpoints: &[Endpoint], labels: &Labels) -> Option<Action> {
    let mut patch = json!({"metadata": {"uid": slice.metadata.uid}});
    if slice.endpoints != endpoints {
        patch["endpoints"] = json!(endpoints);
    }
    let mut changes: BTreeMap<&str, Value> = BTreeMap::new();
    for (key, value) in labels.iter().filter(|(key, value)| slice.metadata.labels.get(*key) != Some(*value)) {
        changes.insert(key, value.as_str().into());
    }
    for key in slice.metadata.labels.keys().filter(|key| !labels.contains_key(*key)) {
        changes.insert(key, Value::Null);
    }
    if !changes.is_empty() {
        patch["metadata"]["labels"] = json!(changes);
    }
    let worth = patch.get("endpoints").is_some() || !changes.is_empty();
    worth.then(|| Action::merge(ENDPOINT_SLICES, key_of(&slice.metadata), patch))
}

fn create(service: &Service, family: &str, ports: &[Port], endpoints: &[Endpoint], labels: &Labels) -> Action {
    let Service { metadata, .. } = service;
    let object = json!({
        "apiVersion": ENDPOINT_SLICES.api_version(),
        "kind": ENDPOINT_SLICES.kind,
        "metadata": {
            "generateName": format!("{}-", metadata.name),
            "namespace": metadata.namespace,
            "labels": labels,
            "ownerReferences": [SERVICES.controller_of(metadata)],
        },
        "addressType": family,
        "endpoints": endpoints,
        "ports": ports,
    });
    Action::create(ENDPOINT_SLICES, &metadata.namespace, object)
}
