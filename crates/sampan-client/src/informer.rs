//! A local, current copy of one resource: list, then watch, relist when the server says the past is gone.
//!
//! The copy holds what a [`View`] extracts, not typed trees: a parsed object costs an order of magnitude more memory than
//! its JSON. Readers never block the feed for long; subscribers see every change in order, beginning with what is there.
//!
//! ```text
//! Listing ──ok──▶ Watching(rv) ──event──▶ Watching(rv')
//!    ▲  └─error─▶ pause, Listing │ └─ended, broken, silent─▶ Watching(rv) anew, after a pause when it brought nothing
//!    └────────── 410 Expired ────┘
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use sampan_api::Gvr;
use sampan_base::{Clock, task};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, mpsc};

use crate::api::{Target, decode};
use crate::{Client, Error, ListOptions, WatchEvent};

/// What an informer keeps of an object. `decode` gets the whole object's JSON; the slice shares the buffer of a whole
/// list, so a view that keeps bytes copies them.
pub trait View: Sized + Send + Sync + 'static {
    fn decode(object: &Bytes) -> Result<Self, Error>;
}

/// The view that keeps the full typed object: for kinds of which there are few.
#[derive(Clone, Debug)]
pub struct Typed<K>(pub K);

impl<K: DeserializeOwned + Send + Sync + 'static> View for Typed<K> {
    fn decode(object: &Bytes) -> Result<Self, Error> {
        decode(object).map(Self)
    }
}

impl<K> Deref for Typed<K> {
    type Target = K;
    fn deref(&self) -> &K {
        &self.0
    }
}

/// Namespace (empty for cluster-scoped objects) and name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The namespace as targets want it.
    pub fn namespace(&self) -> Option<&str> {
        (!self.namespace.is_empty()).then_some(&self.namespace)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.namespace() {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// One object came (`old` is `None`), changed, or went (`new` is `None`).
#[derive(Debug)]
pub struct Change<V> {
    pub key: Key,
    pub old: Option<Arc<V>>,
    pub new: Option<Arc<V>>,
}

impl<V> Clone for Change<V> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), old: self.old.clone(), new: self.new.clone() }
    }
}

/// A running informer. Cheap to clone; it stops when the last clone is dropped.
pub struct Informer<V> {
    shared: Arc<Shared<V>>,
    _feed: Arc<task::Group>,
}

impl<V> Clone for Informer<V> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), _feed: self._feed.clone() }
    }
}

struct Shared<V> {
    state: Mutex<State<V>>,
    /// Told once, when the first list is in. Wakes its waiters in the order they came, which a `watch` channel does not:
    /// a run must be a function of its seed.
    synced: Notify,
}

struct State<V> {
    objects: BTreeMap<Key, Slot<V>>,
    /// The newest resource version that has come in.
    seen: u64,
    listed: bool,
    /// Unbounded: a subscriber is a task of this process that only turns changes into keys; what waits here is bounded
    /// by the number of objects that changed while it ran.
    subscribers: Vec<mpsc::UnboundedSender<Change<V>>>,
}

struct Slot<V> {
    resource_version: String,
    view: Arc<V>,
}

impl<V> Shared<V> {
    fn lock(&self) -> MutexGuard<'_, State<V>> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl<V: View> Informer<V> {
    /// Starts to follow all objects of `gvr` that `options` select (its `limit`, `continue_token` and
    /// `resource_version` are not used).
    pub fn spawn(client: Client, gvr: Gvr, options: ListOptions, clock: Clock) -> Self {
        Self::spawn_in(client, gvr, None, options, clock)
    }

    /// The same within one namespace.
    pub fn spawn_in(client: Client, gvr: Gvr, namespace: Option<String>, options: ListOptions, clock: Clock) -> Self {
        let state = State { objects: BTreeMap::new(), seen: 0, listed: false, subscribers: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), synced: Notify::new() });
        let mut feed = task::Group::default();
        let follower = Follower { client, gvr, namespace, options, clock, shared: shared.clone() };
        feed.spawn("informer", follower.run());
        Self { shared, _feed: Arc::new(feed) }
    }
}

impl<V> Informer<V> {
    pub fn get(&self, key: &Key) -> Option<Arc<V>> {
        self.shared.lock().objects.get(key).map(|slot| slot.view.clone())
    }

    /// All objects, ordered by key.
    pub fn list(&self) -> Vec<(Key, Arc<V>)> {
        self.shared.lock().objects.iter().map(|(key, slot)| (key.clone(), slot.view.clone())).collect()
    }

