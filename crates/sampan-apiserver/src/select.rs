//! Which objects a label and field selector take, decided on the stored bytes: names from the key, the rest by looking
//! into the JSON without building a tree.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use sampan_api::Kind;
use sampan_api::schema::{Scalar, Type, TypeId};
use sampan_api::selector::{FieldSelector, LabelSelector};
use sampan_store::Entry;
use serde_json::value::RawValue;

use crate::forms::{Shared, Weight};
use crate::keys;

#[derive(Clone, Debug)]
pub struct Selection {
    labels: LabelSelector,
    fields: FieldSelector,
    /// The key says all there is to know.
    by_key: bool,
}

impl Selection {
    pub fn new(labels: LabelSelector, fields: FieldSelector) -> Self {
        let in_key = |path: &str| path == "metadata.name" || path == "metadata.namespace";
        let by_key = labels.is_everything() && fields.terms().iter().all(|term| in_key(&term.path));
        Self { labels, fields, by_key }
    }

    pub fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    /// Looks into the object, no further than the selectors ask.
    pub fn matches(&self, kind: &Kind, entry: &Entry) -> bool {
        if self.by_key {
            return self.fields.matches(|path| from_key(kind, entry, path));
        }
        let Some(root) = members(&entry.value) else { return false };
        if !self.labels.is_everything() {
            let labels = labels(&root);
            if !self.labels.matches_with(|key| labels.get(key).map(String::as_str)) {
                return false;
            }
        }
        self.fields.matches(|path| from_key(kind, entry, path).or_else(|| Some(field(kind, &root, path))))
    }

    /// The same, by facts that all watchers of the object share.
    pub fn matches_shared(&self, kind: &Kind, entry: &Entry, facts: &Shared<(), Arc<Facts>>) -> bool {
        if self.by_key {
            return self.matches(kind, entry);
        }
        let facts = facts.get(&entry.key, entry.modified, (), || Arc::new(Facts::of(kind, entry)));
        self.labels.matches_with(|key| facts.labels.get(key).map(String::as_str))
            && self.fields.matches(|path| {
                let known = || facts.fields.get(stored_path(kind, path)).cloned();
                from_key(kind, entry, path).or_else(known).or_else(|| Some(field(kind, &members(&entry.value)?, path)))
            })
    }
}

/// What selectors can ask of one object.
pub struct Facts {
    labels: BTreeMap<String, String>,
    /// By their paths in the storage version.
    fields: BTreeMap<String, String>,
}

impl Facts {
    fn of(kind: &Kind, entry: &Entry) -> Self {
        let Some(root) = members(&entry.value) else {
            return Self { labels: BTreeMap::new(), fields: BTreeMap::new() };
        };
        let fields = kind.selectable_fields.iter();
        let fields = fields.map(|path| (stored_path(kind, path).to_owned(), field(kind, &root, path)));
        Self { labels: labels(&root), fields: fields.collect() }
    }
}

impl Weight for Arc<Facts> {
    fn weight(&self) -> usize {
        // Two strings with their place in a tree.
        self.labels.iter().chain(&self.fields).map(|(key, value)| key.len() + value.len() + 64).sum()
    }
}

fn from_key(kind: &Kind, entry: &Entry, path: &str) -> Option<String> {
    let (namespace, name) = keys::parts(kind, &entry.key);
    match path {
        "metadata.name" => Some(name.to_owned()),
        "metadata.namespace" => Some(namespace.to_owned()),
        _ => None,
    }
}

type Members<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

fn members(json: &[u8]) -> Option<Members<'_>> {
    serde_json::from_slice(json).ok()
}

fn labels(root: &Members<'_>) -> BTreeMap<String, String> {
    #[derive(Default, serde::Deserialize)]
    #[serde(default)]
    struct Slim {
        labels: Option<BTreeMap<String, String>>,
    }
    let metadata = root.get("metadata").and_then(|raw| serde_json::from_str::<Slim>(raw.get()).ok());
    metadata.and_then(|metadata| metadata.labels).unwrap_or_default()
}

