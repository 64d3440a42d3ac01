//! Kinds that run pods from a template: Deployment, ReplicaSet, ReplicationController, DaemonSet, StatefulSet
//! (`pkg/apis/apps/{v1/defaults,validation/validation}.go`).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::at::{At, same};
use super::pod::{defaults, spec};
use super::{GENERIC, Strategy, drop_status, set, volume};
use crate::error::FieldErrors;
use crate::meta;
use crate::names;
use crate::selector::LabelSelector;

const TEMPLATE: [&str; 2] = ["spec", "template"];

pub const DEPLOYMENT: Strategy = Strategy {
    default: |object| {
        defaults::template(object, &TEMPLATE);
        let spec = spec_of(object);
        set::unset(spec, "replicas", 1);
        set::unset(spec, "revisionHistoryLimit", 10);
        set::unset(spec, "progressDeadlineSeconds", 600);
        rolling(spec, "strategy", &[("maxUnavailable", json!("25%")), ("maxSurge", json!("25%"))]);
    },
    prepare_create: drop_status,
    validate_create: |object| checked(object, None, deployment),
    validate_update: |new, old| checked(new, Some(old), deployment),
    validate_subresource: |_, new, old| status_counts(new, old, &DEPLOYMENT_COUNTS),
    warnings: template_warnings,
    ..GENERIC
};

pub const REPLICA_SET: Strategy = Strategy {
    default: |object| {
        defaults::template(object, &TEMPLATE);
        set::unset(spec_of(object), "replicas", 1);
    },
    prepare_create: drop_status,
    validate_create: |object| checked(object, None, replica_set),
    validate_update: |new, old| checked(new, Some(old), replica_set),
    validate_subresource: |_, new, old| status_counts(new, old, &REPLICA_COUNTS),
    warnings: template_warnings,
    ..GENERIC
};

pub const REPLICATION_CONTROLLER: Strategy = Strategy {
    default: |object| {
        defaults::template(object, &TEMPLATE);
        let labels = object["spec"]["template"]["metadata"]["labels"].clone();
        if labels.as_object().is_some_and(|labels| !labels.is_empty()) {
            let spec = spec_of(object);
            set::unset(spec, "selector", labels.clone());
            set::unset(crate::object::metadata_mut(object), "labels", labels);
        }
    },
    prepare_create: drop_status,
    validate_create: |object| checked(object, None, replication_controller),
    validate_update: |new, old| checked(new, Some(old), replication_controller),
    validate_subresource: |_, new, old| status_counts(new, old, &REPLICA_COUNTS),
    warnings: template_warnings,
    ..GENERIC
};

pub const DAEMON_SET: Strategy = Strategy {
    default: |object| {
        defaults::template(object, &TEMPLATE);
        let spec = spec_of(object);
        set::unset(spec, "revisionHistoryLimit", 10);
        rolling(spec, "updateStrategy", &[("maxUnavailable", json!(1)), ("maxSurge", json!(0))]);
    },
    prepare_create: drop_status,
    validate_create: |object| checked(object, None, daemon_set),
    validate_update: |new, old| checked(new, Some(old), daemon_set),
    warnings: template_warnings,
    ..GENERIC
};

pub const STATEFUL_SET: Strategy = Strategy {
    default: default_stateful_set,
    prepare_create: drop_status,
    validate_create: |object| checked(object, None, stateful_set),
    validate_update: |new, old| checked(new, Some(old), stateful_set),
    validate_subresource: |_, new, old| status_counts(new, old, &REPLICA_COUNTS),
    warnings: template_warnings,
    ..GENERIC
};

fn spec_of(object: &mut Value) -> &mut Map<String, Value> {
    crate::object::child_mut(object, "spec")
}

