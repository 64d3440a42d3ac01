//! All controllers, the scheduler and pretended nodes on one seed, in virtual time, against the API server in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sampan_base::{Clock, Dice, task};
use serde_json::{Value, json};

use crate::framework::seconds;
use crate::testing::Api;
use crate::{Config, run};

struct Cluster {
    api: Arc<Api>,
    clock: Clock,
    /// Nodes that do not run.
    dead: Arc<Mutex<BTreeSet<String>>>,
    _tasks: task::Group,
}

/// What an agent does: says that it lives, starts pods and stops them.
async fn node(api: Arc<Api>, name: String, dead: Arc<Mutex<BTreeSet<String>>>) {
    let ready = |now: String| json!([{"type": "Ready", "status": "True", "lastTransitionTime": now}]);
    api.put("nodes", "", &name, |node| {
        node["status"] = json!({
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"}, "conditions": ready(seconds(api.clock.now())),
        });
        node["spec"] = json!({"taints": [{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]});
        node["metadata"]["labels"] = json!({"kubernetes.io/hostname": name});
    });
    let mut beat = 0u64;
    loop {
        api.clock.sleep(Duration::from_millis(100)).await;
        if dead.lock().expect("lock").contains(&name) {
            continue;
        }
        if beat.is_multiple_of(100) {
            let now = api.clock.now().to_string();
            api.put("leases", "kube-node-lease", &name, |lease| lease["spec"] = json!({"renewTime": now}));
            let unknown = |node: &Value| node["status"]["conditions"][0]["status"] != "True";
            if api.get("nodes", "", &name).is_some_and(|node| unknown(&node)) {
                api.put("nodes", "", &name, |node| node["status"]["conditions"] = ready(seconds(api.clock.now())));
            }
        }
        beat += 1;
        for pod in api.list("pods") {
            if pod["spec"]["nodeName"] != name.as_str() {
                continue;
            }
            let (namespace, pod_name) = (sampan_api::object::namespace(&pod), sampan_api::object::name(&pod));
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                api.remove("pods", namespace, pod_name);
            } else if pod["status"]["phase"] == "Pending" {
                let address = format!("10.0.0.{}", 1 + api.dice.below(250));
                let now = seconds(api.clock.now());
                api.put("pods", namespace, pod_name, |pod| {
                    pod["status"]["phase"] = "Running".into();
                    pod["status"]["podIPs"] = json!([{"ip": address}]);
                    let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
                    let mut conditions: Vec<Value> =
                        conditions.into_iter().filter(|one| one["type"] != "Ready").collect();
                    conditions.push(json!({"type": "Ready", "status": "True", "lastTransitionTime": now}));
                    pod["status"]["conditions"] = conditions.into();
                });
            }
        }
    }
}

