//! Every kubectl verb of the first path, unmodified kubectl of the same version.

#![allow(clippy::disallowed_methods, reason = "these tests stand outside the seams: real time")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use sampan_e2e::{Cluster, Namespace, eventually, load, run};

fn config_map(name: &str, value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, labels: {{group: words}}}}\ndata: {{word: {value}}}\n"
    )
}

/// Busybox that stays: for everything about Deployments that does not need a server.
fn deployment(name: &str, replicas: u32) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}}}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 1\n      containers:\n        - {{name: main, image: 'busybox:1', command: [sleep, '3600']}}\n"
    )
}

#[test]
fn version_and_cluster_info() {
    let cluster = Cluster::shared();
    let version: serde_json::Value = serde_json::from_str(&cluster.kubectl(&["version", "-o", "json"])).expect("JSON");
    assert_eq!(version["serverVersion"]["major"], "1");
    assert_eq!(version["serverVersion"]["minor"], "37");
    let info = cluster.kubectl(&["cluster-info"]);
    assert!(info.contains("is running at"), "{info}");
}

#[test]
fn api_resources_and_versions() {
    let cluster = Cluster::shared();
    let names = cluster.kubectl(&["api-resources", "-o", "name"]);
    for name in
        ["pods", "deployments.apps", "services", "networkpolicies.networking.k8s.io", "leases.coordination.k8s.io"]
    {
        assert!(names.lines().any(|line| line == name), "{name} in\n{names}");
    }
    let versions = cluster.kubectl(&["api-versions"]);
    assert!(versions.lines().any(|line| line == "apps/v1"), "{versions}");
}

#[test]
fn explain() {
    let cluster = Cluster::shared();
    let text = cluster.kubectl(&["explain", "deployment.spec.strategy.rollingUpdate"]);
    assert!(text.contains("maxSurge") && text.contains("maxUnavailable"), "{text}");
    let all = cluster.kubectl(&["explain", "configmap", "--recursive"]);
    assert!(all.contains("binaryData"), "{all}");
}

#[test]
fn get_in_every_output_form() {
    let here = Cluster::shared().namespace("forms");
    here.apply(&config_map("one", "kelp"));
    let get = |form: &str| here.kubectl(&["get", "configmap", "one", "-o", form]);
    let json: serde_json::Value = serde_json::from_str(&get("json")).expect("JSON");
    assert_eq!(json["data"]["word"], "kelp");
    assert!(get("yaml").contains("word: kelp"));
    assert_eq!(get("name").trim(), "configmap/one");
    assert_eq!(get("jsonpath={.data.word}"), "kelp");
    assert_eq!(get("go-template={{.data.word}}"), "kelp");
    assert_eq!(get("custom-columns=W:.data.word").lines().collect::<Vec<_>>(), ["W", "kelp"]);
    let wide = here.cluster.kubectl(&["get", "nodes", "-o", "wide"]);
    assert!(wide.contains("INTERNAL-IP") && wide.contains("CONTAINER-RUNTIME"), "{wide}");
    let table = here.kubectl(&["get", "configmaps"]);
    let row = table.lines().find(|line| line.starts_with("one ")).expect("a row");
    assert_eq!(row.split_whitespace().nth(1), Some("1"), "{table}");
}

#[test]
fn selectors_and_all_namespaces() {
    let here = Cluster::shared().namespace("selectors");
    here.apply(&config_map("one", "kelp"));
    here.kubectl(&["create", "configmap", "two"]);
    let names = |arguments: &[&str]| here.kubectl(&[&["get", "configmap", "-o", "name"], arguments].concat());
    assert_eq!(names(&["-l", "group=words"]).trim(), "configmap/one");
    assert_eq!(names(&["-l", "group notin (words)", "--field-selector", "metadata.name=two"]).trim(), "configmap/two");
    assert_eq!(names(&["--field-selector", "metadata.name=two"]).trim(), "configmap/two");
    let all = here.cluster.kubectl(&["get", "configmap", "-A", "-l", "group=words"]);
    assert!(all.contains("NAMESPACE") && all.lines().any(|line| line.starts_with("selectors ")), "{all}");
}

