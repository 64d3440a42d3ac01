//! Types as OpenAPI schemas.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{Describe, Version};
use crate::kind::{Gvk, Kind, Kinds, type_name};
use crate::schema::{Field, ListKind, PatchRule, Scalar, Schema, SharedSchema, StructType, Type, TypeId};

pub const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

/// What stands behind one name.
#[derive(Clone)]
enum Entry {
    /// A type of an arena, with the kinds it is.
    Type(SharedSchema, TypeId, Vec<Gvk>),
    List {
        kind: Gvk,
        item: String,
    },
    Scalar(Scalar),
    /// An object of no known fields.
    Open,
}

/// The types that a document defines, by name.
#[derive(Default)]
pub struct Definitions(BTreeMap<String, Entry>);

/// The name of a kind's type: upstream's, or for a custom resource its group reversed, version and kind.
pub fn kind_name(kind: &Kind) -> String {
    if is_custom(kind) { custom_name(&kind.gvk) } else { type_name(&kind.gvk) }
}

pub fn is_custom(kind: &Kind) -> bool {
    kind.schema.named("").is_some()
}

fn custom_name(gvk: &Gvk) -> String {
    let group: Vec<&str> = gvk.group.rsplit('.').collect();
    format!("{}.{}.{}", group.join("."), gvk.version, gvk.kind)
}

impl Definitions {
    /// A kind, its list, the bodies of its subresources and all they are made of.
    pub fn add_kind(&mut self, kinds: &Kinds, kind: &Kind) {
        let name = kind_name(kind);
        self.add(&name, &kind.schema, kind.root, Some(&kind.gvk));
        if kind.verbs.iter().any(|verb| verb == "list") {
            let gvk = Gvk { kind: kind.list_kind.clone(), ..kind.gvk.clone() };
            self.0.insert(format!("{name}List"), Entry::List { kind: gvk, item: name });
            self.add_named(&kind.schema, &format!("{META}.ListMeta"));
        }
        for subresource in kind.subresources.iter().filter(|one| !is_options(&one.gvk)) {
            let name = type_name(&subresource.gvk);
            if let Some((schema, ty)) = builtin_schema(kinds).and_then(|schema| Some((schema, schema.named(&name)?))) {
                self.add(&name, schema, ty, Some(&subresource.gvk));
            }
        }
    }

    /// What requests and answers carry beside the objects: options, statuses, patches, discovery.
    pub fn add_common(&mut self, kinds: &Kinds, names: &[&str]) {
        for name in names {
            let full = format!("{META}.{name}");
            if *name == "Patch" {
                self.0.insert(full, Entry::Open);
                continue;
            }
            if let Some(schema) = builtin_schema(kinds) {
                self.add_named(schema, &full);
            }
            if let Some(Entry::Type(_, _, gvks)) = self.0.get_mut(&full) {
                *gvks = match *name {
                    "DeleteOptions" => every_group_version(kinds, name),
                    name => vec![Gvk { group: String::new(), version: "v1".into(), kind: name.into() }],
                };
            }
        }
    }

    fn add_named(&mut self, schema: &SharedSchema, name: &str) {
        if let Some(ty) = schema.named(name) {
            self.add(name, schema, ty, None);
        }
    }

    fn add(&mut self, name: &str, schema: &SharedSchema, ty: TypeId, gvk: Option<&Gvk>) {
        if let Some(Entry::Type(_, _, gvks)) = self.0.get_mut(name) {
            gvks.extend(gvk.filter(|gvk| !gvks.contains(gvk)).cloned().into_iter().collect::<Vec<_>>());
            return;
        }
        self.0.insert(name.into(), Entry::Type(schema.clone(), ty, gvk.cloned().into_iter().collect()));
        self.reach(schema, ty);
    }

