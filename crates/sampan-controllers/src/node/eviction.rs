//! Deletes pods from nodes whose NoExecute taints they do not tolerate, or no longer. The tolerated time runs from the
//! moment the taint is seen, in awake time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use sampan_client::Error;
use sampan_client::informer::{Informer, Key};
use serde_json::json;

use super::{Awake, lock};
use crate::framework::{Action, Context, Controller, PODS, Reconciler, seconds};
use crate::views::{Node, Pod, Taint, Toleration};

/// How long a pod may stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stay {
    Ever,
    For(Duration),
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    (toleration.effect.is_empty() || toleration.effect == taint.effect)
        && (toleration.key.is_empty() || toleration.key == taint.key)
        && match toleration.operator.as_str() {
            "" | "Equal" => toleration.value == taint.value,
            "Exists" => true,
            _ => false,
        }
}

/// The shortest time that any toleration in use allows; none at all when a taint is not tolerated.
fn stay(taints: &[Taint], tolerations: &[Toleration]) -> Stay {
    let mut stay = Stay::Ever;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let mut tolerated = false;
        for toleration in tolerations.iter().filter(|toleration| tolerates(toleration, taint)) {
            tolerated = true;
            if let Some(seconds) = toleration.toleration_seconds {
                let limit = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
                stay = match stay {
                    Stay::Ever => Stay::For(limit),
                    Stay::For(before) => Stay::For(before.min(limit)),
                };
            }
        }
        if !tolerated {
            return Stay::For(Duration::ZERO);
        }
    }
    stay
}

struct Eviction {
    context: Context,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    awake: Awake,
    /// Since when, in awake time, each pod (by key, with its UID) sits on a tainted node.
    since: Mutex<BTreeMap<Key, (String, Duration)>>,
}

/// Wires the controller up; it runs until it is dropped.
pub fn start(context: Context, nodes: Informer<Node>, pods: Informer<Pod>, awake: Awake) -> Controller {
    let mut controller = Controller::new("taint eviction", &context.clock);
    let known = nodes.clone();
    controller.source(&pods, move |change| {
        let on = change.new.as_ref().map(|pod| Key::new("", &pod.spec.node_name));
        let tainted = on.and_then(|key| known.get(&key)).is_some_and(|node| evicts(&node));
        (tainted || change.new.is_none()).then(|| change.key.clone()).into_iter().collect()
    });
    let all = pods.clone();
    controller.source(&nodes, move |change| {
        let taints = |side: &Option<Arc<Node>>| {
            side.as_ref().filter(|node| evicts(node)).map(|node| node.spec.taints.clone()).unwrap_or_default()
        };
        if taints(&change.old) == taints(&change.new) {
            return Vec::new();
        }
        let here = all.list().into_iter().filter(|(_, pod)| pod.spec.node_name == change.key.name);
        here.map(|(key, _)| key).collect()
    });
    let ready = {
        let (nodes, pods) = (nodes.clone(), pods.clone());
        async move {
            nodes.synced().await;
            pods.synced().await;
        }
    };
    controller.work(4, ready, Arc::new(Eviction { context, nodes, pods, awake, since: Mutex::default() }));
    controller
}

fn evicts(node: &Node) -> bool {
    node.spec.taints.iter().any(|taint| taint.effect == "NoExecute")
}

impl Eviction {
    async fn evict(&self, key: &Key, pod: &Pod) -> Result<(), Error> {
        let about = PODS.reference(&pod.metadata);
        self.context.recorder.normal(&about, "TaintManagerEviction", format!("Marking for deletion Pod {key}"));
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": seconds(self.context.clock.now()),
        });
        let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": {"conditions": [condition]}});
        for action in [Action::strategic(PODS, key.clone(), patch).on("status"), Action::delete(PODS, &pod.metadata)] {
            match self.context.perform(&action).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Reconciler for Eviction {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let pod = self.pods.get(key).filter(|pod| !pod.terminating() && !pod.finished());
        let node = pod.as_ref().and_then(|pod| self.nodes.get(&Key::new("", &pod.spec.node_name)));
        let (Some(pod), Some(node)) = (pod, node) else {
            lock(&self.since).remove(key);
            return Ok(None);
        };
        let Stay::For(limit) = stay(&node.spec.taints, &pod.spec.tolerations) else {
            if !evicts(&node) {
                lock(&self.since).remove(key);
            }
            return Ok(None);
        };
        let now = self.awake.now();
        let since = {
            let mut all = lock(&self.since);
            let entry = all.entry(key.clone()).or_insert_with(|| (pod.metadata.uid.clone(), now));
            if entry.0 != pod.metadata.uid {
                *entry = (pod.metadata.uid.clone(), now);
            }
            entry.1
        };
        let left = (since + limit).saturating_sub(now);
        if !left.is_zero() {
            return Ok(Some(left));
        }
        self.evict(key, &pod).await?;
        lock(&self.since).remove(key);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taint(key: &str) -> Taint {
        Taint { key: key.into(), effect: "NoExecute".into(), ..Taint::default() }
    }

    fn toleration(key: &str, seconds: Option<i64>) -> Toleration {
        Toleration { key: key.into(), operator: "Exists".into(), toleration_seconds: seconds, ..Toleration::default() }
    }

    #[test]
    fn the_shortest_toleration_in_use_counts() {
        let for_seconds = |seconds| Stay::For(Duration::from_secs(seconds));
        assert_eq!(stay(&[], &[]), Stay::Ever);
        assert_eq!(stay(&[taint("a")], &[]), for_seconds(0));
        assert_eq!(stay(&[taint("a")], &[toleration("a", None)]), Stay::Ever);
        assert_eq!(stay(&[taint("a")], &[toleration("a", Some(300))]), for_seconds(300));
        let both = [toleration("a", Some(300)), toleration("b", Some(30)), toleration("c", Some(1))];
        assert_eq!(stay(&[taint("a"), taint("b")], &both), for_seconds(30));
        assert_eq!(stay(&[taint("a"), taint("x")], &both), for_seconds(0));
        let schedule = Taint { effect: "NoSchedule".into(), ..taint("x") };
        assert_eq!(stay(&[schedule], &[]), Stay::Ever);
    }
}
