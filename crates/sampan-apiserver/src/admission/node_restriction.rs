//! NodeRestriction: what a node writes concerns itself and its pods (`plugin/pkg/admission/noderestriction`). Which objects it
//! may touch at all is the Node authorizer's decision; here is what the authorizer cannot see: the content.

use std::collections::BTreeSet;
use std::sync::Arc;

use async_trait::async_trait;
use sampan_api::Failure;
use sampan_api::object::{self, lookup, text};
use serde_json::Value;

use super::{Operation, Plugin, Request, forbidden};
use crate::auth::User;
use crate::auth::node::node_name;
use crate::lookup::Lookup;

const MIRROR_POD: &str = "kubernetes.io/config.mirror";
/// The labels of kubernetes.io and k8s.io a node sets on itself (`k8s.io/kubelet/pkg/apis/well_known_labels.go`).
const OWN_LABELS: &[&str] = &[
    "kubernetes.io/hostname",
    "topology.kubernetes.io/zone",
    "topology.kubernetes.io/region",
    "failure-domain.beta.kubernetes.io/zone",
    "failure-domain.beta.kubernetes.io/region",
    "beta.kubernetes.io/instance-type",
    "node.kubernetes.io/instance-type",
    "kubernetes.io/os",
    "kubernetes.io/arch",
    "beta.kubernetes.io/os",
    "beta.kubernetes.io/arch",
];
const OWN_LABEL_SPACES: &[&str] = &["kubelet.kubernetes.io", "node.kubernetes.io"];
const RESTRICTION: &str = "node-restriction.kubernetes.io";

pub struct NodeRestriction {
    pub lookup: Arc<dyn Lookup>,
}

#[async_trait]
impl Plugin for NodeRestriction {
    fn name(&self) -> &'static str {
        "NodeRestriction"
    }

    async fn validate(&self, request: &Request<'_>) -> Result<(), Failure> {
        let Some(node) = node_name(request.user) else { return Ok(()) };
        if request.operation == Operation::Connect {
            return Ok(());
        }
        if node.is_empty() {
            return Err(forbidden(request, format!("could not determine node from user {:?}", request.user.name)));
        }
        let verdict = match (request.kind.gvk.group.as_str(), request.kind.resource.as_str(), request.subresource) {
            ("", "pods", "") => self.pod(node, request),
            ("", "pods", "status") => pod_status(node, request),
            ("", "pods", "eviction") => {
                let pod = self.lookup.value("", "pods", request.namespace, request.name);
                let pod = pod.ok_or_else(|| Failure::not_found("", "pods", request.name))?;
                check(hosted(&pod, node), || {
                    format!("node {node} can only evict pods with spec.nodeName set to itself")
                })
            }
            ("", "pods", other) => {
                Err(format!("unexpected pod subresource {other:?}, only 'status' and 'eviction' are allowed"))
            }
            ("", "nodes", _) => own_node(node, request),
            ("", "persistentvolumeclaims", "status") => claim_status(node, request),
            ("", "persistentvolumeclaims", _) => Err("may only update PVC status".into()),
            ("", "serviceaccounts", "token") => {
                return self.token(request.user, request.namespace, request.name, &request.object);
            }
            ("coordination.k8s.io", "leases", _) => lease(node, request),
            ("storage.k8s.io", "csinodes", _) => check(named(request) == node, || {
                "can only access CSINode with the same name as the requesting node".into()
            }),
            ("resource.k8s.io", "resourceslices", _) => slice(node, request),
            _ => Ok(()),
        };
        verdict.map_err(|why| forbidden(request, why))
    }
}

/// `Err` says why not.
type Verdict = Result<(), String>;

fn check(holds: bool, why: impl FnOnce() -> String) -> Verdict {
    if holds { Ok(()) } else { Err(why()) }
}

/// A create has its name in the object.
fn named<'a>(request: &'a Request<'_>) -> &'a str {
    if request.operation == Operation::Create { object::name(&request.object) } else { request.name }
}

fn hosted(pod: &Value, node: &str) -> bool {
    text(pod, &["spec", "nodeName"]) == node
}

fn part<'a>(object: &'a Value, path: &[&str]) -> &'a Value {
    lookup(object, path).unwrap_or(&Value::Null)
}

