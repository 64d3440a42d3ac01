//! Between the served versions of a built-in kind. Only versions that differ in their name, and the few pairs written
//! out here; custom resources convert by their own rules.

use sampan_api::{Failure, Gvk, Kind};
use serde_json::{Map, Value};

/// From the version a client wrote to the one objects are stored as.
pub fn to_storage(kind: &Kind, object: Value) -> Result<Value, Failure> {
    between(&kind.gvk, &kind.storage, object)
}

/// From the stored version to the one the kind is served as.
pub fn from_storage(kind: &Kind, object: Value) -> Result<Value, Failure> {
    between(&kind.storage, &kind.gvk, object)
}

fn between(from: &Gvk, to: &Gvk, mut object: Value) -> Result<Value, Failure> {
    if from == to {
        return Ok(object);
    }
    if let Value::Object(map) = &mut object {
        match (from.kind.as_str(), from.group.as_str(), to.group.as_str()) {
            ("Event", "events.k8s.io", "") => rename(map, EVENT_FIELDS, true),
            ("Event", "", "events.k8s.io") => rename(map, EVENT_FIELDS, false),
            ("HorizontalPodAutoscaler", ..) => {
                let message = format!("objects stored as {to} cannot be served as {from} by this server");
                return Err(Failure::internal(message));
            }
            _ => {}
        }
        map.insert("apiVersion".into(), to.api_version().into());
        map.insert("kind".into(), to.kind.clone().into());
    }
    Ok(object)
}

/// core/v1 name, events.k8s.io/v1 name (`pkg/apis/events/v1/conversion.go`).
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn rename(map: &mut Map<String, Value>, names: &[(&str, &str)], back: bool) {
    for (core, events) in names {
        let (from, to) = if back { (*events, *core) } else { (*core, *events) };
        if let Some(value) = map.remove(from) {
            map.insert(to.into(), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn events_keep_their_content_both_ways() {
        let gvk = |group: &str| Gvk { group: group.into(), version: "v1".into(), kind: "Event".into() };
        let stored = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Pod"},
            "message": "m", "count": 2, "reportingComponent": "kubelet", "reason": "r", "type": "Normal",
        });
        let served = between(&gvk(""), &gvk("events.k8s.io"), stored.clone()).expect("converts");
        assert_eq!(served["regarding"]["kind"], "Pod");
        assert_eq!(served["apiVersion"], "events.k8s.io/v1");
        assert!(served.get("involvedObject").is_none());
        assert_eq!(between(&gvk("events.k8s.io"), &gvk(""), served).expect("converts back"), stored);
    }
}
