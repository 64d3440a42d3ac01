//! Which nodes are silent, and from which pods may be evicted. Pure; time is awake time.
//!
//! A node lives as long as its lease, or its own Ready condition, keeps changing; the times written there are not compared
//! with our clock. When **all** nodes fall silent at once the fault is more likely ours: then nobody is evicted, and once
//! one is back all get their grace period anew.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::Verdicts;
use crate::views::{Lease, Node};

/// Upstream's `node-monitor-grace-period`.
const GRACE: Duration = Duration::from_secs(50);
/// A node that has never reported gets more time to start.
const STARTUP_GRACE: Duration = Duration::from_secs(60);
/// Between two nodes of one zone that become evictable: upstream's rate of 0.1 a second.
const PAUSE: Duration = Duration::from_secs(10);
/// In a zone where most nodes are silent, if it is large; a small one waits until that is over.
const PAUSE_DISRUPTED: Duration = Duration::from_secs(100);
const LARGE_ZONE: usize = 50;

/// Status and transition time of the Ready condition as the node wrote it; `None`: it has written none since it fell silent.
pub type Said = Option<(String, Option<Timestamp>)>;

pub fn said(node: &Node) -> Said {
    // Unknown is what we wrote ourselves.
    let ready = node.condition("Ready").filter(|condition| condition.status != "Unknown")?;
    Some((ready.status.clone(), ready.last_transition_time))
}

/// What is seen of one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Sight {
    pub name: String,
    pub zone: String,
    /// Changes as long as the node lives.
    pub sign: (Option<Timestamp>, Said),
    pub ready: bool,
    /// It has said something of itself at some time.
    pub started: bool,
}

impl Sight {
    pub fn of(node: &Node, lease: Option<&Lease>) -> Self {
        let label = |key: &str| node.metadata.labels.get(key).map_or("", String::as_str);
        let ready = node.condition("Ready");
        Self {
            name: node.metadata.name.clone(),
            zone: format!("{}/{}", label("topology.kubernetes.io/region"), label("topology.kubernetes.io/zone")),
            sign: (lease.and_then(|lease| lease.spec.renew_time), said(node)),
            ready: ready.is_some_and(|condition| condition.status == "True"),
            started: ready.is_some(),
        }
    }
}

#[derive(Default)]
pub struct Health {
    nodes: BTreeMap<String, Known>,
    evict: BTreeSet<String>,
    /// When the last node of a zone became evictable.
    evicted_at: BTreeMap<String, Duration>,
    all_silent: bool,
}

struct Known {
    sight: Sight,
    changed_at: Duration,
}

impl Health {
    /// `slept`: this process did not run for a while, so silence means nothing.
    pub fn look(&mut self, sights: &[Sight], now: Duration, slept: bool) -> Verdicts {
        let present: BTreeSet<&str> = sights.iter().map(|sight| sight.name.as_str()).collect();
        self.nodes.retain(|name, _| present.contains(name.as_str()));
        for sight in sights {
            match self.nodes.get_mut(&sight.name) {
                Some(known) => {
                    if slept || known.sight.sign != sight.sign {
                        known.changed_at = now;
                    }
                    known.sight = sight.clone();
                }
                None => {
                    self.nodes.insert(sight.name.clone(), Known { sight: sight.clone(), changed_at: now });
                }
            }
        }
        let mut silent = self.silent(now);
        let all_silent = !self.nodes.is_empty() && silent.len() == self.nodes.len();
        if self.all_silent && !all_silent {
            for known in self.nodes.values_mut() {
                known.changed_at = now;
            }
            silent = self.silent(now);
        }
        self.all_silent = all_silent;
        self.choose(&silent, now);
        Verdicts { silent, evict: self.evict.clone() }
    }

    fn silent(&self, now: Duration) -> BTreeMap<String, Said> {
        let silent = |known: &&Known| {
            let grace = if known.sight.started { GRACE } else { STARTUP_GRACE };
            now.saturating_sub(known.changed_at) > grace
        };
        self.nodes.values().filter(silent).map(|known| (known.sight.name.clone(), known.sight.sign.1.clone())).collect()
    }

