//! A cursor for validation: a value and where it stands. Absent fields are null values with a path, so that rules read
//! without unwrapping; a path becomes text only when there is something to report.

use serde_json::{Map, Value};

use crate::error::{FieldErrorKind, FieldErrors, FieldPath};

static NULL: Value = Value::Null;

/// A place in an object.
pub struct At<'p, 'v> {
    pub value: &'v Value,
    parent: Option<&'p At<'p, 'v>>,
    step: Step<'v>,
}

#[derive(Clone, Copy)]
enum Step<'v> {
    Root,
    Child(&'v str),
    Index(usize),
    Key(&'v str),
}

impl<'p, 'v> At<'p, 'v> {
    pub fn root(value: &'v Value) -> At<'p, 'v> {
        At { value, parent: None, step: Step::Root }
    }

    /// A field of an object.
    pub fn get<'q>(&'q self, name: &'v str) -> At<'q, 'v> {
        let value = self.value.get(name).unwrap_or(&NULL);
        At { value, parent: Some(self), step: Step::Child(name) }
    }

    /// The elements of a list, none when it is something else.
    pub fn items<'q>(&'q self) -> impl Iterator<Item = At<'q, 'v>> + use<'q, 'v> {
        let list: &'v [Value] = self.value.as_array().map_or(&[], Vec::as_slice);
        list.iter().enumerate().map(move |(index, value)| At { value, parent: Some(self), step: Step::Index(index) })
    }

    /// The entries of a map.
    pub fn entries<'q>(&'q self) -> impl Iterator<Item = (&'v str, At<'q, 'v>)> + use<'q, 'v> {
        let entries: Option<&'v Map<String, Value>> = self.value.as_object();
        entries
            .into_iter()
            .flatten()
            .map(move |(key, value)| (key.as_str(), At { value, parent: Some(self), step: Step::Key(key) }))
    }

    pub fn key<'q>(&'q self, key: &'v str) -> At<'q, 'v> {
        At { value: self.value.get(key).unwrap_or(&NULL), parent: Some(self), step: Step::Key(key) }
    }

    /// `""` when unset.
    pub fn text(&self) -> &'v str {
        self.value.as_str().unwrap_or_default()
    }

    pub fn int(&self) -> Option<i64> {
        self.value.as_i64()
    }

    pub fn flag(&self) -> bool {
        self.value.as_bool().unwrap_or(false)
    }

    pub fn is_set(&self) -> bool {
        !self.value.is_null()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many elements or entries.
    pub fn len(&self) -> usize {
        match self.value {
            Value::Array(items) => items.len(),
            Value::Object(entries) => entries.len(),
            _ => 0,
        }
    }

    pub fn path(&self) -> FieldPath {
        let Some(parent) = self.parent else { return FieldPath::root() };
        let before = parent.path();
        match self.step {
            Step::Root => before,
            Step::Child(name) => before.child(name),
            Step::Index(index) => before.index(index),
            Step::Key(key) => before.key(key),
        }
    }

    pub fn required(&self, errors: &mut FieldErrors, detail: &str) {
        errors.required(self.path(), detail);
    }

    pub fn forbidden(&self, errors: &mut FieldErrors, detail: impl Into<String>) {
        errors.forbidden(self.path(), detail);
    }

    pub fn duplicate(&self, errors: &mut FieldErrors) {
        errors.duplicate(self.path(), self.value.clone());
    }

    pub fn not_found(&self, errors: &mut FieldErrors) {
        errors.push(self.path(), FieldErrorKind::NotFound(self.value.clone()), "");
    }

    pub fn invalid(&self, errors: &mut FieldErrors, detail: impl Into<String>) {
        errors.invalid(self.path(), self.value.clone(), detail);
    }

    /// Invalid, with another value shown than the one here.
    pub fn invalid_as(&self, errors: &mut FieldErrors, shown: impl Into<Value>, detail: impl Into<String>) {
        errors.invalid(self.path(), shown, detail);
    }

    /// One error a message.
    pub fn invalid_all(&self, errors: &mut FieldErrors, details: impl IntoIterator<Item = String>) {
        for detail in details {
            self.invalid(errors, detail);
        }
    }

    /// Unset is required, anything but `valid` unsupported. `valid` is shown in its order.
    pub fn one_of(&self, errors: &mut FieldErrors, valid: &[&str]) {
        match self.text() {
            "" => self.required(errors, ""),
            _ => self.none_or_one_of(errors, valid),
        }
    }

    pub fn none_or_one_of(&self, errors: &mut FieldErrors, valid: &[&str]) {
        if self.is_set() && !valid.contains(&self.text()) {
            errors.not_supported(self.path(), self.value.clone(), valid);
        }
    }

    pub fn not_negative(&self, errors: &mut FieldErrors) {
        if self.int().is_some_and(|number| number < 0) {
            self.invalid(errors, crate::names::NOT_NEGATIVE);
        }
    }

    /// Must equal what was there before.
    pub fn immutable(&self, errors: &mut FieldErrors, old: &At<'_, '_>) {
        if !same(self.value, old.value) {
            self.invalid(errors, crate::names::IMMUTABLE);
        }
    }
}

/// Equal up to what `omitempty` does not write: null, false, 0, "", empty lists, and objects of nothing but these.
pub fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Object(one), Value::Object(other)) => {
            one.iter().all(|(key, value)| same(value, other.get(key).unwrap_or(&NULL)))
                && other.iter().all(|(key, value)| one.contains_key(key) || is_zero(value))
        }
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (one, other) => one == other || (is_zero(one) && is_zero(other)),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.values().all(is_zero),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_are_written_as_upstream_does() {
        let object = json!({"spec": {"containers": [{"name": "a"}], "labels": {"x": 1}}});
        let root = At::root(&object);
        let spec = root.get("spec");
        let containers = spec.get("containers");
        let paths: Vec<String> = containers.items().map(|item| item.get("name").path().to_string()).collect();
        assert_eq!(paths, ["spec.containers[0].name"]);
        assert_eq!(spec.get("labels").key("x").path().to_string(), "spec.labels[x]");
        assert!(!spec.get("missing").get("deeper").is_set());
    }

    #[test]
    fn sameness_ignores_what_is_not_written() {
        assert!(same(&json!({"a": 1, "b": {}}), &json!({"a": 1, "c": ""})));
        assert!(!same(&json!({"a": 1}), &json!({"a": 2})));
        assert!(!same(&json!([1]), &json!([1, 2])));
    }
}
