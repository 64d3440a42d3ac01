//! The TLS listener: HTTP/1.1 and HTTP/2 by ALPN, client certificates to peers, upgrades passed through.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use rustls::ServerConfig;
use sampan_base::task;
use sampan_wire::tls;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::auth::{Peer, User};
use crate::server::Server;

/// How long a caller may take for the TLS handshake, and for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADER: Duration = Duration::from_secs(30);
/// As upstream's `--http2-max-streams-per-connection`; many watches share one connection.
const STREAMS: u32 = 1_000;

/// Serves until the task is dropped. Errors of single connections are logged.
pub async fn serve(listener: TcpListener, config: Arc<ServerConfig>, server: Arc<Server>) {
    let acceptor = TlsAcceptor::from(config);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (acceptor, server) = (acceptor.clone(), server.clone());
                task::spawn("apiserver-connection", async move { connection(stream, acceptor, server).await });
            }
            Err(error) => {
                // Out of file descriptors, most likely: wait instead of spinning.
                tracing::warn!(%error, "cannot accept a connection");
                server.config.clock.sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, server: Arc<Server>) {
    let address = stream.peer_addr().ok();
    // Watch frames are small and must not wait for each other.
    let _ = stream.set_nodelay(true);
    let clock = server.config.clock.clone();
    let stream = match clock.timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Some(Ok(stream)) => stream,
        Some(Err(error)) => {
            tracing::debug!(?address, %error, "TLS handshake failed");
            return;
        }
        None => return,
    };
    let certified = tls::peer(stream.get_ref().1, &clock).map(User::from);
    let peer = Peer { certified, address };
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let (server, peer) = (server.clone(), peer.clone());
        let request = request.map(|body| body.map_err(Into::into).boxed());
        async move { Ok::<_, Infallible>(server.handle(peer, request).await) }
    });
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    if let Err(error) = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await {
        tracing::debug!(?address, %error, "connection ended");
    }
}
