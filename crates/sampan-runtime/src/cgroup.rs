//! Control groups, v2 and v1, and the guard before them: **every operation takes a [`CgroupPath`], and one can only be made
//! strictly below the runtime's own prefix.** A path that is empty or climbs would make "kill every process of this group"
//! mean the machine's.
//!
//! v2 is the product; v1 has what tests on a v1 machine need.

mod device;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::Mode;

use crate::{Error, Resources, Stats};

/// A group strictly below the prefix. Only [`Prefix::join`] makes one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CgroupPath {
    prefix: Prefix,
    rest: String,
}

/// The part of the tree that belongs to this runtime.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix(String);

impl Prefix {
    /// A relative path of plain components: `sampan`, `system.slice/sampan-pods.slice`.
    pub fn new(text: &str) -> Result<Self, Error> {
        plain(text).map(Self)
    }

    /// The group `rest` below the prefix; `rest` has at least one component.
    pub fn join(&self, rest: &str) -> Result<CgroupPath, Error> {
        Ok(CgroupPath { prefix: self.clone(), rest: plain(rest)? })
    }
}

impl CgroupPath {
    /// A group below this one.
    pub fn join(&self, name: &str) -> Result<Self, Error> {
        self.prefix.join(&format!("{}/{}", self.rest, plain(name)?))
    }

    /// Whether this group is somewhere below `other`.
    pub fn is_below(&self, other: &Self) -> bool {
        self.prefix == other.prefix && self.rest.strip_prefix(&other.rest).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Relative to a hierarchy's root.
    fn relative(&self) -> String {
        format!("{}/{}", self.prefix.0, self.rest)
    }
}

/// Components of letters, digits and a few signs; so no `.`, no `..`, nothing absolute, nothing empty.
fn plain(text: &str) -> Result<String, Error> {
    let valid = |b: u8| b.is_ascii_alphanumeric() || b"-_.@:+".contains(&b);
    let component = |c: &str| !c.is_empty() && c.bytes().all(valid) && c.bytes().any(|b| b != b'.') && c.len() <= 255;
    match text.split('/').all(component) {
        true => Ok(text.to_owned()),
        false => Err(Error::Invalid(format!("cgroup path {text:?} is not a plain relative path"))),
    }
}

/// The hierarchies of this machine.
#[derive(Clone, Debug)]
pub struct Cgroups {
    prefix: Prefix,
    layout: Layout,
}

#[derive(Clone, Debug)]
enum Layout {
    V2(PathBuf),
    /// By controller; several may share one mount.
    V1(BTreeMap<&'static str, PathBuf>),
}

const V1_CONTROLLERS: [&str; 7] = ["blkio", "cpu", "cpuacct", "devices", "freezer", "memory", "pids"];
const V2_CONTROLLERS: [&str; 4] = ["cpu", "io", "memory", "pids"];

impl Cgroups {
    /// Finds the mounted hierarchies. v2 is taken when it has the memory controller.
    pub fn open(prefix: Prefix) -> Result<Self, Error> {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")
            .map_err(|error| Error::System(format!("read /proc/self/mountinfo: {error}")))?;
        let mut v1 = BTreeMap::new();
        for mount in mounts.lines() {
            let Some((before, after)) = mount.split_once(" - ") else { continue };
            let Some(point) = before.split(' ').nth(4).map(PathBuf::from) else { continue };
            let mut after = after.split(' ');
            match (after.next(), after.nth(1)) {
                (Some("cgroup2"), _) => {
                    let controllers = std::fs::read_to_string(point.join("cgroup.controllers")).unwrap_or_default();
                    if controllers.split_whitespace().any(|controller| controller == "memory") {
                        return Ok(Self { prefix, layout: Layout::V2(point) });
                    }
                }
                (Some("cgroup"), Some(options)) => {
                    for controller in V1_CONTROLLERS {
                        if options.split(',').any(|option| option == controller) {
                            v1.insert(controller, point.clone());
                        }
                    }
                }
                _ => {}
            }
        }
        let missing: Vec<&str> = ["cpu", "memory", "pids"].into_iter().filter(|c| !v1.contains_key(c)).collect();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(Error::System(format!("no cgroup v2 hierarchy, and of cgroup v1 {missing} is not mounted")));
        }
        Ok(Self { prefix, layout: Layout::V1(v1) })
    }

    pub fn prefix(&self) -> &Prefix {
        &self.prefix
    }

    pub fn is_v2(&self) -> bool {
        matches!(self.layout, Layout::V2(_))
    }

