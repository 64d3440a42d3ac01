//! Kinds are data: everything the server has to know of one, and the immutable snapshot of all of them.
//!
//! Adding a built-in kind touches `builtin` (its entry) and, where it has rules of its own, one file of the API server's
//! strategies. Custom resources become entries of the same snapshot at run time.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use crate::schema::{SharedSchema, TypeId};

mod builtin;
pub mod inert;

pub use builtin::{builtin, type_name};

/// Group, version, kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvk {
    pub group: String,
    pub version: String,
    pub kind: String,
}

/// Group, version, resource (plural).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Gvr {
    pub group: String,
    pub version: String,
    pub resource: String,
}

/// `v1` for the core group, `group/version` elsewhere.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.into() } else { format!("{group}/{version}") }
}

/// Splits an `apiVersion` into group and version.
pub fn split_api_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

impl Gvk {
    pub fn api_version(&self) -> String {
        api_version(&self.group, &self.version)
    }
}

impl fmt::Display for Gvk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, Kind={}", self.api_version(), self.kind)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Cluster,
    Namespaced,
}

/// One served version of one resource.
#[derive(Debug)]
pub struct Kind {
    pub gvk: Gvk,
    /// Plural, lower case.
    pub resource: String,
    pub singular: String,
    pub list_kind: String,
    pub scope: Scope,
    pub short_names: Vec<String>,
    pub categories: Vec<String>,
    /// Discovery verbs, sorted.
    pub verbs: Vec<String>,
    pub subresources: Vec<Subresource>,
    pub schema: SharedSchema,
    pub root: TypeId,
    /// The version objects are stored as; equal to `gvk.version` for a kind with one version.
    pub storage: Gvk,
    /// The resource whose keys the objects live under (`events.k8s.io/events` live with core `events`).
    pub storage_resource: (String, String),
    /// Printed columns, `Name` and `Age` included.
    pub columns: Vec<Column>,
    /// Field selectors beyond `metadata.name` and `metadata.namespace`: JSON paths.
    pub selectable_fields: Vec<String>,
    /// No controller of this build acts on it yet: writes answer with a warning.
    pub inert: bool,
    /// `spec` changes bump `metadata.generation`.
    pub has_generation: bool,
    /// A write through the main resource ignores `status`, one through `/status` ignores the rest.
    pub has_status: bool,
    /// Not stored: answered by a handler of its own (reviews, bindings, component statuses).
    pub virtual_kind: bool,
}

#[derive(Clone, Debug)]
pub struct Subresource {
    /// `status`, `scale`, `log`, …
    pub name: String,
    /// What its body is (`autoscaling/v1 Scale` for `scale`).
    pub gvk: Gvk,
    pub verbs: Vec<String>,
}

/// One column of a `Table`.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    /// `string`, `integer`, `number`, `boolean`, `date`.
    pub ty: &'static str,
    pub format: &'static str,
    /// 0 is always shown; higher ones with `-o wide`.
    pub priority: i32,
    pub cell: Cell,
}

/// Where a cell's value comes from.
#[derive(Clone, Copy)]
pub enum Cell {
    /// A JSON path below the object (`spec.replicas`).
    Path(&'static str),
    /// A function of the object and the present time.
    Compute(fn(&serde_json::Value, jiff::Timestamp) -> serde_json::Value),
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "Path({path})"),
            Self::Compute(_) => f.write_str("Compute"),
        }
    }
}

impl Kind {
    pub fn namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    pub fn gvr(&self) -> Gvr {
        Gvr { group: self.gvk.group.clone(), version: self.gvk.version.clone(), resource: self.resource.clone() }
    }

    /// A deletion that is done at once answers with the object instead of a `Status` (`ReturnDeletedObject` in
    /// upstream's registries).
    pub fn returns_deleted(&self) -> bool {
        match (self.gvk.group.as_str(), self.resource.as_str()) {
            ("", resource) => [
                "persistentvolumeclaims",
                "persistentvolumes",
                "pods",
                "podtemplates",
                "resourcequotas",
                "serviceaccounts",
                "services",
            ]
            .contains(&resource),
            ("storage.k8s.io", resource) => resource != "csistoragecapacities",
            (group, _) => group == "resource.k8s.io",
        }
    }

    pub fn subresource(&self, name: &str) -> Option<&Subresource> {
        self.subresources.iter().find(|one| one.name == name)
    }
}

/// All kinds served at one moment. Swapped whole when a custom resource comes, changes or goes.
#[derive(Debug, Default)]
pub struct Kinds {
    /// In discovery order: groups in upstream's order, versions by preference, resources as registered.
    pub all: Vec<Arc<Kind>>,
    by_resource: HashMap<Gvr, Arc<Kind>>,
    by_kind: HashMap<Gvk, Arc<Kind>>,
    /// Counts the swaps.
    pub generation: u64,
}

impl Kinds {
    pub fn new(all: Vec<Arc<Kind>>, generation: u64) -> Self {
        let by_resource = all.iter().map(|kind| (kind.gvr(), kind.clone())).collect();
        let by_kind = all.iter().map(|kind| (kind.gvk.clone(), kind.clone())).collect();
        Self { all, by_resource, by_kind, generation }
    }

    pub fn resource(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Kind>> {
        self.by_resource.get(&Gvr { group: group.into(), version: version.into(), resource: resource.into() })
    }

    pub fn kind(&self, group: &str, version: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.by_kind.get(&Gvk { group: group.into(), version: version.into(), kind: kind.into() })
    }
}
