//! Data directories as released versions have written them: every later version opens them. A fixture is never
//! changed; when a format changes, a new one is made beside it, by running the ignored test below.

use std::path::{Path, PathBuf};

use sampan_base::disk::{Disk, MemoryDisk, RealDisk};

use super::*;
use crate::Change;
use crate::testing::{DIR, delete, key, payload, put, txn};

const KEY_FILE: &str = "keys.json";

fn fixture(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(version)
}

/// Opening writes to the directory, so a copy is opened.
fn copy(from: &dyn Disk, from_dir: &Path, to: &dyn Disk, to_dir: &Path) {
    for dir in ["", LOG_DIR] {
        to.create_dir_all(&to_dir.join(dir)).expect("created");
        for name in from.list(&from_dir.join(dir)).expect("a directory") {
            if let Ok(content) = from.read(&from_dir.join(dir).join(&name)) {
                to.replace(&to_dir.join(dir).join(&name), &content).expect("written");
            }
        }
    }
}

async fn open_directory(disk: &MemoryDisk, sizes: Sizes) -> Store {
    let keys = KeyRing::load_or_create(disk, &Path::new(DIR).join(KEY_FILE), &Dice::seeded(11)).expect("keys");
    let config = Config { keys, ..crate::testing::config(disk, crate::testing::history()) };
    Store::open_sized(config, sizes).await.expect("opens")
}

#[tokio::test]
async fn the_first_format_still_opens() {
    let disk = MemoryDisk::default();
    copy(&RealDisk, &fixture("v1"), &disk, Path::new(DIR));
    let names = disk.list(&Path::new(DIR).join(LOG_DIR)).expect("a directory");
    for suffix in ["log", "snap", "part"] {
        assert!(
            names.iter().any(|name| name.extension().is_some_and(|it| it == suffix)),
            "no .{suffix} in the fixture"
        );
    }
    let store = open_directory(&disk, Sizes::default()).await;
    assert_eq!((store.revision(), store.count("")), (Revision(43), 5));
    let entry = store.get("/config/3").expect("in the snapshot or behind it");
    assert_eq!(entry.value, "{\"v\":\"value 38\",\"rv\":\"39\"}");
    assert_eq!((entry.created, entry.modified), (Revision(4), Revision(39)));
    assert_eq!(store.get("/plain").map(|entry| (entry.value, entry.stamp)), Some(("plain".into(), None)));
    assert_eq!(store.get("/config/1"), None);
    let mut watch = store.watch("/config/1", Revision(42)).expect("in the window");
    let event = watch.next().await.expect("the deletion");
    assert!(matches!(event.change, Change::Delete { entry, .. } if entry.value == "the end"));
    assert_eq!(store.commit(txn(vec![put("/new", "x")])).await.expect("commits").revision, Revision(44));
}

#[tokio::test]
#[ignore = "makes the fixture of a new format; not to be run over an existing one"]
async fn make_the_fixture() {
    let disk = MemoryDisk::default();
    let store = open_directory(&disk, Sizes { segment: 800, compact: 1600, part: 300 }).await;
    for number in 0..40_u32 {
        store
            .commit(txn(vec![put(&format!("/config/{}", number % 5), &format!("value {number}"))]))
            .await
            .expect("commits");
    }
    store.commit(txn(vec![Write::Put { key: key("/plain"), payload: payload("plain") }])).await.expect("commits");
    store.commit(txn(vec![put("/config/1", "before the end"), put("/config/2", "last")])).await.expect("commits");
    let end = Write::Delete { key: key("/config/1"), last: Some(payload("the end")) };
    store.commit(txn(vec![end])).await.expect("commits");
    assert!(store.commit(txn(vec![delete("/none")])).await.is_err());
    store.close().await;
    let target = fixture("v1");
    assert!(!target.exists(), "a fixture is never changed");
    copy(&disk, Path::new(DIR), &RealDisk, &target);
}
