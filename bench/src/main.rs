//! `make bench`: measures a cluster and prints each figure beside its budget (DESIGN.md, "Budgets").
//!
//! It speaks to the API as any client does: own process, mTLS. With `--sampan` it makes a local cluster of its own, measures
//! its processes too, and takes it down whatever happens; with `--kubeconfig` it measures what runs there already.
//! It is no test: nothing here passes or fails, and a slow machine is no error.

mod api;
mod dns;
mod local;
mod pods;
mod processes;
mod report;
mod target;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;
use sampan_base::Clock;

use report::{Figure, Report};

#[derive(Parser)]
#[command(about = "Measures a Sampan cluster against its budgets", version)]
struct Options {
    /// The release binary to measure: makes and removes a local cluster named `bench` (root)
    #[arg(long, required_unless_present = "kubeconfig", conflicts_with = "kubeconfig")]
    sampan: Option<PathBuf>,
    /// Measure the cluster of this kubeconfig's current context instead; it must have the image `busybox:1`
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// The archive with `busybox:1` (`cargo xtask images`)
    #[arg(long, default_value = "target/images/busybox.tar")]
    image: PathBuf,
    /// Where results are appended
    #[arg(long, default_value = "bench/RESULTS.md")]
    results: PathBuf,
    /// How long the idle cluster is watched, in seconds
    #[arg(long, default_value_t = 60)]
    idle: u64,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sampan-bench: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(async {
        tokio::select! {
            biased;
            _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
            ended = run(&options) => ended,
        }
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sampan-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> anyhow::Result<()> {
    let clock = Clock::system();
    let mut report = Report::new(&clock);
    match (&options.sampan, &options.kubeconfig) {
        (Some(binary), _) => {
            let cluster = local::Cluster::new(binary)?;
            whole(options, &cluster, &clock, &mut report).await?;
        }
        (None, Some(kubeconfig)) => {
            let target = target::Target::read(kubeconfig, &clock)?;
            stages(&target, None, &clock, &mut report).await;
        }
        (None, None) => anyhow::bail!("say --sampan or --kubeconfig"),
    }
    println!("{}", report.table());
    report.append(&options.results)
}

/// A local cluster: start-up, footprint, then what any cluster is asked.
async fn whole(options: &Options, cluster: &local::Cluster, clock: &Clock, report: &mut Report) -> anyhow::Result<()> {
    let first = cluster.up().await?;
    report.add(first.figures("up", [200.0, 500.0, 1000.0]));
    cluster.down(true).await?;
    let again = cluster.up().await?;
    report.add([Figure::new("up again after down --keep-data: node Ready", again.ready, "ms").at_most(300.0).gate()]);

    let size = std::fs::metadata(&cluster.binary).context("read the binary's size")?.len();
    report.add([Figure::new("binary, stripped", size as f64 / 1e6, "MB").at_most(30.0)]);
    report.stage(clock, "idle", Duration::from_secs(options.idle + 30), idle(cluster, options.idle, clock)).await;
    cluster.load(&options.image).await?;
    let target = target::Target::read(&cluster.kubeconfig(), clock)?;
    stages(&target, Some(cluster), clock, report).await;
    let all = cluster.processes().await?;
    report.add([Figure::new("memory after all of this, sum of PSS", all.pss_mb()?, "MB")]);
    Ok(())
}

async fn idle(cluster: &local::Cluster, seconds: u64, clock: &Clock) -> anyhow::Result<Vec<Figure>> {
    let started = cluster.processes().await?;
    let (pss, before) = (started.pss_mb()?, started.cpu()?);
    clock.sleep(Duration::from_secs(seconds)).await;
    let later = cluster.processes().await?;
    let busy = later.cpu()?.saturating_sub(before).as_secs_f64() / seconds as f64 * 100.0;
    let mut figures = vec![
        Figure::new("memory just started, sum of PSS", pss, "MB").at_most(50.0).gate(),
        Figure::new(format!("memory after {seconds} idle s, sum of PSS"), later.pss_mb()?, "MB").at_most(50.0).gate(),
    ];
    for (role, pss) in later.by_role()? {
        figures.push(Figure::new(format!("  of that {role}"), pss, "MB"));
    }
    figures.push(Figure::new("idle CPU", busy, "% of a core").at_most(0.2));
    Ok(figures)
}

/// What needs only the API, and what can be seen of the processes meanwhile where they are ours.
async fn stages(target: &target::Target, cluster: Option<&local::Cluster>, clock: &Clock, report: &mut Report) {
    let minute = Duration::from_secs(60);
    report.stage(clock, "pod latency", minute, pods::latency(target, clock)).await;
    report.stage(clock, "pods at once", minute, pods::burst(target, cluster, clock)).await;
    report.stage(clock, "exec", minute, pods::exec(target, cluster, clock)).await;
    report.stage(clock, "creates", minute, api::creates(target, clock)).await;
    report.stage(clock, "list", minute, api::list(target, clock)).await;
    report.stage(clock, "watch", minute, api::watch(target, clock)).await;
    if let Some(cluster) = cluster {
        report.stage(clock, "dns", minute, dns::answers(target, cluster, clock)).await;
    }
}
