//! Seccomp filters: the default profile and OCI profile files, compiled to the BPF program the holder installs.
//!
//! One architecture only: a 32-bit program in a container gets the profile's default action for every call.

mod compile;
mod default;
mod profile;
mod table;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use crate::{Error, Seccomp};

/// `struct sock_filter` items for a process that may get these capabilities (as bits); empty for no filter.
pub(crate) fn filter(profile: &Seccomp, capabilities: u64) -> Result<Vec<u8>, Error> {
    match profile {
        Seccomp::Unconfined => Ok(Vec::new()),
        Seccomp::RuntimeDefault => Ok(default_filter(capabilities)?.to_vec()),
        Seccomp::Localhost(path) => {
            let failed = |why: String| Error::Invalid(format!("seccomp profile {}: {why}", path.display()));
            let text = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
            let parsed = profile::parse(&text, capabilities).map_err(failed)?;
            compile::compile(&parsed).map_err(failed)
        }
    }
}

/// Compiled once per set of capabilities.
fn default_filter(capabilities: u64) -> Result<Arc<[u8]>, Error> {
    static CACHE: OnceLock<Mutex<BTreeMap<u64, Arc<[u8]>>>> = OnceLock::new();
    let mut cache = CACHE.get_or_init(Mutex::default).lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(known) = cache.get(&capabilities) {
        return Ok(known.clone());
    }
    let program = compile::compile(&default::profile(capabilities)).map_err(Error::System)?;
    let program: Arc<[u8]> = program.into();
    cache.insert(capabilities, program.clone());
    Ok(program)
}

/// What to do, as the kernel's return value of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Action(u32);

impl Action {
    const ALLOW: Self = Self(libc::SECCOMP_RET_ALLOW);
    const fn errno(number: i32) -> Self {
        Self(libc::SECCOMP_RET_ERRNO | (number as u32 & 0xffff))
    }
}

#[derive(Clone, Debug)]
struct Profile {
    default: Action,
    rules: Vec<Rule>,
    /// For calls that are newer than the table.
    newer: Rule,
}

impl Profile {
    /// A call nobody here has heard of is "not there" rather than "forbidden", so that programs fall back to an older one.
    fn new(default: Action, rules: Vec<Rule>) -> Self {
        let refuses = default.0 & 0xffff_0000 == libc::SECCOMP_RET_ERRNO;
        let newer = if refuses { Action::errno(libc::ENOSYS) } else { default };
        Self { default, rules, newer: Rule { calls: Vec::new(), action: newer, conditions: Vec::new() } }
    }
}

/// All conditions hold: the action. A call may have several rules; the first that holds counts.
#[derive(Clone, Debug)]
struct Rule {
    calls: Vec<u32>,
    action: Action,
    conditions: Vec<Condition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Condition {
    /// Which argument, 0 … 5.
    argument: u8,
    test: Test,
    value: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// The argument under this mask equals the value.
    Masked(u64),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linux::capability;

    #[test]
    fn capabilities_open_what_they_are_for() {
        let plain = default::profile(0);
        let admin = default::profile(capability::bit("SYS_ADMIN").expect("a name"));
        let mount = table::number("mount").expect("a call");
        let action = |profile: &Profile, call| compile::simulate(profile, call, [0; 6]);
        assert_eq!(action(&plain, mount), Action::errno(libc::EPERM));
        assert_eq!(action(&admin, mount), Action::ALLOW);
        assert_eq!(action(&plain, table::number("read").expect("a call")), Action::ALLOW);
        assert_eq!(action(&plain, table::number("clone3").expect("a call")), Action::errno(libc::ENOSYS));
        assert_eq!(action(&plain, 5000), Action::errno(libc::ENOSYS));
    }

    #[test]
    fn arguments_decide_about_clone_personality_and_socket() {
        let plain = default::profile(0);
        let action = |name: &str, first: u64| {
            compile::simulate(&plain, table::number(name).expect("a call"), [first, 0, 0, 0, 0, 0])
        };
        let refused = Action::errno(libc::EPERM);
        assert_eq!(action("clone", libc::SIGCHLD as u64), Action::ALLOW);
        assert_eq!(action("clone", libc::CLONE_NEWUSER as u64), refused);
        assert_eq!(action("clone", (libc::CLONE_NEWNS | libc::SIGCHLD) as u64), refused);
        assert_eq!(action("personality", 0), Action::ALLOW);
        assert_eq!(action("personality", 0xffff_ffff), Action::ALLOW);
        assert_eq!(action("personality", 0x0040_0000), refused);
        assert_eq!(action("socket", libc::AF_INET as u64), Action::ALLOW);
        assert_eq!(action("socket", libc::AF_VSOCK as u64), refused);
    }

    #[test]
    fn filters_fit_into_the_kernels_limit() {
        for capabilities in [0, capability::ALL] {
            let length = filter(&Seccomp::RuntimeDefault, capabilities).expect("a filter").len() / 8;
            assert!((50..4096).contains(&length), "{length} instructions");
        }
        assert_eq!(filter(&Seccomp::Unconfined, 0), Ok(Vec::new()));
    }
}
