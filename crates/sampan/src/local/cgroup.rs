//! The cgroups of local nodes: one directory `sampan/CLUSTER/NODE` in each hierarchy, the root of what the node sees.
//!
//! Nothing outside `sampan/CLUSTER` is ever touched, and no process is ever killed through a cgroup here: directories are
//! made, joined by the calling process itself, and removed when they are empty.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const MOUNT: &str = "/sys/fs/cgroup";

/// A hierarchy as the kernel mounts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// Its directory on this machine.
    pub path: PathBuf,
    /// `cpu,cpuacct` or `name=systemd` for version 1, `None` for version 2.
    pub controllers: Option<String>,
}

/// All cgroup mounts below `/sys/fs/cgroup`, from the text of `/proc/self/mounts`.
pub fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    const KNOWN: [&str; 12] = [
        "cpu",
        "cpuacct",
        "cpuset",
        "memory",
        "devices",
        "freezer",
        "blkio",
        "pids",
        "hugetlb",
        "net_cls",
        "net_prio",
        "perf_event",
    ];
    let parse = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (path, kind, options) = (*fields.get(1)?, *fields.get(2)?, *fields.get(3)?);
        if !path.starts_with(MOUNT) {
            return None;
        }
        let controllers = match kind {
            "cgroup2" => None,
            "cgroup" => {
                let named = |option: &&str| KNOWN.contains(option) || option.starts_with("name=");
                Some(options.split(',').filter(named).collect::<Vec<_>>().join(","))
            }
            _ => return None,
        };
        Some(Hierarchy { path: path.into(), controllers })
    };
    mounts.lines().filter_map(parse).collect()
}

pub fn current() -> io::Result<Vec<Hierarchy>> {
    Ok(hierarchies(&fs::read_to_string("/proc/self/mounts")?))
}

impl Hierarchy {
    fn cluster(&self, cluster: &str) -> PathBuf {
        self.path.join("sampan").join(cluster)
    }

    /// Makes the node's directory and moves the calling process into it.
    pub fn join(&self, cluster: &str, node: &str) -> io::Result<()> {
        let mut path = self.path.clone();
        for part in ["sampan", cluster, node] {
            if self.controllers.is_none() {
                enable_all(&path)?;
            }
            let parent = path.clone();
            path.push(part);
            make(&path)?;
            self.inherit(&parent, &path)?;
        }
        fs::write(path.join("cgroup.procs"), "0")
    }

    /// A version 1 cpuset takes no process before it has processors and memory nodes: ours have their parent's, and hand
    /// them on to their children.
    fn inherit(&self, parent: &Path, path: &Path) -> io::Result<()> {
        if !self.controllers.as_deref().is_some_and(|names| names.split(',').any(|name| name == "cpuset")) {
            return Ok(());
        }
        for file in ["cpuset.cpus", "cpuset.mems"] {
            let value = fs::read_to_string(parent.join(file))?;
            fs::write(path.join(file), value.trim())?;
        }
        fs::write(path.join("cgroup.clone_children"), "1")
    }

    /// Removes the cluster's directories, deepest first. They must be empty of processes.
    pub fn remove(&self, cluster: &str) -> io::Result<()> {
        remove_tree(&self.cluster(cluster))?;
        // Only when no other cluster is left; ENOTEMPTY says there is.
        let _ = fs::remove_dir(self.path.join("sampan"));
        Ok(())
    }
}

/// Enables every available controller for the children of a version 2 cgroup. One that cannot be (`rt` processes, no
/// delegation) is left out: the node reports what it lacks.
pub fn enable_all(path: &Path) -> io::Result<()> {
    for controller in fs::read_to_string(path.join("cgroup.controllers"))?.split_whitespace() {
        let _ = fs::write(path.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

fn make(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_both_versions() {
        let text = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\n\
                    cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0\n\
                    cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0\n\
                    cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n\
                    cgroup /elsewhere cgroup rw,pids 0 0\n";
        let found: Vec<_> = hierarchies(text).into_iter().map(|h| (h.path, h.controllers)).collect();
        assert_eq!(
            found,
            [
                ("/sys/fs/cgroup/cpu,cpuacct".into(), Some("cpu,cpuacct".into())),
                ("/sys/fs/cgroup/systemd".into(), Some("name=systemd".into())),
                ("/sys/fs/cgroup/unified".into(), None),
            ]
        );
    }
}
