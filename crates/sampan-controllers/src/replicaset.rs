//! ReplicaSet: as many pods of a template as asked for.
//!
//! The rules are upstream's `pkg/controller/replicaset`: which pods are ours, how many to create or delete at once, which
//! to delete first, what the status says.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use sampan_client::Error;
use sampan_client::api::Target;
use sampan_client::informer::{Informer, Key};
use serde_json::{Value, json};

use crate::framework::{Action, Context, Controller, Expectations, PODS, REPLICA_SETS, Reconciler, key_of};
use crate::ownership::{self, Claim};
use crate::views::{Condition, Pod, ReplicaSet, WorkloadSelector};

/// Pods created or deleted in one go.
const BURST: usize = 500;
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What to do about the pods of one ReplicaSet.
#[derive(Debug, Default)]
pub struct Plan {
    pub adopt: Vec<Arc<Pod>>,
    pub release: Vec<Arc<Pod>>,
    pub create: usize,
    pub delete: Vec<Arc<Pod>>,
    /// The pods that are ours, finished ones left out, terminating ones included.
    pub owned: Vec<Arc<Pod>>,
}

/// `pods`: those of the namespace. `doomed`: pods that we have deleted already. `siblings`: the active pods of all
/// ReplicaSets of the same owner, for spreading deletions over nodes.
pub fn plan(
    set: &ReplicaSet,
    pods: &[Arc<Pod>],
    doomed: impl Fn(&str) -> bool,
    siblings: &[Arc<Pod>],
    now: Timestamp,
) -> Plan {
    let mut plan = Plan::default();
    for pod in pods.iter().filter(|pod| !pod.finished()) {
        let matches = |labels: &_| WorkloadSelector::matches(set.spec.selector.as_ref(), labels);
        match ownership::claim(&set.metadata, &pod.metadata, true, matches) {
            Claim::Owned => plan.owned.push(pod.clone()),
            Claim::Adopt => {
                plan.adopt.push(pod.clone());
                plan.owned.push(pod.clone());
            }
            Claim::Release => plan.release.push(pod.clone()),
            Claim::Ignore => {}
        }
    }
    if set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let alive = |pod: &&Arc<Pod>| pod.active() && !doomed(&pod.metadata.uid);
    let mut active: Vec<Arc<Pod>> = plan.owned.iter().filter(alive).cloned().collect();
    let wanted = usize::try_from(set.replicas()).unwrap_or(0);
    if active.len() < wanted {
        plan.create = (wanted - active.len()).min(BURST);
    } else if active.len() > wanted {
        let surplus = (active.len() - wanted).min(BURST);
        rank(&mut active, siblings, now);
        active.truncate(surplus);
        plan.delete = active;
    }
    plan
}

