//! What the agent knows of one pod, what it is doing for it, and how both change.
//!
//! The state is rebuilt from the runtime's lists after a restart of the agent; what is lost then (back-offs, probe
//! results) only delays, it never makes a container run twice. [`State::begin`] and [`State::finish`] are the only
//! transitions, so that the simulation in the tests drives exactly what the executor drives.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodStatus;
use sampan_runtime::{ContainerState, ContainerStatus, SandboxStatus};

use super::restart::Backoff;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    /// As events spell it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Startup => "Startup",
            Self::Liveness => "Liveness",
            Self::Readiness => "Readiness",
        }
    }
}

/// What one operation is about. At most one operation of a key is in flight, which is what keeps two runs of one
/// container apart.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Volumes,
    Sandbox,
    /// By sandbox.
    Network(String),
    /// By container name.
    Image(String),
    /// By container name: create, start, postStart.
    Start(String),
    /// By container id and grace in seconds: a shorter grace may overtake a longer one.
    Stop(String, u64),
    /// By container id.
    Remove(String),
    /// By sandbox id.
    StopSandbox(String),
    /// By sandbox id.
    RemoveSandbox(String),
    Unmount,
    Delete,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    PrepareVolumes,
    RunSandbox {
        attempt: u32,
    },
    AttachNetwork {
        sandbox: String,
    },
    EnsureImage {
        container: String,
    },
    StartContainer {
        container: String,
        sandbox: String,
        attempt: u32,
        image: String,
    },
    /// Runs the preStop hook, then stops.
    StopContainer {
        id: String,
        container: String,
        grace: Duration,
        /// The text of the `Killing` event.
        message: String,
    },
    RemoveContainer {
        id: String,
    },
    StopSandbox {
        id: String,
    },
    RemoveSandbox {
        id: String,
    },
    /// Unmounts and frees what the pod's volumes hold.
    ReleaseVolumes,
    /// The final delete through the API.
    DeletePod,
}

impl Action {
    pub fn op(&self) -> Op {
        match self {
            Self::PrepareVolumes => Op::Volumes,
            Self::RunSandbox { .. } => Op::Sandbox,
            Self::AttachNetwork { sandbox } => Op::Network(sandbox.clone()),
            Self::EnsureImage { container } => Op::Image(container.clone()),
            Self::StartContainer { container, .. } => Op::Start(container.clone()),
            Self::StopContainer { id, grace, .. } => Op::Stop(id.clone(), grace.as_secs()),
            Self::RemoveContainer { id } => Op::Remove(id.clone()),
            Self::StopSandbox { id } => Op::StopSandbox(id.clone()),
            Self::RemoveSandbox { id } => Op::RemoveSandbox(id.clone()),
            Self::ReleaseVolumes => Op::Unmount,
            Self::DeletePod => Op::Delete,
        }
    }
}

/// Something that is now known to be so.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    Sandbox(Box<SandboxStatus>),
    /// The sandbox's holder is gone.
    SandboxLost(String),
    /// The sandbox has been stopped for good: nothing in it runs any more.
    SandboxStopped(String),
    SandboxGone(String),
    Addresses {
        sandbox: String,
        addresses: Vec<IpAddr>,
    },
    Container(Box<ContainerStatus>),
    ContainerGone(String),
    /// What the container left as its termination message.
    Message {
        container: String,
        text: String,
    },
    /// By container name: the id of the image to start it from.
    Image {
        container: String,
        image: String,
    },
    /// By container id: a probe's verdict has passed its threshold.
    Probe {
        container: String,
        kind: ProbeKind,
        healthy: bool,
    },
    /// The object is gone from the API, or another of the same name took its place.
    PodGone,
}

/// An operation has ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Done {
    pub op: Op,
    /// What was learnt, also when it failed.
    pub facts: Vec<Fact>,
    pub result: Result<(), Trouble>,
}

/// Why an operation failed, in the words a container's `waiting` state uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    pub reason: &'static str,
    pub message: String,
}

/// The last failure of an operation, until it succeeds.
#[derive(Clone, Debug, PartialEq)]
pub struct Failure {
    pub reason: &'static str,
    pub message: String,
    pub at: Timestamp,
    pub retry_at: Timestamp,
    pub pause: Duration,
}

