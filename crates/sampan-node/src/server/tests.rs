//! The node's API over real TLS on the loopback, in front of the pretended machine.

use std::time::Duration;

use futures::StreamExt as _;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use rustls_pki_types::ServerName;
use sampan_base::{Clock, Dice};
use sampan_runtime::fake::Behaviour;
use sampan_wire::pki::{CA_LIFETIME, Ca, Identity, Usage};
use sampan_wire::tls::Http;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::*;
use crate::testing::{World, pod};

struct Served {
    address: SocketAddr,
    ca: String,
    authority: Ca,
    _tasks: task::Group,
}

fn issue(ca: &Ca, name: &str, usage: &Usage) -> Identity {
    let hour = Duration::from_secs(3600);
    ca.issue(&Subject::new(name, &[]), usage, hour, &Clock::system(), &Dice::system()).expect("issued")
}

async fn serve_world(world: &World) -> Served {
    let (ca, pem) = {
        let (ca, identity) =
            Ca::generate("test", CA_LIFETIME, &Clock::system(), &Dice::system()).expect("an authority");
        (ca, identity.certificate_pem)
    };
    let server = issue(&ca, "system:node:node-1", &Usage::Server { dns: vec!["localhost".into()], ips: vec![] });
    let config = tls::server_config(&server, &[&pem]).expect("a configuration");
    let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut tasks = task::Group::default();
    tasks.spawn("node API", super::serve(world.node.clone(), world.pods.clone(), listener, config));
    Served { address, ca: pem, authority: ca, _tasks: tasks }
}

impl Served {
    async fn connect(&self, user: Option<&str>) -> TlsStream<TcpStream> {
        let identity = user.map(|user| issue(&self.authority, user, &Usage::Client));
        let config = tls::client_config(&[&self.ca], identity.as_ref(), Http::One).expect("a configuration");
        let stream = TcpStream::connect(self.address).await.expect("a connection");
        let name = ServerName::try_from("localhost").expect("a name");
        TlsConnector::from(config).connect(name, stream).await.expect("a handshake")
    }

    async fn get(&self, user: Option<&str>, path: &str) -> (u16, String) {
        let stream = self.connect(user).await;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a handshake");
        let mut tasks = task::Group::default();
        tasks.spawn("client", async move {
            let _ = connection.await;
        });
        let request = Request::get(path).header("host", "localhost").body(Empty::<Bytes>::new()).expect("a request");
        let response = sender.send_request(request).await.expect("an answer");
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        (status, String::from_utf8_lossy(&body).into_owned())
    }
}

const API: Option<&str> = Some("kube-apiserver-kubelet-client");

#[tokio::test]
async fn only_the_api_server_gets_in() {
    let world = World::on(Clock::system());
    let served = serve_world(&world).await;
    assert_eq!(served.get(None, "/pods").await.0, 401);
    assert_eq!(served.get(Some("alice"), "/pods").await.0, 403);
    assert_eq!(served.get(Some("alice"), "/healthz").await, (200, "ok".into()));
    assert_eq!(served.get(API, "/pods").await.0, 200);
    assert_eq!(served.get(API, "/nowhere").await.0, 404);
    let (code, summary) = served.get(API, "/stats/summary").await;
    assert_eq!(code, 200);
    let summary: serde_json::Value = serde_json::from_str(&summary).expect("JSON");
    assert_eq!(summary["node"]["nodeName"], "node-1");
}

