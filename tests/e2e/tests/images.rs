//! Images: from archives, and from a real registry on loopback.

use std::fs;

use sampan_e2e::registry::{PASSWORD, Registry, USER};
use sampan_e2e::{Cluster, archive, eventually, run_with_input};

fn waiting(here: &sampan_e2e::Namespace<'_>, pod: &str) -> String {
    here.field(&format!("pod/{pod}"), "{.status.containerStatuses[0].state.waiting}")
}

#[test]
fn an_archive_is_loaded_listed_and_removed() {
    let cluster = Cluster::up(&[]);
    let loaded = cluster.sampan("image load", &[&archive("hello")]).ok();
    assert!(loaded.contains("hello:1") && loaded.contains("hello:2"), "{loaded}");
    let list = || cluster.sampan("image ls", &["-o", "json"]).json()["nodes"][cluster.node(0)].to_string();
    assert!(list().contains("hello:2"), "{}", list());
    cluster.sampan("image rm", &["hello:2"]).ok();
    assert!(!list().contains("hello:2") && list().contains("hello:1"), "{}", list());
    let bytes = fs::read(archive("busybox")).expect("read");
    run_with_input(cluster.sampan_command("image load").arg("-"), &bytes).ok();
    assert!(list().contains("busybox:1"), "{}", list());
}

#[test]
fn a_corrupt_archive_is_refused_and_leaves_nothing() {
    // Its own: what is there already need not be read again.
    let cluster = Cluster::up(&[]);
    let mut bytes = fs::read(archive("hello")).expect("read");
    let before = cluster.sampan("image ls", &["-o", "json"]).json();
    let path = cluster.scratch().join("corrupt.tar");
    // In the middle of the layer: the archive's own structure is whole.
    let middle = bytes.len() / 2;
    bytes[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0xff);
    for content in [&bytes[..], &bytes[..middle], b"no archive at all"] {
        fs::write(&path, content).expect("write");
        let stderr = cluster.sampan("image load", &[path.to_str().expect("a path")]).fails(1);
        assert!(!stderr.trim().is_empty());
    }
    assert_eq!(cluster.sampan("image ls", &["-o", "json"]).json(), before);
}

#[test]
fn a_pod_pulls_from_a_registry() {
    let cluster = Cluster::shared();
    let registry = Registry::start(cluster.scratch(), false);
    registry.push(&archive("busybox"), "tests/busybox", "1");
    let here = cluster.namespace("pull");
    let image = registry.reference("tests/busybox", "1");
    here.kubectl(&["run", "main", "--image", &image, "--command", "--", "sleep", "3600"]);
    here.ready("main");
    let id = here.field("pod/main", "{.status.containerStatuses[0].imageID}");
    assert!(id.contains("sha256:"), "{id}");
    assert!(here.kubectl(&["events", "--for", "pod/main"]).contains("Pulled"));
}

#[test]
fn an_image_that_is_missing_is_said_and_tried_again() {
    let cluster = Cluster::shared();
    let registry = Registry::start(cluster.scratch(), false);
    let here = cluster.namespace("missing");
    let image = registry.reference("tests/late", "1");
    here.kubectl(&["run", "main", "--image", &image, "--command", "--", "sleep", "3600"]);
    let state = eventually("the pull's failure", || {
        let state = waiting(&here, "main");
        (state.contains("ErrImagePull") || state.contains("ImagePullBackOff")).then_some(state)
    });
    assert!(state.contains("tests/late"), "{state}");
    registry.push(&archive("busybox"), "tests/late", "1");
    here.ready("main");
}

#[test]
fn a_registry_that_is_down_is_said() {
    let cluster = Cluster::shared();
    let registry = Registry::start(cluster.scratch(), false);
    let image = registry.reference("tests/busybox", "1");
    drop(registry);
    let here = cluster.namespace("down");
    here.kubectl(&["run", "main", "--image", &image]);
    eventually("the pull's failure", || waiting(&here, "main").contains("ImagePull").then_some(()));
    let events = here.kubectl(&["events", "--for", "pod/main"]);
    assert!(events.contains("refused"), "{events}");
}

#[test]
fn a_registry_asks_for_a_password() {
    let cluster = Cluster::shared();
    let registry = Registry::start(cluster.scratch(), true);
    registry.push(&archive("busybox"), "tests/busybox", "1");
    let here = cluster.namespace("password");
    let image = registry.reference("tests/busybox", "1");
    let manifest = |name: &str, secret: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
             imagePullSecrets: [{secret}]\n  containers: [{{name: main, image: '{image}', command: [sleep, '3600']}}]\n"
        )
    };
    here.apply(&manifest("without", ""));
    eventually("the refusal", || waiting(&here, "without").contains("ImagePull").then_some(()));
    let server = format!("--docker-server=http://{}", registry.address);
    let (user, password) = (format!("--docker-username={USER}"), format!("--docker-password={PASSWORD}"));
    here.kubectl(&["create", "secret", "docker-registry", "login", &server, &user, &password]);
    here.apply(&manifest("with", "{name: login}"));
    here.ready("with");
}
