//! The protobuf wire format, as far as the API needs it: varints, 64-bit values and length-delimited fields. Groups and
//! 32-bit values are skipped when read.

use super::ProtoError;

pub const VARINT: u8 = 0;
pub const FIXED64: u8 = 1;
pub const BYTES: u8 = 2;

pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub fn put_tag(out: &mut Vec<u8>, number: u32, wire: u8) {
    put_varint(out, u64::from(number) << 3 | u64::from(wire));
}

pub fn put_bytes(out: &mut Vec<u8>, number: u32, bytes: &[u8]) {
    put_tag(out, number, BYTES);
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// Writes a length-delimited field whose content `fill` appends.
pub fn put_message<E>(
    out: &mut Vec<u8>,
    number: u32,
    fill: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    put_tag(out, number, BYTES);
    // Most messages are shorter than 128 bytes: room for one length byte, more is inserted when needed.
    let start = out.len();
    out.push(0);
    fill(out)?;
    let length = out.len() - start - 1;
    if length < 0x80 {
        out[start] = length as u8;
    } else {
        let mut prefix = Vec::with_capacity(5);
        put_varint(&mut prefix, length as u64);
        out.splice(start..=start, prefix);
    }
    Ok(())
}

/// One field as read.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Payload<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
}

impl<'a> Payload<'a> {
    pub fn wire(&self) -> u8 {
        match self {
            Self::Varint(_) => VARINT,
            Self::Fixed64(_) => FIXED64,
            Self::Bytes(_) => BYTES,
        }
    }

    pub fn bytes(self, field: &str) -> Result<&'a [u8], ProtoError> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            other => Err(ProtoError::WireType(field.into(), other.wire())),
        }
    }

    pub fn varint(self, field: &str) -> Result<u64, ProtoError> {
        match self {
            Self::Varint(value) => Ok(value),
            other => Err(ProtoError::WireType(field.into(), other.wire())),
        }
    }

    pub fn text(self, field: &str) -> Result<&'a str, ProtoError> {
        std::str::from_utf8(self.bytes(field)?).map_err(|_| ProtoError::Utf8)
    }
}

/// Reads the fields of one message in turn.
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next field's number and payload; `None` at the end.
    pub fn next(&mut self) -> Result<Option<(u32, Payload<'a>)>, ProtoError> {
        while !self.rest.is_empty() {
            let tag = self.varint()?;
            let number = u32::try_from(tag >> 3).map_err(|_| ProtoError::Overflow)?;
            if let Some(payload) = self.payload((tag & 7) as u8, 0)? {
                return Ok(Some((number, payload)));
            }
        }
        Ok(None)
    }

    /// `None` for wire types that no field here has.
    fn payload(&mut self, wire: u8, depth: u8) -> Result<Option<Payload<'a>>, ProtoError> {
        Ok(Some(match wire {
            VARINT => Payload::Varint(self.varint()?),
            FIXED64 => {
                let bytes = self.take(8)?;
                Payload::Fixed64(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
            }
            BYTES => {
                let length = usize::try_from(self.varint()?).map_err(|_| ProtoError::Overflow)?;
                Payload::Bytes(self.take(length)?)
            }
            3 if depth < 16 => loop {
                let tag = self.varint()?;
                match (tag & 7) as u8 {
                    4 => return Ok(None),
                    inner => self.payload(inner, depth + 1)?,
                };
            },
            5 => {
                self.take(4)?;
                return Ok(None);
            }
            other => return Err(ProtoError::IllegalWireType(other)),
        }))
    }

    pub fn varint(&mut self) -> Result<u64, ProtoError> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(ProtoError::Truncated)?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if *byte < 0x80 {
                return Ok(value);
            }
        }
        Err(ProtoError::Overflow)
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], ProtoError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(ProtoError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
}
