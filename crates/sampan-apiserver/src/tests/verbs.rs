//! Every generic verb, over both transports.

use super::*;

/// Runs `suite` over a fresh server, in process and over TLS.
async fn over_both<F: Future<Output = ()>>(suite: impl Fn(Api) -> F) {
    suite(Api::local(server().await)).await;
    suite(Api::remote(server().await).await).await;
}

#[tokio::test]
async fn create_and_get() {
    over_both(|api| async move {
        let made = api.post(CONFIG_MAPS, &config_map("a")).await.code(201);
        let metadata = &made["metadata"];
        assert_eq!((&made["kind"], &made["apiVersion"]), (&json!("ConfigMap"), &json!("v1")));
        assert_eq!(metadata["namespace"], "default");
        assert_eq!(metadata["uid"].as_str().map(str::len), Some(36));
        assert!(metadata["resourceVersion"].as_str().is_some_and(|text| text.parse::<u64>().is_ok()));
        assert!(metadata["creationTimestamp"].as_str().is_some_and(|text| text.ends_with('Z')));
        assert_eq!(metadata["managedFields"][0]["operation"], "Update");
        assert_eq!(api.get(&format!("{CONFIG_MAPS}/a")).await.code(200), made);

        assert_eq!(api.post(CONFIG_MAPS, &config_map("a")).await.refused(409), "configmaps \"a\" already exists");
        assert_eq!(api.get(&format!("{CONFIG_MAPS}/b")).await.refused(404), "configmaps \"b\" not found");
        let elsewhere = json!({"metadata": {"name": "a", "namespace": "other"}});
        assert_eq!(
            api.post(CONFIG_MAPS, &merged(config_map("a"), elsewhere)).await.refused(400),
            "the namespace of the provided object does not match the namespace sent on the request"
        );
        let no_namespace = api.post("/api/v1/namespaces/nowhere/configmaps", &config_map("a")).await;
        assert_eq!(no_namespace.refused(404), "namespaces \"nowhere\" not found");
        let versioned = merged(config_map("b"), json!({"metadata": {"resourceVersion": "1"}}));
        assert_eq!(
            api.post(CONFIG_MAPS, &versioned).await.refused(400),
            "resourceVersion should not be set on objects to be created"
        );
        let wrong = merged(config_map("b"), json!({"apiVersion": "v2"}));
        assert_eq!(
            api.post(CONFIG_MAPS, &wrong).await.refused(400),
            "the API version in the data (v2) does not match the expected API version (v1)"
        );
        let generated = json!({"metadata": {"generateName": "x-"}});
        let first = api.post(CONFIG_MAPS, &generated).await.code(201);
        let second = api.post(CONFIG_MAPS, &generated).await.code(201);
        let name = first["metadata"]["name"].as_str().unwrap_or_default();
        assert!(name.starts_with("x-") && name.len() == 7, "{name}");
        assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
    })
    .await;
}

fn merged(mut base: Value, patch: Value) -> Value {
    sampan_api::patch::merge_patch(&mut base, &patch);
    base
}

#[tokio::test]
async fn field_validation() {
    let api = Api::local(server().await);
    let odd = merged(config_map("a"), json!({"datas": {"a": "b"}}));
    let strict = api.post(&format!("{CONFIG_MAPS}?fieldValidation=Strict"), &odd).await.refused(400);
    assert_eq!(
        strict,
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"datas\""
    );
    let warned = api.post(CONFIG_MAPS, &odd).await;
    assert_eq!(warned.headers["warning"], "299 - \"unknown field \\\"datas\\\"\"");
    assert!(warned.code(201).get("datas").is_none());
    let silent = api.put(&format!("{CONFIG_MAPS}/a?fieldValidation=Ignore"), &odd).await;
    assert!(silent.headers.get("warning").is_none());
    silent.code(200);
    let unknown = api.post(&format!("{CONFIG_MAPS}?fieldValidation=Maybe"), &odd).await.refused(422);
    assert!(unknown.contains("fieldValidation: Unsupported value: \"Maybe\""), "{unknown}");
    let broken = api.with(Method::POST, CONFIG_MAPS, &[("content-type", "application/json")], "{").await;
    broken.refused(400);
    let text = api.with(Method::POST, CONFIG_MAPS, &[("content-type", "text/plain")], "x").await;
    assert!(text.refused(415).starts_with("the body of the request was in an unknown format"));
}