    /// Makes the group and its parents. On v2 the controllers are passed down to it, which needs them at the prefix's
    /// parent: a service manager delegates them there.
    pub fn create(&self, path: &CgroupPath) -> Result<(), Error> {
        self.own(path)?;
        for root in self.roots() {
            let mut so_far = PathBuf::new();
            for component in path.relative().split('/') {
                if self.is_v2() {
                    pass_controllers_down(&root.join(&so_far))?;
                }
                so_far.push(component);
                let directory = root.join(&so_far);
                match std::fs::create_dir(&directory) {
                    Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                        return Err(Error::System(format!("make the cgroup {}: {error}", directory.display())));
                    }
                    _ => {}
                }
            }
            self.directory(&root, path)?;
        }
        Ok(())
    }

    /// Sets what is `Some`.
    pub fn limit(&self, path: &CgroupPath, resources: &Resources) -> Result<(), Error> {
        match &self.layout {
            Layout::V2(_) => self.limit_v2(path, resources),
            Layout::V1(_) => self.limit_v1(path, resources),
        }
    }

    fn limit_v2(&self, path: &CgroupPath, resources: &Resources) -> Result<(), Error> {
        let write = |file: &str, value: String| self.write("", path, file, &value);
        if let Some(shares) = resources.cpu_shares {
            write("cpu.weight", weight(shares).to_string())?;
        }
        if resources.cpu_quota_us.is_some() || resources.cpu_period_us.is_some() {
            let quota = resources.cpu_quota_us.filter(|quota| *quota > 0);
            let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
            write("cpu.max", format!("{quota} {}", resources.cpu_period_us.unwrap_or(100_000)))?;
        }
        let or_max = |value: i64| if value > 0 { value.to_string() } else { "max".to_owned() };
        if let Some(bytes) = resources.memory_request_bytes {
            write("memory.min", bytes.max(0).to_string())?;
        }
        if let Some(bytes) = resources.memory_limit_bytes {
            write("memory.max", or_max(bytes))?;
            // Without swap accounting the file is not there, and there is nothing to forbid.
            let _ = write("memory.swap.max", "0".to_owned());
            // One process killed and the rest going on is a state nobody's program expects.
            write("memory.oom.group", "1".to_owned())?;
        }
        if let Some(pids) = resources.pids_limit {
            write("pids.max", or_max(pids))?;
        }
        Ok(())
    }

    fn limit_v1(&self, path: &CgroupPath, resources: &Resources) -> Result<(), Error> {
        if let Some(shares) = resources.cpu_shares {
            self.write("cpu", path, "cpu.shares", &shares.to_string())?;
        }
        if let Some(period) = resources.cpu_period_us {
            self.write("cpu", path, "cpu.cfs_period_us", &period.to_string())?;
        }
        if let Some(quota) = resources.cpu_quota_us {
            let quota = if quota > 0 { quota } else { -1 };
            self.write("cpu", path, "cpu.cfs_quota_us", &quota.to_string())?;
        }
        if let Some(bytes) = resources.memory_limit_bytes {
            let bytes = if bytes > 0 { bytes } else { -1 }.to_string();
            // The limit with swap is never below the one without: growing wants it first, shrinking last.
            let with_swap = |this: &Self| this.write("memory", path, "memory.memsw.limit_in_bytes", &bytes);
            let grown = with_swap(self).is_ok();
            self.write("memory", path, "memory.limit_in_bytes", &bytes)?;
            if !grown {
                let _ = with_swap(self);
            }
        }
        if let Some(pids) = resources.pids_limit {
            let pids = if pids > 0 { pids.to_string() } else { "max".to_owned() };
            self.write("pids", path, "pids.max", &pids)?;
        }
        Ok(())
    }

    /// Lets only the devices every container has be opened.
    pub fn restrict_devices(&self, path: &CgroupPath) -> Result<(), Error> {
        match &self.layout {
            Layout::V2(root) => device::restrict(self.directory(root, path)?.as_fd())
                .map_err(|error| Error::System(format!("restrict the devices of {}: {error}", path.relative()))),
            Layout::V1(hierarchies) if hierarchies.contains_key("devices") => {
                self.write("devices", path, "devices.deny", "a")?;
                for rule in device::ALLOWED {
                    self.write("devices", path, "devices.allow", &rule.to_string())?;
                }
                Ok(())
            }
            Layout::V1(_) => Ok(()),
        }
    }

