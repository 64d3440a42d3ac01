//! A log in memory: for tests and simulations that don't care for the disk. It keeps every transaction and lasts as
//! long as its clones, which share the content, so a store can be "restarted" on one.

use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use tokio::sync::watch;

use super::{
    AppendError, EmptySnapshot, Live, Log, LogError, Proposal, Snapshot, Tail, Transaction, Verdict, committed, decide,
};
use crate::Revision;

#[derive(Clone)]
pub struct MemoryLog {
    transactions: Arc<Mutex<Vec<Transaction>>>,
    /// The head, for tails that wait; `None` once closed.
    head: Arc<watch::Sender<Option<Revision>>>,
}

impl Default for MemoryLog {
    fn default() -> Self {
        Self { transactions: Arc::default(), head: Arc::new(watch::Sender::new(Some(Revision(0)))) }
    }
}

impl MemoryLog {
    fn lock(&self) -> MutexGuard<'_, Vec<Transaction>> {
        self.transactions.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The same content in a log that is open.
    pub fn reopen(&self) -> Self {
        let transactions = self.lock().clone();
        let head = Revision(transactions.len() as u64);
        Self { transactions: Arc::new(Mutex::new(transactions)), head: Arc::new(watch::Sender::new(Some(head))) }
    }
}

#[async_trait]
impl Log for MemoryLog {
    async fn append(&self, batch: Vec<Proposal>, live: &dyn Live) -> Result<Vec<Verdict>, AppendError> {
        let mut transactions = self.lock();
        if self.head.borrow().is_none() {
            return Err(AppendError::Refused("the log is closed".to_owned()));
        }
        let verdicts = decide(&batch, Revision(transactions.len() as u64), live);
        transactions.extend(committed(batch, &verdicts));
        self.head.send_replace(Some(Revision(transactions.len() as u64)));
        Ok(verdicts)
    }

    async fn head(&self) -> Result<Revision, LogError> {
        self.head.borrow().ok_or(LogError::Closed)
    }

    async fn tail(&self, after: Revision) -> Result<Box<dyn Tail>, LogError> {
        Ok(Box::new(MemoryTail { log: self.clone(), head: self.head.subscribe(), after }))
    }

    async fn snapshot(&self) -> Result<Box<dyn Snapshot>, LogError> {
        Ok(Box::new(EmptySnapshot))
    }

    async fn close(&self) {
        self.head.send_replace(None);
    }
}

struct MemoryTail {
    log: MemoryLog,
    head: watch::Receiver<Option<Revision>>,
    after: Revision,
}

#[async_trait]
impl Tail for MemoryTail {
    async fn next(&mut self) -> Result<Vec<Transaction>, LogError> {
        loop {
            let head = *self.head.borrow_and_update();
            // Revisions are consecutive from 1: the index of the next one is the revision before it.
            let next: Vec<Transaction> = self.log.lock().iter().skip(self.after.0 as usize).cloned().collect();
            if let Some(last) = next.last() {
                self.after = last.revision;
                return Ok(next);
            }
            if head.is_none() || self.head.changed().await.is_err() {
                return Err(LogError::Closed);
            }
        }
    }
}
