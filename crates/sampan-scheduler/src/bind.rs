//! Performs what the scheduler decided: bindings, conditions of pods that must wait, events. It decides nothing.

use std::sync::Arc;

use sampan_base::Clock;
use sampan_client::api::{Target, encode};
use sampan_client::events::{Recorder, Reference};
use sampan_client::informer::Key;
use sampan_client::{Client, Error, PatchKind, WriteOptions};
use serde_json::{Value, json};

use crate::view::{Condition, Pod};

/// Cheap to clone: one per task.
#[derive(Clone)]
pub struct Executor {
    pub client: Client,
    pub recorder: Recorder,
    pub clock: Clock,
}

/// What became of a binding.
#[derive(Debug)]
pub struct Bound {
    pub key: Key,
    pub uid: String,
    pub outcome: Result<(), Error>,
}

fn target<'a>(pod: &'a Pod, subresource: &'a str) -> Target<'a> {
    Target {
        group: "",
        version: "v1",
        resource: "pods",
        namespace: Some(&pod.namespace),
        name: Some(&pod.name),
        subresource: Some(subresource),
    }
}

fn reference(pod: &Pod) -> Reference {
    Reference {
        api_version: "v1".into(),
        kind: "Pod".into(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: pod.uid.clone(),
        field_path: String::new(),
    }
}

impl Executor {
    pub async fn bind(self, pod: Arc<Pod>, node: String) -> Bound {
        let outcome = self.try_bind(&pod, &node).await;
        if outcome.is_ok() {
            let message = format!("Successfully assigned {}/{} to {node}", pod.namespace, pod.name);
            self.recorder.normal(&reference(&pod), "Scheduled", message);
        }
        Bound { key: Key::new(pod.namespace.clone(), pod.name.clone()), uid: pod.uid.clone(), outcome }
    }

    async fn try_bind(&self, pod: &Pod, node: &str) -> Result<(), Error> {
        let binding = json!({
            "apiVersion": "v1",
            "kind": "Binding",
            // The UID keeps a pod of the same name that came since from being bound.
            "metadata": {"name": pod.name, "namespace": pod.namespace, "uid": pod.uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let options = WriteOptions::default();
        self.client.create_raw(&target(pod, "binding"), encode(&binding)?, &options).await.map(drop)
    }

    /// Tells why the pod waits: an event, and the `PodScheduled` condition where it says something else so far.
    pub async fn explain(self, pod: Arc<Pod>, reason: &'static str, message: String) {
        if reason == UNSCHEDULABLE {
            self.recorder.warning(&reference(&pod), "FailedScheduling", message.clone());
        }
        let wanted = Condition { status: "False".into(), reason: reason.into(), message };
        if pod.condition.as_ref() == Some(&wanted) {
            return;
        }
        let mut condition = json!({
            "type": "PodScheduled", "status": wanted.status, "reason": wanted.reason, "message": wanted.message,
        });
        if pod.generation > 0 {
            condition["observedGeneration"] = pod.generation.into();
        }
        // A merge keeps the time of the last transition where the status stays the same.
        if pod.condition.as_ref().is_none_or(|before| before.status != wanted.status) {
            condition["lastTransitionTime"] = self.clock.now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        }
        let patch = json!({"metadata": {"uid": pod.uid}, "status": {"conditions": [condition]}});
        let target = target(&pod, "status");
        let options = WriteOptions::default();
        match self.client.patch::<Value>(&target, PatchKind::Strategic, &patch, &options).await {
            Ok(_) => {}
            Err(error) if error.is_not_found() || error.is_conflict() => {}
            Err(error) => tracing::warn!(%error, pod = pod.name, "cannot write the PodScheduled condition"),
        }
    }
}

pub const UNSCHEDULABLE: &str = "Unschedulable";
pub const GATED: &str = "SchedulingGated";
