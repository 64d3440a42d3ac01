//! `emptyDir`: a directory, or memory.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use nix::mount::{MsFlags, mount};

use super::{Error, blocking, ownership};
use crate::quantity::value;

pub async fn set_up(path: &Path, source: &EmptyDirVolumeSource, tmpfs: bool, group: Option<u32>) -> Result<(), Error> {
    let path = path.to_owned();
    let in_memory = source.medium.as_deref() == Some("Memory");
    let size = source.size_limit.as_ref().map(value).filter(|bytes| *bytes > 0);
    let mode = source.mode.map_or(0o777, i32::unsigned_abs);
    blocking(move || {
        let is_new = !path.exists();
        fs::create_dir_all(&path).map_err(Error::io("cannot create", &path))?;
        let mounted = in_memory && tmpfs && mount_tmpfs(&path, size)?;
        if is_new || mounted {
            fs::set_permissions(&path, Permissions::from_mode(mode))
                .map_err(Error::io("cannot change the mode of", &path))?;
            if let Some(group) = group {
                ownership::apply(&path, group, false)?;
            }
        }
        Ok(())
    })
    .await
}

/// Mounts memory at a directory unless it is there already. Returns whether it was mounted now.
pub fn mount_tmpfs(path: &Path, size: Option<i64>) -> Result<bool, Error> {
    if mounts_below(path)?.iter().any(|mounted| mounted == path) {
        return Ok(false);
    }
    let options = size.map(|bytes| format!("size={bytes}"));
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), path, Some("tmpfs"), flags, options.as_deref())
        .map_err(std::io::Error::from)
        .map_err(Error::io("cannot mount tmpfs at", path))?;
    Ok(true)
}

/// The mount points at or below a directory, in the order they were mounted.
pub fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let table = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(table).map_err(Error::io("cannot read", table))?;
    Ok(points(&text).filter(|point| point.starts_with(directory)).collect())
}

/// The fifth field, with `\040` and its kin undone (`proc(5)`).
fn points(mountinfo: &str) -> impl Iterator<Item = PathBuf> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4)).map(|field| {
        let plain = field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\");
        PathBuf::from(plain)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points() {
        let text =
            "36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw\n37 35 0:1 / /a\\040b rw - tmpfs t rw\n";
        assert_eq!(points(text).collect::<Vec<_>>(), [PathBuf::from("/mnt2"), PathBuf::from("/a b")]);
    }
}
