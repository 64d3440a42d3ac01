//! The whole agent on a pretended machine, in virtual time.

use std::time::Duration;

use sampan_runtime::fake::{Behaviour, Operation};
use sampan_runtime::{Error, ImageErrorKind};
use serde_json::{Value, json};

use crate::testing::{World, pod};

fn waiting(pod: &Value) -> &str {
    pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"].as_str().unwrap_or_default()
}

fn condition<'a>(pod: &'a Value, type_: &str) -> &'a str {
    let conditions = pod["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|one| one["type"] == type_);
    found.and_then(|one| one["status"].as_str()).unwrap_or("absent")
}

#[tokio::test(start_paused = true)]
async fn a_pod_runs_and_is_deleted() {
    let world = World::new().await;
    world.machine.behave("app", [Behaviour::default()]);
    let began = world.clock.instant();
    world.api.put("pods", pod("web", json!({})));
    let running = world.wait_phase("web", "Running").await;
    assert!(began.elapsed() < Duration::from_millis(50), "took {:?}", began.elapsed());
    let status = &running["status"];
    assert_eq!(status["podIP"], "10.1.0.1");
    assert_eq!(status["hostIP"], "192.168.0.1");
    assert_eq!(status["qosClass"], "BestEffort");
    assert_eq!(status["observedGeneration"], 1);
    for type_ in ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"] {
        assert_eq!(condition(&running, type_), "True", "{type_}");
    }
    let container = &status["containerStatuses"][0];
    assert_eq!(
        (&container["ready"], &container["started"], &container["restartCount"]),
        (&json!(true), &json!(true), &json!(0))
    );
    assert!(container["containerID"].as_str().is_some_and(|id| id.starts_with("sampan://")));
    world.api.delete("web", 30);
    world.wait_gone("web").await;
    assert_eq!(world.network.attached(), 0);
    assert_eq!(world.machine.calls().iter().filter(|(call, _)| *call == Operation::RemoveSandbox).count(), 1);
    let events = world.api.events();
    for expected in [
        "Pulled: Container image \"app:1\" already present on machine and can be accessed by the pod",
        "Created: Container created",
        "Started: Container started",
        "Killing: Stopping container app",
    ] {
        assert!(events.iter().any(|event| event == expected), "{expected} in {events:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_job_like_pod_succeeds_and_stays() {
    let world = World::new().await;
    world.machine.behave("app", [Behaviour::exits_after(Duration::from_secs(5), 0)]);
    world.api.put("pods", pod("job", json!({"restartPolicy": "Never"})));
    let done = world.wait_phase("job", "Succeeded").await;
    let ended = &done["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!((&ended["reason"], &ended["exitCode"]), (&json!("Completed"), &json!(0)));
    assert_eq!(condition(&done, "Ready"), "False");
    world.clock.sleep(Duration::from_secs(600)).await;
    assert_eq!(world.starts("app"), 1);
    assert_eq!(world.network.attached(), 0, "its address is free again");
}

#[tokio::test(start_paused = true)]
async fn a_crashing_container_is_restarted_with_growing_pauses() {
    let world = World::new().await;
    world.machine.behave("app", [Behaviour::exits_after(Duration::from_secs(1), 3)]);
    world.api.put("pods", pod("crash", json!({})));
    let looping = world.wait("crash", |pod| waiting(pod) == "CrashLoopBackOff").await;
    let container = &looping["status"]["containerStatuses"][0];
    assert_eq!(looping["status"]["phase"], "Running");
    assert_eq!(container["restartCount"], 1);
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(container["lastState"]["terminated"]["reason"], "Error");
    assert_eq!(
        container["state"]["waiting"]["message"],
        "back-off 10s restarting failed container=app pod=crash_default(uid-crash)"
    );
    let restarts = |count: i64| move |pod: &Value| pod["status"]["containerStatuses"][0]["restartCount"] == count;
    let began = world.clock.instant();
    world.wait("crash", restarts(4)).await;
    let took = began.elapsed().as_secs();
    assert!((70..=76).contains(&took), "10 + 20 + 40 s and the runs between, took {took}");
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_before_the_rest() {
    let world = World::new().await;
    world.machine.behave(
        "one",
        [Behaviour::exits_after(Duration::from_secs(2), 1), Behaviour::exits_after(Duration::from_secs(2), 0)],
    );
    world.machine.behave("side", [Behaviour::default()]);
    world.machine.behave("two", [Behaviour::exits_after(Duration::from_secs(2), 0)]);
    world.machine.behave("app", [Behaviour::exits_after(Duration::from_secs(9), 0)]);
    let init = json!([
        {"name": "one", "image": "app:1"},
        {"name": "side", "image": "app:1", "restartPolicy": "Always"},
        {"name": "two", "image": "app:1"},
    ]);
    world.api.put("pods", pod("init", json!({"initContainers": init, "restartPolicy": "OnFailure"})));
    let early =
        world.wait("init", |pod| pod["status"]["initContainerStatuses"][0]["state"]["running"].is_object()).await;
    assert_eq!((early["status"]["phase"].as_str(), waiting(&early)), (Some("Pending"), "PodInitializing"));
    assert_eq!(condition(&early, "Initialized"), "False");
    let running = world.wait_phase("init", "Running").await;
    assert_eq!(condition(&running, "Initialized"), "True");
    let order: Vec<String> = world
        .machine
        .calls()
        .into_iter()
        .filter(|(call, _)| *call == Operation::StartContainer)
        .map(|(_, name)| name)
        .collect();
    assert_eq!(order, ["one", "one", "side", "two", "app"]);
    let done = world.wait_phase("init", "Succeeded").await;
    assert_eq!(done["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"], 0);
    assert_eq!(world.starts("side"), 1, "a sidecar does not keep the pod alive, nor is it started again");
}

#[tokio::test(start_paused = true)]
async fn an_image_that_cannot_be_had_is_told_and_tried_again() {
    let world = World::new().await;
    world.machine.behave("app", [Behaviour::default()]);
    let error =
        || Error::Image { reference: "gone:1".into(), kind: ImageErrorKind::NotFound, message: "not found".into() };
    world.machine.fail_next(Operation::Pull, error());
    world.machine.fail_next(Operation::Pull, error());
    world.api.put("pods", pod("pull", json!({"containers": [{"name": "app", "image": "gone:1"}]})));
    world.wait("pull", |pod| waiting(pod) == "ErrImagePull").await;
    let backing_off = world.wait("pull", |pod| waiting(pod) == "ImagePullBackOff").await;
    assert_eq!(backing_off["status"]["phase"], "Pending");
    let image = sampan_runtime::ImageConfig::default();
    world.machine.publish("gone:1", image, Duration::from_secs(2), None).expect("published");
    world.wait_phase("pull", "Running").await;
    world.api.put("pods", pod("bad", json!({"containers": [{"name": "app", "image": "Not A Name"}]})));
    world.wait("bad", |pod| waiting(pod) == "InvalidImageName").await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_adopts_what_runs() {
    let mut world = World::new().await;
    world.machine.behave("app", [Behaviour::default()]);
    world.api.put("pods", pod("kept", json!({})));
    world.api.put("pods", pod("deleted", json!({})));
    world.wait_phase("kept", "Running").await;
    let before = world.wait_phase("deleted", "Running").await;
    world.stop_agent();
    world.api.vanish("pods", "deleted");
    world.restart();
    world.clock.sleep(Duration::from_secs(5)).await;
    assert_eq!(world.starts("app"), 2, "nothing was started again");
    assert_eq!(world.pods.all().len(), 1, "the orphan is gone");
    assert_eq!(world.network.attached(), 1);
    let after = world.api.get("pods", "kept").expect("there");
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(condition(&after, "Ready"), "True");
    drop(before);
    // It still is this agent's: an end is seen and answered.
    let id = after["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .expect("an id")
        .trim_start_matches("sampan://")
        .to_owned();
    world.machine.exit(&id, 1);
    world.wait("kept", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1).await;
}

#[tokio::test(start_paused = true)]
async fn pods_go_on_while_the_api_is_away() {
    let mut world = World::new().await;
    world.machine.behave("app", [Behaviour::default()]);
    world.api.put("pods", pod("web", json!({})));
    let running = world.wait_phase("web", "Running").await;
    let id = running["status"]["containerStatuses"][0]["containerID"]
        .as_str()
        .expect("an id")
        .trim_start_matches("sampan://")
        .to_owned();
    world.api.set_down(true);
    world.restart();
    world.clock.sleep(Duration::from_secs(60)).await;
    assert_eq!((world.starts("app"), world.pods.all().len()), (1, 1), "adopted from disk");
    world.machine.exit(&id, 1);
    world.clock.sleep(Duration::from_secs(60)).await;
    world.api.set_down(false);
    world.wait("web", |pod| pod["status"]["containerStatuses"][0]["restartCount"] == 1).await;
    assert_eq!(world.starts("app"), 2, "restarted by itself");
}

#[tokio::test(start_paused = true)]
async fn stopping_takes_the_grace_it_was_given_and_less_when_asked() {
    let world = World::new().await;
    world.machine.behave("app", [Behaviour { stops_after: None, ..Behaviour::default() }]);
    world.api.put("pods", pod("stubborn", json!({})));
    world.wait_phase("stubborn", "Running").await;
    let began = world.clock.instant();
    world.api.delete("stubborn", 30);
    world.clock.sleep(Duration::from_secs(3)).await;
    world.api.delete("stubborn", 5);
    world.wait_gone("stubborn").await;
    let took = began.elapsed().as_secs();
    assert!((7..=9).contains(&took), "3 s and then 5 s, took {took}");
}

#[tokio::test(start_paused = true)]
async fn a_failing_liveness_probe_restarts_the_container() {
    let world = World::new().await;
    world.machine.behave("app", [Behaviour::default()]);
    world.machine.on_exec(|container, _| Some(Behaviour::exits(if container.config.attempt == 0 { 1 } else { 0 })));
    let probe = json!({"exec": {"command": ["check"]}, "periodSeconds": 2, "failureThreshold": 3});
    let ready = json!({"exec": {"command": ["check"]}, "periodSeconds": 1, "failureThreshold": 1});
    let containers = json!([{"name": "app", "image": "app:1", "livenessProbe": probe, "readinessProbe": ready}]);
    world.api.put("pods", pod("live", json!({"containers": containers})));
    let running = world.wait_phase("live", "Running").await;
    assert_eq!(condition(&running, "Ready"), "False", "not ready before its probe says so");
    let began = world.clock.instant();
    let again = world.wait("live", |pod| condition(pod, "Ready") == "True").await;
    assert!((4..=7).contains(&began.elapsed().as_secs()), "three periods, took {:?}", began.elapsed());
    assert_eq!(again["status"]["containerStatuses"][0]["restartCount"], 1);
    let events = world.api.events();
    let expected = "Killing: Container app failed liveness probe, will be restarted";
    assert!(events.iter().any(|event| event == expected), "{events:?}");
    assert!(events.iter().any(|event| event.starts_with("Unhealthy: Liveness probe failed: ")), "{events:?}");
}

#[tokio::test(start_paused = true)]
async fn a_lost_sandbox_is_made_anew() {
    let world = World::new().await;
    world.machine.behave("app", [Behaviour::default()]);
    world.api.put("pods", pod("web", json!({})));
    world.wait_phase("web", "Running").await;
    let sandbox = world.pods.find("default", "web").and_then(|one| one.sandbox).expect("a sandbox");
    world.machine.lose(&sandbox);
    let again =
        world.wait("web", |pod| pod["status"]["podIP"] == "10.1.0.2" && condition(pod, "Ready") == "True").await;
    let container = &again["status"]["containerStatuses"][0];
    assert_eq!(container["restartCount"], 1);
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 137);
    assert_eq!(world.network.attached(), 1);
}

#[tokio::test(start_paused = true)]
async fn what_a_container_needs_is_waited_for() {
    let world = World::new().await;
    world.machine.behave("app", [Behaviour::default()]);
    let container = json!([{
        "name": "app",
        "image": "app:1",
        "env": [{"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "k"}}}],
        "volumeMounts": [{"name": "files", "mountPath": "/files"}],
    }]);
    let volumes = json!([{"name": "files", "configMap": {"name": "files"}}]);
    world.api.put("pods", pod("needs", json!({"containers": container, "volumes": volumes})));
    world.wait("needs", |pod| waiting(pod) == "ContainerCreating").await;
    world.clock.sleep(Duration::from_secs(5)).await;
    let events = world.api.events();
    let expected = "FailedMount: MountVolume.SetUp failed for volume \"files\" : configmap \"files\" not found";
    assert!(events.iter().any(|event| event == expected), "{events:?}");
    world.api.put("configmaps", json!({"metadata": {"name": "files", "namespace": "default"}, "data": {"a": "1"}}));
    let blocked = world.wait("needs", |pod| waiting(pod) == "CreateContainerConfigError").await;
    let message = &blocked["status"]["containerStatuses"][0]["state"]["waiting"]["message"];
    assert_eq!(message, "configmap \"settings\" not found");
    world.api.put("configmaps", json!({"metadata": {"name": "settings", "namespace": "default"}, "data": {"k": "v"}}));
    let began = world.clock.instant();
    world.wait_phase("needs", "Running").await;
    assert!(began.elapsed() < Duration::from_secs(1), "at once, took {:?}", began.elapsed());
    let path = world.node.pod_directory("uid-needs").join("volumes/kubernetes.io~configmap/files/a");
    assert_eq!(std::fs::read_to_string(&path).expect("a file"), "1");
    world.api.put("configmaps", json!({"metadata": {"name": "files", "namespace": "default"}, "data": {"a": "2"}}));
    // The file is written by a real thread, which virtual time does not wait for: real time bounds this wait.
    for _ in 0..2_000 {
        world.clock.sleep(Duration::from_millis(1)).await;
        if std::fs::read_to_string(&path).is_ok_and(|text| text == "2") {
            return;
        }
        #[allow(clippy::disallowed_methods, reason = "gives the writing thread real time")]
        std::thread::sleep(Duration::from_millis(2));
    }
    panic!("the file did not change");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_fails_the_pod() {
    let world = World::new().await;
    world.machine.behave("app", [Behaviour::default()]);
    world.api.put("pods", pod("late", json!({"activeDeadlineSeconds": 10})));
    world.wait_phase("late", "Running").await;
    let failed = world.wait_phase("late", "Failed").await;
    assert_eq!(failed["status"]["reason"], "DeadlineExceeded");
    world.clock.sleep(Duration::from_secs(100)).await;
    let end = world.api.get("pods", "late").expect("there");
    assert!(end["status"]["containerStatuses"][0]["state"]["terminated"].is_object());
}

#[tokio::test(start_paused = true)]
async fn a_quiet_pod_costs_no_writes() {
    let world = World::new().await;
    world.machine.behave("app", [Behaviour::default()]);
    world.api.put("pods", pod("web", json!({})));
    world.wait_phase("web", "Running").await;
    world.clock.sleep(Duration::from_secs(1)).await;
    let before = world.api.patches();
    assert!(before <= 4, "{before} writes for one pod");
    world.clock.sleep(Duration::from_secs(3600)).await;
    assert_eq!(world.api.patches(), before);
}

#[tokio::test(start_paused = true)]
async fn the_node_registers_and_stays_alive() {
    let world = World::new().await;
    let mut tasks = sampan_base::task::Group::default();
    tasks.spawn("heartbeat", crate::heartbeat::run(world.node.clone()));
    world.clock.sleep(Duration::from_secs(1)).await;
    let node = world.api.get("nodes", "node-1").expect("registered");
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "node-1");
    assert_eq!(node["status"]["allocatable"]["pods"], "110");
    assert_eq!(node["status"]["addresses"][0]["address"], "192.168.0.1");
    assert_eq!(condition(&node, "Ready"), "True");
    let lease = || {
        world.api.get("leases", "node-1").expect("a lease")["spec"]["renewTime"].as_str().expect("a time").to_owned()
    };
    let first = lease();
    assert_eq!(first.len(), "2030-01-01T00:00:00.000000Z".len());
    let writes = world.api.patches();
    world.clock.sleep(Duration::from_secs(100)).await;
    assert!(lease() > first);
    let renewals = world.api.patches() - writes;
    assert!((10..=11).contains(&renewals), "the lease and nothing else: {renewals} writes");
    world.api.vanish("nodes", "node-1");
    world.clock.sleep(Duration::from_secs(600)).await;
    assert!(world.api.get("nodes", "node-1").is_some(), "an agent that runs has a node");
}

#[tokio::test(start_paused = true)]
async fn a_pod_this_node_cannot_run_fails_without_having_run() {
    let world = World::new().await;
    world.machine.behave("app", [Behaviour::default()]);
    world.api.put("pods", pod("win", json!({"os": {"name": "windows"}})));
    let failed = world.wait_phase("win", "Failed").await;
    assert_eq!(failed["status"]["reason"], "PodOSNotSupported");
    let calls = world.machine.calls();
    assert!(calls.iter().all(|(call, _)| *call == Operation::List), "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn containers_end_after_services_have_let_go_of_the_pod() {
    let world = World::new().await;
    world.machine.behave("app", [Behaviour::default()]);
    for (name, address, lets_go) in [("web", [10, 1, 0, 1], true), ("stuck", [10, 1, 0, 2], false)] {
        world.api.put("pods", pod(name, json!({})));
        world.wait_phase(name, "Running").await;
        world.network.serve(&[address.into()]);
        let calls = world.machine.calls().len();
        world.api.delete(name, 30);
        world.clock.sleep(Duration::from_millis(2500)).await;
        let calls = world.machine.calls().split_off(calls);
        assert!(calls.iter().all(|(call, _)| *call != Operation::StopContainer), "{name}: {calls:?}");
        if lets_go {
            world.network.serve(&[]);
        }
        let began = world.clock.instant();
        world.wait_gone(name).await;
        assert!(began.elapsed() < Duration::from_secs(1), "{name}: {:?}", began.elapsed());
    }
}
