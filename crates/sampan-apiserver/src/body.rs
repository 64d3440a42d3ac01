//! Request and response bodies. A response is made of [`Chunk`]s: ropes of shared buffers, so that a list is the stored
//! bytes of its items and a watch frame one buffer for all watchers, with no second copy on the way to the socket.

use std::convert::Infallible;
use std::io::IoSlice;
use std::pin::Pin;

use bytes::{Buf, Bytes, BytesMut};
use futures::{Stream, StreamExt};
use http_body::Frame;
use http_body_util::combinators::{BoxBody, UnsyncBoxBody};
use http_body_util::{BodyExt, Full, StreamBody};
use sampan_api::{Failure, Reason};
use smallvec::SmallVec;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type RequestBody = BoxBody<Bytes, BoxError>;
pub type ResponseBody = UnsyncBoxBody<Chunk, BoxError>;
pub type Chunks = Pin<Box<dyn Stream<Item = Result<Chunk, BoxError>> + Send>>;

/// Some shared buffers that are sent as one frame.
#[derive(Clone, Debug, Default)]
pub struct Chunk {
    parts: SmallVec<[Bytes; 3]>,
    /// The first part that has bytes left.
    first: usize,
    remaining: usize,
}

impl Chunk {
    pub fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.remaining += part.len();
            self.parts.push(part);
        }
    }

    /// Moves the parts of `other` behind this one's.
    pub fn append(&mut self, other: Self) {
        other.parts.into_iter().skip(other.first).for_each(|part| self.push(part));
    }

    pub fn len(&self) -> usize {
        self.remaining
    }

    pub fn is_empty(&self) -> bool {
        self.remaining == 0
    }

    /// The bytes in one piece: the buffer itself when there is but one.
    pub fn into_bytes(mut self) -> Bytes {
        self.copy_to_bytes(self.remaining)
    }
}

impl From<Bytes> for Chunk {
    fn from(bytes: Bytes) -> Self {
        let mut chunk = Self::default();
        chunk.push(bytes);
        chunk
    }
}

impl Buf for Chunk {
    fn remaining(&self) -> usize {
        self.remaining
    }

    fn chunk(&self) -> &[u8] {
        self.parts.get(self.first).map_or(&[], |part| part)
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slice, part) in slices.iter_mut().zip(self.parts.iter().skip(self.first)) {
            *slice = IoSlice::new(part);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut count: usize) {
        assert!(count <= self.remaining, "advanced past the end of a chunk");
        self.remaining -= count;
        while count > 0 {
            let Some(part) = self.parts.get_mut(self.first) else { return };
            let step = count.min(part.len());
            part.advance(step);
            count -= step;
            if part.is_empty() {
                self.first += 1;
            }
        }
    }

    fn copy_to_bytes(&mut self, len: usize) -> Bytes {
        if let Some(part) = self.parts.get_mut(self.first).filter(|part| part.len() >= len) {
            let bytes = part.split_to(len);
            self.remaining -= len;
            if part.is_empty() {
                self.first += 1;
            }
            return bytes;
        }
        let mut all = BytesMut::with_capacity(len);
        let mut left = len;
        while left > 0 {
            let step = left.min(self.chunk().len());
            all.extend_from_slice(&self.chunk()[..step]);
            self.advance(step);
            left -= step;
        }
        all.freeze()
    }
}

fn never(error: Infallible) -> BoxError {
    match error {}
}

pub fn full(bytes: impl Into<Bytes>) -> ResponseBody {
    Full::new(Chunk::from(bytes.into())).map_err(never).boxed_unsync()
}

pub fn empty() -> ResponseBody {
    full(Bytes::new())
}

/// A body of known parts, whose length is known too.
pub fn parts(chunks: Vec<Chunk>) -> ResponseBody {
    Parts(chunks.into()).map_err(never).boxed_unsync()
}

struct Parts(std::collections::VecDeque<Chunk>);

impl http_body::Body for Parts {
    type Data = Chunk;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Chunk>, Infallible>>> {
        std::task::Poll::Ready(self.0.pop_front().map(|chunk| Ok(Frame::data(chunk))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_empty()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::with_exact(self.0.iter().map(|chunk| chunk.len() as u64).sum())
    }
}

pub fn stream(chunks: impl Stream<Item = Result<Chunk, BoxError>> + Send + 'static) -> ResponseBody {
    StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
}

pub fn request(bytes: Bytes) -> RequestBody {
    Full::new(bytes).map_err(never).boxed()
}

/// The most a request body may hold (upstream's `MaxRequestBodyBytes`).
pub const REQUEST_LIMIT: usize = 3 * 1024 * 1024;

/// Reads a request body to its end; 413 past [`REQUEST_LIMIT`].
pub async fn read(mut body: RequestBody) -> Result<Bytes, Failure> {
    let mut first = Bytes::new();
    let mut all: Option<BytesMut> = None;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::bad_request(format!("the request body broke off: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let so_far = all.as_ref().map_or(first.len(), BytesMut::len);
        if so_far + data.len() > REQUEST_LIMIT {
            let message = format!("Request entity too large: limit is {REQUEST_LIMIT}");
            return Err(Failure::new(Reason::RequestEntityTooLarge, message));
        }
        match &mut all {
            Some(all) => all.extend_from_slice(&data),
            None if first.is_empty() => first = data,
            None => {
                let mut joined = BytesMut::from(first.as_ref());
                joined.extend_from_slice(&data);
                all = Some(joined);
            }
        }
    }
    Ok(all.map_or(first, BytesMut::freeze))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(parts: &[&'static str]) -> Chunk {
        let mut chunk = Chunk::default();
        for part in parts {
            chunk.push(Bytes::from_static(part.as_bytes()));
        }
        chunk
    }

    #[test]
    fn a_chunk_reads_as_its_parts_joined() {
        let chunk = rope(&["{", "", "\"a\":1", "}\n"]);
        assert_eq!(chunk.len(), 8);
        assert_eq!(chunk.clone().into_bytes(), "{\"a\":1}\n");
        let mut cut = chunk;
        cut.advance(3);
        assert_eq!(cut.chunk(), b"\":1");
        assert_eq!(cut.copy_to_bytes(4), "\":1}");
        assert_eq!(cut.into_bytes(), "\n");
    }

    #[test]
    fn one_part_is_handed_on_without_a_copy() {
        let bytes = Bytes::from(vec![7; 100]);
        assert_eq!(Chunk::from(bytes.clone()).into_bytes().as_ptr(), bytes.as_ptr());
    }

    #[tokio::test]
    async fn a_body_past_the_limit_is_refused() {
        let read_length = |length: usize| read(request(Bytes::from(vec![0; length])));
        assert_eq!(read_length(REQUEST_LIMIT).await.expect("at the limit").len(), REQUEST_LIMIT);
        assert_eq!(read_length(REQUEST_LIMIT + 1).await.expect_err("over it").code, 413);
    }
}
