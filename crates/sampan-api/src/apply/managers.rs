//! The managers of an object's fields: reading and writing `metadata.managedFields`, and who gains and loses what when
//! an object changes (`structured-merge-diff` package `merge`, `apimachinery/pkg/util/managedfields`).

use std::collections::BTreeMap;

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

    fn decode(entry: &Value) -> Option<Self> {
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
            fields: Set::from_json(entry.get("fieldsV1").unwrap_or(&json!({})))?,
        })
    }

    fn encode(&self) -> Value {
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
        entry.insert("fieldsV1".into(), self.fields.to_json());
        Value::Object(entry)
    }
}

/// All managers of one object.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Managers(Vec<Manager>);

impl Managers {
    /// `None` when an entry is not of a known form.
    pub fn decode(entries: Option<&Value>) -> Option<Self> {
        match entries {
            None | Some(Value::Null) => Some(Self::default()),
            Some(Value::Array(entries)) => entries.iter().map(Manager::decode).collect::<Option<Vec<_>>>().map(Self),
            Some(_) => None,
        }
    }

    /// `None` when there is none.
    pub fn encode(mut self) -> Option<Value> {
        self.0.sort_by(|a, b| {
            let key = |one: &Manager| {
                let Manager { time, name, api_version, subresource, .. } = one.clone();
                (one.operation.as_str(), time, name, api_version, subresource)
            };
            key(a).cmp(&key(b))
        });
        (!self.0.is_empty()).then(|| self.0.iter().map(Manager::encode).collect())
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The same entries but for their times.
    pub fn same_but_times(&self, other: &Self) -> bool {
        let timeless = |managers: &Self| {
            let entry = |one: &Manager| (one.encode_key(), one.fields.clone());
            managers.0.iter().map(entry).collect::<BTreeMap<_, _>>()
        };
        timeless(self) == timeless(other)
    }

    pub fn map_fields(&mut self, change: impl Fn(&Set) -> Set) {
        for manager in &mut self.0 {
            manager.fields = change(&manager.fields);
        }
        self.drop_empty();
    }

    /// All fields that anyone manages.
    pub fn union(&self) -> Set {
        self.0.iter().fold(Set::default(), |all, manager| all.union(&manager.fields))
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

    /// Who else manages fields that changed.
    pub fn conflicts(&self, difference: &Difference) -> Vec<Conflict> {
        let changed = difference.modified.clone().union(&difference.added);
        let conflict = |manager: &Manager, path: Vec<&str>| Conflict {
            manager: manager.name.clone(),
            operation: manager.operation,
            api_version: manager.api_version.clone(),
            subresource: manager.subresource.clone(),
            path: path.into_iter().map(str::to_owned).collect(),
        };
        let of = |manager: &Manager| {
            let shared = manager.fields.intersection(&changed);
            shared.paths().into_iter().map(|path| conflict(manager, path)).collect::<Vec<_>>()
        };
        self.0.iter().flat_map(of).collect()
    }

    /// All lose what changed or went.
    pub fn lose(&mut self, difference: &Difference) {
        let changed = difference.modified.clone().union(&difference.added);
        self.map_fields(|fields| fields.difference(&changed).difference(&difference.removed));
    }

    /// Records an update by `who`: it gains what changed, all others lose it. `never`: fields that nobody manages.
    pub fn update(&mut self, who: Manager, difference: &Difference, ignored: &Set, never: &Set) {
        self.lose(difference);
        let gained = difference.modified.clone().union(&difference.added);
        let gained = gained.without_branches(ignored).difference(never);
        if !gained.is_empty() {
            let before = self.take(&who).map(|manager| manager.fields).unwrap_or_default();
            self.put(Manager { fields: before.union(&gained), ..who });
        }
        self.cap();
    }

    fn drop_empty(&mut self) {
        self.0.retain(|manager| !manager.fields.is_empty());
    }

    /// Merges the oldest updates of each version until few enough are left.
    fn cap(&mut self) {
        let (mut updates, mut kept): (Vec<Manager>, Vec<Manager>) =
            std::mem::take(&mut self.0).into_iter().partition(|one| one.operation == Operation::Update);
        updates.sort_by(|a, b| (&a.time, a.encode_key()).cmp(&(&b.time, b.encode_key())));
        let mut excess = updates.len().saturating_sub(UPDATE_MANAGERS);
        let mut oldest: Vec<Manager> = Vec::new();
        for manager in updates {
            match oldest.iter_mut().find(|old| old.api_version == manager.api_version) {
                Some(bucket) if excess > 0 => {
                    bucket.name = ANCIENT.into();
                    bucket.subresource = String::new();
                    bucket.fields = std::mem::take(&mut bucket.fields).union(&manager.fields);
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

impl Manager {
    fn encode_key(&self) -> (&'static str, String, String, String) {
        (self.operation.as_str(), self.name.clone(), self.api_version.clone(), self.subresource.clone())
    }
}
