//! Pods nobody else would remove: those of nodes that no longer exist, and finished ones beyond a number.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use sampan_client::Error;
use sampan_client::informer::{Informer, Key};
use serde_json::json;

use crate::framework::{Action, Context, NODES, PODS, Verb, key_of, seconds};
use crate::node::Awake;
use crate::views::{Node, Pod};

/// Upstream's `terminated-pod-gc-threshold`.
const FINISHED_MAX: usize = 12_500;
/// How long a node must be missing, in awake time, before its pods go: it may only be registering anew.
const QUARANTINE: Duration = Duration::from_secs(40);
const PERIOD: Duration = Duration::from_secs(20);

/// What one look finds.
#[derive(Debug, Default)]
struct Found {
    /// On nodes that have been missing for long enough; the server must still confirm that.
    orphans: Vec<Arc<Pod>>,
    /// The oldest finished ones beyond the limit.
    surplus: Vec<Arc<Pod>>,
}

/// `missing`: since when each absent node has been so; kept up to date here.
fn look(
    pods: &[Arc<Pod>],
    exists: impl Fn(&str) -> bool,
    missing: &mut BTreeMap<String, Duration>,
    now: Duration,
) -> Found {
    let mut found = Found::default();
    missing.retain(|node, _| !exists(node));
    for pod in pods {
        let node = &pod.spec.node_name;
        if !node.is_empty() && !exists(node) {
            let since = *missing.entry(node.clone()).or_insert(now);
            if now.saturating_sub(since) >= QUARANTINE {
                found.orphans.push(pod.clone());
            }
        }
    }
    let mut finished: Vec<Arc<Pod>> = pods.iter().filter(|pod| pod.finished() && !pod.terminating()).cloned().collect();
    finished.sort_by(|a, b| {
        let age = |pod: &Pod| (pod.metadata.creation_timestamp, pod.metadata.name.clone());
        age(a).cmp(&age(b))
    });
    finished.truncate(finished.len().saturating_sub(FINISHED_MAX));
    found.surplus = finished;
    found
}

/// Collects until it is dropped.
pub async fn run(context: Context, pods: Informer<Pod>, nodes: Informer<Node>, awake: Awake) {
    pods.synced().await;
    nodes.synced().await;
    let mut missing = BTreeMap::new();
    loop {
        context.clock.sleep(PERIOD).await;
        let all: Vec<Arc<Pod>> = pods.list().into_iter().map(|(_, pod)| pod).collect();
        let exists = |node: &str| nodes.get(&Key::new("", node)).is_some();
        let found = look(&all, exists, &mut missing, awake.now());
        for (pod, orphan) in
            found.orphans.iter().map(|pod| (pod, true)).chain(found.surplus.iter().map(|pod| (pod, false)))
        {
            if let Err(error) = remove(&context, pod, orphan).await {
                tracing::warn!(%error, pod = pod.metadata.name, "cannot collect a pod");
            }
        }
    }
}

async fn remove(context: &Context, pod: &Pod, orphan: bool) -> Result<(), Error> {
    if orphan {
        match context.client.get_raw(&NODES.target(&Key::new("", &pod.spec.node_name))).await {
            Err(error) if error.is_not_found() => {}
            outcome => return outcome.map(drop),
        }
        if !pod.finished() {
            let condition = json!({
                "type": "DisruptionTarget", "status": "True", "reason": "DeletionByPodGC",
                "message": "PodGC: node no longer exists", "lastTransitionTime": seconds(context.clock.now()),
            });
            let status = json!({"phase": "Failed", "conditions": [condition]});
            let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
            tolerant(context.perform(&Action::strategic(PODS, key_of(&pod.metadata), patch).on("status")).await)?;
        }
    }
    let mut action = Action::delete(PODS, &pod.metadata);
    if let Verb::Delete(options) = &mut action.verb {
        options.grace_period_seconds = Some(0);
    }
    tolerant(context.perform(&action).await)
}

/// Gone is gone, whoever was faster.
fn tolerant<T>(outcome: Result<T, Error>) -> Result<(), Error> {
    match outcome {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, node: &str, phase: &str) -> Arc<Pod> {
        let object = json!({
            "metadata": {"name": name}, "spec": {"nodeName": node}, "status": {"phase": phase},
        });
        Arc::new(serde_json::from_value(object).expect("a pod"))
    }

    #[test]
    fn pods_of_a_missing_node_go_after_its_quarantine() {
        let pods = [pod("a", "gone", "Running"), pod("b", "here", "Running"), pod("c", "", "Pending")];
        let mut missing = BTreeMap::new();
        let exists = |node: &str| node == "here";
        let at = Duration::from_secs;
        assert!(look(&pods, exists, &mut missing, at(5)).orphans.is_empty());
        assert!(look(&pods, exists, &mut missing, at(44)).orphans.is_empty());
        let found = look(&pods, exists, &mut missing, at(45)).orphans;
        assert_eq!(found.iter().map(|pod| pod.metadata.name.as_str()).collect::<Vec<_>>(), ["a"]);
        // It came back in between: the time starts anew.
        assert!(look(&pods, |_| true, &mut missing, at(50)).orphans.is_empty());
        assert!(look(&pods, exists, &mut missing, at(55)).orphans.is_empty());
    }

    #[test]
    fn only_the_surplus_of_finished_pods_goes() {
        let mut pods: Vec<Arc<Pod>> = (0..FINISHED_MAX).map(|n| pod(&format!("p{n:05}"), "", "Succeeded")).collect();
        assert!(look(&pods, |_| true, &mut BTreeMap::new(), Duration::ZERO).surplus.is_empty());
        pods.push(pod("p00000a", "", "Failed"));
        let found = look(&pods, |_| true, &mut BTreeMap::new(), Duration::ZERO).surplus;
        assert_eq!(found.iter().map(|pod| pod.metadata.name.as_str()).collect::<Vec<_>>(), ["p00000"]);
    }
}
