//! One pass from JSON or YAML text to the canonical tree: types are checked, unknown fields pruned and reported,
//! duplicates reported, scalars brought into their canonical form.
//!
//! The rules are those of `sigs.k8s.io/json`: names are case-sensitive, null means unset, the last of two equal keys wins.
//! Custom resources keep values of the wrong type, because their own validation words those errors.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{DecodeError, Decoded, Special, is_custom, scalar, special};
use crate::quantity;
use crate::schema::{Scalar, Schema, StructType, Type, TypeId, table};

pub fn decode(schema: &Schema, root: TypeId, body: &[u8]) -> Result<Decoded, DecodeError> {
    let mut walk = Walk::new(schema);
    let mut reader = serde_json::Deserializer::from_slice(body);
    let result = Seed { walk: &mut walk, ty: root }.deserialize(&mut reader).and_then(|object| {
        reader.end()?;
        Ok(object)
    });
    let object = walk.outcome(result, |error| DecodeError::Json(syntax_error(&error, body)))?;
    Ok(walk.finish(object))
}

pub fn decode_value(schema: &Schema, root: TypeId, value: Value) -> Result<Decoded, DecodeError> {
    let mut walk = Walk::new(schema);
    let result = Seed { walk: &mut walk, ty: root }.deserialize(value);
    let object = walk.outcome(result, |error| DecodeError::Json(error.to_string()))?;
    Ok(walk.finish(object))
}

pub fn decode_yaml(schema: &Schema, root: TypeId, body: &[u8]) -> Result<Decoded, DecodeError> {
    let mut walk = Walk::new(schema);
    let result = serde_saphyr::with_deserializer_from_slice_with_options(body, yaml_options(), |reader| {
        Seed { walk: &mut walk, ty: root }.deserialize(reader)
    });
    let object = walk.outcome(result, |error| DecodeError::Yaml(error.to_string()))?;
    Ok(walk.finish(object))
}

fn yaml_options() -> serde_saphyr::Options {
    serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::PassThrough, with_snippet: false }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct TypeMeta {
    api_version: String,
    kind: String,
}

pub fn type_meta(body: &[u8]) -> Result<(String, String), DecodeError> {
    let meta: Option<TypeMeta> =
        serde_json::from_slice(body).map_err(|error| DecodeError::Json(syntax_error(&error, body)))?;
    let meta = meta.unwrap_or_default();
    Ok((meta.api_version, meta.kind))
}

pub fn type_meta_yaml(body: &[u8]) -> Result<(String, String), DecodeError> {
    let meta: Option<TypeMeta> = serde_saphyr::from_slice_with_options(body, yaml_options())
        .map_err(|error| DecodeError::Yaml(error.to_string()))?;
    let meta = meta.unwrap_or_default();
    Ok((meta.api_version, meta.kind))
}

