//! Random histories of one pod: operations that fail or half succeed, ends, lost sandboxes, deaths of the agent, clocks
//! that jump. Whatever happens: no container runs twice at once, what ran is not run again against its policy, a status
//! does not come back from its end, and a deleted pod goes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use proptest::prelude::*;
use sampan_runtime::{ContainerConfig, ContainerState, ContainerStatus, SandboxConfig, SandboxStatus};
use serde_json::json;

use super::lifecycle::{is_terminal, judge};
use super::state::{Trouble, after};
use super::status::{HostFacts, compute, reported};
use super::{Action, Done, Fact, Op, PodExt, ProbeKind, State, plan};

#[derive(Clone, Debug)]
enum Step {
    /// An operation in flight ends.
    Finish {
        which: usize,
        ok: bool,
    },
    /// A running container ends; the agent hears of it.
    Exit {
        which: usize,
        code: i32,
    },
    LoseSandbox,
    Probe {
        which: usize,
        kind: ProbeKind,
        healthy: bool,
    },
    Delete {
        grace: i64,
    },
    Vanish,
    /// Seconds; backwards when negative.
    Pass(i64),
    /// kill -9: of what was in flight some has happened, some half, some not.
    Die {
        done: u64,
    },
    Publish,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(ProbeKind::Startup), Just(ProbeKind::Liveness), Just(ProbeKind::Readiness)];
    prop_oneof![
        12 => (0..8_usize, prop::bool::weighted(0.85)).prop_map(|(which, ok)| Step::Finish { which, ok }),
        3 => (0..4_usize, prop_oneof![Just(0), Just(1), Just(137)]).prop_map(|(which, code)| Step::Exit { which, code }),
        1 => Just(Step::LoseSandbox),
        2 => (0..4_usize, kind, any::<bool>()).prop_map(|(which, kind, healthy)| Step::Probe { which, kind, healthy }),
        1 => (0..60_i64).prop_map(|grace| Step::Delete { grace }),
        1 => Just(Step::Vanish),
        4 => (-5..700_i64).prop_map(Step::Pass),
        2 => any::<u64>().prop_map(|done| Step::Die { done }),
        4 => Just(Step::Publish),
    ]
}

fn pod(policy: &str, with_init: bool, with_sidecar: bool) -> Pod {
    let mut init = Vec::new();
    if with_sidecar {
        init.push(json!({"name": "side", "image": "i", "restartPolicy": "Always", "startupProbe": {"exec": {}}}));
    }
    if with_init {
        init.push(json!({"name": "init", "image": "i"}));
    }
    let containers = json!([{"name": "a", "image": "i", "livenessProbe": {"exec": {}}}, {"name": "b", "image": "i"}]);
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "n", "uid": "u", "generation": 1},
        "spec": {"restartPolicy": policy, "initContainers": init, "containers": containers},
    }))
    .expect("a pod")
}

/// What is really there, whatever the agent knows.
#[derive(Default)]
struct Truth {
    sandboxes: BTreeMap<String, SandboxStatus>,
    containers: BTreeMap<String, ContainerStatus>,
    /// By container: how often its process was started, and the exit codes of its ends.
    started: BTreeMap<String, u32>,
    ended: BTreeMap<String, Vec<i32>>,
    names: u32,
    /// Attempts that were created, by container and sandbox.
    attempts: BTreeSet<(String, String, u32)>,
}

struct World {
    pod: Pod,
    state: State,
    truth: Truth,
    now: Timestamp,
    flying: Vec<Action>,
    api: PodStatus,
    done: bool,
}

impl World {
    fn new(pod: Pod) -> Self {
        Self {
            pod,
            state: State::default(),
            truth: Truth::default(),
            now: Timestamp::from_second(2_000_000_000).expect("a time"),
            flying: Vec::new(),
            api: PodStatus::default(),
            done: false,
        }
    }

    fn running(&self) -> Vec<String> {
        let running = self.truth.containers.values().filter(|run| run.state == ContainerState::Running);
        running.map(|run| run.id.clone()).collect()
    }

