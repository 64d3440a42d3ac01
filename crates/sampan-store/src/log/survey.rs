//! Reads everything an embedded log has, changes nothing, and goes on behind what is damaged: for `check`.

use std::path::Path;

use bytes::Bytes;
use sampan_base::disk::Disk;

use super::files::{Reader, SEGMENT_FORMAT, damaged, inventory, part_path, read_part, segment_path};
use super::frame::Broken;
use super::{LogError, Sealed};
use crate::{Key, Revision};

#[derive(Debug, Default)]
pub(crate) struct Survey {
    /// The newest revision up to which everything is there.
    pub revision: Revision,
    pub snapshot: Option<Revision>,
    pub segments: usize,
    pub transactions: u64,
    /// Bytes at the very end that the next opening cuts off.
    pub torn: u64,
    pub problems: Vec<LogError>,
}

/// Calls `each` with every stored value.
pub(crate) fn survey(disk: &dyn Disk, dir: &Path, each: &mut dyn FnMut(&Key, Revision, &Bytes)) -> Survey {
    let mut survey = Survey::default();
    let inventory = match inventory(disk, dir) {
        Ok(inventory) => inventory,
        Err(error) => {
            survey.problems.push(error);
            return survey;
        }
    };
    if let Some(snapshot) = &inventory.snapshot {
        survey.snapshot = Some(snapshot.revision);
        survey.revision = snapshot.revision;
        for part in 0..snapshot.parts {
            match read_part(disk, &part_path(dir, snapshot.revision, part), snapshot.revision) {
                Ok(saved) => saved.iter().for_each(|saved| each(&saved.key, saved.modified, &saved.value)),
                Err(error) => survey.problems.push(error),
            }
        }
    }
    survey.segments = inventory.segments.len();
    if inventory.segments.first().is_none_or(|first| *first > survey.revision) {
        survey.problems.push(damaged(dir, 0, format!("no segment continues revision {}", survey.revision.0)));
    }
    let mut expected = inventory.segments.first().copied().unwrap_or_default();
    for (index, after) in inventory.segments.iter().enumerate() {
        let path = segment_path(dir, *after);
        if *after != expected && survey.problems.is_empty() {
            survey.problems.push(damaged(&path, 0, format!("the segment before ends at revision {}", expected.0)));
        }
        let last = index + 1 == inventory.segments.len();
        match read(disk, &path, *after, last, &mut survey, each) {
            Ok(end) => expected = end,
            Err(error) => survey.problems.push(error),
        }
        if survey.problems.is_empty() {
            survey.revision = survey.revision.max(expected);
        }
    }
    survey
}

/// Reads one segment; returns where it ends.
fn read(
    disk: &dyn Disk,
    path: &Path,
    after: Revision,
    last: bool,
    survey: &mut Survey,
    each: &mut dyn FnMut(&Key, Revision, &Bytes),
) -> Result<Revision, LogError> {
    let mut reader = Reader::open(disk, path, SEGMENT_FORMAT, after)?;
    let mut end = after;
    loop {
        let frame = match reader.try_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) => return Ok(end),
            Err(Broken::Torn) if last => {
                survey.torn = (reader.length() - reader.offset()) as u64;
                return Ok(end);
            }
            Err(Broken::Torn) => return Err(damaged(path, reader.offset(), "the file ends within a record")),
            Err(Broken::Damaged(reason)) => return Err(damaged(path, reader.offset(), reason)),
        };
        for transaction in reader.transactions(&frame, end)? {
            end = transaction.revision;
            if survey.problems.is_empty() {
                survey.revision = survey.revision.max(end);
            }
            survey.transactions += 1;
            for record in &transaction.writes {
                if let Sealed::Put(value) | Sealed::Delete(Some(value)) = &record.change {
                    each(&record.key, end, value);
                }
            }
        }
    }
}