/// What is wrong with a JSON text, in the words of Go's decoder.
pub fn syntax_error(error: &serde_json::Error, body: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    let start: usize =
        body.split_inclusive(|byte| *byte == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum();
    let (before, found) = body.split_at((start + error.column().saturating_sub(1)).min(body.len()));
    match String::from_utf8_lossy(found).chars().next() {
        Some(c) if error.is_syntax() => format!("invalid character {} {}", quoted(c), expectation(before)),
        _ => error.to_string(),
    }
}

fn quoted(c: char) -> String {
    if c == '"' { "'\"'".into() } else { format!("{c:?}") }
}

/// What may follow a piece of JSON that has no fault so far.
fn expectation(before: &[u8]) -> &'static str {
    let mut open = Vec::new();
    // The last byte outside of strings that means something, and whether the last string is a key.
    let (mut last, mut key) = (None, false);
    let mut bytes = before.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' => continue,
            b'{' | b'[' => open.push(byte),
            b'}' | b']' => drop(open.pop()),
            b'"' => {
                key = open.last() == Some(&b'{') && matches!(last, Some(b'{' | b','));
                while let Some(inside) = bytes.next() {
                    match inside {
                        b'"' => break,
                        b'\\' => drop(bytes.next()),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
        last = Some(byte);
    }
    match (open.last(), last) {
        (None, Some(_)) => "after top-level value",
        (Some(b'{'), Some(b'{' | b',')) => "looking for beginning of object key string",
        (Some(b'{'), Some(b'"')) if key => "after object key",
        (None, None) | (Some(_), Some(b':' | b'[' | b',')) => "looking for beginning of value",
        (Some(b'{'), _) => "after object key:value pair",
        _ => "after array element",
    }
}

/// What is carried through one decoding.
struct Walk<'s> {
    schema: &'s Schema,
    custom: bool,
    /// The path as problems show it: `spec.containers[0].name`.
    path: String,
    problems: Vec<String>,
    /// The structs and fields being read, outermost first.
    frames: Vec<(TypeId, u32)>,
    /// Lists and maps around the value since the innermost field.
    nested: usize,
    /// Inside types with a decoder of their own, which is not strict.
    quiet: usize,
    error: Option<DecodeError>,
}

impl<'s> Walk<'s> {
    fn new(schema: &'s Schema) -> Self {
        Self {
            schema,
            custom: is_custom(schema),
            path: String::new(),
            problems: Vec::new(),
            frames: Vec::new(),
            nested: 0,
            quiet: 0,
            error: None,
        }
    }

    /// The typed error that stopped the reader, else the reader's own.
    fn outcome<T, E>(&mut self, result: Result<T, E>, wrap: impl FnOnce(E) -> DecodeError) -> Result<T, DecodeError> {
        result.map_err(|error| self.error.take().unwrap_or_else(|| wrap(error)))
    }

    fn finish(self, object: Value) -> Decoded {
        Decoded { object, problems: self.problems }
    }

    fn fail<E: serde::de::Error>(&mut self, error: DecodeError) -> E {
        self.error = Some(error);
        E::custom("")
    }

    fn malformed<E: serde::de::Error>(&mut self, text: impl fmt::Display) -> E {
        self.fail(DecodeError::Malformed(text.to_string()))
    }

    fn wrong_type(&self, ty: TypeId, found: String) -> DecodeError {
        let own_name = |ty: &Type| match ty {
            Type::Struct(structure) => go_short(&structure.name),
            _ => "v1.Object".into(),
        };
        let Some((structure, field)) = self.innermost() else {
            let expected = own_name(self.schema.get(ty));
            return DecodeError::WrongType { found, place: "value ".into(), expected };
        };
        let mut fields: Vec<&str> = Vec::with_capacity(self.frames.len());
        for (owner, index) in &self.frames {
            if let Type::Struct(owner) = self.schema.get(*owner) {
                fields.extend(owner.fields.get(*index as usize).map(|field| field.name.as_str()));
            }
        }
        let struct_name = structure.name.rsplit('.').next().unwrap_or_default();
        let place = format!("struct field {struct_name}.{} ", fields.join("."));
        let mut expected = table::go_type(&structure.name, field).unwrap_or_default();
        for _ in 0..self.nested {
            expected = element_of(&expected);
        }
        DecodeError::WrongType { found, place, expected }
    }

    fn innermost(&self) -> Option<(&'s StructType, &'s str)> {
        let (owner, index) = self.frames.last()?;
        let Type::Struct(owner) = self.schema.get(*owner) else { return None };
        Some((owner, owner.fields.get(*index as usize)?.name.as_str()))
    }

    fn problem(&mut self, what: &str, key: &str) {
        if self.quiet == 0 {
            let dot = if self.path.is_empty() { "" } else { "." };
            self.problems.push(format!("{what} field \"{}{dot}{key}\"", self.path));
        }
    }

    /// Reads a child with `segment` added to the path.
    fn within<T>(&mut self, segment: fmt::Arguments<'_>, read: impl FnOnce(&mut Self) -> T) -> T {
        let length = self.path.len();
        // Writing to a String can't fail.
        let _ = fmt::Write::write_fmt(&mut self.path, segment);
        let result = read(self);
        self.path.truncate(length);
        result
    }

    fn within_key<T>(&mut self, key: &str, read: impl FnOnce(&mut Self) -> T) -> T {
        let dot = if self.path.is_empty() { "" } else { "." };
        self.within(format_args!("{dot}{key}"), read)
    }

    /// What null means where unset is impossible: an element of a list, a value of a map.
    fn zero(&self, ty: TypeId) -> Value {
        match self.schema.get(ty) {
            _ if self.custom => Value::Null,
            Type::Scalar(Scalar::Bool) => Value::Bool(false),
            Type::Scalar(Scalar::Int32 | Scalar::Int64 | Scalar::Number | Scalar::IntOrString) => 0.into(),
            Type::Scalar(Scalar::String | Scalar::Bytes) => "".into(),
            Type::Scalar(Scalar::Quantity) => "0".into(),
            Type::Scalar(Scalar::Duration) => "0s".into(),
            Type::Struct(structure) if !structure.special => Value::Object(Map::new()),
            Type::Map(_) => Value::Object(Map::new()),
            Type::List(_) => Value::Array(Vec::new()),
            Type::Scalar(Scalar::Time | Scalar::MicroTime) | Type::Struct(_) | Type::Any => Value::Null,
        }
    }
}

/// `v1.Deployment` for `io.k8s.api.apps.v1.Deployment`.
fn go_short(name: &str) -> String {
    let mut segments: Vec<&str> = name.rsplitn(3, '.').take(2).collect();
    segments.reverse();
    segments.join(".")
}

/// The element of a Go list or map type.
fn element_of(go: &str) -> String {
    if let Some(item) = go.strip_prefix("[]") {
        return item.into();
    }
    match go.strip_prefix("map[").and_then(|rest| rest.split_once(']')) {
        Some((_, value)) => value.into(),
        // Named list types hide their element (`v1.ResourceList`).
        None if go.ends_with("ResourceList") => "resource.Quantity".into(),
        None => go.into(),
    }
}

/// Reads one value as `ty`. Null is returned as null; the parent decides what it means.
struct Seed<'a, 's> {
    walk: &'a mut Walk<'s>,
    ty: TypeId,
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        match self.walk.schema.get(self.ty) {
            Type::Any => Value::deserialize(reader),
            _ => reader.deserialize_any(self),
        }
    }
}

