use std::collections::BTreeSet;
use std::sync::Arc;

use super::*;
use crate::kind::{Gvk, builtin};
use crate::testing;

fn documents(kinds: &Kinds) -> Documents<'_> {
    let describe: Describe<'_> = &|ty, field| match (ty, field) {
        ("io.k8s.api.core.v1.Pod", "") => Some("A pod."),
        ("io.k8s.api.core.v1.Pod", "spec") => Some("What it is to be."),
        _ => None,
    };
    Documents { kinds, version: "v1.37.0", describe }
}

fn v2(kinds: &Kinds) -> Value {
    let mut out = Vec::new();
    documents(kinds).v2(&mut out).expect("memory takes it");
    serde_json::from_slice(&out).expect("JSON")
}

fn v3(kinds: &Kinds, part: &str) -> Value {
    let mut out = Vec::new();
    assert!(documents(kinds).v3(part, &mut out).expect("memory takes it"), "{part}");
    serde_json::from_slice(&out).expect("JSON")
}

fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str));
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let paths = document["paths"].as_object().expect("paths");
    let of = |(path, item): (&'_ String, &'_ Value)| -> Vec<(String, String)> {
        let methods = item.as_object().into_iter().flatten().map(|(method, _)| method.clone());
        methods.filter(|method| method != "parameters").map(|method| (path.clone(), method)).collect()
    };
    let keys: Vec<(String, String)> = paths.iter().flat_map(of).collect();
    keys.iter()
        .map(|(path, method)| {
            let (path, item) = paths.get_key_value(path).expect("listed");
            let (method, operation) = item.as_object().and_then(|item| item.get_key_value(method)).expect("listed");
            (path.as_str(), method.as_str(), operation)
        })
        .collect()
}

#[test]
fn every_reference_leads_somewhere_and_every_operation_has_its_own_name() {
    let kinds = builtin();
    let check = |document: &Value, prefix: &str, definitions: &Value, part: &str| {
        let mut found = BTreeSet::new();
        references(document, &mut found);
        for reference in found {
            let name = reference.strip_prefix(prefix).expect("a local reference");
            assert!(definitions.get(name).is_some(), "{part}: {name}");
        }
        let operations = operations(document);
        let ids: BTreeSet<&str> = operations.iter().filter_map(|(_, _, one)| one["operationId"].as_str()).collect();
        assert_eq!(ids.len(), operations.len(), "{part}");
    };
    let document = v2(&kinds);
    check(&document, "#/definitions/", &document["definitions"], "v2");
    let index = documents(&kinds).v3_index();
    for part in index["paths"].as_object().expect("parts").keys() {
        let document = v3(&kinds, part);
        check(&document, "#/components/schemas/", &document["components"]["schemas"], part);
    }
}

#[test]
fn verbs_become_operations() {
    let kinds = builtin();
    let document = v2(&kinds);
    let paths = &document["paths"];
    for (path, method, id, action) in [
        ("/api/v1/pods", "get", "listCoreV1PodForAllNamespaces", "list"),
        ("/api/v1/namespaces/{namespace}/pods", "post", "createCoreV1NamespacedPod", "post"),
        ("/api/v1/namespaces/{namespace}/pods", "delete", "deleteCoreV1CollectionNamespacedPod", "deletecollection"),
        ("/api/v1/namespaces/{namespace}/pods/{name}", "put", "replaceCoreV1NamespacedPod", "put"),
        ("/api/v1/namespaces/{namespace}/pods/{name}/log", "get", "readCoreV1NamespacedPodLog", "get"),
        ("/api/v1/namespaces/{namespace}/pods/{name}/exec", "post", "connectCoreV1PostNamespacedPodExec", "connect"),
        (
            "/api/v1/namespaces/{namespace}/services/{name}/proxy/{path}",
            "head",
            "connectCoreV1HeadNamespacedServiceProxyWithPath",
            "connect",
        ),
        ("/api/v1/nodes/{name}/status", "patch", "patchCoreV1NodeStatus", "patch"),
        (
            "/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale",
            "get",
            "readAppsV1NamespacedDeploymentScale",
            "get",
        ),
        ("/apis/rbac.authorization.k8s.io/v1/clusterroles", "post", "createRbacAuthorizationV1ClusterRole", "post"),
    ] {
        let operation = &paths[path][method];
        assert_eq!(
            (&operation["operationId"], &operation["x-kubernetes-action"]),
            (&json!(id), &json!(action)),
            "{path}"
        );
    }
    assert_eq!(paths["/api/v1/namespaces/{namespace}/pods/{name}/eviction"]["get"], Value::Null);
    let scale = &paths["/apis/apps/v1/namespaces/{namespace}/deployments/{name}/scale"]["put"];
    assert_eq!(
        scale["x-kubernetes-group-version-kind"],
        json!({"group": "autoscaling", "kind": "Scale", "version": "v1"})
    );
    assert_eq!(paths["/apis/rbac.authorization.k8s.io/v1/"]["get"]["tags"], json!(["rbacAuthorization_v1"]));
}

