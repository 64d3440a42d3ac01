//! Compiles what CRI says into the plain plan a holder executes. Pure but for a look at which devices the machine has.

use std::path::{Path, PathBuf};

use super::capability;
use super::protocol::{ContainerPlan, Device, ExecPlan, MountPlan, PidNamespace, ProcessPlan, SandboxPlan};
use crate::cgroup::{CgroupPath, Cgroups};
use crate::{ContainerConfig, Error, ExecRequest, ImageConfig, Mount, Propagation, SandboxConfig, seccomp};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
const NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
const NODEV: u64 = libc::MOUNT_ATTR_NODEV;
const NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// The defaults of containerd and Docker: what tells of, or changes, the machine.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Docker's and containerd's size of `/dev/shm`.
const SHM_BYTES: u64 = 64 << 20;

pub(super) fn sandbox(config: &SandboxConfig, directory: &Path) -> Result<SandboxPlan, Error> {
    let mut namespaces = libc::CLONE_NEWUTS;
    if !config.host_network {
        namespaces |= libc::CLONE_NEWNET;
    }
    if !config.host_ipc {
        namespaces |= libc::CLONE_NEWIPC;
    }
    let sysctls = config.sysctls.iter().map(|(name, value)| {
        let path = name.replace('.', "/");
        match path.split('/').all(|part| !part.is_empty()) {
            true => Ok((path, value.clone())),
            false => Err(Error::Invalid(format!("sysctl {name:?}"))),
        }
    });
    Ok(SandboxPlan {
        namespaces: namespaces as u64,
        hostname: config.hostname.clone(),
        shared_pid_namespace: config.share_process_namespace && !config.host_pid,
        sysctls: sysctls.collect::<Result<_, _>>()?,
        directory: text(directory)?,
        shm_bytes: if config.host_ipc { 0 } else { SHM_BYTES },
    })
}

/// What a container's plan is made of.
pub(super) struct Parts<'a> {
    pub id: &'a str,
    pub sandbox: &'a SandboxConfig,
    pub config: &'a ContainerConfig,
    pub image: &'a ImageConfig,
    /// The container's state directory.
    pub directory: &'a Path,
    pub log_path: &'a Path,
    /// Where layers are, and their names, the lowest first.
    pub layers: &'a Path,
    pub layer_names: &'a [String],
    /// The container's writable directories: `upper`, `work`, `root`.
    pub writable: &'a Path,
    pub cgroups: &'a Cgroups,
    pub cgroup: &'a CgroupPath,
}

pub(super) fn container(parts: &Parts<'_>) -> Result<ContainerPlan, Error> {
    let Parts { config, sandbox, .. } = parts;
    let security = &config.security;
    let open = security.privileged || security.unmasked_proc;
    let paths = |list: &[&str]| if open { Vec::new() } else { list.iter().map(|&path| path.to_owned()).collect() };
    let directories = parts.cgroups.directories(parts.cgroup);
    Ok(ContainerPlan {
        id: parts.id.to_owned(),
        directory: text(parts.directory)?,
        log_path: text(parts.log_path)?,
        cgroups: directories.iter().map(|(directory, _)| text(directory)).collect::<Result<_, _>>()?,
        cgroup_v2: parts.cgroups.is_v2(),
        oom_file: text(&parts.cgroups.oom_file(parts.cgroup))?,
        pid_namespace: match (sandbox.host_pid, sandbox.share_process_namespace) {
            (true, _) => PidNamespace::Host,
            (false, true) => PidNamespace::Sandbox,
            (false, false) => PidNamespace::Own,
        },
        root: text(&parts.writable.join("root"))?,
        layers: text(parts.layers)?,
        overlay: overlay(parts)?,
        mounts: mounts(parts, &directories)?,
        devices: if security.privileged { machine_devices() } else { DEVICES.map(device).to_vec() },
        links: LINKS.map(|(path, target)| (path.to_owned(), target.to_owned())).to_vec(),
        masked_paths: paths(&MASKED),
        read_only_paths: paths(&READ_ONLY),
        read_only_root: security.read_only_root,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        terminal: config.tty,
        process: process(parts)?,
    })
}

/// The plan of a command in a container: its process with other arguments.
pub(super) fn exec(container: &ContainerPlan, request: &ExecRequest) -> ExecPlan {
    let mut process = ProcessPlan { args: request.command.clone(), ..container.process.clone() };
    if request.tty && !process.env.iter().any(|variable| variable.starts_with("TERM=")) {
        process.env.push("TERM=xterm".to_owned());
    }
    ExecPlan {
        container: container.id.clone(),
        stdin: request.stdin && !request.tty,
        stdout: request.stdout && !request.tty,
        stderr: request.stderr && !request.tty,
        terminal: request.tty,
        process,
    }
}

