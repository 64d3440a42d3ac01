//! `get` and `list`: consistent, paged, selected reads whose answers are the stored bytes.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::Response;
use sampan_api::error::Cause;
use sampan_api::{Failure, Gvk, Kind, Reason, codec};
use sampan_store::{Entry, Page, Range, ReadError, Revision, Store};
use serde::{Deserialize, Serialize};

use crate::body::{self, Chunk, ResponseBody};
use crate::negotiate::{Format, Shape, Wire};
use crate::options::{self, At, ListOptions};
use crate::respond::{self, Object};
use crate::select::Selection;
use crate::server::Call;
use crate::{keys, table};

/// Waits until the state may answer a read of this kind.
pub(crate) async fn ready(store: &Store, at: At) -> Result<(), Failure> {
    match at {
        At::Any => Ok(()),
        At::Consistent => store.barrier().await.map(|_| ()).map_err(|error| unreadable(&error)),
        At::NotOlderThan(revision) | At::Exact(revision) => reach(store, revision).await,
    }
}

/// How long a read waits for a revision that is still to come, as upstream's watch cache does.
const FUTURE_WAIT: std::time::Duration = std::time::Duration::from_secs(3);

async fn reach(store: &Store, revision: Revision) -> Result<(), Failure> {
    match tokio::time::timeout(FUTURE_WAIT, store.wait_for(revision)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(unreadable(&error)),
        Err(_) => Err(too_large(revision, store.revision())),
    }
}

fn too_large(asked: Revision, current: Revision) -> Failure {
    let message = format!("Timeout: Too large resource version: {}, current: {}", asked.0, current.0);
    let mut failure = Failure::new(Reason::Timeout, message);
    failure.causes.push(Cause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    });
    failure.retry_after_seconds = Some(1);
    failure
}

pub(crate) fn unreadable(error: &ReadError) -> Failure {
    match error {
        ReadError::Compacted { asked, oldest } => {
            Failure::new(Reason::Expired, format!("too old resource version: {} ({})", asked.0, oldest.0))
        }
        ReadError::Future { asked, current } => too_large(*asked, *current),
        ReadError::Closed => Failure::new(Reason::ServiceUnavailable, "the server is shutting down"),
    }
}

/// One stored object, or upstream's words for its absence.
pub(crate) fn find(store: &Store, kind: &Kind, namespace: &str, name: &str) -> Result<Entry, Failure> {
    let missing = || Failure::not_found(&kind.gvk.group, &kind.resource, name);
    store.get(&keys::key(kind, namespace, name)).ok_or_else(missing)
}

pub(crate) async fn get(call: &Call, format: Format, kind: &Arc<Kind>) -> Result<Response<ResponseBody>, Failure> {
    let at = match call.info.given("resourceVersion").map(options::revision).transpose()? {
        None => At::Consistent,
        Some(Revision(0)) => At::Any,
        Some(revision) => At::NotOlderThan(revision),
    };
    let store = &call.server.config.store;
    ready(store, at).await?;
    let entry = find(store, kind, &call.info.namespace, &call.info.name)?;
    respond::object(call, format, 200, kind, Object::Stored(entry))
}

/// Where the next page begins (upstream's `storage/continue.go`; opaque to clients).
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    /// −1: at the newest revision, without consistency with the pages before.
    rv: i64,
    /// The last key answered below the prefix, with a zero byte: the first one after it.
    start: String,
}

