//! What may change in a pod after it is made: through the pod itself, its status, ephemeral containers, and resizing.

use serde_json::{Map, Value};

use super::{qos_class, scheduling, spec};
use crate::error::FieldErrors;
use crate::names;
use crate::strategy::at::{At, same};
use crate::strategy::set;

const UPDATABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                         `spec.tolerations` (only additions to existing tolerations),\
                         `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The generic path has kept the status already.
pub fn prepare(_new: &mut Value, _old: &Value) {}

/// `ValidatePodUpdate`.
pub fn validate(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let (root, before) = (At::root(new), At::root(old));
    spec::pod(&root, &mut errors);
    annotations(&root, &before, &mut errors);
    let (spec, old_spec) = (root.get("spec"), before.get("spec"));
    for list in ["containers", "initContainers"] {
        let (now, then) = (spec.get(list), old_spec.get(list));
        if now.len() != then.len() {
            now.forbidden(&mut errors, "pod updates may not add or remove containers");
            return errors;
        }
    }
    if !deadline(&spec.get("activeDeadlineSeconds"), &old_spec.get("activeDeadlineSeconds"), &mut errors) {
        return errors;
    }
    added_tolerations(&spec.get("tolerations"), &old_spec.get("tolerations"), &mut errors);
    deleted_gates(&spec.get("schedulingGates"), &old_spec.get("schedulingGates"), &mut errors);
    if same(&new["spec"], &old["spec"]) {
        return errors;
    }
    if qos_class(old) != qos_class(new) {
        errors.invalid(root.get("metadata").path(), qos_class(new), "Pod QoS is immutable");
    }
    let munged = munge(new, old, &spec, &old_spec, &mut errors);
    if !same(&munged, &old["spec"]) {
        let changed = changed_fields(&munged, &old["spec"]);
        spec.forbidden(&mut errors, format!("pod updates may not change fields other than {UPDATABLE}\n{changed}"));
    }
    errors
}

/// The new spec with all that may change put back as it was.
fn munge(new: &Value, old: &Value, spec: &At<'_, '_>, old_spec: &At<'_, '_>, errors: &mut FieldErrors) -> Value {
    let mut munged = new["spec"].clone();
    for list in ["containers", "initContainers"] {
        let before = old["spec"][list].as_array().map_or(&[][..], Vec::as_slice);
        let now = munged.get_mut(list).and_then(Value::as_array_mut);
        for (container, old) in now.into_iter().flatten().zip(before) {
            container["image"] = old["image"].clone();
        }
    }
    let Some(fields) = munged.as_object_mut() else { return munged };
    let mut keep = |field: &str| restore(fields, &old["spec"], field);
    for field in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        keep(field);
    }
    let grace = old_spec.get("terminationGracePeriodSeconds").int().unwrap_or(0);
    if grace < 0 && spec.get("terminationGracePeriodSeconds").int() == Some(1) {
        keep("terminationGracePeriodSeconds");
    }
    if !old_spec.get("schedulingGates").is_empty() {
        // A gated pod may still be steered to fewer nodes.
        let (selector, old_selector) = (spec.get("nodeSelector"), old_spec.get("nodeSelector"));
        let narrowed = old_selector.entries().all(|(key, value)| selector.key(key).value == value.value);
        if !narrowed {
            selector.invalid(errors, "only additions to spec.nodeSelector are allowed (no mutations or deletions)");
        }
        keep("nodeSelector");
        node_affinity(fields, spec, old_spec, errors);
    }
    munged
}

fn restore(fields: &mut Map<String, Value>, old: &Value, field: &str) {
    match old.get(field) {
        Some(value) => fields.insert(field.into(), value.clone()),
        None => fields.remove(field),
    };
}

/// Terms of a gated pod's node affinity may gain expressions, not lose or change any.
fn node_affinity(fields: &mut Map<String, Value>, spec: &At<'_, '_>, old_spec: &At<'_, '_>, errors: &mut FieldErrors) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let (affinity, old_affinity) = (spec.get("affinity"), old_spec.get("affinity"));
    let (node, old_node) = (affinity.get("nodeAffinity"), old_affinity.get("nodeAffinity"));
    if same(node.value, old_node.value) {
        return;
    }
    let (required, old_required) = (node.get(REQUIRED), old_node.get(REQUIRED));
    let (terms, old_terms) = (required.get("nodeSelectorTerms"), old_required.get("nodeSelectorTerms"));
    if old_required.is_set() && terms.len() != old_terms.len() {
        terms.invalid(errors, "no additions/deletions to non-empty NodeSelectorTerms list are allowed");
    } else {
        for (term, old_term) in terms.items().zip(old_terms.items()) {
            let grew = ["matchExpressions", "matchFields"].iter().all(|list| {
                let (now, then) = (term.get(list), old_term.get(list));
                then.len() <= now.len() && now.items().zip(then.items()).all(|(now, then)| now.value == then.value)
            });
            if !grew {
                term.invalid(errors, "only additions are allowed (no mutations or deletions)");
            }
        }
    }
    if old_node.is_set() {
        fields.entry("affinity").or_insert_with(|| Value::Object(Map::new()));
    }
    if let Some(affinity) = set::child(fields, "affinity") {
        restore(affinity, old_affinity.value, "nodeAffinity");
    }
}

/// The names of the fields that differ: what upstream shows as a diff of its structs.
fn changed_fields(new: &Value, old: &Value) -> String {
    let keys = |value: &Value| -> Vec<String> {
        value.as_object().map(|object| object.keys().cloned().collect()).unwrap_or_default()
    };
    let mut changed: Vec<String> =
        keys(new).into_iter().chain(keys(old)).filter(|key| !same(&new[key], &old[key])).collect();
    changed.sort();
    changed.dedup();
    changed.iter().map(|key| format!("  {key}\n")).collect()
}

/// False when the rest is not worth checking.
fn deadline(now: &At<'_, '_>, then: &At<'_, '_>, errors: &mut FieldErrors) -> bool {
    match (now.int(), then.int()) {
        (Some(seconds), _) if !(0..=i64::from(i32::MAX)).contains(&seconds) => {
            now.invalid(errors, names::inclusive_range(0, i64::from(i32::MAX)));
            false
        }
        (Some(seconds), Some(before)) if before < seconds => {
            now.invalid(errors, "must be less than or equal to previous value");
            false
        }
        (None, Some(_)) => {
            now.invalid(errors, "must not update from a positive integer to nil value");
            true
        }
        _ => true,
    }
}

fn added_tolerations(now: &At<'_, '_>, then: &At<'_, '_>, errors: &mut FieldErrors) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Some(fields) = toleration.as_object_mut() {
            fields.remove("tolerationSeconds");
        }
        toleration
    };
    for old in then.items() {
        let old = without_seconds(old.value);
        if !now.items().any(|new| same(&without_seconds(new.value), &old)) {
            return now.forbidden(errors, "existing toleration can not be modified except its tolerationSeconds");
        }
    }
    scheduling::tolerations(now, errors);
}

fn deleted_gates(now: &At<'_, '_>, then: &At<'_, '_>, errors: &mut FieldErrors) {
    for gate in now.items() {
        let name = gate.get("name");
        if !then.items().any(|old| old.get("name").text() == name.text()) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{}'", name.text());
            name.forbidden(errors, detail);
        }
    }
}

fn annotations(now: &At<'_, '_>, then: &At<'_, '_>, errors: &mut FieldErrors) {
    let (now, then) = (now.get("metadata"), then.get("metadata"));
    let (now, then) = (now.get("annotations"), then.get("annotations"));
    let (mirror, before) = (now.key(MIRROR), then.key(MIRROR));
    if before.is_set() && mirror.value != before.value {
        mirror.forbidden(errors, "may not remove or update mirror pod annotation");
    } else if mirror.is_set() && !before.is_set() {
        mirror.forbidden(errors, "may not add mirror pod annotation");
    }
}

pub fn validate_subresource(subresource: &str, new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let (root, before) = (At::root(new), At::root(old));
    match subresource {
        "status" => status(&root, &before, &mut errors),
        "ephemeralcontainers" => ephemeral(&root, &before, &mut errors),
        "resize" => resize(&root, &before, &mut errors),
        _ => {}
    }
    errors
}

/// `ValidatePodStatusUpdate`.
fn status(root: &At<'_, '_>, before: &At<'_, '_>, errors: &mut FieldErrors) {
    annotations(root, before, errors);
    let (status, old_status) = (root.get("status"), before.get("status"));
    if root.get("spec").get("nodeName").text() != before.get("spec").get("nodeName").text() {
        errors.forbidden(status.path().child("nodeName"), "may not be changed directly");
    }
    for condition in status.get("conditions").items() {
        let ty = condition.get("type");
        for detail in names::qualified_name(ty.text()) {
            errors.invalid(condition.path().child("Type"), ty.text(), detail);
        }
    }
    let nominated = status.get("nominatedNodeName");
    if nominated.value != old_status.get("nominatedNodeName").value && !nominated.text().is_empty() {
        nominated.invalid_all(errors, names::dns1123_subdomain(nominated.text()));
    }
    let spec = before.get("spec");
    let policy = spec.get("restartPolicy").text();
    for (list, specs, policy) in [
        ("containerStatuses", "containers", policy),
        ("initContainerStatuses", "initContainers", policy),
        ("ephemeralContainerStatuses", "", "Never"),
    ] {
        stays_terminated(&status.get(list), &old_status.get(list), &spec.get(specs), policy, errors);
    }
    let ips = status.get("podIPs");
    for ip in ips.items() {
        let text = ip.get("ip").text();
        if let Some(detail) = names::ip(text) {
            errors.invalid(ip.path(), text, detail);
        }
    }
    let families: Vec<bool> =
        ips.items().filter_map(|ip| names::parse_ip(ip.get("ip").text())).map(|ip| ip.is_ipv6()).collect();
    if families.len() > 2 || (families.len() == 2 && families[0] == families[1]) {
        ips.invalid(errors, "may specify no more than one IP for each IP family");
    }
}

/// A container that must not be restarted does not come back.
fn stays_terminated(now: &At<'_, '_>, then: &At<'_, '_>, specs: &At<'_, '_>, policy: &str, errors: &mut FieldErrors) {
    if policy == "Always" {
        return;
    }
    for (index, old) in then.items().enumerate() {
        let terminated = old.get("state").get("terminated").value;
        let failed = terminated["exitCode"].as_i64() != Some(0);
        // The container's own policy goes before the pod's.
        let own = specs
            .items()
            .find(|spec| spec.get("name").text() == old.get("name").text())
            .map(|spec| (spec.get("restartPolicy").text(), !spec.get("restartPolicyRules").is_empty()));
        let (own, rules) = own.unwrap_or_default();
        let policy = if own.is_empty() { policy } else { own };
        if terminated.is_null() || rules || policy == "Always" || (failed && policy == "OnFailure") {
            continue;
        }
        let back = now.items().any(|new| {
            new.get("name").text() == old.get("name").text() && !new.get("state").get("terminated").is_set()
        });
        if back {
            errors.forbidden(now.path().index(index).child("state"), "may not be transitioned to non-terminated state");
        }
    }
}

/// `ValidatePodEphemeralContainersUpdate`.
fn ephemeral(root: &At<'_, '_>, before: &At<'_, '_>, errors: &mut FieldErrors) {
    spec::pod(root, errors);
    if before.get("metadata").get("annotations").key(MIRROR).is_set() {
        errors.0.clear();
        errors.forbidden(crate::FieldPath::root(), "static pods do not support ephemeral containers");
        return;
    }
    let spec = root.get("spec");
    let list = spec.get("ephemeralContainers");
    for old in before.get("spec").get("ephemeralContainers").items() {
        let name = old.get("name").text();
        match list.items().find(|new| new.get("name").text() == name) {
            None => {
                list.forbidden(errors, format!("existing ephemeral containers {name:?} may not be removed\n"));
            }
            Some(new) if !same(new.value, old.value) => {
                let changed = changed_fields(new.value, old.value);
                list.forbidden(errors, format!("existing ephemeral containers {name:?} may not be changed\n{changed}"));
            }
            Some(_) => {}
        }
    }
}

/// `ValidatePodResize`: only CPU and memory of containers change, and not the class of the pod.
fn resize(root: &At<'_, '_>, before: &At<'_, '_>, errors: &mut FieldErrors) {
    spec::pod(root, errors);
    if qos_class(root.value) != qos_class(before.value) {
        errors.invalid(
            root.get("status").path().child("qosClass"),
            qos_class(root.value),
            "Pod QOS Class may not change as a result of resizing",
        );
    }
    let compute_free = |spec: &Value| {
        let mut spec = spec.clone();
        for list in ["containers", "initContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                for kind in ["limits", "requests"] {
                    if let Some(amounts) = set::at(container, &["resources", kind]) {
                        amounts.remove("cpu");
                        amounts.remove("memory");
                    }
                }
                if let Some(fields) = container.as_object_mut() {
                    fields.remove("resizePolicy");
                }
            }
        }
        spec
    };
    let (now, then) = (&root.value["spec"], &before.value["spec"]);
    if !same(&compute_free(now), &compute_free(then)) {
        root.get("spec").forbidden(errors, "only cpu and memory resources are mutable");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::STRATEGY;
    use super::*;

    fn pod() -> Value {
        let mut pod = json!({"metadata": {"name": "a", "namespace": "b", "resourceVersion": "1"}, "spec": {
            "nodeName": "n", "containers": [{"name": "c", "image": "x:1"}], "tolerations": [{"operator": "Exists"}]}});
        (STRATEGY.default)(&mut pod);
        pod
    }

    fn changed(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let old = pod();
        let mut new = old.clone();
        change(&mut new);
        validate(&new, &old).0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_image_may_change_and_little_else() {
        assert_eq!(changed(|pod| pod["spec"]["containers"][0]["image"] = "x:2".into()), Vec::<String>::new());
        assert_eq!(changed(|pod| pod["spec"]["activeDeadlineSeconds"] = 5.into()), Vec::<String>::new());
        let found = changed(|pod| pod["spec"]["nodeName"] = "other".into());
        assert_eq!(found.len(), 1);
        assert!(found[0].starts_with(
            "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,\
             `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions"
        ));
    }

    #[test]
    fn containers_and_tolerations_stay() {
        assert_eq!(
            changed(|pod| pod["spec"]["containers"].as_array_mut().unwrap().clear()),
            [
                "spec.containers: Required value",
                "spec.containers: Forbidden: pod updates may not add or remove containers"
            ]
        );
        assert_eq!(
            changed(|pod| pod["spec"]["tolerations"] = json!([])),
            ["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"]
        );
        assert_eq!(
            changed(|pod| {
                let more = json!({"key": "a", "operator": "Exists"});
                pod["spec"]["tolerations"].as_array_mut().unwrap().push(more);
            }),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_finished_container_stays_finished() {
        let mut old = pod();
        old["spec"]["restartPolicy"] = "Never".into();
        old["status"] = json!({"containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 0}}}]});
        let mut new = old.clone();
        new["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
        let found: Vec<String> = validate_subresource("status", &new, &old).0.iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            ["status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"]
        );
    }

    #[test]
    fn resizing_changes_cpu_only() {
        let mut old = pod();
        old["spec"]["containers"][0]["resources"] = json!({"requests": {"cpu": "1"}});
        let mut new = old.clone();
        new["spec"]["containers"][0]["resources"]["requests"]["cpu"] = "2".into();
        assert!(validate_subresource("resize", &new, &old).is_empty());
        new["spec"]["containers"][0]["image"] = "y".into();
        assert_eq!(
            validate_subresource("resize", &new, &old).aggregate(),
            "spec: Forbidden: only cpu and memory resources are mutable"
        );
    }
}
