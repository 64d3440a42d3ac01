//! Any history of transactions, a crash before any operation on the disk, a tear at any byte of what was not synced,
//! any byte flipped: opened again, every acknowledged write is there or the store refuses to open; nothing is half
//! there; revisions move ahead.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures::future::join_all;
use proptest::prelude::*;
use sampan_base::disk::{AppendFile, Disk, MemoryDisk};

use super::*;
use crate::Expect;
use crate::testing::{DIR, config, delete, history, put, txn};

/// Small, so that a short history has several segments and snapshots.
const SIZES: Sizes = Sizes { segment: 400, compact: 900, part: 300 };

/// What was visible of a key: value, created, modified.
type Contents = BTreeMap<String, (bytes::Bytes, Revision, Revision)>;

/// A disk whose power is cut before its `n`th change: `cut` is what is left then. It goes on as if nothing happened.
#[derive(Clone)]
struct CrashingDisk {
    inner: MemoryDisk,
    plan: Arc<Mutex<Plan>>,
}

struct Plan {
    changes_left: usize,
    /// How much of what was not synced survives, in parts of 256.
    torn: u8,
    acknowledged: Revision,
    /// The disk after the cut, and what had been acknowledged then.
    cut: Option<(MemoryDisk, Revision)>,
}

impl CrashingDisk {
    fn step(&self) {
        let mut plan = self.plan.lock().expect("not poisoned");
        if plan.changes_left == 0 && plan.cut.is_none() {
            let torn = plan.torn as usize;
            plan.cut = Some((self.inner.after_crash(|_, unsynced| unsynced * torn / 255), plan.acknowledged));
        }
        plan.changes_left = plan.changes_left.saturating_sub(1);
    }
}

impl Disk for CrashingDisk {
    fn blocks(&self) -> bool {
        false
    }
    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        self.inner.create_dir_all(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        self.inner.list(path)
    }
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.inner.read(path)
    }
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        self.step();
        Ok(Box::new(CrashingFile { inner: self.inner.open_append(path)?, disk: self.clone() }))
    }
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        self.step();
        self.inner.replace(path, content)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step();
        self.inner.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.step();
        self.inner.remove(path)
    }
}

struct CrashingFile {
    inner: Box<dyn AppendFile>,
    disk: CrashingDisk,
}

impl AppendFile for CrashingFile {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn append(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        self.disk.step();
        self.inner.append(parts)
    }
    fn sync(&mut self) -> io::Result<()> {
        self.disk.step();
        self.inner.sync()
    }
    fn truncate(&mut self, length: u64) -> io::Result<()> {
        self.disk.step();
        self.inner.truncate(length)
    }
}

#[derive(Clone, Debug)]
struct Step {
    /// Committed at the same time: key numbers and whether to delete.
    group: Vec<Vec<(u8, bool)>>,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let writes = prop::collection::btree_map(0..6_u8, prop::bool::weighted(0.25), 1..4);
    let writes = writes.prop_map(|writes| writes.into_iter().collect::<Vec<_>>());
    let group = prop::collection::vec(writes, 1..4);
    prop::collection::vec(group.prop_map(|group| Step { group }), 1..25)
}

fn contents(store: &Store) -> Contents {
    let page = store.range(&Range::default()).expect("the newest revision is readable");
    page.entries
        .into_iter()
        .map(|entry| (entry.key.to_string(), (entry.value, entry.created, entry.modified)))
        .collect()
}

async fn open(disk: Arc<dyn Disk>) -> Result<Store, OpenError> {
    let config = Config { disk, ..config(&MemoryDisk::default(), history()) };
    Store::open_sized(config, SIZES).await
}

