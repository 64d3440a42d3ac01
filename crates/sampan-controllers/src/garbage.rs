//! Garbage collection: what has lost its last owner goes; deletion in the foreground and orphaning.
//!
//! Every object of every kind is a node of a graph (`graph`), fed by watches of metadata alone. An owner the graph does not
//! know is looked up on the server before what it owns is deleted: nothing goes because a watch was late. The rules are upstream's (`pkg/controller/garbagecollector`).

mod graph;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use sampan_api::Gvr;
use sampan_api::object::OwnerReference;
use sampan_base::{Clock, task};
use sampan_client::api::{Preconditions, Target, decode, encode};
use sampan_client::informer::{Informer, Key};
use sampan_client::queue::Queue;
use sampan_client::{Client, DeleteOptions, Error, ListOptions, PatchKind, WriteOptions};
use serde_json::{Value, json};

use crate::discovery::{ApiResource, discover};
use crate::framework::{Context, Controller, Reconciler};
use graph::{Graph, Node, Observed, OwnerState, Verdict};

pub use graph::View;

pub const FOREGROUND: &str = "foregroundDeletion";
pub const ORPHAN: &str = "orphan";

/// How often the server is asked for new kinds.
const DISCOVERY: Duration = Duration::from_secs(30);

/// Kinds by group and kind: where their objects are found.
type Kinds = BTreeMap<(String, String), ApiResource>;

struct Collector {
    context: Context,
    graph: Arc<Mutex<Graph>>,
    kinds: Arc<Mutex<Kinds>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn key(uid: &str) -> Key {
    Key::new("", uid)
}

/// Collects until it is dropped. `reader` follows all kinds.
pub async fn run(context: Context, reader: Client) {
    let clock = context.clock.clone();
    let graph = Arc::new(Mutex::new(Graph::default()));
    let kinds = Arc::new(Mutex::new(Kinds::new()));
    let mut monitors: BTreeMap<Gvr, Monitor> = BTreeMap::new();
    let mut controller = Controller::new("garbage collector", &clock);
    let mut started = false;
    loop {
        match discover(&reader).await {
            Ok(discovered) => {
                // Events have no dependents and come and go by the thousand.
                let watched = |one: &&ApiResource| {
                    one.gvr.resource != "events" && ["delete", "list", "watch"].iter().all(|verb| one.can(verb))
                };
                let watched: Vec<&ApiResource> = discovered.resources.iter().filter(watched).collect();
                if discovered.failures.is_empty() {
                    monitors.retain(|gvr, _| watched.iter().any(|one| one.gvr == *gvr));
                }
                for one in watched {
                    if !monitors.contains_key(&one.gvr) {
                        let monitor = Monitor::start(one, &reader, &clock, graph.clone(), controller.queue.clone());
                        monitors.insert(one.gvr.clone(), monitor);
                    }
                }
                let kind = |one: ApiResource| ((one.gvr.group.clone(), one.kind.clone()), one);
                let all = discovered.resources.into_iter().map(kind);
                lock(&kinds).extend(all);
            }
            Err(error) => tracing::warn!(%error, "garbage collector: cannot discover kinds"),
        }
        if !started && !monitors.is_empty() {
            started = true;
            let informers: Vec<Informer<View>> = monitors.values().map(|monitor| monitor.informer.clone()).collect();
            let ready = async move {
                for informer in informers {
                    informer.synced().await;
                }
            };
            let collector = Collector { context: context.clone(), graph: graph.clone(), kinds: kinds.clone() };
            controller.work(10, ready, Arc::new(collector));
        }
        clock.sleep(if started { DISCOVERY } else { Duration::from_secs(1) }).await;
    }
}

/// Feeds the graph with one kind.
struct Monitor {
    informer: Informer<View>,
    _task: task::Group,
}

impl Monitor {
    fn start(
        resource: &ApiResource,
        reader: &Client,
        clock: &Clock,
        graph: Arc<Mutex<Graph>>,
        queue: Queue<Key>,
    ) -> Self {
        let options = ListOptions { metadata_only: true, ..ListOptions::default() };
        let informer = Informer::<View>::spawn(reader.clone(), resource.gvr.clone(), options, clock.clone());
        let mut changes = informer.subscribe();
        let (gvr, kind) = (resource.gvr.clone(), resource.kind.clone());
        let mut task = task::Group::default();
        task.spawn("garbage collector monitor", async move {
            while let Some(change) = changes.recv().await {
                let mut graph = lock(&graph);
                let mut work = Vec::new();
                if let Some(old) = &change.old
                    && change.new.as_ref().is_none_or(|new| new.uid != old.uid)
                {
                    work.extend(graph.remove(&old.uid));
                }
                if let Some(view) = &change.new {
                    work.extend(graph.observe(Observed { gvr: &gvr, kind: &kind, key: &change.key, view }));
                }
                drop(graph);
                work.iter().for_each(|uid| queue.add(key(uid)));
            }
        });
        Self { informer, _task: task }
    }
}

impl Collector {
    fn target<'a>(gvr: &'a Gvr, key: &'a Key) -> Target<'a> {
        Target::of_gvr(gvr, key.namespace()).name(&key.name)
    }

