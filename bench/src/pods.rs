//! Pods: from create to Running as a watching client sees it, many at once, and commands run in them.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::{Stream, StreamExt};
use sampan_base::Clock;
use sampan_base::clock::Instant;
use sampan_client::{Client, DeleteOptions, ListOptions, WatchEvent, WriteOptions};
use sampan_wire::websocket;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::local::Cluster;
use crate::report::{Figure, percentile};
use crate::target::{Target, core};

const NAMESPACE: &str = "bench-pods";
const PODS: usize = 50;
/// At ten a second.
const INTERVAL: Duration = Duration::from_millis(100);
const EXECS: u32 = 200;

/// Creates pods at a steady rate.
pub async fn latency(target: &Target, clock: &Clock) -> anyhow::Result<Vec<Figure>> {
    let client = target.client()?;
    target.namespace(&client, NAMESPACE).await?;
    // The first one pays for what is set up once.
    run(&client, "warm", 1, INTERVAL, clock).await?;
    let mut took = run(&client, "paced", PODS, INTERVAL, clock).await?;
    clear(&client, clock).await?;
    Ok(vec![
        Figure::new("pod create → Running seen, 10 pods/s, p50", percentile(&mut took, 0.5), "ms").at_most(50.0).gate(),
        Figure::new("pod create → Running seen, 10 pods/s, p99", percentile(&mut took, 0.99), "ms")
            .at_most(200.0)
            .gate(),
    ])
}

/// Creates pods as fast as the API takes them, and measures what they cost while they run.
pub async fn burst(target: &Target, cluster: Option<&Cluster>, clock: &Clock) -> anyhow::Result<Vec<Figure>> {
    let client = target.client()?;
    target.namespace(&client, NAMESPACE).await?;
    let pss = async || match cluster {
        Some(cluster) => anyhow::Ok(Some(cluster.processes().await?)),
        None => Ok(None),
    };
    // What a process allocated for one moment it has given back after some seconds.
    let settled = Duration::from_secs(5);
    clock.sleep(settled).await;
    let before = pss().await?.map(|processes| processes.pss_mb()).transpose()?;
    let mut took = run(&client, "burst", PODS, Duration::ZERO, clock).await?;
    let all = percentile(&mut took, 1.0) / 1e3;
    // The budget speaks of 200 pods in 4 s.
    let mut figures =
        vec![Figure::new(format!("{PODS} pods at once, all Running"), all, "s").at_most(4.0 * PODS as f64 / 200.0)];
    clock.sleep(settled).await;
    if let (Some(before), Some(after)) = (before, pss().await?) {
        let each = |mb: f64| mb / PODS as f64;
        figures.push(
            Figure::new("memory per pod beyond its own processes, PSS", each(after.pss_mb()? - before), "MB")
                .at_most(0.3),
        );
        let holders = after.by_role()?.get("holders").copied().unwrap_or_default();
        let count = after.count("holders").max(1) as f64;
        figures.push(Figure::new("  of that its holder", holders / count, "MB"));
    }
    clear(&client, clock).await?;
    Ok(figures)
}

