//! The canonical JSON of an object: byte for byte what upstream's `encoding/json` makes of the Go type.
//!
//! Keys stand in the order of the type's fields, those of custom resources sorted; `<`, `>` and `&` are escaped. The
//! resourceVersion is left empty: the store fills it in at the recorded offset when it knows it.

use serde_json::{Map, Value};

use super::{is_custom, is_empty, is_pointer, scalar};
use crate::schema::{Field, Scalar, Schema, StructType, Type, TypeId};

/// A canonical object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// JSON without a final newline.
    pub bytes: Vec<u8>,
    /// The offset between the quotes of `"resourceVersion":""`; none for a type without object metadata.
    pub stamp: Option<u32>,
}

/// Encodes a whole object. Values that do not fit the schema are written as they are.
pub fn encode(schema: &Schema, root: TypeId, object: &Value) -> Encoded {
    let mut writer = Writer::new(schema);
    writer.root(root, object);
    Encoded { bytes: writer.out, stamp: writer.stamp }
}

/// Encodes a part of an object (a `spec`, say), by which two of them can be compared.
pub fn encode_fragment(schema: &Schema, ty: TypeId, value: &Value) -> Vec<u8> {
    let mut writer = Writer::new(schema);
    writer.value(ty, value);
    writer.out
}

struct Writer<'s> {
    schema: &'s Schema,
    custom: bool,
    out: Vec<u8>,
    stamp: Option<u32>,
}

impl<'s> Writer<'s> {
    fn new(schema: &'s Schema) -> Self {
        Self { schema, custom: is_custom(schema), out: Vec::with_capacity(1024), stamp: None }
    }

    fn root(&mut self, root: TypeId, object: &Value) {
        let (Type::Struct(structure), Value::Object(entries)) = (self.schema.get(root), object) else {
            return self.value(root, object);
        };
        if self.custom || structure.preserve_unknown {
            self.sorted(Some(structure), entries, Level::Root);
        } else {
            self.structure(structure, Some(entries), Level::Root);
        }
    }

