//! `delete` and `deletecollection`: preconditions, grace, propagation and finalizers
//! (`k8s.io/apiserver/pkg/registry/rest/delete.go`, `registry/generic/registry/store.go`).

use std::sync::Arc;

use http::Response;
use sampan_api::{Failure, FieldErrors, Kind, object, strategy};
use sampan_store::{Check, Entry, Expect, Txn, Write};
use serde_json::{Value, json};

use crate::admission::{Operation, Request};
use crate::body::ResponseBody;
use crate::negotiate::Format;
use crate::options::{DeleteOptions, ListOptions, Propagation};
use crate::read::{self, Found};
use crate::respond::{self, Object};
use crate::server::Call;
use crate::write::{self, Attempt};
use crate::{fence, namespaces, services};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// What is to be done with an object that shall go. Pure result of [`decide`].
#[derive(Debug, PartialEq)]
enum Plan {
    /// It is on its way already and nothing about that changes.
    Pending,
    /// It stays for now, marked like this.
    Mark(Value),
    /// It goes at once.
    Remove,
}

/// The decision, from the stored object, what the caller asked and the time.
fn decide(kind: &Kind, old: &Value, options: &DeleteOptions, now: jiff::Timestamp) -> Plan {
    let grace = strategy::of(&kind.storage.group, &kind.storage.kind).grace;
    let mut new = old.clone();
    set_propagation_finalizers(kind, &mut new, options);
    let finalizers_changed = new != *old;
    let bump = |tree: &mut Value| {
        let generation = object::lookup(tree, &["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0);
        if generation > 0 {
            object::metadata_mut(tree).insert("generation".into(), (generation + 1).into());
        }
    };
    let number = |field: &str| object::lookup(old, &["metadata", field]).and_then(Value::as_i64);
    let started: Option<jiff::Timestamp> = object::text(old, &["metadata", "deletionTimestamp"]).parse().ok();
    if let (Some(grace), None) = (grace, started) {
        let seconds = grace(old, options.grace_period_seconds);
        if seconds > 0 {
            let end = now.saturating_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(jiff::Timestamp::MAX);
            bump(&mut new);
            let metadata = object::metadata_mut(&mut new);
            metadata.insert("deletionTimestamp".into(), write::timestamp(end).into());
            metadata.insert("deletionGracePeriodSeconds".into(), seconds.into());
            return Plan::Mark(new);
        }
    }
    if let (Some(_), Some(end), Some(pending)) = (grace, started, number("deletionGracePeriodSeconds"))
        && pending > 0
    {
        // A grace period that runs can only be made shorter.
        let Some(asked) = options.grace_period_seconds.filter(|asked| *asked < pending) else { return Plan::Pending };
        let shorter = end.saturating_sub(jiff::SignedDuration::from_secs(pending - asked)).unwrap_or(end);
        if asked > 0 || namespaces::has_finalizers(kind, &new) {
            let metadata = object::metadata_mut(&mut new);
            metadata.insert("deletionTimestamp".into(), write::timestamp(shorter).into());
            metadata.insert("deletionGracePeriodSeconds".into(), asked.into());
            return Plan::Mark(new);
        }
        return Plan::Remove;
    }
    if !namespaces::has_finalizers(kind, &new) {
        return Plan::Remove;
    }
    if started.is_some() && !finalizers_changed {
        return Plan::Pending;
    }
    if started.is_none() {
        bump(&mut new);
        let metadata = object::metadata_mut(&mut new);
        metadata.insert("deletionTimestamp".into(), write::timestamp(now).into());
        metadata.insert("deletionGracePeriodSeconds".into(), 0.into());
        namespaces::terminate(kind, &mut new);
    }
    Plan::Mark(new)
}

/// The garbage collector's orders stand in finalizers; a caller's wish replaces them.
fn set_propagation_finalizers(kind: &Kind, tree: &mut Value, options: &DeleteOptions) {
    let finalizers = object::lookup(tree, &["metadata", "finalizers"]).and_then(Value::as_array);
    let finalizers: Vec<String> =
        finalizers.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect();
    let has = |name: &str| finalizers.iter().any(|finalizer| finalizer == name);
    let wanted = match options.propagation() {
        Some(Propagation::Orphan) => Some(ORPHAN),
        Some(Propagation::Foreground) => Some(FOREGROUND),
        Some(Propagation::Background) => None,
        None if has(ORPHAN) => Some(ORPHAN),
        None if has(FOREGROUND) => Some(FOREGROUND),
        // The two whose dependents were orphaned before anyone could ask (`DefaultGarbageCollectionPolicy`).
        None if matches!(
            (kind.gvk.group.as_str(), kind.gvk.kind.as_str()),
            ("batch", "Job") | ("", "ReplicationController")
        ) =>
        {
            Some(ORPHAN)
        }
        None => None,
    };
    let mut new: Vec<String> =
        finalizers.iter().filter(|finalizer| *finalizer != ORPHAN && *finalizer != FOREGROUND).cloned().collect();
    new.extend(wanted.map(str::to_owned));
    let mut before = finalizers.clone();
    before.sort();
    let mut after = new.clone();
    after.sort();
    if before == after {
        return;
    }
    let metadata = object::metadata_mut(tree);
    if new.is_empty() {
        metadata.remove("finalizers");
    } else {
        metadata.insert("finalizers".into(), new.into());
    }
}

/// What a deletion came to.
pub(crate) enum Deleted {
    /// The object is gone; its last state.
    Gone(Entry),
    /// It goes later; its present state.
    Going(Object),
    /// It would be gone.
    DryRun(Value),
}

pub(crate) async fn one(
    call: &Call,
    kind: &Arc<Kind>,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deleted, Failure> {
    let config = &call.server.config;
    let (group, resource) = (&kind.gvk.group, &kind.resource);
    namespaces::admit_delete(kind, name)?;
    loop {
        let entry = read::find(&config.store, kind, namespace, name)?;
        let old = write::parse(&entry)?;
        let stored_uid = object::uid(&old);
        if let Some(uid) = options.preconditions.uid.as_deref().filter(|uid| *uid != stored_uid) {
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {stored_uid}");
            return Err(Failure::conflict(group, resource, name, why));
        }
        let stored_revision = entry.modified.0.to_string();
        if let Some(revision) = options.preconditions.resource_version.as_deref().filter(|one| *one != stored_revision)
        {
            let why = format!(
                "Precondition failed: ResourceVersion in precondition: {revision}, ResourceVersion in object meta: {stored_revision}"
            );
            return Err(Failure::conflict(group, resource, name, why));
        }
        admitted(call, kind, namespace, name, &old, options).await?;
        let plan = decide(kind, &old, options, config.clock.now());
        let mut txn = Txn {
            checks: vec![Check { key: entry.key.clone(), expect: Expect::Modified(entry.modified) }],
            writes: Vec::new(),
        };
        let gone = match plan {
            Plan::Pending => return Ok(Deleted::Going(Object::Stored(entry))),
            Plan::Mark(new) if options.dry_run => return Ok(Deleted::Going(Object::Tree(new))),
            Plan::Remove if options.dry_run => return Ok(Deleted::DryRun(old)),
            Plan::Mark(new) => {
                let errors: FieldErrors =
                    sampan_api::meta::validate(&new, strategy::of(group, &kind.gvk.kind).name, kind.namespaced());
                errors.into_result(group, &kind.gvk.kind, name)?;
                txn.writes.push(Write::Put { key: entry.key.clone(), payload: write::payload(kind, &new) });
                false
            }
            Plan::Remove => {
                txn.writes.push(Write::Delete { key: entry.key.clone(), last: None });
                services::release(kind, &old, &mut txn);
                true
            }
        };
        if let Attempt::Done(done) = write::commit(call, txn).await? {
            let entry = done.entries.into_iter().next().ok_or_else(|| Failure::internal("an empty commit"))?;
            return Ok(if gone { Deleted::Gone(entry) } else { Deleted::Going(Object::Stored(entry)) });
        }
    }
}

async fn admitted(
    call: &Call,
    kind: &Arc<Kind>,
    namespace: &str,
    name: &str,
    old: &Value,
    options: &DeleteOptions,
) -> Result<(), Failure> {
    let plugins = &call.server.config.plugins;
    if plugins.is_empty() {
        return Ok(());
    }
    let mut request = Request {
        operation: Operation::Delete,
        kind,
        subresource: "",
        namespace,
        name,
        user: &call.user,
        object: Value::Null,
        old,
        options: Value::Null,
        dry_run: options.dry_run,
        warnings: Vec::new(),
    };
    for plugin in plugins {
        plugin.mutate(&mut request).await?;
    }
    for plugin in plugins {
        plugin.validate(&request).await?;
    }
    request.warnings.drain(..).for_each(|text| call.warn(text));
    Ok(())
}

/// Kinds whose deletion answers with the object instead of a Status (`ReturnDeletedObject` upstream).
fn returns_object(kind: &Kind) -> bool {
    kind.gvk.group.is_empty()
        && matches!(
            kind.resource.as_str(),
            "pods"
                | "podtemplates"
                | "persistentvolumes"
                | "persistentvolumeclaims"
                | "resourcequotas"
                | "services"
                | "serviceaccounts"
        )
}

pub(crate) async fn delete(
    call: &Call,
    format: Format,
    kind: &Arc<Kind>,
    options: &DeleteOptions,
) -> Result<Response<ResponseBody>, Failure> {
    let gone = match one(call, kind, &call.info.namespace, &call.info.name, options).await? {
        Deleted::Going(going) => return respond::object(call, format, 200, kind, going),
        Deleted::Gone(entry) => Object::Stored(entry),
        Deleted::DryRun(tree) => Object::Tree(tree),
    };
    if returns_object(kind) {
        return respond::object(call, format, 200, kind, gone);
    }
    let uid = match &gone {
        Object::Stored(entry) => object::uid(&write::parse(entry)?).to_owned(),
        Object::Tree(tree) => object::uid(tree).to_owned(),
    };
    Ok(respond::json(200, &success(kind, &call.info.name, &uid)))
}

fn success(kind: &Kind, name: &str, uid: &str) -> Value {
    let mut details = json!({"name": name, "kind": kind.resource, "uid": uid});
    if !kind.gvk.group.is_empty() {
        details["group"] = kind.gvk.group.clone().into();
    }
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}

/// Deletes what the selectors take; answers with the list of what was there.
pub(crate) async fn collection(
    call: &Call,
    format: Format,
    kind: &Arc<Kind>,
    options: &DeleteOptions,
) -> Result<Response<ResponseBody>, Failure> {
    let list = ListOptions::parse(&call.info, kind)?;
    let found: Found = read::find_all(&call.server.config.store, kind, &call.info.namespace, &list).await?;
    fence::check(&call.server.config.store, &call.headers)?;
    for entry in &found.entries {
        let (namespace, name) = crate::keys::parts(kind, &entry.key);
        match one(call, kind, namespace, name, options).await {
            // Someone else was faster.
            Err(failure) if failure.code == 404 => {}
            other => {
                other?;
            }
        }
    }
    read::answer(call, format, kind, found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sampan_api::kind::builtin;

    fn plan(resource: (&str, &str), old: Value, options: Value) -> Plan {
        let kinds = builtin();
        let kind = kinds.resource(resource.0, "v1", resource.1).expect("a built-in kind");
        let options = DeleteOptions::parse(&Default::default(), Some(options)).expect("options");
        decide(kind, &old, &options, "2030-01-01T00:00:00Z".parse().expect("a time"))
    }

    #[test]
    fn propagation_becomes_finalizers() {
        let config_map = || json!({"metadata": {"name": "a"}});
        assert_eq!(plan(("", "configmaps"), config_map(), json!({})), Plan::Remove);
        for (policy, finalizer) in [("Orphan", ORPHAN), ("Foreground", FOREGROUND)] {
            let Plan::Mark(new) = plan(("", "configmaps"), config_map(), json!({"propagationPolicy": policy})) else {
                panic!("{policy} keeps the object");
            };
            assert_eq!(new["metadata"]["finalizers"], json!([finalizer]));
            assert_eq!(new["metadata"]["deletionTimestamp"], "2030-01-01T00:00:00Z");
            assert_eq!(new["metadata"]["deletionGracePeriodSeconds"], 0);
        }
        let job = json!({"metadata": {"name": "j", "generation": 1}});
        let Plan::Mark(new) = plan(("batch", "jobs"), job.clone(), json!({})) else { panic!("jobs orphan by default") };
        assert_eq!((&new["metadata"]["finalizers"], &new["metadata"]["generation"]), (&json!([ORPHAN]), &json!(2)));
        assert_eq!(plan(("batch", "jobs"), job, json!({"propagationPolicy": "Background"})), Plan::Remove);
    }

    #[test]
    fn a_second_deletion_changes_nothing_while_finalizers_hold() {
        let held = json!({"metadata": {"name": "a", "finalizers": ["x/y"], "deletionTimestamp": "2029-01-01T00:00:00Z",
                                       "deletionGracePeriodSeconds": 0}});
        assert_eq!(plan(("", "configmaps"), held, json!({})), Plan::Pending);
    }

    #[test]
    fn a_namespace_waits_for_its_own_finalizers() {
        let namespace =
            json!({"metadata": {"name": "a"}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"}});
        let Plan::Mark(new) = plan(("", "namespaces"), namespace, json!({})) else { panic!("it stays for now") };
        assert_eq!(new["status"]["phase"], "Terminating");
        let empty = json!({"metadata": {"name": "a", "deletionTimestamp": "2029-01-01T00:00:00Z"}, "spec": {}});
        assert_eq!(plan(("", "namespaces"), empty, json!({})), Plan::Remove);
    }
}
