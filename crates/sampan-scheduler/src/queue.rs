//! Which pod comes next: active, backing off, unschedulable or gated. Pure; time comes in with the calls.
//!
//! ```text
//!   add ──▶ active ──pop──▶ (being scheduled) ──failed──▶ unschedulable ──change that may help──▶ backing off ─┐
//!             ▲ ▲                                └─error─▶ backing off                                        │
//!             │ └────────────────── back-off over, or nothing else to do ─────────────────────────────────────┘
//!           gated (until its gates are open)
//! ```
//! Higher priority first, then first come, first served. The rules are those of upstream's scheduling queue.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use sampan_base::clock::Instant;
use sampan_client::informer::Key;

use crate::engine::diagnosis::Wake;

const BACKOFF_MIN: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);
/// A pod nobody woke is tried again after this time, in case a rule of waking missed something.
const UNSCHEDULABLE_MAX: Duration = Duration::from_secs(300);

/// The position among active pods.
type Rank = (Reverse<i32>, u64);

#[derive(Debug)]
struct Waiting {
    rank: Rank,
    attempts: u32,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Active,
    /// `early`: may be taken before its time when nothing else waits.
    Backoff {
        until: Instant,
        early: bool,
    },
    Unschedulable {
        failed_at: Instant,
        wakes: Wake,
    },
    Gated,
    /// Handed out; `woken` collects the changes since.
    InFlight {
        woken: Wake,
    },
}

/// The pods that wait for a node.
#[derive(Default)]
pub struct PodQueue {
    pods: BTreeMap<Key, Waiting>,
    active: BTreeSet<(Rank, Key)>,
    backoff: BTreeSet<(Instant, Key)>,
    /// Unschedulable or being scheduled: those that changes are told to.
    parked: BTreeSet<Key>,
    arrivals: u64,
}

impl PodQueue {
    /// A pod came or changed. A known pod keeps its place, unless the change may help it (`changed`) or it is gated.
    pub fn add(&mut self, key: &Key, priority: i32, gated: bool, changed: bool, now: Instant) {
        let arrival = self.arrivals;
        self.arrivals += 1;
        let (rank, attempts, place) = match self.pods.get(key) {
            None => ((Reverse(priority), arrival), 0, None),
            Some(waiting) => ((Reverse(priority), waiting.rank.1), waiting.attempts, Some(waiting.place)),
        };
        let place = match place {
            _ if gated => Place::Gated,
            None | Some(Place::Gated) => Place::Active,
            Some(Place::Unschedulable { failed_at, .. }) if changed => backed_off(failed_at, attempts, now),
            Some(place) => place,
        };
        self.set(key, Waiting { rank, attempts, place });
    }

    /// The pod is bound, deleted or no longer ours.
    pub fn remove(&mut self, key: &Key) {
        if let Some(waiting) = self.pods.remove(key) {
            self.unlist(key, &waiting);
        }
    }

    /// The next pod to schedule. It counts as being scheduled until `failed`, `error` or `remove`.
    pub fn pop(&mut self, now: Instant) -> Option<Key> {
        self.release(now);
        let key = match self.active.first() {
            Some((_, key)) => key.clone(),
            None => self.first_early()?,
        };
        let Waiting { rank, attempts, .. } = self.pods.get(&key)?;
        let place = Place::InFlight { woken: Wake::default() };
        let waiting = Waiting { rank: *rank, attempts: attempts + 1, place };
        self.set(&key, waiting);
        Some(key)
    }

    fn first_early(&self) -> Option<Key> {
        let early = |key: &Key| matches!(self.pods.get(key)?.place, Place::Backoff { early: true, .. }).then_some(());
        self.backoff.iter().map(|(_, key)| key).find(|key| early(key).is_some()).cloned()
    }

