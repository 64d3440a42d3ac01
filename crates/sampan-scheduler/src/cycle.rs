//! The loop: watch events go into the engine and the queue, pods come out of the queue and are bound. One task decides;
//! bindings run beside it, a bounded number at once. A pod counts as placed from the decision on ("assumed"); a binding
//! that fails takes that back.

use std::collections::BTreeMap;
use std::sync::Arc;

use sampan_api::Gvr;
use sampan_base::{Clock, Dice, task};
use sampan_client::events::Recorder;
use sampan_client::informer::{Change, Informer, Key, View};
use sampan_client::{Client, ListOptions};
use tokio::sync::mpsc;

use crate::bind::{Bound, Executor, GATED, UNSCHEDULABLE};
use crate::engine::Engine;
use crate::engine::diagnosis::Wake;
use crate::queue::PodQueue;
use crate::view::{Namespace, Node, Pod};

/// The name pods ask for, and the reporter of our events.
pub const NAME: &str = "default-scheduler";

/// Bindings under way at once: enough for the state's group commit to fill its batches.
const BINDINGS_MAX: usize = 256;

/// Schedules until it is dropped. The caller leads (see `sampan_client::leader`) and passes the leader's client.
pub async fn run(client: Client, clock: Clock, dice: Dice) {
    let running = ListOptions {
        // What has finished holds nothing: it leaves the watch as if it were deleted.
        field_selector: Some("status.phase!=Succeeded,status.phase!=Failed".into()),
        ..ListOptions::default()
    };
    let pods = core::<Pod>(&client, "pods", running, &clock);
    let nodes = core::<Node>(&client, "nodes", ListOptions::default(), &clock);
    let namespaces = core::<Namespace>(&client, "namespaces", ListOptions::default(), &clock);
    let mut pod_changes = pods.subscribe();
    let mut node_changes = nodes.subscribe();
    let mut namespace_changes = namespaces.subscribe();
    nodes.synced().await;
    namespaces.synced().await;
    pods.synced().await;
    let recorder = Recorder::spawn(client.clone(), NAME, "", clock.clone(), dice.clone());
    let (done, mut bound) = mpsc::unbounded_channel();
    let mut scheduler = Scheduler {
        engine: Engine::new(dice.next_u64()),
        queue: PodQueue::default(),
        pods: pods.clone(),
        assumed: BTreeMap::new(),
        binding: 0,
        executor: Executor { client, recorder, clock: clock.clone() },
        done,
        tasks: task::Group::default(),
        clock: clock.clone(),
    };
    loop {
        // Everything that is known first, so that a decision sees the newest state.
        while let Ok(change) = node_changes.try_recv() {
            scheduler.node_changed(change);
        }
        while let Ok(change) = namespace_changes.try_recv() {
            scheduler.namespace_changed(change);
        }
        while let Ok(change) = pod_changes.try_recv() {
            scheduler.pod_changed(change);
        }
        while let Ok(outcome) = bound.try_recv() {
            scheduler.bound(outcome);
        }
        if scheduler.schedule_next() {
            continue;
        }
        let due = scheduler.queue.next_due();
        let alarm = async {
            match due {
                Some(due) => clock.sleep_until(due).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            Some(change) = node_changes.recv() => scheduler.node_changed(change),
            Some(change) = namespace_changes.recv() => scheduler.namespace_changed(change),
            Some(change) = pod_changes.recv() => scheduler.pod_changed(change),
            Some(outcome) = bound.recv() => scheduler.bound(outcome),
            () = alarm => {}
        }
    }
}

fn core<V: View>(client: &Client, resource: &str, options: ListOptions, clock: &Clock) -> Informer<V> {
    let gvr = Gvr { group: String::new(), version: "v1".into(), resource: resource.into() };
    Informer::spawn(client.clone(), gvr, options, clock.clone())
}

struct Scheduler {
    engine: Engine,
    queue: PodQueue,
    pods: Informer<Pod>,
    /// Pods with a decision that the watch has not confirmed yet, by UID.
    assumed: BTreeMap<Key, String>,
    binding: usize,
    executor: Executor,
    done: mpsc::UnboundedSender<Bound>,
    tasks: task::Group,
    clock: Clock,
}

impl Scheduler {
    fn node_changed(&mut self, change: Change<Node>) {
        match change.new {
            // A heartbeat changes nothing the scheduler sees.
            Some(new) if change.old.as_ref().is_some_and(|old| *old == new) => {}
            Some(new) => {
                self.engine.set_node(new);
                self.queue.wake(Wake::NODES, self.clock.instant());
            }
            None => self.engine.remove_node(&change.key.name),
        }
    }

    fn namespace_changed(&mut self, change: Change<Namespace>) {
        match change.new {
            Some(new) => self.engine.set_namespace(&change.key.name, new.labels.clone()),
            None => self.engine.remove_namespace(&change.key.name),
        }
    }

    fn pod_changed(&mut self, change: Change<Pod>) {
        let Change { key, old, new } = change;
        if let Some(old) = &old
            && new.as_ref().is_none_or(|new| new.uid != old.uid)
        {
            self.forget(&key, &old.uid);
        }
        let Some(new) = new else { return };
        if new.finished {
            self.forget(&key, &new.uid);
        } else if !new.node_name.is_empty() {
            self.settled(&key, old.as_deref(), &new);
        } else if new.terminating || new.scheduler_name != NAME {
            self.queue.remove(&key);
        } else if self.assumed.get(&key) != Some(&new.uid) {
            let changed = old.as_ref().is_some_and(|old| old.requirements != new.requirements);
            self.queue.add(&key, new.priority, new.gated, changed, self.clock.instant());
            if new.gated {
                let message = "Scheduling is blocked due to non-empty scheduling gates".to_owned();
                self.explain(new, GATED, message);
            }
        }
    }

    /// The pod is on a node: the watch says so.
    fn settled(&mut self, key: &Key, old: Option<&Pod>, new: &Pod) {
        self.queue.remove(key);
        self.assumed.remove(key);
        self.engine.place(&new.uid, &new.requirements, &new.node_name, !new.terminating);
        let now = self.clock.instant();
        let known = old.filter(|old| old.uid == new.uid && old.node_name == new.node_name);
        match known {
            None => self.queue.wake(Wake::PODS, now),
            Some(old) if old.requirements != new.requirements => self.queue.wake(Wake::PODS | Wake::FREED, now),
            // A terminating pod no longer counts for topology spread.
            Some(old) if old.terminating != new.terminating => self.queue.wake(Wake::PODS, now),
            Some(_) => {}
        }
    }

    fn forget(&mut self, key: &Key, uid: &str) {
        if self.assumed.get(key).is_some_and(|assumed| assumed == uid) {
            self.assumed.remove(key);
        }
        self.queue.remove(key);
        if self.engine.remove(uid) {
            self.queue.wake(Wake::FREED, self.clock.instant());
        }
    }

    /// `false` when there is nothing to do now.
    fn schedule_next(&mut self) -> bool {
        if self.binding >= BINDINGS_MAX {
            return false;
        }
        let now = self.clock.instant();
        let Some(key) = self.queue.pop(now) else { return false };
        let Some(pod) = self.pods.get(&key).filter(|pod| pod.node_name.is_empty() && !pod.terminating) else {
            self.queue.remove(&key);
            return true;
        };
        match self.engine.schedule(&pod.requirements) {
            Ok(node) => {
                self.engine.place(&pod.uid, &pod.requirements, &node, true);
                self.assumed.insert(key, pod.uid.clone());
                self.binding += 1;
                let (executor, done) = (self.executor.clone(), self.done.clone());
                self.tasks.spawn("bind", async move {
                    let _ = done.send(executor.bind(pod, node).await);
                });
            }
            Err(diagnosis) => {
                let wakes = if diagnosis.nodes == 0 { Wake::NODES } else { diagnosis.wakes };
                self.queue.failed(&key, wakes, now);
                self.explain(pod, UNSCHEDULABLE, diagnosis.to_string());
            }
        }
        true
    }

    fn explain(&mut self, pod: Arc<Pod>, reason: &'static str, message: String) {
        self.tasks.spawn("explain", self.executor.clone().explain(pod, reason, message));
    }

    fn bound(&mut self, outcome: Bound) {
        self.binding -= 1;
        let Bound { key, uid, outcome } = outcome;
        let Err(error) = outcome else { return };
        tracing::warn!(%error, pod = %key, "cannot bind");
        // Unless the watch has the last word already.
        if self.assumed.get(&key).is_some_and(|assumed| *assumed == uid) {
            self.assumed.remove(&key);
            self.engine.remove(&uid);
            self.queue.error(&key, self.clock.instant());
            self.queue.wake(Wake::FREED, self.clock.instant());
        }
    }
}
