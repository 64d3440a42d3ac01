//! An API server in memory for tests of controllers: a transport with lists, watches, optimistic locking, finalizers and
//! graceful deletion of pods, which can lag, fail and lose answers. It validates and defaults nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sampan_base::{Clock, Dice};
use sampan_client::{Body, Client, Error, Transport};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::framework::{ClientFor, seconds};

/// Resource, namespace, name.
pub type Id = (String, String, String);

type Invariant = Box<dyn Fn(&BTreeMap<Id, Value>) + Send>;

pub struct Api {
    state: Mutex<State>,
    pub clock: Clock,
    pub dice: Dice,
    /// Of 100 writes so many fail, half of them after they were carried out.
    pub trouble: Mutex<u64>,
    /// Watch events come up to so much later.
    pub lag: Duration,
}

#[derive(Default)]
struct State {
    revision: u64,
    objects: BTreeMap<Id, Value>,
    history: Vec<(u64, String, Value)>,
    watchers: Vec<(String, mpsc::UnboundedSender<Value>)>,
    /// Looked at after every write.
    invariant: Option<Invariant>,
}

struct Route {
    resource: String,
    namespace: String,
    name: String,
    subresource: String,
}

fn route(path: &str) -> Route {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let rest = parts.get(if parts[0] == "api" { 2 } else { 3 }..).unwrap_or(&[]);
    let (namespace, rest) = match rest {
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() && !matches!(rest, ["status" | "finalize"]) => {
            (*namespace, rest)
        }
        rest => ("", rest),
    };
    let part = |at: usize| rest.get(at).copied().unwrap_or_default().to_owned();
    Route { resource: part(0), namespace: namespace.into(), name: part(1), subresource: part(2) }
}