#[test]
fn watch_shows_changes_as_they_happen() {
    let here = Cluster::shared().namespace("watch");
    let mut command = here.kubectl_command();
    command.args(["get", "configmap", "-w", "-o", "jsonpath={.metadata.name}={.data.word}{'\\n'}"]);
    let mut watch = command.stdout(Stdio::piped()).spawn().expect("kubectl");
    let mut lines = BufReader::new(watch.stdout.take().expect("its output")).lines();
    let mut next = |wanted: &str| {
        // Reading blocks: when nothing comes, killing kubectl from the guard below ends it.
        lines.by_ref().map_while(Result::ok).find(|line| line == wanted).is_some()
    };
    let _guard = Kill(watch.id() as i32);
    here.apply(&config_map("one", "kelp"));
    assert!(next("one=kelp"));
    here.apply(&config_map("one", "salt"));
    assert!(next("one=salt"));
    drop(_guard);
    let _ = watch.wait();
}

/// Kills a program after a while, so that a read from it ends, and when dropped.
struct Kill(i32);

impl Drop for Kill {
    fn drop(&mut self) {
        // SAFETY: the process is a child that has not been waited for, so that its number is still its own.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
    }
}

#[test]
fn describe() {
    let here = Cluster::shared().namespace("describe");
    here.apply(&deployment("main", 1));
    here.rolled_out("main");
    let text = here.kubectl(&["describe", "deployment", "main"]);
    assert!(text.contains("ScalingReplicaSet") && text.contains("1 available"), "{text}");
    let pods = here.kubectl(&["describe", "pods", "-l", "app=main"]);
    for part in ["Image:", "busybox:1", "Scheduled", "Started"] {
        assert!(pods.contains(part), "{part} in\n{pods}");
    }
    let node = here.cluster.kubectl(&["describe", "nodes"]);
    assert!(node.contains("Allocatable:") && node.contains("Non-terminated Pods:"), "{node}");
}

#[test]
fn create_refuses_what_exists() {
    let here = Cluster::shared().namespace("create");
    here.kubectl(&["create", "secret", "generic", "word", "--from-literal=word=kelp"]);
    let stderr = here.try_kubectl(&["create", "secret", "generic", "word"]).fails(1);
    assert!(stderr.contains("already exists"), "{stderr}");
    assert_eq!(here.field("secret/word", "{.data.word}"), "a2VscA==");
}

