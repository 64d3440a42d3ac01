//! Deployment: ReplicaSets for versions of a template, and the way from one version to the next.
//!
//! The rules are upstream's `pkg/controller/deployment`. [`plan`] works on a copy of what the caches hold and applies each
//! step to it, as upstream's sync does; what it wrote there comes out as actions. `kubectl rollout undo` needs nothing
//! here: it patches the template.

mod reconciler;
mod rollout;
mod status;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use sampan_client::PatchKind;
use sampan_client::informer::Key;
use serde_json::{Map, Value, json};

use crate::framework::{Action, DEPLOYMENTS, REPLICA_SETS, Verb, key_of};
use crate::ownership::{self, Claim};
use crate::views::{Deployment, DeploymentStatus, IntOrPercent, Pod, ReplicaSet, TEMPLATE_HASH, WorkloadSelector};

pub use reconciler::Deployments;

const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
/// Annotations of a Deployment that its ReplicaSets do not get.
const OWN_ANNOTATIONS: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];
/// How long the list of a ReplicaSet's former revisions may grow.
const REVISION_HISTORY_BYTES: usize = 2000;

const PROGRESSING: &str = "Progressing";
const AVAILABLE: &str = "Available";
const REPLICA_FAILURE: &str = "ReplicaFailure";

/// A write, with the event that tells of it.
#[derive(Debug)]
pub struct Step {
    pub action: Action,
    /// Reason and text.
    pub event: Option<(&'static str, String)>,
    /// A creation whose name may be taken by a ReplicaSet of another template.
    pub creates: Option<[u8; 32]>,
}

#[derive(Debug, Default)]
pub struct Plan {
    pub adopts: bool,
    pub steps: Vec<Step>,
    pub again: Option<Duration>,
}

/// A ReplicaSet while the plan is made: as it will be once the plan is carried out.
#[derive(Clone, Debug)]
struct Version {
    set: Arc<ReplicaSet>,
    replicas: i32,
    /// Made by this very plan.
    new: bool,
}

impl Version {
    fn name(&self) -> &str {
        &self.set.metadata.name
    }

    /// Available pods, as far as they will stay: the status of a ReplicaSet that was just sized down still counts those that
    /// are about to go.
    fn available(&self) -> i32 {
        self.set.status.available_replicas.min(self.replicas)
    }

    fn revision(&self) -> i64 {
        revision_of(&self.set.metadata.annotations)
    }
}

fn revision_of(annotations: &BTreeMap<String, String>) -> i64 {
    annotations.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The working state of one pass.
struct Pass<'a> {
    deployment: &'a Deployment,
    now: Timestamp,
    /// The ReplicaSet of the present template.
    new: Option<Version>,
    /// All others, oldest first.
    old: Vec<Version>,
    status: DeploymentStatus,
    revision: Option<String>,
    steps: Vec<Step>,
}

/// `sets` and `pods`: those of the namespace.
pub fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let mut plan = Plan::default();
    let selector = deployment.spec.selector.as_ref();
    let mut ours = Vec::new();
    for set in sets {
        let matches = |labels: &_| WorkloadSelector::matches(selector, labels);
        match ownership::claim(&deployment.metadata, &set.metadata, true, matches) {
            Claim::Owned => ours.push(set.clone()),
            Claim::Adopt => {
                plan.adopts = true;
                let owner = DEPLOYMENTS.controller_of(&deployment.metadata);
                plan.steps.push(step(ownership::adopt(REPLICA_SETS, &set.metadata, owner)));
                ours.push(set.clone());
            }
            Claim::Release => {
                plan.steps.push(step(ownership::release(REPLICA_SETS, &set.metadata, &deployment.metadata)));
            }
            Claim::Ignore => {}
        }
    }
    ours.sort_by(|a, b| {
        let age = |set: &ReplicaSet| (set.metadata.creation_timestamp, set.metadata.name.clone());
        age(a).cmp(&age(b))
    });
    let current = ours.iter().position(|set| set.spec.template.digest == deployment.spec.template.digest);
    let mut old: Vec<Version> =
        ours.into_iter().map(|set| Version { replicas: set.replicas(), set, new: false }).collect();
    let new = current.map(|at| old.remove(at));
    let mut pass = Pass {
        deployment,
        now,
        new,
        old,
        status: deployment.status.clone(),
        revision: None,
        steps: std::mem::take(&mut plan.steps),
    };
    pass.run(pods);
    plan.again = pass.finish();
    plan.steps = pass.steps;
    plan
}

fn step(action: Action) -> Step {
    Step { action, event: None, creates: None }
}