fn items<'a>(object: &'a Value, path: &[&str]) -> &'a [Value] {
    part(object, path).as_array().map(Vec::as_slice).unwrap_or_default()
}

impl NodeRestriction {
    fn pod(&self, node: &str, request: &Request<'_>) -> Verdict {
        match request.operation {
            Operation::Create => self.mirror_pod(node, &request.object),
            Operation::Delete => check(hosted(request.old, node), || {
                format!("node {node:?} can only delete pods with spec.nodeName set to itself")
            }),
            _ => Err(format!("unexpected operation \"UPDATE\", node {node:?} can only create and delete mirror pods")),
        }
    }

    fn mirror_pod(&self, node: &str, pod: &Value) -> Verdict {
        check(lookup(pod, &["metadata", "annotations", MIRROR_POD]).is_some(), || {
            format!("pod does not have {MIRROR_POD:?} annotation, node {node:?} can only create mirror pods")
        })?;
        check(hosted(pod, node), || format!("node {node:?} can only create pods with spec.nodeName set to itself"))?;
        let [owner] = items(pod, &["metadata", "ownerReferences"]) else {
            return Err(format!("node {node:?} can only create pods with an owner reference set to itself"));
        };
        let is = |key: &str, value: &str| text(owner, &[key]) == value;
        check(is("apiVersion", "v1") && is("kind", "Node") && is("name", node), || {
            format!("node {node:?} can only create pods with an owner reference set to itself")
        })?;
        check(owner["controller"] == true, || {
            format!("node {node:?} can only create pods with a controller owner reference set to itself")
        })?;
        check(owner["blockOwnerDeletion"] != true, || {
            format!("node {node:?} must not set blockOwnerDeletion on an owner reference")
        })?;
        let record = self.lookup.value("", "nodes", "", node);
        let record = record.as_ref().map(object::uid).unwrap_or_default();
        let given = text(owner, &["uid"]);
        check(!record.is_empty() && record == given, || {
            format!("node {node} UID mismatch: expected {given} got {record}")
        })?;
        // What the pod names, its node may read: a node must not choose that itself.
        check(text(pod, &["spec", "serviceAccountName"]).is_empty(), || {
            format!("node {node:?} can not create pods that reference a service account")
        })?;
        let what = crate::auth::node::references(pod);
        match what {
            Some(what) => Err(format!("node {node:?} can not create pods that reference {what}")),
            None => Ok(()),
        }
    }

    /// A token a node asks for is bound to a pod on it.
    pub fn token(&self, user: &User, namespace: &str, account: &str, request: &Value) -> Result<(), Failure> {
        let Some(node) = node_name(user) else { return Ok(()) };
        let refuse = |why: &str| Err(Failure::forbidden("", "serviceaccounts", account, why));
        let bound = part(request, &["spec", "boundObjectRef"]);
        let name = text(bound, &["name"]);
        if text(bound, &["apiVersion"]) != "v1" || text(bound, &["kind"]) != "Pod" || name.is_empty() {
            return refuse("node requested token not bound to a pod");
        }
        let uid = text(bound, &["uid"]);
        if uid.is_empty() {
            return refuse("node requested token with a pod binding without a uid");
        }
        let pod = self.lookup.value("", "pods", namespace, name);
        let pod = pod.ok_or_else(|| Failure::not_found("", "pods", name))?;
        if object::uid(&pod) != uid {
            return refuse(&format!(
                "the UID in the bound object reference ({uid}) does not match the UID in record. The object might have \
                 been deleted and then recreated"
            ));
        }
        if !hosted(&pod, node) {
            return refuse("node requested token bound to a pod scheduled on a different node");
        }
        Ok(())
    }
}

fn pod_status(node: &str, request: &Request<'_>) -> Verdict {
    check(request.operation == Operation::Update, || "unexpected operation".into())?;
    check(hosted(request.old, node), || {
        format!("node {node:?} can only update pod status for pods with spec.nodeName set to itself")
    })?;
    let same = |path: &[&str]| part(request.old, path) == part(&request.object, path);
    check(same(&["metadata", "labels"]), || format!("node {node:?} cannot update labels through pod status"))?;
    check(same(&["status", "resourceClaimStatuses"]), || format!("node {node:?} cannot update resource claim statues"))
}

