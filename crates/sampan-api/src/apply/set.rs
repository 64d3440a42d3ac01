//! Sets of fields, as `metadata.managedFields` records them (`FieldsV1`).
//!
//! A path element is kept in its serialised form: `f:name`, `k:{"name":"a"}`, `v:"x"`, `i:0`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

/// A node of the tree of fields: whether the field itself belongs to the set, and which fields below it do. The root is
/// the object and never a member. No child is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    pub member: bool,
    pub children: BTreeMap<String, Set>,
}

impl Set {
    pub fn leaf() -> Self {
        Self { member: true, children: BTreeMap::new() }
    }

    /// The field names in `paths` (`metadata.name`), each a member.
    pub fn of_fields(paths: &[&str]) -> Self {
        let mut set = Self::default();
        for path in paths {
            let node =
                path.split('.').fold(&mut set, |node, name| node.children.entry(format!("f:{name}")).or_default());
            node.member = true;
        }
        set
    }

    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }

    /// Attaches `child` unless it is empty.
    pub fn put(&mut self, element: String, child: Self) {
        if !child.is_empty() {
            self.children.insert(element, child);
        }
    }

    pub fn has(&self, path: &[&str]) -> bool {
        path.iter().try_fold(self, |node, element| node.children.get(*element)).is_some_and(|node| node.member)
    }

    pub fn union(mut self, other: Self) -> Self {
        self.member |= other.member;
        if self.children.is_empty() {
            self.children = other.children;
            return self;
        }
        for (element, child) in other.children {
            match self.children.get_mut(&element) {
                Some(own) => *own = std::mem::take(own).union(child),
                None => {
                    self.children.insert(element, child);
                }
            }
        }
        self
    }

    pub fn intersection(&self, other: &Self) -> Self {
        let mut both = Self { member: self.member && other.member, children: BTreeMap::new() };
        for (element, child) in &self.children {
            if let Some(counterpart) = other.children.get(element) {
                both.put(element.clone(), child.intersection(counterpart));
            }
        }
        both
    }

    /// Takes the members of `other` out, field by field: what lies below one stays.
    pub fn subtract(&mut self, other: &Self) {
        self.take_out(other, false);
    }

    /// [`Set::subtract`], but what lies below a member of `other` goes too.
    pub fn subtract_branches(&mut self, other: &Self) {
        self.take_out(other, true);
    }

    fn take_out(&mut self, other: &Self, branches: bool) {
        self.member &= !other.member;
        for (element, counterpart) in &other.children {
            let Some(child) = self.children.get_mut(element) else { continue };
            if !(branches && counterpart.member) {
                child.take_out(counterpart, branches);
                if !child.is_empty() {
                    continue;
                }
            }
            self.children.remove(element);
        }
    }

    /// True when every member is one of `other`.
    pub fn is_subset(&self, other: &Self) -> bool {
        (!self.member || other.member)
            && self.children.iter().all(|(element, child)| {
                other.children.get(element).is_some_and(|counterpart| child.is_subset(counterpart))
            })
    }

    /// Every member's path, those of one level before those below it.
    pub fn paths(&self) -> Vec<Vec<&str>> {
        let mut paths = Vec::new();
        self.collect(&mut Vec::new(), &mut paths);
        paths
    }

    fn collect<'a>(&'a self, prefix: &mut Vec<&'a str>, paths: &mut Vec<Vec<&'a str>>) {
        for (element, _) in self.children.iter().filter(|(_, child)| child.member) {
            paths.push(prefix.iter().copied().chain([element.as_str()]).collect());
        }
        for (element, child) in &self.children {
            prefix.push(element);
            child.collect(prefix, paths);
            prefix.pop();
        }
    }

    /// The `fieldsV1` value.
    pub fn into_json(self) -> Value {
        let dot = self.member && !self.children.is_empty();
        let mut map: Map<String, Value> =
            self.children.into_iter().map(|(element, child)| (element, child.into_json())).collect();
        if dot {
            map.insert(".".into(), Value::Object(Map::new()));
        }
        Value::Object(map)
    }

    /// Reads a `fieldsV1` value. Elements of unknown kinds are dropped; `None` when the value is not of this form.
    /// `own`: this module wrote it, so that its elements need not be put into their canonical form.
    pub fn from_json(value: &Value, own: bool) -> Option<Self> {
        let mut root = Self::read(value, own)?;
        root.member = false;
        Some(root)
    }

    fn read(value: &Value, own: bool) -> Option<Self> {
        let mut set = Self::default();
        for (element, below) in value.as_object()? {
            let child = || Self::read(below, own);
            match element.split_once(':') {
                None if element == "." => set.member = true,
                Some(("f", _)) => set.put(element.clone(), child()?),
                Some(("v" | "k", _)) if own => set.put(element.clone(), child()?),
                Some(("i", index)) => {
                    index.parse::<u64>().ok()?;
                    set.put(element.clone(), child()?);
                }
                Some(("v", value)) => set.put(value_element(&serde_json::from_str(value).ok()?), child()?),
                Some(("k", keys)) => set.put(key_element(serde_json::from_str(keys).ok()?), child()?),
                Some((kind, _)) if kind.chars().count() == 1 => {}
                _ => return None,
            }
        }
        set.member |= set.children.is_empty();
        Some(set)
    }
}

