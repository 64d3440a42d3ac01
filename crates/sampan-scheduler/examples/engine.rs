//! How many pods a second the engine places, alone: `cargo run --profile fast -p sampan-scheduler --example engine [NODES] [PODS]`.

use std::sync::Arc;

use sampan_api::labels::Selector;
use sampan_base::Clock;
use sampan_scheduler::engine::Engine;
use sampan_scheduler::engine::requirements::{PodTerm, Requirements, SpreadConstraint};
use sampan_scheduler::engine::resources::Requests;
use sampan_scheduler::view::Node;

fn main() {
    let argument =
        |at: usize, default: usize| std::env::args().nth(at).and_then(|text| text.parse().ok()).unwrap_or(default);
    let (nodes, pods) = (argument(1, 5_000), argument(2, 50_000));
    let term = |key: &str| PodTerm {
        selector: Some(Selector::equal_to(&labels(0))),
        namespaces: vec!["default".into()],
        namespace_selector: None,
        topology_key: key.into(),
    };
    let spread = SpreadConstraint {
        max_skew: 1,
        topology_key: "zone".into(),
        hard: true,
        selector: Some(Selector::equal_to(&labels(0))),
        min_domains: 1,
        honor_affinity: true,
        honor_taints: false,
    };
    measure("one owner", nodes, pods, |_| plain(0));
    measure("100 owners in turn", nodes, pods, |pod| plain(pod % 100));
    let few = pods / 10;
    measure("required spread over zones", nodes, few, |_| Requirements { spread: vec![spread.clone()], ..plain(0) });
    let apart = nodes.min(few);
    measure("required anti-affinity by node", nodes, apart, |_| Requirements {
        pod_anti_affinity: vec![term("host")],
        ..plain(0)
    });
}

fn labels(owner: usize) -> sampan_api::labels::Labels {
    [("app".to_owned(), owner.to_string())].into()
}

fn plain(owner: usize) -> Requirements {
    let mut requests = Requests::default();
    requests.set("cpu", 100);
    requests.set("memory", 64 << 20);
    Requirements {
        namespace: "default".into(),
        labels: labels(owner),
        owner: owner.to_string(),
        requests,
        scored_cpu: 100,
        scored_memory: 64 << 20,
        ..Requirements::default()
    }
}

fn measure(what: &str, nodes: usize, pods: usize, requirements: impl Fn(usize) -> Requirements) {
    let mut engine = Engine::new(1);
    for number in 0..nodes {
        let name = format!("node-{number}");
        let labels = [("host".to_owned(), name.clone()), ("zone".to_owned(), format!("z{}", number % 3))].into();
        let allocatable =
            [("cpu", 32_000), ("memory", 128 << 30), ("pods", 110)].map(|(name, amount)| (name.to_owned(), amount));
        engine.set_node(Arc::new(Node { name, labels, allocatable: allocatable.into(), ..Node::default() }));
    }
    let all: Vec<Arc<Requirements>> = (0..pods).map(|pod| Arc::new(requirements(pod))).collect();
    let clock = Clock::system();
    let start = clock.instant();
    let mut placed = 0;
    for (number, requirements) in all.iter().enumerate() {
        if let Ok(node) = engine.schedule(requirements) {
            engine.place(&number.to_string(), requirements, &node, true);
            placed += 1;
        }
    }
    let took = start.elapsed();
    println!("{what}: {placed} of {pods} pods on {nodes} nodes in {took:?}: {:.0}/s", pods as f64 / took.as_secs_f64());
}
