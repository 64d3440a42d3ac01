//! An API server that keeps objects in memory: list and watch with name selectors, create, delete with grace, and patches
//! of a pod's status, as much of each as the agent uses.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response};
use sampan_client::{Body, Error, Transport};
use serde_json::{Value, json};
use tokio::sync::{broadcast, watch};

type Frame = (String, String, Value);

pub struct FakeApi {
    state: Mutex<State>,
    frames: broadcast::Sender<Frame>,
    changed: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    /// By resource and name; one namespace is enough.
    objects: BTreeMap<(String, String), Value>,
    revision: u64,
    is_down: bool,
    patches: u64,
}

impl FakeApi {
    pub fn new() -> Self {
        let api = Self { state: Mutex::default(), frames: broadcast::channel(4096).0, changed: watch::Sender::new(0) };
        api.put("services", json!({"metadata": {"name": "none", "namespace": "other"}}));
        api
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("lock")
    }

    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn get(&self, resource: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&(resource.into(), name.into())).cloned()
    }

    pub fn list(&self, resource: &str) -> Vec<Value> {
        let state = self.lock();
        state.objects.iter().filter(|((of, _), _)| of == resource).map(|(_, object)| object.clone()).collect()
    }

    pub fn put(&self, resource: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        let kind = if self.get(resource, &name).is_some() { "MODIFIED" } else { "ADDED" };
        self.commit(&mut self.lock(), resource, kind, object);
    }

    /// Nothing is answered while it is down, and watches end.
    pub fn set_down(&self, is_down: bool) {
        self.lock().is_down = is_down;
        let _ = self.frames.send(("".into(), "DOWN".into(), Value::Null));
    }

    /// What a client's delete does first.
    pub fn delete(&self, name: &str, grace: i64) {
        let mut state = self.lock();
        let Some(mut pod) = state.objects.get(&("pods".into(), name.into())).cloned() else { return };
        pod["metadata"]["deletionTimestamp"] = "2030-01-01T00:00:30Z".into();
        pod["metadata"]["deletionGracePeriodSeconds"] = grace.into();
        self.commit(&mut state, "pods", "MODIFIED", pod);
    }

    /// Removed without the node's help (`--force`).
    pub fn vanish(&self, resource: &str, name: &str) {
        let mut state = self.lock();
        if let Some(object) = state.objects.remove(&(resource.into(), name.into())) {
            self.tell(&mut state, resource, "DELETED", object);
        }
    }

    pub fn events(&self) -> Vec<String> {
        let text = |event: &Value| {
            let part = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
            format!("{}: {}", part("reason"), part("message"))
        };
        self.list("events").iter().map(text).collect()
    }

    pub fn patches(&self) -> u64 {
        self.lock().patches
    }

    fn commit(&self, state: &mut State, resource: &str, kind: &str, object: Value) {
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        state.revision += 1;
        let mut object = object;
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        state.objects.insert((resource.into(), name), object.clone());
        self.send(resource, kind, object);
    }

    fn tell(&self, state: &mut State, resource: &str, kind: &str, mut object: Value) {
        state.revision += 1;
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        self.send(resource, kind, object);
    }

    fn send(&self, resource: &str, kind: &str, object: Value) {
        let _ = self.frames.send((resource.into(), kind.into(), object));
        self.changed.send_modify(|count| *count += 1);
    }

    fn answer(&self, request: &Request<Bytes>) -> (u16, Value) {
        let mut state = self.lock();
        let target = Target::of(request.uri().path());
        let body: Value = serde_json::from_slice(request.body()).unwrap_or(Value::Null);
        let key = (target.resource.clone(), target.name.clone());
        let found = state.objects.get(&key).cloned();
        match (request.method(), found) {
            (&Method::POST, _) if target.subresource == "token" => {
                let token = format!("token-{}", state.revision);
                (201, json!({"status": {"token": token, "expirationTimestamp": "2030-01-01T01:00:00Z"}}))
            }
            (&Method::POST, _) => {
                self.commit(&mut state, &target.resource, "ADDED", body.clone());
                (201, body)
            }
            (&Method::GET, Some(object)) => (200, object),
            (&Method::PATCH, Some(mut object)) => {
                state.patches += 1;
                if body["metadata"]["uid"] != Value::Null && body["metadata"]["uid"] != object["metadata"]["uid"] {
                    return failure(409, "Conflict");
                }
                merge(&mut object, body);
                self.commit(&mut state, &target.resource, "MODIFIED", object.clone());
                (200, object)
            }
            (&Method::DELETE, Some(object)) => {
                let uid = &body["preconditions"]["uid"];
                if uid != &Value::Null && *uid != object["metadata"]["uid"] {
                    return failure(409, "Conflict");
                }
                state.objects.remove(&key);
                self.tell(&mut state, &target.resource, "DELETED", object.clone());
                (200, object)
            }
            _ => failure(404, "NotFound"),
        }
    }
}

