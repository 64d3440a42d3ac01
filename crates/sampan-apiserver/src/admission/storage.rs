//! What storage objects get when they are created: a claim the default class (DefaultStorageClass), claims and volumes the
//! finalizer that keeps them while they are in use (StorageObjectInUseProtection).

use std::sync::Arc;

use async_trait::async_trait;
use sampan_api::Failure;
use sampan_api::object::{Meta, lookup, metadata_mut};
use serde::Deserialize;
use serde_json::Value;

use super::{Operation, Plugin, Request, list_mut};
use crate::lookup::Lookup;

const IS_DEFAULT: &[&str] =
    &["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const OLD_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

pub struct DefaultStorageClass {
    pub lookup: Arc<dyn Lookup>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Class {
    metadata: Meta,
}

impl DefaultStorageClass {
    /// The newest default class, by name among those made in one second.
    fn class(&self) -> Option<String> {
        let classes: Vec<Class> = self.lookup.views("storage.k8s.io", "storageclasses", "");
        let is_default = |class: &Class| {
            IS_DEFAULT.iter().any(|key| class.metadata.annotations.get(*key).is_some_and(|value| value == "true"))
        };
        let mut defaults: Vec<Class> = classes.into_iter().filter(is_default).collect();
        defaults.sort_by(|a, b| {
            let newest_first = b.metadata.creation_timestamp.cmp(&a.metadata.creation_timestamp);
            newest_first.then_with(|| a.metadata.name.cmp(&b.metadata.name))
        });
        defaults.into_iter().next().map(|class| class.metadata.name)
    }
}

#[async_trait]
impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Failure> {
        if request.operation != Operation::Create || !request.is_for("", "persistentvolumeclaims") {
            return Ok(());
        }
        // An empty name says: no class.
        let said = |path: &[&str]| lookup(&request.object, path).is_some_and(|class| !class.is_null());
        if !said(&["spec", "storageClassName"])
            && !said(&["metadata", "annotations", OLD_CLASS])
            && let Some(class) = self.class()
        {
            sampan_api::object::child_mut(&mut request.object, "spec").insert("storageClassName".into(), class.into());
        }
        Ok(())
    }
}

pub struct StorageObjectInUseProtection;

#[async_trait]
impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    async fn mutate(&self, request: &mut Request<'_>) -> Result<(), Failure> {
        let finalizer = match (request.kind.gvk.group.as_str(), request.kind.resource.as_str()) {
            ("", "persistentvolumeclaims") => "kubernetes.io/pvc-protection",
            ("", "persistentvolumes") => "kubernetes.io/pv-protection",
            ("storage.k8s.io", "volumeattributesclasses") => "kubernetes.io/vac-protection",
            _ => return Ok(()),
        };
        if request.operation == Operation::Create && request.subresource.is_empty() {
            let finalizers = list_mut(metadata_mut(&mut request.object), "finalizers");
            if !finalizers.iter().any(|one| one == finalizer) {
                finalizers.push(Value::from(finalizer));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::admission::testing::{kind, request};
    use crate::auth::User;
    use crate::lookup::testing::Objects;

    async fn claim(object: Value) -> Value {
        let objects = Objects::default();
        for (name, time) in [("old", "2030-01-01T00:00:00Z"), ("new", "2030-01-02T00:00:00Z")] {
            let metadata = json!({"name": name, "creationTimestamp": time, "annotations": {IS_DEFAULT[0]: "true"}});
            objects.put("storage.k8s.io", "storageclasses", &json!({ "metadata": metadata }));
        }
        let (kind, user) = (kind("", "v1", "persistentvolumeclaims", true), User::default());
        let mut asked = request(&kind, &user, Operation::Create, "ns", "c");
        asked.object = object;
        DefaultStorageClass { lookup: Arc::new(objects) }.mutate(&mut asked).await.expect("admitted");
        StorageObjectInUseProtection.mutate(&mut asked).await.expect("admitted");
        asked.object
    }

    #[tokio::test]
    async fn the_newest_default_class_unless_the_claim_says() {
        assert_eq!(claim(json!({"spec": {}})).await["spec"]["storageClassName"], "new");
        assert_eq!(claim(json!({"spec": {"storageClassName": ""}})).await["spec"]["storageClassName"], "");
        let finalizers = claim(json!({})).await["metadata"]["finalizers"].clone();
        assert_eq!(finalizers, json!(["kubernetes.io/pvc-protection"]));
    }
}
