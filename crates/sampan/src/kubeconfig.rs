//! Merging a cluster into the kubeconfig of whoever called, also under sudo: other entries stay as they are, the file
//! keeps its owner, and a file that cannot be understood is left alone.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::unistd::{Gid, Uid, User, chown};
use serde_json::{Value, json};

/// The file of the invoking user: `$KUBECONFIG`'s first entry, else `~/.kube/config`; under sudo the home of the user who
/// called sudo.
pub fn default_path() -> anyhow::Result<PathBuf> {
    let listed = std::env::var("KUBECONFIG").unwrap_or_default();
    if let Some(first) = listed.split(':').find(|path| !path.is_empty()) {
        return Ok(first.into());
    }
    let home = match invoking_user() {
        Some(user) => user.dir,
        None => std::env::var_os("HOME").map(PathBuf::from).context("HOME is not set; say --kubeconfig PATH")?,
    };
    Ok(home.join(".kube/config"))
}

/// Who called sudo.
fn invoking_user() -> Option<User> {
    let uid: u32 = std::env::var("SUDO_UID").ok()?.parse().ok()?;
    User::from_uid(Uid::from_raw(uid)).ok().flatten()
}

/// Reads a kubeconfig; an absent or empty one is an empty document.
pub fn read(path: &Path) -> anyhow::Result<Value> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(error).with_context(|| format!("read the kubeconfig {}", path.display())),
    };
    if text.trim().is_empty() {
        return Ok(json!({"apiVersion": "v1", "kind": "Config"}));
    }
    let config: Value = serde_saphyr::from_str(&text)
        .with_context(|| format!("the kubeconfig {} is not YAML; mend it or say --kubeconfig PATH", path.display()))?;
    if !config.is_object() {
        bail!("{} is not a kubeconfig; say --kubeconfig PATH", path.display());
    }
    Ok(config)
}

/// Sections that hold named entries.
const SECTIONS: [&str; 3] = ["clusters", "users", "contexts"];

/// `base` with the entries of `other`, which replace those of the same name; `other`'s context becomes the current one.
pub fn merged(mut base: Value, other: &Value) -> Value {
    for section in SECTIONS {
        let mut entries = base.get(section).and_then(Value::as_array).cloned().unwrap_or_default();
        for entry in other.get(section).and_then(Value::as_array).into_iter().flatten() {
            entries.retain(|old| old.get("name") != entry.get("name"));
            entries.push(entry.clone());
        }
        base[section] = Value::Array(entries);
    }
    base["current-context"] = other.get("current-context").cloned().unwrap_or_default();
    base
}

/// `base` without the entries called `name`.
pub fn without(mut base: Value, name: &str) -> Value {
    for section in SECTIONS {
        if let Some(entries) = base.get_mut(section).and_then(Value::as_array_mut) {
            entries.retain(|entry| entry.get("name").and_then(Value::as_str) != Some(name));
        }
    }
    if base.get("current-context").and_then(Value::as_str) == Some(name) {
        base["current-context"] = "".into();
    }
    base
}

/// Changes the file under kubectl's own lock, so that neither loses the other's change.
pub fn change(path: &Path, change: impl FnOnce(Value) -> Value) -> anyhow::Result<()> {
    let user = invoking_user();
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !directory.is_dir() {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
        if let Some(user) = &user {
            chown(directory, Some(user.uid), Some(user.gid))?;
        }
    }
    let _lock = Lock::take(path)?;
    let config = change(read(path)?);
    let text = serde_saphyr::to_string(&config).context("write the kubeconfig")?;
    let owner = match fs::metadata(path) {
        Ok(metadata) => Some((Uid::from_raw(metadata.uid()), Gid::from_raw(metadata.gid()))),
        Err(_) => user.map(|user| (user.uid, user.gid)),
    };
    // A symbolic link stays one: what it leads to is replaced.
    let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    let temporary = target.with_extension("sampan-new");
    let failed = || format!("write {}", target.display());
    let mut file = fs::OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(true)
        .mode(0o600)
        .open(&temporary)
        .with_context(failed)?;
    file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).with_context(failed)?;
    if let Some((uid, gid)) = owner {
        chown(&temporary, Some(uid), Some(gid)).with_context(failed)?;
    }
    fs::rename(&temporary, &target).with_context(failed)
}

struct Lock(PathBuf);

impl Lock {
    fn take(path: &Path) -> anyhow::Result<Self> {
        let lock = PathBuf::from(format!("{}.lock", path.display()));
        match fs::OpenOptions::new().create_new(true).write(true).open(&lock) {
            Ok(_) => Ok(Self(lock)),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                bail!("{} is locked by another program; if none runs, remove {}", path.display(), lock.display())
            }
            Err(error) => Err(error).with_context(|| format!("create {}", lock.display())),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str, value: &str) -> Value {
        json!({"name": name, "cluster": {"server": value}})
    }

    #[test]
    fn merging_replaces_its_own_entries_and_keeps_others() {
        let base = json!({"clusters": [entry("mine", "a"), entry("sampan", "old")], "current-context": "mine", "x": 1});
        let other = json!({"clusters": [entry("sampan", "new")], "current-context": "sampan"});
        let both = merged(base, &other);
        assert_eq!(both["clusters"], json!([entry("mine", "a"), entry("sampan", "new")]));
        assert_eq!((&both["current-context"], &both["x"]), (&json!("sampan"), &json!(1)));
        let back = without(both, "sampan");
        assert_eq!(back["clusters"], json!([entry("mine", "a")]));
        assert_eq!(back["current-context"], "");
    }

    #[test]
    fn a_file_that_is_no_kubeconfig_is_left_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("config");
        fs::write(&path, "- not\n- a kubeconfig\n").expect("write");
        assert!(change(&path, |config| config).is_err());
        assert_eq!(fs::read_to_string(&path).expect("read"), "- not\n- a kubeconfig\n");
        assert!(!directory.path().join("config.lock").exists());
    }

    #[test]
    fn the_file_is_private_and_round_trips() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("sub/config");
        let other = json!({"clusters": [entry("sampan", "https://127.0.0.1:6443")], "current-context": "sampan"});
        change(&path, |config| merged(config, &other)).expect("write");
        assert_eq!(fs::metadata(&path).expect("metadata").mode() & 0o777, 0o600);
        assert_eq!(read(&path).expect("read")["clusters"], other["clusters"]);
    }
}
