//! From a permitted request to its handler: the resource by group, version and plural, then the verb or the subresource.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response};
use sampan_api::default;
use sampan_api::schema::{SharedSchema, TypeId};
use sampan_api::{Failure, Gvk, Kind, Reason, codec};
use serde_json::Value;

use crate::body::{self, RequestBody, ResponseBody};
use crate::hooks;
use crate::negotiate::{self, Format, Offer, Wire};
use crate::options::{DeleteOptions, WriteOptions};
use crate::patch::{self, Patch, PatchType};
use crate::server::Call;
use crate::write::{self, Target, Written};
use crate::{delete, encoding, pages, pods, read, respond, scale, watch};

/// Answers a request that was authenticated and authorized.
pub(crate) async fn answer(call: Arc<Call>, request: Request<RequestBody>) -> Response<ResponseBody> {
    let head = request.method() == Method::HEAD;
    let mut response = if call.info.resource_request {
        match resource(call.clone(), request).await {
            Ok(response) => response,
            Err(failure) => respond::failure(&failure),
        }
    } else {
        pages::answer(&call, &request).await
    };
    let warnings = std::mem::take(&mut *call.warnings.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    for text in warnings {
        if let Ok(value) = HeaderValue::from_str(&warning(&text)) {
            response.headers_mut().append("warning", value);
        }
    }
    if head {
        return response.map(|_| body::empty());
    }
    if call.info.long_running() { response } else { encoding::compressed(&call.headers, response) }
}

/// `299 - "text"` (RFC 7234 §5.5), control characters dropped.
fn warning(text: &str) -> String {
    let text: String = text.chars().filter(|c| !c.is_control()).collect();
    format!("299 - \"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Upstream's words for a path below a known group version that leads nowhere.
pub(crate) fn nowhere() -> Failure {
    Failure::new(Reason::NotFound, "the server could not find the requested resource")
}

fn not_allowed() -> Failure {
    Failure::new(Reason::MethodNotAllowed, "the server does not allow this method on the requested resource")
}

async fn resource(call: Arc<Call>, request: Request<RequestBody>) -> Result<Response<ResponseBody>, Failure> {
    let info = &call.info;
    let kinds = call.server.kinds();
    let Some(kind) = kinds.resource(&info.group, &info.version, &info.resource).cloned() else {
        let known = kinds.all.iter().any(|kind| kind.gvk.group == info.group && kind.gvk.version == info.version);
        return if known { Err(nowhere()) } else { Ok(respond::no_page()) };
    };
    let named_scope = !info.namespace.is_empty() && info.resource != "namespaces";
    if (named_scope && !kind.namespaced()) || (kind.namespaced() && !named_scope && !info.name.is_empty()) {
        return Err(nowhere());
    }
    if !info.subresource.is_empty() {
        return subresource(call, &kind, request).await;
    }
    if !kind.verbs.contains(&info.verb) {
        return Err(not_allowed());
    }
    if let Some(computed) = computed(&call, &info.resource) {
        let schema = (kind.schema.clone(), kind.root, kind.gvk.clone());
        return compute(&call, computed, schema, request, None).await;
    }
    if kind.virtual_kind {
        return pods::virtual_kind(&call, &kind, request).await;
    }
    verbs(call, &kind, "", request).await
}

fn offer(kind: &Kind, verb: &str, list: bool) -> Offer {
    Offer { watch: verb == "watch", list, transforms: true, protobuf: !kind.schema.names.contains_key("") }
}

/// The generic verbs, on the object or its status.
async fn verbs(
    call: Arc<Call>,
    kind: &Arc<Kind>,
    subresource: &str,
    request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, Failure> {
    let info = &call.info;
    let list = matches!(info.verb.as_str(), "list" | "deletecollection");
    let format = negotiate::answer(&call.headers, info, offer(kind, &info.verb, list))?;
    match info.verb.as_str() {
        "get" => read::get(&call, format, kind).await,
        "list" => read::list(&call, format, kind).await,
        "watch" => watch::watch(call.clone(), format, kind).await,
        "create" | "update" => {
            let create = info.verb == "create";
            let options = WriteOptions::parse(info, if create { "CreateOptions" } else { "UpdateOptions" }, false)?;
            let wire = negotiate::body(&call.headers)?;
            let bytes = body::read(request.into_body()).await?;
            let sent = write::decode(&call, kind, wire, &bytes, options.field_validation)?;
            let sent = write::complete(kind, sent)?;
            let (namespace, name) = (info.namespace.as_str(), info.name.as_str());
            let namespace = if kind.namespaced() { namespace } else { "" };
            let target = Target { call: &call, kind, namespace, name, subresource, options: &options };
            let Written { code, object } =
                if create { write::create(&target, sent).await? } else { write::replace(&target, sent).await? };
            respond::object(&call, format, code, kind, object)
        }
        "patch" => {
            let patch_type = PatchType::of(&call.headers, kind.schema.names.contains_key(""))?;
            let options = WriteOptions::parse(info, "PatchOptions", patch_type == PatchType::Apply)?;
            let bytes = body::read(request.into_body()).await?;
            let namespace = if kind.namespaced() { info.namespace.as_str() } else { "" };
            let target = Target { call: &call, kind, namespace, name: &info.name, subresource, options: &options };
            patch::object(&target, format, &Patch { kind: patch_type, body: &bytes }).await
        }
        "delete" | "deletecollection" => {
            let options = delete_options(&call, request).await?;
            match info.verb.as_str() {
                "delete" => delete::delete(&call, format, kind, &options).await,
                _ => delete::collection(&call, format, kind, &options).await,
            }
        }
        _ => Err(not_allowed()),
    }
}

/// `DeleteOptions` from the body, in whatever form it came, and the query.
async fn delete_options(call: &Call, request: Request<RequestBody>) -> Result<DeleteOptions, Failure> {
    let bytes = body::read(request.into_body()).await?;
    if bytes.is_empty() {
        return DeleteOptions::parse(&call.info, None);
    }
    let (schema, root) = meta_type("DeleteOptions")?;
    let body = body_tree(&call.headers, &schema, root, &bytes)?;
    DeleteOptions::parse(&call.info, Some(body))
}

/// A type of `meta/v1` in the built-in schema.
fn meta_type(name: &str) -> Result<(SharedSchema, TypeId), Failure> {
    named_type(&format!("io.k8s.apimachinery.pkg.apis.meta.v1.{name}"))
}

pub(crate) fn named_type(name: &str) -> Result<(SharedSchema, TypeId), Failure> {
    let kinds = sampan_api::kind::builtin();
    let schema = kinds.all.first().map(|kind| kind.schema.clone());
    let found = schema.and_then(|schema| schema.named(name).map(|root| (schema, root)));
    found.ok_or_else(|| Failure::internal(format_args!("the schema has no type {name}")))
}

/// A body of any type as a tree; unknown fields are dropped.
pub(crate) fn body_tree(
    headers: &http::HeaderMap,
    schema: &SharedSchema,
    root: TypeId,
    bytes: &[u8],
) -> Result<Value, Failure> {
    let media = match negotiate::body(headers)? {
        Wire::Json => codec::MediaType::Json,
        Wire::Yaml => codec::MediaType::Yaml,
        Wire::Protobuf => codec::MediaType::Protobuf,
    };
    let decoded = codec::decode(schema, root, media, bytes);
    decoded.map(|decoded| decoded.object).map_err(|error| Failure::bad_request(error.to_string()))
}

async fn subresource(
    call: Arc<Call>,
    kind: &Arc<Kind>,
    request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, Failure> {
    let info = &call.info;
    let found = kind.subresource(&info.subresource).ok_or_else(nowhere)?.clone();
    if !found.verbs.contains(&info.verb) {
        return Err(not_allowed());
    }
    if let Some(computed) = computed(&call, &format!("{}/{}", info.resource, info.subresource)) {
        let (schema, root) = named_type(&sampan_api::kind::type_name(&found.gvk))?;
        let parent = write::parse(&read::find(&call.server.config.store, kind, &info.namespace, &info.name)?)?;
        return compute(&call, computed, (schema, root, found.gvk), request, Some(&parent)).await;
    }
    match info.subresource.as_str() {
        "scale" => scale::answer(&call, kind, request).await,
        "binding" => pods::bind(&call, kind, request).await,
        "eviction" => pods::evict(&call, kind, request).await,
        "log" | "exec" | "attach" | "portforward" | "proxy" => pods::connect(&call, kind, request).await,
        // The body is the object itself; what of it counts is decided on the way to the store.
        _ if found.gvk == kind.gvk => {
            let subresource = info.subresource.clone();
            verbs(call.clone(), kind, &subresource, request).await
        }
        other => Err(Failure::new(
            Reason::MethodNotAllowed,
            format!("this server does not implement {}/{other}", info.resource),
        )),
    }
}

fn computed(call: &Call, resource: &str) -> Option<Arc<dyn hooks::Computed>> {
    let key = (call.info.group.clone(), resource.to_owned());
    call.server.config.computed.get(&key).cloned()
}

/// Decodes, has the answer computed, encodes.
async fn compute(
    call: &Call,
    computed: Arc<dyn hooks::Computed>,
    (schema, root, gvk): (SharedSchema, TypeId, Gvk),
    request: Request<RequestBody>,
    parent: Option<&Value>,
) -> Result<Response<ResponseBody>, Failure> {
    let offer = Offer { protobuf: true, ..Offer::default() };
    let format: Format = negotiate::answer(&call.headers, &call.info, offer)?;
    let options = WriteOptions::parse(&call.info, "CreateOptions", false)?;
    let bytes: Bytes = body::read(request.into_body()).await?;
    let mut tree = body_tree(&call.headers, &schema, root, &bytes)?;
    default::apply_defaults(&schema, root, &mut tree);
    let hook = hooks::Call {
        user: &call.user,
        namespace: &call.info.namespace,
        name: &call.info.name,
        kind: &gvk.kind,
        parent,
        dry_run: options.dry_run,
    };
    let mut answer = computed.create(hook, tree).await?;
    if let Value::Object(map) = &mut answer {
        map.insert("apiVersion".into(), gvk.api_version().into());
        map.insert("kind".into(), gvk.kind.clone().into());
    }
    respond::typed(format, 201, &schema, root, &gvk, &answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_quoted() {
        assert_eq!(warning("unknown field \"spec.x\""), "299 - \"unknown field \\\"spec.x\\\"\"");
        assert_eq!(warning("a\nb\\"), "299 - \"ab\\\\\"");
    }
}
