//! `sampan logs`: what the processes of a local cluster wrote.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context, bail};

use super::Cluster;
use crate::cli;

pub fn run(options: &cli::Logs) -> anyhow::Result<()> {
    let cluster = super::find_or_fail(&options.named.name)?;
    let known: Vec<String> =
        ["supervisor", "server"].map(str::to_owned).into_iter().chain(cluster.nodes.iter().cloned()).collect();
    if let Some(directory) = &options.export {
        return export(&cluster, &known, directory);
    }
    let wanted: Vec<&String> = match &options.process {
        Some(process) => match known.iter().find(|one| *one == process) {
            Some(one) => vec![one],
            None => bail!("no process {process:?}; there are: {}", known.join(", ")),
        },
        None => known.iter().collect(),
    };
    let several = wanted.len() > 1;
    for process in wanted {
        if several {
            println!("==> {process} <==");
        }
        copy(&cluster, process, &mut io::stdout())?;
    }
    Ok(())
}

/// A process that never started has no log.
fn copy(cluster: &Cluster, process: &str, to: &mut impl io::Write) -> anyhow::Result<()> {
    let path = cluster.log(process);
    match fs::File::open(&path) {
        Ok(mut file) => io::copy(&mut file, to).map(|_| ()).with_context(|| format!("read {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

/// Logs and the description of the cluster; no keys, no state.
fn export(cluster: &Cluster, processes: &[String], directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    for process in processes {
        let path = directory.join(format!("{process}.log"));
        let mut file = fs::File::create(&path).with_context(|| format!("create {}", path.display()))?;
        copy(cluster, process, &mut file)?;
    }
    fs::copy(cluster.data.join("cluster.json"), directory.join("cluster.json")).context("copy cluster.json")?;
    println!("wrote {}", directory.display());
    Ok(())
}
