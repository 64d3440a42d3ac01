//! The strategic merge patch: a merge patch that knows which lists are keyed and takes directives
//! (`apimachinery/pkg/util/strategicpatch`).
//!
//! Where upstream answers with an internal error to a patch that makes no sense (an unknown directive, mixed lists) this
//! answers 400: the client is wrong, not the server.

use std::cmp::Ordering;

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{PatchRule, Schema, Type, TypeId};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const DELETE_FROM_LIST: &str = "$deleteFromPrimitiveList/";
const ELEMENT_ORDER: &str = "$setElementOrder/";

/// Merges `patch` into `document`, an object of the type `root`. On an error the document is as it was.
pub fn strategic(schema: &Schema, root: TypeId, document: &mut Value, patch: &Value) -> Result<(), PatchError> {
    let (Value::Object(original), Value::Object(patch)) = (&*document, patch) else {
        return Err(PatchError::Malformed("invalid JSON document".into()));
    };
    let merged = Merger { schema }.object(original.clone(), patch, Some(root))?;
    *document = Value::Object(merged);
    Ok(())
}

struct Merger<'a> {
    schema: &'a Schema,
}

type Object = Map<String, Value>;

const PLAIN: &PatchRule = &PatchRule { merge: false, retain_keys: false, replace: false, merge_key: None };

impl<'a> Merger<'a> {
    /// Type and rule of the field `key`; nothing is known of fields below free-form values.
    fn field(&self, of: Option<TypeId>, key: &str) -> (Option<TypeId>, &'a PatchRule) {
        match of.map(|id| self.schema.get(id)) {
            Some(Type::Struct(fields)) => {
                fields.field(key).map_or((None, PLAIN), |field| (Some(field.ty), &field.patch))
            }
            Some(Type::Map(map)) => (Some(map.value), PLAIN),
            _ => (None, PLAIN),
        }
    }

    fn item(&self, of: Option<TypeId>) -> Option<TypeId> {
        match of.map(|id| self.schema.get(id)) {
            Some(Type::List(list)) => Some(list.item),
            _ => None,
        }
    }

    fn object(&self, mut original: Object, patch: &Object, ty: Option<TypeId>) -> Result<Object, PatchError> {
        if let Some(directive) = patch.get(DIRECTIVE) {
            return match directive.as_str() {
                Some("replace") => {
                    let rest = patch.iter().filter(|(key, _)| *key != DIRECTIVE);
                    Ok(rest.map(|(key, value)| (key.clone(), value.clone())).collect())
                }
                Some("delete") => Ok(Object::new()),
                _ => Err(unknown_directive(directive, patch)),
            };
        }
        retain(&mut original, patch)?;
        self.fields(original, patch, ty)
    }

    fn fields(&self, mut original: Object, patch: &Object, ty: Option<TypeId>) -> Result<Object, PatchError> {
        for (key, order) in patch {
            let Some(key) = key.strip_prefix(ELEMENT_ORDER) else { continue };
            let Value::Array(order) = order else { return Err(bad_order()) };
            let (ty, rule) = self.field(ty, key);
            if let Some(list) = self.ordered_list(original.get(key), patch.get(key), order, ty, rule)? {
                original.insert(key.into(), Value::Array(list));
            }
        }
        for (key, value) in patch {
            let handled = patch.contains_key(&format!("{ELEMENT_ORDER}{key}")) && value.is_array();
            if handled || key.starts_with(ELEMENT_ORDER) || key == RETAIN_KEYS || key == DIRECTIVE {
                continue;
            }
            if let Some(key) = key.strip_prefix(DELETE_FROM_LIST) {
                let Value::Array(gone) = value else {
                    return Err(PatchError::Malformed("invalid patch format of primitive list".into()));
                };
                if let Some(Value::Array(list)) = original.get_mut(key) {
                    list.retain(|item| !gone.contains(item));
                }
                continue;
            }
            if value.is_null() {
                original.remove(key);
                continue;
            }
            let (ty, rule) = self.field(ty, key);
            let merged = match (original.remove(key), value) {
                (Some(Value::Object(old)), Value::Object(new)) if !rule.replace => {
                    Value::Object(self.object(old, new, ty)?)
                }
                (Some(Value::Array(old)), Value::Array(new)) if rule.merge => {
                    Value::Array(self.list(old, new, self.item(ty), rule)?)
                }
                (_, new) => added(new),
            };
            original.insert(key.clone(), merged);
        }
        Ok(original)
    }

