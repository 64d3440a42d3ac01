//! The conditions a node sets on a pod (upstream's `pkg/kubelet/status/generate.go`); those of others are left alone.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodCondition, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::spec::{PodExt, is_sidecar};
use super::state::State;
use super::status::reported;

/// The types this node writes.
pub const OWNED: [&str; 5] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];

struct Verdict {
    holds: bool,
    reason: &'static str,
    message: String,
}

impl Verdict {
    fn holds() -> Self {
        Self { holds: true, reason: "", message: String::new() }
    }

    fn fails(reason: &'static str, message: String) -> Self {
        Self { holds: false, reason, message }
    }
}

/// The conditions for `status` (its phase and containers are final), with the times of change carried over. Other
/// writers' conditions come first, as they are in the pod.
pub fn compute(pod: &Pod, state: &State, status: &PodStatus, now: Timestamp) -> Vec<PodCondition> {
    let theirs = pod.status.as_ref().and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let mut conditions: Vec<PodCondition> =
        theirs.filter(|condition| !OWNED.contains(&condition.type_.as_str())).cloned().collect();
    let containers_ready = containers_ready(pod, status);
    let ready = ready(pod, &containers_ready, &conditions);
    let sandbox = state.live_sandbox();
    let networked = sandbox.is_some_and(|sandbox| pod.host_network() || state.addresses.contains_key(&sandbox.id));
    let can_start = if networked { Verdict::holds() } else { Verdict::fails("", String::new()) };
    let verdicts = [can_start, initialised(pod, status), ready, containers_ready, Verdict::holds()];
    for (type_, verdict) in OWNED.into_iter().zip(verdicts) {
        let word = if verdict.holds { "True" } else { "False" };
        let old = state.status.conditions.iter().flatten().chain(pod_conditions(pod)).find(|old| old.type_ == type_);
        let since = old.filter(|old| old.status == word).and_then(|old| old.last_transition_time.clone());
        conditions.push(PodCondition {
            type_: type_.into(),
            status: word.into(),
            reason: Some(verdict.reason.to_owned()).filter(|text| !text.is_empty()),
            message: Some(verdict.message).filter(|text| !text.is_empty()),
            last_transition_time: Some(since.unwrap_or(Time(now))),
            observed_generation: pod.metadata.generation,
            last_probe_time: None,
        });
    }
    conditions
}

fn pod_conditions(pod: &Pod) -> impl Iterator<Item = &PodCondition> {
    pod.status.iter().flat_map(|status| status.conditions.iter().flatten())
}

/// Go's `%s` of a string slice.
fn listed(names: &[&str]) -> String {
    format!("[{}]", names.join(" "))
}

fn partition<'a>(
    pod: &'a Pod,
    status: &PodStatus,
    counts: impl Fn(&k8s_openapi::api::core::v1::Container, bool) -> bool,
    good: impl Fn(&k8s_openapi::api::core::v1::Container, &ContainerStatus) -> bool,
) -> (Vec<&'a str>, Vec<&'a str>) {
    let (mut unknown, mut bad) = (Vec::new(), Vec::new());
    let init = pod.init_containers().iter().map(|container| (container, true));
    for (container, is_init) in init.chain(pod.containers().iter().map(|container| (container, false))) {
        if !counts(container, is_init) {
            continue;
        }
        match reported(status, &container.name) {
            None => unknown.push(container.name.as_str()),
            Some(one) if !good(container, one) => bad.push(container.name.as_str()),
            Some(_) => {}
        }
    }
    (unknown, bad)
}

fn containers_ready(pod: &Pod, status: &PodStatus) -> Verdict {
    match status.phase.as_deref() {
        Some("Failed") => return Verdict::fails("PodFailed", String::new()),
        Some("Succeeded") => return Verdict::fails("PodCompleted", String::new()),
        _ => {}
    }
    let (unknown, unready) =
        partition(pod, status, |container, is_init| !is_init || is_sidecar(container), |_, one| one.ready);
    complaint("ContainersNotReady", &unknown, "unready", &unready)
}

fn complaint(reason: &'static str, unknown: &[&str], word: &str, bad: &[&str]) -> Verdict {
    let mut messages = Vec::new();
    if !unknown.is_empty() {
        messages.push(format!("containers with unknown status: {}", listed(unknown)));
    }
    if !bad.is_empty() {
        messages.push(format!("containers with {word} status: {}", listed(bad)));
    }
    if messages.is_empty() { Verdict::holds() } else { Verdict::fails(reason, messages.join(", ")) }
}

fn ready(pod: &Pod, containers: &Verdict, conditions: &[PodCondition]) -> Verdict {
    if !containers.holds {
        return Verdict::fails(containers.reason, containers.message.clone());
    }
    let mut messages = Vec::new();
    for gate in pod.spec_ref().readiness_gates.iter().flatten() {
        let gate = &gate.condition_type;
        match conditions.iter().find(|condition| condition.type_ == *gate) {
            None => messages.push(format!("corresponding condition of pod readiness gate {gate:?} does not exist.")),
            Some(condition) if condition.status != "True" => messages
                .push(format!("the status of pod readiness gate {gate:?} is not \"True\", but {}", condition.status)),
            Some(_) => {}
        }
    }
    if messages.is_empty() { Verdict::holds() } else { Verdict::fails("ReadinessGatesNotReady", messages.join(", ")) }
}

fn initialised(pod: &Pod, status: &PodStatus) -> Verdict {
    let (unknown, incomplete) = partition(
        pod,
        status,
        |_, is_init| is_init,
        |container, one| if is_sidecar(container) { one.started == Some(true) } else { one.ready },
    );
    if status.phase.as_deref() == Some("Succeeded") && unknown.is_empty() {
        return Verdict { holds: true, reason: "PodCompleted", message: String::new() };
    }
    // A regular container that has run shows that initialisation was complete once.
    let has_run = |one: &ContainerStatus| {
        let ran = |state: &Option<k8s_openapi::api::core::v1::ContainerState>| {
            state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
        };
        one.container_id.is_some() && (ran(&one.state) || ran(&one.last_state))
    };
    if status.container_statuses.iter().flatten().any(has_run) {
        return Verdict::holds();
    }
    complaint("ContainersNotInitialized", &unknown, "incomplete", &incomplete)
}
