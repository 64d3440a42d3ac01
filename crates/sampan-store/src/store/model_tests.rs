//! Random histories against a model that keeps a whole copy of the contents for every revision.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sampan_base::disk::MemoryDisk;

use super::*;
use crate::testing::{check, config, delete, put, txn};
use crate::{Change, Expect};

#[derive(Clone, Debug, PartialEq)]
struct Value {
    text: String,
    created: Revision,
    modified: Revision,
}

type Contents = BTreeMap<String, Value>;

#[derive(Clone, Debug)]
struct Op {
    /// Of each key: what is expected of it (0 nothing, 1 absent, 2 present, 3 as it is), and whether it is deleted.
    writes: Vec<(u8, u8, bool)>,
}

fn name(index: u8) -> String {
    // Prefixes of each other, and a character of more than one byte.
    ["/a/x", "/a/x1", "/a/y", "/ab/x", "/b/é", "/b/ê", "/c"][index as usize].to_owned()
}

const PREFIXES: [&str; 9] = ["", "/", "/a", "/a/", "/a/x", "/b/", "/b/é", "/d", "/c"];

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let writes = prop::collection::btree_map(0..7_u8, (0..4_u8, prop::bool::weighted(0.3)), 1..4);
    let op = writes.prop_map(|writes| Op {
        writes: writes.into_iter().map(|(key, (expect, delete))| (key, expect, delete)).collect(),
    });
    prop::collection::vec(op, 1..60)
}

fn holds(expect: Expect, now: Option<&Value>) -> bool {
    match expect {
        Expect::Absent => now.is_none(),
        Expect::Present => now.is_some(),
        Expect::Modified(revision) => now.is_some_and(|value| value.modified == revision),
    }
}

fn stored(text: &str, revision: Revision) -> String {
    format!("{{\"v\":\"{text}\",\"rv\":\"{}\"}}", revision.0)
}

fn as_value(entry: &Entry) -> Value {
    let text = String::from_utf8(entry.value.to_vec()).expect("text");
    let stamp = entry.stamp.expect("all payloads here ask for a stamp") as usize;
    assert!(text[stamp..].starts_with(&format!("{}\"", entry.modified.0)), "{text} at {stamp}");
    Value { text, created: entry.created, modified: entry.modified }
}

