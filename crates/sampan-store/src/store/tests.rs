//! What a store promises beyond the model: durability answers, bad days, watchers under load, determinism.

use std::path::Path;

use futures::future::join_all;
use sampan_base::disk::{Disk, MemoryDisk, RealDisk};

use super::*;
use crate::testing::{DIR, check, config, delete, history, key, open, payload, put, txn};
use crate::{Change, Event, Expect, WatchEnd};

#[tokio::test]
async fn what_is_written_is_read_stamped_and_lasts() {
    let disk = MemoryDisk::default();
    let store = open(&disk).await.expect("opens");
    assert_eq!(store.revision(), Revision(0));
    let committed = store.commit(txn(vec![put("/a", "one"), put("/b", "two")])).await.expect("commits");
    assert_eq!(committed.revision, Revision(1));
    assert_eq!(committed.entries[1].value, "{\"v\":\"two\",\"rv\":\"1\"}");
    assert_eq!(store.get("/b"), Some(committed.entries[1].clone()));
    let last = Write::Delete { key: key("/a"), last: Some(payload("the end")) };
    assert_eq!(store.commit(txn(vec![last])).await.expect("commits").entries[0].value, "the end");
    store.close().await;
    assert!(matches!(store.commit(txn(vec![put("/c", "x")])).await, Err(CommitError::ReadOnly(_))));

    let store = open(&disk).await.expect("opens again");
    assert_eq!((store.revision(), store.get("/a")), (Revision(2), None));
    assert_eq!(store.get("/b"), Some(committed.entries[1].clone()));
    // The window of history is rebuilt from the log: a watcher goes on where it was.
    let mut watch = store.watch("/", Revision(1)).expect("in the window");
    let event = watch.next().await.expect("the deletion");
    assert!(matches!(&event.change, Change::Delete { entry, previous }
        if entry.value == "the end" && previous.value == "{\"v\":\"one\",\"rv\":\"1\"}"));
}

