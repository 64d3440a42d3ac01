//! A container's child process from its creation to the point where only the program is left to start: cgroups, mounts,
//! root directory. It executes the plan in order and decides nothing.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use crate::protocol::{ContainerPlan, Failure, MountPlan};
use crate::sandbox::Sandbox;
use crate::sys::{self, Step as _};

/// Standard input, output and error.
pub type Streams<'a> = [BorrowedFd<'a>; 3];

/// In the child. Afterwards the process has the container's root, cgroups and streams.
pub fn set_up(
    plan: &ContainerPlan,
    sandbox: &Sandbox,
    terminals: Option<OwnedFd>,
    streams: Streams<'_>,
) -> Result<(), Failure> {
    reset_signals();
    oom_score(plan.process.oom_score_adj)?;
    if !plan.cgroup_v2 {
        join_cgroups(&plan.cgroups)?;
    }
    sys::unshare(libc::CLONE_NEWCGROUP as u64).step(|| "make the cgroup namespace".to_owned())?;
    let shared_memory = shared_memory(plan, sandbox)?;
    sys::unshare(libc::CLONE_NEWNS as u64).step(|| "make the mount namespace".to_owned())?;

    // Sources are taken before the namespace is cut off, so that a shared mount stays in its peer group.
    let sources = plan.mounts.iter().map(bind_source).collect::<Result<Vec<_>, _>>()?;
    sys::mount("", Path::new("/"), "", libc::MS_SLAVE | libc::MS_REC, "")
        .step(|| "cut the mount namespace off".to_owned())?;
    let root = mount_root(plan)?;
    let (mut shared_memory, mut terminals) = (shared_memory, terminals);
    for (mount, source) in plan.mounts.iter().zip(sources) {
        let source = match mount.kind.as_str() {
            "shm" => shared_memory.take(),
            "devpts" => terminals.take(),
            _ => source,
        };
        place(root.as_fd(), mount, source)?;
    }
    for device in &plan.devices {
        let made = parent_and_name(root.as_fd(), &device.path).and_then(|(parent, name)| {
            let number = libc::makedev(device.major, device.minor);
            sys::mknodat(parent.as_fd(), &sys::cstring(name)?, device.mode, number, device.uid, device.gid)
        });
        made.step(|| format!("make the device {}", device.path))?;
    }
    for (path, target) in &plan.links {
        let made = parent_and_name(root.as_fd(), path).and_then(|(parent, name)| {
            sys::symlinkat(&sys::cstring(target.as_str())?, parent.as_fd(), &sys::cstring(name)?)
        });
        made.step(|| format!("make the link {path}"))?;
    }
    for path in &plan.read_only_paths {
        cover(root.as_fd(), path, |path| {
            let tree = sys::open_tree(path, c"", true)?;
            sys::set_mount(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, 0, true)?;
            Ok(tree)
        })
        .step(|| format!("make {path} read-only"))?;
    }
    for path in &plan.masked_paths {
        cover(root.as_fd(), path, mask).step(|| format!("mask {path}"))?;
    }
    if plan.terminal {
        place_console(root.as_fd(), streams[0]).step(|| "place /dev/console".to_owned())?;
    }
    // Made here and not later: the root may become read-only.
    if !plan.process.directory.is_empty() {
        make(root.as_fd(), &plan.process.directory, true)
            .step(|| format!("make the working directory {:?}", plan.process.directory))?;
    }
    if plan.read_only_root {
        sys::set_mount(root.as_fd(), libc::MOUNT_ATTR_RDONLY, 0, false)
            .step(|| "make the root read-only".to_owned())?;
    }
    sys::fchdir(root.as_fd())
        .and_then(|()| sys::pivot_to_current_directory())
        .step(|| "change the root directory".to_owned())?;
    take_streams(streams, plan.terminal)
}

/// In the child: its own session, the streams, and with a terminal the control of it.
pub fn take_streams(streams: Streams<'_>, terminal: bool) -> Result<(), Failure> {
    sys::set_streams(streams).step(|| "set the standard streams".to_owned())?;
    // SAFETY: plain integers; both act on this process.
    unsafe {
        libc::setsid();
        if terminal && libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
            return Err(sys::system(format!("take the terminal: {}", io::Error::last_os_error())));
        }
    }
    Ok(())
}

