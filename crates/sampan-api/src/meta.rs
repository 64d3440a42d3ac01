//! Validation of `metadata`, the same for every kind (`k8s.io/apimachinery/pkg/api/validation/objectmeta.go`).
//!
//! The API server calls this before a kind's own rules; name generation has happened by then.

use serde_json::Value;

use crate::error::{FieldErrorKind, FieldErrors};
use crate::names;
use crate::strategy::NameRule;
use crate::strategy::at::At;

const ANNOTATIONS_MAX: usize = 256 * 1024;
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];

/// Metadata of a new object.
pub fn validate(object: &Value, rule: NameRule, namespaced: bool) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(object);
    let meta = root.get("metadata");

    let generate_name = meta.get("generateName");
    if !generate_name.text().is_empty() {
        generate_name.invalid_all(&mut errors, names::by_rule(rule, generate_name.text(), true));
    }
    let name = meta.get("name");
    if name.text().is_empty() {
        name.required(&mut errors, "name or generateName is required");
    } else {
        name.invalid_all(&mut errors, names::by_rule(rule, name.text(), false));
    }
    let namespace = meta.get("namespace");
    match (namespaced, namespace.text()) {
        (true, "") => namespace.required(&mut errors, ""),
        (true, text) => namespace.invalid_all(&mut errors, names::dns1123_label(text)),
        (false, "") => {}
        (false, _) => namespace.forbidden(&mut errors, "not allowed on this type"),
    }
    meta.get("generation").not_negative(&mut errors);
    common(&meta, &mut errors);
    let finalizers = meta.get("finalizers");
    for finalizer in finalizers.items() {
        finalizers_item(&finalizers, &finalizer, &mut errors);
    }
    let both = |name: &str| finalizers.items().any(|finalizer| finalizer.text() == name);
    if both("foregroundDeletion") && both("orphan") {
        finalizers.invalid(&mut errors, "finalizer orphan and foregroundDeletion cannot be both set");
    }
    errors
}

/// Metadata of a changed object. The generic path has filled in what a client may leave out.
pub fn validate_update(new: &Value, old: &Value) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let (new_root, old_root) = (At::root(new), At::root(old));
    let (meta, before) = (new_root.get("metadata"), old_root.get("metadata"));

    let finalizers = meta.get("finalizers");
    let old_finalizers = before.get("finalizers");
    if before.get("deletionTimestamp").is_set() {
        let mut added: Vec<&str> = finalizers
            .items()
            .map(|one| one.text())
            .filter(|one| !old_finalizers.items().any(|old| old.text() == *one))
            .collect();
        added.sort_unstable();
        added.dedup();
        if !added.is_empty() {
            let added: Vec<String> = added.iter().map(|one| format!("{one:?}")).collect();
            finalizers.forbidden(
                &mut errors,
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers \
                     []string{{{}}}",
                    added.join(", ")
                ),
            );
        }
    }
    if meta.get("resourceVersion").text().is_empty() {
        meta.get("resourceVersion").invalid_as(&mut errors, "", "must be specified for an update");
    }
    if meta.get("generation").int().unwrap_or(0) < before.get("generation").int().unwrap_or(0) {
        meta.get("generation").invalid(&mut errors, "must not be decremented");
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        meta.get(field).immutable(&mut errors, &before.get(field));
    }
    common(&meta, &mut errors);
    // A finalizer that is already there may be of an older rule.
    for finalizer in finalizers.items() {
        if !old_finalizers.items().any(|old| old.value == finalizer.value) {
            finalizers_item(&finalizers, &finalizer, &mut errors);
        }
    }
    errors
}

/// Labels: keys and values.
pub fn validate_labels(labels: &At<'_, '_>, errors: &mut FieldErrors) {
    for (key, value) in labels.entries() {
        for detail in names::qualified_name(key) {
            labels.invalid_as(errors, key, detail);
        }
        for detail in names::label_value(value.text()) {
            labels.invalid_as(errors, value.text(), detail);
        }
    }
}

pub fn validate_annotations(annotations: &At<'_, '_>, errors: &mut FieldErrors) {
    let mut size = 0;
    for (key, value) in annotations.entries() {
        for detail in names::qualified_name(&key.to_lowercase()) {
            annotations.invalid_as(errors, key, detail);
        }
        size += key.len() + value.text().len();
    }
    if size > ANNOTATIONS_MAX {
        errors.push(annotations.path(), FieldErrorKind::TooLong { max: ANNOTATIONS_MAX }, "");
    }
}

