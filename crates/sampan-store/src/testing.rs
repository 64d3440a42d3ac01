//! What the tests of this crate build on: one place each for a transaction, a store on a disk, a seeded choice.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sampan_base::disk::MemoryDisk;
use sampan_base::{Clock, Dice};

use crate::keys::KeyRing;
use crate::{Check, Config, Expect, History, Key, OpenError, Payload, Store, Txn, Write};

pub(crate) const DIR: &str = "/data";

pub(crate) fn key(name: &str) -> Key {
    Key::from(name)
}

pub(crate) fn payload(text: &str) -> Payload {
    Payload { bytes: Bytes::copy_from_slice(text.as_bytes()), stamp: None }
}

/// A put of `{"v":"<text>","rv":"<revision>"}`.
pub(crate) fn put(name: &str, text: &str) -> Write {
    let head = format!("{{\"v\":\"{text}\",\"rv\":\"");
    let stamp = Some(head.len() as u32);
    Write::Put { key: key(name), payload: Payload { bytes: Bytes::from(head + "\"}"), stamp } }
}

pub(crate) fn delete(name: &str) -> Write {
    Write::Delete { key: key(name), last: None }
}

pub(crate) fn txn(writes: Vec<Write>) -> Txn {
    Txn { checks: Vec::new(), writes }
}

pub(crate) fn check(name: &str, expect: Expect) -> Check {
    Check { key: key(name), expect }
}

/// Keys as every store of a test has them: seeded, so that a second store opens what the first has sealed.
pub(crate) fn keys() -> KeyRing {
    KeyRing::new([(1, [7; 32])].into(), Dice::seeded(1))
}

pub(crate) fn history() -> History {
    History { bytes: 64 << 20, age: Duration::from_secs(300) }
}

pub(crate) fn config(disk: &MemoryDisk, history: History) -> Config {
    Config {
        disk: Arc::new(disk.clone()),
        dir: Path::new(DIR).to_path_buf(),
        clock: Clock::system(),
        dice: Dice::seeded(2),
        keys: keys(),
        history,
    }
}

pub(crate) async fn open(disk: &MemoryDisk) -> Result<Store, OpenError> {
    Store::open(config(disk, history())).await
}
