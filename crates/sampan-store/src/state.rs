//! What is visible: the live entries, and the window of history that lets old revisions be read and watched.
//!
//! Plain data under one short lock; no IO, no async, no clock. One writer (the committer) applies transactions; readers
//! take the lock for a bounded number of entries at a time, so that a list of everything doesn't hold up a write.

use std::cmp::Ordering;
use std::collections::{BTreeMap, VecDeque, btree_map};
use std::ops::Bound;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use bytes::Bytes;
use sampan_base::clock::Instant;

use crate::{Change, Entry, Event, Key, Page, Payload, Range, ReadError, Revision};

/// How many entries are cloned under one hold of the lock: about 50 µs.
const ENTRIES_PER_HOLD: usize = 512;
/// How many keys are counted under one hold of the lock: about 50 µs.
const KEYS_PER_HOLD: usize = 8192;
/// What one change in the window costs beside its values: the event, its place in `past`, allocator overhead.
const EVENT_OVERHEAD: usize = 256;

/// How much of the past is kept: the window ends at whichever bound is met first.
#[derive(Clone, Copy, Debug)]
pub struct History {
    pub bytes: usize,
    pub age: Duration,
}

impl Default for History {
    /// Five minutes is upstream's compaction interval (`--etcd-compaction-interval`).
    fn default() -> Self {
        Self { bytes: 64 << 20, age: Duration::from_secs(300) }
    }
}

/// A transaction in plain text, as the state takes it.
pub(crate) struct Edit {
    pub key: Key,
    pub op: Op,
}

pub(crate) enum Op {
    Put(Payload),
    Delete(Option<Payload>),
}

/// The changes of one transaction as they stay in the window. Shared by all watchers.
pub(crate) struct Applied {
    pub revision: Revision,
    pub events: Vec<Event>,
    cost: usize,
    time: Instant,
}

pub(crate) struct State(RwLock<Inner>);

struct Inner {
    live: BTreeMap<Key, Live>,
    /// For each key that changed within the window, what was there before each change, oldest first. Every event in
    /// `window` has exactly one item here.
    past: BTreeMap<Key, VecDeque<Before>>,
    window: VecDeque<Arc<Applied>>,
    window_bytes: usize,
    history: History,
    /// The oldest revision that can be read; changes after it are in `window`.
    oldest: Revision,
    current: Revision,
}

struct Live {
    /// A copy of the entry's, so that counting at an old revision doesn't touch every entry.
    modified: Revision,
    entry: Arc<Entry>,
}

struct Before {
    /// The revision of the change.
    until: Revision,
    entry: Option<Arc<Entry>>,
}

