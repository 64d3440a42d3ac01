//! Which objects a label and field selector take, decided on the stored bytes: names from the key, the rest by looking
//! into the JSON without building a tree.

use std::borrow::Cow;
use std::collections::BTreeMap;

use sampan_api::Kind;
use sampan_api::schema::{Scalar, Type, TypeId};
use sampan_api::selector::{FieldSelector, LabelSelector};
use sampan_store::Entry;
use serde_json::value::RawValue;

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

    pub fn matches(&self, kind: &Kind, entry: &Entry) -> bool {
        if self.is_everything() {
            return true;
        }
        let (namespace, name) = keys::parts(kind, &entry.key);
        let from_key = |path: &str| match path {
            "metadata.name" => Some(name.to_owned()),
            "metadata.namespace" => Some(namespace.to_owned()),
            _ => None,
        };
        if self.by_key {
            return self.fields.matches(from_key);
        }
        let Some(root) = members(&entry.value) else { return false };
        if !self.labels.is_everything() {
            let labels = root.get("metadata").and_then(|metadata| members(metadata.get().as_bytes()));
            let labels = labels.as_ref().and_then(|metadata| metadata.get("labels"));
            let labels: BTreeMap<Cow<'_, str>, Cow<'_, str>> =
                labels.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
            if !self.labels.matches_with(|key| labels.get(key).map(|value| value.as_ref())) {
                return false;
            }
        }
        self.fields.matches(|path| from_key(path).or_else(|| Some(field(kind, &root, path))))
    }
}

type Members<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

fn members(json: &[u8]) -> Option<Members<'_>> {
    serde_json::from_slice(json).ok()
}

/// The value of a field as text; what Go prints for the zero value when it is absent.
fn field(kind: &Kind, root: &Members<'_>, path: &str) -> String {
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
    match path.split('.').try_fold(kind.root, step).map(|ty| kind.schema.get(ty)) {
        Some(Type::Scalar(Scalar::Bool)) => "false",
        Some(Type::Scalar(Scalar::Int32 | Scalar::Int64)) => "0",
        _ => "",
    }
}
