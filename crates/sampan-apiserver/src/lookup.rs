//! How authorization, admission and token checks read the state without knowing the store: point reads and lists by
//! resource, and a feed of changes for what keeps an index of its own.
//!
//! Objects are canonical JSON of the kind's storage version.

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Reads the newest state. The namespace is empty for cluster-scoped resources.
pub trait Lookup: Send + Sync + 'static {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Bytes>;
    /// All objects of a resource, in one namespace or, with an empty one, in all.
    fn list(&self, group: &str, resource: &str, namespace: &str) -> Vec<Bytes>;
}

impl dyn Lookup {
    /// The object as a tree.
    pub fn value(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.view(group, resource, namespace, name)
    }

    /// A slim view of the object. What is stored and does not fit the view counts as absent, and is logged.
    pub fn view<T: DeserializeOwned>(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<T> {
        let bytes = self.get(group, resource, namespace, name)?;
        decode(&bytes, resource, namespace, name)
    }

    /// Slim views of all objects.
    pub fn views<T: DeserializeOwned>(&self, group: &str, resource: &str, namespace: &str) -> Vec<T> {
        let all = self.list(group, resource, namespace);
        all.iter().filter_map(|bytes| decode(bytes, resource, namespace, "")).collect()
    }
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8], resource: &str, namespace: &str, name: &str) -> Option<T> {
    serde_json::from_slice(bytes)
        .inspect_err(|error| tracing::error!(resource, namespace, name, %error, "a stored object cannot be read"))
        .ok()
}

/// One object as it is now.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    pub group: &'a str,
    pub resource: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    /// `None`: it was deleted.
    pub object: Option<&'a Bytes>,
}

/// Keeps an index over some resources. The server feeds every stored object once, before it serves, and then every committed
/// change in order. Applying a change twice is harmless.
pub trait Observer: Send + Sync + 'static {
    /// Group and resource of what it wants to see.
    fn resources(&self) -> &'static [(&'static str, &'static str)];
    fn observe(&self, change: &Change<'_>);
}

#[cfg(test)]
pub(crate) mod testing {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;

    /// Objects by group, resource, namespace and name.
    #[derive(Default)]
    pub struct Objects(Mutex<BTreeMap<[String; 4], Bytes>>);

    impl Objects {
        /// Stores an object under the names in its metadata.
        pub fn put(&self, group: &str, resource: &str, object: &Value) {
            let (namespace, name) = (sampan_api::object::namespace(object), sampan_api::object::name(object));
            let key = [group, resource, namespace, name].map(str::to_owned);
            self.0.lock().expect("not poisoned").insert(key, object.to_string().into());
        }

        pub fn remove(&self, group: &str, resource: &str, namespace: &str, name: &str) {
            let key = [group, resource, namespace, name].map(str::to_owned);
            self.0.lock().expect("not poisoned").remove(&key);
        }
    }

    impl Lookup for Objects {
        fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Bytes> {
            let key = [group, resource, namespace, name].map(str::to_owned);
            self.0.lock().expect("not poisoned").get(&key).cloned()
        }

        fn list(&self, group: &str, resource: &str, namespace: &str) -> Vec<Bytes> {
            let objects = self.0.lock().expect("not poisoned");
            let matching = objects
                .iter()
                .filter(|([g, r, ns, _], _)| g == group && r == resource && (namespace.is_empty() || ns == namespace));
            matching.map(|(_, object)| object.clone()).collect()
        }
    }
}
