//! The ConfigMaps, Secrets, claims and Services the pods of this node refer to: each referenced object is watched by
//! name, once, for as long as a pod of this node refers to it. The node authorizer allows nothing wider.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PersistentVolumeClaim, Pod, Secret};
use sampan_api::Gvr;
use sampan_base::Clock;
use sampan_client::informer::{Informer, Key, Typed, View};
use sampan_client::{Client, ListOptions};
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::pod::PodExt;

/// How long a pod waits for an object it needs before it says that it has not come.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    ConfigMap,
    Secret,
    Claim,
}

impl Kind {
    fn gvr(self) -> Gvr {
        let resource = match self {
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
            Self::Claim => "persistentvolumeclaims",
        };
        Gvr { group: String::new(), version: "v1".into(), resource: resource.into() }
    }

    /// As upstream's messages spell it.
    pub fn word(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmap",
            Self::Secret => "secret",
            Self::Claim => "persistentvolumeclaim",
        }
    }
}

/// What a pod refers to: kind and key.
pub type Wanted = (Kind, Key);

#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Missing {
    #[error("{} {name:?} not found", kind.word())]
    Absent { kind: Kind, name: String },
    #[error("failed to sync {} cache: timed out waiting for the condition", kind.word())]
    NotYet { kind: Kind },
}

enum Followed {
    ConfigMap(Informer<Typed<ConfigMap>>),
    Secret(Informer<Typed<Secret>>),
    Claim(Informer<Typed<PersistentVolumeClaim>>),
}

struct Entry {
    followed: Followed,
    /// UIDs of the pods that refer to it.
    pods: BTreeMap<String, mpsc::UnboundedSender<()>>,
}

/// The objects followed for this node's pods. Cheap to clone.
#[derive(Clone)]
pub struct Objects {
    client: Client,
    clock: Clock,
    entries: Arc<Mutex<BTreeMap<Wanted, Entry>>>,
    services: Informer<ServiceView>,
}

