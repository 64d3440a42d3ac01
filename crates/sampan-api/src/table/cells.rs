//! Cells of built-in kinds that are more than a field (`pkg/printers/internalversion`), and what they are made with.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::duration;
use crate::selector::LabelSelector;

const NULL: &Value = &Value::Null;

/// The value at a dotted path, null when absent.
pub fn at<'a>(object: &'a Value, path: &str) -> &'a Value {
    path.split('.').try_fold(object, |value, key| value.get(key)).unwrap_or(NULL)
}

pub fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    at(object, path).as_str().unwrap_or_default()
}

pub fn integer(object: &Value, path: &str) -> i64 {
    at(object, path).as_i64().unwrap_or_default()
}

pub fn items<'a>(object: &'a Value, path: &str) -> &'a [Value] {
    at(object, path).as_array().map(Vec::as_slice).unwrap_or_default()
}

pub fn length(object: &Value, path: &str) -> i64 {
    let value = at(object, path);
    let length = value.as_array().map_or(0, Vec::len) + value.as_object().map_or(0, Map::len);
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// The field as it is, or `default` when it is absent, null or empty.
pub fn or(object: &Value, path: &str, default: &str) -> Value {
    match at(object, path) {
        Value::Null => default.into(),
        Value::String(text) if text.is_empty() => default.into(),
        value => value.clone(),
    }
}

/// The status of the condition `ty`.
pub fn condition<'a>(object: &'a Value, ty: &str) -> Option<&'a str> {
    items(object, "status.conditions").iter().find(|one| text(one, "type") == ty).map(|one| text(one, "status"))
}

pub fn timestamp(value: &Value) -> Option<Timestamp> {
    value.as_str().and_then(|text| text.parse().ok())
}

pub fn since(then: Timestamp, now: Timestamp) -> String {
    duration::human(now.duration_since(then))
}

/// The time since a timestamp, `<unknown>` when there is none.
pub fn age_of(value: &Value, now: Timestamp) -> String {
    timestamp(value).map_or_else(|| "<unknown>".into(), |then| since(then, now))
}

pub fn age(object: &Value, now: Timestamp) -> Value {
    age_of(at(object, "metadata.creationTimestamp"), now).into()
}

fn joined<'a>(parts: impl IntoIterator<Item = &'a str>, separator: &str) -> String {
    parts.into_iter().collect::<Vec<_>>().join(separator)
}

/// At most `limit` parts, then how many there are beyond them.
fn limited(parts: &[String], limit: usize, separator: &str) -> String {
    let shown = parts.get(..limit).unwrap_or(parts).join(separator);
    match parts.len().checked_sub(limit) {
        Some(more) if more > 0 => format!("{shown} + {more} more..."),
        _ => shown,
    }
}

fn or_text(text: String, default: &str) -> Value {
    if text.is_empty() { default.into() } else { text.into() }
}

/// `a=b,c=d` of a map of labels.
pub fn labels(object: &Value, path: &str) -> Value {
    let pairs = at(object, path).as_object().into_iter().flatten();
    let pairs: Vec<String> =
        pairs.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    or_text(pairs.join(","), "<none>")
}

/// A `metav1.LabelSelector` as text.
pub fn selector(object: &Value, path: &str) -> Value {
    match LabelSelector::from_json(at(object, path)) {
        Ok(selector) => or_text(selector.to_string(), "<none>"),
        Err(_) => "<error>".into(),
    }
}

/// `field` of each container below the pod spec at `path`.
pub fn containers(object: &Value, path: &str, field: &str) -> Value {
    joined(items(at(object, path), "containers").iter().map(|container| text(container, field)), ",").into()
}

pub fn quantity(value: &Value) -> String {
    match value {
        Value::String(text) => crate::quantity::canonicalize(text).unwrap_or_else(|_| text.clone()),
        Value::Null => "0".into(),
        other => other.to_string(),
    }
}

/// `True`, `False` or `<unset>`.
pub fn boolean(object: &Value, path: &str) -> Value {
    match at(object, path) {
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        _ => "<unset>".into(),
    }
}

