//! Variable-length integers and length-prefixed bytes, as all formats of this crate use them.

use bytes::Bytes;

/// LEB128: seven bits a byte, the lowest first.
pub(crate) fn put_varint(buffer: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        buffer.push(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.push(value as u8);
}

pub(crate) fn put_bytes(buffer: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(buffer, bytes.len() as u64);
    buffer.extend_from_slice(bytes);
}

/// Reads what the functions above wrote; `None` when the input ends too early or makes no sense.
pub(crate) struct Cursor<'a> {
    input: &'a Bytes,
    position: usize,
}

impl<'a> Cursor<'a> {
    pub fn new(input: &'a Bytes) -> Self {
        Self { input, position: 0 }
    }

    pub fn position(&self) -> usize {
        self.position
    }

    pub fn at_end(&self) -> bool {
        self.position == self.input.len()
    }

    pub fn byte(&mut self) -> Option<u8> {
        let byte = *self.input.get(self.position)?;
        self.position += 1;
        Some(byte)
    }

    pub fn varint(&mut self) -> Option<u64> {
        let mut value: u64 = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if bits << shift >> shift != bits {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// Shares the input's buffer.
    pub fn bytes(&mut self) -> Option<Bytes> {
        let length = usize::try_from(self.varint()?).ok()?;
        let end = self.position.checked_add(length).filter(|end| *end <= self.input.len())?;
        let bytes = self.input.slice(self.position..end);
        self.position = end;
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_put_is_read(number: u64, text: Vec<u8>) {
            let mut buffer = Vec::new();
            put_varint(&mut buffer, number);
            put_bytes(&mut buffer, &text);
            let input = Bytes::from(buffer);
            let mut cursor = Cursor::new(&input);
            prop_assert_eq!(cursor.varint(), Some(number));
            prop_assert_eq!(cursor.bytes(), Some(Bytes::from(text)));
            prop_assert!(cursor.at_end());
        }

        #[test]
        fn garbage_never_panics(input: Vec<u8>) {
            let input = Bytes::from(input);
            let mut cursor = Cursor::new(&input);
            while cursor.bytes().is_some() && !cursor.at_end() {}
            prop_assert!(cursor.position() <= input.len());
        }
    }
}