    fn value(&mut self, ty: TypeId, value: &Value) {
        match (self.schema.get(ty), value) {
            (Type::Struct(structure), Value::Object(entries)) if !structure.special => {
                if self.custom || structure.preserve_unknown {
                    self.sorted(Some(structure), entries, Level::Inner);
                } else {
                    self.structure(structure, Some(entries), Level::Inner);
                }
            }
            (Type::Struct(structure), value) if structure.special => self.special(structure, value),
            (Type::List(list), Value::Array(items)) => {
                self.out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    self.comma(index);
                    self.value(list.item, item);
                }
                self.out.push(b']');
            }
            (Type::Map(map), Value::Object(entries)) => {
                self.out.push(b'{');
                for (index, (key, value)) in entries.iter().enumerate() {
                    self.comma(index);
                    self.key(key);
                    self.value(map.value, value);
                }
                self.out.push(b'}');
            }
            (Type::Scalar(Scalar::Number), Value::Number(number)) if !self.custom => {
                let text = number.as_f64().map_or_else(|| number.to_string(), scalar::go_float);
                self.out.extend_from_slice(text.as_bytes());
            }
            (_, value) => self.raw(value),
        }
    }

    /// Schemas inside a CustomResourceDefinition keep their field order.
    fn special(&mut self, structure: &StructType, value: &Value) {
        use super::Special::{SchemaOrArray, SchemaOrBool, SchemaOrStrings};
        match (super::special(self.schema, &structure.name), value) {
            (SchemaOrArray(id) | SchemaOrBool(id) | SchemaOrStrings(id), Value::Object(_)) => self.value(id, value),
            (SchemaOrArray(id), Value::Array(items)) => {
                self.out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    self.comma(index);
                    self.value(id, item);
                }
                self.out.push(b']');
            }
            _ => self.raw(value),
        }
    }

    fn structure(&mut self, structure: &StructType, entries: Option<&Map<String, Value>>, level: Level) {
        self.out.push(b'{');
        let mut written = 0;
        for field in &structure.fields {
            if level == Level::Metadata && field.name == RESOURCE_VERSION {
                self.comma(written);
                self.stamp();
                written += 1;
                continue;
            }
            let value = entries.and_then(|entries| entries.get(&field.name)).filter(|value| !value.is_null());
            let present = match value {
                Some(value) => !(field.omit_empty && is_empty(self.schema, field, value)),
                None => !self.omitted_when_unset(field),
            };
            if !present {
                continue;
            }
            self.comma(written);
            written += 1;
            self.key(&field.name);
            match (value, self.schema.get(field.ty)) {
                (value, Type::Struct(metadata)) if level == Level::Root && is_object_meta(field, metadata) => {
                    self.structure(metadata, value.and_then(Value::as_object), Level::Metadata);
                }
                (Some(value), _) => self.value(field.ty, value),
                (None, _) => self.zero(field),
            }
        }
        self.out.push(b'}');
    }

    /// `omitempty` never leaves out a struct, and times and quantities are structs.
    fn omitted_when_unset(&self, field: &Field) -> bool {
        if !field.omit_empty {
            return false;
        }
        let is_go_struct = match self.schema.get(field.ty) {
            Type::Struct(structure) => !structure.special,
            Type::Any => true,
            Type::Scalar(scalar) => matches!(
                scalar,
                Scalar::Time | Scalar::MicroTime | Scalar::Quantity | Scalar::IntOrString | Scalar::Duration
            ),
            Type::List(_) | Type::Map(_) => false,
        };
        !is_go_struct || is_pointer(self.schema, field) || field.rules.iter().any(|(name, _)| name == "omitzero")
    }

    fn zero(&mut self, field: &Field) {
        if is_pointer(self.schema, field) {
            self.out.extend_from_slice(b"null");
            return;
        }
        let text: &[u8] = match self.schema.get(field.ty) {
            Type::Struct(structure) if !structure.special => return self.structure(structure, None, Level::Inner),
            Type::Scalar(Scalar::Bool) => b"false",
            Type::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Number | Scalar::IntOrString) => b"0",
            Type::Scalar(Scalar::String) => b"\"\"",
            Type::Scalar(Scalar::Quantity) => b"\"0\"",
            Type::Scalar(Scalar::Duration) => b"\"0s\"",
            _ => b"null",
        };
        self.out.extend_from_slice(text);
    }

    /// Custom resources are maps upstream, so their keys are sorted; the map already is.
    fn sorted(&mut self, structure: Option<&StructType>, entries: &Map<String, Value>, level: Level) {
        self.out.push(b'{');
        let mut written = 0;
        let mut stamped = level != Level::Metadata;
        for (key, value) in entries {
            if !stamped && key.as_str() >= RESOURCE_VERSION {
                self.comma(written);
                self.stamp();
                written += 1;
                stamped = true;
            }
            if level == Level::Metadata && key == RESOURCE_VERSION {
                continue;
            }
            self.comma(written);
            written += 1;
            self.key(key);
            let field = structure.and_then(|structure| structure.field(key));
            match (value, field.map(|field| (field, self.schema.get(field.ty)))) {
                (Value::Object(metadata), ty) if level == Level::Root && key == METADATA => {
                    let inner = match ty {
                        Some((_, Type::Struct(inner))) => Some(inner),
                        _ => None,
                    };
                    self.sorted(inner, metadata, Level::Metadata);
                }
                (value, Some((field, _))) => self.value(field.ty, value),
                (value, None) => self.raw(value),
            }
        }
        if !stamped {
            self.comma(written);
            self.stamp();
        }
        self.out.push(b'}');
    }

    fn stamp(&mut self) {
        self.key(RESOURCE_VERSION);
        self.out.push(b'"');
        self.stamp = u32::try_from(self.out.len()).ok();
        self.out.push(b'"');
    }

    fn comma(&mut self, written: usize) {
        if written > 0 {
            self.out.push(b',');
        }
    }

    fn key(&mut self, key: &str) {
        self.string(key);
        self.out.push(b':');
    }

    fn raw(&mut self, value: &Value) {
        match value {
            Value::Null => self.out.extend_from_slice(b"null"),
            Value::Bool(value) => self.out.extend_from_slice(if *value { b"true" } else { b"false" }),
            Value::Number(number) => self.out.extend_from_slice(number.to_string().as_bytes()),
            Value::String(text) => self.string(text),
            Value::Array(items) => {
                self.out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    self.comma(index);
                    self.raw(item);
                }
                self.out.push(b']');
            }
            Value::Object(entries) => {
                self.out.push(b'{');
                for (index, (key, value)) in entries.iter().enumerate() {
                    self.comma(index);
                    self.key(key);
                    self.raw(value);
                }
                self.out.push(b'}');
            }
        }
    }

    /// As Go writes strings with HTML escaping on.
    fn string(&mut self, text: &str) {
        self.out.push(b'"');
        let bytes = text.as_bytes();
        let mut start = 0;
        for (index, byte) in bytes.iter().enumerate() {
            let escape: &[u8] = match byte {
                b'"' => b"\\\"",
                b'\\' => b"\\\\",
                b'\n' => b"\\n",
                b'\r' => b"\\r",
                b'\t' => b"\\t",
                0x08 => b"\\b",
                0x0c => b"\\f",
                b'<' => b"\\u003c",
                b'>' => b"\\u003e",
                b'&' => b"\\u0026",
                // U+2028 and U+2029, which JavaScript takes for line ends.
                0xe2 if bytes.get(index + 1) == Some(&0x80) => match bytes.get(index + 2) {
                    Some(0xa8) => b"\\u2028",
                    Some(0xa9) => b"\\u2029",
                    _ => continue,
                },
                0..0x20 => {
                    self.out.extend_from_slice(&bytes[start..index]);
                    self.out.extend_from_slice(format!("\\u{byte:04x}").as_bytes());
                    start = index + 1;
                    continue;
                }
                _ => continue,
            };
            self.out.extend_from_slice(&bytes[start..index]);
            self.out.extend_from_slice(escape);
            start = index + if *byte == 0xe2 { 3 } else { 1 };
        }
        self.out.extend_from_slice(&bytes[start..]);
        self.out.push(b'"');
    }
}

