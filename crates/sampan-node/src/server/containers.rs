//! `/containerLogs`: which file it is, and its content as it grows.

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use sampan_base::task;
use sampan_runtime::{ContainerState, ContainerStatus};
use tokio::sync::mpsc;

use super::{Body, Refusal, Server, query};
use crate::logs::{self, Printer, Query};
use crate::pod::{PodExt, status};
use crate::worker::Snapshot;

/// How often a file that is being followed is looked at. Only while somebody follows it.
const FOLLOW: Duration = Duration::from_millis(100);
const CHUNKS: usize = 16;

pub async fn logs(
    server: &Server,
    namespace: &str,
    pod: &str,
    container: &str,
    query: Option<&str>,
) -> Result<Response<Body>, Refusal> {
    let query = query::logs(query, &server.node.parts.clock)?;
    let shown = find(server, namespace, pod)?;
    let run = run_of(&shown, container, query.previous)?;
    let path = server.node.log_directory(&shown.pod).join(&run.path);
    let (sender, receiver) = mpsc::channel(CHUNKS);
    task::spawn("log reader", send(server.clone(), shown.pod.uid().to_owned(), run.id, path, query, sender));
    let stream = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|chunk: Vec<u8>| (chunk, receiver))
    });
    let body = StreamBody::new(stream.map(|chunk| Ok(Frame::data(Bytes::from(chunk)))));
    let mut response = Response::new(BodyExt::boxed(body));
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    Ok(response)
}

pub fn find(server: &Server, namespace: &str, pod: &str) -> Result<Snapshot, Refusal> {
    server.pods.find(namespace, pod).ok_or_else(|| Refusal::not_found(format!("pod {pod:?} not found\n")))
}

/// The newest run of a container that is running.
pub fn running<'a>(shown: &'a Snapshot, container: &str) -> Result<&'a ContainerStatus, Refusal> {
    let runs = shown.containers.values().filter(|run| run.config.name == container);
    runs.filter(|run| run.state == ContainerState::Running)
        .max_by_key(|run| run.config.attempt)
        .ok_or_else(|| Refusal::not_found(format!("container not found ({container:?})\n")))
}

struct Run {
    /// Below the pod's log directory.
    path: PathBuf,
    /// `None` when it is certain to write nothing more.
    id: Option<String>,
}

/// Which run's log is meant (upstream's `validateContainerLogStatus`).
fn run_of(shown: &Snapshot, container: &str, previous: bool) -> Result<Run, Refusal> {
    let pod = shown.pod.name();
    if shown.pod.container(container).is_none() {
        return Err(Refusal::not_found(format!("container {container:?} not found in pod {pod:?}\n")));
    }
    let mut runs: Vec<&ContainerStatus> = shown
        .containers
        .values()
        .filter(|run| run.config.name == container && run.state != ContainerState::Created)
        .collect();
    runs.sort_by_key(|run| run.config.attempt);
    let path = |attempt: u32| PathBuf::from(container).join(format!("{attempt}.log"));
    let told = status::reported(&shown.status, container);
    if previous {
        let attempt = match runs.as_slice() {
            [.., before, _] => Some(before.config.attempt),
            // The run before went with its sandbox; its file is still here.
            [only] => only.config.attempt.checked_sub(1),
            [] => None,
        };
        let attempt = attempt.ok_or_else(|| {
            Refusal::bad_request(format!("previous terminated container {container:?} in pod {pod:?} not found\n"))
        })?;
        return Ok(Run { path: path(attempt), id: None });
    }
    if let Some(run) = runs.last() {
        return Ok(Run { path: path(run.config.attempt), id: Some(run.id.clone()) });
    }
    let state = told.and_then(|told| told.state.as_ref());
    if let (Some(told), Some(_)) = (told, state.and_then(|state| state.terminated.as_ref())) {
        return Ok(Run { path: path(u32::try_from(told.restart_count).unwrap_or(0)), id: None });
    }
    let reason = state.and_then(|state| state.waiting.as_ref()).and_then(|waiting| waiting.reason.as_deref());
    let why = match reason {
        Some("ErrImagePull") => "image can't be pulled",
        Some("ImagePullBackOff") => "trying and failing to pull image",
        Some(reason) => reason,
        None => "no logs yet",
    };
    Err(Refusal::bad_request(format!("container {container:?} in pod {pod:?} is waiting to start: {why}\n")))
}

/// Reads the log and, when asked to follow, what is added until the run has ended or the reader has gone.
async fn send(
    server: Server,
    uid: String,
    id: Option<String>,
    path: PathBuf,
    query: Query,
    sender: mpsc::Sender<Vec<u8>>,
) {
    let clock = server.node.parts.clock.clone();
    let follow = query.follow;
    let (first, to, at) = (query.clone(), sender.clone(), path.clone());
    let read = task::spawn_blocking(move || {
        let mut printer = Printer::new(&first);
        let position = logs::read(&at, &first, &mut printer, &mut |chunk| to.blocking_send(chunk).is_ok());
        (position, printer)
    });
    let Ok((position, mut printer)) = read.await else { return };
    let mut position = match position {
        Ok(Some(position)) if follow => position,
        Ok(_) => return,
        // Started just now, nothing written yet.
        Err(error) => return tracing::debug!(?path, %error, "cannot read a log"),
    };
    loop {
        // Asked before the last look at the file: what was written before the end is then read.
        let over = !id.as_ref().is_some_and(|id| is_running(&server, &uid, id));
        let (to, at) = (sender.clone(), path.clone());
        let caught_up = task::spawn_blocking(move || {
            let mut chunks = |chunk| to.blocking_send(chunk).is_ok();
            let more = position.catch_up(&at, &mut printer, &mut chunks);
            (more, position, printer)
        });
        let Ok((more, here, with)) = caught_up.await else { return };
        (position, printer) = (here, with);
        if over || !more.unwrap_or(false) || sender.is_closed() {
            return;
        }
        clock.sleep(FOLLOW).await;
    }
}

fn is_running(server: &Server, uid: &str, id: &str) -> bool {
    let pods = server.pods.lock();
    let shown = pods.get(uid).map(|handle| handle.look());
    shown.and_then(|shown| shown.containers.get(id).map(|run| run.state)) == Some(ContainerState::Running)
}
