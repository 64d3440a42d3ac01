//! kill -9 and sleep at the worst moment: what was acknowledged is there, what runs goes on, what was begun is finished.

#![allow(clippy::disallowed_methods, reason = "these tests stand outside the seams: real time")]

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sampan_e2e::load::{self, Load, Report};
use sampan_e2e::{Cluster, Namespace, eventually, holds_for, signal};

/// A cluster with the application of the demo, answering on a port of this machine.
fn demo() -> (Cluster, SocketAddr) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("an address").port();
    let cluster = Cluster::up(&["--publish", &format!("{port}:80")]);
    cluster.load_images();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let here = cluster.namespace("crash");
    here.hello();
    // Its end would delete the namespace.
    std::mem::forget(here);
    eventually("the first answer", || load::get(address, "/", Duration::from_secs(2)).ok());
    (cluster, address)
}

fn here(cluster: &Cluster) -> Namespace<'_> {
    Namespace { cluster, name: "crash".into() }
}

fn kill_server(cluster: &Cluster) {
    signal(cluster.pid("server").expect("a server"), libc::SIGKILL);
}

fn kill_agent(cluster: &Cluster) {
    signal(cluster.agent().expect("an agent"), libc::SIGKILL);
}

/// A rolling update under load, with this in the middle of it. Everything acknowledged meanwhile must be there afterwards.
fn killed_in_the_middle(kill: impl Fn(&Cluster)) -> Report {
    let (cluster, address) = demo();
    let here = here(&cluster);
    let mut acknowledged = BTreeSet::new();
    let ((), report) = Load::new(address, "/").during(|| {
        here.kubectl(&["set", "env", "deployment/hello", "VERSION=2"]);
        eventually("the first pod of the new version", || {
            let updated = here.field("deployment/hello", "{.status.updatedReplicas}");
            (!updated.is_empty() && updated != "0").then_some(())
        });
        for number in 0..20 {
            if number == 10 {
                kill(&cluster);
            }
            let name = format!("written-{number}");
            if here.try_kubectl(&["create", "configmap", &name]).succeeded() {
                acknowledged.insert(format!("configmap/{name}"));
            }
        }
        eventually("the update to be complete", || {
            here.try_kubectl(&["rollout", "status", "deployment/hello", "--timeout=5s"]).succeeded().then_some(())
        });
    });
    let there = here.kubectl(&["get", "configmaps", "-o", "name"]);
    let there: BTreeSet<String> = there.lines().map(str::to_owned).collect();
    assert!(acknowledged.len() >= 10, "{acknowledged:?}");
    assert!(acknowledged.is_subset(&there), "lost: {:?}", acknowledged.difference(&there).collect::<Vec<_>>());
    drop(here);
    report
}

#[test]
fn the_server_is_killed_during_an_update() {
    let report = killed_in_the_middle(kill_server);
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
}

#[test]
fn the_agent_is_killed_during_an_update() {
    let report = killed_in_the_middle(kill_agent);
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
}

#[test]
fn server_and_agent_are_killed_during_an_update() {
    let report = killed_in_the_middle(|cluster| {
        kill_server(cluster);
        kill_agent(cluster);
    });
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
}

#[test]
fn containers_outlive_the_agent() {
    let (cluster, address) = demo();
    let here = here(&cluster);
    let started = |here: &Namespace<'_>| {
        here.kubectl(&[
            "get",
            "pods",
            "-l",
            "app=hello",
            "-o",
            "jsonpath={.items[*].status.containerStatuses[*].containerID}",
        ])
    };
    let before = started(&here);
    let old = cluster.agent().expect("an agent");
    let ((), report) = Load::new(address, "/").during(|| {
        signal(old, libc::SIGKILL);
        let new = eventually("a new agent", || cluster.agent().filter(|pid| *pid != old));
        assert_ne!(new, old);
        // A new pod proves that it works again.
        here.shell_pod("after");
    });
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    assert_eq!(started(&here), before);
    let restarts = here.field("pods", "{.items[*].status.containerStatuses[*].restartCount}");
    assert!(restarts.split(' ').all(|count| count == "0"), "{restarts}");
    drop(here);
}

#[test]
fn the_supervisor_is_killed_and_up_finds_everything_again() {
    let (cluster, _) = demo();
    let (server, node) = (cluster.pid("server"), cluster.pid(&cluster.node(0)));
    signal(cluster.pid("supervisor").expect("a supervisor"), libc::SIGKILL);
    eventually("its end", || cluster.pid("supervisor").is_none().then_some(()));
    cluster.up_again(&[]).ok();
    assert!(cluster.pid("supervisor").is_some());
    assert_eq!((cluster.pid("server"), cluster.pid(&cluster.node(0))), (server, node));
}

/// A laptop asleep. The ten minutes are shortened to what is longer than every lease and grace period of a node.
#[test]
fn sleep_evicts_and_restarts_nothing() {
    const ASLEEP: Duration = Duration::from_secs(60);
    let (cluster, address) = demo();
    let here = here(&cluster);
    let picture = |here: &Namespace<'_>| {
        here.kubectl(&[
            "get",
            "pods",
            "-o",
            "jsonpath={range .items[*]}{.metadata.uid} {.status.containerStatuses[0].restartCount} {end}",
        ])
    };
    let before = picture(&here);
    let mut all = vec![cluster.pid("supervisor").expect("a supervisor"), cluster.pid("server").expect("a server")];
    descendants(cluster.pid(&cluster.node(0)).expect("a node"), &mut all);
    all.iter().for_each(|pid| signal(*pid, libc::SIGSTOP));
    let until = Instant::now() + ASLEEP;
    eventually_after(until);
    all.iter().for_each(|pid| signal(*pid, libc::SIGCONT));
    eventually("an answer", || load::get(address, "/", Duration::from_secs(2)).ok());
    holds_for("the same pods", Duration::from_secs(20), || {
        here.try_kubectl(&["get", "pods"]).succeeded() && picture(&here) == before
    });
    let node =
        cluster.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].status.conditions[?(@.type=='Ready')].status}"]);
    assert_eq!(node, "True");
    drop(here);
}

fn eventually_after(until: Instant) {
    while Instant::now() < until {
        std::thread::park_timeout(until - Instant::now());
    }
}

fn descendants(pid: i32, found: &mut Vec<i32>) {
    found.push(pid);
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    for task in tasks {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            descendants(child, found);
        }
    }
}
