//! The last steps before a program runs, in the child: identity, capabilities, seccomp, `execve`. Container start and exec
//! share them.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr;

use crate::protocol::{Failure, FailureKind, ProcessPlan};
use crate::sys::{self, Step as _};
use crate::user;

/// Becomes the program. Returns only when that fails; what is told through `errors` is the reason.
pub fn execute(plan: &ProcessPlan, errors: BorrowedFd<'_>) -> Failure {
    match prepare_and_execute(plan, errors) {
        Ok(never) => match never {},
        Err(failure) => failure,
    }
}

fn prepare_and_execute(plan: &ProcessPlan, errors: BorrowedFd<'_>) -> Result<std::convert::Infallible, Failure> {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let group = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let user = user::look_up(&plan.user, &passwd, &group)?;
    let mut env = plan.env.clone();
    if !env.iter().any(|variable| variable.starts_with("HOME=")) {
        env.push(format!("HOME={}", user.home));
    }
    let path = env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).unwrap_or_default().to_owned();

    for &(resource, soft, hard) in &plan.rlimits {
        let limit = libc::rlimit { rlim_cur: soft as libc::rlim_t, rlim_max: hard as libc::rlim_t };
        // SAFETY: a valid struct.
        errno(unsafe { libc::setrlimit(resource as _, &raw const limit) })
            .step(|| format!("set resource limit {resource} to {soft}:{hard}"))?;
    }
    // Before anything of the container's choosing happens: no descriptor of the holder may be reachable through
    // /proc/self/fd, not even as the working directory.
    sys::close_others(errors).step(|| "close descriptors".to_owned())?;
    let directory = if plan.directory.is_empty() { "/" } else { plan.directory.as_str() };
    let _ = std::fs::create_dir_all(directory);
    std::env::set_current_dir(directory).step(|| format!("change to the working directory {directory:?}"))?;

    // With no_new_privs the filter is installed last, so that it need not allow what comes before; without, installing it
    // wants CAP_SYS_ADMIN.
    if !plan.no_new_privileges {
        install_filter(&plan.seccomp)?;
    }
    become_user(plan, &user)?;
    if plan.no_new_privileges {
        // SAFETY: plain integers.
        errno(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).step(|| "set no_new_privs".to_owned())?;
    }
    let program = find_program(plan, &path)?;
    let arguments = plan.args.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>();
    let variables = env.iter().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>();
    let (Ok(arguments), Ok(variables)) = (arguments, variables) else {
        return Err(start("an argument or variable has a zero byte".to_owned()));
    };
    let pointers = |strings: &[CString]| strings.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect::<Vec<_>>();
    let (arguments, variables) = (pointers(&arguments), pointers(&variables));
    // The machine's own limit on the holder must not become the container's; see also the parent's death: a container
    // never outlives its holder.
    // SAFETY: plain integers.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    if plan.no_new_privileges {
        install_filter(&plan.seccomp)?;
    }
    // SAFETY: terminated strings in terminated arrays.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), variables.as_ptr()) };
    let error = io::Error::last_os_error();
    Err(start(format!("exec {}: {}", program.to_string_lossy(), sys::describe(&error))))
}

fn start(text: String) -> Failure {
    Failure { kind: FailureKind::Start, text }
}

fn errno(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn become_user(plan: &ProcessPlan, user: &user::User) -> Result<(), Failure> {
    let gid = plan.group.unwrap_or(user.gid);
    let mut groups = vec![gid];
    groups.extend(&plan.supplementary_groups);
    groups.extend(&user.groups);
    groups.sort_unstable();
    groups.dedup();
    // SAFETY: valid pointers with their lengths, and plain integers. The raw calls set this one thread's identity; there
    // is no other thread.
    unsafe {
        for capability in 0..64 {
            // Reading tells whether the kernel knows the capability at all.
            if plan.capabilities & (1 << capability) == 0
                && libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0) == 1
            {
                errno(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0))
                    .step(|| format!("drop capability {capability}"))?;
            }
        }
        errno(libc::setgroups(groups.len(), groups.as_ptr())).step(|| "set the groups".to_owned())?;
        errno(libc::setresgid(gid, gid, gid)).step(|| format!("become group {gid}"))?;
        // With the identity of another user the permitted set would be lost before it can be set.
        errno(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0)).step(|| "keep capabilities".to_owned())?;
        errno(libc::setresuid(user.uid, user.uid, user.uid)).step(|| format!("become user {}", user.uid))?;
    }
    set_capabilities(plan.capabilities).step(|| "set the capabilities".to_owned())
}

/// Effective and permitted; nothing inheritable or ambient.
fn set_capabilities(bits: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct Sets {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = Header { version: VERSION_3, pid: 0 };
    let mut sets = [Sets::default(); 2];
    // SAFETY: version 3 reads and writes two sets.
    unsafe {
        errno(libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) as libc::c_int)?;
        for (half, sets) in sets.iter_mut().enumerate() {
            // What the holder itself does not have cannot be given.
            let wanted = (bits >> (32 * half)) as u32 & sets.permitted;
            *sets = Sets { effective: wanted, permitted: wanted, inheritable: 0 };
        }
        errno(libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) as libc::c_int)
    }
}

fn install_filter(program: &[u8]) -> Result<(), Failure> {
    const SECCOMP_SET_MODE_FILTER: u32 = 1;
    if program.is_empty() {
        return Ok(());
    }
    // `struct sock_filter` wants alignment; bytes have none.
    let items: Vec<[u32; 2]> = program
        .chunks_exact(8)
        .map(|item| {
            [
                u32::from_ne_bytes([item[0], item[1], item[2], item[3]]),
                u32::from_ne_bytes([item[4], item[5], item[6], item[7]]),
            ]
        })
        .collect();
    let program = libc::sock_fprog { len: items.len() as u16, filter: items.as_ptr().cast_mut().cast() };
    // SAFETY: the program points to `len` items of 8 bytes, 4-aligned like `struct sock_filter`.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &raw const program) };
    errno(result as libc::c_int).step(|| "install the seccomp filter".to_owned())
}

/// As a shell looks for it, with the words runc's users know.
fn find_program(plan: &ProcessPlan, path: &str) -> Result<CString, Failure> {
    let Some(name) = plan.args.first().filter(|name| !name.is_empty()) else {
        return Err(start("no command specified".to_owned()));
    };
    let cstring = |path: &str| CString::new(path).map_err(|_| start(format!("exec: {name:?}: invalid argument")));
    if name.contains('/') {
        return match executable(name) {
            Ok(()) => cstring(name),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(start(format!("exec: {name:?}: stat {name}: no such file or directory")))
            }
            Err(error) => Err(start(format!("exec: {name:?}: {}", sys::describe(&error)))),
        };
    }
    let mut refused = None;
    for directory in path.split(':') {
        let candidate = format!("{}/{name}", if directory.is_empty() { "." } else { directory });
        match executable(&candidate) {
            Ok(()) => return cstring(&candidate),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => refused = Some(error),
            Err(_) => {}
        }
    }
    Err(start(match refused {
        Some(error) => format!("exec: {name:?}: {}", sys::describe(&error)),
        None => format!("exec: {name:?}: executable file not found in $PATH"),
    }))
}

fn executable(path: &str) -> io::Result<()> {
    let metadata = std::fs::metadata(path)?;
    if metadata.is_dir() {
        return Err(io::Error::from_raw_os_error(libc::EISDIR));
    }
    let path = sys::cstring(path)?;
    // SAFETY: a terminated string.
    errno(unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) })
}
