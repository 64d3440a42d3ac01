//! The one path of every create and update: decode → convert → default → own → admit → prepare → validate → admit →
//! encode → commit. Everything between reading the old object and the commit runs again when another writer was faster.

mod decode;
mod keep;

use std::borrow::Cow;
use std::sync::Arc;

use sampan_api::apply::{self, ApplyError, Writer};
use sampan_api::error::FieldErrorKind;
use sampan_api::strategy::{self, Strategy};
use sampan_api::{Failure, FieldErrors, FieldPath, Kind, Reason, meta, object, schema};
use sampan_store::{Check, CommitError, Committed, Entry, Expect, Key, Txn, Write};
use serde_json::Value;

use crate::admission::{Operation, Request};
use crate::options::WriteOptions;
use crate::respond::{self, Object};
use crate::server::Call;
use crate::{fence, keys, namespaces, read, services};

pub(crate) use decode::{complete, complete_stored, decode, parse, payload};

/// What a write came to.
pub(crate) struct Written {
    /// 201 for a creation, 200 else.
    pub code: u16,
    pub object: Object,
}

/// Who writes what, constant over the attempts of one write.
pub(crate) struct Target<'a> {
    pub call: &'a Call,
    pub kind: &'a Arc<Kind>,
    pub namespace: &'a str,
    /// Empty for a create that has its name in the object.
    pub name: &'a str,
    pub subresource: &'a str,
    pub options: &'a WriteOptions,
}

impl Target<'_> {
    pub fn strategy(&self) -> &'static Strategy {
        strategy::of(&self.kind.storage.group, &self.kind.storage.kind)
    }

    /// Works out who owns which field of `new`.
    fn track(&self, live: Option<&Value>, new: &mut Value) -> Result<(), Failure> {
        self.as_writer(|writer| apply::track(&self.kind.schema, respond::storage_root(self.kind), live, new, writer))
    }

    /// Calls `with` as the writer of this request.
    pub fn as_writer<T>(&self, with: impl FnOnce(&Writer<'_>) -> Result<T, ApplyError>) -> Result<T, Failure> {
        let reset_fields: &[&str] = match self.subresource {
            "" if self.kind.has_status => &["status"],
            "status" => &["spec"],
            _ => &[],
        };
        let writer = Writer {
            manager: &self.options.manager(self.call.user_agent()),
            api_version: &self.kind.gvk.api_version(),
            subresource: self.subresource,
            now: self.call.server.config.clock.now(),
            reset_fields,
        };
        with(&writer).map_err(|error| error.into_failure(&self.kind.gvk.group, &self.kind.resource, self.name))
    }

    fn invalid(&self, name: &str, errors: FieldErrors) -> Result<(), Failure> {
        errors.into_result(&self.kind.gvk.group, &self.kind.gvk.kind, name)
    }

    pub fn conflict(&self, why: impl std::fmt::Display) -> Failure {
        Failure::conflict(&self.kind.gvk.group, &self.kind.resource, self.name, why)
    }

    fn forbidden(&self, why: impl std::fmt::Display) -> Failure {
        Failure::forbidden(&self.kind.gvk.group, &self.kind.resource, self.name, why)
    }
}

const MODIFIED: &str = "the object has been modified; please apply your changes to the latest version and try again";

/// A failed commit that says nothing about our own object.
pub(crate) fn uncommitted(error: &CommitError) -> Failure {
    match error {
        CommitError::Conflict { .. } => Failure::new(Reason::Conflict, error.to_string()),
        CommitError::ReadOnly(_) => Failure::new(Reason::ServiceUnavailable, error.to_string()),
        CommitError::Unavailable(_) => Failure::internal(error),
        other => Failure::internal(other),
    }
}

/// What one attempt to commit came to.
pub(crate) enum Attempt {
    Done(Committed),
    /// Another writer was faster with this key; the whole attempt is made again.
    Raced(Key),
}

/// Commits with the caller's fence among the checks.
pub(crate) async fn commit(call: &Call, mut txn: Txn) -> Result<Attempt, Failure> {
    let store = &call.server.config.store;
    if let Some(check) = fence::check(store, &call.headers)? {
        txn.checks.push(check);
    }
    match store.commit(txn).await {
        Ok(done) => Ok(Attempt::Done(done)),
        Err(CommitError::Conflict { key, .. }) => Ok(Attempt::Raced(key)),
        Err(error) => Err(uncommitted(&error)),
    }
}

