//! Setting defaults in a tree. Unset and Go's zero value are the same for fields that are not pointers.

use serde_json::{Map, Value};

/// Sets a field that is absent or null.
pub fn unset(object: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if object.get(key).is_none_or(Value::is_null) {
        object.insert(key.into(), value.into());
    }
}

/// Sets a field that is absent, null or empty text.
pub fn empty(object: &mut Map<String, Value>, key: &str, value: &str) {
    if object.get(key).and_then(Value::as_str).is_none_or(str::is_empty) {
        object.insert(key.into(), value.into());
    }
}

/// Sets a field that is absent, null or 0.
pub fn zero(object: &mut Map<String, Value>, key: &str, value: i64) {
    if object.get(key).and_then(Value::as_i64).is_none_or(|number| number == 0) {
        object.insert(key.into(), value.into());
    }
}

pub fn text<'a>(object: &'a Map<String, Value>, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// The object at a key, if there is one.
pub fn child<'a>(object: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    object.get_mut(key)?.as_object_mut()
}

/// The objects of a list.
pub fn each<'a>(
    object: &'a mut Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> + use<'a> {
    let items = object.get_mut(key).and_then(Value::as_array_mut).map_or(&mut [][..], Vec::as_mut_slice);
    items.iter_mut().filter_map(Value::as_object_mut)
}

/// The object at a path below the root, if all of it is there.
pub fn at<'a>(object: &'a mut Value, path: &[&str]) -> Option<&'a mut Map<String, Value>> {
    path.iter().try_fold(object, |value, key| value.get_mut(key))?.as_object_mut()
}
