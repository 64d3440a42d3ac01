//! `sampan doctor`: what this machine lacks or blocks, with the remedy. `up` refuses with the same words.

use std::path::Path;
use std::process::Command;

use anyhow::bail;
use serde_json::json;

use crate::cli;

/// One thing that was looked at.
struct Finding {
    what: &'static str,
    /// `None`: fine.
    problem: Option<Problem>,
}

struct Problem {
    text: String,
    remedy: &'static str,
    /// Nothing works without it; otherwise something is slower or missing.
    fatal: bool,
}

pub fn run(options: &cli::Output) -> anyhow::Result<()> {
    let findings = examine();
    if options.output.is_some() {
        let all = findings.iter().map(|finding| {
            json!({
                "check": finding.what,
                "ok": finding.problem.is_none(),
                "fatal": finding.problem.as_ref().is_some_and(|problem| problem.fatal),
                "problem": finding.problem.as_ref().map(|problem| &problem.text),
                "remedy": finding.problem.as_ref().map(|problem| problem.remedy),
            })
        });
        println!("{:#}", json!({"checks": all.collect::<Vec<_>>()}));
    } else {
        for finding in &findings {
            match &finding.problem {
                None => println!("ok       {}", finding.what),
                Some(problem) => {
                    let mark = if problem.fatal { "MISSING" } else { "warning" };
                    println!("{mark}  {}: {}\n         remedy: {}", finding.what, problem.text, problem.remedy);
                }
            }
        }
    }
    refuse(&findings)
}

/// What `up` asks before it changes anything.
pub fn require() -> anyhow::Result<()> {
    refuse(&examine())
}

fn refuse(findings: &[Finding]) -> anyhow::Result<()> {
    let fatal: Vec<String> = findings
        .iter()
        .filter_map(|finding| finding.problem.as_ref().filter(|problem| problem.fatal).map(|p| (finding.what, p)))
        .map(|(what, problem)| format!("{what}: {} (remedy: {})", problem.text, problem.remedy))
        .collect();
    if fatal.is_empty() {
        return Ok(());
    }
    bail!("this machine cannot run a cluster:\n  {}", fatal.join("\n  "))
}

fn examine() -> Vec<Finding> {
    let check = |what, problem| Finding { what, problem };
    vec![
        check("root", root()),
        check("nftables", nft()),
        check("namespaces", namespaces()),
        check("overlayfs", overlayfs()),
        check("cgroups", cgroups()),
        check("veth links", modules(&["veth"])),
        check("bridges", modules(&["bridge"])),
        check("forwarded packets", forwarding()),
        check("inotify limits", inotify()),
    ]
}

fn missing(text: impl Into<String>, remedy: &'static str) -> Option<Problem> {
    Some(Problem { text: text.into(), remedy, fatal: true })
}

fn warning(text: impl Into<String>, remedy: &'static str) -> Option<Problem> {
    Some(Problem { text: text.into(), remedy, fatal: false })
}

fn root() -> Option<Problem> {
    if nix::unistd::geteuid().is_root() { None } else { missing("not root", "run it with sudo") }
}

fn nft() -> Option<Problem> {
    match Command::new("nft").args(["list", "tables"]).output() {
        Err(error) => missing(format!("cannot run nft: {error}"), "install the package nftables"),
        Ok(output) if !output.status.success() && nix::unistd::geteuid().is_root() => missing(
            format!("nft does not work: {}", String::from_utf8_lossy(&output.stderr).trim()),
            "the kernel needs nf_tables (CONFIG_NF_TABLES): modprobe nf_tables",
        ),
        Ok(_) => None,
    }
}

fn namespaces() -> Option<Problem> {
    let absent: Vec<&str> = ["pid", "net", "mnt", "uts", "ipc", "cgroup"]
        .into_iter()
        .filter(|name| !Path::new("/proc/self/ns").join(name).exists())
        .collect();
    if absent.is_empty() {
        return None;
    }
    missing(format!("the kernel has no {} namespaces", absent.join(", ")), "use a kernel built with CONFIG_NAMESPACES")
}

fn overlayfs() -> Option<Problem> {
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known.lines().any(|line| line.trim().ends_with("overlay")) || module_exists("overlay") {
        return None;
    }
    missing("the kernel has no overlay filesystem", "modprobe overlay, or use a kernel with CONFIG_OVERLAY_FS")
}

fn cgroups() -> Option<Problem> {
    let hierarchies = crate::local::cgroup::current().unwrap_or_default();
    if hierarchies.is_empty() {
        return missing("no cgroups are mounted below /sys/fs/cgroup", "mount -t cgroup2 none /sys/fs/cgroup");
    }
    let available = |name: &str| {
        hierarchies.iter().any(|hierarchy| match &hierarchy.controllers {
            Some(controllers) => controllers.split(',').any(|one| one == name),
            None => std::fs::read_to_string(hierarchy.path.join("cgroup.controllers"))
                .is_ok_and(|text| text.split_whitespace().any(|one| one == name)),
        })
    };
    let absent: Vec<&str> = ["cpu", "memory", "pids"].into_iter().filter(|name| !available(name)).collect();
    if absent.is_empty() {
        return None;
    }
    warning(
        format!("no cgroup controller for {}: limits on them will not hold", absent.join(", ")),
        "boot with cgroup_enable=memory, or without cgroup_disable",
    )
}

fn module_exists(name: &str) -> bool {
    if Path::new("/sys/module").join(name).exists() {
        return true;
    }
    let release = nix::sys::utsname::uname().ok();
    let release = release.as_ref().and_then(|uname| uname.release().to_str()).unwrap_or_default();
    let file = |list: &str| std::fs::read_to_string(format!("/lib/modules/{release}/{list}")).unwrap_or_default();
    let wanted = format!("/{name}.ko");
    file("modules.builtin").contains(&wanted) || file("modules.dep").contains(&wanted)
}

fn modules(names: &[&str]) -> Option<Problem> {
    // A kernel without module support has what it has built in; only using it tells.
    let listed = Path::new("/proc/modules").exists();
    let absent: Vec<&str> = names.iter().copied().filter(|name| listed && !module_exists(name)).collect();
    if absent.is_empty() {
        return None;
    }
    warning(
        format!("no kernel module {} found; it may be built in", absent.join(", ")),
        "if `up` fails on it, install the distribution's full kernel modules",
    )
}

/// Docker and firewalls set the policy of forwarded packets to drop; a verdict in our own table cannot override it.
fn forwarding() -> Option<Problem> {
    let output = Command::new("nft").args(["list", "chains"]).output().ok()?;
    let chains = String::from_utf8_lossy(&output.stdout);
    let drops = chains.lines().any(|line| line.contains("hook forward") && line.contains("policy drop"));
    if !drops {
        return None;
    }
    warning(
        "a firewall on this machine drops forwarded packets (Docker and ufw do): pods may not reach other networks",
        "allow it: iptables -I DOCKER-USER -i smp-+ -j ACCEPT, or ufw default allow routed",
    )
}

fn inotify() -> Option<Problem> {
    const WANTED: u64 = 256;
    let path = "/proc/sys/fs/inotify/max_user_instances";
    let limit: u64 = std::fs::read_to_string(path).ok()?.trim().parse().ok()?;
    if limit >= WANTED {
        return None;
    }
    warning(
        format!("only {limit} inotify instances per user: programs in pods may fail with \"too many open files\""),
        "sysctl fs.inotify.max_user_instances=512",
    )
}
