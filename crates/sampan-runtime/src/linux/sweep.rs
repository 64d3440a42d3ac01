//! What a new agent process does with what it finds: what is whole is adopted, what is half made or half removed goes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::holder::Connection;
use super::protocol::Request;
use super::record::{self, ContainerRecord, SandboxRecord};
use super::{Container, Linux, Sandbox, remove_directory};
use crate::Error;
use crate::cgroup::CgroupPath;

/// Fills the empty state of a runtime that has just been opened.
pub(super) async fn adopt(runtime: &Linux) -> Result<(), Error> {
    for (id, directory) in directories(&runtime.0.config.run_dir.join("sandboxes")) {
        let Some(record) = record::read::<SandboxRecord>(&directory, "sandbox.json") else {
            // Its holder, when it has one, serves nobody else.
            end_holder(runtime, &id, &directory).await;
            remove_directory(&directory)?;
            continue;
        };
        let mut sandbox = Sandbox { id: id.clone(), directory, record: Arc::new(record), holder: None };
        sandbox.holder = match runtime.watch(&sandbox).await {
            Ok(holder) => Some(holder),
            Err(Error::Lost(_)) => None,
            Err(error) => {
                tracing::warn!(sandbox = id, %error, "a sandbox is given up");
                end_holder(runtime, &id, &sandbox.directory).await;
                None
            }
        };
        runtime.state().sandboxes.insert(id.clone(), sandbox.clone());
        for (id, directory) in directories(&sandbox.directory.join("containers")) {
            let Some(record) = record::read::<ContainerRecord>(&directory, "container.json") else {
                remove_directory(&directory)?;
                continue;
            };
            runtime.0.images.hold(&id, &record.image_id);
            let container = Container {
                id: id.clone(),
                sandbox: sandbox.id.clone(),
                directory,
                record: Arc::new(record),
                starting: Arc::default(),
            };
            runtime.state().containers.insert(id, container);
        }
    }
    sweep_writable_layers(runtime)?;
    sweep_cgroups(runtime).await
}

async fn end_holder(runtime: &Linux, id: &str, directory: &Path) {
    if let Ok(connection) = Connection::open(id, directory, &runtime.0.config.clock) {
        match connection.hello().await {
            Ok(holder) => {
                let _ = holder.kill().await;
            }
            // It has told why it could not make its sandbox, and ends by itself.
            Err(_) => drop(connection.send(&Request::Shutdown, &[]).await),
        }
    }
}

fn sweep_writable_layers(runtime: &Linux) -> Result<(), Error> {
    for (id, directory) in directories(&runtime.0.config.data_dir.join("containers")) {
        if !runtime.state().containers.contains_key(&id) {
            remove_directory(&directory)?;
        }
    }
    Ok(())
}

/// Kills and removes every group below the prefix that no sandbox and no container owns, and everything in the groups of
/// sandboxes that are lost.
async fn sweep_cgroups(runtime: &Linux) -> Result<(), Error> {
    let mut owned = BTreeSet::new();
    let mut lost = Vec::new();
    {
        let state = runtime.state();
        for sandbox in state.sandboxes.values() {
            let pod = runtime.pod_cgroup(&sandbox.record.config)?;
            let containers = state.containers.values().filter(|container| container.sandbox == sandbox.id);
            let containers = containers.map(|container| pod.join(&container.id)).collect::<Result<Vec<_>, _>>()?;
            if sandbox.holder.is_none() {
                lost.extend(containers.iter().cloned());
            }
            owned.extend(containers);
            owned.insert(pod);
        }
    }
    for group in lost {
        runtime.empty(&group).await?;
    }
    let mut groups = runtime.0.cgroups.children(None);
    while let Some(group) = groups.pop() {
        if owned.iter().any(|other: &CgroupPath| *other == group || other.is_below(&group)) {
            groups.extend(runtime.0.cgroups.children(Some(&group)));
        } else {
            runtime.remove_cgroup(&group).await?;
        }
    }
    Ok(())
}

/// The directories in a directory, by name.
fn directories(path: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path())))
        .collect();
    found.sort();
    found
}
