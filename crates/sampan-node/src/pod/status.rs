//! The status the API should see: a pure function of the pod, what is known of it, and the status of before.
//!
//! Follows upstream's `pkg/kubelet/kubelet_pods.go` (convertStatusToAPIStatus, convertToAPIContainerStatuses, getPhase)
//! field by field; where the runtime has forgotten a container, the status of before is the memory.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState as ApiState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus as ApiContainer, HostIP, Pod, PodIP, PodStatus, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use sampan_runtime::{ContainerState, ContainerStatus};

use super::conditions;
use super::lifecycle::{Ending, ending, is_started, is_terminal};
use super::restart::should_restart;
use super::spec::{PodExt, is_sidecar};
use super::state::{Op, ProbeKind, State};
use crate::resources;

/// The scheme of `containerID`, as `containerd://` is for containerd.
pub const CONTAINER_SCHEME: &str = "sampan://";
const LOST_EXIT_CODE: i32 = 137;

/// What of the node goes into every pod's status.
#[derive(Clone, Debug, Default)]
pub struct HostFacts {
    pub addresses: Vec<IpAddr>,
}

/// The container's entry in a published status.
pub fn reported<'a>(status: &'a PodStatus, name: &str) -> Option<&'a ApiContainer> {
    let regular = status.container_statuses.iter().flatten();
    regular.chain(status.init_container_statuses.iter().flatten()).find(|one| one.name == name)
}

pub fn is_of_run(status: &ApiContainer, id: &str) -> bool {
    status.container_id.as_deref().and_then(|text| text.strip_prefix(CONTAINER_SCHEME)) == Some(id)
}

/// Computes the status; `state.status` is the one of before.
pub fn compute(pod: &Pod, state: &State, host: &HostFacts, now: Timestamp) -> PodStatus {
    let old = &state.status;
    let mut status = PodStatus {
        qos_class: Some(resources::qos_class(pod).to_owned()),
        start_time: old.start_time.clone().or(Some(Time(now))),
        observed_generation: pod.metadata.generation,
        nominated_node_name: None,
        ..PodStatus::default()
    };
    addresses(pod, state, host, &mut status);
    let mut regular: Vec<ApiContainer> =
        pod.containers().iter().map(|container| container_status(pod, state, container, false, now)).collect();
    regular.sort_by(|a, b| a.name.cmp(&b.name));
    let init: Vec<ApiContainer> =
        pod.init_containers().iter().map(|container| container_status(pod, state, container, true, now)).collect();
    status.container_statuses = Some(regular);
    status.init_container_statuses = (!init.is_empty()).then_some(init);
    decide_phase(pod, state, &mut status);
    status.conditions = Some(conditions::compute(pod, state, &status, now));
    status
}

fn addresses(pod: &Pod, state: &State, host: &HostFacts, status: &mut PodStatus) {
    let of_host = || host.addresses.iter().map(ToString::to_string);
    status.host_ip = of_host().next();
    status.host_ips = Some(of_host().map(|ip| HostIP { ip }).collect::<Vec<_>>()).filter(|ips| !ips.is_empty());
    let own: Vec<String> = if pod.host_network() {
        of_host().collect()
    } else {
        let sandbox = state.live_sandbox().and_then(|sandbox| state.addresses.get(&sandbox.id));
        sandbox.into_iter().flatten().map(ToString::to_string).collect()
    };
    if own.is_empty() {
        // The sandbox of a pod that has ended is gone; its address stays in the status, as upstream's status manager
        // keeps it.
        if state.live_sandbox().is_none() || !state.volumes_ready {
            status.pod_ip.clone_from(&state.status.pod_ip);
            status.pod_ips.clone_from(&state.status.pod_ips);
        }
        return;
    }
    status.pod_ip = own.first().cloned();
    status.pod_ips = Some(own.into_iter().map(|ip| PodIP { ip }).collect());
}

