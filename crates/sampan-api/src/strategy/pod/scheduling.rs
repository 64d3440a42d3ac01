//! Rules of what steers scheduling: affinity, node selectors, tolerations, topology spread, scheduling gates; and the
//! label keys that a new pod's constraints take their values from.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::error::FieldErrors;
use crate::meta;
use crate::names;
use crate::strategy::at::At;
use crate::strategy::set;

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub fn affinity(affinity: &At<'_, '_>, errors: &mut FieldErrors) {
    let node = affinity.get("nodeAffinity");
    if node.get(REQUIRED).is_set() {
        node_selector(&node.get(REQUIRED), errors);
    }
    for term in node.get(PREFERRED).items() {
        weight(&term, errors);
        node_selector_term(&term.get("preference"), errors);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let pods = affinity.get(kind);
        for term in pods.get(REQUIRED).items() {
            pod_term(&term, errors);
        }
        for term in pods.get(PREFERRED).items() {
            weight(&term, errors);
            pod_term(&term.get("podAffinityTerm"), errors);
        }
    }
}

fn weight(term: &At<'_, '_>, errors: &mut FieldErrors) {
    let weight = term.get("weight");
    let value = weight.int().unwrap_or(0);
    if !(1..=100).contains(&value) {
        weight.invalid_as(errors, value, "must be in the range 1-100");
    }
}

fn pod_term(term: &At<'_, '_>, errors: &mut FieldErrors) {
    meta::validate_selector(&term.get("labelSelector"), errors);
    meta::validate_selector(&term.get("namespaceSelector"), errors);
    for namespace in term.get("namespaces").items() {
        for detail in names::dns1123_label(namespace.text()) {
            errors.invalid(term.path().child("namespace"), namespace.text(), detail);
        }
    }
    label_keys(term, errors);
    let key = term.get("topologyKey");
    if key.text().is_empty() {
        key.required(errors, "can not be empty");
    }
    for detail in names::qualified_name(key.text()) {
        key.invalid_as(errors, key.text(), detail);
    }
}

fn label_keys(term: &At<'_, '_>, errors: &mut FieldErrors) {
    let selector = term.get("labelSelector");
    for field in ["matchLabelKeys", "mismatchLabelKeys"] {
        let keys = term.get(field);
        if !keys.is_empty() && !selector.is_set() {
            let detail = "must not be specified when labelSelector is not set";
            keys.forbidden(errors, detail);
        }
        for key in keys.items() {
            key.invalid_all(errors, names::qualified_name(key.text()));
        }
    }
    let (matching, mismatching) = (term.get("matchLabelKeys"), term.get("mismatchLabelKeys"));
    for key in matching.items() {
        if mismatching.items().any(|other| other.value == key.value) {
            key.invalid(errors, "exists in both matchLabelKeys and mismatchLabelKeys");
        }
    }
}

/// A `NodeSelector`: at least one term.
pub fn node_selector(selector: &At<'_, '_>, errors: &mut FieldErrors) {
    let terms = selector.get("nodeSelectorTerms");
    if terms.is_empty() {
        return terms.required(errors, "must have at least one node selector term");
    }
    for term in terms.items() {
        node_selector_term(&term, errors);
    }
}

