use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::testing;

fn schema() -> (Schema, TypeId) {
    testing::object_schema(json!({"fields": {
        "replicas": "int",
        "paused": "bool",
        "template": {"fields": {"image": "string", "note": "string"}},
        "args": {"list": "string"},
        "zones": {"list": "string", "kind": "set"},
        "selector": {"map": "string", "atomic": true},
        "free": "any",
        "ports": {"kind": ["port", "protocol"], "list": {"fields": {
            "port": "int", "protocol": {"type": "string", "default": "TCP"}, "name": "string"}}},
        "containers": {"kind": ["name"], "list": {"fields": {
            "name": "string", "image": "string", "env": {"kind": ["name"], "list": {"fields": {
                "name": "string", "value": "string"}}}}}},
    }}))
}

const AT: &str = "2030-01-01T00:00:00Z";

fn writer(manager: &str) -> Writer<'_> {
    let now = AT.parse().expect("a timestamp");
    Writer { manager, api_version: "v1", subresource: "", now, reset_fields: &["status"] }
}

fn later(manager: &str) -> Writer<'_> {
    Writer { now: "2030-01-01T01:00:00Z".parse().expect("a timestamp"), ..writer(manager) }
}

fn config(spec: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Thing", "metadata": {"name": "a"}, "spec": spec})
}

fn applied(live: Option<&Value>, manager: &str, spec: Value, force: bool) -> Result<Value, ApplyError> {
    let (schema, root) = schema();
    apply(&schema, root, live, &config(spec), &writer(manager), force)
}

#[track_caller]
fn must(live: Option<&Value>, manager: &str, spec: Value) -> Value {
    applied(live, manager, spec, false).expect("applies")
}

/// Stores `spec` with an update by `manager`.
fn written(live: Option<&Value>, manager: &str, spec: Value) -> Value {
    let (schema, root) = schema();
    let mut new = live.cloned().unwrap_or_else(|| config(json!({})));
    new["spec"] = spec;
    new["metadata"]["uid"] = "u".into();
    track(&schema, root, live, &mut new, &writer(manager)).expect("tracks");
    new
}

/// The fields that `manager` has by `operation`.
fn fields(object: &Value, manager: &str, operation: &str) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    let mut own = entries.filter(|entry| entry["manager"] == manager && entry["operation"] == operation);
    let found = own.next().map_or(Value::Null, |entry| entry["fieldsV1"].clone());
    assert!(own.next().is_none(), "one entry a manager");
    found
}

#[track_caller]
fn conflicts(outcome: Result<Value, ApplyError>) -> Vec<String> {
    match outcome.expect_err("conflicts") {
        ApplyError::Conflicts(conflicts) => conflicts.iter().map(Conflict::field).collect(),
        other => panic!("{other}"),
    }
}

#[test]
fn apply_creates_and_records() {
    let spec = json!({
        "replicas": 1, "args": ["x"], "selector": {"a": "b"}, "zones": ["z"], "free": {"a": {"b": 1}, "l": [1]},
        "ports": [{"port": 80, "name": "web"}],
        "containers": [{"name": "c", "env": [{"name": "E", "value": "1"}]}],
    });
    let object = must(None, "me", spec.clone());
    assert_eq!(object["spec"], spec);
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{
            "manager": "me", "operation": "Apply", "apiVersion": "v1", "time": AT, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {
                "f:args": {}, "f:replicas": {}, "f:selector": {}, "f:zones": {"v:\"z\"": {}},
                "f:free": {"f:a": {".": {}, "f:b": {}}, "f:l": {}},
                "f:ports": {"k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:name": {}, "f:port": {}}},
                "f:containers": {"k:{\"name\":\"c\"}": {
                    ".": {}, "f:name": {}, "f:env": {"k:{\"name\":\"E\"}": {".": {}, "f:name": {}, "f:value": {}}}}},
            }},
        }])
    );
}

