//! HTTP to registries: direct or through a proxy, TLS with the machine's roots, plain to this machine only.
//!
//! A connection per request: a pull makes a handful of them, and most of the time goes into a few large bodies.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, LOCATION, PROXY_AUTHORIZATION, USER_AGENT};
use http::uri::Scheme;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use sampan_base::{Clock, task};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// How registries are reached. Empty values mean the defaults of the environment.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct RegistryOptions {
    /// Base addresses asked before the registry itself, by registry: `docker.io: ["https://mirror.example"]`.
    pub mirrors: std::collections::BTreeMap<String, Vec<String>>,
    /// A PEM file of roots trusted besides the machine's.
    pub ca_file: Option<std::path::PathBuf>,
    pub http_proxy: Option<String>,
    pub https_proxy: Option<String>,
    /// Hosts, domains (`.example.com`), addresses and networks reached directly.
    pub no_proxy: Vec<String>,
}

impl RegistryOptions {
    /// Takes what is not set from `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, in either case of letters.
    pub fn with_environment(mut self) -> Self {
        let variable = |name: &str| {
            let value = std::env::var(name).or_else(|_| std::env::var(name.to_ascii_lowercase())).ok();
            value.filter(|value| !value.is_empty())
        };
        self.http_proxy = self.http_proxy.or_else(|| variable("HTTP_PROXY"));
        self.https_proxy = self.https_proxy.or_else(|| variable("HTTPS_PROXY"));
        if self.no_proxy.is_empty() {
            let list = variable("NO_PROXY").unwrap_or_default();
            self.no_proxy =
                list.split(',').map(|entry| entry.trim().to_owned()).filter(|entry| !entry.is_empty()).collect();
        }
        self
    }

    /// The proxy for a target; this machine is always reached directly.
    fn proxy(&self, https: bool, host: &str) -> Option<&str> {
        if is_loopback(host) || self.no_proxy.iter().any(|entry| bypasses(entry, host)) {
            return None;
        }
        if https { self.https_proxy.as_deref() } else { self.http_proxy.as_deref() }
    }
}

/// Whether a host is this machine: plain HTTP is taken there and nowhere else.
pub(super) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// One entry of NO_PROXY.
fn bypasses(entry: &str, host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if entry == "*" {
        return true;
    }
    if let Ok(ip) = host.parse::<IpAddr>() {
        return entry.parse::<ipnet::IpNet>().is_ok_and(|net| net.contains(&ip)) || entry.parse() == Ok(ip);
    }
    let domain = entry.trim_start_matches("*.").trim_start_matches('.');
    host == domain || host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'))
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failed {
    #[error("{0}")]
    Unreachable(String),
    #[error("{0}")]
    Address(String),
}

pub(super) struct Transport {
    options: RegistryOptions,
    clock: Clock,
    tls: Arc<rustls::ClientConfig>,
}

/// To connect, and to get the head of an answer.
const PATIENCE: Duration = Duration::from_secs(30);

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

impl Transport {
    /// Fails when a CA file that was asked for cannot be read.
    pub(super) fn new(options: RegistryOptions, clock: Clock) -> io::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        if let Some(path) = &options.ca_file {
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| bad_ca(path, &error))? {
                let certificate = certificate.map_err(|error| bad_ca(path, &error))?;
                roots.add(certificate).map_err(|error| bad_ca(path, &error))?;
            }
        }
        let given = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
        let places = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
        let places = given.into_iter().chain(places.map(Into::into));
        let machine = places.into_iter().find_map(|path| CertificateDer::pem_file_iter(path).ok());
        // A machine keeps some roots rustls does not take; the others do.
        roots.add_parsable_certificates(machine.into_iter().flatten().flatten());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self { options, clock, tls: Arc::new(tls) })
    }

    pub(super) fn options(&self) -> &RegistryOptions {
        &self.options
    }

    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Sends a request, following redirections; the authorization stays with the host it was meant for.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &str,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failed> {
        const REDIRECTIONS_MAX: usize = 8;
        let mut uri: Uri = url.parse().map_err(|_| Failed::Address(format!("{url:?} is not an address")))?;
        for _ in 0..REDIRECTIONS_MAX {
            let sent = self.send_once(method.clone(), &uri, headers.clone(), body.clone());
            let response = match self.clock.timeout(PATIENCE, sent).await {
                Some(response) => response?,
                None => return Err(Failed::Unreachable(format!("{uri}: no answer within {PATIENCE:?}"))),
            };
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let (true, Some(location)) = (response.status().is_redirection(), location) else { return Ok(response) };
            let next = resolve(&uri, location)?;
            if next.authority() != uri.authority() {
                headers.remove(AUTHORIZATION);
            }
            uri = next;
        }
        Err(Failed::Unreachable(format!("{url}: too many redirections")))
    }

    async fn send_once(
        &self,
        method: Method,
        uri: &Uri,
        mut headers: HeaderMap,
        body: Bytes,
    ) -> Result<Response<Incoming>, Failed> {
        let authority = uri.authority().ok_or_else(|| Failed::Address(format!("{uri}: no host")))?;
        let (host, https) = (authority.host(), uri.scheme() == Some(&Scheme::HTTPS));
        if !https && !is_loopback(host) {
            return Err(Failed::Address(format!("{uri}: plain HTTP is for registries on this machine only")));
        }
        let unreachable = |error: &dyn std::fmt::Display| Failed::Unreachable(format!("{authority}: {error}"));
        let port = authority.port_u16().unwrap_or(if https { 443 } else { 80 });
        let stream = self.connect(https, host, port).await.map_err(|error| unreachable(&error))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| unreachable(&error))?;
        task::spawn("registry connection", async move {
            // What goes wrong is seen where the body is read.
            let _ = connection.await;
        });
        let host_value = HeaderValue::from_str(authority.as_str());
        headers.insert(HOST, host_value.map_err(|error| Failed::Address(format!("{uri}: {error}")))?);
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("sampan/", env!("CARGO_PKG_VERSION"))));
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = target.parse().map_err(|_| Failed::Address(format!("{uri} is not an address")))?;
        *request.headers_mut() = headers;
        sender.send_request(request).await.map_err(|error| unreachable(&error))
    }

    async fn connect(&self, https: bool, host: &str, port: u16) -> io::Result<Box<dyn Stream>> {
        let stream = match self.options.proxy(https, host) {
            None => tcp(host, port).await?,
            Some(proxy) => through(proxy, host, port).await?,
        };
        if !https {
            return Ok(Box::new(stream));
        }
        let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(name).map_err(io::Error::other)?;
        Ok(Box::new(tokio_rustls::TlsConnector::from(self.tls.clone()).connect(name, stream).await?))
    }
}

