//! The engine against a slow model that looks at every node and every pod anew, straight from the rules.

use proptest::prelude::*;
use sampan_api::labels::{Requirement, Selector};

use super::diagnosis::Wake;
use super::requirements::{HostPort, NodeTerm, PodTerm, SpreadConstraint, Toleration};
use super::resources::{CPU, MEMORY, PODS, Requests};
use super::*;
use crate::view::Taint;

/// A pod on a node.
#[derive(Clone, Debug)]
struct Running {
    requirements: Arc<Requirements>,
    node: String,
    live: bool,
}

#[derive(Default)]
struct Model {
    nodes: BTreeMap<String, Arc<Node>>,
    pods: BTreeMap<String, Running>,
}

impl Model {
    fn on<'a>(&'a self, node: &'a str) -> impl Iterator<Item = &'a Running> {
        self.pods.values().filter(move |pod| pod.node == node)
    }

    fn own_reasons(&self, node: &Node, pod: &Requirements) -> Vec<Reason> {
        let tolerated = |taint: &Taint| pod.tolerations.iter().any(|one| one.tolerates(taint));
        if node.unschedulable
            && !tolerated(&Taint {
                key: "node.kubernetes.io/unschedulable".into(),
                value: String::new(),
                effect: "NoSchedule".into(),
            })
        {
            return vec![Reason::Unschedulable];
        }
        if node.taints.iter().any(|taint| taint.effect != "PreferNoSchedule" && !tolerated(taint)) {
            return vec![Reason::Taint];
        }
        if !self.affine(node, pod) {
            return vec![Reason::NodeAffinity];
        }
        let taken: Vec<HostPort> = self.on(&node.name).flat_map(|one| one.requirements.ports.clone()).collect();
        if pod.ports.iter().any(|port| taken.iter().any(|other| port.collides(other))) {
            return vec![Reason::Ports];
        }
        let mut reasons = Vec::new();
        let has = |resource: &str| node.allocatable.get(resource).copied().unwrap_or(0);
        if self.on(&node.name).count() as i64 + 1 > has(PODS) {
            reasons.push(Reason::TooManyPods);
        }
        for (resource, amount) in pod.requests.iter().filter(|(_, amount)| *amount > 0) {
            let used: i64 = self.on(&node.name).map(|one| one.requirements.requests.get(resource)).sum();
            if amount > has(resource) - used {
                reasons.push(Reason::Insufficient(resource.into()));
            }
        }
        reasons
    }

    fn affine(&self, node: &Node, pod: &Requirements) -> bool {
        pod.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
            && pod
                .node_affinity
                .as_ref()
                .is_none_or(|terms| terms.iter().any(|term| term.matches(&node.name, &node.labels)))
    }