/// kubectl looks for the parameter before it asks the server to validate.
#[test]
fn patches_say_that_the_server_validates() {
    let kinds = builtin();
    for document in [v2(&kinds), v3(&kinds, "apis/apps/v1")] {
        let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
        let parameters = patch["parameters"].as_array().expect("parameters");
        for name in ["fieldValidation", "dryRun", "force"] {
            assert!(parameters.iter().any(|one| one["name"] == name), "{name}");
        }
    }
}

#[test]
fn types_become_schemas() {
    let kinds = builtin();
    let document = v2(&kinds);
    let definitions = &document["definitions"];
    let pod = &definitions["io.k8s.api.core.v1.Pod"];
    assert_eq!(pod["description"], "A pod.");
    assert_eq!(pod["x-kubernetes-group-version-kind"], json!([{"group": "", "kind": "Pod", "version": "v1"}]));
    assert_eq!(
        pod["properties"]["spec"],
        json!({"$ref": "#/definitions/io.k8s.api.core.v1.PodSpec", "description": "What it is to be."})
    );
    assert_eq!(
        definitions["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"],
        json!({
            "type": "array", "items": {"$ref": "#/definitions/io.k8s.api.core.v1.Container"},
            "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
            "x-kubernetes-patch-strategy": "merge", "x-kubernetes-patch-merge-key": "name",
        })
    );
    assert_eq!(definitions["io.k8s.api.core.v1.PodList"]["required"], json!(["items"]));
    assert_eq!(definitions["io.k8s.api.core.v1.NodeSelector"]["x-kubernetes-map-type"], "atomic");
    let replace = &definitions["io.k8s.api.policy.v1.PodDisruptionBudgetSpec"]["properties"]["selector"];
    assert_eq!(replace["x-kubernetes-patch-strategy"], "replace");

    let document = v3(&kinds, "api/v1");
    let schemas = &document["components"]["schemas"];
    assert_eq!(
        schemas["io.k8s.api.core.v1.Pod"]["properties"]["spec"],
        json!({
            "allOf": [{"$ref": "#/components/schemas/io.k8s.api.core.v1.PodSpec"}], "default": {},
            "description": "What it is to be.",
        })
    );
    let port = &schemas["io.k8s.api.core.v1.ContainerPort"]["properties"];
    assert_eq!((&port["protocol"]["default"], &port["containerPort"]["default"]), (&json!("TCP"), &json!(0)));
    assert_eq!(
        schemas["io.k8s.apimachinery.pkg.util.intstr.IntOrString"],
        json!({"oneOf": [{"type": "integer"}, {"type": "string"}], "format": "int-or-string"})
    );
}

fn with_custom(spec: Value) -> Kinds {
    let kinds = builtin();
    let (schema, root) = testing::object_schema(spec);
    let model = kinds.resource("", "v1", "configmaps").expect("built in");
    let gvk = Gvk { group: "stable.example.com".into(), version: "v1".into(), kind: "CronTab".into() };
    let custom = Kind {
        list_kind: "CronTabList".into(),
        resource: "crontabs".into(),
        singular: "crontab".into(),
        schema: Arc::new(schema),
        root,
        storage: gvk.clone(),
        gvk,
        scope: model.scope,
        verbs: model.verbs.clone(),
        columns: Vec::new(),
        short_names: Vec::new(),
        categories: Vec::new(),
        subresources: Vec::new(),
        storage_resource: (String::new(), String::new()),
        selectable_fields: Vec::new(),
        inert: false,
        has_generation: true,
        has_status: false,
        virtual_kind: false,
    };
    Kinds::new(kinds.all.iter().cloned().chain([Arc::new(custom)]).collect(), 1)
}

#[test]
fn custom_resources_have_a_document_whose_address_follows_their_schema() {
    let kinds = with_custom(json!({"fields": {"replicas": "int", "free": "any"}}));
    let document = v3(&kinds, "apis/stable.example.com/v1");
    let schema = &document["components"]["schemas"]["com.example.stable.v1.CronTab"];
    assert_eq!(schema["properties"]["spec"]["properties"]["replicas"], json!({"type": "integer", "format": "int64"}));
    assert_eq!(
        schema["properties"]["spec"]["properties"]["free"],
        json!({"x-kubernetes-preserve-unknown-fields": true})
    );
    let path = &document["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs"]["get"];
    assert_eq!(path["operationId"], "listStableExampleComV1NamespacedCronTab");

    let address = |kinds: &Kinds, part: &str| documents(kinds).v3_index()["paths"][part]["serverRelativeURL"].clone();
    let other = with_custom(json!({"fields": {"replicas": "string"}}));
    let part = "apis/stable.example.com/v1";
    assert_ne!(address(&kinds, part), address(&other, part));
    assert_eq!(address(&kinds, part), address(&kinds, part));
    assert_eq!(address(&kinds, "api/v1"), address(&builtin(), "api/v1"));
    assert!(!documents(&kinds).v3("apis/none/v1", &mut Vec::new()).expect("memory takes it"));
}
