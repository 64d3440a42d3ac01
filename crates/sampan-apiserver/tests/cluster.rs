//! State, API with authorization and admission, controllers, scheduler and pretended nodes in one process on one seed, in
//! virtual time: it does what a cluster does, and two runs on one seed write the same history.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{Method, Request, header};
use sampan_apiserver::auth::authn::{Certified, Chain};
use sampan_apiserver::auth::node::NodeAuthorizer;
use sampan_apiserver::auth::rbac::Rbac;
use sampan_apiserver::auth::review::Reviews;
use sampan_apiserver::auth::serviceaccount::Tokens;
use sampan_apiserver::auth::{Authorizer, MASTERS, Union, hooks};
use sampan_apiserver::bootstrap::{self, policy};
use sampan_apiserver::lookup::Lookup;
use sampan_apiserver::{Config, Local, Server, StoreLookup, Version, admission, feed, services};
use sampan_base::disk::MemoryDisk;
use sampan_base::{Clock, Dice, task};
use sampan_client::transport::Entry;
use sampan_client::{Client, Error, InProcess};
use sampan_store::{Config as StoreConfig, History, KeyRing, Store};
use sampan_wire::pki::TokenKey;
use serde_json::{Value, json};

struct Cluster {
    admin: Client,
    clock: Clock,
    _tasks: task::Group,
}

async fn call(client: &Client, method: Method, path: &str, kind: &str, body: Value) -> Result<Value, Error> {
    let request = Request::builder().method(method).uri(path).header(header::CONTENT_TYPE, kind);
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let answer = client.request(request.body(body).expect("a request")).await?;
    Ok(serde_json::from_slice(&answer).unwrap_or_default())
}

async fn get(client: &Client, path: &str) -> Option<Value> {
    call(client, Method::GET, path, "", Value::Null).await.ok()
}

async fn items(client: &Client, path: &str) -> Vec<Value> {
    let list = get(client, path).await.unwrap_or_default();
    list["items"].as_array().cloned().unwrap_or_default()
}

async fn post(client: &Client, path: &str, body: Value) -> Value {
    call(client, Method::POST, path, "application/json", body).await.expect("created")
}

const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// What an agent does: registers, says that it lives, starts pods and stops them.
async fn node(client: Client, name: String, number: usize, clock: Clock) -> Result<(), Error> {
    let registered = json!({"apiVersion": "v1", "kind": "Node", "metadata": {
        "name": name, "labels": {"kubernetes.io/hostname": name},
    }});
    call(&client, Method::POST, "/api/v1/nodes", "application/json", registered).await?;
    let status = json!({"status": {
        "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "capacity": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready"}],
    }});
    call(&client, Method::PATCH, &format!("/api/v1/nodes/{name}/status"), STRATEGIC, status).await?;
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name}});
    call(&client, Method::POST, leases, "application/json", lease).await?;
    let mine = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{name}");
    for beat in 0u64.. {
        clock.sleep(Duration::from_millis(100)).await;
        if beat.is_multiple_of(100) {
            let now = clock.now().strftime("%Y-%m-%dT%H:%M:%S.000000Z").to_string();
            let renewed = json!({"spec": {"renewTime": now, "holderIdentity": name}});
            call(&client, Method::PATCH, &format!("{leases}/{name}"), MERGE, renewed).await?;
        }
        for pod in items(&client, &mine).await {
            let text = |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default();
            let path = format!("/api/v1/namespaces/{}/pods/{}", text("/metadata/namespace"), text("/metadata/name"));
            if pod["metadata"]["deletionTimestamp"].is_string() {
                let at_once = json!({"gracePeriodSeconds": 0});
                call(&client, Method::DELETE, &path, "application/json", at_once).await?;
            } else if pod["status"]["phase"] == "Pending" {
                let mut hasher = DefaultHasher::new();
                text("/metadata/uid").hash(&mut hasher);
                let ip = format!("10.42.{number}.{}", 1 + hasher.finish() % 250);
                let running = json!({"status": {
                    "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
                    "conditions": [{"type": "Ready", "status": "True"}],
                }});
                call(&client, Method::PATCH, &format!("{path}/status"), STRATEGIC, running).await?;
            }
        }
    }
    Ok(())
}

