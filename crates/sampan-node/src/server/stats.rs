//! `/stats/summary` (`stats/v1alpha1`), `/metrics/resource` with upstream's names, and a few figures of the agent itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;

use http::{Response, StatusCode};
use sampan_base::clock::Instant;
use sampan_runtime::{ContainerState, Stats};
use serde_json::{Value, json};

use super::{Body, Server, with_type};
use crate::machine::meminfo;
use crate::pod::PodExt;

const METRICS: &str = "text/plain; version=0.0.4; charset=utf-8";
/// `USER_HZ`, fixed on every architecture Linux runs pods on.
const NANOSECONDS_PER_TICK: u64 = 10_000_000;
const NODE: &str = "";

/// The last reading of each CPU counter, for rates: container id (empty: the node) to time, nanoseconds, rate.
#[derive(Default)]
pub struct Samples(Mutex<BTreeMap<String, (Instant, u64, Option<u64>)>>);

impl Samples {
    /// Nanocores since the last reading that is at least a second old.
    fn rate(&self, id: &str, now: Instant, nanoseconds: u64) -> Option<u64> {
        let mut samples = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (at, before, rate) = samples.get(id).copied().unwrap_or((now, nanoseconds, None));
        let passed = now.saturating_duration_since(at).as_secs_f64();
        let fresh =
            if passed >= 1.0 { Some((nanoseconds.saturating_sub(before) as f64 / passed) as u64) } else { rate };
        if passed >= 1.0 || !samples.contains_key(id) {
            samples.insert(id.to_owned(), (now, nanoseconds, fresh));
        }
        fresh
    }

    fn keep(&self, alive: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).retain(|id, _| alive(id));
    }
}

struct Usage {
    namespace: String,
    pod: String,
    uid: String,
    container: String,
    id: String,
    started: Option<jiff::Timestamp>,
    stats: Stats,
}

async fn usage(server: &Server) -> Vec<Usage> {
    let mut all = Vec::new();
    for shown in server.pods.all() {
        for run in shown.containers.values().filter(|run| run.state == ContainerState::Running) {
            // A container that ends just now has no figures any more.
            let Ok(stats) = server.node.parts.runtime.stats(&run.id).await else { continue };
            all.push(Usage {
                namespace: shown.pod.namespace().into(),
                pod: shown.pod.name().into(),
                uid: shown.pod.uid().into(),
                container: run.config.name.clone(),
                id: run.id.clone(),
                started: run.started_at,
                stats,
            });
        }
    }
    all
}

/// CPU time of the whole machine in nanoseconds, without idling.
fn node_cpu() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let Some(line) = text.lines().next().and_then(|line| line.strip_prefix("cpu ")) else { return 0 };
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|tick| tick.parse().ok()).collect();
    let busy: u64 =
        ticks.iter().enumerate().filter(|(index, _)| !matches!(index, 3 | 4 | 8 | 9)).map(|(_, tick)| tick).sum();
    busy.saturating_mul(NANOSECONDS_PER_TICK)
}

/// Used and available bytes of the machine.
fn node_memory() -> (i64, i64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo(&text, "MemTotal").unwrap_or(0);
    let available = meminfo(&text, "MemAvailable").unwrap_or(0);
    (total - available, available)
}

