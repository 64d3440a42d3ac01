//! What every controller stands on: sources turn changes into keys, a queue hands each key to one worker at a time, a pure
//! function decides, [`Context::perform`] does what it decided.
//!
//! ```text
//! informer ──change──▶ keys ──▶ queue ──key──▶ reconcile: caches → plan → perform ──error──▶ queue, after back-off
//! ```
//! A controller that has written does not decide again before its cache has seen the write ([`Expectations`]): on a stale
//! cache it would create a pod twice.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use sampan_api::Gvr;
use sampan_api::object::{Meta, OwnerReference};
use sampan_base::{Clock, Dice, task};
use sampan_client::api::{Target, decode, encode};
use sampan_client::events::{Recorder, Reference};
use sampan_client::informer::{Change, Informer, Key, View};
use sampan_client::queue::Queue;
use sampan_client::{Client, DeleteOptions, Error, ListOptions, PatchKind, WriteOptions};
use serde::Deserialize;
use serde_json::{Value, json};

/// A built-in resource a controller works with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    pub group: &'static str,
    pub version: &'static str,
    pub resource: &'static str,
    pub kind: &'static str,
}

macro_rules! resources {
    ($($name:ident = $group:literal $version:literal $resource:literal $kind:literal;)*) => {
        $(pub const $name: Resource =
            Resource { group: $group, version: $version, resource: $resource, kind: $kind };)*
    };
}

resources! {
    CONFIG_MAPS = "" "v1" "configmaps" "ConfigMap";
    DEPLOYMENTS = "apps" "v1" "deployments" "Deployment";
    ENDPOINTS = "" "v1" "endpoints" "Endpoints";
    ENDPOINT_SLICES = "discovery.k8s.io" "v1" "endpointslices" "EndpointSlice";
    LEASES = "coordination.k8s.io" "v1" "leases" "Lease";
    NAMESPACES = "" "v1" "namespaces" "Namespace";
    NODES = "" "v1" "nodes" "Node";
    PODS = "" "v1" "pods" "Pod";
    REPLICA_SETS = "apps" "v1" "replicasets" "ReplicaSet";
    SERVICE_ACCOUNTS = "" "v1" "serviceaccounts" "ServiceAccount";
    SERVICES = "" "v1" "services" "Service";
}

impl Resource {
    pub fn gvr(self) -> Gvr {
        Gvr { group: self.group.into(), version: self.version.into(), resource: self.resource.into() }
    }

    pub fn api_version(self) -> String {
        sampan_api::kind::api_version(self.group, self.version)
    }

    pub fn target<'a>(self, key: &'a Key) -> Target<'a> {
        let target = Target {
            group: self.group,
            version: self.version,
            resource: self.resource,
            namespace: key.namespace(),
            name: None,
            subresource: None,
        };
        if key.name.is_empty() { target } else { target.name(&key.name) }
    }

    /// What an event about the object names.
    pub fn reference(self, meta: &Meta) -> Reference {
        Reference {
            api_version: self.api_version(),
            kind: self.kind.into(),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            field_path: String::new(),
        }
    }

    /// The owner reference of what this object controls.
    pub fn controller_of(self, meta: &Meta) -> Value {
        json!({
            "apiVersion": self.api_version(), "kind": self.kind, "name": meta.name, "uid": meta.uid,
            "controller": true, "blockOwnerDeletion": true,
        })
    }

    pub fn is(self, owner: &OwnerReference) -> bool {
        let (group, _) = sampan_api::kind::split_api_version(&owner.api_version);
        owner.kind == self.kind && group == self.group
    }
}

/// One write of a plan.
#[derive(Clone, Debug)]
pub struct Action {
    pub resource: Resource,
    /// For a creation the name may be empty: the object names itself.
    pub key: Key,
    pub subresource: Option<&'static str>,
    pub verb: Verb,
}

#[derive(Clone, Debug)]
pub enum Verb {
    Create(Value),
    Patch(PatchKind, Value),
    Delete(DeleteOptions),
}