    /// What the worker does between two happenings.
    fn settle(&mut self) {
        for _ in 0..100 {
            self.state.reported = self.api == self.state.status;
            judge(&self.pod, &mut self.state, self.now);
            let plan = plan(&self.pod, &self.state, self.now);
            assert_eq!(plan, super::plan(&self.pod, &self.state, self.now), "a plan is a function");
            if plan.done {
                assert!(self.truth.sandboxes.is_empty() && self.truth.containers.is_empty(), "something is left");
                self.done = true;
                return;
            }
            let quiet = plan.actions.is_empty();
            for action in plan.actions {
                assert!(!self.state.is_busy(&action.op()), "two operations of one key: {action:?}");
                let ending = self.pod.deletion().is_some() || self.state.gone;
                assert!(!(ending && matches!(action, Action::StartContainer { .. } | Action::RunSandbox { .. })));
                self.state.begin(&action, self.now);
                self.flying.push(action);
            }
            let fresh = compute(&self.pod, &self.state, &HostFacts::default(), self.now);
            let changed = fresh != self.state.status;
            let before = std::mem::replace(&mut self.state.status, fresh);
            check_progress(&before, &self.state.status);
            if quiet && !changed {
                return;
            }
        }
        panic!("it never settles: {:?}", self.state);
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Finish { which, ok } => {
                if !self.flying.is_empty() {
                    let action = self.flying.remove(which % self.flying.len());
                    self.finish(action, *ok);
                }
            }
            Step::Exit { which, code } => {
                let running = self.running();
                if !running.is_empty() {
                    let id = running[which % running.len()].clone();
                    self.end(&id, *code);
                    let status = self.truth.containers[&id].clone();
                    self.state.learn(Fact::Container(Box::new(status)));
                }
            }
            Step::LoseSandbox => self.lose(),
            Step::Probe { which, kind, healthy } => {
                let running = self.running();
                if !running.is_empty() {
                    let container = running[which % running.len()].clone();
                    self.state.learn(Fact::Probe { container, kind: *kind, healthy: *healthy });
                }
            }
            Step::Delete { grace } => {
                self.pod.metadata.deletion_timestamp = Some(Time(after(self.now, Duration::from_secs(30))));
                let old = self.pod.metadata.deletion_grace_period_seconds.unwrap_or(i64::MAX);
                self.pod.metadata.deletion_grace_period_seconds = Some(old.min(*grace));
            }
            Step::Vanish => self.state.learn(Fact::PodGone),
            Step::Pass(seconds) => {
                self.now = self.now.checked_add(jiff::SignedDuration::from_secs(*seconds)).expect("in range");
            }
            Step::Die { done } => self.die(*done),
            Step::Publish => self.api = self.state.status.clone(),
        }
        self.settle();
    }

    /// The newest sandbox's holder dies.
    fn lose(&mut self) {
        let newest = self.truth.sandboxes.values().filter(|one| one.ready).max_by_key(|one| one.config.attempt);
        let Some(id) = newest.map(|one| one.id.clone()) else { return };
        self.truth.sandboxes.get_mut(&id).expect("there").ready = false;
        let inside: Vec<String> =
            self.truth.containers.values().filter(|run| run.sandbox == id).map(|run| run.id.clone()).collect();
        for run in inside {
            if self.truth.containers[&run].state == ContainerState::Running {
                self.end(&run, 137);
                self.truth.containers.get_mut(&run).expect("there").state = ContainerState::Unknown;
            }
            let status = self.truth.containers[&run].clone();
            self.state.learn(Fact::Container(Box::new(status)));
        }
        self.state.learn(Fact::SandboxLost(id));
    }

    fn end(&mut self, id: &str, code: i32) {
        let run = self.truth.containers.get_mut(id).expect("there");
        run.state = ContainerState::Exited;
        run.exit_code = code;
        run.finished_at = Some(self.now);
        self.truth.ended.entry(run.config.name.clone()).or_default().push(code);
    }

    fn finish(&mut self, action: Action, ok: bool) {
        let op = action.op();
        let facts = if ok { self.happen(&action, true) } else { Vec::new() };
        let result = if ok { Ok(()) } else { Err(Trouble { reason: "ErrImagePull", message: "no".into() }) };
        self.state.finish(Done { op, facts, result }, self.now);
    }

    /// The action's effect on what is there. `whole` false: only its first half.
    fn happen(&mut self, action: &Action, whole: bool) -> Vec<Fact> {
        let truth = &mut self.truth;
        match action {
            Action::RunSandbox { attempt } => {
                assert!(truth.sandboxes.values().all(|one| !one.ready), "two sandboxes at once");
                truth.names += 1;
                let sandbox = SandboxStatus {
                    id: format!("s{}", truth.names),
                    config: SandboxConfig { attempt: *attempt, ..SandboxConfig::default() },
                    ready: true,
                    created_at: self.now,
                    netns: None,
                };
                truth.sandboxes.insert(sandbox.id.clone(), sandbox.clone());
                vec![Fact::Sandbox(Box::new(sandbox))]
            }
            Action::AttachNetwork { sandbox } => {
                vec![Fact::Addresses {
                    sandbox: sandbox.clone(),
                    addresses: vec!["10.0.0.1".parse().expect("an address")],
                }]
            }
            Action::EnsureImage { container } => {
                vec![Fact::Image { container: container.clone(), image: "sha256:i".into() }]
            }
            Action::StartContainer { container, sandbox, attempt, .. } => {
                self.start(container, sandbox, *attempt, whole)
            }
            Action::StopContainer { id, .. } => {
                if truth.containers.get(id).is_some_and(|run| run.state == ContainerState::Running) {
                    self.end(id, 143);
                }
                self.truth.containers.get(id).cloned().map(|run| Fact::Container(Box::new(run))).into_iter().collect()
            }
            Action::RemoveContainer { id } => {
                assert!(
                    truth.containers.get(id).is_none_or(|run| run.state != ContainerState::Running),
                    "removed alive"
                );
                if let Some(run) = truth.containers.remove(id).filter(|run| run.started_at.is_none()) {
                    // It never ran: its number may be used again.
                    truth.attempts.remove(&(run.config.name, run.sandbox, run.config.attempt));
                }
                vec![Fact::ContainerGone(id.clone())]
            }
            Action::StopSandbox { id } => {
                let inside: Vec<String> = truth
                    .containers
                    .values()
                    .filter(|run| run.sandbox == *id && run.state == ContainerState::Running)
                    .map(|run| run.id.clone())
                    .collect();
                inside.iter().for_each(|run| self.end(run, 137));
                if let Some(sandbox) = self.truth.sandboxes.get_mut(id) {
                    sandbox.ready = false;
                }
                let runs = self
                    .truth
                    .containers
                    .values()
                    .filter(|run| run.sandbox == *id)
                    .cloned()
                    .map(|run| Fact::Container(Box::new(run)));
                runs.chain([Fact::SandboxStopped(id.clone())]).collect()
            }
            Action::RemoveSandbox { id } => {
                truth.sandboxes.remove(id);
                truth.containers.retain(|_, run| run.sandbox != *id);
                vec![Fact::SandboxGone(id.clone())]
            }
            Action::DeletePod => vec![Fact::PodGone],
            Action::PrepareVolumes | Action::ReleaseVolumes => Vec::new(),
        }
    }

    fn start(&mut self, name: &str, sandbox: &str, attempt: u32, whole: bool) -> Vec<Fact> {
        if !self.truth.sandboxes.get(sandbox).is_some_and(|one| one.ready) {
            return vec![Fact::SandboxLost(sandbox.to_owned())];
        }
        let truth = &mut self.truth;
        let alive =
            truth.containers.values().any(|run| run.config.name == name && run.state == ContainerState::Running);
        assert!(!alive, "{name} runs twice");
        let fresh = truth.attempts.insert((name.to_owned(), sandbox.to_owned(), attempt));
        assert!(fresh, "attempt {attempt} of {name} twice in one sandbox");
        truth.names += 1;
        let mut run = ContainerStatus {
            id: format!("c{}", truth.names),
            sandbox: sandbox.to_owned(),
            config: ContainerConfig { name: name.to_owned(), attempt, ..ContainerConfig::default() },
            state: ContainerState::Created,
            image_id: String::new(),
            created_at: self.now,
            started_at: None,
            finished_at: None,
            exit_code: 0,
            oom_killed: false,
            message: String::new(),
            log_path: "log".into(),
        };
        if whole {
            self.check_restart(name);
            run.state = ContainerState::Running;
            run.started_at = Some(self.now);
            *self.truth.started.entry(name.to_owned()).or_default() += 1;
        }
        self.truth.containers.insert(run.id.clone(), run.clone());
        vec![Fact::Container(Box::new(run))]
    }

    /// Nothing runs again against its policy.
    fn check_restart(&self, name: &str) {
        if name == "side" {
            return;
        }
        let before = self.truth.started.get(name).copied().unwrap_or(0);
        let ends = self.truth.ended.get(name).map(Vec::as_slice).unwrap_or_default();
        match self.pod.restart_policy() {
            "Never" => assert_eq!(before, 0, "{name} ran already"),
            // Init containers run again in a new sandbox.
            "OnFailure" if name != "init" => assert!(!ends.contains(&0), "{name} had succeeded"),
            _ => {}
        }
    }

    fn die(&mut self, done: u64) {
        for (index, action) in std::mem::take(&mut self.flying).into_iter().enumerate() {
            match (done >> (2 * (index % 32))) & 3 {
                0 => {}
                1 if !matches!(action, Action::DeletePod) => drop(self.happen(&action, false)),
                _ if !matches!(action, Action::DeletePod) => drop(self.happen(&action, true)),
                _ => {}
            }
        }
        let gone = self.state.gone;
        self.state = State {
            sandboxes: self.truth.sandboxes.clone(),
            containers: self.truth.containers.clone(),
            status: self.api.clone(),
            gone,
            ..State::default()
        };
    }

    /// From here on all goes well: does a deleted pod go?
    fn finish_well(&mut self) {
        self.step(&Step::Delete { grace: 5 });
        for _ in 0..200 {
            if self.done {
                return;
            }
            self.step(&Step::Publish);
            if self.done {
                return;
            }
            match self.flying.is_empty() {
                false => self.step(&Step::Finish { which: 0, ok: true }),
                true => self.step(&Step::Pass(200)),
            }
        }
        panic!("a deleted pod stays: {:?} {:?}", self.state, self.flying);
    }
}

