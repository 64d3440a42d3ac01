//! One task per pod: feeds the lifecycle with what happens, performs what it plans, and keeps the status in the API up to
//! date. There is never a second worker for a pod, and within it never two operations of one key.
//!
//! It never waits for one thing while another could be done: operations run beside each other, every message and every
//! end of an operation leads to a new plan, and nothing is polled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use sampan_base::task;
use sampan_runtime::{ContainerStatus, SandboxStatus};
use tokio::sync::{mpsc, watch};

use crate::checkpoint;
use crate::events::PodEvents;
use crate::execute::{self, Context, Prepared};
use crate::node::Node;
use crate::pod::lifecycle::{CrashLoop, is_terminal, judge};
use crate::pod::state::{ProbeKind, Verdict, after};
use crate::pod::{Action, Done, Fact, PodExt, State, lifecycle, status};
use crate::probes;
use crate::publish::{self, Published};
use crate::volumes::Mounted;

/// What a worker is told.
#[derive(Debug)]
pub enum Message {
    /// The object changed.
    Pod(Arc<Pod>),
    /// The object is gone from the API.
    Gone,
    ContainerExited(String),
    SandboxExited(String),
    /// Everything the runtime has of this pod, after a gap in its events.
    Listed {
        sandboxes: Vec<SandboxStatus>,
        containers: Vec<ContainerStatus>,
    },
}

/// What others see of a running pod.
#[derive(Clone)]
pub struct Snapshot {
    pub pod: Arc<Pod>,
    pub status: Arc<PodStatus>,
    pub containers: Arc<BTreeMap<String, ContainerStatus>>,
    pub sandbox: Option<String>,
}

/// A worker as the agent knows it.
pub struct Handle {
    pub inbox: mpsc::UnboundedSender<Message>,
    pub snapshot: Arc<Mutex<Snapshot>>,
    /// Changes when nothing is left of the pod.
    pub done: watch::Receiver<bool>,
}

impl Handle {
    pub fn look(&self) -> Snapshot {
        self.snapshot.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }
}

/// What a restarted agent found of a pod.
#[derive(Debug, Default)]
pub struct Adopted {
    pub sandboxes: Vec<SandboxStatus>,
    pub containers: Vec<ContainerStatus>,
}

/// How long the first tries of a status that could not be written are apart, and the longest pause.
const PUBLISH_PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));

/// Starts the worker of a pod; with a `verdict` it fails the pod without having run anything.
pub fn spawn(node: Arc<Node>, pod: Arc<Pod>, adopted: Adopted, verdict: Option<Verdict>) -> Handle {
    let (inbox, messages) = mpsc::unbounded_channel();
    let (facts, early) = mpsc::unbounded_channel();
    let (object_sender, objects) = mpsc::unbounded_channel();
    let (done_sender, done) = watch::channel(false);
    let mut state = State { status: pod.status.clone().unwrap_or_default(), verdict, ..State::default() };
    let is_adopted = !adopted.sandboxes.is_empty();
    take(&mut state, adopted);
    let snapshot = Arc::new(Mutex::new(Snapshot {
        pod: pod.clone(),
        status: Arc::new(state.status.clone()),
        containers: Arc::default(),
        sandbox: None,
    }));
    let events = PodEvents::new(node.recorder.clone(), &pod);
    let worker = Worker {
        published: Published::new(pod.status.clone()),
        mounted: Mounted::default(),
        operations: FuturesUnordered::new(),
        publishing: None,
        publish_pause: None,
        refreshing: None,
        probes: BTreeMap::new(),
        looped: BTreeMap::new(),
        snapshot: snapshot.clone(),
        is_adopted,
        node,
        pod,
        state,
        events,
        facts,
        object_sender,
    };
    task::spawn("pod worker", async move {
        worker.run(messages, early, objects).await;
        let _ = done_sender.send(true);
    });
    Handle { inbox, snapshot, done }
}

fn take(state: &mut State, found: Adopted) {
    state.sandboxes = found.sandboxes.into_iter().map(|one| (one.id.clone(), one)).collect();
    state.containers = found.containers.into_iter().map(|one| (one.id.clone(), one)).collect();
}