/// Those to delete first come first (upstream's `ActivePodsWithRanks`).
fn rank(pods: &mut [Arc<Pod>], siblings: &[Arc<Pod>], now: Timestamp) {
    let mut on_node: BTreeMap<&str, usize> = BTreeMap::new();
    for pod in siblings.iter().filter(|pod| pod.active()) {
        *on_node.entry(&pod.spec.node_name).or_default() += 1;
    }
    let phase = |pod: &Pod| match pod.status.phase.as_str() {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost =
        |pod: &Pod| pod.metadata.annotations.get(DELETION_COST).and_then(|text| text.parse::<i32>().ok()).unwrap_or(0);
    let restarts = |pod: &Pod| pod.status.container_statuses.iter().map(|one| one.restart_count).max().unwrap_or(0);
    let crowd = |pod: &Pod| on_node.get(pod.spec.node_name.as_str()).copied().unwrap_or(0);
    pods.sort_by(|a, b| {
        (!a.spec.node_name.is_empty())
            .cmp(&!b.spec.node_name.is_empty())
            .then_with(|| phase(a).cmp(&phase(b)))
            .then_with(|| a.ready().cmp(&b.ready()))
            .then_with(|| cost(a).cmp(&cost(b)))
            .then_with(|| crowd(b).cmp(&crowd(a)))
            .then_with(|| younger(a.ready_since(), b.ready_since(), now))
            .then_with(|| restarts(b).cmp(&restarts(a)))
            .then_with(|| younger(a.metadata.creation_timestamp, b.metadata.creation_timestamp, now))
            // The same order of magnitude of age: an arbitrary but fixed order.
            .then_with(|| a.metadata.uid.cmp(&b.metadata.uid))
    });
}

/// The younger first; ages are compared by their order of magnitude, so that which of two pods of nearly the same age
/// goes does not always follow creation order.
fn younger(a: Option<Timestamp>, b: Option<Timestamp>, now: Timestamp) -> Ordering {
    let magnitude = |at: Option<Timestamp>| {
        let nanoseconds = at.map_or(i128::MAX, |at| now.duration_since(at).as_nanos());
        if nanoseconds <= 0 { -1 } else { i64::from(nanoseconds.ilog2()) }
    };
    magnitude(a).cmp(&magnitude(b))
}

/// The pod the ReplicaSet creates; the server gives it its name.
pub fn new_pod(set: &ReplicaSet) -> Value {
    let template = set.spec.template.tree();
    let part = |path: &str| template.pointer(path).cloned().unwrap_or(Value::Null);
    let mut metadata = json!({
        "generateName": format!("{}-", set.metadata.name),
        "namespace": set.metadata.namespace,
        "ownerReferences": [REPLICA_SETS.controller_of(&set.metadata)],
    });
    for key in ["labels", "annotations", "finalizers"] {
        let value = part(&format!("/metadata/{key}"));
        if !value.is_null() {
            metadata[key] = value;
        }
    }
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": part("/spec")})
}

/// A creation or deletion that failed: reason and message of the `ReplicaFailure` condition.
pub type Trouble = Option<(&'static str, String)>;

/// How long a pod is still away from being available; `None`: it is, or nothing but its own change will make it so.
fn available_in(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Option<Duration> {
    let since = pod.ready_since()?;
    let due = since.saturating_add(jiff::SignedDuration::from_secs(i64::from(min_ready_seconds))).ok()?;
    Duration::try_from(due.duration_since(now)).ok().filter(|left| !left.is_zero())
}

fn available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    pod.ready() && (min_ready_seconds == 0 || available_in(pod, min_ready_seconds, now).is_none())
}

/// The status that the pods amount to, when it differs from the present one, and when it will change by itself.
pub fn status(
    set: &ReplicaSet,
    owned: &[Arc<Pod>],
    trouble: &Trouble,
    now: Timestamp,
) -> (Option<Value>, Option<Duration>) {
    let active: Vec<&Arc<Pod>> = owned.iter().filter(|pod| pod.active()).collect();
    let count = |test: &dyn Fn(&Pod) -> bool| active.iter().filter(|pod| test(pod)).count() as i32;
    let template = &set.spec.template.labels;
    let labeled = |pod: &Pod| template.iter().all(|(key, value)| pod.metadata.labels.get(key) == Some(value));
    let min_ready = set.spec.min_ready_seconds;
    let old = &set.status;
    let old_failure = old.conditions.iter().find(|condition| condition.kind == FAILURE);
    // The trouble is known to be over only when there was something to do and it went well, or nothing is left to do.
    let failure = trouble.as_ref().map(|(reason, message)| {
        let unchanged = old_failure.filter(|old| old.reason == *reason);
        unchanged.cloned().unwrap_or_else(|| Condition {
            kind: FAILURE.into(),
            status: "True".into(),
            reason: (*reason).into(),
            message: message.clone(),
            last_transition_time: Some(now),
            last_update_time: None,
        })
    });
    let mut conditions: Vec<Condition> =
        old.conditions.iter().filter(|condition| condition.kind != FAILURE).cloned().collect();
    conditions.extend(failure);
    let new = crate::views::ReplicaSetStatus {
        replicas: active.len() as i32,
        fully_labeled_replicas: count(&labeled),
        ready_replicas: count(&Pod::ready),
        available_replicas: count(&|pod| available(pod, min_ready, now)),
        terminating_replicas: Some(owned.iter().filter(|pod| pod.terminating()).count() as i32),
        observed_generation: set.metadata.generation,
        conditions,
    };
    let again = active.iter().filter_map(|pod| available_in(pod, min_ready, now)).min();
    let again = again.filter(|_| new.ready_replicas != new.available_replicas);
    if new == *old {
        return (None, again);
    }
    let conditions = crate::conditions::written(&new.conditions);
    let patch = json!({"status": {
        "replicas": new.replicas,
        "fullyLabeledReplicas": new.fully_labeled_replicas,
        "readyReplicas": new.ready_replicas,
        "availableReplicas": new.available_replicas,
        "terminatingReplicas": new.terminating_replicas,
        "observedGeneration": new.observed_generation,
        "conditions": conditions,
    }});
    (Some(patch), again)
}

const FAILURE: &str = "ReplicaFailure";

pub struct ReplicaSets {
    pub context: Context,
    pub sets: Informer<ReplicaSet>,
    pub pods: Informer<Pod>,
    pub expectations: Expectations,
}

impl ReplicaSets {
    /// Wires the controller up; it runs until it is dropped.
    pub fn start(context: Context, sets: Informer<ReplicaSet>, pods: Informer<Pod>) -> Controller {
        let mut controller = Controller::new("replicaset", &context.clock);
        controller.source(&sets, |change| vec![change.key.clone()]);
        let known = sets.clone();
        controller.source(&pods, move |change| {
            let sides = [&change.old, &change.new];
            let mut keys: Vec<Key> = sides
                .into_iter()
                .flatten()
                .filter_map(|pod| pod.metadata.controller())
                .filter(|owner| REPLICA_SETS.is(owner))
                .map(|owner| Key::new(change.key.namespace.clone(), owner.name.clone()))
                .collect();
            // An orphan may be adopted by whoever selects it.
            if let Some(pod) = change.new.as_ref().filter(|pod| pod.metadata.controller().is_none()) {
                let matching = known
                    .list_in(&change.key.namespace)
                    .into_iter()
                    .filter(|(_, set)| WorkloadSelector::matches(set.spec.selector.as_ref(), &pod.metadata.labels));
                keys.extend(matching.map(|(key, _)| key));
            }
            keys.dedup();
            keys
        });
        let ready = {
            let (sets, pods) = (sets.clone(), pods.clone());
            async move {
                sets.synced().await;
                pods.synced().await;
            }
        };
        let reconciler = Self { context, sets, pods, expectations: Expectations::default() };
        controller.work(5, ready, Arc::new(reconciler));
        controller
    }

    /// The active pods of all ReplicaSets with the same owner (upstream's `getIndirectlyRelatedPods`).
    fn siblings(&self, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let owner = set.metadata.controller().map(|owner| owner.uid.as_str());
        let related: Vec<String> = self
            .sets
            .list_in(&set.metadata.namespace)
            .into_iter()
            .filter(|(_, other)| {
                other.metadata.uid == set.metadata.uid
                    || owner.is_some() && other.metadata.controller().map(|owner| owner.uid.as_str()) == owner
            })
            .map(|(_, other)| other.metadata.uid.clone())
            .collect();
        let related = |pod: &&Arc<Pod>| pod.metadata.controller().is_some_and(|owner| related.contains(&owner.uid));
        pods.iter().filter(related).cloned().collect()
    }

    /// Asks the server, not the cache: a ReplicaSet that is being deleted must not adopt what it would take along.
    async fn may_adopt(&self, set: &ReplicaSet) -> Result<bool, Error> {
        let key = key_of(&set.metadata);
        let target: Target<'_> = REPLICA_SETS.target(&key);
        let live: ReplicaSet = sampan_client::api::decode(&self.context.client.get_raw(&target).await?)?;
        Ok(live.metadata.uid == set.metadata.uid && live.metadata.deletion_timestamp.is_none())
    }

    /// One, then two, then four, … at a time: when creations fail for all alike (a quota, an admission webhook), few are
    /// tried. Stops after the first batch with a failure.
    async fn create(&self, key: &Key, set: &ReplicaSet, count: usize) -> Result<(), Error> {
        let action = Action::create(PODS, &set.metadata.namespace, new_pod(set));
        let about = REPLICA_SETS.reference(&set.metadata);
        let mut left = count;
        let mut batch = 1;
        while left > 0 {
            batch = batch.min(left);
            let outcomes = futures::future::join_all((0..batch).map(|_| self.context.perform(&action))).await;
            let mut failure = None;
            for outcome in outcomes {
                match outcome {
                    Ok(pod) => {
                        self.expectations.wrote(key, pod.metadata.revision());
                        let message = format!("Created pod: {}", pod.metadata.name);
                        self.context.recorder.normal(&about, "SuccessfulCreate", message);
                    }
                    Err(error) => {
                        if error.status().is_none() {
                            self.expectations.unknown(key);
                        }
                        failure = Some(error);
                    }
                }
            }
            match failure {
                Some(error) if error.is_namespace_terminating() => return Ok(()),
                Some(error) => {
                    self.context.recorder.warning(&about, "FailedCreate", format!("Error creating: {error}"));
                    return Err(error);
                }
                None => {}
            }
            left -= batch;
            batch *= 2;
        }
        Ok(())
    }

    async fn delete(&self, key: &Key, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Result<(), Error> {
        let about = REPLICA_SETS.reference(&set.metadata);
        let actions: Vec<Action> = pods.iter().map(|pod| Action::delete(PODS, &pod.metadata)).collect();
        let outcomes = futures::future::join_all(actions.iter().map(|action| self.context.perform(action))).await;
        let mut failure = Ok(());
        for (pod, outcome) in pods.iter().zip(outcomes) {
            match outcome {
                Ok(_) => {
                    self.expectations.deleted(key, &pod.metadata.uid);
                    let message = format!("Deleted pod: {}", pod.metadata.name);
                    self.context.recorder.normal(&about, "SuccessfulDelete", message);
                }
                Err(error) if error.is_not_found() => self.expectations.deleted(key, &pod.metadata.uid),
                Err(error) => {
                    self.context.recorder.warning(&about, "FailedDelete", format!("Error deleting: {error}"));
                    failure = Err(error);
                }
            }
        }
        failure
    }
}

/// How soon to look again when the cache has not seen our writes; its events come sooner.
const STALE: Duration = Duration::from_secs(1);

#[async_trait]
impl Reconciler for ReplicaSets {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(set) = self.sets.get(key) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        if self.expectations.get(key).unknown {
            self.expectations.known(key, self.context.newest(PODS, &key.namespace).await?);
        }
        if self.pods.seen() < self.expectations.get(key).revision {
            return Ok(Some(STALE));
        }
        let known: BTreeMap<String, Arc<Pod>> =
            self.pods.list_in(&key.namespace).into_iter().map(|(_, pod)| (pod.metadata.uid.clone(), pod)).collect();
        self.expectations.settle(key, |uid| known.get(uid).is_none_or(|pod| pod.terminating()));
        let expected = self.expectations.get(key);
        let mut pods: Vec<Arc<Pod>> = known.into_values().collect();
        pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        let siblings = self.siblings(&set, &pods);
        let plan = plan(&set, &pods, |uid| expected.doomed.contains(uid), &siblings, self.context.clock.now());
        if !plan.adopt.is_empty() && !self.may_adopt(&set).await? {
            return Ok(Some(STALE));
        }
        for pod in &plan.adopt {
            let action = ownership::adopt(PODS, &pod.metadata, REPLICA_SETS.controller_of(&set.metadata));
            self.context.perform(&action).await?;
        }
        for pod in &plan.release {
            let action = ownership::release(PODS, &pod.metadata, &set.metadata);
            match self.context.perform(&action).await {
                Err(error) if !(error.is_not_found() || error.is_invalid()) => return Err(error),
                _ => {}
            }
        }
        let mut outcome = self.create(key, &set, plan.create).await;
        let mut trouble: Trouble = outcome.as_ref().err().map(|error| ("FailedCreate", error.to_string()));
        if outcome.is_ok() {
            outcome = self.delete(key, &set, &plan.delete).await;
            trouble = outcome.as_ref().err().map(|error| ("FailedDelete", error.to_string()));
        }
        let (patch, again) = status(&set, &plan.owned, &trouble, self.context.clock.now());
        if let Some(patch) = patch {
            let action = Action::merge(REPLICA_SETS, key.clone(), patch).on("status");
            match self.context.perform(&action).await {
                Err(error) if !error.is_not_found() => return Err(error),
                _ => {}
            }
        }
        outcome.map(|()| again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::seconds;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_900_000_000 + second).expect("a timestamp")
    }

    fn pod(name: &str, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
        let mut object = json!({
            "metadata": {
                "name": name, "namespace": "n", "uid": name, "labels": {"app": "web"},
                "creationTimestamp": seconds(at(0)),
                "ownerReferences": [{"uid": "rs", "kind": "ReplicaSet", "apiVersion": "apps/v1", "controller": true}],
            },
            "spec": {"nodeName": "node"},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": seconds(at(10))},
            ]},
        });
        change(&mut object);
        Arc::new(serde_json::from_value(object).expect("a pod"))
    }

    fn set(replicas: i32) -> ReplicaSet {
        let object = json!({
            "metadata": {"name": "web", "namespace": "n", "uid": "rs", "generation": 3},
            "spec": {"replicas": replicas, "minReadySeconds": 30, "selector": {"matchLabels": {"app": "web"}},
                "template": {"metadata": {"labels": {"app": "web", "v": "1"}}, "spec": {"containers": []}}},
        });
        serde_json::from_str(&object.to_string()).expect("a ReplicaSet")
    }

    fn names(pods: &[Arc<Pod>]) -> Vec<&str> {
        pods.iter().map(|pod| pod.metadata.name.as_str()).collect()
    }

    #[test]
    fn finished_and_terminating_pods_are_replaced() {
        let pods = [
            pod("a", |_| {}),
            pod("failed", |pod| pod["status"]["phase"] = "Failed".into()),
            pod("going", |pod| pod["metadata"]["deletionTimestamp"] = seconds(at(5)).into()),
        ];
        let plan = plan(&set(3), &pods, |_| false, &[], at(100));
        assert_eq!(plan.create, 2);
        assert_eq!(names(&plan.owned), ["a", "going"]);
    }

    #[test]
    fn pods_are_adopted_and_released_but_never_stolen() {
        let pods = [
            pod("orphan", |pod| pod["metadata"]["ownerReferences"] = json!([])),
            pod("relabeled", |pod| pod["metadata"]["labels"]["app"] = "other".into()),
            pod("theirs", |pod| pod["metadata"]["ownerReferences"][0]["uid"] = "x".into()),
        ];
        let plan = plan(&set(1), &pods, |_| false, &[], at(100));
        assert_eq!((names(&plan.adopt), names(&plan.release)), (vec!["orphan"], vec!["relabeled"]));
        assert_eq!((plan.create, plan.delete.len()), (0, 0));
    }

    #[test]
    fn a_deleted_set_does_nothing() {
        let mut set = set(5);
        set.metadata.deletion_timestamp = Some(at(0));
        let plan = plan(&set, &[pod("a", |_| {})], |_| false, &[], at(100));
        assert_eq!((plan.create, plan.delete.len(), plan.adopt.len()), (0, 0, 0));
    }

    #[test]
    fn doomed_pods_count_no_more() {
        let pods = [pod("a", |_| {}), pod("b", |_| {})];
        let plan = plan(&set(1), &pods, |uid| uid == "a", &[], at(100));
        assert_eq!((plan.create, names(&plan.delete)), (0, vec![]));
    }

    #[test]
    fn deletion_order() {
        let old = |pod: &mut Value| pod["status"]["conditions"][0]["lastTransitionTime"] = seconds(at(-100_000)).into();
        let pods = [
            pod("plain", |_| {}),
            pod("old", old),
            pod("costly", |pod| pod["metadata"]["annotations"] = json!({DELETION_COST: "5"})),
            pod("cheap", |pod| pod["metadata"]["annotations"] = json!({DELETION_COST: "-5"})),
            pod("unready", |pod| pod["status"]["conditions"][0]["status"] = "False".into()),
            pod("pending", |pod| pod["status"]["phase"] = "Pending".into()),
            pod("unassigned", |pod| pod["spec"]["nodeName"] = "".into()),
            pod("crowded1", |pod| pod["spec"]["nodeName"] = "other".into()),
        ];
        let mut siblings = pods.to_vec();
        siblings.extend((0..9).map(|n| pod(&format!("s{n}"), |pod| pod["spec"]["nodeName"] = "other".into())));
        let plan = plan(&set(0), &pods, |_| false, &siblings, at(100));
        assert_eq!(
            names(&plan.delete),
            ["unassigned", "pending", "unready", "cheap", "crowded1", "plain", "old", "costly"]
        );
    }

    #[test]
    fn status_counts_and_comes_back_for_min_ready_seconds() {
        let pods = [
            pod("a", |pod| pod["metadata"]["labels"]["v"] = "1".into()),
            pod("b", |pod| pod["status"]["conditions"][0]["lastTransitionTime"] = seconds(at(50)).into()),
            pod("going", |pod| pod["metadata"]["deletionTimestamp"] = seconds(at(5)).into()),
        ];
        let set = set(2);
        let (patch, again) = status(&set, &pods, &None, at(60));
        let status = &patch.expect("a change")["status"];
        let expected = json!({
            "replicas": 2, "fullyLabeledReplicas": 1, "readyReplicas": 2, "availableReplicas": 1,
            "terminatingReplicas": 1, "observedGeneration": 3, "conditions": [],
        });
        assert_eq!(*status, expected);
        assert_eq!(again, Some(Duration::from_secs(20)));
        let mut after = set.clone();
        after.status = serde_json::from_value(status.clone()).expect("a status");
        assert_eq!(super::status(&after, &pods, &None, at(60)).0, None, "no write without a change");
    }

    #[test]
    fn trouble_becomes_a_condition_and_goes_again() {
        let trouble = Some(("FailedCreate", "quota".to_owned()));
        let mut set = set(1);
        let (patch, _) = status(&set, &[], &trouble, at(0));
        let patch = patch.expect("a change");
        assert_eq!(patch["status"]["conditions"][0]["message"], "quota");
        set.status = serde_json::from_value(patch["status"].clone()).expect("a status");
        assert_eq!(status(&set, &[], &trouble, at(5)).0, None);
        let (patch, _) = status(&set, &[], &None, at(5));
        assert_eq!(patch.expect("a change")["status"]["conditions"], json!([]));
    }
}