/// Runs `true` in one container, again and again.
pub async fn exec(target: &Target, cluster: Option<&Cluster>, clock: &Clock) -> anyhow::Result<Vec<Figure>> {
    let (client, transport) = (target.client()?, target.transport()?);
    target.namespace(&client, NAMESPACE).await?;
    run(&client, "exec", 1, Duration::ZERO, clock).await?;
    let path = core("pods", Some(NAMESPACE)).name("exec-0").subresource("exec").path()
        + "?command=true&stdout=true&stderr=true";
    let once = async || -> anyhow::Result<()> {
        let upgraded = transport.websocket(&path, "v5.channel.k8s.io").await?;
        let framing = websocket::Framing { base64: false, half_close: true };
        let mut channels = websocket::channels(websocket::client(upgraded.io).await, 4, framing, clock.clone());
        // Channel 3 says how it ended.
        let mut text = Vec::new();
        let status = channels.readers.last_mut().context("no status channel")?;
        while let Some(chunk) = status.next().await {
            text.extend_from_slice(&chunk);
        }
        let status: Value = serde_json::from_slice(&text).context("read how `true` ended")?;
        if status["status"] != "Success" {
            bail!("`true` failed: {status}");
        }
        Ok(())
    };
    once().await?;
    let cpu = async || match cluster {
        Some(cluster) => anyhow::Ok(Some(cluster.processes().await?.cpu()?)),
        None => Ok(None),
    };
    let before = cpu().await?;
    let mut took = Vec::new();
    for _ in 0..EXECS {
        let start = clock.instant();
        once().await?;
        took.push(start.elapsed());
    }
    let mut figures =
        vec![Figure::new("exec of `true` with a new connection, wall, p50", percentile(&mut took, 0.5), "ms")];
    if let (Some(before), Some(after)) = (before, cpu().await?) {
        let each = after.saturating_sub(before).as_secs_f64() * 1e3 / f64::from(EXECS);
        figures.push(Figure::new("exec of `true`, CPU of all processes of the cluster", each, "ms").at_most(3.0));
    }
    clear(&client, clock).await?;
    Ok(figures)
}

/// Creates pods and waits until a watch has shown each of them running: how long each took from its create being sent.
async fn run(
    client: &Client,
    prefix: &str,
    count: usize,
    interval: Duration,
    clock: &Clock,
) -> anyhow::Result<Vec<Duration>> {
    let pods = core("pods", Some(NAMESPACE));
    let list = client.list_raw(&pods, &ListOptions::default()).await?;
    let options = ListOptions { resource_version: Some(list.resource_version), ..ListOptions::default() };
    let events = client.watch_raw(&pods, &options).await?;
    let start = clock.instant();
    let creating = futures::future::try_join_all((0..count).map(|number| async move {
        clock.sleep_until(start + interval * number as u32).await;
        let name = format!("{prefix}-{number}");
        let sent = clock.instant();
        client
            .create_raw(&core("pods", Some(NAMESPACE)), pod(&name).to_string().into(), &WriteOptions::default())
            .await?;
        anyhow::Ok((name, sent))
    }));
    let (sent, seen) = futures::future::try_join(creating, running(events, prefix, count, clock)).await?;
    sent.into_iter()
        .map(|(name, sent)| Ok(*seen.get(&name).with_context(|| format!("{name} was not seen"))? - sent))
        .collect()
}

/// When each of `count` pods was first seen running.
async fn running(
    events: impl Stream<Item = Result<WatchEvent, sampan_client::Error>>,
    prefix: &str,
    count: usize,
    clock: &Clock,
) -> anyhow::Result<BTreeMap<String, Instant>> {
    #[derive(Deserialize)]
    struct Pod {
        metadata: Metadata,
        #[serde(default)]
        status: Status,
    }
    #[derive(Deserialize)]
    struct Metadata {
        name: String,
    }
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Status {
        phase: String,
    }
    let mut events = std::pin::pin!(events);
    let mut seen = BTreeMap::new();
    while seen.len() < count {
        let event =
            events.next().await.with_context(|| format!("the watch ended; {} of {count} run", seen.len()))??;
        let now = clock.instant();
        let (WatchEvent::Added(object) | WatchEvent::Modified(object)) = event else { continue };
        let pod: Pod = serde_json::from_slice(&object)?;
        let ours = pod.metadata.name.starts_with(prefix);
        match pod.status.phase.as_str() {
            "Running" if ours => drop(seen.entry(pod.metadata.name).or_insert(now)),
            "Failed" | "Succeeded" => {
                bail!("pod {} has ended: {}", pod.metadata.name, String::from_utf8_lossy(&object))
            }
            _ => {}
        }
    }
    Ok(seen)
}

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main", "image": "busybox:1", "imagePullPolicy": "Never", "command": ["sleep", "3600"],
            }],
        },
    })
}

async fn clear(client: &Client, clock: &Clock) -> anyhow::Result<()> {
    let pods = core("pods", Some(NAMESPACE));
    client.delete(&pods, &DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() }).await?;
    while !client.list_raw(&pods, &ListOptions::default()).await?.items.is_empty() {
        clock.sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