type Outcome = Result<Value, (u16, &'static str)>;

const NOT_FOUND: (u16, &str) = (404, "NotFound");
const CONFLICT: (u16, &str) = (409, "Conflict");

impl Api {
    pub fn new(clock: Clock, dice: Dice, trouble: u64, lag: Duration) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), clock, dice, trouble: Mutex::new(trouble), lag })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn client(self: &Arc<Self>) -> Client {
        Client::new(self.clone())
    }

    pub fn client_for(self: &Arc<Self>) -> ClientFor {
        let api = self.clone();
        Arc::new(move |_| api.client())
    }

    pub fn watch_over(&self, invariant: impl Fn(&BTreeMap<Id, Value>) + Send + 'static) {
        self.lock().invariant = Some(Box::new(invariant));
    }

    pub fn calm(&self) {
        *self.trouble.lock().expect("lock") = 0;
    }

    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.lock().objects.get(&(resource.into(), namespace.into(), name.into())).cloned()
    }

    pub fn list(&self, resource: &str) -> Vec<Value> {
        let state = self.lock();
        state.objects.iter().filter(|((one, ..), _)| one == resource).map(|(_, object)| object.clone()).collect()
    }

    /// A write past the API: what users and nodes do in a test. A missing object is made.
    pub fn put(&self, resource: &str, namespace: &str, name: &str, change: impl FnOnce(&mut Value)) {
        let id = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let mut object = self.lock().objects.get(&id).cloned().unwrap_or_else(|| self.fresh(namespace, name));
        let spec = object["spec"].clone();
        change(&mut object);
        if object["spec"] != spec {
            object["metadata"]["generation"] = (object["metadata"]["generation"].as_i64().unwrap_or(0) + 1).into();
        }
        self.lock().commit(id, Some(object));
    }

    /// A digest of every write so far.
    pub fn trace(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        for (revision, resource, event) in &self.lock().history {
            (revision, resource, event.to_string()).hash(&mut hasher);
        }
        hasher.finish()
    }

    pub fn remove(&self, resource: &str, namespace: &str, name: &str) {
        self.lock().commit((resource.into(), namespace.into(), name.into()), None);
    }

    fn fresh(&self, namespace: &str, name: &str) -> Value {
        let mut metadata = json!({
            "name": name, "uid": self.dice.uid(), "generation": 1, "creationTimestamp": seconds(self.clock.now()),
        });
        if !namespace.is_empty() {
            metadata["namespace"] = namespace.into();
        }
        json!({"metadata": metadata})
    }

    fn write(&self, method: &http::Method, route: Route, content: &str, body: &Value) -> Outcome {
        let Route { resource, namespace, name, subresource } = route;
        if *method == http::Method::POST && subresource.is_empty() {
            return self.create(resource, namespace, body);
        }
        if name.is_empty() {
            let here = |(one, space, _): &&Id| *one == resource && *space == namespace;
            let names: Vec<String> = self.lock().objects.keys().filter(here).map(|(.., name)| name.clone()).collect();
            for name in names {
                let route = Route {
                    name,
                    resource: resource.clone(),
                    namespace: namespace.clone(),
                    subresource: String::new(),
                };
                self.write(method, route, content, body)?;
            }
            return Ok(json!({}));
        }
        let id = (resource, namespace, name);
        let mut state = self.lock();
        let old = state.objects.get(&id).cloned().ok_or(NOT_FOUND)?;
        let mut new = old.clone();
        if *method == http::Method::POST {
            if !old["spec"]["nodeName"].is_null() || body["metadata"]["uid"] != old["metadata"]["uid"] {
                return Err(CONFLICT);
            }
            new["spec"]["nodeName"] = body["target"]["name"].clone();
            return Ok(state.commit(id, Some(new)));
        }
        if *method == http::Method::DELETE {
            let uid = &body["preconditions"]["uid"];
            if !uid.is_null() && *uid != old["metadata"]["uid"] {
                return Err(CONFLICT);
            }
            let version = &body["preconditions"]["resourceVersion"];
            if !version.is_null() && *version != old["metadata"]["resourceVersion"] {
                return Err(CONFLICT);
            }
            let mut finalizers: BTreeSet<String> = finalizers(&old);
            match body["propagationPolicy"].as_str() {
                Some("Foreground") => finalizers.insert("foregroundDeletion".into()),
                Some("Orphan") => finalizers.insert("orphan".into()),
                _ => false,
            };
            let graceful = id.0 == "pods" && !old["spec"]["nodeName"].is_null() && body["gracePeriodSeconds"] != 0;
            let held = old["spec"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
            if !graceful && !held && finalizers.is_empty() {
                return Ok(state.commit(id, None));
            }
            if new["metadata"]["deletionTimestamp"].is_null() {
                new["metadata"]["deletionTimestamp"] = seconds(self.clock.now()).into();
                new["metadata"]["finalizers"] = finalizers.into_iter().collect();
                new = state.commit(id, Some(new));
            }
            return Ok(new);
        }
        for field in ["uid", "resourceVersion"] {
            let wanted = &body["metadata"][field];
            if !wanted.is_null() && *wanted != old["metadata"][field] {
                return Err(CONFLICT);
            }
        }
        let mut merged = old.clone();
        if *method == http::Method::PUT {
            merged = body.clone()
        } else {
            merge(&mut merged, body, content.contains("strategic"))
        }
        match subresource.as_str() {
            "status" => new["status"] = merged["status"].take(),
            _ => {
                new = merged;
                new["status"] = old["status"].clone();
            }
        }
        if new["spec"] != old["spec"] {
            new["metadata"]["generation"] = (old["metadata"]["generation"].as_i64().unwrap_or(0) + 1).into();
        }
        if new == old {
            return Ok(old);
        }
        let finished = !new["metadata"]["deletionTimestamp"].is_null() && finalizers(&new).is_empty();
        let runs = id.0 == "pods" && !new["spec"]["nodeName"].is_null();
        let gone = finished && !runs && new["spec"]["finalizers"].as_array().is_none_or(Vec::is_empty);
        Ok(state.commit(id, (!gone).then_some(new)))
    }

    fn create(&self, resource: String, namespace: String, body: &Value) -> Outcome {
        let name = match body["metadata"]["name"].as_str() {
            Some(name) => name.to_owned(),
            None => body["metadata"]["generateName"].as_str().unwrap_or_default().to_owned() + &self.dice.suffix(5),
        };
        let id = (resource, namespace, name);
        if self.lock().objects.contains_key(&id) {
            return Err((409, "AlreadyExists"));
        }
        let mut object = body.clone();
        for (key, value) in self.fresh(&id.1, &id.2)["metadata"].as_object().expect("an object") {
            object["metadata"][key] = value.clone();
        }
        if id.0 == "pods" {
            object["status"] = json!({"phase": "Pending"});
            object["spec"]["schedulerName"] = "default-scheduler".into();
        }
        Ok(self.lock().commit(id, Some(object)))
    }

    fn watch(&self, resource: &str, from: u64) -> Body {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.lock();
        for (revision, one, event) in &state.history {
            if *revision > from && one == resource {
                let _ = sender.send(event.clone());
            }
        }
        state.watchers.push((resource.to_owned(), sender));
        let (clock, dice, lag) = (self.clock.clone(), self.dice.clone(), self.lag);
        Box::pin(futures::stream::unfold(receiver, move |mut receiver| {
            let (clock, dice) = (clock.clone(), dice.clone());
            async move {
                let event = receiver.recv().await?;
                if !lag.is_zero() {
                    clock.sleep(Duration::from_micros(dice.below(lag.as_micros() as u64))).await;
                }
                Some((Ok(Bytes::from(event.to_string() + "\n")), receiver))
            }
        }))
    }
}