/// Stores a new object. `sent` is complete and in the storage version.
pub(crate) async fn create(target: &Target<'_>, mut sent: Value) -> Result<Written, Failure> {
    place(target, &mut sent)?;
    target.track(None, &mut sent)?;
    create_owned(target, sent).await
}

/// The same when ownership of the fields is settled already (server-side apply).
pub(crate) async fn create_owned(target: &Target<'_>, mut tree: Value) -> Result<Written, Failure> {
    let Target { call, kind, .. } = target;
    let config = &call.server.config;
    place(target, &mut tree)?;
    if !object::resource_version(&tree).is_empty() {
        return Err(Failure::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let mut tree = mutated(target, Operation::Create, tree, &Value::Null).await?;
    let strategy = target.strategy();
    (strategy.prepare_create)(&mut tree);
    begin_metadata(target, &mut tree);
    let base: String = object::text(&tree, &["metadata", "generateName"]).chars().take(63 - 5).collect();
    if !object::name(&tree).is_empty() || base.is_empty() {
        let exists = || Failure::already_exists(&kind.gvk.group, &kind.resource, object::name(&tree));
        return store_new(target, &tree).await?.ok_or_else(exists);
    }
    // Generated names clash once in a hundred thousand; as upstream, give up after eight.
    for _ in 0..8 {
        let name = format!("{base}{}", config.dice.suffix(5));
        object::metadata_mut(&mut tree).insert("name".into(), name.into());
        if let Some(written) = store_new(target, &tree).await? {
            return Ok(written);
        }
    }
    let mut failure = Failure::already_exists(&kind.gvk.group, &kind.resource, &base);
    failure.message.push_str(", the server was not able to generate a unique name for the object");
    failure.retry_after_seconds = Some(1);
    Err(failure)
}

/// Validates and commits a new object that has its name. `None`: there is one of that name.
async fn store_new(target: &Target<'_>, prepared: &Value) -> Result<Option<Written>, Failure> {
    let Target { call, kind, .. } = target;
    let config = &call.server.config;
    let strategy = target.strategy();
    let name = object::name(prepared);
    let key = keys::key(kind, target.namespace, name);
    // When a neighbour was raced (a Service address, the namespace, the fence's lease) it is read again.
    loop {
        let mut tree = Cow::Borrowed(prepared);
        let mut txn = Txn::default();
        namespaces::admit_create(call, kind, target.namespace, &mut txn)?;
        if services::is_service(kind) {
            services::allocate(config, tree.to_mut(), None, target.options.dry_run, &mut txn)?;
        }
        let mut errors = meta::validate(&tree, strategy.name, kind.namespaced());
        errors.0.extend(schema::validate(&kind.schema, respond::storage_root(kind), &tree).0);
        errors.0.extend((strategy.validate_create)(&tree).0);
        target.invalid(name, errors)?;
        validated(target, Operation::Create, &tree, &Value::Null).await?;
        (strategy.warnings)(&tree, None).into_iter().for_each(|text| call.warn(text));
        warn_inert(call, kind);
        if target.options.dry_run {
            let free = config.store.get(&key).is_none();
            return Ok(free.then(|| Written { code: 201, object: Object::Tree(tree.into_owned()) }));
        }
        txn.checks.insert(0, Check { key: key.clone(), expect: Expect::Absent });
        txn.writes.insert(0, Write::Put { key: key.clone(), payload: payload(kind, &tree) });
        match commit(call, txn).await? {
            Attempt::Done(done) => {
                let entry = done.entries.into_iter().next().ok_or_else(|| Failure::internal("an empty commit"))?;
                return Ok(Some(Written { code: 201, object: Object::Stored(entry) }));
            }
            Attempt::Raced(raced) if raced == key => return Ok(None),
            Attempt::Raced(_) => {}
        }
    }
}

/// The object's namespace and name must be those of the request.
fn place(target: &Target<'_>, tree: &mut Value) -> Result<(), Failure> {
    let namespace = object::namespace(tree).to_owned();
    if target.kind.namespaced() {
        if target.namespace.is_empty() {
            return Err(Failure::bad_request("an empty namespace may not be set during creation"));
        }
        if namespace.is_empty() {
            object::metadata_mut(tree).insert("namespace".into(), target.namespace.into());
        } else if namespace != target.namespace {
            return Err(Failure::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
    } else if !namespace.is_empty() {
        object::metadata_mut(tree).remove("namespace");
    }
    let name = object::name(tree);
    if !target.name.is_empty() && name != target.name {
        if !name.is_empty() {
            return Err(Failure::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                target.name
            )));
        }
        object::metadata_mut(tree).insert("name".into(), target.name.into());
    }
    Ok(())
}

fn begin_metadata(target: &Target<'_>, tree: &mut Value) {
    let config = &target.call.server.config;
    let metadata = object::metadata_mut(tree);
    for dropped in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
        metadata.remove(dropped);
    }
    metadata.insert("uid".into(), config.dice.uid().into());
    metadata.insert("creationTimestamp".into(), timestamp(config.clock.now()).into());
    if target.kind.has_generation {
        metadata.insert("generation".into(), 1.into());
    } else {
        metadata.remove("generation");
    }
}

/// RFC 3339 with whole seconds.
pub(crate) fn timestamp(now: jiff::Timestamp) -> String {
    now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn warn_inert(call: &Call, kind: &Kind) {
    if kind.inert {
        call.warn(format!("no controller of this cluster acts on {} yet: the object is only stored", kind.gvk.kind));
    }
}

/// Runs the mutating plug-ins; what they added is defaulted like what a client sent.
async fn mutated(target: &Target<'_>, operation: Operation, tree: Value, old: &Value) -> Result<Value, Failure> {
    let call = target.call;
    if call.server.config.plugins.is_empty() {
        return Ok(tree);
    }
    let name = object::name(&tree).to_owned();
    let mut request = request(target, operation, &name, tree, old);
    for plugin in &call.server.config.plugins {
        plugin.mutate(&mut request).await?;
    }
    let Request { object: mut tree, warnings, .. } = request;
    warnings.into_iter().for_each(|text| call.warn(text));
    complete_stored(target.kind, &mut tree);
    Ok(tree)
}

async fn validated(target: &Target<'_>, operation: Operation, tree: &Value, old: &Value) -> Result<(), Failure> {
    let plugins = &target.call.server.config.plugins;
    if plugins.is_empty() {
        return Ok(());
    }
    let request = request(target, operation, object::name(tree), tree.clone(), old);
    for plugin in plugins {
        plugin.validate(&request).await?;
    }
    Ok(())
}

fn request<'a>(
    target: &'a Target<'_>,
    operation: Operation,
    name: &'a str,
    tree: Value,
    old: &'a Value,
) -> Request<'a> {
    Request {
        operation,
        kind: target.kind,
        subresource: target.subresource,
        namespace: target.namespace,
        name,
        user: &target.call.user,
        object: tree,
        old,
        options: Value::Null,
        dry_run: target.options.dry_run,
        warnings: Vec::new(),
    }
}