impl Seed<'_, '_> {
    fn ty(&self) -> &Type {
        self.walk.schema.get(self.ty)
    }

    /// The value as it is for custom resources, an error for all others.
    fn mismatch<E: serde::de::Error>(self, found: impl Into<String>, value: Value) -> Result<Value, E> {
        if self.walk.custom {
            return Ok(value);
        }
        let error = self.walk.wrong_type(self.ty, found.into());
        Err(self.walk.fail(error))
    }

    fn number<E: serde::de::Error>(self, number: Number) -> Result<Value, E> {
        let Type::Scalar(scalar) = self.ty() else { return self.mismatch("number", Value::Number(number)) };
        match scalar {
            Scalar::Number => Ok(Value::Number(number)),
            Scalar::Int64 if number.is_i64() => Ok(Value::Number(number)),
            Scalar::Int32 | Scalar::IntOrString
                if number.as_i64().is_some_and(|number| i32::try_from(number).is_ok()) =>
            {
                Ok(Value::Number(number))
            }
            Scalar::Int32 | Scalar::Int64 => self.mismatch(format!("number {number}"), Value::Number(number)),
            Scalar::IntOrString if !self.walk.custom => {
                let (found, place, expected) = (format!("number {number}"), "value ".into(), "int32".into());
                Err(self.walk.fail(DecodeError::WrongType { found, place, expected }))
            }
            Scalar::Quantity => self.quantity(&number.to_string(), Value::Number(number)),
            _ => self.mismatch("number", Value::Number(number)),
        }
    }

    fn quantity<E: serde::de::Error>(self, text: &str, original: Value) -> Result<Value, E> {
        if self.walk.custom {
            return Ok(original);
        }
        quantity::canonicalize(text).map(Value::String).map_err(|error| self.walk.malformed(error))
    }

    fn text<E: serde::de::Error>(self, text: Cow<'_, str>) -> Result<Value, E> {
        let keep = |text: Cow<'_, str>| Value::String(text.into_owned());
        if self.walk.custom {
            return Ok(keep(text));
        }
        let canonical = match self.ty() {
            Type::Scalar(Scalar::String | Scalar::IntOrString) => return Ok(keep(text)),
            Type::Scalar(Scalar::Quantity) => return self.quantity(&text, Value::Null),
            Type::Scalar(Scalar::Bytes) => scalar::canonical_base64(&text).map(Value::String),
            Type::Scalar(Scalar::Time) => {
                scalar::canonical_time(&text).map(|time| time.map_or(Value::Null, Value::String))
            }
            Type::Scalar(Scalar::MicroTime) => {
                scalar::canonical_micro_time(&text).map(|time| time.map_or(Value::Null, Value::String))
            }
            Type::Scalar(Scalar::Duration) => {
                scalar::parse_go_duration(&text).map(|nanos| scalar::go_duration(nanos).into())
            }
            Type::Struct(structure)
                if structure.special && matches!(special(self.walk.schema, &structure.name), Special::GroupVersion) =>
            {
                return Ok(keep(text));
            }
            _ => return self.mismatch("string", keep(text)),
        };
        canonical.map_err(|error| self.walk.malformed(error))
    }