    /// No node takes the pod; a change of a kind in `wakes` may help.
    pub fn failed(&mut self, key: &Key, wakes: Wake, now: Instant) {
        let Some(Waiting { rank, attempts, place: Place::InFlight { woken } }) = self.pods.get(key) else { return };
        let place = if woken.contains(wakes) {
            backed_off(now, *attempts, now)
        } else {
            Place::Unschedulable { failed_at: now, wakes }
        };
        let waiting = Waiting { rank: *rank, attempts: *attempts, place };
        self.set(key, waiting);
    }

    /// Binding failed: try again after the back-off.
    pub fn error(&mut self, key: &Key, now: Instant) {
        let Some(Waiting { rank, attempts, .. }) = self.pods.get(key) else { return };
        let place = Place::Backoff { until: now + backoff(*attempts), early: false };
        let waiting = Waiting { rank: *rank, attempts: *attempts, place };
        self.set(key, waiting);
    }

    /// Something happened that may help pods that wait for it.
    pub fn wake(&mut self, event: Wake, now: Instant) {
        let mut moved = Vec::new();
        for key in &self.parked {
            match self.pods.get_mut(key).map(|waiting| &mut waiting.place) {
                Some(Place::InFlight { woken }) => *woken = *woken | event,
                Some(Place::Unschedulable { failed_at, wakes }) if wakes.contains(event) => {
                    moved.push((key.clone(), *failed_at));
                }
                _ => {}
            }
        }
        for (key, failed_at) in moved {
            self.move_on(&key, failed_at, now);
        }
    }

    fn move_on(&mut self, key: &Key, failed_at: Instant, now: Instant) {
        let Some(Waiting { rank, attempts, .. }) = self.pods.get(key) else { return };
        let waiting = Waiting { rank: *rank, attempts: *attempts, place: backed_off(failed_at, *attempts, now) };
        self.set(key, waiting);
    }

    /// When `pop` may have something new without any other call.
    pub fn next_due(&self) -> Option<Instant> {
        let backoff = self.backoff.first().map(|(until, _)| *until);
        let flush = self.parked.iter().filter_map(|key| self.flush_at(key));
        backoff.into_iter().chain(flush).min()
    }

    fn release(&mut self, now: Instant) {
        while let Some((until, key)) = self.backoff.first().cloned()
            && until <= now
        {
            let Some(Waiting { rank, attempts, .. }) = self.pods.get(&key) else {
                self.backoff.remove(&(until, key));
                continue;
            };
            let waiting = Waiting { rank: *rank, attempts: *attempts, place: Place::Active };
            self.set(&key, waiting);
        }
        if !self.active.is_empty() {
            return;
        }
        let stuck = |key: &&Key| self.flush_at(key).is_some_and(|flush| flush <= now);
        let stuck: Vec<Key> = self.parked.iter().filter(stuck).cloned().collect();
        for key in stuck {
            self.move_on(&key, now - UNSCHEDULABLE_MAX, now);
        }
    }

    fn flush_at(&self, key: &Key) -> Option<Instant> {
        match self.pods.get(key)?.place {
            Place::Unschedulable { failed_at, .. } => Some(failed_at + UNSCHEDULABLE_MAX),
            _ => None,
        }
    }

    fn set(&mut self, key: &Key, waiting: Waiting) {
        if let Some(before) = self.pods.remove(key) {
            self.unlist(key, &before);
        }
        match waiting.place {
            Place::Active => {
                self.active.insert((waiting.rank, key.clone()));
            }
            Place::Backoff { until, .. } => {
                self.backoff.insert((until, key.clone()));
            }
            Place::Unschedulable { .. } | Place::InFlight { .. } => {
                self.parked.insert(key.clone());
            }
            Place::Gated => {}
        }
        self.pods.insert(key.clone(), waiting);
    }