fn check_progress(before: &PodStatus, now: &PodStatus) {
    let phase = |status: &PodStatus| status.phase.clone().unwrap_or_default();
    if is_terminal(&phase(before)) {
        assert_eq!(phase(before), phase(now), "it came back from its end");
    }
    for name in ["a", "b", "init", "side"] {
        let count = |status: &PodStatus| reported(status, name).map_or(0, |one| one.restart_count);
        assert!(count(now) >= count(before), "{name} was restarted {} times, now {}", count(before), count(now));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_runs_twice_and_everything_ends(
        policy in prop_oneof![Just("Always"), Just("OnFailure"), Just("Never")],
        with_init: bool,
        with_sidecar: bool,
        steps in prop::collection::vec(step(), 0..80),
    ) {
        let mut world = World::new(pod(policy, with_init, with_sidecar));
        world.settle();
        for step in &steps {
            if world.done {
                break;
            }
            world.step(step);
        }
        if !world.done {
            world.finish_well();
        }
    }

    /// Left alone, a pod gets to run.
    #[test]
    fn a_pod_that_meets_no_trouble_runs(with_init: bool, with_sidecar: bool, order in prop::collection::vec(0..8_usize, 60)) {
        let mut world = World::new(pod("Always", with_init, with_sidecar));
        world.settle();
        for which in order {
            world.step(&Step::Finish { which, ok: true });
            for id in world.running() {
                let name = world.truth.containers[&id].config.name.clone();
                if name == "init" {
                    world.end(&id, 0);
                    let status = world.truth.containers[&id].clone();
                    world.state.learn(Fact::Container(Box::new(status)));
                } else if name == "side" {
                    world.state.learn(Fact::Probe { container: id, kind: ProbeKind::Startup, healthy: true });
                }
            }
            world.settle();
        }
        prop_assert_eq!(world.state.status.phase.as_deref(), Some("Running"));
        prop_assert!(!world.state.is_busy(&Op::Start("a".into())));
        let ready = world.state.status.conditions.iter().flatten().find(|one| one.type_ == "Ready");
        prop_assert_eq!(ready.map(|one| one.status.as_str()), Some("True"));
    }
}
