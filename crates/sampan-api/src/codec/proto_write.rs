//! From a canonical tree to the protobuf message of its type: fields ascend by number, what is not a pointer is written
//! even when zero, maps are sorted by key.

use serde_json::{Map, Value};
use smallvec::SmallVec;

use super::wire::{BYTES, FIXED64, VARINT, put_bytes, put_message, put_tag, put_varint};
use super::{ProtoError, Special, is_custom, scalar, special};
use crate::schema::{Field, Scalar, Schema, StructType, Type, TypeId};

/// The message of a whole object, without envelope.
pub fn encode(schema: &Schema, root: TypeId, object: &Value) -> Result<Vec<u8>, ProtoError> {
    let Type::Struct(structure) = schema.get(root) else { return Err(ProtoError::NoForm("the object".into())) };
    if is_custom(schema) || !has_form(schema, structure) {
        return Err(ProtoError::NoForm(structure.name.clone()));
    }
    let mut out = Vec::with_capacity(512);
    message(schema, structure, object.as_object(), &mut out)?;
    Ok(out)
}

/// Types that no `.proto` file describes have no numbers.
fn has_form(_: &Schema, structure: &StructType) -> bool {
    structure.fields.iter().any(|field| field.proto.is_some())
}

fn message(
    schema: &Schema,
    structure: &StructType,
    entries: Option<&Map<String, Value>>,
    out: &mut Vec<u8>,
) -> Result<(), ProtoError> {
    let fields: SmallVec<[&Field; 32]> = structure.fields.iter().filter(|field| field.proto.is_some()).collect();
    level(schema, fields, 0, entries, out)
}

/// The fields of one message; those of an inlined struct are one nested message, at `depth` of their path.
fn level(
    schema: &Schema,
    mut fields: SmallVec<[&Field; 32]>,
    depth: usize,
    entries: Option<&Map<String, Value>>,
    out: &mut Vec<u8>,
) -> Result<(), ProtoError> {
    let number = |field: &Field| {
        field.proto.as_ref().map_or(0, |proto| proto.inline.get(depth).copied().unwrap_or(proto.number))
    };
    fields.sort_by_key(|field| number(field));
    let mut rest = fields.as_slice();
    while let Some(first) = rest.first() {
        let at = number(first);
        let count = rest.iter().take_while(|field| number(field) == at).count();
        let (group, tail) = rest.split_at(count);
        rest = tail;
        if first.proto.as_ref().is_some_and(|proto| proto.inline.len() > depth) {
            put_message(out, at, |out| level(schema, group.iter().copied().collect(), depth + 1, entries, out))?;
            continue;
        }
        let value = entries.and_then(|entries| entries.get(&first.name)).filter(|value| !value.is_null());
        field(schema, first, at, value, out)?;
    }
    Ok(())
}

fn field(
    schema: &Schema,
    field: &Field,
    number: u32,
    value: Option<&Value>,
    out: &mut Vec<u8>,
) -> Result<(), ProtoError> {
    let always = field.proto.as_ref().is_some_and(|proto| proto.always);
    match (schema.get(field.ty), value) {
        (Type::List(list), Some(Value::Array(items))) => {
            items.iter().try_for_each(|item| single(schema, list.item, number, Some(item), out))
        }
        (Type::Map(map), Some(Value::Object(entries))) => entries.iter().try_for_each(|(key, value)| {
            put_message(out, number, |out| {
                put_bytes(out, 1, key.as_bytes());
                single(schema, map.value, 2, Some(value), out)
            })
        }),
        (Type::List(_) | Type::Map(_), _) => Ok(()),
        (_, None) if !always => Ok(()),
        (_, value) => single(schema, field.ty, number, value, out),
    }
}

