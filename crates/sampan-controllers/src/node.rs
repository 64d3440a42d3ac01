//! What the control plane does about nodes: notices those that fall silent, taints them, moves their pods elsewhere.
//!
//! `health` decides who is silent and who may be evicted from; `taints` which taints a node should have; `eviction`
//! deletes pods that do not tolerate them. All time is *awake* time ([`Awake`]): a cluster that was asleep, or a control
//! plane that could not run, must find everything as it was. The rules are upstream's (`pkg/controller/nodelifecycle`,
//! `pkg/controller/tainteviction`).

mod eviction;
mod health;
mod taints;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use sampan_base::{Clock, clock::Instant, task};
use sampan_client::Error;
use sampan_client::informer::{Informer, Key};
use serde_json::json;

use crate::framework::{Action, Context, Controller, NODES, PODS, Reconciler, key_of, seconds};
use crate::views::{Lease, Node, Pod};

pub use eviction::start as start_eviction;
use health::{Health, Sight};

/// How often health is looked at.
pub const PERIOD: Duration = Duration::from_secs(5);

/// Counts the time during which this process ran. A gap between two ticks longer than twice their period counts as one
/// period: the process was stopped, or the machine asleep.
#[derive(Clone)]
pub struct Awake {
    clock: Clock,
    state: Arc<Mutex<(Duration, Instant)>>,
}

impl Awake {
    pub fn new(clock: Clock) -> Self {
        let now = clock.instant();
        Self { clock, state: Arc::new(Mutex::new((Duration::ZERO, now))) }
    }

    fn lock(&self) -> MutexGuard<'_, (Duration, Instant)> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn counted(gap: Duration) -> Duration {
        if gap > PERIOD * 2 { PERIOD } else { gap }
    }

    /// Time awake so far.
    pub fn now(&self) -> Duration {
        let (counted, last) = *self.lock();
        counted + Self::counted(self.clock.instant() - last)
    }

    /// Returns whether the process slept since the last tick.
    fn tick(&self) -> bool {
        let now = self.clock.instant();
        let mut state = self.lock();
        let gap = now - state.1;
        *state = (state.0 + Self::counted(gap), now);
        gap > PERIOD * 2
    }
}

struct Lifecycle {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    verdicts: Arc<Mutex<Verdicts>>,
}

/// What the last look at all nodes came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Verdicts {
    /// With what each last said of itself.
    silent: BTreeMap<String, health::Said>,
    /// Nodes whose pods may be evicted.
    evict: BTreeSet<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Wires the controller up. `leases`: those of `kube-node-lease`.
pub fn start(
    context: Context,
    nodes: Informer<Node>,
    leases: Informer<Lease>,
    pods: Informer<Pod>,
    awake: Awake,
) -> (Controller, task::Group) {
    let mut controller = Controller::new("node lifecycle", &context.clock);
    controller.source(&nodes, |change| vec![change.key.clone()]);
    let verdicts = Arc::new(Mutex::new(Verdicts::default()));
    let mut ticker = task::Group::default();
    let (clock, queue) = (context.clock.clone(), controller.queue.clone());
    let (seen, told) = (nodes.clone(), verdicts.clone());
    ticker.spawn("node health", async move {
        seen.synced().await;
        leases.synced().await;
        let mut health = Health::default();
        awake.tick();
        loop {
            clock.sleep(PERIOD).await;
            let slept = awake.tick();
            if slept {
                tracing::info!("this process slept; nodes get their grace period anew");
            }
            let sights: Vec<Sight> = seen
                .list()
                .into_iter()
                .map(|(key, node)| Sight::of(&node, leases.get(&Key::new(LEASES, &key.name)).as_deref()))
                .collect();
            let new = health.look(&sights, awake.now(), slept);
            let old = std::mem::replace(&mut *lock(&told), new.clone());
            let names = |verdicts: &Verdicts| verdicts.silent.keys().cloned().collect::<BTreeSet<_>>();
            let silent = names(&old).symmetric_difference(&names(&new)).cloned().collect::<Vec<_>>();
            for name in silent.iter().chain(old.evict.symmetric_difference(&new.evict)) {
                queue.add(Key::new("", name));
            }
        }
    });
    let ready = {
        let (nodes, pods) = (nodes.clone(), pods.clone());
        async move {
            nodes.synced().await;
            pods.synced().await;
        }
    };
    controller.work(2, ready, Arc::new(Lifecycle { context, nodes, pods, verdicts }));
    (controller, ticker)
}