impl Token {
    fn encode(rv: i64, prefix: &str, last: &str) -> String {
        let start = format!("{}\0", last.strip_prefix(prefix).unwrap_or(last));
        let token = Self { v: "meta.k8s.io/v1".into(), rv, start };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    /// The revision to read at (`None`: the newest) and the last key of the page before.
    fn decode(text: &str, prefix: &str) -> Result<(Option<Revision>, String), Failure> {
        let invalid = |why: &str| Failure::bad_request(format!("continue key is not valid: {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid("not base64"))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|_| invalid("not a token of this server"))?;
        if token.v != "meta.k8s.io/v1" || token.rv == 0 || token.start.starts_with('/') {
            return Err(invalid("server does not recognize this encoded version"));
        }
        let after = prefix.to_owned() + token.start.strip_suffix('\0').unwrap_or(&token.start);
        Ok((u64::try_from(token.rv).ok().map(Revision), after))
    }
}

/// The objects of one page and what is told about the rest.
pub(crate) struct Found {
    pub entries: Vec<Entry>,
    pub revision: Revision,
    pub continue_token: String,
    pub remaining: Option<u64>,
}

/// How many keys a selecting list looks at before it reads on from the store.
const SELECT_PAGE: usize = 2_000;

pub(crate) async fn find_all(
    store: &Store,
    kind: &Kind,
    namespace: &str,
    options: &ListOptions,
) -> Result<Found, Failure> {
    let prefix = keys::prefix(kind, namespace);
    let selection = Selection::new(options.labels.clone(), options.fields.clone());
    let (mut at, mut after) = match &options.continue_token {
        Some(token) => {
            let (at, after) = Token::decode(token, &prefix)?;
            (at, Some(after))
        }
        None => {
            ready(store, options.at).await?;
            (if let At::Exact(revision) = options.at { Some(revision) } else { None }, None)
        }
    };
    let everything = selection.is_everything();
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let limit = match (options.limit, everything) {
            (0, _) => 0,
            (limit, true) => limit,
            (limit, false) => limit.max(SELECT_PAGE),
        };
        let range = Range { prefix: &prefix, after: after.as_deref(), limit, at };
        let Page { entries: page, revision, remaining } =
            store.range(&range).map_err(|error| match (&error, &after) {
                (ReadError::Compacted { .. }, Some(last)) if options.continue_token.is_some() => expired(&prefix, last),
                _ => unreadable(&error),
            })?;
        // All pages of one answer are read at one revision.
        at = Some(revision);
        let page_last = page.last().map(|entry| entry.key.clone());
        let page_count = page.len();
        let mut taken = 0;
        for entry in page {
            taken += 1;
            if selection.matches(kind, &entry) {
                entries.push(entry);
                if options.limit > 0 && entries.len() == options.limit {
                    break;
                }
            }
        }
        let full = options.limit > 0 && entries.len() == options.limit;
        let rest = remaining + (page_count - taken) as u64;
        if !full && remaining > 0 && page_count > 0 {
            after = page_last.map(|key| key.to_string());
            continue;
        }
        let continue_token = match entries.last() {
            Some(last) if full && rest > 0 => Token::encode(revision.0 as i64, &prefix, &last.key),
            _ => String::new(),
        };
        let remaining = (everything && !continue_token.is_empty()).then_some(rest);
        return Ok(Found { entries, revision, continue_token, remaining });
    }
}

/// 410 with a token to go on without consistency, as upstream gives it.
fn expired(prefix: &str, last: &str) -> Failure {
    let message = "The provided continue parameter is too old to display a consistent list result. You can start a new \
                   list without the continue parameter, or use the continue token in this response to retrieve the \
                   remainder of the results. Continuing with the provided token results in an inconsistent list - \
                   objects that were created, modified, or deleted between the time the first chunk was returned and now \
                   may show up in the list.";
    let mut failure = Failure::new(Reason::Expired, message);
    failure.continue_token = Token::encode(-1, prefix, last);
    failure
}

pub(crate) async fn list(call: &Call, format: Format, kind: &Arc<Kind>) -> Result<Response<ResponseBody>, Failure> {
    let options = ListOptions::parse(&call.info, kind)?;
    let found = find_all(&call.server.config.store, kind, &call.info.namespace, &options).await?;
    answer(call, format, kind, found)
}

/// A list of stored objects in the form asked for.
pub(crate) fn answer(
    call: &Call,
    format: Format,
    kind: &Arc<Kind>,
    found: Found,
) -> Result<Response<ResponseBody>, Failure> {
    if let Shape::Table(version) = format.shape {
        let bytes = table::of_list(call, version, kind, &found)?;
        return Ok(respond::bytes(200, format.content_type(false), bytes));
    }
    if format.wire == Wire::Protobuf {
        let items = found
            .entries
            .iter()
            .map(|entry| respond::chunk(&call.server, format, kind, entry, true).map(Chunk::into_bytes));
        let items: Vec<Bytes> = items.collect::<Result<_, _>>()?;
        let meta = codec::ListMeta {
            resource_version: found.revision.0.to_string(),
            continue_token: found.continue_token,
            remaining: found.remaining.and_then(|remaining| i64::try_from(remaining).ok()),
        };
        let (api_version, list_kind) = list_type(format, kind);
        let (group, version) = sampan_api::kind::split_api_version(&api_version);
        let gvk = Gvk { group: group.into(), version: version.into(), kind: list_kind };
        let bytes = codec::proto_list(&gvk, &meta, items.iter().map(|item| item.as_ref()));
        return Ok(respond::bytes(200, format.content_type(false), bytes));
    }
    let chunks = json_list(call, format, kind, found)?;
    if format.pretty || format.wire == Wire::Yaml {
        let mut all = Chunk::default();
        chunks.into_iter().for_each(|chunk| all.push(chunk.into_bytes()));
        let json = all.into_bytes();
        let bytes = if format.pretty { crate::pretty::indented(&json).into() } else { respond::yaml(&json) };
        return Ok(respond::bytes(200, format.content_type(false), bytes));
    }
    Ok(respond::with_body(200, format.content_type(false), body::parts(chunks)))
}

fn list_type(format: Format, kind: &Kind) -> (String, String) {
    match format.shape {
        Shape::Metadata(version) => (version.api_version().to_owned(), "PartialObjectMetadataList".to_owned()),
        _ => (kind.gvk.api_version(), kind.list_kind.clone()),
    }
}

/// How much one frame of a list carries: large enough that frames cost nothing, small enough to start sending at once.
const FRAME_BYTES: usize = 64 * 1024;

/// The parts of a JSON list: its head, the stored bytes of every item, and the end.
fn json_list(call: &Call, format: Format, kind: &Arc<Kind>, found: Found) -> Result<Vec<Chunk>, Failure> {
    let (api_version, list_kind) = list_type(format, kind);
    let mut head = format!(
        "{{\"kind\":{list_kind:?},\"apiVersion\":{api_version:?},\"metadata\":{{\"resourceVersion\":\"{}\"",
        found.revision.0
    );
    if !found.continue_token.is_empty() {
        head.push_str(&format!(",\"continue\":{:?}", found.continue_token));
    }
    if let Some(remaining) = found.remaining {
        head.push_str(&format!(",\"remainingItemCount\":{remaining}"));
    }
    head.push_str("},\"items\":[");
    // Items of built-in kinds carry no type of their own; those of custom resources and metadata lists do.
    let bare = format.shape == Shape::Object && !kind.schema.names.contains_key("");
    let mut chunks = Vec::new();
    let mut frame = Chunk::from(Bytes::from(head));
    for (index, entry) in found.entries.iter().enumerate() {
        if index > 0 {
            frame.push(Bytes::from_static(b","));
        }
        frame.append(respond::chunk(&call.server, format, kind, entry, bare)?);
        if frame.len() >= FRAME_BYTES {
            chunks.push(std::mem::take(&mut frame));
        }
    }
    frame.push(Bytes::from_static(b"]}\n"));
    chunks.push(frame);
    Ok(chunks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_went() {
        let prefix = "/core/pods/default/";
        let token = Token::encode(42, prefix, "/core/pods/default/web-1");
        let (at, after) = Token::decode(&token, prefix).expect("its own token");
        assert_eq!((at, after.as_str()), (Some(Revision(42)), "/core/pods/default/web-1"));
        let inconsistent = Token::encode(-1, prefix, "/core/pods/default/web-1");
        assert_eq!(Token::decode(&inconsistent, prefix).expect("its own token").0, None);
        assert!(Token::decode("e30", prefix).is_err());
        assert!(Token::decode("§", prefix).is_err());
    }
}