#[test]
fn what_is_no_longer_applied_goes() {
    let first = json!({
        "replicas": 1, "template": {"image": "i", "note": "n"}, "zones": ["a", "b"],
        "ports": [{"port": 80}, {"port": 81}], "containers": [{"name": "c", "image": "i"}, {"name": "d", "image": "i"}],
    });
    let object = must(None, "me", first);
    let second =
        json!({"template": {"image": "i"}, "zones": ["b"], "ports": [{"port": 81}], "containers": [{"name": "c"}]});
    assert_eq!(must(Some(&object), "me", second.clone())["spec"], second);
    // What another one has too stays.
    let shared = must(Some(&object), "other", json!({"replicas": 1, "containers": [{"name": "d", "image": "i"}]}));
    let spec = must(Some(&shared), "me", second)["spec"].clone();
    assert_eq!(spec["replicas"], 1);
    assert_eq!(spec["containers"], json!([{"name": "c"}, {"name": "d", "image": "i"}]));
    // What nobody has stays as well.
    let object = written(Some(&object), "editor", {
        let mut spec = object["spec"].clone();
        spec["paused"] = true.into();
        spec
    });
    assert_eq!(must(Some(&object), "me", json!({}))["spec"], json!({"paused": true}));
}

#[test]
fn conflicts_name_managers_and_fields() {
    let object = written(None, "editor", json!({"replicas": 1, "containers": [{"name": "c", "image": "i"}]}));
    let object = must(Some(&object), "one", json!({"paused": true}));
    let spec = json!({"replicas": 2, "paused": false, "containers": [{"name": "c", "image": "j"}]});
    let outcome = applied(Some(&object), "two", spec.clone(), false);
    let failure = outcome.clone().expect_err("conflicts").into_failure("", "things", "a");
    assert_eq!(
        failure.message,
        "Apply failed with 3 conflicts: conflicts with \"editor\" using v1:\n- .spec.replicas\n- \
         .spec.containers[name=\"c\"].image\nconflicts with \"one\":\n- .spec.paused"
    );
    let status = failure.to_status();
    assert_eq!((failure.code, &status["reason"]), (409, &json!("Conflict")));
    assert_eq!(
        status["details"]["causes"][0],
        json!({"reason": "FieldManagerConflict", "message": "conflict with \"one\"", "field": ".spec.paused"})
    );
    let forced = applied(Some(&object), "two", spec.clone(), true).expect("forced");
    assert_eq!(forced["spec"], spec);
    assert_eq!(fields(&forced, "one", "Apply"), Value::Null);
    assert_eq!(
        fields(&forced, "editor", "Update")["f:spec"]["f:containers"]["k:{\"name\":\"c\"}"],
        json!({".": {}, "f:name": {}})
    );
    // The same value is no conflict: both manage it.
    let spec = json!({"replicas": 1});
    let both = must(Some(&object), "two", spec);
    assert_eq!(fields(&both, "two", "Apply"), json!({"f:spec": {"f:replicas": {}}}));
    let message = applied(Some(&both), "three", json!({"paused": false}), false).expect_err("conflicts").to_string();
    assert_eq!(message, "Apply failed with 1 conflict: conflict with \"one\": .spec.paused");
}

#[test]
fn atomic_fields_are_owned_whole() {
    let object = must(None, "one", json!({"args": ["a"], "selector": {"a": "b"}}));
    let outcome = applied(Some(&object), "two", json!({"args": ["a", "b"], "selector": {"c": "d"}}), false);
    assert_eq!(conflicts(outcome), [".spec.args", ".spec.selector"]);
    let forced = applied(Some(&object), "two", json!({"selector": {"c": "d"}}), true).expect("forced");
    assert_eq!(forced["spec"], json!({"args": ["a"], "selector": {"c": "d"}}));
}

