//! What depends on pods of other nodes: topology spread constraints, affinity and anti-affinity between pods
//! (`pkg/scheduler/framework/plugins/{podtopologyspread,interpodaffinity}`).
//!
//! A pass is prepared once per pod: for every constraint the number of matching pods in each domain. Checking a node is
//! then a lookup per constraint. Preferred terms of pods that run already do not count towards scores.

use sampan_api::labels::Labels;

use super::diagnosis::Reason;
use super::nodes::{Column, Nodes, Slot};
use super::requirements::{PodTerm, Requirements, SpreadConstraint};
use super::score::FULL;
use super::tournament::Tournament;
use super::{Class, ClassId, Engine, filters};

/// Weights of PodTopologySpread and InterPodAffinity in upstream's default profile.
const WEIGHT: i64 = 2;

/// The prepared checks for one pod.
pub struct Pass<'a> {
    spread: Vec<Spread<'a>>,
    affinity: Vec<Domains<'a>>,
    /// No pod matches the affinity terms yet and this pod does itself: it may be the first.
    first: bool,
    anti_affinity: Vec<Domains<'a>>,
    existing: Vec<Domains<'a>>,
    /// Scores: the more pods of these in the domain the worse.
    soft_spread: Vec<Domains<'a>>,
    preferred: Vec<(i64, Domains<'a>)>,
}

/// Pods counted by domain of one topology key.
struct Domains<'a> {
    column: &'a Column,
    count: Vec<u32>,
}

struct Spread<'a> {
    domains: Domains<'a>,
    /// The largest count a domain may have before this pod comes.
    limit: i64,
}

impl Domains<'_> {
    fn number(&self, slot: Slot) -> u32 {
        self.column.domain.get(slot).copied().unwrap_or(0)
    }

    /// `None`: the node is in no domain.
    fn at(&self, slot: Slot) -> Option<u32> {
        match self.number(slot) {
            0 => None,
            number => Some(self.count.get(number as usize).copied().unwrap_or(0)),
        }
    }

    fn total(&self) -> u64 {
        self.count.iter().map(|count| u64::from(*count)).sum()
    }
}

impl Pass<'_> {
    /// `None` when the node is fine.
    pub fn check(&self, slot: Slot) -> Option<Reason> {
        for spread in &self.spread {
            match spread.domains.at(slot) {
                None => return Some(Reason::SpreadLabelMissing),
                Some(count) if i64::from(count) > spread.limit => return Some(Reason::Spread),
                Some(_) => {}
            }
        }
        let reached = |domains: &Domains<'_>| match domains.at(slot) {
            None => false,
            Some(count) => count > 0 || self.first,
        };
        if !self.affinity.iter().all(reached) {
            return Some(Reason::PodAffinity);
        }
        let occupied = |domains: &Domains<'_>| domains.at(slot).is_some_and(|count| count > 0);
        if self.anti_affinity.iter().any(occupied) {
            return Some(Reason::PodAntiAffinity);
        }
        if self.existing.iter().any(occupied) {
            return Some(Reason::ExistingAntiAffinity);
        }
        None
    }

    /// The best of the nodes that fit on their own.
    pub fn best(&self, nodes: &Nodes, keys: &Tournament) -> Option<Slot> {
        let fit: Vec<Slot> =
            (0..nodes.len()).filter(|slot| keys.get(*slot) != 0 && self.check(*slot).is_none()).collect();
        let wishes: Vec<i64> = fit.iter().map(|slot| self.wish(*slot)).collect();
        let (least, most) = (wishes.iter().min().copied()?, wishes.iter().max().copied()?);
        let scale = |wish: i64| if most == least { 0 } else { WEIGHT * FULL as i64 * (wish - least) / (most - least) };
        let key = |at: usize| keys.get(fit[at]).saturating_add((scale(wishes[at]) as u64) << 32);
        (0..fit.len()).max_by_key(|at| key(*at)).map(|at| fit[at])
    }

    fn wish(&self, slot: Slot) -> i64 {
        let crowd = self.soft_spread.iter().map(|domains| i64::from(domains.at(slot).unwrap_or(u32::MAX >> 8)));
        let liked = self.preferred.iter().map(|(weight, domains)| weight * i64::from(domains.at(slot).unwrap_or(0)));
        liked.sum::<i64>() - crowd.sum::<i64>()
    }
}

impl Engine {
    /// Makes the columns that `topology` needs for this class.
    pub(super) fn want_columns(&mut self, id: ClassId) {
        let Some(requirements) = self.classes[id].as_ref().map(|class| class.requirements.clone()) else { return };
        let repelled = self.repelled(&requirements);
        let keys = requirements.spread.iter().map(|constraint| &constraint.topology_key);
        let terms = requirements.pod_affinity.iter().chain(&requirements.pod_anti_affinity);
        let preferred = requirements.preferred_pods.iter().map(|weighted| &weighted.term.topology_key);
        let repelled = repelled.iter().map(|(_, term)| &term.topology_key);
        for key in keys.chain(terms.map(|term| &term.topology_key)).chain(preferred).chain(repelled) {
            self.nodes.want_column(key);
        }
    }