impl Objects {
    pub fn new(client: Client, clock: Clock) -> Self {
        let gvr = Gvr { group: String::new(), version: "v1".into(), resource: "services".into() };
        let services = Informer::spawn(client.clone(), gvr, ListOptions::default(), clock.clone());
        Self { client, clock, entries: Arc::default(), services }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Wanted, Entry>> {
        self.entries.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Follows what the pod refers to and nothing else for it; `changed` gets a message at every change of any of it.
    pub fn follow(&self, pod: &Pod, changed: &mpsc::UnboundedSender<()>) {
        let wanted = references(pod);
        self.unfollow_except(pod.uid(), &wanted);
        for one in wanted {
            let mut entries = self.lock();
            let entry = entries.entry(one.clone()).or_insert_with(|| self.start(&one));
            entry.pods.insert(pod.uid().to_owned(), changed.clone());
        }
    }

    pub fn unfollow(&self, uid: &str) {
        self.unfollow_except(uid, &[]);
    }

    fn unfollow_except(&self, uid: &str, keep: &[Wanted]) {
        self.lock().retain(|wanted, entry| {
            if !keep.contains(wanted) {
                entry.pods.remove(uid);
            }
            !entry.pods.is_empty()
        });
    }

    fn start(&self, wanted: &Wanted) -> Entry {
        let (kind, key) = wanted;
        let followed = match kind {
            Kind::ConfigMap => Followed::ConfigMap(self.informer(wanted)),
            Kind::Secret => Followed::Secret(self.informer(wanted)),
            Kind::Claim => Followed::Claim(self.informer(wanted)),
        };
        tracing::debug!(kind = kind.word(), %key, "followed");
        Entry { followed, pods: BTreeMap::new() }
    }

    fn informer<V: View>(&self, wanted: &Wanted) -> Informer<V> {
        let (kind, key) = wanted;
        let options =
            ListOptions { field_selector: Some(format!("metadata.name={}", key.name)), ..ListOptions::default() };
        let namespace = Some(key.namespace.clone());
        let informer = Informer::spawn_in(self.client.clone(), kind.gvr(), namespace, options, self.clock.clone());
        let mut changes = informer.subscribe();
        let (entries, wanted) = (Arc::downgrade(&self.entries), wanted.clone());
        sampan_base::task::spawn("object changes", async move {
            while changes.recv().await.is_some() {
                let Some(entries) = entries.upgrade() else { return };
                let entries = entries.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                for pod in entries.get(&wanted).into_iter().flat_map(|entry| entry.pods.values()) {
                    let _ = pod.send(());
                }
            }
        });
        informer
    }

    async fn find<K>(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        pick: impl Fn(&Followed) -> Option<Informer<Typed<K>>>,
    ) -> Result<Arc<Typed<K>>, Missing> {
        let key = Key::new(namespace, name);
        let absent = || Missing::Absent { kind, name: name.into() };
        let informer =
            self.lock().get(&(kind, key.clone())).and_then(|entry| pick(&entry.followed)).ok_or_else(absent)?;
        if self.clock.timeout(PATIENCE, informer.synced()).await.is_none() {
            return Err(Missing::NotYet { kind });
        }
        informer.get(&key).ok_or_else(absent)
    }

    pub async fn config_map(&self, namespace: &str, name: &str) -> Result<Arc<Typed<ConfigMap>>, Missing> {
        let pick = |followed: &Followed| match followed {
            Followed::ConfigMap(informer) => Some(informer.clone()),
            _ => None,
        };
        self.find(Kind::ConfigMap, namespace, name, pick).await
    }

    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Arc<Typed<Secret>>, Missing> {
        let pick = |followed: &Followed| match followed {
            Followed::Secret(informer) => Some(informer.clone()),
            _ => None,
        };
        self.find(Kind::Secret, namespace, name, pick).await
    }

    pub async fn claim(&self, namespace: &str, name: &str) -> Result<Arc<Typed<PersistentVolumeClaim>>, Missing> {
        let pick = |followed: &Followed| match followed {
            Followed::Claim(informer) => Some(informer.clone()),
            _ => None,
        };
        self.find(Kind::Claim, namespace, name, pick).await
    }

    /// The Services a pod of this namespace gets environment variables for: its namespace's and `default/kubernetes`.
    /// `None` when the list has not come yet.
    pub async fn services(&self, namespace: &str) -> Option<(Vec<(Key, Arc<ServiceView>)>, Option<Arc<ServiceView>>)> {
        self.clock.timeout(PATIENCE, self.services.synced()).await?;
        let master = self.services.get(&Key::new("default", "kubernetes"));
        Some((self.services.list_in(namespace), master))
    }
}

/// What a Service's environment variables are made of.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ServiceView {
    #[serde(default)]
    pub spec: ServiceSpecView,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceSpecView {
    #[serde(rename = "clusterIP")]
    pub cluster_ip: String,
    pub ports: Vec<ServicePortView>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ServicePortView {
    pub name: String,
    pub port: u16,
    pub protocol: String,
}

impl View for ServiceView {
    fn decode(object: &Bytes) -> Result<Self, sampan_client::Error> {
        sampan_client::api::decode(object)
    }
}

/// Everything a pod refers to by name, each once.
pub fn references(pod: &Pod) -> Vec<Wanted> {
    let mut wanted = std::collections::BTreeSet::new();
    let mut add = |kind: Kind, name: &str| {
        if !name.is_empty() {
            wanted.insert((kind, Key::new(pod.namespace(), name)));
        }
    };
    for volume in pod.spec_ref().volumes.iter().flatten() {
        if let Some(source) = &volume.config_map {
            add(Kind::ConfigMap, &source.name);
        }
        if let Some(source) = &volume.secret {
            add(Kind::Secret, source.secret_name.as_deref().unwrap_or_default());
        }
        if let Some(source) = &volume.persistent_volume_claim {
            add(Kind::Claim, &source.claim_name);
        }
        if volume.ephemeral.is_some() {
            add(Kind::Claim, &format!("{}-{}", pod.name(), volume.name));
        }
        for source in volume.projected.iter().flat_map(|projected| projected.sources.iter().flatten()) {
            if let Some(source) = &source.config_map {
                add(Kind::ConfigMap, &source.name);
            }
            if let Some(source) = &source.secret {
                add(Kind::Secret, &source.name);
            }
        }
    }
    for secret in pod.spec_ref().image_pull_secrets.iter().flatten() {
        add(Kind::Secret, &secret.name);
    }
    for container in pod.all_containers() {
        environment_references(container, &mut add);
    }
    wanted.into_iter().collect()
}

fn environment_references(container: &Container, add: &mut impl FnMut(Kind, &str)) {
    for source in container.env_from.iter().flatten() {
        if let Some(source) = &source.config_map_ref {
            add(Kind::ConfigMap, &source.name);
        }
        if let Some(source) = &source.secret_ref {
            add(Kind::Secret, &source.name);
        }
    }
    for source in container.env.iter().flatten().filter_map(|variable| variable.value_from.as_ref()) {
        if let Some(source) = &source.config_map_key_ref {
            add(Kind::ConfigMap, &source.name);
        }
        if let Some(source) = &source.secret_key_ref {
            add(Kind::Secret, &source.name);
        }
    }
}
