//! A disk in memory that can be told to fail: used by the simulation and by crash tests of everything durable.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{AppendFile, Disk};

/// Clones share the content.
#[derive(Clone, Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<Content>>);

#[derive(Debug, Default)]
struct Content {
    files: BTreeMap<PathBuf, Bytes>,
    dirs: BTreeSet<PathBuf>,
    capacity: Option<u64>,
    fail_syncs: bool,
}

#[derive(Clone, Debug, Default)]
struct Bytes {
    data: Vec<u8>,
    /// How much of `data` survives a crash.
    synced: usize,
}

impl MemoryDisk {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// From now on the disk holds at most `bytes` in all; appends past that fail with `StorageFull` after writing what
    /// fits, as a real disk does. `None` lifts the limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.content().capacity = bytes;
    }

    /// From now on every sync fails (or works again).
    pub fn set_fail_syncs(&self, fail: bool) {
        self.content().fail_syncs = fail;
    }

    /// What a power cut at this instant leaves behind: each file keeps its synced bytes and, of the rest, the first
    /// `torn(path, unsynced)` bytes. Handles opened before keep writing to the old disk.
    pub fn after_crash(&self, mut torn: impl FnMut(&Path, usize) -> usize) -> MemoryDisk {
        let content = self.content();
        let files = content.files.iter().map(|(path, bytes)| {
            let unsynced = bytes.data.len() - bytes.synced;
            let keep = bytes.synced + torn(path, unsynced).min(unsynced);
            (path.clone(), Bytes { data: bytes.data[..keep].to_vec(), synced: keep })
        });
        let copy = Content {
            files: files.collect(),
            dirs: content.dirs.clone(),
            capacity: content.capacity,
            fail_syncs: content.fail_syncs,
        };
        MemoryDisk(Arc::new(Mutex::new(copy)))
    }

    /// Changes a file behind its owner's back (bit rot). Does nothing when it is absent.
    pub fn corrupt(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(bytes) = self.content().files.get_mut(path) {
            change(&mut bytes.data);
            bytes.synced = bytes.data.len();
        }
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{}: no such file", path.display()))
}

impl Content {
    fn room(&self) -> usize {
        let used: u64 = self.files.values().map(|bytes| bytes.data.len() as u64).sum();
        self.capacity.map_or(usize::MAX, |capacity| capacity.saturating_sub(used) as usize)
    }

    fn sync_result(&self) -> io::Result<()> {
        if self.fail_syncs { Err(io::Error::other("sync failed, as told")) } else { Ok(()) }
    }
}

impl Disk for MemoryDisk {
    fn blocks(&self) -> bool {
        false
    }

    fn create_dir_all(&self, path: &Path) -> io::Result<()> {
        let mut content = self.content();
        content.dirs.extend(path.ancestors().map(Path::to_path_buf));
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>> {
        let content = self.content();
        if !content.dirs.contains(path) {
            return Err(not_found(path));
        }
        let entries = content.files.keys().chain(&content.dirs);
        let names: BTreeSet<PathBuf> = entries
            .filter(|entry| entry.parent() == Some(path))
            .filter_map(|entry| entry.file_name().map(PathBuf::from))
            .collect();
        Ok(names.into_iter().collect())
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.content().files.get(path).map(|bytes| bytes.data.clone()).ok_or_else(|| not_found(path))
    }

    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>> {
        let mut content = self.content();
        if let Some(parent) = path.parent()
            && !content.dirs.contains(parent)
        {
            return Err(not_found(parent));
        }
        let length = content.files.entry(path.to_path_buf()).or_default().data.len() as u64;
        Ok(Box::new(MemoryFile { disk: self.clone(), path: path.to_path_buf(), length }))
    }

    fn replace(&self, path: &Path, data: &[u8]) -> io::Result<()> {
        let mut content = self.content();
        if data.len() > content.room() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        content.sync_result()?;
        content.files.insert(path.to_path_buf(), Bytes { data: data.to_vec(), synced: data.len() });
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut content = self.content();
        let bytes = content.files.remove(from).ok_or_else(|| not_found(from))?;
        content.files.insert(to.to_path_buf(), bytes);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.content().files.remove(path).map(|_| ()).ok_or_else(|| not_found(path))
    }
}

struct MemoryFile {
    disk: MemoryDisk,
    path: PathBuf,
    length: u64,
}

impl AppendFile for MemoryFile {
    fn len(&self) -> u64 {
        self.length
    }

    fn append(&mut self, parts: &[&[u8]]) -> io::Result<()> {
        let mut content = self.disk.content();
        for part in parts {
            let fits = content.room().min(part.len());
            let bytes = content.files.get_mut(&self.path).ok_or_else(|| not_found(&self.path))?;
            bytes.data.extend_from_slice(&part[..fits]);
            self.length += fits as u64;
            if fits < part.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut content = self.disk.content();
        content.sync_result()?;
        let bytes = content.files.get_mut(&self.path).ok_or_else(|| not_found(&self.path))?;
        bytes.synced = bytes.data.len();
        Ok(())
    }

    fn truncate(&mut self, length: u64) -> io::Result<()> {
        let mut content = self.disk.content();
        content.sync_result()?;
        let bytes = content.files.get_mut(&self.path).ok_or_else(|| not_found(&self.path))?;
        bytes.data.truncate(length as usize);
        bytes.synced = bytes.data.len();
        self.length = length;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::RealDisk;
    use super::*;

    /// The contract every disk keeps.
    fn contract(disk: &dyn Disk, root: &Path) {
        disk.create_dir_all(&root.join("a/b")).expect("create");
        let path = root.join("a/b/log");
        let mut file = disk.open_append(&path).expect("open");
        file.append(&[b"one", b"", b"two"]).expect("append");
        file.sync().expect("sync");
        assert_eq!(file.len(), 6);
        assert_eq!(disk.read(&path).expect("read"), b"onetwo");
        file.truncate(3).expect("truncate");
        file.append(&[b"!"]).expect("append after truncate");
        assert_eq!(disk.read(&path).expect("read"), b"one!");
        assert_eq!(disk.open_append(&path).expect("reopen").len(), 4);
        disk.replace(&root.join("a/b/whole"), b"x").expect("replace");
        disk.replace(&root.join("a/b/whole"), b"y").expect("replace again");
        disk.rename(&root.join("a/b/whole"), &root.join("a/b/renamed")).expect("rename");
        assert_eq!(disk.list(&root.join("a/b")).expect("list"), [PathBuf::from("log"), "renamed".into()]);
        disk.remove(&root.join("a/b/renamed")).expect("remove");
        let gone = disk.read(&root.join("a/b/renamed")).expect_err("removed");
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.list(&root.join("none")).expect_err("absent").kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn both_disks_keep_the_contract() {
        contract(&MemoryDisk::default(), Path::new("/state"));
        let dir = tempfile::tempdir().expect("a temporary directory");
        contract(&RealDisk, dir.path());
    }

    #[test]
    fn a_crash_keeps_what_was_synced() {
        let disk = MemoryDisk::default();
        disk.create_dir_all(Path::new("/s")).expect("create");
        let mut file = disk.open_append(Path::new("/s/log")).expect("open");
        file.append(&[b"kept"]).expect("append");
        file.sync().expect("sync");
        file.append(&[b"lost"]).expect("append");
        let after = disk.after_crash(|_, unsynced| unsynced / 2);
        assert_eq!(after.read(Path::new("/s/log")).expect("read"), b"keptlo");
    }
}