pub async fn summary(server: &Server) -> Response<Body> {
    let clock = &server.node.parts.clock;
    let (now, time) = (clock.instant(), clock.now().to_string());
    let all = usage(server).await;
    server.samples.keep(|id| id == NODE || all.iter().any(|one| one.id == id));
    let cpu = |id: &str, nanoseconds: u64| {
        let mut cpu = json!({"time": time, "usageCoreNanoSeconds": nanoseconds});
        if let Some(rate) = server.samples.rate(id, now, nanoseconds) {
            cpu["usageNanoCores"] = rate.into();
        }
        cpu
    };
    let mut pods: BTreeMap<&str, Value> = BTreeMap::new();
    for one in &all {
        let stats = &one.stats;
        let of_pod = pods.entry(&one.uid).or_insert_with(|| {
            json!({
                "podRef": {"name": one.pod, "namespace": one.namespace, "uid": one.uid},
                "startTime": one.started.map(|time| time.to_string()),
                "containers": [],
                "cpu": {"time": time, "usageNanoCores": 0, "usageCoreNanoSeconds": 0},
                "memory": {"time": time, "usageBytes": 0, "workingSetBytes": 0, "rssBytes": 0},
            })
        });
        let container = json!({
            "name": one.container,
            "startTime": one.started.map(|time| time.to_string()),
            "cpu": cpu(&one.id, stats.cpu_usage_nanoseconds),
            "memory": {
                "time": time,
                "usageBytes": stats.memory_usage_bytes,
                "workingSetBytes": stats.memory_working_set_bytes,
                "rssBytes": stats.memory_rss_bytes,
            },
            "rootfs": {"time": time, "usedBytes": stats.writable_bytes},
        });
        for (group, name) in [
            ("cpu", "usageNanoCores"),
            ("cpu", "usageCoreNanoSeconds"),
            ("memory", "usageBytes"),
            ("memory", "workingSetBytes"),
            ("memory", "rssBytes"),
        ] {
            let sum = of_pod[group][name].as_u64().unwrap_or(0) + container[group][name].as_u64().unwrap_or(0);
            of_pod[group][name] = sum.into();
        }
        if let Some(containers) = of_pod["containers"].as_array_mut() {
            containers.push(container);
        }
    }
    let (used, available) = node_memory();
    let summary = json!({
        "node": {
            "nodeName": server.node.config.name,
            "cpu": cpu(NODE, node_cpu()),
            "memory": {"time": time, "availableBytes": available, "usageBytes": used, "workingSetBytes": used},
        },
        "pods": pods.into_values().collect::<Vec<_>>(),
    });
    with_type(StatusCode::OK, "application/json", summary.to_string())
}

/// What metrics servers read (upstream's `pkg/kubelet/metrics/collectors/resource_metrics.go`).
pub async fn resource_metrics(server: &Server) -> Response<Body> {
    let all = usage(server).await;
    let mut text = String::new();
    let seconds = |nanoseconds: u64| nanoseconds as f64 / 1e9;
    let mut metric = |name: &str, kind: &str, samples: &[(String, String)]| {
        let _ = writeln!(text, "# TYPE {name} {kind}");
        for (labels, value) in samples {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    };
    let labels =
        |one: &Usage| format!("{{container={:?},namespace={:?},pod={:?}}}", one.container, one.namespace, one.pod);
    let each = |of: &dyn Fn(&Usage) -> String| -> Vec<(String, String)> {
        all.iter().map(|one| (labels(one), of(one))).collect()
    };
    let started = |one: &Usage| one.started.map_or(0.0, |time| time.as_millisecond() as f64 / 1e3).to_string();
    metric(
        "container_cpu_usage_seconds_total",
        "counter",
        &each(&|one| seconds(one.stats.cpu_usage_nanoseconds).to_string()),
    );
    metric("container_memory_working_set_bytes", "gauge", &each(&|one| one.stats.memory_working_set_bytes.to_string()));
    metric("container_start_time_seconds", "gauge", &each(&started));
    metric("node_cpu_usage_seconds_total", "counter", &[(String::new(), seconds(node_cpu()).to_string())]);
    metric("node_memory_working_set_bytes", "gauge", &[(String::new(), node_memory().0.to_string())]);
    metric("resource_scrape_error", "gauge", &[(String::new(), "0".into())]);
    with_type(StatusCode::OK, METRICS, text)
}

/// The agent about itself.
pub fn metrics(server: &Server) -> Response<Body> {
    let pods = server.pods.all();
    let containers = pods.iter().flat_map(|pod| pod.containers.values());
    let running = containers.filter(|run| run.state == ContainerState::Running).count();
    let mut text = String::new();
    for (name, value) in [
        ("kubelet_running_pods", pods.iter().filter(|pod| pod.sandbox.is_some()).count()),
        ("kubelet_running_containers", running),
        ("kubelet_active_pods", pods.len()),
    ] {
        let _ = writeln!(text, "# TYPE {name} gauge\n{name} {value}");
    }
    let uptime = server.node.started.elapsed().as_secs();
    let _ = writeln!(text, "# TYPE sampan_node_uptime_seconds gauge\nsampan_node_uptime_seconds {uptime}");
    with_type(StatusCode::OK, METRICS, text)
}
