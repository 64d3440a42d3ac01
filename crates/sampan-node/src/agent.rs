//! The agent's main loop: which pods this node has, and who is told what. Adopts what a former agent left, gives every pod
//! its worker, passes changes and ends on, and removes what belongs to nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use sampan_api::Gvr;
use sampan_client::ListOptions;
use sampan_client::informer::{Change, Informer, Typed};
use sampan_runtime::{ContainerStatus, Event, SandboxStatus};
use tokio::sync::{mpsc, oneshot};

use crate::checkpoint;
use crate::config::NodeError;
use crate::node::Node;
use crate::pod::PodExt;
use crate::pod::lifecycle::is_terminal;
use crate::pod::state::Verdict;
use crate::worker::{self, Adopted, Handle, Message};

/// The pods of this node, shared with the node's own API. Cheap to clone.
#[derive(Clone, Default)]
pub struct Pods(Arc<Mutex<BTreeMap<String, Handle>>>);

impl Pods {
    pub fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The pod of this name; of several (an old one still stopping) the one that is not being deleted.
    pub fn find(&self, namespace: &str, name: &str) -> Option<worker::Snapshot> {
        let found = self
            .lock()
            .values()
            .map(Handle::look)
            .filter(|one| one.pod.namespace() == namespace && one.pod.name() == name)
            .collect::<Vec<_>>();
        found.into_iter().max_by_key(|one| (one.pod.deletion().is_none(), one.pod.metadata.creation_timestamp.clone()))
    }

    pub fn all(&self) -> Vec<worker::Snapshot> {
        self.lock().values().map(Handle::look).collect()
    }

    fn send(&self, uid: &str, message: Message) {
        if let Some(handle) = self.lock().get(uid) {
            let _ = handle.inbox.send(message);
        }
    }
}

/// The longest the agent waits for the API before it goes on with what it has on disk.
const API_PATIENCE: Duration = Duration::from_secs(3);
/// After a broken event stream of the runtime.
const EVENTS_PAUSE: Duration = Duration::from_millis(200);

pub struct Agent {
    node: Arc<Node>,
    pods: Pods,
    /// What the runtime has of pods that have no worker yet, by UID.
    found: BTreeMap<String, Adopted>,
    ended: mpsc::UnboundedSender<String>,
}

impl Agent {
    /// Runs until the runtime can't be listed at the start; later failures are retried. `ready` is told when every pod
    /// that was here has its worker.
    pub async fn run(
        node: Arc<Node>,
        pods: Pods,
        ready: oneshot::Sender<()>,
    ) -> Result<std::convert::Infallible, NodeError> {
        let parts = node.parts.clone();
        // Before the first list, so that no end falls between.
        let mut events = parts.runtime.events();
        let (ended, mut over) = mpsc::unbounded_channel();
        let mut agent = Self { node: node.clone(), pods, found: BTreeMap::new(), ended };
        agent.found = agent.list().await?;
        let live: Vec<String> =
            agent.found.values().flat_map(|one| one.sandboxes.iter()).map(|one| one.id.clone()).collect();
        if let Err(error) = parts.network.sweep(&live).await {
            tracing::warn!(%error, "cannot free addresses of pods that are gone");
        }
        let gvr = Gvr { group: String::new(), version: "v1".into(), resource: "pods".into() };
        let options = ListOptions {
            field_selector: Some(format!("spec.nodeName={}", node.config.name)),
            ..ListOptions::default()
        };
        let informer = Informer::<Typed<Pod>>::spawn(parts.client.clone(), gvr, options, parts.clock.clone());
        let mut synced = false;
        if parts.clock.timeout(API_PATIENCE, informer.synced()).await.is_some() {
            synced = true;
        } else {
            tracing::warn!("the API does not answer; going on with the pods on disk");
            agent.adopt_from_disk();
        }
        let mut changes = informer.subscribe();
        if synced {
            // The subscription begins with what is there.
            while let Ok(change) = changes.try_recv() {
                agent.change(change);
            }
            agent.remove_orphans(&informer);
        }
        let _ = ready.send(());
        loop {
            tokio::select! {
                biased;
                Some(change) = changes.recv() => agent.change(change),
                event = events.next() => match event {
                    Some(event) => agent.runtime_event(event),
                    None => {
                        parts.clock.sleep(EVENTS_PAUSE).await;
                        events = parts.runtime.events();
                        agent.relist().await;
                    }
                },
                Some(uid) = over.recv() => { agent.pods.lock().remove(&uid); }
                () = informer.synced(), if !synced => {
                    synced = true;
                    while let Ok(change) = changes.try_recv() {
                        agent.change(change);
                    }
                    agent.remove_orphans(&informer);
                }
            }
        }
    }

    async fn list(&self) -> Result<BTreeMap<String, Adopted>, NodeError> {
        let runtime = &self.node.parts.runtime;
        let sandboxes: Vec<SandboxStatus> = runtime.sandboxes().await?;
        let containers: Vec<ContainerStatus> = runtime.containers().await?;
        let uid_of: BTreeMap<String, String> =
            sandboxes.iter().map(|one| (one.id.clone(), one.config.uid.clone())).collect();
        let mut found: BTreeMap<String, Adopted> = BTreeMap::new();
        for sandbox in sandboxes {
            self.node.own_sandbox(&sandbox.id, &sandbox.config.uid);
            found.entry(sandbox.config.uid.clone()).or_default().sandboxes.push(sandbox);
        }
        for container in containers {
            if let Some(uid) = uid_of.get(&container.sandbox) {
                found.entry(uid.clone()).or_default().containers.push(container);
            }
        }
        Ok(found)
    }