struct Worker {
    node: Arc<Node>,
    pod: Arc<Pod>,
    state: State,
    events: PodEvents,
    mounted: Mounted,
    published: Published,
    operations: FuturesUnordered<BoxFuture<'static, (Done, Prepared)>>,
    publishing: Option<BoxFuture<'static, publish::Outcome>>,
    /// The pause before the next try of a status that could not be written.
    publish_pause: Option<Duration>,
    /// Volumes being brought up to date.
    refreshing: Option<BoxFuture<'static, Option<Mounted>>>,
    probes: BTreeMap<(String, ProbeKind), task::Group>,
    /// Crash loops that have been reported, by container: the run they followed.
    looped: BTreeMap<String, String>,
    snapshot: Arc<Mutex<Snapshot>>,
    is_adopted: bool,
    facts: mpsc::UnboundedSender<Fact>,
    object_sender: mpsc::UnboundedSender<()>,
}

impl Worker {
    async fn run(
        mut self,
        mut messages: mpsc::UnboundedReceiver<Message>,
        mut facts: mpsc::UnboundedReceiver<Fact>,
        mut objects: mpsc::UnboundedReceiver<()>,
    ) {
        let clock = self.node.parts.clock.clone();
        self.node.objects.follow(&self.pod, &self.object_sender);
        self.save();
        let ids: Vec<String> = self.state.containers.keys().cloned().collect();
        for id in ids {
            self.observe(&id).await;
        }
        loop {
            let wake = self.step();
            let Some(wake) = wake else { break };
            let wait = wake.map(|at| crate::pod::state::elapsed(clock.now(), at));
            // Random choice would make a run irreproducible; messages first keeps a flood of ends from starving them.
            tokio::select! {
                biased;
                message = messages.recv() => match message {
                    Some(message) => self.hear(message).await,
                    // The agent itself ends; containers stay.
                    None => return,
                },
                Some(fact) = facts.recv() => self.state.learn(fact),
                Some((done, prepared)) = self.operations.next(), if !self.operations.is_empty() => {
                    if let Some(mounted) = prepared {
                        self.mounted = mounted;
                    }
                    self.state.finish(done, clock.now());
                }
                Some(()) = objects.recv() => {
                    while objects.try_recv().is_ok() {}
                    self.objects_changed();
                }
                outcome = next(&mut self.publishing) => self.written(outcome),
                mounted = next(&mut self.refreshing) => {
                    if let Some(mounted) = mounted {
                        self.mounted = mounted;
                    }
                }
                () = sleep(&clock, self.publish_pause), if self.publishing.is_none() => {
                    self.publish();
                }
                () = sleep(&clock, wait) => {}
            }
        }
        let Self { node, pod, operations, .. } = self;
        // Pulls and the like that nobody waits for any more.
        drop(operations);
        node.objects.unfollow(pod.uid());
        clean_up(&node, &pod).await;
    }

    /// Plans, performs and publishes until nothing changes without something happening. `None`: the pod is gone;
    /// otherwise when to look again at the latest.
    fn step(&mut self) -> Option<Option<jiff::Timestamp>> {
        let clock = self.node.parts.clock.clone();
        loop {
            let now = clock.now();
            self.state.reported = self.published.is(&self.state.status);
            judge(&self.pod, &mut self.state, now);
            let plan = lifecycle::plan(&self.pod, &self.state, now);
            if plan.done {
                return None;
            }
            self.report(&plan.looping);
            let acted = !plan.actions.is_empty();
            for action in plan.actions {
                self.perform(action);
            }
            let fresh = status::compute(&self.pod, &self.state, &self.node.host_facts(), now);
            let changed = fresh != self.state.status;
            if changed {
                let phase = |status: &PodStatus| status.phase.clone().unwrap_or_default();
                let ended = is_terminal(&phase(&fresh)) && !is_terminal(&phase(&self.state.status));
                self.state.status = fresh;
                if ended {
                    self.save();
                }
            }
            if !acted && !changed {
                self.sync_probes();
                self.show();
                if self.publish_pause.is_none() {
                    self.publish();
                }
                let refresh = self.mounted.refresh_at.filter(|_| self.refreshing.is_none() && self.state.volumes_ready);
                if refresh.is_some_and(|at| at <= now) {
                    self.refresh();
                }
                let refresh = refresh.filter(|at| *at > now);
                return Some(match (plan.wake, refresh) {
                    (Some(a), Some(b)) => Some(a.min(b)),
                    (a, b) => a.or(b),
                });
            }
        }
    }

