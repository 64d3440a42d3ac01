//! Many writers at once: nothing is lost, nothing is given out twice, a leader that was paused cannot write.

use std::collections::BTreeSet;

use sampan_client::api::FENCE_HEADER;

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_is_lost_between_writers() {
    let api = Api::local(server().await);
    let uri = format!("{CONFIG_MAPS}/a");
    let mut counter = config_map("a");
    counter["data"] = json!({"n": "0"});
    api.post(CONFIG_MAPS, &counter).await.code(201);
    let writers = (0..8).map(|_| {
        let (api, uri) = (api.clone(), uri.clone());
        task::spawn("writer", async move {
            for _ in 0..10 {
                // Read, add one, write back; start over when someone was faster.
                loop {
                    let mut object = api.get(&uri).await.code(200);
                    let n: u32 = object["data"]["n"].as_str().and_then(|text| text.parse().ok()).expect("a number");
                    object["data"]["n"] = (n + 1).to_string().into();
                    let answer = api.put(&uri, &object).await;
                    if answer.code != 409 {
                        answer.code(200);
                        break;
                    }
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer ends well");
    }
    assert_eq!(api.get(&uri).await.code(200)["data"]["n"], "80");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn patches_without_a_revision_all_succeed_and_are_all_seen() {
    let api = Api::local(server().await);
    let uri = format!("{CONFIG_MAPS}/a");
    api.post(CONFIG_MAPS, &config_map("a")).await.code(201);
    let mut watch = api.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    let writers = (0..30).map(|index| {
        let (api, uri) = (api.clone(), uri.clone());
        task::spawn("writer", async move {
            let patch = json!({"data": {format!("k{index}"): "x"}});
            api.patch(&uri, "merge-patch+json", &patch).await.code(200);
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("a writer ends well");
    }
    assert_eq!(watch.next_name().await.as_deref(), Some("ADDED a"));
    let mut last = 0;
    for seen in 1..=30 {
        let frame = watch.next().await.expect("a frame");
        assert_eq!(frame["type"], "MODIFIED");
        let keys = frame["object"]["data"].as_object().map(serde_json::Map::len);
        assert_eq!(keys, Some(1 + seen), "every write adds to the one before");
        let revision =
            frame["object"]["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok());
        let revision = revision.expect("a revision");
        assert!(revision > last);
        last = revision;
    }
}

fn service(name: &str, spec: Value) -> Value {
    json!({"kind": "Service", "apiVersion": "v1", "metadata": {"name": name}, "spec": spec})
}

const SERVICES: &str = "/api/v1/namespaces/default/services";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_address_and_no_port_is_given_out_twice() {
    // 14 addresses and 14 ports for 14 Services.
    let small = |config: &mut Config| {
        config.ranges =
            services::Ranges { cluster: vec!["10.0.0.0/28".parse().expect("a network")], node_ports: (30000, 30013) };
    };
    let api = Api::local(server_with(History::default(), small).await);
    let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
    let creations = (0..14).map(|index| {
        let (api, object) = (api.clone(), service(&format!("s{index}"), spec.clone()));
        task::spawn("writer", async move { api.post(SERVICES, &object).await.code(201) })
    });
    let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for creation in creations.collect::<Vec<_>>() {
        let made = creation.await.expect("a writer ends well");
        assert_eq!(made["spec"]["clusterIPs"], json!([made["spec"]["clusterIP"]]));
        addresses.insert(made["spec"]["clusterIP"].as_str().expect("an address").to_owned());
        ports.insert(made["spec"]["ports"][0]["nodePort"].as_u64().expect("a port"));
    }
    assert_eq!((addresses.len(), ports.len()), (14, 14));
    assert!(api.post(SERVICES, &service("more", spec.clone())).await.refused(500).contains("range is full"));
    // What a deleted Service held is free again.
    let freed = api.delete(&format!("{SERVICES}/s3"), &json!({})).await.code(200);
    let again = api.post(SERVICES, &service("more", spec)).await.code(201);
    assert_eq!(again["spec"]["clusterIP"], freed["spec"]["clusterIP"]);
    let taken = json!({"clusterIP": again["spec"]["clusterIP"], "ports": [{"port": 80}]});
    assert!(
        api.post(SERVICES, &service("third", taken)).await.refused(422).contains("provided IP is already allocated")
    );
}

#[tokio::test]
async fn an_update_of_a_service_keeps_what_it_does_not_mention() {
    let api = Api::local(server().await);
    let uri = format!("{SERVICES}/s");
    let spec = json!({"type": "NodePort", "ports": [{"port": 80}], "selector": {"a": "b"}});
    let made = api.post(SERVICES, &service("s", spec.clone())).await.code(201);
    let again = api.put(&uri, &service("s", spec)).await.code(200);
    assert_eq!(again["spec"]["clusterIP"], made["spec"]["clusterIP"]);
    assert_eq!(again["spec"]["ports"][0]["nodePort"], made["spec"]["ports"][0]["nodePort"]);
    let plain = api.patch(&uri, "merge-patch+json", &json!({"spec": {"type": "ClusterIP"}})).await.code(200);
    assert!(plain["spec"]["ports"][0].get("nodePort").is_none());
    let headless = service("h", json!({"clusterIP": "None", "ports": [{"port": 80}]}));
    assert_eq!(api.post(SERVICES, &headless).await.code(201)["spec"]["clusterIPs"], json!(["None"]));
}

#[tokio::test]
async fn a_service_that_ends_with_its_last_finalizer_gives_everything_back() {
    let api = Api::local(server().await);
    let mut object = service("s", json!({"type": "NodePort", "ports": [{"port": 80}]}));
    object["metadata"]["finalizers"] = json!(["example.com/x"]);
    let made = api.post(SERVICES, &object).await.code(201);
    let uri = format!("{SERVICES}/s");
    api.delete(&uri, &json!({})).await.code(200);
    let last = json!({"metadata": {"finalizers": null}, "spec": {"type": "ClusterIP"}});
    api.patch(&uri, "merge-patch+json", &last).await.code(200);
    api.get(&uri).await.refused(404);
    let same = json!({"type": "NodePort", "clusterIP": made["spec"]["clusterIP"], "ports": made["spec"]["ports"]});
    api.post(SERVICES, &service("t", same)).await.code(201);
}

#[tokio::test]
async fn a_fence_holds_only_while_its_lease_stands() {
    let api = Api::local(server().await);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = |holder: &str, transitions: i64| {
        json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": "l"},
               "spec": {"holderIdentity": holder, "leaseTransitions": transitions}})
    };
    api.post(leases, &lease("one", 1)).await.code(201);
    let fenced = |fence: &'static str, name: &str| {
        let (api, body) = (api.clone(), config_map(name).to_string());
        async move {
            api.with(Method::POST, CONFIG_MAPS, &[("content-type", "application/json"), (FENCE_HEADER, fence)], body)
                .await
        }
    };
    fenced("default/l;one;1", "a").await.code(201);
    // A renewal by the same holder changes the lease's revision, not who holds it.
    let renewed = json!({"spec": {"renewTime": "2030-01-01T00:00:00.000000Z"}});
    api.patch(&format!("{leases}/l"), "merge-patch+json", &renewed).await.code(200);
    fenced("default/l;one;1", "b").await.code(201);
    api.patch(&format!("{leases}/l"), "merge-patch+json", &lease("two", 2)).await.code(200);
    for stale in ["default/l;one;1", "default/l;two;1", "default/gone;two;2"] {
        fenced(stale, "c").await.refused(409);
    }
    fenced("nonsense", "c").await.refused(400);
    api.get(&format!("{CONFIG_MAPS}/c")).await.refused(404);
    fenced("default/l;two;2", "c").await.code(201);
}