/// Relative to the directory of layers, so that many fit into the page the kernel takes. The writable layer dies with its
/// container, so nothing has to be synced for it.
fn overlay(parts: &Parts<'_>) -> Result<String, Error> {
    let lower: Vec<&str> = parts.layer_names.iter().rev().map(String::as_str).collect();
    let writable = text(parts.writable)?;
    if lower.is_empty() || writable.contains([':', ',', '\\']) {
        return Err(Error::Invalid(format!("no overlay of {} layers can be made in {writable:?}", lower.len())));
    }
    let options = format!("lowerdir={},upperdir={writable}/upper,workdir={writable}/work,volatile", lower.join(":"));
    match options.len() {
        0..4096 => Ok(options),
        length => Err(Error::Invalid(format!("the image has too many layers: {length} bytes of overlay options"))),
    }
}

fn mounts(parts: &Parts<'_>, cgroups: &[(PathBuf, PathBuf)]) -> Result<Vec<MountPlan>, Error> {
    let Parts { config, sandbox, .. } = parts;
    let read_only = if config.security.privileged { 0 } else { RDONLY };
    let new = |kind: &str, target: &str, attributes: u64, options: &[(&str, &str)]| MountPlan {
        kind: kind.to_owned(),
        target: target.to_owned(),
        attributes,
        options: options.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect(),
        ..MountPlan::default()
    };
    let safe = NOSUID | NODEV | NOEXEC;
    let mut mounts = vec![
        new("proc", "/proc", safe, &[]),
        new("tmpfs", "/dev", NOSUID, &[("mode", "755"), ("size", "65536k")]),
        new(
            "devpts",
            "/dev/pts",
            NOSUID | NOEXEC,
            &[("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")],
        ),
        match sandbox.host_ipc {
            true => bind("/dev/shm", "/dev/shm", 0),
            false => new("shm", "/dev/shm", safe, &[]),
        },
        new("mqueue", "/dev/mqueue", safe, &[]),
        new("sysfs", "/sys", safe | read_only, &[]),
    ];
    if parts.cgroups.is_v2() {
        mounts.push(new("cgroup2", "/sys/fs/cgroup", safe | read_only, &[]));
    } else {
        mounts.push(new("tmpfs", "/sys/fs/cgroup", safe, &[("mode", "755")]));
        for (directory, hierarchy) in cgroups {
            let target = Path::new("/sys/fs/cgroup").join(hierarchy.file_name().unwrap_or_default());
            mounts.push(bind(&text(directory)?, &text(&target)?, safe | read_only));
        }
    }
    let mut given: Vec<&Mount> = config.mounts.iter().collect();
    // A mount below another's target must come after it, whatever order they were written in.
    given.sort_by_key(|mount| mount.target.components().count());
    for mount in given {
        if !mount.target.is_absolute() || !mount.source.is_absolute() {
            return Err(Error::Invalid(format!("mount {:?} on {:?}: not absolute", mount.source, mount.target)));
        }
        let attributes = if mount.read_only { RDONLY } else { 0 };
        let mut plan = bind(&text(&mount.source)?, &text(&mount.target)?, attributes);
        plan.propagation = match mount.propagation {
            Propagation::Private => libc::MS_PRIVATE,
            Propagation::HostToContainer => libc::MS_SLAVE,
            Propagation::Bidirectional => libc::MS_SHARED,
        };
        mounts.push(plan);
    }
    Ok(mounts)
}

fn bind(source: &str, target: &str, attributes: u64) -> MountPlan {
    MountPlan {
        kind: "bind".to_owned(),
        source: source.to_owned(),
        target: target.to_owned(),
        attributes,
        propagation: libc::MS_PRIVATE,
        ..MountPlan::default()
    }
}

fn process(parts: &Parts<'_>) -> Result<ProcessPlan, Error> {
    let Parts { config, image, sandbox, .. } = parts;
    let security = &config.security;
    let args = command(config, image);
    if args.is_empty() {
        return Err(Error::Invalid("no command specified".to_owned()));
    }
    let user = match (security.user, security.user_name.as_str()) {
        (Some(uid), _) => uid.to_string(),
        (None, "") => image.user.clone(),
        (None, name) => name.to_owned(),
    };
    let directory = if config.working_dir.is_empty() { &image.working_dir } else { &config.working_dir };
    if !directory.is_empty() && !directory.starts_with('/') {
        return Err(Error::Invalid(format!("the working directory {directory:?} is not absolute")));
    }
    let capabilities = capability::set(security)?;
    Ok(ProcessPlan {
        args,
        env: env(config, image, &sandbox.hostname),
        directory: directory.clone(),
        user,
        group: security.group,
        supplementary_groups: security.supplementary_groups.clone(),
        capabilities,
        no_new_privileges: security.no_new_privileges,
        seccomp: match security.privileged {
            true => Vec::new(),
            false => seccomp::filter(&security.seccomp, capabilities)?,
        },
        rlimits: Vec::new(),
        oom_score_adj: config.resources.oom_score_adj.unwrap_or(0),
    })
}

