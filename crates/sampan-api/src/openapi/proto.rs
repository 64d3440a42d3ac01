//! The protobuf form of version 2 (gnostic's `openapi.v2.Document`), the only one kubectl reads when a manifest has a kind
//! the server does not serve. Written from the JSON form by tables of field numbers; security is left out: no client
//! reads it here.

use std::collections::BTreeMap;
use std::io;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::codec::wire;

/// How a JSON value is written.
enum Shape {
    Text,
    Flag,
    /// Any value, as the YAML text in a field of its own.
    Yaml,
    Message(&'static Message),
    /// A message with one field that is set.
    Inside(u32, &'static Self),
    /// One field for each element.
    Each(&'static Self),
    /// A message with a repeated field of names and values.
    Entries(u32, &'static Self),
    /// The kind of message is told by `in`.
    Parameter,
}

struct Message {
    fields: &'static [(&'static str, u32, Shape)],
    /// The field of `x-…` members.
    extensions: u32,
}

use Shape::{Each, Entries, Flag, Inside, Parameter, Text, Yaml};

/// Of the description languages' facilities, those that the JSON form uses.
static SCHEMA: Message = Message {
    fields: &[
        ("$ref", 1, Text),
        ("format", 2, Text),
        ("title", 3, Text),
        ("description", 4, Text),
        ("default", 5, Yaml),
        ("pattern", 13, Text),
        ("uniqueItems", 16, Flag),
        ("required", 19, Each(&Text)),
        ("enum", 20, Each(&Yaml)),
        ("additionalProperties", 21, Inside(1, &A_SCHEMA)),
        ("type", 22, Inside(1, &Text)),
        ("items", 23, Inside(1, &A_SCHEMA)),
        ("allOf", 24, Each(&A_SCHEMA)),
        ("properties", 25, Entries(1, &A_SCHEMA)),
        ("readOnly", 27, Flag),
    ],
    extensions: 31,
};
static A_SCHEMA: Shape = Shape::Message(&SCHEMA);

static INFO: Shape = Shape::Message(&Message {
    fields: &[("title", 1, Text), ("version", 2, Text), ("description", 3, Text)],
    extensions: 7,
});

static BODY_PARAMETER: Message = Message {
    fields: &[
        ("description", 1, Text),
        ("name", 2, Text),
        ("in", 3, Text),
        ("required", 4, Flag),
        ("schema", 5, Shape::Message(&SCHEMA)),
    ],
    extensions: 6,
};
static QUERY_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 6, Text),
        ("format", 7, Text),
        ("uniqueItems", 20, Flag),
    ],
    extensions: 23,
};
static PATH_PARAMETER: Message = Message {
    fields: &[
        ("required", 1, Flag),
        ("in", 2, Text),
        ("description", 3, Text),
        ("name", 4, Text),
        ("type", 5, Text),
        ("format", 6, Text),
        ("uniqueItems", 19, Flag),
    ],
    extensions: 22,
};

static RESPONSE: Message =
    Message { fields: &[("description", 1, Text), ("schema", 2, Inside(1, &A_SCHEMA))], extensions: 5 };
static A_RESPONSE: Shape = Inside(1, &Shape::Message(&RESPONSE));

static OPERATION: Message = Message {
    fields: &[
        ("tags", 1, Each(&Text)),
        ("summary", 2, Text),
        ("description", 3, Text),
        ("operationId", 5, Text),
        ("produces", 6, Each(&Text)),
        ("consumes", 7, Each(&Text)),
        ("parameters", 8, Each(&Parameter)),
        ("responses", 9, Entries(1, &A_RESPONSE)),
        ("schemes", 10, Each(&Text)),
        ("deprecated", 11, Flag),
    ],
    extensions: 13,
};
static PATH_ITEM: Shape = Shape::Message(&Message {
    fields: &[
        ("get", 2, Shape::Message(&OPERATION)),
        ("put", 3, Shape::Message(&OPERATION)),
        ("post", 4, Shape::Message(&OPERATION)),
        ("delete", 5, Shape::Message(&OPERATION)),
        ("options", 6, Shape::Message(&OPERATION)),
        ("head", 7, Shape::Message(&OPERATION)),
        ("patch", 8, Shape::Message(&OPERATION)),
        ("parameters", 9, Each(&Parameter)),
    ],
    extensions: 10,
});

const SWAGGER: u32 = 1;
const INFO_FIELD: u32 = 2;
const PATHS: u32 = 8;
const DEFINITIONS: u32 = 9;

/// The JSON form, its parts unread: as one tree it is ten times its text.
#[derive(Deserialize)]
struct Document<'a> {
    swagger: String,
    info: Value,
    #[serde(borrow)]
    paths: BTreeMap<String, &'a RawValue>,
    #[serde(borrow)]
    definitions: BTreeMap<String, &'a RawValue>,
}

