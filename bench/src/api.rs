//! The API alone: durable creates, a large list, a watch with many watchers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::try_join_all;
use http::Request;
use sampan_base::clock::Instant;
use sampan_base::{Clock, task};
use sampan_client::{Body, Client, DeleteOptions, ListOptions, WatchEvent, WriteOptions};
use serde_json::json;
use tokio::sync::mpsc;

use crate::report::{Figure, percentile};
use crate::target::{Target, core};

const CLIENTS: usize = 64;
const WRITING: Duration = Duration::from_secs(5);
const LISTED: u64 = 10_000;
const LISTS: usize = 7;
const CONNECTIONS: usize = 10;
const WATCHES_EACH: usize = 100;
const COMMITS: usize = 100;
/// Between two commits: long enough that one is delivered before the next.
const PAUSE: Duration = Duration::from_millis(50);

/// A ConfigMap of about 2 KiB.
fn object(name: &str) -> Bytes {
    let data = json!({"payload": "x".repeat(1900)});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}).to_string().into()
}

/// Clients with a connection each, creating until `more` says no; how long each create took.
async fn create_all(
    target: &Target,
    namespace: &'static str,
    clock: &Clock,
    more: impl Fn() -> bool + Send + Sync + 'static,
) -> anyhow::Result<Vec<Duration>> {
    let more = Arc::new(more);
    let mut tasks = Vec::new();
    for number in 0..CLIENTS {
        let (client, clock, more) = (target.client()?, clock.clone(), more.clone());
        // The handshake is not what is measured.
        client.get_raw(&core("namespaces", None).name(namespace)).await?;
        tasks.push((number, client, clock, more));
    }
    let tasks = tasks.into_iter().map(|(number, client, clock, more)| {
        task::spawn("creating", async move {
            let mut took = Vec::new();
            while more() {
                let name = format!("c-{number}-{}", took.len());
                let start = clock.instant();
                client
                    .create_raw(&core("configmaps", Some(namespace)), object(&name), &WriteOptions::default())
                    .await?;
                took.push(start.elapsed());
            }
            anyhow::Ok(took)
        })
    });
    let done: Vec<_> = try_join_all(tasks).await?.into_iter().collect::<anyhow::Result<_>>()?;
    Ok(done.concat())
}

async fn remove(client: &Client, namespace: &str) -> anyhow::Result<()> {
    client.delete(&core("configmaps", Some(namespace)), &DeleteOptions::default()).await?;
    Ok(())
}

pub async fn creates(target: &Target, clock: &Clock) -> anyhow::Result<Vec<Figure>> {
    const NAMESPACE: &str = "bench-creates";
    let client = target.client()?;
    target.namespace(&client, NAMESPACE).await?;
    let start = clock.instant();
    let mut took = create_all(target, NAMESPACE, clock, move || start.elapsed() < WRITING).await?;
    let rate = took.len() as f64 / start.elapsed().as_secs_f64();
    remove(&client, NAMESPACE).await?;
    Ok(vec![
        Figure::new(format!("durable creates of 2 KiB, {CLIENTS} clients over mTLS"), rate, "/s")
            .at_least(10_000.0)
            .gate(),
        Figure::new("  a create, p50", percentile(&mut took, 0.5), "ms"),
        Figure::new("  a create, p99", percentile(&mut took, 0.99), "ms"),
    ])
}