    fn structure<'de, A: MapAccess<'de>>(self, structure: &StructType, mut entries: A) -> Result<Value, A::Error> {
        let Self { walk, ty } = self;
        let mut object = Map::new();
        let mut seen = vec![false; structure.fields.len()];
        let outer = std::mem::take(&mut walk.nested);
        while let Some(key) = entries.next_key_seed(FieldKey(structure))? {
            let (index, field) = match key {
                Key::Known(index) => (index, &structure.fields[index as usize]),
                Key::Unknown(name) if structure.preserve_unknown => {
                    let value: Value = entries.next_value()?;
                    object.insert(name, value);
                    continue;
                }
                Key::Unknown(name) => {
                    walk.problem("unknown", &name);
                    entries.next_value::<IgnoredAny>()?;
                    continue;
                }
            };
            if std::mem::replace(&mut seen[index as usize], true) {
                walk.problem("duplicate", &field.name);
            }
            walk.frames.push((ty, index));
            let value = walk.within_key(&field.name, |walk| entries.next_value_seed(Seed { walk, ty: field.ty }))?;
            walk.frames.pop();
            // A later null leaves an earlier value alone, as in Go.
            if !value.is_null() || walk.custom {
                object.insert(field.name.clone(), value);
            }
        }
        walk.nested = outer;
        Ok(Value::Object(object))
    }
}

enum Key {
    Known(u32),
    Unknown(String),
}

/// Resolves a key without allocating for known fields.
struct FieldKey<'s>(&'s StructType);

impl<'de> DeserializeSeed<'de> for FieldKey<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<Key, D::Error> {
        reader.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for FieldKey<'_> {
    type Value = Key;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Key, E> {
        Ok(self.0.by_name.get(key).map_or_else(|| Key::Unknown(key.to_owned()), |index| Key::Known(*index)))
    }
}