#[tokio::test]
async fn update() {
    over_both(|api| async move {
        let uri = format!("{CONFIG_MAPS}/a");
        let made = api.post(CONFIG_MAPS, &config_map("a")).await.code(201);
        let changed = merged(made.clone(), json!({"data": {"a": "2"}}));
        let written = api.put(&uri, &changed).await.code(200);
        assert_eq!(written["data"]["a"], "2");
        assert_ne!(written["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
        assert_eq!(written["metadata"]["uid"], made["metadata"]["uid"]);
        assert_eq!(
            api.put(&uri, &changed).await.refused(409),
            "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes \
             to the latest version and try again"
        );
        // Without a revision the write is unconditional; without a change it does not happen.
        let same = merged(written.clone(), json!({"metadata": {"resourceVersion": null}}));
        assert_eq!(api.put(&uri, &same).await.code(200), written);
        let other = merged(same.clone(), json!({"metadata": {"uid": "x"}}));
        assert!(api.put(&uri, &other).await.refused(409).contains("Precondition failed: UID in precondition: x"));
        let renamed = merged(same, json!({"metadata": {"name": "b"}}));
        assert_eq!(
            api.put(&uri, &renamed).await.refused(400),
            "the name of the object (b) does not match the name on the URL (a)"
        );
        assert_eq!(api.put(&format!("{CONFIG_MAPS}/z"), &config_map("z")).await.refused(404), "configmaps \"z\" not found");
    })
    .await;
}

#[tokio::test]
async fn status_and_spec_are_separate() {
    let api = Api::local(server().await);
    let uri = format!("{PODS}/p");
    api.post(PODS, &merged(pod("p"), json!({"status": {"phase": "Running"}}))).await.code(201);
    let stored = api.get(&uri).await.code(200);
    assert_ne!(stored["status"]["phase"], "Running");
    let status = json!({"status": {"phase": "Running"}, "spec": {"nodeName": "n"}});
    let written = api.patch(&format!("{uri}/status"), "merge-patch+json", &status).await.code(200);
    assert_eq!((&written["status"]["phase"], &written["spec"]["nodeName"]), (&json!("Running"), &Value::Null));
    let back = api.patch(&uri, "merge-patch+json", &json!({"status": {"phase": "Failed"}})).await.code(200);
    assert_eq!(back["status"]["phase"], "Running");
}

#[tokio::test]
async fn generation_follows_the_spec() {
    let api = Api::local(server().await);
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let labels = json!({"app": "d"});
    let deployment = json!({
        "kind": "Deployment", "apiVersion": "apps/v1", "metadata": {"name": "d"},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels},
                 "spec": {"containers": [{"name": "c", "image": "i"}]}}},
    });
    let uri = format!("{deployments}/d");
    assert_eq!(api.post(deployments, &deployment).await.code(201)["metadata"]["generation"], 1);
    let patch = |body: Value| {
        let (api, uri) = (&api, &uri);
        async move { api.patch(uri, "merge-patch+json", &body).await }
    };
    assert_eq!(patch(json!({"metadata": {"labels": {"a": "b"}}})).await.code(200)["metadata"]["generation"], 1);
    assert_eq!(patch(json!({"spec": {"replicas": 2}})).await.code(200)["metadata"]["generation"], 2);
    let status = json!({"status": {"replicas": 2}});
    let written = api.patch(&format!("{uri}/status"), "merge-patch+json", &status).await.code(200);
    assert_eq!((&written["metadata"]["generation"], &written["status"]["replicas"]), (&json!(2), &json!(2)));
}

