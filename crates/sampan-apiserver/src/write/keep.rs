//! What an update takes over from the stored object, and whether it changes anything. Pure.

use sampan_api::{Kind, object};
use serde_json::{Map, Value};

/// Takes from the stored object what this request may not change.
pub fn keep(kind: &Kind, subresource: &str, old: &Value, new: &mut Value) {
    let from_old = |new: &mut Value, field: &str| {
        let metadata = object::metadata_mut(new);
        match object::lookup(old, &["metadata", field]) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    };
    for field in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
        "generateName",
    ] {
        from_old(new, field);
    }
    object::metadata_mut(new).remove("selfLink");
    let swap = |new: &mut Value, field: &str, source: &Value| {
        if let Value::Object(map) = new {
            match source.get(field) {
                Some(value) => map.insert(field.into(), value.clone()),
                None => map.remove(field),
            };
        }
    };
    match subresource {
        "" if kind.has_status => swap(new, "status", old),
        "" => {}
        "status" | "approval" => {
            // Status and metadata from the request, everything else as stored. Owners stay: old kubelets sent stale ones
            // (`pkg/registry/core/pod/strategy.go`).
            let mut merged = old.clone();
            swap(&mut merged, "metadata", new);
            swap(&mut merged, "status", new);
            *new = merged;
            from_old(new, "ownerReferences");
        }
        "ephemeralcontainers" => *new = with_spec_field(old, new, "ephemeralContainers"),
        "finalize" => *new = with_spec_field(old, new, "finalizers"),
        "resize" => resized(old, new),
        _ => {}
    }
}

/// The stored object with one field of its spec from the request.
fn with_spec_field(old: &Value, new: &Value, field: &str) -> Value {
    let mut merged = old.clone();
    let spec = object::child_mut(&mut merged, "spec");
    match object::lookup(new, &["spec", field]) {
        Some(value) => spec.insert(field.into(), value.clone()),
        None => spec.remove(field),
    };
    merged
}

/// Of a resize only the resources of containers count.
fn resized(old: &Value, new: &mut Value) {
    let mut merged = old.clone();
    for list in ["containers", "initContainers"] {
        let Some(Value::Array(containers)) = merged.pointer_mut(&format!("/spec/{list}")) else { continue };
        let sent = new.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
        for container in containers {
            let same = |one: &&Value| one.get("name") == container.get("name");
            let Some(resources) = sent.and_then(|sent| sent.iter().find(same)).and_then(|one| one.get("resources"))
            else {
                continue;
            };
            container["resources"] = resources.clone();
        }
    }
    *new = merged;
}

/// Nothing but metadata and status differs.
pub fn same_desire(new: &Value, old: &Value) -> bool {
    let (Value::Object(new), Value::Object(old)) = (new, old) else { return new == old };
    let desire = |key: &&String| !matches!(key.as_str(), "metadata" | "status" | "kind" | "apiVersion");
    let keys = new.keys().chain(old.keys()).filter(desire);
    let absent = |value: Option<&Value>| value.is_none_or(Value::is_null);
    keys.into_iter().all(|key| {
        let (a, b) = (new.get(key), old.get(key));
        a == b || (absent(a) && absent(b))
    })
}

/// Nothing differs but the times of managed fields: a write that changes only those changes nothing.
pub fn unchanged(new: &Value, old: &Value) -> bool {
    let (Value::Object(new), Value::Object(old)) = (new, old) else { return new == old };
    let same = |a: &Map<String, Value>, b: &Map<String, Value>, except: &str| {
        a.len() == b.len() && a.iter().all(|(key, value)| key == except || b.get(key) == Some(value))
    };
    let (Some(Value::Object(metadata)), Some(Value::Object(before))) = (new.get("metadata"), old.get("metadata"))
    else {
        return new == old;
    };
    let same_managers = match (managers(metadata), managers(before)) {
        (Some(a), Some(b)) => {
            let entry = |(a, b): (&Value, &Value)| match (a, b) {
                (Value::Object(a), Value::Object(b)) => same(a, b, "time"),
                _ => a == b,
            };
            a.len() == b.len() && a.iter().zip(b).all(entry)
        }
        (a, b) => a == b,
    };
    same(new, old, "metadata") && same(metadata, before, "managedFields") && same_managers
}

fn managers(metadata: &Map<String, Value>) -> Option<&[Value]> {
    metadata.get("managedFields").and_then(Value::as_array).map(Vec::as_slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn times_of_managed_fields_are_no_change() {
        let object = |time: &str, manager: &str, data: &str| json!({"metadata": {"name": "a", "managedFields": [{"manager": manager, "time": time}]}, "data": data});
        let old = object("1", "m", "x");
        assert!(unchanged(&object("2", "m", "x"), &old));
        assert!(!unchanged(&object("1", "n", "x"), &old));
        assert!(!unchanged(&object("1", "m", "y"), &old));
    }

    #[test]
    fn status_and_metadata_are_no_desire() {
        let old = json!({"metadata": {"a": 1}, "status": {"a": 1}, "spec": {"a": 1}});
        assert!(same_desire(&json!({"metadata": {}, "spec": {"a": 1}}), &old));
        assert!(!same_desire(&json!({"spec": {"a": 2}}), &old));
        assert!(!same_desire(&json!({}), &old));
    }
}