/// An integer or a string, as text; `N/A` when absent.
pub fn int_or_string(object: &Value, path: &str) -> Value {
    match at(object, path) {
        Value::Null => "N/A".into(),
        Value::String(text) => text.as_str().into(),
        other => other.to_string().into(),
    }
}

pub fn node_status(node: &Value, _: Timestamp) -> Value {
    let mut status = match condition(node, "Ready") {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if at(node, "spec.unschedulable") == true {
        status += ",SchedulingDisabled";
    }
    status.into()
}

pub fn node_roles(node: &Value, _: Timestamp) -> Value {
    let labels = at(node, "metadata.labels").as_object().into_iter().flatten();
    let roles: BTreeSet<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    or_text(joined(roles, ","), "<none>")
}

pub fn node_address(node: &Value, ty: &str) -> Value {
    let address = items(node, "status.addresses").iter().find(|address| text(address, "type") == ty);
    address.map_or("<none>", |address| text(address, "address")).into()
}

fn load_balancer(object: &Value) -> String {
    let ingress = items(object, "status.loadBalancer.ingress").iter();
    let addresses: BTreeSet<&str> = ingress
        .map(|one| if text(one, "ip").is_empty() { text(one, "hostname") } else { text(one, "ip") })
        .filter(|address| !address.is_empty())
        .collect();
    joined(addresses, ",")
}

pub fn load_balancer_address(object: &Value, _: Timestamp) -> Value {
    load_balancer(object).into()
}

pub fn service_external_ip(service: &Value, _: Timestamp) -> Value {
    let external = joined(items(service, "spec.externalIPs").iter().filter_map(Value::as_str), ",");
    match text(service, "spec.type") {
        "ClusterIP" | "NodePort" => or_text(external, "<none>"),
        "LoadBalancer" => {
            let both = [load_balancer(service), external];
            or_text(joined(both.iter().map(String::as_str).filter(|part| !part.is_empty()), ","), "<pending>")
        }
        "ExternalName" => text(service, "spec.externalName").into(),
        _ => "<unknown>".into(),
    }
}

pub fn service_cluster_ip(service: &Value, _: Timestamp) -> Value {
    items(service, "spec.clusterIPs").first().and_then(Value::as_str).unwrap_or("<none>").into()
}

pub fn service_ports(service: &Value, _: Timestamp) -> Value {
    let port = |port: &Value| {
        let (number, protocol) = (integer(port, "port"), text(port, "protocol"));
        match integer(port, "nodePort") {
            node if node > 0 => format!("{number}:{node}/{protocol}"),
            _ => format!("{number}/{protocol}"),
        }
    };
    or_text(items(service, "spec.ports").iter().map(port).collect::<Vec<_>>().join(","), "<none>")
}

pub fn ingress_hosts(ingress: &Value, _: Timestamp) -> Value {
    let rules = items(ingress, "spec.rules");
    let mut hosts: Vec<&str> = Vec::new();
    for rule in rules {
        if hosts.len() == 3 {
            return format!("{} + {} more...", hosts.join(","), rules.len() - 3).into();
        }
        hosts.extend(Some(text(rule, "host")).filter(|host| !host.is_empty()));
    }
    or_text(hosts.join(","), "*")
}

pub fn ingress_class_parameters(class: &Value, _: Timestamp) -> Value {
    let parameters = at(class, "spec.parameters");
    if parameters.is_null() {
        return "<none>".into();
    }
    let group = match text(parameters, "apiGroup") {
        "" => String::new(),
        group => format!(".{group}"),
    };
    format!("{}{group}/{}", text(parameters, "kind"), text(parameters, "name")).into()
}

/// `10.0.0.1:80`, IPv6 addresses in brackets.
fn host_port(host: &str, port: i64) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

pub fn endpoints(endpoints: &Value, _: Timestamp) -> Value {
    let subsets = items(endpoints, "subsets");
    if subsets.is_empty() {
        return "<none>".into();
    }
    let mut list = Vec::new();
    for subset in subsets {
        let addresses = || items(subset, "addresses").iter().map(|address| text(address, "ip"));
        let ports = items(subset, "ports");
        if ports.is_empty() {
            list.extend(addresses().map(str::to_owned));
        }
        for port in ports {
            list.extend(addresses().map(|address| host_port(address, integer(port, "port"))));
        }
    }
    limited(&list, 3, ",").into()
}

pub fn slice_ports(slice: &Value, _: Timestamp) -> Value {
    let port = |port: &Value| match (at(port, "port").as_i64(), at(port, "name").as_str()) {
        (Some(number), _) => number.to_string(),
        (None, Some(name)) => name.into(),
        (None, None) => "*".into(),
    };
    let ports: Vec<String> = items(slice, "ports").iter().map(port).collect();
    or_text(limited(&ports, 3, ","), "<unset>")
}

pub fn slice_endpoints(slice: &Value, _: Timestamp) -> Value {
    let addresses = items(slice, "endpoints").iter().flat_map(|endpoint| items(endpoint, "addresses"));
    let addresses: Vec<String> = addresses.filter_map(Value::as_str).map(str::to_owned).collect();
    or_text(limited(&addresses, 3, ","), "<unset>")
}

/// `2/3`, the two fields at the paths.
pub fn of(object: &Value, part: &str, whole: &str) -> Value {
    format!("{}/{}", integer(object, part), integer(object, whole)).into()
}

pub fn job_status(job: &Value, _: Timestamp) -> Value {
    let is = |ty: &str| condition(job, ty) == Some("True");
    if is("Complete") {
        "Complete"
    } else if is("Failed") {
        "Failed"
    } else if !at(job, "metadata.deletionTimestamp").is_null() {
        "Terminating"
    } else if is("Suspended") {
        "Suspended"
    } else if is("FailureTarget") {
        "FailureTarget"
    } else {
        "Running"
    }
    .into()
}

pub fn job_completions(job: &Value, _: Timestamp) -> Value {
    let succeeded = integer(job, "status.succeeded");
    match (at(job, "spec.completions").as_i64(), integer(job, "spec.parallelism")) {
        (Some(completions), _) => format!("{succeeded}/{completions}").into(),
        (None, parallelism) if parallelism > 1 => format!("{succeeded}/1 of {parallelism}").into(),
        (None, _) => format!("{succeeded}/1").into(),
    }
}

pub fn job_duration(job: &Value, now: Timestamp) -> Value {
    let start = timestamp(at(job, "status.startTime"));
    let end = timestamp(at(job, "status.completionTime")).unwrap_or(now);
    start.map_or_else(String::new, |start| since(start, end)).into()
}

pub fn last_schedule(job: &Value, now: Timestamp) -> Value {
    match at(job, "status.lastScheduleTime") {
        Value::Null => "<none>".into(),
        time => age_of(time, now).into(),
    }
}

fn access_modes(object: &Value, path: &str) -> String {
    const MODES: [(&str, &str); 4] =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |mode: &str| items(object, path).iter().any(|one| one == mode);
    joined(MODES.iter().filter(|(mode, _)| has(mode)).map(|(_, short)| *short), ",")
}

pub fn volume_phase(object: &Value, _: Timestamp) -> Value {
    let going = !at(object, "metadata.deletionTimestamp").is_null();
    if going { "Terminating".into() } else { text(object, "status.phase").into() }
}

/// The class by the old annotation, else by the field.
pub fn storage_class(object: &Value, _: Timestamp) -> Value {
    let annotation = at(object, "metadata.annotations").get("volume.beta.kubernetes.io/storage-class");
    annotation.and_then(Value::as_str).unwrap_or_else(|| text(object, "spec.storageClassName")).into()
}

pub fn volume_claim(volume: &Value, _: Timestamp) -> Value {
    let claim = at(volume, "spec.claimRef");
    if claim.is_null() { "".into() } else { format!("{}/{}", text(claim, "namespace"), text(claim, "name")).into() }
}

pub fn volume_modes(volume: &Value, _: Timestamp) -> Value {
    access_modes(volume, "spec.accessModes").into()
}

/// Modes and capacity of a claim are those of the volume it is bound to.
pub fn claim_modes(claim: &Value, _: Timestamp) -> Value {
    if text(claim, "spec.volumeName").is_empty() { "".into() } else { access_modes(claim, "status.accessModes").into() }
}

pub fn claim_capacity(claim: &Value, _: Timestamp) -> Value {
    if text(claim, "spec.volumeName").is_empty() {
        return "".into();
    }
    quantity(at(claim, "status.capacity.storage")).into()
}

/// The name, marked when an annotation says that this class is the default.
pub fn class_name(class: &Value, annotations: [&str; 2]) -> Value {
    let default = annotations.iter().any(|key| at(class, "metadata.annotations").get(key) == Some(&"true".into()));
    format!("{}{}", text(class, "metadata.name"), if default { " (default)" } else { "" }).into()
}

/// The field of an event of either group: `events.k8s.io` names some otherwise.
fn event_field<'a>(event: &'a Value, core: &str, other: &str) -> &'a Value {
    match at(event, core) {
        Value::Null => at(event, other),
        value => value,
    }
}