#[test]
fn apply_on_the_client_and_diff() {
    let here = Cluster::shared().namespace("apply");
    here.apply(&config_map("one", "kelp"));
    assert_eq!(here.try_kubectl_with(&["diff", "-f", "-"], &config_map("one", "kelp")).code, Some(0));
    let diff = here.try_kubectl_with(&["diff", "-f", "-"], &config_map("one", "salt"));
    assert_eq!(diff.code, Some(1), "{}", diff.stderr);
    assert!(diff.stdout.contains("-  word: kelp") && diff.stdout.contains("+  word: salt"), "{}", diff.stdout);
    let again = here.try_kubectl_with(&["apply", "-f", "-"], &config_map("one", "kelp")).ok();
    assert!(again.contains("unchanged"), "{again}");
    // What was applied before and is not any more is removed; what others wrote stays.
    here.kubectl(&["patch", "configmap", "one", "--type=merge", "-p", r#"{"data":{"other":"x"}}"#]);
    here.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: one}\ndata: {third: z}\n");
    assert_eq!(here.field("configmap/one", "{.data}"), r#"{"other":"x","third":"z"}"#);
}

#[test]
fn apply_on_the_server_with_conflicts() {
    let here = Cluster::shared().namespace("server-apply");
    let apply = |manager: &str, value: &str, more: &[&str]| {
        let manager = format!("--field-manager={manager}");
        let arguments = [&["apply", "--server-side", &manager, "-f", "-"], more].concat();
        here.try_kubectl_with(&arguments, &config_map("one", value))
    };
    apply("first", "kelp", &[]).ok();
    let stderr = apply("second", "salt", &[]).fails(1);
    assert!(stderr.contains("conflict") && stderr.contains("first") && stderr.contains(".data.word"), "{stderr}");
    assert_eq!(here.field("configmap/one", "{.data.word}"), "kelp");
    apply("second", "salt", &["--force-conflicts"]).ok();
    assert_eq!(here.field("configmap/one", "{.data.word}"), "salt");
    let managers = here.kubectl(&[
        "get",
        "configmap",
        "one",
        "--show-managed-fields",
        "-o",
        "jsonpath={.metadata.managedFields[*].manager}",
    ]);
    assert!(managers.split(' ').any(|manager| manager == "second"), "{managers}");
}

#[test]
fn patches_of_three_kinds() {
    let here = Cluster::shared().namespace("patch");
    here.apply(&deployment("main", 1));
    let patch = |kind: &str, body: &str| here.kubectl(&["patch", "deployment", "main", "--type", kind, "-p", body]);
    patch(
        "strategic",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"main","env":[{"name":"A","value":"1"}]}]}}}}"#,
    );
    let container = "{.spec.template.spec.containers[0]";
    // The list is merged by name: the image is still there.
    assert_eq!(here.field("deployment/main", &format!("{container}.image}}")), "busybox:1");
    assert_eq!(here.field("deployment/main", &format!("{container}.env[0].value}}")), "1");
    patch("json", r#"[{"op":"replace","path":"/spec/template/spec/containers/0/env/0/value","value":"2"}]"#);
    assert_eq!(here.field("deployment/main", &format!("{container}.env[0].value}}")), "2");
    patch("merge", r#"{"metadata":{"labels":{"a":"b"}}}"#);
    assert_eq!(here.field("deployment/main", "{.metadata.labels.a}"), "b");
    let wrong = [r#"[{"op":"test","path":"/spec/replicas","value":7}]"#];
    here.try_kubectl(&["patch", "deployment", "main", "--type", "json", "-p", wrong[0]]).fails(1);
}

#[test]
fn replace_needs_the_revision_it_saw() {
    let here = Cluster::shared().namespace("replace");
    here.apply(&config_map("one", "kelp"));
    let old = here.kubectl(&["get", "configmap", "one", "-o", "yaml"]);
    here.try_kubectl_with(&["replace", "-f", "-"], &old.replace("kelp", "salt")).ok();
    assert_eq!(here.field("configmap/one", "{.data.word}"), "salt");
    let stderr = here.try_kubectl_with(&["replace", "-f", "-"], &old).fails(1);
    assert!(stderr.contains("Conflict"), "{stderr}");
}

#[test]
fn label_and_annotate() {
    let here = Cluster::shared().namespace("label");
    here.apply(&config_map("one", "kelp"));
    here.kubectl(&["label", "configmap", "one", "sea=north"]);
    let stderr = here.try_kubectl(&["label", "configmap", "one", "sea=south"]).fails(1);
    assert!(stderr.contains("overwrite"), "{stderr}");
    here.kubectl(&["label", "configmap", "one", "sea=south", "--overwrite"]);
    here.kubectl(&["annotate", "configmap", "one", "note=yes"]);
    assert_eq!(here.field("configmap/one", "{.metadata.labels.sea}{.metadata.annotations.note}"), "southyes");
    here.kubectl(&["label", "configmap", "one", "sea-"]);
    assert_eq!(here.field("configmap/one", "{.metadata.labels.sea}"), "");
}

#[test]
fn delete_cascades_as_asked() {
    let here = Cluster::shared().namespace("delete");
    let count = |what: &str| here.kubectl(&["get", what, "-o", "name", "-l", "app=main"]).lines().count();
    here.apply(&deployment("main", 2));
    here.rolled_out("main");
    here.kubectl(&["delete", "deployment", "main", "--cascade=orphan"]);
    assert_eq!((count("replicaset"), count("pods")), (1, 2));
    here.apply(&deployment("main", 2));
    here.rolled_out("main");
    // It took the orphans up again instead of making more.
    assert_eq!((count("replicaset"), count("pods")), (1, 2));
    here.kubectl(&["delete", "deployment", "main", "--cascade=foreground", "--timeout=60s"]);
    assert_eq!((count("replicaset"), count("pods")), (0, 0));
    here.apply(&deployment("main", 1));
    here.rolled_out("main");
    here.kubectl(&["delete", "deployment", "main"]);
    eventually("the pods to be collected", || (count("pods") == 0).then_some(()));
}

#[test]
fn delete_with_a_grace_period() {
    let here = Cluster::shared().namespace("grace");
    here.kubectl(&[
        "run",
        "slow",
        "--image=busybox:1",
        "--restart=Never",
        "--command",
        "--",
        "sh",
        "-c",
        "trap '' TERM; while :; do sleep 1; done",
    ]);
    here.ready("slow");
    let started = std::time::Instant::now();
    here.kubectl(&["delete", "pod", "slow", "--grace-period=2"]);
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(2) && took < Duration::from_secs(20), "{took:?}");
    here.shell_pod("forced");
    here.kubectl(&["delete", "pod", "forced", "--force", "--grace-period=0"]);
    here.try_kubectl(&["get", "pod", "forced"]).fails(1);
}

#[test]
fn scale_set_image_and_rollouts() {
    let here = Cluster::shared().namespace("rollout");
    here.hello();
    here.kubectl(&["scale", "deployment/hello", "--replicas=2"]);
    here.rolled_out("hello");
    here.until("deployment/hello", "{.status.readyReplicas}", "2");
    here.kubectl(&["set", "image", "deployment/hello", "hello=hello:2"]);
    here.rolled_out("hello");
    let image = || here.field("deployment/hello", "{.spec.template.spec.containers[0].image}");
    assert_eq!(image(), "hello:2");
    let history = here.kubectl(&["rollout", "history", "deployment/hello"]);
    assert!(history.lines().any(|line| line.starts_with("2 ")), "{history}");
    here.kubectl(&["rollout", "undo", "deployment/hello"]);
    here.rolled_out("hello");
    assert_eq!(image(), "hello:1");
    let pods = || here.kubectl(&["get", "pods", "-l", "app=hello", "-o", "name"]);
    let before = pods();
    here.kubectl(&["rollout", "restart", "deployment/hello"]);
    here.rolled_out("hello");
    eventually("the pods of before to be gone", || {
        let now = pods();
        before.lines().all(|pod| !now.contains(pod)).then_some(())
    });
}

#[test]
fn run_and_expose() {
    let here = Cluster::shared().namespace("expose");
    here.kubectl(&["run", "web", "--image=hello:1", "--port=8080"]);
    here.ready("web");
    here.kubectl(&["expose", "pod", "web", "--port=80", "--target-port=8080"]);
    here.shell_pod("caller");
    let answer = eventually("an answer through the Service", || {
        let done = here.sh("caller", "timeout 5 wget -q -O - http://web/");
        done.succeeded().then_some(done.stdout)
    });
    assert!(answer.contains("\"pod\":\"web\""), "{answer}");
}

#[test]
fn logs_followed_and_of_the_container_before() {
    let here = Cluster::shared().namespace("logs");
    // Each run tells its number, from a file that outlives the container, and the first one ends.
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: talker}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
        volumes: [{name: kept, emptyDir: {}}]\n  containers:\n    - name: main\n      image: busybox:1\n      \
        volumeMounts: [{name: kept, mountPath: /kept}]\n      command:\n        - sh\n        - -c\n        - |\n          \
        echo x >> /kept/runs\n          echo run $(wc -l < /kept/runs)\n          echo done\n          \
        [ $(wc -l < /kept/runs) = 1 ] && exit 1\n          echo staying; sleep 3600\n";
    here.apply(manifest);
    here.until("pod/talker", "{.status.containerStatuses[0].restartCount}", "1");
    eventually("the second run's lines", || here.kubectl(&["logs", "talker"]).contains("staying").then_some(()));
    assert_eq!(here.kubectl(&["logs", "talker"]), "run 2\ndone\nstaying\n");
    assert_eq!(here.kubectl(&["logs", "talker", "--previous"]), "run 1\ndone\n");
    assert_eq!(here.kubectl(&["logs", "talker", "--tail=1"]), "staying\n");
    let mut follow = here.kubectl_command();
    let mut follow = follow.args(["logs", "-f", "talker"]).stdout(Stdio::piped()).spawn().expect("kubectl");
    let mut output = BufReader::new(follow.stdout.take().expect("its output"));
    let mut followed = String::new();
    // It follows when something has come.
    output.read_line(&mut followed).expect("read");
    here.kubectl(&["delete", "pod", "talker"]);
    output.read_to_string(&mut followed).expect("read");
    assert!(follow.wait().expect("kubectl").success());
    assert_eq!(followed, "run 2\ndone\nstaying\n");
}

