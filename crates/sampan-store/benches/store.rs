//! Figures of the store on this machine's disk: `cargo bench -p sampan-store`. Durable commits stand beside what the
//! disk can do without a store, measured in the same run, because disks differ more than programs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use sampan_base::disk::{Disk, RealDisk};
use sampan_base::{Clock, Dice, task};
use sampan_store::{Config, History, Key, KeyRing, Payload, Range, Revision, Store, Txn, Write};

const WRITERS: usize = 64;
const VALUE_BYTES: usize = 2048;
const RUN: Duration = Duration::from_secs(3);
const WATCHERS: usize = 1000;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory on a disk");
    runtime.block_on(async {
        let limit = bare(&dir.path().join("bare"));
        let store = open(&dir.path().join("store")).await;
        let rate = durable(&store).await;
        println!("durable commits, {WRITERS} tasks of {VALUE_BYTES} B: {rate:.0}/s");
        println!("bare append + fdatasync of {WRITERS} x {VALUE_BYTES} B: {limit:.0}/s; ratio {:.2}", rate / limit);
        serial(&store).await;
        fan_out(&store).await;
        store.close().await;
        large(&dir.path().join("large")).await;
    });
}

async fn open(dir: &Path) -> Store {
    let dice = Dice::system();
    let keys = KeyRing::new([(1, [1; 32])].into(), dice.clone());
    let history = History { bytes: 16 << 20, age: Duration::from_secs(300) };
    let config = Config { disk: Arc::new(RealDisk), dir: dir.into(), clock: Clock::system(), dice, keys, history };
    Store::open(config).await.expect("opens")
}

fn put(key: String, bytes: Bytes) -> Txn {
    let payload = Payload { bytes, stamp: Some(10) };
    Txn { checks: Vec::new(), writes: vec![Write::Put { key: Key::from(key), payload }] }
}

fn value(length: usize) -> Bytes {
    Bytes::from(vec![b'x'; length])
}

/// What the disk takes when every sync covers one value of each writer.
fn bare(dir: &Path) -> f64 {
    RealDisk.create_dir_all(dir).expect("created");
    let mut file = RealDisk.open_append(&dir.join("log")).expect("opens");
    let values = vec![b'x'; VALUE_BYTES * WRITERS];
    let started = Clock::system().instant();
    let mut written = 0;
    while started.elapsed() < RUN {
        file.append(&[&values]).expect("appends");
        file.sync().expect("syncs");
        written += WRITERS;
    }
    written as f64 / started.elapsed().as_secs_f64()
}

async fn durable(store: &Store) -> f64 {
    let started = Clock::system().instant();
    let writers = (0..WRITERS).map(|writer| {
        let store = store.clone();
        task::spawn("writer", async move {
            let value = value(VALUE_BYTES);
            let mut written = 0_u64;
            while started.elapsed() < RUN {
                let key = format!("/pods/default/w{writer}-{}", written % 200);
                store.commit(put(key, value.clone())).await.expect("commits");
                written += 1;
            }
            written
        })
    });
    let written: u64 = join_all(writers).await.into_iter().map(|written| written.expect("no panic")).sum();
    written as f64 / started.elapsed().as_secs_f64()
}

async fn serial(store: &Store) {
    let mut times = Vec::new();
    for number in 0..500 {
        let started = Clock::system().instant();
        store.commit(put(format!("/serial/{}", number % 10), value(VALUE_BYTES))).await.expect("commits");
        times.push(started.elapsed());
    }
    println!("one writer: p50 {:?}, p99 {:?}", percentile(&mut times, 50), percentile(&mut times, 99));
}

async fn fan_out(store: &Store) {
    let after = store.revision();
    let rounds = 200_u64;
    let (seen, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..WATCHERS {
        let mut watch = store.watch("/fan/", after).expect("from now");
        let seen = seen.clone();
        task::spawn("watcher", async move {
            while let Ok(event) = watch.next().await {
                let _ = seen.send((event.revision, Clock::system().instant()));
            }
        });
    }
    let mut times = Vec::new();
    for _ in 0..rounds {
        let committed = store.commit(put("/fan/out".to_owned(), value(VALUE_BYTES))).await.expect("commits");
        let answered = Clock::system().instant();
        for _ in 0..WATCHERS {
            let (revision, arrived) = arrivals.recv().await.expect("watchers live");
            assert_eq!(revision, committed.revision);
            times.push(arrived.saturating_duration_since(answered));
        }
    }
    let (half, most) = (percentile(&mut times, 50), percentile(&mut times, 99));
    println!("commit answered -> {WATCHERS} watchers: p50 {half:?}, p99 {most:?}");
}

async fn large(dir: &Path) {
    let count = 100_000_usize;
    let before = resident();
    let store = open(dir).await;
    for start in (0..count).step_by(1000) {
        let commits = (start..start + 1000)
            .map(|number| store.commit(put(format!("/objects/ns-{:03}/{number:06}", number % 100), value(1024))));
        for result in join_all(commits).await {
            result.expect("commits");
        }
    }
    println!("{count} objects of 1 KiB: {} MB more resident after writing them", (resident() - before) >> 20);
    list(&store);
    store.close().await;
    drop(store);
    let started = Clock::system().instant();
    let store = open(dir).await;
    println!("opened again with {} objects in {:?}", store.count("/"), started.elapsed());
    assert_eq!(store.revision(), Revision(count as u64));
}

fn list(store: &Store) {
    let range = Range { prefix: "/objects/", limit: 10_000, ..Range::default() };
    let mut times = Vec::new();
    let mut bytes = 0;
    for _ in 0..50 {
        let started = Clock::system().instant();
        let page = store.range(&range).expect("readable");
        times.push(started.elapsed());
        assert_eq!((page.entries.len(), page.remaining), (10_000, 90_000));
        bytes = page.entries.iter().map(|entry| entry.value.len()).sum();
    }
    let half = percentile(&mut times, 50);
    let rate = bytes as f64 / half.as_secs_f64() / 1e9;
    println!("list of 10,000 of them: p50 {half:?}, p99 {:?}; {rate:.1} GB/s", percentile(&mut times, 99));
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

/// Bytes of memory this process has resident.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).map_or(0, |pages| pages * 4096)
}
