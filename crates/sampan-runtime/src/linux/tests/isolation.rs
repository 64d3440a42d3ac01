//! Runs a test in a copy of this program that is process 1 of its own PID namespace.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::cgroup::{Cgroups, Prefix};

const INSIDE: &str = "SAMPAN_TEST_INSIDE";
/// Generous: an emulated machine is thirty times slower than a real one.
const TIME_LIMIT: std::time::Duration = std::time::Duration::from_secs(300);

/// Runs `test`, the body of the test `linux::tests::NAME`, isolated. Without root it says that it did not run; in CI that
/// is a failure.
pub(super) fn isolated(name: &str, test: impl Future<Output = ()>) {
    if std::env::var_os(INSIDE).is_some() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let test = async { tokio::time::timeout(TIME_LIMIT, test).await.expect("the test ends in time") };
        runtime.expect("a tokio runtime").block_on(test);
        return;
    }
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "the tests of the runtime need root");
        eprintln!("{name}: not run, it needs root");
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let prefix = format!("sampan-test-{}-{}", std::process::id(), name.replace('_', "-"));
    let mut command = Command::new(std::env::current_exe().expect("the own program"));
    command.args(["--exact", &format!("linux::tests::{name}"), "--nocapture", "--include-ignored"]);
    command.env(INSIDE, directory.path()).env("SAMPAN_TEST_PREFIX", &prefix);
    // SAFETY: between fork and exec only system calls are made; the forked child has one thread.
    unsafe {
        command.pre_exec(become_first_process);
    }
    let status = command.status().expect("the copy runs");
    sweep(&prefix);
    unmount_below(directory.path());
    assert!(status.success(), "{name}: {status}");
}

pub(super) fn directory() -> PathBuf {
    PathBuf::from(std::env::var_os(INSIDE).expect("set by the outer process"))
}

pub(super) fn cgroup_prefix() -> String {
    std::env::var("SAMPAN_TEST_PREFIX").expect("set by the outer process")
}

/// Forks: the child goes on to exec as process 1 of new namespaces, the parent waits for it and ends with its status. When
/// the parent is killed, so is the child, and with it its namespace.
fn become_first_process() -> io::Result<()> {
    let check = |result: libc::c_int| if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) };
    // SAFETY: system calls with plain integers and terminated strings.
    unsafe {
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        check(libc::unshare(libc::CLONE_NEWPID | libc::CLONE_NEWNS))?;
        let child = check(libc::fork())?;
        if child != 0 {
            let mut status = 0;
            while libc::waitpid(child, &raw mut status, 0) < 0 && *libc::__errno_location() == libc::EINTR {}
            libc::_exit(if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { 255 });
        }
        check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        let (none, private) = (std::ptr::null::<libc::c_char>(), libc::MS_REC | libc::MS_PRIVATE);
        check(libc::mount(none, c"/".as_ptr(), none, private, std::ptr::null()))?;
        check(libc::mount(c"proc".as_ptr(), c"/proc".as_ptr(), c"proc".as_ptr(), 0, std::ptr::null()))?;
    }
    Ok(())
}

/// Every process of the test has ended with its namespace; its groups are empty.
fn sweep(prefix: &str) {
    let cgroups = Prefix::new(prefix).and_then(Cgroups::open).expect("the hierarchies");
    for group in cgroups.children(None) {
        cgroups.remove(&group).expect("an empty group");
    }
    cgroups.remove_prefix();
}

/// Mounts were made in the test's own mount namespace and went with it.
fn unmount_below(directory: &std::path::Path) {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let directory = directory.to_string_lossy();
    assert!(!mounts.contains(directory.as_ref()), "mounts were left behind:\n{mounts}");
}