#[test]
fn exec_gives_output_input_and_exit_codes() {
    let here = Cluster::shared().namespace("exec");
    here.shell_pod("main");
    let done = here.sh("main", "echo out; echo err >&2; exit 7");
    assert_eq!((done.code, done.stdout.as_str()), (Some(7), "out\n"));
    assert!(done.stderr.starts_with("err\n"), "{}", done.stderr);
    // More than any buffer on the way.
    let input = "0123456789abcdef".repeat(64 << 10);
    let copied = here.try_kubectl_with(&["exec", "-i", "main", "--", "cat"], &input).ok();
    assert!(copied == input, "{} of {} bytes came back", copied.len(), input.len());
    let absent = here.try_kubectl(&["exec", "main", "--", "no-such-program"]);
    assert_ne!(absent.code, Some(0));
}

#[test]
fn exec_on_a_terminal() {
    let here = Cluster::shared().namespace("terminal");
    here.shell_pod("main");
    let kubectl = here.kubectl_command();
    let words: Vec<_> = std::iter::once(kubectl.get_program()).chain(kubectl.get_args()).collect();
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    // The size follows the start: kubectl sends it when the stream is there.
    let remote = "test -t 0 && for _ in $(seq 50); do stty size | grep 33 && break; sleep 0.1; done";
    let inner = format!("stty rows 33 cols 77; {} exec -it main -- sh -c '{remote}'", words.join(" "));
    let mut command = Command::new("script");
    command.args(["--quiet", "--return", "--command", &inner, "/dev/null"]);
    let shown = run(command.env("KUBECONFIG", here.cluster.kubeconfig())).ok();
    assert!(shown.contains("33 77"), "{shown:?}");
}

