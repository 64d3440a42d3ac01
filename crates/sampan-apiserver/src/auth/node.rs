//! The Node authorizer: a node may read what its pods need and write what is its own, nothing else
//! (`plugin/pkg/auth/authorizer/node`). Which objects those are is kept in an index fed by the changes of pods, volumes,
//! attachments and resource slices. Checks of what is written stand in the NodeRestriction admission plug-in.

use std::collections::{BTreeSet, HashMap};
use std::sync::RwLock;

use async_trait::async_trait;
use serde::Deserialize;

use super::rule::{Rule, or_default};
use super::{Attributes, Authorizer, Decision, User};
use crate::lookup::{Change, Observer, decode};

const USER_PREFIX: &str = "system:node:";
pub const NODES_GROUP: &str = "system:nodes";
const MIRROR_POD: &str = "kubernetes.io/config.mirror";

/// The node a user is; `Some("")` is a member of the group whose name says no node.
pub fn node_name(user: &User) -> Option<&str> {
    let name = user.name.strip_prefix(USER_PREFIX)?;
    user.in_group(NODES_GROUP).then_some(name)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Type {
    Pod,
    Secret,
    ConfigMap,
    Claim,
    Volume,
    ServiceAccount,
    ResourceClaim,
    Attachment,
    Slice,
}

/// Type, namespace (empty for cluster scope) and name.
type Vertex = (Type, String, String);

/// What an object makes reachable: from itself and what it refers to.
#[derive(Default, PartialEq)]
struct Links {
    /// Directly to this node.
    node: Option<String>,
    /// Vertices from which this object can be reached.
    sources: BTreeSet<Vertex>,
}

#[derive(Default)]
struct Graph {
    links: HashMap<Vertex, Links>,
    /// source → the objects it leads to.
    targets: HashMap<Vertex, BTreeSet<Vertex>>,
}

impl Graph {
    fn set(&mut self, vertex: Vertex, links: Option<Links>) {
        if self.links.get(&vertex) == links.as_ref() {
            return;
        }
        if let Some(old) = self.links.remove(&vertex) {
            for source in old.sources {
                if let Some(targets) = self.targets.get_mut(&source) {
                    targets.remove(&vertex);
                    if targets.is_empty() {
                        self.targets.remove(&source);
                    }
                }
            }
        }
        if let Some(links) = links {
            for source in &links.sources {
                self.targets.entry(source.clone()).or_default().insert(vertex.clone());
            }
            self.links.insert(vertex, links);
        }
    }

    /// Whether a path leads from `vertex` to the node: secret → volume → claim → pod → node is the longest.
    fn reaches(&self, vertex: &Vertex, node: &str) -> bool {
        if self.links.get(vertex).is_some_and(|links| links.node.as_deref() == Some(node)) {
            return true;
        }
        self.targets.get(vertex).is_some_and(|targets| targets.iter().any(|target| self.reaches(target, node)))
    }
}

/// The authorizer. `rules` is what every node may do besides, the rules of `system:node`.
pub struct NodeAuthorizer {
    graph: RwLock<Graph>,
    rules: Vec<Rule>,
}

fn refuse(reason: impl Into<String>) -> Decision {
    Decision::NoOpinion { reason: reason.into() }
}

fn allow() -> Decision {
    Decision::Allow { reason: String::new() }
}

impl NodeAuthorizer {
    pub fn new(rules: Vec<Rule>) -> Self {
        Self { graph: RwLock::default(), rules }
    }

    fn decide(&self, asked: &Attributes) -> Decision {
        let node = match node_name(&asked.user) {
            None => return refuse(""),
            Some("") => return refuse(format!("unknown node for user {:?}", asked.user.name)),
            Some(node) => node,
        };
        if asked.resource_request {
            match (asked.group.as_str(), asked.resource.as_str()) {
                ("", "secrets") => return self.read(node, Type::Secret, asked),
                ("", "configmaps") => return self.read(node, Type::ConfigMap, asked),
                ("", "persistentvolumeclaims") if asked.subresource == "status" => {
                    return match asked.verb.as_str() {
                        "update" | "patch" => self.related(node, Type::Claim, asked),
                        _ => refuse("can only get/update/patch this type"),
                    };
                }
                ("", "persistentvolumeclaims") => return self.get(node, Type::Claim, asked),
                ("", "persistentvolumes") => return self.get(node, Type::Volume, asked),
                ("resource.k8s.io", "resourceclaims") => return self.get(node, Type::ResourceClaim, asked),
                ("storage.k8s.io", "volumeattachments") => return self.get(node, Type::Attachment, asked),
                ("", "serviceaccounts") => return self.service_account(node, asked),
                ("coordination.k8s.io", "leases") => return lease(node, asked),
                ("storage.k8s.io", "csinodes") => return csi_node(node, asked),
                ("resource.k8s.io", "resourceslices") => return self.slice(node, asked),
                ("", "nodes") => return own_node(node, asked),
                ("", "pods") => return self.pod(node, asked),
                _ => {}
            }
        }
        if self.rules.iter().any(|rule| rule.allows(asked)) { allow() } else { refuse("") }
    }

    fn related(&self, node: &str, kind: Type, asked: &Attributes) -> Decision {
        if asked.name.is_empty() {
            return refuse("No Object name found");
        }
        let namespace =
            if matches!(kind, Type::Volume | Type::Attachment | Type::Slice) { "" } else { &asked.namespace };
        let vertex = (kind, namespace.to_owned(), asked.name.clone());
        let graph = self.graph.read().unwrap_or_else(|poisoned| poisoned.into_inner());
        if graph.reaches(&vertex, node) {
            return allow();
        }
        refuse(format!("no relationship found between node '{node}' and this object"))
    }

    fn get(&self, node: &str, kind: Type, asked: &Attributes) -> Decision {
        match (asked.verb.as_str(), asked.subresource.as_str()) {
            ("get", "") => self.related(node, kind, asked),
            ("get", _) => refuse("cannot get subresource"),
            _ => refuse("can only get individual resources of this type"),
        }
    }

    /// Secrets and config maps are watched one by one: list and watch with a name.
    fn read(&self, node: &str, kind: Type, asked: &Attributes) -> Decision {
        if !matches!(asked.verb.as_str(), "get" | "list" | "watch") {
            return refuse("can only read resources of this type");
        }
        if !asked.subresource.is_empty() {
            return refuse("cannot read subresource");
        }
        if asked.namespace.is_empty() {
            return refuse("can only read namespaced object of this type");
        }
        self.related(node, kind, asked)
    }

    fn service_account(&self, node: &str, asked: &Attributes) -> Decision {
        match (asked.verb.as_str(), asked.subresource.as_str()) {
            // For credentials of image registries that are tied to the account.
            ("get", "") => self.related(node, Type::ServiceAccount, asked),
            ("create", "token") if !asked.name.is_empty() => self.related(node, Type::ServiceAccount, asked),
            ("create", _) if !asked.name.is_empty() => refuse("can only create token subresource of serviceaccount"),
            _ => refuse("can only create tokens for individual service accounts"),
        }
    }

    fn slice(&self, node: &str, asked: &Attributes) -> Decision {
        if !asked.subresource.is_empty() {
            return refuse("cannot authorize ResourceSlice subresources");
        }
        match asked.verb.as_str() {
            // Admission looks at the node named in the new object.
            "create" => allow(),
            "get" | "update" | "patch" | "delete" => self.related(node, Type::Slice, asked),
            "watch" | "list" | "deletecollection" if selects(asked, "spec.nodeName", node) => allow(),
            "watch" | "list" | "deletecollection" => {
                refuse("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => refuse(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, \
                 delete, deletecollection",
            ),
        }
    }

    fn pod(&self, node: &str, asked: &Attributes) -> Decision {
        match (asked.subresource.as_str(), asked.verb.as_str()) {
            ("", "get") => self.get(node, Type::Pod, asked),
            ("", "list" | "watch") if selects(asked, "spec.nodeName", node) => allow(),
            ("", "list" | "watch") if !asked.name.is_empty() => self.related(node, Type::Pod, asked),
            ("", "list" | "watch") => refuse("can only list/watch pods with spec.nodeName field selector"),
            // Which ones is NodeRestriction's to check.
            ("", "create" | "delete") | ("status", "update" | "patch") | ("eviction", "create") => allow(),
            _ => refuse(""),
        }
    }
}

fn selects(asked: &Attributes, field: &str, value: &str) -> bool {
    asked.field_selector.iter().any(|(f, v)| f == field && v == value)
}

fn lease(node: &str, asked: &Attributes) -> Decision {
    if !matches!(asked.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return refuse("can only get, create, update, patch, or delete a node lease");
    }
    if asked.namespace != "kube-node-lease" {
        return refuse("can only access leases in the \"kube-node-lease\" system namespace");
    }
    // A create has no name here; admission checks it.
    if asked.verb != "create" && asked.name != node {
        return refuse("can only access node lease with the same name as the requesting node");
    }
    allow()
}

fn csi_node(node: &str, asked: &Attributes) -> Decision {
    if !matches!(asked.verb.as_str(), "get" | "create" | "update" | "patch" | "delete") {
        return refuse("can only get, create, update, patch, or delete a CSINode");
    }
    if !asked.subresource.is_empty() {
        return refuse("cannot authorize CSINode subresources");
    }
    if asked.verb != "create" && asked.name != node {
        return refuse("can only access CSINode with the same name as the requesting node");
    }
    allow()
}

fn own_node(node: &str, asked: &Attributes) -> Decision {
    match (asked.subresource.as_str(), asked.verb.as_str()) {
        ("", "create" | "update" | "patch") | ("status", "update" | "patch") => allow(),
        ("", "get" | "list" | "watch") => match asked.name.as_str() {
            name if name == node => allow(),
            "" => refuse(format!("node '{node}' cannot read all nodes, only its own Node object")),
            other => refuse(format!("node '{node}' cannot read '{other}', only its own Node object")),
        },
        _ => refuse(""),
    }
}

#[async_trait]
impl Authorizer for NodeAuthorizer {
    async fn authorize(&self, attributes: &Attributes) -> Decision {
        self.decide(attributes)
    }
}

impl Observer for NodeAuthorizer {
    fn resources(&self) -> &'static [(&'static str, &'static str)] {
        &[
            ("", "pods"),
            ("", "persistentvolumes"),
            ("storage.k8s.io", "volumeattachments"),
            ("resource.k8s.io", "resourceslices"),
        ]
    }

    fn observe(&self, change: &Change<'_>) {
        let Change { resource, namespace, name, object, .. } = *change;
        let (kind, links): (Type, fn(&[u8], &str, &str) -> Option<Links>) = match resource {
            "pods" => (Type::Pod, pod_links),
            "persistentvolumes" => (Type::Volume, volume_links),
            "volumeattachments" => (Type::Attachment, node_links),
            "resourceslices" => (Type::Slice, node_links),
            _ => return,
        };
        let links = object.and_then(|bytes| links(bytes, namespace, name));
        let vertex = (kind, namespace.to_owned(), name.to_owned());
        let mut graph = self.graph.write().unwrap_or_else(|poisoned| poisoned.into_inner());
        if kind != Type::Volume {
            graph.set(vertex, links);
            return;
        }
        // A volume is reached through its claim: claim → pod gives volume → claim, and its secrets lead to the volume.
        let claim =
            links.as_ref().and_then(|links| links.sources.iter().find(|source| source.0 == Type::Claim).cloned());
        let secrets = links.map(|links| links.sources.into_iter().filter(|source| source.0 == Type::Secret).collect());
        graph.link_volume(vertex, claim, secrets);
    }
}

impl Graph {
    fn link_volume(&mut self, volume: Vertex, claim: Option<Vertex>, secrets: Option<BTreeSet<Vertex>>) {
        // volume → claim: drop the old edge, then set the new one.
        self.targets.remove(&volume);
        if let Some(claim) = claim {
            self.targets.entry(volume.clone()).or_default().insert(claim);
        }
        self.set(volume, secrets.map(|sources| Links { node: None, sources }));
    }
}

/// A slim pod: what names other objects.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Pod {
    metadata: PodMeta,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodMeta {
    #[serde(deserialize_with = "or_default")]
    annotations: HashMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    service_account_name: String,
    #[serde(deserialize_with = "or_default")]
    image_pull_secrets: Vec<Name>,
    #[serde(deserialize_with = "or_default")]
    volumes: Vec<Volume>,
    #[serde(deserialize_with = "or_default")]
    containers: Vec<Container>,
    #[serde(deserialize_with = "or_default")]
    init_containers: Vec<Container>,
    #[serde(deserialize_with = "or_default")]
    ephemeral_containers: Vec<Container>,
    #[serde(deserialize_with = "or_default")]
    resource_claims: Vec<PodClaim>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodStatus {
    #[serde(deserialize_with = "or_default")]
    resource_claim_statuses: Vec<PodClaim>,
    extended_resource_claim_status: Option<PodClaim>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodClaim {
    resource_claim_name: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Name {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    #[serde(deserialize_with = "or_default")]
    env: Vec<Env>,
    #[serde(deserialize_with = "or_default")]
    env_from: Vec<EnvFrom>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Env {
    value_from: Option<ValueFrom>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ValueFrom {
    secret_key_ref: Option<Name>,
    config_map_key_ref: Option<Name>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct EnvFrom {
    secret_ref: Option<Name>,
    config_map_ref: Option<Name>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Volume {
    name: String,
    secret: Option<SecretSource>,
    config_map: Option<Name>,
    projected: Option<Projected>,
    persistent_volume_claim: Option<ClaimSource>,
    ephemeral: Option<serde::de::IgnoredAny>,
    azure_file: Option<SecretSource>,
    csi: Option<CsiSource>,
    cephfs: Option<SecretRef>,
    flex_volume: Option<SecretRef>,
    rbd: Option<SecretRef>,
    #[serde(rename = "scaleIO")]
    scale_io: Option<SecretRef>,
    iscsi: Option<SecretRef>,
    storageos: Option<SecretRef>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecretSource {
    secret_name: String,
    secret_namespace: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct SecretRef {
    secret_ref: Option<Name>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct CsiSource {
    node_publish_secret_ref: Option<Name>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ClaimSource {
    claim_name: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Projected {
    #[serde(deserialize_with = "or_default")]
    sources: Vec<Projection>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Projection {
    secret: Option<Name>,
    config_map: Option<Name>,
    cluster_trust_bundle: Option<serde::de::IgnoredAny>,
}

/// The first kind of object, in plural, a pod would let its node read besides its service account.
pub fn references(pod: &serde_json::Value) -> Option<&'static str> {
    let Ok(mut pod) = Pod::deserialize(pod) else { return Some("objects in a form that cannot be read") };
    if pod
        .spec
        .volumes
        .iter()
        .flat_map(|v| &v.projected)
        .flat_map(|p| &p.sources)
        .any(|s| s.cluster_trust_bundle.is_some())
    {
        return Some("clustertrustbundles");
    }
    pod.metadata.annotations.clear();
    let kinds = links(pod, "", "").sources.into_iter().map(|(kind, ..)| kind);
    kinds
        .filter_map(|kind| match kind {
            Type::Secret => Some("secrets"),
            Type::ConfigMap => Some("configmaps"),
            Type::Claim => Some("persistentvolumeclaims"),
            Type::ResourceClaim => Some("resourceclaims"),
            _ => None,
        })
        .next()
}

fn pod_links(bytes: &[u8], namespace: &str, name: &str) -> Option<Links> {
    let pod: Pod = decode(bytes, "pods", namespace, name)?;
    (!pod.spec.node_name.is_empty()).then(|| links(pod, namespace, name))
}

fn links(pod: Pod, namespace: &str, name: &str) -> Links {
    let Pod { metadata, spec, status } = pod;
    let mut sources = BTreeSet::new();
    // A node can create mirror pods: they must not give it access to anything.
    if !metadata.annotations.contains_key(MIRROR_POD) {
        let mut add = |kind: Type, name: String| {
            if !name.is_empty() {
                sources.insert((kind, namespace.to_owned(), name));
            }
        };
        add(Type::ServiceAccount, spec.service_account_name);
        for secret in spec.image_pull_secrets {
            add(Type::Secret, secret.name);
        }
        for container in spec.containers.into_iter().chain(spec.init_containers).chain(spec.ephemeral_containers) {
            for value in container.env.into_iter().filter_map(|env| env.value_from) {
                add(Type::Secret, value.secret_key_ref.unwrap_or_default().name);
                add(Type::ConfigMap, value.config_map_key_ref.unwrap_or_default().name);
            }
            for from in container.env_from {
                add(Type::Secret, from.secret_ref.unwrap_or_default().name);
                add(Type::ConfigMap, from.config_map_ref.unwrap_or_default().name);
            }
        }
        for volume in spec.volumes {
            if volume.ephemeral.is_some() {
                add(Type::Claim, format!("{name}-{}", volume.name));
            }
            add(Type::Claim, volume.persistent_volume_claim.unwrap_or_default().claim_name);
            add(Type::ConfigMap, volume.config_map.unwrap_or_default().name);
            for secret in [volume.secret, volume.azure_file].into_iter().flatten() {
                add(Type::Secret, secret.secret_name);
            }
            add(Type::Secret, volume.csi.and_then(|csi| csi.node_publish_secret_ref).unwrap_or_default().name);
            for source in
                [volume.cephfs, volume.flex_volume, volume.rbd, volume.scale_io, volume.iscsi, volume.storageos]
            {
                add(Type::Secret, source.and_then(|source| source.secret_ref).unwrap_or_default().name);
            }
            for source in volume.projected.unwrap_or_default().sources {
                add(Type::Secret, source.secret.unwrap_or_default().name);
                add(Type::ConfigMap, source.config_map.unwrap_or_default().name);
            }
        }
        let claims = spec.resource_claims.into_iter().chain(status.resource_claim_statuses);
        for claim in claims.chain(status.extended_resource_claim_status) {
            add(Type::ResourceClaim, claim.resource_claim_name.unwrap_or_default());
        }
    }
    Links { node: Some(spec.node_name), sources }
}

/// The claim of a volume and the secrets it needs on a node.
fn volume_links(bytes: &[u8], _namespace: &str, name: &str) -> Option<Links> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct PersistentVolume {
        spec: Spec,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Spec {
        claim_ref: Option<Reference>,
        csi: Option<Csi>,
        azure_file: Option<SecretSource>,
        cephfs: Option<Holder>,
        flex_volume: Option<Holder>,
        rbd: Option<Holder>,
        #[serde(rename = "scaleIO")]
        scale_io: Option<Holder>,
        iscsi: Option<Holder>,
        storageos: Option<Holder>,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Csi {
        node_publish_secret_ref: Option<Reference>,
        node_stage_secret_ref: Option<Reference>,
        node_expand_secret_ref: Option<Reference>,
        controller_publish_secret_ref: Option<Reference>,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Holder {
        secret_ref: Option<Reference>,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Reference {
        namespace: String,
        name: String,
    }
    let PersistentVolume { spec } = decode(bytes, "persistentvolumes", "", name)?;
    let claim = spec.claim_ref?;
    let mut sources = BTreeSet::from([(Type::Claim, claim.namespace.clone(), claim.name)]);
    let csi = spec.csi.unwrap_or_default();
    let holders = [spec.cephfs, spec.flex_volume, spec.rbd, spec.scale_io, spec.iscsi, spec.storageos];
    let azure = spec
        .azure_file
        .map(|azure| Reference { namespace: azure.secret_namespace.unwrap_or_default(), name: azure.secret_name });
    let secrets = holders.into_iter().flatten().filter_map(|holder| holder.secret_ref);
    let csi = [
        csi.node_publish_secret_ref,
        csi.node_stage_secret_ref,
        csi.node_expand_secret_ref,
        csi.controller_publish_secret_ref,
    ];
    for secret in secrets.chain(csi.into_iter().flatten()).chain(azure) {
        // Without a namespace it is the claim's.
        let namespace = if secret.namespace.is_empty() { claim.namespace.clone() } else { secret.namespace };
        sources.insert((Type::Secret, namespace, secret.name));
    }
    Some(Links { node: None, sources })
}

fn node_links(bytes: &[u8], _namespace: &str, name: &str) -> Option<Links> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Object {
        spec: Spec,
    }
    #[derive(Default, Deserialize)]
    #[serde(rename_all = "camelCase", default)]
    struct Spec {
        node_name: String,
    }
    let object: Object = decode(bytes, "", "", name)?;
    Some(Links { node: Some(object.spec.node_name), sources: BTreeSet::new() })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn put(authorizer: &NodeAuthorizer, resource: &str, namespace: &str, name: &str, object: Option<Value>) {
        let object = object.map(|object| bytes::Bytes::from(object.to_string()));
        authorizer.observe(&Change { group: "", resource, namespace, name, object: object.as_ref() });
    }

    fn pod(node: &str) -> Value {
        json!({"metadata": {"name": "p"}, "spec": {
            "nodeName": node,
            "serviceAccountName": "bot",
            "imagePullSecrets": [{"name": "pull"}],
            "containers": [{"env": [{"name": "A", "valueFrom": {"secretKeyRef": {"name": "env", "key": "k"}}}],
                            "envFrom": [{"configMapRef": {"name": "all"}}]}],
            "volumes": [
                {"name": "a", "secret": {"secretName": "files"}},
                {"name": "b", "projected": {"sources": [{"configMap": {"name": "part"}}, {"serviceAccountToken": {}}]}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "data"}},
                {"name": "d", "ephemeral": {"volumeClaimTemplate": {}}},
            ],
        }})
    }

    fn may(authorizer: &NodeAuthorizer, node: &str, verb: &str, resource: &str, name: &str) -> bool {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        let cluster = matches!(resource, "persistentvolumes" | "nodes");
        let asked = Attributes {
            user: User::new(&format!("system:node:{node}"), &[NODES_GROUP]),
            verb: verb.into(),
            resource_request: true,
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: if cluster { String::new() } else { "ns".into() },
            name: name.into(),
            ..Attributes::default()
        };
        matches!(authorizer.decide(&asked), Decision::Allow { .. })
    }

    #[test]
    fn a_node_reads_what_its_pods_name() {
        let authorizer = NodeAuthorizer::new(Vec::new());
        put(&authorizer, "pods", "ns", "p", Some(pod("n1")));
        let reads = [
            ("get", "secrets", "pull"),
            ("get", "secrets", "env"),
            ("watch", "secrets", "files"),
            ("list", "configmaps", "all"),
            ("get", "configmaps", "part"),
            ("get", "persistentvolumeclaims", "data"),
            ("get", "persistentvolumeclaims", "p-d"),
            ("create", "serviceaccounts/token", "bot"),
            ("get", "pods", "p"),
        ];
        for (verb, resource, name) in reads {
            assert!(may(&authorizer, "n1", verb, resource, name), "{verb} {resource} {name}");
            assert!(!may(&authorizer, "n2", verb, resource, name), "{verb} {resource} {name}");
        }
        assert!(!may(&authorizer, "n1", "get", "secrets", "other"));
        assert!(!may(&authorizer, "n1", "delete", "secrets", "pull"));
        put(&authorizer, "pods", "ns", "p", None);
        assert!(!may(&authorizer, "n1", "get", "secrets", "pull"));
        assert!(authorizer.graph.read().expect("not poisoned").targets.is_empty());
    }

    #[test]
    fn volumes_are_reached_through_their_claim() {
        let authorizer = NodeAuthorizer::new(Vec::new());
        let secret = json!({"nodeStageSecretRef": {"name": "stage", "namespace": "ns"}});
        let volume = json!({"spec": {"claimRef": {"namespace": "ns", "name": "data"}, "csi": secret}});
        put(&authorizer, "persistentvolumes", "", "pv", Some(volume));
        assert!(!may(&authorizer, "n1", "get", "persistentvolumes", "pv"));
        put(&authorizer, "pods", "ns", "p", Some(pod("n1")));
        assert!(may(&authorizer, "n1", "get", "persistentvolumes", "pv"));
        assert!(may(&authorizer, "n1", "get", "secrets", "stage"));
        put(&authorizer, "persistentvolumes", "", "pv", Some(json!({"spec": {}})));
        assert!(!may(&authorizer, "n1", "get", "persistentvolumes", "pv"));
        assert!(!may(&authorizer, "n1", "get", "secrets", "stage"));
    }

    #[test]
    fn mirror_pods_give_nothing() {
        let authorizer = NodeAuthorizer::new(Vec::new());
        let mut mirror = pod("n1");
        mirror["metadata"]["annotations"] = json!({ MIRROR_POD: "x" });
        put(&authorizer, "pods", "ns", "p", Some(mirror));
        assert!(may(&authorizer, "n1", "get", "pods", "p"));
        assert!(!may(&authorizer, "n1", "get", "secrets", "pull"));
    }

    #[test]
    fn its_own_objects_only() {
        let authorizer = NodeAuthorizer::new(Vec::new());
        assert!(may(&authorizer, "n1", "get", "nodes", "n1") && !may(&authorizer, "n1", "get", "nodes", "n2"));
        assert!(!may(&authorizer, "n1", "list", "nodes", "") && !may(&authorizer, "n1", "list", "pods", ""));
        let selector = vec![("spec.nodeName".to_owned(), "n1".to_owned())];
        let mut asked = Attributes {
            user: User::new("system:node:n1", &[NODES_GROUP]),
            verb: "watch".into(),
            resource_request: true,
            resource: "pods".into(),
            field_selector: selector,
            ..Attributes::default()
        };
        assert_eq!(authorizer.decide(&asked), allow());
        asked.user = User::new("system:node:n2", &[NODES_GROUP]);
        assert_ne!(authorizer.decide(&asked), allow());
    }
}