/// The namespace of node leases.
pub const LEASES: &str = "kube-node-lease";

/// The conditions a node reports itself.
const OWN_CONDITIONS: [&str; 4] = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"];

impl Lifecycle {
    /// Nobody knows how a silent node is: its own conditions become Unknown.
    fn unknown(&self, node: &Node) -> Option<Action> {
        let now = seconds(self.context.clock.now());
        let mut conditions = Vec::new();
        for kind in OWN_CONDITIONS {
            let (reason, message) = match node.condition(kind) {
                Some(condition) if condition.status == "Unknown" => continue,
                Some(_) => ("NodeStatusUnknown", "Kubelet stopped posting node status."),
                None => ("NodeStatusNeverUpdated", "Kubelet never posted node status."),
            };
            conditions.push(json!({
                "type": kind, "status": "Unknown", "reason": reason, "message": message, "lastTransitionTime": now,
            }));
        }
        let patch = json!({"metadata": {"uid": node.metadata.uid}, "status": {"conditions": conditions}});
        (!conditions.is_empty()).then(|| Action::strategic(NODES, key_of(&node.metadata), patch).on("status"))
    }

    /// Nobody serves on a silent node: its pods leave their Services.
    async fn unready(&self, node: &Node) -> Result<(), Error> {
        let now = seconds(self.context.clock.now());
        for (key, pod) in self.pods.list() {
            if pod.spec.node_name != node.metadata.name || !pod.ready() {
                continue;
            }
            let condition = json!({"type": "Ready", "status": "False", "lastTransitionTime": now});
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
            match self.context.perform(&Action::strategic(PODS, key, patch).on("status")).await {
                Err(error) if !(error.is_not_found() || error.is_conflict()) => return Err(error),
                _ => {}
            }
            let about = PODS.reference(&pod.metadata);
            self.context.recorder.warning(&about, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }
}

#[async_trait]
impl Reconciler for Lifecycle {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(node) = self.nodes.get(key) else { return Ok(None) };
        let (silent, evict) = {
            let verdicts = lock(&self.verdicts);
            // It may have spoken up since the last look.
            let said = health::said(&node);
            let silent = verdicts.silent.get(&key.name).is_some_and(|before| said.is_none() || said == *before);
            (silent, verdicts.evict.contains(&key.name))
        };
        if silent {
            if let Some(action) = self.unknown(&node) {
                let about = NODES.reference(&node.metadata);
                self.context.recorder.normal(&about, "NodeNotReady", format!("Node {key} status is now: NodeNotReady"));
                // The change comes back as an event, and with it the taints.
                return self.context.perform(&action).await.map(|_| None);
            }
            self.unready(&node).await?;
        }
        let wanted = taints::wanted(&node, evict, self.context.clock.now());
        if wanted != node.spec.taints {
            let patch = json!({
                "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
                "spec": {"taints": taints::written(&wanted)},
            });
            self.context.perform(&Action::merge(NODES, key.clone(), patch)).await?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn sleep_does_not_count() {
        let clock = Clock::simulated("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
        let awake = Awake::new(clock.clone());
        for _ in 0..6 {
            clock.sleep(PERIOD).await;
            assert!(!awake.tick());
        }
        assert_eq!(awake.now(), PERIOD * 6);
        clock.sleep(Duration::from_secs(600)).await;
        assert_eq!(awake.now(), PERIOD * 7, "also before the first tick");
        assert!(awake.tick());
        assert_eq!(awake.now(), PERIOD * 7);
    }
}
