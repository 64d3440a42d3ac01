//! OCI seccomp profiles as JSON: the runtime specification's form, and Docker's with `includes` and `excludes` by
//! capability and architecture.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::{Action, Condition, Profile, Rule, Test, table};
use crate::linux::capability;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: String,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    syscalls: Vec<Group>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    #[serde(default)]
    names: Vec<String>,
    action: String,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Filter {
    caps: Vec<String>,
    arches: Vec<String>,
}

pub(super) fn parse(text: &[u8], capabilities: u64) -> Result<Profile, String> {
    let document: Document = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    let default = action(&document.default_action, document.default_errno_ret)?;
    let mut rules = Vec::new();
    for group in document.syscalls {
        if !applies(&group, capabilities) {
            continue;
        }
        let calls: Vec<u32> = group.names.iter().filter_map(|name| table::number(name)).collect();
        let action = action(&group.action, group.errno_ret)?;
        let conditions =
            group.args.unwrap_or_default().iter().map(condition).collect::<Result<Vec<Condition>, String>>()?;
        let distinct: BTreeSet<u8> = conditions.iter().map(|condition| condition.argument).collect();
        if distinct.len() == conditions.len() {
            rules.push(Rule { calls, action, conditions });
        } else {
            // As runc reads it: several conditions on one argument are alternatives.
            let alternatives = conditions.into_iter();
            rules.extend(alternatives.map(|one| Rule { calls: calls.clone(), action, conditions: vec![one] }));
        }
    }
    Ok(Profile::new(default, rules))
}

fn applies(group: &Group, capabilities: u64) -> bool {
    let architecture = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let has = |name: &String| capability::bit(name).is_some_and(|bit| capabilities & bit != 0);
    let here = |filter: &Filter| filter.arches.iter().any(|name| name == architecture);
    group.includes.caps.iter().all(has)
        && (group.includes.arches.is_empty() || here(&group.includes))
        && !group.excludes.caps.iter().any(has)
        && !here(&group.excludes)
}

fn action(name: &str, errno: Option<u32>) -> Result<Action, String> {
    let data = errno.unwrap_or(libc::EPERM as u32) & 0xffff;
    Ok(Action(match name {
        "SCMP_ACT_ALLOW" => libc::SECCOMP_RET_ALLOW,
        "SCMP_ACT_ERRNO" => libc::SECCOMP_RET_ERRNO | data,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => libc::SECCOMP_RET_KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => libc::SECCOMP_RET_KILL_PROCESS,
        "SCMP_ACT_TRAP" => libc::SECCOMP_RET_TRAP,
        "SCMP_ACT_LOG" => libc::SECCOMP_RET_LOG,
        "SCMP_ACT_TRACE" => libc::SECCOMP_RET_TRACE | data,
        other => return Err(format!("unknown action {other:?}")),
    }))
}

fn condition(argument: &Argument) -> Result<Condition, String> {
    if argument.index > 5 {
        return Err(format!("argument {} does not exist", argument.index));
    }
    let (test, value) = match argument.op.as_str() {
        "SCMP_CMP_EQ" => (Test::Equal, argument.value),
        "SCMP_CMP_NE" => (Test::NotEqual, argument.value),
        "SCMP_CMP_LT" => (Test::Less, argument.value),
        "SCMP_CMP_LE" => (Test::LessOrEqual, argument.value),
        "SCMP_CMP_GT" => (Test::Greater, argument.value),
        "SCMP_CMP_GE" => (Test::GreaterOrEqual, argument.value),
        "SCMP_CMP_MASKED_EQ" => (Test::Masked(argument.value), argument.value_two),
        other => return Err(format!("unknown comparison {other:?}")),
    };
    Ok(Condition { argument: argument.index, test, value })
}

#[cfg(test)]
mod tests {
    use super::super::compile;
    use super::*;

    #[test]
    fn profiles_are_read() {
        let text = br#"{
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["mkdir", "mkdirat", "chown32"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
                {"names": ["socket"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"},
                    {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
                {"names": ["chroot"], "action": "SCMP_ACT_KILL", "excludes": {"caps": ["CAP_SYS_CHROOT"]}}
            ]
        }"#;
        let call = |name: &str| table::number(name).expect("a call");
        let check = |capabilities, name, first, expected| {
            let profile = parse(text, capabilities).expect("a profile");
            assert_eq!(compile::simulate(&profile, call(name), [first, 0, 0, 0, 0, 0]), Action(expected), "{name}");
        };
        check(0, "mkdirat", 0, libc::SECCOMP_RET_ERRNO | 38);
        check(0, "socket", 2, libc::SECCOMP_RET_LOG);
        check(0, "socket", 3, libc::SECCOMP_RET_ALLOW);
        check(0, "chroot", 0, libc::SECCOMP_RET_KILL_THREAD);
        check(capability::ALL, "chroot", 0, libc::SECCOMP_RET_ALLOW);
        assert!(parse(br#"{"defaultAction": "SCMP_ACT_DANCE"}"#, 0).is_err());
    }
}
