//! The collector against an API server that lags: random forests of owners, random deletions.

use std::collections::BTreeSet;

use proptest::prelude::*;
use sampan_base::Dice;

use super::*;
use crate::testing::Api;

const KINDS: [(&str, &str, &str); 4] = [
    ("configmaps", "v1", "ConfigMap"),
    ("pods", "v1", "Pod"),
    ("replicasets", "apps/v1", "ReplicaSet"),
    ("deployments", "apps/v1", "Deployment"),
];

#[derive(Clone, Debug)]
struct Forest {
    seed: u64,
    /// Kind, owners among the objects before it, whether each blocks.
    objects: Vec<(usize, BTreeSet<usize>, bool)>,
    deletions: Vec<(usize, &'static str)>,
}

fn forest() -> impl Strategy<Value = Forest> {
    let object = (0..4usize, prop::collection::btree_set(0..12usize, 0..3), any::<bool>());
    let policy = prop_oneof![Just("Background"), Just("Foreground"), Just("Orphan")];
    (any::<u64>(), prop::collection::vec(object, 1..12), prop::collection::vec((0..12usize, policy), 0..4)).prop_map(
        |(seed, mut objects, deletions)| {
            for (at, (_, owners, _)) in objects.iter_mut().enumerate() {
                owners.retain(|owner| *owner < at);
            }
            Forest { seed, objects, deletions }
        },
    )
}

fn name(at: usize) -> String {
    format!("o{at}")
}

/// Which objects are left when all is done. Orphaning sets the direct dependents free; deletions are made one after the
/// other, each at rest.
fn survivors(forest: &Forest) -> BTreeSet<usize> {
    let mut alive: BTreeSet<usize> = (0..forest.objects.len()).collect();
    let mut owners: Vec<BTreeSet<usize>> = forest.objects.iter().map(|(_, owners, _)| owners.clone()).collect();
    for (target, policy) in &forest.deletions {
        if !alive.remove(target) {
            continue;
        }
        if *policy == "Orphan" {
            owners.iter_mut().for_each(|owners| owners.retain(|owner| owner != target));
        }
        loop {
            let lost = |at: &usize| !owners[*at].is_empty() && owners[*at].iter().all(|owner| !alive.contains(owner));
            let Some(next) = alive.iter().copied().find(lost) else { break };
            alive.remove(&next);
        }
        for owners in &mut owners {
            owners.retain(|owner| alive.contains(owner));
        }
    }
    alive
}

fn present(api: &Api) -> BTreeSet<String> {
    let all = KINDS.iter().flat_map(|(resource, ..)| api.list(resource));
    all.map(|object| sampan_api::object::name(&object).to_owned()).collect()
}

async fn rest(api: &Api, expected: &BTreeSet<String>) -> bool {
    // Longer than any back-off of a few failures; then long enough to see that nothing more goes.
    for _ in 0..600 {
        if present(api) == *expected {
            break;
        }
        api.clock.sleep(Duration::from_millis(100)).await;
    }
    api.clock.sleep(Duration::from_secs(40)).await;
    present(api) == *expected
}

async fn run(forest: Forest) -> Result<(), TestCaseError> {
    let clock = Clock::simulated("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
    let api = Api::new(clock.clone(), Dice::seeded(forest.seed), 5, Duration::from_millis(50));
    for (at, (kind, owners, blocks)) in forest.objects.iter().enumerate() {
        let references: Vec<Value> = owners
            .iter()
            .map(|owner| {
                let (resource, version, kind) = KINDS[forest.objects[*owner].0];
                let object = api.get(resource, "n", &name(*owner)).expect("made before");
                json!({
                    "apiVersion": version, "kind": kind, "name": name(*owner), "blockOwnerDeletion": blocks,
                    "uid": sampan_api::object::uid(&object),
                })
            })
            .collect();
        api.put(KINDS[*kind].0, "n", &name(at), |object| object["metadata"]["ownerReferences"] = references.into());
    }
    let context = Context::new("generic-garbage-collector", &api.client_for(), &clock, &Dice::seeded(1));
    let mut group = task::Group::default();
    group.spawn("garbage collector", super::run(context, api.client()));
    let mut partial = Forest { deletions: vec![], ..forest.clone() };
    let names = |forest: &Forest| survivors(forest).into_iter().map(name).collect::<BTreeSet<_>>();
    prop_assert!(rest(&api, &names(&partial)).await, "touched what it should not: {:?}", present(&api));
    for (target, policy) in forest.deletions.iter().filter(|(target, _)| *target < forest.objects.len()) {
        partial.deletions.push((*target, policy));
        let gvr_of = KINDS[forest.objects[*target].0];
        let (group, version) = sampan_api::kind::split_api_version(gvr_of.1);
        let gvr = Gvr { group: group.into(), version: version.into(), resource: gvr_of.0.into() };
        let key = Key::new("n", name(*target));
        let options = DeleteOptions { propagation_policy: Some((*policy).into()), ..DeleteOptions::default() };
        while let Err(error) = api.client().delete(&Collector::target(&gvr, &key), &options).await {
            if error.is_not_found() {
                break;
            }
        }
        let expected = names(&partial);
        prop_assert!(rest(&api, &expected).await, "expected {:?}, left {:?}", expected, present(&api));
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn what_has_an_owner_left_stays_and_all_else_goes(forest in forest()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.expect("a runtime").block_on(run(forest))?;
    }
}

#[tokio::test(start_paused = true)]
async fn a_dependent_of_nobody_goes_and_one_of_an_unknown_kind_stays() {
    let clock = Clock::simulated("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
    let api = Api::new(clock.clone(), Dice::seeded(3), 0, Duration::ZERO);
    let owner = |version: &str, kind: &str| json!([{"apiVersion": version, "kind": kind, "name": "x", "uid": "gone"}]);
    api.put("pods", "n", "o1", |pod| pod["metadata"]["ownerReferences"] = owner("v1", "ConfigMap"));
    api.put("pods", "n", "o2", |pod| pod["metadata"]["ownerReferences"] = owner("example.com/v1", "Widget"));
    // The name is taken again, by another object.
    api.put("configmaps", "n", "x", |_| {});
    let context = Context::new("generic-garbage-collector", &api.client_for(), &clock, &Dice::seeded(1));
    let mut group = task::Group::default();
    group.spawn("garbage collector", super::run(context, api.client()));
    assert!(rest(&api, &BTreeSet::from(["o2".to_owned(), "x".to_owned()])).await, "{:?}", present(&api));
}

#[tokio::test(start_paused = true)]
async fn in_the_foreground_the_owner_goes_last() {
    let clock = Clock::simulated("2030-01-01T00:00:00Z".parse().expect("a timestamp"));
    let api = Api::new(clock.clone(), Dice::seeded(3), 0, Duration::from_millis(10));
    api.put("deployments", "n", "o0", |_| {});
    let uid = sampan_api::object::uid(&api.get("deployments", "n", "o0").expect("made")).to_owned();
    let owner = json!([{
        "apiVersion": "apps/v1", "kind": "Deployment", "name": "o0", "uid": uid, "blockOwnerDeletion": true,
    }]);
    api.put("configmaps", "n", "o1", |object| {
        object["metadata"]["ownerReferences"] = owner;
        object["metadata"]["finalizers"] = json!(["example.com/wait"]);
    });
    let context = Context::new("generic-garbage-collector", &api.client_for(), &clock, &Dice::seeded(1));
    let mut group = task::Group::default();
    group.spawn("garbage collector", super::run(context, api.client()));
    clock.sleep(Duration::from_secs(5)).await;
    let gvr = Gvr { group: "apps".into(), version: "v1".into(), resource: "deployments".into() };
    let options = DeleteOptions { propagation_policy: Some("Foreground".into()), ..DeleteOptions::default() };
    api.client().delete(&Collector::target(&gvr, &Key::new("n", "o0")), &options).await.expect("accepted");
    clock.sleep(Duration::from_secs(20)).await;
    let held = api.get("configmaps", "n", "o1").expect("held by its finalizer");
    assert!(!held["metadata"]["deletionTimestamp"].is_null());
    assert!(api.get("deployments", "n", "o0").is_some(), "waits for what it owns");
    api.remove("configmaps", "n", "o1");
    assert!(rest(&api, &BTreeSet::new()).await, "{:?}", present(&api));
}