fn claim_status(node: &str, request: &Request<'_>) -> Verdict {
    check(request.operation == Operation::Update, || "unexpected operation".into())?;
    let stripped = |object: &Value| {
        let mut object = object.clone();
        for (outer, inner) in [
            ("metadata", "resourceVersion"),
            ("metadata", "managedFields"),
            ("status", "capacity"),
            ("status", "conditions"),
            ("status", "allocatedResources"),
            ("status", "allocatedResourceStatuses"),
        ] {
            if let Some(map) = object.get_mut(outer).and_then(Value::as_object_mut) {
                map.remove(inner);
            }
        }
        object
    };
    check(stripped(request.old) == stripped(&request.object), || {
        format!("node {node:?} is not allowed to update fields other than status.capacity and status.conditions")
    })
}

fn own_node(node: &str, request: &Request<'_>) -> Verdict {
    let name = named(request);
    check(name == node, || format!("node {node:?} is not allowed to modify node {name:?}"))?;
    if request.operation == Operation::Delete {
        return Ok(());
    }
    if request.operation == Operation::Update {
        let taints = ["spec", "taints"];
        // An empty list and none are the same.
        check(items(request.old, &taints) == items(&request.object, &taints), || {
            format!("node {node:?} is not allowed to modify taints")
        })?;
    }
    let labels =
        forbidden_labels(part(request.old, &["metadata", "labels"]), part(&request.object, &["metadata", "labels"]));
    check(labels.is_empty(), || {
        let labels: Vec<&str> = labels.into_iter().collect();
        let labels = labels.join(", ");
        match request.operation {
            Operation::Create => format!("node {node:?} is not allowed to set the following labels: {labels}"),
            _ => format!("is not allowed to modify labels: {labels}"),
        }
    })
}

/// Labels that differ and are not a node's to set: they could steer pods to it.
fn forbidden_labels<'a>(old: &'a Value, new: &'a Value) -> BTreeSet<&'a str> {
    let keys = [old, new].into_iter().filter_map(Value::as_object).flat_map(serde_json::Map::keys);
    let changed = keys.filter(|key| old.get(key.as_str()) != new.get(key.as_str()));
    let within = |space: &str, of: &str| space == of || space.strip_suffix(of).is_some_and(|rest| rest.ends_with('.'));
    changed
        .map(String::as_str)
        .filter(|label| {
            let space = label.split_once('/').map(|(space, _)| space).unwrap_or_default();
            let kubernetes = within(space, "kubernetes.io") || within(space, "k8s.io");
            let own = OWN_LABELS.contains(label) || OWN_LABEL_SPACES.iter().any(|own| within(space, own));
            within(space, RESTRICTION) || kubernetes && !own
        })
        .collect()
}

fn lease(node: &str, request: &Request<'_>) -> Verdict {
    check(request.namespace == "kube-node-lease", || {
        "can only access leases in the \"kube-node-lease\" system namespace".into()
    })?;
    check(named(request) == node, || "can only access node lease with the same name as the requesting node".into())
}

