//! The store: the state fed from a log, with one committer between writers and the log.
//!
//! ```text
//! commit() ─ seal ─▶ queue ─▶ committer ─▶ log.append (one sync for all that wait)
//!                                 ▲              │
//!                       answers ◀─┤          log.tail
//!                                 └── state ◀────┘ ──▶ dispatcher ──▶ watchers
//! ```
//!
//! The state learns of every transaction only from the log's tail, after it is durable. Writers are answered after
//! their transaction is visible, so who has an answer can read what he wrote.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use sampan_base::clock::{Clock, Instant};
use sampan_base::disk::SharedDisk;
use sampan_base::{Dice, task};
use tokio::sync::{mpsc, oneshot, watch};

pub use crate::state::History;

mod committer;

use crate::keys::{KeyRing, OpenValueError};
use crate::log::{
    AppendError, EmbeddedLog, Live, Log, LogError, Proposal, Record, Sealed, Sizes, Tail, Transaction, Verdict,
};
use crate::manifest::{self, ManifestError};
use crate::state::{Applied, Edit, Op, State};
use crate::watch::{Hub, Watch};
use crate::{CommitError, Committed, Entry, Key, Page, Payload, Range, ReadError, Revision, Txn, Write};
use committer::{Committer, Pending};

/// How many transactions may wait for the committer before `commit` itself waits.
const QUEUE_LENGTH: usize = 4096;
/// How much goes into one append: about what a disk takes in a few milliseconds.
const BATCH_TRANSACTIONS: usize = 1024;
const BATCH_BYTES: usize = 8 << 20;
/// The largest transaction: four times what upstream's etcd takes (`--max-request-bytes`, 1.5 MiB).
const TRANSACTION_BYTES: usize = 6 << 20;
const KEY_BYTES: usize = 4096;
/// Where the log's files are within the data directory.
pub(crate) const LOG_DIR: &str = "log";

pub struct Config {
    pub disk: SharedDisk,
    /// Where the log's files and the manifest of formats are. Created when absent.
    pub dir: PathBuf,
    pub clock: Clock,
    pub dice: Dice,
    pub keys: KeyRing,
    pub history: History,
}

/// Why a store does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("{key} at revision {}: {reason}", revision.0)]
    Value { key: Key, revision: Revision, reason: OpenValueError },
}

/// A cheap handle; clones are the same store. When the last is dropped the background tasks end.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    queue: mpsc::Sender<Pending>,
}

struct Shared {
    state: State,
    hub: Arc<Hub>,
    log: Arc<dyn Log>,
    keys: KeyRing,
    clock: Clock,
    visible: watch::Sender<Revision>,
    phase: watch::Sender<Phase>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    /// The log failed: reads go on, writes are refused.
    Failed(String),
    Closing,
    Closed,
}

impl Live for State {
    fn modified(&self, key: &str) -> Option<Revision> {
        State::modified(self, key)
    }
}

impl Store {
    /// Opens the embedded log in `config.dir`, creating it when absent, and loads the state.
    pub async fn open(config: Config) -> Result<Store, OpenError> {
        Self::open_sized(config, Sizes::default()).await
    }

    async fn open_sized(config: Config, sizes: Sizes) -> Result<Store, OpenError> {
        let Config { disk, dir, clock, dice: _, keys, history } = config;
        let failed =
            |error: std::io::Error| LogError::Io { file: dir.display().to_string(), reason: error.to_string() };
        disk.create_dir_all(&dir).map_err(failed)?;
        let known = manifest::check(&*disk, &dir)?;
        let log = EmbeddedLog::open(disk.clone(), dir.join(LOG_DIR), sizes, known).await?;
        if !known {
            // After the first segment: a manifest says that there must be one.
            manifest::write(&*disk, &dir)?;
        }
        Self::over(Arc::new(log), keys, clock, history).await
    }

