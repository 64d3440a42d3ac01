//! From a protobuf body to the canonical tree. Unknown fields are skipped; there is no strict mode for protobuf.

use base64::Engine;
use serde_json::{Map, Value};

use super::proto::MAGIC;
use super::wire::{Payload, Reader};
use super::{ProtoError, Special, is_custom, is_empty, scalar, special};
use crate::quantity;
use crate::schema::{Cardinality, Field, Scalar, Schema, StructType, Type, TypeId};

/// Messages inside messages; JSON has the same limit.
const DEPTH_MAX: usize = 128;

/// The envelope, taken apart.
struct Unknown<'a> {
    api_version: &'a str,
    kind: &'a str,
    raw: &'a [u8],
}

fn open(body: &[u8]) -> Result<Unknown<'_>, ProtoError> {
    let mut reader = Reader::new(body.strip_prefix(&MAGIC).ok_or(ProtoError::NoEnvelope)?);
    let mut unknown = Unknown { api_version: "", kind: "", raw: &[] };
    while let Some((number, payload)) = reader.next()? {
        match number {
            1 => {
                let mut meta = Reader::new(payload.bytes("TypeMeta")?);
                while let Some((number, payload)) = meta.next()? {
                    match number {
                        1 => unknown.api_version = payload.text("APIVersion")?,
                        2 => unknown.kind = payload.text("Kind")?,
                        _ => {}
                    }
                }
            }
            2 => unknown.raw = payload.bytes("Raw")?,
            _ => {}
        }
    }
    Ok(unknown)
}

pub fn type_meta(body: &[u8]) -> Result<(String, String), ProtoError> {
    let unknown = open(body)?;
    Ok((unknown.api_version.into(), unknown.kind.into()))
}

/// The object in an envelope, its type written into it.
pub fn decode(schema: &Schema, root: TypeId, body: &[u8]) -> Result<Value, ProtoError> {
    let Type::Struct(structure) = schema.get(root) else { return Err(ProtoError::NoForm("the object".into())) };
    if is_custom(schema) {
        return Err(ProtoError::NoForm(structure.name.clone()));
    }
    let unknown = open(body)?;
    let mut object = Map::new();
    message(schema, structure, unknown.raw, &mut Vec::new(), &mut object, 0)?;
    for (key, text) in [("kind", unknown.kind), ("apiVersion", unknown.api_version)] {
        if !text.is_empty() {
            object.insert(key.into(), text.into());
        }
    }
    Ok(Value::Object(object))
}