impl Cluster {
    async fn start(seed: u64, nodes: usize) -> Self {
        let clock = Clock::simulated("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
        let dice = Dice::seeded(seed);
        let store = Store::open(StoreConfig {
            disk: Arc::new(MemoryDisk::default()),
            dir: "state".into(),
            clock: clock.clone(),
            dice: dice.clone(),
            keys: KeyRing::plain(),
            history: History::default(),
        })
        .await
        .expect("a store");
        let lookup: Arc<dyn Lookup> = Arc::new(StoreLookup(store.clone()));
        let rbac = Arc::new(Rbac::default());
        let node_authorizer = Arc::new(NodeAuthorizer::new(policy::node_rules()));
        feed(&store, &clock, vec![rbac.clone(), node_authorizer.clone()]).await.expect("a feed");
        let (key, _) = TokenKey::generate().expect("a key");
        let tokens = Arc::new(Tokens::new("https://issuer", &[], key, lookup.clone(), clock.clone(), dice.clone()));
        let authorizer: Arc<dyn Authorizer> = Arc::new(Union(vec![node_authorizer, rbac.clone()]));
        let reviews = Reviews { authorizer: authorizer.clone(), rbac: rbac.clone(), tokens: tokens.clone() };
        let server = Server::new(Config {
            store,
            kinds: Arc::new(ArcSwap::new(sampan_api::kind::builtin())),
            authenticators: Chain(vec![Arc::new(Certified), tokens.clone()]),
            authorizer: authorizer.clone(),
            plugins: admission::plugins(&lookup, &rbac, &authorizer, &clock, &dice),
            computed: hooks::computed(reviews, &tokens, &lookup),
            streaming: None,
            audit: None,
            pages: Vec::new(),
            writable: None,
            clock: clock.clone(),
            dice: dice.clone(),
            version: Version::default(),
            ranges: services::Ranges::default(),
            form_cache_bytes: 1 << 20,
        });
        let entry: Arc<dyn Entry> = Arc::new(Local(server));
        let client = {
            let entry = entry.clone();
            move |user: &str, groups: &[&str]| Client::new(Arc::new(InProcess::new(entry.clone(), user, groups)))
        };
        let own = client(bootstrap::USER, &[MASTERS]);
        let kubernetes = bootstrap::kubernetes::Config {
            service_ip: [10, 96, 0, 1].into(),
            endpoints: vec![[10, 0, 0, 2].into()],
            port: 6443,
        };
        bootstrap::run(&own, &kubernetes).await.expect("the objects every cluster has");
        let admin = client("admin", &[MASTERS, "system:authenticated"]);
        let mut tasks = task::Group::default();
        let config = sampan_controllers::Config {
            cluster_ranges: vec!["10.42.0.0/16".parse().expect("a range")],
            node_prefixes: (24, 64),
            root_ca: "PEM".into(),
            load_balancer_addresses: vec![[10, 9, 9, 9].into()],
        };
        let of_accounts = client.clone();
        let client_for = move |user: &str| match user.strip_prefix("system:serviceaccount:kube-system:") {
            Some(_) => of_accounts(
                user,
                &["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"],
            ),
            None => of_accounts(user, &["system:authenticated"]),
        };
        let controllers = sampan_controllers::run(Arc::new(client_for), config, clock.clone(), dice.clone());
        tasks.spawn("controllers", controllers);
        let scheduler = client("system:kube-scheduler", &["system:authenticated"]);
        tasks.spawn("scheduler", sampan_scheduler::run(scheduler, clock.clone(), dice));
        for number in 0..nodes {
            let name = format!("n{number}");
            let groups = ["system:nodes", "system:authenticated"];
            let agent = node(client(&format!("system:node:{name}"), &groups), name, number, clock.clone());
            tasks.spawn("node", async move { agent.await.expect("an agent that may do what agents do") });
        }
        Self { admin, clock, _tasks: tasks }
    }

    async fn until<F: Future<Output = bool>>(&self, what: &str, seconds: u64, test: impl Fn(Client) -> F) {
        for _ in 0..seconds * 10 {
            if test(self.admin.clone()).await {
                return;
            }
            self.clock.sleep(Duration::from_millis(100)).await;
        }
        let events = items(&self.admin, "/api/v1/events").await;
        let told: Vec<String> =
            events.iter().map(|event| format!("{} {}", event["reason"], event["message"])).collect();
        panic!("{what}: not within {seconds} s; events: {told:#?}");
    }
}

async fn ready_endpoints(client: Client) -> usize {
    let slices = items(&client, "/apis/discovery.k8s.io/v1/namespaces/demo/endpointslices").await;
    let all = slices.iter().filter_map(|slice| slice["endpoints"].as_array()).flatten();
    all.filter(|one| one["conditions"]["ready"] == true).count()
}

fn template(version: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{
            "name": "c", "image": format!("web:{version}"), "resources": {"requests": {"cpu": "500m"}},
        }]},
    })
}

const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/demo/deployments/web";

async fn available(client: Client, replicas: i64, revision: &'static str) -> bool {
    let object = get(&client, DEPLOYMENT).await.unwrap_or_default();
    let status = &object["status"];
    let counts = ["replicas", "updatedReplicas", "availableReplicas"].map(|count| status[count].as_i64());
    counts == [Some(replicas); 3]
        && status["observedGeneration"] == object["metadata"]["generation"]
        && object["metadata"]["annotations"]["deployment.kubernetes.io/revision"] == revision
        && status["conditions"].as_array().is_some_and(|all| {
            all.iter().any(|one| one["type"] == "Progressing" && one["reason"] == "NewReplicaSetAvailable")
        })
}

