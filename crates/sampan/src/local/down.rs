//! `sampan down`: afterwards the machine is as it was before `up`. Every step counts what is absent as done, so that an
//! interrupted `up` or `down` is finished by calling it again.

use std::fs;
use std::io;

use anyhow::Context;
use nix::sys::signal::Signal;
use sampan_base::Clock;

use super::{Cluster, Processes, cgroup, hostnet, supervisor};
use crate::output::Steps;
use crate::{cli, kubeconfig};

pub fn run(options: &cli::Down) -> anyhow::Result<()> {
    super::up::require_root()?;
    let clusters = if options.all {
        super::all()?
    } else {
        match super::find(&options.named.name)? {
            Some(cluster) => vec![cluster],
            None => return without_run_dir(options),
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    for cluster in clusters {
        let mut steps = Steps::new(Clock::system());
        runtime.block_on(take_down(&cluster, options.keep_data))?;
        steps.done(format!("cluster {:?} is down", cluster.name));
        forget_context(options, &cluster.name)?;
    }
    Ok(())
}

/// After a reboot, or after `down --keep-data`, only the data is left.
fn without_run_dir(options: &cli::Down) -> anyhow::Result<()> {
    let data = super::default_data(&options.named.name);
    if options.keep_data || !data.join("cluster.json").exists() {
        return Err(crate::Exit::NoCluster(options.named.name.clone()).into());
    }
    fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
    forget_context(options, &options.named.name)
}

fn forget_context(options: &cli::Down, name: &str) -> anyhow::Result<()> {
    let path = match &options.kubeconfig {
        Some(path) => path.clone(),
        None => kubeconfig::default_path()?,
    };
    if path.exists() {
        kubeconfig::change(&path, |config| kubeconfig::without(config, &super::context(name)))?;
    }
    Ok(())
}

pub async fn take_down(cluster: &Cluster, keep_data: bool) -> anyhow::Result<()> {
    if let Some(process) = Processes::load(cluster).supervisor {
        supervisor::end(process, Signal::SIGTERM, &Clock::system()).await.context("end the supervisor")?;
    }
    supervisor::end_all(cluster).await?;
    hostnet::tear_down(cluster).await.context("take down the cluster's network")?;
    for hierarchy in cgroup::current()? {
        hierarchy
            .remove(&cluster.name)
            .with_context(|| format!("remove cgroups below {}", hierarchy.path.display()))?;
    }
    remove(&cluster.run_dir())?;
    // Only when no other cluster runs.
    let _ = fs::remove_dir(super::RUN);
    if !keep_data {
        remove(&cluster.data)?;
    }
    Ok(())
}

fn remove(directory: &std::path::Path) -> anyhow::Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", directory.display()))
        }
        _ => Ok(()),
    }
}