    /// The running pods whose node is in the same domain as `node`.
    fn around<'a>(&'a self, node: &'a Node, key: &'a str) -> impl Iterator<Item = &'a Running> {
        self.pods.values().filter(move |pod| {
            let there = self.nodes.get(&pod.node).and_then(|node| node.labels.get(key));
            there.is_some() && there == node.labels.get(key)
        })
    }

    fn reasons(&self, node: &Node, pod: &Requirements) -> Vec<Reason> {
        let own = self.own_reasons(node, pod);
        if own.is_empty() { self.global_reason(node, pod).into_iter().collect() } else { own }
    }

    fn global_reason(&self, node: &Node, pod: &Requirements) -> Option<Reason> {
        let selects =
            |term: &PodTerm, other: &Requirements| term.selects(&other.namespace, &other.labels, &Labels::new());
        let hard: Vec<&SpreadConstraint> = pod.spread.iter().filter(|one| one.hard).collect();
        for constraint in &hard {
            let Some(selector) = &constraint.selector else { panic!("the test always selects") };
            let Some(ours) = node.labels.get(&constraint.topology_key) else {
                return Some(Reason::SpreadLabelMissing);
            };
            let eligible: Vec<&Arc<Node>> = self
                .nodes
                .values()
                .filter(|one| hard.iter().all(|hard| one.labels.contains_key(&hard.topology_key)))
                .filter(|one| !constraint.honor_affinity || self.affine(one, pod))
                .collect();
            let mut counts: BTreeMap<&String, i64> = BTreeMap::new();
            for one in &eligible {
                let matching = self.on(&one.name).filter(|running| {
                    running.live
                        && running.requirements.namespace == pod.namespace
                        && selector.matches(&running.requirements.labels)
                });
                *counts.entry(&one.labels[&constraint.topology_key]).or_default() += matching.count() as i64;
            }
            let least = if (counts.len() as i32) < constraint.min_domains {
                0
            } else {
                counts.values().min().copied().unwrap_or(0)
            };
            let itself = i64::from(selector.matches(&pod.labels));
            if counts.get(ours).copied().unwrap_or(0) + itself - least > i64::from(constraint.max_skew) {
                return Some(Reason::Spread);
            }
        }
        let all = |other: &Requirements| pod.pod_affinity.iter().all(|term| selects(term, other));
        let nobody = !pod.pod_affinity.iter().any(|term| {
            self.pods.values().any(|one| {
                all(&one.requirements)
                    && self.nodes.get(&one.node).is_some_and(|node| node.labels.contains_key(&term.topology_key))
            })
        });
        let first = nobody && all(pod);
        for term in &pod.pod_affinity {
            let near = self.around(node, &term.topology_key).any(|one| all(&one.requirements));
            if !(near || first && node.labels.contains_key(&term.topology_key)) {
                return Some(Reason::PodAffinity);
            }
        }
        for term in &pod.pod_anti_affinity {
            if self.around(node, &term.topology_key).any(|one| selects(term, &one.requirements)) {
                return Some(Reason::PodAntiAffinity);
            }
        }
        for running in self.pods.values() {
            for term in &running.requirements.pod_anti_affinity {
                let there = self.nodes.get(&running.node).and_then(|node| node.labels.get(&term.topology_key));
                if selects(term, pod) && there.is_some() && there == node.labels.get(&term.topology_key) {
                    return Some(Reason::ExistingAntiAffinity);
                }
            }
        }
        None
    }
}

fn labels(pairs: &[(&str, String)]) -> Labels {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect()
}

fn node() -> impl Strategy<Value = Arc<Node>> {
    let taint = prop_oneof![Just("NoSchedule"), Just("NoExecute"), Just("PreferNoSchedule")];
    (
        0..6i32,
        prop::option::of(0..3i32),
        0..4i64,
        0..4i64,
        prop::bool::weighted(0.1),
        prop::option::weighted(0.2, taint),
    )
        .prop_map(|(name, zone, cpu, pods, unschedulable, effect)| {
            let name = format!("n{name}");
            let mut labels = labels(&[("host", name.clone())]);
            labels.extend(zone.map(|zone| ("zone".to_owned(), format!("z{zone}"))));
            let taints = effect
                .map(|effect| Taint { key: "t".into(), value: "v".into(), effect: effect.into() })
                .into_iter()
                .collect();
            let allocatable =
                [(CPU, cpu * 1000), (MEMORY, 4), (PODS, pods)].map(|(name, amount)| (name.to_owned(), amount));
            let allocatable = allocatable.into_iter().collect();
            Arc::new(Node { name, labels, unschedulable, taints, allocatable, ..Node::default() })
        })
}

fn term() -> impl Strategy<Value = PodTerm> {
    (0..2i32, prop_oneof![Just("zone"), Just("host")]).prop_map(|(app, key)| PodTerm {
        selector: Some(Selector::equal_to(&labels(&[("app", app.to_string())]))),
        namespaces: vec!["default".into()],
        namespace_selector: None,
        topology_key: key.into(),
    })
}