/// What an update makes of the stored object.
pub(crate) enum Change {
    /// As a client sent it: complete, in the storage version. Ownership of its fields is worked out here.
    Sent(Value),
    /// The same, but ownership is settled already (server-side apply).
    Owned(Value),
}

/// Changes an object. `make` gets the stored object (storage version) and answers what it should become; it runs again
/// on the newer object when another writer was faster. It answers with `Err` to refuse.
pub(crate) async fn update(
    target: &Target<'_>,
    mut make: impl FnMut(&Value) -> Result<Change, Failure>,
) -> Result<Written, Failure> {
    let Target { call, kind, namespace, name, .. } = target;
    let config = &call.server.config;
    let strategy = target.strategy();
    loop {
        let entry = read::find(&config.store, kind, namespace, name)?;
        let old = parse(&entry)?;
        let (mut new, owned) = match make(&old)? {
            Change::Sent(new) => (new, false),
            Change::Owned(new) => (new, true),
        };
        place(target, &mut new)?;
        preconditions(target, &entry, &old, &new)?;
        keep::keep(kind, target.subresource, &old, &mut new);
        if !owned {
            target.track(Some(&old), &mut new)?;
        }
        let mut new = mutated(target, Operation::Update, new, &old).await?;
        if target.subresource.is_empty() {
            (strategy.prepare_update)(&mut new, &old);
        }
        if kind.has_generation && !keep::same_desire(&new, &old) {
            let generation = object::lookup(&old, &["metadata", "generation"]).and_then(Value::as_i64).unwrap_or(0);
            object::metadata_mut(&mut new).insert("generation".into(), (generation + 1).into());
        }
        let mut txn = Txn::default();
        let ended = ended(kind, &new, &old);
        if ended {
            services::release(kind, &old, &mut txn);
        } else if services::is_service(kind) {
            services::allocate(config, &mut new, Some(&old), target.options.dry_run, &mut txn)?;
        }
        let mut errors = meta::validate(&new, strategy.name, kind.namespaced());
        errors.0.extend(meta::validate_update(&new, &old).0);
        errors.0.extend(schema::validate_update(&kind.schema, respond::storage_root(kind), &new, &old).0);
        if target.subresource.is_empty() {
            errors.0.extend((strategy.validate_update)(&new, &old).0);
        } else {
            errors.0.extend((strategy.validate_subresource)(target.subresource, &new, &old).0);
        }
        target.invalid(name, errors)?;
        validated(target, Operation::Update, &new, &old).await?;
        if target.subresource.is_empty() {
            (strategy.warnings)(&new, Some(&old)).into_iter().for_each(|text| call.warn(text));
            warn_inert(call, kind);
        }
        if keep::unchanged(&new, &old) && txn.writes.is_empty() {
            // Nothing changed: nothing is written, and the revision stays.
            fence::check(&config.store, &call.headers)?;
            return Ok(Written { code: 200, object: Object::Stored(entry) });
        }
        if target.options.dry_run {
            return Ok(Written { code: 200, object: Object::Tree(new) });
        }
        let payload = payload(kind, &new);
        txn.checks.insert(0, Check { key: entry.key.clone(), expect: Expect::Modified(entry.modified) });
        txn.writes.insert(
            0,
            if ended {
                Write::Delete { key: entry.key.clone(), last: Some(payload) }
            } else {
                Write::Put { key: entry.key.clone(), payload }
            },
        );
        if let Attempt::Done(done) = commit(call, txn).await? {
            let entry = done.entries.into_iter().next().ok_or_else(|| Failure::internal("an empty commit"))?;
            return Ok(Written { code: 200, object: Object::Stored(entry) });
        }
    }
}

