//! The private root filesystem of a local node: the host's programs read-only, everything else the node's own. Host
//! directories appear only where `--mount` says so.

use std::ffi::CString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::unistd::{chdir, pivot_root};

use super::cgroup::{Hierarchy, enable_all};
use crate::cli::Mount;

/// What the root is made of.
pub struct Plan<'a> {
    pub hostname: &'a str,
    /// An empty directory to build in.
    pub root: &'a Path,
    /// The node's durable directory.
    pub data: &'a Path,
    pub mounts: &'a [Mount],
    pub hierarchies: &'a [Hierarchy],
}

/// Inside the node: where its durable directory is mounted.
pub const DATA: &str = "/var/lib/sampan";

const NONE: Option<&str> = None;

fn bind(source: &Path, target: &Path, flags: MsFlags) -> anyhow::Result<()> {
    let failed = || format!("bind {} to {}", source.display(), target.display());
    mount(Some(source), target, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).with_context(failed)?;
    if !flags.is_empty() {
        mount(NONE, target, NONE, MsFlags::MS_BIND | MsFlags::MS_REMOUNT | flags, NONE).with_context(failed)?;
    }
    Ok(())
}

fn special(kind: &str, target: &Path, flags: MsFlags, options: &str) -> anyhow::Result<()> {
    fs::create_dir_all(target).with_context(|| format!("create {}", target.display()))?;
    let options = (!options.is_empty()).then_some(options);
    mount(Some(kind), target, Some(kind), flags, options)
        .with_context(|| format!("mount {kind} on {}", target.display()))
}

