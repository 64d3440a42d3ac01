//! What pods and nodes have beyond the generic verbs: binding, eviction, and everything that is carried on to a node.

use std::sync::Arc;

use http::{Request, Response, Uri};
use sampan_api::error::Cause;
use sampan_api::selector::LabelSelector;
use sampan_api::{Failure, Kind, Reason, object};
use sampan_store::Range;
use serde_json::{Value, json};

use crate::body::{self, RequestBody, ResponseBody};
use crate::hooks::{Node, Streaming};
use crate::options::{DeleteOptions, WriteOptions};
use crate::server::Call;
use crate::write::{self, Change, Target};
use crate::{delete, keys, read, respond, route};

fn created() -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// Resources without storage of their own.
pub(crate) async fn virtual_kind(
    call: &Call,
    kind: &Arc<Kind>,
    request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, Failure> {
    match (kind.gvk.group.as_str(), kind.resource.as_str(), call.info.verb.as_str()) {
        ("", "bindings", "create") => {
            let kinds = call.server.kinds();
            let pods = kinds.resource("", "v1", "pods").cloned().ok_or_else(route::nowhere)?;
            bind(call, &pods, request).await
        }
        ("", "componentstatuses", "list") => {
            let list = json!({"kind": "ComponentStatusList", "apiVersion": "v1", "metadata": {}, "items": []});
            Ok(respond::json(200, &list))
        }
        (group, resource, _) => Err(Failure::new(
            Reason::MethodNotAllowed,
            format!("this server has no handler for {}", sampan_api::error::qualified(resource, group)),
        )),
    }
}

/// `pods/binding` and `bindings`: gives a pod its node (`registry/core/pod/storage`, `assignPod`).
pub(crate) async fn bind(
    call: &Call,
    pods: &Arc<Kind>,
    request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, Failure> {
    let (schema, root) = route::named_type("io.k8s.api.core.v1.Binding")?;
    let options = WriteOptions::parse(&call.info, "CreateOptions", false)?;
    let bytes = body::read(request.into_body()).await?;
    let binding = route::body_tree(&call.headers, &schema, root, &bytes)?;
    let name = if call.info.subresource.is_empty() { object::name(&binding) } else { call.info.name.as_str() };
    let node = object::text(&binding, &["target", "name"]);
    let target_kind = object::text(&binding, &["target", "kind"]);
    if node.is_empty() || !matches!(target_kind, "" | "Node") {
        let mut errors = sampan_api::FieldErrors::default();
        let field = sampan_api::FieldPath::new("target");
        if node.is_empty() {
            errors.required(field.child("name"), "");
        } else {
            errors.not_supported(field.child("kind"), target_kind, &["Node", "<empty>"]);
        }
        errors.into_result("", "Binding", name)?;
    }
    let uid = object::uid(&binding);
    let now = write::timestamp(call.server.config.clock.now());
    let target =
        Target { call, kind: pods, namespace: &call.info.namespace, name, subresource: "binding", options: &options };
    let bound = |old: &Value| {
        let stored_uid = object::uid(old);
        if !uid.is_empty() && uid != stored_uid {
            let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {stored_uid}");
            return Err(target.conflict(why));
        }
        if !object::text(old, &["metadata", "deletionTimestamp"]).is_empty() {
            return Err(target.conflict(format!("pod {name} is being deleted, cannot be assigned to a host")));
        }
        let present = object::text(old, &["spec", "nodeName"]);
        if !present.is_empty() {
            return Err(target.conflict(format!("pod {name} is already assigned to node {present:?}")));
        }
        if object::lookup(old, &["spec", "schedulingGates"])
            .and_then(Value::as_array)
            .is_some_and(|gates| !gates.is_empty())
        {
            return Err(target.conflict(format!("pod {name} has non-empty .spec.schedulingGates")));
        }
        let mut new = old.clone();
        object::child_mut(&mut new, "spec").insert("nodeName".into(), node.into());
        if let Some(annotations) = object::lookup(&binding, &["metadata", "annotations"]).and_then(Value::as_object) {
            let own = object::metadata_mut(&mut new).entry("annotations").or_insert_with(|| json!({}));
            for (key, value) in annotations {
                own[key] = value.clone();
            }
        }
        scheduled(&mut new, &now);
        Ok(Change::Sent(new))
    };
    write::update(&target, bound).await?;
    Ok(respond::json(201, &created()))
}

/// Sets the condition that says the pod has a node.
fn scheduled(pod: &mut Value, now: &str) {
    let condition = json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now});
    let conditions = object::child_mut(pod, "status").entry("conditions").or_insert_with(|| json!([]));
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Value::Array(conditions) = conditions else { return };
    match conditions.iter_mut().find(|one| one["type"] == "PodScheduled") {
        Some(one) => *one = condition,
        None => conditions.push(condition),
    }
}