    /// A list whose order the patch gives: the patch's items in that order, the others where they were among them.
    /// `None` when there is no such list on either side.
    fn ordered_list(
        &self,
        original: Option<&Value>,
        patch: Option<&Value>,
        order: &[Value],
        ty: Option<TypeId>,
        rule: &PatchRule,
    ) -> Result<Option<Vec<Value>>, PatchError> {
        let list = |value: Option<&Value>| match value {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list.clone())),
            Some(other) => Err(PatchError::Malformed(format!("expected a list, but received {other}"))),
        };
        let (original, patch) = (list(original)?, list(patch)?);
        let key = rule.merge_key.as_deref();
        follows(patch.as_deref().unwrap_or_default(), order, key)?;
        let live = original.clone().unwrap_or_default();
        let merged = match (original, patch) {
            (None, None) => return Ok(None),
            (Some(original), None) => original,
            (None, Some(patch)) => match added(&Value::Array(patch)) {
                Value::Array(list) => list,
                _ => return Ok(None),
            },
            (Some(original), Some(patch)) if rule.merge => self.list(original, &patch, self.item(ty), rule)?,
            (Some(_), Some(patch)) => patch,
        };
        arranged(merged, order, &live, key).map(Some)
    }

    fn list(
        &self,
        original: Vec<Value>,
        patch: &[Value],
        item: Option<TypeId>,
        rule: &PatchRule,
    ) -> Result<Vec<Value>, PatchError> {
        let objects = original.iter().chain(patch).filter(|value| value.is_object()).count();
        let all = original.len() + patch.len();
        if original.iter().chain(patch).any(Value::is_array) {
            return Err(PatchError::Inapplicable("lists of lists are not supported".into()));
        }
        if objects == 0 {
            let mut merged: Vec<Value> = Vec::with_capacity(all);
            for value in original.iter().chain(patch) {
                if !merged.contains(value) {
                    merged.push(value.clone());
                }
            }
            return arranged(merged, patch, &original, None);
        }
        if objects != all {
            return Err(PatchError::Malformed("list element types are not identical".into()));
        }
        let Some(key) = rule.merge_key.as_deref() else {
            return Err(PatchError::Malformed("cannot merge lists without merge key".into()));
        };
        let (mut merged, patch) = without_directives(original, patch, key)?;
        let live = merged.clone();
        for value in &patch {
            let wanted = merge_key(value, key)?;
            let place = merged.iter().position(|old| old.get(key) == Some(wanted));
            match (place.and_then(|place| merged.get_mut(place)), value) {
                (Some(Value::Object(old)), Value::Object(new)) => {
                    *old = self.object(std::mem::take(old), new, item)?;
                }
                _ => merged.push(added(value)),
            }
        }
        arranged(merged, &patch, &live, Some(key))
    }
}

/// Takes the elements with directives out of a keyed list's patch and carries them out.
fn without_directives(
    mut original: Vec<Value>,
    patch: &[Value],
    key: &str,
) -> Result<(Vec<Value>, Vec<Value>), PatchError> {
    let mut rest = Vec::with_capacity(patch.len());
    let mut replace = false;
    for value in patch {
        let Some(directive) = value.get(DIRECTIVE) else {
            rest.push(value.clone());
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                let gone = merge_key(value, key)?;
                original.retain(|old| old.get(key) != Some(gone));
            }
            Some("replace") => replace = true,
            Some("merge") => {
                return Err(PatchError::Malformed("merging lists cannot yet be specified in the patch".into()));
            }
            _ => return Err(unknown_directive(directive, value)),
        }
    }
    Ok(if replace { (rest.iter().map(added).collect(), Vec::new()) } else { (original, rest) })
}