/// `json`: the JSON form of version 2.
pub fn encode(json: &[u8]) -> io::Result<Vec<u8>> {
    let document: Document<'_> = serde_json::from_slice(json)?;
    let mut out = Vec::with_capacity(json.len());
    put(&mut out, SWAGGER, &Text, &Value::from(document.swagger));
    put(&mut out, INFO_FIELD, &INFO, &document.info);
    // A message that comes in pieces is put together by the reader, so the parts need not be held at once.
    for (number, inner, shape, parts) in
        [(PATHS, 2, &PATH_ITEM, &document.paths), (DEFINITIONS, 1, &A_SCHEMA, &document.definitions)]
    {
        for (name, part) in parts {
            let value: Value = serde_json::from_str(part.get())?;
            let mut piece = Vec::new();
            put_named(&mut piece, inner, name, shape, &value);
            wire::put_bytes(&mut out, number, &piece);
        }
    }
    Ok(out)
}

fn put(out: &mut Vec<u8>, number: u32, shape: &Shape, value: &Value) {
    let mut inner = Vec::new();
    match shape {
        Text => inner.extend_from_slice(value.as_str().unwrap_or_default().as_bytes()),
        Flag => {
            wire::put_tag(out, number, wire::VARINT);
            return wire::put_varint(out, u64::from(value.as_bool().unwrap_or_default()));
        }
        Yaml => wire::put_bytes(&mut inner, 2, value.to_string().as_bytes()),
        Shape::Message(message) => message.write(&mut inner, value),
        Inside(field, shape) => put(&mut inner, *field, shape, value),
        Each(shape) => {
            for element in value.as_array().into_iter().flatten() {
                put(out, number, shape, element);
            }
            return;
        }
        Entries(field, shape) => {
            for (name, entry) in value.as_object().into_iter().flatten() {
                put_named(&mut inner, *field, name, shape, entry);
            }
        }
        Parameter => {
            let (message, way): (_, &[u32]) = match value.get("in").and_then(Value::as_str) {
                Some("body") => (&BODY_PARAMETER, &[1, 1]),
                Some("path") => (&PATH_PARAMETER, &[4, 2, 1]),
                _ => (&QUERY_PARAMETER, &[3, 2, 1]),
            };
            message.write(&mut inner, value);
            for field in way {
                let mut outer = Vec::new();
                wire::put_bytes(&mut outer, *field, &inner);
                inner = outer;
            }
        }
    }
    wire::put_bytes(out, number, &inner);
}

fn put_named(out: &mut Vec<u8>, number: u32, name: &str, shape: &Shape, value: &Value) {
    let mut entry = Vec::new();
    wire::put_bytes(&mut entry, 1, name.as_bytes());
    put(&mut entry, 2, shape, value);
    wire::put_bytes(out, number, &entry);
}

impl Message {
    fn write(&self, out: &mut Vec<u8>, value: &Value) {
        for (name, member) in value.as_object().into_iter().flatten() {
            if let Some((_, number, shape)) = self.fields.iter().find(|(field, ..)| field == name) {
                put(out, *number, shape, member);
            } else if name.starts_with("x-") {
                put_named(out, self.extensions, name, &Yaml, member);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The content of the first field at the end of a way of field numbers.
    fn at<'a>(mut bytes: &'a [u8], way: &[u32]) -> Option<&'a [u8]> {
        for wanted in way {
            let mut reader = wire::Reader::new(bytes);
            bytes = loop {
                let (number, payload) = reader.next().expect("well-formed")?;
                if number == *wanted {
                    break payload.bytes("test").expect("bytes");
                }
            };
        }
        Some(bytes)
    }

    #[test]
    fn the_numbers_are_those_of_gnostic() {
        let gvk = r#"[{"group":"","kind":"Pod","version":"v1"}]"#;
        let json = format!(
            r##"{{"swagger":"2.0","info":{{"title":"t","version":"v"}},
            "paths":{{"/pods":{{"patch":{{"parameters":[
                {{"in":"query","name":"fieldValidation","type":"string"}}],
                "responses":{{"200":{{"description":"OK","schema":{{"$ref":"#/definitions/P"}}}}}},
                "x-kubernetes-group-version-kind":{gvk}}}}}}},
            "definitions":{{"P":{{"required":["a"],"properties":{{"a":{{"type":"array","items":{{"type":"string"}}}}}}}}}}}}"##
        );
        let document = encode(json.as_bytes()).expect("encodes");
        let text = |way: &[u32]| at(&document, way).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let patch = [8, 2, 2, 8];
        let below = |way: &[u32]| text(&[&patch, way].concat());
        assert_eq!(text(&[8, 2, 1]).as_deref(), Some("/pods"));
        assert_eq!(below(&[8, 1, 2, 3, 4]).as_deref(), Some("fieldValidation"));
        assert_eq!(below(&[9, 1, 1]).as_deref(), Some("200"));
        assert_eq!(below(&[9, 1, 2, 1, 2, 1, 1]).as_deref(), Some("#/definitions/P"));
        assert_eq!(below(&[13, 1]).as_deref(), Some("x-kubernetes-group-version-kind"));
        assert_eq!(below(&[13, 2, 2]).as_deref(), Some(gvk));
        assert_eq!(text(&[9, 1, 1]).as_deref(), Some("P"));
        assert_eq!(text(&[9, 1, 2, 19]).as_deref(), Some("a"));
        assert_eq!(text(&[9, 1, 2, 25, 1, 2, 22, 1]).as_deref(), Some("array"));
        assert_eq!(text(&[9, 1, 2, 25, 1, 2, 23, 1, 22, 1]).as_deref(), Some("string"));
    }
}