impl Cluster {
    fn start(seed: u64, nodes: &[&str]) -> Self {
        let clock = Clock::simulated("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
        let dice = Dice::seeded(seed);
        let api = Api::new(clock.clone(), dice.clone(), 0, Duration::from_millis(5));
        let dead = Arc::new(Mutex::new(BTreeSet::new()));
        let mut tasks = task::Group::default();
        let config = Config {
            cluster_ranges: vec!["10.42.0.0/16".parse().expect("a range")],
            node_prefixes: (24, 64),
            root_ca: "PEM".into(),
            load_balancer_addresses: vec!["10.9.9.9".parse().expect("an address")],
        };
        tasks.spawn("controllers", run(api.client_for(), config, clock.clone(), dice.clone()));
        tasks.spawn("scheduler", sampan_scheduler::run(api.client(), clock.clone(), dice));
        for name in nodes {
            tasks.spawn("node", node(api.clone(), (*name).to_owned(), dead.clone()));
        }
        Self { api, clock, dead, _tasks: tasks }
    }

    fn apply(&self, replicas: i32) {
        self.api.put("namespaces", "", "demo", |namespace| {
            namespace["spec"] = json!({"finalizers": ["kubernetes"]});
            namespace["status"] = json!({"phase": "Active"});
        });
        self.api.put("services", "demo", "web", |service| {
            service["spec"] = json!({
                "type": "LoadBalancer", "clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
                "ports": [{"port": 80, "targetPort": 8080, "protocol": "TCP"}],
            });
        });
        self.api.put("deployments", "demo", "web", |deployment| {
            deployment["spec"] = json!({
                "replicas": replicas,
                "selector": {"matchLabels": {"app": "web"}},
                "template": {
                    "metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "c", "image": "i", "resources": {"requests": {"cpu": "500m"}}}]},
                },
            });
        });
    }

    async fn until(&self, what: &str, limit: u64, test: impl Fn(&Api) -> bool) {
        for _ in 0..limit * 20 {
            if test(&self.api) {
                return;
            }
            self.clock.sleep(Duration::from_millis(50)).await;
        }
        panic!("{what}: not within {limit} s; pods: {:#?}", self.api.list("pods"));
    }

    fn ready_on(&self) -> BTreeMap<String, usize> {
        ready_on(&self.api)
    }
}

fn ready_on(api: &Api) -> BTreeMap<String, usize> {
    let mut on = BTreeMap::new();
    for pod in api.list("pods") {
        let ready = |one: &Value| one["type"] == "Ready" && one["status"] == "True";
        let ready = pod["status"]["conditions"].as_array().is_some_and(|all| all.iter().any(ready));
        if ready && pod["metadata"]["deletionTimestamp"].is_null() {
            *on.entry(sampan_api::object::text(&pod, &["spec", "nodeName"]).to_owned()).or_default() += 1;
        }
    }
    on
}

fn endpoints(api: &Api) -> usize {
    let ready = |slice: &Value| {
        let all = slice["endpoints"].as_array().cloned().unwrap_or_default();
        all.iter().filter(|one| one["conditions"]["ready"] == true).count()
    };
    api.list("endpointslices").iter().map(ready).sum()
}

async fn story(seed: u64) -> u64 {
    let cluster = Cluster::start(seed, &["n1", "n2", "n3"]);
    cluster.apply(6);
    cluster.until("six pods serve", 10, |api| endpoints(api) == 6).await;
    assert_eq!(cluster.ready_on().values().copied().collect::<Vec<_>>(), [2, 2, 2], "spread over the nodes");
    let api = &cluster.api;
    cluster
        .until("the Deployment is complete", 10, |api| {
            let status =
                api.get("deployments", "demo", "web").map(|object| object["status"].clone()).unwrap_or_default();
            status["availableReplicas"] == 6 && status["conditions"].as_array().is_some_and(|all| all.len() == 1)
        })
        .await;
    assert!(api.get("serviceaccounts", "demo", "default").is_some());
    assert_eq!(api.get("configmaps", "demo", "kube-root-ca.crt").expect("the bundle")["data"]["ca.crt"], "PEM");
    let ranges: BTreeSet<String> =
        api.list("nodes").iter().map(|node| sampan_api::object::text(node, &["spec", "podCIDR"]).to_owned()).collect();
    assert_eq!(ranges, ["10.42.0.0/24", "10.42.1.0/24", "10.42.2.0/24"].map(str::to_owned).into());
    let service = api.get("services", "demo", "web").expect("the Service");
    assert_eq!(service["status"]["loadBalancer"]["ingress"][0]["ip"], "10.9.9.9");
    let subsets = api.get("endpoints", "demo", "web").expect("the Endpoints")["subsets"].clone();
    assert_eq!(subsets[0]["addresses"].as_array().map(Vec::len), Some(6));

    // A node dies: its pods are replaced on the others, and it stays without any.
    cluster.dead.lock().expect("lock").insert("n2".into());
    cluster
        .until("the pods of the dead node are replaced", 120, |api| {
            let on = ready_on(api);
            !on.contains_key("n2") && on.values().sum::<usize>() == 6
        })
        .await;
    cluster.until("and serve", 10, |api| endpoints(api) == 6).await;
    let taints = |api: &Api| api.get("nodes", "", "n2").expect("n2")["spec"]["taints"].as_array().map_or(0, Vec::len);
    assert_eq!(taints(api), 2);
    cluster.dead.lock().expect("lock").clear();
    cluster.until("the node is back without taints", 30, |api| taints(api) == 0).await;

    // Namespace deletion takes everything along.
    let key = sampan_client::informer::Key::new("", "demo");
    let target = crate::framework::NAMESPACES.target(&key);
    cluster.api.client().delete(&target, &sampan_client::DeleteOptions::default()).await.expect("accepted");
    cluster.until("the namespace is gone", 30, |api| api.get("namespaces", "", "demo").is_none()).await;
    for resource in ["pods", "deployments", "replicasets", "services", "endpointslices", "endpoints"] {
        assert!(api.list(resource).is_empty(), "{resource}: {:#?}", api.list(resource));
    }
    cluster.api.trace()
}

#[test]
fn a_whole_story_twice_on_one_seed() {
    let run = |seed| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(story(seed))
    };
    assert_eq!(run(5), run(5));
    assert_ne!(run(5), run(6), "the trace depends on the seed");
}

#[tokio::test(start_paused = true)]
async fn a_cluster_that_slept_finds_everything_as_it_was() {
    let cluster = Cluster::start(9, &["n1", "n2"]);
    cluster.apply(4);
    cluster.until("four pods serve", 10, |api| endpoints(api) == 4).await;
    cluster.clock.sleep(Duration::from_secs(60)).await;
    let pods = |api: &Api| {
        let uid = |pod: &Value| sampan_api::object::uid(pod).to_owned();
        api.list("pods").iter().map(uid).collect::<BTreeSet<_>>()
    };
    let before = pods(&cluster.api);
    let api = cluster.api.clone();
    api.watch_over(|objects| {
        let node = |(resource, ..): &&crate::testing::Id| resource == "nodes";
        for id in objects.keys().filter(node) {
            assert_eq!(objects[id]["status"]["conditions"][0]["status"], "True");
        }
    });
    // Nothing runs, then everything at once.
    tokio::time::advance(Duration::from_secs(600)).await;
    cluster.clock.sleep(Duration::from_secs(120)).await;
    assert_eq!(pods(&cluster.api), before);
    assert_eq!(cluster.ready_on().values().sum::<usize>(), 4);
    assert_eq!(endpoints(&cluster.api), 4);
}