pub async fn list(target: &Target, clock: &Clock) -> anyhow::Result<Vec<Figure>> {
    const NAMESPACE: &str = "bench-list";
    let client = target.client()?;
    target.namespace(&client, NAMESPACE).await?;
    let left = AtomicU64::new(0);
    create_all(target, NAMESPACE, clock, move || left.fetch_add(1, Ordering::Relaxed) < LISTED).await?;
    let mut rates = Vec::new();
    for _ in 0..LISTS {
        let start = clock.instant();
        let mut body = open(&client, &core("configmaps", Some(NAMESPACE)).path()).await?;
        let mut bytes = 0;
        while let Some(chunk) = body.next().await {
            bytes += chunk?.len();
        }
        if bytes < LISTED as usize * 1900 {
            bail!("the list has only {bytes} bytes");
        }
        rates.push(bytes as f64 / start.elapsed().as_secs_f64() / 1e6);
    }
    rates.sort_by(f64::total_cmp);
    remove(&client, NAMESPACE).await?;
    let median = rates.get(LISTS / 2).copied().unwrap_or(f64::NAN);
    Ok(vec![
        Figure::new(format!("list of {LISTED} objects of 2 KiB over TLS, median of {LISTS}"), median, "MB/s")
            .at_least(400.0),
    ])
}

/// How long from a create being sent until each of a thousand watches has its event: an upper bound for commit → watch.
pub async fn watch(target: &Target, clock: &Clock) -> anyhow::Result<Vec<Figure>> {
    const NAMESPACE: &str = "bench-watch";
    let client = target.client()?;
    target.namespace(&client, NAMESPACE).await?;
    let maps = core("configmaps", Some(NAMESPACE));
    remove(&client, NAMESPACE).await?;
    let revision = client.list_raw(&maps, &ListOptions::default()).await?.resource_version;
    // Only ours: a namespace also gets the cluster's root certificate as a ConfigMap, whenever that comes.
    let label_selector = Some("app=bench".to_owned());
    let options = ListOptions { label_selector, resource_version: Some(revision), ..ListOptions::default() };
    let (arrived, mut arrivals) = mpsc::unbounded_channel::<(usize, Instant)>();
    let mut tasks = task::Group::default();
    for _ in 0..CONNECTIONS {
        let client = target.client()?;
        for _ in 0..WATCHES_EACH {
            let events = client.watch_raw(&maps, &options).await?;
            let (clock, arrived) = (clock.clone(), arrived.clone());
            tasks.spawn("watching", async move {
                let mut events = std::pin::pin!(events);
                while let Some(Ok(event)) = events.next().await {
                    let (WatchEvent::Added(object), now) = (event, clock.instant()) else { continue };
                    if let Some(number) = commit_number(&object) {
                        let _ = arrived.send((number, now));
                    }
                }
            });
        }
    }
    let (mut sent, mut answered) = (Vec::new(), Vec::new());
    for number in 0..COMMITS {
        let metadata = json!({"name": format!("w-{number}"), "labels": {"app": "bench"}});
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata});
        let start = clock.instant();
        client.create_raw(&maps, object.to_string().into(), &WriteOptions::default()).await?;
        sent.push(start);
        answered.push(start.elapsed());
        clock.sleep(PAUSE).await;
    }
    let mut took = Vec::new();
    for _ in 0..COMMITS * CONNECTIONS * WATCHES_EACH {
        let (number, at) = arrivals.recv().await.context("the watches ended")?;
        took.push(at - *sent.get(number).context("an event without a commit")?);
    }
    drop(tasks);
    remove(&client, NAMESPACE).await?;
    Ok(vec![
        Figure::new("create sent → 1,000 watches on 10 connections, p99", percentile(&mut took, 0.99), "ms")
            .at_most(5.0),
        Figure::new("  the same, p50", percentile(&mut took, 0.5), "ms"),
        Figure::new("  of that until the create is answered, p50", percentile(&mut answered, 0.5), "ms"),
    ])
}

/// Which commit an event is of: the objects are called `w-0`, `w-1`, ….
fn commit_number(object: &[u8]) -> Option<usize> {
    let object: serde_json::Value = serde_json::from_slice(object).ok()?;
    object["metadata"]["name"].as_str()?.strip_prefix("w-")?.parse().ok()
}

async fn open(client: &Client, path: &str) -> anyhow::Result<Body> {
    let request = Request::get(path).header(http::header::ACCEPT, "application/json").body(Bytes::new())?;
    Ok(client.open(request).await?)
}