#[test]
fn keyed_items_merge_in_the_applied_order() {
    let object = must(None, "one", json!({"containers": [{"name": "a"}, {"name": "b", "image": "i"}, {"name": "c"}]}));
    let object = must(Some(&object), "two", json!({"containers": [{"name": "x"}, {"name": "c"}, {"name": "b"}]}));
    assert_eq!(
        object["spec"]["containers"],
        json!([{"name": "a"}, {"name": "x"}, {"name": "c"}, {"name": "b", "image": "i"}])
    );
    let keys = ["k:{\"name\":\"b\"}", "k:{\"name\":\"c\"}", "k:{\"name\":\"x\"}"];
    let own = fields(&object, "two", "Apply")["f:spec"]["f:containers"].clone();
    assert_eq!(own.as_object().expect("items").keys().collect::<Vec<_>>(), keys);
}

#[test]
fn updates_are_tracked() {
    let object = written(None, "creator", json!({"replicas": 1, "template": {"image": "i"}, "zones": ["a"]}));
    assert_eq!(
        object["metadata"]["managedFields"],
        json!([{
            "manager": "creator", "operation": "Update", "apiVersion": "v1", "time": AT, "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {
                ".": {}, "f:replicas": {}, "f:template": {".": {}, "f:image": {}}, "f:zones": {".": {}, "v:\"a\"": {}}}},
        }])
    );
    let object = written(Some(&object), "scaler", json!({"replicas": 2, "template": {"image": "i"}}));
    assert_eq!(fields(&object, "scaler", "Update"), json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(
        fields(&object, "creator", "Update"),
        json!({"f:spec": {".": {}, "f:template": {".": {}, "f:image": {}}}})
    );
    // A status write is an entry of its own.
    let (schema, root) = schema();
    let mut status = object.clone();
    status["status"] = json!({"phase": "Good"});
    let through_status = Writer { subresource: "status", reset_fields: &["spec"], ..writer("scaler") };
    track(&schema, root, Some(&object), &mut status, &through_status).expect("tracks");
    let entries = status["metadata"]["managedFields"].as_array().expect("entries");
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[2]["fieldsV1"], json!({"f:status": {".": {}, "f:phase": {}}}));
    assert_eq!(entries[2]["subresource"], "status");
}

#[test]
fn times_move_only_with_the_fields() {
    let (schema, root) = schema();
    let object = written(None, "one", json!({"replicas": 1}));
    let mut same = object.clone();
    track(&schema, root, Some(&object), &mut same, &later("one")).expect("tracks");
    assert_eq!(same, object);
    let first = must(None, "one", json!({"replicas": 1}));
    let again = apply(&schema, root, Some(&first), &config(json!({"replicas": 1})), &later("one"), false);
    assert_eq!(again, Ok(first.clone()));
    let more =
        apply(&schema, root, Some(&first), &config(json!({"replicas": 2})), &later("one"), false).expect("applies");
    assert_eq!(more["metadata"]["managedFields"][0]["time"], "2030-01-01T01:00:00Z");
}

#[test]
fn clients_may_leave_out_or_reset_managed_fields() {
    let (schema, root) = schema();
    let object = written(None, "one", json!({"replicas": 1}));
    let mut ignorant = object.clone();
    ignorant["metadata"].as_object_mut().expect("metadata").remove("managedFields");
    track(&schema, root, Some(&object), &mut ignorant, &writer("one")).expect("tracks");
    assert_eq!(ignorant, object);
    for reset in [json!([]), json!([{}])] {
        let mut new = object.clone();
        new["metadata"]["managedFields"] = reset;
        track(&schema, root, Some(&object), &mut new, &writer("one")).expect("tracks");
        assert_eq!(new["metadata"].get("managedFields"), None);
        // Not tracked any more, until someone applies.
        let mut next = new.clone();
        next["spec"]["replicas"] = 3.into();
        track(&schema, root, Some(&new), &mut next, &writer("one")).expect("tracks");
        assert_eq!(next["metadata"].get("managedFields"), None);
        let outcome = applied(Some(&next), "two", json!({"replicas": 4}), false);
        let message = outcome.expect_err("conflicts").to_string();
        let expected = "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .spec.replicas";
        assert_eq!(message, expected);
    }
}