/// The update strategy and, for rolling updates, how far it may go.
fn rolling(spec: &mut Map<String, Value>, name: &str, limits: &[(&str, Value)]) {
    set::unset(spec, name, json!({}));
    let Some(strategy) = set::child(spec, name) else { return };
    set::empty(strategy, "type", "RollingUpdate");
    if set::text(strategy, "type") != "RollingUpdate" {
        return;
    }
    set::unset(strategy, "rollingUpdate", json!({}));
    if let Some(rolling) = set::child(strategy, "rollingUpdate") {
        limits.iter().for_each(|(key, value)| set::unset(rolling, key, value.clone()));
    }
}

fn default_stateful_set(object: &mut Value) {
    defaults::template(object, &TEMPLATE);
    let spec = spec_of(object);
    set::unset(spec, "replicas", 1);
    set::unset(spec, "revisionHistoryLimit", 10);
    set::empty(spec, "podManagementPolicy", "OrderedReady");
    rolling(spec, "updateStrategy", &[("partition", json!(0)), ("maxUnavailable", json!(1))]);
    set::unset(spec, "persistentVolumeClaimRetentionPolicy", json!({}));
    if let Some(policy) = set::child(spec, "persistentVolumeClaimRetentionPolicy") {
        set::empty(policy, "whenDeleted", "Retain");
        set::empty(policy, "whenScaled", "Retain");
    }
    for claim in set::each(spec, "volumeClaimTemplates") {
        set::empty(claim, "apiVersion", "v1");
        set::empty(claim, "kind", "PersistentVolumeClaim");
        if let Some(spec) = set::child(claim, "spec") {
            defaults::claim_spec(spec);
        }
        set::unset(claim, "status", json!({}));
        if let Some(status) = set::child(claim, "status") {
            set::empty(status, "phase", "Pending");
        }
    }
}

type Check = fn(&At<'_, '_>, Option<&At<'_, '_>>, &mut FieldErrors);

/// Runs a check over `spec`, and over the old one on update.
fn checked(new: &Value, old: Option<&Value>, check: Check) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(new);
    match old {
        None => check(&root.get("spec"), None, &mut errors),
        Some(old) => {
            let before = At::root(old);
            check(&root.get("spec"), Some(&before.get("spec")), &mut errors);
        }
    }
    errors
}

fn deployment(spec: &At<'_, '_>, old: Option<&At<'_, '_>>, errors: &mut FieldErrors) {
    spec.get("replicas").not_negative(errors);
    selector_and_template(spec, "deployment", "ReplicaSet", errors);
    let strategy = spec.get("strategy");
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").text() {
        "Recreate" if rolling.is_set() => {
            rolling.forbidden(errors, "may not be specified when strategy `type` is 'Recreate'");
        }
        "Recreate" => {}
        "RollingUpdate" if !rolling.is_set() => {
            rolling.required(errors, "this should be defaulted and never be nil");
        }
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            count_or_percent(&unavailable, errors);
            count_or_percent(&surge, errors);
            if is_none(unavailable.value) && is_none(surge.value) {
                unavailable.invalid(errors, "may not be 0 when `maxSurge` is 0");
            }
            at_most_all(&unavailable, errors);
        }
        other => errors.not_supported(strategy.get("type").path(), other, &["Recreate", "RollingUpdate"]),
    }
    let (ready, deadline) = (spec.get("minReadySeconds"), spec.get("progressDeadlineSeconds"));
    ready.not_negative(errors);
    spec.get("revisionHistoryLimit").not_negative(errors);
    deadline.not_negative(errors);
    if deadline.int().is_some_and(|seconds| seconds <= ready.int().unwrap_or(0)) {
        deadline.invalid(errors, "must be greater than minReadySeconds");
    }
    immutable_selector(spec, old, errors);
}

fn replica_set(spec: &At<'_, '_>, old: Option<&At<'_, '_>>, errors: &mut FieldErrors) {
    spec.get("replicas").not_negative(errors);
    spec.get("minReadySeconds").not_negative(errors);
    selector_and_template(spec, "deployment", "ReplicaSet", errors);
    immutable_selector(spec, old, errors);
}

