//! TLS configurations for servers and clients: aws-lc-rs, TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1 by ALPN, sessions resumed.

use std::sync::Arc;

use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme, crypto};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sampan_base::Clock;

use crate::pki::{self, Error, Identity, Subject};

/// How many client sessions a server remembers: more than the nodes and users of a large cluster.
const SESSIONS: usize = 8192;

fn provider() -> Arc<crypto::CryptoProvider> {
    Arc::new(crypto::aws_lc_rs::default_provider())
}

fn roots(ca_pems: &[&str]) -> Result<Arc<RootCertStore>, Error> {
    let mut store = RootCertStore::empty();
    for pem in ca_pems {
        for certificate in pki::certificates(pem)? {
            store.add(certificate)?;
        }
    }
    Ok(Arc::new(store))
}

/// A server that shows `identity` whatever name the client asks for. A client certificate is optional; one that does
/// not chain to `client_cas` ends the handshake. Without `client_cas` none is asked for.
pub fn server_config(identity: &Identity, client_cas: &[&str]) -> Result<Arc<ServerConfig>, Error> {
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let builder = if client_cas.is_empty() {
        builder.with_no_client_auth()
    } else {
        let verifier = WebPkiClientVerifier::builder_with_provider(roots(client_cas)?, provider())
            .allow_unauthenticated()
            .build()
            .map_err(|error| Error::Parse(error.to_string()))?;
        builder.with_client_cert_verifier(verifier)
    };
    let mut config = builder.with_single_cert(identity.chain()?, identity.key()?)?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(SESSIONS);
    config.ticketer = crypto::aws_lc_rs::Ticketer::new()?;
    Ok(Arc::new(config))
}

/// Which HTTP versions a client offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Http {
    /// HTTP/2, and HTTP/1.1 for servers that do not speak it.
    Any,
    /// HTTP/1.1 only: what an upgrade (WebSocket, SPDY) needs.
    One,
}

/// A client that trusts `ca_pems` and nothing else and shows `identity` when asked.
pub fn client_config(ca_pems: &[&str], identity: Option<&Identity>, http: Http) -> Result<Arc<ClientConfig>, Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(ca_pems)?);
    let mut config = match identity {
        Some(identity) => builder.with_client_auth_cert(identity.chain()?, identity.key()?)?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = match http {
        Http::Any => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
        Http::One => vec![b"http/1.1".to_vec()],
    };
    config.resumption = Resumption::in_memory_sessions(64);
    Ok(Arc::new(config))
}

/// A client that takes any certificate: for proxied pods and services, whose certificates nobody here can know (upstream
/// does not check them either). Never for a node or an API server.
pub fn unverified_client_config() -> Result<Arc<ClientConfig>, Error> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer(provider())))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Believes every certificate; still checks that the server holds its key.
#[derive(Debug)]
struct AnyServer(Arc<crypto::CryptoProvider>);

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(message, certificate, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// The subject of the verified client certificate of a connection; `None` without one, or when it has expired since a
/// resumed session was verified (a resumption does not verify again).
pub fn peer(connection: &rustls::CommonState, clock: &Clock) -> Option<Subject> {
    let leaf = connection.peer_certificates()?.first()?;
    let found = pki::describe(leaf).ok()?;
    (found.not_after > clock.now()).then_some(found.subject)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sampan_base::Dice;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::pki::{CA_LIFETIME, Ca, Usage};

    struct Pki {
        ca: Ca,
        server: Identity,
        client: Identity,
    }

    fn pki() -> Pki {
        let (clock, dice) = (Clock::system(), Dice::system());
        let hour = Duration::from_secs(3600);
        let (ca, _) = Ca::generate("test", CA_LIFETIME, &clock, &dice).expect("an authority");
        let names = Usage::Server { dns: vec!["localhost".into()], ips: vec![] };
        let server = ca.issue(&Subject::new("server", &[]), &names, hour, &clock, &dice).expect("issued");
        let subject = Subject::new("alice", &["dev"]);
        let client = ca.issue(&subject, &Usage::Client, hour, &clock, &dice).expect("issued");
        Pki { ca, server, client }
    }

    /// One handshake and one byte; what the server saw, or the client's error.
    async fn handshake(server: Arc<ServerConfig>, client: Arc<ClientConfig>) -> Result<Option<Subject>, String> {
        let (left, right) = tokio::io::duplex(64 * 1024);
        let accept = async {
            let mut stream = tokio_rustls::TlsAcceptor::from(server).accept(left).await.map_err(|e| e.to_string())?;
            stream.write_all(b"x").await.map_err(|e| e.to_string())?;
            stream.flush().await.map_err(|e| e.to_string())?;
            Ok::<_, String>(peer(stream.get_ref().1, &Clock::system()))
        };
        let connect = async {
            let name = ServerName::try_from("localhost").expect("a name");
            let mut stream =
                tokio_rustls::TlsConnector::from(client).connect(name, right).await.map_err(|e| e.to_string())?;
            stream.read_u8().await.map_err(|e| e.to_string())?;
            assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
            Ok::<_, String>(())
        };
        let (seen, done) = tokio::join!(accept, connect);
        done?;
        seen
    }

    #[tokio::test]
    async fn the_peer_is_who_the_certificate_names() {
        let Pki { ca, server, client } = pki();
        let pem = ca.certificate_pem();
        let server = server_config(&server, &[pem]).expect("a server");
        let with = client_config(&[pem], Some(&client), Http::Any).expect("a client");
        let alice = Some(Subject::new("alice", &["dev"]));
        assert_eq!(handshake(server.clone(), with.clone()).await.expect("a handshake"), alice);
        // A resumed session still knows the peer.
        assert_eq!(handshake(server.clone(), with).await.expect("a handshake"), alice);
        let without = client_config(&[pem], None, Http::Any).expect("a client");
        assert_eq!(handshake(server, without).await.expect("a handshake"), None);
    }

    #[tokio::test]
    async fn foreign_authorities_are_refused_on_both_sides() {
        let (ours, theirs) = (pki(), pki());
        let server = server_config(&ours.server, &[ours.ca.certificate_pem()]).expect("a server");
        let distrusts = client_config(&[theirs.ca.certificate_pem()], None, Http::Any).expect("a client");
        handshake(server.clone(), distrusts).await.expect_err("the server is unknown");
        let foreign = client_config(&[ours.ca.certificate_pem()], Some(&theirs.client), Http::Any).expect("a client");
        handshake(server, foreign).await.expect_err("the client is unknown");
    }
}
