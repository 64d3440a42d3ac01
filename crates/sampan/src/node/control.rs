//! The agent's local control socket: image commands of `sampan image`. HTTP/1.1 over a unix socket of mode 0600 in the
//! node's directory; whoever may open it is root already.
//!
//! ```text
//! GET    /images                 the list
//! POST   /images/load            body: an archive
//! POST   /images/pull?reference= fetches
//! DELETE /images?reference=      removes
//! ```

use std::convert::Infallible;
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sampan_base::task;
use sampan_runtime::{Error, Image, Images};
use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

/// Serves until dropped.
pub async fn serve(path: &Path, images: Arc<dyn Images>) -> anyhow::Result<Infallible> {
    // What an earlier agent left behind.
    let _ = std::fs::remove_file(path);
    let listener = UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let images = images.clone();
        task::spawn("control connection", async move {
            let service = service_fn(move |request| {
                let images = images.clone();
                async move { Ok::<_, Infallible>(answer(request, images).await) }
            });
            let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            if let Err(error) = served.await {
                tracing::debug!(%error, "control connection");
            }
        });
    }
}

async fn answer(request: Request<Incoming>, images: Arc<dyn Images>) -> Response<Full<Bytes>> {
    let query: Vec<(String, String)> =
        form_urlencoded::parse(request.uri().query().unwrap_or_default().as_bytes()).into_owned().collect();
    let reference = || {
        let found = query.iter().find(|(key, _)| key == "reference").map(|(_, value)| value.clone());
        found.ok_or_else(|| Error::Invalid("reference is missing".into()))
    };
    let result = match (request.method().clone(), request.uri().path().to_owned().as_str()) {
        (Method::GET, "/images") => images.list().await.map(|all| Value::from_iter(all.iter().map(shown))),
        (Method::POST, "/images/load") => load(request.into_body(), images.clone()).await,
        (Method::POST, "/images/pull") => match reference() {
            Ok(reference) => images.pull(&reference, None).await.map(|image| shown(&image)),
            Err(error) => Err(error),
        },
        (Method::DELETE, "/images") => match reference() {
            Ok(reference) => images.remove(&reference).await.map(|()| Value::Null),
            Err(error) => Err(error),
        },
        (method, path) => Err(Error::Invalid(format!("{method} {path} is not a command"))),
    };
    let (status, body) = match result {
        Ok(value) => (StatusCode::OK, value),
        Err(error) => (StatusCode::UNPROCESSABLE_ENTITY, json!({"error": error.to_string()})),
    };
    let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    response
}

fn shown(image: &Image) -> Value {
    json!({"id": image.id, "tags": image.tags, "digests": image.digests, "sizeBytes": image.size_bytes})
}

async fn load(mut body: Incoming, images: Arc<dyn Images>) -> Result<Value, Error> {
    let (sender, receiver) = mpsc::channel::<Bytes>(8);
    let feed = async move {
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame
                .map_err(|error| tracing::debug!(%error, "archive"))
                .and_then(|frame| frame.into_data().map_err(|_| ()))
            else {
                break;
            };
            if sender.send(data).await.is_err() {
                break;
            }
        }
    };
    let feeding = task::spawn("archive", feed);
    // A task of its own: the reader waits, and the connection that brings the archive must not wait with it.
    let loading = task::spawn("image load", async move {
        let mut archive = Chunks { receiver, current: Bytes::new() };
        images.load(&mut archive).await
    });
    let loaded = loading.await.map_err(|error| Error::System(format!("the load died: {error}")))?;
    feeding.abort();
    loaded.map(|all| Value::from_iter(all.iter().map(shown)))
}

/// An archive that arrives in pieces, read by a blocking reader.
struct Chunks {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() {
            let receiver = &mut self.receiver;
            // The reader may run on a thread of the async runtime, which must be told that it will wait.
            self.current = tokio::task::block_in_place(|| receiver.blocking_recv()).unwrap_or_default();
        }
        let length = buffer.len().min(self.current.len());
        buffer[..length].copy_from_slice(&self.current.split_to(length));
        Ok(length)
    }
}
