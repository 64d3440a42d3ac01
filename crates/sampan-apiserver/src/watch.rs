//! `watch`: the changes of a collection as frames that share the stored bytes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use sampan_api::{Failure, Gvk, Kind, Reason, codec};
use sampan_base::clock::Instant;
use sampan_store::{Change, Entry, Event, Range, Revision, Watch, WatchEnd};
use serde_json::{Value, json};

use crate::body::{self, BoxError, Chunk, ResponseBody};
use crate::negotiate::{Format, MetaVersion, Shape, Wire};
use crate::options::{At, ListOptions};
use crate::select::Selection;
use crate::server::Call;
use crate::{keys, read, respond, route, table};

/// How often a watch that asked for bookmarks gets one (upstream: about once a minute).
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// A watch without `timeoutSeconds` lasts this long and up to as long again, by the dice, so that not all watches of a
/// server end at once (`--min-request-timeout`).
const DEFAULT_SECONDS: u64 = 1800;

/// What a frame says happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Type {
    Added,
    Modified,
    Deleted,
    Bookmark,
    Error,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
            Self::Error => "ERROR",
        }
    }

    fn json_head(self) -> &'static [u8] {
        match self {
            Self::Added => b"{\"type\":\"ADDED\",\"object\":",
            Self::Modified => b"{\"type\":\"MODIFIED\",\"object\":",
            Self::Deleted => b"{\"type\":\"DELETED\",\"object\":",
            Self::Bookmark => b"{\"type\":\"BOOKMARK\",\"object\":",
            Self::Error => b"{\"type\":\"ERROR\",\"object\":",
        }
    }
}

/// One open watch.
struct Stream {
    call: Arc<Call>,
    kind: Arc<Kind>,
    format: Format,
    selection: Selection,
    watch: Watch,
    initial: std::vec::IntoIter<Entry>,
    /// The bookmark that ends the initial state is still to come.
    initial_end: Option<Revision>,
    bookmarks: bool,
    next_bookmark: Instant,
    deadline: Instant,
    kinds_changed: tokio::sync::watch::Receiver<u64>,
    /// Tables name their columns in the first frame only.
    headers_sent: bool,
    ended: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.call.server.metrics.watches.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) async fn watch(
    call: Arc<Call>,
    format: Format,
    kind: &Arc<Kind>,
) -> Result<Response<ResponseBody>, Failure> {
    let options = ListOptions::parse(&call.info, kind)?;
    let config = &call.server.config;
    let store = &config.store;
    let mut fields = options.fields.clone();
    if !call.info.name.is_empty() {
        // The old form of a watch of one object.
        let term = format!("metadata.name={}", call.info.name);
        let joined = if fields.is_everything() { term } else { format!("{fields},{term}") };
        fields = sampan_api::selector::FieldSelector::parse(&joined)
            .map_err(|error| Failure::bad_request(error.to_string()))?;
    }
    let selection = Selection::new(options.labels.clone(), fields);
    let prefix = keys::prefix(kind, &call.info.namespace);
    let from_now = options.resource_version.is_none_or(|revision| revision.0 == 0);
    let with_initial = options.send_initial_events.unwrap_or(from_now);
    let (initial, after) = if with_initial || from_now {
        let at = match options.resource_version {
            None => At::Consistent,
            Some(Revision(0)) => At::Any,
            Some(revision) => At::NotOlderThan(revision),
        };
        read::ready(store, at).await?;
        let range = Range { prefix: &prefix, after: None, limit: usize::from(!with_initial), at: None };
        let page = store.range(&range).map_err(|error| read::unreadable(&error))?;
        let entries = if with_initial { page.entries } else { Vec::new() };
        (entries, page.revision)
    } else {
        let after = options.resource_version.unwrap_or_default();
        if after > store.revision() {
            read::ready(store, At::NotOlderThan(after)).await?;
        }
        (Vec::new(), after)
    };
    let seconds = options
        .timeout_seconds
        .filter(|seconds| *seconds > 0)
        .unwrap_or_else(|| DEFAULT_SECONDS + config.dice.below(DEFAULT_SECONDS));
    let now = config.clock.instant();
    let watch = match store.watch(&prefix, after) {
        Ok(watch) => watch,
        Err(error) => {
            // Upstream answers 200 and says what is wrong in the first frame.
            let failure = read::unreadable(&error);
            let frame = status_frame(format, &failure);
            let stream = futures::stream::once(std::future::ready(Ok(frame)));
            return Ok(respond::with_body(200, format.content_type(true), body::stream(stream)));
        }
    };
    call.server.metrics.watches.fetch_add(1, Ordering::Relaxed);
    let stream = Stream {
        kinds_changed: call.server.kinds_changed(),
        kind: kind.clone(),
        format,
        selection,
        watch,
        initial_end: (options.send_initial_events == Some(true) && options.bookmarks).then_some(after),
        initial: initial.into_iter(),
        bookmarks: options.bookmarks,
        next_bookmark: now + BOOKMARK_EVERY,
        deadline: now + Duration::from_secs(seconds),
        headers_sent: false,
        ended: false,
        call,
    };
    let frames = futures::stream::unfold(stream, |mut stream| async move {
        let frame = stream.next().await?;
        Some((Ok::<Chunk, BoxError>(frame), stream))
    });
    Ok(respond::with_body(200, format.content_type(true), body::stream(frames)))
}

