//! `Table` answers: rows for people, with the columns of the kind (`meta.k8s.io` `Table`).

use bytes::Bytes;
use sampan_api::{Failure, Kind, table};
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::convert;
use crate::negotiate::MetaVersion;
use crate::read::Found;
use crate::respond;
use crate::server::Call;

/// What of each object goes with its row.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Include {
    Nothing,
    Metadata,
    Object,
}

fn include(call: &Call) -> Result<Include, Failure> {
    match call.info.given("includeObject") {
        None | Some("Metadata") => Ok(Include::Metadata),
        Some("None") => Ok(Include::Nothing),
        Some("Object") => Ok(Include::Object),
        Some(other) => Err(Failure::bad_request(format!("unrecognized includeObject value: {other:?}"))),
    }
}

fn raw(json: String) -> Result<Box<RawValue>, Failure> {
    RawValue::from_string(json).map_err(Failure::internal)
}

#[derive(serde::Serialize)]
struct Row {
    cells: Vec<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<Box<RawValue>>,
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    kind: &'static str,
    api_version: &'static str,
    metadata: Value,
    column_definitions: Value,
    rows: Vec<Row>,
}

fn row(call: &Call, version: MetaVersion, kind: &Kind, json: &Bytes, include: Include) -> Result<Row, Failure> {
    let tree: Value = serde_json::from_slice(json).map_err(Failure::internal)?;
    let served = convert::from_storage(kind, tree)?;
    let cells = table::row(kind, &served, call.server.config.clock.now());
    let object = match include {
        Include::Nothing => None,
        Include::Metadata => {
            let bytes = respond::metadata_only(version, json)?;
            Some(raw(String::from_utf8_lossy(&bytes).into_owned())?)
        }
        Include::Object if kind.gvk == kind.storage => Some(raw(String::from_utf8_lossy(json).into_owned())?),
        Include::Object => Some(raw(served.to_string())?),
    };
    Ok(Row { cells, object })
}

fn bytes(version: MetaVersion, kind: &Kind, metadata: Value, rows: Vec<Row>, headers: bool) -> Result<Bytes, Failure> {
    let column_definitions = if headers { table::definitions(kind) } else { Value::Null };
    let table = Table { kind: "Table", api_version: version.api_version(), metadata, column_definitions, rows };
    serde_json::to_vec(&table).map(Bytes::from).map_err(Failure::internal)
}

pub(crate) fn of_list(call: &Call, version: MetaVersion, kind: &Kind, found: &Found) -> Result<Bytes, Failure> {
    let include = include(call)?;
    let rows = found.entries.iter().map(|entry| row(call, version, kind, &entry.value, include));
    let mut metadata = json!({"resourceVersion": found.revision.0.to_string()});
    if !found.continue_token.is_empty() {
        metadata["continue"] = found.continue_token.as_str().into();
    }
    if let Some(remaining) = found.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    bytes(version, kind, metadata, rows.collect::<Result<_, _>>()?, true)
}

pub(crate) fn of_object(call: &Call, version: MetaVersion, kind: &Kind, json: &Bytes) -> Result<Bytes, Failure> {
    of_event(call, version, kind, json, true)
}

/// One frame of a watch: a table with one row.
pub(crate) fn of_event(
    call: &Call,
    version: MetaVersion,
    kind: &Kind,
    json: &Bytes,
    headers: bool,
) -> Result<Bytes, Failure> {
    let row = row(call, version, kind, json, include(call)?)?;
    let metadata = json!({"resourceVersion": revision(json)});
    bytes(version, kind, metadata, vec![row], headers)
}

/// A bookmark in a watch of tables: one row without content whose object tells the revision.
pub(crate) fn of_bookmark(
    call: &Call,
    version: MetaVersion,
    kind: &Kind,
    object: &Value,
    headers: bool,
) -> Result<Bytes, Failure> {
    let object = match include(call)? {
        Include::Nothing => None,
        Include::Metadata => Some(json!({
            "kind": "PartialObjectMetadata", "apiVersion": version.api_version(), "metadata": object["metadata"],
        })),
        Include::Object => Some(object.clone()),
    };
    let object = object.map(|object| raw(object.to_string())).transpose()?;
    let metadata = json!({"resourceVersion": object_revision(&object)});
    bytes(version, kind, metadata, vec![Row { cells: Vec::new(), object }], headers)
}

fn object_revision(object: &Option<Box<RawValue>>) -> String {
    object.as_ref().map(|raw| revision(raw.get().as_bytes())).unwrap_or_default()
}

fn revision(json: &[u8]) -> String {
    serde_json::from_slice::<sampan_api::object::Envelope>(json)
        .map(|one| one.metadata.resource_version)
        .unwrap_or_default()
}
