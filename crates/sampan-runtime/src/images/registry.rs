//! The distribution API as far as pulling needs it: manifests, blobs, and the ways registries ask who is there.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, RANGE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use super::transport::{Failed, Transport, is_loopback};
use crate::reference::Reference;
use crate::{Error, ImageErrorKind, RegistryAuth};

const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// A manifest is a page of text; more is an attack or a mistake.
const DOCUMENT_BYTES_MAX: usize = 4 << 20;

/// Without a byte for so long a download is taken as broken and continued on a new connection.
const SILENCE: Duration = Duration::from_secs(30);
const RESUMES_MAX: u32 = 5;

/// One repository at one place, for one pull.
pub(super) struct Repository<'a> {
    transport: &'a Transport,
    reference: &'a Reference,
    /// `https://registry-1.docker.io`
    base: String,
    auth: Option<&'a RegistryAuth>,
    /// The `Authorization` that worked last.
    token: Mutex<Option<HeaderValue>>,
}

/// The places a reference can be pulled from, mirrors first.
pub(super) fn bases(transport: &Transport, registry: &str) -> Vec<String> {
    let mirrors = transport.options().mirrors.get(registry).into_iter().flatten();
    let host = if registry == "docker.io" { "registry-1.docker.io" } else { registry };
    let name = http::uri::Authority::try_from(host).map_or_else(|_| host.to_owned(), |a| a.host().to_owned());
    let scheme = if is_loopback(&name) { "http" } else { "https" };
    mirrors.map(|mirror| mirror.trim_end_matches('/').to_owned()).chain([format!("{scheme}://{host}")]).collect()
}

impl<'a> Repository<'a> {
    pub(super) fn new(
        transport: &'a Transport,
        reference: &'a Reference,
        base: String,
        auth: Option<&'a RegistryAuth>,
    ) -> Self {
        Self { transport, reference, base, auth, token: Mutex::new(None) }
    }

    fn error(&self, kind: ImageErrorKind, message: impl Into<String>) -> Error {
        Error::Image { reference: self.reference.to_string(), kind, message: message.into() }
    }

    fn failed(&self, failed: Failed) -> Error {
        let kind = match &failed {
            Failed::Unreachable(_) => ImageErrorKind::Unreachable,
            Failed::Address(_) => ImageErrorKind::Other,
        };
        self.error(kind, failed.to_string())
    }

