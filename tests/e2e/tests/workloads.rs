//! Pods and Deployments with what they need from their node.

use std::time::Duration;

use sampan_e2e::load::Load;
use sampan_e2e::{Cluster, eventually, holds_for};

#[test]
fn a_rolling_update_under_load_fails_no_request() {
    let port = free_port();
    let cluster = Cluster::up(&["--publish", &format!("{port}:80")]);
    cluster.load_images();
    let here = cluster.namespace("rolling");
    here.hello();
    let address = ([127, 0, 0, 1], port).into();
    eventually("the first answer", || sampan_e2e::load::get(address, "/", Duration::from_secs(2)).ok());
    let ((), report) = Load::new(address, "/").during(|| {
        here.kubectl(&["set", "env", "deployment/hello", "VERSION=2"]);
        here.rolled_out("hello");
        eventually("only pods of the new version", || {
            let versions = here.kubectl(&["get", "pods", "-l", "app=hello", "-o", "name"]);
            (versions.lines().count() == 3).then_some(())
        });
    });
    assert_eq!(report.failed(), 0, "{:?}", report.failures);
    let versions = |version: &str| report.answers.keys().filter(|who| who.ends_with(version)).count();
    assert!(versions("(version 1)") > 1 && versions("(version 2)") > 1, "{:?}", report.answers);
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("an address").port()
}

#[test]
fn answers_hold_configuration_and_secret() {
    let here = Cluster::shared().namespace("configured");
    here.hello();
    here.shell_pod("caller");
    let answer = eventually("an answer", || {
        let done = here.sh("caller", "timeout 5 wget -q -O - http://hello/");
        done.succeeded().then_some(done.stdout)
    });
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("JSON");
    assert_eq!((&answer["greeting"], &answer["secret"]), (&"Ahoy".into(), &"kelp".into()));
}

#[test]
fn a_changed_config_map_reaches_its_volume() {
    let here = Cluster::shared().namespace("projected");
    here.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: words}\ndata: {word: kelp}\n");
    here.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: reader}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         volumes: [{name: words, configMap: {name: words}}]\n  containers:\n    - {name: main, image: 'busybox:1', \
         command: [sleep, '3600'], volumeMounts: [{name: words, mountPath: /words}]}\n",
    );
    here.ready("reader");
    assert_eq!(here.sh("reader", "cat /words/word").ok(), "kelp");
    here.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: words}\ndata: {word: salt}\n");
    eventually("the new word in the file", || (here.sh("reader", "cat /words/word").stdout == "salt").then_some(()));
}

#[test]
fn a_pod_has_its_token_and_may_use_it() {
    let here = Cluster::shared().namespace("token");
    here.shell_pod("main");
    let directory = "/var/run/secrets/kubernetes.io/serviceaccount";
    assert_eq!(here.sh("main", &format!("cat {directory}/namespace")).ok(), "token");
    assert!(here.sh("main", &format!("cat {directory}/ca.crt")).ok().contains("BEGIN CERTIFICATE"));
    let token = here.sh("main", &format!("cat {directory}/token")).ok();
    let token = format!("--token={token}");
    // Without the administrator's certificate: only the token speaks.
    let server = here.cluster.status()["server"].as_str().expect("the server").to_owned();
    let mut command = here.kubectl_command();
    command.env("KUBECONFIG", "/dev/null").args(["--server", &server, "--insecure-skip-tls-verify", &token]);
    let who = sampan_e2e::run(command.args(["auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"])).ok();
    assert_eq!(who, "system:serviceaccount:token:default");
}

#[test]
fn an_init_container_runs_first() {
    let here = Cluster::shared().namespace("init");
    here.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: main}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
         volumes: [{name: shared, emptyDir: {}}]\n  initContainers:\n    - {name: first, image: 'busybox:1', command: \
         [sh, -c, 'echo ready > /shared/state'], volumeMounts: [{name: shared, mountPath: /shared}]}\n  containers:\n    \
         - {name: main, image: 'busybox:1', command: [sh, -c, 'cat /shared/state; sleep 3600'], \
         volumeMounts: [{name: shared, mountPath: /shared}]}\n",
    );
    here.ready("main");
    assert_eq!(here.kubectl(&["logs", "main", "-c", "main"]), "ready\n");
    let reason = "{.status.initContainerStatuses[0].state.terminated.reason}";
    assert_eq!(here.field("pod/main", reason), "Completed");
}

#[test]
fn probes_decide_readiness_and_restarts() {
    let here = Cluster::shared().namespace("probes");
    here.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: main}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n    \
         - name: main\n      image: busybox:1\n      command: [sh, -c, 'touch /tmp/alive; sleep 3600']\n      \
         readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1}\n      \
         livenessProbe: {exec: {command: [test, -e, /tmp/alive]}, periodSeconds: 1, failureThreshold: 1, initialDelaySeconds: 2}\n",
    );
    let ready = "{.status.conditions[?(@.type=='Ready')].status}";
    here.until("pod/main", "{.status.phase}", "Running");
    holds_for("the pod is not ready", Duration::from_secs(2), || here.field("pod/main", ready) == "False");
    here.sh("main", "touch /tmp/ready").ok();
    here.until("pod/main", ready, "True");
    here.sh("main", "rm /tmp/alive").ok();
    here.until("pod/main", "{.status.containerStatuses[0].restartCount}", "1");
    assert!(here.kubectl(&["events", "--for", "pod/main"]).contains("Unhealthy"));
}

#[test]
fn a_command_that_is_not_in_the_image_says_so() {
    let here = Cluster::shared().namespace("no-command");
    here.kubectl(&["run", "main", "--image=busybox:1", "--restart=Never", "--command", "--", "/no/such/program"]);
    let message = eventually("the container's failure", || {
        let state = here.field("pod/main", "{.status.containerStatuses[0].state}");
        state.contains("/no/such/program").then_some(state)
    });
    assert!(message.contains("StartError") || message.contains("ContainerCannotRun"), "{message}");
}