    /// The objects of one namespace, ordered by name.
    pub fn list_in(&self, namespace: &str) -> Vec<(Key, Arc<V>)> {
        let state = self.shared.lock();
        let range = state.objects.range(Key::new(namespace, "")..);
        range
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(key, slot)| (key.clone(), slot.view.clone()))
            .collect()
    }

    /// The copy holds every change of this resource up to this resource version. A controller that has written version
    /// N decides again only when its copy has seen N.
    pub fn seen(&self) -> u64 {
        self.shared.lock().seen
    }

    /// Whether the first list is in.
    pub fn has_synced(&self) -> bool {
        self.shared.lock().listed
    }

    /// Waits for the first list.
    pub async fn synced(&self) {
        let told = self.shared.synced.notified();
        if !self.has_synced() {
            told.await;
        }
    }

    /// Every change from now on, after one addition for each object that is there.
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Change<V>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.shared.lock();
        for (key, slot) in &state.objects {
            let _ = sender.send(Change { key: key.clone(), old: None, new: Some(slot.view.clone()) });
        }
        state.subscribers.push(sender);
        receiver
    }
}

/// The name of an object and its version, read without the rest.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: HeadMeta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct HeadMeta {
    name: String,
    namespace: String,
    resource_version: String,
}

struct Follower<V> {
    client: Client,
    gvr: Gvr,
    namespace: Option<String>,
    options: ListOptions,
    clock: Clock,
    shared: Arc<Shared<V>>,
}

/// How a watch came to its end.
enum Ended {
    /// Watch again from here; `true` when it brought anything.
    Resume(String, bool),
    /// The past is gone.
    Expired,
}

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(30);

/// A server sends a bookmark each minute; a watch that stays silent for longer than this has lost its connection.
const SILENCE_MAX: Duration = Duration::from_secs(150);

impl<V: View> Follower<V> {
    async fn run(self) {
        let mut pause = PAUSE_MIN;
        let mut version: Option<String> = None;
        loop {
            let outcome = match version.take() {
                None => self.list().await.map(|version| Ended::Resume(version, true)),
                Some(from) => self.watch(from).await,
            };
            let calm = match outcome {
                Ok(Ended::Resume(from, fruitful)) => {
                    version = Some(from);
                    fruitful
                }
                Ok(Ended::Expired) => true,
                Err(error) => {
                    tracing::warn!(resource = self.gvr.resource, %error, "cannot list");
                    false
                }
            };
            if calm {
                pause = PAUSE_MIN;
            } else {
                self.clock.sleep(pause).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
        }
    }

    fn target(&self) -> Target<'_> {
        Target::of_gvr(&self.gvr, self.namespace.as_deref())
    }

    async fn list(&self) -> Result<String, Error> {
        let list = self.client.list_raw(&self.target(), &self.options).await?;
        let mut fresh = BTreeMap::new();
        for item in &list.items {
            if let Some((key, slot)) = self.read(item) {
                fresh.insert(key, slot);
            }
        }
        self.replace(fresh, &list.resource_version);
        self.shared.lock().listed = true;
        self.shared.synced.notify_waiters();
        Ok(list.resource_version)
    }

    async fn watch(&self, from: String) -> Result<Ended, Error> {
        let options = ListOptions { resource_version: Some(from.clone()), ..self.options.clone() };
        let mut version = from;
        let mut fruitful = false;
        let stream = match self.client.watch_raw(&self.target(), &options).await {
            Ok(stream) => stream,
            Err(error) if error.is_expired() => return Ok(Ended::Expired),
            Err(error) => {
                tracing::debug!(resource = self.gvr.resource, %error, "cannot watch");
                return Ok(Ended::Resume(version, false));
            }
        };
        let mut stream = std::pin::pin!(stream);
        while let Some(Some(event)) = self.clock.timeout(SILENCE_MAX, stream.next()).await {
            match event {
                Ok(WatchEvent::Added(object) | WatchEvent::Modified(object)) => {
                    if let Some((key, slot)) = self.read(&object) {
                        version.clone_from(&slot.resource_version);
                        self.put(key, slot);
                    }
                }
                Ok(WatchEvent::Deleted(object)) => {
                    if let Ok(head) = decode::<Head>(&object) {
                        version = head.metadata.resource_version;
                        self.delete(&Key::new(head.metadata.namespace, head.metadata.name), &version);
                    }
                }
                Ok(WatchEvent::Bookmark(object)) => {
                    if let Ok(head) = decode::<Head>(&object) {
                        version = head.metadata.resource_version;
                        self.shared.lock().see(&version);
                    }
                }
                Err(error) if error.is_expired() => return Ok(Ended::Expired),
                Err(error) => {
                    tracing::debug!(resource = self.gvr.resource, %error, "watch broke off");
                    break;
                }
            }
            fruitful = true;
        }
        Ok(Ended::Resume(version, fruitful))
    }

    /// An object that does not decode is reported and left out: one bad object must not blind a controller.
    fn read(&self, object: &Bytes) -> Option<(Key, Slot<V>)> {
        let read = || {
            let head: Head = decode(object)?;
            let view = Arc::new(V::decode(object)?);
            let HeadMeta { name, namespace, resource_version } = head.metadata;
            Ok::<_, Error>((Key { namespace, name }, Slot { resource_version, view }))
        };
        read().inspect_err(|error| tracing::error!(resource = self.gvr.resource, %error, "cannot read an object")).ok()
    }

