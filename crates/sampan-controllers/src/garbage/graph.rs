//! Who owns whom. Pure: observations go in, UIDs worth looking at come out, [`Graph::judge`] decides.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use sampan_api::Gvr;
use sampan_api::object::{OwnerReference, nullable};
use sampan_client::Error;
use sampan_client::api::decode;
use sampan_client::informer::Key;
use serde::Deserialize;

use super::{FOREGROUND, ORPHAN};

/// What the collector keeps of an object's metadata.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct View {
    pub uid: String,
    pub deletion_timestamp: Option<String>,
    #[serde(deserialize_with = "nullable")]
    pub finalizers: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    pub owner_references: Vec<OwnerReference>,
}

impl sampan_client::informer::View for View {
    fn decode(object: &Bytes) -> Result<Self, Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Whole {
            metadata: View,
        }
        decode::<Whole>(object).map(|whole| whole.metadata)
    }
}

impl View {
    fn has(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|one| one == finalizer)
    }
}

/// An object as a watch shows it.
pub struct Observed<'a> {
    pub gvr: &'a Gvr,
    pub kind: &'a str,
    pub key: &'a Key,
    pub view: &'a View,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub uid: String,
    pub gvr: Gvr,
    kind: String,
    pub key: Key,
    /// `None`: known only because others name it as their owner; it may not exist.
    view: Option<View>,
    dependents: BTreeSet<String>,
}

impl Node {
    pub fn deleting(&self) -> bool {
        self.view.as_ref().is_some_and(|view| view.deletion_timestamp.is_some())
    }

    /// Is being deleted and waits until what blocks it is gone.
    pub fn waits(&self) -> bool {
        self.deleting() && self.view.as_ref().is_some_and(|view| view.has(FOREGROUND))
    }

    /// Is being deleted and sets its dependents free first.
    pub fn orphans(&self) -> bool {
        self.deleting() && self.view.as_ref().is_some_and(|view| view.has(ORPHAN))
    }

    fn owners(&self) -> &[OwnerReference] {
        self.view.as_ref().map_or(&[], |view| &view.owner_references)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    Solid,
    /// Is being deleted in the foreground.
    Waiting,
    Absent,
}

/// What is to become of an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Keep,
    /// Some owner lives: the references to the others go.
    DropOwners(Vec<String>),
    /// Propagation policy.
    Delete(&'static str),
    /// It waits for a dependent that waits itself: nobody blocks anybody any more, and it is deleted in the foreground.
    BreakCircle,
}

#[derive(Default)]
pub struct Graph {
    nodes: BTreeMap<String, Node>,
}

impl Graph {
    pub fn node(&self, uid: &str) -> Option<Node> {
        self.nodes.get(uid).cloned()
    }

    pub fn dependents(&self, uid: &str) -> Vec<Node> {
        let all = self.nodes.get(uid).into_iter().flat_map(|node| &node.dependents);
        all.filter_map(|uid| self.nodes.get(uid)).cloned().collect()
    }

    /// Dependents that must be gone before the owner may go.
    pub fn blocking(&self, uid: &str) -> Vec<String> {
        let blocks = |node: &Node| node.owners().iter().any(|owner| owner.uid == uid && owner.block_owner_deletion);
        self.dependents(uid).into_iter().filter(blocks).map(|node| node.uid).collect()
    }

    /// Takes an object in. Returns the nodes to look at.
    pub fn observe(&mut self, observed: Observed<'_>) -> Vec<String> {
        let Observed { gvr, kind, key, view } = observed;
        let mut work = Vec::new();
        let before = self.nodes.get(&view.uid).and_then(|node| node.view.clone()).unwrap_or_default();
        let node = self.nodes.entry(view.uid.clone()).or_insert_with(|| Node {
            uid: view.uid.clone(),
            gvr: gvr.clone(),
            kind: kind.into(),
            key: key.clone(),
            view: None,
            dependents: BTreeSet::new(),
        });
        // A reference may have put it in the wrong place.
        (node.gvr, node.kind, node.key) = (gvr.clone(), kind.into(), key.clone());
        node.view = Some(view.clone());
        if node.waits() {
            work.extend(node.dependents.iter().cloned());
        }
        if node.waits() || node.orphans() {
            work.push(view.uid.clone());
        }
        for owner in before.owner_references.iter().filter(|owner| !view.owner_references.contains(owner)) {
            if !view.owner_references.iter().any(|one| one.uid == owner.uid) {
                self.unlink(&owner.uid, &view.uid);
            }
            // It may block its owner no more.
            work.extend(self.nodes.get(&owner.uid).filter(|owner| owner.waits()).map(|owner| owner.uid.clone()));
        }
        let mut doubtful = false;
        for owner in &view.owner_references {
            self.link(owner, &view.uid, key);
            doubtful |= self.owner_state(owner, &key.namespace) != Some(OwnerState::Solid);
        }
        if doubtful && view.deletion_timestamp.is_none() {
            work.push(view.uid.clone());
        }
        work
    }

