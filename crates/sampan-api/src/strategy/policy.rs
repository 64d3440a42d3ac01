//! Small kinds with few rules: PodDisruptionBudget, HorizontalPodAutoscaler, PriorityClass, Lease.

use serde_json::{Value, json};

use super::at::At;
use super::workload::count_or_percent;
use super::{GENERIC, Strategy, drop_status, set};
use crate::error::FieldErrors;
use crate::{meta, names, object};

pub const BUDGET: Strategy = Strategy {
    prepare_create: drop_status,
    validate_create: validate_budget,
    validate_update: |new, _| validate_budget(new),
    unconditional_update: false,
    ..GENERIC
};

pub const AUTOSCALER: Strategy = Strategy {
    default: |scaler| {
        let spec = object::child_mut(scaler, "spec");
        set::unset(spec, "minReplicas", 1);
        if spec.get("metrics").and_then(Value::as_array).is_none_or(Vec::is_empty) {
            let cpu = json!({"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}});
            spec.insert("metrics".into(), json!([{"type": "Resource", "resource": cpu}]));
        }
        default_behavior(spec);
    },
    prepare_create: drop_status,
    validate_create: validate_autoscaler,
    validate_update: |new, _| validate_autoscaler(new),
    ..GENERIC
};

pub const PRIORITY_CLASS: Strategy = Strategy {
    default: |class| {
        if let Some(fields) = class.as_object_mut() {
            set::unset(fields, "preemptionPolicy", "PreemptLowerPriority");
        }
    },
    validate_create: |class| {
        let mut errors = FieldErrors::default();
        let root = At::root(class);
        let name = root.get("metadata").get("name").text().to_owned();
        let value = root.get("value").int().unwrap_or(0);
        let system = SYSTEM_CLASSES.iter().any(|(system, priority)| *system == name && *priority == value);
        if name.starts_with("system-") && !system {
            let path = root.get("metadata").path().child("name");
            errors.forbidden(
                path,
                format!(
                    "priority class names with 'system-' prefix are reserved for system use only. error: {name} is not \
                     a known system priority class"
                ),
            );
        } else if value > USER_PRIORITY_MAX && !system {
            let detail = format!("maximum allowed value of a user defined priority is {USER_PRIORITY_MAX}");
            errors.forbidden(crate::FieldPath::new("value"), detail);
        }
        root.get("preemptionPolicy").none_or_one_of(&mut errors, &["PreemptLowerPriority", "Never"]);
        errors
    },
    validate_update: |new, old| {
        let mut errors = FieldErrors::default();
        let (root, before) = (At::root(new), At::root(old));
        if root.get("value").int().unwrap_or(0) != before.get("value").int().unwrap_or(0) {
            root.get("value").forbidden(&mut errors, "may not be changed in an update.");
        }
        root.get("preemptionPolicy").immutable(&mut errors, &before.get("preemptionPolicy"));
        errors
    },
    ..GENERIC
};

pub const LEASE: Strategy = Strategy {
    validate_create: validate_lease,
    validate_update: |new, _| validate_lease(new),
    create_on_update: true,
    unconditional_update: false,
    ..GENERIC
};

const USER_PRIORITY_MAX: i64 = 1_000_000_000;
const SYSTEM_CLASSES: [(&str, i64); 2] =
    [("system-node-critical", 2_000_001_000), ("system-cluster-critical", 2_000_000_000)];

fn validate_budget(budget: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(budget);
    let spec = root.get("spec");
    let (available, unavailable) = (spec.get("minAvailable"), spec.get("maxUnavailable"));
    if available.is_set() && unavailable.is_set() {
        spec.invalid(&mut errors, "minAvailable and maxUnavailable cannot be both set");
    }
    for at in [available, unavailable] {
        count_or_percent(&at, &mut errors);
        let percent = at.text().strip_suffix('%').and_then(|text| text.parse::<i64>().ok());
        if percent.is_some_and(|percent| percent > 100) {
            at.invalid(&mut errors, "must not be greater than 100%");
        }
    }
    meta::validate_selector(&spec.get("selector"), &mut errors);
    spec.get("unhealthyPodEvictionPolicy").none_or_one_of(&mut errors, &["AlwaysAllow", "IfHealthyBudget"]);
    errors
}

/// How fast an autoscaler moves by default (`pkg/apis/autoscaling/v2/defaults.go`).
fn default_behavior(spec: &mut serde_json::Map<String, Value>) {
    let Some(behavior) = set::child(spec, "behavior") else { return };
    let (up, down) = (
        json!({"stabilizationWindowSeconds": 0, "selectPolicy": "Max", "policies": [
            {"type": "Pods", "value": 4, "periodSeconds": 15}, {"type": "Percent", "value": 100, "periodSeconds": 15}]}),
        json!({"selectPolicy": "Max", "policies": [{"type": "Percent", "value": 100, "periodSeconds": 15}]}),
    );
    for (direction, defaults) in [("scaleUp", up), ("scaleDown", down)] {
        set::unset(behavior, direction, json!({}));
        let (Some(rules), Value::Object(defaults)) = (set::child(behavior, direction), defaults) else { continue };
        for (key, value) in defaults {
            set::unset(rules, &key, value);
        }
    }
}

fn validate_autoscaler(scaler: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(scaler);
    let spec = root.get("spec");
    let (least, most) = (spec.get("minReplicas"), spec.get("maxReplicas"));
    if most.int().unwrap_or(0) < least.int().unwrap_or(0) {
        most.invalid_as(&mut errors, most.int().unwrap_or(0), "must be greater than or equal to `minReplicas`");
    }
    let target = spec.get("scaleTargetRef");
    for field in ["kind", "name"] {
        let at = target.get(field);
        match at.text() {
            "" => at.required(&mut errors, ""),
            text => at.invalid_all(&mut errors, names::path_segment(text)),
        }
    }
    for metric in spec.get("metrics").items() {
        let ty = metric.get("type");
        ty.one_of(&mut errors, &["ContainerResource", "External", "Object", "Pods", "Resource"]);
    }
    errors
}

fn validate_lease(lease: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(lease);
    let spec = root.get("spec");
    let (seconds, transitions) = (spec.get("leaseDurationSeconds"), spec.get("leaseTransitions"));
    if seconds.int().is_some_and(|seconds| seconds <= 0) {
        seconds.invalid(&mut errors, "must be greater than 0");
    }
    transitions.not_negative(&mut errors);
    if spec.get("preferredHolder").is_set() && spec.get("strategy").text().is_empty() {
        spec.get("preferredHolder").forbidden(&mut errors, "may only be specified if `strategy` is defined");
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_bounds_one_side() {
        assert!(
            validate_budget(&json!({"spec": {"minAvailable": 1, "maxUnavailable": "10%"}}))
                .aggregate()
                .ends_with(": minAvailable and maxUnavailable cannot be both set")
        );
    }

    #[test]
    fn an_autoscaler_watches_the_processor() {
        let mut scaler = json!({"spec": {"maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "a"}}});
        (AUTOSCALER.default)(&mut scaler);
        assert_eq!(scaler["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert!(validate_autoscaler(&scaler).is_empty());
    }

    #[test]
    fn priorities_of_users_are_bounded() {
        let found = |name: &str, value: i64| {
            (PRIORITY_CLASS.validate_create)(&json!({"metadata": {"name": name}, "value": value})).aggregate()
        };
        assert_eq!(found("a", 5), "[]");
        assert_eq!(found("system-node-critical", 2_000_001_000), "[]");
        assert_eq!(
            found("a", 1_000_000_001),
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000"
        );
        assert!(found("system-x", 1).starts_with("metadata.name: Forbidden: priority class names with 'system-'"));
    }

    #[test]
    fn a_lease_lasts() {
        assert_eq!(
            validate_lease(&json!({"spec": {"leaseDurationSeconds": 0}})).aggregate(),
            "spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0"
        );
    }
}
