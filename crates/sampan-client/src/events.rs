//! Events about objects, as `kubectl describe` shows them. Recording never blocks and never fails the caller: events go
//! through a bounded queue to one task; what does not fit is dropped and counted in the log.
//!
//! Equal events (same object, reason, text and reporter) within ten minutes become one with a count, and an object that
//! makes many is slowed down: the aggregation and the spam filter of upstream's `client-go/tools/record`, in small.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use sampan_base::{Clock, Dice, clock::Instant, task};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::api::{Target, encode};
use crate::{Client, PatchKind, WriteOptions};

/// The object an event is about.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    pub api_version: String,
    pub kind: String,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// `spec.containers{web}`, or empty.
    pub field_path: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Normal,
    Warning,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Occurrence {
    about: Reference,
    severity: Severity,
    reason: String,
    message: String,
}

/// Records events under one component name. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Occurrence>,
}

/// How many events may wait to be written.
const QUEUE: usize = 1000;
/// Equal events within this time count up one event object.
const MEMORY: Duration = Duration::from_secs(600);
/// Upstream's spam filter: a burst of 25 for each object, one more every five minutes.
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;

impl Recorder {
    /// `component` is `source.component`, `host` the node for node-bound components (else empty).
    pub fn spawn(client: Client, component: &str, host: &str, clock: Clock, dice: Dice) -> Self {
        let (queue, receiver) = mpsc::channel(QUEUE);
        let writer = Writer {
            client,
            component: component.into(),
            host: host.into(),
            clock,
            dice,
            named: 0,
            recent: BTreeMap::new(),
            budgets: BTreeMap::new(),
        };
        task::spawn("event recorder", writer.run(receiver));
        Self { queue }
    }

    pub fn normal(&self, about: &Reference, reason: &str, message: impl Into<String>) {
        self.record(about, Severity::Normal, reason, message.into());
    }

    pub fn warning(&self, about: &Reference, reason: &str, message: impl Into<String>) {
        self.record(about, Severity::Warning, reason, message.into());
    }

    fn record(&self, about: &Reference, severity: Severity, reason: &str, message: String) {
        let occurrence = Occurrence { about: about.clone(), severity, reason: reason.into(), message };
        if let Err(error) = self.queue.try_send(occurrence) {
            tracing::warn!(%error, reason, object = about.name, "an event was dropped");
        }
    }
}

struct Recent {
    name: String,
    count: u32,
    last: Instant,
}

struct Budget {
    tokens: f64,
    at: Instant,
}

struct Writer {
    client: Client,
    component: String,
    host: String,
    clock: Clock,
    dice: Dice,
    /// The number in the name of the last event.
    named: u64,
    recent: BTreeMap<Occurrence, Recent>,
    budgets: BTreeMap<Reference, Budget>,
}

impl Writer {
    async fn run(mut self, mut receiver: mpsc::Receiver<Occurrence>) {
        while let Some(occurrence) = receiver.recv().await {
            self.forget_old();
            if self.spend(&occurrence.about) {
                self.write(occurrence).await;
            }
        }
    }

    fn forget_old(&mut self) {
        let now = self.clock.instant();
        self.recent.retain(|_, recent| now - recent.last < MEMORY);
        self.budgets.retain(|_, budget| {
            budget.tokens + (now - budget.at).as_secs_f64() * REFILL_PER_SECOND < BURST || now - budget.at < MEMORY
        });
    }

    fn spend(&mut self, about: &Reference) -> bool {
        let now = self.clock.instant();
        let budget = self.budgets.entry(about.clone()).or_insert(Budget { tokens: BURST, at: now });
        let refilled = budget.tokens + (now - budget.at).as_secs_f64() * REFILL_PER_SECOND;
        budget.at = now;
        budget.tokens = refilled.min(BURST);
        let allowed = budget.tokens >= 1.0;
        if allowed {
            budget.tokens -= 1.0;
        }
        allowed
    }

    async fn write(&mut self, occurrence: Occurrence) {
        let at = self.clock.now();
        let namespace = namespace(&occurrence.about);
        if let Some(recent) = self.recent.get_mut(&occurrence) {
            recent.count += 1;
            recent.last = self.clock.instant();
            let patch = json!({"count": recent.count, "lastTimestamp": seconds(at)});
            let target = events(&namespace).name(&recent.name);
            let patched = self.client.patch::<Value>(&target, PatchKind::Merge, &patch, &WriteOptions::default()).await;
            match patched {
                Ok(_) => return,
                // It has expired on the server: write a new one below.
                Err(error) if error.is_not_found() => {}
                Err(error) => return tracing::debug!(%error, "cannot count an event up"),
            }
        }
        // Clients sort by whole seconds and, within one, keep the order of names: so those follow the time, as upstream's.
        // The low bits keep two recorders apart that write at the same instant.
        let time = u64::try_from(at.as_nanosecond()).unwrap_or_default();
        self.named = ((time & !0xfff) | (self.dice.next_u64() & 0xfff)).max(self.named + 1);
        let name = format!("{}.{:016x}", occurrence.about.name, self.named);
        let object = self.object(&name, &namespace, &occurrence, at);
        let Ok(body) = encode(&object) else { return };
        match self.client.create_raw(&events(&namespace), body, &WriteOptions::default()).await {
            Ok(_) => {
                self.recent.insert(occurrence, Recent { name, count: 1, last: self.clock.instant() });
            }
            // The namespace is going away, or gone: nobody will read the event.
            Err(error) if error.is_forbidden() || error.is_not_found() => {}
            Err(error) => tracing::warn!(%error, reason = occurrence.reason, "cannot write an event"),
        }
    }

    fn object(&self, name: &str, namespace: &str, occurrence: &Occurrence, at: Timestamp) -> Value {
        let Occurrence { about, severity, reason, message } = occurrence;
        let mut involved = serde_json::Map::new();
        for (key, value) in [
            ("apiVersion", &about.api_version),
            ("kind", &about.kind),
            ("namespace", &about.namespace),
            ("name", &about.name),
            ("uid", &about.uid),
            ("fieldPath", &about.field_path),
        ] {
            if !value.is_empty() {
                involved.insert(key.into(), value.as_str().into());
            }
        }
        let mut source = json!({"component": self.component});
        if !self.host.is_empty() {
            source["host"] = self.host.as_str().into();
        }
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": involved,
            "type": match severity { Severity::Normal => "Normal", Severity::Warning => "Warning" },
            "reason": reason,
            "message": message,
            "source": source,
            "reportingComponent": self.component,
            "reportingInstance": self.host,
            "firstTimestamp": seconds(at),
            "lastTimestamp": seconds(at),
            "count": 1,
        })
    }
}

/// Events about cluster-scoped objects live in `default`, as upstream's do.
fn namespace(about: &Reference) -> String {
    if about.namespace.is_empty() { "default".into() } else { about.namespace.clone() }
}

fn events(namespace: &str) -> Target<'_> {
    Target { group: "", version: "v1", resource: "events", namespace: Some(namespace), name: None, subresource: None }
}

/// A `metav1.Time`: whole seconds.
fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
