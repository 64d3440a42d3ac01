//! Deployment and ReplicaSet together, against an API server that lags and fails, with nodes that start, break and remove
//! pods at random.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sampan_base::{Clock, Dice};
use serde_json::{Value, json};

use super::*;
use crate::framework::{Context, follow, seconds};
use crate::replicaset::ReplicaSets;
use crate::testing::{Api, Id};

#[derive(Clone, Debug)]
enum User {
    Scale(i32),
    Image(i32),
    Pause(bool),
    Kill,
    /// Removes a pod without asking.
    Lose,
    Wait(u64),
}

fn rolls() -> impl Strategy<Value = History> {
    let user = prop_oneof![(0..3i32).prop_map(User::Image), (0..3000u64).prop_map(User::Wait)];
    (history(), prop::collection::vec(user, 1..8)).prop_map(|(history, users)| History { users, ..history })
}

#[derive(Clone, Debug)]
struct History {
    seed: u64,
    replicas: i32,
    surge: i32,
    unavailable: i32,
    trouble: u64,
    users: Vec<User>,
}

fn history() -> impl Strategy<Value = History> {
    let user = prop_oneof![
        2 => (0..8i32).prop_map(User::Scale),
        3 => (0..3i32).prop_map(User::Image),
        1 => any::<bool>().prop_map(User::Pause),
        1 => Just(User::Kill),
        1 => Just(User::Lose),
        4 => (0..3000u64).prop_map(User::Wait),
    ];
    (any::<u64>(), 0..8i32, 0..4i32, 0..4i32, prop_oneof![Just(0u64), Just(10)], prop::collection::vec(user, 1..14))
        .prop_map(|(seed, replicas, surge, unavailable, trouble, users)| History {
            seed,
            replicas,
            surge,
            unavailable,
            trouble,
            users,
        })
}

fn template(image: i32) -> Value {
    json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"containers": [{"name": "c", "image": format!("image:{image}")}]},
    })
}

fn deployment(history: &History) -> Value {
    json!({
        "replicas": history.replicas,
        "selector": {"matchLabels": {"app": "web"}},
        "template": template(0),
        "revisionHistoryLimit": 2,
        "progressDeadlineSeconds": 600,
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {
            "maxSurge": history.surge, "maxUnavailable": history.unavailable,
        }},
    })
}

/// What every node does: starts, sometimes fails, and stops pods.
async fn nodes(api: Arc<Api>) {
    loop {
        api.clock.sleep(Duration::from_millis(20 + api.dice.below(60))).await;
        for pod in api.list("pods") {
            let (namespace, name) = (sampan_api::object::namespace(&pod), sampan_api::object::name(&pod));
            if api.dice.below(3) == 0 {
                continue;
            }
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                api.remove("pods", namespace, name);
            } else if pod["status"]["phase"] == "Pending" && pod["metadata"]["labels"]["app"] == "web" {
                let now = seconds(api.clock.now());
                api.put("pods", namespace, name, |pod| {
                    pod["spec"]["nodeName"] = "node".into();
                    pod["status"] = json!({"phase": "Running", "conditions": [
                        {"type": "Ready", "status": "True", "lastTransitionTime": now},
                    ]});
                });
            }
        }
    }
}

fn owned_by_sets(objects: &BTreeMap<Id, Value>) -> (i64, BTreeMap<&str, &Value>) {
    let sets = objects.iter().filter(|((resource, ..), _)| resource == "replicasets");
    let total = sets.map(|(_, set)| set["spec"]["replicas"].as_i64().unwrap_or(0)).sum();
    let pods = objects.iter().filter(|((resource, ..), _)| resource == "pods");
    (total, pods.map(|((.., name), pod)| (name.as_str(), pod)).collect())
}

