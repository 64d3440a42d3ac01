//! The log below the state: what makes transactions durable and gives them their revisions.
//!
//! A log sees keys and sealed values (see [`crate::keys`]), never plain text. The contract every log keeps is the
//! suite in `log/contract.rs`; the embedded log on a disk and the one in memory run it. A log that several processes
//! write to fits too: the state learns of every transaction, its own included, only from [`Tail::next`], and a log
//! that holds its own index ignores [`Live`].

mod compact;
#[cfg(test)]
mod contract;
mod embedded;
mod files;
mod frame;
mod memory;
mod survey;

use std::collections::BTreeMap;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Expect, Key, Revision};
pub use embedded::{EmbeddedLog, Sizes};
pub(crate) use files::{SEGMENT_FORMAT, SNAPSHOT_FORMAT};
pub use memory::MemoryLog;
pub(crate) use survey::survey;

/// A durable sequence of transactions.
#[async_trait]
pub trait Log: Send + Sync + 'static {
    /// Takes transactions in order, each if its conditions hold after those before it, and makes the taken ones durable
    /// together. Returns one verdict for each. `live` answers for the moment after the newest transaction the caller has
    /// had from its tail; a log with a single writer relies on it, so the caller drains the tail to the head first.
    async fn append(&self, batch: Vec<Proposal>, live: &dyn Live) -> Result<Vec<Verdict>, AppendError>;

    /// The revision of the newest durable transaction.
    async fn head(&self) -> Result<Revision, LogError>;

    /// Every transaction after `after`, in order, then those to come. `Compacted` when they are not all there any more.
    async fn tail(&self, after: Revision) -> Result<Box<dyn Tail>, LogError>;

    /// What was live at some revision from which on [`Log::tail`] has everything.
    async fn snapshot(&self) -> Result<Box<dyn Snapshot>, LogError>;

    /// Ends background work and every tail. Further appends are `Refused`.
    async fn close(&self);
}

#[async_trait]
pub trait Tail: Send {
    /// The next transactions, at least one; waits for them. `Closed` when the log is closed and all were handed out.
    /// Cancel safe.
    async fn next(&mut self) -> Result<Vec<Transaction>, LogError>;
}

#[async_trait]
pub trait Snapshot: Send {
    fn revision(&self) -> Revision;
    /// The next part, in any order; `None` at the end.
    async fn next(&mut self) -> Result<Option<Vec<Saved>>, LogError>;
}

/// The index of the caller's state.
pub trait Live: Sync {
    /// The revision that wrote the key, if it is there.
    fn modified(&self, key: &str) -> Option<Revision>;
}

/// A transaction to be.
#[derive(Clone, Debug)]
pub struct Proposal {
    pub checks: Vec<crate::Check>,
    pub writes: Vec<Record>,
}

impl Proposal {
    /// About how many bytes it takes in the log.
    pub fn size(&self) -> usize {
        let value = |change: &Sealed| match change {
            Sealed::Put(value) | Sealed::Delete(Some(value)) => value.len(),
            Sealed::Delete(None) => 0,
        };
        self.writes.iter().map(|record| record.key.len() + value(&record.change) + 16).sum()
    }
}

/// One write as the log keeps it.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub key: Key,
    pub change: Sealed,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Sealed {
    Put(Bytes),
    /// With the final state, if it differs from what is stored.
    Delete(Option<Bytes>),
}

/// A durable transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Transaction {
    pub revision: Revision,
    pub writes: Vec<Record>,
}

/// A live key in a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    pub key: Key,
    pub created: Revision,
    pub modified: Revision,
    pub value: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Committed(Revision),
    /// `expect` did not hold for `key` at revision `at`, where `found` wrote what was there.
    Refused {
        key: Key,
        expect: Expect,
        found: Option<Revision>,
        at: Revision,
    },
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    /// Nothing was written; a later append may succeed (disk full).
    #[error("{0}")]
    Refused(String),
    /// Whether anything of the batch survives is not known, and the log takes no more.
    #[error("{0}")]
    Fatal(String),
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    #[error("the log has no transactions right after {asked:?} any more, it starts after {oldest:?}")]
    Compacted { asked: Revision, oldest: Revision },
    /// The bytes at `offset` of `file` are not what was written. Opening refuses, so that nothing acknowledged is lost
    /// silently.
    #[error("{file} is damaged at offset {offset}: {reason}; run `sampan store check` to see what can be saved")]
    Damaged { file: String, offset: u64, reason: String },
    #[error("{file}: {reason}")]
    Io { file: String, reason: String },
    #[error("{file} is locked: another process has this log open")]
    Busy { file: String },
    #[error("the log is closed")]
    Closed,
}

/// Which transactions of a batch commit on top of `head`, and as which revisions: checks are evaluated in order against
/// `live` and the transactions of the batch before. A deletion checks that its key is there.
pub fn decide(batch: &[Proposal], head: Revision, live: &dyn Live) -> Vec<Verdict> {
    let mut written: BTreeMap<&str, Option<Revision>> = BTreeMap::new();
    let mut at = head;
    let mut verdicts = Vec::with_capacity(batch.len());
    for proposal in batch {
        let find = |key: &str| written.get(key).copied().unwrap_or_else(|| live.modified(key));
        let deletions = proposal.writes.iter().filter(|record| matches!(record.change, Sealed::Delete(_)));
        let implied = deletions.map(|record| (&record.key, Expect::Present));
        let failed =
            proposal.checks.iter().map(|check| (&check.key, check.expect)).chain(implied).find_map(|(key, expect)| {
                let found = find(key);
                let holds = match expect {
                    Expect::Absent => found.is_none(),
                    Expect::Present => found.is_some(),
                    Expect::Modified(revision) => found == Some(revision),
                };
                (!holds).then(|| Verdict::Refused { key: key.clone(), expect, found, at })
            });
        verdicts.push(failed.unwrap_or_else(|| {
            if !proposal.writes.is_empty() {
                at = Revision(at.0 + 1);
            }
            for record in &proposal.writes {
                let there = matches!(record.change, Sealed::Put(_)).then_some(at);
                written.insert(&record.key, there);
            }
            Verdict::Committed(at)
        }));
    }
    verdicts
}

/// The transactions of a batch that commit, in order.
fn committed(batch: Vec<Proposal>, verdicts: &[Verdict]) -> Vec<Transaction> {
    let pairs = batch.into_iter().zip(verdicts);
    pairs
        .filter(|(proposal, _)| !proposal.writes.is_empty())
        .filter_map(|(proposal, verdict)| match verdict {
            Verdict::Committed(revision) => Some(Transaction { revision: *revision, writes: proposal.writes }),
            Verdict::Refused { .. } => None,
        })
        .collect()
}

/// The snapshot of a log that has everything in its tail.
struct EmptySnapshot;

#[async_trait]
impl Snapshot for EmptySnapshot {
    fn revision(&self) -> Revision {
        Revision(0)
    }

    async fn next(&mut self) -> Result<Option<Vec<Saved>>, LogError> {
        Ok(None)
    }
}
