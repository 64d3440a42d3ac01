//! What to do next for one pod: a pure function of its specification, what is known of it, and the time.
//!
//! ```text
//!            volumes ──┐
//!  Run:      sandbox ──┼─► network ─► init containers in order ─► regular containers ─► (restarts, probes' kills)
//!            image   ──┘                 (sidecars stay up)
//!                                │ deletion, deadline, eviction, nothing left to run
//!                                ▼
//!  End:      stop regular containers at once ─► sidecars, last first ─► stop sandbox ─► release volumes
//!                                │ the API has the final status
//!                                ▼
//!            (pod deleted:) remove sandboxes ─► final delete ─► object gone ─► done
//! ```
//!
//! There is no stored stage: which of the two modes applies follows from the pod and the state every time
//! ([`ending`]), so a restart of the agent continues where it was. Never emitted: a start while a run of that container
//! may be alive, or a second operation of a key in flight. The order of things is upstream's
//! (`pkg/kubelet/kuberuntime/kuberuntime_manager.go`, computePodActions).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use sampan_runtime::{ContainerState, ContainerStatus};

use super::restart::should_restart;
use super::spec::{PodExt, is_sidecar, probe};
use super::state::{Action, Op, ProbeKind, State, Verdict, after, elapsed};

/// Upstream's `minimumGracePeriodInSeconds`: what a container gets at least after its preStop hook used the rest up.
pub const MINIMUM_GRACE: Duration = Duration::from_secs(2);

#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// When to plan again if nothing else happens.
    pub wake: Option<Timestamp>,
    /// Containers that wait out a crash loop now.
    pub looping: Vec<CrashLoop>,
    /// Nothing of the pod is left on this node.
    pub done: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashLoop {
    pub container: String,
    /// The run that crashed last.
    pub run: String,
    pub pause: Duration,
}

/// Why a pod is being stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Deleted through the API, or gone from it.
    Deletion,
    /// Failed as a whole: deadline, eviction, rejection.
    Verdict,
    /// Every container is over and none is to run again.
    Finished,
}

/// Fails the pod when its time is up. To be called before [`plan`].
pub fn judge(pod: &Pod, state: &mut State, now: Timestamp) {
    if state.verdict.is_none()
        && state.status.phase.as_deref().is_none_or(|phase| !is_terminal(phase))
        && let Some(end) = deadline(pod, state)
        && now >= end
    {
        state.verdict = Some(Verdict {
            reason: "DeadlineExceeded".into(),
            message: "Pod was active on the node longer than the specified deadline".into(),
        });
    }
    if state.ending_since.is_none() && ending(pod, state).is_some() {
        state.ending_since = Some(now);
    }
}

fn deadline(pod: &Pod, state: &State) -> Option<Timestamp> {
    let seconds = pod.spec_ref().active_deadline_seconds?;
    let start = state.status.start_time.as_ref()?.0;
    Some(after(start, Duration::from_secs(seconds.max(0).unsigned_abs())))
}

pub fn is_terminal(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// Whether and why the pod is to stop.
pub fn ending(pod: &Pod, state: &State) -> Option<Ending> {
    if state.gone || pod.deletion().is_some() {
        Some(Ending::Deletion)
    } else if state.verdict.is_some() {
        Some(Ending::Verdict)
    } else if state.status.phase.as_deref().is_some_and(is_terminal) || is_finished(pod, state) {
        Some(Ending::Finished)
    } else {
        None
    }
}

/// Everything that should run has run, or can't any more.
fn is_finished(pod: &Pod, state: &State) -> bool {
    let is_final = |container: &Container, is_init: bool| {
        !state.is_busy(&Op::Start(container.name.clone()))
            && state
                .latest(&container.name, None)
                .is_some_and(|run| state.is_over(run) && !should_restart(pod, container, is_init, state.exit_code(run)))
    };
    // One init container that failed for good ends the pod.
    let init_failed = pod.init_containers().iter().any(|container| {
        let failed = state.latest(&container.name, None).is_some_and(|run| state.exit_code(run) != 0);
        !is_sidecar(container) && failed && is_final(container, true)
    });
    // A sandbox is not replaced under containers that may run once only.
    let lost = pod.restart_policy() == "Never"
        && !state.containers.is_empty()
        && state.newest_sandbox().is_some_and(|sandbox| !sandbox.ready);
    init_failed
        || lost
        || (!pod.containers().is_empty() && pod.containers().iter().all(|container| is_final(container, false)))
}

/// The next actions. Those in flight and those that wait out a failure are left out.
pub fn plan(pod: &Pod, state: &State, now: Timestamp) -> Plan {
    let mut planner = Planner { pod, state, now, plan: Plan::default() };
    match ending(pod, state) {
        None => planner.run(),
        Some(why) => planner.end(why),
    }
    planner.plan
}

struct Planner<'a> {
    pod: &'a Pod,
    state: &'a State,
    now: Timestamp,
    plan: Plan,
}