/// Runs the history; returns what the disk was at the cut (or at the end), what was acknowledged, and what was visible
/// at each revision.
async fn run(steps: &[Step], crash_at: usize, torn: u8) -> (MemoryDisk, Revision, BTreeMap<Revision, Contents>) {
    let plan = Plan { changes_left: crash_at, torn, acknowledged: Revision(0), cut: None };
    let disk = CrashingDisk { inner: MemoryDisk::default(), plan: Arc::new(Mutex::new(plan)) };
    let store = open(Arc::new(disk.clone())).await.expect("a fresh directory opens");
    let mut visible = BTreeMap::from([(Revision(0), Contents::new())]);
    for (number, step) in steps.iter().enumerate() {
        let commits = step.group.iter().enumerate().map(|(member, writes)| {
            let write = |(key, gone): &(u8, bool)| match (format!("/k/{key}"), gone) {
                (key, true) => delete(&key),
                (key, false) => put(&key, &format!("step {number}.{member}")),
            };
            store.commit(txn(writes.iter().map(write).collect()))
        });
        let results = join_all(commits).await;
        let mut last = Revision(0);
        for (writes, result) in step.group.iter().zip(results) {
            let committed = match result {
                Ok(committed) => committed,
                Err(CommitError::Conflict { expect: Expect::Present, found: None, .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            let (before, mut next) = visible.last_key_value().map(|(at, all)| (*at, all.clone())).expect("never empty");
            assert_eq!(committed.revision, Revision(before.0 + 1), "revisions are consecutive");
            for ((_, gone), entry) in writes.iter().zip(committed.entries) {
                match gone {
                    true => drop(next.remove(&*entry.key)),
                    false => drop(next.insert(entry.key.to_string(), (entry.value, entry.created, entry.modified))),
                }
            }
            last = committed.revision;
            visible.insert(last, next);
        }
        let mut plan = disk.plan.lock().expect("not poisoned");
        plan.acknowledged = plan.acknowledged.max(last);
    }
    assert_eq!(visible.last_key_value().map(|(_, last)| last), Some(&contents(&store)));
    let plan = disk.plan.lock().expect("not poisoned");
    match &plan.cut {
        Some((cut, acknowledged)) => (cut.clone(), *acknowledged, visible),
        None => (disk.inner.after_crash(|_, _| 0), plan.acknowledged, visible),
    }
}

fn files(disk: &MemoryDisk) -> Vec<PathBuf> {
    [Path::new(DIR).to_path_buf(), Path::new(DIR).join(LOG_DIR)]
        .iter()
        .flat_map(|dir| disk.list(dir).unwrap_or_default().into_iter().map(|name| dir.join(name)))
        .filter(|path| disk.read(path).is_ok_and(|content| !content.is_empty()))
        .collect()
}

async fn verify(disk: MemoryDisk, acknowledged: Revision, visible: &BTreeMap<Revision, Contents>, may_refuse: bool) {
    let report = crate::check(&(Arc::new(disk.clone()) as SharedDisk), Path::new(DIR), &crate::testing::keys());
    let store = match open(Arc::new(disk.clone())).await {
        Ok(store) => store,
        Err(error) => {
            assert!(may_refuse, "refused to open after a crash: {error}");
            assert!(!report.problems.is_empty(), "check finds nothing, but opening says: {error}");
            return;
        }
    };
    let revision = store.revision();
    assert!(revision >= acknowledged, "{acknowledged:?} was acknowledged, {revision:?} is there");
    assert_eq!(visible.get(&revision), Some(&contents(&store)), "at {revision:?}");
    let next = store.commit(txn(vec![put("/after", "crash")])).await.expect("writes go on").revision;
    assert_eq!(next, Revision(revision.0 + 1));
    store.close().await;
    // What the recovery did lasts.
    let again = open(Arc::new(disk)).await.expect("opens again");
    assert_eq!(again.revision(), next);
    assert!(again.get("/after").is_some());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_crash_anywhere_loses_nothing_acknowledged(steps in steps(), crash_at in 0..160_usize, torn: u8) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (disk, acknowledged, visible) = run(&steps, crash_at, torn).await;
            verify(disk, acknowledged, &visible, false).await;
        });
    }

    #[test]
    fn a_flipped_byte_is_noticed_or_harmless(
        steps in steps(),
        crash_at in 0..160_usize,
        torn: u8,
        file: prop::sample::Index,
        place: prop::sample::Index,
        flip in 1..=255_u8,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let (disk, acknowledged, visible) = run(&steps, crash_at, torn).await;
            let files = files(&disk);
            if !files.is_empty() {
                let path: &PathBuf = file.get(&files);
                disk.corrupt(path, |content| {
                    let at = place.index(content.len());
                    content[at] ^= flip;
                });
            }
            verify(disk, acknowledged, &visible, true).await;
        });
    }
}

/// Every crash point of one history that rotates and compacts, so that none is left to chance.
#[tokio::test]
async fn every_step_of_rotation_and_compaction_may_be_the_last() {
    let steps: Vec<Step> = (0..30).map(|number| Step { group: vec![vec![(number % 6, number % 5 == 4)]] }).collect();
    let mut compacted = false;
    for crash_at in 0..200 {
        for torn in [0, 100, 255] {
            let (disk, acknowledged, visible) = run(&steps, crash_at, torn).await;
            compacted |= files(&disk).iter().any(|path| path.extension().is_some_and(|extension| extension == "snap"));
            verify(disk, acknowledged, &visible, false).await;
        }
    }
    assert!(compacted, "the history is too short to make a snapshot");
}