impl Pass<'_> {
    fn run(&mut self, pods: &[Arc<Pod>]) {
        let deployment = self.deployment;
        if deployment.metadata.deletion_timestamp.is_some() {
            self.sync_revision(false);
            return;
        }
        self.mark_paused();
        if deployment.spec.paused || self.is_scaling() {
            self.sync_revision(false);
            self.scale();
            if deployment.spec.paused {
                self.clean_up();
            }
            return;
        }
        if deployment.spec.strategy.kind == "Recreate" { self.recreate(pods) } else { self.roll() }
    }

    fn wanted(&self) -> i32 {
        self.deployment.spec.replicas.unwrap_or(1)
    }

    fn rolling(&self) -> bool {
        self.deployment.spec.strategy.kind != "Recreate"
    }

    /// Surge and unavailable as numbers (`ResolveFenceposts`): surge rounds up, unavailable down, and not both are 0.
    fn fenceposts(&self) -> (i32, i32) {
        let update = &self.deployment.spec.strategy.rolling_update;
        let default = IntOrPercent::Percent(25);
        let surge = update.max_surge.unwrap_or(default).of(self.wanted(), true);
        let unavailable = update.max_unavailable.unwrap_or(default).of(self.wanted(), false);
        if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
    }

    fn max_surge(&self) -> i32 {
        if self.rolling() { self.fenceposts().0 } else { 0 }
    }

    fn max_unavailable(&self) -> i32 {
        if !self.rolling() || self.wanted() == 0 { 0 } else { self.fenceposts().1.min(self.wanted()) }
    }

    fn all(&self) -> impl Iterator<Item = &Version> {
        self.old.iter().chain(&self.new)
    }

    fn total(&self) -> i32 {
        self.all().map(|version| version.replicas).sum()
    }

    fn has_deadline(&self) -> bool {
        self.deployment.spec.progress_deadline_seconds.is_some_and(|seconds| seconds != i32::MAX)
    }

    /// Brings the newest ReplicaSet's annotations and the Deployment's revision up to date; makes the ReplicaSet when it is
    /// wanted and missing.
    fn sync_revision(&mut self, create: bool) {
        let newest = self.old.iter().map(Version::revision).max().unwrap_or(0) + 1;
        let Some(new) = &self.new else {
            if create {
                self.create(newest);
            }
            return;
        };
        let set = new.set.clone();
        let annotations = self.annotations_for(&set, newest);
        let min_ready = self.deployment.spec.min_ready_seconds;
        if !annotations.is_empty() || set.spec.min_ready_seconds != min_ready {
            let mut patch = json!({"metadata": {"uid": set.metadata.uid, "annotations": annotations}});
            if set.spec.min_ready_seconds != min_ready {
                patch["spec"] = json!({"minReadySeconds": min_ready});
            }
            self.patch_set(&key_of(&set.metadata), patch, None);
        }
        self.revision = Some(revision_of(&set.metadata.annotations).max(newest).to_string());
        if self.has_deadline() && crate::conditions::find(&self.status.conditions, PROGRESSING).is_none() {
            let message = format!("Found new replica set \"{}\"", set.metadata.name);
            self.condition(PROGRESSING, "True", "FoundNewReplicaSet", message);
        }
    }

    /// All changes of one ReplicaSet become one write: a second one would meet a new resource version.
    fn patch_set(&mut self, key: &Key, patch: Value, event: Option<(&'static str, String)>) {
        for step in &mut self.steps {
            if let Action { resource: REPLICA_SETS, key: one, verb: Verb::Patch(PatchKind::Merge, before), .. } =
                &mut step.action
                && one == key
            {
                fold(before, patch);
                step.event = event.or(step.event.take());
                return;
            }
        }
        self.steps.push(Step { action: Action::merge(REPLICA_SETS, key.clone(), patch), event, creates: None });
    }

    /// The annotations that a ReplicaSet lacks: the Deployment's own, and its revision, which only grows. A revision that
    /// is taken over again (a rollback) leaves the former one in the history.
    fn annotations_for(&self, set: &ReplicaSet, newest: i64) -> Map<String, Value> {
        let present = &set.metadata.annotations;
        let mut lacking: Map<String, Value> = self
            .deployment
            .metadata
            .annotations
            .iter()
            .filter(|(key, value)| !OWN_ANNOTATIONS.contains(&key.as_str()) && present.get(*key) != Some(*value))
            .map(|(key, value)| (key.clone(), value.as_str().into()))
            .collect();
        if revision_of(present) < newest {
            lacking.insert(REVISION.into(), newest.to_string().into());
            if let Some(former) = present.get(REVISION) {
                let mut history: Vec<&str> =
                    present.get(REVISION_HISTORY).map_or(vec![], |text| text.split(',').collect());
                history.retain(|one| !one.is_empty());
                history.push(former);
                while history.len() > 1
                    && history.iter().map(|one| one.len() + 1).sum::<usize>() > REVISION_HISTORY_BYTES
                {
                    history.remove(0);
                }
                lacking.insert(REVISION_HISTORY.into(), history.join(",").into());
            }
        }
        lacking
    }

    fn create(&mut self, revision: i64) {
        let deployment = self.deployment;
        let hash = template_hash(&deployment.spec.template.digest, self.status.collision_count.unwrap_or(0));
        let name = format!("{}-{hash}", deployment.metadata.name);
        let mut template = deployment.spec.template.tree();
        sampan_api::object::metadata_mut(&mut template)
            .entry("labels")
            .or_insert_with(|| json!({}))
            .as_object_mut()
            .map(|labels| labels.insert(TEMPLATE_HASH.into(), hash.as_str().into()));
        let mut selector = deployment.spec.selector.as_ref().map_or(json!({}), |selector| selector.written.clone());
        sampan_api::object::child_mut(&mut selector, "matchLabels").insert(TEMPLATE_HASH.into(), hash.as_str().into());
        let replicas = self.new_replicas(0);
        let mut annotations = self.annotations_for(&ReplicaSet::default(), revision);
        annotations.extend(self.replica_annotations());
        let object = json!({
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": name,
                "namespace": deployment.metadata.namespace,
                "labels": template["metadata"]["labels"],
                "annotations": annotations,
                "ownerReferences": [DEPLOYMENTS.controller_of(&deployment.metadata)],
            },
            "spec": {
                "replicas": replicas,
                "minReadySeconds": deployment.spec.min_ready_seconds,
                "selector": selector,
                "template": template,
            },
        });
        let event =
            (replicas > 0).then(|| ("ScalingReplicaSet", format!("Scaled up replica set {name} from 0 to {replicas}")));
        let action = Action::create(REPLICA_SETS, &deployment.metadata.namespace, object);
        self.steps.push(Step { action, event, creates: Some(deployment.spec.template.digest) });
        let mut set = ReplicaSet::default();
        set.metadata.name.clone_from(&name);
        set.metadata.namespace.clone_from(&deployment.metadata.namespace);
        set.spec.replicas = Some(replicas);
        self.new = Some(Version { set: Arc::new(set), replicas, new: true });
        self.revision = Some(revision.to_string());
        if self.has_deadline() {
            let message = format!("Created new replica set \"{name}\"");
            self.condition(PROGRESSING, "True", "NewReplicaSetCreated", message);
        }
    }

    fn condition(&mut self, kind: &str, status: &str, reason: &str, message: String) {
        crate::conditions::set(&mut self.status.conditions, kind, status, reason, message, self.now);
    }

    /// Pausing and resuming stop and restart the clock of the progress deadline.
    fn mark_paused(&mut self) {
        if self.deployment.spec.progress_deadline_seconds.is_none() {
            return;
        }
        let reason = crate::conditions::find(&self.status.conditions, PROGRESSING).map(|one| one.reason.as_str());
        let marked = match reason {
            Some("ProgressDeadlineExceeded") => return,
            reason => reason == Some("DeploymentPaused"),
        };
        if self.deployment.spec.paused && !marked {
            self.condition(PROGRESSING, "Unknown", "DeploymentPaused", "Deployment is paused".into());
        } else if !self.deployment.spec.paused && marked {
            self.condition(PROGRESSING, "Unknown", "DeploymentResumed", "Deployment is resumed".into());
        }
    }

    fn replica_annotations(&self) -> Map<String, Value> {
        let max = self.wanted() + self.max_surge();
        [(DESIRED_REPLICAS, self.wanted()), (MAX_REPLICAS, max)]
            .map(|(key, value)| (key.to_owned(), value.to_string().into()))
            .into_iter()
            .collect()
    }

    /// Deletes the oldest ReplicaSets beyond the history limit that are empty and seen to be so.
    fn clean_up(&mut self) {
        let Some(limit) = self.deployment.spec.revision_history_limit.filter(|limit| *limit != i32::MAX) else {
            return;
        };
        let mut cleanable: Vec<&Version> =
            self.old.iter().filter(|version| version.set.metadata.deletion_timestamp.is_none()).collect();
        let surplus = cleanable.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
        cleanable.sort_by_key(|version| version.revision());
        let empty = |version: &&Version| {
            let set = &version.set;
            set.status.replicas == 0
                && version.replicas == 0
                && set.replicas() == 0
                && set.metadata.generation <= set.status.observed_generation
        };
        let deletions: Vec<Step> = cleanable
            .into_iter()
            .take(surplus)
            .filter(empty)
            .map(|version| step(Action::delete(REPLICA_SETS, &version.set.metadata)))
            .collect();
        self.steps.extend(deletions);
    }
}

/// Adds the fields of one merge patch to another.
fn fold(patch: &mut Value, more: Value) {
    match (patch, more) {
        (Value::Object(patch), Value::Object(more)) => {
            for (key, value) in more {
                fold(patch.entry(key).or_insert(Value::Null), value);
            }
        }
        (patch, more) => *patch = more,
    }
}

/// The value of the `pod-template-hash` label: a 32-bit number in the alphabet of generated names, as upstream writes it
/// (`rand.SafeEncodeString`). The number itself is ours.
fn template_hash(digest: &[u8; 32], collisions: i32) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut number: u32 = 0x811c_9dc5;
    for byte in digest.iter().chain(&collisions.to_le_bytes()) {
        number = (number ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    }
    number.to_string().bytes().map(|digit| ALPHABET[usize::from(digit) % ALPHABET.len()] as char).collect()
}