fn bad_ca(path: &Path, error: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("CA file {}: {error}", path.display()))
}

fn resolve(base: &Uri, location: &str) -> Result<Uri, Failed> {
    let wrong = || Failed::Address(format!("{base} redirects to {location:?}, which is not an address"));
    let next: Uri = location.parse().map_err(|_| wrong())?;
    if next.scheme().is_some() {
        // Down to plain HTTP only where plain HTTP is taken at all, which sending checks.
        return Ok(next);
    }
    let mut parts = base.clone().into_parts();
    parts.path_and_query = next.into_parts().path_and_query;
    Uri::from_parts(parts).map_err(|_| wrong())
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host((host, port)).await?.collect();
    let stream = TcpStream::connect(addresses.as_slice()).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A tunnel through an HTTP proxy, for plain targets too.
async fn through(proxy: &str, host: &str, port: u16) -> io::Result<TcpStream> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    const HEAD_BYTES_MAX: usize = 8 << 10;
    let wrong = |why: &str| io::Error::other(format!("proxy {proxy}: {why}"));
    let with_scheme = if proxy.contains("://") { proxy.to_owned() } else { format!("http://{proxy}") };
    let uri: Uri = with_scheme.parse().map_err(|_| wrong("not an address"))?;
    if uri.scheme() != Some(&Scheme::HTTP) {
        return Err(wrong("only http:// proxies are supported"));
    }
    let authority = uri.authority().ok_or_else(|| wrong("no host"))?;
    let mut stream = tcp(authority.host(), authority.port_u16().unwrap_or(80)).await?;
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
    if let Some((credentials, _)) = authority.as_str().rsplit_once('@') {
        let encoded = base64::engine::general_purpose::STANDARD.encode(credentials);
        request.push_str(&format!("{PROXY_AUTHORIZATION}: Basic {encoded}\r\n"));
    }
    stream.write_all(format!("{request}\r\n").as_bytes()).await?;
    let mut head = Vec::new();
    // Byte by byte: what follows the head is the target's.
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() >= HEAD_BYTES_MAX {
            return Err(wrong("its answer is too long"));
        }
        head.push(stream.read_u8().await?);
    }
    let head = String::from_utf8_lossy(&head);
    match head.split_whitespace().nth(1) {
        Some("200") => Ok(stream),
        _ => Err(wrong(head.lines().next().unwrap_or("no answer"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_bypassed_as_listed() {
        let options = RegistryOptions {
            https_proxy: Some("http://proxy:3128".to_owned()),
            no_proxy: ["10.0.0.0/8", ".corp.example", "one.example", "192.168.1.1"].map(str::to_owned).to_vec(),
            ..RegistryOptions::default()
        };
        for host in [
            "10.1.2.3",
            "a.corp.example",
            "corp.example",
            "one.example",
            "x.one.example",
            "192.168.1.1",
            "localhost",
            "127.0.0.1",
            "[::1]",
        ] {
            assert_eq!(options.proxy(true, host), None, "{host}");
        }
        for host in ["11.0.0.1", "notcorp.example", "docker.io", "192.168.1.10"] {
            assert_eq!(options.proxy(true, host), Some("http://proxy:3128"), "{host}");
            assert_eq!(options.proxy(false, host), None, "{host}");
        }
    }

    #[test]
    fn redirections_are_resolved() {
        let base: Uri = "https://a.example/v2/x?y=1".parse().expect("an address");
        assert_eq!(resolve(&base, "/blob?z=2").expect("an address").to_string(), "https://a.example/blob?z=2");
        assert_eq!(resolve(&base, "https://b.example/c").expect("an address").to_string(), "https://b.example/c");
        assert!(resolve(&base, "::").is_err());
    }
}