impl State {
    fn commit(&mut self, id: Id, object: Option<Value>) -> Value {
        self.revision += 1;
        let before = self.objects.remove(&id);
        let (kind, mut shown) = match object {
            Some(object) => (if before.is_some() { "MODIFIED" } else { "ADDED" }, object),
            None => ("DELETED", before.unwrap_or_default()),
        };
        shown["metadata"]["resourceVersion"] = self.revision.to_string().into();
        if kind != "DELETED" {
            self.objects.insert(id.clone(), shown.clone());
        }
        let event = json!({"type": kind, "object": shown});
        self.history.push((self.revision, id.0.clone(), event.clone()));
        self.watchers.retain(|(resource, watcher)| *resource != id.0 || watcher.send(event.clone()).is_ok());
        if let Some(invariant) = &self.invariant {
            invariant(&self.objects);
        }
        shown
    }
}

fn finalizers(object: &Value) -> BTreeSet<String> {
    let listed = object["metadata"]["finalizers"].as_array().into_iter().flatten();
    listed.filter_map(Value::as_str).map(str::to_owned).collect()
}

/// A merge patch; strategic only as far as conditions and owner references need it.
fn merge(object: &mut Value, patch: &Value, strategic: bool) {
    let (Value::Object(object), Value::Object(patch)) = (&mut *object, patch) else { return *object = patch.clone() };
    for (key, value) in patch {
        let by = match key.as_str() {
            "conditions" => "type",
            "ownerReferences" => "uid",
            _ => "",
        };
        if value.is_null() {
            object.remove(key);
        } else if let (true, false, Some(items)) = (strategic, by.is_empty(), value.as_array()) {
            let list = object.entry(key).or_insert_with(|| json!([])).as_array_mut().expect("a list");
            for item in items {
                let at = list.iter().position(|one| one[by] == item[by]);
                match (at, item["$patch"] == "delete") {
                    (Some(at), true) => drop(list.remove(at)),
                    (Some(at), false) => merge(&mut list[at], item, true),
                    (None, true) => {}
                    (None, false) => list.push(item.clone()),
                }
            }
        } else if value.is_object() {
            merge(object.entry(key).or_insert_with(|| json!({})), value, strategic);
        } else {
            object.insert(key.clone(), value.clone());
        }
    }
}