fn container_status(pod: &Pod, state: &State, container: &Container, is_init: bool, now: Timestamp) -> ApiContainer {
    let name = &container.name;
    let old = reported(&state.status, name);
    // What an agent that died had created but not started is about to be removed: it never ran.
    let latest = state.latest(name, None);
    let shown =
        latest.filter(|run| run.state != ContainerState::Created).or_else(|| latest.and_then(|_| state.previous(name)));
    let mut status = match shown {
        Some(run) => of_run(state, container, run, old),
        None => without_run(pod, state, container, old),
    };
    status.volume_mounts = mounts(container);
    let is_ending = ending(pod, state).is_some();
    if !is_ending && let Some(waiting) = why_waiting(pod, state, container, is_init, now) {
        if let Some(state) = &mut status.state
            && let Some(terminated) = state.terminated.take()
        {
            status.last_state = Some(ApiState { terminated: Some(terminated), ..ApiState::default() });
        }
        status.state = Some(ApiState { waiting: Some(waiting), ..ApiState::default() });
    }
    if is_ending && state.volumes_released {
        finalise(&mut status, is_init && !is_sidecar(container));
    }
    readiness(state, container, is_init, old, &mut status);
    status
}

/// A container that never ran, or whose runs the runtime has forgotten.
fn without_run(pod: &Pod, state: &State, container: &Container, old: Option<&ApiContainer>) -> ApiContainer {
    if let Some(old) = old
        && old.state.as_ref().is_some_and(|state| state.terminated.is_some())
    {
        return old.clone();
    }
    let has_init = !pod.init_containers().is_empty();
    let reason = if has_init { "PodInitializing" } else { "ContainerCreating" };
    let mut status = ApiContainer {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(waiting_state(reason, "")),
        last_state: old.and_then(|old| old.last_state.clone()),
        restart_count: old.map_or(0, |old| old.restart_count),
        ..ApiContainer::default()
    };
    let was_running = old.and_then(|old| old.state.as_ref()).is_some_and(|state| state.running.is_some());
    if was_running && !state.is_busy(&Op::Start(container.name.clone())) {
        let message = "The container could not be located when the pod was deleted.  The container used to be Running";
        status.last_state = Some(ApiState { terminated: Some(lost(message)), ..ApiState::default() });
        if pod.deletion().is_none() {
            status.restart_count += 1;
        }
    }
    status
}

fn lost(message: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: LOST_EXIT_CODE,
        reason: Some("ContainerStatusUnknown".into()),
        message: Some(message.into()),
        ..ContainerStateTerminated::default()
    }
}

fn waiting_state(reason: &str, message: &str) -> ApiState {
    ApiState { waiting: Some(waiting(reason, message)), ..ApiState::default() }
}

fn waiting(reason: &str, message: &str) -> ContainerStateWaiting {
    ContainerStateWaiting {
        reason: Some(reason.to_owned()).filter(|text| !text.is_empty()),
        message: Some(message.to_owned()).filter(|text| !text.is_empty()),
    }
}

fn of_run(state: &State, container: &Container, run: &ContainerStatus, old: Option<&ApiContainer>) -> ApiContainer {
    let last_state = match state.previous(&container.name) {
        Some(previous) if state.is_over(previous) => Some(terminated_state(state, previous)),
        _ => old.and_then(|old| {
            let ended = old.state.as_ref().filter(|state| state.terminated.is_some());
            if is_of_run(old, &run.id) { old.last_state.clone() } else { ended.cloned().or(old.last_state.clone()) }
        }),
    };
    let now = match run.state {
        _ if state.is_over(run) => terminated_state(state, run),
        ContainerState::Running => ApiState {
            running: Some(ContainerStateRunning { started_at: run.started_at.map(Time) }),
            ..ApiState::default()
        },
        _ => waiting_state("ContainerCreating", ""),
    };
    ApiContainer {
        name: container.name.clone(),
        image: run.config.image.clone(),
        image_id: run.image_id.clone(),
        container_id: Some(format!("{CONTAINER_SCHEME}{}", run.id)),
        restart_count: i32::try_from(run.config.attempt)
            .unwrap_or(i32::MAX)
            .max(old.map_or(0, |old| old.restart_count)),
        state: Some(now),
        last_state,
        resources: container.resources.clone(),
        allocated_resources: container.resources.as_ref().and_then(|resources| resources.requests.clone()),
        ..ApiContainer::default()
    }
}

