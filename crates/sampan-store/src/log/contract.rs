//! The contract of every log, as one suite that each implementation runs.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use sampan_base::disk::{MemoryDisk, RealDisk, SharedDisk};

use super::*;
use crate::testing::{check, key};

/// The caller's side of the contract: an index kept from the tail alone.
#[derive(Default)]
struct Index {
    live: BTreeMap<Key, Revision>,
    all: Vec<Transaction>,
}

impl Live for Index {
    fn modified(&self, key: &str) -> Option<Revision> {
        self.live.get(key).copied()
    }
}

impl Index {
    fn take(&mut self, transactions: Vec<Transaction>) {
        for transaction in transactions {
            for record in &transaction.writes {
                match record.change {
                    Sealed::Put(_) => drop(self.live.insert(record.key.clone(), transaction.revision)),
                    Sealed::Delete(_) => drop(self.live.remove(&record.key)),
                }
            }
            self.all.push(transaction);
        }
    }

    async fn drain(&mut self, tail: &mut dyn Tail, head: Revision) {
        while self.all.last().map_or(Revision(0), |last| last.revision) < head {
            self.take(tail.next().await.expect("the tail goes on"));
        }
    }
}

fn put(name: &str, value: &str) -> Record {
    Record { key: key(name), change: Sealed::Put(Bytes::copy_from_slice(value.as_bytes())) }
}

fn delete(name: &str, last: Option<&str>) -> Record {
    let last = last.map(|last| Bytes::copy_from_slice(last.as_bytes()));
    Record { key: key(name), change: Sealed::Delete(last) }
}

fn propose(checks: Vec<crate::Check>, writes: Vec<Record>) -> Proposal {
    Proposal { checks, writes }
}

