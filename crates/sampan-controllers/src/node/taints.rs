//! The taints a node should have, from its conditions. Pure. Taints of others are left alone.

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::framework::seconds;
use crate::views::{Node, Taint};

const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Condition, the status that is bad, and the taint that keeps new pods away.
const BY_CONDITION: [(&str, &str, &str); 6] = [
    ("Ready", "False", NOT_READY),
    ("Ready", "Unknown", UNREACHABLE),
    ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
];

/// All taints of the node as they should be. `evict`: pods that do not tolerate its state may be deleted.
pub fn wanted(node: &Node, evict: bool, now: Timestamp) -> Vec<Taint> {
    let mut keys: Vec<(&str, &str)> = BY_CONDITION
        .iter()
        .filter(|(kind, bad, _)| node.condition(kind).is_some_and(|condition| condition.status == *bad))
        .map(|(.., taint)| (*taint, "NoSchedule"))
        .collect();
    // A node that has never said how it is is not ready.
    if node.condition("Ready").is_none() {
        keys.push((NOT_READY, "NoSchedule"));
    }
    if node.spec.unschedulable {
        keys.push((UNSCHEDULABLE, "NoSchedule"));
    }
    if evict {
        let state = node.condition("Ready").map_or("False", |condition| condition.status.as_str());
        match state {
            "True" => {}
            "Unknown" => keys.push((UNREACHABLE, "NoExecute")),
            _ => keys.push((NOT_READY, "NoExecute")),
        }
    }
    let ours = |taint: &Taint| {
        let executes = taint.effect == "NoExecute" && [NOT_READY, UNREACHABLE].contains(&taint.key.as_str());
        let keeps_away = taint.effect == "NoSchedule"
            && (taint.key == UNSCHEDULABLE || BY_CONDITION.iter().any(|(.., key)| *key == taint.key));
        executes || keeps_away
    };
    let is = |taint: &Taint, (key, effect): (&str, &str)| taint.key == key && taint.effect == effect;
    let mut taints: Vec<Taint> = node
        .spec
        .taints
        .iter()
        .filter(|taint| !ours(taint) || keys.iter().any(|wanted| is(taint, *wanted)))
        .cloned()
        .collect();
    for wanted in keys {
        if !taints.iter().any(|taint| is(taint, wanted)) {
            let (key, effect) = wanted;
            taints.push(Taint { key: key.into(), value: String::new(), effect: effect.into(), time_added: Some(now) });
        }
    }
    taints
}

pub fn written(taints: &[Taint]) -> Value {
    let one = |taint: &Taint| {
        let mut written = json!({"key": taint.key, "effect": taint.effect});
        if !taint.value.is_empty() {
            written["value"] = taint.value.as_str().into();
        }
        if let Some(at) = taint.time_added {
            written["timeAdded"] = seconds(at).into();
        }
        written
    };
    taints.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(
        conditions: &[(&str, &str)],
        unschedulable: bool,
        evict: bool,
        before: &[(&str, &str)],
        expected: &[&str],
    ) {
        let conditions: Vec<Value> =
            conditions.iter().map(|(kind, status)| json!({"type": kind, "status": status})).collect();
        let taints: Vec<Value> = before.iter().map(|(key, effect)| json!({"key": key, "effect": effect})).collect();
        let node: Node = serde_json::from_value(json!({
            "spec": {"unschedulable": unschedulable, "taints": taints}, "status": {"conditions": conditions},
        }))
        .expect("a node");
        let found = wanted(&node, evict, Timestamp::UNIX_EPOCH);
        let found: Vec<String> = found.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect();
        let full = |short: &&str| match short.strip_prefix('!') {
            Some(own) => own.to_owned(),
            None => format!("node.kubernetes.io/{short}"),
        };
        assert_eq!(found, expected.iter().map(full).collect::<Vec<_>>());
    }

    #[test]
    fn taints_follow_conditions() {
        let not_ready = ("node.kubernetes.io/not-ready", "NoSchedule");
        check(&[("Ready", "True")], false, false, &[not_ready], &[]);
        check(&[], false, false, &[not_ready], &["not-ready:NoSchedule"]);
        check(&[("Ready", "False")], false, false, &[], &["not-ready:NoSchedule"]);
        check(&[("Ready", "False")], false, true, &[], &["not-ready:NoSchedule", "not-ready:NoExecute"]);
        let unknown = ["unreachable:NoSchedule", "unreachable:NoExecute"];
        check(&[("Ready", "Unknown")], false, true, &[not_ready], &unknown);
        check(&[("Ready", "True"), ("DiskPressure", "True")], false, true, &[], &["disk-pressure:NoSchedule"]);
        check(&[("Ready", "True")], true, false, &[], &["unschedulable:NoSchedule"]);
    }

    #[test]
    fn taints_of_others_stay() {
        let others = [("gpu", "NoSchedule"), ("node.kubernetes.io/not-ready", "PreferNoSchedule")];
        check(&[("Ready", "True")], false, false, &others, &["!gpu:NoSchedule", "not-ready:PreferNoSchedule"]);
    }
}