pub fn field_element(name: &str) -> String {
    format!("f:{name}")
}

/// An item of a set of scalars.
pub fn value_element(value: &Value) -> String {
    format!("v:{}", go_json(value))
}

/// An item of a keyed list.
pub fn key_element(keys: Map<String, Value>) -> String {
    format!("k:{}", go_json(&Value::Object(keys)))
}

/// JSON as Go's encoder writes it: with the characters escaped that mean something to HTML.
pub fn go_json(value: &Value) -> String {
    let plain = value.to_string();
    let special = |c: char| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
    if !plain.contains(special) {
        return plain;
    }
    let mut escaped = String::with_capacity(plain.len() + 16);
    for c in plain.chars() {
        if special(c) {
            escaped.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            escaped.push(c);
        }
    }
    escaped
}

/// A path as messages show it: `.spec.containers[name="a"].image`.
pub fn path_text(path: &[&str]) -> String {
    let scalar = |value: &Value| value.to_string();
    path.iter()
        .map(|element| match element.split_once(':') {
            Some(("k", keys)) => {
                let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
                let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={}", scalar(value))).collect();
                format!("[{}]", keys.join(","))
            }
            Some(("v", value)) => {
                format!("[={}]", serde_json::from_str::<Value>(value).map(|value| scalar(&value)).unwrap_or_default())
            }
            Some(("i", index)) => format!("[{index}]"),
            Some((_, name)) => format!(".{name}"),
            None => String::new(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_v1_reads_and_writes() {
        let value = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {"v:\"a&b\"": {}}},
            "f:spec": {"f:ports": {"k:{\"port\": 80,\"name\":\"x\"}": {".": {}, "f:port": {}}, "i:0": {}}, "x:y": {}},
        });
        let set = Set::from_json(&value, false).expect("valid");
        assert_eq!(
            set.clone().into_json(),
            json!({
                "f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {"v:\"a\\u0026b\"": {}}},
                "f:spec": {"f:ports": {"k:{\"name\":\"x\",\"port\":80}": {".": {}, "f:port": {}}, "i:0": {}}},
            })
        );
        let texts: Vec<String> = set.paths().iter().map(|path| path_text(path)).collect();
        assert_eq!(
            texts,
            [
                ".metadata.labels",
                ".metadata.finalizers[=\"a&b\"]",
                ".metadata.labels.app",
                ".spec.ports[0]",
                ".spec.ports[name=\"x\",port=80]",
                ".spec.ports[name=\"x\",port=80].port",
            ]
        );
        for wrong in [json!(1), json!({"f:a": 1}), json!({"k:x": {}}), json!({"i:x": {}}), json!({"plain": {}})] {
            assert_eq!(Set::from_json(&wrong, false), None, "{wrong}");
        }
    }

    fn sets() -> impl Strategy<Value = Set> {
        proptest::collection::btree_set("f:[ab](/f:[ab]){0,2}", 0..5).prop_map(|paths| {
            let mut set = Set::default();
            for path in paths {
                let node = path.split('/').fold(&mut set, |node, name| node.children.entry(name.into()).or_default());
                node.member = true;
            }
            set
        })
    }

    proptest! {
        #[test]
        fn sets_are_sets(a in sets(), b in sets()) {
            let has = |set: &Set, path: &[&str]| set.has(path);
            let (union, both, mut rest) = (a.clone().union(b.clone()), a.intersection(&b), a.clone());
            rest.subtract(&b);
            prop_assert!(both.is_subset(&a) && both.is_subset(&b) && a.is_subset(&union));
            prop_assert_eq!(a.is_subset(&b), rest.is_empty());
            for path in union.paths() {
                prop_assert!(has(&a, &path) || has(&b, &path));
                prop_assert_eq!(has(&both, &path), has(&a, &path) && has(&b, &path));
                prop_assert_eq!(has(&rest, &path), has(&a, &path) && !has(&b, &path));
            }
            prop_assert_eq!(union.paths().len(), rest.paths().len() + b.paths().len());
            prop_assert_eq!(Set::from_json(&union.clone().into_json(), true), Some(union));
        }
    }
}