fn spread() -> impl Strategy<Value = SpreadConstraint> {
    (1..3i32, 0..2i32, 1..4i32, prop_oneof![Just("zone"), Just("host")], any::<bool>(), any::<bool>()).prop_map(
        |(max_skew, app, min_domains, key, hard, honor_affinity)| SpreadConstraint {
            max_skew,
            topology_key: key.into(),
            hard,
            selector: Some(Selector::equal_to(&labels(&[("app", app.to_string())]))),
            min_domains,
            honor_affinity,
            honor_taints: false,
        },
    )
}

fn requirements() -> impl Strategy<Value = Arc<Requirements>> {
    let zone = |operator| {
        let requirement = Requirement { key: "zone".into(), operator, values: vec!["z0".into()] };
        NodeTerm { expressions: vec![requirement], fields: vec![] }
    };
    let affinity = prop_oneof![
        Just(zone(sampan_api::labels::Operator::In)),
        Just(zone(sampan_api::labels::Operator::NotIn)),
        Just(NodeTerm { expressions: vec![], fields: vec![Requirement::equals("metadata.name", "n1")] }),
    ];
    let port = (0..2u16, prop_oneof![Just("0.0.0.0"), Just("10.0.0.1"), Just("10.0.0.2")]);
    let few = |weight| prop::bool::weighted(weight);
    (
        (0..2i32, 0..3i64, 0..2i64, few(0.3), prop::option::weighted(0.2, affinity)),
        prop::collection::vec(port, 0..2),
        prop::collection::vec(spread(), 0..2),
        (few(0.2), term()),
        (few(0.2), term()),
    )
        .prop_map(|((app, cpu, memory, tolerant, affinity), ports, spread, (near, near_term), (far, far_term))| {
            let mut requests = Requests::default();
            requests.set(CPU, cpu * 500);
            requests.set(MEMORY, memory);
            let toleration = Toleration { key: "t".into(), operator: "Exists".into(), ..Toleration::default() };
            Arc::new(Requirements {
                namespace: "default".into(),
                labels: labels(&[("app", app.to_string())]),
                owner: format!("owner {app}"),
                requests,
                tolerations: if tolerant { vec![toleration] } else { vec![] },
                node_affinity: affinity.map(|term| vec![term]),
                ports: ports
                    .into_iter()
                    .map(|(port, ip)| HostPort { ip: ip.into(), protocol: "TCP".into(), port: 80 + port })
                    .collect(),
                spread,
                pod_affinity: if near { vec![near_term] } else { vec![] },
                pod_anti_affinity: if far { vec![far_term] } else { vec![] },
                ..Requirements::default()
            })
        })
}

