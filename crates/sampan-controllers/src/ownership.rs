//! Who manages what: adopting objects that match a selector and have no manager, releasing those that no longer match.
//! The rules are upstream's `ControllerRefManager`.

use sampan_api::labels::Labels;
use sampan_api::object::Meta;
use serde_json::{Value, json};

use crate::framework::{Action, Resource, key_of};

/// What the manager does about one object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    Owned,
    /// Ours once it carries our owner reference.
    Adopt,
    /// Ours so far, but it no longer matches.
    Release,
    /// Somebody else's, or nobody's business.
    Ignore,
}

/// `adoptable`: the object may be taken over (a pod that has finished may not).
pub fn claim(manager: &Meta, object: &Meta, adoptable: bool, matches: impl Fn(&Labels) -> bool) -> Claim {
    let gone = manager.deletion_timestamp.is_some();
    match object.controller() {
        Some(owner) if owner.uid != manager.uid => Claim::Ignore,
        Some(_) if matches(&object.labels) => Claim::Owned,
        Some(_) if gone || object.deletion_timestamp.is_some() => Claim::Owned,
        Some(_) => Claim::Release,
        None if gone || object.deletion_timestamp.is_some() || !adoptable => Claim::Ignore,
        None if object.namespace == manager.namespace && matches(&object.labels) => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// The UID in the patch keeps an object of the same name that came since untouched.
pub fn adopt(resource: Resource, object: &Meta, owner: Value) -> Action {
    let patch = json!({"metadata": {"uid": object.uid, "ownerReferences": [owner]}});
    Action::strategic(resource, key_of(object), patch)
}

pub fn release(resource: Resource, object: &Meta, manager: &Meta) -> Action {
    let gone = json!({"$patch": "delete", "uid": manager.uid});
    let patch = json!({"metadata": {"uid": object.uid, "ownerReferences": [gone]}});
    Action::strategic(resource, key_of(object), patch)
}

#[cfg(test)]
mod tests {
    use sampan_api::object::OwnerReference;

    use super::*;

    #[test]
    fn claims() {
        let manager = Meta { uid: "m".into(), namespace: "n".into(), ..Meta::default() };
        let dying = Meta { deletion_timestamp: Some(jiff::Timestamp::UNIX_EPOCH), ..manager.clone() };
        let object = |owner: Option<&str>| Meta {
            namespace: "n".into(),
            owner_references: owner
                .map(|uid| OwnerReference { uid: uid.into(), controller: true, ..OwnerReference::default() })
                .into_iter()
                .collect(),
            ..Meta::default()
        };
        let check = |manager: &Meta, owner, adoptable, matches: bool, expected| {
            assert_eq!(claim(manager, &object(owner), adoptable, |_| matches), expected);
        };
        check(&manager, Some("m"), true, true, Claim::Owned);
        check(&manager, Some("m"), true, false, Claim::Release);
        check(&manager, Some("x"), true, true, Claim::Ignore);
        check(&manager, None, true, true, Claim::Adopt);
        check(&manager, None, false, true, Claim::Ignore);
        check(&manager, None, true, false, Claim::Ignore);
        check(&dying, Some("m"), true, false, Claim::Owned);
        check(&dying, None, true, true, Claim::Ignore);
    }
}