impl<'de> Visitor<'de> for Seed<'_, '_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Value, E> {
        match self.ty() {
            Type::Scalar(Scalar::Bool) => Ok(Value::Bool(value)),
            Type::Struct(structure)
                if structure.special
                    && matches!(special(self.walk.schema, &structure.name), Special::SchemaOrBool(_)) =>
            {
                Ok(Value::Bool(value))
            }
            _ => self.mismatch("bool", Value::Bool(value)),
        }
    }

    fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<Value, E> {
        self.number(value.into())
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<Value, E> {
        self.number(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        match Number::from_f64(value) {
            Some(number) => self.number(number),
            None => self.mismatch("number", Value::Null),
        }
    }

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.text(Cow::Borrowed(value))
    }

    fn visit_string<E: serde::de::Error>(self, value: String) -> Result<Value, E> {
        self.text(Cow::Owned(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, reader: D) -> Result<Value, D::Error> {
        self.deserialize(reader)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let schema = self.walk.schema;
        let item = match schema.get(self.ty) {
            Type::List(list) => Some(list.item),
            Type::Struct(structure) if structure.special => match special(schema, &structure.name) {
                Special::Strings | Special::SchemaOrStrings(_) => None,
                Special::SchemaOrArray(item) => Some(item),
                _ => return self.mismatch("array", Value::Null),
            },
            _ if self.walk.custom => {
                return Ok(Value::Array(
                    std::iter::from_fn(|| items.next_element().transpose()).collect::<Result<_, _>>()?,
                ));
            }
            _ => return self.mismatch("array", Value::Null),
        };
        let walk = self.walk;
        let Some(item) = item else {
            let strings: Vec<Option<String>> = std::iter::from_fn(|| items.next_element().transpose())
                .collect::<Result<_, _>>()
                .map_err(|_: A::Error| {
                    walk.malformed::<A::Error>("json: cannot unmarshal value into Go value of type string")
                })?;
            return Ok(strings.into_iter().map(Option::unwrap_or_default).collect());
        };
        let quiet = usize::from(matches!(schema.get(self.ty), Type::Struct(_)));
        walk.quiet += quiet;
        walk.nested += 1;
        let mut list = Vec::new();
        loop {
            let next =
                walk.within(format_args!("[{}]", list.len()), |walk| items.next_element_seed(Seed { walk, ty: item }))?;
            match next {
                Some(Value::Null) => list.push(walk.zero(item)),
                Some(value) => list.push(value),
                None => break,
            }
        }
        walk.nested -= 1;
        walk.quiet -= quiet;
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let schema = self.walk.schema;
        match schema.get(self.ty) {
            Type::Struct(structure) if structure.special => {
                let inner = match special(schema, &structure.name) {
                    Special::SchemaOrBool(id) | Special::SchemaOrArray(id) | Special::SchemaOrStrings(id) => id,
                    Special::Strings | Special::GroupVersion => return self.mismatch("object", Value::Null),
                };
                let Type::Struct(json_schema) = schema.get(inner) else {
                    return Err(A::Error::custom("JSONSchemaProps is a struct"));
                };
                self.walk.quiet += 1;
                let value = Seed { walk: &mut *self.walk, ty: inner }.structure(json_schema, entries)?;
                self.walk.quiet -= 1;
                Ok(value)
            }
            Type::Struct(structure) => self.structure(structure, entries),
            Type::Map(map) => {
                let walk = self.walk;
                let mut object = Map::new();
                walk.nested += 1;
                while let Some(key) = entries.next_key::<String>()? {
                    let value = walk.within_key(&key, |walk| entries.next_value_seed(Seed { walk, ty: map.value }))?;
                    let value = if value.is_null() { walk.zero(map.value) } else { value };
                    if object.contains_key(&key) {
                        walk.problem("duplicate", &key);
                    }
                    object.insert(key, value);
                }
                walk.nested -= 1;
                Ok(Value::Object(object))
            }
            _ if self.walk.custom => {
                let mut object = Map::new();
                while let Some((key, value)) = entries.next_entry()? {
                    object.insert(key, value);
                }
                Ok(Value::Object(object))
            }
            _ => self.mismatch("object", Value::Null),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{MediaType, decode, type_meta};
    use super::*;

    fn decoded(name: &str, body: &str) -> Result<Decoded, String> {
        let schema = table::load([name]);
        let root = schema.named(name).unwrap();
        decode(&schema, root, MediaType::Json, body.as_bytes()).map_err(|error| error.to_string())
    }

    fn error(name: &str, body: &str) -> String {
        decoded(name, body).unwrap_err()
    }

    #[test]
    fn broken_json_is_worded_as_by_go() {
        for (text, message) in [
            ("{bad", "'b' looking for beginning of object key string"),
            (r#"{"a":1,}"#, "'}' looking for beginning of object key string"),
            (r#"{"a" 1}"#, "'1' after object key"),
            (r#"{"a,{":1 "b":2}"#, r#"'"' after object key:value pair"#),
            (r#"{"a":}"#, "'}' looking for beginning of value"),
            ("[1 2]", "'2' after array element"),
            ("\n [x]", "'x' looking for beginning of value"),
            ("{} {}", "'{' after top-level value"),
        ] {
            let error = serde_json::from_str::<Value>(text).expect_err(text);
            assert_eq!(syntax_error(&error, text.as_bytes()), format!("invalid character {message}"), "{text}");
        }
    }

    const DEPLOYMENT: &str = "io.k8s.api.apps.v1.Deployment";
    const POD: &str = "io.k8s.api.core.v1.Pod";

    #[test]
    fn wrong_types_are_worded_as_upstream_does() {
        let prefix = "json: cannot unmarshal";
        for (name, body, message) in [
            (
                DEPLOYMENT,
                r#"{"spec":{"replicas":"3"}}"#,
                "string into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                DEPLOYMENT,
                r#"{"spec":{"replicas":1.5}}"#,
                "number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                DEPLOYMENT,
                r#"{"spec":{"replicas":3000000000}}"#,
                "number 3000000000 into Go struct field DeploymentSpec.spec.replicas of type int32",
            ),
            (
                POD,
                r#"{"metadata":{"labels":{"a":1}}}"#,
                "number into Go struct field ObjectMeta.metadata.labels of type string",
            ),
            (
                POD,
                r#"{"spec":{"containers":{}}}"#,
                "object into Go struct field PodSpec.spec.containers of type []v1.Container",
            ),
            (
                POD,
                r#"{"spec":{"containers":["a"]}}"#,
                "string into Go struct field PodSpec.spec.containers of type v1.Container",
            ),
            (
                POD,
                r#"{"spec":{"restartPolicy":true}}"#,
                "bool into Go struct field PodSpec.spec.restartPolicy of type v1.RestartPolicy",
            ),
            (POD, "[]", "array into Go value of type v1.Pod"),
        ] {
            assert_eq!(error(name, body), format!("{prefix} {message}"));
        }
    }

    #[test]
    fn malformed_texts_are_worded_as_upstream_does() {
        assert_eq!(
            error(POD, r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"x"}}}]}}"#),
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
        );
        assert_eq!(error("io.k8s.api.core.v1.Secret", r#"{"data":{"a":"x"}}"#), "illegal base64 data at input byte 0");
        assert_eq!(error(POD, "{"), "unexpected end of JSON input");
    }

    #[test]
    fn unknown_and_duplicate_fields_are_pruned_and_reported() {
        let body = r#"{"spec":{"foo":1,"containers":[{"name":"a","bar":{"x":1},"name":"b"}]},"metadata":{"labels":{"a":"1","a":"2"}},"extra":[]}"#;
        let found = decoded(POD, body).unwrap();
        assert_eq!(
            found.problems,
            [
                r#"unknown field "spec.foo""#,
                r#"unknown field "spec.containers[0].bar""#,
                r#"duplicate field "spec.containers[0].name""#,
                r#"duplicate field "metadata.labels.a""#,
                r#"unknown field "extra""#,
            ]
        );
        assert_eq!(found.object, json!({"spec": {"containers": [{"name": "b"}]}, "metadata": {"labels": {"a": "2"}}}));
    }

    #[test]
    fn null_is_unset_and_names_are_case_sensitive() {
        let found =
            decoded(POD, r#"{"spec":null,"Metadata":{},"metadata":{"creationTimestamp":null,"labels":{"a":null}}}"#);
        let found = found.unwrap();
        assert_eq!(found.object, json!({"metadata": {"labels": {"a": ""}}}));
        assert_eq!(found.problems, [r#"unknown field "Metadata""#]);
    }

    #[test]
    fn scalars_become_canonical() {
        let body = r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":0.5,"memory":"1024Mi"}}}]},
            "metadata":{"creationTimestamp":"2026-11-23T21:30:00+01:00"}}"#;
        let object = decoded(POD, body).unwrap().object;
        assert_eq!(object["spec"]["containers"][0]["resources"]["limits"], json!({"cpu": "500m", "memory": "1Gi"}));
        assert_eq!(object["metadata"]["creationTimestamp"], "2026-11-23T20:30:00Z");
    }

    #[test]
    fn schemas_in_a_definition_may_take_other_shapes() {
        let name = "io.k8s.apiextensions-apiserver.pkg.apis.apiextensions.v1.CustomResourceDefinition";
        let schema = json!({"type": "object", "additionalProperties": false, "properties": {
            "a": {"type": "array", "items": {"type": "string", "nonsense": 1}}, "b": {"default": {"x": [1]}}}});
        let body = json!({"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}});
        let found = decoded(name, &body.to_string()).unwrap();
        let kept = &found.object["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        assert_eq!(kept["additionalProperties"], json!(false));
        assert_eq!(kept["properties"]["a"]["items"], json!({"type": "string"}));
        assert_eq!(kept["properties"]["b"]["default"], json!({"x": [1]}));
    }

    #[test]
    fn yaml_reads_as_json_does() {
        let schema = table::load([DEPLOYMENT]);
        let root = schema.named(DEPLOYMENT).unwrap();
        let body = b"apiVersion: apps/v1\nkind: Deployment\nspec:\n  replicas: 3\n  nonsense: 1\n";
        let found = decode(&schema, root, MediaType::Yaml, body).unwrap();
        assert_eq!(found.object["spec"], json!({"replicas": 3}));
        assert_eq!(found.problems, [r#"unknown field "spec.nonsense""#]);
        assert_eq!(type_meta(MediaType::Yaml, body), Ok(("apps/v1".into(), "Deployment".into())));
        let wrong = decode(&schema, root, MediaType::Yaml, b"spec: {replicas: x}").unwrap_err();
        assert_eq!(
            wrong.to_string(),
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32"
        );
    }

    #[test]
    fn custom_resources_keep_what_has_the_wrong_type() {
        let (schema, root) = crate::testing::schema(json!({"fields": {"spec": {"fields": {"n": "int"}}}}));
        let body = br#"{"spec":{"n":"x","other":1,"n":null}}"#;
        let found = decode(&schema, root, MediaType::Json, body).unwrap();
        assert_eq!(found.object, json!({"spec": {"n": null}}));
        assert_eq!(found.problems, [r#"unknown field "spec.other""#, r#"duplicate field "spec.n""#]);
        let wrong = decode(&schema, root, MediaType::Json, br#"{"spec":{"n":"x"}}"#).unwrap();
        assert_eq!(wrong.object, json!({"spec": {"n": "x"}}));
    }
}
