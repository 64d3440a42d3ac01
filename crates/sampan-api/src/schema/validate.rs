//! Declared rules: what v1.37 enforces by tags on the types, stages stable and beta (`k8s.io/apimachinery/pkg/api/validate`).
//!
//! Evaluated: required, minimum, maximum, maxItems, maxLength, maxBytes, format, eachVal and eachKey formats, closed
//! enumerations, conditions on feature gates, immutable. Not evaluated: unions, modes and uniqueness, which only dynamic
//! resource allocation and flow control use. Rules that upstream computes in code are in `strategy`.

use serde_json::Value;

use super::table::gate_is_off;
use super::{Field, Schema, StructType, Type, TypeId};
use crate::codec::is_empty;
use crate::error::{FieldErrorKind, FieldErrors, FieldPath};
use crate::names;
use crate::strategy::at::same;

/// A new object by its declared rules.
pub fn validate(schema: &Schema, root: TypeId, object: &Value) -> FieldErrors {
    run(schema, root, object, None)
}

/// A changed object by its declared rules, immutability included. Parts that did not change are not checked again, so
/// that an object stored under older rules stays writable.
pub fn validate_update(schema: &Schema, root: TypeId, new: &Value, old: &Value) -> FieldErrors {
    run(schema, root, new, Some(old))
}

fn run(schema: &Schema, root: TypeId, object: &Value, old: Option<&Value>) -> FieldErrors {
    let mut errors = FieldErrors::default();
    walk(schema, root, object, old, &mut Path::default(), &mut errors);
    errors
}

/// Steps to the present value; text only when there is an error.
#[derive(Default)]
struct Path<'a>(Vec<Step<'a>>);

#[derive(Clone, Copy)]
enum Step<'a> {
    Child(&'a str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    fn with<T>(&mut self, step: Step<'a>, run: impl FnOnce(&mut Self) -> T) -> T {
        self.0.push(step);
        let result = run(self);
        self.0.pop();
        result
    }

    fn text(&self) -> FieldPath {
        self.0.iter().fold(FieldPath::root(), |path, step| match step {
            Step::Child(name) => path.child(name),
            Step::Index(index) => path.index(*index),
            Step::Key(key) => path.key(key),
        })
    }
}

fn walk<'a>(
    schema: &'a Schema,
    ty: TypeId,
    value: &'a Value,
    old: Option<&'a Value>,
    path: &mut Path<'a>,
    errors: &mut FieldErrors,
) {
    if old.is_some_and(|old| same(value, old)) {
        return;
    }
    match (schema.get(ty), value) {
        (Type::Struct(structure), Value::Object(_)) if !structure.special => {
            structure_rules(schema, structure, value, old, path, errors);
        }
        // Elements of a list can't be told from those before it, so they are checked as new.
        (Type::List(list), Value::Array(items)) => {
            for (index, item) in items.iter().enumerate() {
                path.with(Step::Index(index), |path| walk(schema, list.item, item, None, path, errors));
            }
        }
        (Type::Map(map), Value::Object(entries)) => {
            for (key, value) in entries {
                path.with(Step::Key(key), |path| walk(schema, map.value, value, None, path, errors));
            }
        }
        _ => {}
    }
}

fn structure_rules<'a>(
    schema: &'a Schema,
    structure: &'a StructType,
    object: &'a Value,
    old: Option<&'a Value>,
    path: &mut Path<'a>,
    errors: &mut FieldErrors,
) {
    for field in &structure.fields {
        let value = object.get(&field.name).filter(|value| !value.is_null());
        let before = old.and_then(|old| old.get(&field.name));
        if field.rules.is_empty() && field.enum_values.is_empty() && value.is_none() {
            continue;
        }
        path.with(Step::Child(&field.name), |path| {
            field_rules(schema, field, value, old.is_some().then_some(before.unwrap_or(&Value::Null)), path, errors);
            if let Some(value) = value {
                walk(schema, field.ty, value, before, path, errors);
            }
        });
    }
}

/// `old` is null when the object existed without the field.
fn field_rules(
    schema: &Schema,
    field: &Field,
    value: Option<&Value>,
    old: Option<&Value>,
    path: &Path<'_>,
    errors: &mut FieldErrors,
) {
    let shown = value.unwrap_or(&Value::Null);
    if old.is_some_and(|old| same(shown, old)) {
        return;
    }
    let set = value.filter(|value| !is_empty(schema, field, value));
    for (name, argument) in &field.rules {
        let (name, argument) = conditional(name, argument);
        match (name, set) {
            ("required", None) => errors.required(path.text(), ""),
            ("immutable", _) if old.is_some() => errors.invalid(path.text(), shown.clone(), names::IMMUTABLE),
            ("eachVal", Some(Value::Array(items))) => {
                let (rule, argument) = argument.split_once('=').unwrap_or((argument, ""));
                for (index, item) in items.iter().enumerate() {
                    value_rule(rule, argument, item, &path.text().index(index), errors);
                }
            }
            ("eachKey", Some(Value::Object(entries))) => {
                let (rule, argument) = argument.split_once('=').unwrap_or((argument, ""));
                for key in entries.keys() {
                    value_rule(rule, argument, &Value::String(key.clone()), &path.text(), errors);
                }
            }
            (name, Some(value)) => value_rule(name, argument, value, &path.text(), errors),
            _ => {}
        }
    }
    if let Some(value) = set
        && !field.enum_values.is_empty()
        && !field.enum_values.iter().any(|one| value == one.as_str())
    {
        let valid: Vec<&str> = field.enum_values.iter().map(String::as_str).collect();
        errors.not_supported(path.text(), value.clone(), &valid);
    }
}