#[tokio::test]
async fn a_comparison_leaves_no_trace_and_bad_transactions_are_the_callers_fault() {
    let store = open(&MemoryDisk::default()).await.expect("opens");
    store.commit(txn(vec![put("/a", "1")])).await.expect("commits");
    let compare = Txn { checks: vec![check("/a", Expect::Modified(Revision(1)))], writes: vec![] };
    assert_eq!(store.commit(compare).await.expect("holds").revision, Revision(1));
    assert_eq!(store.revision(), Revision(1));
    let outside = Write::Put { key: key("/a"), payload: Payload { bytes: "x".into(), stamp: Some(2) } };
    for writes in [vec![put("/a", "1"), delete("/a")], vec![outside], vec![put("", "1")]] {
        assert!(matches!(store.commit(txn(writes)).await, Err(CommitError::Invalid(_))));
    }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_until_there_is_room() {
    let disk = MemoryDisk::default();
    let store = open(&disk).await.expect("opens");
    store.commit(txn(vec![put("/a", "kept")])).await.expect("commits");
    let used: usize = ["formats.json", "log/00000000000000000000.log"]
        .iter()
        .map(|name| disk.read(&Path::new(DIR).join(name)).expect("is there").len())
        .sum();
    disk.set_capacity(Some(used as u64 + 40));
    for _ in 0..2 {
        let error = store.commit(txn(vec![put("/b", "too much for forty bytes")])).await.expect_err("no room");
        assert!(matches!(&error, CommitError::ReadOnly(text) if text == "the disk is full"), "{error}");
        assert_eq!((store.get("/b"), store.revision()), (None, Revision(1)));
    }
    assert!(open(&disk.after_crash(|_, unsynced| unsynced)).await.expect("opens").get("/a").is_some());
    disk.set_capacity(None);
    assert_eq!(store.commit(txn(vec![put("/b", "fits")])).await.expect("commits").revision, Revision(2));
    let again = open(&disk.after_crash(|_, _| 0)).await.expect("opens");
    assert!(again.get("/a").is_some() && again.get("/b").is_some());
}

#[tokio::test]
async fn a_failed_sync_is_fatal_and_reads_go_on() {
    let disk = MemoryDisk::default();
    let store = open(&disk).await.expect("opens");
    store.commit(txn(vec![put("/a", "1")])).await.expect("commits");
    disk.set_fail_syncs(true);
    let results = join_all((0..3).map(|_| store.commit(txn(vec![put("/b", "2")])))).await;
    assert!(matches!(results[0], Err(CommitError::Unavailable(_))), "{results:?}");
    assert!(store.fatal().await.contains("sync failed"));
    // Also when the disk claims to work again: what the kernel dropped stays lost.
    disk.set_fail_syncs(false);
    let error = store.commit(txn(vec![put("/c", "3")])).await.expect_err("the log is at an end");
    assert!(matches!(error, CommitError::ReadOnly(_)), "{error}");
    assert!(store.get("/a").is_some() && store.get("/b").is_none());
    assert_eq!(store.barrier().await, Ok(Revision(1)));
}

#[tokio::test]
async fn a_bad_record_before_a_good_one_refuses_and_names_the_place() {
    let disk = MemoryDisk::default();
    let store = open(&disk).await.expect("opens");
    for number in 0..3 {
        store.commit(txn(vec![put("/a", &number.to_string())])).await.expect("commits");
    }
    store.close().await;
    let path = Path::new(DIR).join("log/00000000000000000000.log");
    disk.corrupt(&path, |content| content[100] ^= 1);
    let error = open(&disk).await.err().expect("refused");
    let OpenError::Log(LogError::Damaged { file, offset, .. }) = &error else { panic!("{error}") };
    assert!(*file == path.display().to_string() && *offset < 100, "{error}");
    assert!(error.to_string().contains("sampan store check"), "{error}");
    let report = crate::check(&(Arc::new(disk) as SharedDisk), Path::new(DIR), &crate::testing::keys());
    assert_eq!((report.revision, report.problems.len()), (Revision(0), 1), "{report:?}");
    assert_eq!(report.problems[0], error.to_string());
}

#[tokio::test]
async fn values_are_sealed_on_disk_and_a_wrong_key_refuses() {
    let disk = MemoryDisk::default();
    let store = open(&disk).await.expect("opens");
    store.commit(txn(vec![put("/secrets/a", "hunter2")])).await.expect("commits");
    store.close().await;
    let content = disk.read(&Path::new(DIR).join("log/00000000000000000000.log")).expect("is there");
    assert!(content.windows(10).any(|window| window == b"/secrets/a"));
    assert!(!content.windows(7).any(|window| window == b"hunter2"));
    let wrong = Config { keys: KeyRing::new([(1, [8; 32])].into(), Dice::seeded(1)), ..config(&disk, history()) };
    let error = Store::open(wrong).await.err().expect("refused");
    assert!(matches!(&error, OpenError::Value { reason: OpenValueError::Rejected, .. }), "{error}");
}

#[tokio::test]
async fn a_newer_directory_is_refused() {
    let disk = MemoryDisk::default();
    open(&disk).await.expect("opens").close().await;
    disk.replace(&Path::new(DIR).join("formats.json"), b"{\"formats\":{\"log\":9}}").expect("replaced");
    let error = open(&disk).await.err().expect("refused");
    assert!(matches!(&error, OpenError::Manifest(ManifestError::Newer { format, found: 9, .. }) if format == "log"));
}

#[tokio::test]
async fn a_lost_log_is_not_taken_for_a_fresh_start() {
    let disk = MemoryDisk::default();
    open(&disk).await.expect("opens").close().await;
    disk.remove(&Path::new(DIR).join("log/00000000000000000000.log")).expect("removed");
    assert!(matches!(open(&disk).await.err(), Some(OpenError::Log(LogError::Damaged { .. }))));
}

#[tokio::test]
async fn a_second_process_is_kept_out() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let real =
        || Config { disk: Arc::new(RealDisk), dir: dir.path().into(), ..config(&MemoryDisk::default(), history()) };
    let store = Store::open(real()).await.expect("opens");
    assert!(matches!(Store::open(real()).await.err(), Some(OpenError::Log(LogError::Busy { .. }))));
    store.commit(txn(vec![put("/a", "1")])).await.expect("the first goes on");
    drop(store);
    assert!(Store::open(real()).await.expect("the first is gone").get("/a").is_some());
}

