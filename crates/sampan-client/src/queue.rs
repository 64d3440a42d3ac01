//! Keys that wait to be worked on: each at most once in the queue, never two workers on one key, delays and back-off per
//! key. What `k8s.io/client-go/util/workqueue` is to upstream's controllers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use sampan_base::{Clock, clock::Instant};
use tokio::sync::Notify;

/// Cheap to clone; clones share the keys.
pub struct Queue<K> {
    shared: Arc<Shared<K>>,
    clock: Clock,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), clock: self.clock.clone() }
    }
}

struct Shared<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

struct State<K> {
    ready: VecDeque<K>,
    /// Keys that need work: those in `ready` and those that were added again while a worker has them.
    dirty: BTreeSet<K>,
    processing: BTreeSet<K>,
    /// When each delayed key becomes ready; a key has one delay, the soonest.
    delayed: BTreeMap<K, Instant>,
    due: BTreeSet<(Instant, K)>,
    failures: BTreeMap<K, u32>,
}

/// A key that is being worked on. Dropping it lets the key be handed out again.
pub struct Work<K: Ord + Clone> {
    pub key: K,
    shared: Arc<Shared<K>>,
}

const BACKOFF_MIN: Duration = Duration::from_millis(5);
const BACKOFF_MAX: Duration = Duration::from_secs(60);

impl<K> Shared<K> {
    fn lock(&self) -> MutexGuard<'_, State<K>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<K: Ord + Clone> State<K> {
    fn add(&mut self, key: K) {
        if self.dirty.insert(key.clone()) && !self.processing.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn delay(&mut self, key: K, until: Instant) {
        if let Some(before) = self.delayed.get(&key).copied() {
            if before <= until {
                return;
            }
            self.due.remove(&(before, key.clone()));
        }
        self.delayed.insert(key.clone(), until);
        self.due.insert((until, key));
    }

    fn release_due(&mut self, now: Instant) {
        while let Some((until, _)) = self.due.first()
            && *until <= now
            && let Some((_, key)) = self.due.pop_first()
        {
            self.delayed.remove(&key);
            self.add(key);
        }
    }
}

impl<K: Ord + Clone> Queue<K> {
    pub fn new(clock: Clock) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: BTreeSet::new(),
            processing: BTreeSet::new(),
            delayed: BTreeMap::new(),
            due: BTreeSet::new(),
            failures: BTreeMap::new(),
        };
        Self { shared: Arc::new(Shared { state: Mutex::new(state), changed: Notify::new() }), clock }
    }

    pub fn add(&self, key: K) {
        self.shared.lock().add(key);
        self.shared.changed.notify_one();
    }

    pub fn add_after(&self, key: K, delay: Duration) {
        let until = self.clock.instant() + delay;
        self.shared.lock().delay(key, until);
        self.shared.changed.notify_one();
    }

    /// Adds the key after its own back-off: 5 ms, doubling with each call until [`Queue::forget`], 60 s at most.
    pub fn add_rate_limited(&self, key: K) {
        let delay = {
            let mut state = self.shared.lock();
            let failures = state.failures.entry(key.clone()).or_default();
            let delay = BACKOFF_MIN.saturating_mul(1 << (*failures).min(20)).min(BACKOFF_MAX);
            *failures = failures.saturating_add(1);
            delay
        };
        self.add_after(key, delay);
    }

    /// Ends the key's back-off.
    pub fn forget(&self, key: &K) {
        self.shared.lock().failures.remove(key);
    }

    /// How many keys wait, delayed ones not counted.
    pub fn len(&self) -> usize {
        self.shared.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key, when there is one. Several workers may wait here.
    pub async fn next(&self) -> Work<K> {
        loop {
            let changed = self.shared.changed.notified();
            let next_due = {
                let mut state = self.shared.lock();
                state.release_due(self.clock.instant());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.processing.insert(key.clone());
                    if !state.ready.is_empty() {
                        // One notification may stand for several keys: pass it on to the next worker.
                        self.shared.changed.notify_one();
                    }
                    return Work { key, shared: self.shared.clone() };
                }
                state.due.first().map(|(until, _)| *until)
            };
            match next_due {
                Some(until) => {
                    tokio::select! {
                        biased;
                        () = changed => {}
                        () = self.clock.sleep_until(until) => {}
                    }
                }
                None => changed.await,
            }
        }
    }
}

impl<K: Ord + Clone> Drop for Work<K> {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.processing.remove(&self.key);
        if state.dirty.contains(&self.key) {
            state.ready.push_back(self.key.clone());
            drop(state);
            self.shared.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Queue<&'static str> {
        Queue::new(Clock::simulated("2030-01-01T00:00:00Z".parse().expect("a timestamp")))
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_added_while_it_is_worked_on_comes_again_after() {
        let queue = queue();
        queue.add("a");
        queue.add("a");
        let work = queue.next().await;
        assert!(queue.is_empty());
        queue.add("a");
        assert!(queue.is_empty(), "not handed out twice at once");
        drop(work);
        assert_eq!(queue.next().await.key, "a");
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn delays_keep_the_soonest() {
        let queue = queue();
        let start = queue.clock.instant();
        queue.add_after("late", Duration::from_secs(9));
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(2));
        queue.add_after("a", Duration::from_secs(7));
        assert_eq!(queue.next().await.key, "a");
        assert_eq!(start.elapsed().as_secs(), 2);
        assert_eq!(queue.next().await.key, "late");
        assert_eq!(start.elapsed().as_secs(), 9);
    }

    #[tokio::test(start_paused = true)]
    async fn back_off_doubles_until_forgotten() {
        let queue = queue();
        let mut waits = Vec::new();
        for _ in 0..3 {
            let start = queue.clock.instant();
            queue.add_rate_limited("a");
            queue.next().await;
            waits.push(start.elapsed().as_millis());
        }
        assert_eq!(waits, [5, 10, 20]);
        queue.forget(&"a");
        let start = queue.clock.instant();
        queue.add_rate_limited("a");
        queue.next().await;
        assert_eq!(start.elapsed().as_millis(), 5);
    }
}