/// A `LabelSelector`.
pub fn validate_selector(selector: &At<'_, '_>, errors: &mut FieldErrors) {
    validate_labels(&selector.get("matchLabels"), errors);
    for expression in selector.get("matchExpressions").items() {
        let values = expression.get("values");
        match expression.get("operator").text() {
            "In" | "NotIn" if values.is_empty() => {
                values.required(errors, "must be specified when `operator` is 'In' or 'NotIn'");
            }
            "In" | "NotIn" => {
                for value in values.items() {
                    value.invalid_all(errors, names::label_value(value.text()));
                }
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                values.forbidden(errors, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
            }
            "Exists" | "DoesNotExist" => {}
            other => expression.get("operator").invalid_as(errors, other, "not a valid selector operator"),
        }
        let key = expression.get("key");
        for detail in names::qualified_name(key.text()) {
            key.invalid_as(errors, key.text(), detail);
        }
    }
}

fn common(meta: &At<'_, '_>, errors: &mut FieldErrors) {
    validate_labels(&meta.get("labels"), errors);
    validate_annotations(&meta.get("annotations"), errors);
    owner_references(&meta.get("ownerReferences"), errors);
}

fn finalizers_item(list: &At<'_, '_>, finalizer: &At<'_, '_>, errors: &mut FieldErrors) {
    let name = finalizer.text();
    for detail in names::qualified_name(name) {
        list.invalid_as(errors, name, detail);
    }
    if !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
        finalizer.invalid(errors, "name is neither a standard finalizer name nor is it fully qualified");
    }
}

fn owner_references(references: &At<'_, '_>, errors: &mut FieldErrors) {
    let mut controller: Option<String> = None;
    for reference in references.items() {
        for (field, detail) in [
            ("apiVersion", "version must not be empty"),
            ("kind", "must not be empty"),
            ("name", "must not be empty"),
            ("uid", "must not be empty"),
        ] {
            if reference.value.get(field).and_then(Value::as_str).unwrap_or_default().is_empty() {
                errors.invalid(references.path().child(field), "", detail);
            }
        }
        let kind = reference.get("kind").text();
        if reference.get("apiVersion").text() == "v1" && kind == "Event" {
            references.invalid_as(errors, reference.value.clone(), "/v1, Kind=Event is disallowed from being an owner");
        }
        if reference.get("controller").flag() {
            let this = format!("{kind}/{}", reference.get("name").text());
            match &controller {
                None => controller = Some(this),
                Some(first) => references.invalid(
                    errors,
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for \
                         {first} and {this}"
                    ),
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn messages(errors: &FieldErrors) -> Vec<String> {
        errors.0.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_good_object_passes() {
        let object = json!({"metadata": {
            "name": "web", "namespace": "default", "labels": {"app.kubernetes.io/name": "web"},
            "finalizers": ["kubernetes", "example.com/x"],
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "a", "uid": "b"}],
        }});
        assert_eq!(messages(&validate(&object, NameRule::Subdomain, true)), Vec::<String>::new());
    }

    #[test]
    fn what_is_wrong_is_said_in_order() {
        let object = json!({"metadata": {"namespace": "x", "labels": {"a/b/c": "ok"}, "finalizers": ["mine"]}});
        let found = messages(&validate(&object, NameRule::Subdomain, false));
        assert_eq!(found[0], "metadata.name: Required value: name or generateName is required");
        assert_eq!(found[1], "metadata.namespace: Forbidden: not allowed on this type");
        assert!(found[2].starts_with("metadata.labels: Invalid value: \"a/b/c\": a qualified name must consist"));
        assert_eq!(
            found[3],
            "metadata.finalizers[0]: Invalid value: \"mine\": name is neither a standard finalizer name nor is it \
             fully qualified"
        );
    }

    #[test]
    fn identity_is_immutable() {
        let old = json!({"metadata": {"name": "a", "uid": "1", "resourceVersion": "5", "generation": 3}});
        let new = json!({"metadata": {"name": "b", "uid": "1", "generation": 2}});
        assert_eq!(
            messages(&validate_update(&new, &old)),
            [
                "metadata.resourceVersion: Invalid value: \"\": must be specified for an update",
                "metadata.generation: Invalid value: 2: must not be decremented",
                "metadata.name: Invalid value: \"b\": field is immutable",
            ]
        );
    }

    #[test]
    fn no_finalizer_is_added_to_what_is_being_deleted() {
        let old = json!({"metadata": {"name": "a", "resourceVersion": "1", "deletionTimestamp": "2026-11-23T00:00:00Z",
            "finalizers": ["example.com/x"]}});
        let mut new = old.clone();
        new["metadata"]["finalizers"] = json!(["example.com/x", "example.com/y"]);
        assert_eq!(
            messages(&validate_update(&new, &old)),
            [
                "metadata.finalizers: Forbidden: no new finalizers can be added if the object is being deleted, found new \
              finalizers []string{\"example.com/y\"}"
            ]
        );
    }
}