/// A value that the document did not have: nulls and directives say nothing there.
fn added(value: &Value) -> Value {
    match value {
        Value::Object(map) if map.get(DIRECTIVE).and_then(Value::as_str) == Some("delete") => {
            Value::Object(Object::new())
        }
        Value::Object(map) => {
            let kept = map.iter().filter(|(key, value)| {
                let directive = [DIRECTIVE, RETAIN_KEYS].contains(&key.as_str())
                    || key.starts_with(DELETE_FROM_LIST)
                    || key.starts_with(ELEMENT_ORDER);
                !directive && !value.is_null()
            });
            kept.map(|(key, value)| (key.clone(), added(value))).collect()
        }
        Value::Array(list) => list.iter().filter(|value| value.get(DIRECTIVE).is_none()).map(added).collect(),
        other => other.clone(),
    }
}

/// `$retainKeys`: all keys that it does not name go; those the patch sets must be among them.
fn retain(original: &mut Object, patch: &Object) -> Result<(), PatchError> {
    let Some(keys) = patch.get(RETAIN_KEYS) else { return Ok(()) };
    let wrong = || PatchError::Malformed("invalid patch format of retainKeys".into());
    let keys = keys.as_array().ok_or_else(wrong)?;
    let named = |key: &String| keys.iter().any(|one| one.as_str() == Some(key));
    let stray = patch.iter().any(|(key, value)| {
        !(value.is_null()
            || key == RETAIN_KEYS
            || key.starts_with(DELETE_FROM_LIST)
            || key.starts_with(ELEMENT_ORDER)
            || named(key))
    });
    if stray {
        return Err(wrong());
    }
    original.retain(|key, _| named(key));
    Ok(())
}

fn merge_key<'v>(value: &'v Value, key: &str) -> Result<&'v Value, PatchError> {
    let missing = || PatchError::Inapplicable(format!("map: {value} does not contain declared merge key: {key}"));
    value.get(key).ok_or_else(missing)
}

fn unknown_directive(directive: &Value, patch: impl serde::Serialize) -> PatchError {
    let patch = serde_json::to_string(&patch).unwrap_or_default();
    PatchError::Malformed(format!("unknown patch type: {directive} in map: {patch}"))
}

fn bad_order() -> PatchError {
    PatchError::Malformed("invalid patch format of setElementOrder list".into())
}

/// Where a list has the item that `item` stands for: the same key, or the same scalar.
fn place(list: &[Value], item: &Value, key: Option<&str>) -> Option<usize> {
    match key {
        Some(key) => list.iter().position(|one| one.get(key).is_some() && one.get(key) == item.get(key)),
        None => list.iter().position(|one| one == item),
    }
}

/// The patch's items must stand in the order that the patch itself asks for.
fn follows(patch: &[Value], order: &[Value], key: Option<&str>) -> Result<(), PatchError> {
    if order.is_empty() {
        return Ok(());
    }
    let mut rest = order;
    for item in patch.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        if let Some(key) = key {
            merge_key(item, key)?;
        }
        let Some(at) = place(rest, item, key) else {
            let message = format!(
                "The order in patch list:\n{}\n doesn't match $setElementOrder list:\n{}\n",
                Value::from(patch),
                Value::from(order)
            );
            return Err(PatchError::Malformed(message));
        };
        rest = rest.get(at + 1..).unwrap_or_default();
    }
    Ok(())
}