    /// A store over any log.
    pub async fn over(log: Arc<dyn Log>, keys: KeyRing, clock: Clock, history: History) -> Result<Store, OpenError> {
        let state = State::new(history);
        let mut snapshot = log.snapshot().await?;
        while let Some(part) = snapshot.next().await? {
            for saved in part {
                let payload = open_value(&keys, &saved.key, saved.modified, &saved.value)?;
                let value = crate::state::splice(&payload.bytes, payload.stamp, 0, saved.modified);
                let (key, created, modified) = (saved.key, saved.created, saved.modified);
                state.load(Entry { key, value, stamp: payload.stamp, created, modified });
            }
        }
        state.start_at(snapshot.revision());
        let mut tail = log.tail(snapshot.revision()).await?;
        let head = log.head().await?;
        while state.revision() < head {
            let transactions = open_transactions(&keys, tail.next().await?)?;
            state.apply(transactions, clock.instant());
        }
        let hub = Arc::new(Hub::default());
        hub.start_at(state.revision());
        let shared = Arc::new(Shared {
            visible: watch::Sender::new(state.revision()),
            phase: watch::Sender::new(Phase::Open),
            state,
            hub,
            log,
            keys,
            clock,
        });
        let (queue, pending) = mpsc::channel(QUEUE_LENGTH);
        task::spawn("store-committer", Committer { shared: shared.clone(), tail, tail_ended: false }.run(pending));
        task::spawn("store-dispatcher", dispatch(shared.clone()));
        Ok(Store { shared, queue })
    }

    /// The newest visible revision.
    pub fn revision(&self) -> Revision {
        self.shared.state.revision()
    }

    /// Waits until the state has everything that was acknowledged, by any writer of the log, when this was called.
    pub async fn barrier(&self) -> Result<Revision, ReadError> {
        let head = self.shared.log.head().await.map_err(|_| ReadError::Closed)?;
        self.wait_for(head).await?;
        Ok(head)
    }

    /// Waits until `revision` is visible, for ever if it never is: the caller sets the limit.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), ReadError> {
        let mut visible = self.shared.visible.subscribe();
        let mut phase = self.shared.phase.subscribe();
        tokio::select! {
            biased;
            reached = visible.wait_for(|visible| *visible >= revision) => match reached {
                Ok(_) => Ok(()),
                Err(_) => Err(ReadError::Closed),
            },
            _ = phase.wait_for(|phase| *phase == Phase::Closed) => Err(ReadError::Closed),
        }
    }

    /// The newest value of `key`.
    pub fn get(&self, key: &str) -> Option<Entry> {
        self.shared.state.get(key)
    }

    /// The value of `key` at a revision within the window of history.
    pub fn get_at(&self, key: &str, at: Revision) -> Result<Option<Entry>, ReadError> {
        self.shared.state.get_at(key, at)
    }

    /// One page of a list, consistent at `range.at` or the newest revision.
    pub fn range(&self, range: &Range<'_>) -> Result<Page, ReadError> {
        self.shared.state.range(range)
    }

    /// How many keys start with `prefix`.
    pub fn count(&self, prefix: &str) -> u64 {
        self.shared.state.count(prefix)
    }

    /// Commits all of `txn` or nothing. Answers once it is durable and visible. A commit whose future is dropped may
    /// still happen.
    pub async fn commit(&self, txn: Txn) -> Result<Committed, CommitError> {
        validate(&txn)?;
        if let Some(error) = self.shared.refusal() {
            return Err(error);
        }
        // Sealing is the expensive part: done here, on the writer's thread, not by the one committer.
        let (proposal, edits) = prepare(&self.shared.keys, txn);
        let (answer, answered) = oneshot::channel();
        self.queue.send(Pending { proposal, edits, answer }).await.map_err(|_| closed())?;
        answered.await.unwrap_or_else(|_| Err(CommitError::Unavailable("the store stopped".to_owned())))
    }

    /// The changes under `prefix` after revision `after`.
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, ReadError> {
        self.shared.hub.watch(&self.shared.state, prefix, after)
    }

    /// Resolves with the reason once the log has failed: the process should say so and end, since nothing can be
    /// written until the log was opened anew. Never resolves otherwise.
    pub async fn fatal(&self) -> String {
        let mut phase = self.shared.phase.subscribe();
        match phase.wait_for(|phase| matches!(phase, Phase::Failed(_))).await.as_deref() {
            Ok(Phase::Failed(reason)) => reason.clone(),
            _ => std::future::pending().await,
        }
    }

    /// Commits what is queued, ends the background work and all watches. Reads of what is loaded go on.
    pub async fn close(&self) {
        let mut phase = self.shared.phase.subscribe();
        self.shared.phase.send_if_modified(|phase| {
            let first = matches!(phase, Phase::Open | Phase::Failed(_));
            if first {
                *phase = Phase::Closing;
            }
            first
        });
        let _ = phase.wait_for(|phase| *phase == Phase::Closed).await;
    }
}

fn closed() -> CommitError {
    CommitError::ReadOnly("the store is closed".to_owned())
}