#[tokio::test]
async fn patches() {
    over_both(|api| async move {
        let uri = format!("{PODS}/p");
        api.post(PODS, &pod("p")).await.code(201);
        let json_patch = json!([{"op": "add", "path": "/metadata/labels/x", "value": "y"}]);
        let patched = api.patch(&uri, "json-patch+json", &json_patch).await.code(200);
        assert_eq!(patched["metadata"]["labels"], json!({"app": "p", "x": "y"}));
        let strategic = json!({"spec": {"containers": [{"name": "c", "image": "j"}]}});
        let patched = api.patch(&uri, "strategic-merge-patch+json", &strategic).await.code(200);
        assert_eq!(patched["spec"]["containers"].as_array().map(Vec::len), Some(1));
        assert_eq!(patched["spec"]["containers"][0]["image"], "j");
        let merge = json!({"metadata": {"labels": {"x": null}}});
        assert_eq!(
            api.patch(&uri, "merge-patch+json", &merge).await.code(200)["metadata"]["labels"],
            json!({"app": "p"})
        );
        let failing = json!([{"op": "test", "path": "/metadata/name", "value": "q"}]);
        api.patch(&uri, "json-patch+json", &failing).await.refused(422);
        api.patch(&uri, "json", &merge).await.refused(415);
        let stale = json!({"metadata": {"resourceVersion": "1", "labels": {"a": "b"}}});
        api.patch(&uri, "merge-patch+json", &stale).await.refused(409);
        api.patch(&format!("{PODS}/q"), "merge-patch+json", &merge).await.refused(404);
    })
    .await;
}

#[tokio::test]
async fn server_side_apply() {
    let api = Api::local(server().await);
    let uri = |manager: &str| format!("{CONFIG_MAPS}/a?fieldManager={manager}");
    let applied = json!({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "a"}, "data": {"x": "1"}});
    api.patch(&uri("one"), "apply-patch+yaml", &applied).await.code(201);
    let again = api.patch(&uri("one"), "apply-patch+yaml", &applied).await.code(200);
    let other = merged(applied.clone(), json!({"data": {"x": null, "y": "2"}}));
    let both = api.patch(&uri("two"), "apply-patch+yaml", &other).await.code(200);
    assert_eq!(both["data"], json!({"x": "1", "y": "2"}));
    assert_ne!(both["metadata"]["resourceVersion"], again["metadata"]["resourceVersion"]);
    let contested = merged(applied, json!({"data": {"x": "9"}}));
    let conflict = api.patch(&uri("two"), "apply-patch+yaml", &contested).await.refused(409);
    assert!(conflict.starts_with("Apply failed with 1 conflict: conflict with \"one\""), "{conflict}");
    let forced = api.patch(&(uri("two") + "&force=true"), "apply-patch+yaml", &contested).await.code(200);
    assert_eq!(forced["data"], json!({"x": "9"}));
    let nameless = api.patch(&format!("{CONFIG_MAPS}/a"), "apply-patch+yaml", &contested).await.refused(422);
    assert!(nameless.contains("fieldManager: Required value: is required for apply patch"), "{nameless}");
}

#[tokio::test]
async fn deletion() {
    over_both(|api| async move {
        let uri = format!("{CONFIG_MAPS}/a");
        let made = api.post(CONFIG_MAPS, &config_map("a")).await.code(201);
        let wrong = json!({"preconditions": {"uid": "x"}});
        assert!(api.delete(&uri, &wrong).await.refused(409).contains("Precondition failed: UID in precondition: x"));
        let status = api.delete(&uri, &json!({})).await.code(200);
        let uid = &made["metadata"]["uid"];
        assert_eq!(status["status"], "Success");
        assert_eq!(status["details"], json!({"name": "a", "kind": "configmaps", "uid": uid}));
        api.get(&uri).await.refused(404);

        let held = merged(config_map("b"), json!({"metadata": {"finalizers": ["example.com/x"]}}));
        let uri = format!("{CONFIG_MAPS}/b");
        api.post(CONFIG_MAPS, &held).await.code(201);
        let going = api.delete(&uri, &json!({})).await.code(200);
        assert!(going["metadata"]["deletionTimestamp"].is_string());
        assert_eq!(api.get(&uri).await.code(200)["metadata"]["deletionGracePeriodSeconds"], 0);
        let released = json!({"metadata": {"finalizers": null}});
        api.patch(&uri, "merge-patch+json", &released).await.code(200);
        api.get(&uri).await.refused(404);

        for name in ["c", "d", "e"] {
            api.post(CONFIG_MAPS, &merged(config_map(name), json!({"metadata": {"labels": {"n": name}}})))
                .await
                .code(201);
        }
        let some = api.delete(&format!("{CONFIG_MAPS}?labelSelector=n+in+(c,d)"), &json!({})).await.code(200);
        assert_eq!(names(&some), ["c", "d"]);
        assert_eq!(names(&api.get(CONFIG_MAPS).await.code(200)), ["e"]);
    })
    .await;
}