#[test]
fn client_side_apply_is_taken_over_by_kubectl() {
    let (schema, root) = schema();
    let mut object = config(json!({"replicas": 1, "paused": true}));
    let last = config(json!({"replicas": 1, "paused": true})).to_string() + "\n";
    object["metadata"]["annotations"] = json!({LAST_APPLIED: last});
    track(&schema, root, None, &mut object, &writer("kubectl-client-side-apply")).expect("tracks");
    assert_eq!(conflicts(applied(Some(&object), "someone", json!({"replicas": 2}), false)), [".spec.replicas"]);
    let taken = must(Some(&object), "kubectl", json!({"replicas": 2, "template": {"image": "a&b"}}));
    assert_eq!(taken["spec"], json!({"replicas": 2, "paused": true, "template": {"image": "a&b"}}));
    let memory = taken["metadata"]["annotations"][LAST_APPLIED].as_str().expect("kept");
    assert!(memory.ends_with("\"spec\":{\"replicas\":2,\"template\":{\"image\":\"a\\u0026b\"}}}\n"), "{memory}");
    // A field that has moved on since is no longer client-side apply's.
    object["spec"]["replicas"] = 7.into();
    assert_eq!(conflicts(applied(Some(&object), "kubectl", json!({"replicas": 2}), false)), [".spec.replicas"]);
}

#[test]
fn wrong_configurations_are_refused() {
    let (schema, root) = schema();
    for (spec, message) in [
        (json!({"bogus": 1}), ".spec.bogus: field not declared in schema"),
        (json!({"zones": ["a", "a"]}), ".spec.zones: duplicate entries for key [=\"a\"]"),
        (json!({"containers": [{"image": "i"}]}), ".spec.containers: element 0: associative list with keys has an"),
        (json!({"replicas": "one"}), ".spec.replicas: expected numeric (int or float), got \"one\""),
        (json!({"args": {}}), ".spec.args: expected list, got {}"),
    ] {
        let error = applied(None, "me", spec, false).expect_err(message).to_string();
        let start = "failed to create typed patch object (/a; v1, Kind=Thing): ";
        assert!(error.starts_with(&format!("{start}{message}")), "{error}");
    }
    let mut wrong = config(json!({}));
    wrong["metadata"]["managedFields"] = json!([]);
    let error = apply(&schema, root, None, &wrong, &writer("me"), false).expect_err("refused");
    assert_eq!(error.to_string(), "metadata.managedFields must be nil");
    wrong["apiVersion"] = "v2".into();
    let failure =
        apply(&schema, root, None, &wrong, &writer("me"), false).expect_err("refused").into_failure("", "", "");
    assert_eq!(failure.code, 400);
}

#[test]
fn status_cannot_be_owned_through_the_main_resource() {
    let (schema, root) = schema();
    let mut configuration = config(json!({"replicas": 1}));
    configuration["status"] = json!({"phase": "Good"});
    let object = apply(&schema, root, None, &configuration, &writer("me"), false).expect("applies");
    assert_eq!(fields(&object, "me", "Apply"), json!({"f:spec": {"f:replicas": {}}}));
}

#[test]
fn old_updates_are_merged() {
    let mut object = written(None, "m00", json!({"free": {"k00": 1}}));
    for index in 1..14 {
        let mut spec = object["spec"].clone();
        spec["free"][format!("k{index:02}")] = 1.into();
        object = written(Some(&object), &format!("m{index:02}"), spec);
    }
    let entries = object["metadata"]["managedFields"].as_array().expect("entries");
    assert_eq!(entries.len(), 10);
    let ancient = fields(&object, "ancient-changes", "Update");
    let ancient = ancient["f:spec"]["f:free"].as_object().expect("fields");
    assert_eq!(ancient.len(), 6, "a dot and five keys: {ancient:?}");
}