    /// A manifest by tag or digest: its digest and bytes. A digest asked for is checked.
    pub(super) async fn manifest(&self, which: &str) -> Result<(String, Vec<u8>), Error> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(MANIFESTS));
        let response = self.get(&format!("manifests/{which}"), headers).await?;
        let bytes = self.document(response).await?;
        let digest = super::digest(&bytes);
        if which.starts_with("sha256:") && which != digest {
            return Err(self.error(ImageErrorKind::Corrupt, format!("the manifest {which} has the digest {digest}")));
        }
        Ok((digest, bytes))
    }

    /// A small blob, checked.
    pub(super) async fn small_blob(&self, digest: &str) -> Result<Vec<u8>, Error> {
        let bytes = self.document(self.get(&format!("blobs/{digest}"), HeaderMap::new()).await?).await?;
        match super::digest(&bytes) == digest {
            true => Ok(bytes),
            false => Err(self.error(ImageErrorKind::Corrupt, format!("blob {digest} has another digest"))),
        }
    }

    /// Downloads a blob into a file, continuing where a connection broke; checks its size and digest.
    pub(super) async fn blob(&self, digest: &str, size: u64, path: &Path) -> Result<(), Error> {
        let disk = |error: std::io::Error| Error::System(format!("write {}: {error}", path.display()));
        let mut file = tokio::fs::File::create(path).await.map_err(disk)?;
        let (mut hash, mut length, mut resumes) = (Sha256::new(), 0u64, 0);
        loop {
            let mut headers = HeaderMap::new();
            if length > 0 {
                let range = HeaderValue::from_str(&format!("bytes={length}-"));
                headers.insert(RANGE, range.map_err(|error| Error::System(error.to_string()))?);
            }
            let broken = match self.get(&format!("blobs/{digest}"), headers).await {
                Ok(mut response) => {
                    if length > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
                        // It does not know ranges: from the start.
                        file = tokio::fs::File::create(path).await.map_err(disk)?;
                        (hash, length) = (Sha256::new(), 0);
                    }
                    loop {
                        match self.transport.clock().timeout(SILENCE, response.frame()).await {
                            None => break "the connection fell silent".to_owned(),
                            Some(None) if length < size => break "the connection ended early".to_owned(),
                            Some(None) => {
                                file.flush().await.map_err(disk)?;
                                let found = super::hex(&hash.finalize());
                                return match length == size && found == digest {
                                    true => Ok(()),
                                    false => Err(self.error(
                                        ImageErrorKind::Corrupt,
                                        format!("layer {digest} of {size} bytes came as {found} of {length}"),
                                    )),
                                };
                            }
                            Some(Some(Err(error))) => break error.to_string(),
                            Some(Some(Ok(frame))) => {
                                if let Ok(data) = frame.into_data() {
                                    length += data.len() as u64;
                                    if length > size {
                                        let message = format!("layer {digest} is longer than its {size} bytes");
                                        return Err(self.error(ImageErrorKind::Corrupt, message));
                                    }
                                    hash.update(&data);
                                    file.write_all(&data).await.map_err(disk)?;
                                }
                            }
                        }
                    }
                }
                Err(Error::Image { kind: ImageErrorKind::Unreachable, message, .. }) => message,
                Err(error) => return Err(error),
            };
            resumes += 1;
            if resumes > RESUMES_MAX {
                return Err(self.error(ImageErrorKind::Unreachable, format!("layer {digest}: {broken}")));
            }
            self.transport.clock().sleep(Duration::from_millis(100 << resumes)).await;
        }
    }

    async fn document(&self, response: Response<Incoming>) -> Result<Vec<u8>, Error> {
        let body = http_body_util::Limited::new(response.into_body(), DOCUMENT_BYTES_MAX).collect();
        match self.transport.clock().timeout(SILENCE, body).await {
            Some(Ok(body)) => Ok(body.to_bytes().to_vec()),
            Some(Err(error)) => Err(self.error(ImageErrorKind::Unreachable, error.to_string())),
            None => Err(self.error(ImageErrorKind::Unreachable, "the connection fell silent")),
        }
    }

    /// Asks, and once more with a token when the registry says how to get one.
    async fn get(&self, what: &str, headers: HeaderMap) -> Result<Response<Incoming>, Error> {
        let url = format!("{}/v2/{}/{what}", self.base, self.reference.repository);
        let mut response = self.send(&url, headers.clone()).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            let challenges: Vec<Challenge> = response
                .headers()
                .get_all(WWW_AUTHENTICATE)
                .iter()
                .filter_map(|value| Challenge::parse(value.to_str().ok()?))
                .collect();
            if let Some(token) = self.authorize(&challenges).await? {
                *self.token.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(token);
                response = self.send(&url, headers).await?;
            }
        }
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let told = self.document(response).await.unwrap_or_default();
        Err(match status {
            StatusCode::NOT_FOUND => self.error(ImageErrorKind::NotFound, format!("{} has no such image", self.base)),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let hint =
                    if self.auth.is_some() { "refused the password" } else { "wants a password, or has no such image" };
                self.error(ImageErrorKind::Unauthorized, format!("{} {hint}{}", self.base, told_by(&told)))
            }
            status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
                self.error(ImageErrorKind::Unreachable, format!("{} answered {status}{}", self.base, told_by(&told)))
            }
            status => self.error(ImageErrorKind::Other, format!("{} answered {status}{}", self.base, told_by(&told))),
        })
    }

    async fn send(&self, url: &str, mut headers: HeaderMap) -> Result<Response<Incoming>, Error> {
        let token = self.token.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
        headers.extend(token.map(|token| (AUTHORIZATION, token)));
        self.transport.send(Method::GET, url, headers, Bytes::new()).await.map_err(|failed| self.failed(failed))
    }

    /// The `Authorization` a registry asks for; `None` when nothing we have would satisfy it.
    async fn authorize(&self, challenges: &[Challenge]) -> Result<Option<HeaderValue>, Error> {
        let auth = self.auth.filter(|auth| !auth.username.is_empty() || !auth.identity_token.is_empty());
        let basic = auth.filter(|auth| !auth.username.is_empty()).map(|auth| {
            let text = format!("{}:{}", auth.username, auth.password);
            format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(text))
        });
        let value = |text: String| {
            let mut value = HeaderValue::from_str(&text).map_err(|_| {
                self.error(ImageErrorKind::Unauthorized, "the credentials have characters they cannot have")
            })?;
            value.set_sensitive(true);
            Ok(value)
        };
        if let Some(bearer) = challenges.iter().find(|challenge| challenge.scheme.eq_ignore_ascii_case("bearer")) {
            let token = self.bearer(bearer, auth, basic.map(value).transpose()?).await?;
            return value(format!("Bearer {token}")).map(Some);
        }
        match basic {
            Some(basic) if challenges.iter().any(|c| c.scheme.eq_ignore_ascii_case("basic")) => value(basic).map(Some),
            _ => Ok(None),
        }
    }

    /// A token of the authorization service the registry names.
    async fn bearer(
        &self,
        challenge: &Challenge,
        auth: Option<&RegistryAuth>,
        basic: Option<HeaderValue>,
    ) -> Result<String, Error> {
        #[derive(serde::Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let parameter = |name: &str| challenge.parameters.get(name).map(String::as_str);
        let realm = parameter("realm")
            .ok_or_else(|| self.error(ImageErrorKind::Other, "the registry does not say where to get a token"))?;
        let pull = format!("repository:{}:pull", self.reference.repository);
        let scope = parameter("scope").unwrap_or(&pull);
        let identity = auth.map(|auth| auth.identity_token.as_str()).filter(|token| !token.is_empty());
        let mut form = vec![("scope", scope)];
        form.extend(parameter("service").map(|service| ("service", service)));
        form.extend(identity.into_iter().flat_map(|identity| {
            [("grant_type", "refresh_token"), ("refresh_token", identity), ("client_id", "sampan")]
        }));
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let mut headers = HeaderMap::new();
        let response = if identity.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
            self.transport.send(Method::POST, realm, headers, form.into()).await
        } else {
            headers.extend(basic.map(|basic| (AUTHORIZATION, basic)));
            let separator = if realm.contains('?') { '&' } else { '?' };
            self.transport.send(Method::GET, &format!("{realm}{separator}{form}"), headers, Bytes::new()).await
        };
        let response = response.map_err(|failed| self.failed(failed))?;
        let status = response.status();
        let bytes = self.document(response).await?;
        if !status.is_success() {
            let kind =
                if status.is_server_error() { ImageErrorKind::Unreachable } else { ImageErrorKind::Unauthorized };
            return Err(self.error(kind, format!("{realm} answered {status}{}", told_by(&bytes))));
        }
        let token =
            serde_json::from_slice::<Token>(&bytes).ok().and_then(|answer| answer.token.or(answer.access_token));
        token.ok_or_else(|| self.error(ImageErrorKind::Other, format!("{realm} gave no token")))
    }
}

