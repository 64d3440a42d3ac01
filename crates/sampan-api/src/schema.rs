//! The shape of every kind: one arena of types that the decoder, pruner, defaulter, validator, merger, applier and the
//! protobuf transcoder all read.
//!
//! Built-in kinds come from the table of facts in `schema/` (made by `cargo xtask schema` from the published API);
//! custom resources compile their OpenAPI schema to an arena of their own. Nothing here knows where a schema came from.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

pub mod table;
mod validate;

pub use validate::{validate, validate_update};

/// An index into [`Schema::types`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TypeId(pub u32);

/// An arena of types. Immutable once built; shared.
#[derive(Debug, Default)]
pub struct Schema {
    pub types: Vec<Type>,
    /// Full upstream type names (`io.k8s.api.core.v1.Pod`) to types. Empty for custom resources but for the root, ``.
    pub names: HashMap<String, TypeId>,
}

pub type SharedSchema = Arc<Schema>;

#[derive(Debug)]
pub enum Type {
    Scalar(Scalar),
    List(ListType),
    Map(MapType),
    Struct(StructType),
    /// Any JSON value, kept as it came (`RawExtension`, `FieldsV1`, `JSON`, unknown-preserving nodes without fields).
    Any,
}

/// Leaves. The special types encode differently in protobuf and are canonicalised on decode, see the published
/// `special-types` notes in `schema/README.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    Bool,
    Int32,
    Int64,
    /// `float64`.
    Number,
    String,
    /// Base64 in JSON.
    Bytes,
    IntOrString,
    Quantity,
    /// RFC 3339 with whole seconds; zero is null.
    Time,
    /// RFC 3339 with six fraction digits.
    MicroTime,
    /// Go's duration text.
    Duration,
}

/// How server-side apply treats a list (`x-kubernetes-list-type`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListKind {
    Atomic,
    Set,
    /// Associative, by these keys.
    Map(Vec<String>),
}

/// How a strategic merge patch treats a field (`x-kubernetes-patch-strategy`, `…-merge-key`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PatchRule {
    /// Lists: merge by `merge_key`, or as a set of scalars without one.
    pub merge: bool,
    pub retain_keys: bool,
    /// Structs: the patch's value replaces the old one whole.
    pub replace: bool,
    pub merge_key: Option<String>,
}

#[derive(Debug)]
pub struct ListType {
    pub item: TypeId,
    pub kind: ListKind,
}

#[derive(Debug)]
pub struct MapType {
    pub value: TypeId,
    pub atomic: bool,
}

#[derive(Debug)]
pub struct StructType {
    /// Full upstream name; empty for anonymous structs of custom resources.
    pub name: String,
    /// In the order of the JSON encoding. Inline structs are flattened here.
    pub fields: Vec<Field>,
    /// JSON name → index in `fields`.
    pub by_name: HashMap<String, u32>,
    pub atomic: bool,
    /// Unknown fields are kept.
    pub preserve_unknown: bool,
    /// JSON form differs from the fields (`JSONSchemaPropsOrBool` and kin): treated as [`Type::Any`] in JSON, by hand in
    /// protobuf.
    pub special: bool,
}

#[derive(Debug)]
pub struct Field {
    pub name: String,
    pub ty: TypeId,
    /// Left out of JSON when empty.
    pub omit_empty: bool,
    pub required: bool,
    pub default: Option<Value>,
    pub patch: PatchRule,
    /// The only values accepted, when closed.
    pub enum_values: Vec<String>,
    pub proto: Option<Proto>,
    /// Declarative rules that hold at v1.37 (`k8s:minimum`, `k8s:format`, …) as `name` → argument text.
    pub rules: Vec<(String, String)>,
    /// Set when the field is served only behind a feature gate that is off by default: it is dropped on write.
    pub disabled_gate: Option<String>,
}

/// How a field stands in protobuf.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proto {
    pub number: u32,
    pub wire: Wire,
    pub cardinality: Cardinality,
    /// Written even when zero or unset.
    pub always: bool,
    /// The nested message an inlined struct is encoded as: its own number, outermost first.
    pub inline: Vec<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    Varint,
    Fixed64,
    Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cardinality {
    Optional,
    Repeated,
    Map,
}

impl Schema {
    pub fn get(&self, id: TypeId) -> &Type {
        &self.types[id.0 as usize]
    }

    pub fn named(&self, name: &str) -> Option<TypeId> {
        self.names.get(name).copied()
    }
}

impl StructType {
    pub fn field(&self, name: &str) -> Option<&Field> {
        self.by_name.get(name).map(|index| &self.fields[*index as usize])
    }
}
