//! `/openapi/v2` and `/openapi/v3`: the documents of what is served, written while they are asked for and kept by
//! nobody here. What a document says is `sampan_api::openapi`'s.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use sampan_api::openapi::Documents;
use sampan_api::{Failure, Reason};

use crate::body::{self, ResponseBody};
use crate::request_info::RequestInfo;
use crate::server::Server;
use crate::{descriptions, respond};

const JSON: &str = "application/json";
/// kubectl asks for version 2 in this form only, whenever a manifest has a kind that version 3 does not know.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
/// An `@` is not allowed in a media type; upstream answers with this one.
const PROTOBUF_ANSWER: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// `None`: not a path of OpenAPI.
pub fn answer(server: &Server, info: &RequestInfo, headers: &HeaderMap) -> Option<Response<ResponseBody>> {
    let path = info.path.trim_end_matches('/').strip_prefix("/openapi/")?;
    let response = match path {
        "v2" if accepts(headers, PROTOBUF) => {
            let bytes = with(server, |documents, out| documents.v2_proto(out).map(|()| true));
            bytes.map(|bytes| bytes.map(|bytes| respond::bytes(200, PROTOBUF_ANSWER, bytes)))
        }
        "v2" if !accepts(headers, JSON) && !accepts(headers, "*/*") && headers.contains_key(header::ACCEPT) => {
            let offered = format!("only the following media types are accepted: {JSON}, {PROTOBUF}");
            Err(Failure::new(Reason::NotAcceptable, offered))
        }
        "v2" => with(server, |documents, out| documents.v2(out).map(|()| true)).map(|bytes| bytes.map(plain)),
        "v3" => with(server, |documents, out| {
            serde_json::to_writer(out, &documents.v3_index()).map_err(std::io::Error::from).map(|()| true)
        })
        .map(|bytes| bytes.map(plain)),
        part => {
            let part = part.strip_prefix("v3/")?;
            // The address holds a hash of the document: who has it need not ask again.
            if let Some(tag) = info.given("hash").and_then(|hash| HeaderValue::from_str(&format!("\"{hash}\"")).ok())
                && headers.get(header::IF_NONE_MATCH) == Some(&tag)
            {
                return Some(not_modified(&tag));
            }
            let document = with(server, |documents, out| documents.v3(part, out));
            document.map(|bytes| bytes.map(|bytes| kept(bytes, info.given("hash"))))
        }
    };
    Some(match response {
        Ok(found) => found.unwrap_or_else(respond::no_page),
        Err(failure) => respond::failure(&failure),
    })
}

fn accepts(headers: &HeaderMap, media: &str) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept
        .is_some_and(|accept| accept.split(',').any(|one| one.split(';').next().is_some_and(|one| one.trim() == media)))
}

/// What `write` writes of the present documents; `None` when it finds there is no such document.
fn with(
    server: &Server,
    write: impl FnOnce(&Documents<'_>, &mut Vec<u8>) -> std::io::Result<bool>,
) -> Result<Option<Vec<u8>>, Failure> {
    let descriptions = descriptions::load().map_err(Failure::internal)?;
    let describe = |ty: &str, field: &str| descriptions.describe(ty, field);
    let kinds = server.kinds();
    let documents = Documents { kinds: &kinds, version: &server.config.version.git_version, describe: &describe };
    let mut out = Vec::new();
    let found = write(&documents, &mut out).map_err(Failure::internal)?;
    Ok(found.then_some(out))
}

fn plain(bytes: Vec<u8>) -> Response<ResponseBody> {
    respond::bytes(200, JSON, bytes)
}

fn kept(bytes: Vec<u8>, hash: Option<&str>) -> Response<ResponseBody> {
    let mut response = plain(bytes);
    if let Some(tag) = hash.and_then(|hash| HeaderValue::from_str(&format!("\"{hash}\"")).ok()) {
        let headers = response.headers_mut();
        headers.insert(header::ETAG, tag);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, immutable, max-age=31536000"));
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
    }
    response
}

fn not_modified(tag: &HeaderValue) -> Response<ResponseBody> {
    let mut response = Response::new(body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response.headers_mut().insert(header::ETAG, tag.clone());
    response
}