pub fn event_first_seen(event: &Value, now: Timestamp) -> Value {
    match event_field(event, "firstTimestamp", "deprecatedFirstTimestamp") {
        Value::Null => age_of(at(event, "eventTime"), now).into(),
        time => age_of(time, now).into(),
    }
}

pub fn event_last_seen(event: &Value, now: Timestamp) -> Value {
    let series = at(event, "series");
    if !series.is_null() {
        return age_of(at(series, "lastObservedTime"), now).into();
    }
    match event_field(event, "lastTimestamp", "deprecatedLastTimestamp") {
        Value::Null => event_first_seen(event, now),
        time => age_of(time, now).into(),
    }
}

pub fn event_count(event: &Value, _: Timestamp) -> Value {
    let series = at(event, "series");
    let single = event_field(event, "count", "deprecatedCount").as_i64().unwrap_or_default().max(1);
    if series.is_null() { single } else { integer(series, "count") }.into()
}

pub fn event_object(event: &Value, _: Timestamp) -> Value {
    let object = event_field(event, "involvedObject", "regarding");
    let kind = text(object, "kind").to_lowercase();
    match text(object, "name") {
        "" => kind.into(),
        name => format!("{kind}/{name}").into(),
    }
}

pub fn event_subobject(event: &Value, _: Timestamp) -> Value {
    text(event_field(event, "involvedObject", "regarding"), "fieldPath").into()
}

