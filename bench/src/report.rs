//! Figures, their budgets and verdicts, as a Markdown table.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;
use sampan_base::Clock;

#[derive(Clone, Copy)]
enum Budget {
    AtMost(f64),
    AtLeast(f64),
}

pub struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
    budget: Option<Budget>,
    gate: bool,
}

impl Figure {
    pub fn new(what: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { what: what.into(), value, unit, budget: None, gate: false }
    }

    pub fn at_most(mut self, budget: f64) -> Self {
        self.budget = Some(Budget::AtMost(budget));
        self
    }

    pub fn at_least(mut self, budget: f64) -> Self {
        self.budget = Some(Budget::AtLeast(budget));
        self
    }

    /// A miss of this one is a bug.
    pub fn gate(mut self) -> Self {
        self.gate = true;
        self
    }

    fn row(&self) -> String {
        let budget = match self.budget {
            Some(Budget::AtMost(most)) => format!("≤ {}", number(most)),
            Some(Budget::AtLeast(least)) => format!("≥ {}", number(least)),
            None => String::new(),
        };
        let holds = match self.budget {
            Some(Budget::AtMost(most)) => Some(self.value <= most),
            Some(Budget::AtLeast(least)) => Some(self.value >= least),
            None => None,
        };
        let verdict = match (holds, self.gate) {
            (Some(true), _) => "holds",
            (Some(false), true) => "**MISSED (gate)**",
            (Some(false), false) => "missed",
            (None, _) => "",
        };
        format!("| {} | {budget} | {} {} | {verdict} |", self.what, number(self.value), self.unit)
    }
}

/// Three digits that mean something.
fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

pub struct Report {
    heading: String,
    rows: Vec<String>,
}

impl Report {
    pub fn new(clock: &Clock) -> Self {
        let time = clock.now().strftime("%Y-%m-%d %H:%M UTC").to_string();
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split_whitespace().next().unwrap_or("?");
        let commit = command("git", &["describe", "--always", "--dirty"]).unwrap_or_else(|| "unknown".into());
        let heading = format!("{time}, commit {commit}, kernel {}, {cores} cores, load before {load}", kernel.trim());
        Self { heading, rows: Vec::new() }
    }

    pub fn add(&mut self, figures: impl IntoIterator<Item = Figure>) {
        for figure in figures {
            let row = figure.row();
            eprintln!("{row}");
            self.rows.push(row);
        }
    }

    /// Measures one thing. What fails or takes too long becomes a row that says so, and the next is measured.
    pub async fn stage(
        &mut self,
        clock: &Clock,
        name: &str,
        limit: Duration,
        work: impl Future<Output = anyhow::Result<Vec<Figure>>>,
    ) {
        match clock.timeout(limit, work).await {
            Some(Ok(figures)) => self.add(figures),
            Some(Err(error)) => self.failed(name, &format!("{error:#}")),
            None => self.failed(name, &format!("not done after {} s", limit.as_secs())),
        }
    }

    fn failed(&mut self, name: &str, why: &str) {
        let row = format!("| {name} | | not measured: {} | |", why.replace(['|', '\n'], " "));
        eprintln!("{row}");
        self.rows.push(row);
    }

    pub fn table(&self) -> String {
        let mut text = format!("## {}\n\n| what | budget | figure | verdict |\n|---|---|---|---|\n", self.heading);
        for row in &self.rows {
            let _ = writeln!(text, "{row}");
        }
        text
    }

    pub fn append(&self, path: &Path) -> anyhow::Result<()> {
        let file = OpenOptions::new().create(true).append(true).open(path);
        let mut file = file.with_context(|| format!("open {}", path.display()))?;
        write!(file, "\n{}", self.table()).with_context(|| format!("write {}", path.display()))
    }
}

fn command(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The value below which `share` of the samples are; they need not be sorted. Milliseconds.
pub fn percentile(samples: &mut [Duration], share: f64) -> f64 {
    samples.sort_unstable();
    let last = samples.len().saturating_sub(1);
    let index = (last as f64 * share).ceil() as usize;
    samples.get(index).map_or(f64::NAN, |sample| sample.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts() {
        assert!(Figure::new("a", 3.0, "ms").at_most(3.0).gate().row().ends_with("| holds |"));
        assert!(Figure::new("a", 3.1, "ms").at_most(3.0).gate().row().ends_with("| **MISSED (gate)** |"));
        assert!(Figure::new("a", 3.1, "/s").at_least(4.0).row().ends_with("| missed |"));
        assert!(Figure::new("a", 3.1, "/s").row().ends_with("|  |"));
        assert!(Figure::new("a", f64::NAN, "/s").at_most(1.0).row().ends_with("| missed |"));
    }

    #[test]
    fn percentiles() {
        let mut samples: Vec<Duration> = (1..=101).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&mut samples, 0.5), 51.0);
        assert_eq!(percentile(&mut samples, 0.99), 100.0);
        assert_eq!(percentile(&mut samples, 1.0), 101.0);
        assert!(percentile(&mut [], 0.5).is_nan());
    }
}