async fn agree(ops: Vec<Op>, history_bytes: usize, page: usize) {
    let history = History { bytes: history_bytes, age: Duration::from_secs(300) };
    let store = Store::open(config(&MemoryDisk::default(), history)).await.expect("opens");
    let mut model: Vec<Contents> = vec![Contents::new()];
    // (revision, key, deleted) of every change, in order.
    let mut changes: Vec<(Revision, String, bool)> = Vec::new();
    let mut watches: Vec<(usize, Revision, Watch)> = Vec::new();
    for (number, op) in ops.iter().enumerate() {
        let now = model.last().expect("never empty").clone();
        if number % 7 == 0 {
            let which = number % PREFIXES.len();
            let revision = store.revision();
            watches.push((which, revision, store.watch(PREFIXES[which], revision).expect("from now")));
        }
        let mut request = txn(Vec::new());
        let mut fits = true;
        for (key, expect, gone) in &op.writes {
            let key = name(*key);
            let current = now.get(&key);
            let expect = match expect {
                1 => Some(Expect::Absent),
                2 => Some(Expect::Present),
                3 => Some(Expect::Modified(current.map_or(Revision(1), |value| value.modified))),
                _ => None,
            };
            request.checks.extend(expect.map(|expect| check(&key, expect)));
            fits &= expect.is_none_or(|expect| holds(expect, current)) && !(*gone && current.is_none());
            request.writes.push(if *gone { delete(&key) } else { put(&key, &number.to_string()) });
        }
        let result = store.commit(request).await;
        assert_eq!(result.is_ok(), fits, "{op:?} on {now:?}: {result:?}");
        let committed = match result {
            Ok(committed) => committed,
            Err(CommitError::Conflict { key, expect, found, current }) => {
                let there = now.get(&*key);
                assert!(!holds(expect, there));
                assert_eq!(found, there.map(|value| value.modified));
                assert_eq!(current.as_ref().map(as_value).as_ref(), there);
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let revision = Revision(model.len() as u64);
        assert_eq!(committed.revision, revision);
        let mut next = now.clone();
        for (key, _, gone) in &op.writes {
            let key = name(*key);
            let created = now.get(&key).map_or(revision, |value| value.created);
            match gone {
                true => drop(next.remove(&key)),
                false => {
                    let text = stored(&number.to_string(), revision);
                    next.insert(key.clone(), Value { text, created, modified: revision });
                }
            }
            changes.push((revision, key, *gone));
        }
        model.push(next);
    }
    compare_reads(&store, &model, page);
    for (which, after, mut watch) in watches {
        let expected = changes.iter().filter(|(at, key, _)| *at > after && key.starts_with(PREFIXES[which]));
        // With a window of a few bytes the dispatcher itself may be overtaken: then the watch says so.
        let may_lag = history_bytes != usize::MAX;
        compare_events(expected, &mut watch, &model, may_lag).await;
    }
    for after in (0..model.len() as u64).map(Revision) {
        for prefix in PREFIXES {
            match store.watch(prefix, after) {
                Ok(mut watch) => {
                    let expected = changes.iter().filter(|(at, key, _)| *at > after && key.starts_with(prefix));
                    compare_events(expected, &mut watch, &model, false).await;
                }
                Err(error) => {
                    assert!(matches!(error, ReadError::Compacted { asked, oldest } if asked == after && after < oldest))
                }
            }
        }
    }
}

async fn compare_events(
    expected: impl Iterator<Item = &(Revision, String, bool)>,
    watch: &mut Watch,
    model: &[Contents],
    may_lag: bool,
) {
    for (revision, key, gone) in expected {
        let event = match watch.next().await {
            Ok(event) => event,
            Err(end) => return assert!(may_lag && end == crate::WatchEnd::Lagged, "{end}"),
        };
        assert_eq!((event.revision, &*event.entry().key), (*revision, &**key));
        let before = model[revision.0 as usize - 1].get(key);
        let (entry, previous) = match &event.change {
            Change::Put { entry, previous } => (entry, previous.clone()),
            Change::Delete { entry, previous } => (entry, Some(previous.clone())),
        };
        assert_eq!(matches!(event.change, Change::Delete { .. }), *gone);
        assert_eq!(previous.as_deref().map(as_value).as_ref(), before);
        assert_eq!(as_value(entry).modified, *revision);
        if !gone {
            assert_eq!(model[revision.0 as usize].get(key), Some(&as_value(entry)));
        }
        assert!(watch.progress() < Revision(model.len() as u64));
    }
}

fn compare_reads(store: &Store, model: &[Contents], page: usize) {
    let newest = Revision(model.len() as u64 - 1);
    assert_eq!(store.revision(), newest);
    let future = Revision(newest.0 + 1);
    assert_eq!(store.get_at("/c", future).err(), Some(ReadError::Future { asked: future, current: newest }));
    for (at, contents) in model.iter().enumerate() {
        let at = Revision(at as u64);
        match store.get_at("/c", at) {
            Ok(_) => {}
            Err(ReadError::Compacted { asked, oldest }) => {
                assert!(asked == at && at < oldest && oldest <= newest);
                continue;
            }
            Err(error) => panic!("{error}"),
        }
        for key in (0..7).map(name) {
            let found = store.get_at(&key, at).expect("readable");
            assert_eq!(found.as_ref().map(as_value).as_ref(), contents.get(&key), "{key} at {at:?}");
        }
        for prefix in PREFIXES {
            let expected: Vec<(&str, &Value)> = contents
                .iter()
                .filter(|(key, _)| key.starts_with(prefix))
                .map(|(key, value)| (&**key, value))
                .collect();
            let mut read: Vec<Entry> = Vec::new();
            loop {
                let after = read.last().map(|entry| entry.key.clone());
                let part = store
                    .range(&Range { prefix, after: after.as_deref(), limit: page, at: Some(at) })
                    .expect("readable");
                assert_eq!(part.revision, at);
                read.extend(part.entries);
                assert_eq!(part.remaining as usize, expected.len() - read.len());
                if part.remaining == 0 {
                    break;
                }
            }
            let values: Vec<Value> = read.iter().map(as_value).collect();
            let read: Vec<(&str, &Value)> = read.iter().map(|entry| &*entry.key).zip(&values).collect();
            assert_eq!(read, expected, "{prefix} at {at:?}");
        }
    }
    let last = model.last().expect("never empty");
    for prefix in PREFIXES {
        assert_eq!(store.count(prefix), last.keys().filter(|key| key.starts_with(prefix)).count() as u64);
    }
    for key in (0..7).map(name) {
        assert_eq!(store.get(&key).as_ref().map(as_value).as_ref(), last.get(&key));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(120))]

    #[test]
    fn the_store_agrees_with_a_naive_model(
        ops in ops(),
        history_bytes in prop_oneof![Just(usize::MAX), 0..8000_usize],
        page in 0..4_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(agree(ops, history_bytes, page));
    }
}