/// What a real API server records when `kubectl apply` creates a Deployment, its controller a Pod, and the kubelet
/// reports on it.
#[test]
fn built_in_kinds_are_recorded_as_upstream_records_them() {
    let kinds = crate::kind::builtin();
    let tracked = |kind: &crate::Kind, live: Option<&Value>, object: &Value, subresource: &str| {
        let mut new = object.clone();
        let version = kind.gvk.api_version();
        let writer = Writer { api_version: &version, subresource, reset_fields: &[], ..writer("m") };
        track(&kind.schema, kind.root, live, &mut new, &writer).expect("tracks");
        new
    };
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "nginx", "namespace": "default", "uid": "u", "generation": 1, "creationTimestamp": AT},
        "spec": {
            "progressDeadlineSeconds": 600, "replicas": 3, "revisionHistoryLimit": 10,
            "selector": {"matchLabels": {"app": "nginx"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {
                "metadata": {"labels": {"app": "nginx"}},
                "spec": {
                    "containers": [{
                        "name": "nginx", "image": "nginx", "imagePullPolicy": "Always", "resources": {},
                        "ports": [{"containerPort": 80, "protocol": "TCP"}],
                        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    }],
                    "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                    "securityContext": {}, "terminationGracePeriodSeconds": 30,
                },
            },
        },
        "status": {},
    });
    let kind = kinds.resource("apps", "v1", "deployments").expect("built in");
    let port = json!({".": {}, "f:containerPort": {}, "f:protocol": {}});
    assert_eq!(
        fields(&tracked(kind, None, &deployment, ""), "m", "Update"),
        json!({"f:spec": {
            "f:progressDeadlineSeconds": {}, "f:replicas": {}, "f:revisionHistoryLimit": {}, "f:selector": {},
            "f:strategy": {
                "f:rollingUpdate": {".": {}, "f:maxSurge": {}, "f:maxUnavailable": {}}, "f:type": {}},
            "f:template": {
                "f:metadata": {"f:labels": {".": {}, "f:app": {}}},
                "f:spec": {
                    "f:containers": {"k:{\"name\":\"nginx\"}": {
                        ".": {}, "f:image": {}, "f:imagePullPolicy": {}, "f:name": {}, "f:resources": {},
                        "f:ports": {".": {}, "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": port},
                        "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {},
                    }},
                    "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:schedulerName": {}, "f:securityContext": {},
                    "f:terminationGracePeriodSeconds": {},
                },
            },
        }})
    );

    let mut pod = deployment["spec"]["template"].clone();
    pod["spec"] = json!({"containers": []});
    pod["metadata"]["uid"] = "p".into();
    pod["metadata"]["generateName"] = "nginx-".into();
    pod["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "nginx", "uid": "r", "controller": true}]);
    let kind = kinds.resource("", "v1", "pods").expect("built in");
    let created = tracked(kind, None, &pod, "");
    assert_eq!(
        fields(&created, "m", "Update")["f:metadata"],
        json!({
            "f:generateName": {}, "f:labels": {".": {}, "f:app": {}},
            "f:ownerReferences": {".": {}, "k:{\"uid\":\"r\"}": {}},
        })
    );
    let mut running = created.clone();
    running["status"] = json!({
        "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}], "containerStatuses": [{"name": "nginx"}],
        "conditions": [{"type": "Ready", "status": "True", "lastProbeTime": null, "lastTransitionTime": AT}],
    });
    let running = tracked(kind, Some(&created), &running, "status");
    assert_eq!(
        running["metadata"]["managedFields"][1]["fieldsV1"],
        json!({"f:status": {
            "f:conditions": {".": {}, "k:{\"type\":\"Ready\"}": {
                ".": {}, "f:lastProbeTime": {}, "f:lastTransitionTime": {}, "f:status": {}, "f:type": {}}},
            "f:containerStatuses": {}, "f:phase": {}, "f:podIP": {},
            "f:podIPs": {".": {}, "k:{\"ip\":\"10.0.0.1\"}": {".": {}, "f:ip": {}}},
        }})
    );
}

