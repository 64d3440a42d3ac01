//! Counters under upstream's names (`k8s.io/apiserver/pkg/endpoints/metrics`), written in Prometheus' text form.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the latency buckets in seconds; a subset of upstream's.
const BUCKETS: &[f64] = &[
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 30.0,
    45.0, 60.0,
];

/// verb, group, version, resource
pub type Labels = (String, String, String, String);

#[derive(Default)]
struct Series {
    by_code: BTreeMap<u16, u64>,
    buckets: Vec<u64>,
    seconds: f64,
    count: u64,
}

#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<Labels, Series>>,
    pub(crate) watches: AtomicI64,
    pub(crate) watch_events: AtomicU64,
}

impl Metrics {
    pub(crate) fn request(&self, labels: &Labels, code: u16, took: Duration, long_running: bool) {
        let mut requests = self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // Paths outside the API and resources nobody knows share one line each, so that callers cannot grow the map.
        let labels = if matches!(code, 401 | 403 | 404) && !requests.contains_key(labels) {
            (labels.0.clone(), String::new(), String::new(), String::new())
        } else {
            labels.clone()
        };
        let series = requests.entry(labels).or_default();
        *series.by_code.entry(code).or_default() += 1;
        if !long_running {
            let seconds = took.as_secs_f64();
            series.buckets.resize(BUCKETS.len(), 0);
            for (count, bound) in series.buckets.iter_mut().zip(BUCKETS) {
                *count += u64::from(seconds <= *bound);
            }
            series.seconds += seconds;
            series.count += 1;
        }
    }

    /// The text of `/metrics`; `extra` are (name, value) gauges of other parts.
    pub fn render(&self, extra: &[(&str, f64)]) -> String {
        let requests = self.requests.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let mut out = String::new();
        let label = |labels: &Labels| {
            let (verb, group, version, resource) = labels;
            format!(
                "group=\"{}\",resource=\"{}\",verb=\"{}\",version=\"{}\"",
                escaped(group),
                escaped(resource),
                escaped(&verb.to_ascii_uppercase()),
                escaped(version)
            )
        };
        head(&mut out, "apiserver_request_total", "counter", "Requests by verb, resource and code.");
        for (labels, series) in requests.iter() {
            for (code, count) in &series.by_code {
                let _ = writeln!(out, "apiserver_request_total{{code=\"{code}\",{}}} {count}", label(labels));
            }
        }
        let name = "apiserver_request_duration_seconds";
        head(&mut out, name, "histogram", "Latency of requests that are not long-running.");
        for (labels, series) in requests.iter().filter(|(_, series)| series.count > 0) {
            let text = label(labels);
            for (count, bound) in series.buckets.iter().zip(BUCKETS) {
                let _ = writeln!(out, "{name}_bucket{{{text},le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(out, "{name}_bucket{{{text},le=\"+Inf\"}} {}", series.count);
            let _ = writeln!(out, "{name}_sum{{{text}}} {}", series.seconds);
            let _ = writeln!(out, "{name}_count{{{text}}} {}", series.count);
        }
        head(&mut out, "apiserver_longrunning_requests", "gauge", "Open watches.");
        let _ =
            writeln!(out, "apiserver_longrunning_requests{{verb=\"WATCH\"}} {}", self.watches.load(Ordering::Relaxed));
        head(&mut out, "apiserver_watch_events_total", "counter", "Events sent to watches.");
        let _ = writeln!(out, "apiserver_watch_events_total {}", self.watch_events.load(Ordering::Relaxed));
        for (name, value) in extra {
            let _ = writeln!(out, "# TYPE {name} gauge\n{name} {value}");
        }
        out
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_code_and_hides_unknown_resources() {
        let metrics = Metrics::default();
        let pods = ("list".to_owned(), String::new(), "v1".to_owned(), "pods".to_owned());
        metrics.request(&pods, 200, Duration::from_millis(30), false);
        metrics.request(&pods, 404, Duration::from_millis(1), false);
        let odd = ("list".to_owned(), String::new(), "v1".to_owned(), "x\"y".to_owned());
        metrics.request(&odd, 404, Duration::ZERO, false);
        let text = metrics.render(&[("sampan_store_revision", 7.0)]);
        let total = |code| {
            format!(
                "apiserver_request_total{{code=\"{code}\",group=\"\",resource=\"pods\",verb=\"LIST\",version=\"v1\"}} 1"
            )
        };
        assert!(text.contains(&total(200)) && text.contains(&total(404)), "{text}");
        assert!(text.contains("resource=\"pods\",verb=\"LIST\",version=\"v1\",le=\"0.025\"} 1"), "{text}");
        assert!(!text.contains("x\\\"y"), "{text}");
        assert!(text.contains("sampan_store_revision 7"));
    }
}