    fn unlist(&mut self, key: &Key, waiting: &Waiting) {
        match waiting.place {
            Place::Active => {
                self.active.remove(&(waiting.rank, key.clone()));
            }
            Place::Backoff { until, .. } => {
                self.backoff.remove(&(until, key.clone()));
            }
            Place::Unschedulable { .. } | Place::InFlight { .. } => {
                self.parked.remove(key);
            }
            Place::Gated => {}
        }
    }
}

fn backoff(attempts: u32) -> Duration {
    BACKOFF_MIN.saturating_mul(1 << attempts.saturating_sub(1).min(10)).min(BACKOFF_MAX)
}

fn backed_off(failed_at: Instant, attempts: u32, now: Instant) -> Place {
    let until = failed_at + backoff(attempts);
    if until <= now { Place::Active } else { Place::Backoff { until, early: true } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> Key {
        Key::new("default", name)
    }

    fn start() -> Instant {
        Instant::now()
    }

    fn names(queue: &mut PodQueue, now: Instant) -> Vec<String> {
        std::iter::from_fn(|| queue.pop(now)).map(|key| key.name).collect()
    }

    #[test]
    fn priority_first_then_arrival() {
        let now = start();
        let mut queue = PodQueue::default();
        for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
            queue.add(&key(name), priority, false, false, now);
        }
        queue.add(&key("a"), 0, false, true, now);
        assert_eq!(names(&mut queue, now), ["b", "d", "a", "c"]);
    }

    #[test]
    fn only_a_change_that_may_help_wakes() {
        let now = start();
        let mut queue = PodQueue::default();
        queue.add(&key("a"), 0, false, false, now);
        let popped = queue.pop(now).expect("a");
        queue.failed(&popped, Wake::FREED, now);
        assert_eq!(queue.pop(now), None);
        queue.wake(Wake::NODES, now);
        assert_eq!(queue.pop(now + Duration::from_secs(2)), None);
        queue.wake(Wake::FREED, now);
        assert_eq!(queue.pop(now), Some(key("a")), "nothing else to do: before its back-off is over");
    }

    #[test]
    fn a_change_during_the_attempt_is_not_lost() {
        let now = start();
        let mut queue = PodQueue::default();
        queue.add(&key("a"), 0, false, false, now);
        let popped = queue.pop(now).expect("a");
        queue.wake(Wake::NODES, now);
        queue.failed(&popped, Wake::NODES | Wake::FREED, now);
        assert_eq!(queue.next_due(), Some(now + Duration::from_secs(1)));
        assert_eq!(queue.pop(now), Some(key("a")));
    }

    #[test]
    fn errors_back_off_and_double() {
        let mut now = start();
        let mut queue = PodQueue::default();
        queue.add(&key("a"), 0, false, false, now);
        for seconds in [1, 2, 4, 8, 10, 10] {
            assert_eq!(queue.pop(now), Some(key("a")));
            queue.error(&key("a"), now);
            assert_eq!(queue.pop(now), None, "not early after an error");
            assert_eq!(queue.next_due(), Some(now + Duration::from_secs(seconds)));
            now += Duration::from_secs(seconds);
        }
    }

    #[test]
    fn gates_hold_until_they_open() {
        let now = start();
        let mut queue = PodQueue::default();
        queue.add(&key("a"), 0, true, false, now);
        queue.wake(Wake::NODES, now);
        assert_eq!(queue.pop(now), None);
        queue.add(&key("a"), 0, false, true, now);
        assert_eq!(queue.pop(now), Some(key("a")));
        queue.remove(&key("a"));
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn a_forgotten_pod_is_tried_again_after_five_minutes() {
        let now = start();
        let mut queue = PodQueue::default();
        queue.add(&key("a"), 0, false, false, now);
        let popped = queue.pop(now).expect("a");
        queue.failed(&popped, Wake::NODES, now);
        assert_eq!(queue.next_due(), Some(now + UNSCHEDULABLE_MAX));
        assert_eq!(queue.pop(now + UNSCHEDULABLE_MAX), Some(key("a")));
    }
}