    /// Adds what the fields of `ty` refer to.
    fn reach(&mut self, schema: &SharedSchema, ty: TypeId) {
        match schema.get(ty) {
            Type::Struct(fields) if fields.special => {}
            Type::Struct(fields) => {
                for field in &fields.fields {
                    self.refer(schema, field.ty);
                }
            }
            Type::List(list) => self.refer(schema, list.item),
            Type::Map(map) => self.refer(schema, map.value),
            Type::Scalar(_) | Type::Any => {}
        }
    }

    fn refer(&mut self, schema: &SharedSchema, ty: TypeId) {
        match schema.get(ty) {
            Type::Struct(fields) if !fields.name.is_empty() && !is_strings(fields) => {
                self.add(&fields.name, schema, ty, None);
            }
            Type::Scalar(scalar) => {
                if let Some(name) = scalar_name(*scalar) {
                    self.0.entry(name).or_insert(Entry::Scalar(*scalar));
                }
            }
            _ => self.reach(schema, ty),
        }
    }

    /// Calls `each` with every name and schema, sorted by name.
    pub fn write<E>(
        &self,
        version: Version,
        describe: Describe<'_>,
        mut each: impl FnMut(&str, Value) -> Result<(), E>,
    ) -> Result<(), E> {
        for (name, entry) in &self.0 {
            let mut body = match entry {
                Entry::Type(schema, ty, gvks) => {
                    let writer = Writer { schema, version, describe };
                    let mut body = writer.definition(*ty, name);
                    if !gvks.is_empty() {
                        body.insert("x-kubernetes-group-version-kind".into(), gvks.iter().map(gvk_json).collect());
                    }
                    body
                }
                Entry::List { kind, item } => list(version, kind, item),
                Entry::Scalar(scalar) => scalar_schema(*scalar, version),
                Entry::Open => object(json!({"type": "object"})),
            };
            if let Some(text) = describe(name, "") {
                body.insert("description".into(), text.into());
            }
            each(name, Value::Object(body))?;
        }
        Ok(())
    }
}

/// Bodies that are no bodies: the parameters of a connection.
pub fn is_options(gvk: &Gvk) -> bool {
    gvk.kind.ends_with("Options")
}

/// The arena that the built-in kinds share.
pub fn builtin_schema(kinds: &Kinds) -> Option<&SharedSchema> {
    kinds.all.iter().find(|kind| !is_custom(kind)).map(|kind| &kind.schema)
}

fn every_group_version(kinds: &Kinds, kind: &str) -> Vec<Gvk> {
    let mut found: Vec<Gvk> = Vec::new();
    for one in &kinds.all {
        let gvk = Gvk { kind: kind.into(), ..one.gvk.clone() };
        if !found.contains(&gvk) {
            found.push(gvk);
        }
    }
    found
}

pub fn gvk_json(gvk: &Gvk) -> Value {
    json!({"group": gvk.group, "kind": gvk.kind, "version": gvk.version})
}

fn object(value: Value) -> Map<String, Value> {
    if let Value::Object(map) = value { map } else { Map::new() }
}

fn list(version: Version, kind: &Gvk, item: &str) -> Map<String, Value> {
    let metadata = version.reference(&format!("{META}.ListMeta"));
    let metadata = if version == Version::V3 { json!({"allOf": [metadata], "default": {}}) } else { metadata };
    let items = version.reference(item);
    let items = if version == Version::V3 { json!({"allOf": [items], "default": {}}) } else { items };
    object(json!({
        "type": "object",
        "properties": {
            "apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": metadata,
            "items": {"type": "array", "items": items},
        },
        "required": ["items"],
        "x-kubernetes-group-version-kind": [gvk_json(kind)],
    }))
}

/// Scalars that upstream gives a definition of their own.
fn scalar_name(scalar: Scalar) -> Option<String> {
    match scalar {
        Scalar::Quantity => Some(QUANTITY.into()),
        Scalar::IntOrString => Some(INT_OR_STRING.into()),
        Scalar::Time => Some(format!("{META}.Time")),
        Scalar::MicroTime => Some(format!("{META}.MicroTime")),
        Scalar::Duration => Some(format!("{META}.Duration")),
        _ => None,
    }
}

