//! What the tests of the agent run on: a pretended API server and network; the machine is the runtime's fake.

mod api;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use sampan_base::{Clock, Dice, task};
use sampan_client::Client;
use sampan_net::{NetError, PodLink, PodNetwork, ServiceProxy};
use sampan_runtime::fake::Fake;
use serde_json::{Value, json};

pub use self::api::FakeApi;
use crate::agent::{Agent, Pods};
use crate::config::{NodeConfig, Parts};
use crate::node::Node;

/// Hands out 10.1.0.1, 10.1.0.2, …; Services lead to what is in the set.
#[derive(Default)]
pub struct FakeNetwork(Mutex<(BTreeMap<String, u8>, u8)>, tokio::sync::watch::Sender<BTreeSet<IpAddr>>);

#[async_trait]
impl ServiceProxy for FakeNetwork {
    async fn withdrawn(&self, addresses: &[IpAddr]) {
        let mut served = self.1.subscribe();
        let _ = served.wait_for(|served| !addresses.iter().any(|address| served.contains(address))).await;
    }
}

#[async_trait]
impl PodNetwork for FakeNetwork {
    async fn attach(&self, pod: &PodLink<'_>) -> Result<Vec<IpAddr>, NetError> {
        let mut state = self.0.lock().expect("lock");
        let (held, last) = &mut *state;
        let number = *held.entry(pod.sandbox.to_owned()).or_insert_with(|| {
            *last += 1;
            *last
        });
        Ok(vec![IpAddr::from([10, 1, 0, number])])
    }

    async fn detach(&self, sandbox: &str) -> Result<(), NetError> {
        self.0.lock().expect("lock").0.remove(sandbox);
        Ok(())
    }

    async fn sweep(&self, live: &[String]) -> Result<(), NetError> {
        self.0.lock().expect("lock").0.retain(|sandbox, _| live.contains(sandbox));
        Ok(())
    }
}

impl FakeNetwork {
    /// Services lead to these addresses from now on.
    pub fn serve(&self, addresses: &[IpAddr]) {
        self.1.send_replace(addresses.iter().copied().collect());
    }

    pub fn attached(&self) -> usize {
        self.0.lock().expect("lock").0.len()
    }
}

/// A node on a pretended machine. [`World::restart`] kills the agent and starts another one.
pub struct World {
    pub api: Arc<FakeApi>,
    pub machine: Fake,
    pub network: Arc<FakeNetwork>,
    pub clock: Clock,
    pub pods: Pods,
    pub node: Arc<Node>,
    directory: tempfile::TempDir,
    dice: Dice,
    agent: task::Group,
}

pub const IMAGE: &str = "app:1";

impl World {
    /// In virtual time.
    pub async fn new() -> Self {
        Self::on(Clock::simulated("2030-01-01T00:00:00Z".parse().expect("a time")))
    }

    pub fn on(clock: Clock) -> Self {
        let dice = Dice::seeded(1);
        let machine = Fake::new(clock.clone(), dice.clone());
        machine.add_image(IMAGE, sampan_runtime::ImageConfig::default()).expect("an image");
        let api = Arc::new(FakeApi::new());
        let network = Arc::new(FakeNetwork::default());
        let directory = tempfile::tempdir().expect("a directory");
        let (node, pods, agent) = start(&directory, &clock, &dice, &machine, &api, &network);
        Self { api, machine, network, clock, pods, node, directory, dice, agent }
    }

    /// kill -9 of the agent, and a new one.
    pub fn restart(&mut self) {
        self.stop_agent();
        let (node, pods, agent) =
            start(&self.directory, &self.clock, &self.dice, &self.machine, &self.api, &self.network);
        (self.node, self.pods, self.agent) = (node, pods, agent);
    }

    /// Ends the agent and its workers; what they began on the machine may be half done.
    pub fn stop_agent(&mut self) {
        self.agent = task::Group::default();
        self.pods.lock().clear();
    }

    /// Waits until the pod's status is as asked, in virtual time.
    pub async fn wait(&self, name: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let mut changes = self.api.changes();
        let look = async {
            loop {
                if let Some(pod) = self.api.get("pods", name)
                    && wanted(&pod)
                {
                    return pod;
                }
                changes.changed().await.expect("the API lives");
            }
        };
        match self.clock.timeout(Duration::from_secs(3600), look).await {
            Some(pod) => pod,
            None => panic!("never seen; the pod is {:#}", self.api.get("pods", name).unwrap_or_default()),
        }
    }

    pub async fn wait_phase(&self, name: &str, phase: &str) -> Value {
        self.wait(name, |pod| pod["status"]["phase"] == phase).await
    }

    pub async fn wait_gone(&self, name: &str) {
        let mut changes = self.api.changes();
        let look = async {
            while self.api.get("pods", name).is_some() {
                changes.changed().await.expect("the API lives");
            }
        };
        assert!(self.clock.timeout(Duration::from_secs(3600), look).await.is_some(), "{name} never went");
    }

    /// How often a container of this name was started.
    pub fn starts(&self, container: &str) -> usize {
        let starts = self.machine.calls();
        starts
            .iter()
            .filter(|(operation, about)| {
                *operation == sampan_runtime::fake::Operation::StartContainer && about == container
            })
            .count()
    }
}

fn start(
    directory: &tempfile::TempDir,
    clock: &Clock,
    dice: &Dice,
    machine: &Fake,
    api: &Arc<FakeApi>,
    network: &Arc<FakeNetwork>,
) -> (Arc<Node>, Pods, task::Group) {
    let mut config = NodeConfig::new("node-1", directory.path().join("root"));
    config.log_root = directory.path().join("logs");
    config.addresses = vec![IpAddr::from([192, 168, 0, 1])];
    config.tmpfs = false;
    config.api_users = vec!["kube-apiserver-kubelet-client".into()];
    let parts = Parts {
        client: Client::new(api.clone()),
        runtime: Arc::new(machine.clone()),
        images: Arc::new(machine.clone()),
        network: network.clone(),
        proxy: network.clone(),
        clock: clock.clone(),
        dice: dice.clone(),
    };
    let node = Node::new(config, parts);
    let pods = Pods::default();
    let mut agent = task::Group::default();
    let (ready, _) = tokio::sync::oneshot::channel();
    let (of_agent, of_pods) = (node.clone(), pods.clone());
    agent.spawn("agent", async move {
        let error = Agent::run(of_agent, of_pods, ready).await.expect_err("it never ends well");
        panic!("the agent ended: {error}");
    });
    (node, pods, agent)
}

/// A pod bound to the node, with one container `app`.
pub fn pod(name: &str, spec: Value) -> Value {
    let mut all = json!({
        "nodeName": "node-1",
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": 30,
        "containers": [{"name": "app", "image": IMAGE}],
    });
    if let (Some(all), Some(spec)) = (all.as_object_mut(), spec.as_object()) {
        all.extend(spec.clone());
    }
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "generation": 1},
        "spec": all,
    })
}