#[tokio::test]
async fn logs_of_this_run_and_the_one_before() {
    let world = World::on(Clock::system());
    world.machine.behave("app", [Behaviour::exits(1), Behaviour::default()]);
    world.api.put("pods", pod("web", json!({})));
    let running = world.wait("web", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1).await;
    let logs = world.node.log_directory(&serde_json::from_value(running).expect("a pod")).join("app");
    std::fs::create_dir_all(&logs).expect("made");
    std::fs::write(logs.join("0.log"), "2030-01-01T00:00:00Z stdout F before\n").expect("written");
    std::fs::write(logs.join("1.log"), "2030-01-01T00:00:01Z stdout F now\n2030-01-01T00:00:02Z stdout F on\n")
        .expect("written");
    let served = serve_world(&world).await;
    let get = async |rest: &str| served.get(API, &format!("/containerLogs/default/web/{rest}")).await;
    assert_eq!(get("app").await, (200, "now\non\n".into()));
    assert_eq!(get("app?tailLines=1&timestamps=true").await, (200, "2030-01-01T00:00:02Z on\n".into()));
    assert_eq!(get("app?previous=true").await, (200, "before\n".into()));
    assert_eq!(get("nope").await, (404, "container \"nope\" not found in pod \"web\"\n".into()));
    assert_eq!(get("app?tailLines=-1").await.0, 400);
    world.api.put("pods", pod("stuck", json!({"containers": [{"name": "app", "image": "gone:1"}]})));
    world
        .wait("stuck", |pod| pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "ErrImagePull")
        .await;
    let expected = "container \"app\" in pod \"stuck\" is waiting to start: image can't be pulled\n";
    assert_eq!(served.get(API, "/containerLogs/default/stuck/app").await, (400, expected.into()));
}

#[tokio::test]
async fn following_ends_with_the_container() {
    let world = World::on(Clock::system());
    world.machine.behave("app", [Behaviour::default()]);
    world.api.put("pods", pod("web", json!({"restartPolicy": "Never"})));
    let running = world.wait_phase("web", "Running").await;
    let id = running["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .expect("an id")
        .trim_start_matches("sampan://")
        .to_owned();
    let logs = world.node.log_directory(&serde_json::from_value(running).expect("a pod")).join("app");
    std::fs::create_dir_all(&logs).expect("made");
    std::fs::write(logs.join("0.log"), "2030-01-01T00:00:00Z stdout F one\n").expect("written");
    let served = serve_world(&world).await;
    let write_more = async {
        let mut text = std::fs::read_to_string(logs.join("0.log")).expect("read");
        text.push_str("2030-01-01T00:00:01Z stdout F two\n");
        world.clock.sleep(Duration::from_millis(150)).await;
        std::fs::write(logs.join("0.log"), text).expect("written");
        world.machine.exit(&id, 0);
    };
    let (answer, ()) = tokio::join!(served.get(API, "/containerLogs/default/web/app?follow=true"), write_more);
    assert_eq!(answer, (200, "one\ntwo\n".into()));
}

#[tokio::test]
async fn a_command_runs_over_a_websocket() {
    let world = World::on(Clock::system());
    world.machine.behave("app", [Behaviour::default()]);
    world.api.put("pods", pod("web", json!({})));
    world.wait_phase("web", "Running").await;
    let served = serve_world(&world).await;
    let path = "/exec/default/web/app?command=sh&command=-c&command=echo%20hello%3B%20exit%203&output=1&error=1";
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(served.connect(API).await)).await.expect("a handshake");
    let mut tasks = task::Group::default();
    tasks.spawn("client", async move {
        let _ = connection.with_upgrades().await;
    });
    let mut request = Request::get(path).body(Empty::<Bytes>::new()).expect("a request");
    for (name, value) in [
        ("host", "localhost"),
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "v5.channel.k8s.io"),
    ] {
        request.headers_mut().insert(name, http::HeaderValue::from_static(value));
    }
    let response = sender.send_request(request).await.expect("an answer");
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let upgraded = hyper::upgrade::on(response).await.expect("upgraded");
    let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await;
    let mut seen: std::collections::BTreeMap<u8, String> = Default::default();
    while let Some(Ok(message)) = socket.next().await {
        if let Message::Binary(data) = message
            && let Some((channel, rest)) = data.split_first()
        {
            seen.entry(*channel).or_default().push_str(&String::from_utf8_lossy(rest));
        }
    }
    assert_eq!(seen.get(&1).map(String::as_str), Some("hello\n"), "{seen:?}");
    let status: serde_json::Value = serde_json::from_str(&seen[&3]).expect("a status");
    assert_eq!(status["details"]["causes"][0]["message"], "3");
}
