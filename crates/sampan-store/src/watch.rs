//! Watches: one dispatcher hands every change to the queues of the watchers whose prefix it falls under.
//!
//! The committer never waits for a watcher: it only leaves transactions in the window of history, from which the
//! dispatcher takes them. A watcher whose queue is full is cut off; if the dispatcher itself falls behind the window,
//! all are.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use crate::state::{Applied, State};
use crate::{Event, ReadError, Revision};

/// How many events may wait for one watcher before it is cut off, beside those it was owed when it started.
const QUEUE_LIMIT: usize = 10_000;
/// How many transactions are handed out, or replayed, between two points where other tasks may run.
const TRANSACTIONS_PER_TURN: usize = 256;
/// About half a millisecond of handing out, during which watches can't start or end.
const PUSHES_PER_TURN: usize = 4096;

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchEnd {
    /// The watcher was too slow and events were dropped: list again.
    #[error("the watcher was too slow")]
    Lagged,
    #[error("the store is closed")]
    Closed,
}

/// The changes under one prefix, in order, each once. Dropping it ends the watch.
pub struct Watch {
    prefix: Arc<str>,
    queue: Arc<Queue>,
    hub: Arc<Hub>,
}

impl Watch {
    /// The next change. Cancel safe.
    pub async fn next(&mut self) -> Result<Event, WatchEnd> {
        loop {
            {
                let mut waiting = self.queue.lock();
                if let Some(event) = waiting.events.pop_front() {
                    if waiting.events.is_empty() {
                        // A burst must not leave its capacity behind in a thousand idle watches.
                        waiting.events.shrink_to(16);
                    }
                    return Ok(event);
                }
                if let Some(end) = waiting.end {
                    return Err(end);
                }
            }
            self.queue.ready.notified().await;
        }
    }

    /// Every change up to this revision has been handed out by [`Watch::next`]. Advances also when nothing under the
    /// prefix changes, which is what a bookmark says.
    pub fn progress(&self) -> Revision {
        // Read before the queue: what is published is in the queue already, or was taken from it.
        let published = self.hub.published();
        let waiting = self.queue.lock();
        match waiting.events.front() {
            Some(event) => Revision(event.revision.0 - 1),
            None if waiting.end == Some(WatchEnd::Lagged) => waiting.cut_at,
            None => published.max(waiting.started_after),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.hub.remove(&self.prefix, &self.queue);
    }
}

struct Queue {
    waiting: Mutex<Waiting>,
    ready: Notify,
}

struct Waiting {
    events: VecDeque<Event>,
    limit: usize,
    end: Option<WatchEnd>,
    started_after: Revision,
    /// Up to where events were handed out when the watcher was cut off.
    cut_at: Revision,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// False when the watcher has to be forgotten.
    fn push(&self, event: &Event) -> bool {
        let mut waiting = self.lock();
        if event.revision <= waiting.started_after {
            return true;
        }
        let fits = waiting.events.len() < waiting.limit;
        if fits {
            waiting.events.push_back(event.clone());
        } else {
            waiting.cut();
        }
        drop(waiting);
        self.ready.notify_one();
        fits
    }

    fn end(&self, end: WatchEnd) {
        let mut waiting = self.lock();
        match end {
            WatchEnd::Lagged => waiting.cut(),
            // What is queued is complete up to the end: it may still be read.
            WatchEnd::Closed => waiting.end = waiting.end.or(Some(end)),
        }
        drop(waiting);
        self.ready.notify_one();
    }
}

impl Waiting {
    fn cut(&mut self) {
        self.cut_at = self.events.front().map_or(self.started_after, |event| Revision(event.revision.0 - 1));
        self.events = VecDeque::new();
        self.end = Some(WatchEnd::Lagged);
    }
}

/// All watchers of one store.
#[derive(Default)]
pub(crate) struct Hub {
    watchers: Mutex<Watchers>,
    /// Everything up to here was put into the queues. Written under the lock, and only after the queues.
    published: AtomicU64,
}

#[derive(Default)]
struct Watchers {
    /// By length of the prefix, then by prefix: a key is looked up once for each length in use, however many watchers
    /// there are.
    by_prefix: BTreeMap<usize, BTreeMap<Arc<str>, Vec<Arc<Queue>>>>,
    closed: bool,
}

impl Hub {
    fn lock(&self) -> MutexGuard<'_, Watchers> {
        self.watchers.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn published(&self) -> Revision {
        Revision(self.published.load(Ordering::Acquire))
    }

