//! Keeps container logs from filling the disk: a file of 10 MiB is set aside, of five files the oldest goes (upstream's
//! `containerLogMaxSize`, `containerLogMaxFiles` and its `container_log_manager.go`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sampan_base::task;
use sampan_runtime::ContainerState;

use crate::agent::Pods;
use crate::logs;
use crate::node::Node;

pub const SIZE_MAX: u64 = 10 << 20;
/// The current file and the rotated ones.
pub const FILES_MAX: usize = 5;
const PERIOD: Duration = Duration::from_secs(10);

pub async fn run(node: Arc<Node>, pods: Pods) {
    let clock = &node.parts.clock;
    loop {
        clock.sleep(PERIOD).await;
        let running: Vec<(String, PathBuf)> = pods
            .all()
            .iter()
            .flat_map(|pod| pod.containers.values())
            .filter(|run| run.state == ContainerState::Running)
            .map(|run| (run.id.clone(), run.log_path.clone()))
            .collect();
        for (id, path) in running {
            if fs::metadata(&path).is_ok_and(|file| file.len() >= SIZE_MAX) {
                rotate(&node, &id, path).await;
            }
        }
    }
}

async fn rotate(node: &Node, id: &str, path: PathBuf) {
    let stamp = node.parts.clock.now().strftime("%Y%m%d-%H%M%S").to_string();
    let aside = PathBuf::from(format!("{}.{stamp}", path.display()));
    if let Err(error) = fs::rename(&path, &aside) {
        tracing::warn!(?path, %error, "cannot set a log aside");
        return;
    }
    if let Err(error) = node.parts.runtime.reopen_log(id).await {
        // The container goes on writing to the file under its new name: give it the old one back.
        tracing::warn!(container = id, %error, "cannot reopen a log");
        let _ = fs::rename(&aside, &path);
        return;
    }
    let removed = task::spawn_blocking(move || remove_oldest(&path)).await;
    if let Ok(Err(error)) = removed {
        tracing::warn!(%error, "cannot remove an old log");
    }
}

fn remove_oldest(current: &Path) -> std::io::Result<()> {
    let files = logs::files(current);
    files[..files.len().saturating_sub(FILES_MAX)].iter().try_for_each(fs::remove_file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_files_stay() {
        let directory = tempfile::tempdir().expect("a directory");
        let current = directory.path().join("0.log");
        fs::write(&current, "").expect("written");
        for second in 0..7 {
            fs::write(format!("{}.20300101-00000{second}", current.display()), "").expect("written");
        }
        fs::write(directory.path().join("10.log"), "").expect("written");
        remove_oldest(&current).expect("removed");
        let left: Vec<String> = logs::files(&current)
            .iter()
            .map(|path| path.file_name().expect("a name").to_string_lossy().into_owned())
            .collect();
        assert_eq!(
            left,
            [
                "0.log.20300101-000003",
                "0.log.20300101-000004",
                "0.log.20300101-000005",
                "0.log.20300101-000006",
                "0.log"
            ]
        );
        assert!(directory.path().join("10.log").exists());
    }
}
