//! The namespaces a pod's containers share. The holder itself lives in them; its mount namespace stays the machine's.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::path::Path;

use crate::protocol::{Failure, SandboxPlan};
use crate::sys::{self, Step as _};

/// What containers need of their sandbox.
pub struct Sandbox {
    /// The mount namespace the holder was started in.
    pub machine_mounts: OwnedFd,
    /// The PID namespace the holder was started in.
    pub own_pids: OwnedFd,
    /// A mount namespace whose root is the shared memory. Kept in a namespace of its own, it can be cloned into each
    /// container and vanishes with the holder.
    pub shared_memory: Option<OwnedFd>,
    /// A PID namespace of all containers.
    pub shared_pids: Option<OwnedFd>,
}

impl Sandbox {
    pub fn new(plan: &SandboxPlan) -> Result<Self, Failure> {
        let open = |path: &str| sys::open(Path::new(path), libc::O_RDONLY, 0).step(|| format!("open {path}"));
        let machine_mounts = open("/proc/self/ns/mnt")?;
        let own_pids = open("/proc/self/ns/pid")?;
        sys::unshare(plan.namespaces).step(|| "make the sandbox's namespaces".to_owned())?;
        if plan.namespaces & libc::CLONE_NEWNET as u64 != 0 {
            loopback_up().step(|| "bring the loopback interface up".to_owned())?;
        }
        if plan.namespaces & libc::CLONE_NEWUTS as u64 != 0 && !plan.hostname.is_empty() {
            // SAFETY: a pointer with its length.
            let result = unsafe { libc::sethostname(plan.hostname.as_ptr().cast(), plan.hostname.len()) };
            errno(result).step(|| format!("set the host name {:?}", plan.hostname))?;
        }
        for (name, value) in &plan.sysctls {
            std::fs::write(Path::new("/proc/sys").join(name), value)
                .step(|| format!("set sysctl {name} to {value:?}"))?;
        }
        let shared_memory = match plan.shm_bytes {
            0 => None,
            bytes => Some(
                shared_memory(bytes, Path::new(&plan.directory), machine_mounts.as_fd())
                    .step(|| "make the shared memory".to_owned())?,
            ),
        };
        let shared_pids = match plan.shared_pid_namespace {
            true => Some(init_process(open)?),
            false => None,
        };
        Ok(Self { machine_mounts, own_pids, shared_memory, shared_pids })
    }
}

fn errno(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: the socket is owned; ifreq is filled as SIOCGIFFLAGS and SIOCSIFFLAGS want it.
    unsafe {
        let socket = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
        errno(socket)?;
        let _owner = OwnedFd::from_raw_fd(socket);
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = *from as libc::c_char;
        }
        errno(libc::ioctl(socket, libc::SIOCGIFFLAGS as _, &raw mut request))?;
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        errno(libc::ioctl(socket, libc::SIOCSIFFLAGS as _, &raw mut request))
    }
}

fn shared_memory(bytes: u64, directory: &Path, machine_mounts: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    sys::unshare(libc::CLONE_NEWNS as u64)?;
    sys::mount("", Path::new("/"), "", libc::MS_PRIVATE | libc::MS_REC, "")?;
    sys::mount(
        "shm",
        directory,
        "tmpfs",
        libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC,
        &format!("mode=1777,size={bytes}"),
    )?;
    std::env::set_current_dir(directory)?;
    let namespace = sys::open(Path::new("/proc/self/ns/mnt"), libc::O_RDONLY, 0)?;
    sys::pivot_to_current_directory()?;
    sys::setns(machine_mounts, libc::CLONE_NEWNS)?;
    Ok(namespace)
}

/// The first process of a shared PID namespace: it only waits. Containers are children of the holder all the same.
fn init_process(open: impl Fn(&str) -> Result<OwnedFd, Failure>) -> Result<OwnedFd, Failure> {
    match sys::clone(libc::CLONE_NEWPID as u64, None).step(|| "make the shared PID namespace".to_owned())? {
        Some((pid, _)) => open(&format!("/proc/{pid}/ns/pid")),
        None => {
            // SAFETY: only calls that are safe in a fresh child. Ignoring SIGCHLD reaps orphans without waiting.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::signal(libc::SIGCHLD, libc::SIG_IGN);
                libc::close_range(0, libc::c_uint::MAX, 0);
                loop {
                    libc::pause();
                }
            }
        }
    }
}