/// In the child: what the holder set for itself must not reach the program.
pub fn reset_signals() {
    // SAFETY: an empty mask and the default action; both act on this process.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
    }
}

/// Always set: it is inherited, and the holder's is near the minimum. Where the machine's root may not lower it (itself in
/// a container without CAP_SYS_RESOURCE) it stays as it is.
pub fn oom_score(value: i32) -> Result<(), Failure> {
    match std::fs::write("/proc/self/oom_score_adj", value.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result.step(|| format!("set oom_score_adj to {value}")),
    }
}

pub fn join_cgroups(directories: &[String]) -> Result<(), Failure> {
    for directory in directories {
        std::fs::write(Path::new(directory).join("cgroup.procs"), "0")
            .step(|| format!("join the cgroup {directory}"))?;
    }
    Ok(())
}

fn shared_memory(plan: &ContainerPlan, sandbox: &Sandbox) -> Result<Option<OwnedFd>, Failure> {
    let Some(namespace) = &sandbox.shared_memory else { return Ok(None) };
    if !plan.mounts.iter().any(|mount| mount.kind == "shm") {
        return Ok(None);
    }
    let take = || {
        sys::setns(namespace.as_fd(), libc::CLONE_NEWNS)?;
        let root = sys::open(Path::new("/"), libc::O_PATH, 0)?;
        let tree = sys::open_tree(root.as_fd(), c"", false)?;
        sys::setns(sandbox.machine_mounts.as_fd(), libc::CLONE_NEWNS)?;
        Ok(tree)
    };
    take().map(Some).step(|| "share the pod's memory".to_owned())
}

fn bind_source(mount: &MountPlan) -> Result<Option<OwnedFd>, Failure> {
    if mount.kind != "bind" {
        return Ok(None);
    }
    let source = sys::open(Path::new(&mount.source), libc::O_PATH, 0)
        .and_then(|source| sys::open_tree(source.as_fd(), c"", true))
        .step(|| format!("mount {} on {}", mount.source, mount.target))?;
    Ok(Some(source))
}

fn mount_root(plan: &ContainerPlan) -> Result<OwnedFd, Failure> {
    // Options are limited to a page; relative to the directory of the layers, many fit.
    let mounted = std::env::set_current_dir(&plan.layers)
        .and_then(|()| sys::mount("overlay", Path::new(&plan.root), "overlay", 0, &plan.overlay));
    mounted.step(|| "mount the root filesystem".to_owned())?;
    sys::open(Path::new(&plan.root), libc::O_PATH | libc::O_DIRECTORY, 0).step(|| "open the root filesystem".to_owned())
}

fn place(root: BorrowedFd<'_>, mount: &MountPlan, source: Option<OwnedFd>) -> Result<(), Failure> {
    let place = || {
        let tree = match source {
            Some(tree) => {
                sys::set_mount(tree.as_fd(), mount.attributes, 0, mount.recursive)?;
                sys::set_mount(tree.as_fd(), 0, mount.propagation, true)?;
                tree
            }
            None => sys::new_filesystem(&mount.kind, &mount.options, mount.attributes)?,
        };
        let target = make(root, &mount.target, is_directory(tree.as_fd())?)?;
        sys::attach(tree.as_fd(), target.as_fd())
    };
    place().step(|| {
        let source = if mount.source.is_empty() { &mount.kind } else { &mount.source };
        format!("mount {source} on {}", mount.target)
    })
}

fn is_directory(fd: BorrowedFd<'_>) -> io::Result<bool> {
    use std::os::fd::AsRawFd as _;
    // SAFETY: all-zero is a valid stat, the call fills it.
    unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        if libc::fstat(fd.as_raw_fd(), &raw mut status) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(status.st_mode & libc::S_IFMT == libc::S_IFDIR)
    }
}