/// `pods/eviction`: a deletion that asks the disruption budgets first (`registry/core/pod/storage/eviction.go`).
pub(crate) async fn evict(
    call: &Call,
    pods: &Arc<Kind>,
    request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, Failure> {
    let (schema, root) = route::named_type("io.k8s.api.policy.v1.Eviction")?;
    let write_options = WriteOptions::parse(&call.info, "CreateOptions", false)?;
    let bytes = body::read(request.into_body()).await?;
    let eviction = route::body_tree(&call.headers, &schema, root, &bytes)?;
    let (namespace, name) = (call.info.namespace.as_str(), call.info.name.as_str());
    let asked = object::name(&eviction);
    if !asked.is_empty() && asked != name {
        return Err(Failure::bad_request("name in URL does not match name in Eviction object"));
    }
    let mut options = DeleteOptions::parse(&call.info, eviction.get("deleteOptions").cloned())?;
    options.dry_run |= write_options.dry_run;
    let pod = write::parse(&read::find(&call.server.config.store, pods, namespace, name)?)?;
    if disruptive(&pod)
        && let Some(budget) = exhausted_budget(call, namespace, &pod)?
    {
        let mut failure =
            Failure::new(Reason::TooManyRequests, "Cannot evict pod as it would violate the pod's disruption budget.");
        failure.causes.push(Cause { reason: "DisruptionBudget".into(), message: budget, field: String::new() });
        return Err(failure);
    }
    delete::one(call, pods, namespace, name, &options).await?;
    Ok(respond::json(201, &created()))
}

/// Whether a pod's eviction takes anything away: pods that ended, wait for a node or are going do not count.
fn disruptive(pod: &Value) -> bool {
    !matches!(object::text(pod, &["status", "phase"]), "Succeeded" | "Failed" | "Pending")
        && object::text(pod, &["metadata", "deletionTimestamp"]).is_empty()
}

/// Says which budget of the pod allows no disruption, if one does.
fn exhausted_budget(call: &Call, namespace: &str, pod: &Value) -> Result<Option<String>, Failure> {
    let kinds = call.server.kinds();
    let Some(kind) = kinds.resource("policy", "v1", "poddisruptionbudgets") else { return Ok(None) };
    let prefix = keys::prefix(kind, namespace);
    let page = call.server.config.store.range(&Range { prefix: &prefix, ..Range::default() });
    let page = page.map_err(|error| read::unreadable(&error))?;
    let labels = object::lookup(pod, &["metadata", "labels"]).cloned().unwrap_or_default();
    for entry in page.entries {
        let budget = write::parse(&entry)?;
        let Some(selector) = object::lookup(&budget, &["spec", "selector"]) else { continue };
        let Ok(selector) = LabelSelector::from_json(selector) else { continue };
        if !selector.matches_with(|key| labels.get(key).and_then(Value::as_str)) {
            continue;
        }
        let number = |field: &str| object::lookup(&budget, &["status", field]).and_then(Value::as_i64).unwrap_or(0);
        if number("disruptionsAllowed") <= 0 {
            let name = object::name(&budget);
            return Ok(Some(format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                number("desiredHealthy"),
                number("currentHealthy")
            )));
        }
    }
    Ok(None)
}

/// Everything that is answered by a node or a pod: logs, exec, attach, port-forward, proxies.
pub(crate) async fn connect(
    call: &Call,
    kind: &Arc<Kind>,
    request: Request<RequestBody>,
) -> Result<Response<ResponseBody>, Failure> {
    let info = &call.info;
    let store = &call.server.config.store;
    let streaming = call.server.config.streaming.as_ref();
    let streaming: &dyn Streaming = streaming.map(AsRef::as_ref).ok_or_else(|| {
        Failure::new(
            Reason::ServiceUnavailable,
            format!("{}/{} is not available: this server reaches no nodes", info.resource, info.subresource),
        )
    })?;
    let (scheme, name, port) = proxied(&info.name);
    let name = if info.subresource == "proxy" { name } else { info.name.as_str() };
    let object = write::parse(&read::find(store, kind, &info.namespace, name)?)?;
    let query = request.uri().query().map(str::to_owned);
    match (info.resource.as_str(), info.subresource.as_str()) {
        ("nodes", "proxy") => {
            let node = node_of(call, name)?;
            streaming.connect(&node, redirected(request, &rest_or_root(&info.rest), query.as_deref())?).await
        }
        ("pods", "proxy") => {
            let ip = object::text(&object, &["status", "podIP"]);
            if ip.is_empty() {
                return Err(Failure::new(Reason::ServiceUnavailable, format!("pod {name} has no address yet")));
            }
            let port = port.or_else(|| first_port(&object)).unwrap_or_else(|| "80".into());
            let request = redirected(request, &rest_or_root(&info.rest), query.as_deref())?;
            streaming.proxy(&authority(ip, &port), scheme == "https", request).await
        }
        ("services", "proxy") => {
            let address = endpoint(call, &object, port.as_deref())?;
            let request = redirected(request, &rest_or_root(&info.rest), query.as_deref())?;
            streaming.proxy(&address, scheme == "https", request).await
        }
        ("pods", what) => {
            let host = object::text(&object, &["spec", "nodeName"]);
            if host.is_empty() {
                // Logs of a pod nobody runs yet are empty; the rest has nobody to speak to.
                if what == "log" {
                    return Ok(respond::text(200, ""));
                }
                return Err(Failure::bad_request(format!("pod {} does not have a host assigned", info.name)));
            }
            let container = container(&object, info.given("container"), what)?;
            let node = node_of(call, host)?;
            let (namespace, name) = (&info.namespace, &info.name);
            let path = match what {
                "log" => format!("/containerLogs/{namespace}/{name}/{container}"),
                "portforward" => format!("/portForward/{namespace}/{name}"),
                other => format!("/{other}/{namespace}/{name}/{container}"),
            };
            let query = node_query(what, &info.query);
            streaming.connect(&node, redirected(request, &path, query.as_deref())?).await
        }
        _ => Err(route::nowhere()),
    }
}