#[async_trait]
impl Transport for Api {
    async fn send(&self, request: http::Request<Bytes>) -> Result<http::Response<Body>, Error> {
        let route = route(request.uri().path());
        let query = request.uri().query().unwrap_or_default().to_owned();
        // Answers take their time, so that others come in between.
        self.clock.sleep(Duration::from_micros(100 + self.dice.below(900))).await;
        if request.method() == http::Method::GET {
            if let Some(found) = discovery(request.uri().path()) {
                return Ok(answer(Ok(found)));
            }
            if query.contains("watch=true") {
                let from = query.split("resourceVersion=").nth(1).and_then(|rest| rest.split('&').next());
                let from = from.and_then(|text| text.parse().ok()).unwrap_or(0);
                return Ok(http::Response::new(self.watch(&route.resource, from)));
            }
            let outcome = if route.name.is_empty() {
                let state = self.lock();
                let wanted = |(resource, namespace, _): &Id| {
                    *resource == route.resource && (route.namespace.is_empty() || *namespace == route.namespace)
                };
                let items: Vec<&Value> =
                    state.objects.iter().filter(|(id, _)| wanted(id)).map(|(_, object)| object).collect();
                Ok(json!({"metadata": {"resourceVersion": state.revision.to_string()}, "items": items}))
            } else {
                self.get(&route.resource, &route.namespace, &route.name).ok_or(NOT_FOUND)
            };
            return Ok(answer(outcome));
        }
        let trouble = self.dice.below(100) < *self.trouble.lock().expect("lock");
        if trouble && self.dice.below(2) == 0 {
            return Ok(answer(Err((500, "InternalError"))));
        }
        let body: Value = serde_json::from_slice(request.body()).unwrap_or_default();
        let content = request.headers().get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
        let outcome = self.write(request.method(), route, content, &body);
        if trouble { Err(Error::Transport("the answer was lost".into())) } else { Ok(answer(outcome)) }
    }
}

/// Some resources, all of them namespaced but one.
fn discovery(path: &str) -> Option<Value> {
    let verbs = json!(["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]);
    let list = |resources: &[(&str, &str, bool)]| {
        let one = |(name, kind, namespaced): &(&str, &str, bool)| json!({"name": name, "kind": kind, "namespaced": namespaced, "verbs": verbs});
        Some(json!({"resources": resources.iter().map(one).collect::<Vec<_>>()}))
    };
    match path {
        "/apis" => Some(json!({"groups": [
            {"preferredVersion": {"groupVersion": "apps/v1"}},
            {"preferredVersion": {"groupVersion": "discovery.k8s.io/v1"}},
        ]})),
        "/apis/discovery.k8s.io/v1" => list(&[("endpointslices", "EndpointSlice", true)]),
        "/api/v1" => list(&[
            ("pods", "Pod", true),
            ("configmaps", "ConfigMap", true),
            ("services", "Service", true),
            ("serviceaccounts", "ServiceAccount", true),
            ("endpoints", "Endpoints", true),
            ("nodes", "Node", false),
            ("namespaces", "Namespace", false),
        ]),
        "/apis/apps/v1" => list(&[("replicasets", "ReplicaSet", true), ("deployments", "Deployment", true)]),
        _ => None,
    }
}

fn answer(outcome: Outcome) -> http::Response<Body> {
    let (code, body) = match outcome {
        Ok(object) => (200, object),
        Err((code, reason)) => (code, json!({"kind": "Status", "code": code, "reason": reason, "message": reason})),
    };
    let chunk = Bytes::from(body.to_string());
    let body: Body = Box::pin(futures::stream::once(async move { Ok(chunk) }));
    http::Response::builder().status(code).body(body).expect("a response")
}