/// One value; absent or of another type than expected means zero.
fn single(
    schema: &Schema,
    ty: TypeId,
    number: u32,
    value: Option<&Value>,
    out: &mut Vec<u8>,
) -> Result<(), ProtoError> {
    let text = value.and_then(Value::as_str);
    match schema.get(ty) {
        Type::Scalar(Scalar::Bool) => {
            put_tag(out, number, VARINT);
            put_varint(out, u64::from(value.and_then(Value::as_bool).unwrap_or(false)));
        }
        Type::Scalar(Scalar::Int32 | Scalar::Int64) => {
            put_tag(out, number, VARINT);
            put_varint(out, value.and_then(Value::as_i64).unwrap_or(0).cast_unsigned());
        }
        Type::Scalar(Scalar::Number) => {
            put_tag(out, number, FIXED64);
            out.extend_from_slice(&value.and_then(Value::as_f64).unwrap_or(0.0).to_le_bytes());
        }
        Type::Scalar(Scalar::String) => put_bytes(out, number, text.unwrap_or_default().as_bytes()),
        Type::Scalar(Scalar::Bytes) => {
            let bytes = scalar::decode_base64(text.unwrap_or_default()).map_err(ProtoError::Malformed)?;
            put_bytes(out, number, &bytes);
        }
        Type::Scalar(Scalar::Quantity) => {
            put_message(out, number, |out| {
                put_bytes(out, 1, text.unwrap_or("0").as_bytes());
                Ok::<(), ProtoError>(())
            })?;
        }
        Type::Scalar(scalar @ (Scalar::Time | Scalar::MicroTime)) => {
            let parts = text.and_then(scalar::time_parts);
            put_message(out, number, |out| {
                if let Some((seconds, nanos)) = parts {
                    let nanos = if *scalar == Scalar::Time { 0 } else { nanos / 1000 * 1000 };
                    put_tag(out, 1, VARINT);
                    put_varint(out, seconds.cast_unsigned());
                    put_tag(out, 2, VARINT);
                    put_varint(out, i64::from(nanos).cast_unsigned());
                }
                Ok::<(), ProtoError>(())
            })?;
        }
        Type::Scalar(Scalar::Duration) => {
            let nanos = text.map_or(Ok(0), scalar::parse_go_duration).map_err(ProtoError::Malformed)?;
            put_message(out, number, |out| {
                put_tag(out, 1, VARINT);
                put_varint(out, nanos.cast_unsigned());
                Ok::<(), ProtoError>(())
            })?;
        }
        Type::Scalar(Scalar::IntOrString) => put_message(out, number, |out| {
            put_tag(out, 1, VARINT);
            put_varint(out, u64::from(text.is_some()));
            put_tag(out, 2, VARINT);
            put_varint(out, value.and_then(Value::as_i64).unwrap_or(0).cast_unsigned());
            put_bytes(out, 3, text.unwrap_or_default().as_bytes());
            Ok::<(), ProtoError>(())
        })?,
        Type::Any => put_message(out, number, |out| {
            if let Some(value) = value {
                let raw = serde_json::to_vec(value).map_err(|error| ProtoError::Malformed(error.to_string()))?;
                put_bytes(out, 1, &raw);
            }
            Ok(())
        })?,
        Type::Struct(structure) if structure.special => {
            put_message(out, number, |out| special_message(schema, structure, value, out))?;
        }
        Type::Struct(structure) => {
            put_message(out, number, |out| message(schema, structure, value.and_then(Value::as_object), out))?;
        }
        // Lists of lists and maps of lists do not occur in the published messages.
        Type::List(_) | Type::Map(_) => put_tag(out, number, BYTES),
    }
    Ok(())
}

fn special_message(
    schema: &Schema,
    structure: &StructType,
    value: Option<&Value>,
    out: &mut Vec<u8>,
) -> Result<(), ProtoError> {
    let strings = |number, out: &mut Vec<u8>| {
        for item in value.and_then(Value::as_array).into_iter().flatten() {
            put_bytes(out, number, item.as_str().unwrap_or_default().as_bytes());
        }
    };
    let is_schema = value.is_some_and(Value::is_object);
    match special(schema, &structure.name) {
        Special::Strings => strings(1, out),
        Special::SchemaOrBool(id) => {
            put_tag(out, 1, VARINT);
            put_varint(out, u64::from(is_schema || value == Some(&Value::Bool(true))));
            if is_schema {
                single(schema, id, 2, value, out)?;
            }
        }
        Special::SchemaOrArray(id) if is_schema => single(schema, id, 1, value, out)?,
        Special::SchemaOrArray(id) => {
            for item in value.and_then(Value::as_array).into_iter().flatten() {
                single(schema, id, 2, Some(item), out)?;
            }
        }
        Special::SchemaOrStrings(id) if is_schema => single(schema, id, 1, value, out)?,
        Special::SchemaOrStrings(_) => strings(2, out),
        Special::GroupVersion => {
            let (group, version) = value.and_then(Value::as_str).map_or(("", ""), crate::kind::split_api_version);
            put_bytes(out, 1, group.as_bytes());
            put_bytes(out, 2, version.as_bytes());
        }
    }
    Ok(())
}
