//! The command line and what it leaves behind.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use sampan_e2e::machine::Machine;
use sampan_e2e::{Cluster, eventually, kubectl, run, sampan, signal};

#[test]
fn down_leaves_the_machine_as_it_was() {
    let before = Machine::at_rest();
    let cluster = Cluster::up(&["--nodes", "2"]);
    cluster.load_images();
    cluster.namespace("left").hello();
    assert!(!before.differences(&Machine::look()).is_empty(), "a running cluster must be seen");
    cluster.down(&[]).ok();
    before.assert_restored();
    assert!(!cluster.data().join("cluster.json").exists());
}

#[test]
fn down_leaves_the_machine_as_it_was_after_an_interrupted_up() {
    let before = Machine::at_rest();
    // Nobody can be ready in a millisecond: `up` gives up half-way.
    let cluster = Cluster::up(&[]);
    cluster.down(&[]).ok();
    let stderr = cluster.up_again(&["--timeout", "1ms"]).fails(3);
    assert!(stderr.contains("sampan down"), "{stderr}");
    cluster.down(&[]).ok();
    before.assert_restored();
}

#[test]
fn up_again_says_so_and_succeeds() {
    let cluster = Cluster::up(&[]);
    let server = cluster.pid("server");
    let done = cluster.up_again(&[]);
    assert!(done.stderr.contains("running already"), "{}", done.stderr);
    done.ok();
    assert_eq!(cluster.pid("server"), server);
}

#[test]
fn two_clusters_live_beside_each_other() {
    let (one, two) = (Cluster::up(&[]), Cluster::up(&[]));
    one.kubectl(&["create", "configmap", "mine", "--from-literal=whose=one"]);
    let there = run(two.kubectl_command().args(["get", "configmap", "mine"])).fails(1);
    assert!(there.contains("NotFound"), "{there}");
    one.down(&[]).ok();
    two.kubectl(&["get", "nodes"]);
    let ranges = two.status();
    assert_eq!(ranges["processes"]["server"]["state"], "running");
}

#[test]
fn data_is_kept_when_asked_for() {
    let cluster = Cluster::up(&[]);
    cluster.kubectl(&["create", "configmap", "kept", "--from-literal=word=kelp"]);
    cluster.down(&["--keep-data"]).ok();
    cluster.up_again(&[]).ok();
    assert_eq!(cluster.kubectl(&["get", "configmap", "kept", "-o", "jsonpath={.data.word}"]), "kelp");
    cluster.down(&[]).ok();
    cluster.up_again(&[]).ok();
    let gone = run(cluster.kubectl_command().args(["get", "configmap", "kept"])).fails(1);
    assert!(gone.contains("NotFound"), "{gone}");
}

#[test]
fn status_and_up_print_json() {
    let cluster = Cluster::up(&[]);
    let status = cluster.status();
    assert_eq!(status["name"], *cluster.name);
    assert_eq!(status["context"], format!("sampan-{}", cluster.name));
    for process in ["supervisor", "server", &cluster.node(0)] {
        assert_eq!(status["processes"][process]["state"], "running", "{process}");
        assert!(status["processes"][process]["pssKiB"].as_u64().is_some_and(|kib| kib > 0), "{process}");
    }
    assert!(status["changes"].as_array().is_some_and(|changes| !changes.is_empty()));
    let report = cluster.up_again(&["--output", "json"]).json();
    assert_eq!(report["server"], status["server"]);
    assert!(report["steps"].as_array().is_some_and(|steps| !steps.is_empty()));
    let version = run(Command::new(sampan()).args(["version", "-o", "json"])).json();
    assert!(version["api"].as_str().is_some_and(|api| api.starts_with("v1.37")), "{version}");
}

#[test]
fn the_kubeconfig_is_merged_and_private() {
    let cluster = Cluster::up(&[]);
    let path = cluster.kubeconfig();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let config =
        |arguments: &[&str]| run(Command::new(kubectl()).arg("config").args(arguments).env("KUBECONFIG", &path));
    assert_eq!(config(&["current-context"]).ok().trim(), format!("sampan-{}", cluster.name));
    config(&["set-context", "mine", "--cluster", "elsewhere"]).ok();
    cluster.down(&[]).ok();
    let contexts = config(&["get-contexts", "-o", "name"]).ok();
    assert_eq!(contexts.trim(), "mine");
}

#[test]
fn the_kubeconfig_belongs_to_the_user_who_called_sudo() {
    let cluster = Cluster::up(&[]);
    cluster.down(&[]).ok();
    let home = cluster.scratch().join("home");
    let path = home.join(".kube/config");
    let (user, group) = (65534, 65534);
    let mut command = cluster.sampan_command("up");
    command.env("SUDO_UID", user.to_string()).env("SUDO_GID", group.to_string());
    run(command.arg("--data-dir").arg(cluster.data()).arg("--kubeconfig").arg(&path)).ok();
    let owner = fs::metadata(&path).unwrap();
    assert_eq!((owner.uid(), owner.gid()), (user, group));
    cluster.down(&[]).ok();
}