impl State {
    pub fn new(history: History) -> Self {
        Self(RwLock::new(Inner {
            live: BTreeMap::new(),
            past: BTreeMap::new(),
            window: VecDeque::new(),
            window_bytes: 0,
            history,
            oldest: Revision(0),
            current: Revision(0),
        }))
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn revision(&self) -> Revision {
        self.read().current
    }

    pub fn get(&self, key: &str) -> Option<Entry> {
        self.read().live.get(key).map(|live| Entry::clone(&live.entry))
    }

    pub fn modified(&self, key: &str) -> Option<Revision> {
        self.read().live.get(key).map(|live| live.modified)
    }

    pub fn get_at(&self, key: &str, at: Revision) -> Result<Option<Entry>, ReadError> {
        let inner = self.read();
        inner.readable(at)?;
        let live = inner.live.get(key);
        let visible = match inner.past.get(key) {
            Some(past) => before(past, at).unwrap_or_else(|| live.map(|live| &live.entry)),
            None => live.map(|live| &live.entry),
        };
        Ok(visible.map(|entry| Entry::clone(entry)))
    }

    pub fn range(&self, range: &Range<'_>) -> Result<Page, ReadError> {
        loop {
            let at = range.at.unwrap_or_else(|| self.revision());
            match self.range_at(range, at) {
                // The window moved past `at` between two holds of the lock: the caller asked for the newest, so read
                // again at what is the newest now.
                Err(ReadError::Compacted { .. }) if range.at.is_none() => {}
                result => return result,
            }
        }
    }

    fn range_at(&self, range: &Range<'_>, at: Revision) -> Result<Page, ReadError> {
        let limit = if range.limit == 0 { usize::MAX } else { range.limit };
        let mut entries: Vec<Entry> = Vec::new();
        loop {
            let inner = self.read();
            inner.readable(at)?;
            let take = ENTRIES_PER_HOLD.min(limit - entries.len());
            let after = entries.last().map(|entry| entry.key.clone());
            let lower = lower_bound(range.prefix, after.as_deref().or(range.after));
            let filled = entries.len();
            entries.extend(inner.visible(range.prefix, lower, at).take(take).map(|(_, entry)| Entry::clone(entry)));
            if entries.len() - filled < take {
                return Ok(Page { entries, revision: at, remaining: 0 });
            }
            if entries.len() == limit {
                break;
            }
        }
        let remaining = self.count_after(range.prefix, entries.last().map(|entry| entry.key.clone()), at)?;
        Ok(Page { entries, revision: at, remaining })
    }

    pub fn count(&self, prefix: &str) -> u64 {
        loop {
            if let Ok(count) = self.count_after(prefix, None, self.revision()) {
                return count;
            }
        }
    }

    fn count_after(&self, prefix: &str, mut after: Option<Key>, at: Revision) -> Result<u64, ReadError> {
        let mut count = 0;
        loop {
            let inner = self.read();
            inner.readable(at)?;
            let lower = lower_bound(prefix, after.as_deref());
            let mut last = None;
            let mut counted = 0;
            for (key, _) in inner.visible(prefix, lower, at).take(KEYS_PER_HOLD) {
                counted += 1;
                last = Some(key);
            }
            count += counted as u64;
            if counted < KEYS_PER_HOLD {
                return Ok(count);
            }
            after = last.cloned();
        }
    }

    /// Transactions with revision above `after`, oldest first, at most `limit` of them.
    pub fn changes(&self, after: Revision, limit: usize) -> Result<Vec<Arc<Applied>>, ReadError> {
        let inner = self.read();
        inner.readable(after)?;
        let start = inner.window.partition_point(|applied| applied.revision <= after);
        Ok(inner.window.range(start..).take(limit).cloned().collect())
    }

    /// Puts an entry there as a snapshot has it. Only before the first `apply`.
    pub fn load(&self, entry: Entry) {
        let mut inner = self.write();
        let live = Live { modified: entry.modified, entry: Arc::new(entry) };
        inner.live.insert(live.entry.key.clone(), live);
    }

    /// The state now stands at `revision` with no history before it.
    pub fn start_at(&self, revision: Revision) {
        let mut inner = self.write();
        (inner.current, inner.oldest) = (revision, revision);
    }

    /// Makes transactions visible, all at once. They come in the order of their revisions, each above the current one.
    pub fn apply(&self, transactions: Vec<(Revision, Vec<Edit>)>, now: Instant) -> Vec<Arc<Applied>> {
        // Splicing copies every value: done before the lock is taken.
        let prepared: Vec<(Revision, Vec<Prepared>)> = transactions
            .into_iter()
            .map(|(revision, changes)| {
                (revision, changes.into_iter().map(|change| prepare(change, revision)).collect())
            })
            .collect();
        let mut inner = self.write();
        let applied: Vec<Arc<Applied>> =
            prepared.into_iter().map(|(revision, changes)| inner.apply(revision, changes, now)).collect();
        let dropped = inner.trim(now);
        drop(inner);
        // Freed outside the lock: the window may give up many values at once.
        drop(dropped);
        applied
    }

    /// Drops what is older than the window's age. Returns when to call again; `None` when the window is empty.
    pub fn trim(&self, now: Instant) -> Option<Instant> {
        let mut inner = self.write();
        let dropped = inner.trim(now);
        let next = inner.window.front().map(|applied| applied.time + inner.history.age);
        drop(inner);
        drop(dropped);
        next
    }
}

struct Prepared {
    key: Key,
    /// Value and stamp with the revision in place.
    value: Option<(Bytes, Option<u32>)>,
    delete: bool,
}

fn prepare(change: Edit, revision: Revision) -> Prepared {
    let (payload, delete) = match change.op {
        Op::Put(payload) => (Some(payload), false),
        Op::Delete(last) => (last, true),
    };
    let value = payload.map(|payload| (splice(&payload.bytes, payload.stamp, 0, revision), payload.stamp));
    Prepared { key: change.key, value, delete }
}

/// A copy of `bytes` with `cut` bytes at `stamp` replaced by the digits of `revision`. A copy also without a stamp: the
/// caller's buffer may be a small part of a large one, which a live value must not keep.
pub(crate) fn splice(bytes: &[u8], stamp: Option<u32>, cut: usize, revision: Revision) -> Bytes {
    let Some((head, tail)) = stamp.and_then(|stamp| bytes.split_at_checked(stamp as usize)) else {
        return Bytes::copy_from_slice(bytes);
    };
    let digits = revision.0.to_string();
    let tail = tail.get(cut..).unwrap_or_default();
    let mut value = Vec::with_capacity(head.len() + digits.len() + tail.len());
    value.extend_from_slice(head);
    value.extend_from_slice(digits.as_bytes());
    value.extend_from_slice(tail);
    Bytes::from(value)
}

fn decimal_length(revision: Revision) -> usize {
    revision.0.checked_ilog10().unwrap_or(0) as usize + 1
}

fn lower_bound<'a>(prefix: &'a str, after: Option<&'a str>) -> Bound<&'a str> {
    match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    }
}