fn replication_controller(spec: &At<'_, '_>, _old: Option<&At<'_, '_>>, errors: &mut FieldErrors) {
    spec.get("minReadySeconds").not_negative(errors);
    let selector = spec.get("selector");
    if selector.is_empty() {
        selector.required(errors, "");
    }
    spec.get("replicas").not_negative(errors);
    let template = spec.get("template");
    if !template.is_set() {
        return template.required(errors, "");
    }
    let labels = json!({"matchLabels": selector.value});
    if !selector.is_empty() {
        template_matches(&template, &labels, errors);
    }
    pod_template(&template, "ReplicationController", errors);
}

fn daemon_set(spec: &At<'_, '_>, old: Option<&At<'_, '_>>, errors: &mut FieldErrors) {
    selector_and_template(spec, "daemonset", "DaemonSet", errors);
    spec.get("minReadySeconds").not_negative(errors);
    let strategy = spec.get("updateStrategy");
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").text() {
        "OnDelete" => {}
        "RollingUpdate" if !rolling.is_set() => rolling.required(errors, ""),
        "RollingUpdate" => {
            let (unavailable, surge) = (rolling.get("maxUnavailable"), rolling.get("maxSurge"));
            count_or_percent(&unavailable, errors);
            at_most_all(&unavailable, errors);
            count_or_percent(&surge, errors);
            at_most_all(&surge, errors);
            match (is_none(unavailable.value), is_none(surge.value)) {
                (false, false) => surge.invalid(errors, "may not be set when maxUnavailable is non-zero"),
                (true, true) => unavailable.invalid(errors, "cannot be 0 when maxSurge is 0"),
                _ => {}
            }
        }
        other => errors.not_supported(strategy.get("type").path(), other, &["RollingUpdate", "OnDelete"]),
    }
    spec.get("revisionHistoryLimit").not_negative(errors);
    immutable_selector(spec, old, errors);
}

