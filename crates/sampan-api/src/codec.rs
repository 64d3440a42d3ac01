//! Objects in and out: JSON, YAML and protobuf to a pruned, canonical tree, and the tree to canonical bytes.
//!
//! Everything here is generic over a [`Schema`]; no kind has code of its own. Decoding prunes fields the schema does not
//! know and reports them, so that the caller can refuse, warn or ignore as `fieldValidation` asks. Encoding follows the
//! rules by which upstream's Go types marshal, so that bytes are equal, not only meaning.

mod json;
mod proto;
mod proto_read;
mod proto_write;
mod scalar;
pub(crate) mod wire;
mod write;

#[cfg(test)]
mod golden;

use serde_json::Value;

use crate::schema::{Field, Scalar, Schema, Type, TypeId};

pub use json::syntax_error;
pub use proto::{ListMeta, envelope, json_to_proto, proto_list, proto_object, watch_frame};
pub use scalar::{go_duration, parse_go_duration, parse_time};
pub use write::{Encoded, encode, encode_fragment};

/// Why a body can't be read. The text is what upstream's decoder says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Not JSON.
    #[error("{0}")]
    Json(String),
    #[error("error converting YAML to JSON: {0}")]
    Yaml(String),
    /// A value of a type the field can't hold.
    #[error("json: cannot unmarshal {found} into Go {place}of type {expected}")]
    WrongType { found: String, place: String, expected: String },
    /// A string that is not a time, a quantity, base64 …
    #[error("{0}")]
    Malformed(String),
    #[error("{0}")]
    Protobuf(#[from] ProtoError),
}

/// Why bytes are not the protobuf form of an object, or an object has none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtoError {
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    NoEnvelope,
    #[error("unexpected EOF")]
    Truncated,
    #[error("proto: {0}: wiretype {1} for field of another type")]
    WireType(String, u8),
    #[error("proto: illegal wireType {0}")]
    IllegalWireType(u8),
    #[error("proto: integer overflow")]
    Overflow,
    #[error("proto: string field contains invalid UTF-8")]
    Utf8,
    #[error("proto: nesting is too deep")]
    TooDeep,
    #[error("{0} has no protobuf form")]
    NoForm(String),
    /// A text inside is not what its field holds.
    #[error("{0}")]
    Malformed(String),
}

/// The media types of a request body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaType {
    Json,
    Yaml,
    Protobuf,
}

/// A decoded body.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoded {
    /// Canonical scalars, no unknown fields, no nulls but inside free-form values.
    pub object: Value,
    /// `unknown field "spec.foo"`, `duplicate field "spec.x"`, in the order met.
    pub problems: Vec<String>,
}

/// Decodes a body as the type `root`.
pub fn decode(schema: &Schema, root: TypeId, media: MediaType, body: &[u8]) -> Result<Decoded, DecodeError> {
    match media {
        MediaType::Json => json::decode(schema, root, body),
        MediaType::Yaml => json::decode_yaml(schema, root, body),
        MediaType::Protobuf => {
            let object = proto_read::decode(schema, root, body)?;
            Ok(Decoded { object, problems: Vec::new() })
        }
    }
}

/// Prunes and canonicalises a tree that is already in memory (the result of a patch).
pub fn decode_value(schema: &Schema, root: TypeId, value: Value) -> Result<Decoded, DecodeError> {
    json::decode_value(schema, root, value)
}

/// The `apiVersion` and `kind` a body names, without decoding the rest. Either may be empty for protobuf, whose envelope
/// may leave them to the request.
pub fn type_meta(media: MediaType, body: &[u8]) -> Result<(String, String), DecodeError> {
    match media {
        MediaType::Json => json::type_meta(body),
        MediaType::Yaml => json::type_meta_yaml(body),
        MediaType::Protobuf => Ok(proto_read::type_meta(body)?),
    }
}

/// Custom resources keep what they can't type: their own validation words the error.
fn is_custom(schema: &Schema) -> bool {
    schema.names.is_empty() || schema.names.contains_key("")
}

/// Types whose JSON is not an object of their fields.
enum Special {
    /// An array of strings; in protobuf a message around it.
    Strings,
    SchemaOrBool(TypeId),
    SchemaOrArray(TypeId),
    SchemaOrStrings(TypeId),
    /// `group/version`.
    GroupVersion,
}

fn special(schema: &Schema, name: &str) -> Special {
    let (package, name) = name.rsplit_once('.').unwrap_or_default();
    let json_schema = || schema.named(&format!("{package}.JSONSchemaProps"));
    match (name, json_schema()) {
        ("JSONSchemaPropsOrBool", Some(id)) => Special::SchemaOrBool(id),
        ("JSONSchemaPropsOrArray", Some(id)) => Special::SchemaOrArray(id),
        ("JSONSchemaPropsOrStringArray", Some(id)) => Special::SchemaOrStrings(id),
        ("GroupVersion", _) => Special::GroupVersion,
        _ => Special::Strings,
    }
}

/// A field is a pointer in Go: unset and zero differ. Told from protobuf, where pointers are written only when set.
fn is_pointer(schema: &Schema, field: &Field) -> bool {
    field.proto.as_ref().is_some_and(|proto| !proto.always)
        && !matches!(schema.get(field.ty), Type::List(_) | Type::Map(_) | Type::Scalar(Scalar::Bytes))
}

/// What a field that `omitempty` leaves out holds: false, 0, "", an empty list or map. A pointer that is set is never
/// empty, nor is a struct.
pub(crate) fn is_empty(schema: &Schema, field: &Field, value: &Value) -> bool {
    match value {
        Value::Null => true,
        _ if is_pointer(schema, field) => false,
        Value::Bool(value) => !value && matches!(schema.get(field.ty), Type::Scalar(Scalar::Bool)),
        Value::Number(number) => {
            number.as_f64() == Some(0.0)
                && matches!(schema.get(field.ty), Type::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Number))
        }
        Value::String(text) => {
            text.is_empty() && matches!(schema.get(field.ty), Type::Scalar(Scalar::String | Scalar::Bytes))
        }
        Value::Array(items) => items.is_empty() && matches!(schema.get(field.ty), Type::List(_)),
        Value::Object(entries) => entries.is_empty() && matches!(schema.get(field.ty), Type::Map(_)),
    }
}
