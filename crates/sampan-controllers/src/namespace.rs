//! Namespace deletion: removes everything a terminating namespace holds, says what is left, and lets the namespace go.
//!
//! Not garbage collection: it goes by what the server serves, not by owners. The conditions are upstream's
//! (`pkg/controller/namespace/deletion`).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use sampan_api::object::Envelope;
use sampan_client::api::{Target, decode, encode};
use sampan_client::informer::{Informer, Key};
use sampan_client::{DeleteOptions, Error, ListOptions, WriteOptions};
use serde_json::{Value, json};

use crate::conditions;
use crate::discovery::{ApiResource, Discovered, discover};
use crate::framework::{Action, Context, Controller, NAMESPACES, Reconciler};
use crate::views::{Condition, Namespace};

/// The finalizer in `spec.finalizers` that stands for this controller.
const FINALIZER: &str = "kubernetes";
/// While something is left: pods take their grace period, other finalizers their owner's time.
const AGAIN: Duration = Duration::from_millis(500);

/// What is left of a namespace's content.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// By `resource.group`.
    pub counts: BTreeMap<String, usize>,
    /// Finalizers of what is left, and on how many objects each is.
    pub finalizers: BTreeMap<String, usize>,
    /// Resources that could not be deleted or listed.
    pub failures: Vec<String>,
}