/// Reads one message into `object`; `inside` is the path of inline messages it stands in.
fn message(
    schema: &Schema,
    structure: &StructType,
    bytes: &[u8],
    inside: &mut Vec<u32>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtoError> {
    if depth > DEPTH_MAX {
        return Err(ProtoError::TooDeep);
    }
    let mut reader = Reader::new(bytes);
    // Fields mostly come in their order, so the search begins after the last one found.
    let mut next = 0;
    while let Some((number, payload)) = reader.next()? {
        let (before, after) = structure.fields.split_at(next);
        let found = after.iter().chain(before).position(|field| {
            field.proto.as_ref().is_some_and(|proto| {
                proto.inline.get(inside.len()).copied().unwrap_or(proto.number) == number
                    && proto.inline.starts_with(inside)
            })
        });
        let Some(found) = found else { continue };
        let index = (next + found) % structure.fields.len();
        let field = &structure.fields[index];
        next = index;
        let inline = field.proto.as_ref().is_some_and(|proto| proto.inline.len() > inside.len());
        if inline {
            inside.push(number);
            message(schema, structure, payload.bytes(&structure.name)?, inside, object, depth + 1)?;
            inside.pop();
        } else {
            self::field(schema, field, payload, object, depth)?;
        }
    }
    Ok(())
}

fn field(
    schema: &Schema,
    field: &Field,
    payload: Payload<'_>,
    object: &mut Map<String, Value>,
    depth: usize,
) -> Result<(), ProtoError> {
    let name = field.name.as_str();
    match (schema.get(field.ty), field.proto.as_ref().map(|proto| proto.cardinality)) {
        (Type::List(list), Some(Cardinality::Repeated)) => {
            let items = object.entry(name).or_insert_with(|| Value::Array(Vec::new()));
            let Value::Array(items) = items else { return Ok(()) };
            match (schema.get(list.item), payload) {
                (Type::Scalar(Scalar::Bool | Scalar::Int32 | Scalar::Int64), Payload::Bytes(packed)) => {
                    let mut reader = Reader::new(packed);
                    while !reader.is_empty() {
                        let value = reader.varint()?;
                        items.push(single(schema, list.item, Payload::Varint(value), name, depth)?);
                    }
                }
                (_, payload) => items.push(single(schema, list.item, payload, name, depth)?),
            }
        }
        (Type::Map(map), _) => {
            let mut reader = Reader::new(payload.bytes(name)?);
            let (mut key, mut value) = (String::new(), None);
            while let Some((number, payload)) = reader.next()? {
                match number {
                    1 => key = payload.text(name)?.into(),
                    2 => value = Some(single(schema, map.value, payload, name, depth)?),
                    _ => {}
                }
            }
            let value = match value {
                Some(value) => value,
                None => single(schema, map.value, Payload::Bytes(&[]), name, depth)?,
            };
            let entries = object.entry(name).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(entries) = entries {
                entries.insert(key, value);
            }
        }
        _ => {
            let value = single(schema, field.ty, payload, name, depth)?;
            let omitted = field.omit_empty && is_empty(schema, field, &value);
            if !value.is_null() && !omitted {
                object.insert(name.into(), value);
            }
        }
    }
    Ok(())
}

fn single(schema: &Schema, ty: TypeId, payload: Payload<'_>, name: &str, depth: usize) -> Result<Value, ProtoError> {
    Ok(match schema.get(ty) {
        Type::Scalar(Scalar::Bool) => Value::Bool(payload.varint(name)? != 0),
        // As Go's generated code: the low 32 bits.
        Type::Scalar(Scalar::Int32) => (payload.varint(name)? as i32).into(),
        Type::Scalar(Scalar::Int64) => payload.varint(name)?.cast_signed().into(),
        Type::Scalar(Scalar::Number) => match payload {
            Payload::Fixed64(bits) => f64::from_bits(bits).into(),
            other => return Err(ProtoError::WireType(name.into(), other.wire())),
        },
        Type::Scalar(Scalar::String) => payload.text(name)?.into(),
        Type::Scalar(Scalar::Bytes) => scalar::BASE64.encode(payload.bytes(name)?).into(),
        Type::Scalar(scalar) => special_scalar(*scalar, payload.bytes(name)?, name)?,
        Type::Any => {
            let mut reader = Reader::new(payload.bytes(name)?);
            let mut value = Value::Null;
            while let Some((number, payload)) = reader.next()? {
                if number == 1 {
                    value = serde_json::from_slice(payload.bytes(name)?)
                        .map_err(|error| ProtoError::Malformed(error.to_string()))?;
                }
            }
            value
        }
        Type::Struct(structure) if structure.special => {
            special_message(schema, structure, payload.bytes(name)?, name, depth)?
        }
        Type::Struct(structure) => {
            let mut object = Map::new();
            message(schema, structure, payload.bytes(name)?, &mut Vec::new(), &mut object, depth + 1)?;
            Value::Object(object)
        }
        Type::List(_) | Type::Map(_) => Value::Null,
    })
}

/// The leaves that are messages.
fn special_scalar(scalar: Scalar, bytes: &[u8], name: &str) -> Result<Value, ProtoError> {
    let mut reader = Reader::new(bytes);
    let (mut first, mut second, mut text) = (None, 0, "");
    while let Some((number, payload)) = reader.next()? {
        match (number, payload) {
            (1, Payload::Bytes(_)) | (3, _) => text = payload.text(name)?,
            (1, _) => first = Some(payload.varint(name)?.cast_signed()),
            (2, _) => second = payload.varint(name)? as i32,
            _ => {}
        }
    }
    Ok(match scalar {
        Scalar::Quantity if text.is_empty() => "0".into(),
        Scalar::Quantity => {
            quantity::canonicalize(text).map_err(|error| ProtoError::Malformed(error.to_string()))?.into()
        }
        Scalar::IntOrString if first == Some(1) => text.into(),
        Scalar::IntOrString => second.into(),
        Scalar::Duration => scalar::go_duration(first.unwrap_or(0)).into(),
        Scalar::Time => first.map_or(Value::Null, |seconds| scalar::format_time(seconds).into()),
        Scalar::MicroTime => first.map_or(Value::Null, |seconds| scalar::format_micro_time(seconds, second).into()),
        _ => Value::Null,
    })
}

fn special_message(
    schema: &Schema,
    structure: &StructType,
    bytes: &[u8],
    name: &str,
    depth: usize,
) -> Result<Value, ProtoError> {
    let kind = special(schema, &structure.name);
    let (mut flag, mut object, mut list, mut texts) = (false, None, Vec::new(), ["", ""]);
    let mut reader = Reader::new(bytes);
    while let Some((number, payload)) = reader.next()? {
        match (&kind, number) {
            (Special::Strings, 1) | (Special::SchemaOrStrings(_), 2) => list.push(payload.text(name)?.into()),
            (Special::SchemaOrBool(_), 1) => flag = payload.varint(name)? != 0,
            (Special::SchemaOrBool(id), 2) | (Special::SchemaOrArray(id) | Special::SchemaOrStrings(id), 1) => {
                object = Some(single(schema, *id, payload, name, depth)?);
            }
            (Special::SchemaOrArray(id), 2) => list.push(single(schema, *id, payload, name, depth)?),
            (Special::GroupVersion, 1 | 2) => texts[number as usize - 1] = payload.text(name)?,
            _ => {}
        }
    }
    Ok(match kind {
        Special::GroupVersion => crate::kind::api_version(texts[0], texts[1]).into(),
        Special::SchemaOrBool(_) => object.unwrap_or(Value::Bool(flag)),
        _ => object.unwrap_or(Value::Array(list)),
    })
}
