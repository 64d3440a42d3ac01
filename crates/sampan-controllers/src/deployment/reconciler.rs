//! Carries a Deployment's plan out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use sampan_client::Error;
use sampan_client::api::decode;
use sampan_client::informer::{Informer, Key};
use serde_json::json;

use super::{Step, plan};
use crate::framework::{Action, Context, Controller, DEPLOYMENTS, Expectations, REPLICA_SETS, Reconciler, Verb};
use crate::views::{Deployment, Pod, ReplicaSet, WorkloadSelector};

pub struct Deployments {
    context: Context,
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    expectations: Expectations,
}

/// How soon to look again when the cache has not seen our writes; its events come sooner.
const STALE: Duration = Duration::from_secs(1);

impl Deployments {
    /// Wires the controller up; it runs until it is dropped.
    pub fn start(
        context: Context,
        deployments: Informer<Deployment>,
        sets: Informer<ReplicaSet>,
        pods: Informer<Pod>,
    ) -> Controller {
        let mut controller = Controller::new("deployment", &context.clock);
        controller.source(&deployments, |change| vec![change.key.clone()]);
        let known = deployments.clone();
        controller.source(&sets, move |change| {
            let sides = [&change.old, &change.new];
            let mut keys: Vec<Key> = sides
                .into_iter()
                .flatten()
                .filter_map(|set| set.metadata.controller())
                .filter(|owner| DEPLOYMENTS.is(owner))
                .map(|owner| Key::new(change.key.namespace.clone(), owner.name.clone()))
                .collect();
            if let Some(set) = change.new.as_ref().filter(|set| set.metadata.controller().is_none()) {
                let matching = known.list_in(&change.key.namespace).into_iter().filter(|(_, deployment)| {
                    WorkloadSelector::matches(deployment.spec.selector.as_ref(), &set.metadata.labels)
                });
                keys.extend(matching.map(|(key, _)| key));
            }
            keys.dedup();
            keys
        });
        // Recreate waits for the last old pod to go.
        let (known, owners) = (deployments.clone(), sets.clone());
        controller.source(&pods, move |change| {
            let (None, Some(old)) = (&change.new, &change.old) else { return Vec::new() };
            let Some(owner) = old.metadata.controller().filter(|owner| REPLICA_SETS.is(owner)) else {
                return Vec::new();
            };
            let namespace = &change.key.namespace;
            let owner = owners.get(&Key::new(namespace.clone(), owner.name.clone()));
            let deployment = owner.and_then(|set| set.metadata.controller().map(|owner| owner.name.clone()));
            let key = deployment.map(|name| Key::new(namespace.clone(), name));
            let recreates = |key: &Key| known.get(key).is_some_and(|one| one.spec.strategy.kind == "Recreate");
            key.into_iter().filter(recreates).collect()
        });
        let ready = {
            let (deployments, sets, pods) = (deployments.clone(), sets.clone(), pods.clone());
            async move {
                deployments.synced().await;
                sets.synced().await;
                pods.synced().await;
            }
        };
        let reconciler = Self { context, deployments, sets, pods, expectations: Expectations::default() };
        controller.work(5, ready, Arc::new(reconciler));
        controller
    }

    async fn live(&self, key: &Key) -> Result<Deployment, Error> {
        decode(&self.context.client.get_raw(&DEPLOYMENTS.target(key)).await?)
    }

    async fn perform(&self, key: &Key, deployment: &Deployment, step: &Step) -> Result<(), Error> {
        let about = DEPLOYMENTS.reference(&deployment.metadata);
        let written = match (self.context.perform(&step.action).await, &step.creates) {
            (Err(error), Some(digest)) if error.is_already_exists() => {
                return self.collided(key, deployment, step, digest).await;
            }
            (Err(error), Some(_)) if error.is_namespace_terminating() => return Ok(()),
            (Err(error), Some(_)) => {
                let message = format!("Failed to create new replica set: {error}");
                self.context.recorder.warning(&about, "ReplicaSetCreateError", message);
                return Err(error);
            }
            // What was to go is gone.
            (Err(error), None) if error.is_not_found() && matches!(step.action.verb, Verb::Delete(_)) => return Ok(()),
            (outcome, _) => outcome?,
        };
        if step.action.resource == REPLICA_SETS {
            self.expectations.wrote(key, written.metadata.revision());
        }
        if let Some((reason, message)) = &step.event {
            self.context.recorder.normal(&about, reason, message.clone());
        }
        Ok(())
    }

    /// The name is taken: by our own ReplicaSet that the cache has not seen yet, or by one of another template whose hash
    /// is the same; then the next hash counts one collision more.
    async fn collided(&self, key: &Key, deployment: &Deployment, step: &Step, digest: &[u8; 32]) -> Result<(), Error> {
        let Verb::Create(object) = &step.action.verb else { return Ok(()) };
        let taken = Key::new(key.namespace.clone(), sampan_api::object::name(object));
        let set: ReplicaSet = decode(&self.context.client.get_raw(&REPLICA_SETS.target(&taken)).await?)?;
        let ours = set.metadata.controller().is_some_and(|owner| owner.uid == deployment.metadata.uid);
        if ours && set.spec.template.digest == *digest {
            self.expectations.wrote(key, set.metadata.revision());
            return Ok(());
        }
        let collisions = deployment.status.collision_count.unwrap_or(0) + 1;
        let patch = json!({"status": {"collisionCount": collisions}});
        self.context.perform(&Action::merge(DEPLOYMENTS, key.clone(), patch).on("status")).await.map(drop)
    }
}

#[async_trait]
impl Reconciler for Deployments {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(deployment) = self.deployments.get(key) else {
            self.expectations.forget(key);
            return Ok(None);
        };
        if self.sets.seen() < self.expectations.get(key).revision {
            return Ok(Some(STALE));
        }
        let sets: Vec<Arc<ReplicaSet>> = self.sets.list_in(&key.namespace).into_iter().map(|(_, set)| set).collect();
        let pods: Vec<Arc<Pod>> = match deployment.spec.strategy.kind.as_str() {
            "Recreate" => self.pods.list_in(&key.namespace).into_iter().map(|(_, pod)| pod).collect(),
            _ => Vec::new(),
        };
        let plan = plan(&deployment, &sets, &pods, self.context.clock.now());
        if plan.adopts {
            // Asks the server: a Deployment that is being deleted must not adopt what it would take along.
            let live = self.live(key).await?;
            if live.metadata.uid != deployment.metadata.uid || live.metadata.deletion_timestamp.is_some() {
                return Ok(Some(STALE));
            }
        }
        for step in &plan.steps {
            self.perform(key, &deployment, step).await?;
        }
        Ok(plan.again)
    }
}
