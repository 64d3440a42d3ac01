//! How the parts of the server that know no store read the state: [`Lookup`] over the store, and the feed that keeps
//! observers' indexes up to date.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sampan_base::{Clock, task};
use sampan_store::{Change, Entry, Range, ReadError, Revision, Store};
use tokio::sync::watch;

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

/// How far the observers have followed the commits.
#[derive(Clone)]
pub struct Feed {
    store: Store,
    seen: watch::Receiver<Revision>,
}

impl Feed {
    /// Waits until everything that is committed now has been observed. The feed is a few microseconds behind; it ends with
    /// the store, and then there is nothing to wait for.
    pub async fn caught_up(&self) {
        let now = self.store.revision();
        let mut seen = self.seen.clone();
        let _ = seen.wait_for(|seen| *seen >= now).await;
    }
}

/// Gives observers everything that is stored and returns; then keeps them up to date for as long as the store lives.
pub async fn feed(store: &Store, clock: &Clock, observers: Vec<Arc<dyn Observer>>) -> Result<Feed, ReadError> {
    store.barrier().await?;
    let mut wanted: BTreeMap<String, Source> = BTreeMap::new();
    for observer in observers {
        for (group, resource) in observer.resources() {
            let fresh = || Source { group, resource, observers: Vec::new(), known: BTreeSet::new() };
            wanted.entry(prefix(group, resource, "")).or_insert_with(fresh).observers.push(observer.clone());
        }
    }
    let mut watch = refill(store, &mut wanted)?;
    let (sender, seen) = watch::channel(watch.progress());
    let (feed, clock) = (Feed { store: store.clone(), seen }, clock.clone());
    let store = store.clone();
    task::spawn("apiserver-feed", async move {
        loop {
            sender.send_replace(watch.progress());
            while let Ok(event) = watch.next().await {
                let (entry, present) = match &event.change {
                    Change::Put { entry, .. } => (entry, true),
                    Change::Delete { entry, .. } => (entry, false),
                };
                if let Some((prefix, source)) = source_of(&mut wanted, &entry.key) {
                    source.take(&prefix, entry, present);
                }
                sender.send_replace(watch.progress());
            }
            // Cut off for being slow, or the store is closed: start over, and give up when that fails too.
            clock.sleep(Duration::from_millis(10)).await;
            match refill(&store, &mut wanted) {
                Ok(again) => watch = again,
                Err(_) => return,
            }
        }
    });
    Ok(feed)
}

/// One resource somebody observes.
struct Source {
    group: &'static str,
    resource: &'static str,
    observers: Vec<Arc<dyn Observer>>,
    /// The keys the observers were told of, so that what is gone after a gap can be told too.
    known: BTreeSet<sampan_store::Key>,
}

impl Source {
    fn take(&mut self, prefix: &str, entry: &Entry, present: bool) {
        if present {
            self.known.insert(entry.key.clone());
        } else {
            self.known.remove(&entry.key);
        }
        self.tell(prefix, &entry.key, present.then_some(&entry.value));
    }

    fn tell(&self, prefix: &str, key: &str, object: Option<&Bytes>) {
        let rest = key.strip_prefix(prefix).unwrap_or(key);
        let (namespace, name) = rest.split_once('/').unwrap_or(("", rest));
        let (group, resource) = (self.group, self.resource);
        for observer in &self.observers {
            observer.observe(&lookup::Change { group, resource, namespace, name, object });
        }
    }
}

/// The source a key belongs to: keys are `/GROUP/RESOURCE/…`.
fn source_of<'a>(wanted: &'a mut BTreeMap<String, Source>, key: &str) -> Option<(String, &'a mut Source)> {
    let (at, _) = key.match_indices('/').nth(2)?;
    let prefix = &key[..=at];
    wanted.get_mut(prefix).map(|source| (prefix.to_owned(), source))
}

/// Tells what is there now and what of the known is gone; watches everything from there.
fn refill(store: &Store, wanted: &mut BTreeMap<String, Source>) -> Result<sampan_store::Watch, ReadError> {
    let at = store.revision();
    let watch = store.watch("/", at)?;
    for (prefix, source) in wanted {
        let page = store.range(&Range { prefix, at: Some(at), ..Range::default() })?;
        let gone: Vec<sampan_store::Key> = {
            let there: BTreeSet<&sampan_store::Key> = page.entries.iter().map(|entry| &entry.key).collect();
            source.known.iter().filter(|key| !there.contains(key)).cloned().collect()
        };
        for key in gone {
            source.known.remove(&key);
            source.tell(prefix, &key, None);
        }
        for entry in &page.entries {
            source.take(prefix, entry, true);
        }
    }
    Ok(watch)
}