#[test]
fn memory_limits_hold() {
    let here = Cluster::shared().namespace("memory");
    here.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: eater}\nspec:\n  restartPolicy: Never\n  containers:\n    \
         - {name: main, image: 'busybox:1', resources: {limits: {memory: 16Mi}}, command: [sh, -c, 'tail /dev/zero']}\n",
    );
    here.until("pod/eater", "{.status.containerStatuses[0].state.terminated.reason}", "OOMKilled");
    assert_eq!(here.field("pod/eater", "{.status.containerStatuses[0].state.terminated.exitCode}"), "137");
}

#[test]
fn a_crashing_container_backs_off() {
    let here = Cluster::shared().namespace("back-off");
    here.kubectl(&["run", "main", "--image=busybox:1", "--command", "--", "false"]);
    here.until("pod/main", "{.status.containerStatuses[0].state.waiting.reason}", "CrashLoopBackOff");
    let restarts: u32 =
        here.field("pod/main", "{.status.containerStatuses[0].restartCount}").parse().expect("a number");
    assert!(restarts >= 1);
}

#[test]
fn a_pod_that_fits_nowhere_says_why() {
    let here = Cluster::shared().namespace("too-big");
    here.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: big}\nspec:\n  containers:\n    \
         - {name: main, image: 'busybox:1', resources: {requests: {cpu: '1000'}}}\n",
    );
    let message = eventually("FailedScheduling", || {
        let events = here.kubectl(&["events", "--for", "pod/big"]);
        events.contains("FailedScheduling").then_some(events)
    });
    assert!(message.contains("Insufficient cpu"), "{message}");
    assert_eq!(here.field("pod/big", "{.status.phase}"), "Pending");
}

#[test]
fn a_deleted_namespace_takes_everything_with_it() {
    let here = Cluster::shared().namespace("doomed");
    here.hello();
    here.cluster.kubectl(&["delete", "namespace", "doomed", "--timeout=60s"]);
    here.cluster.kubectl(&["create", "namespace", "doomed"]);
    let left = || here.kubectl(&["get", "pods,replicasets,deployments,services,secrets", "-o", "name"]);
    eventually("the new namespace to be empty", || left().is_empty().then_some(()));
}

/// The column STATUS of `kubectl get pods`, as users know it from upstream.
#[test]
fn every_end_of_a_pod_has_its_name() {
    let here = Cluster::shared().namespace("states");
    let pod = |name: &str, spec: &str| {
        format!("---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {spec}}}\n")
    };
    let busy = |name: &str, rest: &str| format!("{{name: {name}, image: 'busybox:1', {rest}}}");
    let main = |rest: &str| format!("containers: [{}]", busy("main", rest));
    let expected = [
        ("done", format!("{{restartPolicy: Never, {}}}", main("command: ['true']")), "Completed"),
        ("failed", format!("{{restartPolicy: Never, {}}}", main("command: [sh, -c, 'exit 7']")), "Error"),
        ("no-command", format!("{{restartPolicy: Never, {}}}", main("command: [/no/such]")), "StartError"),
        ("crashing", format!("{{{}}}", main("command: ['false']")), "CrashLoopBackOff"),
        ("bad-name", "{containers: [{name: main, image: 'Not An Image'}]}".into(), "InvalidImageName"),
        (
            "never-pulled",
            "{containers: [{name: main, image: 'missing:1', imagePullPolicy: Never}]}".into(),
            "ErrImageNeverPull",
        ),
        (
            "no-config",
            format!("{{{}}}", main("env: [{name: A, valueFrom: {configMapKeyRef: {name: none, key: a}}}]")),
            "CreateContainerConfigError",
        ),
        (
            "in-init",
            format!(
                "{{initContainers: [{}], {}}}",
                busy("first", "command: [sleep, '3600']"),
                main("command: ['true']")
            ),
            "Init:0/1",
        ),
        (
            "init-crashing",
            format!("{{initContainers: [{}], {}}}", busy("first", "command: ['false']"), main("command: ['true']")),
            "Init:CrashLoopBackOff",
        ),
    ];
    here.apply(&expected.iter().map(|(name, spec, _)| pod(name, spec)).collect::<String>());
    for (name, _, status) in expected {
        let mut last = String::new();
        sampan_e2e::eventually(&format!("{name} to show {status}"), || {
            last = here.kubectl(&["get", "pod", name, "--no-headers"]);
            (last.split_whitespace().nth(2) == Some(status)).then_some(())
        });
    }
}

#[test]
fn a_namespace_waits_for_finalizers_and_says_so() {
    let here = Cluster::shared().namespace("held");
    here.kubectl(&["create", "configmap", "held"]);
    here.kubectl(&["patch", "configmap", "held", "-p", r#"{"metadata":{"finalizers":["example.com/hold"]}}"#]);
    here.cluster.kubectl(&["delete", "namespace", "held", "--wait=false"]);
    let condition = r#"{.status.conditions[?(@.type=="NamespaceFinalizersRemaining")].message}"#;
    let message = "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances";
    here.until("namespace/held", condition, message);
    let stderr = here.try_kubectl(&["create", "configmap", "late"]).fails(1);
    assert!(
        stderr.contains("unable to create new content in namespace held because it is being terminated"),
        "{stderr}"
    );
    here.kubectl(&["patch", "configmap", "held", "-p", r#"{"metadata":{"finalizers":null}}"#]);
    here.cluster.kubectl(&["wait", "--for=delete", "namespace/held", "--timeout=60s"]);
}