const METADATA: &str = "metadata";
const RESOURCE_VERSION: &str = "resourceVersion";

#[derive(Clone, Copy, PartialEq, Eq)]
enum Level {
    Root,
    Metadata,
    Inner,
}

fn is_object_meta(field: &Field, structure: &StructType) -> bool {
    field.name == METADATA && structure.field("ownerReferences").is_some()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::table;

    fn written(name: &str, object: &Value) -> (String, Option<u32>) {
        let schema = table::load([name]);
        let encoded = encode(&schema, schema.named(name).unwrap(), object);
        (String::from_utf8(encoded.bytes).unwrap(), encoded.stamp)
    }

    #[test]
    fn a_sparse_object_is_completed_as_go_does() {
        let object = json!({"spec": {"containers": [{"name": "a<b"}], "hostNetwork": false, "priority": 0}, "kind": "Pod",
            "metadata": {"name": "a", "resourceVersion": "7"}, "apiVersion": "v1"});
        let (text, stamp) = written("io.k8s.api.core.v1.Pod", &object);
        assert_eq!(
            text,
            r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","resourceVersion":""},"spec":{"containers":[{"name":"a\u003cb","resources":{}}],"priority":0},"status":{}}"#
        );
        assert_eq!(&text[stamp.unwrap() as usize..][..1], "\"");
        assert!(text[..stamp.unwrap() as usize].ends_with(r#""resourceVersion":""#));
    }

    #[test]
    fn what_omitempty_does_not_cover_is_written() {
        let role = written("io.k8s.api.rbac.v1.Role", &json!({"metadata": {"name": "r"}})).0;
        assert_eq!(role, r#"{"metadata":{"name":"r","resourceVersion":""},"rules":null}"#);
        let event = written("io.k8s.api.core.v1.Event", &json!({})).0;
        assert!(event.contains(r#""firstTimestamp":null,"lastTimestamp":null"#));
        assert!(event.contains(r#""eventTime":null"#) && !event.contains("creationTimestamp"));
    }

    #[test]
    fn custom_resources_are_sorted_and_stamped() {
        let (schema, root) = crate::testing::schema(json!({"fields": {"spec": {"fields": {"b": "int", "a": "int"}}}}));
        let object = json!({"spec": {"b": 1, "a": 2}, "metadata": {"uid": "u", "name": "n"}, "kind": "K"});
        let encoded = encode(&schema, root, &object);
        let text = String::from_utf8(encoded.bytes).unwrap();
        assert_eq!(text, r#"{"kind":"K","metadata":{"name":"n","resourceVersion":"","uid":"u"},"spec":{"a":2,"b":1}}"#);
        assert!(text[..encoded.stamp.unwrap() as usize].ends_with(r#""resourceVersion":""#));
    }

    #[test]
    fn strings_are_escaped_as_go_does() {
        let map = json!({"data": {"k": "\u{2028}\u{1}\u{8}\n\"\\&>é"}});
        let text = written("io.k8s.api.core.v1.ConfigMap", &map).0;
        assert!(text.contains("\"data\":{\"k\":\"\\u2028\\u0001\\b\\n\\\"\\\\\\u0026\\u003eé\"}"), "{text}");
    }
}