fn failure(code: u16, reason: &str) -> (u16, Value) {
    (code, json!({"kind": "Status", "code": code, "reason": reason, "message": reason}))
}

#[derive(Default)]
struct Target {
    resource: String,
    name: String,
    subresource: String,
}

impl Target {
    fn of(path: &str) -> Self {
        let mut parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        parts.drain(..if parts.first() == Some(&"apis") { 3 } else { 2 });
        if parts.first() == Some(&"namespaces") && parts.len() > 2 {
            parts.drain(..2);
        }
        let part = |index: usize| parts.get(index).map(|part| (*part).to_owned()).unwrap_or_default();
        Self { resource: part(0), name: part(1), subresource: part(2) }
    }
}

/// A strategic merge, as far as a pod's status and a node need it: lists of things with a type or an address merge.
fn merge(into: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *into = patch;
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        match value {
            Value::Null => {
                into.as_object_mut().expect("an object").remove(&key);
            }
            Value::Array(items) if key == "conditions" => merge_list(&mut into[&key], items, "type"),
            Value::Array(mut items) if key == "podIPs" || key == "hostIPs" => {
                items.retain(|item| item.get("$patch").is_none());
                into[&key] = items.into();
            }
            Value::Object(_) => merge(&mut into[&key], value),
            value => into[&key] = value,
        }
    }
}

fn merge_list(into: &mut Value, items: Vec<Value>, by: &str) {
    let mut list = into.as_array().cloned().unwrap_or_default();
    for item in items {
        match list.iter_mut().find(|old| old[by] == item[by]) {
            Some(old) => merge(old, item),
            None => {
                let mut fresh = json!({});
                merge(&mut fresh, item);
                list.push(fresh);
            }
        }
    }
    *into = list.into();
}

#[async_trait]
impl Transport for FakeApi {
    async fn send(&self, request: Request<Bytes>) -> Result<Response<Body>, Error> {
        if self.lock().is_down {
            return Err(Error::Transport("connection refused".into()));
        }
        let target = Target::of(request.uri().path());
        let query = request.uri().query().unwrap_or_default();
        let parameters: BTreeMap<String, String> = form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let only = parameters
            .get("fieldSelector")
            .and_then(|selector| selector.strip_prefix("metadata.name="))
            .map(str::to_owned);
        let respond = |code: u16, body: Body| {
            Response::builder().status(code).body(body).map_err(|error| Error::Request(error.to_string()))
        };
        if request.method() == Method::GET && target.name.is_empty() {
            let selected = move |object: &Value| only.as_deref().is_none_or(|name| object["metadata"]["name"] == name);
            if parameters.contains_key("watch") {
                let from: u64 = parameters.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
                let frames = tokio_stream(self.frames.subscribe());
                let missed: Vec<Frame> = {
                    let state = self.lock();
                    let newer = |object: &Value| {
                        object["metadata"]["resourceVersion"]
                            .as_str()
                            .and_then(|text| text.parse::<u64>().ok())
                            .unwrap_or(0)
                            > from
                    };
                    let objects = state
                        .objects
                        .iter()
                        .filter(|((resource, _), object)| *resource == target.resource && newer(object));
                    objects
                        .map(|((resource, _), object)| (resource.clone(), "MODIFIED".into(), object.clone()))
                        .collect()
                };
                let resource = target.resource;
                let stream = futures::stream::iter(missed)
                    .chain(frames)
                    .take_while(|(_, kind, _)| std::future::ready(kind != "DOWN"))
                    .filter_map(move |(of, kind, object)| {
                        let line = (of == resource && selected(&object))
                            .then(|| Ok(Bytes::from(json!({"type": kind, "object": object}).to_string() + "\n")));
                        std::future::ready(line)
                    });
                return respond(200, Box::pin(stream));
            }
            let revision = self.lock().revision.to_string();
            let items: Vec<Value> = self.list(&target.resource).into_iter().filter(|object| selected(object)).collect();
            let list = json!({"metadata": {"resourceVersion": revision}, "items": items});
            return respond(200, one(list));
        }
        let (code, body) = self.answer(&request);
        respond(code, one(body))
    }
}

fn one(value: Value) -> Body {
    Box::pin(futures::stream::once(async move { Ok(Bytes::from(value.to_string())) }))
}

fn tokio_stream(receiver: broadcast::Receiver<Frame>) -> impl futures::Stream<Item = Frame> + Send {
    futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.ok().map(|frame| (frame, receiver))
    })
}
