//! exec, logs and port-forward from a client through the server to a node and back. The node is a stand-in that speaks the
//! node's API with `sampan_wire::streams`; its container is an echo.

mod common;

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Method, Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sampan_apiserver::auth::MASTERS;
use sampan_base::{Clock, task};
use sampan_wire::pki::{LEAF_LIFETIME, Subject, Usage};
use sampan_wire::spdy::Connection;
use sampan_wire::streams::{self, Outcome, Purpose, Wants};
use sampan_wire::{tls, websocket};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use common::{Cluster, call, post};

const POD: &str = "/api/v1/namespaces/default/pods/p";

async fn node_api(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    if path.starts_with("/containerLogs/") {
        return Response::new(Full::new("a line\n".into()));
    }
    let purpose = if path.starts_with("/portForward/") { Purpose::PortForward } else { Purpose::RemoteCommand };
    let accepted = match streams::negotiate(request.headers(), purpose) {
        Ok(accepted) => accepted,
        Err(refused) => return refused.response().map(|text| Full::new(text.into())),
    };
    let query = request.uri().query().unwrap_or_default().to_owned();
    let has = |name: &str| query.split('&').any(|pair| pair == format!("{name}=1"));
    let wants = Wants { stdin: has("input"), stdout: has("output"), stderr: has("error"), tty: has("tty") };
    let (upgrade, protocol) = (hyper::upgrade::on(&mut request), accepted.protocol);
    task::spawn("test node", async move {
        let io = TokioIo::new(upgrade.await.expect("upgraded"));
        match purpose {
            Purpose::RemoteCommand => {
                let mut remote = streams::remote_command(io, protocol, wants, Clock::system()).await.expect("streams");
                let mut stdout = remote.stdout.take().expect("stdout");
                match remote.stdin.take() {
                    Some(mut stdin) => drop(tokio::io::copy(&mut stdin, &mut stdout).await.expect("copied")),
                    None => stdout.write_all(b"hello\n").await.expect("written"),
                }
                drop(stdout);
                remote.status.finish(&Outcome::ExitCode(7)).await;
            }
            Purpose::PortForward => {
                let mut forward = streams::port_forward(io, protocol, &[], Clock::system()).await.expect("a session");
                while let Some(one) = forward.next().await {
                    if one.port != 80 {
                        one.fail("connection refused").await;
                        continue;
                    }
                    let (near, far) = tokio::io::duplex(4096);
                    task::spawn("echo", async move {
                        let (mut read, mut write) = tokio::io::split(far);
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                    });
                    task::spawn("forward", async move { drop(one.splice(near).await) });
                }
            }
        }
    });
    accepted.response.map(|()| Full::new(Bytes::new()))
}

/// A cluster with a node and a pod on it.
async fn start() -> Cluster {
    let cluster = Cluster::start().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let usage = Usage::Peer { dns: vec!["n1".into()], ips: vec![[127, 0, 0, 1].into()] };
    let subject = Subject::new("system:node:n1", &["system:nodes"]);
    let serving = cluster.ca.issue(&subject, &usage, LEAF_LIFETIME, &cluster.clock, &cluster.dice).expect("issued");
    let config = tls::server_config(&serving, &[cluster.ca.certificate_pem()]).expect("a configuration");
    task::spawn("test node", serve(listener, config));
    let admin = cluster.user("root", &[MASTERS]);
    let addresses = json!([{"type": "InternalIP", "address": "127.0.0.1"}]);
    let status = json!({"addresses": addresses, "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}});
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    let mut node = post(&admin, "/api/v1/nodes", node).await.expect("created");
    node["status"] = status;
    call(&admin, Method::PUT, "/api/v1/nodes/n1/status", node, &[]).await.expect("told");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    post(&admin, "/api/v1/namespaces/default/serviceaccounts", account).await.expect("created");
    let spec = json!({"nodeName": "n1", "containers": [{"name": "c", "image": "i"}]});
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": spec});
    let mut pod = post(&admin, "/api/v1/namespaces/default/pods", pod).await.expect("created");
    pod["status"] = json!({"phase": "Running"});
    call(&admin, Method::PUT, &format!("{POD}/status"), pod, &[]).await.expect("told");
    cluster
}

async fn serve(listener: TcpListener, config: Arc<rustls::ServerConfig>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let acceptor = TlsAcceptor::from(config.clone());
        task::spawn("test node", async move {
            let Ok(stream) = acceptor.accept(tcp).await else { return };
            let service = service_fn(|request| async { Ok::<_, Infallible>(node_api(request).await) });
            let server = hyper::server::conn::http1::Builder::new();
            let _ = server.serve_connection(TokioIo::new(stream), service).with_upgrades().await;
        });
    }
}

#[tokio::test]
async fn exec_over_a_websocket() {
    let cluster = start().await;
    let admin = cluster.transport(Some(&cluster.identity("root", &[MASTERS])));
    let path = format!("{POD}/exec?command=cat&stdin=true&stdout=true");
    let upgraded = admin.websocket(&path, "v5.channel.k8s.io").await.expect("upgraded");
    let mut socket = websocket::client(upgraded.io).await;
    for message in [&b"\0ping"[..], &[255, 0]] {
        socket.send(message.to_vec().into()).await.expect("sent");
    }
    let mut channels: [Vec<u8>; 4] = Default::default();
    while let Some(Ok(message)) = socket.next().await {
        let data = message.into_data();
        if let Some((channel, data)) = data.split_first().filter(|_| data.len() > 2) {
            channels[usize::from(*channel) % 4].extend_from_slice(data);
        }
    }
    assert_eq!(channels[1], b"ping");
    let status: Value = serde_json::from_slice(&channels[3]).expect("a status");
    assert_eq!(status["details"]["causes"][0]["message"], "7");
}

#[tokio::test]
async fn port_forward_over_spdy() {
    let cluster = start().await;
    let admin = cluster.transport(Some(&cluster.identity("root", &[MASTERS])));
    let request = Request::post(format!("{POD}/portforward"))
        .header("connection", "Upgrade")
        .header("upgrade", "SPDY/3.1")
        .header("x-stream-protocol-version", "portforward.k8s.io")
        .body(Bytes::new())
        .expect("a request");
    let upgraded = admin.upgrade(request).await.expect("upgraded");
    let connection = Connection::new(upgraded.io, cluster.clock.clone()).expect("a connection");
    let headers = |kind: &str| {
        [("streamtype", kind), ("port", "80"), ("requestid", "0")].map(|(a, b)| (a.into(), b.into())).to_vec()
    };
    let _error = connection.open(headers("error")).await.expect("open");
    let mut data = connection.open(headers("data")).await.expect("open");
    data.writer.write_all(b"ping").await.expect("written");
    let mut echo = [0; 4];
    data.reader.read_exact(&mut echo).await.expect("read");
    assert_eq!(&echo, b"ping");
}

#[tokio::test]
async fn logs_and_refusals() {
    let cluster = start().await;
    let admin = cluster.user("root", &[MASTERS]);
    let gzip = [("accept-encoding", "gzip")];
    let logs = call(&admin, Method::GET, &format!("{POD}/log"), Value::Null, &gzip).await.expect("logs");
    assert_eq!(logs, "a line\n");
    let dev = cluster.transport(Some(&cluster.identity("dev", &[])));
    let refused = dev.websocket(&format!("{POD}/exec?command=cat"), "v5.channel.k8s.io").await;
    let Err(error) = refused else { panic!("refused") };
    assert!(error.is_forbidden(), "{error}");
}
