//! Objects that every namespace has: the ServiceAccount `default`, and the ConfigMap `kube-root-ca.crt` with the authority
//! that the API server's certificate comes from. One controller for each, the same code for both.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use sampan_client::Error;
use sampan_client::api::decode;
use sampan_client::informer::{Informer, Key, View};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::framework::{Action, CONFIG_MAPS, Context, Controller, Reconciler, Resource, SERVICE_ACCOUNTS};
use crate::views::Namespace;

/// An object as each namespace should have it.
#[derive(Clone, Debug)]
pub struct Wanted {
    pub resource: Resource,
    pub name: &'static str,
    /// Without name and namespace.
    pub object: Value,
}

pub const ROOT_CA: &str = "kube-root-ca.crt";

pub fn service_account() -> Wanted {
    let object = json!({"apiVersion": "v1", "kind": "ServiceAccount"});
    Wanted { resource: SERVICE_ACCOUNTS, name: "default", object }
}

/// `bundle`: PEM.
pub fn root_ca(bundle: &str) -> Wanted {
    let object = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"annotations": {
            "kubernetes.io/description": "The authorities to trust when talking to this cluster's API server from inside.",
        }},
        "data": {"ca.crt": bundle},
    });
    Wanted { resource: CONFIG_MAPS, name: ROOT_CA, object }
}

/// Whether an object is there, and its `data`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Present {
    data: Value,
}

impl View for Present {
    fn decode(object: &Bytes) -> Result<Self, Error> {
        decode(object)
    }
}

/// The write that brings one namespace's object into being or back into shape.
fn plan(wanted: &Wanted, namespace: &str, present: Option<&Present>) -> Option<Action> {
    match present {
        None => {
            let mut object = wanted.object.clone();
            sampan_api::object::metadata_mut(&mut object).insert("name".into(), wanted.name.into());
            Some(Action::create(wanted.resource, namespace, object))
        }
        Some(present) => {
            let data = wanted.object.get("data").filter(|data| **data != present.data)?;
            Some(Action::merge(wanted.resource, Key::new(namespace, wanted.name), json!({"data": data})))
        }
    }
}

struct Ensurer {
    context: Context,
    namespaces: Informer<Namespace>,
    objects: Informer<Present>,
    wanted: Wanted,
}

/// Wires the controller up; it runs until it is dropped. `objects` may follow more than the wanted ones.
pub fn start(
    name: &'static str,
    context: Context,
    namespaces: Informer<Namespace>,
    objects: Informer<Present>,
    wanted: Wanted,
) -> Controller {
    let mut controller = Controller::new(name, &context.clock);
    controller.source(&namespaces, |change| change.new.iter().map(|_| Key::new("", &change.key.name)).collect());
    let watched = wanted.name;
    controller.source(&objects, move |change| {
        let ours = change.key.name == watched && change.old.is_some();
        ours.then(|| Key::new("", &change.key.namespace)).into_iter().collect()
    });
    let ready = {
        let (namespaces, objects) = (namespaces.clone(), objects.clone());
        async move {
            namespaces.synced().await;
            objects.synced().await;
        }
    };
    controller.work(2, ready, Arc::new(Ensurer { context, namespaces, objects, wanted }));
    controller
}

#[async_trait]
impl Reconciler for Ensurer {
    async fn reconcile(&self, key: &Key) -> Result<Option<Duration>, Error> {
        let terminating =
            self.namespaces.get(key).is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some());
        if terminating {
            return Ok(None);
        }
        let present = self.objects.get(&Key::new(&key.name, self.wanted.name));
        let Some(action) = plan(&self.wanted, &key.name, present.as_deref()) else { return Ok(None) };
        match self.context.perform(&action).await {
            Err(error) if error.is_already_exists() || error.is_namespace_terminating() => Ok(None),
            outcome => outcome.map(|_| None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::Verb;

    #[test]
    fn made_when_absent_and_mended_when_changed() {
        let wanted = root_ca("PEM");
        let Some(Action { verb: Verb::Create(object), .. }) = plan(&wanted, "n", None) else { panic!("a creation") };
        assert_eq!(object["metadata"]["name"], ROOT_CA);
        assert_eq!(object["data"]["ca.crt"], "PEM");
        let changed = Present { data: json!({"ca.crt": "other"}) };
        let Some(Action { verb: Verb::Patch(_, patch), .. }) = plan(&wanted, "n", Some(&changed)) else {
            panic!("a patch")
        };
        assert_eq!(patch, json!({"data": {"ca.crt": "PEM"}}));
        assert!(plan(&wanted, "n", Some(&Present { data: json!({"ca.crt": "PEM"}) })).is_none());
        assert!(plan(&service_account(), "n", Some(&Present::default())).is_none());
    }
}