fn terminated_state(state: &State, run: &ContainerStatus) -> ApiState {
    let terminated = if run.state == ContainerState::Exited {
        let never_started = run.started_at.is_none();
        let reason = match run.exit_code {
            _ if run.oom_killed => "OOMKilled",
            _ if never_started => "StartError",
            0 => "Completed",
            _ => "Error",
        };
        let message = state.messages.get(&run.id).filter(|text| !text.is_empty()).unwrap_or(&run.message);
        ContainerStateTerminated {
            container_id: Some(format!("{CONTAINER_SCHEME}{}", run.id)),
            exit_code: run.exit_code,
            reason: Some(reason.into()),
            message: Some(message.clone()).filter(|text| !text.is_empty()),
            // What never started has upstream's zero time, the epoch.
            started_at: Some(Time(run.started_at.unwrap_or(Timestamp::UNIX_EPOCH))),
            finished_at: Some(Time(run.finished_at.unwrap_or(run.created_at))),
            ..ContainerStateTerminated::default()
        }
    } else {
        ContainerStateTerminated {
            container_id: Some(format!("{CONTAINER_SCHEME}{}", run.id)),
            started_at: run.started_at.map(Time),
            ..lost("The container could not be located when the pod was terminated")
        }
    };
    ApiState { terminated: Some(terminated), ..ApiState::default() }
}

/// Why a container that should be started is not, in the words clients match on.
fn why_waiting(
    pod: &Pod,
    state: &State,
    container: &Container,
    is_init: bool,
    now: Timestamp,
) -> Option<ContainerStateWaiting> {
    let name = &container.name;
    let run = state.latest(name, None);
    if let Some(run) = run {
        if state.is_running(run) || !state.is_over(run) {
            return None;
        }
        let code = state.exit_code(run);
        if !should_restart(pod, container, is_init, code) {
            return None;
        }
        let finished = run.finished_at.unwrap_or(run.created_at);
        // One that is being started has waited long enough.
        let starting = state.is_busy(&Op::Start(name.clone()));
        let wait = state.crashes.get(name).filter(|_| !starting).and_then(|crash| crash.wait(finished, now));
        if let Some((_, pause)) = wait {
            return Some(waiting("CrashLoopBackOff", &crash_loop_message(pod, name, pause.as_secs())));
        }
    }
    if let Some(failure) = state.failures.get(&Op::Image(name.clone())) {
        let half_way = super::state::elapsed(failure.at, now) * 2 >= failure.pause;
        if failure.reason == "ErrImagePull" && half_way {
            let image = container.image.as_deref().unwrap_or_default();
            let message = format!("Back-off pulling image \"{image}\": ErrImagePull: {}", failure.message);
            return Some(waiting("ImagePullBackOff", &message));
        }
        return Some(waiting(failure.reason, &failure.message));
    }
    if let Some(failure) = state.failures.get(&Op::Start(name.clone())) {
        return Some(waiting(failure.reason, &failure.message));
    }
    None
}

/// `back-off 10s restarting failed container=…`
pub fn crash_loop_message(pod: &Pod, container: &str, pause_seconds: u64) -> String {
    let (minutes, seconds) = (pause_seconds / 60, pause_seconds % 60);
    let pause = if minutes > 0 { format!("{minutes}m{seconds}s") } else { format!("{seconds}s") };
    let (name, namespace, uid) = (pod.name(), pod.namespace(), pod.uid());
    format!("back-off {pause} restarting failed container={container} pod={name}_{namespace}({uid})")
}

/// Nothing of the pod runs any more: a container that the status does not show as ended never will
/// (upstream's `TerminatePod`).
fn finalise(status: &mut ApiContainer, is_plain_init: bool) {
    let ended = status.state.as_ref().is_some_and(|state| state.terminated.is_some());
    if ended {
        return;
    }
    let is_initialising = status.state.as_ref().and_then(|state| state.waiting.as_ref()).is_some();
    if is_plain_init && is_initialising && status.container_id.is_none() {
        return;
    }
    let message = "The container could not be located when the pod was terminated";
    status.state = Some(ApiState { terminated: Some(lost(message)), ..ApiState::default() });
}

fn mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref()?;
    Some(
        mounts
            .iter()
            .map(|mount| VolumeMountStatus {
                name: mount.name.clone(),
                mount_path: mount.mount_path.clone(),
                read_only: mount.read_only.filter(|read_only| *read_only),
                recursive_read_only: (mount.read_only == Some(true)).then(|| "Disabled".to_owned()),
                ..VolumeMountStatus::default()
            })
            .collect(),
    )
}