#[tokio::test]
async fn dry_runs_change_nothing() {
    let api = Api::local(server().await);
    let made = api.post(&format!("{CONFIG_MAPS}?dryRun=All"), &config_map("a")).await.code(201);
    assert!(made["metadata"]["uid"].is_string() && made["metadata"].get("resourceVersion").is_none(), "{made}");
    api.get(&format!("{CONFIG_MAPS}/a")).await.refused(404);
    let stored = api.post(CONFIG_MAPS, &config_map("a")).await.code(201);
    let patch = json!({"data": {"a": "2"}});
    let would = api.patch(&format!("{CONFIG_MAPS}/a?dryRun=All"), "merge-patch+json", &patch).await.code(200);
    assert_eq!(would["data"]["a"], "2");
    api.delete(&format!("{CONFIG_MAPS}/a?dryRun=All"), &json!({})).await.code(200);
    assert_eq!(api.get(&format!("{CONFIG_MAPS}/a")).await.code(200), stored);
    api.post(&format!("{CONFIG_MAPS}?dryRun=Some"), &config_map("b")).await.refused(422);
}

#[tokio::test]
async fn lists_and_pages() {
    over_both(|api| async move {
        for name in ["a", "b", "c", "d", "e"] {
            api.post(CONFIG_MAPS, &merged(config_map(name), json!({"metadata": {"labels": {"n": name}}})))
                .await
                .code(201);
        }
        let all = api.get(CONFIG_MAPS).await.code(200);
        assert_eq!((&all["kind"], &all["apiVersion"]), (&json!("ConfigMapList"), &json!("v1")));
        assert_eq!(names(&all), ["a", "b", "c", "d", "e"]);
        // Items of a typed list do not repeat their type.
        assert!(all["items"][0].get("kind").is_none() && all["items"][0].get("apiVersion").is_none());

        let first = api.get(&format!("{CONFIG_MAPS}?limit=2")).await.code(200);
        assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["a", "b"], &json!(3)));
        // A page shows the state the first one saw.
        api.delete(&format!("{CONFIG_MAPS}/d"), &json!({})).await.code(200);
        let token = first["metadata"]["continue"].as_str().expect("a token");
        let second = api.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await.code(200);
        assert_eq!(names(&second), ["c", "d"]);
        assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
        let token = second["metadata"]["continue"].as_str().expect("a token");
        let last = api.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await.code(200);
        assert_eq!((names(&last), last["metadata"].get("continue")), (vec!["e"], None));

        for (query, expected) in [
            ("labelSelector=n%3Da", vec!["a"]),
            ("labelSelector=n+notin+(a,b)", vec!["c", "e"]),
            ("fieldSelector=metadata.name%3Dc", vec!["c"]),
            ("fieldSelector=metadata.name!%3Dc&labelSelector=n", vec!["a", "b", "e"]),
            ("labelSelector=n+in+(b,c,e)&limit=2", vec!["b", "c"]),
        ] {
            assert_eq!(names(&api.get(&format!("{CONFIG_MAPS}?{query}")).await.code(200)), expected, "{query}");
        }
        api.get(&format!("{CONFIG_MAPS}?fieldSelector=spec.x%3D1")).await.refused(400);
        api.get(&format!("{CONFIG_MAPS}?labelSelector=a%3D%3D%3D")).await.refused(400);
        api.get(&format!("{CONFIG_MAPS}?continue=nonsense")).await.refused(400);
        assert_eq!(names(&api.get("/api/v1/configmaps").await.code(200)), ["a", "b", "c", "e"]);
        assert_eq!(names(&api.get("/api/v1/namespaces/other/configmaps").await.code(200)), [""; 0]);
    })
    .await;
}