/// Runs the story and returns a digest of everything that is left, events included.
async fn story(seed: u64) -> u64 {
    let cluster = Cluster::start(seed, 3).await;
    let admin = &cluster.admin;
    post(admin, "/api/v1/namespaces", json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "demo"}}))
        .await;
    cluster
        .until("the namespace has its account", 5, async |client: Client| {
            get(&client, "/api/v1/namespaces/demo/serviceaccounts/default").await.is_some()
        })
        .await;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    post(admin, "/api/v1/namespaces/demo/services", service).await;
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {"replicas": 6, "selector": {"matchLabels": {"app": "web"}}, "template": template("1")},
    });
    post(admin, "/apis/apps/v1/namespaces/demo/deployments", deployment).await;
    cluster.until("six pods serve", 10, async |client| ready_endpoints(client).await == 6).await;
    cluster.until("revision 1 is complete", 10, |client| available(client, 6, "1")).await;
    let pods = items(admin, "/api/v1/namespaces/demo/pods").await;
    let nodes: BTreeSet<&str> = pods.iter().filter_map(|pod| pod["spec"]["nodeName"].as_str()).collect();
    assert_eq!(nodes.len(), 3, "spread over the nodes");
    let bundle = get(admin, "/api/v1/namespaces/demo/configmaps/kube-root-ca.crt").await.expect("the bundle");
    assert_eq!(bundle["data"]["ca.crt"], "PEM");
    let service = get(admin, "/api/v1/namespaces/demo/services/web").await.expect("the Service");
    assert_eq!(service["status"]["loadBalancer"]["ingress"][0]["ip"], "10.9.9.9");
    let endpoints = get(admin, "/api/v1/namespaces/demo/endpoints/web").await.expect("the Endpoints");
    assert_eq!(endpoints["subsets"][0]["addresses"].as_array().map(Vec::len), Some(6));
    for node in items(admin, "/api/v1/nodes").await {
        assert!(node["spec"]["podCIDR"].is_string(), "{node}");
        assert!(node["spec"]["taints"].as_array().is_none_or(Vec::is_empty), "{node}");
    }

    // A rolling update, then back again as `kubectl rollout undo` does it.
    for (version, revision) in [("2", "2"), ("1", "3")] {
        let patch = json!({"spec": {"template": template(version)}});
        call(admin, Method::PATCH, DEPLOYMENT, STRATEGIC, patch).await.expect("patched");
        cluster.until("the update is complete", 30, |client| available(client, 6, revision)).await;
        cluster.until("six pods serve", 10, async |client| ready_endpoints(client).await == 6).await;
    }
    assert_eq!(items(admin, "/apis/apps/v1/namespaces/demo/replicasets").await.len(), 2);
    let patch = json!({"spec": {"replicas": 2}});
    call(admin, Method::PATCH, DEPLOYMENT, MERGE, patch).await.expect("patched");
    cluster.until("scaled", 10, |client| available(client, 2, "3")).await;

    // A pod that fits nowhere says why.
    let giant = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "giant"}, "spec": {"containers": [
        {"name": "c", "image": "i", "resources": {"requests": {"cpu": "64"}}},
    ]}});
    post(admin, "/api/v1/namespaces/demo/pods", giant).await;
    cluster
        .until("the giant waits", 5, async |client: Client| {
            let pod = get(&client, "/api/v1/namespaces/demo/pods/giant").await.unwrap_or_default();
            let message = pod["status"]["conditions"][0]["message"].as_str().unwrap_or_default();
            message.starts_with("0/3 nodes are available: 3 Insufficient cpu.")
        })
        .await;

    // Garbage collection, then the whole namespace.
    let background = json!({"propagationPolicy": "Background"});
    call(admin, Method::DELETE, DEPLOYMENT, "application/json", background).await.expect("accepted");
    cluster
        .until("only the giant is left", 20, async |client: Client| {
            items(&client, "/apis/apps/v1/namespaces/demo/replicasets").await.is_empty()
                && items(&client, "/api/v1/namespaces/demo/pods").await.len() == 1
        })
        .await;
    call(admin, Method::DELETE, "/api/v1/namespaces/demo", "application/json", json!({})).await.expect("accepted");
    cluster
        .until("the namespace is gone", 30, async |client: Client| {
            get(&client, "/api/v1/namespaces/demo").await.is_none()
        })
        .await;
    let mut digest = DefaultHasher::new();
    for path in
        ["/api/v1/nodes", "/api/v1/events", "/api/v1/namespaces", "/api/v1/configmaps", "/api/v1/serviceaccounts"]
    {
        get(admin, path).await.expect("a list").to_string().hash(&mut digest);
    }
    digest.finish()
}

fn run(seed: u64) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(story(seed))
}

#[test]
fn two_runs_on_one_seed_write_the_same_history() {
    let first = run(5);
    assert_eq!(first, run(5));
    assert_ne!(first, run(6));
}
