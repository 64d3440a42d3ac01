//! What a local cluster costs the machine: memory and CPU of its own processes. Containers' processes are not among them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;

/// The holder runs from a sealed memory file of this name.
const HOLDER: &str = "/memfd:sampan-holder";

/// The processes of a cluster at one moment: pid and role.
pub struct Processes(Vec<(i32, &'static str)>);

impl Processes {
    /// `roots` are supervisor, server and the nodes' first processes; what they started and is still our program counts too.
    pub fn below(binary: &Path, roots: &[(i32, &'static str)]) -> anyhow::Result<Self> {
        let binary = fs::metadata(binary).with_context(|| format!("read {}", binary.display()))?;
        let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // It may have ended since it was listed.
            let Some(parent) = stat(pid).and_then(|fields| fields.get(1)?.parse().ok()) else { continue };
            children.entry(parent).or_default().push(pid);
        }
        let mut found: Vec<(i32, &'static str)> = roots.to_vec();
        let mut next = 0;
        while let Some((pid, role)) = found.get(next).copied() {
            next += 1;
            for child in children.remove(&pid).unwrap_or_default() {
                if found.iter().any(|(known, _)| *known == child) {
                    continue;
                }
                let exe = format!("/proc/{child}/exe");
                let holder = fs::read_link(&exe).is_ok_and(|path| path.to_string_lossy().starts_with(HOLDER));
                // Compared as a file: in a node's own root its path reads differently.
                let ours =
                    fs::metadata(&exe).is_ok_and(|file| (file.dev(), file.ino()) == (binary.dev(), binary.ino()));
                if holder {
                    found.push((child, "holders"));
                } else if ours {
                    found.push((child, if role == "node init" { "agent" } else { role }));
                }
            }
        }
        Ok(Self(found))
    }

    /// Sum of the proportional set sizes, in MB (10^6 bytes).
    pub fn pss_mb(&self) -> anyhow::Result<f64> {
        Ok(self.by_role()?.values().sum())
    }

    /// The same by role.
    pub fn by_role(&self) -> anyhow::Result<BTreeMap<&'static str, f64>> {
        let mut roles = BTreeMap::new();
        for (pid, role) in &self.0 {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = match fs::read_to_string(&path) {
                Ok(text) => text,
                // Ended meanwhile.
                Err(_) if stat(*pid).is_none() => continue,
                Err(error) => return Err(error).context(path),
            };
            let kib = text.lines().find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix(" kB"));
            let kib: f64 = kib.and_then(|kib| kib.parse().ok()).with_context(|| format!("no Pss in {path}"))?;
            *roles.entry(*role).or_default() += kib * 1024.0 / 1e6;
        }
        Ok(roles)
    }

    /// CPU time used so far, with that of ended and awaited children.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let tick = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock tick")?;
        let ticks = |pid: i32| -> u64 {
            let fields = stat(pid).unwrap_or_default();
            // utime, stime, cutime, cstime; the state is field 3 of the file and the first here.
            fields.iter().skip(11).take(4).filter_map(|field| field.parse::<u64>().ok()).sum()
        };
        let sum: u64 = self.0.iter().map(|(pid, _)| ticks(*pid)).sum();
        Ok(Duration::from_secs_f64(sum as f64 / tick as f64))
    }

    pub fn count(&self, role: &str) -> usize {
        self.0.iter().filter(|(_, other)| *other == role).count()
    }
}

/// The fields of `/proc/PID/stat` from the state on; the command's name before it may hold anything.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}