/// Where a selectable field stands in the stored object, when its name is another.
fn stored_path<'a>(kind: &Kind, path: &'a str) -> &'a str {
    match (kind.gvk.group.as_str(), kind.gvk.kind.as_str(), path) {
        ("events.k8s.io", "Event", "reportingController") => "reportingComponent",
        ("events.k8s.io", "Event", "regarding.kind") => "involvedObject.kind",
        ("events.k8s.io", "Event", "regarding.namespace") => "involvedObject.namespace",
        ("events.k8s.io", "Event", "regarding.name") => "involvedObject.name",
        ("events.k8s.io", "Event", "regarding.uid") => "involvedObject.uid",
        ("events.k8s.io", "Event", "regarding.apiVersion") => "involvedObject.apiVersion",
        ("events.k8s.io", "Event", "regarding.resourceVersion") => "involvedObject.resourceVersion",
        ("events.k8s.io", "Event", "regarding.fieldPath") => "involvedObject.fieldPath",
        ("", "Event", "source") => "source.component",
        ("batch", "Job", "status.successful") => "status.succeeded",
        _ => path,
    }
}

/// The value of a field as text; what Go prints for the zero value when it is absent.
fn field(kind: &Kind, root: &Members<'_>, path: &str) -> String {
    let path = stored_path(kind, path);
    let mut steps = path.split('.');
    let mut raw = steps.next().and_then(|step| root.get(step).copied());
    for step in steps {
        raw = raw.and_then(|raw| {
            let map: Members<'_> = serde_json::from_str(raw.get()).ok()?;
            map.get(step).copied()
        });
    }
    match raw.map(|raw| serde_json::from_str::<serde_json::Value>(raw.get())) {
        Some(Ok(serde_json::Value::String(text))) => text,
        Some(Ok(value)) if !value.is_null() => value.to_string(),
        _ => zero(kind, path).to_owned(),
    }
}

fn zero(kind: &Kind, path: &str) -> &'static str {
    let step = |ty: TypeId, name: &str| match kind.schema.get(ty) {
        Type::Struct(fields) => fields.field(name).map(|field| field.ty),
        _ => None,
    };
    let root = crate::respond::storage_root(kind);
    match path.split('.').try_fold(root, step).map(|ty| kind.schema.get(ty)) {
        Some(Type::Scalar(Scalar::Bool)) => "false",
        Some(Type::Scalar(Scalar::Int32 | Scalar::Int64)) => "0",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sampan_store::Revision;

    /// Whether an object is selected; both ways of looking must agree.
    fn selected(resource: (&str, &str), json: &str, labels: &str, fields: &str) -> bool {
        let kinds = sampan_api::kind::builtin();
        let kind = kinds.resource(resource.0, "v1", resource.1).expect("a built-in kind");
        let selection = Selection::new(
            LabelSelector::parse(labels).expect("a selector"),
            FieldSelector::parse(fields).expect("a selector"),
        );
        let entry = Entry {
            key: "/core/x/default/web".into(),
            value: json.to_owned().into(),
            stamp: None,
            created: Revision(1),
            modified: Revision(1),
        };
        let direct = selection.matches(kind, &entry);
        assert_eq!(direct, selection.matches_shared(kind, &entry, &Shared::new(1 << 16)), "{labels} {fields}");
        direct
    }

    #[test]
    fn labels_and_fields() {
        let pod = r#"{"metadata":{"labels":{"app":"web"}},"spec":{"nodeName":"n1"},"status":{"phase":"Running"}}"#;
        for (labels, fields, expected) in [
            ("", "", true),
            ("app=web", "", true),
            ("app!=web", "", false),
            ("", "metadata.name=web", true),
            ("", "metadata.namespace=other", false),
            ("app", "spec.nodeName=n1,status.phase!=Failed", true),
            ("", "spec.nodeName=n2", false),
            // Absent: the zero value of its type.
            ("", "spec.hostNetwork=false,status.podIP=", true),
        ] {
            assert_eq!(selected(("", "pods"), pod, labels, fields), expected, "{labels} {fields}");
        }
        assert!(selected(("", "nodes"), "{}", "", "spec.unschedulable=false"));
        assert!(!selected(("", "nodes"), r#"{"spec":{"unschedulable":true}}"#, "", "spec.unschedulable=false"));
        let event = r#"{"involvedObject":{"name":"p"},"source":{"component":"kubelet"}}"#;
        assert!(selected(("", "events"), event, "", "involvedObject.name=p,source=kubelet"));
        assert!(selected(("events.k8s.io", "events"), event, "", "regarding.name=p"));
        assert!(selected(("batch", "jobs"), r#"{"status":{"succeeded":2}}"#, "", "status.successful=2"));
    }
}
