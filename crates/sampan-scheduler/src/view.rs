//! What the scheduler keeps of a pod and of a node: decoded from the object's JSON without building the rest.

use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use sampan_api::labels::{Labels, Requirement, Selector};
use sampan_api::quantity::Quantity;
use sampan_client::Error;
use sampan_client::api::decode;
use sampan_client::informer::View;
use serde::{Deserialize, Deserializer};

use crate::engine::requirements::{
    HostPort, NodeTerm, PodTerm, Preferred, Requirements, SpreadConstraint, Toleration, Weighted,
};
use crate::engine::resources::{CPU, MEMORY, Requests};

/// A pod as the scheduler sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    pub generation: i64,
    /// Empty until it is bound.
    pub node_name: String,
    pub scheduler_name: String,
    pub priority: i32,
    pub terminating: bool,
    /// Succeeded or Failed: it holds no resources.
    pub finished: bool,
    /// Names of the scheduling gates that are still closed.
    pub gated: bool,
    /// The `PodScheduled` condition: status, reason, message.
    pub condition: Option<Condition>,
    pub requirements: Arc<Requirements>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Condition {
    pub status: String,
    pub reason: String,
    pub message: String,
}

/// A node as the scheduler sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    pub name: String,
    pub labels: Labels,
    pub unschedulable: bool,
    pub taints: Vec<Taint>,
    /// In the units of [`Requests`].
    pub allocatable: BTreeMap<String, i64>,
    pub images: Vec<Image>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Image {
    #[serde(deserialize_with = "nullable")]
    pub names: Vec<String>,
    pub size_bytes: i64,
}

fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    name: String,
    namespace: String,
    uid: String,
    generation: i64,
    deletion_timestamp: Option<String>,
    #[serde(deserialize_with = "nullable")]
    labels: Labels,
    #[serde(deserialize_with = "nullable")]
    owner_references: Vec<Owner>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Owner {
    uid: String,
    controller: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPod {
    metadata: Meta,
    spec: PodSpec,
    status: PodStatus,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodSpec {
    node_name: String,
    scheduler_name: String,
    priority: i32,
    #[serde(deserialize_with = "nullable")]
    scheduling_gates: Vec<serde::de::IgnoredAny>,
    #[serde(deserialize_with = "nullable")]
    node_selector: Labels,
    #[serde(deserialize_with = "nullable")]
    tolerations: Vec<Toleration>,
    #[serde(deserialize_with = "nullable")]
    containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    init_containers: Vec<Container>,
    #[serde(deserialize_with = "nullable")]
    overhead: Amounts,
    #[serde(deserialize_with = "nullable")]
    resources: Resources,
    #[serde(deserialize_with = "nullable")]
    affinity: Affinity,
    #[serde(deserialize_with = "nullable")]
    topology_spread_constraints: Vec<RawSpread>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct PodStatus {
    phase: String,
    #[serde(deserialize_with = "nullable")]
    conditions: Vec<RawCondition>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawCondition {
    #[serde(rename = "type")]
    kind: String,
    #[serde(flatten)]
    rest: Condition,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Container {
    image: String,
    restart_policy: String,
    #[serde(deserialize_with = "nullable")]
    ports: Vec<Port>,
    #[serde(deserialize_with = "nullable")]
    resources: Resources,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Port {
    host_port: u16,
    #[serde(rename = "hostIP")]
    host_ip: String,
    protocol: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Resources {
    #[serde(deserialize_with = "nullable")]
    requests: Amounts,
}

/// Resource amounts by name: CPU in thousandths, all others in whole units.
#[derive(Default)]
struct Amounts(BTreeMap<String, i64>);

impl<'de> Deserialize<'de> for Amounts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = BTreeMap::<String, serde_json::Value>::deserialize(deserializer)?;
        let mut amounts = BTreeMap::new();
        for (name, value) in written {
            let text = match &value {
                serde_json::Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            let quantity = Quantity::from_str(&text).map_err(serde::de::Error::custom)?;
            let amount = if name == CPU { quantity.milli_value() } else { quantity.value() };
            amounts.insert(name, amount);
        }
        Ok(Self(amounts))
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Affinity {
    #[serde(deserialize_with = "nullable")]
    node_affinity: NodeAffinity,
    #[serde(deserialize_with = "nullable")]
    pod_affinity: PodAffinity,
    #[serde(deserialize_with = "nullable")]
    pod_anti_affinity: PodAffinity,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution")]
    required: Option<NodeSelector>,
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution", deserialize_with = "nullable")]
    preferred: Vec<RawPreferred>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeSelector {
    #[serde(deserialize_with = "nullable")]
    node_selector_terms: Vec<NodeTermView>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeTermView {
    #[serde(deserialize_with = "nullable")]
    match_expressions: Vec<Requirement>,
    #[serde(deserialize_with = "nullable")]
    match_fields: Vec<Requirement>,
}

impl From<NodeTermView> for NodeTerm {
    fn from(view: NodeTermView) -> Self {
        Self { expressions: view.match_expressions, fields: view.match_fields }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPreferred {
    weight: i32,
    preference: NodeTermView,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PodAffinity {
    #[serde(rename = "requiredDuringSchedulingIgnoredDuringExecution", deserialize_with = "nullable")]
    required: Vec<RawPodTerm>,
    #[serde(rename = "preferredDuringSchedulingIgnoredDuringExecution", deserialize_with = "nullable")]
    preferred: Vec<RawWeighted>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawWeighted {
    weight: i32,
    pod_affinity_term: RawPodTerm,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawPodTerm {
    label_selector: Option<Selector>,
    #[serde(deserialize_with = "nullable")]
    namespaces: Vec<String>,
    namespace_selector: Option<Selector>,
    topology_key: String,
}

impl RawPodTerm {
    fn compile(self, own_namespace: &str) -> PodTerm {
        let mut namespaces = self.namespaces;
        // Neither given: the pod's own namespace (the API's documented meaning of null and empty).
        if namespaces.is_empty() && self.namespace_selector.is_none() {
            namespaces.push(own_namespace.to_owned());
        }
        PodTerm {
            selector: self.label_selector,
            namespaces,
            namespace_selector: self.namespace_selector,
            topology_key: self.topology_key,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawSpread {
    max_skew: i32,
    topology_key: String,
    when_unsatisfiable: String,
    label_selector: Option<Selector>,
    min_domains: Option<i32>,
    node_affinity_policy: String,
    node_taints_policy: String,
    #[serde(deserialize_with = "nullable")]
    match_label_keys: Vec<String>,
}

impl RawSpread {
    fn compile(self, labels: &Labels) -> SpreadConstraint {
        let selector = self.label_selector.map(|mut selector| {
            for key in self.match_label_keys {
                let Some(value) = labels.get(&key) else { continue };
                let requirement = Requirement::equals(key, value);
                // The API server may have merged the key in already.
                if !selector.requirements.contains(&requirement) {
                    selector.requirements.push(requirement);
                }
            }
            selector
        });
        SpreadConstraint {
            max_skew: self.max_skew.max(1),
            topology_key: self.topology_key,
            hard: self.when_unsatisfiable == "DoNotSchedule",
            selector,
            min_domains: self.min_domains.unwrap_or(1),
            honor_affinity: self.node_affinity_policy != "Ignore",
            honor_taints: self.node_taints_policy == "Honor",
        }
    }
}

/// What the pod asks for (`k8s.io/component-helpers/resource`, PodRequests): the larger of what runs together and what
/// each init container needs beside the sidecars started before it; pod-level amounts replace the sum; the overhead of
/// the runtime comes on top. `floor` stands in for a container that names no CPU or memory.
fn requests(spec: &PodSpec, floor: Option<(i64, i64)>) -> Requests {
    let of = |container: &Container| {
        let mut amounts = Requests::from(container.resources.requests.0.clone());
        if let Some((cpu, memory)) = floor {
            amounts.set_if_absent(CPU, cpu);
            amounts.set_if_absent(MEMORY, memory);
        }
        amounts
    };
    let mut together = Requests::default();
    for container in &spec.containers {
        together.add(&of(container));
    }
    let mut sidecars = Requests::default();
    let mut starting = Requests::default();
    for container in &spec.init_containers {
        let amounts = of(container);
        if container.restart_policy == "Always" {
            together.add(&amounts);
            sidecars.add(&amounts);
            starting.raise_to(&sidecars);
        } else {
            let mut beside = sidecars.clone();
            beside.add(&amounts);
            starting.raise_to(&beside);
        }
    }
    together.raise_to(&starting);
    for (name, amount) in &spec.resources.requests.0 {
        together.set(name, *amount);
    }
    together.add(&Requests::from(spec.overhead.0.clone()));
    together
}

/// What a container without requests counts as when scores are computed (upstream's non-zero defaults): 100 m of CPU
/// and 200 MB, so that pods that ask for nothing still spread.
const SCORE_FLOOR: (i64, i64) = (100, 200 * 1024 * 1024);

impl View for Pod {
    fn decode(object: &Bytes) -> Result<Self, Error> {
        decode::<RawPod>(object).map(Self::from)
    }
}

impl From<RawPod> for Pod {
    fn from(raw: RawPod) -> Self {
        let RawPod { metadata, mut spec, status } = raw;
        let requests_exact = requests(&spec, None);
        let scored = requests(&spec, Some(SCORE_FLOOR));
        let mut ports = Vec::new();
        let mut images = Vec::new();
        for container in spec
            .containers
            .iter_mut()
            .chain(spec.init_containers.iter_mut().filter(|container| container.restart_policy == "Always"))
        {
            images.push(std::mem::take(&mut container.image));
            for port in container.ports.iter_mut().filter(|port| port.host_port != 0) {
                let ip = std::mem::take(&mut port.host_ip);
                ports.push(HostPort {
                    ip: if ip.is_empty() { "0.0.0.0".into() } else { ip },
                    protocol: if port.protocol.is_empty() { "TCP".into() } else { std::mem::take(&mut port.protocol) },
                    port: port.host_port,
                });
            }
        }
        let namespace = metadata.namespace;
        let affinity = spec.affinity;
        let terms = |raw: Vec<RawPodTerm>| raw.into_iter().map(|term| term.compile(&namespace)).collect::<Vec<_>>();
        let weighted = |raw: Vec<RawWeighted>, sign: i32| {
            raw.into_iter()
                .map(|one| Weighted { weight: one.weight * sign, term: one.pod_affinity_term.compile(&namespace) })
                .collect::<Vec<_>>()
        };
        let mut preferred_pods = weighted(affinity.pod_affinity.preferred, 1);
        preferred_pods.extend(weighted(affinity.pod_anti_affinity.preferred, -1));
        let requirements = Requirements {
            owner: metadata
                .owner_references
                .into_iter()
                .find(|owner| owner.controller)
                .map(|owner| owner.uid)
                .unwrap_or_default(),
            requests: requests_exact,
            scored_cpu: scored.get(CPU),
            scored_memory: scored.get(MEMORY),
            node_selector: spec.node_selector,
            node_affinity: affinity
                .node_affinity
                .required
                .map(|selector| selector.node_selector_terms.into_iter().map(NodeTerm::from).collect()),
            preferred_nodes: affinity
                .node_affinity
                .preferred
                .into_iter()
                .map(|one| Preferred { weight: one.weight, term: one.preference.into() })
                .collect(),
            tolerations: spec.tolerations,
            ports,
            images,
            spread: spec
                .topology_spread_constraints
                .into_iter()
                .map(|constraint| constraint.compile(&metadata.labels))
                .collect(),
            pod_affinity: terms(affinity.pod_affinity.required),
            pod_anti_affinity: terms(affinity.pod_anti_affinity.required),
            preferred_pods,
            labels: metadata.labels,
            namespace: namespace.clone(),
        };
        Self {
            namespace,
            name: metadata.name,
            uid: metadata.uid,
            generation: metadata.generation,
            node_name: spec.node_name,
            scheduler_name: spec.scheduler_name,
            priority: spec.priority,
            terminating: metadata.deletion_timestamp.is_some(),
            finished: matches!(status.phase.as_str(), "Succeeded" | "Failed"),
            gated: !spec.scheduling_gates.is_empty(),
            condition: status
                .conditions
                .into_iter()
                .find(|condition| condition.kind == "PodScheduled")
                .map(|condition| condition.rest),
            requirements: Arc::new(requirements),
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawNode {
    metadata: Meta,
    spec: NodeSpec,
    status: NodeStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeSpec {
    unschedulable: bool,
    #[serde(deserialize_with = "nullable")]
    taints: Vec<Taint>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
    #[serde(deserialize_with = "nullable")]
    allocatable: Amounts,
    #[serde(deserialize_with = "nullable")]
    images: Vec<Image>,
}

impl View for Node {
    fn decode(object: &Bytes) -> Result<Self, Error> {
        decode::<RawNode>(object).map(|raw| Self {
            name: raw.metadata.name,
            labels: raw.metadata.labels,
            unschedulable: raw.spec.unschedulable,
            taints: raw.spec.taints,
            allocatable: raw.status.allocatable.0,
            images: raw.status.images,
        })
    }
}

/// The labels of a namespace, for `namespaceSelector`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    pub labels: Labels,
}

impl View for Namespace {
    fn decode(object: &Bytes) -> Result<Self, Error> {
        #[derive(Default, Deserialize)]
        #[serde(default)]
        struct Raw {
            metadata: Meta,
        }
        decode::<Raw>(object).map(|raw| Self { labels: raw.metadata.labels })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::engine::resources::EPHEMERAL_STORAGE;

    fn pod(spec: Value) -> Pod {
        let object = json!({"metadata": {"name": "a", "namespace": "n", "labels": {"app": "web"}}, "spec": spec});
        Pod::decode(&Bytes::from(object.to_string())).expect("a pod")
    }

    fn container(cpu: &str, memory: &str) -> Value {
        json!({"image": "i", "resources": {"requests": {"cpu": cpu, "memory": memory}}})
    }

    #[test]
    fn requests_take_the_larger_of_starting_and_running() {
        let sidecar = json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}});
        let check = |init: Value, expected_cpu: i64| {
            let pod = pod(json!({
                "containers": [container("500m", "1Gi"), container("250m", "1Gi")],
                "initContainers": init,
            }));
            assert_eq!(pod.requirements.requests.get(CPU), expected_cpu);
        };
        check(json!([]), 750);
        check(json!([container("1", "0")]), 1000);
        check(json!([sidecar, container("1", "0")]), 1100);
        check(json!([container("1", "0"), sidecar]), 1000);
        check(json!([sidecar]), 850);
    }

    #[test]
    fn pod_level_requests_replace_the_sum_and_overhead_is_added() {
        let pod = pod(json!({
            "containers": [container("500m", "1Gi")],
            "resources": {"requests": {"cpu": "2"}},
            "overhead": {"cpu": "10m", "memory": "1Mi"},
        }));
        assert_eq!(pod.requirements.requests.get(CPU), 2010);
        assert_eq!(pod.requirements.requests.get(MEMORY), (1 << 30) + (1 << 20));
        assert_eq!(pod.requirements.requests.get(EPHEMERAL_STORAGE), 0);
    }

    #[test]
    fn host_ports_gates_and_terms() {
        let pod = pod(json!({
            "schedulingGates": [{"name": "wait"}],
            "containers": [{"ports": [{"containerPort": 80}, {"containerPort": 80, "hostPort": 8080}]}],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
                {"labelSelector": {"matchLabels": {"app": "web"}}, "topologyKey": "kubernetes.io/hostname"},
            ]}},
            "topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": {}, "matchLabelKeys": ["app", "absent"],
            }],
        }));
        assert!(pod.gated);
        let requirements = &pod.requirements;
        assert_eq!(requirements.ports, [HostPort { ip: "0.0.0.0".into(), protocol: "TCP".into(), port: 8080 }]);
        assert_eq!(requirements.pod_anti_affinity[0].namespaces, ["n"]);
        let selector = requirements.spread[0].selector.clone().expect("a selector");
        assert_eq!(selector.requirements, [Requirement::equals("app", "web")]);
    }
}
