//! The log's files: which there are, what each holds, how a new one starts.
//!
//! ```text
//! 00000000000000000123.log         a segment: transactions after revision 123, up to where the next segment starts
//! 00000000000000000123.snap        what is live at revision 123 is in the parts below; written last, so it is complete
//! 00000000000000000123-00000.part
//! ```

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use sampan_base::disk::Disk;

use super::frame::{self, Broken, Frame, Kind};
use super::{LogError, Saved, Transaction};
use crate::Revision;
use crate::codec::{Cursor, put_varint};

/// The names and versions of the formats here, for the manifest of formats.
pub(crate) const SEGMENT_FORMAT: (&str, u32) = ("log", 1);
pub(crate) const SNAPSHOT_FORMAT: (&str, u32) = ("snapshot", 1);

/// A complete snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SnapshotFile {
    pub revision: Revision,
    pub parts: u64,
    /// Of all parts together.
    pub bytes: u64,
}

/// What a directory holds that matters, and what it doesn't.
#[derive(Debug, Default)]
pub(super) struct Inventory {
    pub snapshot: Option<SnapshotFile>,
    /// The revisions that segments start after: those from the snapshot on, in order.
    pub segments: Vec<Revision>,
    /// Leftovers of an interrupted compaction, in the order to remove them in.
    pub obsolete: Vec<PathBuf>,
}

pub(super) fn segment_path(dir: &Path, after: Revision) -> PathBuf {
    dir.join(format!("{:020}.log", after.0))
}

pub(super) fn snapshot_path(dir: &Path, revision: Revision) -> PathBuf {
    dir.join(format!("{:020}.snap", revision.0))
}

pub(super) fn part_path(dir: &Path, revision: Revision, part: u64) -> PathBuf {
    dir.join(format!("{:020}-{part:05}.part", revision.0))
}

pub(super) fn io_error(path: &Path, error: &io::Error) -> LogError {
    LogError::Io { file: path.display().to_string(), reason: error.to_string() }
}

pub(super) fn damaged(path: &Path, offset: usize, reason: impl Into<String>) -> LogError {
    LogError::Damaged { file: path.display().to_string(), offset: offset as u64, reason: reason.into() }
}

/// Looks at the names (and the index of the newest snapshot), not at the content.
pub(super) fn inventory(disk: &dyn Disk, dir: &Path) -> Result<Inventory, LogError> {
    let names = disk.list(dir).map_err(|error| io_error(dir, &error))?;
    let names: Vec<&str> = names.iter().filter_map(|name| name.to_str()).collect();
    let numbers = |suffix: &str| -> Vec<Revision> {
        // The names were sorted, and all numbers are equally long.
        names.iter().filter_map(|name| name.strip_suffix(suffix)?.parse().ok().map(Revision)).collect()
    };
    let snapshot = match numbers(".snap").last() {
        Some(revision) => Some(read_index(disk, &snapshot_path(dir, *revision))?),
        None => None,
    };
    let from = snapshot.as_ref().map_or(Revision(0), |snapshot| snapshot.revision);
    let mut segments = numbers(".log");
    // A segment is covered by the snapshot when the next one starts no later than it.
    let covered = segments.windows(2).take_while(|pair| pair[1] <= from).count();
    let old: Vec<Revision> = segments.drain(..covered).collect();
    let mut obsolete: Vec<PathBuf> =
        numbers(".snap").into_iter().filter(|revision| *revision < from).map(|it| snapshot_path(dir, it)).collect();
    let kept = format!("{:020}-", from.0);
    let parts = names.iter().filter(|name| name.ends_with(".part"));
    obsolete.extend(parts.filter(|name| snapshot.is_none() || !name.starts_with(&kept)).map(|name| dir.join(name)));
    obsolete.extend(old.into_iter().map(|after| segment_path(dir, after)));
    obsolete.extend(names.iter().filter(|name| name.ends_with(".tmp")).map(|name| dir.join(name)));
    Ok(Inventory { snapshot, segments, obsolete })
}

/// The first frame of a file: its format, and the revision it starts after.
pub(super) fn start_frame(format: (&str, u32), base: Revision) -> Vec<u8> {
    let mut payload = format!("sampan {}\n", format.0).into_bytes();
    put_varint(&mut payload, u64::from(format.1));
    let mut bytes = frame::header(Kind::Start, base, &payload).to_vec();
    bytes.extend_from_slice(&payload);
    bytes
}

/// A file read frame by frame. `None` at the end; a torn frame is an error unless the caller allows for it.
pub(super) struct Reader<'a> {
    path: &'a Path,
    content: Bytes,
    offset: usize,
}

