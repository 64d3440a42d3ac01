//! The whole server as it is shipped, over TLS: who is let in, what they may do, and what the bootstrap leaves behind.

mod common;

use std::time::Duration;

use http::Method;
use sampan_apiserver::auth::MASTERS;
use sampan_apiserver::bootstrap;
use sampan_base::Clock;
use serde_json::{Value, json};

use common::{Cluster, call, get, message, post};

/// Authorization learns of a write from the feed: until then an answer may be the old one.
async fn eventually<F: Future<Output = bool>>(clock: &Clock, mut holds: impl FnMut() -> F) {
    let wait = async {
        while !holds().await {
            clock.sleep(Duration::from_millis(2)).await;
        }
    };
    clock.timeout(Duration::from_secs(5), wait).await.expect("it comes to hold");
}

#[tokio::test]
async fn callers_are_known_by_certificate_token_or_not_at_all() {
    let cluster = Cluster::start().await;
    let anonymous = cluster.anonymous();
    get(&anonymous, "/version").await.expect("public");
    assert_eq!(
        message(get(&anonymous, "/api/v1/namespaces/default/pods").await),
        r#"pods is forbidden: User "system:anonymous" cannot list resource "pods" in API group "" in the namespace "default""#
    );
    let admin = cluster.user("root", &[MASTERS]);
    get(&admin, "/api/v1/pods").await.expect("everything is allowed");
    assert_eq!(message(get(&cluster.bearer("nonsense"), "/version").await), "Unauthorized");

    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "bot"}});
    post(&admin, "/api/v1/namespaces/default/serviceaccounts", account).await.expect("created");
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}});
    let answer = post(&admin, "/api/v1/namespaces/default/serviceaccounts/bot/token", request).await.expect("a token");
    let bot = cluster.bearer(answer["status"]["token"].as_str().expect("a token"));
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let who = post(&bot, "/apis/authentication.k8s.io/v1/selfsubjectreviews", review.clone()).await.expect("an answer");
    assert_eq!(who["status"]["userInfo"]["username"], "system:serviceaccount:default:bot");
    let configuration = get(&bot, "/.well-known/openid-configuration").await.expect("for service accounts");
    assert_eq!(configuration["jwks_uri"], "https://server/openid/v1/jwks");

    call(&admin, Method::DELETE, "/api/v1/namespaces/default/serviceaccounts/bot", Value::Null, &[])
        .await
        .expect("deleted");
    assert_eq!(message(post(&bot, "/apis/authentication.k8s.io/v1/selfsubjectreviews", review).await), "Unauthorized");
}