impl Action {
    pub fn create(resource: Resource, namespace: &str, object: Value) -> Self {
        Self { resource, key: Key::new(namespace, ""), subresource: None, verb: Verb::Create(object) }
    }

    pub fn merge(resource: Resource, key: Key, patch: Value) -> Self {
        Self { resource, key, subresource: None, verb: Verb::Patch(PatchKind::Merge, patch) }
    }

    pub fn strategic(resource: Resource, key: Key, patch: Value) -> Self {
        Self { resource, key, subresource: None, verb: Verb::Patch(PatchKind::Strategic, patch) }
    }

    pub fn delete(resource: Resource, meta: &Meta) -> Self {
        let preconditions = sampan_client::api::Preconditions { uid: Some(meta.uid.clone()), resource_version: None };
        let options = DeleteOptions { preconditions: Some(preconditions), ..DeleteOptions::default() };
        Self { resource, key: key_of(meta), subresource: None, verb: Verb::Delete(options) }
    }

    #[must_use]
    pub fn on(mut self, subresource: &'static str) -> Self {
        self.subresource = Some(subresource);
        self
    }
}

pub fn key_of(meta: &Meta) -> Key {
    Key::new(meta.namespace.clone(), meta.name.clone())
}

/// A `metav1.Time`: whole seconds.
pub fn seconds(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The object as a write left it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Written {
    pub metadata: Meta,
}

/// What a controller writes with: its own identity.
#[derive(Clone)]
pub struct Context {
    pub client: Client,
    pub recorder: Recorder,
    pub clock: Clock,
    pub dice: Dice,
}

/// The user name upstream gives a controller's service account.
pub fn service_account(controller: &str) -> String {
    format!("system:serviceaccount:kube-system:{controller}")
}

/// Gives a client with the identity of the named user.
pub type ClientFor = Arc<dyn Fn(&str) -> Client + Send + Sync>;

impl Context {
    /// `controller` is upstream's name: `deployment-controller`.
    pub fn new(controller: &str, client_for: &ClientFor, clock: &Clock, dice: &Dice) -> Self {
        let client = client_for(&service_account(controller));
        let recorder = Recorder::spawn(client.clone(), controller, "", clock.clone(), dice.clone());
        Self { client, recorder, clock: clock.clone(), dice: dice.clone() }
    }

    pub async fn perform(&self, action: &Action) -> Result<Written, Error> {
        let mut target = action.resource.target(&action.key);
        target.subresource = action.subresource;
        let options = WriteOptions::default();
        let answer = match &action.verb {
            Verb::Create(object) => self.client.create_raw(&target, encode(object)?, &options).await?,
            Verb::Patch(kind, patch) => self.client.patch_raw(&target, *kind, encode(patch)?, &options).await?,
            Verb::Delete(options) => self.client.delete(&target, options).await?,
        };
        // The answer to a deletion may be a Status, which has no metadata worth reading.
        Ok(decode(&answer).unwrap_or_default())
    }

    /// The newest resource version among the objects the server has now. Not that of the list: a cache reaches the version of
    /// an object with its event, but that of a list only with the next bookmark.
    pub async fn newest(&self, resource: Resource, namespace: &str) -> Result<u64, Error> {
        let list = self.client.list_raw(&resource.target(&Key::new(namespace, "")), &ListOptions::default()).await?;
        let revision = |item: &bytes::Bytes| decode::<Written>(item).map_or(0, |object| object.metadata.revision());
        Ok(list.items.iter().map(revision).max().unwrap_or(0))
    }
}

/// Brings one object to its desired state.
#[async_trait]
pub trait Reconciler: Send + Sync + 'static {
    /// Idempotent and level-triggered: looks at the present state, whatever brought the key here. Comes back after the
    /// returned time; an error comes back after the key's back-off.
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error>;
}

/// A running controller: its queue and its tasks, which end when it is dropped.
pub struct Controller {
    pub queue: Queue<Key>,
    tasks: task::Group,
    name: &'static str,
}

impl Controller {
    pub fn new(name: &'static str, clock: &Clock) -> Self {
        Self { queue: Queue::new(clock.clone()), tasks: task::Group::default(), name }
    }

