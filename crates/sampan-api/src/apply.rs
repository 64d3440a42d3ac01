//! Who manages which fields: server-side apply, and the tracking of all other writes.
//!
//! Everything is compared in the version that is written. Entries that other versions of a kind left keep their paths,
//! which is right where the versions name the fields alike.

mod managers;
mod set;
mod typed;

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::error::{Cause, Failure, Reason};
use crate::object;
use crate::schema::{Schema, TypeId};
use managers::{Manager, Managers};
use set::{Set, go_json, path_text};
use typed::{Misfit, Typed};

/// Fields of every object that nobody manages (`stripmeta.go`).
const NEVER: &[&str] = &[
    "apiVersion",
    "kind",
    "metadata",
    "metadata.name",
    "metadata.namespace",
    "metadata.creationTimestamp",
    "metadata.selfLink",
    "metadata.uid",
    "metadata.clusterName",
    "metadata.generation",
    "metadata.managedFields",
    "metadata.resourceVersion",
];

/// What `kubectl apply` without `--server-side` remembers.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
const ANNOTATIONS_BYTES: usize = 256 << 10;

/// Who writes, through what, when.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// Empty: `unknown`.
    pub manager: &'a str,
    /// Of the object as it is written.
    pub api_version: &'a str,
    /// Empty for the main resource.
    pub subresource: &'a str,
    pub now: Timestamp,
    /// Fields that a write through this resource resets, so that it can't come to manage them: `["status"]` on the main
    /// resource of a kind with a status, `["spec"]` on its `/status`.
    pub reset_fields: &'a [&'a str],
}

impl Writer<'_> {
    fn time(&self) -> String {
        self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Apply,
    Update,
}

impl Operation {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// A field that is to change although someone else manages it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    pub manager: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
    /// Serialised path elements.
    path: Vec<String>,
}

impl Conflict {
    /// `.spec.containers[name="a"].image`
    pub fn field(&self) -> String {
        path_text(&self.elements())
    }

    fn elements(&self) -> Vec<&str> {
        self.path.iter().map(String::as_str).collect()
    }

    fn holder(&self) -> String {
        let mut text = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            text = format!("{text} with subresource {:?}", self.subresource);
        }
        if self.operation == Operation::Update {
            text = format!("{text} using {}", self.api_version);
        }
        text
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The applied configuration is not one, or does not fit the schema.
    #[error("{0}")]
    Invalid(String),
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", one.holder(), one.field());
    }
    let holders: BTreeSet<String> = conflicts.iter().map(Conflict::holder).collect();
    let mut lines = Vec::new();
    for holder in holders {
        lines.push(format!("conflicts with {holder}:"));
        let own = conflicts.iter().filter(|conflict| conflict.holder() == holder);
        lines.extend(own.map(|conflict| format!("- {}", conflict.field())));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

impl ApplyError {
    /// What the client is told: 409 with one cause a field, or 400. As upstream does, a conflict's details name the
    /// fields only; `group`, `resource` and `name` tell what an invalid configuration was for.
    pub fn into_failure(self, group: &str, resource: &str, name: &str) -> Failure {
        let message = self.to_string();
        match self {
            Self::Conflicts(conflicts) => {
                let mut failure = Failure::new(Reason::Conflict, message);
                let causes = conflicts.iter().map(|conflict| Cause {
                    reason: "FieldManagerConflict".into(),
                    message: format!("conflict with {}", conflict.holder()),
                    field: conflict.field(),
                });
                failure.causes = causes.collect();
                failure
            }
            Self::Invalid(_) => Failure::bad_request(message).about(group, resource, name),
        }
    }
}

fn entries(object: Option<&Value>) -> Option<&Value> {
    object.and_then(|object| object::lookup(object, &["metadata", "managedFields"]))
}

fn set_entries(object: &mut Value, managers: Managers) {
    match managers.encode() {
        Some(entries) => {
            object::metadata_mut(object).insert("managedFields".into(), entries);
        }
        None => {
            if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("managedFields");
            }
        }
    }
}