impl Stream {
    /// The next frame; `None` ends the watch.
    async fn next(&mut self) -> Option<Chunk> {
        loop {
            if self.ended {
                return None;
            }
            if let Some(entry) = self.initial.next() {
                if self.selection.matches(&self.kind, &entry) {
                    return Some(self.frame(Type::Added, &entry));
                }
                continue;
            }
            if let Some(revision) = self.initial_end.take() {
                return Some(self.bookmark(revision, true));
            }
            let clock = self.call.server.config.clock.clone();
            let wake = self.deadline.min(if self.bookmarks { self.next_bookmark } else { self.deadline });
            tokio::select! {
                biased;
                event = self.watch.next() => match event {
                    Ok(event) => {
                        if let Some(frame) = self.event(&event) {
                            self.call.server.metrics.watch_events.fetch_add(1, Ordering::Relaxed);
                            return Some(frame);
                        }
                    }
                    Err(WatchEnd::Lagged) => {
                        self.ended = true;
                        let failure = Failure::new(Reason::Expired, "too old resource version: the watch was too slow");
                        return Some(status_frame(self.format, &failure));
                    }
                    Err(WatchEnd::Closed) => return None,
                },
                changed = self.kinds_changed.changed() => {
                    if changed.is_err() || !self.still_served() {
                        return None;
                    }
                }
                () = clock.sleep_until(wake) => {
                    let at_end = wake >= self.deadline;
                    self.ended = at_end;
                    if !self.bookmarks {
                        return None;
                    }
                    self.next_bookmark = clock.instant() + BOOKMARK_EVERY;
                    return Some(self.bookmark(self.watch.progress(), false));
                }
            }
        }
    }

    fn matches(&self, entry: &Entry) -> bool {
        self.selection.matches_shared(&self.kind, entry, &self.call.server.facts)
    }

    fn still_served(&self) -> bool {
        let gvk = &self.kind.gvk;
        let kinds = self.call.server.kinds();
        kinds.resource(&gvk.group, &gvk.version, &self.kind.resource).is_some_and(|kind| Arc::ptr_eq(kind, &self.kind))
    }

    /// A change as this watcher sees it: an object that starts to match is added, one that stops is deleted.
    fn event(&mut self, event: &Event) -> Option<Chunk> {
        let (kind, entry, previous) = match &event.change {
            Change::Put { entry, previous: None } => {
                return self.matches(entry).then(|| self.frame(Type::Added, entry));
            }
            Change::Put { entry, previous: Some(previous) } if self.selection.is_everything() => {
                (Type::Modified, entry, previous)
            }
            Change::Put { entry, previous: Some(previous) } => {
                let before = self.matches(previous);
                match (before, self.matches(entry)) {
                    (false, false) => return None,
                    (false, true) => (Type::Added, entry, previous),
                    (true, true) => (Type::Modified, entry, previous),
                    (true, false) => {
                        // The last state that matched, at the revision at which it stopped to.
                        return Some(self.departure(previous, entry.modified));
                    }
                }
            }
            Change::Delete { entry, previous } => (Type::Deleted, entry, previous),
        };
        if kind == Type::Deleted && !self.matches(previous) {
            return None;
        }
        Some(self.frame(kind, entry))
    }