/// A ReplicaSet never has more active pods than it ever asked for.
fn no_pod_twice(objects: &BTreeMap<Id, Value>, sizes: &mut BTreeMap<String, i64>) {
    let mut active: BTreeMap<&str, i64> = BTreeMap::new();
    for ((resource, ..), object) in objects {
        if resource == "replicasets" {
            let asked = object["spec"]["replicas"].as_i64().unwrap_or(0);
            let size = sizes.entry(sampan_api::object::uid(object).to_owned()).or_default();
            *size = asked.max(*size);
        } else if resource == "pods"
            && object["metadata"]["deletionTimestamp"].is_null()
            && object["status"]["phase"] != "Failed"
            && let Some(owner) = object["metadata"]["ownerReferences"][0]["uid"].as_str()
        {
            *active.entry(owner).or_default() += 1;
        }
    }
    for (owner, count) in active {
        if let Some(size) = sizes.get(owner) {
            assert!(count <= *size, "{count} pods for a ReplicaSet that asked for {size}");
        }
    }
}

/// Waits until nothing changes any more.
async fn rest(api: &Api) -> Result<(), TestCaseError> {
    let limit = api.clock.instant() + Duration::from_secs(300);
    let mut quiet = (api_revision(api), 0);
    while quiet.1 < 40 {
        prop_assert!(api.clock.instant() < limit, "does not come to rest");
        api.clock.sleep(Duration::from_millis(100)).await;
        let revision = api_revision(api);
        quiet = if revision == quiet.0 { (revision, quiet.1 + 1) } else { (revision, 0) };
    }
    Ok(())
}

