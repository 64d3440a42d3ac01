//! Discovery: which groups, versions and resources are served, in the old form and in the aggregated one. Everything is
//! made from the registry of kinds.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use sampan_api::kind::api_version;
use sampan_api::{Kind, Kinds, Scope};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::body::{self, ResponseBody};
use crate::respond;
use crate::server::Server;

/// Groups with their versions, both in discovery order.
fn groups(kinds: &Kinds) -> Vec<(&str, Vec<&str>)> {
    let mut groups: Vec<(&str, Vec<&str>)> = Vec::new();
    for kind in &kinds.all {
        let (group, version) = (kind.gvk.group.as_str(), kind.gvk.version.as_str());
        match groups.iter_mut().find(|(name, _)| *name == group) {
            Some((_, versions)) if versions.contains(&version) => {}
            Some((_, versions)) => versions.push(version),
            None => groups.push((group, vec![version])),
        }
    }
    groups
}

fn group(name: &str, versions: &[&str]) -> Value {
    let entry = |version: &&str| json!({"groupVersion": api_version(name, version), "version": version});
    let all: Vec<Value> = versions.iter().map(entry).collect();
    json!({"name": name, "versions": all, "preferredVersion": versions.first().map(entry)})
}

fn of_group_version<'a>(kinds: &'a Kinds, group: &str, version: &str) -> Vec<&'a Arc<Kind>> {
    let mut found: Vec<&Arc<Kind>> =
        kinds.all.iter().filter(|kind| kind.gvk.group == group && kind.gvk.version == version).collect();
    found.sort_by(|a, b| a.resource.cmp(&b.resource));
    found
}

/// What clients compare to learn whether a resource is stored as before (`storageVersionHash`).
fn storage_hash(kind: &Kind) -> String {
    let gvk = &kind.storage;
    let digest = Sha256::digest(format!("{}/{}/{}", gvk.group, gvk.version, gvk.kind));
    STANDARD.encode(&digest[..8])
}

fn resource_list(kinds: &Kinds, group: &str, version: &str) -> Option<Value> {
    let found = of_group_version(kinds, group, version);
    if found.is_empty() {
        return None;
    }
    let mut resources = Vec::new();
    for kind in found {
        let mut entry = json!({
            "name": kind.resource, "singularName": kind.singular, "namespaced": kind.namespaced(),
            "kind": kind.gvk.kind, "verbs": kind.verbs,
        });
        if !kind.short_names.is_empty() {
            entry["shortNames"] = json!(kind.short_names);
        }
        if !kind.categories.is_empty() {
            entry["categories"] = json!(kind.categories);
        }
        if !kind.virtual_kind {
            entry["storageVersionHash"] = storage_hash(kind).into();
        }
        resources.push(entry);
        let mut subresources: Vec<_> = kind.subresources.iter().collect();
        subresources.sort_by(|a, b| a.name.cmp(&b.name));
        for sub in subresources {
            let mut entry = json!({
                "name": format!("{}/{}", kind.resource, sub.name), "singularName": "", "namespaced": kind.namespaced(),
                "kind": sub.gvk.kind, "verbs": sub.verbs,
            });
            if (&sub.gvk.group, &sub.gvk.version) != (&kind.gvk.group, &kind.gvk.version) {
                entry["group"] = sub.gvk.group.clone().into();
                entry["version"] = sub.gvk.version.clone().into();
            }
            resources.push(entry);
        }
    }
    Some(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version(group, version), "resources": resources,
    }))
}

fn response_kind(gvk: &sampan_api::Gvk) -> Value {
    json!({"group": gvk.group, "version": gvk.version, "kind": gvk.kind})
}

