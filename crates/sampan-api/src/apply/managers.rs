//! The managers of an object's fields: reading and writing `metadata.managedFields`, and who gains and loses what when
//! an object changes (`structured-merge-diff` package `merge`, `apimachinery/pkg/util/managedfields`).

use serde_json::{Map, Value, json};

use super::set::Set;
use super::typed::Difference;
use super::{Conflict, Operation, Writer};

/// More managers of updates than this are merged, oldest first.
const UPDATE_MANAGERS: usize = 10;
/// Under this name.
const ANCIENT: &str = "ancient-changes";

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq)]
pub struct Manager {
    pub name: String,
    pub operation: Operation,
    pub api_version: String,
    pub subresource: String,
    /// RFC 3339, UTC, whole seconds; empty when unknown.
    pub time: String,
    pub fields: Set,
}

impl Manager {
    pub fn new(writer: &Writer<'_>, operation: Operation) -> Self {
        Self {
            name: if writer.manager.is_empty() { "unknown".into() } else { writer.manager.into() },
            operation,
            api_version: writer.api_version.into(),
            subresource: writer.subresource.into(),
            time: writer.time(),
            fields: Set::default(),
        }
    }

    /// An applier has one entry for all versions it applies in.
    fn is(&self, other: &Self) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    fn identity(&self) -> (&str, &str, &str) {
        (&self.name, &self.api_version, &self.subresource)
    }

    fn decode(entry: &Value, own: bool) -> Option<Self> {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        if text("apiVersion").is_empty() || text("fieldsType") != "FieldsV1" {
            return None;
        }
        Some(Self {
            name: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields: Set::from_json(entry.get("fieldsV1").unwrap_or(&json!({})), own)?,
        })
    }

    fn encode(self) -> Value {
        let mut entry = Map::new();
        let texts = [
            ("manager", self.name.as_str()),
            ("operation", self.operation.as_str()),
            ("apiVersion", &self.api_version),
            ("time", &self.time),
            ("fieldsType", "FieldsV1"),
            ("subresource", &self.subresource),
        ];
        for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
            entry.insert(key.into(), text.into());
        }
        entry.insert("fieldsV1".into(), self.fields.into_json());
        Value::Object(entry)
    }
}

/// All managers of one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Managers(Vec<Manager>);

impl Managers {
    /// `None` when an entry is not of a known form. `own`: they are as they were encoded here.
    pub fn decode(entries: Option<&Value>, own: bool) -> Option<Self> {
        match entries {
            None | Some(Value::Null) => Some(Self::default()),
            Some(Value::Array(entries)) => {
                entries.iter().map(|entry| Manager::decode(entry, own)).collect::<Option<Vec<_>>>().map(Self)
            }
            Some(_) => None,
        }
    }

    /// `None` when there is none.
    pub fn encode(mut self) -> Option<Value> {
        self.0.sort_by(|a, b| {
            let order = a.operation.cmp(&b.operation).then_with(|| a.time.cmp(&b.time));
            order.then_with(|| a.identity().cmp(&b.identity()))
        });
        (!self.0.is_empty()).then(|| self.0.into_iter().map(Manager::encode).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn change_fields(&mut self, change: impl Fn(&mut Set)) {
        for manager in &mut self.0 {
            change(&mut manager.fields);
        }
        self.0.retain(|manager| !manager.fields.is_empty());
    }

    /// All fields that anyone manages.
    pub fn union(&self) -> Set {
        self.0.iter().fold(Set::default(), |all, manager| all.union(manager.fields.clone()))
    }

    /// Takes out the entry of `who`.
    pub fn take(&mut self, who: &Manager) -> Option<Manager> {
        let index = self.0.iter().position(|one| one.is(who))?;
        Some(self.0.remove(index))
    }

    pub fn put(&mut self, manager: Manager) {
        if !manager.fields.is_empty() {
            self.0.push(manager);
        }
    }

    /// Who manages fields that are to change.
    pub fn conflicts(&self, changed: &Set) -> Vec<Conflict> {
        let conflict = |manager: &Manager, path: Vec<&str>| Conflict {
            manager: manager.name.clone(),
            operation: manager.operation,
            api_version: manager.api_version.clone(),
            subresource: manager.subresource.clone(),
            path: path.into_iter().map(str::to_owned).collect(),
        };
        let of = |manager: &Manager| {
            let shared = manager.fields.intersection(changed);
            shared.paths().into_iter().map(|path| conflict(manager, path)).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }

    /// All lose what changed and what went.
    pub fn lose(&mut self, changed: &Set, removed: &Set) {
        self.change_fields(|fields| {
            fields.subtract(changed);
            fields.subtract(removed);
        });
    }

    /// Records an update by `who`: it gains what changed, all others lose it. `ignored` with all below and `never` are
    /// fields that it can't gain.
    pub fn update(&mut self, who: Manager, difference: Difference, ignored: &Set, never: &Set) {
        let (mut changed, removed) = difference.into_changed_and_removed();
        self.lose(&changed, &removed);
        changed.subtract_branches(ignored);
        changed.subtract(never);
        if !changed.is_empty() {
            let before = self.take(&who).map(|manager| manager.fields).unwrap_or_default();
            self.put(Manager { fields: before.union(changed), ..who });
        }
        self.cap();
    }

    /// Merges the oldest updates of each version until few enough are left.
    fn cap(&mut self) {
        if self.0.len() <= UPDATE_MANAGERS {
            return;
        }
        let (mut updates, mut kept): (Vec<Manager>, Vec<Manager>) =
            std::mem::take(&mut self.0).into_iter().partition(|one| one.operation == Operation::Update);
        updates.sort_by(|a, b| (&a.time, a.identity()).cmp(&(&b.time, b.identity())));
        let mut excess = updates.len().saturating_sub(UPDATE_MANAGERS);
        let mut oldest: Vec<Manager> = Vec::new();
        for manager in updates {
            match oldest.iter_mut().find(|old| old.api_version == manager.api_version) {
                Some(bucket) if excess > 0 => {
                    bucket.name = ANCIENT.into();
                    bucket.subresource = String::new();
                    bucket.fields = std::mem::take(&mut bucket.fields).union(manager.fields);
                    bucket.time = manager.time;
                    excess -= 1;
                }
                Some(_) => kept.push(manager),
                None => oldest.push(manager),
            }
        }
        kept.extend(oldest);
        self.0 = kept;
    }
}
