//! The one shape of everything in the log's files: a frame is a header and a payload, each with its own checksum.
//!
//! ```text
//! length of the payload (u32 LE) | kind (u32) | base revision (u64) | CRC-32 of the payload (u32) | CRC-32 of these 20 bytes (u32)
//! ```
//!
//! A file starts with a [`Kind::Start`] frame that names its format. `base` is the revision before the first
//! transaction of the frame (or of the file); in snapshots the revision of the snapshot. Because the header is covered
//! by its own checksum a damaged length can't be taken for a file that ends too early.

use bytes::Bytes;

use super::{Record, Saved, Sealed, Transaction};
use crate::codec::{Cursor, put_bytes, put_varint};
use crate::{Key, Revision};

pub(super) const HEADER_LENGTH: usize = 24;
const SECTOR: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Start = 0,
    Transactions = 1,
    Saved = 2,
    Index = 3,
}

pub(super) struct Frame {
    pub kind: Kind,
    pub base: Revision,
    pub payload: Bytes,
    /// Where the next frame starts.
    pub end: usize,
}

/// Why there is no frame at an offset before the end of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Broken {
    /// What a crash in the middle of an append leaves: the file ends within the frame, or parts of it were never
    /// written and read as zeros, and nothing good comes after.
    Torn,
    Damaged(&'static str),
}

pub(super) fn header(kind: Kind, base: Revision, payload: &[u8]) -> [u8; HEADER_LENGTH] {
    let mut header = [0; HEADER_LENGTH];
    header[0..4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    header[4..8].copy_from_slice(&(kind as u32).to_le_bytes());
    header[8..16].copy_from_slice(&base.0.to_le_bytes());
    header[16..20].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    let check = crc32fast::hash(&header[..20]);
    header[20..24].copy_from_slice(&check.to_le_bytes());
    header
}

/// The frame at `offset`; `None` at the end of the file.
pub(super) fn read(file: &Bytes, offset: usize) -> Result<Option<Frame>, Broken> {
    if offset == file.len() {
        return Ok(None);
    }
    match parse(file, offset) {
        Ok(frame) => Ok(Some(frame)),
        Err(broken) => Err(judge(file, offset, broken)),
    }
}

/// What is wrong with a frame, before anything around it was looked at.
enum Fault {
    /// The file ends before the frame does.
    Short,
    Header,
    /// `end` is where the next frame would start.
    Payload {
        end: usize,
    },
    Kind,
}

fn parse(file: &Bytes, offset: usize) -> Result<Frame, Fault> {
    let start = file.get(offset..offset + HEADER_LENGTH).ok_or(Fault::Short)?;
    let word = |at: usize| start.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes);
    if crc32fast::hash(&start[..20]) != word(20) {
        return Err(Fault::Header);
    }
    let base = Revision(u64::from(word(12)) << 32 | u64::from(word(8)));
    let payload_start = offset + HEADER_LENGTH;
    let end = payload_start + word(0) as usize;
    if end > file.len() {
        return Err(Fault::Short);
    }
    let payload = file.slice(payload_start..end);
    if crc32fast::hash(&payload) != word(16) {
        return Err(Fault::Payload { end });
    }
    let kinds = [Kind::Start, Kind::Transactions, Kind::Saved, Kind::Index];
    let kind = kinds.into_iter().find(|kind| *kind as u32 == word(4)).ok_or(Fault::Kind)?;
    Ok(Frame { kind, base, payload, end })
}

fn judge(file: &Bytes, offset: usize, fault: Fault) -> Broken {
    match fault {
        Fault::Short => Broken::Torn,
        Fault::Kind => Broken::Damaged("a record of unknown kind"),
        Fault::Payload { end } if end < file.len() => Broken::Damaged("the checksum is wrong and more records follow"),
        Fault::Payload { .. } if unwritten(file, offset) => Broken::Torn,
        Fault::Payload { .. } => Broken::Damaged("the checksum is wrong"),
        Fault::Header if !unwritten(file, offset) => Broken::Damaged("the checksum of the record's header is wrong"),
        Fault::Header if (offset + 1..file.len()).any(|later| parse(file, later).is_ok()) => {
            Broken::Damaged("the record's header was never written and more records follow")
        }
        Fault::Header => Broken::Torn,
    }
}

/// Whether some disk sector from `offset` on reads as zeros, as it does when the file's length reached the disk before
/// its content. Sealed values look random, so what was once acknowledged and then damaged doesn't look like this.
fn unwritten(file: &[u8], offset: usize) -> bool {
    let mut start = offset;
    while start < file.len() {
        let end = (start / SECTOR + 1) * SECTOR;
        let sector = &file[start..end.min(file.len())];
        // A few zeros can be anything.
        if sector.len() >= HEADER_LENGTH && sector.iter().all(|byte| *byte == 0) {
            return true;
        }
        start = end;
    }
    false
}

