//! Answers: objects in the form asked for, statuses, plain text. Knows how an answer is written, not what it says.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use sampan_api::schema::{Schema, SharedSchema, TypeId};
use sampan_api::{Failure, Gvk, Kind, codec, object};
use sampan_store::Entry;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::body::{self, Chunk, ResponseBody};
use crate::convert;
use crate::forms::Form;
use crate::negotiate::{Format, MetaVersion, Shape, Wire};
use crate::pretty;
use crate::server::{Call, Server};
use crate::table;

pub fn bytes(code: u16, content_type: &'static str, bytes: impl Into<Bytes>) -> Response<ResponseBody> {
    with_body(code, content_type, body::full(bytes))
}

pub fn with_body(code: u16, content_type: &'static str, body: ResponseBody) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

pub fn text(code: u16, text: impl Into<String>) -> Response<ResponseBody> {
    bytes(code, "text/plain; charset=utf-8", text.into())
}

/// A JSON value that is no API object of a schema (discovery, version, statuses).
pub fn json(code: u16, value: &Value) -> Response<ResponseBody> {
    let mut text = value.to_string();
    text.push('\n');
    bytes(code, "application/json", text)
}

/// A failure as a `Status`.
pub fn failure(failure: &Failure) -> Response<ResponseBody> {
    let mut response = json(failure.code, &failure.to_status());
    if let Some(seconds) = failure.retry_after_seconds {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// No such path, as upstream's mux says it.
pub fn no_page() -> Response<ResponseBody> {
    text(404, "404 page not found\n")
}

/// An object that is answered with.
pub enum Object {
    Stored(Entry),
    /// In the storage version of its kind, not (yet) stored: dry runs, deleted objects.
    Tree(Value),
}

/// One object of a kind, in the form asked for.
pub(crate) fn object(
    call: &Call,
    format: Format,
    code: u16,
    kind: &Arc<Kind>,
    answer: Object,
) -> Result<Response<ResponseBody>, Failure> {
    let entry = match answer {
        Object::Stored(entry) => entry,
        Object::Tree(tree) => {
            let json = encoded(&kind.schema, storage_root(kind), &tree);
            return unstored(call, format, code, kind, json);
        }
    };
    if let Shape::Table(version) = format.shape {
        return table::of_object(call, version, kind, &entry.value).map(|table| finished(format, code, table.into()));
    }
    let chunk = chunk(&call.server, format, kind, &entry, false)?;
    Ok(finished(format, code, chunk))
}

fn unstored(
    call: &Call,
    format: Format,
    code: u16,
    kind: &Arc<Kind>,
    json: Bytes,
) -> Result<Response<ResponseBody>, Failure> {
    if let Shape::Table(version) = format.shape {
        return table::of_object(call, version, kind, &json).map(|table| finished(format, code, table.into()));
    }
    let bytes = made(format, kind, &json, false)?;
    Ok(finished(format, code, bytes.into()))
}

/// The JSON of an object that does not go to the store, with the revision it names.
pub fn encoded(schema: &Schema, root: TypeId, tree: &Value) -> Bytes {
    with_revision(codec::encode(schema, root, tree), object::resource_version(tree))
}

/// Puts a revision where the store would; without one the member goes.
fn with_revision(encoded: codec::Encoded, revision: &str) -> Bytes {
    const MEMBER: &[u8] = b"\"resourceVersion\":\"";
    let codec::Encoded { mut bytes, stamp } = encoded;
    let Some(at) = stamp.map(|at| at as usize).filter(|at| *at <= bytes.len()) else { return bytes.into() };
    if !revision.is_empty() {
        bytes.splice(at..at, revision.bytes());
    } else if bytes[..at].ends_with(MEMBER) {
        // Metadata never ends with the revision unless it is all there is.
        let start = at - MEMBER.len();
        let mut end = at + 1;
        if bytes.get(end) == Some(&b',') {
            end += 1;
            bytes.drain(start..end);
        } else {
            let comma = usize::from(start > 0 && bytes[start - 1] == b',');
            bytes.drain(start - comma..end);
        }
    }
    bytes.into()
}

/// An object of any type of a schema, not necessarily of a kind that is stored (`Scale`, reviews, tokens).
pub fn typed(
    format: Format,
    code: u16,
    schema: &SharedSchema,
    root: TypeId,
    gvk: &Gvk,
    object: &Value,
) -> Result<Response<ResponseBody>, Failure> {
    let json = encoded(schema, root, object);
    let bytes = match format.wire {
        Wire::Protobuf => codec::json_to_proto(schema, root, gvk, &json).map(Bytes::from).map_err(Failure::internal)?,
        Wire::Json | Wire::Yaml => json,
    };
    Ok(finished(format, code, bytes.into()))
}

/// Adds what depends on the wire only: the newline, the indentation, YAML.
fn finished(format: Format, code: u16, mut chunk: Chunk) -> Response<ResponseBody> {
    let body = match format.wire {
        Wire::Protobuf => chunk,
        Wire::Yaml => yaml(&chunk.into_bytes()).into(),
        Wire::Json if format.pretty => Bytes::from(pretty::indented(&chunk.into_bytes())).into(),
        Wire::Json => {
            chunk.push(Bytes::from_static(b"\n"));
            chunk
        }
    };
    with_body(code, format.content_type(false), body::parts(vec![body]))
}

/// Keys sorted, as upstream's YAML has them.
pub fn yaml(json: &[u8]) -> Bytes {
    let value: Value = serde_json::from_slice(json).unwrap_or_default();
    serde_saphyr::to_string(&value).map(Bytes::from).unwrap_or_default()
}

pub fn storage_root(kind: &Kind) -> TypeId {
    if kind.gvk == kind.storage {
        return kind.root;
    }
    kind.schema.named(&sampan_api::kind::type_name(&kind.storage)).unwrap_or(kind.root)
}

/// One stored object in the form asked for. `bare` leaves out what items of a typed list leave out: `kind` and
/// `apiVersion` in JSON, the envelope in protobuf.
pub(crate) fn chunk(
    server: &Server,
    format: Format,
    kind: &Arc<Kind>,
    entry: &Entry,
    bare: bool,
) -> Result<Chunk, Failure> {
    if format.shape == Shape::Object && format.wire != Wire::Protobuf && kind.gvk == kind.storage {
        return Ok(if bare { without_type(kind, &entry.value) } else { entry.value.clone().into() });
    }
    let wire = if format.wire == Wire::Yaml { Wire::Json } else { format.wire };
    let form = match format.shape {
        Shape::Metadata(version) => Form::Metadata { wire, version, bare },
        _ => Form::Object { wire, api_version: kind.gvk.api_version(), bare },
    };
    server.forms.get(&entry.key, entry.modified, form, || made(format, kind, &entry.value, bare)).map(Chunk::from)
}

/// The stored bytes without the leading `kind` and `apiVersion`, which items of typed lists do not carry.
fn without_type(kind: &Kind, json: &Bytes) -> Chunk {
    let head = format!("{{\"kind\":{:?},\"apiVersion\":{:?},", kind.gvk.kind, kind.gvk.api_version());
    let mut chunk = Chunk::default();
    if json.starts_with(head.as_bytes()) {
        chunk.push(Bytes::from_static(b"{"));
        chunk.push(json.slice(head.len()..));
    } else {
        chunk.push(json.clone());
    }
    chunk
}

/// Makes a form from the stored JSON.
pub(crate) fn made(format: Format, kind: &Kind, json: &Bytes, bare: bool) -> Result<Bytes, Failure> {
    if kind.gvk == kind.storage || matches!(format.shape, Shape::Metadata(_)) {
        return in_form(format, kind, json, bare);
    }
    let tree = serde_json::from_slice(json).map_err(Failure::internal)?;
    let converted = convert::from_storage(kind, tree)?;
    in_form(format, kind, &encoded(&kind.schema, kind.root, &converted), bare)
}

/// Makes a form from JSON of the served version.
pub(crate) fn in_form(format: Format, kind: &Kind, json: &Bytes, bare: bool) -> Result<Bytes, Failure> {
    let Shape::Metadata(version) = format.shape else {
        return match format.wire {
            Wire::Protobuf => proto(&kind.schema, kind.root, &kind.gvk, json, bare),
            _ if bare => Ok(without_type(kind, json).into_bytes()),
            _ => Ok(json.clone()),
        };
    };
    let json = metadata_only(version, json)?;
    if format.wire != Wire::Protobuf {
        return Ok(json);
    }
    let (schema, root) = crate::route::named_type("io.k8s.apimachinery.pkg.apis.meta.v1.PartialObjectMetadata")?;
    let (group, version) = sampan_api::kind::split_api_version(version.api_version());
    let gvk = Gvk { group: group.into(), version: version.into(), kind: "PartialObjectMetadata".into() };
    proto(&schema, root, &gvk, &json, bare)
}

fn proto(schema: &SharedSchema, root: TypeId, gvk: &Gvk, json: &[u8], bare: bool) -> Result<Bytes, Failure> {
    let made =
        if bare { codec::proto_object(schema, root, json) } else { codec::json_to_proto(schema, root, gvk, json) };
    made.map(Bytes::from).map_err(Failure::internal)
}

/// `PartialObjectMetadata` with the stored metadata as it is.
pub fn metadata_only(version: MetaVersion, json: &[u8]) -> Result<Bytes, Failure> {
    #[derive(serde::Deserialize)]
    struct Slim<'a> {
        #[serde(borrow)]
        metadata: &'a RawValue,
    }
    let slim: Slim<'_> = serde_json::from_slice(json).map_err(Failure::internal)?;
    let api_version = version.api_version();
    let metadata = slim.metadata.get();
    Ok(format!("{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"{api_version}\",\"metadata\":{metadata}}}")
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_committed_has_no_revision() {
        let made = |json: &str, stamp| codec::Encoded { bytes: json.as_bytes().to_vec(), stamp };
        let json = "{\"a\":1,\"resourceVersion\":\"\",\"b\":2}";
        let stamp = json.find("\"\"").map(|at| at as u32 + 1);
        assert_eq!(with_revision(made(json, stamp), ""), "{\"a\":1,\"b\":2}");
        assert_eq!(with_revision(made(json, stamp), "7"), "{\"a\":1,\"resourceVersion\":\"7\",\"b\":2}");
        let last = "{\"a\":1,\"resourceVersion\":\"\"}";
        let stamp = last.find("\"\"").map(|at| at as u32 + 1);
        assert_eq!(with_revision(made(last, stamp), ""), "{\"a\":1}");
        assert_eq!(with_revision(made("{}", None), "7"), "{}");
    }
}