/// The pod has failed as a whole: its status gets phase `Failed` with this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, Default)]
pub struct State {
    pub sandboxes: BTreeMap<String, SandboxStatus>,
    /// Sandboxes this agent has stopped.
    pub stopped: BTreeSet<String>,
    pub addresses: BTreeMap<String, Vec<IpAddr>>,
    pub containers: BTreeMap<String, ContainerStatus>,
    /// Termination messages by container id.
    pub messages: BTreeMap<String, String>,
    pub probes: BTreeMap<(String, ProbeKind), bool>,
    pub volumes_ready: bool,
    pub volumes_released: bool,
    /// By container name; used up by a start.
    pub images: BTreeMap<String, String>,
    /// What is in flight; a start carries its attempt.
    pub busy: BTreeMap<Op, u32>,
    pub failures: BTreeMap<Op, Failure>,
    /// Crash loops by container name.
    pub crashes: BTreeMap<String, Backoff>,
    pub verdict: Option<Verdict>,
    /// When stopping began, for the share of the grace period that is left to sidecars.
    pub ending_since: Option<Timestamp>,
    /// The final delete has been accepted.
    pub deleted: bool,
    /// The object is gone from the API.
    pub gone: bool,
    /// The API has the last computed status.
    pub reported: bool,
    /// The last computed status; after a restart what the API or the checkpoint had.
    pub status: PodStatus,
}

impl State {
    /// Marks an action as in flight. `now` counts its crash-loop pause.
    pub fn begin(&mut self, action: &Action, now: Timestamp) {
        let attempt = match action {
            Action::StartContainer { container, attempt, .. } => {
                self.images.remove(container);
                if let Some(finished) = self.latest(container, None).and_then(|last| last.finished_at) {
                    self.crashes.entry(container.clone()).or_default().next(finished, now);
                }
                *attempt
            }
            _ => 0,
        };
        self.busy.insert(action.op(), attempt);
    }

    pub fn finish(&mut self, done: Done, now: Timestamp) {
        self.busy.remove(&done.op);
        for fact in done.facts {
            self.learn(fact);
        }
        match done.result {
            Ok(()) => {
                self.failures.remove(&done.op);
                match done.op {
                    Op::Volumes => self.volumes_ready = true,
                    Op::Unmount => {
                        self.volumes_ready = false;
                        self.volumes_released = true;
                    }
                    Op::Delete => self.deleted = true,
                    Op::Start(container) => {
                        // A start that worked makes the earlier trouble with the image history.
                        self.failures.remove(&Op::Image(container));
                    }
                    _ => {}
                }
            }
            Err(Trouble { reason, message }) => {
                let (first, limit) = pauses(&done.op);
                let pause = match self.failures.get(&done.op) {
                    Some(last) if elapsed(last.at, now) < limit * 2 => (last.pause * 2).min(limit),
                    _ => first,
                };
                let retry_at = after(now, pause);
                self.failures.insert(done.op, Failure { reason, message, at: now, retry_at, pause });
            }
        }
    }

    pub fn learn(&mut self, fact: Fact) {
        match fact {
            Fact::Sandbox(status) => {
                self.sandboxes.insert(status.id.clone(), *status);
            }
            Fact::SandboxLost(id) => {
                if let Some(sandbox) = self.sandboxes.get_mut(&id) {
                    sandbox.ready = false;
                }
            }
            Fact::SandboxStopped(id) => {
                self.addresses.remove(&id);
                if let Some(sandbox) = self.sandboxes.get_mut(&id) {
                    sandbox.ready = false;
                }
                self.stopped.insert(id);
            }
            Fact::SandboxGone(id) => {
                self.sandboxes.remove(&id);
                self.stopped.remove(&id);
                self.addresses.remove(&id);
                self.containers.retain(|_, container| container.sandbox != id);
                self.forget_absent();
            }
            Fact::Addresses { sandbox, addresses } => {
                self.addresses.insert(sandbox, addresses);
            }
            Fact::Container(status) => {
                self.containers.insert(status.id.clone(), *status);
            }
            Fact::ContainerGone(id) => {
                self.containers.remove(&id);
                self.forget_absent();
            }
            Fact::Message { container, text } => {
                self.messages.insert(container, text);
            }
            Fact::Image { container, image } => {
                self.images.insert(container, image);
            }
            Fact::Probe { container, kind, healthy } => {
                // A verdict about a container that is not there any more says nothing about its successor.
                if self.containers.contains_key(&container) {
                    self.probes.insert((container, kind), healthy);
                }
            }
            Fact::PodGone => self.gone = true,
        }
    }