#[tokio::test]
async fn a_list_at_a_revision() {
    let api = Api::local(server().await);
    let first = api.post(CONFIG_MAPS, &config_map("a")).await.code(201);
    api.post(CONFIG_MAPS, &config_map("b")).await.code(201);
    let revision = first["metadata"]["resourceVersion"].as_str().expect("a revision").to_owned();
    let exact = format!("{CONFIG_MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact");
    assert_eq!(names(&api.get(&exact).await.code(200)), ["a"]);
    let newer = format!("{CONFIG_MAPS}?resourceVersion={revision}&resourceVersionMatch=NotOlderThan");
    assert_eq!(names(&api.get(&newer).await.code(200)), ["a", "b"]);
    assert_eq!(names(&api.get(&format!("{CONFIG_MAPS}?resourceVersion=0")).await.code(200)), ["a", "b"]);
    let unruly = api.get(&format!("{CONFIG_MAPS}?resourceVersionMatch=Exact")).await.refused(422);
    assert!(unruly.contains("resourceVersionMatch is forbidden unless resourceVersion is provided"), "{unruly}");
    let future = api.get(&format!("{CONFIG_MAPS}?resourceVersion=999999999")).await.code(504);
    assert_eq!(future["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
}

#[tokio::test]
async fn forms_of_an_answer() {
    let api = Api::local(server().await);
    api.post(CONFIG_MAPS, &config_map("a")).await.code(201);
    let get = |uri: &str, accept: &'static str| {
        let (api, uri) = (api.clone(), uri.to_owned());
        async move { api.with(Method::GET, &uri, &[("accept", accept)], "").await }
    };
    let uri = format!("{CONFIG_MAPS}/a");
    let table = get(CONFIG_MAPS, "application/json;as=Table;v=v1;g=meta.k8s.io").await.code(200);
    assert_eq!((&table["kind"], &table["rows"][0]["cells"][0]), (&json!("Table"), &json!("a")));
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let metadata = get(&uri, "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").await.code(200);
    assert_eq!((&metadata["kind"], metadata.get("data")), (&json!("PartialObjectMetadata"), None));
    let yaml = get(&uri, "application/yaml").await;
    assert!(String::from_utf8_lossy(&yaml.bytes).starts_with("apiVersion: v1\ndata:\n  a: "), "{:?}", yaml.bytes);
    let proto = get(&uri, "application/vnd.kubernetes.protobuf").await;
    assert_eq!(proto.headers["content-type"], "application/vnd.kubernetes.protobuf");
    assert!(proto.bytes.starts_with(b"k8s\0"));
    let list = get(CONFIG_MAPS, "application/vnd.kubernetes.protobuf").await;
    assert!(list.bytes.starts_with(b"k8s\0") && list.bytes.windows(13).any(|part| part == b"ConfigMapList"));
    get(&uri, "text/html").await.refused(406);
    let pretty = api.get(&format!("{uri}?pretty=true")).await;
    assert!(pretty.bytes.starts_with(b"{\n  \"kind\": \"ConfigMap\",\n  \"apiVersion\": \"v1\","));
    // What came as protobuf is stored like what came as JSON.
    let sent =
        api.with(Method::PUT, &uri, &[("content-type", "application/vnd.kubernetes.protobuf")], proto.bytes).await;
    assert_eq!(sent.code(200)["data"]["a"], "1");
}

#[tokio::test]
async fn large_answers_are_compressed_on_request() {
    let api = Api::local(server().await);
    let large = merged(config_map("a"), json!({"data": {"a": "x".repeat(300_000)}}));
    api.post(CONFIG_MAPS, &large).await.code(201);
    let zipped = api.with(Method::GET, CONFIG_MAPS, &[("accept-encoding", "gzip")], "").await;
    assert_eq!(zipped.headers["content-encoding"], "gzip");
    let mut text = String::new();
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&zipped.bytes[..]), &mut text).expect("gzip");
    assert_eq!(text.as_bytes(), &api.get(CONFIG_MAPS).await.bytes[..]);
    let small = api.with(Method::GET, "/api/v1/namespaces", &[("accept-encoding", "gzip")], "").await;
    assert!(small.headers.get("content-encoding").is_none());
}