/// Builds the root and makes it the calling process's. The process must be alone in its mount namespace.
pub fn enter(plan: &Plan<'_>) -> anyhow::Result<()> {
    let root = plan.root;
    let at = |path: &str| root.join(path.trim_start_matches('/'));
    // Nothing that is mounted here may reach the host.
    mount(NONE, "/", NONE, MsFlags::MS_PRIVATE | MsFlags::MS_REC, NONE).context("make the mounts private")?;
    special("tmpfs", root, MsFlags::MS_NOSUID, "mode=755")?;
    programs(root)?;
    configuration(plan)?;

    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    special("proc", &at("/proc"), plain, "")?;
    special("sysfs", &at("/sys"), plain, "")?;
    cgroups(&at("/sys/fs/cgroup"), plan.hierarchies)?;
    devices(&at("/dev"))?;
    special("tmpfs", &at("/run"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=755")?;
    special("tmpfs", &at("/tmp"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;

    for (source, target) in [("", DATA), ("kubelet", "/var/lib/kubelet"), ("log", "/var/log")] {
        let source = plan.data.join(source);
        fs::create_dir_all(&source).with_context(|| format!("create {}", source.display()))?;
        fs::create_dir_all(at(target))?;
        bind(&source, &at(target), MsFlags::empty())?;
    }
    for Mount { source, target } in plan.mounts {
        let target = at(&target.to_string_lossy());
        if source.is_dir() {
            fs::create_dir_all(&target)?;
        } else {
            fs::create_dir_all(target.parent().unwrap_or(root))?;
            fs::File::create(&target)?;
        }
        bind(source, &target, MsFlags::empty())?;
    }

    let old = at("/.old");
    fs::create_dir_all(&old)?;
    pivot_root(root, &old).context("pivot_root")?;
    chdir("/").context("chdir /")?;
    umount2("/.old", MntFlags::MNT_DETACH).context("unmount the host's root")?;
    fs::remove_dir("/.old").context("remove /.old")?;
    // Inside the node mounts propagate, as volumes with bidirectional propagation need it.
    mount(NONE, "/", NONE, MsFlags::MS_SHARED | MsFlags::MS_REC, NONE).context("share the mounts within the node")
}

/// `/usr` read-only and the links or directories that lead into it.
fn programs(root: &Path) -> anyhow::Result<()> {
    let usr = root.join("usr");
    fs::create_dir_all(&usr)?;
    bind(Path::new("/usr"), &usr, MsFlags::MS_RDONLY)?;
    for name in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
        let source = Path::new("/").join(name);
        let target = root.join(name);
        match fs::read_link(&source) {
            Ok(link) => symlink(link, &target)?,
            Err(_) if source.is_dir() => {
                fs::create_dir_all(&target)?;
                bind(&source, &target, MsFlags::MS_RDONLY)?;
            }
            Err(_) => {}
        }
    }
    Ok(())
}

/// A minimal `/etc`: names of its own, the host's accounts, certificates and name servers.
fn configuration(plan: &Plan<'_>) -> anyhow::Result<()> {
    let etc = plan.root.join("etc");
    fs::create_dir_all(&etc)?;
    fs::write(etc.join("hostname"), format!("{}\n", plan.hostname))?;
    let hosts = format!("127.0.0.1 localhost\n::1 localhost ip6-localhost\n127.0.1.1 {}\n", plan.hostname);
    fs::write(etc.join("hosts"), hosts)?;
    for name in ["passwd", "group", "nsswitch.conf", "os-release", "ld.so.cache", "resolv.conf", "localtime"] {
        // Copies: the node's own from now on; what the host lacks the node lacks too.
        if let Ok(content) = fs::read(Path::new("/etc").join(name)) {
            fs::write(etc.join(name), content)?;
        }
    }
    for name in ["ssl", "ca-certificates", "alternatives", "pki"] {
        let source = Path::new("/etc").join(name);
        if source.is_dir() {
            fs::create_dir_all(etc.join(name))?;
            bind(&source, &etc.join(name), MsFlags::MS_RDONLY)?;
        }
    }
    Ok(())
}

/// The node's own cgroups: the caller's cgroup namespace makes its `sampan/CLUSTER/NODE` their root.
fn cgroups(target: &Path, hierarchies: &[Hierarchy]) -> anyhow::Result<()> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    if let [Hierarchy { controllers: None, .. }] = hierarchies {
        special("cgroup2", target, plain, "")?;
        // A version 2 cgroup with controllers for its children holds no processes itself.
        let leaf = target.join("agent");
        fs::create_dir_all(&leaf)?;
        fs::write(leaf.join("cgroup.procs"), "0").context("move the agent into its own cgroup")?;
        return enable_all(target).context("delegate the cgroup controllers");
    }
    special("tmpfs", target, plain, "mode=755")?;
    for hierarchy in hierarchies {
        let name = hierarchy.path.file_name().context("a cgroup mount has a name")?;
        match &hierarchy.controllers {
            None => special("cgroup2", &target.join(name), plain, "")?,
            Some(controllers) if controllers.starts_with("name=") => {
                special("cgroup", &target.join(name), plain, &format!("none,{controllers}"))?;
            }
            Some(controllers) => special("cgroup", &target.join(name), plain, controllers)?,
        }
    }
    Ok(())
}

/// A `/dev` with the devices everything expects and those containers may be given.
fn devices(dev: &Path) -> anyhow::Result<()> {
    special("tmpfs", dev, MsFlags::MS_NOSUID, "mode=755")?;
    for name in ["null", "zero", "full", "random", "urandom", "tty", "fuse", "kmsg", "kvm", "net/tun"] {
        let source = Path::new("/dev").join(name);
        if source.exists() {
            let target = dev.join(name);
            fs::create_dir_all(target.parent().unwrap_or(dev))?;
            fs::File::create(&target)?;
            bind(&source, &target, MsFlags::empty())?;
        }
    }
    special("devpts", &dev.join("pts"), MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620")?;
    special("tmpfs", &dev.join("shm"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    for (link, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(link))?;
    }
    Ok(())
}

/// Programs started in the node find what they need here.
pub fn environment() -> Vec<(CString, CString)> {
    let keep = ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SAMPAN_LOG"];
    let path = ("PATH".to_owned(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    let kept = keep.into_iter().filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?)));
    let both = |(name, value): (String, String)| Some((CString::new(name).ok()?, CString::new(value).ok()?));
    std::iter::once(path).chain([("HOME".to_owned(), "/root".to_owned())]).chain(kept).filter_map(both).collect()
}

/// The directory a node's root is built in: below the cluster's run directory.
pub fn build_dir(run: &Path, node: &str) -> PathBuf {
    run.join("roots").join(node)
}
