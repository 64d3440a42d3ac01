//! From one version to the next: rolling updates, Recreate, proportional scaling.

use std::sync::Arc;

use serde_json::json;

use super::{MAX_REPLICAS, Pass, Version};
use crate::framework::key_of;
use crate::views::Pod;

/// Which ReplicaSet of the pass.
#[derive(Clone, Copy)]
enum At {
    New,
    Old(usize),
}

impl Pass<'_> {
    /// One step of a rolling update: up, or else down.
    pub(super) fn roll(&mut self) {
        let existed = self.new.is_some();
        self.sync_revision(true);
        if !existed {
            return;
        }
        if self.grow_new() || self.shrink_old() {
            return;
        }
        if self.complete() {
            self.clean_up();
        }
    }

    /// How many replicas the newest ReplicaSet, which has `present`, should have now.
    pub(super) fn new_replicas(&self, present: i32) -> i32 {
        if !self.rolling() {
            return self.wanted();
        }
        let room = self.wanted() + self.max_surge() - self.total();
        if room <= 0 { present } else { present + room.min(self.wanted() - present) }
    }

    fn grow_new(&mut self) -> bool {
        let Some(new) = &self.new else { return false };
        let present = new.replicas;
        let target = if present > self.wanted() { self.wanted() } else { self.new_replicas(present) };
        // Also when only its annotations are behind.
        self.resize(At::New, target)
    }

    /// Old pods go as far as enough others are available: first those that are not available themselves.
    fn shrink_old(&mut self) -> bool {
        let old_total: i32 = self.old.iter().map(|version| version.replicas).sum();
        let Some(new) = self.new.as_ref().filter(|_| old_total > 0) else { return false };
        let least = self.wanted() - self.max_unavailable();
        let new_unavailable = new.replicas - new.available();
        let budget = self.total() - least - new_unavailable;
        if budget <= 0 {
            return false;
        }
        let mut done = 0;
        for at in 0..self.old.len() {
            let version = &self.old[at];
            let unhealthy = version.replicas - version.available();
            let down = unhealthy.min(budget - done);
            if version.replicas > 0 && down > 0 {
                let target = version.replicas - down;
                self.resize(At::Old(at), target);
                done += down;
            }
        }
        let available: i32 = self.all().map(Version::available).sum();
        let mut left = available - least;
        for at in 0..self.old.len() {
            let down = self.old[at].replicas.min(left);
            if down > 0 {
                let target = self.old[at].replicas - down;
                self.resize(At::Old(at), target);
                left -= down;
                done += down;
            }
        }
        done > 0
    }

    /// All old pods go before the first new one comes.
    pub(super) fn recreate(&mut self, pods: &[Arc<Pod>]) {
        self.sync_revision(false);
        let mut shrunk = false;
        for at in 0..self.old.len() {
            shrunk |= self.old[at].replicas > 0 && self.resize(At::Old(at), 0);
        }
        if shrunk || self.old_pods_run(pods) {
            return;
        }
        if self.new.is_none() {
            self.sync_revision(true);
            return;
        }
        self.grow_new();
        if self.complete() {
            self.clean_up();
        }
    }

    /// Terminating pods count: they run until they are gone.
    fn old_pods_run(&self, pods: &[Arc<Pod>]) -> bool {
        let old: Vec<&str> = self.old.iter().map(|version| version.set.metadata.uid.as_str()).collect();
        let runs = |pod: &Arc<Pod>| {
            !pod.finished() && pod.metadata.controller().is_some_and(|owner| old.contains(&owner.uid.as_str()))
        };
        self.old.iter().any(|version| version.set.status.replicas > 0) || pods.iter().any(runs)
    }

    /// `spec.replicas` has changed since the ReplicaSets were last sized: that is scaling, not a rollout.
    pub(super) fn is_scaling(&self) -> bool {
        let wanted = self.wanted().to_string();
        self.all().filter(|version| version.replicas > 0).any(|version| {
            let sized_for = version.set.metadata.annotations.get(super::DESIRED_REPLICAS);
            sized_for.is_some_and(|sized_for| *sized_for != wanted)
        })
    }

    pub(super) fn scale(&mut self) {
        if let Some(only) = self.active_or_latest() {
            let wanted = self.wanted();
            self.resize(only, wanted);
            return;
        }
        if self.new_is_saturated() {
            for at in 0..self.old.len() {
                if self.old[at].replicas > 0 {
                    self.resize(At::Old(at), 0);
                }
            }
        } else if self.rolling() {
            self.scale_proportionally();
        }
    }

    /// The only ReplicaSet with replicas, or the newest when none has any.
    fn active_or_latest(&self) -> Option<At> {
        let mut active: Vec<At> = (0..self.old.len()).filter(|at| self.old[*at].replicas > 0).map(At::Old).collect();
        if self.new.as_ref().is_some_and(|new| new.replicas > 0) {
            active.push(At::New);
        }
        match active.as_slice() {
            [] if self.new.is_some() => Some(At::New),
            [] => self.old.len().checked_sub(1).map(At::Old),
            [one] => Some(*one),
            _ => None,
        }
    }

    fn new_is_saturated(&self) -> bool {
        let Some(new) = &self.new else { return false };
        let sized_for = new.set.metadata.annotations.get(super::DESIRED_REPLICAS).and_then(|text| text.parse().ok());
        let wanted = self.wanted();
        new.replicas == wanted && sized_for == Some(wanted) && new.set.status.available_replicas == wanted
    }

    /// In the middle of a rollout each ReplicaSet grows or shrinks by its share; what rounding leaves over goes to the
    /// largest one.
    fn scale_proportionally(&mut self) {
        let max = if self.wanted() > 0 { self.wanted() + self.max_surge() } else { 0 };
        let difference = max - self.total();
        let mut order: Vec<At> = (0..self.old.len()).filter(|at| self.old[*at].replicas > 0).map(At::Old).collect();
        if self.new.as_ref().is_some_and(|new| new.replicas > 0) {
            order.push(At::New);
        }
        // The largest first; of equals the newer grows first and the older shrinks first.
        order.sort_by_key(|at| {
            let version = self.version(*at);
            let created = version.set.metadata.creation_timestamp.map_or(i64::MAX, |at| at.as_second());
            (-version.replicas, if difference > 0 { -created } else { created })
        });
        let mut done = 0;
        let mut targets: Vec<i32> = Vec::new();
        for at in &order {
            let version = self.version(*at);
            let share = if difference == 0 { 0 } else { self.share(version, difference, done) };
            done += share;
            targets.push(version.replicas + share);
        }
        if let Some(first) = targets.first_mut().filter(|_| difference != 0) {
            *first = (*first + difference - done).max(0);
        }
        for (at, target) in order.into_iter().zip(targets) {
            self.resize(at, target);
        }
    }

    fn share(&self, version: &Version, difference: i32, done: i32) -> i32 {
        let left = difference - done;
        if version.replicas == 0 || left == 0 {
            return 0;
        }
        let fraction = self.fraction(version);
        if difference > 0 { fraction.min(left) } else { fraction.max(left) }
    }

    /// How much the ReplicaSet would change if it kept its share of the whole.
    fn fraction(&self, version: &Version) -> i32 {
        if self.wanted() == 0 {
            return -version.replicas;
        }
        let max = f64::from(self.wanted() + self.max_surge());
        let annotated = version.set.metadata.annotations.get(MAX_REPLICAS).and_then(|text| text.parse::<i32>().ok());
        let before = annotated.filter(|before| *before > 0).unwrap_or(self.deployment.status.replicas);
        if before <= 0 {
            return 0;
        }
        let size = f64::from(version.replicas) * max / f64::from(before);
        size.round() as i32 - version.replicas
    }

    fn version(&self, at: At) -> &Version {
        match (at, &self.new) {
            (At::Old(at), _) => &self.old[at],
            (At::New, Some(new)) => new,
            (At::New, None) => unreachable!("At::New is only made where there is one"),
        }
    }

    /// Sets the number of replicas, and the annotations that say what it was computed for. Returns whether the number
    /// changed.
    fn resize(&mut self, at: At, target: i32) -> bool {
        let version = self.version(at);
        if version.new {
            return false;
        }
        let (set, present) = (version.set.clone(), version.replicas);
        let wanted = self.replica_annotations();
        let annotations = &set.metadata.annotations;
        let current = wanted.iter().all(|(key, value)| annotations.get(key).map(String::as_str) == value.as_str());
        if present == target && current {
            return false;
        }
        // The version in the patch: sized on the ground of a stale copy, it must not be written.
        let patch = json!({
            "metadata": {
                "uid": set.metadata.uid, "resourceVersion": set.metadata.resource_version, "annotations": wanted,
            },
            "spec": {"replicas": target},
        });
        let direction = if target > present { "up" } else { "down" };
        let event = (present != target).then(|| {
            let name = &set.metadata.name;
            ("ScalingReplicaSet", format!("Scaled {direction} replica set {name} from {present} to {target}"))
        });
        self.patch_set(&key_of(&set.metadata), patch, event);
        match at {
            At::Old(at) => self.old[at].replicas = target,
            At::New => {
                if let Some(new) = &mut self.new {
                    new.replicas = target;
                }
            }
        }
        present != target
    }
}