    /// Nodes that are not ready become evictable one after the other, zone by zone.
    fn choose(&mut self, silent: &BTreeMap<String, Said>, now: Duration) {
        let down = |known: &Known| !known.sight.ready || silent.contains_key(&known.sight.name);
        if self.all_silent {
            self.evict.clear();
            return;
        }
        self.evict.retain(|name| self.nodes.get(name).is_some_and(&down));
        let mut zones: BTreeMap<&str, Vec<&Known>> = BTreeMap::new();
        for known in self.nodes.values() {
            zones.entry(&known.sight.zone).or_default().push(known);
        }
        for (zone, nodes) in zones {
            let down: Vec<&&Known> = nodes.iter().filter(|known| down(known)).collect();
            // Upstream's partial disruption: more than two, and at least 55 of 100, but not all.
            let disrupted = down.len() > 2 && down.len() * 100 >= nodes.len() * 55 && down.len() < nodes.len();
            let pause = match disrupted {
                false => PAUSE,
                true if nodes.len() > LARGE_ZONE => PAUSE_DISRUPTED,
                true => continue,
            };
            if self.evicted_at.get(zone).is_some_and(|last| now.saturating_sub(*last) < pause) {
                continue;
            }
            let next = down.iter().map(|known| &known.sight.name).find(|name| !self.evict.contains(*name));
            if let Some(next) = next {
                self.evict.insert(next.clone());
                self.evicted_at.insert(zone.to_owned(), now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(name: &str, beat: i64, ready: bool) -> Sight {
        let renewed = Timestamp::from_second(beat).expect("a timestamp");
        Sight { name: name.into(), zone: "z".into(), sign: (Some(renewed), None), ready, started: true }
    }

    /// Every five seconds one look; nodes whose `alive` says so have renewed their lease.
    struct Run {
        health: Health,
        now: u64,
        beats: BTreeMap<String, i64>,
    }

    impl Run {
        fn new(nodes: &[&str]) -> Self {
            let beats = nodes.iter().map(|name| ((*name).to_owned(), 0)).collect();
            Self { health: Health::default(), now: 0, beats }
        }

        fn seconds(&mut self, seconds: u64, alive: &[&str]) -> Verdicts {
            let mut verdicts = Verdicts::default();
            for _ in 0..seconds / 5 {
                verdicts = self.look(alive, false);
            }
            verdicts
        }

        fn look(&mut self, alive: &[&str], slept: bool) -> Verdicts {
            self.now += 5;
            for name in alive {
                *self.beats.entry((*name).to_owned()).or_default() += 1;
            }
            let sights: Vec<Sight> = self.beats.iter().map(|(name, beat)| sight(name, *beat, true)).collect();
            self.health.look(&sights, Duration::from_secs(self.now), slept)
        }
    }

    fn names<'a>(names: impl IntoIterator<Item = &'a String>) -> Vec<&'a str> {
        names.into_iter().map(String::as_str).collect()
    }

    #[test]
    fn one_dead_node_is_noticed_after_its_grace_period() {
        let mut run = Run::new(&["a", "b", "c"]);
        run.seconds(20, &["a", "b", "c"]);
        assert_eq!(run.seconds(50, &["a", "b"]), Verdicts::default());
        let verdicts = run.seconds(5, &["a", "b"]);
        assert_eq!((names(verdicts.silent.keys()), names(&verdicts.evict)), (vec!["c"], vec!["c"]));
        assert_eq!(run.seconds(5, &["a", "b", "c"]), Verdicts::default());
    }

    #[test]
    fn nobody_is_evicted_when_all_fall_silent_and_all_get_time_when_one_is_back() {
        let mut run = Run::new(&["a", "b", "c"]);
        run.seconds(20, &["a", "b", "c"]);
        let verdicts = run.seconds(600, &[]);
        assert_eq!(names(verdicts.silent.keys()), ["a", "b", "c"]);
        assert!(verdicts.evict.is_empty());
        assert_eq!(run.seconds(45, &["a"]), Verdicts::default(), "the others may come later");
        let verdicts = run.seconds(15, &["a"]);
        assert_eq!(names(verdicts.silent.keys()), ["b", "c"]);
    }

    #[test]
    fn after_a_sleep_silence_means_nothing() {
        let mut run = Run::new(&["a", "b"]);
        run.seconds(50, &["a"]);
        assert_eq!(run.look(&["a"], true), Verdicts::default());
        assert_eq!(run.seconds(45, &["a"]), Verdicts::default());
        assert_eq!(names(run.seconds(10, &["a"]).silent.keys()), ["b"]);
    }

    #[test]
    fn a_zone_is_emptied_slowly_and_not_at_all_when_most_of_it_is_down() {
        let all = ["a", "b", "c", "d", "e", "f", "g"];
        let mut run = Run::new(&all);
        run.seconds(20, &all);
        let verdicts = run.seconds(55, &all[2..]);
        assert_eq!((verdicts.silent.len(), verdicts.evict.len()), (2, 1));
        assert_eq!(run.seconds(10, &all[2..]).evict.len(), 2);
        let mut run = Run::new(&all);
        run.seconds(20, &all);
        let verdicts = run.seconds(300, &all[..3]);
        assert_eq!((verdicts.silent.len(), verdicts.evict.len()), (4, 0));
    }
}
