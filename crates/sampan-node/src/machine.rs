//! What this machine has: processors, memory, disk, kernel and system names. Read once at the start; pressure is read
//! again by the heartbeat.

use std::fs;
use std::path::Path;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    pub milli_cpu: i64,
    /// Bytes.
    pub memory: i64,
    /// Bytes of the file system that holds the agent's directory.
    pub disk: i64,
    pub machine_id: String,
    pub system_uuid: String,
    pub boot_id: String,
    pub kernel: String,
    pub os_image: String,
}

impl Machine {
    /// What can't be read stays empty or zero: a node is no less a node without a machine id.
    pub fn read(root: &Path) -> Self {
        let text = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            milli_cpu: i64::try_from(processors).unwrap_or(1) * 1000,
            memory: meminfo(&text("/proc/meminfo"), "MemTotal").unwrap_or(0),
            disk: disk(root).map_or(0, |(total, _)| total),
            machine_id: text("/etc/machine-id"),
            system_uuid: text("/sys/class/dmi/id/product_uuid"),
            boot_id: text("/proc/sys/kernel/random/boot_id"),
            kernel: text("/proc/sys/kernel/osrelease"),
            os_image: pretty_name(&text("/etc/os-release")).unwrap_or_else(|| "Linux".into()),
        }
    }
}

/// A line of `/proc/meminfo` in bytes.
pub fn meminfo(text: &str, name: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse::<i64>().ok()?.checked_mul(1024)
}

/// Total and available bytes of the file system at a path, or at the nearest parent that exists.
pub fn disk(path: &Path) -> Option<(i64, i64)> {
    let there = path.ancestors().find(|path| path.exists())?;
    let found = nix::sys::statvfs::statvfs(there).ok()?;
    let bytes = |blocks: u64| i64::try_from(blocks.saturating_mul(found.fragment_size())).unwrap_or(i64::MAX);
    Some((bytes(found.blocks()), bytes(found.blocks_available())))
}

fn pretty_name(os_release: &str) -> Option<String> {
    let line = os_release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME="))?;
    Some(line.trim_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_kernels_tables() {
        let text = "MemTotal:       24689764 kB\nMemFree:  1 kB\nMemAvailable:   20000000 kB\n";
        assert_eq!(meminfo(text, "MemTotal"), Some(24_689_764 * 1024));
        assert_eq!(meminfo(text, "Mem"), None);
        assert_eq!(pretty_name("NAME=x\nPRETTY_NAME=\"Debian 12\"\n").as_deref(), Some("Debian 12"));
    }
}
