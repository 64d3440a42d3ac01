//! The frames of SPDY/3.1 and their bytes (the SPDY protocol, draft 3.1). No connection state but the two compression
//! contexts of header blocks.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

/// Frames this long or shorter are control frames; data frames are handed on as they arrive, so their length is free.
const MAX_CONTROL: usize = 64 * 1024;
/// A header block, decompressed.
const MAX_HEADERS: usize = 64 * 1024;
/// The dictionary has to fit: 2 KiB.
const WINDOW_BITS: u8 = 11;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("a frame of SPDY version {0}")]
    Version(u16),
    #[error("a control frame of {0} bytes")]
    TooLong(usize),
    #[error("a control frame of type {0} that is too short")]
    Short(u16),
    #[error("a header block that does not decode")]
    Headers,
}

/// Lower-case names and values; a value holding several is separated by NUL.
pub type Headers = Vec<(String, String)>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    SynStream {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    SynReply {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    RstStream {
        id: u32,
        status: u32,
    },
    Ping(u32),
    GoAway {
        last: u32,
        status: u32,
    },
    Headers {
        id: u32,
        fin: bool,
        headers: Headers,
    },
    WindowUpdate {
        id: u32,
        delta: u32,
    },
    /// What has arrived of a data frame; `fin` on the last piece of one that carries it.
    Data {
        id: u32,
        fin: bool,
        data: Bytes,
    },
    /// A type of no interest (SETTINGS and what may come).
    Other(u16),
}

const FIN: u8 = 1;
const STREAM_ID: u32 = 0x7fff_ffff;

/// The words every header block may refer to: each is written with its length in front, then comes a tail without.
const WORDS: &[&str] = &[
    "options",
    "head",
    "post",
    "put",
    "delete",
    "trace",
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "content-base",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "etag",
    "expect",
    "expires",
    "from",
    "host",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-modified",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authorization",
    "range",
    "referer",
    "retry-after",
    "server",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "warning",
    "www-authenticate",
    "method",
    "get",
    "status",
    "200 OK",
    "version",
    "HTTP/1.1",
    "url",
    "public",
    "set-cookie",
    "keep-alive",
    "origin",
];
const TAIL: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505203 Non-Auth\
oritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden404 Not Found500 Int\
ernal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mo\
n, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xm\
l,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";

fn dictionary() -> Vec<u8> {
    let mut dictionary = Vec::with_capacity(1423);
    for word in WORDS {
        dictionary.put_u32(word.len() as u32);
        dictionary.extend_from_slice(word.as_bytes());
    }
    dictionary.extend_from_slice(TAIL.as_bytes());
    dictionary
}

/// Turns frames into bytes. One for the life of a connection.
pub struct Encoder(Compress);

impl Encoder {
    pub fn new() -> Result<Self, Error> {
        let mut deflate = Compress::new_with_window_bits(Compression::fast(), true, WINDOW_BITS);
        deflate.set_dictionary(&dictionary()).map_err(|_| Error::Headers)?;
        Ok(Self(deflate))
    }

    pub fn encode(&mut self, frame: &Frame, out: &mut BytesMut) -> Result<(), Error> {
        match frame {
            Frame::SynStream { id, fin, headers } => {
                let block = self.deflate(headers)?;
                control(out, 1, *fin, 10 + block.len());
                out.put_u32(*id);
                out.put_u32(0);
                out.put_u16(0);
                out.extend_from_slice(&block);
            }
            Frame::SynReply { id, fin, headers } => self.with_headers(out, 2, *id, *fin, headers)?,
            Frame::Headers { id, fin, headers } => self.with_headers(out, 8, *id, *fin, headers)?,
            Frame::RstStream { id, status } => two(out, 3, *id, *status),
            Frame::GoAway { last, status } => two(out, 7, *last, *status),
            Frame::WindowUpdate { id, delta } => two(out, 9, *id, *delta),
            Frame::Ping(id) => {
                control(out, 6, false, 4);
                out.put_u32(*id);
            }
            Frame::Data { id, fin, data } => {
                out.put_u32(id & STREAM_ID);
                out.put_u32(u32::from(u8::from(*fin)) << 24 | data.len() as u32 & 0x00ff_ffff);
                out.extend_from_slice(data);
            }
            Frame::Other(_) => {}
        }
        Ok(())
    }

    fn with_headers(
        &mut self,
        out: &mut BytesMut,
        kind: u16,
        id: u32,
        fin: bool,
        headers: &Headers,
    ) -> Result<(), Error> {
        let block = self.deflate(headers)?;
        control(out, kind, fin, 4 + block.len());
        out.put_u32(id);
        out.extend_from_slice(&block);
        Ok(())
    }

    fn deflate(&mut self, headers: &Headers) -> Result<Vec<u8>, Error> {
        let mut plain = Vec::new();
        plain.put_u32(headers.len() as u32);
        for (name, value) in headers {
            for part in [name, value] {
                plain.put_u32(part.len() as u32);
                plain.extend_from_slice(part.as_bytes());
            }
        }
        let mut block = Vec::with_capacity(plain.len() + 64);
        let mut rest = plain.as_slice();
        loop {
            let before = self.0.total_in();
            self.0.compress_vec(rest, &mut block, FlushCompress::Sync).map_err(|_| Error::Headers)?;
            rest = rest.get((self.0.total_in() - before) as usize..).unwrap_or_default();
            // Room left means that the flush is complete.
            if rest.is_empty() && block.len() < block.capacity() {
                return Ok(block);
            }
            block.reserve(1024);
        }
    }
}

fn control(out: &mut BytesMut, kind: u16, fin: bool, length: usize) {
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u32(u32::from(u8::from(fin)) << 24 | length as u32 & 0x00ff_ffff);
}

fn two(out: &mut BytesMut, kind: u16, first: u32, second: u32) {
    control(out, kind, false, 8);
    out.put_u32(first);
    out.put_u32(second);
}

/// Turns bytes into frames. One for the life of a connection.
pub struct Decoder {
    inflate: Decompress,
    dictionary: Vec<u8>,
    /// Stream, bytes still to come and the flag of the data frame being read.
    data: Option<(u32, usize, bool)>,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { inflate: Decompress::new(true), dictionary: dictionary(), data: None }
    }
}