    /// `None` when pods of other nodes do not matter for this class.
    pub(super) fn topology(&self, id: ClassId) -> Option<Pass<'_>> {
        let requirements = self.classes[id].as_ref()?.requirements.clone();
        let repelled = self.repelled(&requirements);
        if !requirements.is_global() && repelled.is_empty() {
            return None;
        }
        let engine = self;
        let none = Labels::new();
        let own_namespace = engine.namespaces.get(&requirements.namespace).unwrap_or(&none);
        let selects_itself =
            |term: &PodTerm| term.selects(&requirements.namespace, &requirements.labels, own_namespace);
        // Affinity counts the pods that match all terms together.
        let affinity: Vec<Domains<'_>> = requirements
            .pod_affinity
            .iter()
            .map(|term| {
                engine.count(&term.topology_key, |class| {
                    requirements.pod_affinity.iter().all(|term| engine.selects(term, class))
                })
            })
            .collect();
        let first =
            affinity.iter().all(|domains| domains.total() == 0) && requirements.pod_affinity.iter().all(selects_itself);
        let each = |term: &PodTerm| engine.count(&term.topology_key, |class| engine.selects(term, class));
        let hard: Vec<&SpreadConstraint> = requirements.spread.iter().filter(|one| one.hard).collect();
        Some(Pass {
            spread: hard.iter().map(|one| engine.spread(&requirements, one, &hard)).collect(),
            affinity,
            first,
            anti_affinity: requirements.pod_anti_affinity.iter().map(each).collect(),
            existing: repelled
                .iter()
                .map(|(class, term)| {
                    let mut domains = engine.empty(&term.topology_key);
                    engine.add(&mut domains, *class, |placed| placed.all, |_| true);
                    domains
                })
                .collect(),
            soft_spread: requirements
                .spread
                .iter()
                .filter(|one| !one.hard)
                .map(|one| engine.count_spread(&requirements, one, |_| true))
                .collect(),
            preferred: requirements.preferred_pods.iter().map(|one| (i64::from(one.weight), each(&one.term))).collect(),
        })
    }

    /// Anti-affinity terms of pods that run and that this pod would violate.
    fn repelled(&self, requirements: &Requirements) -> Vec<(ClassId, PodTerm)> {
        let none = Labels::new();
        let namespace_labels = self.namespaces.get(&requirements.namespace).unwrap_or(&none);
        let mut repelled = Vec::new();
        for id in &self.repelling {
            let Some(class) = &self.classes[*id] else { continue };
            for term in &class.requirements.pod_anti_affinity {
                if term.selects(&requirements.namespace, &requirements.labels, namespace_labels) {
                    repelled.push((*id, term.clone()));
                }
            }
        }
        repelled
    }

    fn selects(&self, term: &PodTerm, class: &Class) -> bool {
        let none = Labels::new();
        let namespace = &class.requirements.namespace;
        term.selects(namespace, &class.requirements.labels, self.namespaces.get(namespace).unwrap_or(&none))
    }

    fn empty(&self, key: &str) -> Domains<'_> {
        let column = self.nodes.column(key);
        Domains { column, count: vec![0; column.width()] }
    }

    fn add(
        &self,
        domains: &mut Domains<'_>,
        id: ClassId,
        amount: impl Fn(&super::Placed) -> u32,
        eligible: impl Fn(Slot) -> bool,
    ) {
        let Some(class) = &self.classes[id] else { return };
        for (slot, placed) in &class.placed {
            let number = domains.number(*slot) as usize;
            if number != 0 && eligible(*slot) {
                domains.count[number] += amount(placed);
            }
        }
    }

    /// All pods of the classes that `selects` accepts, by domain.
    fn count(&self, key: &str, selects: impl Fn(&Class) -> bool) -> Domains<'_> {
        let mut domains = self.empty(key);
        for (id, class) in self.classes.iter().enumerate() {
            if class.as_ref().is_some_and(|class| class.total > 0 && selects(class)) {
                self.add(&mut domains, id, |placed| placed.all, |_| true);
            }
        }
        domains
    }

    /// Pods of the own namespace that the constraint selects and that do not terminate.
    fn count_spread(
        &self,
        requirements: &Requirements,
        constraint: &SpreadConstraint,
        eligible: impl Fn(Slot) -> bool,
    ) -> Domains<'_> {
        let mut domains = self.empty(&constraint.topology_key);
        let Some(selector) = &constraint.selector else { return domains };
        for (id, class) in self.classes.iter().enumerate() {
            let Some(class) = class else { continue };
            if class.total > 0
                && class.requirements.namespace == requirements.namespace
                && selector.matches(&class.requirements.labels)
            {
                self.add(&mut domains, id, |placed| placed.live, &eligible);
            }
        }
        domains
    }

    fn spread(
        &self,
        requirements: &Requirements,
        constraint: &SpreadConstraint,
        hard: &[&SpreadConstraint],
    ) -> Spread<'_> {
        let columns: Vec<&Column> = hard.iter().map(|one| self.nodes.column(&one.topology_key)).collect();
        let eligible = |slot: Slot| {
            let Some(node) = self.nodes.shape(slot) else { return false };
            columns.iter().all(|column| column.domain.get(slot).is_some_and(|number| *number != 0))
                && (!constraint.honor_affinity || filters::matches_affinity(node, requirements))
                && (!constraint.honor_taints || filters::tolerates(node, requirements))
        };
        let domains = self.count_spread(requirements, constraint, eligible);
        let mut exists = vec![false; domains.count.len()];
        for slot in self.nodes.present().filter(|slot| eligible(*slot)) {
            exists[domains.number(slot) as usize] = true;
        }
        let counts = || domains.count.iter().zip(&exists).filter(|(_, exists)| **exists).map(|(count, _)| *count);
        let enough = counts().count() >= usize::try_from(constraint.min_domains).unwrap_or(0);
        let least = if enough { counts().min().unwrap_or(0) } else { 0 };
        let itself = constraint.selector.as_ref().is_some_and(|selector| selector.matches(&requirements.labels));
        let limit = i64::from(least) + i64::from(constraint.max_skew) - i64::from(itself);
        Spread { domains, limit }
    }
}
