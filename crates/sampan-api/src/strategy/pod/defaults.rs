//! Defaults of pods and of everything that holds a pod template (`pkg/apis/core/v1/defaults.go`).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::quantity::Quantity;
use crate::strategy::set;

const CONTAINERS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// Defaults of a Pod: those of its spec, and some that templates leave to the pods made from them.
pub fn pod(pod: &mut Value) {
    let Some(spec) = set::at(pod, &["spec"]) else { return };
    for list in ["containers", "initContainers"] {
        set::each(spec, list).for_each(requests_from_limits);
    }
    pod_level_resources(spec);
    set::unset(spec, "enableServiceLinks", true);
    if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
        for list in ["containers", "initContainers"] {
            for container in set::each(spec, list) {
                for port in set::each(container, "ports") {
                    let number = port.get("containerPort").and_then(Value::as_i64).unwrap_or(0);
                    set::zero(port, "hostPort", number);
                }
            }
        }
    }
    pod_spec(spec);
}

/// Defaults of the pod template at `path` below an object.
pub fn template(object: &mut Value, path: &[&str]) {
    let Some(template) = set::at(object, path) else { return };
    // A template always has a spec, which is not a pointer.
    set::unset(template, "spec", json!({}));
    if let Some(spec) = set::child(template, "spec") {
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut Map<String, Value>) {
    set::empty(spec, "dnsPolicy", "ClusterFirst");
    set::empty(spec, "restartPolicy", "Always");
    set::unset(spec, "securityContext", json!({}));
    set::unset(spec, "terminationGracePeriodSeconds", 30);
    set::empty(spec, "schedulerName", "default-scheduler");
    // The two names of one field; the old one is kept for old readers.
    let account = match (set::text(spec, "serviceAccountName"), set::text(spec, "serviceAccount")) {
        ("", old) => old.to_owned(),
        (new, _) => new.to_owned(),
    };
    if !account.is_empty() {
        spec.insert("serviceAccountName".into(), account.clone().into());
        spec.insert("serviceAccount".into(), account.into());
    }
    round_up(spec, "overhead");
    set::each(spec, "volumes").for_each(volume);
    for list in CONTAINERS {
        set::each(spec, list).for_each(container);
    }
}

fn container(container: &mut Map<String, Value>) {
    let policy = pull_policy(set::text(container, "image"));
    set::empty(container, "imagePullPolicy", policy);
    set::empty(container, "terminationMessagePath", "/dev/termination-log");
    set::empty(container, "terminationMessagePolicy", "File");
    for variable in set::each(container, "env") {
        if let Some(field) = set::child(variable, "valueFrom").and_then(|from| set::child(from, "fieldRef")) {
            set::empty(field, "apiVersion", "v1");
        }
    }
    if let Some(resources) = set::child(container, "resources") {
        round_up(resources, "limits");
        round_up(resources, "requests");
    }
    for name in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = set::child(container, name) {
            for (key, value) in
                [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
            {
                set::zero(probe, key, value);
            }
            http_get(probe);
        }
    }
    if let Some(lifecycle) = set::child(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = set::child(lifecycle, hook) {
                http_get(hook);
            }
        }
    }
}

fn http_get(handler: &mut Map<String, Value>) {
    if let Some(get) = set::child(handler, "httpGet") {
        set::empty(get, "path", "/");
        set::empty(get, "scheme", "HTTP");
    }
}

/// `Always` for `latest`, also when it is only implied.
pub fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').unwrap_or((image, ""));
    let (path, last) = name.rsplit_once('/').unwrap_or(("", name));
    let (repository, tag) = last.split_once(':').unwrap_or((last, ""));
    // A reference that does not parse has no tag.
    let malformed = repository.is_empty() || repository.bytes().chain(path.bytes()).any(|b| b.is_ascii_uppercase());
    let latest = tag == "latest" || (tag.is_empty() && digest.is_empty());
    if latest && !malformed { "Always" } else { "IfNotPresent" }
}

