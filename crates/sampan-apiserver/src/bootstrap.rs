//! What a cluster has before anybody writes to it: namespaces, default roles and bindings, priority classes, the Service
//! `kubernetes`. It is brought about through the API like any other write, as the user `system:apiserver`.
//!
//! Reconciled at every start: what is absent is created; a default role gets back rules it lost, a default binding its
//! subjects; what was added by hand stays; an object with `rbac.authorization.kubernetes.io/autoupdate: "false"` is left alone.

pub mod kubernetes;
pub mod policy;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use sampan_api::object::{name, namespace};
use sampan_client::api::Target;
use sampan_client::{Client, Error, WriteOptions};
use serde_json::{Value, json};

/// The user of the API server's own writes, and his group.
pub const USER: &str = "system:apiserver";

/// How many objects are looked at together: they share the log's syncs.
const TOGETHER: usize = 64;

/// One object that has to be there.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub group: &'static str,
    pub version: &'static str,
    pub resource: &'static str,
    pub value: Value,
}

impl Object {
    fn collection(&self) -> Target<'_> {
        let namespace = Some(namespace(&self.value)).filter(|namespace| !namespace.is_empty());
        let Self { group, version, resource, .. } = self;
        Target { group, version, resource, namespace, name: None, subresource: None }
    }
}

/// The namespaces every cluster has.
pub fn namespaces() -> Vec<Object> {
    let object = |name: &str| Object {
        group: "",
        version: "v1",
        resource: "namespaces",
        value: json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}),
    };
    ["default", "kube-system", "kube-public", "kube-node-lease"].map(object).to_vec()
}

/// `pkg/apis/scheduling/v1/helpers.go`.
pub fn priority_classes() -> Vec<Object> {
    let object = |(name, value, description): (&str, i32, &str)| Object {
        group: "scheduling.k8s.io",
        version: "v1",
        resource: "priorityclasses",
        value: json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "description": description,
        }),
    };
    let classes = [
        ("system-node-critical", 2_000_001_000, "For pods without which their node does not work."),
        ("system-cluster-critical", 2_000_000_000, "For pods without which the cluster does not work."),
    ];
    classes.map(object).to_vec()
}

/// Brings about everything of this module. Namespaces come first; the rest needs them.
pub async fn run(client: &Client, config: &kubernetes::Config) -> Result<(), Error> {
    ensure_all(client, namespaces()).await?;
    let mut rest = policy::objects();
    rest.extend(priority_classes());
    ensure_all(client, rest).await?;
    kubernetes::ensure(client, config).await
}

async fn ensure_all(client: &Client, objects: Vec<Object>) -> Result<(), Error> {
    let tasks = objects.into_iter().map(|object| ensure(client, object));
    futures::stream::iter(tasks).buffer_unordered(TOGETHER).try_collect::<Vec<()>>().await.map(drop)
}

/// Creates the object, or brings the stored one back to what it must have.
pub(crate) async fn ensure(client: &Client, object: Object) -> Result<(), Error> {
    // Somebody else may create or change it at the same time; a few rounds are enough for any order.
    for _ in 0..5 {
        let stored = match client.get_raw(&object.collection().name(name(&object.value))).await {
            Ok(bytes) => Some(sampan_client::api::decode::<Value>(&bytes)?),
            Err(error) if error.is_not_found() => None,
            Err(error) => return Err(error),
        };
        let written = match &stored {
            None => create(client, &object).await,
            Some(stored) => match reconciled(&object.value, stored) {
                None => return Ok(()),
                Some(value) => replace(client, &object, &value).await,
            },
        };
        match written {
            Err(error) if error.is_already_exists() || error.is_conflict() || error.is_not_found() => continue,
            done => return done,
        }
    }
    Err(Error::Request(format!("{} {:?} changes all the time", object.resource, name(&object.value))))
}

async fn create(client: &Client, object: &Object) -> Result<(), Error> {
    let body = Bytes::from(object.value.to_string());
    client.create_raw(&object.collection(), body, &WriteOptions::default()).await.map(drop)
}

async fn replace(client: &Client, object: &Object, value: &Value) -> Result<(), Error> {
    let target = object.collection().name(name(&object.value));
    client.replace_raw(&target, Bytes::from(value.to_string()), &WriteOptions::default()).await.map(drop)
}

/// The stored object with what it lacks of `wanted`; `None` when it lacks nothing, or must not be touched.
fn reconciled(wanted: &Value, stored: &Value) -> Option<Value> {
    match sampan_api::object::text(wanted, &["kind"]) {
        "Role" | "ClusterRole" | "RoleBinding" | "ClusterRoleBinding" => policy::reconciled(wanted, stored),
        "Service" | "Endpoints" | "EndpointSlice" => kubernetes::reconciled(wanted, stored),
        _ => None,
    }
}
