//! What kinds have beside the generic verbs.

use std::sync::Mutex;

use crate::body::{self, RequestBody, ResponseBody};
use crate::hooks::{Node, Streaming};

use super::*;

#[tokio::test]
async fn scale() {
    let api = Api::local(server().await);
    let sets = "/apis/apps/v1/namespaces/default/replicasets";
    let labels = json!({"app": "d"});
    let set = json!({
        "kind": "ReplicaSet", "apiVersion": "apps/v1", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
                 "spec": {"containers": [{"name": "c", "image": "i"}]}}},
    });
    api.post(sets, &set).await.code(201);
    let uri = format!("{sets}/d/scale");
    let mut scale = api.get(&uri).await.code(200);
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(1)));
    assert_eq!(scale["status"]["selector"], "app=d");
    scale["spec"]["replicas"] = 3.into();
    assert_eq!(api.put(&uri, &scale).await.code(200)["spec"]["replicas"], 3);
    api.put(&uri, &scale).await.refused(409);
    let patched = api.patch(&uri, "merge-patch+json", &json!({"spec": {"replicas": 5}})).await.code(200);
    assert_eq!(patched["spec"]["replicas"], 5);
    let stored = api.get(&format!("{sets}/d")).await.code(200);
    assert_eq!((&stored["spec"]["replicas"], &stored["metadata"]["generation"]), (&json!(5), &json!(3)));
    api.patch(&uri, "merge-patch+json", &json!({"spec": {"replicas": -1}})).await.refused(422);
}

