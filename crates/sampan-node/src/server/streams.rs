//! `/exec`, `/attach` and `/portForward`: the upgrade, and the bytes between the client and the runtime.

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use sampan_base::task;
use sampan_runtime::{AttachRequest, Error, ExecRequest, ExecSession, Runtime};
use sampan_wire::streams::{self, Accepted, Forward, Outcome, Protocol, Purpose, Remote, Wants};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};

use super::containers::{find, running};
use super::{Body, Refusal, Server, query};
use crate::pod::PodExt;

/// Which streams a request asks for.
fn wants(pairs: &[(String, String)]) -> Result<Wants, Refusal> {
    let flag = |name: &str| query::flag(pairs, name);
    let wants =
        Wants { stdin: flag("input"), stdout: flag("output"), stderr: flag("error") && !flag("tty"), tty: flag("tty") };
    if wants.stdin || wants.stdout || wants.stderr {
        Ok(wants)
    } else {
        Err(Refusal::bad_request("you must specify at least 1 of stdin, stdout, stderr\n"))
    }
}

pub async fn exec(
    server: &Server,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let shown = find(server, namespace, pod)?;
    let id = running(&shown, container)?.id.clone();
    let pairs = query::pairs(request.uri().query());
    let wants = wants(&pairs)?;
    let command = pairs.into_iter().filter(|(key, _)| key == "command").map(|(_, word)| word).collect();
    let asked = ExecRequest {
        command,
        stdin: wants.stdin,
        stdout: wants.stdout,
        stderr: wants.stderr,
        tty: wants.tty,
        timeout: None,
    };
    let server = server.clone();
    upgrade(request, Purpose::RemoteCommand, move |io, protocol| async move {
        let parts = &server.node.parts;
        let Some(remote) = take(io, protocol, wants, &server).await else { return };
        match parts.runtime.exec(&id, &asked).await {
            Ok(session) => connect(session, remote, true).await,
            Err(error) => remote.status.finish(&failure(error)).await,
        }
    })
}

pub async fn attach(
    server: &Server,
    namespace: &str,
    pod: &str,
    container: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let shown = find(server, namespace, pod)?;
    let id = running(&shown, container)?.id.clone();
    let wants = wants(&query::pairs(request.uri().query()))?;
    // Whether there is a terminal was decided when the container was made.
    let tty = shown.pod.container(container).and_then(|container| container.tty) == Some(true);
    let wants = Wants { tty, stderr: wants.stderr && !tty, ..wants };
    let asked = AttachRequest { stdin: wants.stdin, stdout: wants.stdout, stderr: wants.stderr, tty };
    let server = server.clone();
    upgrade(request, Purpose::RemoteCommand, move |io, protocol| async move {
        let Some(remote) = take(io, protocol, wants, &server).await else { return };
        match server.node.parts.runtime.attach(&id, &asked).await {
            // The exit of the container is told by its status, not by those who watch it.
            Ok(session) => connect(session, remote, false).await,
            Err(error) => remote.status.finish(&failure(error)).await,
        }
    })
}

pub async fn port_forward(
    server: &Server,
    namespace: &str,
    pod: &str,
    request: Request<Incoming>,
) -> Result<Response<Body>, Refusal> {
    let shown = find(server, namespace, pod)?;
    let sandbox = shown.sandbox.ok_or_else(|| Refusal::not_found(format!("pod not found ({pod:?})\n")))?;
    let pairs = query::pairs(request.uri().query());
    let named = pairs.iter().filter(|(key, _)| key == "port" || key == "ports");
    let ports: Vec<u16> = named.flat_map(|(_, list)| list.split(',')).filter_map(|port| port.parse().ok()).collect();
    let server = server.clone();
    upgrade(request, Purpose::PortForward, move |io, protocol| async move {
        let parts = server.node.parts.clone();
        let mut forwards = match streams::port_forward(io, protocol, &ports, parts.clock.clone()).await {
            Ok(forwards) => forwards,
            Err(error) => return tracing::debug!(%error, "port-forward"),
        };
        let mut open = FuturesUnordered::new();
        let mut more = true;
        while more || !open.is_empty() {
            tokio::select! {
                biased;
                forward = forwards.next(), if more => match forward {
                    Some(forward) => open.push(connect_port(&*parts.runtime, &sandbox, forward)),
                    None => more = false,
                },
                Some(()) = open.next(), if !open.is_empty() => {}
            }
        }
    })
}

