//! Pods: the kind with the most rules. Defaults are in `defaults`, rules of a spec in `spec` (with `containers`,
//! `volumes` and `scheduling` below it), what an update may change in `update`. Here: the hooks, what a create sets and
//! the quality-of-service class.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::at::{At, same};
use super::{GENERIC, NameRule, Strategy};
use crate::error::FieldErrors;
use crate::quantity::Quantity;

mod containers;
pub mod defaults;
mod resources;
mod scheduling;
pub mod spec;
mod update;
mod volumes;

pub(super) use containers::port_or_name;
pub(super) use resources::quantity_value;
pub(super) use scheduling::{node_selector, taints, topology_selector_terms};

pub const STRATEGY: Strategy = Strategy {
    default: defaults::pod,
    prepare_create,
    prepare_update: update::prepare,
    validate_create,
    validate_update: update::validate,
    validate_subresource: update::validate_subresource,
    warnings,
    grace: Some(grace),
    ..GENERIC
};

/// A PodTemplate holds a template and does nothing.
pub const TEMPLATE: Strategy = Strategy {
    default: |object| defaults::template(object, &["template"]),
    validate_create: |object| validate_template_object(object),
    validate_update: |new, _| validate_template_object(new),
    ..GENERIC
};

fn validate_template_object(object: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(object);
    spec::template(&root.get("template"), &mut errors);
    errors
}

/// A new pod is pending whatever its author says; its labels select what its constraints count.
fn prepare_create(pod: &mut Value) {
    let mut status = json!({"phase": "Pending", "qosClass": qos_class(pod)});
    if pod["spec"]["schedulingGates"].as_array().is_some_and(|gates| !gates.is_empty()) {
        status["conditions"] = json!([{
            "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
            "message": "Scheduling is blocked due to non-empty scheduling gates",
        }]);
    }
    scheduling::resolve_label_keys(pod);
    if let Some(object) = pod.as_object_mut() {
        object.insert("status".into(), status);
    }
}

fn validate_create(pod: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(pod);
    spec::pod(&root, &mut errors);
    let spec = root.get("spec");
    if !spec.get("ephemeralContainers").is_empty() {
        spec.get("ephemeralContainers").forbidden(&mut errors, "cannot be set on create");
    }
    if !spec.get("nodeName").text().is_empty() && !spec.get("schedulingGates").is_empty() {
        spec.get("nodeName").forbidden(&mut errors, "cannot be set until all schedulingGates have been cleared");
    }
    errors
}

/// `pkg/registry/core/pod/strategy.go` CheckGracefulDelete.
fn grace(pod: &Value, asked: Option<i64>) -> i64 {
    let period = asked.or_else(|| pod["spec"]["terminationGracePeriodSeconds"].as_i64()).unwrap_or(0);
    let unscheduled = pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let finished = matches!(pod["status"]["phase"].as_str(), Some("Failed" | "Succeeded"));
    match period {
        _ if unscheduled || finished => 0,
        negative if negative < 0 => 1,
        period => period,
    }
}

/// The warnings that concern fields of this path (`pkg/api/pod/warnings.go`).
fn warnings(pod: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some_and(|old| same(&old["spec"], &pod["spec"])) {
        return Vec::new();
    }
    spec::warnings(pod, &["spec"])
}

/// `Guaranteed`, `Burstable` or `BestEffort` (`pkg/apis/core/v1/helper/qos`).
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    let pod_level = ["requests", "limits"]
        .iter()
        .any(|kind| spec["resources"][*kind].as_object().is_some_and(|amounts| !amounts.is_empty()));
    let all: Vec<&Value> = if pod_level {
        vec![spec]
    } else {
        ["containers", "initContainers"].iter().filter_map(|list| spec[*list].as_array()).flatten().collect()
    };
    let mut requests: BTreeMap<&str, Quantity> = BTreeMap::new();
    let mut limits: BTreeMap<&str, Quantity> = BTreeMap::new();
    let mut guaranteed = true;
    for container in all {
        add_compute(&container["resources"]["requests"], &mut requests);
        guaranteed &= add_compute(&container["resources"]["limits"], &mut limits) == 2;
    }
    if requests.is_empty() && limits.is_empty() {
        return "BestEffort";
    }
    if guaranteed && requests == limits { "Guaranteed" } else { "Burstable" }
}

/// Adds CPU and memory and says how many of the two were there.
fn add_compute<'v>(amounts: &'v Value, total: &mut BTreeMap<&'v str, Quantity>) -> usize {
    let entries: Option<&Map<String, Value>> = amounts.as_object();
    let mut found = 0;
    for (name, amount) in entries.into_iter().flatten() {
        let Some(amount) = amount.as_str().and_then(|text| text.parse::<Quantity>().ok()) else { continue };
        if matches!(name.as_str(), "cpu" | "memory") && !amount.is_zero() {
            *total.entry(name).or_insert(Quantity::ZERO) += amount;
            found += 1;
        }
    }
    found
}

/// A reference to an object in the same namespace: a name by a rule, if any.
fn optional_name(at: &At<'_, '_>, rule: NameRule, errors: &mut FieldErrors) {
    if !at.text().is_empty() {
        at.invalid_all(errors, crate::names::by_rule(rule, at.text(), false));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_resources(resources: &Value) -> Value {
        json!({"spec": {"containers": [{"name": "a", "resources": resources}]}})
    }

    #[test]
    fn quality_of_service() {
        let cases = [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1", "memory": "1Gi"}}), "Guaranteed"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m", "memory": "1Gi"}}),
                "Burstable",
            ),
            (json!({"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}), "Burstable"),
            (json!({"requests": {"example.com/gpu": "1"}, "limits": {"example.com/gpu": "1"}}), "BestEffort"),
        ];
        for (resources, class) in cases {
            assert_eq!(qos_class(&with_resources(&resources)), class, "{resources}");
        }
    }

    #[test]
    fn a_created_pod_is_pending() {
        let mut pod =
            json!({"spec": {"containers": [], "schedulingGates": [{"name": "x"}]}, "status": {"phase": "Running"}});
        prepare_create(&mut pod);
        assert_eq!(pod["status"]["phase"], "Pending");
        assert_eq!(pod["status"]["conditions"][0]["reason"], "SchedulingGated");
    }

    #[test]
    fn grace_ends_at_once_for_pods_that_do_not_run() {
        let pod =
            json!({"spec": {"nodeName": "n", "terminationGracePeriodSeconds": 30}, "status": {"phase": "Running"}});
        assert_eq!((grace(&pod, None), grace(&pod, Some(5)), grace(&pod, Some(-3))), (30, 5, 1));
        let mut finished = pod.clone();
        finished["status"]["phase"] = "Failed".into();
        assert_eq!(grace(&finished, None), 0);
        let mut unscheduled = pod;
        unscheduled["spec"]["nodeName"] = "".into();
        assert_eq!(grace(&unscheduled, Some(10)), 0);
    }
}
