//! The RBAC authorizer: roles and bindings compiled into an index by subject, kept current from the feed of changes
//! (`plugin/pkg/auth/authorizer/rbac`, `pkg/registry/rbac/validation`).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, RwLock};

use async_trait::async_trait;
use serde::Deserialize;

use super::rule::{Rule, or_default};
use super::{Attributes, Authorizer, Decision, User, serviceaccount};
use crate::lookup::{Change, Observer, decode};

pub const GROUP: &str = "rbac.authorization.k8s.io";

/// What a binding points at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RoleRef {
    pub api_group: String,
    /// `Role` or `ClusterRole`.
    pub kind: String,
    pub name: String,
}

/// Whom a binding is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Subject {
    /// `User`, `Group` or `ServiceAccount`.
    pub kind: String,
    pub name: String,
    pub namespace: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Binding {
    #[serde(deserialize_with = "or_default")]
    subjects: Vec<Subject>,
    role_ref: RoleRef,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Role {
    #[serde(deserialize_with = "or_default")]
    rules: Vec<Rule>,
}

/// Namespace (empty: cluster-wide) and name.
type Key = (String, String);

/// Whom a binding matches: a service account is the user it logs in as.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Who {
    User(String),
    Group(String),
}

#[derive(Default)]
struct Index {
    roles: BTreeMap<Key, Arc<[Rule]>>,
    bindings: BTreeMap<Key, Binding>,
    by_subject: HashMap<Who, BTreeSet<Key>>,
}

/// The authorizer. Cheap to share.
#[derive(Default)]
pub struct Rbac(RwLock<Index>);

/// The rules a user holds in a namespace, and which roles were named but not there.
#[derive(Debug, Default)]
pub struct Held {
    pub rules: Vec<Rule>,
    pub errors: Vec<String>,
}

impl Subject {
    fn who(&self, binding_namespace: &str) -> Option<Who> {
        match self.kind.as_str() {
            "User" => Some(Who::User(self.name.clone())),
            "Group" => Some(Who::Group(self.name.clone())),
            "ServiceAccount" => {
                let namespace = if self.namespace.is_empty() { binding_namespace } else { &self.namespace };
                (!namespace.is_empty()).then(|| Who::User(serviceaccount::username(namespace, &self.name)))
            }
            _ => None,
        }
    }

    fn describe(&self) -> String {
        match self.kind.as_str() {
            "ServiceAccount" => format!("ServiceAccount {:?}", format!("{}/{}", self.name, self.namespace)),
            kind => format!("{kind} {:?}", self.name),
        }
    }
}

impl Index {
    fn bind(&mut self, key: &Key, binding: Option<Binding>) {
        if let Some(old) = self.bindings.remove(key) {
            for who in old.subjects.iter().filter_map(|subject| subject.who(&key.0)) {
                if let Some(keys) = self.by_subject.get_mut(&who) {
                    keys.remove(key);
                    if keys.is_empty() {
                        self.by_subject.remove(&who);
                    }
                }
            }
        }
        if let Some(binding) = binding {
            for who in binding.subjects.iter().filter_map(|subject| subject.who(&key.0)) {
                self.by_subject.entry(who).or_default().insert(key.clone());
            }
            self.bindings.insert(key.clone(), binding);
        }
    }

    /// The rules a binding grants; `Err` names the role that is missing.
    fn granted(&self, key: &Key, role: &RoleRef) -> Result<&Arc<[Rule]>, String> {
        let (namespace, what) = match role.kind.as_str() {
            "Role" => (key.0.clone(), "role"),
            _ => (String::new(), "clusterrole"),
        };
        let found = self.roles.get(&(namespace, role.name.clone()));
        found.ok_or_else(|| format!("{what}.{GROUP} {:?} not found", role.name))
    }