    pub fn start_at(&self, revision: Revision) {
        self.published.store(revision.0, Ordering::Release);
    }

    /// A watch of what changes under `prefix` after `after`.
    pub fn watch(self: &Arc<Self>, state: &State, prefix: &str, after: Revision) -> Result<Watch, ReadError> {
        let mut events = VecDeque::new();
        let mut cursor = after;
        // The long way without the hub's lock, so that a watch from far back doesn't hold up the others …
        let mut watchers = loop {
            let (reached, replayed) = replay(state, prefix, cursor, &mut events)?;
            cursor = reached;
            if replayed < TRANSACTIONS_PER_TURN {
                break self.lock();
            }
        };
        // … then the rest up to what is published, under it: what comes later arrives by the queue.
        let published = self.published();
        while cursor < published {
            cursor = replay(state, prefix, cursor, &mut events)?.0;
        }
        if watchers.closed {
            return Err(ReadError::Closed);
        }
        // The replay may have run ahead of the dispatcher, which will bring those events itself.
        while events.back().is_some_and(|event| event.revision > published.max(after)) {
            events.pop_back();
        }
        let waiting =
            Waiting { limit: events.len() + QUEUE_LIMIT, events, end: None, started_after: after, cut_at: after };
        let queue = Arc::new(Queue { waiting: Mutex::new(waiting), ready: Notify::new() });
        let prefix: Arc<str> = prefix.into();
        let same_length = watchers.by_prefix.entry(prefix.len()).or_default();
        same_length.entry(prefix.clone()).or_default().push(queue.clone());
        drop(watchers);
        Ok(Watch { prefix, queue, hub: self.clone() })
    }

    fn remove(&self, prefix: &str, queue: &Arc<Queue>) {
        let mut watchers = self.lock();
        let Some(same_length) = watchers.by_prefix.get_mut(&prefix.len()) else { return };
        if let Some(queues) = same_length.get_mut(prefix) {
            queues.retain(|other| !Arc::ptr_eq(other, queue));
            if queues.is_empty() {
                same_length.remove(prefix);
            }
        }
        if same_length.is_empty() {
            watchers.by_prefix.remove(&prefix.len());
        }
    }

    /// Hands out what became visible since the last call, a bounded part of it. True when there is more.
    pub fn dispatch(&self, state: &State) -> bool {
        let mut watchers = self.lock();
        let Ok(batch) = state.changes(self.published(), TRANSACTIONS_PER_TURN) else {
            tracing::warn!("the dispatcher fell behind the window of history; cutting every watch off");
            watchers.end_all(WatchEnd::Lagged);
            self.published.store(state.revision().0, Ordering::Release);
            return true;
        };
        let mut pushed = 0;
        for applied in &batch {
            if pushed > PUSHES_PER_TURN {
                return true;
            }
            pushed += applied.events.iter().map(|event| watchers.route(event)).sum::<usize>();
            self.published.store(applied.revision.0, Ordering::Release);
        }
        batch.len() == TRANSACTIONS_PER_TURN
    }

    pub fn close(&self) {
        let mut watchers = self.lock();
        watchers.closed = true;
        watchers.end_all(WatchEnd::Closed);
    }
}

impl Watchers {
    /// Returns how many queues got it.
    fn route(&mut self, event: &Event) -> usize {
        let mut pushed = 0;
        let key = &event.entry().key;
        for (length, same_length) in &mut self.by_prefix {
            // Beyond the key, or inside a character of it: no prefix of that length matches.
            let Some(prefix) = key.get(..*length) else { continue };
            if let Some(queues) = same_length.get_mut(prefix) {
                pushed += queues.len();
                queues.retain(|queue| queue.push(event));
            }
        }
        pushed
    }

    fn end_all(&mut self, end: WatchEnd) {
        for queue in std::mem::take(&mut self.by_prefix).into_values().flat_map(BTreeMap::into_values).flatten() {
            queue.end(end);
        }
    }
}

/// Adds the next transactions after `cursor` to `events`; returns how far it came and how many transactions that were.
fn replay(
    state: &State,
    prefix: &str,
    cursor: Revision,
    events: &mut VecDeque<Event>,
) -> Result<(Revision, usize), ReadError> {
    let batch: Vec<Arc<Applied>> = state.changes(cursor, TRANSACTIONS_PER_TURN)?;
    for event in batch.iter().flat_map(|applied| &applied.events) {
        if event.entry().key.starts_with(prefix) {
            events.push_back(event.clone());
        }
    }
    Ok((batch.last().map_or(cursor, |applied| applied.revision), batch.len()))
}