#[test]
fn port_forward() {
    let here = Cluster::shared().namespace("forward");
    here.hello();
    let mut command = here.kubectl_command();
    command.args(["port-forward", "deployment/hello", ":8080", "--address", "127.0.0.1"]).stdout(Stdio::piped());
    let mut forward = command.spawn().expect("kubectl");
    let _guard = Kill(forward.id() as i32);
    let mut line = String::new();
    // Kept open: it writes a line for each connection and would end if it could not.
    let mut output = BufReader::new(forward.stdout.take().expect("its output"));
    output.read_line(&mut line).expect("read");
    let port = line.split_once("127.0.0.1:").and_then(|(_, rest)| rest.split_whitespace().next());
    let port: u16 = port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("{line:?}"));
    for _ in 0..5 {
        let answer = load::get(([127, 0, 0, 1], port).into(), "/", Duration::from_secs(10)).expect("an answer");
        assert!(answer.contains("\"pod\":\"hello-"), "{answer}");
    }
    drop(_guard);
    let _ = forward.wait();
}

#[test]
fn wait_and_events() {
    let here = Cluster::shared().namespace("events");
    here.shell_pod("main");
    here.kubectl(&["wait", "--for=jsonpath={.status.phase}=Running", "pod/main", "--timeout=30s"]);
    let stderr = here.try_kubectl(&["wait", "--for=condition=Nonsense", "pod/main", "--timeout=1s"]).fails(1);
    assert!(stderr.contains("timed out"), "{stderr}");
    let events = here.kubectl(&["events", "--for", "pod/main"]);
    for reason in ["Scheduled", "Created", "Started"] {
        assert!(events.contains(reason), "{reason} in\n{events}");
    }
}