/// The first text after all that start with `prefix`; `None` when there is none. Bounding a scan by it, rather than
/// looking at each key, lets counting run through the tree without touching the keys.
fn prefix_end(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    // UTF-8 sorts like the code points it encodes; the one after the last is none, so the character before moves on.
    while let Some(last) = end.pop() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

/// What was there at `at`, by the changes since: `None` when no change is later than `at`.
fn before(past: &VecDeque<Before>, at: Revision) -> Option<Option<&Arc<Entry>>> {
    let index = past.partition_point(|before| before.until <= at);
    past.get(index).map(|before| before.entry.as_ref())
}

impl Inner {
    fn readable(&self, at: Revision) -> Result<(), ReadError> {
        if at < self.oldest {
            Err(ReadError::Compacted { asked: at, oldest: self.oldest })
        } else if at > self.current {
            Err(ReadError::Future { asked: at, current: self.current })
        } else {
            Ok(())
        }
    }

    /// The entries under `prefix` from `lower` on, as they were at the readable revision `at`, in order.
    fn visible<'a>(
        &'a self,
        prefix: &str,
        lower: Bound<&str>,
        at: Revision,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Entry>)> + use<'a> {
        let end = prefix_end(prefix);
        let lower = match (&end, lower) {
            // A page may be asked for after a key behind the prefix; the map takes no bounds that cross.
            (Some(end), Bound::Excluded(after)) if after >= end.as_str() => Bound::Included(end.as_str()),
            _ => lower,
        };
        let bounds = (lower, end.as_deref().map_or(Bound::Unbounded, Bound::Excluded));
        let mut live = self.live.range::<str, _>(bounds).peekable();
        // At the newest revision the past has nothing to say.
        let past = (at < self.current).then(|| self.past.range::<str, _>(bounds));
        let mut past = past.into_iter().flatten().peekable();
        std::iter::from_fn(move || {
            loop {
                // The smaller key is next; a key in both is taken from both.
                let order = match (live.peek(), past.peek()) {
                    (Some((key, _)), Some((changed, _))) => key.cmp(changed),
                    (Some(_), None) => Ordering::Less,
                    (None, Some(_)) => Ordering::Greater,
                    (None, None) => return None,
                };
                let now = if order.is_le() { live.next() } else { None };
                let history = if order.is_ge() { past.next() } else { None };
                let found = match (now, history) {
                    (Some((key, live)), _) if live.modified <= at => Some((key, &live.entry)),
                    (now, Some((key, history))) => {
                        let then = before(history, at).unwrap_or(now.map(|(_, live)| &live.entry));
                        then.map(|entry| (key, entry))
                    }
                    (now, None) => now.map(|(key, live)| (key, &live.entry)),
                };
                if found.is_some() {
                    return found;
                }
            }
        })
    }

    fn apply(&mut self, revision: Revision, changes: Vec<Prepared>, now: Instant) -> Arc<Applied> {
        let mut cost = 0;
        let mut events = Vec::with_capacity(changes.len());
        for change in changes {
            let previous = self.live.get(&*change.key).map(|live| live.entry.clone());
            let Some(event) = self.change(revision, change, previous.clone()) else { continue };
            let entry = event.entry();
            cost += EVENT_OVERHEAD + entry.key.len() + previous.as_ref().map_or(0, |previous| previous.value.len());
            if matches!(event.change, Change::Delete { .. }) {
                cost += entry.value.len();
            }
            let past = self.past.entry(entry.key.clone()).or_default();
            past.push_back(Before { until: revision, entry: previous });
            events.push(event);
        }
        let applied = Arc::new(Applied { revision, events, cost, time: now });
        self.window_bytes += cost;
        self.window.push_back(applied.clone());
        self.current = revision;
        applied
    }

    fn change(&mut self, revision: Revision, change: Prepared, previous: Option<Arc<Entry>>) -> Option<Event> {
        // The key that is there already is shared, not stored once more.
        let key = previous.as_ref().map_or(change.key, |previous| previous.key.clone());
        let created = previous.as_ref().map_or(revision, |previous| previous.created);
        if !change.delete {
            let (value, stamp) = change.value?;
            let entry = Arc::new(Entry { key: key.clone(), value, stamp, created, modified: revision });
            self.live.insert(key, Live { modified: revision, entry: entry.clone() });
            return Some(Event { revision, change: Change::Put { entry, previous } });
        }
        // A deletion of what is not there is refused before it is logged.
        let previous = previous?;
        self.live.remove(&*key);
        let (value, stamp) = change.value.unwrap_or_else(|| {
            let digits = decimal_length(previous.modified);
            (splice(&previous.value, previous.stamp, digits, revision), previous.stamp)
        });
        let entry = Arc::new(Entry { key, value, stamp, created, modified: revision });
        Some(Event { revision, change: Change::Delete { entry, previous } })
    }

    fn trim(&mut self, now: Instant) -> Vec<Arc<Applied>> {
        let mut dropped = Vec::new();
        while let Some(front) = self.window.front() {
            let expired = now.saturating_duration_since(front.time) >= self.history.age;
            if !expired && self.window_bytes <= self.history.bytes {
                break;
            }
            let Some(front) = self.window.pop_front() else { break };
            self.window_bytes -= front.cost;
            self.oldest = front.revision;
            for event in &front.events {
                if let btree_map::Entry::Occupied(mut past) = self.past.entry(event.entry().key.clone()) {
                    past.get_mut().pop_front();
                    if past.get().is_empty() {
                        past.remove();
                    }
                }
            }
            dropped.push(front);
        }
        dropped
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_end_of_a_prefix_divides_what_starts_with_it(prefix in "[a-c\u{7f}\u{d7ff}\u{10ffff}]{0,3}", key: String, tail: String) {
            for key in [key, format!("{prefix}{tail}"), format!("{prefix}\u{10ffff}{tail}")] {
                let inside = key >= prefix && prefix_end(&prefix).is_none_or(|end| key < end);
                prop_assert_eq!(inside, key.starts_with(&prefix), "{:?}", key);
            }
        }
    }

    #[test]
    fn splicing_puts_the_digits_in_and_replaces_them() {
        let first = splice(b"{\"rv\":\"\"}", Some(7), 0, Revision(99));
        assert_eq!(first, "{\"rv\":\"99\"}");
        assert_eq!(splice(&first, Some(7), decimal_length(Revision(99)), Revision(100)), "{\"rv\":\"100\"}");
        assert_eq!(splice(b"as it is", None, 0, Revision(1)), "as it is");
    }
}