/// Opens a path below the root, making what is missing: directories, and at the end a directory or an empty file.
fn make(root: BorrowedFd<'_>, path: &str, directory: bool) -> io::Result<OwnedFd> {
    match sys::open_in_root(root, &sys::cstring(path)?, libc::O_PATH, 0) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        found => return found,
    }
    let (parent, name) = parent_and_name(root, path)?;
    let cname = sys::cstring(name)?;
    // A symbolic link to nothing: what it names inside the root is made.
    if let Some(target) = sys::readlinkat(parent.as_fd(), &cname) {
        if target.is_empty() || path.len() + target.len() > libc::PATH_MAX as usize {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        let below = path.trim_end_matches('/').strip_suffix(name).unwrap_or("/");
        let target = if target.starts_with('/') { target } else { format!("{below}{target}") };
        return make(root, &target, directory);
    }
    if directory {
        sys::mkdirat(parent.as_fd(), &cname, 0o755)?;
    } else {
        sys::open_in_root(parent.as_fd(), &cname, libc::O_CREAT | libc::O_WRONLY, 0o644)?;
    }
    sys::open_in_root(root, &sys::cstring(path)?, libc::O_PATH, 0)
}

/// The directory a path is in, made when absent, and the last component.
fn parent_and_name<'a>(root: BorrowedFd<'_>, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
    let path = path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    if name.is_empty() || name == "." || name == ".." {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let parent = if parent.is_empty() { "/" } else { parent };
    let opened = match parent {
        "/" => sys::open_in_root(root, c"/", libc::O_PATH, 0)?,
        parent => make(root, parent, true)?,
    };
    Ok((opened, name))
}

/// Puts what `tree` makes over a path, when the path is there at all.
fn cover(root: BorrowedFd<'_>, path: &str, tree: impl Fn(BorrowedFd<'_>) -> io::Result<OwnedFd>) -> io::Result<()> {
    let target = match sys::open_in_root(root, &sys::cstring(path)?, libc::O_PATH, 0) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) => return Ok(()),
        found => found?,
    };
    sys::attach(tree(target.as_fd())?.as_fd(), target.as_fd())
}

/// Nothing can be read there: an empty read-only directory, or `/dev/null`.
fn mask(target: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    if is_directory(target)? {
        return sys::new_filesystem("tmpfs", &[], libc::MOUNT_ATTR_RDONLY);
    }
    let null = sys::open(Path::new("/dev/null"), libc::O_PATH, 0)?;
    sys::open_tree(null.as_fd(), c"", false)
}

fn place_console(root: BorrowedFd<'_>, terminal: BorrowedFd<'_>) -> io::Result<()> {
    let tree = sys::open_tree(terminal, c"", false)?;
    let target = make(root, "/dev/console", false)?;
    sys::attach(tree.as_fd(), target.as_fd())
}

/// The container's `devpts` filesystem, made by the holder so that it can open terminals in it: the detached mount, and a
/// descriptor of its root that stays usable after it is attached.
pub fn terminals(plan: &ContainerPlan) -> Result<Option<(OwnedFd, OwnedFd)>, Failure> {
    let Some(mount) = plan.mounts.iter().find(|mount| mount.kind == "devpts") else { return Ok(None) };
    let made = sys::new_filesystem(&mount.kind, &mount.options, mount.attributes)
        .and_then(|tree| Ok((sys::open_in_root(tree.as_fd(), c".", libc::O_PATH, 0)?, tree)));
    made.map(|(root, tree)| Some((tree, root))).step(|| "mount devpts".to_owned())
}

/// A new terminal: its two ends.
pub fn terminal(terminals: BorrowedFd<'_>) -> io::Result<(OwnedFd, OwnedFd)> {
    use std::os::fd::{AsRawFd as _, FromRawFd as _};
    let master = sys::open_in_root(terminals, c"ptmx", libc::O_RDWR | libc::O_NOCTTY, 0)?;
    let unlocked: libc::c_int = 0;
    // SAFETY: plain integers, a valid pointer and a new descriptor.
    unsafe {
        if libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) < 0 {
            return Err(io::Error::last_os_error());
        }
        let slave = libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC);
        if slave < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((master, OwnedFd::from_raw_fd(slave)))
    }
}