    /// The object on the server; `None` when it is gone or another one has its name.
    async fn live(&self, gvr: &Gvr, key: &Key, uid: &str) -> Result<Option<Value>, Error> {
        match self.context.client.get_raw(&Self::target(gvr, key)).await {
            Ok(bytes) => {
                let object: Value = decode(&bytes)?;
                Ok((sampan_api::object::uid(&object) == uid).then_some(object))
            }
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Where an owner reference points from an object in `namespace`. `None`: the server serves no such kind, or a
    /// cluster-scoped object names an owner in a namespace it does not have.
    fn place(&self, owner: &OwnerReference, namespace: &str) -> Option<(Gvr, Key)> {
        let (group, version) = sampan_api::kind::split_api_version(&owner.api_version);
        let kinds = lock(&self.kinds);
        let resource = kinds.get(&(group.to_owned(), owner.kind.clone()))?;
        if resource.namespaced && namespace.is_empty() {
            return None;
        }
        let gvr = Gvr { version: version.to_owned(), ..resource.gvr.clone() };
        Some((gvr, Key::new(if resource.namespaced { namespace } else { "" }, &owner.name)))
    }

    async fn owner_state(&self, owner: &OwnerReference, namespace: &str) -> Result<OwnerState, Error> {
        let known = lock(&self.graph).owner_state(owner, namespace);
        if let Some(state) = known {
            return Ok(state);
        }
        // A kind that is not served may be served again: nothing is deleted on that ground.
        let Some((gvr, key)) = self.place(owner, namespace) else { return Ok(OwnerState::Solid) };
        let live = self.live(&gvr, &key, &owner.uid).await?;
        Ok(if live.is_some() { OwnerState::Solid } else { OwnerState::Absent })
    }

    async fn patch(&self, node: &Node, metadata: Value) -> Result<(), Error> {
        let patch = encode(&json!({"metadata": metadata}))?;
        let target = Self::target(&node.gvr, &node.key);
        match self.context.client.patch_raw(&target, PatchKind::Merge, patch, &WriteOptions::default()).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    async fn delete(&self, node: &Node, policy: &str, version: &str) -> Result<(), Error> {
        let options = DeleteOptions {
            propagation_policy: Some(policy.into()),
            preconditions: Some(Preconditions {
                uid: Some(node.uid.clone()),
                // The owners must still be those that were looked at.
                resource_version: Some(version.into()).filter(|version: &String| !version.is_empty()),
            }),
            ..DeleteOptions::default()
        };
        match self.context.client.delete(&Self::target(&node.gvr, &node.key), &options).await {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }

    /// Takes a finalizer off a node that is being deleted.
    async fn remove_finalizer(&self, node: &Node, finalizer: &str) -> Result<(), Error> {
        let Some(live) = self.live(&node.gvr, &node.key, &node.uid).await? else { return Ok(()) };
        let metadata = &live["metadata"];
        let all = metadata["finalizers"].as_array().cloned().unwrap_or_default();
        let rest: Vec<Value> = all.iter().filter(|one| *one != finalizer).cloned().collect();
        if rest.len() == all.len() {
            return Ok(());
        }
        self.patch(node, json!({"resourceVersion": metadata["resourceVersion"], "finalizers": rest})).await
    }

    /// Changes the owner references of the live object.
    async fn set_owners(&self, node: &Node, change: impl Fn(&mut Vec<Value>)) -> Result<(), Error> {
        let Some(live) = self.live(&node.gvr, &node.key, &node.uid).await? else { return Ok(()) };
        let metadata = &live["metadata"];
        let before = metadata["ownerReferences"].as_array().cloned().unwrap_or_default();
        let mut after = before.clone();
        change(&mut after);
        if before == after {
            return Ok(());
        }
        self.patch(node, json!({"resourceVersion": metadata["resourceVersion"], "ownerReferences": after})).await
    }

    async fn orphan_dependents(&self, node: &Node) -> Result<(), Error> {
        let dependents = lock(&self.graph).dependents(&node.uid);
        for dependent in dependents {
            self.set_owners(&dependent, |owners| owners.retain(|owner| owner["uid"] != node.uid.as_str())).await?;
        }
        self.remove_finalizer(node, ORPHAN).await
    }

    async fn collect(&self, node: &Node) -> Result<(), Error> {
        let Some(live) = self.live(&node.gvr, &node.key, &node.uid).await? else { return Ok(()) };
        let view: View =
            serde_json::from_value(live["metadata"].clone()).map_err(|error| Error::Decode(error.to_string()))?;
        let mut states = Vec::new();
        for owner in view.owner_references.iter() {
            states.push((owner.uid.clone(), self.owner_state(owner, &node.key.namespace).await?));
        }
        let version = sampan_api::object::resource_version(&live);
        let verdict = lock(&self.graph).judge(&node.uid, &view, &states);
        match verdict {
            Verdict::Keep => Ok(()),
            Verdict::DropOwners(gone) => {
                let goes = |owner: &Value| gone.iter().any(|uid| owner["uid"] == uid.as_str());
                self.set_owners(node, |owners| owners.retain(|owner| !goes(owner))).await
            }
            Verdict::Delete(policy) => self.delete(node, policy, version).await,
            Verdict::BreakCircle => {
                self.set_owners(node, |owners| {
                    owners.iter_mut().for_each(|owner| owner["blockOwnerDeletion"] = false.into());
                })
                .await?;
                // The patch has changed the version; the UID is what matters.
                self.delete(node, "Foreground", "").await
            }
        }
    }
}

#[async_trait]
impl Reconciler for Collector {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(node) = lock(&self.graph).node(&key.name) else { return Ok(None) };
        if node.orphans() {
            self.orphan_dependents(&node).await?;
        } else if node.waits() {
            // What blocks it was handed out for deletion when it began to wait.
            if lock(&self.graph).blocking(&node.uid).is_empty() {
                self.remove_finalizer(&node, FOREGROUND).await?;
            }
        } else if !lock(&self.graph).is_settled(&node) {
            self.collect(&node).await?;
        }
        Ok(None)
    }
}