fn scalar_schema(scalar: Scalar, version: Version) -> Map<String, Value> {
    object(match (scalar, version) {
        (Scalar::Bool, _) => json!({"type": "boolean"}),
        (Scalar::Int32, _) => json!({"type": "integer", "format": "int32"}),
        (Scalar::Int64, _) => json!({"type": "integer", "format": "int64"}),
        (Scalar::Number, _) => json!({"type": "number", "format": "double"}),
        (Scalar::String | Scalar::Duration, _) => json!({"type": "string"}),
        (Scalar::Bytes, _) => json!({"type": "string", "format": "byte"}),
        (Scalar::Time | Scalar::MicroTime, _) => json!({"type": "string", "format": "date-time"}),
        (Scalar::Quantity, Version::V2) => json!({"type": "string"}),
        (Scalar::Quantity, Version::V3) => json!({"oneOf": [{"type": "string"}, {"type": "number"}]}),
        (Scalar::IntOrString, Version::V2) => json!({"type": "string", "format": "int-or-string"}),
        (Scalar::IntOrString, Version::V3) => {
            json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"})
        }
    })
}

/// A message around a list of strings, which in JSON is that list.
fn is_strings(fields: &StructType) -> bool {
    fields.special && !["JSONSchemaPropsOr", ".GroupVersion"].iter().any(|other| fields.name.contains(other))
}

struct Writer<'a, 'd> {
    schema: &'a Schema,
    version: Version,
    describe: Describe<'d>,
}

impl Writer<'_, '_> {
    fn definition(&self, ty: TypeId, name: &str) -> Map<String, Value> {
        match self.schema.get(ty) {
            Type::Struct(fields) if fields.special => Map::new(),
            Type::Struct(fields) => self.structure(fields, name),
            _ => self.value(ty),
        }
    }

    fn structure(&self, fields: &StructType, name: &str) -> Map<String, Value> {
        let mut body = object(json!({"type": "object"}));
        let properties: Map<String, Value> =
            fields.fields.iter().map(|field| (field.name.clone(), Value::Object(self.property(field, name)))).collect();
        if !properties.is_empty() {
            body.insert("properties".into(), Value::Object(properties));
        }
        let required: Vec<&str> =
            fields.fields.iter().filter(|field| field.required).map(|field| field.name.as_str()).collect();
        if !required.is_empty() {
            body.insert("required".into(), required.into());
        }
        if fields.atomic {
            body.insert("x-kubernetes-map-type".into(), "atomic".into());
        }
        if fields.preserve_unknown {
            body.insert("x-kubernetes-preserve-unknown-fields".into(), true.into());
        }
        body
    }

    fn property(&self, field: &Field, owner: &str) -> Map<String, Value> {
        let mut body = self.value(field.ty);
        // Defaults and examples of a schema are any value, not just objects.
        if owner.contains("JSONSchemaProps") {
            match self.schema.get(field.ty) {
                Type::Any => body.clear(),
                Type::List(list) if matches!(self.schema.get(list.item), Type::Any) => {
                    body.insert("items".into(), json!({}));
                }
                _ => {}
            }
        }
        let mut extra = Map::new();
        if let Some(text) = (self.describe)(owner, &field.name) {
            extra.insert("description".into(), text.into());
        }
        if self.version == Version::V3
            && let Some(default) = self.default(field)
        {
            extra.insert("default".into(), default);
        }
        if !field.enum_values.is_empty() {
            extra.insert("enum".into(), field.enum_values.iter().cloned().collect());
        }
        patch_extensions(&field.patch, &mut extra);
        // In version 3 nothing may stand beside a reference.
        if self.version == Version::V3 && body.contains_key("$ref") && !extra.is_empty() {
            body = object(json!({"allOf": [body]}));
        }
        body.extend(extra);
        body
    }

