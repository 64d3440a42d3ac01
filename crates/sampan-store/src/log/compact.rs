//! Compaction: what is still live of the closed segments and the snapshot before becomes the next snapshot.
//!
//! It works on files alone, beside the writer, which has already gone on to a new segment. Two passes, so that only
//! keys are held in memory: the first finds which write of each key is live, the second copies those. Nothing is
//! removed before the new snapshot is complete and durable; a crash in between leaves files that the next opening
//! removes.

use std::collections::BTreeMap;
use std::path::Path;

use sampan_base::disk::{AppendFile, Disk};

use super::files::{
    self, Inventory, SNAPSHOT_FORMAT, SnapshotFile, encode_index, io_error, part_path, read_part, read_segment,
    segment_path, snapshot_path, start_frame,
};
use super::frame::{self, Kind};
use super::{LogError, Saved, Sealed};
use crate::{Key, Revision};

/// How much goes into one frame of a snapshot.
const FRAME_BYTES: usize = 256 << 10;

/// Writes the snapshot at `revision`, where the last of `closed` ends, and removes what it replaces.
pub(super) fn compact(
    disk: &dyn Disk,
    dir: &Path,
    old: Option<&SnapshotFile>,
    closed: &[Revision],
    revision: Revision,
    part_bytes: usize,
) -> Result<SnapshotFile, LogError> {
    let written = write(disk, dir, old, closed, revision, part_bytes);
    match &written {
        Ok(_) => remove_obsolete(disk, &files::inventory(disk, dir)?)?,
        Err(_) => {
            // Half a snapshot is of no use, and the disk may be full because of it. What can't be removed now is
            // removed at the next opening.
            for part in 0.. {
                if disk.remove(&part_path(dir, revision, part)).is_err() {
                    break;
                }
            }
        }
    }
    written
}

pub(super) fn remove_obsolete(disk: &dyn Disk, inventory: &Inventory) -> Result<(), LogError> {
    inventory.obsolete.iter().try_for_each(|path| disk.remove(path).map_err(|error| io_error(path, &error)))
}

/// Which write of a key is live.
struct Origin {
    created: Revision,
    modified: Revision,
}

fn write(
    disk: &dyn Disk,
    dir: &Path,
    old: Option<&SnapshotFile>,
    closed: &[Revision],
    revision: Revision,
    part_bytes: usize,
) -> Result<SnapshotFile, LogError> {
    let mut live: BTreeMap<Key, Origin> = BTreeMap::new();
    visit(disk, dir, old, closed, |key, modified, write| {
        match write {
            Found::Saved { created, .. } => {
                live.insert(key.clone(), Origin { created, modified });
            }
            Found::Put(_) => {
                live.entry(key.clone())
                    .and_modify(|origin| origin.modified = modified)
                    .or_insert(Origin { created: modified, modified });
            }
            Found::Delete => drop(live.remove(key)),
        }
        Ok(())
    })?;
    let mut writer = PartWriter { disk, dir, revision, part_bytes, file: None, parts: 0, bytes: 0, frame: Vec::new() };
    visit(disk, dir, old, closed, |key, modified, write| {
        let (Found::Saved { value, .. } | Found::Put(value)) = write else { return Ok(()) };
        match live.get(key) {
            Some(origin) if origin.modified == modified => {
                writer.add(&Saved { key: key.clone(), created: origin.created, modified, value })
            }
            _ => Ok(()),
        }
    })?;
    let snapshot = writer.finish()?;
    let index = snapshot_path(dir, revision);
    disk.replace(&index, &encode_index(&snapshot)).map_err(|error| io_error(&index, &error))?;
    Ok(snapshot)
}

enum Found {
    Saved { created: Revision, value: bytes::Bytes },
    Put(bytes::Bytes),
    Delete,
}

/// Every write in the old snapshot and the closed segments, in the order of their revisions for each key.
fn visit(
    disk: &dyn Disk,
    dir: &Path,
    old: Option<&SnapshotFile>,
    closed: &[Revision],
    mut each: impl FnMut(&Key, Revision, Found) -> Result<(), LogError>,
) -> Result<(), LogError> {
    let from = old.map_or(Revision(0), |old| old.revision);
    for part in 0..old.map_or(0, |old| old.parts) {
        for saved in read_part(disk, &part_path(dir, from, part), from)? {
            each(&saved.key, saved.modified, Found::Saved { created: saved.created, value: saved.value })?;
        }
    }
    for after in closed {
        for transaction in read_segment(disk, &segment_path(dir, *after), *after)? {
            // The first segment may start before the snapshot, which has those transactions already.
            for record in transaction.writes.into_iter().filter(|_| transaction.revision > from) {
                let found = match record.change {
                    Sealed::Put(value) => Found::Put(value),
                    Sealed::Delete(_) => Found::Delete,
                };
                each(&record.key, transaction.revision, found)?;
            }
        }
    }
    Ok(())
}

struct PartWriter<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    revision: Revision,
    part_bytes: usize,
    file: Option<Box<dyn AppendFile>>,
    parts: u64,
    bytes: u64,
    frame: Vec<u8>,
}

impl PartWriter<'_> {
    fn add(&mut self, saved: &Saved) -> Result<(), LogError> {
        frame::encode_saved(&mut self.frame, saved);
        if self.frame.len() >= FRAME_BYTES.min(self.part_bytes) { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), LogError> {
        if self.frame.is_empty() {
            return Ok(());
        }
        let path = part_path(self.dir, self.revision, self.parts);
        let failed = |error| io_error(&path, &error);
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let mut file = self.disk.open_append(&path).map_err(failed)?;
                // An earlier attempt at the same revision may have left something.
                file.truncate(0).map_err(failed)?;
                file.append(&[&start_frame(SNAPSHOT_FORMAT, self.revision)]).map_err(failed)?;
                self.file.insert(file)
            }
        };
        let payload = std::mem::take(&mut self.frame);
        file.append(&[&frame::header(Kind::Saved, self.revision, &payload), &payload]).map_err(failed)?;
        if file.len() >= self.part_bytes as u64 { self.close_part() } else { Ok(()) }
    }

    fn close_part(&mut self) -> Result<(), LogError> {
        if let Some(mut file) = self.file.take() {
            let path = part_path(self.dir, self.revision, self.parts);
            file.sync().map_err(|error| io_error(&path, &error))?;
            self.bytes += file.len();
            self.parts += 1;
        }
        Ok(())
    }

    fn finish(mut self) -> Result<SnapshotFile, LogError> {
        self.flush()?;
        self.close_part()?;
        Ok(SnapshotFile { revision: self.revision, parts: self.parts, bytes: self.bytes })
    }
}