    fn link(&mut self, owner: &OwnerReference, dependent: &str, of: &Key) {
        let node = self.nodes.entry(owner.uid.clone()).or_insert_with(|| Node {
            uid: owner.uid.clone(),
            gvr: Gvr { group: String::new(), version: String::new(), resource: String::new() },
            kind: owner.kind.clone(),
            key: Key::new(of.namespace.clone(), owner.name.clone()),
            view: None,
            dependents: BTreeSet::new(),
        });
        node.dependents.insert(dependent.to_owned());
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        let Some(node) = self.nodes.get_mut(owner) else { return };
        node.dependents.remove(dependent);
        if node.view.is_none() && node.dependents.is_empty() {
            self.nodes.remove(owner);
        }
    }

    /// The object is gone. Returns the nodes to look at: what it owned, and owners that waited for it.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(node) = self.nodes.get_mut(uid) else { return Vec::new() };
        let work: Vec<String> = node.dependents.iter().cloned().collect();
        let owners = node.view.take().unwrap_or_default().owner_references;
        if work.is_empty() {
            self.nodes.remove(uid);
        }
        let mut work = work;
        for owner in &owners {
            self.unlink(&owner.uid, uid);
            work.extend(self.nodes.get(&owner.uid).filter(|owner| owner.waits()).map(|owner| owner.uid.clone()));
        }
        work
    }

    /// Nothing is to be done: it is going, it does not exist, or all its owners live.
    pub fn is_settled(&self, node: &Node) -> bool {
        node.view.is_none()
            || node.deleting()
            || node.owners().iter().all(|owner| self.owner_state(owner, &node.key.namespace) == Some(OwnerState::Solid))
    }

    /// What is known of an owner without asking the server; `None`: ask.
    pub fn owner_state(&self, owner: &OwnerReference, namespace: &str) -> Option<OwnerState> {
        let node = self.nodes.get(&owner.uid)?;
        let (group, _) = sampan_api::kind::split_api_version(&owner.api_version);
        let in_reach = node.key.namespace.is_empty() || node.key.namespace == namespace;
        let same = node.kind == owner.kind && node.gvr.group == group && node.key.name == owner.name && in_reach;
        if node.view.is_none() || !same {
            return None;
        }
        Some(if node.waits() { OwnerState::Waiting } else { OwnerState::Solid })
    }

    /// `view` is the object as the server has it, `states` what its owners are.
    pub fn judge(&self, uid: &str, view: &View, states: &[(String, OwnerState)]) -> Verdict {
        if view.deletion_timestamp.is_some() || states.is_empty() {
            return Verdict::Keep;
        }
        let not_solid: Vec<String> =
            states.iter().filter(|(_, state)| *state != OwnerState::Solid).map(|(uid, _)| uid.clone()).collect();
        if not_solid.len() < states.len() {
            return if not_solid.is_empty() { Verdict::Keep } else { Verdict::DropOwners(not_solid) };
        }
        let dependents = self.dependents(uid);
        if states.iter().any(|(_, state)| *state == OwnerState::Waiting) && !dependents.is_empty() {
            let circle = dependents.iter().any(Node::waits);
            return if circle { Verdict::BreakCircle } else { Verdict::Delete("Foreground") };
        }
        Verdict::Delete(if view.has(ORPHAN) {
            "Orphan"
        } else if view.has(FOREGROUND) {
            "Foreground"
        } else {
            "Background"
        })
    }
}