fn slice(node: &str, request: &Request<'_>) -> Verdict {
    let object = if request.operation == Operation::Create { &request.object } else { request.old };
    check(text(object, &["spec", "nodeName"]) == node, || {
        "can only create, update or delete ResourceSlice with the same NodeName as the requesting node".into()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::testing::{kind, request};
    use crate::auth::node::NODES_GROUP;
    use crate::lookup::testing::Objects;

    fn plugin() -> NodeRestriction {
        let objects = Objects::default();
        let pod = |name: &str, node: &str| json!({"metadata": {"namespace": "ns", "name": name, "uid": name}, "spec": {"nodeName": node}});
        objects.put("", "pods", &pod("mine", "n1"));
        objects.put("", "pods", &pod("other", "n2"));
        objects.put("", "nodes", &json!({"metadata": {"name": "n1", "uid": "u1"}}));
        NodeRestriction { lookup: Arc::new(objects) }
    }

    struct Case<'a> {
        operation: Operation,
        group: &'a str,
        resource: &'a str,
        namespace: &'a str,
        name: &'a str,
        new: Value,
        old: Value,
    }

    async fn verdict(case: Case<'_>) -> Result<(), String> {
        let user = User::new("system:node:n1", &[NODES_GROUP]);
        let (resource, subresource) = case.resource.split_once('/').unwrap_or((case.resource, ""));
        let kind = kind(case.group, "v1", resource, !case.namespace.is_empty());
        let mut asked = request(&kind, &user, case.operation, case.namespace, case.name);
        asked.subresource = subresource;
        asked.object = case.new;
        asked.old = &case.old;
        plugin().validate(&asked).await.map_err(|failure| failure.message)
    }

    fn pod(node: &str) -> Value {
        json!({"metadata": {"name": "p", "labels": {"a": "b"}}, "spec": {"nodeName": node}})
    }

    #[tokio::test]
    async fn pods() {
        let delete = |node| Case {
            operation: Operation::Delete,
            group: "",
            resource: "pods",
            namespace: "ns",
            name: "p",
            new: Value::Null,
            old: pod(node),
        };
        verdict(delete("n1")).await.expect("its own");
        verdict(delete("n2")).await.expect_err("another's");
        let status = |new: Value, node| Case {
            operation: Operation::Update,
            group: "",
            resource: "pods/status",
            namespace: "ns",
            name: "p",
            new,
            old: pod(node),
        };
        verdict(status(pod("n1"), "n1")).await.expect("its own");
        verdict(status(pod("n2"), "n2")).await.expect_err("another's");
        let mut relabelled = pod("n1");
        relabelled["metadata"]["labels"]["a"] = "c".into();
        verdict(status(relabelled, "n1")).await.expect_err("labels are not its business");
        let owner = json!([{"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "u1", "controller": true}]);
        let create = |secret: bool| {
            let mut new = pod("n1");
            new["metadata"]["annotations"] = json!({ MIRROR_POD: "x" });
            new["metadata"]["ownerReferences"] = owner.clone();
            if secret {
                new["spec"]["volumes"] = json!([{"name": "s", "secret": {"secretName": "s"}}]);
            }
            Case {
                operation: Operation::Create,
                group: "",
                resource: "pods",
                namespace: "ns",
                name: "p",
                new,
                old: Value::Null,
            }
        };
        verdict(create(false)).await.expect("a mirror pod");
        assert!(verdict(create(true)).await.expect_err("a secret").contains("reference secrets"));
    }

    #[tokio::test]
    async fn nodes_and_leases() {
        let node = |name: &str, more: Value| {
            let mut node = json!({"metadata": {"name": name}, "spec": {}});
            node["metadata"]["labels"] = more["labels"].clone();
            node["spec"]["taints"] = more["taints"].clone();
            node
        };
        let update = |new: Value, old: Value| Case {
            operation: Operation::Update,
            group: "",
            resource: "nodes",
            namespace: "",
            name: "n1",
            new,
            old,
        };
        let plain = || node("n1", json!({"labels": {"kubernetes.io/os": "linux", "mine": "x"}}));
        verdict(update(plain(), node("n1", json!({})))).await.expect("its own labels");
        let stolen = node("n1", json!({"labels": {"node-role.kubernetes.io/control-plane": ""}}));
        verdict(update(stolen, node("n1", json!({})))).await.expect_err("a role");
        let tainted = node("n1", json!({"taints": [{"key": "a"}]}));
        assert!(verdict(update(node("n1", json!({})), tainted)).await.expect_err("a taint").contains("taints"));
        let lease = |name: &str| Case {
            operation: Operation::Create,
            group: "coordination.k8s.io",
            resource: "leases",
            namespace: "kube-node-lease",
            name: "",
            new: json!({"metadata": {"name": name}}),
            old: Value::Null,
        };
        verdict(lease("n1")).await.expect("its own");
        verdict(lease("n2")).await.expect_err("another's");
    }

    #[test]
    fn tokens() {
        let user = User::new("system:node:n1", &[NODES_GROUP]);
        let ask = |name: &str, uid: &str| {
            let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid});
            plugin().token(&user, "ns", "default", &json!({"spec": {"boundObjectRef": bound}}))
        };
        ask("mine", "mine").expect("its pod");
        assert_eq!(ask("other", "other").expect_err("another's pod").code, 403);
        assert_eq!(ask("mine", "").expect_err("no uid").code, 403);
        assert_eq!(ask("gone", "x").expect_err("no pod").code, 404);
        plugin().token(&User::new("alice", &[]), "ns", "default", &json!({})).expect("not a node");
    }
}
