//! Files that change all at once: upstream's `pkg/volume/util/atomic_writer.go`.
//!
//! ```text
//! key -> ..data/key          what containers open
//! ..data -> ..2030_01_…      replaced by a rename: the one moment of change
//! ..2030_01_…/key            the content
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path, PathBuf};

use super::{Error, ownership};

/// One file of a payload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    pub data: Vec<u8>,
    pub mode: u32,
    /// The file's owner, root when absent.
    pub user: Option<u32>,
}

impl File {
    pub fn new(data: Vec<u8>, mode: u32) -> Self {
        Self { data, mode, user: None }
    }
}

/// Files by relative path.
pub type Payload = BTreeMap<String, File>;

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

pub fn is_written(directory: &Path) -> bool {
    directory.join(DATA).exists()
}

/// Makes the directory hold exactly this payload. `stamp` is new for every call.
pub fn write(directory: &Path, payload: &Payload, stamp: &str, group: Option<u32>) -> Result<(), Error> {
    for path in payload.keys() {
        check(path)?;
    }
    let data = directory.join(DATA);
    let old = fs::read_link(&data).ok();
    if old.as_ref().is_some_and(|old| holds(&directory.join(old), payload, group)) {
        return Ok(());
    }
    let fresh = directory.join(format!("..{stamp}"));
    fs::create_dir(&fresh).map_err(Error::io("cannot create", &fresh))?;
    set_mode(&fresh, 0o755)?;
    for (path, file) in payload {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).map_err(Error::io("cannot create", parent))?;
        }
        fs::write(&target, &file.data).map_err(Error::io("cannot write", &target))?;
        set_mode(&target, file.mode)?;
        if let Some(user) = file.user {
            std::os::unix::fs::chown(&target, Some(user), None)
                .map_err(Error::io("cannot change the owner of", &target))?;
        }
    }
    if let Some(group) = group {
        ownership::apply(&fresh, group, true)?;
    }
    let pending = directory.join(DATA_NEW);
    remove_if_there(&pending)?;
    symlink(format!("..{stamp}"), &pending).map_err(Error::io("cannot link", &pending))?;
    fs::rename(&pending, &data).map_err(Error::io("cannot rename", &pending))?;
    link_names(directory, payload)?;
    remove_others(directory, stamp)
}

/// Nothing of a payload may point out of the volume or at our own links.
fn check(path: &str) -> Result<(), Error> {
    let plain = Path::new(path).components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || !plain || path.starts_with("..") {
        return Err(Error::Escapes(path.into()));
    }
    Ok(())
}

fn holds(directory: &Path, payload: &Payload, group: Option<u32>) -> bool {
    let mut seen = BTreeMap::new();
    collect(directory, directory, &mut seen).is_ok()
        && seen.len() == payload.len()
        && payload.iter().all(|(path, file)| {
            // With a group the modes on disk are wider than asked for; the content decides then.
            seen.get(path).is_some_and(|(data, mode)| *data == file.data && (group.is_some() || *mode == file.mode))
        })
}

fn collect(root: &Path, directory: &Path, seen: &mut BTreeMap<String, (Vec<u8>, u32)>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_dir() {
            collect(root, &path, seen)?;
        } else if let Ok(name) = path.strip_prefix(root) {
            seen.insert(
                name.to_string_lossy().into_owned(),
                (fs::read(&path)?, metadata.permissions().mode() & 0o7777),
            );
        }
    }
    Ok(())
}

/// One link for each first part of a path, none for what is not there any more.
fn link_names(directory: &Path, payload: &Payload) -> Result<(), Error> {
    let first = |path: &str| path.split('/').next().unwrap_or(path).to_owned();
    let names: BTreeSet<String> = payload.keys().map(|path| first(path)).collect();
    for name in &names {
        let link = directory.join(name);
        let target = PathBuf::from(DATA).join(name);
        if fs::read_link(&link).is_ok_and(|now| now == target) {
            continue;
        }
        remove_if_there(&link)?;
        symlink(&target, &link).map_err(Error::io("cannot link", &link))?;
    }
    for entry in fs::read_dir(directory).map_err(Error::io("cannot list", directory))? {
        let entry = entry.map_err(Error::io("cannot list", directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !names.contains(&name) {
            remove_if_there(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_others(directory: &Path, stamp: &str) -> Result<(), Error> {
    for entry in fs::read_dir(directory).map_err(Error::io("cannot list", directory))? {
        let entry = entry.map_err(Error::io("cannot list", directory))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("..") && name != DATA && name != format!("..{stamp}") {
            fs::remove_dir_all(entry.path()).map_err(Error::io("cannot remove", &entry.path()))?;
        }
    }
    Ok(())
}

fn set_mode(path: &Path, mode: u32) -> Result<(), Error> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::io("cannot change the mode of", path))
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io("cannot remove", path)),
    }
}