#[tokio::test]
async fn pages_may_start_anywhere() {
    let store = open(&MemoryDisk::default()).await.expect("opens");
    store.commit(txn(vec![put("/a/1", "x"), put("/a/2", "x"), put("/b/1", "x")])).await.expect("commits");
    store.commit(txn(vec![delete("/b/1")])).await.expect("commits");
    for (after, expected) in [("", 2), ("/a/", 2), ("/a/1", 1), ("/a/2", 0), ("/a0", 0), ("/b", 0), ("/z", 0)] {
        for at in [None, Some(Revision(1))] {
            let range = Range { prefix: "/a/", after: Some(after), limit: 5, at };
            assert_eq!(store.range(&range).expect("readable").entries.len(), expected, "after {after:?} at {at:?}");
        }
    }
}

#[tokio::test]
async fn a_slow_watcher_is_cut_off_and_others_are_not() {
    let store = open(&MemoryDisk::default()).await.expect("opens");
    let mut slow = store.watch("/a", Revision(0)).expect("from now");
    let mut other = store.watch("/b", Revision(0)).expect("from now");
    store.commit(txn(vec![put("/a", "0")])).await.expect("commits");
    assert_eq!(slow.next().await.expect("in time").revision, Revision(1));
    for number in 0..10_100 {
        store.commit(txn(vec![put("/a", &number.to_string())])).await.expect("a writer never waits");
    }
    store.commit(txn(vec![put("/b", "1")])).await.expect("commits");
    assert!(other.next().await.is_ok());
    assert_eq!(slow.next().await.err(), Some(WatchEnd::Lagged));
    assert_eq!(slow.progress(), Revision(1));
}

#[tokio::test]
async fn progress_advances_without_events_and_a_close_ends_watches_after_the_last() {
    let store = open(&MemoryDisk::default()).await.expect("opens");
    let mut all = store.watch("/", Revision(0)).expect("from now");
    let mut quiet = store.watch("/quiet/", Revision(0)).expect("from now");
    for _ in 0..5 {
        store.commit(txn(vec![put("/a", "x")])).await.expect("commits");
    }
    assert_eq!(all.next().await.expect("an event").revision, Revision(1));
    assert_eq!(all.progress(), Revision(1));
    while all.progress() < Revision(5) {
        all.next().await.expect("an event");
    }
    assert_eq!(quiet.progress(), Revision(5));
    store.commit(txn(vec![put("/a", "last")])).await.expect("commits");
    store.close().await;
    assert_eq!(all.next().await.expect("the last event").revision, Revision(6));
    assert_eq!(all.next().await.err(), Some(WatchEnd::Closed));
    assert_eq!(quiet.next().await.err(), Some(WatchEnd::Closed));
    assert_eq!(store.watch("/", Revision(6)).err(), Some(ReadError::Closed));
}

#[tokio::test(start_paused = true)]
async fn history_ends_with_its_age_also_without_writes() {
    let store = open(&MemoryDisk::default()).await.expect("opens");
    for _ in 0..2 {
        store.commit(txn(vec![put("/a", "x")])).await.expect("commits");
    }
    assert!(store.get_at("/a", Revision(1)).is_ok());
    tokio::time::sleep(Duration::from_secs(302)).await;
    let gone = ReadError::Compacted { asked: Revision(1), oldest: Revision(2) };
    assert_eq!(store.get_at("/a", Revision(1)).err(), Some(gone));
    assert!(store.watch("/", Revision(2)).is_ok());
}