impl<'a> Reader<'a> {
    /// Reads the file and checks how it starts.
    pub fn open(disk: &dyn Disk, path: &'a Path, format: (&str, u32), base: Revision) -> Result<Self, LogError> {
        let content = Bytes::from(disk.read(path).map_err(|error| io_error(path, &error))?);
        let mut reader = Self { path, content, offset: 0 };
        let expected = start_frame(format, base);
        let first = reader.frame()?.ok_or_else(|| damaged(path, 0, "the file is empty"))?;
        if reader.content[..first.end] != expected[..] {
            return Err(damaged(
                path,
                0,
                format!("not a {} file (format {}) of revision {}", format.0, format.1, base.0),
            ));
        }
        Ok(reader)
    }

    pub fn offset(&self) -> usize {
        self.offset
    }

    pub fn length(&self) -> usize {
        self.content.len()
    }

    /// The next frame, however the file ends.
    pub fn try_frame(&mut self) -> Result<Option<Frame>, Broken> {
        let frame = frame::read(&self.content, self.offset)?;
        if let Some(frame) = &frame {
            self.offset = frame.end;
        }
        Ok(frame)
    }

    pub fn frame(&mut self) -> Result<Option<Frame>, LogError> {
        self.try_frame().map_err(|broken| match broken {
            Broken::Torn => damaged(self.path, self.offset, "the file ends within a record"),
            Broken::Damaged(reason) => damaged(self.path, self.offset, reason),
        })
    }

    /// The transactions of a frame, which must continue at `after`.
    pub fn transactions(&self, frame: &Frame, after: Revision) -> Result<Vec<Transaction>, LogError> {
        let offset = frame.end - frame.payload.len() - frame::HEADER_LENGTH;
        if frame.kind != Kind::Transactions {
            return Err(damaged(self.path, offset, "not a record of transactions"));
        }
        if frame.base != after {
            let reason = format!("it follows revision {}, the record before ends at {}", frame.base.0, after.0);
            return Err(damaged(self.path, offset, reason));
        }
        frame::decode_transactions(frame).ok_or_else(|| damaged(self.path, offset, "the record does not decode"))
    }
}

/// All transactions of a segment that no longer grows.
pub(super) fn read_segment(disk: &dyn Disk, path: &Path, after: Revision) -> Result<Vec<Transaction>, LogError> {
    read_segment_to(disk, path, after, Revision(u64::MAX))
}

/// The transactions of a segment up to `last`; what comes behind it is not looked at.
pub(super) fn read_segment_to(
    disk: &dyn Disk,
    path: &Path,
    after: Revision,
    last: Revision,
) -> Result<Vec<Transaction>, LogError> {
    let mut reader = Reader::open(disk, path, SEGMENT_FORMAT, after)?;
    let mut transactions: Vec<Transaction> = Vec::new();
    let mut at = after;
    while at < last {
        let Some(frame) = reader.frame()? else { break };
        transactions.extend(reader.transactions(&frame, at)?);
        at = transactions.last().map_or(at, |transaction| transaction.revision);
    }
    Ok(transactions)
}

pub(super) fn read_part(disk: &dyn Disk, path: &Path, revision: Revision) -> Result<Vec<Saved>, LogError> {
    let mut reader = Reader::open(disk, path, SNAPSHOT_FORMAT, revision)?;
    let mut all = Vec::new();
    while let Some(frame) = reader.frame()? {
        let saved = (frame.kind == Kind::Saved).then(|| frame::decode_saved(&frame)).flatten();
        all.extend(saved.ok_or_else(|| damaged(path, reader.offset(), "the record before does not decode"))?);
    }
    Ok(all)
}

pub(super) fn encode_index(snapshot: &SnapshotFile) -> Vec<u8> {
    let mut payload = Vec::new();
    put_varint(&mut payload, u64::from(SNAPSHOT_FORMAT.1));
    put_varint(&mut payload, snapshot.parts);
    put_varint(&mut payload, snapshot.bytes);
    let mut bytes = frame::header(Kind::Index, snapshot.revision, &payload).to_vec();
    bytes.extend_from_slice(&payload);
    bytes
}

fn read_index(disk: &dyn Disk, path: &Path) -> Result<SnapshotFile, LogError> {
    let content = Bytes::from(disk.read(path).map_err(|error| io_error(path, &error))?);
    let decode = || {
        let frame = frame::read(&content, 0).ok()??;
        let mut cursor = Cursor::new(&frame.payload);
        let version = cursor.varint()?;
        let snapshot = SnapshotFile { revision: frame.base, parts: cursor.varint()?, bytes: cursor.varint()? };
        let whole = frame.kind == Kind::Index && frame.end == content.len() && cursor.at_end();
        let named = path.file_name() == snapshot_path(Path::new(""), snapshot.revision).file_name();
        (whole && named && version == u64::from(SNAPSHOT_FORMAT.1)).then_some(snapshot)
    };
    decode().ok_or_else(|| damaged(path, 0, "not an index of a snapshot"))
}