    /// Visits what the user holds, cluster-wide bindings first, each scope in the order of binding names; `visit`
    /// returns whether to go on.
    fn visit(
        &self,
        user: &User,
        namespace: &str,
        mut visit: impl FnMut(&Key, &Binding, Result<&Arc<[Rule]>, String>) -> bool,
    ) {
        let mut who: Vec<Who> = vec![Who::User(user.name.clone())];
        who.extend(user.groups.iter().map(|group| Who::Group(group.clone())));
        let scopes: &[&str] = if namespace.is_empty() { &[""] } else { &["", namespace] };
        for scope in scopes {
            let start = ((*scope).to_owned(), String::new());
            let keys: BTreeSet<&Key> = who
                .iter()
                .filter_map(|who| self.by_subject.get(who))
                .flat_map(|keys| keys.range(start.clone()..).take_while(|key| key.0 == *scope))
                .collect();
            for key in keys {
                let Some(binding) = self.bindings.get(key) else { continue };
                if !visit(key, binding, self.granted(key, &binding.role_ref)) {
                    return;
                }
            }
        }
    }
}

impl Rbac {
    fn read<T>(&self, read: impl FnOnce(&Index) -> T) -> T {
        read(&self.0.read().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// All rules the user holds in `namespace` (empty: cluster-wide only).
    pub fn rules_for(&self, user: &User, namespace: &str) -> Held {
        let mut held = Held::default();
        self.read(|index| {
            index.visit(user, namespace, |_, _, rules| {
                match rules {
                    Ok(rules) => held.rules.extend(rules.iter().cloned()),
                    Err(error) => held.errors.push(error),
                }
                true
            });
        });
        held
    }

    /// The rules of a role; `None` when it is not there.
    pub fn role(&self, namespace: &str, reference: &RoleRef) -> Option<Arc<[Rule]>> {
        self.read(|index| index.granted(&(namespace.to_owned(), String::new()), reference).ok().cloned())
    }

    fn decide(&self, request: &Attributes) -> Decision {
        let namespace = if request.resource_request { request.namespace.as_str() } else { "" };
        let mut allowed = None;
        let mut errors: Vec<String> = Vec::new();
        self.read(|index| {
            index.visit(&request.user, namespace, |key, binding, rules| {
                match rules {
                    Ok(rules) if rules.iter().any(|rule| rule.allows(request)) => {
                        allowed = Some(describe(key, binding, &request.user));
                        return false;
                    }
                    Ok(_) => {}
                    Err(error) => errors.push(error),
                }
                true
            });
        });
        match allowed {
            Some(by) => Decision::Allow { reason: format!("RBAC: allowed by {by}") },
            None => {
                let reason = match errors.as_slice() {
                    [] => String::new(),
                    [one] => format!("RBAC: {one}"),
                    many => format!("RBAC: [{}]", many.join(", ")),
                };
                Decision::NoOpinion { reason }
            }
        }
    }
}

fn describe((namespace, name): &Key, binding: &Binding, user: &User) -> String {
    let RoleRef { kind, name: role, .. } = &binding.role_ref;
    let matches = |who: &Who| match who {
        Who::User(name) => *name == user.name,
        Who::Group(name) => user.in_group(name),
    };
    let subject = binding.subjects.iter().find(|subject| subject.who(namespace).as_ref().is_some_and(matches));
    let subject = subject.map(Subject::describe).unwrap_or_default();
    let binding = match namespace.as_str() {
        "" => format!("ClusterRoleBinding {name:?}"),
        namespace => format!("RoleBinding {:?}", format!("{name}/{namespace}")),
    };
    format!("{binding} of {kind} {role:?} to {subject}")
}

#[async_trait]
impl Authorizer for Rbac {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        self.decide(attributes)
    }
}

impl Observer for Rbac {
    fn resources(&self) -> &'static [(&'static str, &'static str)] {
        &[(GROUP, "roles"), (GROUP, "clusterroles"), (GROUP, "rolebindings"), (GROUP, "clusterrolebindings")]
    }