/// `metadata.managedFields: []` or `[{}]` asks to forget all managers.
fn asks_for_reset(entries: Option<&Value>) -> bool {
    match entries.and_then(Value::as_array).map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// Records a create, update or patch in `new`'s managed fields. `live` is what was stored, `None` on create. An error
/// says that one of the two does not fit the schema: `new` has then `live`'s managed fields, and the write may go on.
pub fn track(
    schema: &Schema,
    root: TypeId,
    live: Option<&Value>,
    new: &mut Value,
    writer: &Writer<'_>,
) -> Result<(), ApplyError> {
    let stored = entries(live);
    let as_stored = entries(Some(new)).is_none_or(|own| Some(own) == stored);
    if let (Some(live), Some(stored), true) = (live, stored, as_stored)
        && equal_but_managers(live, new)
    {
        object::metadata_mut(new).insert("managedFields".into(), stored.clone());
        return Ok(());
    }
    let of_live = || Managers::decode(stored, true).unwrap_or_default();
    let managers = if !writer.subresource.is_empty() || as_stored {
        of_live()
    } else if asks_for_reset(entries(Some(new))) {
        Managers::default()
    } else {
        match Managers::decode(entries(Some(new)), false) {
            Some(managers) if !managers.is_empty() => managers,
            _ => of_live(),
        }
    };
    set_entries(new, Managers::default());
    // Tracking starts with the creation or never, until someone applies.
    if managers.is_empty() && live.is_some_and(|live| !object::uid(live).is_empty()) {
        return Ok(());
    }
    match updated(Typed { schema }, root, live, new, managers, Manager::new(writer, Operation::Update), writer) {
        Ok(managers) => {
            finish(live, new, managers);
            Ok(())
        }
        Err(misfit) => {
            if let Some(entries) = entries(live) {
                object::metadata_mut(new).insert("managedFields".into(), entries.clone());
            }
            Err(ApplyError::Invalid(format!("failed to compare live and new objects: {misfit}")))
        }
    }
}

fn updated(
    typed: Typed<'_>,
    root: TypeId,
    live: Option<&Value>,
    new: &Value,
    mut managers: Managers,
    who: Manager,
    writer: &Writer<'_>,
) -> Result<Managers, Misfit> {
    managers.change_fields(|fields| typed.reconcile(Some(root), fields));
    let nothing = Value::Object(Map::new());
    let reset = Set::of_fields(writer.reset_fields);
    let difference = typed.compare(Some(root), Some(live.unwrap_or(&nothing)), Some(new))?.without(&reset);
    managers.update(who, difference, &reset, &Set::of_fields(NEVER));
    Ok(managers)
}

/// Writes the managed fields. A write that changes nothing but their times does not change these either, so that it is
/// none.
fn finish(live: Option<&Value>, new: &mut Value, managers: Managers) {
    set_entries(new, managers);
    if let (Some(live), Some(before), Some(after)) = (live, entries(live), entries(Some(new)))
        && same_but_times(before, after)
        && equal_but_managers(live, new)
    {
        let before = before.clone();
        object::metadata_mut(new).insert("managedFields".into(), before);
    }
}

fn same_but_times(before: &Value, after: &Value) -> bool {
    let (Some(before), Some(after)) = (before.as_array(), after.as_array()) else { return false };
    let rest = |entry: &Map<String, Value>| entry.len() - usize::from(entry.contains_key("time"));
    let same = |a: &Value, b: &Value| match (a.as_object(), b.as_object()) {
        (Some(a), Some(b)) => {
            rest(a) == rest(b) && a.iter().all(|(key, value)| key == "time" || b.get(key) == Some(value))
        }
        _ => false,
    };
    before.len() == after.len() && after.iter().all(|entry| before.iter().any(|other| same(entry, other)))
}

fn equal_but_managers(live: &Value, new: &Value) -> bool {
    let (Some(live), Some(new)) = (live.as_object(), new.as_object()) else { return false };
    let same = |a: &Map<String, Value>, b: &Map<String, Value>, but: &str| {
        let rest = |map: &Map<String, Value>| map.len() - usize::from(map.contains_key(but));
        rest(a) == rest(b) && a.iter().all(|(key, value)| key == but || b.get(key) == Some(value))
    };
    fn metadata(object: &Map<String, Value>) -> Option<&Map<String, Value>> {
        object.get("metadata").and_then(Value::as_object)
    }
    same(live, new, "metadata")
        && match (metadata(live), metadata(new)) {
            (Some(live), Some(new)) => same(live, new, "managedFields"),
            (live, new) => live == new,
        }
}

/// Applies a configuration: `live` with `applied` laid over it and without what this manager applied before and nobody
/// manages any more; with managed fields. `live` is `None` when the object does not exist yet.
pub fn apply(
    schema: &Schema,
    root: TypeId,
    live: Option<&Value>,
    applied: &Value,
    writer: &Writer<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    let version = object::text(applied, &["apiVersion"]);
    if version != writer.api_version {
        return Err(ApplyError::Invalid(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {}",
            writer.api_version
        )));
    }
    if entries(Some(applied)).is_some_and(|entries| !entries.is_null()) {
        return Err(ApplyError::Invalid("metadata.managedFields must be nil".into()));
    }
    let Some(mut managers) = Managers::decode(entries(live), true) else {
        return Err(ApplyError::Invalid("failed to decode managed fields".into()));
    };
    let typed = || Typed { schema };
    if let (Some(live), true) = (live, managers.is_empty()) {
        let mut object = live.clone();
        set_entries(&mut object, Managers::default());
        let before = Writer { manager: "before-first-apply", ..*writer };
        managers = updated(typed(), root, None, &object, managers, Manager::new(&before, Operation::Update), &before)
            .map_err(|misfit| {
            ApplyError::Invalid(format!("failed to create manager for existing fields: {misfit}"))
        })?;
    }
    let attempt = Attempt { typed: typed(), root, live, applied, writer };
    let mut outcome = attempt.run(managers.clone(), force);
    if let (Err(ApplyError::Conflicts(conflicts)), "kubectl") = (&outcome, writer.manager) {
        outcome = match attempt.not_client_side(conflicts) {
            Some(rest) if rest.is_empty() => attempt.run(managers, true),
            Some(rest) => Err(ApplyError::Conflicts(rest)),
            None => outcome,
        };
    }
    outcome
}

