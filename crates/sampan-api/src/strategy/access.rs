//! RBAC: roles and their bindings (`pkg/apis/rbac`).

use serde_json::Value;

use super::at::{At, same};
use super::{GENERIC, NameRule, Strategy, set};
use crate::error::FieldErrors;
use crate::names;

const GROUP: &str = "rbac.authorization.k8s.io";

const BASE: Strategy = Strategy { name: NameRule::PathSegment, create_on_update: true, ..GENERIC };

pub const ROLE: Strategy =
    Strategy { validate_create: |role| rules(role, true), validate_update: |new, _| rules(new, true), ..BASE };

pub const CLUSTER_ROLE: Strategy =
    Strategy { validate_create: cluster_role, validate_update: |new, _| cluster_role(new), ..BASE };

pub const BINDING: Strategy = Strategy {
    default: default_binding,
    validate_create: |binding| validate_binding(binding, true),
    validate_update: |new, old| validate_binding_update(new, old, true),
    ..BASE
};

pub const CLUSTER_BINDING: Strategy = Strategy {
    default: default_binding,
    validate_create: |binding| validate_binding(binding, false),
    validate_update: |new, old| validate_binding_update(new, old, false),
    ..BASE
};

fn default_binding(binding: &mut Value) {
    let Some(fields) = binding.as_object_mut() else { return };
    if let Some(role) = set::child(fields, "roleRef") {
        set::empty(role, "apiGroup", GROUP);
    }
    for subject in set::each(fields, "subjects") {
        if matches!(set::text(subject, "kind"), "User" | "Group") {
            set::empty(subject, "apiGroup", GROUP);
        }
    }
}

fn rules(role: &Value, namespaced: bool) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(role);
    for rule in root.get("rules").items() {
        let (urls, groups, resources) = (rule.get("nonResourceURLs"), rule.get("apiGroups"), rule.get("resources"));
        if !urls.is_empty() {
            if namespaced {
                urls.invalid(&mut errors, "namespaced rules cannot apply to non-resource URLs");
            }
            if groups.len() + resources.len() + rule.get("resourceNames").len() > 0 {
                urls.invalid(&mut errors, "rules cannot apply to both regular resources and non-resource URLs");
            }
            continue;
        }
        if groups.is_empty() {
            groups.required(&mut errors, "resource rules must supply at least one api group");
        }
        if resources.is_empty() {
            resources.required(&mut errors, "resource rules must supply at least one resource");
        }
    }
    errors
}

fn cluster_role(role: &Value) -> FieldErrors {
    let mut errors = rules(role, false);
    let root = At::root(role);
    let aggregation = root.get("aggregationRule");
    if aggregation.is_set() {
        let selectors = aggregation.get("clusterRoleSelectors");
        if selectors.is_empty() {
            selectors.required(&mut errors, "at least one clusterRoleSelector required if aggregationRule is non-nil");
        }
        for selector in selectors.items() {
            crate::meta::validate_selector(&selector, &mut errors);
        }
    }
    errors
}

fn validate_binding(binding: &Value, namespaced: bool) -> FieldErrors {
    let mut errors = FieldErrors::default();
    let root = At::root(binding);
    let role = root.get("roleRef");
    if role.get("apiGroup").text() != GROUP {
        errors.not_supported(role.get("apiGroup").path(), role.get("apiGroup").text(), &[GROUP]);
    }
    let kinds: &[&str] = if namespaced { &["Role", "ClusterRole"] } else { &["ClusterRole"] };
    if !kinds.contains(&role.get("kind").text()) {
        errors.not_supported(role.get("kind").path(), role.get("kind").text(), kinds);
    }
    let name = role.get("name");
    name.invalid_all(&mut errors, names::path_segment(name.text()));
    for subject in root.get("subjects").items() {
        let (group, name) = (subject.get("apiGroup"), subject.get("name"));
        match subject.get("kind").text() {
            "ServiceAccount" => {
                if !name.text().is_empty() {
                    name.invalid_all(&mut errors, names::dns1123_subdomain(name.text()));
                }
                if !group.text().is_empty() {
                    errors.not_supported(group.path(), group.text(), &[""]);
                }
                if !namespaced && subject.get("namespace").text().is_empty() {
                    subject.get("namespace").required(&mut errors, "");
                }
            }
            "User" | "Group" => {
                if group.text() != GROUP {
                    errors.not_supported(group.path(), group.text(), &[GROUP]);
                }
            }
            other => errors.not_supported(subject.get("kind").path(), other, &["ServiceAccount", "User", "Group"]),
        }
    }
    errors
}

fn validate_binding_update(new: &Value, old: &Value, namespaced: bool) -> FieldErrors {
    let mut errors = validate_binding(new, namespaced);
    let (root, before) = (At::root(new), At::root(old));
    if !same(root.get("roleRef").value, before.get("roleRef").value) {
        root.get("roleRef").invalid(&mut errors, "cannot change roleRef");
    }
    errors
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_binding_is_defaulted_and_its_role_is_fixed() {
        let mut old = json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}]});
        (BINDING.default)(&mut old);
        assert_eq!(old["subjects"][0]["apiGroup"], GROUP);
        assert!((BINDING.validate_create)(&old).is_empty());
        let mut new = old.clone();
        new["roleRef"]["name"] = "other".into();
        assert!((BINDING.validate_update)(&new, &old).aggregate().ends_with(": cannot change roleRef"));
    }

    #[test]
    fn messages_of_bad_rules() {
        let role = json!({"rules": [{"verbs": ["get"]}, {"verbs": ["get"], "nonResourceURLs": ["/x"]}]});
        assert_eq!(
            (ROLE.validate_create)(&role).0.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [
                "rules[0].apiGroups: Required value: resource rules must supply at least one api group",
                "rules[0].resources: Required value: resource rules must supply at least one resource",
                "rules[1].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
            ]
        );
    }
}