async fn run(history: History) -> Result<u64, TestCaseError> {
    let clock = Clock::simulated("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
    let dice = Dice::seeded(history.seed);
    let api = Api::new(clock.clone(), dice.clone(), history.trouble, Duration::from_millis(30));
    let stranger = json!({"app": "stranger"});
    api.put("pods", "n", "stranger", |pod| pod["metadata"]["labels"] = stranger);
    let owner = json!([{"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "o", "controller": true}]);
    api.put("pods", "n", "foreign", |pod| {
        pod["metadata"]["labels"] = json!({"app": "web"});
        pod["metadata"]["ownerReferences"] = owner;
    });
    api.put("deployments", "n", "web", |object| object["spec"] = deployment(&history));
    let (surge, unavailable) = match (history.surge, history.unavailable) {
        (0, 0) => (0, 1),
        both => both,
    };
    // The largest number wanted lately bounds what may exist: a change of spec is not seen at once.
    let wanted = Arc::new(std::sync::Mutex::new((history.replicas, history.replicas)));
    let bound = wanted.clone();
    // How many available pods there must be at least; set once the first rollout is through.
    let floor = Arc::new(std::sync::atomic::AtomicI32::new(0));
    let least = floor.clone();
    let sizes = std::sync::Mutex::new(BTreeMap::<String, i64>::new());
    api.watch_over(move |objects| {
        let (_, most) = *bound.lock().expect("lock");
        no_pod_twice(objects, &mut sizes.lock().expect("lock"));
        let available = objects.iter().filter(|((resource, ..), pod)| {
            resource == "pods" && pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
        });
        let least = least.load(std::sync::atomic::Ordering::Relaxed) as usize;
        assert!(available.count() >= least, "fewer than {least} pods are available");
        let (total, pods) = owned_by_sets(objects);
        assert!(
            total <= i64::from(most + surge),
            "ReplicaSets ask for {total} pods, at most {most}+{surge} are allowed"
        );
        assert!(pods.contains_key("stranger") && pods.contains_key("foreign"), "a pod of somebody else was touched");
        assert_eq!(pods["foreign"]["metadata"]["ownerReferences"][0]["uid"], "o");
        assert!(pods["foreign"]["metadata"]["deletionTimestamp"].is_null());
    });
    let client_for = api.client_for();
    let client = api.client();
    let context = |name| Context::new(name, &client_for, &clock, &dice);
    let sets = follow(&client, crate::framework::REPLICA_SETS, Default::default(), &clock);
    let pods = follow(&client, crate::framework::PODS, Default::default(), &clock);
    let deployments = follow(&client, crate::framework::DEPLOYMENTS, Default::default(), &clock);
    let _replicasets = ReplicaSets::start(context("replicaset-controller"), sets.clone(), pods.clone());
    let _deployments = Deployments::start(context("deployment-controller"), deployments, sets, pods);
    let mut group = sampan_base::task::Group::default();
    group.spawn("nodes", nodes(api.clone()));
    let only_rolls = history.users.iter().all(|user| matches!(user, User::Image(_) | User::Wait(_)));
    if only_rolls {
        rest(&api).await?;
        let unavailable = unavailable.min(history.replicas);
        floor.store(history.replicas - unavailable, std::sync::atomic::Ordering::Relaxed);
    }
    for user in history.users {
        match user {
            User::Scale(replicas) => {
                let mut wanted = wanted.lock().expect("lock");
                *wanted = (replicas, wanted.1.max(replicas));
                drop(wanted);
                api.put("deployments", "n", "web", |object| object["spec"]["replicas"] = replicas.into());
            }
            User::Image(image) => {
                api.put("deployments", "n", "web", |object| object["spec"]["template"] = template(image));
            }
            User::Pause(paused) => {
                api.put("deployments", "n", "web", |object| object["spec"]["paused"] = paused.into());
            }
            User::Kill | User::Lose => {
                let ours =
                    api.list("pods").into_iter().filter(|pod| pod["metadata"]["labels"][TEMPLATE_HASH].is_string());
                let ours: Vec<Value> = ours.collect();
                let chosen = api.dice.below(ours.len() as u64) as usize;
                if let Some(pod) = ours.get(chosen) {
                    let name = sampan_api::object::name(pod);
                    if matches!(user, User::Kill) {
                        api.put("pods", "n", name, |pod| pod["status"]["phase"] = "Failed".into());
                    } else {
                        api.remove("pods", "n", name);
                    }
                }
            }
            User::Wait(milliseconds) => clock.sleep(Duration::from_millis(milliseconds)).await,
        }
    }
    // From here on all is well: it must come to rest where it was told to.
    api.calm();
    api.put("deployments", "n", "web", |object| object["spec"]["paused"] = false.into());
    let goal = i64::from(wanted.lock().expect("lock").0);
    rest(&api).await?;
    let object = api.get("deployments", "n", "web").expect("the Deployment");
    let status = &object["status"];
    for count in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
        prop_assert_eq!(status[count].as_i64(), Some(goal), "{} in {}", count, status);
    }
    prop_assert_eq!(&status["observedGeneration"], &object["metadata"]["generation"]);
    let image = &object["spec"]["template"]["spec"]["containers"][0]["image"];
    let ours: Vec<Value> = api
        .list("pods")
        .into_iter()
        .filter(|pod| pod["metadata"]["labels"][TEMPLATE_HASH].is_string() && pod["status"]["phase"] == "Running")
        .collect();
    prop_assert_eq!(ours.len() as i64, goal);
    prop_assert!(ours.iter().all(|pod| pod["spec"]["containers"][0]["image"] == *image));
    let sets = api.list("replicasets");
    prop_assert!(sets.len() <= 1 + 2, "more history than asked for: {}", sets.len());
    let newest = sets.iter().map(revision).max();
    prop_assert_eq!(Some(revision(&object)), newest);
    Ok(api_revision(&api))
}

fn revision(object: &Value) -> i64 {
    object["metadata"]["annotations"][REVISION].as_str().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Events about pods and the like do not count.
fn api_revision(api: &Api) -> u64 {
    let resources = ["pods", "replicasets", "deployments"];
    let objects = resources.iter().flat_map(|resource| api.list(resource));
    let revisions = objects.map(|object| sampan_api::object::resource_version(&object).parse().unwrap_or(0));
    revisions.max().unwrap_or(0)
}

fn simulate(history: History) -> Result<u64, TestCaseError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(run(history))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn any_history_stays_in_bounds_and_comes_to_rest(history in history()) {
        simulate(history)?;
    }

    #[test]
    fn rolling_keeps_enough_pods_available(history in rolls()) {
        simulate(history)?;
    }
}

#[test]
fn one_seed_gives_one_run() {
    let history = History {
        seed: 11,
        replicas: 5,
        surge: 2,
        unavailable: 1,
        trouble: 10,
        users: vec![User::Wait(500), User::Image(1), User::Wait(100), User::Scale(7), User::Kill, User::Image(2)],
    };
    let runs = [(); 2].map(|()| simulate(history.clone()).expect("converges"));
    assert_eq!(runs[0], runs[1]);
}