    async fn hear(&mut self, message: Message) {
        match message {
            Message::Pod(pod) => {
                // The status of the object is what others may have added conditions to; ours is newer.
                let changed = pod.metadata.generation != self.pod.metadata.generation
                    || pod.metadata.deletion_timestamp != self.pod.metadata.deletion_timestamp
                    || pod.metadata.labels != self.pod.metadata.labels
                    || pod.metadata.annotations != self.pod.metadata.annotations;
                self.pod = pod;
                if changed {
                    self.node.objects.follow(&self.pod, &self.object_sender);
                    self.save();
                    self.refresh();
                }
            }
            Message::Gone => self.state.learn(Fact::PodGone),
            Message::ContainerExited(id) => self.observe(&id).await,
            Message::SandboxExited(id) => {
                self.state.learn(Fact::SandboxLost(id.clone()));
                let inside: Vec<String> =
                    self.state.containers.values().filter(|run| run.sandbox == id).map(|run| run.id.clone()).collect();
                for id in inside {
                    self.observe(&id).await;
                }
            }
            Message::Listed { sandboxes, containers } => {
                let ids: Vec<String> = containers.iter().map(|run| run.id.clone()).collect();
                for sandbox in sandboxes {
                    self.state.learn(Fact::Sandbox(Box::new(sandbox)));
                }
                for id in ids {
                    self.observe(&id).await;
                }
            }
        }
    }

    async fn observe(&mut self, id: &str) {
        for fact in execute::observe(&self.node, &self.pod, id).await {
            self.state.learn(fact);
        }
    }

    fn perform(&mut self, action: Action) {
        let now = self.node.parts.clock.now();
        self.state.begin(&action, now);
        let sandbox = self.state.live_sandbox();
        let addresses = sandbox.and_then(|sandbox| self.state.addresses.get(&sandbox.id));
        let context = Context {
            node: self.node.clone(),
            pod: self.pod.clone(),
            events: self.events.clone(),
            mounted: self.mounted.clone(),
            addresses: addresses.cloned().unwrap_or_default(),
            netns: sandbox.and_then(|sandbox| sandbox.netns.clone()),
            early: self.facts.clone(),
        };
        tracing::debug!(pod = self.pod.full_name(), ?action, "begins");
        self.operations.push(Box::pin(execute::perform(context, action)));
    }

    /// One event for each run that crashed into a back-off.
    fn report(&mut self, looping: &[CrashLoop]) {
        for one in looping {
            if self.looped.get(&one.container) == Some(&one.run) {
                continue;
            }
            self.looped.insert(one.container.clone(), one.run.clone());
            let (name, namespace, uid) = (self.pod.name(), self.pod.namespace(), self.pod.uid());
            let message =
                format!("Back-off restarting failed container {} in pod {name}_{namespace}({uid})", one.container);
            self.events.warning(self.pod.container(&one.container), "BackOff", &message);
        }
    }

    /// Starts the probes that should run and ends the others.
    fn sync_probes(&mut self) {
        let parts = &self.node.parts;
        let mut keep = BTreeMap::new();
        for (id, kind, container) in probes::wanted(&self.pod, &self.state) {
            let key = (id, kind);
            let sandbox = self.state.live_sandbox().and_then(|sandbox| self.state.addresses.get(&sandbox.id));
            let own = sandbox.and_then(|addresses| addresses.first());
            let address = if self.pod.host_network() { self.node.config.addresses.first() } else { own };
            // An adopted pod's network is looked up first; a probe keeps the address it began with.
            if address.is_none() {
                continue;
            }
            let group = self.probes.remove(&key).unwrap_or_else(|| {
                let run = self.state.containers.get(&key.0);
                let target = probes::Target {
                    runtime: parts.runtime.clone(),
                    clock: parts.clock.clone(),
                    container_id: key.0.clone(),
                    container: container.clone(),
                    address: address.copied(),
                    started_at: run.and_then(|run| run.started_at).unwrap_or_else(|| parts.clock.now()),
                };
                // After a restart of the agent all probes would begin at once.
                let period =
                    crate::pod::spec::probe(container, kind).and_then(|probe| probe.period_seconds).unwrap_or(10);
                let spread = Duration::from_secs(period.max(1).unsigned_abs().into()).as_millis() as u64;
                let is_adopted = self.is_adopted
                    && run.is_some_and(|run| run.config.attempt == self.adopted_attempt(&run.config.name));
                let jitter = if is_adopted { Duration::from_millis(parts.dice.below(spread)) } else { Duration::ZERO };
                let mut group = task::Group::default();
                group.spawn("probe", probes::run(target, kind, self.events.clone(), jitter, self.facts.clone()));
                group
            });
            keep.insert(key, group);
        }
        self.probes = keep;
    }