/// `apidiscovery.k8s.io` `APIGroupDiscoveryList`, of the core group or of all others.
fn aggregated(kinds: &Kinds, core: bool, version: &str) -> Value {
    let items: Vec<Value> = groups(kinds)
        .into_iter()
        .filter(|(name, _)| name.is_empty() == core)
        .map(|(name, versions)| {
            let versions: Vec<Value> = versions
                .into_iter()
                .map(|version| {
                    let resources: Vec<Value> = of_group_version(kinds, name, version)
                        .into_iter()
                        .map(|kind| aggregated_resource(kind))
                        .collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            let metadata = if name.is_empty() { json!({}) } else { json!({"name": name}) };
            json!({"metadata": metadata, "versions": versions})
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"), "metadata": {},
        "items": items,
    })
}

fn aggregated_resource(kind: &Kind) -> Value {
    let scope = if kind.scope == Scope::Namespaced { "Namespaced" } else { "Cluster" };
    let mut entry = json!({
        "resource": kind.resource, "responseKind": response_kind(&kind.gvk), "scope": scope,
        "singularResource": kind.singular, "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        entry["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        entry["categories"] = json!(kind.categories);
    }
    if !kind.subresources.is_empty() {
        let mut subresources: Vec<_> = kind.subresources.iter().collect();
        subresources.sort_by(|a, b| a.name.cmp(&b.name));
        let entries = subresources
            .into_iter()
            .map(|sub| json!({"subresource": sub.name, "responseKind": response_kind(&sub.gvk), "verbs": sub.verbs}));
        entry["subresources"] = entries.collect();
    }
    entry
}

/// The version of aggregated discovery a caller can read, the first he names.
fn wants_aggregated(headers: &HeaderMap) -> Option<&'static str> {
    let accept = headers.get(header::ACCEPT)?.to_str().ok()?;
    for clause in accept.split(',') {
        let has = |part: &str| clause.split(';').any(|one| one.trim() == part);
        if !has("as=APIGroupDiscoveryList") || !has("g=apidiscovery.k8s.io") || !has("application/json") {
            if clause.split(';').next().unwrap_or_default().trim() == "application/json" && !clause.contains("as=") {
                return None;
            }
            continue;
        }
        if has("v=v2") {
            return Some("v2");
        }
        if has("v=v2beta1") {
            return Some("v2beta1");
        }
    }
    None
}

/// Answers `/api`, `/apis`, `/api/v1`, `/apis/G` and `/apis/G/V`; `None` for other paths and unknown groups.
pub fn answer(server: &Server, path: &str, headers: &HeaderMap) -> Option<Response<ResponseBody>> {
    let kinds = server.kinds();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (value, version) = match parts[..] {
        ["api" | "apis"] => {
            let core = parts[0] == "api";
            match wants_aggregated(headers) {
                Some(version) => (aggregated(&kinds, core, version), Some(version)),
                None if core => (
                    json!({
                        "kind": "APIVersions", "versions": ["v1"],
                        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": ""}],
                    }),
                    None,
                ),
                None => {
                    let all: Vec<Value> = groups(&kinds)
                        .into_iter()
                        .filter(|(name, _)| !name.is_empty())
                        .map(|(name, versions)| group(name, &versions))
                        .collect();
                    (json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": all}), None)
                }
            }
        }
        ["api", version] => (resource_list(&kinds, "", version)?, None),
        ["apis", name] => {
            let (name, versions) = groups(&kinds).into_iter().find(|(one, _)| *one == name && !one.is_empty())?;
            let mut value = group(name, &versions);
            value["kind"] = "APIGroup".into();
            value["apiVersion"] = "v1".into();
            (value, None)
        }
        ["apis", group, version] if !group.is_empty() => (resource_list(&kinds, group, version)?, None),
        _ => return None,
    };
    Some(match version {
        None => respond::json(200, &value),
        Some(version) => tagged(&value, version, headers),
    })
}

/// Aggregated discovery carries an ETag; a caller who has it gets 304.
fn tagged(value: &Value, version: &str, headers: &HeaderMap) -> Response<ResponseBody> {
    let text = format!("{value}\n");
    let hex: String = Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02X}")).collect();
    let tag = format!("\"{hex}\"");
    let known = headers.get(header::IF_NONE_MATCH).and_then(|value| value.to_str().ok()) == Some(tag.as_str());
    let content_type = match version {
        "v2" => "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
        _ => "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
    };
    let mut response = if known {
        let mut response = Response::new(body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        respond::bytes(200, content_type, text)
    };
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aggregated_discovery_is_for_who_asks() {
        let ask = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().expect("a header"));
            wants_aggregated(&headers)
        };
        let kubectl = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                       application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,application/json";
        assert_eq!(ask(kubectl), Some("v2"));
        assert_eq!(ask("application/json"), None);
        assert_eq!(ask("application/json;g=apidiscovery.k8s.io;v=v9;as=APIGroupDiscoveryList,application/json"), None);
    }

    #[test]
    fn resources_of_a_group_version() {
        let kinds = sampan_api::kind::builtin();
        let list = resource_list(&kinds, "apps", "v1").expect("served");
        let names: Vec<&str> =
            list["resources"].as_array().expect("a list").iter().filter_map(|one| one["name"].as_str()).collect();
        assert!(names.contains(&"deployments") && names.contains(&"deployments/scale"), "{names:?}");
        let scale =
            list["resources"].as_array().and_then(|all| all.iter().find(|one| one["name"] == "deployments/scale"));
        assert_eq!(scale.map(|one| (&one["group"], &one["version"])), Some((&json!("autoscaling"), &json!("v1"))));
        assert!(resource_list(&kinds, "apps", "v9").is_none());
        let first = groups(&kinds).iter().map(|(name, _)| *name).take(3).collect::<Vec<_>>();
        assert_eq!(first, ["", "apiregistration.k8s.io", "apps"]);
    }
}