const PUT: u8 = 1;
const DELETE: u8 = 2;
const DELETE_WITH_LAST: u8 = 3;

/// The payload of a [`Kind::Transactions`] frame. Revisions are not stored: they count up from the frame's base.
pub(super) fn encode_transactions(transactions: &[Transaction], size: usize) -> Vec<u8> {
    let mut payload = Vec::with_capacity(size);
    put_varint(&mut payload, transactions.len() as u64);
    for transaction in transactions {
        put_varint(&mut payload, transaction.writes.len() as u64);
        for record in &transaction.writes {
            let (tag, value) = match &record.change {
                Sealed::Put(value) => (PUT, Some(value)),
                Sealed::Delete(None) => (DELETE, None),
                Sealed::Delete(Some(last)) => (DELETE_WITH_LAST, Some(last)),
            };
            payload.push(tag);
            put_bytes(&mut payload, record.key.as_bytes());
            if let Some(value) = value {
                put_bytes(&mut payload, value);
            }
        }
    }
    payload
}

/// `None` when the payload is not what [`encode_transactions`] writes.
pub(super) fn decode_transactions(frame: &Frame) -> Option<Vec<Transaction>> {
    let mut cursor = Cursor::new(&frame.payload);
    let count = cursor.varint()?;
    let mut transactions = Vec::new();
    for index in 1..=count {
        let mut writes = Vec::new();
        for _ in 0..cursor.varint()? {
            let tag = cursor.byte()?;
            let key = decode_key(&mut cursor)?;
            let change = match tag {
                PUT => Sealed::Put(cursor.bytes()?),
                DELETE => Sealed::Delete(None),
                DELETE_WITH_LAST => Sealed::Delete(Some(cursor.bytes()?)),
                _ => return None,
            };
            writes.push(Record { key, change });
        }
        transactions.push(Transaction { revision: Revision(frame.base.0.checked_add(index)?), writes });
    }
    cursor.at_end().then_some(transactions)
}

/// Adds one record to the payload of a [`Kind::Saved`] frame.
pub(super) fn encode_saved(payload: &mut Vec<u8>, saved: &Saved) {
    put_bytes(payload, saved.key.as_bytes());
    put_varint(payload, saved.created.0);
    put_varint(payload, saved.modified.0);
    put_bytes(payload, &saved.value);
}

pub(super) fn decode_saved(frame: &Frame) -> Option<Vec<Saved>> {
    let mut cursor = Cursor::new(&frame.payload);
    let mut all = Vec::new();
    while !cursor.at_end() {
        let key = decode_key(&mut cursor)?;
        let created = Revision(cursor.varint()?);
        let modified = Revision(cursor.varint()?);
        all.push(Saved { key, created, modified, value: cursor.bytes()? });
    }
    Some(all)
}

fn decode_key(cursor: &mut Cursor<'_>) -> Option<Key> {
    std::str::from_utf8(&cursor.bytes()?).ok().map(Key::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two frames of 700 bytes that don't look like zeros, and where the second starts.
    fn two_frames() -> (Vec<u8>, usize) {
        let payload: Vec<u8> = (0..700_u32).map(|at| (at % 251) as u8 + 1).collect();
        let one = [&header(Kind::Transactions, Revision(0), &payload)[..], &payload].concat();
        let two = [&header(Kind::Transactions, Revision(1), &payload)[..], &payload].concat();
        ([&one[..], &two].concat(), one.len())
    }

    fn broken(content: Vec<u8>, offset: usize) -> Option<Broken> {
        read(&Bytes::from(content), offset).err()
    }

    #[test]
    fn a_last_frame_that_ends_early_or_was_never_written_is_torn() {
        let (content, second) = two_frames();
        assert!(read(&Bytes::from(content.clone()), 0).is_ok_and(|frame| frame.is_some_and(|it| it.end == second)));
        for length in second + 1..content.len() {
            assert_eq!(broken(content[..length].to_vec(), second), Some(Broken::Torn), "{length}");
        }
        // The length reached the disk, some of the content didn't.
        for unwritten in [second..content.len(), 1024..content.len(), second..1024] {
            let mut content = content.clone();
            content[unwritten.clone()].fill(0);
            assert_eq!(broken(content, second), Some(Broken::Torn), "{unwritten:?}");
        }
    }

    #[test]
    fn everything_else_is_damage() {
        let (content, second) = two_frames();
        for (offset, frame_end) in [(0, second), (second, content.len())] {
            for at in offset..frame_end {
                let mut content = content.clone();
                content[at] ^= 0x10;
                assert!(matches!(broken(content, offset), Some(Broken::Damaged(_))), "byte {at}");
            }
        }
        // Never written, but something good comes after it.
        let mut content = content;
        content[..second].fill(0);
        assert!(matches!(broken(content, 0), Some(Broken::Damaged(_))));
    }
}
