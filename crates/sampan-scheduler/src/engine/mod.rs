//! The scheduling engine: where may a pod run, and where best? Pure: no IO, no clock, no async.
//!
//! Nodes stand in columns ([`nodes::Nodes`]). Pods with equal [`Requirements`] form a class. A class that is being
//! scheduled keeps one key per node (0: does not fit, else score and tie-break) in a tournament tree; a node that changes
//! is written to a log, and a class that comes up again looks only at the nodes in the part of the log it has not seen.
//! So a thousand replicas cost little more than one. What depends on pods of other nodes (topology spread, affinity
//! between pods) is decided in a second pass over the nodes that fit ([`topology`]).
//!
//! The result is a function of the calls made and of the seed: no decision follows the order of a hash map.

pub mod diagnosis;
mod filters;
mod nodes;
pub mod requirements;
pub mod resources;
mod score;
mod topology;
mod tournament;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use sampan_api::labels::Labels;

pub use diagnosis::{Diagnosis, Reason};
use nodes::{Nodes, Slot};
pub use requirements::Requirements;
use tournament::Tournament;

use crate::view::Node;

type ClassId = usize;

pub struct Engine {
    seed: u64,
    nodes: Nodes,
    /// Labels of namespaces, for `namespaceSelector`.
    namespaces: BTreeMap<String, Labels>,
    /// `None`: a free place.
    classes: Vec<Option<Class>>,
    by_requirements: HashMap<Arc<Requirements>, ClassId>,
    /// Classes with required anti-affinity that have pods on nodes: they keep others away.
    repelling: BTreeSet<ClassId>,
    pods: HashMap<String, Placement>,
    /// Nodes in the order they changed; `log_start` counts the entries cut off in front.
    log: Vec<Slot>,
    log_start: u64,
    /// Counts scheduling attempts: how recently a class was used.
    tick: u64,
}

struct Class {
    requirements: Arc<Requirements>,
    wants: Vec<(usize, i64)>,
    placed: BTreeMap<Slot, Placed>,
    total: u32,
    last_used: u64,
    evaluation: Option<Evaluation>,
}

/// Pods of one class on one node.
#[derive(Clone, Copy, Default)]
struct Placed {
    all: u32,
    /// Not terminating: topology spread counts only these.
    live: u32,
}

struct Evaluation {
    /// The log up to here is contained in `keys`.
    seen: u64,
    keys: Tournament,
}

struct Placement {
    class: ClassId,
    slot: Slot,
    live: bool,
}

/// Classes kept ready to schedule; each costs 16 bytes per node.
const EVALUATIONS_MAX: usize = 64;
/// Classes without any pod on a node that are remembered.
const IDLE_MAX: usize = 256;

