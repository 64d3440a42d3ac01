//! Capabilities by name and as bits.

use crate::{Error, Security};

/// By number, from the kernel's `linux/capability.h`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

pub(crate) const ALL: u64 = (1 << NAMES.len()) - 1;

/// What containerd and Docker give a container.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// The bit of a name, with or without `CAP_`, in any case.
pub(crate) fn bit(name: &str) -> Option<u64> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == short).map(|number| 1 << number)
}

/// The set a container runs with. As in CRI, `ALL` comes first, so that single ones can be added to nothing or taken from
/// all.
pub(crate) fn set(security: &Security) -> Result<u64, Error> {
    if security.privileged {
        return Ok(ALL);
    }
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL");
    let bits = |names: &[String]| {
        names.iter().filter(|name| !is_all(name)).try_fold(0, |set, name| -> Result<u64, Error> {
            let bit = bit(name).ok_or_else(|| Error::Invalid(format!("unknown capability {name:?}")))?;
            Ok(set | bit)
        })
    };
    let mut set = DEFAULT.iter().filter_map(|name| bit(name)).fold(0, |set, bit| set | bit);
    if security.add_capabilities.iter().any(is_all) {
        set = ALL;
    }
    if security.drop_capabilities.iter().any(is_all) {
        set = 0;
    }
    Ok((set | bits(&security.add_capabilities)?) & !bits(&security.drop_capabilities)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(add: &[&str], drop: &[&str], expected: u64) {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let security = Security { add_capabilities: owned(add), drop_capabilities: owned(drop), ..Security::default() };
        assert_eq!(set(&security), Ok(expected), "{add:?} {drop:?}");
    }

    #[test]
    fn sets_are_added_to_and_taken_from() {
        // What `grep Cap /proc/1/status` shows in a container of Docker's or containerd's.
        let default = 0xa804_25fb;
        let one = |name: &str| bit(name).expect("a name");
        check(&[], &[], default);
        check(&["NET_ADMIN"], &["cap_chown"], (default | one("NET_ADMIN")) & !one("CHOWN"));
        check(&[], &["ALL"], 0);
        check(&["NET_BIND_SERVICE"], &["ALL"], one("NET_BIND_SERVICE"));
        check(&["ALL"], &["SYS_ADMIN"], ALL & !one("SYS_ADMIN"));
        let wrong = Security { add_capabilities: vec!["FLY".to_owned()], ..Security::default() };
        assert!(matches!(set(&wrong), Err(Error::Invalid(_))));
    }
}