    /// Declared, or the zero value of what is always there.
    fn default(&self, field: &Field) -> Option<Value> {
        let always = field.proto.as_ref().is_some_and(|proto| proto.always);
        let zero = || match self.schema.get(field.ty) {
            Type::Struct(_) if always => Some(json!({})),
            Type::Scalar(scalar) if always && !field.omit_empty => match scalar {
                Scalar::String => Some("".into()),
                Scalar::Bool => Some(false.into()),
                Scalar::Int32 | Scalar::Int64 | Scalar::Number => Some(0.into()),
                _ => None,
            },
            _ => None,
        };
        field.default.clone().or_else(zero)
    }

    fn value(&self, ty: TypeId) -> Map<String, Value> {
        match self.schema.get(ty) {
            Type::Scalar(scalar) => match scalar_name(*scalar) {
                Some(name) => object(self.version.reference(&name)),
                None => scalar_schema(*scalar, self.version),
            },
            Type::Any if self.schema.named("").is_some() => {
                object(json!({"x-kubernetes-preserve-unknown-fields": true}))
            }
            Type::Any => object(json!({"type": "object"})),
            Type::Struct(fields) if is_strings(fields) => object(json!({"type": "array", "items": {"type": "string"}})),
            Type::Struct(fields) if fields.name.is_empty() => self.structure(fields, ""),
            Type::Struct(fields) => {
                let mut body = object(self.version.reference(&fields.name));
                let usual = self.schema.named(&fields.name);
                if usual.is_some_and(|usual| usual != ty) && !fields.atomic {
                    if self.version == Version::V3 {
                        body = object(json!({"allOf": [body]}));
                    }
                    body.insert("x-kubernetes-map-type".into(), "granular".into());
                }
                body
            }
            Type::Map(map) => {
                let mut body = object(json!({"type": "object"}));
                body.insert("additionalProperties".into(), Value::Object(self.item(map.value)));
                if map.atomic {
                    body.insert("x-kubernetes-map-type".into(), "atomic".into());
                }
                body
            }
            Type::List(list) => {
                let mut body = object(json!({"type": "array"}));
                body.insert("items".into(), Value::Object(self.item(list.item)));
                match &list.kind {
                    ListKind::Atomic => {
                        body.insert("x-kubernetes-list-type".into(), "atomic".into());
                    }
                    ListKind::Set => {
                        body.insert("x-kubernetes-list-type".into(), "set".into());
                    }
                    ListKind::Map(keys) => {
                        body.insert("x-kubernetes-list-type".into(), "map".into());
                        body.insert("x-kubernetes-list-map-keys".into(), keys.iter().cloned().collect());
                    }
                }
                body
            }
        }
    }

    /// A list's item or a map's value.
    fn item(&self, ty: TypeId) -> Map<String, Value> {
        let body = self.value(ty);
        let default = match self.schema.get(ty) {
            Type::Struct(fields) if !is_strings(fields) => json!({}),
            Type::Scalar(Scalar::String) => "".into(),
            Type::Scalar(Scalar::Int32 | Scalar::Int64) => 0.into(),
            _ => return body,
        };
        if self.version == Version::V2 || self.schema.named("").is_some() {
            return body;
        }
        let mut body = if body.contains_key("$ref") { object(json!({"allOf": [body]})) } else { body };
        body.insert("default".into(), default);
        body
    }
}

fn patch_extensions(rule: &PatchRule, body: &mut Map<String, Value>) {
    let strategies = [("merge", rule.merge), ("retainKeys", rule.retain_keys), ("replace", rule.replace)];
    let strategies: Vec<&str> = strategies.into_iter().filter(|(_, on)| *on).map(|(name, _)| name).collect();
    if !strategies.is_empty() {
        body.insert("x-kubernetes-patch-strategy".into(), strategies.join(",").into());
    }
    if let Some(key) = &rule.merge_key {
        body.insert("x-kubernetes-patch-merge-key".into(), key.as_str().into());
    }
}
