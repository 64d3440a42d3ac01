//! gzip for large answers, for callers who ask for it (`k8s.io/apiserver/pkg/endpoints/handlers/responsewriters`).

use std::io::Write;

use bytes::Buf;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue, Response, header};
use http_body_util::BodyExt;

use crate::body::{self, BoxError, Chunk, ResponseBody};
use crate::streaming::CarriedOn;

/// Upstream compresses what is longer than this.
const MINIMUM: usize = 128 * 1024;

/// The same answer, compressed when that is asked for and worth it. Looks at the first parts of the body only.
pub fn compressed(headers: &HeaderMap, response: Response<ResponseBody>) -> Response<ResponseBody> {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let asked = accepted.split(',').any(|one| one.split(';').next().unwrap_or_default().trim() == "gzip");
    let carried = response.extensions().get::<CarriedOn>().is_some();
    if !asked || carried || !response.status().is_success() || response.headers().contains_key(header::CONTENT_ENCODING)
    {
        return response;
    }
    let small = http_body::Body::size_hint(response.body()).upper().is_some_and(|size| size <= MINIMUM as u64);
    if small {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let chunks = futures::stream::unfold(Some((body.into_data_stream(), encoder)), |state| async move {
        let (mut stream, mut encoder) = state?;
        loop {
            match stream.next().await {
                Some(Ok(mut chunk)) => {
                    while chunk.has_remaining() {
                        let part = chunk.chunk();
                        let length = part.len();
                        if let Err(error) = encoder.write_all(part) {
                            return Some((Err(BoxError::from(error)), None));
                        }
                        chunk.advance(length);
                    }
                    let ready = std::mem::take(encoder.get_mut());
                    if !ready.is_empty() {
                        return Some((Ok(Chunk::from(bytes::Bytes::from(ready))), Some((stream, encoder))));
                    }
                }
                Some(Err(error)) => return Some((Err(error), None)),
                None => {
                    let end = encoder.finish().map(|rest| Chunk::from(bytes::Bytes::from(rest)));
                    return Some((end.map_err(BoxError::from), None));
                }
            }
        }
    });
    Response::from_parts(parts, body::stream(chunks))
}