fn log_failed(reason: &str) -> CommitError {
    CommitError::ReadOnly(format!("the log has failed: {reason}"))
}

fn validate(txn: &Txn) -> Result<(), CommitError> {
    let mut keys: Vec<&str> = Vec::with_capacity(txn.writes.len());
    let mut bytes = 0;
    for write in &txn.writes {
        let (key, payload) = match write {
            Write::Put { key, payload } => (key, Some(payload)),
            Write::Delete { key, last } => (key, last.as_ref()),
        };
        if key.is_empty() || key.len() > KEY_BYTES {
            return Err(CommitError::Invalid("a key is empty or longer than 4096 bytes"));
        }
        if let Some(payload) = payload {
            if payload.stamp.is_some_and(|stamp| stamp as usize > payload.bytes.len()) {
                return Err(CommitError::Invalid("a stamp is outside of the payload"));
            }
            bytes += payload.bytes.len();
        }
        keys.push(key);
    }
    keys.sort_unstable();
    if keys.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(CommitError::Invalid("a key is written twice"));
    }
    if bytes > TRANSACTION_BYTES {
        return Err(CommitError::Invalid("larger than 6 MiB"));
    }
    Ok(())
}

fn prepare(keys: &KeyRing, txn: Txn) -> (Proposal, Vec<Edit>) {
    let mut writes = Vec::with_capacity(txn.writes.len());
    let mut edits = Vec::with_capacity(txn.writes.len());
    for write in txn.writes {
        let (key, change, op) = match write {
            Write::Put { key, payload } => {
                let sealed = keys.seal(&key, &payload);
                (key, Sealed::Put(sealed), Op::Put(payload))
            }
            Write::Delete { key, last } => {
                let sealed = last.as_ref().map(|last| keys.seal(&key, last));
                (key, Sealed::Delete(sealed), Op::Delete(last))
            }
        };
        writes.push(Record { key: key.clone(), change });
        edits.push(Edit { key, op });
    }
    (Proposal { checks: txn.checks, writes }, edits)
}

fn open_value(keys: &KeyRing, key: &Key, revision: Revision, sealed: &bytes::Bytes) -> Result<Payload, OpenError> {
    keys.open(key, sealed).map_err(|reason| OpenError::Value { key: key.clone(), revision, reason })
}

fn open_transaction(keys: &KeyRing, transaction: Transaction) -> Result<(Revision, Vec<Edit>), OpenError> {
    let revision = transaction.revision;
    let open = |record: Record| {
        let op = match record.change {
            Sealed::Put(value) => Op::Put(open_value(keys, &record.key, revision, &value)?),
            Sealed::Delete(None) => Op::Delete(None),
            Sealed::Delete(Some(last)) => Op::Delete(Some(open_value(keys, &record.key, revision, &last)?)),
        };
        Ok(Edit { key: record.key, op })
    };
    Ok((revision, transaction.writes.into_iter().map(open).collect::<Result<_, OpenError>>()?))
}

fn open_transactions(keys: &KeyRing, transactions: Vec<Transaction>) -> Result<Vec<(Revision, Vec<Edit>)>, OpenError> {
    transactions.into_iter().map(|transaction| open_transaction(keys, transaction)).collect()
}

impl Shared {
    /// Why no write is taken, if so.
    fn refusal(&self) -> Option<CommitError> {
        match &*self.phase.borrow() {
            Phase::Open => None,
            Phase::Failed(reason) => Some(log_failed(reason)),
            Phase::Closing | Phase::Closed => Some(closed()),
        }
    }

    fn fail(&self, reason: String) {
        tracing::error!(%reason, "the log has failed; the store takes no more writes");
        self.phase.send_if_modified(|phase| {
            let open = *phase == Phase::Open;
            if open {
                *phase = Phase::Failed(reason);
            }
            open
        });
    }
}

/// Hands out changes as they become visible.
async fn dispatch(shared: Arc<Shared>) {
    let mut visible = shared.visible.subscribe();
    let mut phase = shared.phase.subscribe();
    loop {
        while shared.hub.dispatch(&shared.state) {
            tokio::task::yield_now().await;
        }
        tokio::select! {
            biased;
            changed = visible.changed() => if changed.is_err() { return },
            _ = phase.wait_for(|phase| *phase == Phase::Closed) => break,
        }
    }
    while shared.hub.dispatch(&shared.state) {}
    shared.hub.close();
}

#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod fixture_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod tests;