/// As Kubernetes documents it: a command replaces the image's entrypoint and its arguments, arguments alone only the
/// latter.
pub(crate) fn command(config: &ContainerConfig, image: &ImageConfig) -> Vec<String> {
    let (command, args) = match (config.command.is_empty(), config.args.is_empty()) {
        (true, true) => (&image.entrypoint, &image.cmd),
        (true, false) => (&image.entrypoint, &config.args),
        (false, _) => (&config.command, &config.args),
    };
    command.iter().chain(args).cloned().collect()
}

/// Later values of a name replace earlier ones, in place.
fn env(config: &ContainerConfig, image: &ImageConfig, hostname: &str) -> Vec<String> {
    let mut variables = vec![PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if config.tty {
        variables.push("TERM=xterm".to_owned());
    }
    let given = config.env.iter().map(|(name, value)| format!("{name}={value}"));
    for variable in image.env.iter().cloned().chain(given) {
        let name = variable.split('=').next().unwrap_or_default();
        match variables.iter_mut().find(|other| other.split('=').next() == Some(name)) {
            Some(place) => *place = variable,
            None => variables.push(variable),
        }
    }
    variables
}

const DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/full", 1, 7),
    ("/dev/null", 1, 3),
    ("/dev/random", 1, 8),
    ("/dev/tty", 5, 0),
    ("/dev/urandom", 1, 9),
    ("/dev/zero", 1, 5),
];

const LINKS: [(&str, &str); 6] = [
    ("/dev/core", "/proc/kcore"),
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/ptmx", "pts/ptmx"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
];

fn device((path, major, minor): (&str, u32, u32)) -> Device {
    Device { path: path.to_owned(), mode: libc::S_IFCHR | 0o666, major, minor, uid: 0, gid: 0 }
}

/// Every device node of the machine, for privileged containers.
fn machine_devices() -> Vec<Device> {
    use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
    let mut devices = Vec::new();
    let mut directories = vec![PathBuf::from("/dev")];
    while let Some(directory) = directories.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        for entry in entries.flatten() {
            let path = entry.path();
            let Ok(metadata) = std::fs::symlink_metadata(&path) else { continue };
            let kind = metadata.file_type();
            // The container has filesystems of its own there.
            let own =
                ["pts", "shm", "mqueue", "ptmx", "console"].iter().any(|name| path == Path::new("/dev").join(name));
            if own {
                continue;
            }
            if kind.is_dir() {
                directories.push(path);
            } else if (kind.is_char_device() || kind.is_block_device())
                && let Ok(path) = text(&path)
            {
                let (major, minor) = (libc::major(metadata.rdev()), libc::minor(metadata.rdev()));
                let (mode, uid, gid) = (metadata.mode(), metadata.uid(), metadata.gid());
                devices.push(Device { path, mode, major, minor, uid, gid });
            }
        }
    }
    devices.sort_by(|a, b| a.path.cmp(&b.path));
    devices
}

fn text(path: &Path) -> Result<String, Error> {
    path.to_str().map(str::to_owned).ok_or_else(|| Error::Invalid(format!("path {path:?} is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn commands_follow_kubernetes_table() {
        let image = ImageConfig { entrypoint: words("/ep-1"), cmd: words("foo bar"), ..ImageConfig::default() };
        let check = |given: &str, args: &str, expected: &str| {
            let config = ContainerConfig { command: words(given), args: words(args), ..ContainerConfig::default() };
            assert_eq!(command(&config, &image), words(expected));
        };
        check("", "", "/ep-1 foo bar");
        check("/ep-2", "", "/ep-2");
        check("", "zoo boo", "/ep-1 zoo boo");
        check("/ep-2", "zoo boo", "/ep-2 zoo boo");
    }

    #[test]
    fn later_variables_replace_earlier_ones() {
        let image = ImageConfig { env: words("PATH=/bin A=1 B=2"), ..ImageConfig::default() };
        let given = [("B", "3"), ("C", "x=y"), ("C", "4")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = ContainerConfig { env: given.to_vec(), ..ContainerConfig::default() };
        assert_eq!(env(&config, &image, "h"), words("PATH=/bin HOSTNAME=h A=1 B=3 C=4"));
    }

    #[test]
    fn sysctl_names_become_paths() {
        let with = |name: &str| SandboxConfig {
            sysctls: [(name.to_owned(), "1".to_owned())].into(),
            ..SandboxConfig::default()
        };
        let plan = sandbox(&with("net.ipv4.ip_forward"), Path::new("/run/x")).expect("a plan");
        assert_eq!(plan.sysctls, [("net/ipv4/ip_forward".to_owned(), "1".to_owned())]);
        // Dots become slashes, so that nothing is left that climbs.
        assert!(sandbox(&with("net/../../x"), Path::new("/run/x")).is_err());
    }
}