pub fn event_message(event: &Value, _: Timestamp) -> Value {
    event_field(event, "message", "note").as_str().unwrap_or_default().trim().into()
}

pub fn event_source(event: &Value, _: Timestamp) -> Value {
    let source = event_field(event, "source", "deprecatedSource");
    let first = |a: &'_ str, b: &'_ str| if a.is_empty() { b.to_owned() } else { a.to_owned() };
    let controller = event_field(event, "reportingComponent", "reportingController").as_str().unwrap_or_default();
    let component = first(text(source, "component"), controller);
    match first(text(source, "host"), text(event, "reportingInstance")).as_str() {
        "" => component.into(),
        host => format!("{component}, {host}").into(),
    }
}

pub fn role(binding: &Value, _: Timestamp) -> Value {
    format!("{}/{}", text(binding, "roleRef.kind"), text(binding, "roleRef.name")).into()
}

/// The subjects of one kind; service accounts with their namespace.
pub fn subjects(binding: &Value, kind: &str) -> Value {
    let subjects = items(binding, "subjects").iter().filter(|subject| text(subject, "kind") == kind);
    let name = |subject: &Value| match kind {
        "ServiceAccount" => format!("{}/{}", text(subject, "namespace"), text(subject, "name")),
        _ => text(subject, "name").into(),
    };
    subjects.map(name).collect::<Vec<_>>().join(", ").into()
}