/// The first message of a registry's error document.
fn told_by(bytes: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<One>,
    }
    #[derive(serde::Deserialize)]
    struct One {
        #[serde(default)]
        message: String,
    }
    let told = serde_json::from_slice::<Errors>(bytes).ok().and_then(|errors| errors.errors.into_iter().next());
    told.filter(|one| !one.message.is_empty()).map(|one| format!(": {}", one.message)).unwrap_or_default()
}

/// One `WWW-Authenticate` value.
#[derive(Debug, PartialEq)]
struct Challenge {
    scheme: String,
    parameters: BTreeMap<String, String>,
}

impl Challenge {
    /// `Bearer realm="https://auth.example/token",service="registry",scope="repository:a/b:pull,push"`
    fn parse(text: &str) -> Option<Self> {
        let (scheme, mut rest) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        let mut parameters = BTreeMap::new();
        while let Some((name, after)) = rest.split_once('=') {
            let value;
            (value, rest) = match after.strip_prefix('"') {
                Some(quoted) => quoted.split_once('"')?,
                None => after.split_once(',').map_or((after, ""), |(value, _)| (value, &after[value.len()..])),
            };
            parameters.insert(name.trim_matches([' ', ',']).to_ascii_lowercase(), value.to_owned());
        }
        (!scheme.is_empty()).then(|| Self { scheme: scheme.to_owned(), parameters })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let text = r#"Bearer realm="https://auth.example/token?x=1", service="a b",scope="repository:a/b:pull,push",error=invalid"#;
        let challenge = Challenge::parse(text).expect("a challenge");
        let expected = [
            ("error", "invalid"),
            ("realm", "https://auth.example/token?x=1"),
            ("scope", "repository:a/b:pull,push"),
            ("service", "a b"),
        ];
        let found: Vec<(&str, &str)> = challenge.parameters.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!((challenge.scheme.as_str(), found.as_slice()), ("Bearer", expected.as_slice()));
        assert_eq!(Challenge::parse("Basic realm=x").expect("a challenge").parameters["realm"], "x");
        assert_eq!(Challenge::parse(r#"Bearer realm="open"#), None);
    }
}
