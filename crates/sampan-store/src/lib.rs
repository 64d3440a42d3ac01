//! The state of a cluster and the log below it: versioned keys and values, consistent snapshots, watches, durable
//! conditional writes.
//!
//! It knows no kinds: keys are paths, values are bytes. The API server is its only user. **State** ([`Store`]) answers
//! every read; a [`log::Log`] makes writes durable. Nothing is visible to a reader before it is durable.

mod check;
mod codec;
pub mod keys;
pub mod log;
pub mod manifest;
mod state;
mod store;
#[cfg(test)]
mod testing;
mod watch;

use std::sync::Arc;

use bytes::Bytes;

pub use check::{Report, check};
pub use keys::{KeyError, KeyRing};
pub use store::{Config, History, OpenError, Store};
pub use watch::{Watch, WatchEnd};

/// A position in the history of writes. Every committed transaction gets the next one; none is ever used twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct Revision(pub u64);

/// A path such as `/pods/default/web-0`. Ordered by bytes.
pub type Key = Arc<str>;

/// One value at one revision. Cheap to clone: the bytes are shared.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub key: Key,
    /// The payload with the revision spliced in.
    pub value: Bytes,
    /// Where in `value` the decimal digits of `modified` start, when the payload asked for them.
    pub stamp: Option<u32>,
    /// The revision that created the key (after its last deletion).
    pub created: Revision,
    /// The revision that wrote this value.
    pub modified: Revision,
}

/// Bytes to store. When `stamp` is set, the decimal digits of the revision that commits them are inserted there.
#[derive(Clone, Debug)]
pub struct Payload {
    pub bytes: Bytes,
    pub stamp: Option<u32>,
}

/// What must hold for a transaction to commit.
#[derive(Clone, Debug)]
pub struct Check {
    pub key: Key,
    pub expect: Expect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    Present,
    /// Present, and last written by this revision.
    Modified(Revision),
}

#[derive(Clone, Debug)]
pub enum Write {
    Put {
        key: Key,
        payload: Payload,
    },
    /// Of a key that is there; otherwise the transaction conflicts. `last` is what watchers see as the final state of
    /// the object (stamped with the revision of the deletion); without it they see the last stored value, its stamp
    /// moved to the revision of the deletion.
    Delete {
        key: Key,
        last: Option<Payload>,
    },
}

/// All checks hold and all writes happen, or nothing does. A transaction writes each key at most once. Without writes
/// it only compares: it commits at the current revision and leaves no trace.
#[derive(Clone, Debug, Default)]
pub struct Txn {
    pub checks: Vec<Check>,
    pub writes: Vec<Write>,
}

/// What a commit did: its revision and the entries as stored, in the order of the writes. A deletion's entry carries
/// its final state with `modified` set to the revision of the deletion.
#[derive(Clone, Debug)]
pub struct Committed {
    pub revision: Revision,
    pub entries: Vec<Entry>,
}

/// Why a commit did not happen. Only `Unavailable` leaves open whether it did.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// The first check that failed, and the entry that is there instead.
    #[error("{key}: expected {expect:?}, found {found:?}")]
    Conflict { key: Key, expect: Expect, found: Option<Revision>, current: Option<Entry> },
    /// The log takes no more writes (disk full, log closed): nothing was written.
    #[error("the log takes no writes: {0}")]
    ReadOnly(String),
    /// The transaction breaks the store's rules (a key written twice, a stamp outside the bytes): the caller's fault.
    #[error("not a valid transaction: {0}")]
    Invalid(&'static str),
    /// The log failed while writing; whether the write survives is not known.
    #[error("the outcome of the write is unknown: {0}")]
    Unavailable(String),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// `oldest` is the first revision that can still be read or watched from.
    #[error("revision {asked:?} is gone; the oldest kept is {oldest:?}")]
    Compacted { asked: Revision, oldest: Revision },
    #[error("revision {asked:?} is ahead of {current:?}")]
    Future { asked: Revision, current: Revision },
    #[error("the store is closed")]
    Closed,
}

/// A range read: keys that start with `prefix`, after `after`, in order.
#[derive(Clone, Debug, Default)]
pub struct Range<'a> {
    pub prefix: &'a str,
    /// Exclusive lower bound: the last key of the page before.
    pub after: Option<&'a str>,
    /// 0 means no limit.
    pub limit: usize,
    /// `None` reads the newest revision; pages of one list name the revision of the first page.
    pub at: Option<Revision>,
}

#[derive(Clone, Debug)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// The revision this page is consistent at.
    pub revision: Revision,
    /// How many keys of the prefix come after the last entry of this page.
    pub remaining: u64,
}

/// One change as watchers see it. A transaction's changes come in one batch, in the order of its writes.
#[derive(Clone, Debug)]
pub struct Event {
    pub revision: Revision,
    pub change: Change,
}

#[derive(Clone, Debug)]
pub enum Change {
    /// `previous` is the value that was replaced; `None`: the key was created.
    Put { entry: Arc<Entry>, previous: Option<Arc<Entry>> },
    /// `entry` is the final state, `modified` the revision of the deletion; `previous` the last stored value.
    Delete { entry: Arc<Entry>, previous: Arc<Entry> },
}

impl Event {
    /// The entry after a put, the final state after a deletion.
    pub fn entry(&self) -> &Arc<Entry> {
        let (Change::Put { entry, .. } | Change::Delete { entry, .. }) = &self.change;
        entry
    }
}
