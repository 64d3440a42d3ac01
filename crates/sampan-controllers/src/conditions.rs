//! Conditions in an object's status.

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::framework::seconds;
use crate::views::Condition;

pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.kind == kind)
}

pub fn is_true(conditions: &[Condition], kind: &str) -> bool {
    find(conditions, kind).is_some_and(|condition| condition.status == "True")
}

/// Sets a condition; one with the same status and reason stays as it is, one with the same status keeps the time of its
/// transition. A new or changed one goes to the end.
pub fn set(conditions: &mut Vec<Condition>, kind: &str, status: &str, reason: &str, message: String, now: Timestamp) {
    let mut transition = now;
    if let Some(before) = find(conditions, kind) {
        if before.status == status && before.reason == reason {
            return;
        }
        if before.status == status {
            transition = before.last_transition_time.unwrap_or(now);
        }
    }
    remove(conditions, kind);
    conditions.push(Condition {
        kind: kind.into(),
        status: status.into(),
        reason: reason.into(),
        message,
        last_transition_time: Some(transition),
        last_update_time: Some(now),
    });
}

pub fn remove(conditions: &mut Vec<Condition>, kind: &str) {
    conditions.retain(|condition| condition.kind != kind);
}

/// As they are written; `lastUpdateTime` only where the kind has it (it is set).
pub fn written(conditions: &[Condition]) -> Value {
    let one = |condition: &Condition| {
        let mut map = Map::new();
        for (key, value) in [
            ("type", &condition.kind),
            ("status", &condition.status),
            ("reason", &condition.reason),
            ("message", &condition.message),
        ] {
            if !value.is_empty() {
                map.insert(key.into(), value.as_str().into());
            }
        }
        let times =
            [("lastTransitionTime", condition.last_transition_time), ("lastUpdateTime", condition.last_update_time)];
        for (key, time) in times {
            if let Some(time) = time {
                map.insert(key.into(), seconds(time).into());
            }
        }
        Value::Object(map)
    };
    conditions.iter().map(one).collect()
}