    /// Each change of the informer's objects adds the keys that `keys` derives from it.
    pub fn source<V: View>(
        &mut self,
        informer: &Informer<V>,
        mut keys: impl FnMut(&Change<V>) -> Vec<Key> + Send + 'static,
    ) {
        let queue = self.queue.clone();
        let mut changes = informer.subscribe();
        // The subscription ends with its informer, so the task holds one.
        let informer = informer.clone();
        self.tasks.spawn("controller source", async move {
            while let Some(change) = changes.recv().await {
                keys(&change).into_iter().for_each(|key| queue.add(key));
            }
            drop(informer);
        });
    }

    /// Starts the workers once `ready` is done: decisions need complete caches.
    pub fn work(
        &mut self,
        workers: usize,
        ready: impl Future<Output = ()> + Send + 'static,
        reconciler: Arc<dyn Reconciler>,
    ) {
        let (queue, name) = (self.queue.clone(), self.name);
        self.tasks.spawn("controller", async move {
            ready.await;
            let mut tasks = task::Group::default();
            for _ in 0..workers {
                tasks.spawn("controller worker", work(queue.clone(), reconciler.clone(), name));
            }
            std::future::pending::<()>().await;
        });
    }
}

async fn work(queue: Queue<Key>, reconciler: Arc<dyn Reconciler>, name: &'static str) {
    loop {
        let work = queue.next().await;
        match reconciler.reconcile(&work.key).await {
            Ok(again) => {
                queue.forget(&work.key);
                if let Some(delay) = again {
                    queue.add_after(work.key.clone(), delay);
                }
            }
            Err(error) => {
                // A conflict says that the cache was behind: not worth a line.
                if error.is_conflict() {
                    tracing::debug!(controller = name, key = %work.key, %error, "will try again");
                } else {
                    tracing::warn!(controller = name, key = %work.key, %error, "will try again");
                }
                queue.add_rate_limited(work.key.clone());
            }
        }
    }
}

/// Follows a resource with the identity all controllers read with.
pub fn follow<V: View>(client: &Client, resource: Resource, options: ListOptions, clock: &Clock) -> Informer<V> {
    Informer::spawn(client.clone(), resource.gvr(), options, clock.clone())
}

/// What a controller has written for a key and its cache has not seen yet.
#[derive(Default)]
pub struct Expectations(Mutex<BTreeMap<Key, Expected>>);

#[derive(Clone, Debug, Default)]
pub struct Expected {
    /// Wait until the cache has seen this resource version.
    pub revision: u64,
    /// The answer to a write was lost: it may have been carried out, at a revision not known.
    pub unknown: bool,
    /// Objects, by UID, that we have deleted: dead to us whatever the cache says.
    pub doomed: BTreeSet<String>,
}

impl Expectations {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Expected>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn get(&self, key: &Key) -> Expected {
        self.lock().get(key).cloned().unwrap_or_default()
    }

    pub fn wrote(&self, key: &Key, revision: u64) {
        let mut all = self.lock();
        let expected = all.entry(key.clone()).or_default();
        expected.revision = expected.revision.max(revision);
    }

    /// The next decision must ask the server how far it is, and wait for that.
    pub fn unknown(&self, key: &Key) {
        self.lock().entry(key.clone()).or_default().unknown = true;
    }

    pub fn deleted(&self, key: &Key, uid: &str) {
        self.lock().entry(key.clone()).or_default().doomed.insert(uid.to_owned());
    }

    /// Whatever was carried out is not after `newest`.
    pub fn known(&self, key: &Key, newest: u64) {
        self.wrote(key, newest);
        if let Some(expected) = self.lock().get_mut(key) {
            expected.unknown = false;
        }
    }

    /// Forgets the doomed objects that `gone` says the cache knows about.
    pub fn settle(&self, key: &Key, gone: impl Fn(&str) -> bool) {
        if let Some(expected) = self.lock().get_mut(key) {
            expected.doomed.retain(|uid| !gone(uid));
        }
    }

    pub fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }
}