/// One writer's transactions: each counts up its own key and a key all share.
async fn write(store: Store, writer: usize, count: usize) -> Vec<(Revision, Vec<Entry>)> {
    let mut done = Vec::new();
    for number in 0..count {
        let writes = vec![put(&format!("/w{writer}/{}", number % 5), &number.to_string()), put("/shared", "x")];
        let committed = store.commit(txn(writes)).await.expect("commits");
        assert!(store.get("/shared").is_some_and(|entry| entry.modified >= committed.revision), "reads its own write");
        done.push((committed.revision, committed.entries));
    }
    done
}

async fn watch_to(mut watch: Watch, end: Revision) -> Vec<Event> {
    let mut events: Vec<Event> = Vec::new();
    while events.last().is_none_or(|event| event.revision < end) {
        let event = watch.next().await.expect("not cut off");
        assert!(watch.progress() >= Revision(event.revision.0 - 1));
        events.push(event);
    }
    events
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watchers_see_every_event_in_order_once_under_concurrent_commits() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let real =
        Config { disk: Arc::new(RealDisk), dir: dir.path().join("data"), ..config(&MemoryDisk::default(), history()) };
    let store = Store::open(real).await.expect("opens");
    let (writers, count) = (8, 100);
    let end = Revision((writers * count) as u64);
    let tasks: Vec<_> = (0..writers).map(|writer| task::spawn("writer", write(store.clone(), writer, count))).collect();
    let mut watching = Vec::new();
    // Watches that start at different times, some from the beginning, some from what is newest then.
    for start in 0..8_u64 {
        store.wait_for(Revision(start * 90)).await.expect("open");
        let after = if start % 2 == 0 { Revision(0) } else { store.revision() };
        let watch = store.watch("/shared", after).expect("in the window");
        let all = store.watch("/", after).expect("in the window");
        watching.push((after, task::spawn("watch", watch_to(watch, end)), task::spawn("watch", watch_to(all, end))));
    }
    let mut committed: Vec<(Revision, Vec<Entry>)> = Vec::new();
    for task in tasks {
        committed.extend(task.await.expect("no panic"));
    }
    committed.sort_by_key(|(revision, _)| *revision);
    assert_eq!(committed.iter().map(|(r, _)| r.0).collect::<Vec<_>>(), (1..=end.0).collect::<Vec<_>>());
    for (after, shared, all) in watching {
        let expected: Vec<&Entry> =
            committed.iter().filter(|(revision, _)| *revision > after).flat_map(|(_, entries)| entries).collect();
        let only_shared: Vec<&Entry> = expected.iter().copied().filter(|entry| &*entry.key == "/shared").collect();
        let seen = shared.await.expect("no panic");
        assert_eq!(seen.iter().map(|event| &**event.entry()).collect::<Vec<_>>(), only_shared);
        // The last transaction has two events; `watch_to` stops at the first.
        let seen = all.await.expect("no panic");
        assert_eq!(seen.len(), expected.len() - 1);
        assert!(seen.iter().zip(&expected).all(|(event, entry)| &**event.entry() == *entry));
    }
    store.close().await;
}

/// Commits in an order that the seed decides; what matters of the outcome.
fn trace(seed: u64) -> Vec<String> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(async {
        let store = open(&MemoryDisk::default()).await.expect("opens");
        let mut watch = store.watch("/", Revision(0)).expect("from now");
        let dice = Dice::seeded(seed);
        let writers = (0..10_usize).map(|writer| {
            let (store, pause) = (store.clone(), Duration::from_millis(dice.below(20)));
            async move {
                tokio::time::sleep(pause).await;
                write(store, writer, 3).await
            }
        });
        join_all(writers).await;
        let mut trace = Vec::new();
        while watch.progress() < store.revision() {
            let event = watch.next().await.expect("an event");
            trace.push(format!("{} {} {:?}", event.revision.0, event.entry().key, event.entry().value));
        }
        trace
    })
}

#[test]
fn one_seed_gives_one_history() {
    assert_eq!(trace(3), trace(3));
    assert_ne!(trace(3), trace(4));
}