    /// The directories a process has to join, each with its hierarchy's mount point.
    pub fn directories(&self, path: &CgroupPath) -> Vec<(PathBuf, PathBuf)> {
        self.roots().into_iter().map(|root| (root.join(path.relative()), root)).collect()
    }

    /// The file with the `oom_kill` line.
    pub fn oom_file(&self, path: &CgroupPath) -> PathBuf {
        match &self.layout {
            Layout::V2(root) => root.join(path.relative()).join("memory.events"),
            Layout::V1(roots) => roots["memory"].join(path.relative()).join("memory.oom_control"),
        }
    }

    /// Kills every process of the group and of the groups below it, once; new ones may come from the dying.
    /// Returns how many there were.
    pub fn kill(&self, path: &CgroupPath) -> Result<usize, Error> {
        let processes = self.processes(path)?;
        if self.is_v2() && !processes.is_empty() && self.write("", path, "cgroup.kill", "1").is_ok() {
            return Ok(processes.len());
        }
        // An agent that was put into the tree it manages must not end itself; neither does the kernel's way above, as v2
        // groups with groups below them hold no processes.
        let own = std::process::id() as i32;
        for &pid in processes.iter().filter(|pid| **pid != own) {
            let Ok(pidfd) = pidfd_open(pid) else { continue };
            // The number may have been given to another process since it was read; the descriptor cannot.
            if self.processes(path)?.contains(&pid) {
                let _ = pidfd_kill(&pidfd);
            }
        }
        Ok(processes.len())
    }

    /// The processes of the group and of the groups below it.
    pub fn processes(&self, path: &CgroupPath) -> Result<BTreeSet<i32>, Error> {
        let mut processes = BTreeSet::new();
        for root in self.roots() {
            for group in self.tree(&root, path) {
                let text = self.read_in(&root, &group, "cgroup.procs").unwrap_or_default();
                // A process of another PID namespace is shown as 0.
                processes.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
            }
        }
        Ok(processes)
    }

    /// Removes the group and the groups below it. Busy while a process is left. An absent group is removed already.
    pub fn remove(&self, path: &CgroupPath) -> Result<(), Error> {
        self.own(path)?;
        for root in self.roots() {
            for group in self.tree(&root, path).into_iter().rev() {
                match std::fs::remove_dir(root.join(group.relative())) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        return Err(Error::System(format!("remove the cgroup {}: {error}", group.relative())));
                    }
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The groups directly below this one, or, without one, below the prefix.
    pub fn children(&self, path: Option<&CgroupPath>) -> Vec<CgroupPath> {
        let directory = path.map_or_else(|| self.prefix.0.clone(), CgroupPath::relative);
        let mut names = BTreeSet::new();
        for root in self.roots() {
            let Ok(entries) = std::fs::read_dir(root.join(&directory)) else { continue };
            let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
            names.extend(directories.filter_map(|entry| entry.file_name().into_string().ok()));
        }
        let child = |name: &String| path.map_or_else(|| self.prefix.join(name), |path| path.join(name)).ok();
        names.iter().filter_map(child).collect()
    }

    /// Removes the prefix's own directories, when nothing is left below them.
    pub fn remove_prefix(&self) {
        for root in self.roots() {
            let _ = std::fs::remove_dir(root.join(&self.prefix.0));
        }
    }

    /// Usage now. What a file does not say is 0.
    pub fn stats(&self, path: &CgroupPath) -> Stats {
        let read = |controller: &str, file: &str| self.read(controller, path, file).unwrap_or_default();
        let number = |text: String| text.trim().parse().unwrap_or(0);
        let field = |text: &str, name: &str| {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse::<u64>().ok());
            value.unwrap_or(0)
        };
        let (usage, inactive, rss, cpu) = match &self.layout {
            Layout::V2(_) => {
                let memory = read("", "memory.stat");
                let cpu = field(&read("", "cpu.stat"), "usage_usec") * 1000;
                (number(read("", "memory.current")), field(&memory, "inactive_file"), field(&memory, "anon"), cpu)
            }
            Layout::V1(_) => {
                let memory = read("memory", "memory.stat");
                let usage = number(read("memory", "memory.usage_in_bytes"));
                let cpu = number(read("cpuacct", "cpuacct.usage"));
                (usage, field(&memory, "total_inactive_file"), field(&memory, "total_rss"), cpu)
            }
        };
        Stats {
            cpu_usage_nanoseconds: cpu,
            memory_usage_bytes: usage,
            memory_working_set_bytes: usage.saturating_sub(inactive),
            memory_rss_bytes: rss,
            pids: number(read("pids", "pids.current")),
            writable_bytes: 0,
        }
    }

    /// The group and all below it, parents first.
    fn tree(&self, root: &Path, path: &CgroupPath) -> Vec<CgroupPath> {
        let mut groups = vec![path.clone()];
        let mut next = 0;
        while let Some(group) = groups.get(next).cloned() {
            next += 1;
            let Ok(entries) = std::fs::read_dir(root.join(group.relative())) else { continue };
            for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
                groups.extend(entry.file_name().to_str().and_then(|name| group.join(name).ok()));
            }
        }
        groups
    }

