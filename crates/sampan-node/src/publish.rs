//! Writes a pod's status: a strategic merge patch of what changed, bound to the pod's UID.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use sampan_client::api::{Target, decode};
use sampan_client::{Client, Error, PatchKind, WriteOptions};
use serde_json::{Map, Value, json};

use crate::pod::PodExt;
use crate::pod::conditions::OWNED;

/// What the API is believed to have.
pub struct Published {
    base: PodStatus,
    /// The last status that was accepted as it was.
    current: bool,
    pause: Option<Duration>,
}

pub enum Outcome {
    Written(Box<PodStatus>),
    /// The API has another status than believed.
    Changed(Box<PodStatus>),
    Gone,
    Failed(Error),
}

impl Published {
    pub fn new(status: Option<PodStatus>) -> Self {
        Self { base: status.unwrap_or_default(), current: false, pause: None }
    }

    pub fn is(&self, status: &PodStatus) -> bool {
        self.current && self.base == *status
    }

    pub fn set(&mut self, status: PodStatus) {
        *self = Self { base: status, current: true, pause: None };
    }

    pub fn rebase(&mut self, base: PodStatus) {
        *self = Self { base, current: false, pause: None };
    }

    /// The pause after a failure: doubling from `first` to `longest`.
    pub fn failed(&mut self, first: Duration, longest: Duration) -> Duration {
        let pause = self.pause.map_or(first, |pause| (pause * 2).min(longest));
        self.pause = Some(pause);
        pause
    }

    /// The difference to what the API has. Empty differences are written too, once, so that the pod is seen to be ours.
    pub fn patch(&self, pod: &Pod, status: &PodStatus) -> Value {
        json!({"metadata": {"uid": pod.uid()}, "status": difference(&self.base, status)})
    }
}

pub async fn write(client: Client, pod: Arc<Pod>, status: PodStatus, patch: Value) -> Outcome {
    let target = Target::of::<Pod>(Some(pod.namespace())).name(pod.name());
    let body = Bytes::from(patch.to_string());
    let to = target.clone().subresource("status");
    match client.patch_raw(&to, PatchKind::Strategic, body, &WriteOptions::default()).await {
        Ok(_) => Outcome::Written(Box::new(status)),
        Err(error) if error.is_not_found() => Outcome::Gone,
        Err(error) if error.is_conflict() || error.is_invalid() => {
            match client.get_raw(&target).await.and_then(|bytes| decode::<Pod>(&bytes)) {
                Ok(there) if there.uid() == pod.uid() && error.is_conflict() => {
                    Outcome::Changed(Box::new(there.status.unwrap_or_default()))
                }
                Ok(there) if there.uid() == pod.uid() => Outcome::Failed(error),
                Ok(_) => Outcome::Gone,
                Err(gone) if gone.is_not_found() => Outcome::Gone,
                Err(error) => Outcome::Failed(error),
            }
        }
        Err(error) => Outcome::Failed(error),
    }
}

/// The strategic merge patch between two statuses: changed fields, nulls for those that went, and of the merged lists
/// only what is ours to say.
fn difference(old: &PodStatus, new: &PodStatus) -> Value {
    let fields = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    let (old, new) = (fields(old), fields(new));
    let mut patch = Map::new();
    for (name, value) in &new {
        if old.get(name) == Some(value) {
            continue;
        }
        let value = match name.as_str() {
            // Merged by type: conditions of others stay.
            "conditions" => conditions(old.get(name), value),
            // Merged by address: what is not in the new list has to go.
            "podIPs" | "hostIPs" => replaced(value),
            _ => value.clone(),
        };
        patch.insert(name.clone(), value);
    }
    for name in old.keys().filter(|name| !new.contains_key(*name) && !THEIRS.contains(&name.as_str())) {
        patch.insert(name.clone(), Value::Null);
    }
    Value::Object(patch)
}

/// Fields of the status that others write.
const THEIRS: [&str; 4] = ["nominatedNodeName", "resize", "resourceClaimStatuses", "extendedResourceClaimStatus"];

fn conditions(old: Option<&Value>, new: &Value) -> Value {
    let type_of = |condition: &Value| condition.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    let list = |value: Option<&Value>| value.and_then(Value::as_array).cloned().unwrap_or_default();
    let old = list(old);
    let changed = list(Some(new)).into_iter().filter(|condition| {
        let type_ = type_of(condition);
        OWNED.contains(&type_.as_str()) && !old.contains(condition)
    });
    // A merge keeps fields the patch does not name: reason and message that went must be named.
    let named = changed.map(|mut condition| {
        let before = old.iter().find(|old| type_of(old) == type_of(&condition)).and_then(Value::as_object);
        if let Some(fields) = condition.as_object_mut() {
            for gone in before
                .into_iter()
                .flat_map(Map::keys)
                .filter(|key| !fields.contains_key(*key))
                .cloned()
                .collect::<Vec<_>>()
            {
                fields.insert(gone, Value::Null);
            }
        }
        condition
    });
    Value::Array(named.collect())
}

fn replaced(list: &Value) -> Value {
    let mut items = list.as_array().cloned().unwrap_or_default();
    items.push(json!({"$patch": "replace"}));
    Value::Array(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(value: Value) -> PodStatus {
        serde_json::from_value(value).expect("a status")
    }

    #[test]
    fn only_what_changed_is_written() {
        let ready = json!({"type": "Ready", "status": "True"});
        let old = status(json!({
            "phase": "Pending",
            "message": "m",
            "qosClass": "Burstable",
            "nominatedNodeName": "n",
            "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [
                {"type": "Theirs", "status": "True"},
                {"type": "Ready", "status": "False", "reason": "ContainersNotReady"},
                {"type": "Initialized", "status": "True"},
            ],
        }));
        let new = status(json!({
            "phase": "Running",
            "qosClass": "Burstable",
            "podIPs": [{"ip": "10.0.0.2"}],
            "conditions": [{"type": "Theirs", "status": "True"}, ready, {"type": "Initialized", "status": "True"}],
        }));
        assert_eq!(
            difference(&old, &new),
            json!({
                "phase": "Running",
                "message": null,
                "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "replace"}],
                "conditions": [{"type": "Ready", "status": "True", "reason": null}],
            })
        );
        assert_eq!(difference(&new, &new), json!({}));
    }
}