/// `reopen` closes nothing: it opens the same content once more after the log was closed.
async fn contract<L: Log, F: AsyncFn(Option<L>) -> L>(reopen: F) {
    let log = reopen(None).await;
    let mut index = Index::default();
    assert_eq!(log.head().await.expect("head"), Revision(0));
    let mut tail = log.tail(Revision(0)).await.expect("tail");

    // Conditions are evaluated in order, each on top of what the batch has written before it.
    let batch = vec![
        propose(vec![check("/a", Expect::Absent)], vec![put("/a", "1"), put("/b", "1")]),
        propose(vec![check("/a", Expect::Absent)], vec![put("/a", "2")]),
        propose(vec![check("/a", Expect::Modified(Revision(1)))], vec![put("/a", "3")]),
        propose(vec![check("/b", Expect::Present)], vec![]),
        propose(vec![], vec![delete("/b", Some("gone"))]),
        propose(vec![], vec![delete("/b", None)]),
        propose(vec![check("/b", Expect::Modified(Revision(1)))], vec![put("/b", "4")]),
    ];
    let verdicts = log.append(batch, &index).await.expect("append");
    let refused = |name: &str, expect, found, at| Verdict::Refused { key: key(name), expect, found, at: Revision(at) };
    let expected = [
        Verdict::Committed(Revision(1)),
        refused("/a", Expect::Absent, Some(Revision(1)), 1),
        Verdict::Committed(Revision(2)),
        Verdict::Committed(Revision(2)),
        Verdict::Committed(Revision(3)),
        refused("/b", Expect::Present, None, 3),
        refused("/b", Expect::Modified(Revision(1)), None, 3),
    ];
    assert_eq!(verdicts, expected);
    assert_eq!(log.head().await.expect("head"), Revision(3));
    index.drain(&mut *tail, Revision(3)).await;
    assert_eq!(index.all.iter().map(|transaction| transaction.revision.0).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(index.all[0].writes, [put("/a", "1"), put("/b", "1")]);
    assert_eq!(index.all[2].writes, [delete("/b", Some("gone"))]);

    // Against what was committed by earlier batches.
    let stale = propose(vec![check("/a", Expect::Modified(Revision(1)))], vec![put("/a", "x")]);
    let verdicts = log.append(vec![stale], &index).await.expect("append");
    assert_eq!(verdicts, [refused("/a", Expect::Modified(Revision(1)), Some(Revision(2)), 3)]);

    // Enough to fill several segments and make a snapshot where a log has these, with deletions among it.
    for round in 0..200_u64 {
        let name = format!("/many/{:02}", round % 20);
        let write = match index.live.contains_key(&*name) && round % 7 == 0 {
            true => delete(&name, None),
            false => put(&name, &format!("{round} {}", "x".repeat(100))),
        };
        let verdicts = log.append(vec![propose(vec![], vec![write])], &index).await.expect("append");
        assert_eq!(verdicts, [Verdict::Committed(Revision(4 + round))]);
        index.drain(&mut *tail, Revision(4 + round)).await;
    }
    let head = log.head().await.expect("head");

    // A tail from the middle has the rest and no more, or says what is left.
    for after in [Revision(2), Revision(head.0 / 2), Revision(head.0 - 1)] {
        match log.tail(after).await {
            Ok(mut tail) => {
                let mut rest = Vec::new();
                while rest.last().map_or(after, |last: &Transaction| last.revision) < head {
                    rest.extend(tail.next().await.expect("the tail goes on"));
                }
                assert_eq!(rest, index.all[after.0 as usize..], "after {after:?}");
            }
            Err(LogError::Compacted { asked, oldest }) => assert!(asked == after && after < oldest),
            Err(error) => panic!("{error}"),
        }
    }

    log.close().await;
    assert!(matches!(log.append(vec![], &index).await, Err(AppendError::Refused(_))));
    assert!(matches!(tail.next().await, Err(LogError::Closed)));

    // After closing and opening again: snapshot and tail together make the same index, and revisions go on.
    let log = reopen(Some(log)).await;
    assert_eq!(log.head().await.expect("head"), head);
    let mut again = Index::default();
    let mut created = BTreeMap::new();
    let mut snapshot = log.snapshot().await.expect("snapshot");
    while let Some(part) = snapshot.next().await.expect("part") {
        for saved in part {
            created.insert(saved.key.clone(), saved.created);
            let known = index.all[saved.modified.0 as usize - 1].writes.iter().find(|record| record.key == saved.key);
            assert_eq!(known.map(|record| record.change.clone()), Some(Sealed::Put(saved.value)));
            assert!(again.live.insert(saved.key, saved.modified).is_none(), "a key is in the snapshot twice");
        }
    }
    for (name, created) in created {
        let history = index.all[..snapshot.revision().0 as usize].iter().flat_map(|transaction| {
            transaction.writes.iter().filter(|record| record.key == name).map(|record| (transaction.revision, record))
        });
        let first = history.fold(None, |first, (revision, record)| match record.change {
            Sealed::Put(_) => first.or(Some(revision)),
            Sealed::Delete(_) => None,
        });
        assert_eq!(Some(created), first, "{name} was created at another revision");
    }
    let mut tail = log.tail(snapshot.revision()).await.expect("tail");
    while again.all.last().map_or(snapshot.revision(), |last| last.revision) < head {
        again.take(tail.next().await.expect("the tail goes on"));
    }
    assert_eq!(again.live, index.live);
    let verdicts = log.append(vec![propose(vec![], vec![put("/next", "1")])], &again).await.expect("append");
    assert_eq!(verdicts, [Verdict::Committed(Revision(head.0 + 1))]);
    log.close().await;
}

async fn embedded(disk: SharedDisk, dir: &Path, sizes: Sizes) {
    let open = async |_: Option<EmbeddedLog>| {
        EmbeddedLog::open(disk.clone(), dir.to_path_buf(), sizes, false).await.expect("opens")
    };
    contract(open).await;
}

#[tokio::test]
async fn the_log_in_memory_keeps_the_contract() {
    contract(async |log: Option<MemoryLog>| log.map_or_else(MemoryLog::default, |log| log.reopen())).await;
}

#[tokio::test]
async fn the_embedded_log_keeps_the_contract() {
    let small = Sizes { segment: 700, compact: 2000, part: 600 };
    for sizes in [Sizes::default(), small] {
        embedded(Arc::new(MemoryDisk::default()), Path::new("/log"), sizes).await;
        let dir = tempfile::tempdir().expect("a temporary directory");
        embedded(Arc::new(RealDisk), &dir.path().join("log"), sizes).await;
    }
}

#[tokio::test]
async fn small_sizes_do_make_snapshots() {
    let disk = MemoryDisk::default();
    let sizes = Sizes { segment: 700, compact: 2000, part: 600 };
    embedded(Arc::new(disk.clone()), Path::new("/log"), sizes).await;
    let log = EmbeddedLog::open(Arc::new(disk), "/log".into(), sizes, true).await.expect("opens");
    let snapshot = log.snapshot().await.expect("snapshot");
    assert!(snapshot.revision() > Revision(100), "{:?}", snapshot.revision());
    assert!(matches!(log.tail(Revision(1)).await, Err(LogError::Compacted { .. })));
}