impl Decoder {
    /// The next frame in `buffer`; `None` when more bytes are needed. An error ends the connection: the compression contexts
    /// no longer agree.
    pub fn decode(&mut self, buffer: &mut BytesMut) -> Result<Option<Frame>, Error> {
        if self.data.is_none() {
            let Some(head) = buffer.get(..8) else { return Ok(None) };
            let mut head = head;
            let (first, second) = (head.get_u32(), head.get_u32());
            let (flags, length) = ((second >> 24) as u8, (second & 0x00ff_ffff) as usize);
            if first & !STREAM_ID != 0 {
                if length > MAX_CONTROL {
                    return Err(Error::TooLong(length));
                }
                if buffer.len() < 8 + length {
                    return Ok(None);
                }
                let payload = buffer.split_to(8 + length).freeze().slice(8..);
                return self.control((first >> 16) as u16 & 0x7fff, first as u16, flags & FIN != 0, payload).map(Some);
            }
            buffer.advance(8);
            self.data = Some((first & STREAM_ID, length, flags & FIN != 0));
        }
        let Some((id, rest, fin)) = self.data else { return Ok(None) };
        if rest > 0 && buffer.is_empty() {
            return Ok(None);
        }
        let data = buffer.split_to(rest.min(buffer.len())).freeze();
        let rest = rest - data.len();
        self.data = (rest > 0).then_some((id, rest, fin));
        Ok(Some(Frame::Data { id, fin: fin && rest == 0, data }))
    }