async fn connect_port(runtime: &dyn Runtime, sandbox: &str, forward: Forward) {
    match runtime.port_forward(sandbox, forward.port).await {
        Ok(backend) => {
            if let Err(error) = forward.splice(backend).await {
                tracing::debug!(%error, "a forwarded connection broke");
            }
        }
        Err(error) => {
            let port = forward.port;
            forward.fail(&format!("error forwarding port {port} to pod: {error}")).await;
        }
    }
}

type Upgraded = TokioIo<hyper::upgrade::Upgraded>;

/// Answers the upgrade; `serve` gets the connection once the client has the answer.
fn upgrade<F, Fut>(request: Request<Incoming>, purpose: Purpose, serve: F) -> Result<Response<Body>, Refusal>
where
    F: FnOnce(Upgraded, Protocol) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let Accepted { response, protocol } = match streams::negotiate(request.headers(), purpose) {
        Ok(accepted) => accepted,
        Err(refused) => return Ok(refused.response().map(|text| Full::from(text).boxed())),
    };
    task::spawn("stream", async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => serve(TokioIo::new(upgraded), protocol).await,
            Err(error) => tracing::debug!(%error, "the client did not go on after the upgrade"),
        }
    });
    Ok(response.map(|()| Full::default().boxed()))
}

async fn take(io: Upgraded, protocol: Protocol, wants: Wants, server: &Server) -> Option<Remote> {
    let taken = streams::remote_command(io, protocol, wants, server.node.parts.clock.clone()).await;
    taken.inspect_err(|error| tracing::debug!(%error, "a remote command")).ok()
}

fn failure(error: Error) -> Outcome {
    Outcome::Failure(error.to_string())
}

/// Copies until the command has ended and all its output has been passed on; then tells how it ended.
async fn connect(session: ExecSession, remote: Remote, tells_exit: bool) {
    let Remote { stdin, stdout, stderr, resize, status } = remote;
    let mut input = task::Group::default();
    if let (Some(mut from), Some(mut to)) = (stdin, session.stdin) {
        input.spawn("standard input", async move {
            // Either end may go at any time; the exit tells the rest.
            let _ = tokio::io::copy(&mut from, &mut to).await;
            let _ = to.shutdown().await;
        });
    }
    if let (Some(mut from), Some(to)) = (resize, session.resize) {
        input.spawn("terminal size", async move {
            while let Some(size) = from.recv().await {
                if to.send((size.width, size.height)).await.is_err() {
                    return;
                }
            }
        });
    }
    let output = async { tokio::join!(pass(session.stdout, stdout), pass(session.stderr, stderr)) };
    let (_, exit) = tokio::join!(output, session.exit);
    let outcome = match exit {
        Ok(Ok(code)) if tells_exit && code != 0 => Outcome::ExitCode(code),
        Ok(Ok(_)) => Outcome::Success,
        Ok(Err(error)) => failure(error),
        Err(_) => Outcome::Failure("the runtime gave no exit code".into()),
    };
    status.finish(&outcome).await;
}

async fn pass<R, W>(from: Option<R>, to: Option<W>)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    match (from, to) {
        (Some(mut from), Some(mut to)) => {
            // A client that is gone must not block the command: read on without it.
            if tokio::io::copy(&mut from, &mut to).await.is_err() {
                let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
            }
            let _ = to.shutdown().await;
        }
        (Some(mut from), None) => {
            let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
        }
        (None, _) => {}
    }
}