    async fn relist(&mut self) {
        match self.list().await {
            Ok(found) => {
                for (uid, Adopted { sandboxes, containers }) in found {
                    self.pods.send(&uid, Message::Listed { sandboxes, containers });
                }
            }
            Err(error) => tracing::warn!(%error, "cannot list what the runtime has"),
        }
    }

    fn adopt_from_disk(&mut self) {
        for pod in checkpoint::load(&self.node.config.root) {
            self.start(Arc::new(pod));
        }
    }

    fn change(&mut self, change: Change<Typed<Pod>>) {
        let uid_of = |one: &Option<Arc<Typed<Pod>>>| one.as_ref().map(|pod| pod.uid().to_owned());
        let (old, new) = (uid_of(&change.old), uid_of(&change.new));
        // The name may have passed to another pod between two looks.
        if let Some(old) = old.filter(|old| Some(old) != new.as_ref()) {
            self.pods.send(&old, Message::Gone);
        }
        if let Some(new) = change.new {
            self.start(Arc::new(new.0.clone()));
        }
    }

    fn start(&mut self, pod: Arc<Pod>) {
        let uid = pod.uid().to_owned();
        if uid.is_empty() {
            return;
        }
        let mut pods = self.pods.lock();
        if let Some(handle) = pods.get(&uid) {
            let _ = handle.inbox.send(Message::Pod(pod));
            return;
        }
        let adopted = self.found.remove(&uid).unwrap_or_default();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        let is_new = adopted.sandboxes.is_empty() && !is_terminal(phase);
        let verdict = is_new.then(|| self.reject(&pod, &pods)).flatten();
        let handle = worker::spawn(self.node.clone(), pod, adopted, verdict);
        let (mut done, ended) = (handle.done.clone(), self.ended.clone());
        pods.insert(uid.clone(), handle);
        sampan_base::task::spawn("pod end", async move {
            let _ = done.wait_for(|done| *done).await;
            let _ = ended.send(uid);
        });
    }

    /// Why this node does not take a pod that was bound to it (upstream's admission of kubelets).
    fn reject(&self, pod: &Pod, pods: &BTreeMap<String, Handle>) -> Option<Verdict> {
        if let Some(os) = pod.spec_ref().os.as_ref().filter(|os| os.name != "linux") {
            return Some(Verdict {
                reason: "PodOSNotSupported".into(),
                message: format!("Failed to admit pod as the OS field doesn't match node OS: {}", os.name),
            });
        }
        let active = pods.values().filter(|handle| {
            let shown = handle.look();
            !shown.status.phase.as_deref().is_some_and(is_terminal)
        });
        if active.count() >= self.node.config.max_pods as usize {
            return Some(Verdict {
                reason: "OutOfpods".into(),
                message: "Pod was rejected: Node didn't have enough resource: pods".into(),
            });
        }
        None
    }

    fn runtime_event(&mut self, event: Event) {
        let (sandbox, message) = match event {
            Event::ContainerExited { sandbox, container } => (sandbox, Message::ContainerExited(container)),
            Event::SandboxExited { sandbox } => (sandbox.clone(), Message::SandboxExited(sandbox)),
        };
        if let Some(uid) = self.node.owner(&sandbox) {
            self.pods.send(&uid, message);
        }
    }

    /// Ends what the runtime has and no pod of the API owns: pods that were deleted while no agent ran.
    fn remove_orphans(&mut self, informer: &Informer<Typed<Pod>>) {
        let known: BTreeSet<String> = informer.list().iter().map(|(_, pod)| pod.uid().to_owned()).collect();
        for uid in self.pods.lock().keys().filter(|uid| !known.contains(*uid)).cloned().collect::<Vec<_>>() {
            self.pods.send(&uid, Message::Gone);
        }
        let on_disk: BTreeMap<String, Pod> =
            checkpoint::load(&self.node.config.root).into_iter().map(|pod| (pod.uid().to_owned(), pod)).collect();
        let mut orphans: BTreeMap<String, Pod> = on_disk.into_iter().filter(|(uid, _)| !known.contains(uid)).collect();
        for (uid, adopted) in &self.found {
            if !known.contains(uid) && !orphans.contains_key(uid) {
                orphans.insert(uid.clone(), stand_in(uid, adopted));
            }
        }
        for (uid, pod) in orphans {
            if !self.pods.lock().contains_key(&uid) {
                tracing::info!(pod = pod.full_name(), uid, "is not in the API any more; removed");
                self.start(Arc::new(pod));
                self.pods.send(&uid, Message::Gone);
            }
        }
    }
}

/// A pod of which only the runtime knows: enough to stop it.
fn stand_in(uid: &str, adopted: &Adopted) -> Pod {
    let mut pod = Pod::default();
    if let Some(sandbox) = adopted.sandboxes.first() {
        pod.metadata.name = Some(sandbox.config.name.clone());
        pod.metadata.namespace = Some(sandbox.config.namespace.clone());
    }
    pod.metadata.uid = Some(uid.to_owned());
    pod
}