/// Fields of a StatefulSet's spec that may change.
const STATEFUL_MUTABLE: [&str; 7] = [
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn stateful_set(spec: &At<'_, '_>, old: Option<&At<'_, '_>>, errors: &mut FieldErrors) {
    let policy = spec.get("podManagementPolicy");
    match policy.text() {
        "" => policy.required(errors, ""),
        "OrderedReady" | "Parallel" => {}
        _ => policy.invalid(errors, "must be 'OrderedReady' or 'Parallel'"),
    }
    let strategy = spec.get("updateStrategy");
    let rolling = strategy.get("rollingUpdate");
    match strategy.get("type").text() {
        "" => strategy.required(errors, ""),
        "OnDelete" if rolling.is_set() => {
            rolling.invalid(errors, "only allowed for updateStrategy 'RollingUpdate'");
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            rolling.get("partition").not_negative(errors);
            let unavailable = rolling.get("maxUnavailable");
            count_or_percent(&unavailable, errors);
            at_most_all(&unavailable, errors);
            if unavailable.is_set() && is_none(unavailable.value) {
                unavailable.invalid(errors, "cannot be 0");
            }
        }
        _ => strategy.invalid(errors, "must be 'RollingUpdate' or 'OnDelete'"),
    }
    let retention = spec.get("persistentVolumeClaimRetentionPolicy");
    for field in ["whenDeleted", "whenScaled"] {
        retention.get(field).none_or_one_of(errors, &["Delete", "Retain"]);
    }
    spec.get("replicas").not_negative(errors);
    spec.get("minReadySeconds").not_negative(errors);
    spec.get("ordinals").get("start").not_negative(errors);
    let service = spec.get("serviceName");
    if old.is_none() && !service.text().is_empty() {
        service.invalid_all(errors, names::dns1123_subdomain(service.text()));
    }
    selector_and_template(spec, "statefulset", "StatefulSet", errors);
    for claim in spec.get("volumeClaimTemplates").items() {
        volume::claim_spec(&claim.get("spec"), errors);
    }
    let Some(old) = old else { return };
    let fixed = |spec: &Value| {
        let mut spec = spec.clone();
        if let Some(fields) = spec.as_object_mut() {
            fields.retain(|key, _| !STATEFUL_MUTABLE.contains(&key.as_str()));
        }
        spec
    };
    if !same(&fixed(spec.value), &fixed(old.value)) {
        spec.forbidden(
            errors,
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', \
             'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
        );
    }
}

/// A selector that selects something, and a template that it selects.
fn selector_and_template(spec: &At<'_, '_>, word: &str, owner: &str, errors: &mut FieldErrors) {
    let selector = spec.get("selector");
    if !selector.is_set() {
        selector.required(errors, "");
    } else {
        meta::validate_selector(&selector, errors);
        if selector.get("matchLabels").len() + selector.get("matchExpressions").len() == 0 {
            selector.invalid(errors, format!("empty selector is invalid for {word}"));
        }
    }
    let template = spec.get("template");
    template_matches(&template, selector.value, errors);
    pod_template(&template, owner, errors);
}

fn template_matches(template: &At<'_, '_>, selector: &Value, errors: &mut FieldErrors) {
    let metadata = template.get("metadata");
    let labels = metadata.get("labels");
    let set: BTreeMap<String, String> =
        labels.entries().map(|(key, value)| (key.to_owned(), value.text().to_owned())).collect();
    // A malformed selector has been reported.
    let Ok(selector) = LabelSelector::from_json(selector) else { return };
    if !selector.is_everything() && !selector.matches(&set) {
        labels.invalid(errors, "`selector` does not match template `labels`");
    }
}

/// A template whose pods run for ever.
fn pod_template(template: &At<'_, '_>, owner: &str, errors: &mut FieldErrors) {
    spec::template(template, errors);
    let pod = template.get("spec");
    let policy = pod.get("restartPolicy");
    if policy.text() != "Always" {
        errors.not_supported(policy.path(), policy.text(), &["Always"]);
    }
    let deadline = pod.get("activeDeadlineSeconds");
    if deadline.is_set() {
        deadline.forbidden(errors, format!("activeDeadlineSeconds in {owner} is not Supported"));
    }
}

fn immutable_selector(spec: &At<'_, '_>, old: Option<&At<'_, '_>>, errors: &mut FieldErrors) {
    if let Some(old) = old {
        spec.get("selector").immutable(errors, &old.get("selector"));
    }
}

/// A number that is not negative, or a percentage.
pub fn count_or_percent(at: &At<'_, '_>, errors: &mut FieldErrors) {
    match at.value {
        Value::String(text) => at.invalid_all(errors, names::percent(text)),
        _ => at.not_negative(errors),
    }
}

fn percent_of(value: &Value) -> Option<i64> {
    value.as_str()?.strip_suffix('%')?.parse().ok()
}

/// 0 or `0%` or unset.
fn is_none(value: &Value) -> bool {
    match value {
        Value::String(_) => percent_of(value) == Some(0),
        value => value.as_i64().unwrap_or(0) == 0,
    }
}

fn at_most_all(at: &At<'_, '_>, errors: &mut FieldErrors) {
    if percent_of(at.value).is_some_and(|percent| percent > 100) {
        at.invalid(errors, "must not be greater than 100%");
    }
}

/// Each count and the one it can't exceed.
type Counts = [(&'static str, &'static str)];

const DEPLOYMENT_COUNTS: [(&str, &str); 4] = [
    ("updatedReplicas", "replicas"),
    ("readyReplicas", "replicas"),
    ("availableReplicas", "replicas"),
    ("availableReplicas", "readyReplicas"),
];
const REPLICA_COUNTS: [(&str, &str); 4] = [
    ("fullyLabeledReplicas", "replicas"),
    ("readyReplicas", "replicas"),
    ("availableReplicas", "replicas"),
    ("availableReplicas", "readyReplicas"),
];

fn status_counts(new: &Value, old: &Value, counts: &Counts) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let (root, before) = (At::root(new), At::root(old));
    let status = root.get("status");
    let count = |name: &str| status.value[name].as_i64().unwrap_or(0);
    for name in [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "collisionCount",
    ] {
        status.get(name).not_negative(&mut errors);
    }
    for (name, most) in counts {
        if count(name) > count(most) {
            let bound = if *most == "replicas" { "status.replicas" } else { most };
            status.get(name).invalid(&mut errors, format!("cannot be greater than {bound}"));
        }
    }
    let collisions = before.get("status").value["collisionCount"].as_i64().unwrap_or(0);
    if count("collisionCount") < collisions {
        let at = status.get("collisionCount");
        if at.is_set() {
            at.invalid(&mut errors, "cannot be decremented");
        } else {
            errors.invalid(at.path(), Value::Null, "cannot be decremented");
        }
    }
    errors
}