pub fn signing_request_condition(request: &Value, _: Timestamp) -> Value {
    let has = |ty: &str| condition(request, ty).is_some();
    let mut status = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied",
        (_, true) => "Approved",
        _ => "Pending",
    }
    .to_owned();
    if has("Failed") {
        status += ",Failed";
    }
    if !text(request, "status.certificate").is_empty() {
        status += ",Issued";
    }
    status.into()
}

pub fn requested_duration(request: &Value, _: Timestamp) -> Value {
    match at(request, "spec.expirationSeconds").as_i64() {
        Some(seconds) => duration::human(jiff::SignedDuration::from_secs(seconds)).into(),
        None => "<none>".into(),
    }
}

/// `status`, `message` or `error` of the condition `Healthy`.
pub fn component(object: &Value, field: &str) -> Value {
    let healthy = items(object, "conditions").iter().find(|one| text(one, "type") == "Healthy");
    match (field, healthy) {
        ("status", None) => "Unknown".into(),
        ("status", Some(one)) => if text(one, "status") == "True" { "Healthy" } else { "Unhealthy" }.into(),
        (field, one) => one.map_or("", |one| text(one, field)).into(),
    }
}

pub fn controller(object: &Value, _: Timestamp) -> Value {
    let owners = items(object, "metadata.ownerReferences");
    let Some(owner) = owners.iter().find(|owner| at(owner, "controller") == true) else { return "<none>".into() };
    let kind = match text(owner, "apiVersion").split_once('/') {
        Some((group, _)) => format!("{}.{group}", text(owner, "kind")),
        None => text(owner, "kind").into(),
    };
    format!("{}/{}", kind.to_lowercase(), text(owner, "name")).into()
}

/// `cpu: 1/2, pods: 3/10` of the resources with, or without, the prefix `limits.`.
pub fn quota(object: &Value, limits: bool) -> Value {
    let hard = at(object, "status.hard").as_object().into_iter().flatten();
    let hard: BTreeMap<&String, &Value> = hard.filter(|(name, _)| name.starts_with("limits.") == limits).collect();
    let used = |name: &String| at(object, "status.used").get(name).unwrap_or(NULL);
    let shown = |(name, hard): (&String, &Value)| format!("{name}: {}/{}", quantity(used(name)), quantity(hard));
    hard.into_iter().map(|(name, hard)| shown((name, hard))).collect::<Vec<_>>().join(", ").into()
}

pub fn param_kind(policy: &Value, _: Timestamp) -> Value {
    let kind = at(policy, "spec.paramKind");
    if kind.is_null() {
        return "<unset>".into();
    }
    format!("{}/{}", text(kind, "apiVersion"), text(kind, "kind")).into()
}

pub fn param_ref(binding: &Value, _: Timestamp) -> Value {
    let param = at(binding, "spec.paramRef");
    match (text(param, "name"), text(param, "namespace")) {
        ("", _) if !at(param, "selector").is_null() => selector(param, "selector"),
        ("", _) => "<unset>".into(),
        (name, "") => format!("*/{name}").into(),
        (name, namespace) => format!("{namespace}/{name}").into(),
    }
}

pub fn missing_priority_level(schema: &Value, _: Timestamp) -> Value {
    condition(schema, "Dangling").unwrap_or("?").into()
}

pub fn ip_parent(address: &Value, _: Timestamp) -> Value {
    let parent = at(address, "spec.parentRef");
    if parent.is_null() {
        return "<none>".into();
    }
    let resource = crate::error::qualified(text(parent, "resource"), text(parent, "group")).to_lowercase();
    let namespace = text(parent, "namespace");
    let parts = [resource.as_str(), namespace, text(parent, "name")];
    joined(parts.into_iter().filter(|part| !part.is_empty()), "/").into()
}

pub fn claim_state(claim: &Value, _: Timestamp) -> Value {
    let going = !at(claim, "metadata.deletionTimestamp").is_null();
    let allocated = !at(claim, "status.allocation").is_null();
    let states = [
        ("deleted", going),
        ("pending", !allocated && !going),
        ("allocated", allocated),
        ("reserved", allocated && !items(claim, "status.reservedFor").is_empty()),
    ];
    joined(states.iter().filter(|(_, holds)| *holds).map(|(state, _)| *state), ",").into()
}

