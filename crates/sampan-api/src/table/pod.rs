//! What a Pod's row says of its containers (`printPod`).

use std::cmp::max;

use jiff::Timestamp;
use serde_json::Value;

use super::cells::{at, condition, integer, items, since, text, timestamp};

struct Summary {
    ready: i64,
    total: i64,
    status: String,
    restarts: i64,
    last_restart: Option<Timestamp>,
}

pub fn ready(pod: &Value, _: Timestamp) -> Value {
    let summary = Summary::of(pod);
    format!("{}/{}", summary.ready, summary.total).into()
}

pub fn status(pod: &Value, _: Timestamp) -> Value {
    Summary::of(pod).status.into()
}

/// `3 (5m ago)`
pub fn restarts(pod: &Value, now: Timestamp) -> Value {
    let summary = Summary::of(pod);
    match summary.last_restart {
        Some(last) if summary.restarts != 0 => format!("{} ({} ago)", summary.restarts, since(last, now)).into(),
        _ => summary.restarts.to_string().into(),
    }
}

/// `1/2` of the readiness gates.
pub fn readiness_gates(pod: &Value, _: Timestamp) -> Value {
    let gates = items(pod, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".into();
    }
    let met = gates.iter().filter(|gate| condition(pod, text(gate, "conditionType")) == Some("True")).count();
    format!("{met}/{}", gates.len()).into()
}

/// `Signal:9` or `ExitCode:1`, for a container that says no reason for its end.
fn end(terminated: &Value) -> String {
    match (text(terminated, "reason"), integer(terminated, "signal")) {
        ("", 0) => format!("ExitCode:{}", integer(terminated, "exitCode")),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.into(),
    }
}

impl Summary {
    fn of(pod: &Value) -> Self {
        let phase = text(pod, "status.phase");
        let reason = text(pod, "status.reason");
        let mut summary = Self {
            ready: 0,
            total: i64::try_from(items(pod, "spec.containers").len()).unwrap_or_default(),
            status: if reason.is_empty() { phase } else { reason }.into(),
            restarts: 0,
            last_restart: None,
        };
        let gated = |condition: &Value| {
            text(condition, "type") == "PodScheduled" && text(condition, "reason") == "SchedulingGated"
        };
        if items(pod, "status.conditions").iter().any(gated) {
            summary.status = "SchedulingGated".into();
        }
        let (sidecar_restarts, sidecar_last, initializing) = summary.init_containers(pod);
        if !initializing || condition(pod, "Initialized") == Some("True") {
            summary.restarts = sidecar_restarts;
            summary.last_restart = sidecar_last;
            summary.containers(pod);
        }
        if !at(pod, "metadata.deletionTimestamp").is_null() {
            if reason == "NodeLost" {
                summary.status = "Unknown".into();
            } else if !["Succeeded", "Failed"].contains(&phase) {
                summary.status = "Terminating".into();
            }
        }
        summary
    }

    fn count_restarts(&mut self, container: &Value) -> (i64, Option<Timestamp>) {
        let restarts = integer(container, "restartCount");
        let last = timestamp(at(container, "lastState.terminated.finishedAt"));
        self.restarts += restarts;
        self.last_restart = max(self.last_restart, last);
        (restarts, last)
    }

    /// Restarts and last restart of the restartable ones (sidecars), and whether initialization still goes on.
    fn init_containers(&mut self, pod: &Value) -> (i64, Option<Timestamp>, bool) {
        let specs = items(pod, "spec.initContainers");
        let restartable =
            |name: &str| specs.iter().any(|spec| text(spec, "name") == name && text(spec, "restartPolicy") == "Always");
        self.total += specs.iter().filter(|spec| text(spec, "restartPolicy") == "Always").count() as i64;
        let (mut restarts, mut last) = (0, None);
        for (index, container) in items(pod, "status.initContainerStatuses").iter().enumerate() {
            let sidecar = restartable(text(container, "name"));
            let (own_restarts, own_last) = self.count_restarts(container);
            if sidecar {
                restarts += own_restarts;
                last = max(last, own_last);
            }
            let terminated = at(container, "state.terminated");
            let waiting = text(container, "state.waiting.reason");
            if !terminated.is_null() && integer(terminated, "exitCode") == 0 {
                continue;
            }
            if sidecar && at(container, "started") == true {
                self.ready += i64::from(at(container, "ready") == true);
                continue;
            }
            self.status = if !terminated.is_null() {
                format!("Init:{}", end(terminated))
            } else if !waiting.is_empty() && waiting != "PodInitializing" {
                format!("Init:{waiting}")
            } else {
                format!("Init:{index}/{}", specs.len())
            };
            return (restarts, last, true);
        }
        (restarts, last, false)
    }

    /// The first container that does not run gives the status.
    fn containers(&mut self, pod: &Value) {
        let mut running = false;
        for container in items(pod, "status.containerStatuses").iter().rev() {
            self.count_restarts(container);
            let terminated = at(container, "state.terminated");
            let waiting = text(container, "state.waiting.reason");
            if !waiting.is_empty() {
                self.status = waiting.into();
            } else if !terminated.is_null() {
                self.status = end(terminated);
            } else if at(container, "ready") == true && !at(container, "state.running").is_null() {
                running = true;
                self.ready += 1;
            }
        }
        if self.status == "Completed" && running {
            let ready = condition(pod, "Ready") == Some("True");
            self.status = if ready { "Running" } else { "NotReady" }.into();
        }
    }
}
