//! From a body to a complete object of the storage version, and from there to the bytes that are stored.

use bytes::Bytes;
use sampan_api::{Failure, Kind, codec, default, strategy};
use sampan_store::{Entry, Payload};
use serde_json::Value;

use crate::negotiate::Wire;
use crate::options::FieldValidation;
use crate::server::Call;
use crate::{convert, respond};

fn media(wire: Wire) -> codec::MediaType {
    match wire {
        Wire::Json => codec::MediaType::Json,
        Wire::Yaml => codec::MediaType::Yaml,
        Wire::Protobuf => codec::MediaType::Protobuf,
    }
}

/// A body of `kind` as a tree in the version it was sent in; unknown and duplicate fields are treated as the caller
/// asked.
pub(crate) fn decode(
    call: &Call,
    kind: &Kind,
    wire: Wire,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Value, Failure> {
    let (api_version, name) = codec::type_meta(media(wire), body).map_err(|error| {
        Failure::bad_request(format!(
            "the object provided is unrecognized (must be of type {}): {error}",
            kind.gvk.kind
        ))
    })?;
    let expected = kind.gvk.api_version();
    if !name.is_empty() && name != kind.gvk.kind {
        let shown = sampan_api::kind::split_api_version(&api_version).1.to_owned();
        return Err(Failure::bad_request(format!(
            "{name} in version {shown:?} cannot be handled as a {}: converting ({name}) to ({}): unknown conversion",
            kind.gvk.kind, kind.gvk.kind
        )));
    }
    if !api_version.is_empty() && api_version != expected {
        return Err(Failure::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({expected})"
        )));
    }
    let cannot = |error: &dyn std::fmt::Display| {
        let (kind, version) = (&kind.gvk.kind, &kind.gvk.version);
        Failure::bad_request(format!("{kind} in version {version:?} cannot be handled as a {kind}: {error}"))
    };
    let decoded = codec::decode(&kind.schema, kind.root, media(wire), body).map_err(|error| cannot(&error))?;
    if !decoded.problems.is_empty() {
        match validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => decoded.problems.iter().for_each(|problem| call.warn(problem.to_string())),
            FieldValidation::Strict => {
                let all: Vec<String> = decoded.problems.iter().map(ToString::to_string).collect();
                return Err(cannot(&format!("strict decoding error: {}", all.join(", "))));
            }
        }
    }
    let mut tree = decoded.object;
    if let Value::Object(map) = &mut tree {
        map.insert("apiVersion".into(), expected.into());
        map.insert("kind".into(), kind.gvk.kind.clone().into());
    }
    Ok(tree)
}

/// From what a client sent to a complete object of the storage version.
pub(crate) fn complete(kind: &Kind, sent: Value) -> Result<Value, Failure> {
    let mut tree = convert::to_storage(kind, sent)?;
    complete_stored(kind, &mut tree);
    Ok(tree)
}

pub(crate) fn complete_stored(kind: &Kind, tree: &mut Value) {
    let root = respond::storage_root(kind);
    default::apply_defaults(&kind.schema, root, tree);
    (strategy::of(&kind.storage.group, &kind.storage.kind).default)(tree);
}

pub(crate) fn parse(entry: &Entry) -> Result<Value, Failure> {
    serde_json::from_slice(&entry.value).map_err(Failure::internal)
}

/// Canonical bytes; the revision goes in when they are committed.
pub(crate) fn payload(kind: &Kind, tree: &Value) -> Payload {
    let encoded = codec::encode(&kind.schema, respond::storage_root(kind), tree);
    Payload { bytes: Bytes::from(encoded.bytes), stamp: encoded.stamp }
}