pub fn migration_resource(migration: &Value, _: Timestamp) -> Value {
    let resource = |key: &str| text(at(migration, "spec.resource"), key).to_owned();
    format!("{}.{}.{}", resource("resource"), resource("version"), resource("group")).into()
}

pub fn storage_versions(version: &Value, _: Timestamp) -> Value {
    let one = |one: &Value| format!("{}={}", text(one, "apiServerID"), text(one, "encodingVersion"));
    let versions: Vec<String> = items(version, "status.storageVersions").iter().map(one).collect();
    or_text(limited(&versions, 3, ","), "<unset>")
}

pub fn csi_token_requests(driver: &Value, _: Timestamp) -> Value {
    if at(driver, "spec.tokenRequests").is_null() {
        return "<unset>".into();
    }
    joined(items(driver, "spec.tokenRequests").iter().map(|request| text(request, "audience")), ",").into()
}

pub fn csi_modes(driver: &Value, _: Timestamp) -> Value {
    or_text(joined(items(driver, "spec.volumeLifecycleModes").iter().filter_map(Value::as_str), ","), "<none>")
}

pub fn api_service(service: &Value, _: Timestamp) -> Value {
    let target = at(service, "spec.service");
    if target.is_null() {
        return "Local".into();
    }
    format!("{}/{}", text(target, "namespace"), text(target, "name")).into()
}

pub fn api_service_available(service: &Value, _: Timestamp) -> Value {
    let available = items(service, "status.conditions").iter().find(|one| text(one, "type") == "Available");
    match available.map(|one| (text(one, "status"), text(one, "reason"))) {
        None => "Unknown".into(),
        Some(("True", _)) => "True".into(),
        Some((status, "")) => status.into(),
        Some((status, reason)) => format!("{status} ({reason})").into(),
    }
}

/// Current and wanted values of an autoscaler's metrics, in version 1 and 2.
pub fn autoscaler_targets(autoscaler: &Value, _: Timestamp) -> Value {
    let percent = |value: &Value, absent: &str| value.as_i64().map_or_else(|| absent.into(), |one| format!("{one}%"));
    let target = at(autoscaler, "spec.targetCPUUtilizationPercentage");
    if !target.is_null() {
        let current = percent(at(autoscaler, "status.currentCPUUtilizationPercentage"), "<unknown>");
        return format!("cpu: {current}/{}", percent(target, "<auto>")).into();
    }
    let specs = items(autoscaler, "spec.metrics");
    if specs.is_empty() {
        return "<none>".into();
    }
    let statuses = items(autoscaler, "status.currentMetrics");
    let metric = |(index, spec): (usize, &Value)| {
        let (field, per_resource) = match text(spec, "type") {
            "External" => ("external", false),
            "Pods" => ("pods", false),
            "Object" => ("object", false),
            "Resource" => ("resource", true),
            "ContainerResource" => ("containerResource", true),
            _ => return "<unknown type>".into(),
        };
        let target = at(at(spec, field), "target");
        let current = at(at(statuses.get(index).unwrap_or(NULL), field), "current");
        let shown = |key: &str| match at(current, key) {
            Value::Null => "<unknown>".into(),
            value => quantity(value),
        };
        let average = at(target, "averageValue");
        let pair = match (average.is_null(), per_resource) {
            (false, _) => format!("{}/{}", shown("averageValue"), quantity(average)),
            (true, true) => {
                let key = "averageUtilization";
                format!("{}/{}", percent(at(current, key), "<unknown>"), percent(at(target, key), "<auto>"))
            }
            (true, false) => format!("{}/{}", shown("value"), quantity(at(target, "value"))),
        };
        match field {
            "external" | "object" if !average.is_null() => format!("{pair} (avg)"),
            _ if per_resource => format!("{}: {pair}", text(at(spec, field), "name")),
            _ => pair,
        }
    };
    let metrics: Vec<String> = specs.iter().enumerate().map(metric).collect();
    limited(&metrics, 2, ", ").into()
}