/// `[scheme:]name[:port]`, as the names of proxied objects are written (`apimachinery/pkg/util/net`, `SplitSchemeNamePort`).
fn proxied(text: &str) -> (&str, &str, Option<String>) {
    let parts: Vec<&str> = text.split(':').collect();
    match parts[..] {
        [scheme, name, port] => (scheme, name, (!port.is_empty()).then(|| port.to_owned())),
        [name, port] => ("", name, Some(port.to_owned())),
        _ => ("", text, None),
    }
}

/// The first port a pod's containers name.
fn first_port(pod: &Value) -> Option<String> {
    let containers = pod.pointer("/spec/containers")?.as_array()?;
    let mut ports =
        containers.iter().filter_map(|one| one.get("ports")?.as_array()?.first()?.get("containerPort")?.as_u64());
    ports.next().map(|port| port.to_string())
}

fn authority(ip: &str, port: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") }
}

/// A ready endpoint of a Service, by the port's name or number; without either its only port.
fn endpoint(call: &Call, service: &Value, port: Option<&str>) -> Result<String, Failure> {
    let name = object::name(service);
    let ports = service.pointer("/spec/ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let chosen = match port {
        Some(port) => ports
            .iter()
            .find(|one| one["name"] == port || one["port"].as_u64().is_some_and(|number| number.to_string() == port)),
        None => ports.first(),
    };
    let none =
        |what: &str| Failure::new(Reason::ServiceUnavailable, format!("no {what} available for service {name:?}"));
    let port_name = chosen.ok_or_else(|| none("such port"))?.get("name").and_then(Value::as_str).unwrap_or_default();
    let prefix = format!("/discovery.k8s.io/endpointslices/{}/", object::namespace(service));
    let page = call.server.config.store.range(&Range { prefix: &prefix, ..Range::default() });
    for entry in page.map_err(|error| read::unreadable(&error))?.entries {
        let slice = write::parse(&entry)?;
        if object::lookup(&slice, &["metadata", "labels", "kubernetes.io/service-name"]).and_then(Value::as_str)
            != Some(name)
        {
            continue;
        }
        let ports = slice.get("ports").and_then(Value::as_array).into_iter().flatten();
        let port = ports.filter(|one| one.get("name").and_then(Value::as_str).unwrap_or_default() == port_name);
        let Some(port) = port.filter_map(|one| one["port"].as_u64()).next() else { continue };
        let endpoints = slice.get("endpoints").and_then(Value::as_array).into_iter().flatten();
        let mut ready = endpoints.filter(|one| one.pointer("/conditions/ready") != Some(&Value::Bool(false)));
        if let Some(address) = ready.find_map(|one| one["addresses"][0].as_str()) {
            return Ok(authority(address, &port.to_string()));
        }
    }
    Err(none("endpoints"))
}

fn rest_or_root(rest: &str) -> String {
    if rest.is_empty() { "/".into() } else { rest.into() }
}

/// The request with another path, for the node.
fn redirected(
    mut request: Request<RequestBody>,
    path: &str,
    query: Option<&str>,
) -> Result<Request<RequestBody>, Failure> {
    let text = match query {
        Some(query) if !query.is_empty() => format!("{path}?{query}"),
        _ => path.to_owned(),
    };
    *request.uri_mut() = text.parse::<Uri>().map_err(|error| Failure::bad_request(error.to_string()))?;
    Ok(request)
}