/// Orders a merged list: items that `order` names as it says; the others, in their order in `live`, each before the
/// first ordered item that it preceded there. So an item that is new to `live` comes first unless an order is given.
fn arranged(merged: Vec<Value>, order: &[Value], live: &[Value], key: Option<&str>) -> Result<Vec<Value>, PatchError> {
    if let Some(key) = key {
        for item in merged.iter().chain(order) {
            merge_key(item, key)?;
        }
    }
    let (mut named, mut others): (Vec<Value>, Vec<Value>) =
        merged.into_iter().partition(|item| place(order, item, key).is_some());
    let by = |list: &[Value], left: &Value, right: &Value| match (place(list, left, key), place(list, right, key)) {
        (Some(left), Some(right)) => left.cmp(&right),
        _ => Ordering::Equal,
    };
    named.sort_by(|left, right| by(order, left, right));
    others.sort_by(|left, right| by(live, left, right));
    let mut result = Vec::with_capacity(named.len() + others.len());
    let mut others = others.into_iter().peekable();
    for item in named {
        let at = place(live, &item, key);
        while let Some(other) =
            others.next_if(|other| at.is_some_and(|at| place(live, other, key).is_some_and(|place| place < at)))
        {
            result.push(other);
        }
        result.push(item);
    }
    result.extend(others);
    Ok(result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::testing;

    fn schema() -> (Schema, TypeId) {
        testing::schema(json!({"fields": {
            "finalizers": {"list": "string", "merge": true},
            "labels": {"map": "string"},
            "args": {"list": "string"},
            "strategy": {"fields": {"type": "string", "rolling": {"fields": {"max": "int"}}}, "retainKeys": true},
            "selector": {"fields": {"a": "string", "b": "string"}, "replace": true},
            "containers": {"merge": true, "mergeKey": "name", "kind": ["name"], "list": {"fields": {
                "name": "string", "image": "string", "args": {"list": "string"},
                "ports": {"merge": true, "mergeKey": "port", "kind": ["port"], "list": {"fields": {
                    "port": "int", "name": "string"}}},
            }}},
        }}))
    }

    fn patched(document: Value, patch: Value) -> Result<Value, PatchError> {
        let (schema, root) = schema();
        let mut document = document;
        strategic(&schema, root, &mut document, &patch).map(|()| document)
    }

    #[track_caller]
    fn check(document: Value, patch: Value, expected: Value) {
        assert_eq!(patched(document, patch), Ok(expected));
    }

    #[test]
    fn maps_and_scalars() {
        check(
            json!({"labels": {"a": "1", "b": "2"}, "args": ["x"]}),
            json!({"labels": {"a": null, "c": "3", "d": null}, "args": ["y", "z"]}),
            json!({"labels": {"b": "2", "c": "3"}, "args": ["y", "z"]}),
        );
        check(json!({"labels": {"a": "1"}}), json!({"labels": null}), json!({}));
        check(json!({}), json!({"labels": {"a": "1", "b": null}}), json!({"labels": {"a": "1"}}));
        check(json!({"selector": {"a": "1"}}), json!({"selector": {"b": "2"}}), json!({"selector": {"b": "2"}}));
        check(
            json!({"labels": {"a": "1"}}),
            json!({"labels": {"$patch": "replace", "b": "2"}}),
            json!({"labels": {"b": "2"}}),
        );
        check(json!({"labels": {"a": "1"}}), json!({"labels": {"$patch": "delete"}}), json!({"labels": {}}));
    }

    #[test]
    fn keyed_lists() {
        let live = json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]});
        check(
            live.clone(),
            json!({"containers": [{"name": "b", "image": "2"}, {"name": "c"}]}),
            json!({"containers": [{"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "2"}, {"name": "c"}]}),
        );
        // Without an order of its own a new item goes to the front.
        check(live.clone(), json!({"containers": [{"name": "c"}]}), {
            json!({"containers": [{"name": "c"}, {"name": "a", "image": "1", "args": ["x"]}, {"name": "b", "image": "1"}]})
        });
        check(
            live.clone(),
            json!({"containers": [{"name": "a", "$patch": "delete"}]}),
            json!({"containers": [{"name": "b", "image": "1"}]}),
        );
        check(
            live.clone(),
            json!({"containers": [{"$patch": "replace"}, {"name": "z"}]}),
            json!({"containers": [{"name": "z"}]}),
        );
        check(
            live,
            json!({"$setElementOrder/containers": [{"name": "b"}, {"name": "a"}], "containers": [{"name": "a", "image": null}]}),
            json!({"containers": [{"name": "b", "image": "1"}, {"name": "a", "args": ["x"]}]}),
        );
    }

    #[test]
    fn sets_of_scalars() {
        let live = json!({"finalizers": ["a", "b", "c"]});
        check(live.clone(), json!({"finalizers": ["d", "a"]}), json!({"finalizers": ["d", "a", "b", "c"]}));
        check(
            live.clone(),
            json!({"$deleteFromPrimitiveList/finalizers": ["b", "z"]}),
            json!({"finalizers": ["a", "c"]}),
        );
        check(
            live,
            json!({
                "$deleteFromPrimitiveList/finalizers": ["a"],
                "$setElementOrder/finalizers": ["d", "c"],
                "finalizers": ["d"],
            }),
            json!({"finalizers": ["d", "b", "c"]}),
        );
    }

    #[test]
    fn retained_keys() {
        check(
            json!({"strategy": {"type": "RollingUpdate", "rolling": {"max": 1}}}),
            json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
            json!({"strategy": {"type": "Recreate"}}),
        );
        let stray = json!({"strategy": {"$retainKeys": ["type"], "rolling": {"max": 2}}});
        assert!(matches!(patched(json!({"strategy": {}}), stray), Err(PatchError::Malformed(_))));
    }

    #[test]
    fn built_in_kinds_have_their_rules() {
        let kinds = crate::kind::builtin();
        let patched = |group: &str, resource: &str, document: Value, patch: Value| {
            let kind = kinds.resource(group, "v1", resource).expect("built in");
            let mut document = document;
            strategic(&kind.schema, kind.root, &mut document, &patch).map(|()| document)
        };
        // Ports merge by number alone, though two protocols may share one.
        let template = |ports: Value| json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": "i", "ports": ports}]}}}});
        let document = template(json!([{"containerPort": 80, "protocol": "TCP"}]));
        let patch = json!({"spec": {"template": {"spec": {
            "$setElementOrder/containers": [{"name": "c"}],
            "containers": [{"name": "c", "ports": [{"containerPort": 80, "name": "web"}]}]}}}});
        assert_eq!(
            patched("apps", "deployments", document, patch),
            Ok(template(json!([{"containerPort": 80, "protocol": "TCP", "name": "web"}])))
        );
        assert_eq!(
            patched(
                "policy",
                "poddisruptionbudgets",
                json!({"spec": {"selector": {"matchLabels": {"a": "b"}}}}),
                json!({"spec": {"selector": {"matchLabels": {"c": "d"}}}}),
            ),
            Ok(json!({"spec": {"selector": {"matchLabels": {"c": "d"}}}}))
        );
        assert_eq!(
            patched(
                "",
                "pods",
                json!({"metadata": {"finalizers": ["a", "b"]}, "spec": {"tolerations": [{"key": "a"}]}}),
                json!({
                    "metadata": {"$deleteFromPrimitiveList/finalizers": ["a"]},
                    "spec": {"tolerations": [{"key": "b"}]},
                }),
            ),
            Ok(json!({"metadata": {"finalizers": ["b"]}, "spec": {"tolerations": [{"key": "b"}]}}))
        );
    }

    #[test]
    fn refused_patches_change_nothing() {
        let live = json!({"containers": [{"name": "a", "image": "1"}], "labels": {}});
        for (patch, code) in [
            (json!({"containers": [{"image": "2"}]}), 422),
            (json!({"containers": [{"$patch": "jump", "name": "a"}]}), 400),
            (json!({"containers": [{"$patch": "merge", "name": "a"}]}), 400),
            (json!({"labels": {"$patch": 1}}), 400),
            (json!({"containers": ["a"]}), 400),
            (json!({"containers": [[]]}), 422),
            (json!({"$setElementOrder/containers": {}}), 400),
            (json!({"$setElementOrder/containers": [{"name": "b"}], "containers": [{"name": "a"}]}), 400),
            (json!({"$deleteFromPrimitiveList/finalizers": "a"}), 400),
            (json!([]), 400),
        ] {
            let (schema, root) = schema();
            let mut document = live.clone();
            let error = strategic(&schema, root, &mut document, &patch).expect_err(&patch.to_string());
            assert_eq!((error.into_failure().code, &document), (code, &live), "{patch}");
        }
    }

    /// The two-way difference as clients compute it: changed fields, nulls, deletions by key, element orders.
    fn diff(schema: &Schema, ty: Option<TypeId>, from: &Object, to: &Object) -> Object {
        let merger = Merger { schema };
        let mut patch = Object::new();
        for key in from.keys().filter(|key| !to.contains_key(*key)) {
            patch.insert(key.clone(), Value::Null);
        }
        for (key, new) in to.iter().filter(|(key, new)| from.get(*key) != Some(new)) {
            let (field, rule) = merger.field(ty, key);
            let value = match (from.get(key), new) {
                (Some(Value::Object(old)), Value::Object(new)) if !rule.replace => {
                    let mut inner = diff(schema, field, old, new);
                    if rule.retain_keys {
                        inner.insert(RETAIN_KEYS.into(), new.keys().cloned().collect());
                    }
                    Value::Object(inner)
                }
                (Some(Value::Array(old)), Value::Array(new)) if rule.merge => {
                    let id = |item: &Value| match &rule.merge_key {
                        Some(key) => json!({key.as_str(): item[key.as_str()]}),
                        None => item.clone(),
                    };
                    let has = |list: &[Value], item: &Value| list.iter().find(|one| id(one) == id(item)).cloned();
                    let order: Vec<Value> = new.iter().map(id).collect();
                    patch.insert(format!("{ELEMENT_ORDER}{key}"), order.into());
                    let gone = old.iter().filter(|item| has(new, item).is_none()).map(id);
                    let mut items = Vec::new();
                    if rule.merge_key.is_none() {
                        patch.insert(format!("{DELETE_FROM_LIST}{key}"), gone.collect());
                        items.extend(new.iter().filter(|item| !old.contains(item)).cloned());
                    } else {
                        for item in new {
                            match (has(old, item), item) {
                                (Some(Value::Object(before)), Value::Object(after)) => {
                                    let mut inner = diff(schema, merger.item(field), &before, after);
                                    inner.extend(id(item).as_object().cloned().unwrap_or_default());
                                    items.push(inner.into());
                                }
                                _ => items.push(item.clone()),
                            }
                        }
                        items.extend(gone.map(|mut item| {
                            item[DIRECTIVE] = "delete".into();
                            item
                        }));
                    }
                    items.into()
                }
                _ => new.clone(),
            };
            patch.insert(key.clone(), value);
        }
        patch
    }

    fn documents() -> impl Strategy<Value = Value> {
        let words = || proptest::sample::subsequence(vec!["a", "b", "c", "d"], 0..4).prop_shuffle();
        let port = (0..3_i64, "[x-z]?").prop_map(|(port, name)| json!({"port": port, "name": name}));
        let unique = |key: &'static str| {
            move |list: Vec<Value>| {
                let mut kept: Vec<Value> = Vec::new();
                for item in list {
                    if !kept.iter().any(|one| one[key] == item[key]) {
                        kept.push(item);
                    }
                }
                kept
            }
        };
        let ports = proptest::collection::vec(port, 0..3).prop_map(unique("port"));
        let container = ("[a-d]", "[1-2]", words(), ports)
            .prop_map(|(name, image, args, ports)| json!({"name": name, "image": image, "args": args, "ports": ports}));
        let containers = proptest::collection::vec(container, 0..4).prop_map(unique("name"));
        let labels = proptest::collection::btree_map("[a-c]", "[1-2]", 0..3);
        let strategy = prop_oneof![
            Just(json!({"type": "Recreate"})),
            (0..2).prop_map(|max| json!({"type": "RollingUpdate", "rolling": {"max": max}})),
        ];
        (words(), words(), labels, strategy, containers).prop_map(|(finalizers, args, labels, strategy, containers)| {
            json!({
                "finalizers": finalizers, "args": args, "labels": labels, "strategy": strategy,
                "selector": labels, "containers": containers,
            })
        })
    }

    proptest! {
        #[test]
        fn the_patch_of_a_difference_gives_the_target(from in documents(), to in documents(), drop in 0..6_usize) {
            let (schema, root) = schema();
            let mut to = to;
            let keys = ["finalizers", "args", "labels", "strategy", "selector", "containers"];
            to.as_object_mut().expect("an object").remove(keys[drop]);
            let (Value::Object(old), Value::Object(new)) = (&from, &to) else { unreachable!("objects") };
            let patch = Value::Object(diff(&schema, Some(root), old, new));
            let mut document = from.clone();
            strategic(&schema, root, &mut document, &patch).expect("applies");
            prop_assert_eq!(document, to);
        }
    }
}
