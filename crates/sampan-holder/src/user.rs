//! Who a process runs as, looked up in the `/etc/passwd` and `/etc/group` of the root directory it has by then.

use crate::protocol::{Failure, FailureKind};

#[derive(Debug, PartialEq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub home: String,
    /// Groups the group file lists the user in.
    pub groups: Vec<u32>,
}

/// `spec` is `user[:group]` of names or numbers; empty: root. A number need not be in the files, a name must be.
pub fn look_up(spec: &str, passwd: &str, group: &str) -> Result<User, Failure> {
    let (user_name, group_name) = match spec.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (spec, None),
    };
    let user_name = if user_name.is_empty() { "0" } else { user_name };
    let number = user_name.parse::<u32>().ok();
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 6 && (fields[0] == user_name || (number.is_some() && fields[2].parse().ok() == number))
    });
    let failed = |text: String| Failure { kind: FailureKind::Start, text };
    let uid = entry.as_ref().and_then(|fields| fields[2].parse().ok()).or(number);
    let uid =
        uid.ok_or_else(|| failed(format!("unable to find user {user_name}: no matching entries in passwd file")))?;
    let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 4);
    let gid = match group_name {
        None | Some("") => entry.as_ref().and_then(|fields| fields[3].parse().ok()).unwrap_or(0),
        Some(name) => groups()
            .find(|fields| fields[0] == name)
            .and_then(|fields| fields[2].parse().ok())
            .or_else(|| name.parse().ok())
            .ok_or_else(|| failed(format!("unable to find group {name}: no matching entries in group file")))?,
    };
    let login = entry.as_ref().map_or("", |fields| fields[0]);
    let member = |fields: &Vec<&str>| !login.is_empty() && fields[3].split(',').any(|other| other == login);
    Ok(User {
        uid,
        gid,
        home: entry.as_ref().map(|fields| fields[5]).filter(|home| !home.is_empty()).unwrap_or("/").to_owned(),
        groups: groups().filter(member).filter_map(|fields| fields[2].parse().ok()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:100:101::/srv:/bin/false\nbroken\n";
    const GROUP: &str = "root:x:0:\napp:x:101:\nlog:x:4:app,other\n";

    fn check(spec: &str, uid: u32, gid: u32, home: &str, groups: &[u32]) {
        let user = User { uid, gid, home: home.to_owned(), groups: groups.to_vec() };
        assert_eq!(look_up(spec, PASSWD, GROUP), Ok(user), "{spec}");
    }

    #[test]
    fn names_and_numbers() {
        check("", 0, 0, "/root", &[]);
        check("app", 100, 101, "/srv", &[4]);
        check("100", 100, 101, "/srv", &[4]);
        check("app:log", 100, 4, "/srv", &[4]);
        check("4000", 4000, 0, "/", &[]);
        check("4000:5000", 4000, 5000, "/", &[]);
    }

    #[test]
    fn a_name_that_is_not_there_is_an_error() {
        assert_eq!(look_up("nobody", PASSWD, GROUP).map_err(|e| e.kind), Err(FailureKind::Start));
        assert_eq!(look_up("app:nogroup", PASSWD, GROUP).map_err(|e| e.kind), Err(FailureKind::Start));
        assert_eq!(look_up("-1", PASSWD, GROUP).map_err(|e| e.kind), Err(FailureKind::Start));
    }
}