    /// Each distinct hierarchy once.
    fn roots(&self) -> Vec<PathBuf> {
        match &self.layout {
            Layout::V2(root) => vec![root.clone()],
            Layout::V1(roots) => roots.values().cloned().collect::<BTreeSet<_>>().into_iter().collect(),
        }
    }

    fn root_of(&self, controller: &str) -> Result<&Path, Error> {
        match &self.layout {
            Layout::V2(root) => Ok(root),
            Layout::V1(roots) => roots
                .get(controller)
                .map(PathBuf::as_path)
                .ok_or_else(|| Error::System(format!("cgroup controller {controller} is not mounted"))),
        }
    }

    /// Refuses a path made for another runtime's prefix.
    fn own(&self, path: &CgroupPath) -> Result<(), Error> {
        match path.prefix == self.prefix {
            true => Ok(()),
            false => Err(Error::Invalid(format!("cgroup {} is not below {}", path.relative(), self.prefix.0))),
        }
    }

    /// Opens the group's directory. Symbolic links and other mounts on the way are refused by the kernel.
    fn directory(&self, root: &Path, path: &CgroupPath) -> Result<OwnedFd, Error> {
        self.own(path)?;
        let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_XDEV;
        let how = OpenHow::new().flags(OFlag::O_DIRECTORY | OFlag::O_CLOEXEC | OFlag::O_RDONLY).resolve(resolve);
        let open = || {
            let root = File::open(root)?;
            Ok::<_, io::Error>(nix::fcntl::openat2(&root, path.relative().as_str(), how)?)
        };
        open().map_err(|error| Error::System(format!("open the cgroup {}: {error}", path.relative())))
    }

    fn file(&self, root: &Path, path: &CgroupPath, name: &str, flags: OFlag) -> Result<File, Error> {
        let directory = self.directory(root, path)?;
        nix::fcntl::openat(&directory, name, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())
            .map(File::from)
            .map_err(|error| Error::System(format!("open {}/{name}: {error}", path.relative())))
    }

    fn write(&self, controller: &str, path: &CgroupPath, file: &str, value: &str) -> Result<(), Error> {
        let mut opened = self.file(self.root_of(controller)?, path, file, OFlag::O_WRONLY)?;
        opened
            .write_all(value.as_bytes())
            .map_err(|error| Error::System(format!("write {value:?} to {}/{file}: {error}", path.relative())))
    }

    fn read(&self, controller: &str, path: &CgroupPath, file: &str) -> Result<String, Error> {
        self.read_in(self.root_of(controller)?, path, file)
    }

    fn read_in(&self, root: &Path, path: &CgroupPath, file: &str) -> Result<String, Error> {
        let mut text = String::new();
        self.file(root, path, file, OFlag::O_RDONLY)?
            .read_to_string(&mut text)
            .map_err(|error| Error::System(format!("read {}/{file}: {error}", path.relative())))?;
        Ok(text)
    }
}

/// Enables the controllers for the children of a v2 group, as far as the group has them itself. This only ever adds; above
/// the prefix it is the one thing done, and only where a controller is not passed down yet.
fn pass_controllers_down(directory: &Path) -> Result<(), Error> {
    let read = |name: &str| std::fs::read_to_string(directory.join(name)).unwrap_or_default();
    let (has, gives) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    let listed = |text: &str, name: &str| text.split_whitespace().any(|other| other == name);
    for controller in V2_CONTROLLERS {
        if listed(&has, controller) && !listed(&gives, controller) {
            let file = directory.join("cgroup.subtree_control");
            std::fs::write(&file, format!("+{controller}"))
                .map_err(|error| Error::System(format!("enable {controller} in {}: {error}", file.display())))?;
        }
    }
    Ok(())
}

/// v1 shares (2 … 262144, default 1024) as v2 weight (1 … 10000, default 100): linear, as KEP-2254 has it.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

