//! What a Deployment's status says: counts, availability, progress.

use std::time::Duration;

use serde_json::json;

use super::{AVAILABLE, PROGRESSING, Pass, REPLICA_FAILURE, step};
use crate::conditions;
use crate::framework::{Action, DEPLOYMENTS, key_of};
use crate::views::{Condition, DeploymentStatus};

impl Pass<'_> {
    /// The counts of all ReplicaSets, as they are now, into the new status.
    fn counted(&self) -> DeploymentStatus {
        let sum = |count: fn(&crate::views::ReplicaSetStatus) -> i32| {
            self.all().map(|version| count(&version.set.status)).sum::<i32>()
        };
        let available = sum(|status| status.available_replicas);
        DeploymentStatus {
            observed_generation: self.deployment.metadata.generation,
            replicas: sum(|status| status.replicas),
            updated_replicas: self.new.as_ref().map_or(0, |new| new.set.status.replicas),
            ready_replicas: sum(|status| status.ready_replicas),
            available_replicas: available,
            unavailable_replicas: (self.total() - available).max(0),
            terminating_replicas: self.all().map(|version| version.set.status.terminating_replicas).sum(),
            collision_count: self.status.collision_count,
            conditions: self.status.conditions.clone(),
        }
    }

    /// All replicas are of the newest version and available.
    pub(super) fn complete(&self) -> bool {
        self.completes(&self.counted())
    }

    fn completes(&self, status: &DeploymentStatus) -> bool {
        let wanted = self.wanted();
        status.updated_replicas == wanted
            && status.replicas == wanted
            && status.available_replicas == wanted
            && status.observed_generation >= self.deployment.metadata.generation
    }

    fn progresses(&self, status: &DeploymentStatus) -> bool {
        let old = &self.deployment.status;
        status.updated_replicas > old.updated_replicas
            || status.replicas - status.updated_replicas < old.replicas - old.updated_replicas
            || status.ready_replicas > old.ready_replicas
            || status.available_replicas > old.available_replicas
    }

    fn deadline(&self) -> jiff::SignedDuration {
        jiff::SignedDuration::from_secs(i64::from(self.deployment.spec.progress_deadline_seconds.unwrap_or(0)))
    }

    /// How long until the deadline; not positive when it has passed.
    fn left(&self, progressing: &Condition) -> jiff::SignedDuration {
        let since = progressing.last_update_time.unwrap_or(self.now);
        since.duration_since(self.now) + self.deadline()
    }

    fn timed_out(&self) -> bool {
        let Some(progressing) = conditions::find(&self.status.conditions, PROGRESSING) else { return false };
        match progressing.reason.as_str() {
            "NewReplicaSetAvailable" => false,
            "ProgressDeadlineExceeded" => true,
            _ => self.left(progressing).is_negative(),
        }
    }

    /// Adds the writes of status and revision; tells when the deadline is to be looked at again.
    pub(super) fn finish(&mut self) -> Option<Duration> {
        let mut status = self.counted();
        let (state, reason, message) = if status.available_replicas >= self.wanted() - self.max_unavailable() {
            ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        };
        conditions::set(&mut status.conditions, AVAILABLE, state, reason, message.into(), self.now);
        // Only a rollout is measured: neither a pause nor a deletion is progress or the lack of it.
        let rollout = !self.deployment.spec.paused && self.deployment.metadata.deletion_timestamp.is_none();
        if rollout && !self.is_scaling() {
            self.progress(&mut status);
        }
        self.status = status;
        self.write();
        self.again()
    }

    fn progress(&self, status: &mut DeploymentStatus) {
        if !self.has_deadline() {
            conditions::remove(&mut status.conditions, PROGRESSING);
        }
        let current = conditions::find(&status.conditions, PROGRESSING).cloned();
        let done = status.replicas == status.updated_replicas
            && current.as_ref().is_some_and(|current| current.reason == "NewReplicaSetAvailable");
        let subject = match &self.new {
            Some(new) => format!("ReplicaSet \"{}\"", new.name()),
            None => format!("Deployment \"{}\"", self.deployment.metadata.name),
        };
        if self.has_deadline() && !done {
            if self.completes(status) {
                let message = format!("{subject} has successfully progressed.");
                let reason = "NewReplicaSetAvailable";
                conditions::set(&mut status.conditions, PROGRESSING, "True", reason, message, self.now);
            } else if self.progresses(status) {
                // Set anew even when it says the same: each progress restarts the clock.
                conditions::remove(&mut status.conditions, PROGRESSING);
                let transition = current.filter(|current| current.status == "True");
                let transition = transition.and_then(|current| current.last_transition_time).unwrap_or(self.now);
                status.conditions.push(Condition {
                    kind: PROGRESSING.into(),
                    status: "True".into(),
                    reason: "ReplicaSetUpdated".into(),
                    message: format!("{subject} is progressing."),
                    last_transition_time: Some(transition),
                    last_update_time: Some(self.now),
                });
            } else if self.timed_out() {
                let message = format!("{subject} has timed out progressing.");
                let reason = "ProgressDeadlineExceeded";
                conditions::set(&mut status.conditions, PROGRESSING, "False", reason, message, self.now);
            }
        }
        let failure = self.new.iter().chain(&self.old).find_map(|version| {
            conditions::find(&version.set.status.conditions, REPLICA_FAILURE).filter(|one| one.status == "True")
        });
        match failure {
            None => conditions::remove(&mut status.conditions, REPLICA_FAILURE),
            Some(failure) => {
                let now = failure.last_transition_time.unwrap_or(self.now);
                let Condition { reason, message, .. } = failure;
                conditions::set(&mut status.conditions, REPLICA_FAILURE, "True", reason, message.clone(), now);
            }
        }
    }

    fn write(&mut self) {
        let deployment = self.deployment;
        let key = key_of(&deployment.metadata);
        if let Some(revision) = &self.revision
            && deployment.metadata.annotations.get(super::REVISION) != Some(revision)
        {
            let patch =
                json!({"metadata": {"uid": deployment.metadata.uid, "annotations": {super::REVISION: revision}}});
            self.steps.push(step(Action::merge(DEPLOYMENTS, key.clone(), patch)));
        }
        let status = &self.status;
        if *status == deployment.status {
            return;
        }
        let mut fields = json!({
            "observedGeneration": status.observed_generation,
            "replicas": status.replicas,
            "updatedReplicas": status.updated_replicas,
            "readyReplicas": status.ready_replicas,
            "availableReplicas": status.available_replicas,
            "unavailableReplicas": status.unavailable_replicas,
            "terminatingReplicas": status.terminating_replicas,
            "conditions": conditions::written(&status.conditions),
        });
        if let Some(collisions) = status.collision_count {
            fields["collisionCount"] = collisions.into();
        }
        self.steps.push(step(Action::merge(DEPLOYMENTS, key, json!({"status": fields})).on("status")));
    }

    fn again(&self) -> Option<Duration> {
        let progressing = conditions::find(&self.status.conditions, PROGRESSING).filter(|_| self.has_deadline())?;
        if self.completes(&self.status) || self.deployment.spec.paused {
            return None;
        }
        if matches!(progressing.reason.as_str(), "ProgressDeadlineExceeded" | "NewReplicaSetAvailable") {
            return None;
        }
        let left = Duration::try_from(self.left(progressing)).unwrap_or(Duration::ZERO);
        Some(left + Duration::from_secs(1))
    }
}