#[test]
fn auth_can_i_and_whoami() {
    let here = Cluster::shared().namespace("auth");
    assert_eq!(here.kubectl(&["auth", "can-i", "create", "pods"]).trim(), "yes");
    let user = format!("--as=system:serviceaccount:{}:default", here.name);
    let refused = here.try_kubectl(&["auth", "can-i", "create", "pods", &user]);
    assert_eq!((refused.code, refused.stdout.trim()), (Some(1), "no"));
    let who = here.kubectl(&["auth", "whoami", "-o", "json"]);
    let who: serde_json::Value = serde_json::from_str(&who).expect("JSON");
    assert!(who["status"]["userInfo"]["username"].is_string(), "{who}");
    let stderr = here.try_kubectl(&["get", "pods", &user]).fails(1);
    assert!(stderr.contains("Forbidden"), "{stderr}");
}

#[test]
fn cordon_and_drain() {
    // Its own cluster: a drained node is of no use to the others.
    let cluster = Cluster::up(&["--nodes", "2"]);
    cluster.load_images();
    let here = cluster.namespace("drain");
    let first = cluster.node(0);
    here.apply(&deployment("main", 4));
    here.rolled_out("main");
    cluster.kubectl(&["cordon", &first]);
    assert!(cluster.kubectl(&["get", "node", &first]).contains("SchedulingDisabled"));
    cluster.kubectl(&["drain", &first, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s"]);
    here.rolled_out("main");
    assert!(nodes(&here).iter().all(|node| *node != first), "{:?}", nodes(&here));
    cluster.kubectl(&["uncordon", &first]);
    here.kubectl(&["scale", "deployment/main", "--replicas=8"]);
    here.rolled_out("main");
    assert!(nodes(&here).contains(&first), "{:?}", nodes(&here));
}

/// Where the pods are that are not ending.
fn nodes(here: &Namespace<'_>) -> Vec<String> {
    let pods: serde_json::Value = serde_json::from_str(&here.kubectl(&["get", "pods", "-o", "json"])).expect("JSON");
    let pods = pods["items"].as_array().cloned().unwrap_or_default();
    let live = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
    live.filter_map(|pod| pod["spec"]["nodeName"].as_str().map(str::to_owned)).collect()
}

#[test]
fn attach_and_cp() {
    let here = Cluster::shared().namespace("attach");
    here.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: cat}\nspec:\n  restartPolicy: Never\n  containers:\n    \
         - {name: main, image: 'busybox:1', stdin: true, stdinOnce: true, command: [cat]}\n",
    );
    here.ready("cat");
    assert_eq!(here.try_kubectl_with(&["attach", "-i", "cat"], "fed\n").ok(), "fed\n");
    here.until("pod/cat", "{.status.phase}", "Succeeded");
    here.shell_pod("files");
    let there = here.cluster.scratch().join("there");
    let back = here.cluster.scratch().join("back");
    std::fs::write(&there, "cargo").expect("a file");
    here.kubectl(&["cp", &there.to_string_lossy(), "files:/tmp/there"]);
    here.kubectl(&["cp", "files:/tmp/there", &back.to_string_lossy()]);
    assert_eq!(std::fs::read_to_string(&back).expect("the copy"), "cargo");
}

#[test]
fn describe_tells_events_in_order_and_writers_have_names() {
    let here = Cluster::shared().namespace("story");
    here.apply(&deployment("main", 1));
    here.rolled_out("main");
    let pod = here.kubectl(&["get", "pods", "-o", "name"]);
    let reasons = eventually("four events", || {
        let text = here.kubectl(&["describe", pod.trim()]);
        let told = text.split("Events:").nth(1).unwrap_or_default().lines().skip(3);
        let told: Vec<String> = told.filter_map(|line| line.split_whitespace().nth(1).map(str::to_owned)).collect();
        (told.len() == 4).then_some(told)
    });
    // The scheduler tells of a binding once it is acknowledged; the node may have begun by then.
    let of_the_node: Vec<&str> = reasons.iter().map(String::as_str).filter(|one| *one != "Scheduled").collect();
    assert_eq!(of_the_node, ["Pulled", "Created", "Started"]);
    let managers = here.field("deployment/main", "{.metadata.managedFields[*].manager}");
    let mut managers: Vec<&str> = managers.split_whitespace().collect();
    managers.sort_unstable();
    managers.dedup();
    assert_eq!(managers, ["kube-controller-manager", "kubectl-client-side-apply"]);
    assert!(here.field(pod.trim(), "{.metadata.managedFields[*].manager}").contains("kubelet"));
}