    fn observe(&self, change: &Change<'_>) {
        let Change { resource, namespace, name, object, .. } = *change;
        let key = (namespace.to_owned(), name.to_owned());
        // An object that cannot be read grants nothing: as if it were absent.
        match resource {
            "roles" | "clusterroles" => {
                let role = object.and_then(|bytes| decode::<Role>(bytes, resource, namespace, name));
                let mut index = self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner());
                match role {
                    Some(role) => index.roles.insert(key, role.rules.into()),
                    None => index.roles.remove(&key),
                };
            }
            "rolebindings" | "clusterrolebindings" => {
                let binding = object.and_then(|bytes| decode::<Binding>(bytes, resource, namespace, name));
                self.0.write().unwrap_or_else(|poisoned| poisoned.into_inner()).bind(&key, binding);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn put(rbac: &Rbac, resource: &str, namespace: &str, name: &str, object: Option<Value>) {
        let object = object.map(|object| bytes::Bytes::from(object.to_string()));
        rbac.observe(&Change { group: GROUP, resource, namespace, name, object: object.as_ref() });
    }

    fn list_pods(user: &User, namespace: &str) -> Attributes {
        Attributes {
            user: user.clone(),
            verb: "list".into(),
            resource_request: true,
            resource: "pods".into(),
            namespace: namespace.into(),
            ..Attributes::default()
        }
    }

    fn fixture() -> Rbac {
        let rbac = Rbac::default();
        let rules = json!([{"verbs": ["list"], "apiGroups": [""], "resources": ["pods"]}]);
        put(&rbac, "clusterroles", "", "viewer", Some(json!({ "rules": rules })));
        let reference = json!({"apiGroup": GROUP, "kind": "ClusterRole", "name": "viewer"});
        let subjects = json!([
            {"kind": "Group", "name": "dev"},
            {"kind": "ServiceAccount", "name": "bot", "namespace": "ci"},
        ]);
        put(&rbac, "rolebindings", "a", "devs", Some(json!({"subjects": subjects, "roleRef": reference})));
        rbac
    }

    #[test]
    fn a_role_binding_holds_in_its_namespace_only() {
        let rbac = fixture();
        let dev = User::new("d", &["dev"]);
        assert_eq!(
            rbac.decide(&list_pods(&dev, "a")),
            Decision::Allow {
                reason: r#"RBAC: allowed by RoleBinding "devs/a" of ClusterRole "viewer" to Group "dev""#.into()
            }
        );
        let none = Decision::NoOpinion { reason: String::new() };
        assert_eq!(rbac.decide(&list_pods(&dev, "b")), none);
        assert_eq!(rbac.decide(&list_pods(&dev, "")), none);
        let bot = User::new("system:serviceaccount:ci:bot", &[]);
        assert!(matches!(rbac.decide(&list_pods(&bot, "a")), Decision::Allow { .. }));
    }

    #[test]
    fn changes_take_effect() {
        let rbac = fixture();
        let dev = User::new("d", &["dev"]);
        put(&rbac, "clusterroles", "", "viewer", None);
        let missing = r#"RBAC: clusterrole.rbac.authorization.k8s.io "viewer" not found"#;
        assert_eq!(rbac.decide(&list_pods(&dev, "a")), Decision::NoOpinion { reason: missing.into() });
        put(&rbac, "rolebindings", "a", "devs", None);
        assert_eq!(rbac.decide(&list_pods(&dev, "a")), Decision::NoOpinion { reason: String::new() });
        assert!(rbac.read(|index| index.by_subject.is_empty()));
    }

    #[test]
    fn a_role_in_a_namespace_grants_no_url() {
        let rbac = fixture();
        let rules = json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]);
        put(&rbac, "roles", "a", "urls", Some(json!({ "rules": rules })));
        let reference = json!({"kind": "Role", "name": "urls"});
        let subjects = json!([{"kind": "User", "name": "u"}]);
        put(&rbac, "rolebindings", "a", "urls", Some(json!({"subjects": subjects, "roleRef": reference})));
        let request =
            Attributes { user: User::new("u", &[]), verb: "get".into(), path: "/x".into(), ..Attributes::default() };
        assert_eq!(rbac.decide(&request), Decision::NoOpinion { reason: String::new() });
    }
}
