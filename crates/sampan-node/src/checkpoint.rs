//! Pods on disk: what an agent that starts while the API is away knows of the pods it has to keep.
//!
//! One file per pod, `PODS/UID/pod.json`, written aside and renamed. It is a cache of the API, not a truth of its own: it
//! may be missing or old, and a pod whose file is unreadable is adopted once the API answers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;
use sampan_base::task;

const FILE: &str = "pod.json";

/// Writes the pod's file in the background.
pub fn save(directory: PathBuf, pod: Pod) {
    task::spawn_blocking(move || {
        if let Err(error) = write(&directory, &pod) {
            tracing::warn!(?directory, %error, "cannot keep a pod on disk");
        }
    });
}

fn write(directory: &Path, pod: &Pod) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let pending = tempfile_in(directory);
    fs::write(&pending, serde_json::to_vec(pod)?)?;
    fs::rename(pending, directory.join(FILE))
}

/// A name of its own for each writing thread: two saves of one pod may overlap.
fn tempfile_in(directory: &Path) -> PathBuf {
    directory.join(format!(".{FILE}.{:?}", std::thread::current().id()))
}

/// All pods on disk.
pub fn load(root: &Path) -> Vec<Pod> {
    let Ok(entries) = fs::read_dir(root.join("pods")) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path().join(FILE)).collect();
    paths.sort();
    paths
        .into_iter()
        .filter_map(|path| {
            let bytes = fs::read(&path).ok()?;
            serde_json::from_slice(&bytes).inspect_err(|error| tracing::warn!(?path, %error, "unreadable pod")).ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_survive() {
        let root = tempfile::tempdir().expect("a directory");
        let mut pod = Pod::default();
        pod.metadata.uid = Some("u".into());
        write(&root.path().join("pods/u"), &pod).expect("written");
        fs::create_dir_all(root.path().join("pods/broken")).expect("made");
        fs::write(root.path().join("pods/broken").join(FILE), "{").expect("written");
        assert_eq!(load(root.path()), [pod]);
        assert!(load(&root.path().join("none")).is_empty());
    }
}
