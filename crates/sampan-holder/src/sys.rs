//! System calls the standard library does not have, with descriptors owned and errors as `io::Error`. No decisions.

use std::ffi::{CStr, CString};
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::ptr;

use crate::protocol::{Failure, FailureKind};

/// Names the step that failed, with the kernel's word.
pub trait Step<T> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T> Step<T> for io::Result<T> {
    fn step(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| system(format!("{}: {}", what(), describe(&error))))
    }
}

pub fn system(text: String) -> Failure {
    Failure { kind: FailureKind::System, text }
}

/// The words of `strerror` in lower case, as Go programs print them: `no such file or directory`.
pub fn describe(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut characters = text.chars();
    match characters.next() {
        Some(first) => first.to_lowercase().chain(characters).collect(),
        None => text.to_owned(),
    }
}

pub fn cstring(bytes: impl Into<Vec<u8>>) -> io::Result<CString> {
    CString::new(bytes).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))
}

fn cpath(path: &Path) -> io::Result<CString> {
    cstring(path.as_os_str().as_bytes())
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)? as RawFd;
    // SAFETY: the kernel has just returned this descriptor, nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `libc`'s constant is too narrow for its value.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Like `fork`, with namespaces and, on cgroup v2, straight into a cgroup. Returns `None` in the child. The holder has one
/// thread, so the child may allocate.
pub fn clone(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Option<(i32, OwnedFd)>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { zeroed() };
    arguments.flags = flags | libc::CLONE_PIDFD as u64;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: no stack is given and no memory shared, so the child goes on with a copy of this one, as after fork.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) })?;
    match pid {
        0 => Ok(None),
        // SAFETY: the kernel wrote a new descriptor there.
        pid => Ok(Some((pid as i32, unsafe { OwnedFd::from_raw_fd(pidfd) }))),
    }
}

pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain integers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

pub fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: no siginfo is given.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, ptr::null::<libc::siginfo_t>(), 0)
    })?;
    Ok(())
}

/// Blocks until the process has ended.
pub fn wait_for_end(pidfd: BorrowedFd<'_>) {
    let mut wait = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid pollfd.
    while unsafe { libc::poll(&raw mut wait, 1, -1) } < 0
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

pub fn unshare(flags: u64) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::unshare(flags as i32) }.into())?;
    Ok(())
}

pub fn setns(namespace: BorrowedFd<'_>, kind: i32) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::setns(namespace.as_raw_fd(), kind) }.into())?;
    Ok(())
}

pub fn open(path: &Path, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    let path = cpath(path)?;
    // SAFETY: a terminated string.
    owned(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) }.into())
}

