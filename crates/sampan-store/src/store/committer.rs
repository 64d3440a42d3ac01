//! The one task between the writers and the log: batches what waits, appends it, makes it visible, answers.

use super::*;

/// A transaction on its way to the log.
pub(super) struct Pending {
    pub proposal: Proposal,
    /// The writes in plain text, so that the state needs not open what was just sealed.
    pub edits: Vec<Edit>,
    pub answer: Answer,
}

type Answer = oneshot::Sender<Result<Committed, CommitError>>;

pub(super) struct Committer {
    pub shared: Arc<Shared>,
    pub tail: Box<dyn Tail>,
    pub tail_ended: bool,
}

enum Step {
    Batch(Vec<Pending>),
    Tail(Result<Vec<Transaction>, LogError>),
    Trim,
    End,
}

impl Committer {
    pub async fn run(mut self, mut queue: mpsc::Receiver<Pending>) {
        let mut phase = self.shared.phase.subscribe();
        let mut trim_at: Option<Instant> = None;
        loop {
            match self.step(&mut queue, &mut phase, trim_at).await {
                Step::Batch(batch) => {
                    self.commit(batch).await;
                    // Those just answered often write again: let them, so that the next sync covers them too.
                    tokio::task::yield_now().await;
                }
                Step::Tail(transactions) => drop(self.receive(transactions, &mut VecDeque::new())),
                Step::Trim => {}
                Step::End => break,
            }
            let now = self.shared.clock.instant();
            // Looked at when it is due, not with every batch: `apply` trims as well.
            if trim_at.is_none_or(|due| due <= now) {
                trim_at = self.shared.state.trim(now).map(|due| due.max(now + Duration::from_secs(1)));
            }
        }
        // Those that came before the end are still committed.
        queue.close();
        let mut rest = Vec::new();
        while queue.recv_many(&mut rest, BATCH_TRANSACTIONS).await > 0 {
            self.commit(std::mem::take(&mut rest)).await;
        }
        self.shared.log.close().await;
        self.shared.phase.send_replace(Phase::Closed);
    }

    async fn step(
        &mut self,
        queue: &mut mpsc::Receiver<Pending>,
        phase: &mut watch::Receiver<Phase>,
        trim_at: Option<Instant>,
    ) -> Step {
        let mut batch = Vec::new();
        let clock = self.shared.clock.clone();
        tokio::select! {
            biased;
            received = queue.recv_many(&mut batch, BATCH_TRANSACTIONS) => {
                if received == 0 { Step::End } else { Step::Batch(batch) }
            }
            transactions = self.tail.next(), if !self.tail_ended => Step::Tail(transactions),
            _ = phase.wait_for(|phase| *phase == Phase::Closing) => Step::End,
            () = async { clock.sleep_until(trim_at.unwrap_or_else(|| clock.instant())).await }, if trim_at.is_some() => Step::Trim,
        }
    }

    async fn commit(&mut self, batch: Vec<Pending>) {
        let mut rest = VecDeque::from(batch);
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = rest.iter().take_while(|pending| {
                bytes += pending.proposal.size();
                bytes <= BATCH_BYTES
            });
            // At least one: a transaction alone is never too large, see `validate`.
            let count = fits.count().max(1);
            let (proposals, waiting): (Vec<_>, Vec<_>) =
                rest.drain(..count).map(|pending| (pending.proposal, (pending.edits, pending.answer))).unzip();
            self.append(proposals, waiting).await;
        }
    }

    async fn append(&mut self, proposals: Vec<Proposal>, waiting: Vec<(Vec<Edit>, Answer)>) {
        let refuse_all = |waiting: Vec<(Vec<Edit>, Answer)>, error: &dyn Fn() -> CommitError| {
            for (_, answer) in waiting {
                let _ = answer.send(Err(error()));
            }
        };
        if let Phase::Failed(reason) = self.shared.phase.borrow().clone() {
            return refuse_all(waiting, &|| log_failed(&reason));
        }
        let verdicts = match self.shared.log.append(proposals, &self.shared.state).await {
            Ok(verdicts) => verdicts,
            Err(AppendError::Refused(reason)) => {
                return refuse_all(waiting, &|| CommitError::ReadOnly(reason.clone()));
            }
            Err(AppendError::Fatal(reason)) => {
                self.shared.fail(reason.clone());
                return refuse_all(waiting, &|| CommitError::Unavailable(reason.clone()));
            }
        };
        let mut own = VecDeque::new();
        let mut answers = Vec::with_capacity(waiting.len());
        for (verdict, (edits, answer)) in verdicts.into_iter().zip(waiting) {
            let writes = !edits.is_empty();
            if let (Verdict::Committed(revision), true) = (&verdict, writes) {
                own.push_back((*revision, edits));
            }
            answers.push((verdict, writes, answer));
        }
        let mut applied = VecDeque::new();
        while !own.is_empty() {
            let transactions = self.tail.next().await;
            match self.receive(transactions, &mut own) {
                Ok(more) => applied.extend(more),
                Err(reason) => {
                    for (_, _, answer) in answers {
                        let _ = answer.send(Err(CommitError::Unavailable(reason.clone())));
                    }
                    return;
                }
            }
        }
        for (verdict, writes, answer) in answers {
            let _ = answer.send(match verdict {
                Verdict::Committed(revision) if writes => {
                    while applied.front().is_some_and(|applied: &Arc<Applied>| applied.revision < revision) {
                        applied.pop_front();
                    }
                    let events = applied.front().map(|applied| applied.events.as_slice()).unwrap_or_default();
                    Ok(Committed {
                        revision,
                        entries: events.iter().map(|event| Entry::clone(event.entry())).collect(),
                    })
                }
                Verdict::Committed(revision) => Ok(Committed { revision, entries: Vec::new() }),
                Verdict::Refused { key, expect, found, at } => {
                    let current = self.shared.state.get_at(&key, at).ok().flatten();
                    Err(CommitError::Conflict { key, expect, found, current })
                }
            });
        }
    }

    /// Makes durable transactions visible. What this process wrote is at hand in plain text in `own`.
    fn receive(
        &mut self,
        transactions: Result<Vec<Transaction>, LogError>,
        own: &mut VecDeque<(Revision, Vec<Edit>)>,
    ) -> Result<Vec<Arc<Applied>>, String> {
        let opened = transactions.map_err(OpenError::from).and_then(|transactions| {
            let open = |transaction: Transaction| {
                if own.front().is_some_and(|(revision, _)| *revision == transaction.revision)
                    && let Some(ready) = own.pop_front()
                {
                    return Ok(ready);
                }
                open_transaction(&self.shared.keys, transaction)
            };
            transactions.into_iter().map(open).collect::<Result<Vec<_>, OpenError>>()
        });
        match opened {
            Ok(opened) => {
                let applied = self.shared.state.apply(opened, self.shared.clock.instant());
                self.shared.visible.send_replace(self.shared.state.revision());
                Ok(applied)
            }
            Err(error) => {
                self.tail_ended = true;
                self.shared.fail(error.to_string());
                Err(error.to_string())
            }
        }
    }
}