pub(crate) fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain integers; the descriptor returned is new.
    unsafe {
        match libc::syscall(libc::SYS_pidfd_open, pid, 0) {
            fd @ 0.. => Ok(OwnedFd::from_raw_fd(fd as i32)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

pub(crate) fn pidfd_kill(pidfd: &OwnedFd) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: plain integers and a null the call allows.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), libc::SIGKILL, none, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_plain_paths_below_the_prefix_exist() {
        let prefix = Prefix::new("sampan-test").expect("a prefix");
        let path = prefix.join("burstable/pod1-2").expect("a path");
        assert_eq!(path.relative(), "sampan-test/burstable/pod1-2");
        assert_eq!(path.join("c1").expect("a path").relative(), "sampan-test/burstable/pod1-2/c1");
        for wrong in ["", "/", "..", ".", "a/..", "a/../b", "/a", "a/", "a//b", "a/.", "...", "a b", "a\0b", "a\n"] {
            assert!(matches!(Prefix::new(wrong), Err(Error::Invalid(_))), "prefix {wrong:?}");
            assert!(matches!(prefix.join(wrong), Err(Error::Invalid(_))), "path {wrong:?}");
            assert!(matches!(path.join(wrong), Err(Error::Invalid(_))), "child {wrong:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_leads_out_of_the_prefix(text in "[a./\\\\ ~-]{0,12}") {
            let prefix = Prefix::new("own").expect("a prefix");
            if let Ok(path) = prefix.join(&text) {
                let mut resolved = PathBuf::new();
                for component in Path::new(&path.relative()).components() {
                    match component {
                        std::path::Component::Normal(name) => resolved.push(name),
                        other => prop_assert!(false, "component {:?}", other),
                    }
                }
                prop_assert!(resolved.starts_with("own") && resolved != Path::new("own"));
            }
        }
    }

    /// A plain directory stands for the v2 hierarchy.
    fn stage() -> (tempfile::TempDir, Cgroups) {
        let root = tempfile::tempdir().expect("a directory");
        let prefix = Prefix::new("own").expect("a prefix");
        let cgroups = Cgroups { prefix, layout: Layout::V2(root.path().to_owned()) };
        (root, cgroups)
    }

    #[test]
    fn another_runtimes_paths_are_refused() {
        let (_root, cgroups) = stage();
        let foreign = Prefix::new("other").and_then(|prefix| prefix.join("pod")).expect("a path");
        assert!(matches!(cgroups.create(&foreign), Err(Error::Invalid(_))));
        assert!(matches!(cgroups.remove(&foreign), Err(Error::Invalid(_))));
        assert_eq!(cgroups.processes(&foreign), Ok(BTreeSet::new()));
    }

    #[test]
    fn a_symbolic_link_is_not_followed() {
        let (root, cgroups) = stage();
        std::fs::create_dir_all(root.path().join("foreign/pod")).expect("a directory");
        std::fs::write(root.path().join("foreign/pod/cgroup.procs"), "1\n").expect("a file");
        std::os::unix::fs::symlink("foreign", root.path().join("own")).expect("a link");
        let path = cgroups.prefix.join("pod").expect("a path");
        assert!(cgroups.limit(&path, &Resources { pids_limit: Some(1), ..Resources::default() }).is_err());
        assert_eq!(cgroups.processes(&path), Ok(BTreeSet::new()));
        assert!(cgroups.create(&path).is_err());
        assert!(root.path().join("foreign/pod").exists());
    }

    #[test]
    fn limits_are_written_as_the_kernel_wants_them() {
        let (root, cgroups) = stage();
        let path = cgroups.prefix.join("pod").expect("a path");
        cgroups.create(&path).expect("made");
        let directory = root.path().join("own/pod");
        for file in ["cpu.weight", "cpu.max", "memory.max", "memory.oom.group", "pids.max"] {
            std::fs::write(directory.join(file), "").expect("a file");
        }
        let resources = Resources {
            cpu_shares: Some(1024),
            cpu_quota_us: Some(50_000),
            memory_limit_bytes: Some(1 << 20),
            pids_limit: Some(-1),
            ..Resources::default()
        };
        cgroups.limit(&path, &resources).expect("written");
        let read = |file: &str| std::fs::read_to_string(directory.join(file)).expect("a file");
        assert_eq!(read("cpu.weight"), "39");
        assert_eq!(read("cpu.max"), "50000 100000");
        assert_eq!(read("memory.max"), "1048576");
        assert_eq!(read("pids.max"), "max");
    }

    #[test]
    fn weights_cover_the_range() {
        assert_eq!((weight(2), weight(262_144), weight(0)), (1, 10_000, 1));
    }
}