    fn frame(&mut self, event: Type, entry: &Entry) -> Chunk {
        let object = match self.format.shape {
            Shape::Table(version) => self.row(version, &entry.value),
            _ => respond::chunk(&self.call.server, self.format, &self.kind, entry, false),
        };
        self.framed(event, object)
    }

    /// An object that goes on without this watcher. Made for him alone: under this revision the others know the object
    /// as it is now.
    fn departure(&mut self, last: &Entry, revision: Revision) -> Chunk {
        let json = restamped(last, revision);
        let object = match self.format.shape {
            Shape::Table(version) => self.row(version, &json),
            _ => respond::made(self.format, &self.kind, &json, false).map(Chunk::from),
        };
        self.framed(Type::Deleted, object)
    }

    fn row(&mut self, version: MetaVersion, json: &Bytes) -> Result<Chunk, Failure> {
        let headers = !std::mem::replace(&mut self.headers_sent, true);
        table::of_event(&self.call, version, &self.kind, json, headers).map(Chunk::from)
    }

    /// A failure to make the object ends the watch.
    fn framed(&mut self, event: Type, object: Result<Chunk, Failure>) -> Chunk {
        match object {
            Ok(object) => framed(self.format.wire, event, object),
            Err(failure) => {
                self.ended = true;
                status_frame(self.format, &failure)
            }
        }
    }

    fn bookmark(&mut self, revision: Revision, initial_end: bool) -> Chunk {
        let mut metadata = json!({"resourceVersion": revision.0.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let gvk = &self.kind.gvk;
        let object = json!({"kind": gvk.kind, "apiVersion": gvk.api_version(), "metadata": metadata});
        let (schema, root) = (&self.kind.schema, self.kind.root);
        let json = respond::encoded(schema, root, &object);
        let object = match self.format.shape {
            Shape::Table(version) => {
                let headers = !std::mem::replace(&mut self.headers_sent, true);
                table::of_bookmark(&self.call, version, &self.kind, &object, headers)
            }
            _ => respond::in_form(self.format, &self.kind, &json, false),
        };
        self.framed(Type::Bookmark, object.map(Chunk::from))
    }
}

/// The bytes of an object under another revision.
fn restamped(entry: &Entry, revision: Revision) -> Bytes {
    let old_digits = entry.modified.0.to_string().len();
    let Some(at) = entry.stamp.map(|at| at as usize).filter(|at| at + old_digits <= entry.value.len()) else {
        return entry.value.clone();
    };
    let digits = revision.0.to_string();
    [&entry.value[..at], digits.as_bytes(), &entry.value[at + old_digits..]].concat().into()
}

fn framed(wire: Wire, event: Type, object: Chunk) -> Chunk {
    if wire == Wire::Protobuf {
        return Bytes::from(codec::watch_frame(event.name(), &object.into_bytes())).into();
    }
    let mut frame = Chunk::from(Bytes::from_static(event.json_head()));
    frame.append(object);
    frame.push(Bytes::from_static(b"}\n"));
    frame
}

fn status_frame(format: Format, failure: &Failure) -> Chunk {
    let status: Value = failure.to_status();
    let object: Chunk = match format.wire {
        Wire::Protobuf => {
            let gvk = Gvk { group: String::new(), version: "v1".into(), kind: "Status".into() };
            let found = route::named_type("io.k8s.apimachinery.pkg.apis.meta.v1.Status").ok();
            let made = found.and_then(|(schema, root)| {
                codec::json_to_proto(&schema, root, &gvk, status.to_string().as_bytes()).ok()
            });
            Bytes::from(made.unwrap_or_default()).into()
        }
        _ => Bytes::from(status.to_string()).into(),
    };
    framed(format.wire, Type::Error, object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restamped_entry_differs_in_its_revision_only() {
        let entry = Entry {
            key: "/core/pods/a/b".into(),
            value: Bytes::from_static(b"{\"metadata\":{\"resourceVersion\":\"99\"}}"),
            stamp: Some(32),
            created: Revision(1),
            modified: Revision(99),
        };
        assert_eq!(restamped(&entry, Revision(100)), "{\"metadata\":{\"resourceVersion\":\"100\"}}");
    }
}