/// The API's parameters under the names the node's API knows (`pkg/registry/core/pod/strategy.go`, `streamParams`).
fn node_query(what: &str, query: &[(String, String)]) -> Option<String> {
    let mut out = form_urlencoded::Serializer::new(String::new());
    for (key, value) in query {
        let renamed = match (what, key.as_str()) {
            (_, "container") => continue,
            ("log" | "portforward", key) => key,
            (_, "stdin") => "input",
            (_, "stdout") => "output",
            (_, "stderr") => "error",
            (_, key) => key,
        };
        let flag = matches!(renamed, "input" | "output" | "error" | "tty");
        match value.as_str() {
            "true" | "1" if flag => out.append_pair(renamed, "1"),
            "false" | "0" if flag => continue,
            value => out.append_pair(renamed, value),
        };
    }
    let text = out.finish();
    (!text.is_empty()).then_some(text)
}

/// The container asked for, or the only one (or the one the pod's annotation names).
fn container<'a>(pod: &'a Value, asked: Option<&'a str>, what: &str) -> Result<&'a str, Failure> {
    if what == "portforward" {
        return Ok("");
    }
    let names = |list: &str| -> Vec<&'a str> {
        let items = pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array);
        items.into_iter().flatten().filter_map(|one| one["name"].as_str()).collect()
    };
    let (plain, init, ephemeral) = (names("containers"), names("initContainers"), names("ephemeralContainers"));
    let pod_name = object::name(pod);
    match asked {
        Some(name) if [&plain, &init, &ephemeral].iter().any(|list| list.contains(&name)) => Ok(name),
        Some(name) => Err(Failure::bad_request(format!("container {name} is not valid for pod {pod_name}"))),
        None => {
            let annotated = pod.pointer("/metadata/annotations/kubectl.kubernetes.io~1default-container");
            if let Some(name) = annotated.and_then(Value::as_str).filter(|name| plain.contains(name)) {
                return Ok(name);
            }
            match plain[..] {
                [only] => Ok(only),
                _ => {
                    let mut choice = format!(
                        "a container name must be specified for pod {pod_name}, choose one of: [{}]",
                        plain.join(" ")
                    );
                    if !init.is_empty() {
                        choice.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
                    }
                    Err(Failure::bad_request(choice))
                }
            }
        }
    }
}

/// The port of the node's API where a Node does not say.
const NODE_PORT: i64 = 10250;

/// Where a node answers: by internal address, then host name, then external address, as upstream's default order is.
fn node_of(call: &Call, name: &str) -> Result<Node, Failure> {
    let kinds = call.server.kinds();
    let kind = kinds.resource("", "v1", "nodes").ok_or_else(route::nowhere)?;
    let node = write::parse(&read::find(&call.server.config.store, kind, "", name)?)?;
    let addresses = node.pointer("/status/addresses").and_then(Value::as_array);
    let address = |ty: &str| {
        let found = addresses.into_iter().flatten().find(|address| address["type"] == ty);
        found.and_then(|address| address["address"].as_str())
    };
    let host = address("Hostname").or_else(|| address("InternalDNS"));
    let host = address("InternalIP").or(host).or_else(|| address("ExternalIP"));
    let host = host.ok_or_else(|| {
        Failure::new(Reason::ServiceUnavailable, format!("node {name} has told no address of its API"))
    })?;
    let port =
        node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_i64).unwrap_or(NODE_PORT);
    let port = u16::try_from(port).map_err(|_| Failure::internal(format_args!("node {name} names port {port}")))?;
    Ok(Node { name: name.into(), host: host.into(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_container_need_not_be_named() {
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container(&one, None, "log"), Ok("a"));
        let two = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&two, Some("i"), "log"), Ok("i"));
        let failure = container(&two, None, "exec").expect_err("ambiguous");
        assert_eq!(
            failure.message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert!(container(&two, Some("x"), "exec").is_err());
    }

    #[test]
    fn proxied_names() {
        assert_eq!(proxied("web"), ("", "web", None));
        assert_eq!(proxied("web:8080"), ("", "web", Some("8080".into())));
        assert_eq!(proxied("https:web:443"), ("https", "web", Some("443".into())));
        assert_eq!(proxied("https:web:"), ("https", "web", None));
    }

    #[test]
    fn the_node_gets_its_own_parameter_names() {
        let query = [
            ("command", "ls"),
            ("command", "-l"),
            ("stdin", "true"),
            ("stdout", "1"),
            ("tty", "false"),
            ("container", "a"),
        ];
        let query: Vec<(String, String)> = query.map(|(key, value)| (key.into(), value.into())).to_vec();
        assert_eq!(node_query("exec", &query).as_deref(), Some("command=ls&command=-l&input=1&output=1"));
    }
}