/// Without empty lists: applying one owns nothing, as upstream.
fn compact(spec: Value) -> Value {
    let fields = spec.as_object().into_iter().flatten();
    fields
        .filter(|(_, value)| value.as_array().is_none_or(|list| !list.is_empty()))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

fn specs() -> impl Strategy<Value = Value> {
    let container = |(name, image): (String, Option<String>)| match image {
        Some(image) => json!({"name": name, "image": image}),
        None => json!({"name": name}),
    };
    let containers = proptest::collection::btree_map("[a-c]", proptest::option::of("[i-j]"), 0..3);
    let containers = containers.prop_map(move |map| map.into_iter().map(container).collect::<Vec<_>>());
    let zones = proptest::collection::btree_set("[x-z]", 0..3);
    let template = proptest::option::of("[m-n]");
    (proptest::option::of(0..3_i64), containers, zones, template).prop_map(|(replicas, containers, zones, image)| {
        let mut spec = compact(json!({"containers": containers, "zones": zones}));
        if let Some(replicas) = replicas {
            spec["replicas"] = replicas.into();
        }
        if let Some(image) = image {
            spec["template"] = json!({"image": image});
        }
        spec
    })
}

/// The part of `spec` that names only fields of one of two halves.
fn half(spec: &Value, first: bool) -> Value {
    let list = |key: &str, own: &dyn Fn(&Value) -> bool| -> Value {
        spec[key].as_array().into_iter().flatten().filter(|item| own(item) == first).cloned().collect()
    };
    let mut part = compact(json!({
        "containers": list("containers", &|item| item["name"] == "a"), "zones": list("zones", &|item| item == "x"),
    }));
    let scalar = if first { "replicas" } else { "template" };
    if let Some(value) = spec.get(scalar) {
        part[scalar] = value.clone();
    }
    part
}

/// Lists in the order of their keys: which of two appliers came first decides the order of their items.
fn sorted(mut object: Value) -> Value {
    for key in ["containers", "zones"] {
        if let Some(Value::Array(items)) = object.get_mut("spec").and_then(|spec| spec.get_mut(key)) {
            items.sort_by_key(Value::to_string);
        }
    }
    object
}

proptest! {
    #[test]
    fn apply_is_idempotent(before in specs(), first in specs(), then in specs()) {
        let live = written(None, "editor", before);
        let once = applied(Some(&live), "me", first, true).expect("forced");
        let twice = applied(Some(&once), "me", then.clone(), true).expect("forced");
        prop_assert_eq!(applied(Some(&twice), "me", then, false).expect("no conflict"), twice);
    }

    #[test]
    fn disjoint_applies_commute(one in specs(), two in specs(), next in specs()) {
        let (a, b, c) = (half(&one, true), half(&two, false), half(&next, true));
        let ab = must(Some(&must(None, "a", a.clone())), "b", b.clone());
        let ba = must(Some(&must(None, "b", b.clone())), "a", a);
        prop_assert_eq!(sorted(ab.clone()), sorted(ba));
        // Nor does a second configuration of one touch the other's.
        let after = must(Some(&ab), "a", c);
        prop_assert_eq!(fields(&after, "b", "Apply"), fields(&ab, "b", "Apply"));
        prop_assert_eq!(half(&after["spec"], false), half(&ab["spec"], false));
    }

    #[test]
    fn without_a_second_owner_there_is_no_conflict(configs in proptest::collection::vec(specs(), 1..5)) {
        let mut live = None;
        for spec in configs {
            let object = must(live.as_ref(), "me", spec.clone());
            prop_assert_eq!(&sorted(object.clone())["spec"], &sorted(config(spec))["spec"]);
            live = Some(object);
        }
    }

    #[test]
    fn conflicting_fields_have_two_owners(before in specs(), spec in specs()) {
        let live = must(None, "other", before);
        if let Err(error) = applied(Some(&live), "me", spec, false) {
            let theirs = Set::from_json(&fields(&live, "other", "Apply"), false).expect("valid");
            let ApplyError::Conflicts(conflicts) = error else { panic!("{error}") };
            for conflict in conflicts {
                prop_assert!(theirs.has(&conflict.elements()), "{}", conflict.field());
            }
        }
    }
}
