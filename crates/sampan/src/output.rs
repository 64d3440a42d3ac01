//! What the user sees: steps with their timings on a terminal or as plain lines, JSON where asked.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use sampan_base::Clock;
use serde_json::json;

use crate::cli;

/// Prints what `up` and `down` do, one line a step. On standard error, so that `-o json` keeps standard output clean.
pub struct Steps {
    clock: Clock,
    started: sampan_base::clock::Instant,
    last: sampan_base::clock::Instant,
    color: bool,
    pub done: Vec<(String, Duration)>,
}

impl Steps {
    pub fn new(clock: Clock) -> Self {
        let now = clock.instant();
        let color =
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { started: now, last: now, clock, color, done: Vec::new() }
    }

    /// A step is done; it took the time since the step before.
    pub fn done(&mut self, what: impl Into<String>) {
        let now = self.clock.instant();
        let (what, took) = (what.into(), now - self.last);
        self.last = now;
        let mark = if self.color { "\x1b[32m✓\x1b[0m" } else { "*" };
        let _ = writeln!(std::io::stderr(), "{mark} {what} ({})", text(took));
        self.done.push((what, took));
    }

    pub fn note(&self, what: &str) {
        let _ = writeln!(std::io::stderr(), "  {what}");
    }

    pub fn total(&self) -> Duration {
        self.clock.instant() - self.started
    }
}

/// `12 ms`, `1.3 s`.
pub fn text(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

pub fn version(options: &cli::Output) {
    let version = env!("CARGO_PKG_VERSION");
    let api = sampan_apiserver::Version::default().git_version;
    if options.output.is_some() {
        println!("{}", json!({"version": version, "api": api}));
    } else {
        println!("sampan {version} (API {api})");
    }
}
