//! How the parts of the server that know no store read the state: [`Lookup`] over the store, and the feed that keeps
//! observers' indexes up to date.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sampan_base::{Clock, task};
use sampan_store::{Change, Entry, Range, ReadError, Store};

use crate::lookup::{self, Lookup, Observer};

/// Reads the newest state.
#[derive(Clone)]
pub struct StoreLookup(pub Store);

fn prefix(group: &str, resource: &str, namespace: &str) -> String {
    let group = if group.is_empty() { "core" } else { group };
    if namespace.is_empty() { format!("/{group}/{resource}/") } else { format!("/{group}/{resource}/{namespace}/") }
}

impl Lookup for StoreLookup {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Bytes> {
        self.0.get(&(prefix(group, resource, namespace) + name)).map(|entry| entry.value)
    }

    fn list(&self, group: &str, resource: &str, namespace: &str) -> Vec<Bytes> {
        let range = Range { prefix: &prefix(group, resource, namespace), ..Range::default() };
        let page = self.0.range(&range).map(|page| page.entries).unwrap_or_default();
        page.into_iter().map(|entry| entry.value).collect()
    }
}

/// Gives an observer everything that is stored and returns; then keeps it up to date for as long as the store lives.
pub async fn feed(store: &Store, clock: &Clock, observer: Arc<dyn Observer>) -> Result<(), ReadError> {
    store.barrier().await?;
    for (group, resource) in observer.resources() {
        let prefix = prefix(group, resource, "");
        let mut known = Vec::new();
        let mut watch = refill(store, observer.as_ref(), group, resource, &prefix, &mut known)?;
        let (store, clock, observer) = (store.clone(), clock.clone(), observer.clone());
        task::spawn("apiserver-feed", async move {
            loop {
                while let Ok(event) = watch.next().await {
                    match &event.change {
                        Change::Put { entry, .. } => {
                            tell(observer.as_ref(), group, resource, &prefix, entry, true);
                            known.push(entry.key.clone());
                        }
                        Change::Delete { entry, .. } => tell(observer.as_ref(), group, resource, &prefix, entry, false),
                    }
                }
                // Cut off for being slow, or the store is closed: start over, and give up when that fails too.
                clock.sleep(Duration::from_millis(10)).await;
                match refill(&store, observer.as_ref(), group, resource, &prefix, &mut known) {
                    Ok(again) => watch = again,
                    Err(_) => return,
                }
            }
        });
    }
    Ok(())
}

/// Tells what is there now and what of `known` is gone; watches from there.
fn refill(
    store: &Store,
    observer: &dyn Observer,
    group: &str,
    resource: &str,
    prefix: &str,
    known: &mut Vec<sampan_store::Key>,
) -> Result<sampan_store::Watch, ReadError> {
    let page = store.range(&Range { prefix, ..Range::default() })?;
    known.sort();
    known.dedup();
    for key in known.iter().filter(|key| page.entries.binary_search_by(|entry| entry.key.cmp(key)).is_err()) {
        let (namespace, name) = place(prefix, key);
        observer.observe(&lookup::Change { group, resource, namespace, name, object: None });
    }
    for entry in &page.entries {
        tell(observer, group, resource, prefix, entry, true);
    }
    *known = page.entries.into_iter().map(|entry| entry.key).collect();
    store.watch(prefix, page.revision)
}

fn tell(observer: &dyn Observer, group: &str, resource: &str, prefix: &str, entry: &Entry, present: bool) {
    let (namespace, name) = place(prefix, &entry.key);
    let object = present.then_some(&entry.value);
    observer.observe(&lookup::Change { group, resource, namespace, name, object });
}

fn place<'a>(prefix: &str, key: &'a str) -> (&'a str, &'a str) {
    let rest = key.strip_prefix(prefix).unwrap_or(key);
    rest.split_once('/').unwrap_or(("", rest))
}
