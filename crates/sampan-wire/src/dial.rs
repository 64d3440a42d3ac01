//! Connections as a client: TCP with TLS on it, and HTTP/1.1 on that with upgrades. One connection a call; pools and
//! HTTP/2 stand where they are needed.

use std::io;
use std::sync::Arc;

use hyper::body::Body;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use sampan_base::task;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Connects to `host:port` and checks that the server's certificate is for `name`.
pub async fn tls(host: &str, port: u16, name: &str, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect((host, port)).await?;
    tcp.set_nodelay(true)?;
    let name =
        ServerName::try_from(name.to_owned()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    TlsConnector::from(config).connect(name, tcp).await
}

/// HTTP/1.1 on a connection. The upgraded connection comes from `hyper::upgrade::on` of the response.
pub async fn http1<T, B>(io: T) -> hyper::Result<SendRequest<B>>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    task::spawn("http1 client", async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection broke");
        }
    });
    Ok(sender)
}