    fn forget_absent(&mut self) {
        let Self { containers, messages, probes, .. } = self;
        messages.retain(|id, _| containers.contains_key(id));
        probes.retain(|(id, _), _| containers.contains_key(id));
    }

    /// The newest sandbox, alive or not.
    pub fn newest_sandbox(&self) -> Option<&SandboxStatus> {
        self.sandboxes.values().max_by_key(|sandbox| (sandbox.config.attempt, sandbox.created_at))
    }

    /// The sandbox containers can run in.
    pub fn live_sandbox(&self) -> Option<&SandboxStatus> {
        self.newest_sandbox().filter(|sandbox| sandbox.ready && !self.stopped.contains(&sandbox.id))
    }

    /// The newest run of a container; with `sandbox` only those inside it. A run whose start is still in flight (create,
    /// start, postStart) does not count yet.
    pub fn latest(&self, name: &str, sandbox: Option<&str>) -> Option<&ContainerStatus> {
        self.runs(name, sandbox).max_by_key(|run| (run.config.attempt, run.created_at))
    }

    /// The run before the newest one.
    pub fn previous(&self, name: &str) -> Option<&ContainerStatus> {
        let latest = self.latest(name, None)?;
        self.runs(name, None).filter(|run| run.id != latest.id).max_by_key(|run| (run.config.attempt, run.created_at))
    }

    fn runs<'s, 'n>(
        &'s self,
        name: &'n str,
        sandbox: Option<&'n str>,
    ) -> impl Iterator<Item = &'s ContainerStatus> + use<'s, 'n> {
        let starting = self.busy.get(&Op::Start(name.to_owned())).copied();
        self.containers.values().filter(move |run| {
            run.config.name == name
                && starting.is_none_or(|attempt| run.config.attempt < attempt)
                && sandbox.is_none_or(|sandbox| run.sandbox == sandbox)
        })
    }

    /// Whether the process of a run may still be there.
    pub fn is_running(&self, run: &ContainerStatus) -> bool {
        run.state == ContainerState::Running && !self.stopped.contains(&run.sandbox)
    }

    /// Whether a run is over: it has ended, or its sandbox is lost and with it the exit code.
    pub fn is_over(&self, run: &ContainerStatus) -> bool {
        match run.state {
            ContainerState::Exited | ContainerState::Unknown => true,
            ContainerState::Running => self.stopped.contains(&run.sandbox),
            ContainerState::Created => false,
        }
    }

    /// The exit code of a run that is over. 137 where it is lost, as upstream reports it.
    pub fn exit_code(&self, run: &ContainerStatus) -> i32 {
        if run.state == ContainerState::Exited { run.exit_code } else { 137 }
    }

    /// What a probe last said, `None` before its first verdict.
    pub fn verdict_of(&self, container: &str, kind: ProbeKind) -> Option<bool> {
        self.probes.get(&(container.to_owned(), kind)).copied()
    }

    pub fn is_busy(&self, op: &Op) -> bool {
        self.busy.contains_key(op)
    }

    /// Whether a stop of this container with at most this grace is in flight.
    pub fn is_stopping(&self, id: &str, grace: Duration) -> bool {
        self.busy.keys().any(|op| matches!(op, Op::Stop(of, seconds) if of == id && *seconds <= grace.as_secs()))
    }
}

/// First and longest pause between tries of an operation. Images follow upstream's pull back-off; the others are short,
/// because what fails there (a busy mount, a missing ConfigMap) is usually mended by somebody within seconds.
fn pauses(op: &Op) -> (Duration, Duration) {
    match op {
        Op::Image(_) => (Duration::from_secs(10), Duration::from_secs(300)),
        Op::Volumes => (Duration::from_millis(500), Duration::from_secs(122)),
        Op::Start(_) => (Duration::from_secs(5), Duration::from_secs(60)),
        _ => (Duration::from_secs(1), Duration::from_secs(30)),
    }
}

/// The time from `since` to `now`, zero when the clock was set back.
pub fn elapsed(since: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(since)).unwrap_or_default()
}

pub fn after(now: Timestamp, pause: Duration) -> Timestamp {
    jiff::SignedDuration::try_from(pause).ok().and_then(|pause| now.checked_add(pause).ok()).unwrap_or(Timestamp::MAX)
}