#[test]
fn a_kubeconfig_that_is_none_stops_up_before_it_begins() {
    let before = Machine::at_rest();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config");
    fs::write(&path, "- not\n- a kubeconfig\n").unwrap();
    let done = run(Command::new(sampan()).args(["up", "--name", "e2e-none", "--kubeconfig"]).arg(&path));
    let stderr = done.fails(1);
    assert!(stderr.contains("--kubeconfig"), "{stderr}");
    assert_eq!(fs::read_to_string(&path).unwrap(), "- not\n- a kubeconfig\n");
    before.assert_restored();
}

#[test]
fn a_taken_port_is_named() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let cluster = Cluster::up(&[]);
    cluster.down(&[]).ok();
    let stderr = cluster.up_again(&["--publish", &format!("{port}:80")]).fails(1);
    assert!(stderr.contains(&port.to_string()), "{stderr}");
    // `down` removes what there is, and what there is not counts as removed.
    let _ = cluster.down(&[]);
}

#[test]
fn data_of_a_newer_version_is_refused() {
    let cluster = Cluster::up(&[]);
    cluster.down(&["--keep-data"]).ok();
    let path = cluster.data().join("cluster.json");
    let mut kept: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    kept["format"] = 1000.into();
    fs::write(&path, kept.to_string()).unwrap();
    let stderr = cluster.up_again(&[]).fails(1);
    assert!(stderr.contains("newer version"), "{stderr}");
}

#[test]
fn exit_codes_are_as_documented() {
    let code = |arguments: &[&str]| run(Command::new(sampan()).args(arguments)).code;
    assert_eq!(code(&["version"]), Some(0));
    assert_eq!(code(&["up", "--nodes", "many"]), Some(2));
    assert_eq!(code(&["kubeconfig", "--name", "e2e-absent"]), Some(4));
    assert_eq!(code(&["image", "load", "/nowhere.tar", "--name", "e2e-absent"]), Some(4));
    assert_eq!(code(&["up", "--name", "../x"]), Some(1));
}

#[test]
fn help_has_examples_and_completion_is_a_script() {
    for arguments in [&["--help"][..], &["up", "--help"]] {
        let help = run(Command::new(sampan()).args(arguments)).ok();
        assert!(help.contains("Examples:"), "{help}");
    }
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("completion");
    fs::write(&script, run(Command::new(sampan()).args(["completion", "bash"])).ok()).unwrap();
    run(Command::new("bash").arg("-n").arg(&script)).ok();
}

#[test]
fn doctor_names_a_missing_program_and_up_uses_the_same_words() {
    let directory = tempfile::tempdir().unwrap();
    let without = |arguments: &[&str]| run(Command::new(sampan()).args(arguments).env("PATH", directory.path()));
    let doctor = without(&["doctor", "-o", "json"]);
    assert_eq!(doctor.code, Some(1));
    let report: serde_json::Value = serde_json::from_str(&doctor.stdout).unwrap();
    let check = report["checks"].as_array().unwrap().iter().find(|check| check["check"] == "nftables").unwrap();
    assert_eq!((check["ok"].as_bool(), check["fatal"].as_bool()), (Some(false), Some(true)));
    let kubeconfig = directory.path().join("kubeconfig");
    let stderr = without(&["up", "--name", "e2e-doctor", "--kubeconfig", kubeconfig.to_str().unwrap()]).fails(1);
    for part in ["problem", "remedy"] {
        assert!(stderr.contains(check[part].as_str().unwrap()), "{stderr}");
    }
    run(Command::new(sampan()).arg("doctor")).ok();
}

#[test]
fn logs_are_shown_and_exported() {
    let cluster = Cluster::up(&[]);
    let node = cluster.node(0);
    signal(eventually("an agent", || cluster.agent()), libc::SIGKILL);
    let shown = eventually("the end of the agent in the log", || {
        let text = cluster.sampan("logs", &[&node]).ok();
        text.contains("the node agent was ended by SIGKILL").then_some(text)
    });
    let all = cluster.sampan("logs", &[]).ok();
    for process in ["supervisor", "server", &node] {
        assert!(all.contains(&format!("==> {process} <==")), "{all}");
    }
    let directory = cluster.scratch().join("export");
    cluster.sampan("logs", &["--export", directory.to_str().unwrap()]).ok();
    let exported = fs::read_to_string(directory.join(format!("{node}.log"))).unwrap();
    assert!(exported.starts_with(&shown));
    assert!(directory.join("cluster.json").exists());
    for entry in fs::read_dir(&directory).unwrap() {
        let text = fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains("PRIVATE KEY"), "an export holds a key");
    }
}