/// `ifDisabled(Gate)=minimum=1` is `minimum=1` when the gate is off, and nothing when it is on.
fn conditional<'a>(name: &'a str, argument: &'a str) -> (&'a str, &'a str) {
    let gate = |prefix: &str| Some(gate_is_off(name.strip_prefix(prefix)?.strip_suffix(')')?.trim_matches('"')));
    let applies = match (gate("ifEnabled("), gate("ifDisabled(")) {
        (None, None) => return (name, argument),
        (Some(off), _) => !off,
        (_, Some(off)) => off,
    };
    if applies { argument.split_once('=').unwrap_or((argument, "")) } else { ("", "") }
}

fn value_rule(name: &str, argument: &str, value: &Value, path: &FieldPath, errors: &mut FieldErrors) {
    let number: i64 = argument.parse().unwrap_or(0);
    let size = usize::try_from(number).unwrap_or(0);
    match (name, value) {
        ("minimum", Value::Number(actual)) if actual.as_i64().is_some_and(|actual| actual < number) => {
            errors.invalid(path.clone(), value.clone(), format!("must be greater than or equal to {number}"));
        }
        ("maximum", Value::Number(actual)) if actual.as_i64().is_some_and(|actual| actual > number) => {
            errors.invalid(path.clone(), value.clone(), format!("must be less than or equal to {number}"));
        }
        ("maxItems", Value::Array(items)) if items.len() > size => {
            errors.push(path.clone(), FieldErrorKind::TooMany { actual: items.len(), max: size }, "");
        }
        ("maxItems", Value::Object(entries)) if entries.len() > size => {
            errors.push(path.clone(), FieldErrorKind::TooMany { actual: entries.len(), max: size }, "");
        }
        ("maxLength", Value::String(text)) if text.chars().count() > size => {
            errors.push(path.clone(), FieldErrorKind::TooLong { max: size }, "");
        }
        ("maxBytes", Value::String(text)) if text.len() > size => {
            errors.push(path.clone(), FieldErrorKind::TooLong { max: size }, "");
        }
        ("forbidden", _) => errors.forbidden(path.clone(), ""),
        ("format", Value::String(text)) => {
            for detail in format(argument.trim_matches('"'), text) {
                errors.invalid(path.clone(), value.clone(), detail);
            }
        }
        _ => {}
    }
}

fn format(name: &str, text: &str) -> Vec<String> {
    match name {
        "k8s-short-name" => names::dns1123_label(text),
        "k8s-long-name" => names::dns1123_subdomain(text),
        "k8s-long-name-caseless" => names::dns1123_subdomain(&text.to_lowercase()),
        "k8s-label-key" => names::qualified_name(text),
        "k8s-path-segment-name" => names::path_segment(text),
        "k8s-uuid" if !is_uuid(text) => {
            vec!["must be a lowercase UUID in 8-4-4-4-12 format".into()]
        }
        _ => Vec::new(),
    }
}

fn is_uuid(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    parts.iter().map(|part| part.len()).eq([8, 4, 4, 4, 12])
        && text.bytes().all(|byte| matches!(byte, b'-' | b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::table;

    fn check(name: &str, new: &Value, old: Option<&Value>) -> String {
        let schema = table::load([name]);
        let root = schema.named(name).unwrap();
        match old {
            None => validate(&schema, root, new).aggregate(),
            Some(old) => validate_update(&schema, root, new, old).aggregate(),
        }
    }

    #[test]
    fn required_enums_and_bounds() {
        let slice = "io.k8s.api.discovery.v1.EndpointSlice";
        assert_eq!(
            check(slice, &json!({"endpoints": [{"addresses": []}]}), None),
            "[addressType: Required value, endpoints[0].addresses: Required value]"
        );
        assert_eq!(
            check(slice, &json!({"addressType": "IPX", "endpoints": []}), None),
            "addressType: Unsupported value: \"IPX\": supported values: \"FQDN\", \"IPv4\", \"IPv6\""
        );
        let scaler = "io.k8s.api.autoscaling.v1.HorizontalPodAutoscaler";
        assert_eq!(
            check(scaler, &json!({"spec": {"minReplicas": 0, "maxReplicas": 0}}), None),
            "[spec.minReplicas: Invalid value: 0: must be greater than or equal to 1, spec.maxReplicas: Required value]"
        );
    }

    #[test]
    fn immutable_fields() {
        let class = "io.k8s.api.node.v1.RuntimeClass";
        let (old, new) = (json!({"handler": "a"}), json!({"handler": "b"}));
        assert_eq!(check(class, &new, Some(&old)), "handler: Invalid value: \"b\": field is immutable");
        assert_eq!(check(class, &old, Some(&old)), "[]");
        assert!(
            check(class, &json!({"handler": "A"}), None).starts_with("handler: Invalid value: \"A\": a lowercase RFC")
        );
    }

    #[test]
    fn what_the_types_do_not_declare_is_left_alone() {
        assert_eq!(check("io.k8s.api.core.v1.Pod", &json!({"spec": {}}), None), "[]");
    }
}
