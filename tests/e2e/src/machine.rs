//! What of this machine a cluster may change: taken before and after, it must be the same.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use crate::command::run;
use crate::eventually;

/// The parts of the machine that `sampan down` must leave as `up` found them, line by line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    links: BTreeSet<String>,
    routes: BTreeSet<String>,
    rules: String,
    forwarding: String,
    mounts: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    /// Command lines of everything that was started from the binary under test, holders included.
    processes: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    directories: BTreeSet<String>,
}

impl Machine {
    /// Waits until clusters of other test programs are gone: theirs are taken down after those programs have ended.
    pub fn at_rest() -> Self {
        eventually("the clusters of other tests to be gone", || {
            let names = fs::read_dir("/run/sampan").into_iter().flatten().flatten().map(|entry| entry.file_name());
            let other = names.into_iter().any(|name| name.to_string_lossy().starts_with("e2e-"));
            (!other).then_some(())
        });
        Self::look()
    }

    pub fn look() -> Self {
        let text = |program: &str, arguments: &[&str]| run(Command::new(program).args(arguments)).ok();
        let mut links = BTreeSet::new();
        for line in text("ip", &["-oneline", "link"]).lines() {
            // `2: eth0@if3: <FLAGS> …`: the name; counters and the like may change.
            links.extend(line.split(": ").nth(1).map(str::to_owned));
        }
        let mut cgroups = BTreeSet::new();
        directories(Path::new("/sys/fs/cgroup"), 6, &mut |path| {
            let name = path.to_string_lossy();
            if name.ends_with("/sampan") || name.contains("/sampan/e2e-") {
                cgroups.insert(name.into_owned());
            }
        });
        let routes = ["-4", "-6"].map(|family| text("ip", &[family, "route", "show", "table", "all"]));
        Self {
            links,
            routes: routes.iter().flat_map(|text| text.lines()).map(stable_route).collect(),
            // Handles and counters are not part of the plain listing's rules we make.
            rules: text("nft", &["--stateless", "list", "ruleset"]),
            forwarding: fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default(),
            mounts: fs::read_to_string("/proc/self/mounts").unwrap_or_default().lines().map(str::to_owned).collect(),
            cgroups,
            processes: processes(),
            namespaces: text("lsns", &["--noheadings", "--output", "NS,TYPE"])
                .lines()
                .map(|line| line.trim().to_owned())
                .collect(),
            directories: ["/run/sampan", "/var/lib/sampan/clusters", "/var/run/netns"]
                .iter()
                .flat_map(|path| fs::read_dir(path).into_iter().flatten().flatten())
                .map(|entry| entry.path().display().to_string())
                .collect(),
        }
    }

    /// What is different now, as lines; empty when nothing is.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        let sets = [
            ("link", &self.links, &now.links),
            ("route", &self.routes, &now.routes),
            ("mount", &self.mounts, &now.mounts),
            ("cgroup", &self.cgroups, &now.cgroups),
            ("process", &self.processes, &now.processes),
            ("directory", &self.directories, &now.directories),
        ];
        for (what, before, after) in sets {
            lines.extend(after.difference(before).map(|one| format!("new {what}: {one}")));
            lines.extend(before.difference(after).map(|one| format!("lost {what}: {one}")));
        }
        // Other programs of the machine may end or begin namespaces meanwhile: only new ones are ours to explain.
        lines.extend(now.namespaces.difference(&self.namespaces).map(|one| format!("new namespace: {one}")));
        if self.rules != now.rules {
            lines.push(format!("nftables rules were:\n{}\nand are:\n{}", self.rules, now.rules));
        }
        if self.forwarding != now.forwarding {
            lines.push(format!("ip_forward was {} and is {}", self.forwarding.trim(), now.forwarding.trim()));
        }
        lines
    }

    /// Fails the test when something stays different. What the kernel removes in the background gets its time.
    #[track_caller]
    pub fn assert_restored(&self) {
        let mut last = Vec::new();
        let waited = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("the machine to be as before", || {
                last = self.differences(&Self::look());
                last.is_empty().then_some(())
            });
        }));
        assert!(waited.is_ok(), "the machine is not as before:\n{}", last.join("\n"));
    }
}

/// A route without what changes by itself.
fn stable_route(line: &str) -> String {
    let mut words = Vec::new();
    let mut skip = false;
    for word in line.split_whitespace() {
        if std::mem::take(&mut skip) {
            continue;
        }
        skip = word == "expires";
        if !skip {
            words.push(word);
        }
    }
    words.join(" ")
}

fn processes() -> BTreeSet<String> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut found = BTreeSet::new();
    for entry in entries {
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let program = line.split(' ').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
        if program.starts_with("sampan") {
            found.insert(format!("{} {}", entry.file_name().to_string_lossy(), line.trim()));
        }
    }
    found
}

fn directories(path: &Path, depth: u8, visit: &mut impl FnMut(&Path)) {
    visit(path);
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            directories(&entry.path(), depth - 1, visit);
        }
    }
}
