//! Probes: which ones should run, what one attempt says, and when a row of answers becomes a verdict.
//!
//! A verdict reaches the pod's worker as a fact; what follows from it (a restart, an unready pod) is the lifecycle's.
//! Rules of upstream's `pkg/kubelet/prober/worker.go`.

mod exec;
pub mod grpc;
pub mod http;
pub mod tcp;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sampan_base::Clock;
use sampan_runtime::Runtime;
use tokio::sync::mpsc;

use crate::events::PodEvents;
use crate::pod::lifecycle::is_started;
use crate::pod::spec::probe as probe_of;
use crate::pod::state::elapsed;
use crate::pod::{Fact, PodExt, ProbeKind, State};

/// The answer of one attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Success,
    /// With the text of the `Unhealthy` event.
    Failure(String),
    /// The attempt itself went wrong: it counts as a failure, the event says so.
    Broken(String),
}

/// Counts equal answers in a row.
#[derive(Clone, Debug, Default)]
pub struct Counter {
    last: Option<bool>,
    row: i32,
}

impl Counter {
    /// `Some` when the row has reached the probe's threshold.
    pub fn count(&mut self, probe: &Probe, healthy: bool) -> Option<bool> {
        self.row = if self.last == Some(healthy) { self.row.saturating_add(1) } else { 1 };
        self.last = Some(healthy);
        let threshold =
            if healthy { probe.success_threshold.unwrap_or(1) } else { probe.failure_threshold.unwrap_or(3) };
        (self.row >= threshold).then_some(healthy)
    }
}

/// The probes that should be running now, by container id.
pub fn wanted<'a>(pod: &'a Pod, state: &'a State) -> Vec<(String, ProbeKind, &'a Container)> {
    let deleted = pod.deletion().is_some();
    let mut wanted = Vec::new();
    for container in pod.all_containers() {
        let Some(run) = state.latest(&container.name, None).filter(|run| state.is_running(run)) else { continue };
        let started = is_started(container, run, state);
        for kind in [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness] {
            let Some(_) = probe_of(container, kind) else { continue };
            let is_startup = kind == ProbeKind::Startup;
            // A startup probe is done once it passed; the others wait for it. One that failed is on hold until the
            // container is replaced; a pod that is going away is not killed by its probes.
            let failed = !matches!(kind, ProbeKind::Readiness) && state.verdict_of(&run.id, kind) == Some(false);
            if is_startup == started || failed || (deleted && kind != ProbeKind::Readiness) {
                continue;
            }
            wanted.push((run.id.clone(), kind, container));
        }
    }
    wanted
}

/// What a probe is aimed at.
#[derive(Clone)]
pub struct Target {
    pub runtime: Arc<dyn Runtime>,
    pub clock: Clock,
    pub container_id: String,
    pub container: Container,
    pub address: Option<IpAddr>,
    pub started_at: Timestamp,
}

/// Probes until its task is aborted or the container has failed for good. `jitter` spreads the first attempts after a
/// restart of the agent.
pub async fn run(
    target: Target,
    kind: ProbeKind,
    events: PodEvents,
    jitter: Duration,
    sink: mpsc::UnboundedSender<Fact>,
) {
    let Some(probe) = probe_of(&target.container, kind).cloned() else { return };
    let seconds = |value: Option<i32>, default: u64| value.map_or(default, |value| value.max(0).unsigned_abs().into());
    let period = Duration::from_secs(seconds(probe.period_seconds, 10).max(1));
    let limit = Duration::from_secs(seconds(probe.timeout_seconds, 1).max(1));
    let delay = Duration::from_secs(seconds(probe.initial_delay_seconds, 0));
    let clock = target.clock.clone();
    clock.sleep(delay.saturating_sub(elapsed(target.started_at, clock.now())) + jitter).await;
    let mut counter = Counter::default();
    loop {
        let began = clock.instant();
        let answer = attempt(&target, &probe, limit).await;
        // An attempt that took far longer than it may have stood still with the whole machine (a laptop asleep, a
        // stopped process): its answer says nothing about the container.
        let stood_still = began.elapsed() > limit * 2 + Duration::from_secs(2);
        if !stood_still {
            let healthy = answer == Answer::Success;
            match &answer {
                Answer::Success => {}
                Answer::Failure(text) => {
                    let text = format!("{} probe failed: {text}", kind.word());
                    events.warning(Some(&target.container), "Unhealthy", &text);
                }
                Answer::Broken(text) => {
                    let text = format!("{} probe errored: {text}", kind.word());
                    events.warning(Some(&target.container), "Unhealthy", &text);
                }
            }
            if let Some(healthy) = counter.count(&probe, healthy) {
                let fact = Fact::Probe { container: target.container_id.clone(), kind, healthy };
                if sink.send(fact).is_err() || (!healthy && kind != ProbeKind::Readiness) {
                    return;
                }
            }
        }
        clock.sleep_until(began + period).await;
    }
}

async fn attempt(target: &Target, probe: &Probe, limit: Duration) -> Answer {
    if let Some(action) = &probe.exec {
        return exec::attempt(target, action, limit).await;
    }
    let work = async {
        if let Some(action) = &probe.http_get {
            http::attempt(target, action).await
        } else if let Some(action) = &probe.tcp_socket {
            tcp::attempt(target, action).await
        } else if let Some(action) = &probe.grpc {
            grpc::attempt(target, action).await
        } else {
            Answer::Success
        }
    };
    match target.clock.timeout(limit, work).await {
        Some(answer) => answer,
        None if probe.http_get.is_some() => {
            Answer::Failure("context deadline exceeded (Client.Timeout exceeded while awaiting headers)".into())
        }
        None => Answer::Failure(format!("timeout: no answer within {limit:?}")),
    }
}

/// A port by number or by the name the container gives it.
pub fn port(container: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok().filter(|port| *port > 0),
        IntOrString::String(name) => name.parse().ok().or_else(|| {
            let ports = container.ports.iter().flatten();
            let named = ports.into_iter().find(|port| port.name.as_deref() == Some(name))?;
            u16::try_from(named.container_port).ok()
        }),
    }
}

/// Where to connect: the action's host, else the pod.
pub fn host(target: &Target, host: Option<&String>) -> Option<String> {
    host.filter(|host| !host.is_empty()).cloned().or_else(|| target.address.map(|address| address.to_string()))
}

#[cfg(test)]
mod tests;
