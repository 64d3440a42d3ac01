//! Small schemas for tests, from a literal.

use serde_json::Value;

use crate::schema::{Field, ListKind, ListType, MapType, PatchRule, Scalar, Schema, StructType, Type, TypeId};

/// Builds an arena whose type `` is the root. A type is `"string"`, `"int"`, `"bool"`, `"quantity"`, `"any"`,
/// `{"fields": {…}}`, `{"map": T}` or `{"list": T, "kind": "set" | ["key", …]}` (else atomic); `"atomic": true` makes a
/// struct or map atomic. As a field's type it may also have `"default"`, `"merge"`, `"mergeKey"`, `"retainKeys"`,
/// `"replace"`.
pub fn schema(literal: Value) -> (Schema, TypeId) {
    let mut schema = Schema::default();
    let root = build(&mut schema, &literal);
    schema.names.insert(String::new(), root);
    (schema, root)
}

fn build(schema: &mut Schema, literal: &Value) -> TypeId {
    let scalar = |name: &Value| match name.as_str() {
        Some("string") => Type::Scalar(Scalar::String),
        Some("int") => Type::Scalar(Scalar::Int64),
        Some("bool") => Type::Scalar(Scalar::Bool),
        Some("quantity") => Type::Scalar(Scalar::Quantity),
        Some("any") => Type::Any,
        other => panic!("no such type: {other:?}"),
    };
    let atomic = literal["atomic"] == true;
    let built = if let Some(fields) = literal["fields"].as_object() {
        let fields: Vec<Field> = fields.iter().map(|(name, literal)| field(schema, name, literal)).collect();
        let by_name = fields.iter().zip(0..).map(|(field, index)| (field.name.clone(), index)).collect();
        let (name, preserve_unknown, special) = (String::new(), false, false);
        Type::Struct(StructType { name, fields, by_name, atomic, preserve_unknown, special })
    } else if literal["map"] != Value::Null {
        Type::Map(MapType { value: build(schema, &literal["map"]), atomic })
    } else if literal["list"] != Value::Null {
        let kind = match &literal["kind"] {
            Value::Array(keys) => ListKind::Map(keys.iter().filter_map(Value::as_str).map(str::to_owned).collect()),
            Value::String(kind) if kind == "set" => ListKind::Set,
            _ => ListKind::Atomic,
        };
        Type::List(ListType { item: build(schema, &literal["list"]), kind })
    } else if literal.is_object() {
        scalar(&literal["type"])
    } else {
        scalar(literal)
    };
    schema.types.push(built);
    TypeId(u32::try_from(schema.types.len() - 1).expect("a small schema"))
}

fn field(schema: &mut Schema, name: &str, literal: &Value) -> Field {
    Field {
        name: name.into(),
        ty: build(schema, literal),
        omit_empty: true,
        required: false,
        default: literal.get("default").cloned(),
        patch: PatchRule {
            merge: literal["merge"] == true,
            retain_keys: literal["retainKeys"] == true,
            replace: literal["replace"] == true,
            merge_key: literal["mergeKey"].as_str().map(str::to_owned),
        },
        enum_values: Vec::new(),
        proto: None,
        rules: Vec::new(),
        disabled_gate: None,
    }
}

/// `metadata` as apply needs it, and the `spec` given.
pub fn object_schema(spec: Value) -> (Schema, TypeId) {
    schema(serde_json::json!({"fields": {
        "apiVersion": "string", "kind": "string",
        "metadata": {"fields": {
            "name": "string", "namespace": "string", "resourceVersion": "string", "uid": "string",
            "generation": "int", "creationTimestamp": "string",
            "labels": {"map": "string"}, "annotations": {"map": "string"},
            "finalizers": {"list": "string", "kind": "set", "merge": true},
            "managedFields": {"list": "any"},
        }},
        "spec": spec,
        "status": {"fields": {"phase": "string", "observedGeneration": "int"}},
    }}))
}
