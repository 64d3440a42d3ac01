use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::framework::{Action, Verb};

fn service(change: impl FnOnce(&mut Value)) -> Service {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "n", "uid": "s", "labels": {"team": "a"}},
        "spec": {
            "clusterIP": "10.96.0.9", "ipFamilies": ["IPv4"], "selector": {"app": "web"},
            "ports": [{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}],
        },
    });
    change(&mut object);
    serde_json::from_value(object).expect("a Service")
}

fn pod(number: usize, change: impl FnOnce(&mut Value)) -> Arc<Pod> {
    let mut object = json!({
        "metadata": {"name": format!("p{number}"), "namespace": "n", "uid": format!("u{number}"), "labels": {"app": "web"}},
        "spec": {"nodeName": "node", "containers": [{"ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}]}]},
        "status": {
            "phase": "Running", "podIPs": [{"ip": format!("10.0.{}.{}", number / 250, number % 250)}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    change(&mut object);
    Arc::new(serde_json::from_value(object).expect("a pod"))
}

fn unready(pod: &mut Value) {
    pod["status"]["conditions"][0]["status"] = "False".into();
}

fn terminating(pod: &mut Value) {
    pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:00Z".into();
}

fn of(service: &Service, pods: &[Arc<Pod>]) -> Vec<Backend> {
    backends(service, pods, |_| Some("zone".into()))
}

#[test]
fn conditions_say_ready_serving_and_terminating() {
    let pods = [
        pod(1, |_| {}),
        pod(2, unready),
        pod(3, terminating),
        pod(4, |pod| pod["status"]["phase"] = "Failed".into()),
        pod(5, |pod| pod["status"]["podIPs"] = json!([])),
        pod(6, |pod| pod["metadata"]["labels"]["app"] = "other".into()),
    ];
    let facts = |service: &Service| {
        of(service, &pods).into_iter().map(|one| (one.pod, one.ready, one.serving, one.terminating)).collect::<Vec<_>>()
    };
    let all = [("p1", true, true, false), ("p2", false, false, false), ("p3", false, true, true)];
    assert_eq!(facts(&service(|_| {})), all.map(|(pod, a, b, c)| (pod.to_owned(), a, b, c)));
    let publish = service(|service| service["spec"]["publishNotReadyAddresses"] = true.into());
    assert!(facts(&publish).iter().all(|(_, ready, ..)| *ready));
}

#[test]
fn ports_by_name_by_number_and_missing() {
    let check = |target: Value, expected: Option<u16>| {
        let service = service(|service| service["spec"]["ports"][0]["targetPort"] = target);
        let found = of(&service, &[pod(1, |_| {})])[0].ports.first().map(|port| port.port);
        assert_eq!(found, expected);
    };
    check(json!("http"), Some(8080));
    check(json!(9090), Some(9090));
    check(json!("absent"), None);
    check(Value::Null, Some(80));
}

#[test]
fn a_hostname_shows_under_its_own_service_only() {
    let named = |subdomain: &str| {
        let pod = pod(1, |pod| {
            pod["spec"]["hostname"] = "h".into();
            pod["spec"]["subdomain"] = subdomain.into();
        });
        of(&service(|_| {}), &[pod])[0].hostname.clone()
    };
    assert_eq!((named("web"), named("other")), (Some("h".into()), None));
}

/// Slices as the server would hold them after the writes.
fn apply(actions: Vec<Action>, present: &[Arc<Slice>], names: &mut usize) -> Vec<Arc<Slice>> {
    let mut slices: BTreeMap<String, Slice> =
        present.iter().map(|slice| (slice.metadata.name.clone(), (**slice).clone())).collect();
    for action in actions {
        match action.verb {
            Verb::Create(mut object) => {
                *names += 1;
                object["metadata"]["name"] = format!("s{names}").into();
                object["metadata"]["uid"] = format!("s{names}").into();
                slices.insert(format!("s{names}"), serde_json::from_value(object).expect("a slice"));
            }
            Verb::Patch(_, patch) => {
                let slice = slices.get_mut(&action.key.name).expect("known");
                if let Some(endpoints) = patch.get("endpoints") {
                    slice.endpoints = serde_json::from_value(endpoints.clone()).expect("endpoints");
                }
                for (key, value) in patch["metadata"]["labels"].as_object().into_iter().flatten() {
                    match value.as_str() {
                        Some(value) => slice.metadata.labels.insert(key.clone(), value.into()),
                        None => slice.metadata.labels.remove(key),
                    };
                }
            }
            Verb::Delete(_) => drop(slices.remove(&action.key.name)),
        }
    }
    slices.into_values().map(Arc::new).collect()
}

#[test]
fn a_service_without_pods_has_one_empty_slice_with_labels_and_owner() {
    let service = service(|service| service["spec"]["clusterIP"] = "None".into());
    let slices = apply(slices::plan(&service, &[], &[]), &[], &mut 0);
    let [slice] = slices.as_slice() else { panic!("one slice") };
    assert!(slice.endpoints.is_empty() && slice.ours());
    assert_eq!(slice.metadata.labels["team"], "a");
    assert_eq!(slice.metadata.labels[HEADLESS], "");
    assert_eq!(slice.metadata.labels[SERVICE_NAME], "web");
    assert_eq!(slice.metadata.controller().expect("an owner").uid, "s");
    assert!(slices::plan(&service, &[], &slices).is_empty(), "no write without a change");
    // The first pod comes: its ports differ from those of the empty slice.
    let after = apply(slices::plan(&service, &of(&service, &[pod(1, |_| {})]), &slices), &slices, &mut 1);
    assert_eq!(after.iter().map(|slice| slice.endpoints.len()).collect::<Vec<_>>(), [1]);
}

#[test]
fn one_change_is_one_write() {
    let service = service(|_| {});
    let pods: Vec<Arc<Pod>> = (0..250).map(|number| pod(number, |_| {})).collect();
    let mut names = 0;
    let slices = apply(slices::plan(&service, &of(&service, &pods), &[]), &[], &mut names);
    assert_eq!(slices.len(), 3);
    let mut changed = pods.clone();
    changed[7] = pod(7, unready);
    changed.push(pod(250, |_| {}));
    changed.remove(120);
    let actions = slices::plan(&service, &of(&service, &changed), &slices);
    assert!(actions.len() <= 2, "a changed and a removed endpoint touch their slices, a new one neither more");
    let relabeled = self::service(|service| service["metadata"]["labels"] = json!({"team": "b"}));
    let actions = slices::plan(&relabeled, &of(&service, &pods), &slices);
    assert_eq!(actions.len(), 3);
    assert_eq!(apply(actions, &slices, &mut names)[0].metadata.labels["team"], "b");
}

proptest! {
    #[test]
    fn slices_hold_exactly_the_backends(rounds in prop::collection::vec(prop::collection::btree_set(0usize..260, 0..240), 1..6)) {
        let service = service(|_| {});
        let mut slices = Vec::new();
        let mut names = 0;
        for round in rounds {
            let pods: Vec<Arc<Pod>> = round.iter().map(|number| pod(*number, |_| {})).collect();
            let actions = slices::plan(&service, &of(&service, &pods), &slices);
            slices = apply(actions, &slices, &mut names);
            let held: Vec<&String> =
                slices.iter().flat_map(|slice| &slice.endpoints).map(|one| &one.target_ref.name).collect();
            let expected: BTreeSet<String> = round.iter().map(|number| format!("p{number}")).collect();
            prop_assert_eq!(held.len(), expected.len(), "each once");
            prop_assert_eq!(held.into_iter().cloned().collect::<BTreeSet<_>>(), expected);
            prop_assert!(slices.iter().all(|slice| slice.endpoints.len() <= slices::MAX));
            prop_assert!(!slices.is_empty());
            prop_assert!(slices::plan(&service, &of(&service, &pods), &slices).is_empty(), "comes to rest");
        }
    }
}

#[test]
fn endpoints_part_ready_from_unready_and_leave_out_the_terminating() {
    let pods = [pod(2, |_| {}), pod(1, |_| {}), pod(3, unready), pod(4, terminating)];
    let service = service(|_| {});
    let Some(Action { verb: Verb::Create(object), .. }) = legacy::plan(&service, &of(&service, &pods), None) else {
        panic!("a creation")
    };
    let subset = &object["subsets"][0];
    let ips =
        |field: &str| subset[field].as_array().map(|all| all.iter().map(|one| one["ip"].clone()).collect::<Vec<_>>());
    assert_eq!(ips("addresses"), Some(vec![json!("10.0.0.1"), json!("10.0.0.2")]));
    assert_eq!(ips("notReadyAddresses"), Some(vec![json!("10.0.0.3")]));
    assert_eq!(subset["ports"], json!([{"name": "http", "port": 8080, "protocol": "TCP"}]));
    let present: Endpoints = serde_json::from_value(object).expect("Endpoints");
    assert!(present.managed());
    assert!(legacy::plan(&service, &of(&service, &pods), Some(&present)).is_none());
    let Some(Action { verb: Verb::Patch(_, patch), .. }) = legacy::plan(&service, &[], Some(&present)) else {
        panic!("a patch")
    };
    assert_eq!(patch["subsets"], json!([]));
}