/// The change takes away the last thing an object that shall go was kept for.
fn ended(kind: &Kind, new: &Value, old: &Value) -> bool {
    let grace = object::lookup(old, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64);
    object::lookup(new, &["metadata", "deletionTimestamp"]).is_some()
        && !namespaces::has_finalizers(kind, new)
        && grace.unwrap_or(0) == 0
}

fn preconditions(target: &Target<'_>, entry: &Entry, old: &Value, new: &Value) -> Result<(), Failure> {
    let version = object::resource_version(new);
    if version.is_empty() {
        if !target.strategy().unconditional_update && target.subresource.is_empty() {
            let mut errors = FieldErrors::default();
            let field = FieldPath::new("metadata").child("resourceVersion");
            errors.push(field, FieldErrorKind::Invalid(0.into()), "must be specified for an update");
            return target.invalid(target.name, errors);
        }
    } else if version != entry.modified.0.to_string() {
        if version.parse::<u64>().is_err() {
            let mut errors = FieldErrors::default();
            let field = FieldPath::new("metadata").child("resourceVersion");
            errors.invalid(field, version, format!("strconv.ParseUint: parsing {version:?}: invalid syntax"));
            return target.invalid(target.name, errors);
        }
        return Err(target.conflict(MODIFIED));
    }
    let (sent, stored) = (object::uid(new), object::uid(old));
    if !sent.is_empty() && sent != stored {
        let why = format!("Precondition failed: UID in precondition: {sent}, UID in object meta: {stored}");
        return Err(target.conflict(why));
    }
    Ok(())
}

/// `PUT`: replaces the object, or creates it where the kind allows that.
pub(crate) async fn replace(target: &Target<'_>, sent: Value) -> Result<Written, Failure> {
    let store = &target.call.server.config.store;
    let key = keys::key(target.kind, target.namespace, target.name);
    if target.strategy().create_on_update && target.subresource.is_empty() && store.get(&key).is_none() {
        let mut fresh = sent.clone();
        object::metadata_mut(&mut fresh).remove("resourceVersion");
        match create(target, fresh).await {
            Err(failure) if failure.reason == Reason::AlreadyExists => {}
            other => return other,
        }
    }
    if target.name.is_empty() {
        return Err(target.forbidden("a name is required"));
    }
    update(target, |_| Ok(Change::Sent(sent.clone()))).await
}