fn node_selector_term(term: &At<'_, '_>, errors: &mut FieldErrors) {
    for requirement in term.get("matchExpressions").items() {
        let (operator, values, key) = (requirement.get("operator"), requirement.get("values"), requirement.get("key"));
        match operator.text() {
            "In" | "NotIn" if values.is_empty() => {
                values.required(errors, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                values.forbidden(errors, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            "Gt" | "Lt" if values.len() != 1 => {
                values.required(errors, "must be specified single value when `operator` is 'Lt' or 'Gt'");
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => operator.invalid_as(errors, other, "not a valid selector operator"),
        }
        for detail in names::qualified_name(key.text()) {
            key.invalid_as(errors, key.text(), detail);
        }
    }
    for requirement in term.get("matchFields").items() {
        let (operator, values, key) = (requirement.get("operator"), requirement.get("values"), requirement.get("key"));
        match operator.text() {
            "In" | "NotIn" if values.len() != 1 => values
                .required(errors, "must be only one value when `operator` is 'In' or 'NotIn' for node field selector"),
            "In" | "NotIn" => {}
            other => operator.invalid_as(errors, other, "not a valid selector operator"),
        }
        if key.text() != "metadata.name" {
            key.invalid_as(errors, key.text(), "not a valid field selector key");
            continue;
        }
        for value in values.items() {
            value.invalid_all(errors, names::dns1123_subdomain(value.text()));
        }
    }
}

/// `allowedTopologies` of a StorageClass.
pub fn topology_selector_terms(terms: &At<'_, '_>, errors: &mut FieldErrors) {
    for term in terms.items() {
        let mut keys = BTreeSet::new();
        for requirement in term.get("matchLabelExpressions").items() {
            let (key, values) = (requirement.get("key"), requirement.get("values"));
            if values.is_empty() {
                values.required(errors, "");
            }
            let mut seen = BTreeSet::new();
            for value in values.items() {
                if !seen.insert(value.text()) {
                    value.duplicate(errors);
                }
            }
            for detail in names::qualified_name(key.text()) {
                key.invalid_as(errors, key.text(), detail);
            }
            if !keys.insert(key.text()) {
                key.duplicate(errors);
            }
        }
    }
}

const EFFECTS: [&str; 3] = ["NoSchedule", "PreferNoSchedule", "NoExecute"];

pub fn tolerations(list: &At<'_, '_>, errors: &mut FieldErrors) {
    for toleration in list.items() {
        let (key, operator, value) = (toleration.get("key"), toleration.get("operator"), toleration.get("value"));
        let effect = toleration.get("effect");
        if !key.text().is_empty() {
            key.invalid_all(errors, names::qualified_name(key.text()));
        } else if operator.text() != "Exists" {
            operator.invalid_as(
                errors,
                operator.text(),
                "operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
            );
        }
        if toleration.get("tolerationSeconds").is_set() && effect.text() != "NoExecute" {
            effect.invalid_as(errors, effect.text(), "effect must be 'NoExecute' when `tolerationSeconds` is set");
        }
        match operator.text() {
            "" | "Equal" => {
                let wrong = names::label_value(value.text());
                if !wrong.is_empty() {
                    operator.invalid_as(errors, value.text(), wrong.join(";"));
                }
            }
            "Exists" if !value.text().is_empty() => {
                operator.invalid_as(errors, toleration.value.clone(), "value must be empty when `operator` is 'Exists'")
            }
            "Exists" => {}
            other => errors.not_supported(operator.path(), other, &["Equal", "Exists"]),
        }
        if !effect.text().is_empty() {
            effect.none_or_one_of(errors, &EFFECTS);
        }
    }
}

/// Taints of a node; `path` of the list is upstream's, below the metadata.
pub fn taints(list: &At<'_, '_>, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for taint in list.items() {
        let (key, value, effect) = (taint.get("key"), taint.get("value"), taint.get("effect"));
        for detail in names::qualified_name(key.text()) {
            key.invalid_as(errors, key.text(), detail);
        }
        let wrong = names::label_value(value.text());
        if !wrong.is_empty() {
            value.invalid(errors, wrong.join(";"));
        }
        effect.one_of(errors, &EFFECTS);
        if !seen.insert((key.text(), effect.text())) {
            let kind = crate::error::FieldErrorKind::Duplicate(taint.value.clone());
            errors.push(taint.path(), kind, "taints must be unique by key and effect pair");
        }
    }
}

pub fn topology_spread(list: &At<'_, '_>, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for constraint in list.items() {
        let skew = constraint.get("maxSkew");
        if skew.int().unwrap_or(0) <= 0 {
            skew.invalid_as(errors, skew.int().unwrap_or(0), "must be greater than zero");
        }
        let (key, when) = (constraint.get("topologyKey"), constraint.get("whenUnsatisfiable"));
        if key.text().is_empty() {
            key.required(errors, "can not be empty");
        } else {
            key.invalid_all(errors, names::qualified_name(key.text()));
        }
        if !matches!(when.text(), "DoNotSchedule" | "ScheduleAnyway") {
            errors.not_supported(when.path(), when.text(), &["DoNotSchedule", "ScheduleAnyway"]);
        }
        if !seen.insert((key.text(), when.text())) {
            let pair = format!("{{{}, {}}}", key.text(), when.text());
            errors.duplicate(constraint.path().child("{topologyKey, whenUnsatisfiable}"), pair);
        }
        let domains = constraint.get("minDomains");
        if let Some(count) = domains.int() {
            if count <= 0 {
                domains.invalid(errors, "must be greater than zero");
            }
            if when.text() != "DoNotSchedule" {
                let detail = "can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ";
                domains.invalid(errors, format!("{detail}{}", when.text()));
            }
        }
        for policy in ["nodeAffinityPolicy", "nodeTaintsPolicy"] {
            constraint.get(policy).none_or_one_of(errors, &["Honor", "Ignore"]);
        }
        label_keys(&constraint, errors);
        meta::validate_selector(&constraint.get("labelSelector"), errors);
    }
}

pub fn gates(list: &At<'_, '_>, errors: &mut FieldErrors) {
    let mut seen = BTreeSet::new();
    for gate in list.items() {
        let name = gate.get("name").text();
        for detail in names::qualified_name(name) {
            gate.invalid_as(errors, name, detail);
        }
        if !seen.insert(name) {
            errors.duplicate(gate.path(), name);
        }
    }
}

/// Turns `matchLabelKeys` and `mismatchLabelKeys` into expressions over the new pod's own labels
/// (`pkg/registry/core/pod/strategy.go`).
pub fn resolve_label_keys(pod: &mut Value) {
    let labels = pod["metadata"]["labels"].as_object().cloned().unwrap_or_default();
    let Some(spec) = set::at(pod, &["spec"]) else { return };
    for constraint in set::each(spec, "topologySpreadConstraints") {
        resolve(constraint, &labels);
    }
    let Some(affinity) = set::child(spec, "affinity") else { return };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(pods) = set::child(affinity, kind) else { continue };
        for term in set::each(pods, REQUIRED) {
            resolve(term, &labels);
        }
        for term in set::each(pods, PREFERRED) {
            if let Some(term) = set::child(term, "podAffinityTerm") {
                resolve(term, &labels);
            }
        }
    }
}

fn resolve(term: &mut Map<String, Value>, labels: &Map<String, Value>) {
    let mut added = Vec::new();
    for (field, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        for key in term.get(field).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str) {
            if let Some(value) = labels.get(key) {
                added.push(json!({"key": key, "operator": operator, "values": [value]}));
            }
        }
    }
    let Some(selector) = set::child(term, "labelSelector").filter(|_| !added.is_empty()) else { return };
    set::unset(selector, "matchExpressions", json!([]));
    if let Some(expressions) = selector.get_mut("matchExpressions").and_then(Value::as_array_mut) {
        for expression in added {
            if !expressions.contains(&expression) {
                expressions.push(expression);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys_become_expressions() {
        let mut pod = json!({
            "metadata": {"labels": {"app": "a"}},
            "spec": {"affinity": {"podAffinity": {REQUIRED: [
                {"topologyKey": "zone", "labelSelector": {}, "matchLabelKeys": ["app"], "mismatchLabelKeys": ["no"]},
            ]}}},
        });
        resolve_label_keys(&mut pod);
        assert_eq!(
            pod["spec"]["affinity"]["podAffinity"][REQUIRED][0]["labelSelector"],
            json!({"matchExpressions": [{"key": "app", "operator": "In", "values": ["a"]}]})
        );
    }
}