#[derive(Clone, Debug)]
enum Step {
    SetNode(Arc<Node>),
    RemoveNode(usize),
    /// Schedules and, when there is a node, places.
    Schedule(Arc<Requirements>),
    Place(Arc<Requirements>, usize, bool),
    Remove(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => node().prop_map(Step::SetNode),
        1 => (0..6usize).prop_map(Step::RemoveNode),
        6 => requirements().prop_map(Step::Schedule),
        2 => (requirements(), 0..6usize, any::<bool>()).prop_map(|(pod, node, live)| Step::Place(pod, node, live)),
        1 => (0..20usize).prop_map(Step::Remove),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn agrees_with_the_slow_model(steps in prop::collection::vec(step(), 1..60)) {
        let mut engine = Engine::new(1);
        let mut model = Model::default();
        let mut next = 0;
        for step in steps {
            match step {
                Step::SetNode(node) => {
                    engine.set_node(node.clone());
                    model.nodes.insert(node.name.clone(), node);
                }
                Step::RemoveNode(node) => {
                    engine.remove_node(&format!("n{node}"));
                    model.nodes.remove(&format!("n{node}"));
                }
                Step::Remove(pod) => {
                    let uid = format!("p{pod}");
                    prop_assert_eq!(engine.remove(&uid), model.pods.remove(&uid).is_some());
                }
                Step::Place(requirements, node, live) => {
                    let (uid, node) = (format!("p{next}"), format!("n{node}"));
                    next += 1;
                    engine.place(&uid, &requirements, &node, live);
                    model.pods.insert(uid, Running { requirements, node, live });
                }
                Step::Schedule(requirements) => {
                    let mut expected: BTreeMap<Reason, usize> = BTreeMap::new();
                    let mut fit = Vec::new();
                    for node in model.nodes.values() {
                        let reasons = model.reasons(node, &requirements);
                        if reasons.is_empty() {
                            fit.push(node.name.clone());
                        }
                        for reason in reasons {
                            *expected.entry(reason).or_default() += 1;
                        }
                    }
                    match engine.schedule(&requirements) {
                        Ok(node) => {
                            prop_assert!(fit.contains(&node), "{} does not fit; {:?} do", node, fit);
                            let uid = format!("p{next}");
                            next += 1;
                            engine.place(&uid, &requirements, &node, true);
                            model.pods.insert(uid, Running { requirements, node, live: true });
                        }
                        Err(diagnosis) => {
                            prop_assert!(fit.is_empty(), "{:?} fit, but: {}", fit, diagnosis);
                            prop_assert_eq!(diagnosis.nodes, model.nodes.len());
                            prop_assert_eq!(diagnosis.reasons, expected);
                        }
                    }
                }
            }
        }
    }
}

fn plain(name: &str, cpu: i64) -> Arc<Node> {
    let allocatable = [(CPU, cpu), (MEMORY, 1 << 34), (PODS, 110)].map(|(name, amount)| (name.to_owned(), amount));
    let allocatable = allocatable.into_iter().collect();
    Arc::new(Node { name: name.into(), allocatable, ..Node::default() })
}

fn replica(cpu: i64) -> Arc<Requirements> {
    let mut requests = Requests::default();
    requests.set(CPU, cpu);
    Arc::new(Requirements { owner: "o".into(), requests, scored_cpu: cpu, ..Requirements::default() })
}

#[test]
fn replicas_of_one_owner_spread() {
    let mut engine = Engine::new(7);
    for number in 0..5 {
        engine.set_node(plain(&format!("n{number}"), 4000));
    }
    let pod = replica(100);
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for number in 0..20 {
        let node = engine.schedule(&pod).expect("there is room");
        engine.place(&format!("p{number}"), &pod, &node, true);
        *counts.entry(node).or_default() += 1;
    }
    assert_eq!(counts.values().copied().collect::<Vec<_>>(), [4; 5]);
}

#[test]
fn the_emptier_node_is_better_and_one_seed_gives_one_order() {
    let run = |seed| {
        let mut engine = Engine::new(seed);
        engine.set_node(plain("full", 1000));
        engine.place("x", &replica(900), "full", true);
        for number in 0..8 {
            engine.set_node(plain(&format!("n{number}"), 1000));
        }
        let pod = Arc::new(Requirements { scored_cpu: 100, ..Requirements::default() });
        (0..8)
            .map(|number| {
                let node = engine.schedule(&pod).expect("there is room");
                engine.place(&format!("p{number}"), &pod, &node, true);
                node
            })
            .collect::<Vec<_>>()
    };
    assert_eq!(run(1), run(1));
    assert_ne!(run(1), run(2), "ties are broken by the seed");
    assert!(!run(1).contains(&"full".to_owned()));
}

#[test]
fn a_full_cluster_wakes_on_freed_room() {
    let mut engine = Engine::new(1);
    engine.set_node(plain("a", 100));
    let pod = replica(80);
    assert_eq!(engine.schedule(&pod).as_deref(), Ok("a"));
    engine.place("p", &pod, "a", true);
    let diagnosis = engine.schedule(&pod).expect_err("full");
    assert!(diagnosis.wakes.contains(Wake::FREED));
    assert!(diagnosis.to_string().starts_with("0/1 nodes are available: 1 Insufficient cpu. preemption: "));
    engine.remove("p");
    assert_eq!(engine.schedule(&pod).as_deref(), Ok("a"));
}
