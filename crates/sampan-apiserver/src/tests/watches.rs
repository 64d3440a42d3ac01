//! Watches: what comes, in which order, at what price.

use super::*;

#[tokio::test]
async fn a_watch_shows_every_change_in_order() {
    for remote in [false, true] {
        let server = server().await;
        let api = if remote { Api::remote(server).await } else { Api::local(server) };
        let list = api.get(CONFIG_MAPS).await.code(200);
        let revision = list["metadata"]["resourceVersion"].as_str().expect("a revision").to_owned();
        let mut watch = api.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={revision}")).await;
        api.post(CONFIG_MAPS, &config_map("a")).await.code(201);
        let uri = format!("{CONFIG_MAPS}/a");
        let changed = api.patch(&uri, "merge-patch+json", &json!({"data": {"a": "2"}})).await.code(200);
        api.post("/api/v1/namespaces/other/configmaps", &config_map("x")).await.code(201);
        api.delete(&uri, &json!({})).await.code(200);
        assert_eq!(watch.next_name().await.as_deref(), Some("ADDED a"));
        let modified = watch.next().await.expect("a frame");
        assert_eq!((&modified["type"], &modified["object"]), (&json!("MODIFIED"), &changed));
        let deleted = watch.next().await.expect("a frame");
        assert_eq!((&deleted["type"], &deleted["object"]["data"]), (&json!("DELETED"), &json!({"a": "2"})));
        let number =
            |value: &Value| value["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok());
        assert!(number(&deleted["object"]) > number(&changed), "a deletion has a revision of its own");
    }
}

#[tokio::test]
async fn selectors_turn_changes_into_arrivals_and_departures() {
    let api = Api::local(server().await);
    let label = |value: &str| json!({"metadata": {"labels": {"app": value}}});
    let labelled = |name: &str, value: &str| {
        let mut object = config_map(name);
        object["metadata"]["labels"] = json!({"app": value});
        object
    };
    api.post(CONFIG_MAPS, &labelled("a", "web")).await.code(201);
    let mut watch = api.watch(&format!("{CONFIG_MAPS}?watch=1&labelSelector=app%3Dweb")).await;
    assert_eq!(watch.next_name().await.as_deref(), Some("ADDED a"));
    let uri = format!("{CONFIG_MAPS}/a");
    let left = api.patch(&uri, "merge-patch+json", &label("db")).await.code(200);
    let gone = watch.next().await.expect("a frame");
    assert_eq!((&gone["type"], &gone["object"]["metadata"]["labels"]["app"]), (&json!("DELETED"), &json!("web")));
    assert_eq!(gone["object"]["metadata"]["resourceVersion"], left["metadata"]["resourceVersion"]);
    api.patch(&uri, "merge-patch+json", &json!({"data": {"a": "3"}})).await.code(200);
    api.patch(&uri, "merge-patch+json", &label("web")).await.code(200);
    assert_eq!(watch.next_name().await.as_deref(), Some("ADDED a"));
    api.delete(&uri, &json!({})).await.code(200);
    assert_eq!(watch.next_name().await.as_deref(), Some("DELETED a"));
}

#[tokio::test]
async fn who_is_left_sees_the_old_state_and_who_stays_the_new_one() {
    let api = Api::local(server().await);
    let mut object = config_map("a");
    object["metadata"]["labels"] = json!({"app": "web"});
    api.post(CONFIG_MAPS, &object).await.code(201);
    let open = |query: &str| {
        let accept = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
        let request = Request::get(format!("{CONFIG_MAPS}?watch=1{query}")).header("accept", accept).body(Bytes::new());
        api.0.send(request.expect("a request"))
    };
    let mut watches = Vec::new();
    // In either order of making the form.
    for query in ["", "&labelSelector=app%3Dweb", ""] {
        let body = open(query).await.expect("a response").into_body();
        watches.push(Frames { body, buffer: Vec::new() });
    }
    for watch in &mut watches {
        assert_eq!(watch.next_name().await.as_deref(), Some("ADDED a"));
    }
    let label = json!({"metadata": {"labels": {"app": "db"}}});
    api.patch(&format!("{CONFIG_MAPS}/a"), "merge-patch+json", &label).await.code(200);
    let mut seen = Vec::new();
    for watch in &mut watches {
        let frame = watch.next().await.expect("a frame");
        let app = frame["object"]["metadata"]["labels"]["app"].as_str().unwrap_or_default().to_owned();
        seen.push((frame["type"].as_str().unwrap_or_default().to_owned(), app));
    }
    let expected = [("MODIFIED", "db"), ("DELETED", "web"), ("MODIFIED", "db")];
    assert_eq!(seen, expected.map(|(kind, app)| (kind.to_owned(), app.to_owned())));
}

#[tokio::test]
async fn a_streamed_list_ends_with_a_bookmark() {
    let api = Api::local(server().await);
    api.post(CONFIG_MAPS, &config_map("a")).await.code(201);
    api.post(CONFIG_MAPS, &config_map("b")).await.code(201);
    let uri = format!(
        "{CONFIG_MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&timeoutSeconds=1"
    );
    let mut watch = api.watch(&uri).await;
    assert_eq!(watch.next_name().await.as_deref(), Some("ADDED a"));
    assert_eq!(watch.next_name().await.as_deref(), Some("ADDED b"));
    let bookmark = watch.next().await.expect("a frame");
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    // At its end a watch says how far it has seen.
    api.post("/api/v1/namespaces/other/configmaps", &config_map("x")).await.code(201);
    let last = watch.next().await.expect("a frame");
    let number = |value: &Value| {
        value["object"]["metadata"]["resourceVersion"].as_str().and_then(|text| text.parse::<u64>().ok())
    };
    assert_eq!(last["type"], "BOOKMARK");
    assert!(number(&last) > number(&bookmark));
    assert!(watch.next().await.is_none());
    api.get(&format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true")).await.refused(422);
}

#[tokio::test]
async fn a_revision_that_is_gone_says_so_in_the_first_frame() {
    let history = History { bytes: 2_000, age: Duration::from_secs(300) };
    let api = Api::local(server_with(history, |_| {}).await);
    for index in 0..40 {
        api.post(CONFIG_MAPS, &config_map(&format!("a{index}"))).await.code(201);
    }
    let mut watch = api.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=2")).await;
    let frame = watch.next().await.expect("a frame");
    assert_eq!((&frame["type"], &frame["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(frame["object"]["reason"], "Expired");
    assert!(watch.next().await.is_none());
    let first = api.get(&format!("{CONFIG_MAPS}?limit=3")).await.code(200);
    for index in 0..40 {
        api.patch(&format!("{CONFIG_MAPS}/a{index}"), "merge-patch+json", &json!({"data": {"a": "2"}})).await.code(200);
    }
    let token = first["metadata"]["continue"].as_str().expect("a token");
    let expired = api.get(&format!("{CONFIG_MAPS}?limit=3&continue={token}")).await.code(410);
    assert_eq!(expired["reason"], "Expired");
    let token = expired["metadata"]["continue"].as_str().expect("a token to go on with");
    let rest = api.get(&format!("{CONFIG_MAPS}?continue={token}")).await.code(200);
    assert_eq!(rest["items"].as_array().map(Vec::len), Some(37));
}

#[tokio::test]
async fn other_forms_are_made_once_for_all_watchers() {
    let server = server().await;
    let api = Api::local(server.clone());
    let revision =
        api.get(CONFIG_MAPS).await.code(200)["metadata"]["resourceVersion"].as_str().expect("one").to_owned();
    let uri = format!("{CONFIG_MAPS}?watch=1&resourceVersion={revision}");
    let open = |accept: &'static str| {
        let request = Request::get(&uri).header("accept", accept).body(Bytes::new()).expect("a request");
        api.0.send(request)
    };
    let mut proto = Vec::new();
    let mut plain = Vec::new();
    for _ in 0..20 {
        proto.push(open("application/vnd.kubernetes.protobuf").await.expect("a response").into_body());
        plain.push(open("application/json").await.expect("a response").into_body());
    }
    let before = server.encodings();
    for index in 0..5 {
        api.post(CONFIG_MAPS, &config_map(&format!("a{index}"))).await.code(201);
    }
    for body in &mut proto {
        for index in 0..5 {
            let frame = body.next().await.expect("a frame").expect("a chunk");
            assert_eq!(frame[..4], u32::try_from(frame.len() - 4).expect("short").to_be_bytes());
            assert!(frame.windows(2).any(|part| part == format!("a{index}").as_bytes()));
        }
    }
    assert_eq!(server.encodings() - before, 5, "once an object, however many watch");
    for body in &mut plain {
        body.next().await.expect("a frame").expect("a chunk");
    }
    api.get(CONFIG_MAPS).await.code(200);
    assert_eq!(server.encodings() - before, 5, "the stored bytes need no encoding");
}

#[tokio::test]
async fn tables_and_metadata_can_be_watched() {
    let api = Api::local(server().await);
    api.post(CONFIG_MAPS, &config_map("a")).await.code(201);
    api.post(CONFIG_MAPS, &config_map("b")).await.code(201);
    let open = |accept: &'static str| {
        let request = Request::get(format!("{CONFIG_MAPS}?watch=1")).header("accept", accept).body(Bytes::new());
        api.0.send(request.expect("a request"))
    };
    let tables = open("application/json;as=Table;v=v1;g=meta.k8s.io").await.expect("a response").into_body();
    let mut tables = Frames { body: tables, buffer: Vec::new() };
    let (first, second) = (tables.next().await.expect("a frame"), tables.next().await.expect("a frame"));
    assert!(first["object"]["columnDefinitions"].is_array() && second["object"]["columnDefinitions"].is_null());
    assert_eq!(second["object"]["rows"][0]["cells"][0], "b");
    let metadata = open("application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").await.expect("a response");
    let mut metadata = Frames { body: metadata.into_body(), buffer: Vec::new() };
    let frame = metadata.next().await.expect("a frame");
    assert_eq!((&frame["object"]["kind"], frame["object"].get("data")), (&json!("PartialObjectMetadata"), None));
}

#[tokio::test]
async fn a_change_of_kinds_ends_its_watches() {
    let server = server().await;
    let api = Api::local(server.clone());
    let mut watch = api.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    let kinds = server.kinds();
    let rest = kinds.all.iter().filter(|kind| kind.resource != "configmaps").cloned().collect();
    server.set_kinds(Arc::new(sampan_api::Kinds::new(rest, 1)));
    assert!(watch.next().await.is_none());
    api.get(CONFIG_MAPS).await.refused(404);
}