/// Opens `path` as if `root` were the root directory, whatever symbolic links there are.
pub fn open_in_root(root: BorrowedFd<'_>, path: &CStr, flags: i32, mode: u32) -> io::Result<OwnedFd> {
    // SAFETY: all-zero is a valid open_how.
    let mut how: libc::open_how = unsafe { zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = u64::from(mode);
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: a terminated string and a struct of the size given.
    owned(unsafe {
        libc::syscall(libc::SYS_openat2, root.as_raw_fd(), path.as_ptr(), &raw const how, size_of::<libc::open_how>())
    })
}

/// Where a symbolic link leads; `None` when there is no such link.
pub fn readlinkat(directory: BorrowedFd<'_>, name: &CStr) -> Option<String> {
    let mut buffer = [0u8; libc::PATH_MAX as usize];
    // SAFETY: a terminated string and a buffer with its length.
    let length =
        unsafe { libc::readlinkat(directory.as_raw_fd(), name.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len()) };
    let target = buffer.get(..usize::try_from(length).ok()?)?;
    String::from_utf8(target.to_vec()).ok()
}

pub fn mkdirat(directory: BorrowedFd<'_>, name: &CStr, mode: u32) -> io::Result<()> {
    // SAFETY: a terminated string.
    check(unsafe { libc::mkdirat(directory.as_raw_fd(), name.as_ptr(), mode) }.into())?;
    Ok(())
}

/// A device node with its owner and exact permissions.
pub fn mknodat(directory: BorrowedFd<'_>, name: &CStr, mode: u32, device: u64, uid: u32, gid: u32) -> io::Result<()> {
    let directory = directory.as_raw_fd();
    // SAFETY: terminated strings.
    unsafe {
        check(libc::mknodat(directory, name.as_ptr(), mode, device).into())?;
        check(libc::fchmodat(directory, name.as_ptr(), mode & 0o7777, 0).into())?;
        check(libc::fchownat(directory, name.as_ptr(), uid, gid, libc::AT_SYMLINK_NOFOLLOW).into())?;
    }
    Ok(())
}

pub fn symlinkat(target: &CStr, directory: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: terminated strings.
    check(unsafe { libc::symlinkat(target.as_ptr(), directory.as_raw_fd(), name.as_ptr()) }.into())?;
    Ok(())
}

pub fn mount(source: &str, target: &Path, kind: &str, flags: u64, data: &str) -> io::Result<()> {
    let (source, target, kind, data) = (cstring(source)?, cpath(target)?, cstring(kind)?, cstring(data)?);
    // SAFETY: terminated strings.
    let result = unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) };
    check(result.into())?;
    Ok(())
}

/// Makes the tree a new, detached mount. `path` empty: the directory itself.
pub fn open_tree(directory: BorrowedFd<'_>, path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    if path.is_empty() {
        flags |= libc::AT_EMPTY_PATH as libc::c_uint;
    }
    // SAFETY: a terminated string.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, directory.as_raw_fd(), path.as_ptr(), flags) })
}

const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSOPEN_CLOEXEC: u32 = 1;

/// A new, detached filesystem.
pub fn new_filesystem(kind: &str, options: &[(String, String)], attributes: u64) -> io::Result<OwnedFd> {
    let kind_name = cstring(kind)?;
    // SAFETY: terminated strings and null where the call allows it.
    unsafe {
        let context = owned(libc::syscall(libc::SYS_fsopen, kind_name.as_ptr(), FSOPEN_CLOEXEC))?;
        let fd = context.as_raw_fd();
        let none = ptr::null::<libc::c_char>();
        let source = cstring("source")?;
        check(libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_SET_STRING, source.as_ptr(), kind_name.as_ptr(), 0))?;
        for (key, value) in options {
            let (key, text) = (cstring(key.as_str())?, cstring(value.as_str())?);
            let (command, text) =
                if value.is_empty() { (FSCONFIG_SET_FLAG, none) } else { (FSCONFIG_SET_STRING, text.as_ptr()) };
            check(libc::syscall(libc::SYS_fsconfig, fd, command, key.as_ptr(), text, 0))?;
        }
        check(libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, none, none, 0))?;
        owned(libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, attributes))
    }
}

/// Puts a detached mount over `target`.
pub fn attach(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    const F_EMPTY_PATH: u32 = 0x4;
    const T_EMPTY_PATH: u32 = 0x40;
    // SAFETY: terminated strings.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            F_EMPTY_PATH | T_EMPTY_PATH,
        )
    })?;
    Ok(())
}

/// Sets `MOUNT_ATTR_…` bits and, when not 0, the propagation.
pub fn set_mount(tree: BorrowedFd<'_>, attributes: u64, propagation: u64, recursive: bool) -> io::Result<()> {
    if attributes == 0 && propagation == 0 {
        return Ok(());
    }
    // SAFETY: all-zero is a valid mount_attr.
    let mut attribute: libc::mount_attr = unsafe { zeroed() };
    attribute.attr_set = attributes;
    attribute.propagation = propagation;
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: a terminated string and a struct of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attribute,
            size_of::<libc::mount_attr>(),
        )
    })?;
    Ok(())
}

