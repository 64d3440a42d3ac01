//! The `scale` subresource, the same for every kind that has one: where its three numbers stand is data.

use std::sync::Arc;

use http::{Method, Request, Response};
use sampan_api::{Failure, FieldErrors, FieldPath, Kind, object};
use sampan_api::{Gvk, selector::LabelSelector};
use serde_json::{Value, json};

use crate::body::{self, RequestBody, ResponseBody};
use crate::negotiate::{self, Offer};
use crate::options::WriteOptions;
use crate::patch::{Patch, PatchType};
use crate::respond::{self, Object};
use crate::server::Call;
use crate::write::{self, Change, Target};
use crate::{read, route};

/// JSON pointers into the scaled object.
struct Paths {
    spec_replicas: &'static str,
    status_replicas: &'static str,
    selector: &'static str,
}

/// All built-in kinds keep them in the same places; custom resources name theirs.
const BUILT_IN: Paths =
    Paths { spec_replicas: "/spec/replicas", status_replicas: "/status/replicas", selector: "/spec/selector" };

fn gvk() -> Gvk {
    Gvk { group: "autoscaling".into(), version: "v1".into(), kind: "Scale".into() }
}

/// The `Scale` of an object.
fn of(paths: &Paths, tree: &Value) -> Value {
    let number = |path: &str| tree.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let mut metadata = serde_json::Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object::lookup(tree, &["metadata", field]) {
            metadata.insert(field.into(), value.clone());
        }
    }
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": number(paths.spec_replicas)},
        "status": {"replicas": number(paths.status_replicas)},
    });
    if let Some(text) = selector_text(tree.pointer(paths.selector)) {
        scale["status"]["selector"] = text.into();
    }
    scale
}

/// A label selector, or the plain map of a ReplicationController, in the form of a query.
fn selector_text(selector: Option<&Value>) -> Option<String> {
    let selector = selector?;
    let structured =
        selector.get("matchLabels").is_some_and(Value::is_object) || selector.get("matchExpressions").is_some();
    let parsed = if structured {
        LabelSelector::from_json(selector).ok()?
    } else {
        LabelSelector::from_map(&serde_json::from_value(selector.clone()).ok()?)
    };
    Some(parsed.to_string())
}

/// The number a `Scale` asks for.
fn wanted(scale: &Value, name: &str) -> Result<i64, Failure> {
    let replicas = scale.pointer("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
    let mut errors = FieldErrors::default();
    if replicas < 0 {
        let detail = "must be greater than or equal to 0";
        errors.invalid(FieldPath::new("spec").child("replicas"), replicas, detail);
    }
    errors.into_result("autoscaling", "Scale", name)?;
    Ok(replicas)
}

/// The object with the number and the preconditions a `Scale` brought.
fn scaled(paths: &Paths, old: &Value, scale: &Value) -> Result<Value, Failure> {
    let replicas = wanted(scale, object::name(old))?;
    let mut new = old.clone();
    object::child_mut(&mut new, "spec");
    if let Some(parent) = new.pointer_mut(paths.spec_replicas.rsplit_once('/').map_or("", |(parent, _)| parent))
        && let Some(map) = parent.as_object_mut()
    {
        let field = paths.spec_replicas.rsplit('/').next().unwrap_or_default();
        map.insert(field.into(), replicas.into());
    }
    for field in ["resourceVersion", "uid"] {
        let sent = object::text(scale, &["metadata", field]);
        if sent.is_empty() {
            object::metadata_mut(&mut new).remove(field);
        } else {
            object::metadata_mut(&mut new).insert(field.into(), sent.into());
        }
    }
    Ok(new)
}

pub(crate) async fn answer(
    call: &Call,
    kind: &Arc<Kind>,
    request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, Failure> {
    let info = &call.info;
    let format = negotiate::answer(&call.headers, info, Offer { protobuf: true, ..Offer::default() })?;
    let (schema, root) = route::named_type("io.k8s.api.autoscaling.v1.Scale")?;
    let respond = |tree: &Value| respond::typed(format, 200, &schema, root, &gvk(), &of(&BUILT_IN, tree));
    let (namespace, name) = (info.namespace.as_str(), info.name.as_str());
    if *request.method() == Method::GET || *request.method() == Method::HEAD {
        read::ready(&call.server.config.store, crate::options::At::Consistent).await?;
        return respond(&write::parse(&read::find(&call.server.config.store, kind, namespace, name)?)?);
    }
    let patch_type = (info.verb == "patch").then(|| PatchType::of(&call.headers, false)).transpose()?;
    let apply = patch_type == Some(PatchType::Apply);
    let options =
        WriteOptions::parse(info, if info.verb == "patch" { "PatchOptions" } else { "UpdateOptions" }, apply)?;
    let target = Target { call, kind, namespace, name, subresource: "scale", options: &options };
    let headers = &call.headers;
    let bytes = body::read(request.into_body()).await?;
    let sent = match patch_type {
        None => Some(route::body_tree(headers, &schema, root, &bytes)?),
        Some(PatchType::Apply) => {
            Some(serde_saphyr::from_slice(&bytes).map_err(|error| Failure::bad_request(error.to_string()))?)
        }
        Some(_) => None,
    };
    let written = write::update(&target, |old| {
        let scale = match (&sent, patch_type) {
            (Some(sent), _) => sent.clone(),
            (None, Some(kind)) => Patch { kind, body: &bytes }.onto(&schema, root, of(&BUILT_IN, old))?,
            (None, None) => of(&BUILT_IN, old),
        };
        scaled(&BUILT_IN, old, &scale).map(Change::Sent)
    })
    .await?;
    match written.object {
        Object::Stored(entry) => respond(&write::parse(&entry)?),
        Object::Tree(tree) => respond(&tree),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_and_sets_the_replicas() {
        let deployment = json!({
            "metadata": {"name": "web", "namespace": "a", "uid": "u", "resourceVersion": "7"},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}}, "status": {"replicas": 2},
        });
        let scale = of(&BUILT_IN, &deployment);
        assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&json!(3), &json!(2)));
        assert_eq!(scale["status"]["selector"], "app=web");
        let asked = json!({"metadata": {"name": "web"}, "spec": {"replicas": 5}});
        let new = scaled(&BUILT_IN, &deployment, &asked).expect("a sane number");
        assert_eq!(new["spec"]["replicas"], 5);
        assert!(new["metadata"].get("resourceVersion").is_none());
        let negative = json!({"spec": {"replicas": -1}});
        assert_eq!(scaled(&BUILT_IN, &deployment, &negative).expect_err("refused").code, 422);
    }
}