impl Engine {
    /// `seed` breaks ties between equally good nodes.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            nodes: Nodes::default(),
            namespaces: BTreeMap::new(),
            classes: Vec::new(),
            by_requirements: HashMap::new(),
            repelling: BTreeSet::new(),
            pods: HashMap::new(),
            log: Vec::new(),
            log_start: 0,
            tick: 0,
        }
    }

    pub fn set_node(&mut self, node: Arc<Node>) {
        let slot = self.nodes.set(node);
        self.changed(slot);
    }

    /// Pods on it stay accounted for until they are removed themselves.
    pub fn remove_node(&mut self, name: &str) {
        if let Some(slot) = self.nodes.unset(name) {
            self.changed(slot);
        }
    }

    pub fn node_count(&self) -> usize {
        self.nodes.count()
    }

    pub fn set_namespace(&mut self, name: &str, labels: Labels) {
        self.namespaces.insert(name.to_owned(), labels);
    }

    pub fn remove_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Accounts for a pod that runs, or is assumed to run, on a node; called again it moves or updates the pod.
    /// `live` is false for a pod that terminates: it still holds its resources.
    pub fn place(&mut self, uid: &str, requirements: &Arc<Requirements>, node: &str, live: bool) {
        let class = self.class(requirements);
        let slot = self.nodes.slot(node);
        if let Some(before) = self.pods.get(uid) {
            if before.class == class && before.slot == slot && before.live == live {
                return;
            }
            self.remove(uid);
        }
        self.pods.insert(uid.to_owned(), Placement { class, slot, live });
        self.account(class, slot, live, 1);
    }

    /// Whether the pod was accounted for.
    pub fn remove(&mut self, uid: &str) -> bool {
        let Some(Placement { class, slot, live }) = self.pods.remove(uid) else { return false };
        self.account(class, slot, live, -1);
        true
    }

    fn account(&mut self, id: ClassId, slot: Slot, live: bool, sign: i64) {
        let Some(class) = self.classes[id].as_mut() else { return };
        let placed = class.placed.entry(slot).or_default();
        let step = |count: u32| if sign > 0 { count + 1 } else { count.saturating_sub(1) };
        placed.all = step(placed.all);
        if live {
            placed.live = step(placed.live);
        }
        if placed.all == 0 {
            class.placed.remove(&slot);
        }
        class.total = step(class.total);
        if !class.requirements.pod_anti_affinity.is_empty() {
            if class.total == 0 {
                self.repelling.remove(&id)
            } else {
                self.repelling.insert(id)
            };
        }
        self.nodes.account(slot, &class.requirements, &class.wants, sign);
        self.changed(slot);
    }

    fn changed(&mut self, slot: Slot) {
        self.log.push(slot);
        let keep = (self.nodes.len() * 2).max(1024);
        if self.log.len() > keep * 2 {
            let cut = self.log.len() - keep;
            self.log.drain(..cut);
            self.log_start += cut as u64;
        }
    }

    fn class(&mut self, requirements: &Arc<Requirements>) -> ClassId {
        if let Some(id) = self.by_requirements.get(requirements) {
            return *id;
        }
        self.sweep();
        let wants = requirements.requests.iter().filter(|(_, amount)| *amount > 0);
        let wants = wants.map(|(name, amount)| (self.nodes.dimension(name), amount)).collect();
        let class = Class {
            requirements: requirements.clone(),
            wants,
            placed: BTreeMap::new(),
            total: 0,
            last_used: self.tick,
            evaluation: None,
        };
        let id = self.classes.iter().position(Option::is_none).unwrap_or_else(|| {
            self.classes.push(None);
            self.classes.len() - 1
        });
        self.classes[id] = Some(class);
        self.by_requirements.insert(requirements.clone(), id);
        id
    }

    /// Forgets classes nobody needs and evaluations that have not been used for long.
    fn sweep(&mut self) {
        let mut idle: Vec<(u64, ClassId)> = Vec::new();
        let mut evaluated: Vec<(u64, ClassId)> = Vec::new();
        for (id, class) in self.classes.iter().enumerate() {
            let Some(class) = class else { continue };
            if class.total == 0 {
                idle.push((class.last_used, id));
            }
            if class.evaluation.is_some() {
                evaluated.push((class.last_used, id));
            }
        }
        let oldest = |mut all: Vec<(u64, ClassId)>, max: usize| {
            all.sort_unstable();
            all.truncate(if all.len() > max { all.len() - max / 2 } else { 0 });
            all
        };
        for (_, id) in oldest(evaluated, EVALUATIONS_MAX) {
            if let Some(class) = &mut self.classes[id] {
                class.evaluation = None;
            }
        }
        for (_, id) in oldest(idle, IDLE_MAX) {
            if let Some(class) = self.classes[id].take() {
                self.by_requirements.remove(&class.requirements);
            }
        }
    }

    /// The name of the best node for one more pod of these requirements, or why there is none.
    pub fn schedule(&mut self, requirements: &Arc<Requirements>) -> Result<String, Diagnosis> {
        self.tick += 1;
        let id = self.class(requirements);
        self.evaluate(id);
        self.want_columns(id);
        let topology = self.topology(id);
        let Some(class) = &self.classes[id] else { return Err(Diagnosis::default()) };
        let Some(evaluation) = &class.evaluation else { return Err(Diagnosis::default()) };
        let best = match &topology {
            None => evaluation.keys.best(),
            Some(topology) => topology.best(&self.nodes, &evaluation.keys),
        };
        match best.and_then(|slot| self.nodes.name(slot)) {
            Some(name) => Ok(name.to_owned()),
            None => Err(self.diagnose(class, topology.as_ref())),
        }
    }

    /// Brings the keys of a class up to date.
    fn evaluate(&mut self, id: ClassId) {
        let Some(mut class) = self.classes[id].take() else { return };
        class.last_used = self.tick;
        let now = self.log_start + self.log.len() as u64;
        let stale = class.evaluation.take().filter(|evaluation| evaluation.seen >= self.log_start);
        let evaluation = match stale {
            Some(mut evaluation) if now - evaluation.seen <= self.nodes.len() as u64 => {
                let from = (evaluation.seen - self.log_start) as usize;
                for slot in &self.log[from..] {
                    evaluation.keys.set(*slot, self.key(id, &class, *slot));
                }
                evaluation.seen = now;
                evaluation
            }
            _ => {
                let keys = (0..self.nodes.len()).map(|slot| self.key(id, &class, slot)).collect();
                Evaluation { seen: now, keys: Tournament::new(keys) }
            }
        };
        class.evaluation = Some(evaluation);
        self.classes[id] = Some(class);
    }

    fn key(&self, id: ClassId, class: &Class, slot: Slot) -> u64 {
        if filters::check(&self.nodes, slot, &class.requirements, &class.wants).is_some() {
            return 0;
        }
        let same = class.placed.get(&slot).map_or(0, |placed| placed.all);
        let score = score::score(&self.nodes, slot, &class.requirements, same);
        score::key(score, self.seed, id, slot)
    }

    fn diagnose(&self, class: &Class, topology: Option<&topology::Pass<'_>>) -> Diagnosis {
        let mut diagnosis = Diagnosis { nodes: self.nodes.count(), ..Diagnosis::default() };
        for slot in self.nodes.present() {
            match filters::check(&self.nodes, slot, &class.requirements, &class.wants) {
                Some(reasons) => diagnosis.count(&reasons),
                None => {
                    if let Some(reason) = topology.and_then(|pass| pass.check(slot)) {
                        diagnosis.count(&[reason]);
                    }
                }
            }
        }
        diagnosis
    }
}

#[cfg(test)]
mod tests;