/// Makes the current directory the root and lets go of the old one.
pub fn pivot_to_current_directory() -> io::Result<()> {
    // SAFETY: terminated strings.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into())?;
        check(libc::chdir(c"/".as_ptr()).into())?;
    }
    Ok(())
}

pub fn fchdir(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::fchdir(directory.as_raw_fd()) }.into())?;
    Ok(())
}

/// A pipe: read end, write end.
pub fn pipe(flags: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), flags | libc::O_CLOEXEC) }.into())?;
    // SAFETY: the kernel has just made them.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

pub fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain integers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }.into())?;
    Ok(())
}

/// Standard input, output and error of this process.
pub fn set_streams(streams: [BorrowedFd<'_>; 3]) -> io::Result<()> {
    // A source may itself be 0, 1 or 2 and must not be overwritten before its turn.
    let mut high = Vec::new();
    for stream in streams {
        // SAFETY: plain integers.
        high.push(owned(unsafe { libc::fcntl(stream.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 3) }.into())?);
    }
    for (number, stream) in high.iter().enumerate() {
        // SAFETY: plain integers.
        check(unsafe { libc::dup2(stream.as_raw_fd(), number as i32) }.into())?;
    }
    Ok(())
}

/// Closes every descriptor from 3 on but one.
pub fn close_others(keep: BorrowedFd<'_>) -> io::Result<()> {
    let keep = keep.as_raw_fd() as u32;
    // SAFETY: plain integers. The caller goes on to execve and uses no other descriptor.
    unsafe {
        if keep > 3 {
            check(libc::syscall(libc::SYS_close_range, 3u32, keep - 1, 0))?;
        }
        check(libc::syscall(libc::SYS_close_range, keep + 1, u32::MAX, 0))?;
    }
    Ok(())
}

/// One packet with its descriptors. `Ok(None)`: the other side is gone.
pub fn receive(socket: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut buffer = vec![0u8; 16 << 10];
    let mut control = [0u64; 16];
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all-zero is a valid msghdr; the pointers stay valid over the call.
    let (length, message) = unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control) as _;
        let length = libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT);
        (check(length as libc::c_long)? as usize, message)
    };
    let mut descriptors = Vec::new();
    // SAFETY: the kernel wrote well-formed control messages into the buffer, with descriptors made for us.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&raw const message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                let count = ((*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                for index in 0..count {
                    descriptors.push(OwnedFd::from_raw_fd(data.add(index).read_unaligned()));
                }
            }
            header = libc::CMSG_NXTHDR(&raw const message, header);
        }
    }
    buffer.truncate(length);
    Ok((length > 0).then_some((buffer, descriptors)))
}

/// Sends one packet with descriptors (at most 8).
pub fn send(socket: BorrowedFd<'_>, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut control = [0u64; 16];
    let mut part = libc::iovec { iov_base: packet.as_ptr().cast_mut().cast(), iov_len: packet.len() };
    let size = size_of_val(descriptors) as libc::c_uint;
    // SAFETY: the control buffer is aligned and has room for 8 descriptors; the pointers stay valid over the call.
    let sent = unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        if !descriptors.is_empty() && descriptors.len() <= 8 {
            message.msg_control = control.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(size) as _;
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(size) as _;
            let data = libc::CMSG_DATA(header).cast::<RawFd>();
            for (index, descriptor) in descriptors.iter().enumerate() {
                data.add(index).write_unaligned(descriptor.as_raw_fd());
            }
        }
        libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT)
    };
    check(sent as libc::c_long)?;
    Ok(())
}

/// Nanoseconds since the epoch.
pub fn now() -> i64 {
    // SAFETY: all-zero is a valid timespec, the call fills it.
    let time = unsafe {
        let mut time: libc::timespec = zeroed();
        libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut time);
        time
    };
    time.tv_sec as i64 * 1_000_000_000 + time.tv_nsec as i64
}