    fn put(&self, key: Key, slot: Slot<V>) {
        let mut state = self.shared.lock();
        state.see(&slot.resource_version);
        let new = slot.view.clone();
        let old = state.objects.insert(key.clone(), slot).map(|slot| slot.view);
        state.tell(Change { key, old, new: Some(new) });
    }

    fn delete(&self, key: &Key, version: &str) {
        let mut state = self.shared.lock();
        state.see(version);
        if let Some(slot) = state.objects.remove(key) {
            state.tell(Change { key: key.clone(), old: Some(slot.view), new: None });
        }
    }

    fn replace(&self, fresh: BTreeMap<Key, Slot<V>>, version: &str) {
        let mut state = self.shared.lock();
        state.see(version);
        let mut before = std::mem::take(&mut state.objects);
        let mut changes = Vec::new();
        for (key, slot) in fresh {
            let old = before.remove(&key);
            if old.as_ref().is_none_or(|old| old.resource_version != slot.resource_version) {
                changes.push(Change { key: key.clone(), old: old.map(|slot| slot.view), new: Some(slot.view.clone()) });
            }
            state.objects.insert(key, slot);
        }
        let gone = before.into_iter().map(|(key, slot)| Change { key, old: Some(slot.view), new: None });
        changes.extend(gone);
        for change in changes {
            state.tell(change);
        }
    }
}

impl<V> State<V> {
    fn see(&mut self, version: &str) {
        self.seen = self.seen.max(version.parse().unwrap_or(0));
    }

    fn tell(&mut self, change: Change<V>) {
        self.subscribers.retain(|subscriber| subscriber.send(change.clone()).is_ok());
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use async_trait::async_trait;
    use serde_json::{Value, json};

    use super::*;
    use crate::{Body, Transport};

    /// Answers each request with the next script entry: status and body chunks. A watch past the script never ends.
    struct Script(Mutex<VecDeque<(u16, String)>>, Mutex<Vec<String>>);

    #[async_trait]
    impl Transport for Script {
        async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Error> {
            self.1.lock().expect("lock").push(request.uri().to_string());
            let next = self.0.lock().expect("lock").pop_front();
            let Some((status, text)) = next else { return std::future::pending().await };
            let body: Body = Box::pin(futures::stream::once(async move { Ok(Bytes::from(text)) }));
            Ok(http::Response::builder().status(status).body(body).expect("a response"))
        }
    }

    struct Version(String);
    impl View for Version {
        fn decode(object: &Bytes) -> Result<Self, Error> {
            decode::<Head>(object).map(|head| Self(head.metadata.resource_version))
        }
    }

    fn pod(name: &str, version: &str) -> Value {
        json!({"metadata": {"namespace": "default", "name": name, "resourceVersion": version}})
    }

    fn list(version: &str, items: &[Value]) -> (u16, String) {
        (200, json!({"metadata": {"resourceVersion": version}, "items": items}).to_string())
    }

    fn events(events: &[(&str, Value)]) -> (u16, String) {
        (200, events.iter().map(|(kind, object)| json!({"type": kind, "object": object}).to_string() + "\n").collect())
    }

    #[tokio::test(start_paused = true)]
    async fn lists_watches_and_relists_when_the_past_is_gone() {
        let expired = json!({"kind": "Status", "code": 410, "reason": "Expired"});
        let script = Arc::new(Script(
            Mutex::new(VecDeque::from([
                (503, "{}".into()),
                list("5", &[pod("a", "3"), pod("b", "4")]),
                events(&[("MODIFIED", pod("a", "6")), ("BOOKMARK", pod("", "8")), ("DELETED", pod("b", "9"))]),
                events(&[("ADDED", pod("c", "10")), ("ERROR", expired)]),
                list("20", &[pod("c", "10"), pod("d", "19")]),
            ])),
            Mutex::default(),
        ));
        let gvr = Gvr { group: String::new(), version: "v1".into(), resource: "pods".into() };
        let clock = Clock::simulated("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
        let informer =
            Informer::<Version>::spawn(Client::new(script.clone()), gvr, ListOptions::default(), clock.clone());
        let mut changes = informer.subscribe();
        informer.synced().await;
        let mut seen = Vec::new();
        while seen.len() < 7 {
            let Some(change) = changes.recv().await else { panic!("the informer ended") };
            let version = |side: Option<Arc<Version>>| side.map_or(String::new(), |side| side.0.clone());
            seen.push(format!("{} {}->{}", change.key.name, version(change.old), version(change.new)));
        }
        assert_eq!(seen, ["a ->3", "b ->4", "a 3->6", "b 4->", "c ->10", "d ->19", "a 6->"]);
        assert_eq!(informer.seen(), 20);
        let names: Vec<String> = informer.list().into_iter().map(|(key, _)| key.name).collect();
        assert_eq!(names, ["c", "d"]);
        let uris = script.1.lock().expect("lock").clone();
        assert!(uris[3].contains("resourceVersion=9"), "resumes after the last event: {uris:?}");
    }
}