fn volume(volume: &mut Map<String, Value>) {
    let sources: Vec<&String> =
        volume.iter().filter(|(key, value)| *key != "name" && !value.is_null()).map(|(key, _)| key).collect();
    if sources.is_empty() {
        volume.insert("emptyDir".into(), json!({}));
    }
    for kind in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = set::child(volume, kind) {
            set::unset(source, "defaultMode", 0o644);
            downward_items(source);
        }
    }
    if let Some(path) = set::child(volume, "hostPath") {
        set::unset(path, "type", "");
    }
    if let Some(projected) = set::child(volume, "projected") {
        for source in set::each(projected, "sources") {
            if let Some(token) = set::child(source, "serviceAccountToken") {
                set::unset(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = set::child(source, "downwardAPI") {
                downward_items(downward);
            }
        }
    }
    if let Some(image) = set::child(volume, "image") {
        let policy = pull_policy(set::text(image, "reference"));
        set::empty(image, "pullPolicy", policy);
    }
    let template = set::child(volume, "ephemeral").and_then(|source| set::child(source, "volumeClaimTemplate"));
    if let Some(spec) = template.and_then(|template| set::child(template, "spec")) {
        claim_spec(spec);
    }
}

/// Defaults of a PersistentVolumeClaim's spec.
pub fn claim_spec(spec: &mut Map<String, Value>) {
    set::unset(spec, "volumeMode", "Filesystem");
    if let Some(resources) = set::child(spec, "resources") {
        round_up(resources, "limits");
        round_up(resources, "requests");
    }
}

fn downward_items(source: &mut Map<String, Value>) {
    for item in set::each(source, "items") {
        if let Some(field) = set::child(item, "fieldRef") {
            set::empty(field, "apiVersion", "v1");
        }
    }
}

/// Amounts finer than a thousandth are rounded up to one.
pub fn round_up(object: &mut Map<String, Value>, key: &str) {
    for amount in set::child(object, key).into_iter().flat_map(Map::values_mut) {
        let Some(quantity) = amount.as_str().and_then(|text| text.parse::<Quantity>().ok()) else { continue };
        let rounded = Quantity::from_milli(quantity.milli_value());
        if rounded != quantity {
            *amount = rounded.to_string().into();
        }
    }
}

fn requests_from_limits(container: &mut Map<String, Value>) {
    let Some(resources) = set::child(container, "resources") else { return };
    let Some(limits) = resources.get("limits").and_then(Value::as_object).cloned() else { return };
    set::unset(resources, "requests", json!({}));
    if let Some(requests) = set::child(resources, "requests") {
        for (name, amount) in limits {
            requests.entry(name).or_insert(amount);
        }
    }
}

type Amounts = BTreeMap<String, Quantity>;

/// Pod-level requests and limits that are left out follow from those of the containers.
fn pod_level_resources(spec: &mut Map<String, Value>) {
    if !spec.get("resources").is_some_and(Value::is_object) {
        return;
    }
    let of_containers = |spec: &Map<String, Value>, kind: &str| aggregate(spec, kind);
    let (requests, limits) = (of_containers(spec, "requests"), of_containers(spec, "limits"));
    let complete: Vec<String> = limits.keys().filter(|name| all_limited(spec, name)).cloned().collect();
    let Some(resources) = set::child(spec, "resources") else { return };
    let given = |resources: &Map<String, Value>, kind: &str| {
        resources.get(kind).and_then(Value::as_object).cloned().unwrap_or_default()
    };
    let (mut pod_requests, mut pod_limits) = (given(resources, "requests"), given(resources, "limits"));
    let (had_requests, had_limits) = (!pod_requests.is_empty(), !pod_limits.is_empty());
    if had_requests || had_limits {
        for (name, amount) in limits.iter().filter(|(name, _)| is_huge_page(name)) {
            if !pod_requests.contains_key(name) {
                pod_limits.entry(name.clone()).or_insert_with(|| amount.to_string().into());
            }
        }
    }
    if !pod_limits.is_empty() {
        for (name, amount) in requests.iter().filter(|(name, _)| is_compute(name)) {
            pod_requests.entry(name.clone()).or_insert_with(|| amount.to_string().into());
        }
        for (name, amount) in pod_limits.iter().filter(|(name, _)| is_compute(name) || is_huge_page(name)) {
            pod_requests.entry(name.clone()).or_insert_with(|| amount.clone());
        }
    }
    if !had_limits && had_requests {
        for (name, amount) in limits.iter().filter(|(name, _)| is_compute(name) && complete.contains(name)) {
            pod_limits.entry(name.clone()).or_insert_with(|| amount.to_string().into());
        }
    }
    for (kind, amounts) in [("requests", pod_requests), ("limits", pod_limits)] {
        if !amounts.is_empty() {
            resources.insert(kind.into(), Value::Object(amounts));
        }
    }
}

fn is_compute(name: &str) -> bool {
    matches!(name, "cpu" | "memory")
}

fn is_huge_page(name: &str) -> bool {
    name.starts_with("hugepages-")
}

fn list<'a>(spec: &'a Map<String, Value>, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    spec.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn all_limited(spec: &Map<String, Value>, name: &str) -> bool {
    list(spec, "containers").all(|container| container["resources"]["limits"].get(name).is_some())
}

fn amounts(container: &Value, kind: &str) -> Amounts {
    let entries = container["resources"][kind].as_object();
    entries
        .into_iter()
        .flatten()
        .filter_map(|(name, amount)| Some((name.clone(), amount.as_str()?.parse().ok()?)))
        .collect()
}

/// What the containers need together: all that run at once, or the most that any init container needs beside the
/// sidecars started before it.
fn aggregate(spec: &Map<String, Value>, kind: &str) -> Amounts {
    let add = |total: &mut Amounts, more: &Amounts| {
        for (name, amount) in more {
            *total.entry(name.clone()).or_insert(Quantity::ZERO) += *amount;
        }
    };
    let mut running = Amounts::new();
    list(spec, "containers").for_each(|container| add(&mut running, &amounts(container, kind)));
    let (mut sidecars, mut peak) = (Amounts::new(), Amounts::new());
    for container in list(spec, "initContainers") {
        let own = amounts(container, kind);
        let mut now = sidecars.clone();
        add(&mut now, &own);
        if container["restartPolicy"] == "Always" {
            sidecars = now.clone();
        }
        for (name, amount) in now {
            let most = peak.entry(name).or_insert(Quantity::ZERO);
            *most = (*most).max(amount);
        }
    }
    add(&mut running, &sidecars);
    for (name, amount) in peak {
        let most = running.entry(name).or_insert(Quantity::ZERO);
        *most = (*most).max(amount);
    }
    running
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_pod_gets_what_upstream_gives_it() {
        let mut object = json!({"spec": {"containers": [{"name": "a", "image": "nginx"}]}});
        pod(&mut object);
        let expected = json!({"spec": {
            "containers": [{
                "name": "a", "image": "nginx", "imagePullPolicy": "Always",
                "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
            }],
            "dnsPolicy": "ClusterFirst", "enableServiceLinks": true, "restartPolicy": "Always",
            "schedulerName": "default-scheduler", "securityContext": {}, "terminationGracePeriodSeconds": 30,
        }});
        assert_eq!(object, expected);
        pod(&mut object);
        assert_eq!(object, expected);
    }

    #[test]
    fn probes_volumes_and_requests() {
        let mut object = json!({"spec": {
            "containers": [{
                "name": "a", "image": "nginx:1",
                "readinessProbe": {"httpGet": {"port": 80}, "timeoutSeconds": 0},
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100u"}},
            }],
            "volumes": [
                {"name": "e"}, {"name": "s", "secret": {"secretName": "x"}}, {"name": "h", "hostPath": {"path": "/"}},
                {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}},
            ],
        }});
        pod(&mut object);
        let container = &object["spec"]["containers"][0];
        assert_eq!(container["imagePullPolicy"], "IfNotPresent");
        assert_eq!(
            container["readinessProbe"],
            json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
                "successThreshold": 1, "failureThreshold": 3})
        );
        assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
        assert_eq!(container["resources"]["requests"], json!({"cpu": "1m", "memory": "1Gi"}));
        let volumes = &object["spec"]["volumes"];
        assert_eq!(volumes[0], json!({"name": "e", "emptyDir": {}}));
        assert_eq!(volumes[1]["secret"]["defaultMode"], 420);
        assert_eq!(volumes[2]["hostPath"], json!({"path": "/", "type": ""}));
        assert_eq!(volumes[3]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 3600);
    }

    #[test]
    fn the_tag_decides_the_pull_policy() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("localhost:5000/nginx", "Always"),
            ("nginx:1.2", "IfNotPresent"),
            ("nginx@sha256:00", "IfNotPresent"),
            ("Nginx", "IfNotPresent"),
            ("", "IfNotPresent"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }

    #[test]
    fn pod_level_requests_follow_the_containers() {
        let mut object = json!({"spec": {
            "resources": {"limits": {"cpu": "2", "memory": "1Gi"}},
            "containers": [
                {"name": "a", "image": "x", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "b", "image": "x", "resources": {"requests": {"cpu": "200m"}}},
            ],
            "initContainers": [{"name": "i", "image": "x", "resources": {"requests": {"cpu": "500m"}}}],
        }});
        pod(&mut object);
        assert_eq!(object["spec"]["resources"]["requests"], json!({"cpu": "500m", "memory": "1Gi"}));
    }
}