    /// The attempt of a container that the status of before the restart told of.
    fn adopted_attempt(&self, name: &str) -> u32 {
        let old = self.pod.status.as_ref().and_then(|old| status::reported(old, name));
        old.and_then(|old| u32::try_from(old.restart_count).ok()).unwrap_or(0)
    }

    fn show(&self) {
        let mut shown = self.snapshot.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        shown.pod = self.pod.clone();
        if *shown.status != self.state.status {
            shown.status = Arc::new(self.state.status.clone());
        }
        if *shown.containers != self.state.containers {
            shown.containers = Arc::new(self.state.containers.clone());
        }
        shown.sandbox = self.state.live_sandbox().map(|sandbox| sandbox.id.clone());
    }

    /// Writes the status when the API has another one. One write at a time: what changes meanwhile goes with the next.
    fn publish(&mut self) {
        self.publish_pause = None;
        if self.publishing.is_none() && !self.state.gone && !self.published.is(&self.state.status) {
            let patch = self.published.patch(&self.pod, &self.state.status);
            let write =
                publish::write(self.node.parts.client.clone(), self.pod.clone(), self.state.status.clone(), patch);
            self.publishing = Some(Box::pin(write));
        }
    }

    fn written(&mut self, outcome: publish::Outcome) {
        match outcome {
            publish::Outcome::Written(status) => self.published.set(*status),
            publish::Outcome::Gone => self.state.learn(Fact::PodGone),
            publish::Outcome::Changed(base) => self.published.rebase(*base),
            publish::Outcome::Failed(error) => {
                let (first, longest) = PUBLISH_PAUSE;
                let pause = self.published.failed(first, longest);
                tracing::debug!(pod = self.pod.full_name(), %error, ?pause, "cannot write the status");
                self.publish_pause = Some(pause);
            }
        }
    }

    fn objects_changed(&mut self) {
        self.refresh();
        // Whatever waits for an object may go on at once.
        let now = self.node.parts.clock.now();
        for (op, failure) in &mut self.state.failures {
            if matches!(op, crate::pod::Op::Volumes) || failure.reason == "CreateContainerConfigError" {
                failure.retry_at = now;
            }
        }
    }

    /// Brings the volumes up to date.
    fn refresh(&mut self) {
        if !self.state.volumes_ready || self.state.volumes_released {
            return;
        }
        let (node, pod, before) = (self.node.clone(), self.pod.clone(), self.mounted.clone());
        let pause = after(node.parts.clock.now(), Duration::from_secs(60));
        self.refreshing = Some(Box::pin(async move {
            let around = node.surroundings(&pod, &[]);
            match node.volumes.prepare(&pod, &around).await {
                Ok(mounted) => Some(mounted),
                Err(error) => {
                    tracing::warn!(pod = pod.full_name(), %error, "cannot bring a volume up to date");
                    Some(Mounted { refresh_at: before.refresh_at.map(|_| pause), ..before })
                }
            }
        }));
    }

    /// Keeps the pod on disk, for an agent that starts while the API is away.
    fn save(&self) {
        let mut pod = (*self.pod).clone();
        pod.status = Some(self.state.status.clone());
        checkpoint::save(self.node.pod_directory(self.pod.uid()), pod);
    }
}

/// Removes what the pod leaves on disk.
async fn clean_up(node: &Node, pod: &Pod) {
    if let Err(error) = node.volumes.remove(pod.uid()).await {
        tracing::warn!(pod = pod.full_name(), %error, "cannot remove the pod's directory");
    }
    let logs = node.log_directory(pod);
    let removed = task::spawn_blocking(move || std::fs::remove_dir_all(logs)).await;
    if let Ok(Err(error)) = removed
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(pod = pod.full_name(), %error, "cannot remove the pod's logs");
    }
}

/// The outcome of what is in the slot, which is then empty; waits for ever when nothing is.
async fn next<T>(slot: &mut Option<BoxFuture<'static, T>>) -> T {
    match slot {
        Some(future) => {
            let outcome = future.await;
            *slot = None;
            outcome
        }
        None => std::future::pending().await,
    }
}

async fn sleep(clock: &sampan_base::Clock, pause: Option<Duration>) {
    match pause {
        Some(pause) => clock.sleep(pause).await,
        None => std::future::pending().await,
    }
}