#[tokio::test]
async fn a_pod_is_bound_once() {
    let api = Api::local(server().await);
    api.post(PODS, &pod("p")).await.code(201);
    let binding = |node: &str| json!({"kind": "Binding", "apiVersion": "v1", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": node}});
    api.post(&format!("{PODS}/p/binding"), &json!({"target": {}})).await.refused(422);
    assert_eq!(api.post(&format!("{PODS}/p/binding"), &binding("n1")).await.code(201)["status"], "Success");
    let bound = api.get(&format!("{PODS}/p")).await.code(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    let condition = &bound["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["status"]), (&json!("PodScheduled"), &json!("True")));
    let twice = api.post("/api/v1/namespaces/default/bindings", &binding("n2")).await.refused(409);
    assert!(twice.contains("pod p is already assigned to node \"n1\""), "{twice}");
}

#[tokio::test]
async fn eviction_asks_the_disruption_budgets() {
    let api = Api::local(server().await);
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    api.post(PODS, &pod("p")).await.code(201);
    let running = json!({"status": {"phase": "Running"}});
    api.patch(&format!("{PODS}/p/status"), "merge-patch+json", &running).await.code(200);
    let budget = json!({"kind": "PodDisruptionBudget", "apiVersion": "policy/v1", "metadata": {"name": "b"},
                        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "p"}}}});
    api.post(budgets, &budget).await.code(201);
    let uri = format!("{PODS}/p/eviction");
    let eviction = json!({"kind": "Eviction", "apiVersion": "policy/v1", "metadata": {"name": "p"}});
    let refused = api.post(&uri, &eviction).await.code(429);
    assert_eq!(refused["details"]["causes"][0]["reason"], "DisruptionBudget");
    let allowed = json!({"status": {"disruptionsAllowed": 1}});
    api.patch(&format!("{budgets}/b/status"), "merge-patch+json", &allowed).await.code(200);
    assert_eq!(api.post(&uri, &eviction).await.code(201)["status"], "Success");
    api.get(&format!("{PODS}/p")).await.refused(404);
}

#[tokio::test]
async fn a_namespace_ends_when_its_finalizers_are_gone() {
    let api = Api::local(server().await);
    let uri = "/api/v1/namespaces/other";
    let finalizers = json!({"metadata": {"finalizers": ["example.com/x"]}});
    api.patch(uri, "merge-patch+json", &finalizers).await.code(200);
    let going = api.delete(uri, &json!({})).await.code(200);
    assert_eq!(going["status"]["phase"], "Terminating");
    let refused = api.post(&format!("{uri}/configmaps"), &config_map("a")).await.code(403);
    assert_eq!(refused["details"]["causes"][0]["reason"], "NamespaceTerminating");
    assert_eq!(
        refused["message"],
        "configmaps is forbidden: unable to create new content in namespace other because it is being terminated"
    );
    let mut last = api.get(uri).await.code(200);
    last["spec"] = json!({"finalizers": []});
    last["metadata"]["finalizers"] = json!([]);
    api.put(&format!("{uri}/finalize"), &last).await.code(200);
    // `finalize` empties the namespace's own list only; the other finalizers go like any object's.
    assert_eq!(api.get(uri).await.code(200)["metadata"]["finalizers"], json!(["example.com/x"]));
    api.patch(uri, "merge-patch+json", &json!({"metadata": {"finalizers": null}})).await.code(200);
    api.get(uri).await.refused(404);
    let refused = api.delete("/api/v1/namespaces/default", &json!({})).await.refused(403);
    assert_eq!(refused, "namespaces \"default\" is forbidden: this namespace may not be deleted");
}

/// Remembers what it was asked to carry.
#[derive(Default)]
struct Recorder(Mutex<Vec<(Node, String)>>);

#[async_trait]
impl Streaming for Recorder {
    async fn connect(
        &self,
        node: &Node,
        request: http::Request<RequestBody>,
    ) -> Result<http::Response<ResponseBody>, sampan_api::Failure> {
        self.0.lock().expect("not poisoned").push((node.clone(), request.uri().to_string()));
        Ok(http::Response::new(body::full("from the node")))
    }
}

#[tokio::test]
async fn logs_and_exec_go_to_the_pods_node() {
    let recorder = Arc::new(Recorder::default());
    let streaming = recorder.clone();
    let api = Api::local(server_with(History::default(), |config| config.streaming = Some(streaming)).await);
    let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n"}, "status": {
        "addresses": [{"type": "Hostname", "address": "n"}, {"type": "InternalIP", "address": "192.0.2.7"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": 10251}}}});
    api.post("/api/v1/nodes", &node).await.code(201);
    api.patch("/api/v1/nodes/n/status", "merge-patch+json", &json!({"status": node["status"]})).await.code(200);
    api.post(PODS, &pod("p")).await.code(201);
    let unassigned = api.get(&format!("{PODS}/p/exec?command=ls")).await.refused(400);
    assert_eq!(unassigned, "pod p does not have a host assigned");
    let binding = json!({"metadata": {"name": "p"}, "target": {"name": "n"}});
    api.post(&format!("{PODS}/p/binding"), &binding).await.code(201);
    assert_eq!(&api.get(&format!("{PODS}/p/log?tailLines=3")).await.bytes[..], b"from the node");
    api.get(&format!("{PODS}/p/exec?command=ls&stdout=true")).await;
    api.get("/api/v1/nodes/n/proxy/stats/summary?x=1").await;
    let asked = recorder.0.lock().expect("not poisoned");
    let uris: Vec<&str> = asked.iter().map(|(_, uri)| uri.as_str()).collect();
    assert_eq!(
        uris,
        ["/containerLogs/default/p/c?tailLines=3", "/exec/default/p/c?command=ls&output=1", "/stats/summary?x=1"]
    );
    assert_eq!(asked[0].0, Node { name: "n".into(), host: "192.0.2.7".into(), port: 10251 });
}

/// Takes the connection over and says everything back.
struct Echo;

#[async_trait]
impl Streaming for Echo {
    async fn connect(
        &self,
        _: &Node,
        mut request: http::Request<RequestBody>,
    ) -> Result<http::Response<ResponseBody>, sampan_api::Failure> {
        let upgrade = hyper::upgrade::on(&mut request);
        task::spawn("echo", async move {
            let (mut from, mut to) = tokio::io::split(TokioIo::new(upgrade.await.expect("an upgraded connection")));
            let _ = tokio::io::copy(&mut from, &mut to).await;
        });
        let mut response = http::Response::new(body::empty());
        *response.status_mut() = http::StatusCode::SWITCHING_PROTOCOLS;
        response.headers_mut().insert("connection", "Upgrade".parse().expect("a header"));
        response.headers_mut().insert("upgrade", "echo".parse().expect("a header"));
        Ok(response)
    }
}

#[tokio::test]
async fn an_upgraded_connection_is_carried_through() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let server = server_with(History::default(), |config| config.streaming = Some(Arc::new(Echo))).await;
    let local = Api::local(server.clone());
    let status = json!({"addresses": [{"type": "InternalIP", "address": "192.0.2.7"}]});
    let node = json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n"}, "status": status});
    local.post("/api/v1/nodes", &node).await.code(201);
    local.post(PODS, &pod("p")).await.code(201);
    let binding = json!({"metadata": {"name": "p"}, "target": {"name": "n"}});
    local.post(&format!("{PODS}/p/binding"), &binding).await.code(201);

    let tls = remote(server).await;
    let stream = tls.connect().await.expect("a connection");
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.expect("a handshake");
    task::spawn("test-connection", connection.with_upgrades());
    let request =
        Request::get(format!("{PODS}/p/exec?command=sh")).header("connection", "Upgrade").header("upgrade", "echo");
    let request = request.body(Full::new(Bytes::new())).expect("a request");
    let mut response = sender.send_request(request).await.expect("a response");
    assert_eq!(response.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.expect("an upgrade"));
    stream.write_all(b"hello").await.expect("written");
    let mut back = [0; 5];
    stream.read_exact(&mut back).await.expect("read");
    assert_eq!(&back, b"hello");
}