#[tokio::test]
async fn roles_take_effect_and_cannot_be_exceeded() {
    let cluster = Cluster::start().await;
    let (admin, dev) = (cluster.user("root", &[MASTERS]), cluster.user("dev", &[]));
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    let binding = |name: &str, role: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "dev"}],
        })
    };
    post(&admin, bindings, binding("dev", "admin")).await.expect("bound");
    let pods = "/api/v1/namespaces/default/pods";
    eventually(&cluster.clock, || async { get(&dev, pods).await.is_ok() }).await;
    get(&dev, "/api/v1/namespaces/kube-system/pods").await.expect_err("another namespace");
    post(&dev, bindings, binding("view", "view")).await.expect("what he holds he may grant");
    let refused = message(post(&dev, bindings, binding("root", "cluster-admin")).await);
    assert!(refused.contains("is attempting to grant RBAC permissions not currently held"), "{refused}");

    let asked = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview", "spec": {
        "resourceAttributes": {"verb": "create", "resource": "pods", "namespace": "default"}}});
    let answer = post(&dev, "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", asked).await.expect("an answer");
    assert_eq!(answer["status"]["allowed"], true);

    let as_dev = [("impersonate-user", "dev")];
    let other = "/api/v1/namespaces/kube-system/pods";
    let refused = call(&admin, Method::GET, other, Value::Null, &as_dev).await;
    assert!(message(refused).contains(r#"User "dev" cannot list"#));
    let refused = call(&dev, Method::GET, pods, Value::Null, &[("impersonate-user", "root")]).await;
    assert!(message(refused).contains(r#"users "root" is forbidden: User "dev" cannot impersonate resource "users""#));
}

#[tokio::test]
async fn a_node_sees_what_its_pods_need() {
    let cluster = Cluster::start().await;
    let (admin, node) = (cluster.user("root", &[MASTERS]), cluster.user("system:node:n1", &["system:nodes"]));
    let object = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    let created = post(&node, "/api/v1/nodes", object).await.expect("registers itself");
    assert_eq!(created["spec"]["taints"][0]["key"], "node.kubernetes.io/not-ready");
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    post(&admin, "/api/v1/namespaces/default/serviceaccounts", account).await.expect("created");
    for name in ["used", "unused"] {
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
        post(&admin, "/api/v1/namespaces/default/secrets", secret).await.expect("created");
    }
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {
        "nodeName": "n1", "containers": [{"name": "c", "image": "i"}],
        "volumes": [{"name": "s", "secret": {"secretName": "used"}}]}});
    let pod = post(&admin, "/api/v1/namespaces/default/pods", pod).await.expect("created");
    let spec = &pod["spec"];
    assert_eq!((&spec["serviceAccountName"], &spec["priority"]), (&json!("default"), &json!(0)));
    assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["mountPath"], "/var/run/secrets/kubernetes.io/serviceaccount");

    let secrets = "/api/v1/namespaces/default/secrets";
    eventually(&cluster.clock, || async { get(&node, &format!("{secrets}/used")).await.is_ok() }).await;
    let refused = message(get(&node, &format!("{secrets}/unused")).await);
    assert!(refused.ends_with("no relationship found between node 'n1' and this object"), "{refused}");
    get(&node, "/api/v1/pods").await.expect_err("all pods");
    let own = get(&node, "/api/v1/pods?fieldSelector=spec.nodeName%3Dn1").await.expect("its pods");
    assert_eq!(own["items"].as_array().map(Vec::len), Some(1));

    let uid = &pod["metadata"]["uid"];
    let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid});
    let ask = |bound: Value| {
        let spec = json!({"boundObjectRef": bound, "expirationSeconds": 3607});
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec});
        let node = &node;
        async move { post(node, "/api/v1/namespaces/default/serviceaccounts/default/token", body).await }
    };
    ask(bound).await.expect("a token for its pod");
    assert!(message(ask(Value::Null).await).contains("node requested token not bound to a pod"));
}

#[tokio::test]
async fn the_bootstrap_can_run_again_and_repairs() {
    let cluster = Cluster::start().await;
    let admin = cluster.user("root", &[MASTERS]);
    let roles = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
    let path = format!("{roles}/system:discovery");
    let role = get(&admin, &path).await.expect("there");
    bootstrap::run(&cluster.own, &cluster.kubernetes).await.expect("again");
    assert_eq!(get(&admin, &path).await.expect("there"), role, "nothing was written");

    let mut broken = role.clone();
    broken["rules"] = json!([]);
    call(&admin, Method::PUT, &path, broken, &[]).await.expect("broken");
    let slice = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes";
    call(&admin, Method::DELETE, slice, Value::Null, &[]).await.expect("deleted");
    bootstrap::run(&cluster.own, &cluster.kubernetes).await.expect("again");
    let urls = |role: &Value| {
        role["rules"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|rule| rule["nonResourceURLs"].as_array().map_or(0, Vec::len))
            .sum::<usize>()
    };
    assert_eq!(urls(&get(&admin, &path).await.expect("there")), urls(&role));
    assert_eq!(get(&admin, slice).await.expect("there")["endpoints"][0]["addresses"], json!(["10.0.0.2"]));
    let service = get(&admin, "/api/v1/namespaces/default/services/kubernetes").await.expect("there");
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
}
