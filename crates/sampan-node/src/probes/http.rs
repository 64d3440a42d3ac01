//! `httpGet`, for probes and lifecycle hooks: a status from 200 to 399 is success.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use sampan_base::task;
use tokio::net::TcpStream;

use super::{Answer, Target, host, port};

const REDIRECTS_MAX: usize = 10;
/// How much of an answer an event shows.
const BODY_MAX: usize = 10 * 1024;

pub async fn attempt(target: &Target, action: &HTTPGetAction) -> Answer {
    let (status, body) = match get(target, action, "kube-probe/1.37").await {
        Ok(answer) => answer,
        Err(error) => return Answer::Failure(error),
    };
    if status.is_success() || status.is_redirection() {
        Answer::Success
    } else {
        tracing::debug!(%status, %body, "an HTTP probe failed");
        Answer::Failure(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
    }
}

/// Makes the request, following redirects on the same host. Errors are texts for events.
pub async fn get(target: &Target, action: &HTTPGetAction, agent: &str) -> Result<(StatusCode, String), String> {
    let port = port(&target.container, &action.port).ok_or("the action's port is not a port of the container")?;
    let host = host(target, action.host.as_ref()).ok_or("the pod has no address yet")?;
    let secure = action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
    let path = action.path.as_deref().filter(|path| !path.is_empty()).unwrap_or("/");
    let mut path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let shown = if host.contains(':') { format!("[{host}]") } else { host.clone() };
    for _ in 0..REDIRECTS_MAX {
        let scheme = if secure { "https" } else { "http" };
        let failed = |error: String| format!("Get \"{scheme}://{shown}:{port}{path}\": {error}");
        let request = request(action, &path, &format!("{shown}:{port}"), agent).map_err(&failed)?;
        let (status, location, body) = exchange(&host, port, secure, request).await.map_err(&failed)?;
        match location.filter(|_| status.is_redirection()).and_then(|location| same_host(&location, &host, port)) {
            Some(next) => path = next,
            None => return Ok((status, body)),
        }
    }
    Err("stopped after 10 redirects".into())
}

/// The path of a redirect that stays on this host; `None` for one that leads elsewhere (which counts as success).
fn same_host(location: &str, host: &str, port: u16) -> Option<String> {
    let uri: Uri = location.parse().ok()?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    match uri.host() {
        None => Some(path),
        Some(other) if other.trim_matches(['[', ']']) == host && uri.port_u16().is_none_or(|other| other == port) => {
            Some(path)
        }
        Some(_) => None,
    }
}

fn request(action: &HTTPGetAction, path: &str, authority: &str, agent: &str) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(path).body(Empty::new()).map_err(|error| error.to_string())?;
    let headers = request.headers_mut();
    let value = |text: &str| HeaderValue::from_str(text).map_err(|error| error.to_string());
    headers.insert(header::HOST, value(authority)?);
    headers.insert(header::USER_AGENT, value(agent)?);
    headers.insert(header::ACCEPT, HeaderValue::from_static("*/*"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    for one in action.http_headers.iter().flatten() {
        let name: HeaderName = one.name.parse().map_err(|_| format!("bad header name {:?}", one.name))?;
        headers.insert(name, value(&one.value)?);
    }
    Ok(request)
}

type Exchanged = (StatusCode, Option<String>, String);

async fn exchange(host: &str, port: u16, secure: bool, request: Request<Empty<Bytes>>) -> Result<Exchanged, String> {
    let stream = TcpStream::connect((host, port)).await.map_err(|error| format!("dial tcp {host}:{port}: {error}"))?;
    if !secure {
        return speak(TokioIo::new(stream), request).await;
    }
    let name = ServerName::try_from(host.to_owned()).map_err(|error| error.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(unverified()?);
    let stream = connector.connect(name, stream).await.map_err(|error| error.to_string())?;
    speak(TokioIo::new(stream), request).await
}

async fn speak<S>(stream: S, request: Request<Empty<Bytes>>) -> Result<Exchanged, String>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let text = |error: hyper::Error| error.to_string();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.map_err(text)?;
    let mut group = task::Group::default();
    group.spawn("probe connection", async move {
        // An error here ends the request below, which reports it.
        let _ = connection.await;
    });
    let response = sender.send_request(request).await.map_err(text)?;
    let status = response.status();
    let location = response.headers().get(header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = Limited::new(response.into_body(), BODY_MAX).collect().await;
    let body = body.map(|body| String::from_utf8_lossy(&body.to_bytes()).into_owned()).unwrap_or_default();
    Ok((status, location, body))
}

/// Probes don't check certificates, as upstream's don't: they ask a pod of this node by its address.
fn unverified() -> Result<Arc<ClientConfig>, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = Arc::new(Unverified(provider.clone()));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct Unverified(Arc<rustls::crypto::CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