/// `started` and `ready` (upstream's `prober_manager.go`, UpdatePodStatus).
fn readiness(
    state: &State,
    container: &Container,
    is_init: bool,
    old: Option<&ApiContainer>,
    status: &mut ApiContainer,
) {
    let run = state
        .latest(&container.name, None)
        .filter(|run| state.is_running(run) && status.state.as_ref().is_some_and(|state| state.running.is_some()));
    let started = run.is_some_and(|run| is_started(container, run, state));
    status.started = Some(started);
    if is_init && !is_sidecar(container) {
        let code = status.state.as_ref().and_then(|state| state.terminated.as_ref()).map(|ended| ended.exit_code);
        status.ready = code == Some(0);
        return;
    }
    status.ready = run.is_some_and(|run| {
        started
            && (container.readiness_probe.is_none()
                || state.verdict_of(&run.id, ProbeKind::Readiness).unwrap_or_else(|| {
                    // After a restart of the agent a ready container stays ready until its probe says otherwise.
                    old.is_some_and(|old| is_of_run(old, &run.id) && old.ready)
                }))
    });
}

fn decide_phase(pod: &Pod, state: &State, status: &mut PodStatus) {
    let old = &state.status;
    let over = ending(pod, state).is_some() && state.volumes_released;
    let mut phase = phase(pod, state, status);
    if let Some(terminal) = old.phase.as_deref().filter(|phase| is_terminal(phase)) {
        // A pod does not come back from a terminal phase.
        phase = if terminal == "Failed" { "Failed" } else { "Succeeded" };
    } else if state.verdict.is_some() || (over && !is_terminal(phase)) {
        phase = "Failed";
    } else if is_terminal(phase) && is_anything_alive(state) && ending(pod, state) != Some(Ending::Finished) {
        phase = "Running";
    }
    if let Some(verdict) = &state.verdict {
        status.reason = Some(verdict.reason.clone());
        status.message = Some(verdict.message.clone());
    } else if old.phase.as_deref() == Some(phase) {
        status.reason.clone_from(&old.reason);
        status.message.clone_from(&old.message);
    }
    status.phase = Some(phase.into());
}

fn is_anything_alive(state: &State) -> bool {
    state.containers.values().any(|run| state.is_running(run))
}

/// Upstream's `getPhase`.
fn phase(pod: &Pod, state: &State, status: &PodStatus) -> &'static str {
    let is_ending = ending(pod, state) == Some(Ending::Deletion);
    let is_initialised = pod.containers().iter().any(|container| state.latest(&container.name, None).is_some());
    let (mut pending_init, mut pending_sidecar) = (0, 0);
    let (mut waiting, mut running, mut stopped, mut succeeded, mut final_stops) = (0, 0, 0, 0, 0);
    for container in pod.init_containers() {
        let one = Shown::of(status, container);
        if is_sidecar(container) {
            running += usize::from(one.running);
            pending_sidecar += usize::from((one.running && !one.started) || (one.waiting && one.last_code.is_none()));
            waiting += usize::from(one.waiting && one.last_code.is_none());
            continue;
        }
        match one.code.or(one.last_code) {
            Some(0) if one.code.is_some() => {}
            Some(code) if code != 0 && !one.running => {
                if !should_restart(pod, container, true, code) {
                    return "Failed";
                }
                pending_init += usize::from(one.code.is_none());
            }
            _ => pending_init += 1,
        }
    }
    for container in pod.containers() {
        let one = Shown::of(status, container);
        match one.code.or(one.last_code) {
            _ if one.running => running += 1,
            Some(code) => {
                stopped += 1;
                succeeded += usize::from(one.code == Some(0));
                final_stops += usize::from(is_ending || !should_restart(pod, container, false, code));
            }
            None => waiting += 1,
        }
    }
    if pending_init > 0 || (pending_sidecar > 0 && !is_initialised) || waiting > 0 {
        return "Pending";
    }
    match () {
        () if running > 0 => "Running",
        () if stopped == 0 => "Pending",
        () if stopped != final_stops => "Running",
        () if stopped == succeeded => "Succeeded",
        () => "Failed",
    }
}

/// A container as its status shows it.
struct Shown {
    running: bool,
    waiting: bool,
    started: bool,
    code: Option<i32>,
    last_code: Option<i32>,
}

impl Shown {
    fn of(status: &PodStatus, container: &Container) -> Self {
        let one = reported(status, &container.name);
        let state = one.and_then(|one| one.state.as_ref());
        let code = |state: Option<&ApiState>| state?.terminated.as_ref().map(|ended| ended.exit_code);
        Self {
            running: state.is_some_and(|state| state.running.is_some()),
            waiting: state.is_none_or(|state| state.waiting.is_some()),
            started: one.is_some_and(|one| one.started == Some(true)),
            code: code(state),
            last_code: code(one.and_then(|one| one.last_state.as_ref())),
        }
    }
}
