//! The holder: one small process per pod that owns the sandbox's namespaces, is the parent of its containers, keeps their
//! streams, logs and exit codes, and outlives the agent. It executes plans; see `protocol`.
//!
//! One thread and one event loop. Started as `holder LISTENER PLAN` with two inherited descriptors.

mod container;
mod log;
mod process;
mod protocol;
mod sandbox;
mod server;
mod sys;
mod user;

use std::os::fd::{AsFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::process::ExitCode;

use protocol::{Failure, SandboxPlan};

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).map(|text| text.parse::<RawFd>());
    let (Some(Ok(listener)), Some(Ok(plan)), None) = (arguments.next(), arguments.next(), arguments.next()) else {
        eprintln!("this program is started by sampan's node agent");
        return ExitCode::from(2);
    };
    // SAFETY: the agent leaves exactly these two open for us, and nobody else in this process has them.
    let (listener, plan) = unsafe { (OwnedFd::from_raw_fd(listener), OwnedFd::from_raw_fd(plan)) };
    let sandbox = detach(&listener).and_then(|()| sandbox::Sandbox::new(&read_plan::<SandboxPlan>(plan)?));
    match server::serve(listener, sandbox) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Away from the agent: own session, no descriptors of its, hard to kill by memory shortage, no look inside by others.
fn detach(listener: &OwnedFd) -> Result<(), Failure> {
    use std::os::fd::AsRawFd as _;
    use sys::Step as _;
    // SAFETY: plain integers; listening again makes this process the socket's peer instead of the agent.
    unsafe {
        libc::setsid();
        libc::umask(0o022);
        libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0);
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        // The agent does without huge pages, for itself; its containers may have them.
        libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"sampan-holder".as_ptr());
        libc::fcntl(listener.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC);
        libc::listen(listener.as_raw_fd(), 128);
    }
    std::env::set_current_dir("/").step(|| "change to /".to_owned())?;
    container::oom_score(-998)?;
    let null = sys::open(std::path::Path::new("/dev/null"), libc::O_RDWR, 0).step(|| "open /dev/null".to_owned())?;
    sys::set_streams([null.as_fd(); 3]).step(|| "leave the agent's streams".to_owned())
}

/// Reads a plan from a memory file.
pub fn read_plan<T: protocol::Wire>(file: OwnedFd) -> Result<T, Failure> {
    use std::io::{Read as _, Seek as _};
    use sys::Step as _;
    let mut file = std::fs::File::from(file);
    let mut bytes = Vec::new();
    let read = file.rewind().and_then(|()| file.read_to_end(&mut bytes));
    read.step(|| "read the plan".to_owned())?;
    T::decode(&bytes).ok_or_else(|| sys::system("the plan is not of this protocol version".to_owned()))
}