    fn control(&mut self, version: u16, kind: u16, fin: bool, mut payload: Bytes) -> Result<Frame, Error> {
        if version != 3 {
            return Err(Error::Version(version));
        }
        let need = match kind {
            1 => 10,
            2 | 6 | 8 => 4,
            3 | 7 | 9 => 8,
            other => return Ok(Frame::Other(other)),
        };
        if payload.len() < need {
            return Err(Error::Short(kind));
        }
        let id = payload.get_u32();
        let stream = id & STREAM_ID;
        Ok(match kind {
            1 => {
                payload.advance(6);
                Frame::SynStream { id: stream, fin, headers: self.inflate(&payload)? }
            }
            2 => Frame::SynReply { id: stream, fin, headers: self.inflate(&payload)? },
            8 => Frame::Headers { id: stream, fin, headers: self.inflate(&payload)? },
            3 => Frame::RstStream { id: stream, status: payload.get_u32() },
            7 => Frame::GoAway { last: stream, status: payload.get_u32() },
            9 => Frame::WindowUpdate { id: stream, delta: payload.get_u32() & STREAM_ID },
            _ => Frame::Ping(id),
        })
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Headers, Error> {
        let mut plain = Vec::with_capacity(1024);
        let mut rest = block;
        while !rest.is_empty() {
            if plain.len() >= MAX_HEADERS {
                return Err(Error::Headers);
            }
            plain.reserve(1024);
            let (before, had) = (self.inflate.total_in(), plain.len());
            let outcome = self.inflate.decompress_vec(rest, &mut plain, FlushDecompress::Sync);
            let read = (self.inflate.total_in() - before) as usize;
            rest = rest.get(read..).unwrap_or_default();
            match outcome {
                Ok(Status::Ok) => {}
                // Neither read nor wrote: it cannot go on.
                Ok(Status::BufError) if read > 0 || plain.len() > had => {}
                Ok(_) => return Err(Error::Headers),
                Err(error) if error.needs_dictionary().is_some() => {
                    self.inflate.set_dictionary(&self.dictionary).map_err(|_| Error::Headers)?;
                }
                Err(_) => return Err(Error::Headers),
            }
        }
        // A last piece may wait for room in the output.
        loop {
            plain.reserve(1024);
            let had = plain.len();
            match self.inflate.decompress_vec(&[], &mut plain, FlushDecompress::Sync) {
                Ok(_) if plain.len() > had && plain.len() < MAX_HEADERS => {}
                Ok(_) if plain.len() >= MAX_HEADERS => return Err(Error::Headers),
                _ => break,
            }
        }
        parse(&plain).ok_or(Error::Headers)
    }
}

fn parse(mut block: &[u8]) -> Option<Headers> {
    fn text(block: &mut &[u8]) -> Option<String> {
        let length = block.try_get_u32().ok()? as usize;
        let (text, rest) = block.split_at_checked(length)?;
        *block = rest;
        String::from_utf8(text.to_vec()).ok()
    }
    let count = block.try_get_u32().ok()?;
    let mut headers = Headers::new();
    for _ in 0..count {
        headers.push((text(&mut block)?.to_ascii_lowercase(), text(&mut block)?));
    }
    Some(headers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_dictionary_is_the_one_of_the_protocol() {
        let (mut a, mut b) = (1u32, 0u32);
        for byte in dictionary() {
            a = (a + u32::from(byte)) % 65521;
            b = (b + a) % 65521;
        }
        // Its Adler-32 stands in the first compressed block of every peer.
        assert_eq!((b << 16 | a, dictionary().len()), (0xe3c6_a7c2, 1423));
    }

    /// What moby/spdystream v0.5.0 writes for two SYN_STREAMs and a PING on one connection.
    const FROM_GO: &str = include_str!("frames.hex");

    #[test]
    fn frames_of_the_go_library_decode() {
        let hex: Vec<u32> = FROM_GO.chars().filter_map(|digit| digit.to_digit(16)).collect();
        let mut buffer: BytesMut = hex.chunks(2).map(|pair| (pair[0] << 4 | pair[1]) as u8).collect();
        let mut decoder = Decoder::default();
        let mut frames = Vec::new();
        while let Some(frame) = decoder.decode(&mut buffer).expect("frames") {
            frames.push(frame);
        }
        let text = |list: &[(&str, &str)]| {
            let mut headers: Headers = list.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            headers.sort();
            headers
        };
        let sorted: Vec<Frame> = frames
            .into_iter()
            .map(|frame| match frame {
                Frame::SynStream { id, fin, mut headers } => {
                    headers.sort();
                    Frame::SynStream { id, fin, headers }
                }
                other => other,
            })
            .collect();
        assert_eq!(
            sorted,
            [
                Frame::SynStream { id: 1, fin: false, headers: text(&[("streamtype", "error"), ("port", "80")]) },
                Frame::SynStream { id: 3, fin: false, headers: text(&[("streamtype", "data"), ("port", "80")]) },
                Frame::Data { id: 3, fin: true, data: Bytes::from_static(b"hello") },
                Frame::Ping(1),
            ]
        );
    }

    fn any_frame() -> impl Strategy<Value = Frame> {
        let id = 0..=STREAM_ID;
        let headers = || prop::collection::vec(("[a-z-]{1,20}", "\\PC{0,40}"), 0..6);
        prop_oneof![
            (id.clone(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::SynStream { id, fin, headers }),
            (id.clone(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::SynReply { id, fin, headers }),
            (id.clone(), any::<bool>(), headers()).prop_map(|(id, fin, headers)| Frame::Headers { id, fin, headers }),
            (id.clone(), any::<u32>()).prop_map(|(id, status)| Frame::RstStream { id, status }),
            (id.clone(), any::<u32>()).prop_map(|(last, status)| Frame::GoAway { last, status }),
            (id.clone(), 0..=STREAM_ID).prop_map(|(id, delta)| Frame::WindowUpdate { id, delta }),
            any::<u32>().prop_map(Frame::Ping),
            (id, any::<bool>(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(|(id, fin, data)| Frame::Data {
                id,
                fin,
                data: data.into()
            }),
        ]
    }

    /// Decodes with the bytes cut into pieces, joining the pieces of data frames again.
    fn decode_in_pieces(bytes: &[u8], piece: usize) -> Vec<Frame> {
        let mut decoder = Decoder::default();
        let mut buffer = BytesMut::new();
        let mut frames: Vec<Frame> = Vec::new();
        let mut open = false;
        for part in bytes.chunks(piece) {
            buffer.extend_from_slice(part);
            while let Some(frame) = decoder.decode(&mut buffer).expect("our own frames") {
                match (frame, frames.last_mut()) {
                    (Frame::Data { fin, data, .. }, Some(Frame::Data { fin: last_fin, data: last, .. })) if open => {
                        *last = [last.as_ref(), &data].concat().into();
                        *last_fin = fin;
                    }
                    (frame, _) => frames.push(frame),
                }
                open = decoder.data.is_some();
            }
        }
        frames
    }

    proptest! {
        #[test]
        fn frames_survive_the_wire(frames in prop::collection::vec(any_frame(), 1..12), piece in 1usize..400) {
            let mut encoder = Encoder::new().expect("an encoder");
            let mut bytes = BytesMut::new();
            for frame in &frames {
                encoder.encode(frame, &mut bytes).expect("encodes");
            }
            prop_assert_eq!(decode_in_pieces(&bytes, piece), frames);
        }

        #[test]
        fn any_bytes_decode_or_fail_but_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..600), control: bool) {
            let mut bytes = bytes;
            if control && bytes.len() > 8 {
                // Make it look like a SYN_STREAM of the right version and a possible length.
                bytes[..6].copy_from_slice(&[0x80, 3, 0, 1, 0, 0]);
            }
            let mut buffer = BytesMut::from(&bytes[..]);
            let mut decoder = Decoder::default();
            while let Ok(Some(_)) = decoder.decode(&mut buffer) {}
        }
    }
}