/// The conditions that tell of a deletion. Those that say that all is well are written only over ones that said otherwise.
pub fn report(before: &[Condition], discovered: &Discovered, remains: &Remains, now: Timestamp) -> Vec<Condition> {
    let mut after = before.to_vec();
    let listed = |map: &BTreeMap<String, usize>, what: &str| {
        map.iter()
            .map(|(name, count)| format!("{name}{what} {count} resource instances"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    let failed: Vec<String> = discovered.failures.iter().map(|(version, why)| format!("{version}: {why}")).collect();
    let told = [
        (
            "NamespaceDeletionDiscoveryFailure",
            (!failed.is_empty()).then(|| {
                let count = failed.len();
                ("DiscoveryFailed", format!("Discovery failed for some groups, {count} failing: {}", failed.join(", ")))
            }),
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        (
            "NamespaceDeletionContentFailure",
            (!remains.failures.is_empty()).then(|| {
                let (count, all) = (remains.failures.len(), remains.failures.join(", "));
                ("ContentDeletionFailed", format!("Failed to delete all resource types, {count} remaining: {all}"))
            }),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        (
            "NamespaceContentRemaining",
            (!remains.counts.is_empty()).then(|| {
                ("SomeResourcesRemain", format!("Some resources are remaining: {}", listed(&remains.counts, " has")))
            }),
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            (!remains.finalizers.is_empty()).then(|| {
                let all = listed(&remains.finalizers, " in");
                ("SomeFinalizersRemain", format!("Some content in the namespace has finalizers remaining: {all}"))
            }),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ];
    for (kind, trouble, (reason, message)) in told {
        let (status, reason, message) = match trouble {
            Some((reason, message)) => ("True", reason, message),
            None => ("False", reason, message.to_owned()),
        };
        let same = conditions::find(&after, kind).is_some_and(|one| one.status == status && one.message == message);
        if !same {
            let transition = conditions::find(&after, kind).filter(|one| one.status == status);
            let transition = transition.and_then(|one| one.last_transition_time).unwrap_or(now);
            conditions::remove(&mut after, kind);
            after.push(Condition {
                kind: kind.into(),
                status: status.into(),
                reason: reason.into(),
                message,
                last_transition_time: Some(transition),
                last_update_time: None,
            });
        }
    }
    after
}

pub struct Namespaces {
    context: Context,
    namespaces: Informer<Namespace>,
}

impl Namespaces {
    /// Wires the controller up; it runs until it is dropped.
    pub fn start(context: Context, namespaces: Informer<Namespace>) -> Controller {
        let mut controller = Controller::new("namespace", &context.clock);
        controller.source(&namespaces, |change| {
            let terminating = change.new.as_ref().is_some_and(|new| new.metadata.deletion_timestamp.is_some());
            terminating.then(|| change.key.clone()).into_iter().collect()
        });
        let synced = namespaces.clone();
        let ready = async move { synced.synced().await };
        controller.work(5, ready, Arc::new(Self { context, namespaces }));
        controller
    }

    /// Deletes all of a resource in the namespace and counts what is still there.
    async fn delete_all(&self, namespace: &str, resource: &ApiResource, remains: &mut Remains) -> Result<(), Error> {
        let client = &self.context.client;
        let target = Target::of_gvr(&resource.gvr, Some(namespace));
        let options = DeleteOptions { propagation_policy: Some("Background".into()), ..DeleteOptions::default() };
        if resource.can("deletecollection") {
            client.delete(&target, &options).await?;
        }
        let list = client.list_raw(&target, &ListOptions::default()).await?;
        for item in &list.items {
            let object: Envelope = decode(item)?;
            if !resource.can("deletecollection") {
                match client.delete(&target.clone().name(&object.metadata.name), &options).await {
                    Err(error) if !error.is_not_found() => return Err(error),
                    _ => {}
                }
            }
            *remains.counts.entry(qualified(resource)).or_default() += 1;
            for finalizer in object.metadata.finalizers {
                *remains.finalizers.entry(finalizer).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Takes our finalizer away; with the last one the server removes the namespace. The object goes back as it came.
    async fn finalize(&self, key: &Key) -> Result<(), Error> {
        let target = NAMESPACES.target(key);
        let mut object: Value = decode(&self.context.client.get_raw(&target).await?)?;
        if let Some(finalizers) = object.pointer_mut("/spec/finalizers").and_then(Value::as_array_mut) {
            finalizers.retain(|one| one != FINALIZER);
        }
        let target = target.subresource("finalize");
        self.context.client.replace_raw(&target, encode(&object)?, &WriteOptions::default()).await.map(drop)
    }
}

fn qualified(resource: &ApiResource) -> String {
    format!("{}.{}", resource.gvr.resource, resource.gvr.group)
}

#[async_trait]
impl Reconciler for Namespaces {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let Some(namespace) = self.namespaces.get(key) else { return Ok(None) };
        let ours = namespace.spec.finalizers.iter().any(|one| one == FINALIZER);
        if namespace.metadata.deletion_timestamp.is_none() || !ours {
            return Ok(None);
        }
        let discovered = discover(&self.context.client).await?;
        let mut remains = Remains::default();
        let deletable = |resource: &&ApiResource| resource.namespaced && resource.can("delete") && resource.can("list");
        for resource in discovered.resources.iter().filter(deletable) {
            if let Err(error) = self.delete_all(&key.name, resource, &mut remains).await {
                remains.failures.push(format!("{}: {error}", qualified(resource)));
            }
        }
        let after = report(&namespace.status.conditions, &discovered, &remains, self.context.clock.now());
        let mut status = json!({"phase": "Terminating"});
        if after != namespace.status.conditions {
            status["conditions"] = conditions::written(&after);
        }
        if after != namespace.status.conditions || namespace.status.phase != "Terminating" {
            let patch = json!({"metadata": {"uid": namespace.metadata.uid}, "status": status});
            self.context.perform(&Action::merge(NAMESPACES, key.clone(), patch).on("status")).await?;
        }
        if remains != Remains::default() || !discovered.failures.is_empty() {
            return Ok(Some(AGAIN));
        }
        match self.finalize(key).await {
            Err(error) if error.is_not_found() => Ok(None),
            outcome => outcome.map(|()| None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_remains_is_told_and_later_taken_back() {
        let now = Timestamp::UNIX_EPOCH;
        let remains = Remains {
            counts: BTreeMap::from([("pods.".into(), 2)]),
            finalizers: BTreeMap::from([("example.com/wait".into(), 1)]),
            failures: vec![],
        };
        let before = report(&[], &Discovered::default(), &remains, now);
        let said = |conditions: &[Condition], kind: &str| {
            let found = conditions::find(conditions, kind).expect("the condition");
            (found.status.clone(), found.message.clone())
        };
        assert_eq!(
            said(&before, "NamespaceContentRemaining"),
            ("True".into(), "Some resources are remaining: pods. has 2 resource instances".into())
        );
        assert_eq!(
            said(&before, "NamespaceFinalizersRemaining").1,
            "Some content in the namespace has finalizers remaining: example.com/wait in 1 resource instances"
        );
        assert_eq!(report(&before, &Discovered::default(), &remains, now), before);
        let after = report(&before, &Discovered::default(), &Remains::default(), now);
        assert_eq!(
            said(&after, "NamespaceContentRemaining"),
            ("False".into(), "All content successfully removed".into())
        );
    }

    #[test]
    fn a_group_that_is_down_is_named() {
        let discovered = Discovered { failures: vec![("x/v1".into(), "down".into())], ..Discovered::default() };
        let told = report(&[], &discovered, &Remains::default(), Timestamp::UNIX_EPOCH);
        let found = conditions::find(&told, "NamespaceDeletionDiscoveryFailure").expect("the condition");
        assert_eq!(found.message, "Discovery failed for some groups, 1 failing: x/v1: down");
    }
}