fn template_warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    if old.is_some_and(|old| same(&old["spec"]["template"], &object["spec"]["template"])) {
        return Vec::new();
    }
    spec::warnings(object, &["spec", "template", "spec"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deployment() -> Value {
        let mut object = json!({"spec": {
            "selector": {"matchLabels": {"app": "a"}},
            "template": {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": [{"name": "c", "image": "x"}]}},
        }});
        (DEPLOYMENT.default)(&mut object);
        object
    }

    #[test]
    fn a_deployment_rolls_by_default() {
        let object = deployment();
        let spec = &object["spec"];
        assert_eq!(
            spec["strategy"],
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
        );
        assert_eq!((&spec["replicas"], &spec["progressDeadlineSeconds"]), (&json!(1), &json!(600)));
        assert_eq!(spec["template"]["spec"]["restartPolicy"], "Always");
        assert!(spec["template"]["spec"].get("enableServiceLinks").is_none());
        assert!((DEPLOYMENT.validate_create)(&object).is_empty());
    }

    #[test]
    fn messages_of_a_bad_deployment() {
        let mut object = deployment();
        object["spec"]["replicas"] = (-1).into();
        object["spec"]["template"]["metadata"]["labels"] = json!({"app": "b"});
        object["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
        object["spec"]["strategy"]["rollingUpdate"] = json!({"maxUnavailable": 0, "maxSurge": "0%"});
        assert_eq!(
            (DEPLOYMENT.validate_create)(&object).0.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.template.metadata.labels: Invalid value: {\"app\":\"b\"}: `selector` does not match template \
                 `labels`",
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ]
        );
        assert_eq!(
            (DEPLOYMENT.validate_create)(&json!({"spec": {}})).0[0].to_string(),
            "spec.selector: Required value"
        );
    }

    #[test]
    fn the_selector_is_immutable() {
        let old = deployment();
        let mut new = old.clone();
        new["spec"]["selector"] = json!({"matchLabels": {"app": "b"}});
        new["spec"]["template"]["metadata"]["labels"] = json!({"app": "b"});
        assert_eq!(
            (DEPLOYMENT.validate_update)(&new, &old).aggregate(),
            "spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"b\"}}: field is immutable"
        );
    }

    #[test]
    fn status_counts_agree() {
        let old = json!({});
        let new = json!({"status": {"replicas": 1, "readyReplicas": 2}});
        assert_eq!(
            (REPLICA_SET.validate_subresource)("status", &new, &old).aggregate(),
            "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"
        );
    }

    #[test]
    fn a_stateful_set_keeps_its_service() {
        let mut old = deployment();
        old["spec"]["serviceName"] = "a".into();
        (STATEFUL_SET.default)(&mut old);
        if let Some(spec) = old["spec"].as_object_mut() {
            spec.remove("strategy");
        }
        assert!((STATEFUL_SET.validate_create)(&old).is_empty());
        let mut new = old.clone();
        new["spec"]["serviceName"] = "b".into();
        assert!(
            (STATEFUL_SET.validate_update)(&new, &old).aggregate().starts_with(
                "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals'"
            )
        );
    }
}
