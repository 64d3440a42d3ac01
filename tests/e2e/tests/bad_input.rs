//! What is wrong is refused in the words of Kubernetes, in the right place.

use std::fs;
use std::process::Command;

use sampan_e2e::{Cluster, Done, run, run_with_input};

/// A raw request with the administrator's certificate.
fn request(cluster: &Cluster, method: &str, path: &str, kind: &str, body: &[u8]) -> (u16, serde_json::Value) {
    let config: serde_json::Value =
        serde_json::from_str(&cluster.kubectl(&["config", "view", "--raw", "--flatten", "-o", "json"])).expect("JSON");
    let user = &config["users"][0]["user"];
    let pem = |name: &str, value: &serde_json::Value| {
        let path = cluster.scratch().join(name);
        let decoded = run_with_input(Command::new("base64").arg("-d"), value.as_str().expect("data").as_bytes()).ok();
        fs::write(&path, decoded).expect("write");
        path
    };
    let (certificate, key) =
        (pem("cert.pem", &user["client-certificate-data"]), pem("key.pem", &user["client-key-data"]));
    let server = config["clusters"][0]["cluster"]["server"].as_str().expect("a server");
    let mut command = Command::new("curl");
    // Over HTTP/2 curl gives up when the server has answered before it has everything.
    command.args(["--silent", "--insecure", "--http1.1", "--noproxy", "*", "--request", method, "--data-binary", "@-"]);
    command.arg("--cert").arg(certificate).arg("--key").arg(key);
    command.args([
        "--header",
        &format!("Content-Type: {kind}"),
        "--write-out",
        "\n%{http_code}",
        &format!("{server}{path}"),
    ]);
    let text = run_with_input(&mut command, body).ok();
    let (body, code) = text.rsplit_once('\n').expect("a code");
    (code.parse().expect("a number"), serde_json::from_str(body).unwrap_or_default())
}

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

#[test]
fn malformed_bodies_are_bad_requests() {
    let cluster = Cluster::shared();
    let bodies: [(&str, &[u8]); 3] = [
        ("application/json", b"{\"kind\": "),
        ("application/yaml", b"a: b: c"),
        ("application/vnd.kubernetes.protobuf", b"k8s\0\xff\xff\xff"),
    ];
    for (kind, body) in bodies {
        let (code, status) = request(cluster, "POST", MAPS, kind, body);
        assert_eq!((code, &status["reason"]), (400, &"BadRequest".into()), "{kind}: {status}");
    }
    let (code, status) = request(cluster, "POST", MAPS, "text/plain", b"x");
    assert_eq!((code, &status["reason"]), (415, &"UnsupportedMediaType".into()), "{status}");
}

#[test]
fn a_huge_body_is_refused() {
    let here = Cluster::shared().namespace("huge");
    let word = "x".repeat(4 << 20);
    let manifest = format!(
        "{{\"kind\":\"ConfigMap\",\"apiVersion\":\"v1\",\"metadata\":{{\"name\":\"x\"}},\"data\":{{\"a\":\"{word}\"}}}}"
    );
    let stderr = here.try_kubectl_with(&["create", "--validate=false", "-f", "-"], &manifest).fails(1);
    assert!(stderr.contains("RequestEntityTooLarge") || stderr.contains("too large"), "{stderr}");
}

#[test]
fn unknown_kinds_and_fields_are_named() {
    let here = Cluster::shared().namespace("unknown");
    let create = |manifest: &str| -> Done { here.try_kubectl_with(&["create", "-f", "-"], manifest) };
    let stderr = create("apiVersion: v1\nkind: Barge\nmetadata: {name: x}\n").fails(1);
    assert!(stderr.contains("no matches for kind \"Barge\""), "{stderr}");
    let stderr = create("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\ndatta: {a: b}\n").fails(1);
    assert!(stderr.contains("unknown field \"datta\""), "{stderr}");
    let stderr = create("apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {ports: 80}\n").fails(1);
    assert!(stderr.contains("ports") || stderr.contains("cannot unmarshal"), "{stderr}");
}

#[test]
fn wrong_values_are_named_with_their_path() {
    let here = Cluster::shared().namespace("wrong");
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec:\n  restartPolicy: Sometimes\n  containers:\n    \
                    - {name: Main, image: 'busybox:1'}\n";
    let stderr = here.try_kubectl_with(&["create", "-f", "-"], manifest).fails(1);
    for part in ["spec.restartPolicy", "spec.containers[0].name"] {
        assert!(stderr.contains(part), "{part} in {stderr}");
    }
}

#[test]
fn a_stale_revision_conflicts() {
    let cluster = Cluster::shared();
    let here = cluster.namespace("stale");
    here.kubectl(&["create", "configmap", "one"]);
    let body = br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"one","resourceVersion":"1"}}"#;
    let path = "/api/v1/namespaces/stale/configmaps/one";
    let (code, status) = request(cluster, "PUT", path, "application/json", body);
    assert_eq!((code, &status["reason"]), (409, &"Conflict".into()), "{status}");
}

#[test]
fn strangers_are_refused() {
    let cluster = Cluster::shared();
    let server = cluster.status()["server"].as_str().expect("the server").to_owned();
    let ask = |path: &str, more: &[&str]| {
        let mut command = Command::new("curl");
        command.args([
            "--silent",
            "--insecure",
            "--noproxy",
            "*",
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
        ]);
        run(command.args(more).arg(format!("{server}{path}"))).ok()
    };
    assert_eq!(ask(MAPS, &["--header", "Authorization: Bearer nonsense"]), "401");
    assert_eq!(ask(MAPS, &[]), "403");
    assert_eq!(ask("/livez", &[]), "200");
}
