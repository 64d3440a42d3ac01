//! `fsGroup`: the pod's processes share files through a group (upstream's `pkg/volume/volume_linux.go`).

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, lchown};
use std::path::Path;

use super::Error;

const SET_GROUP_ID: u32 = 0o2000;

/// Gives everything below `path` to the group: readable, and writable unless `read_only`; directories pass the group on.
pub fn apply(path: &Path, group: u32, read_only: bool) -> Result<(), Error> {
    let metadata = fs::symlink_metadata(path).map_err(Error::io("cannot look at", path))?;
    if metadata.gid() != group {
        lchown(path, None, Some(group)).map_err(Error::io("cannot change the group of", path))?;
    }
    if metadata.is_symlink() {
        return Ok(());
    }
    let mut mode = metadata.permissions().mode() | if read_only { 0o440 } else { 0o660 };
    if metadata.is_dir() {
        mode |= 0o110 | SET_GROUP_ID;
    }
    // After the change of group, which clears the set-group bit.
    fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))
        .map_err(Error::io("cannot change the mode of", path))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path).map_err(Error::io("cannot list", path))? {
            let entry = entry.map_err(Error::io("cannot list", path))?;
            apply(&entry.path(), group, read_only)?;
        }
    }
    Ok(())
}