#[tokio::test]
async fn paths_that_lead_nowhere() {
    over_both(|api| async move {
        assert_eq!(&api.get("/nowhere").await.bytes[..], b"404 page not found\n");
        assert_eq!(&api.get("/apis/example.com/v1/things").await.bytes[..], b"404 page not found\n");
        assert_eq!(api.get("/api/v1/things").await.refused(404), "the server could not find the requested resource");
        assert_eq!(
            api.post("/api/v1/componentstatuses", &json!({})).await.refused(405),
            "the server does not allow this method on the requested resource"
        );
        let huge = vec![b' '; crate::body::REQUEST_LIMIT + 1];
        let refused = api.with(Method::POST, CONFIG_MAPS, &[("content-type", "application/json")], huge).await;
        assert!(refused.refused(413).starts_with("Request entity too large"));
    })
    .await;
}

#[tokio::test]
async fn discovery_and_health() {
    over_both(|api| async move {
        assert_eq!(api.get("/api").await.code(200)["versions"], json!(["v1"]));
        let core = api.get("/api/v1").await.code(200);
        let resources = core["resources"].as_array().expect("resources");
        let pods = resources.iter().find(|one| one["name"] == "pods").expect("pods");
        assert_eq!(
            (&pods["kind"], &pods["shortNames"], &pods["namespaced"]),
            (&json!("Pod"), &json!(["po"]), &json!(true))
        );
        assert!(resources.iter().any(|one| one["name"] == "pods/log"));
        let groups = api.get("/apis").await.code(200);
        assert!(groups["groups"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == "apps")));
        assert_eq!(api.get("/apis/apps").await.code(200)["preferredVersion"]["groupVersion"], "apps/v1");
        let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let all = api.with(Method::GET, "/apis", &[("accept", accept)], "").await;
        assert_eq!(all.headers["content-type"], accept);
        let tag = all.headers["etag"].to_str().expect("a tag").to_owned();
        assert_eq!(all.code(200)["kind"], "APIGroupDiscoveryList");
        let again = api.with(Method::GET, "/apis", &[("accept", accept), ("if-none-match", &tag)], "").await;
        assert_eq!((again.code, again.bytes.len()), (304, 0));
        assert_eq!(api.get("/version").await.code(200)["minor"], "37");
        for path in ["/livez", "/readyz", "/healthz", "/livez/ping"] {
            assert_eq!(&api.get(path).await.bytes[..], b"ok", "{path}");
        }
        let verbose = api.get("/readyz?verbose").await;
        assert!(String::from_utf8_lossy(&verbose.bytes).ends_with("readyz check passed\n"));
        let metrics = api.get("/metrics").await;
        assert!(String::from_utf8_lossy(&metrics.bytes).contains("apiserver_request_total{code=\"200\""));
        assert!(
            api.get("/").await.code(200)["paths"]
                .as_array()
                .is_some_and(|paths| paths.contains(&json!("/apis/apps/v1")))
        );
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn events_are_kept_for_an_hour_after_they_were_last_written() {
    let server = server().await;
    let api = Api::local(server.clone());
    let clock = server.config.clock.clone();
    let reaper = task::spawn("expire", crate::expire::run(server));
    let events = "/api/v1/namespaces/default/events";
    let event = |name: &str| json!({"kind": "Event", "apiVersion": "v1", "metadata": {"name": name}, "involvedObject": {"namespace": "default"}});
    api.post(events, &event("a")).await.code(201);
    api.post(events, &event("b")).await.code(201);
    clock.sleep(Duration::from_secs(1800)).await;
    api.patch(&format!("{events}/b"), "merge-patch+json", &json!({"count": 2})).await.code(200);
    clock.sleep(Duration::from_secs(1900)).await;
    assert_eq!(names(&api.get(events).await.code(200)), ["b"]);
    clock.sleep(Duration::from_secs(1800)).await;
    assert_eq!(names(&api.get(events).await.code(200)), [""; 0]);
    reaper.abort();
}
