//! Nobody grants what he does not hold: the check on writes of roles and bindings
//! (`pkg/registry/rbac/*/policybased`). Runs like an admission plug-in, after the request was authorized.

use std::sync::Arc;

use async_trait::async_trait;
use sampan_api::Failure;
use sampan_api::object::lookup;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::rbac::{GROUP, Rbac, RoleRef};
use super::rule::{self, Rule};
use super::{Attributes, Authorizer, Decision, MASTERS};
use crate::admission::{Operation, Plugin, Request};

/// The check. `escalate` on a role and `bind` on what a binding points at are the permissions to bypass it.
pub struct Escalation {
    pub rbac: Arc<Rbac>,
    pub authorizer: Arc<dyn Authorizer>,
}

impl Escalation {
    async fn allowed(&self, request: &Request<'_>, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
        let attributes = Attributes {
            user: request.user.clone(),
            verb: verb.into(),
            resource_request: true,
            group: GROUP.into(),
            version: "v1".into(),
            resource: resource.into(),
            namespace: namespace.into(),
            name: name.into(),
            ..Attributes::default()
        };
        matches!(self.authorizer.authorize(&attributes).await, Decision::Allow { .. })
    }

    /// Fails when the caller does not hold all of `rules` himself.
    fn confirm(&self, request: &Request<'_>, rules: &[Rule]) -> Result<(), Failure> {
        let held = self.rbac.rules_for(request.user, request.namespace);
        let missing = rule::uncovered(&held.rules, rules);
        if missing.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = missing.iter().map(ToString::to_string).collect();
        let mut why = format!(
            "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
            request.user.name,
            rule::quoted(&request.user.groups),
            lines.join("\n")
        );
        if !held.errors.is_empty() {
            why.push_str(&format!("; resolution errors: [{}]", held.errors.join(", ")));
        }
        Err(Failure::forbidden(GROUP, &request.kind.resource, request.name, why))
    }
}

fn part<T: DeserializeOwned + Default>(object: &Value, key: &str) -> T {
    let found = lookup(object, &[key]).filter(|value| !value.is_null());
    found.and_then(|value| T::deserialize(value).ok()).unwrap_or_default()
}

#[async_trait]
impl Plugin for Escalation {
    fn name(&self) -> &'static str {
        "RBACEscalation"
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Failure> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if !writes || request.kind.gvk.group != GROUP || request.user.in_group(MASTERS) {
            return Ok(());
        }
        let resource = request.kind.resource.as_str();
        match resource {
            "roles" | "clusterroles" => {
                let (new, old): (Vec<Rule>, Vec<Rule>) = (part(&request.object, "rules"), part(request.old, "rules"));
                let aggregates = |object: &Value| part::<Value>(object, "aggregationRule");
                let same =
                    !request.old.is_null() && new == old && aggregates(&request.object) == aggregates(request.old);
                if same || self.allowed(request, "escalate", resource, request.namespace, request.name).await {
                    return Ok(());
                }
                // An aggregation rule collects whatever roles carry a label: only who may do everything may set one.
                let all = |text: &str| vec![text.to_owned()];
                let everything = [
                    Rule { verbs: all("*"), api_groups: all("*"), resources: all("*"), ..Rule::default() },
                    Rule { verbs: all("*"), non_resource_urls: all("*"), ..Rule::default() },
                ];
                let aggregation = aggregates(&request.object);
                if !aggregation.is_null() && aggregation != aggregates(request.old) {
                    let held = self.rbac.rules_for(request.user, "");
                    if !rule::uncovered(&held.rules, &everything).is_empty() {
                        let why = "must have cluster-admin privileges to use an aggregationRule";
                        return Err(Failure::forbidden(GROUP, resource, request.name, why));
                    }
                }
                self.confirm(request, &new)
            }
            "rolebindings" | "clusterrolebindings" => {
                let parts = |object: &Value| (part::<Value>(object, "subjects"), part::<RoleRef>(object, "roleRef"));
                if !request.old.is_null() && parts(&request.object) == parts(request.old) {
                    return Ok(());
                }
                let (_, target) = parts(&request.object);
                let target_resource = if target.kind == "Role" { "roles" } else { "clusterroles" };
                if self.allowed(request, "bind", target_resource, request.namespace, &target.name).await {
                    return Ok(());
                }
                let rules = self
                    .rbac
                    .role(request.namespace, &target)
                    .ok_or_else(|| Failure::not_found(GROUP, target_resource, &target.name))?;
                self.confirm(request, &rules)
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::testing::{kind, request};
    use crate::auth::User;
    use crate::lookup::{Change, Observer};

    /// `dev` may read pods and write roles in `ns`.
    fn fixture() -> Escalation {
        let rbac = Arc::new(Rbac::default());
        let put = |resource: &str, namespace: &str, name: &str, object: Value| {
            let bytes = bytes::Bytes::from(object.to_string());
            rbac.observe(&Change { group: GROUP, resource, namespace, name, object: Some(&bytes) });
        };
        put("clusterroles", "", "pods", json!({"rules": [pods(&["get", "list"])]}));
        put(
            "clusterroles",
            "",
            "secrets",
            json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["secrets"]}]}),
        );
        let subjects = json!([{"kind": "User", "name": "dev"}]);
        put(
            "rolebindings",
            "ns",
            "dev",
            json!({"subjects": subjects, "roleRef": {"kind": "ClusterRole", "name": "pods"}}),
        );
        Escalation { rbac: rbac.clone(), authorizer: rbac }
    }

    fn pods(verbs: &[&str]) -> Value {
        json!({"verbs": verbs, "apiGroups": [""], "resources": ["pods"]})
    }

    async fn check(user: &User, resource: &str, object: Value) -> Result<(), Failure> {
        let kind = kind(GROUP, "v1", resource, true);
        let mut asked = request(&kind, user, Operation::Create, "ns", "new");
        asked.object = object;
        fixture().validate(&asked).await
    }

    #[tokio::test]
    async fn only_what_is_held_can_be_granted() {
        let dev = User::new("dev", &["a", "b"]);
        check(&dev, "roles", json!({"rules": [pods(&["get"])]})).await.expect("held");
        let refused = check(&dev, "roles", json!({"rules": [pods(&["get", "delete"])]})).await.expect_err("not held");
        assert_eq!(
            refused.message,
            "roles.rbac.authorization.k8s.io \"new\" is forbidden: user \"dev\" (groups=[\"a\" \"b\"]) is attempting to \
             grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"delete\"]}"
        );
        let admin = User::new("root", &[MASTERS]);
        check(&admin, "roles", json!({"rules": [pods(&["delete"])]})).await.expect("everything is held");
    }

    #[tokio::test]
    async fn bindings_grant_what_their_role_grants() {
        let dev = User::new("dev", &[]);
        let binding = |role: &str| json!({"subjects": [], "roleRef": {"kind": "ClusterRole", "name": role}});
        check(&dev, "rolebindings", binding("pods")).await.expect("held");
        assert_eq!(check(&dev, "rolebindings", binding("secrets")).await.expect_err("not held").code, 403);
        assert_eq!(check(&dev, "rolebindings", binding("nowhere")).await.expect_err("absent").code, 404);
    }
}