struct Attempt<'a> {
    typed: Typed<'a>,
    root: TypeId,
    live: Option<&'a Value>,
    applied: &'a Value,
    writer: &'a Writer<'a>,
}

impl Attempt<'_> {
    fn run(&self, mut managers: Managers, force: bool) -> Result<Value, ApplyError> {
        let (typed, root) = (&self.typed, Some(self.root));
        let misfit = |misfit: Misfit| {
            let name = object::name(self.applied);
            let kind = object::text(self.applied, &["kind"]);
            let namespace = object::namespace(self.applied);
            let version = self.writer.api_version;
            let gvk = format!("{version}, Kind={kind}");
            ApplyError::Invalid(format!("failed to create typed patch object ({namespace}/{name}; {gvk}): {misfit}"))
        };
        let mut live = self.live.cloned().unwrap_or_else(|| Value::Object(Map::new()));
        set_entries(&mut live, Managers::default());
        let reset = Set::of_fields(self.writer.reset_fields);
        let mut fields = typed.fields(root, self.applied, true).map_err(misfit)?;
        fields.subtract_branches(&reset);

        managers.change_fields(|fields| typed.reconcile(root, fields));
        let mut who = Manager::new(self.writer, Operation::Apply);
        let last = managers.take(&who);
        let mut merged = typed.merge(root, &live, self.applied).map_err(misfit)?;
        if let Some(last) = last.as_ref().filter(|last| !last.fields.is_subset(&fields)) {
            let managed = managers.union().union(fields.clone());
            merged = self.pruned(merged, last.fields.clone(), managed).map_err(misfit)?;
        }
        let difference = typed.compare(root, Some(&live), Some(&merged)).map_err(misfit)?.without(&reset);
        let (changed, removed) = difference.into_changed_and_removed();
        let conflicts = managers.conflicts(&changed);
        if !force && !conflicts.is_empty() {
            return Err(ApplyError::Conflicts(conflicts));
        }
        managers.lose(&changed, &removed);

        fields.subtract(&Set::of_fields(NEVER));
        who.fields = fields;
        if let Some(last) = last.filter(|last| last.fields == who.fields && live == merged) {
            who.time = last.time;
        }
        managers.put(who);
        self.refresh_last_applied(&mut merged);
        finish(self.live, &mut merged, managers);
        Ok(merged)
    }

    /// Takes out of `merged` what was applied before (`last`) and is managed by nobody now.
    fn pruned(&self, merged: Value, mut last: Set, mut managed: Set) -> Result<Value, Misfit> {
        let root = Some(self.root);
        let without = |gone: &Set| {
            let mut object = merged.clone();
            self.typed.remove(root, &mut object, gone);
            object
        };
        let fields = |object: &Value| {
            let mut fields = self.typed.fields(root, object, false)?;
            self.typed.name_fields(root, &mut fields);
            Ok(fields)
        };
        self.typed.name_fields(root, &mut last);
        self.typed.name_fields(root, &mut managed);
        let all = fields(&merged)?;
        let mut gone = all.clone();
        gone.subtract(&fields(&without(&last))?.union(managed));
        let mut gone_after_all = all;
        gone_after_all.subtract(&fields(&without(&gone))?);
        Ok(without(&gone_after_all.intersection(&last)))
    }

    /// The conflicts left when those are forgiven that come from client-side apply alone: the field is as that applied
    /// it. `None` when the object was not applied so.
    fn not_client_side(&self, conflicts: &[Conflict]) -> Option<Vec<Conflict>> {
        let live = self.live?;
        let text = live.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()?;
        let last: Value = serde_json::from_str(text).ok()?;
        if object::text(&last, &["apiVersion"]) != self.writer.api_version {
            return None;
        }
        let root = Some(self.root);
        let mut forgiven = self.typed.fields(root, &last, true).ok()?;
        let difference = self.typed.compare(root, Some(&last), Some(live)).ok()?;
        for moved in [&difference.modified, &difference.added, &difference.removed] {
            forgiven.subtract(moved);
        }
        Some(conflicts.iter().filter(|conflict| !forgiven.has(&conflict.elements())).cloned().collect())
    }

    /// Keeps client-side apply's memory true, so that a user may go back to it.
    fn refresh_last_applied(&self, merged: &mut Value) {
        let annotations = merged.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations"));
        let Some(annotations) = annotations.and_then(Value::as_object_mut) else { return };
        let has = annotations.get(LAST_APPLIED).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
        if self.writer.manager != "kubectl" || !has {
            return;
        }
        let mut applied = self.applied.clone();
        if let Some(Value::Object(map)) =
            applied.get_mut("metadata").and_then(|metadata| metadata.get_mut("annotations"))
        {
            map.remove(LAST_APPLIED);
        }
        annotations.insert(LAST_APPLIED.into(), format!("{}\n", go_json(&applied)).into());
        let size: usize = annotations.iter().map(|(key, value)| key.len() + value.as_str().map_or(0, str::len)).sum();
        if size > ANNOTATIONS_BYTES {
            annotations.remove(LAST_APPLIED);
        }
    }
}

#[cfg(test)]
mod tests;