/// What a walk over the containers does after one of them.
#[derive(PartialEq)]
enum Walk {
    Next,
    Wait,
}

impl Planner<'_> {
    fn wake(&mut self, at: Timestamp) {
        self.plan.wake = Some(self.plan.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Emits an action unless it is in flight or pausing after a failure.
    fn act(&mut self, action: Action) {
        let op = action.op();
        if self.state.is_busy(&op) {
            return;
        }
        match self.state.failures.get(&op) {
            Some(failure) if failure.retry_at > self.now => {
                let (at, retry) = (failure.at, failure.retry_at);
                // Half-way, ErrImagePull turns into ImagePullBackOff: the status has to be made again.
                let half = after(at, failure.pause / 2);
                self.wake(if matches!(op, Op::Image(_)) && half > self.now { half } else { retry });
            }
            _ => self.plan.actions.push(action),
        }
    }

    fn run(&mut self) {
        if let Some(end) = deadline(self.pod, self.state) {
            self.wake(end);
        }
        if !self.state.volumes_ready {
            self.act(Action::PrepareVolumes);
        }
        let sandbox = self.state.live_sandbox().map(|sandbox| sandbox.id.clone());
        match &sandbox {
            None => self.replace_sandbox(),
            Some(id) => {
                if !self.pod.host_network() && !self.state.addresses.contains_key(id) {
                    self.act(Action::AttachNetwork { sandbox: id.clone() });
                }
            }
        }
        self.remove_superseded(sandbox.as_deref());
        let initialised = sandbox.as_deref().is_some_and(|sandbox| {
            self.pod.containers().iter().any(|container| {
                self.state.latest(&container.name, Some(sandbox)).is_some()
                    || self.state.is_busy(&Op::Start(container.name.clone()))
            })
        });
        let init = self.pod.init_containers();
        for (index, container) in init.iter().enumerate() {
            let later_began = init[index + 1..]
                .iter()
                .any(|later| sandbox.as_deref().is_some_and(|id| self.state.latest(&later.name, Some(id)).is_some()));
            if self.init_container(container, sandbox.as_deref(), initialised || later_began) == Walk::Wait {
                return;
            }
        }
        for container in self.pod.containers() {
            if self.regular_container(container, sandbox.as_deref()) == Walk::Wait {
                return;
            }
        }
    }

    fn replace_sandbox(&mut self) {
        let mut attempt = 0;
        if let Some(old) = self.state.newest_sandbox() {
            if !self.state.stopped.contains(&old.id) {
                // Whatever is left of it must be dead before a second one may run the same containers.
                self.act(Action::StopSandbox { id: old.id.clone() });
                return;
            }
            attempt = old.config.attempt + 1;
        }
        self.act(Action::RunSandbox { attempt });
    }

    /// Of every container the newest run and the one before it are kept (for its state and `logs --previous`), of lost
    /// sandboxes nothing once all their containers have run again.
    fn remove_superseded(&mut self, sandbox: Option<&str>) {
        let Some(sandbox) = sandbox else { return };
        for run in self.state.containers.values() {
            let newer = self
                .state
                .containers
                .values()
                .filter(|other| other.config.name == run.config.name && other.config.attempt > run.config.attempt);
            if !self.state.is_running(run) && run.sandbox == sandbox && newer.count() >= 2 {
                self.act(Action::RemoveContainer { id: run.id.clone() });
            }
        }
        for old in self.state.sandboxes.keys().filter(|id| *id != sandbox && self.state.stopped.contains(*id)) {
            let superseded = self
                .state
                .containers
                .values()
                .filter(|run| run.sandbox == *old)
                .all(|run| self.state.latest(&run.config.name, Some(sandbox)).is_some());
            if superseded {
                self.act(Action::RemoveSandbox { id: old.clone() });
            }
        }
    }

    /// `passed`: something after this init container has begun already.
    fn init_container(&mut self, container: &Container, sandbox: Option<&str>, passed: bool) -> Walk {
        let run = sandbox.and_then(|id| self.state.latest(&container.name, Some(id)));
        if is_sidecar(container) {
            let Some(run) = run.filter(|run| self.state.is_running(run)) else {
                self.start(container, true, sandbox);
                return if passed { Walk::Next } else { Walk::Wait };
            };
            self.check_probes(container, run, true);
            return if passed || is_started(container, run, self.state) { Walk::Next } else { Walk::Wait };
        }
        if passed {
            return Walk::Next;
        }
        match run {
            Some(run) if self.state.is_running(run) => Walk::Wait,
            Some(run) if self.state.is_over(run) && self.state.exit_code(run) == 0 => Walk::Next,
            _ => {
                self.start(container, true, sandbox);
                Walk::Wait
            }
        }
    }

    fn regular_container(&mut self, container: &Container, sandbox: Option<&str>) -> Walk {
        let run = self.state.latest(&container.name, None);
        if let Some(run) = run
            && self.state.is_running(run)
        {
            self.check_probes(container, run, false);
            return Walk::Next;
        }
        if let Some(run) = run
            && self.state.is_over(run)
            && !should_restart(self.pod, container, false, self.state.exit_code(run))
        {
            return Walk::Next;
        }
        self.start(container, false, sandbox);
        // Containers start one after the other, in order: who wants a postStart hook to have run before the next
        // container relies on it. A container whose image can't be had holds nobody up.
        let image = Op::Image(container.name.clone());
        let start = Op::Start(container.name.clone());
        let failed = self.state.failures.contains_key(&image) || self.state.failures.contains_key(&start);
        let first = run.is_none() && !failed;
        let starting = self.state.is_busy(&start);
        if starting || (first && sandbox.is_some()) { Walk::Wait } else { Walk::Next }
    }

    /// Brings a container that does not run a step closer to running.
    fn start(&mut self, container: &Container, is_init: bool, sandbox: Option<&str>) {
        let name = &container.name;
        if self.state.is_busy(&Op::Start(name.clone())) {
            return;
        }
        let last = self.state.latest(name, None);
        let mut attempt = 0;
        if let Some(run) = last {
            if run.state == ContainerState::Created && !self.state.stopped.contains(&run.sandbox) {
                // Left by an agent that died between create and start. It must be gone before it can't be told apart.
                self.act(Action::RemoveContainer { id: run.id.clone() });
                return;
            }
            attempt = run.config.attempt + 1;
            let finished = run.finished_at.unwrap_or(run.created_at);
            if run.state != ContainerState::Created
                && let Some((until, pause)) =
                    self.state.crashes.get(name).and_then(|crash| crash.wait(finished, self.now))
                && !(is_init && self.state.exit_code(run) == 0)
            {
                self.plan.looping.push(CrashLoop { container: name.clone(), run: run.id.clone(), pause });
                self.wake(until);
                return;
            }
        }
        // What ran in a sandbox that is gone is known from the status only.
        attempt = attempt.max(attempts_reported(self.state, name));
        let Some(image) = self.state.images.get(name) else {
            self.act(Action::EnsureImage { container: name.clone() });
            return;
        };
        let Some(sandbox) = sandbox else { return };
        let networked = self.pod.host_network() || self.state.addresses.contains_key(sandbox);
        if networked && self.state.volumes_ready {
            self.act(Action::StartContainer {
                container: name.clone(),
                sandbox: sandbox.into(),
                attempt,
                image: image.clone(),
            });
        }
    }

    /// Stops a running container that a probe gave up on.
    fn check_probes(&mut self, container: &Container, run: &ContainerStatus, is_init: bool) {
        for (kind, word) in [(ProbeKind::Liveness, "liveness"), (ProbeKind::Startup, "startup")] {
            if self.state.verdict_of(&run.id, kind) != Some(false) {
                continue;
            }
            let again = if should_restart(self.pod, container, is_init, 137) { ", will be restarted" } else { "" };
            let own = probe(container, kind).and_then(|probe| probe.termination_grace_period_seconds);
            let grace =
                own.map_or_else(|| self.pod.grace(), |seconds| Duration::from_secs(seconds.max(1).unsigned_abs()));
            let message = format!("Container {} failed {word} probe{again}", container.name);
            self.stop(run, grace, message);
            return;
        }
    }

    fn stop(&mut self, run: &ContainerStatus, grace: Duration, message: String) {
        if !self.state.is_stopping(&run.id, grace) {
            self.act(Action::StopContainer { id: run.id.clone(), container: run.config.name.clone(), grace, message });
        }
    }

    fn end(&mut self, why: Ending) {
        let grace = self.pod.grace();
        if self.stop_containers(grace) == Walk::Wait {
            return;
        }
        let alive: Vec<&String> = self.state.sandboxes.keys().filter(|id| !self.state.stopped.contains(*id)).collect();
        for id in alive.iter().filter(|id| !self.state.is_busy(&Op::Network((**id).clone()))) {
            self.act(Action::StopSandbox { id: (*id).clone() });
        }
        if !alive.is_empty() || self.state.is_busy(&Op::Sandbox) {
            return;
        }
        if !self.state.volumes_released {
            if !self.state.is_busy(&Op::Volumes) {
                self.act(Action::ReleaseVolumes);
            }
            return;
        }
        // Dead containers of a pod that stays in the API keep their logs and exit codes.
        if why != Ending::Deletion || !(self.state.reported || self.state.gone) {
            return;
        }
        for id in self.state.sandboxes.keys() {
            self.act(Action::RemoveSandbox { id: id.clone() });
        }
        if !self.state.sandboxes.is_empty() {
            return;
        }
        if self.state.gone {
            self.plan.done = self.state.busy.keys().all(|op| matches!(op, Op::Image(_) | Op::Delete));
        } else if !self.state.deleted {
            self.act(Action::DeletePod);
        }
    }

    /// Regular containers all at once; sidecars after them, in the reverse of their order. `Next` once none can run.
    fn stop_containers(&mut self, grace: Duration) -> Walk {
        let sidecars: Vec<&str> = self
            .pod
            .init_containers()
            .iter()
            .filter(|container| is_sidecar(container))
            .map(|container| container.name.as_str())
            .collect();
        let is_sidecar_run = |run: &ContainerStatus| sidecars.contains(&run.config.name.as_str());
        // All runs, those whose start is in flight included: stopping the process ends a hanging postStart hook.
        let running: Vec<&ContainerStatus> =
            self.state.containers.values().filter(|run| self.state.is_running(run)).collect();
        let mut waiting = self.state.busy.keys().any(|op| matches!(op, Op::Start(_)));
        for run in running.iter().filter(|run| !is_sidecar_run(run)) {
            self.stop(run, grace, format!("Stopping container {}", run.config.name));
            waiting = true;
        }
        if waiting {
            return Walk::Wait;
        }
        let spent = self.state.ending_since.map_or(Duration::ZERO, |since| elapsed(since, self.now));
        for name in sidecars.iter().rev() {
            let Some(run) = running.iter().find(|run| run.config.name == *name) else { continue };
            // One stop of a sidecar at a time is enough: what is left of the grace shrinks with every plan.
            if !self.state.is_stopping(&run.id, grace) {
                let left = grace.saturating_sub(spent).max(MINIMUM_GRACE.min(grace));
                self.stop(run, left, format!("Stopping container {name}"));
            }
            return Walk::Wait;
        }
        Walk::Next
    }
}

/// Whether a running container counts as started: its startup probe has passed, or it has none. After a restart of the
/// agent the status of before is believed until the probe has spoken.
pub fn is_started(container: &Container, run: &ContainerStatus, state: &State) -> bool {
    if container.startup_probe.is_none() {
        return true;
    }
    state.verdict_of(&run.id, ProbeKind::Startup).unwrap_or_else(|| {
        super::status::reported(&state.status, &container.name)
            .is_some_and(|old| super::status::is_of_run(old, &run.id) && old.started == Some(true))
    })
}

/// How many runs of a container the published status tells of.
fn attempts_reported(state: &State, name: &str) -> u32 {
    let Some(old) = super::status::reported(&state.status, name) else { return 0 };
    let ran = old.container_id.as_deref().is_some_and(|id| !id.is_empty());
    if ran { u32::try_from(old.restart_count).unwrap_or(0) + 1 } else { 0 }
}
