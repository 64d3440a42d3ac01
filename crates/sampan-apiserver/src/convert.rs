//! Between the served versions of a built-in kind. Only versions that differ in their name, and the few pairs written
//! out here; custom resources convert by their own rules.

use sampan_api::{Failure, Gvk, Kind};
use serde_json::{Map, Value, json};

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
            ("HorizontalPodAutoscaler", ..) if to.version == "v2" => autoscaler_to_v2(map)?,
            ("HorizontalPodAutoscaler", ..) => autoscaler_to_v1(map),
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

/// What v1 can't say travels in annotations (`pkg/apis/autoscaling/v1/conversion.go`).
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

fn part<'a>(map: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    map.get_mut(name).and_then(Value::as_object_mut)
}

/// The average utilization of CPU that a v2 metric asks for or shows, under `field`.
fn cpu_utilization(metric: &Value, field: &str) -> Option<Value> {
    let resource = (metric.get("type")? == "Resource").then(|| metric.get("resource")).flatten()?;
    let value = (resource.get("name")? == "cpu").then(|| resource.get(field)?.get("averageUtilization")).flatten()?;
    Some(value.clone())
}

/// Takes the CPU metric out of a list; the rest goes into an annotation.
fn split_metrics(from: &mut Map<String, Value>, list: &str, field: &str) -> (Option<Value>, Vec<Value>) {
    let Some(Value::Array(metrics)) = from.remove(list) else { return (None, Vec::new()) };
    let mut cpu = None;
    let rest = metrics.into_iter().filter(|metric| match cpu_utilization(metric, field) {
        Some(value) if cpu.is_none() => {
            cpu = Some(value);
            false
        }
        _ => true,
    });
    let rest = rest.collect();
    (cpu, rest)
}

fn autoscaler_to_v1(map: &mut Map<String, Value>) {
    let mut notes = Map::new();
    let mut note = |name: &str, value: Value| {
        if value.as_array().is_none_or(|list| !list.is_empty()) {
            notes.insert(name.into(), value.to_string().into());
        }
    };
    if let Some(spec) = part(map, "spec") {
        let (cpu, rest) = split_metrics(spec, "metrics", "target");
        note(METRICS, rest.into());
        if let Some(behavior) = spec.remove("behavior") {
            note(BEHAVIOR, behavior);
        }
        spec.extend(cpu.map(|value| ("targetCPUUtilizationPercentage".into(), value)));
    }
    if let Some(status) = part(map, "status") {
        let (cpu, rest) = split_metrics(status, "currentMetrics", "current");
        note(CURRENT_METRICS, rest.into());
        if let Some(conditions) = status.remove("conditions") {
            note(CONDITIONS, conditions);
        }
        status.extend(cpu.map(|value| ("currentCPUUtilizationPercentage".into(), value)));
    }
    if !notes.is_empty() {
        let metadata = map.entry("metadata").or_insert_with(|| json!({}));
        if let Some(metadata) = metadata.as_object_mut() {
            let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
            annotations.as_object_mut().into_iter().for_each(|all| all.append(&mut notes));
        }
    }
}

fn autoscaler_to_v2(map: &mut Map<String, Value>) -> Result<(), Failure> {
    let note = |map: &mut Map<String, Value>, name: &str| -> Result<Option<Value>, Failure> {
        let annotations = part(map, "metadata").and_then(|metadata| part(metadata, "annotations"));
        let Some(Value::String(text)) = annotations.and_then(|all| all.remove(name)) else { return Ok(None) };
        let wrong = |error| Failure::bad_request(format!("annotation {name}: {error}"));
        serde_json::from_str(&text).map(Some).map_err(wrong)
    };
    let (metrics, behavior) = (note(map, METRICS)?, note(map, BEHAVIOR)?);
    let (current, conditions) = (note(map, CURRENT_METRICS)?, note(map, CONDITIONS)?);
    if let Some(metadata) = part(map, "metadata")
        && part(metadata, "annotations").is_some_and(|all| all.is_empty())
    {
        metadata.remove("annotations");
    }
    let list = |rest: Option<Value>, cpu: Option<Value>, field: &str| {
        let mut list = rest.and_then(|rest| rest.as_array().cloned()).unwrap_or_default();
        if let Some(value) = cpu {
            let mut shown = json!({"averageUtilization": value});
            if field == "target" {
                shown["type"] = "Utilization".into();
            }
            list.push(json!({"type": "Resource", "resource": {"name": "cpu", field: shown}}));
        }
        (!list.is_empty()).then_some(Value::Array(list))
    };
    if let Some(spec) = part(map, "spec") {
        let cpu = spec.remove("targetCPUUtilizationPercentage");
        spec.extend(list(metrics, cpu, "target").map(|list| ("metrics".into(), list)));
        spec.extend(behavior.map(|behavior| ("behavior".into(), behavior)));
    }
    if let Some(status) = part(map, "status") {
        let cpu = status.remove("currentCPUUtilizationPercentage");
        status.extend(list(current, cpu, "current").map(|list| ("currentMetrics".into(), list)));
        status.extend(conditions.map(|conditions| ("conditions".into(), conditions)));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn an_autoscaler_keeps_in_v1_what_v1_cannot_say() {
        let gvk = |version: &str| Gvk {
            group: "autoscaling".into(),
            version: version.into(),
            kind: "HorizontalPodAutoscaler".into(),
        };
        let cpu = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
        let pods = json!({"type": "Pods", "pods": {"metric": {"name": "m"}, "target": {"type": "AverageValue", "averageValue": "1"}}});
        let stored = json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "h"},
            "spec": {"maxReplicas": 3, "metrics": [pods, cpu], "behavior": {"scaleUp": {"stabilizationWindowSeconds": 1}}},
            "status": {"conditions": [{"type": "AbleToScale"}]},
        });
        let served = between(&gvk("v2"), &gvk("v1"), stored.clone()).expect("converts");
        assert_eq!(served["spec"], json!({"maxReplicas": 3, "targetCPUUtilizationPercentage": 50}));
        assert!(served["metadata"]["annotations"][METRICS].is_string());
        assert_eq!(between(&gvk("v1"), &gvk("v2"), served).expect("converts back"), stored);
        let broken = json!({"metadata": {"annotations": {METRICS: "{"}}});
        assert_eq!(between(&gvk("v1"), &gvk("v2"), broken).expect_err("refused").code, 400);
    }
}
