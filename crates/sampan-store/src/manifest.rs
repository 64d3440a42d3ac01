//! The manifest of formats: `formats.json` in the data directory names each on-disk format and its version, so that a
//! program that is too old says so by name instead of misreading.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use sampan_base::disk::Disk;
use serde::{Deserialize, Serialize};

use crate::keys;
use crate::log::{SEGMENT_FORMAT, SNAPSHOT_FORMAT};

/// The file's name within the data directory.
pub const FILE: &str = "formats.json";

/// The formats this version of the crate reads and writes.
const FORMATS: [(&str, u32); 5] = [("manifest", 1), SEGMENT_FORMAT, SNAPSHOT_FORMAT, ("value", 1), keys::FORMAT];

#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("{file}: {source}")]
    Io { file: String, source: io::Error },
    #[error("{file}: not a manifest of formats: {reason}")]
    Malformed { file: String, reason: String },
    #[error(
        "{file}: the data was written by a newer version: its format `{format}` has version {found}, this program knows {known}"
    )]
    Newer { file: String, format: String, found: u32, known: u32 },
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    formats: BTreeMap<String, u32>,
}

/// Refuses a directory with a format this program doesn't know. False when there is no manifest yet.
pub fn check(disk: &dyn Disk, dir: &Path) -> Result<bool, ManifestError> {
    let path = dir.join(FILE);
    let file = path.display().to_string();
    let text = match disk.read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(ManifestError::Io { file, source }),
    };
    let manifest: Manifest = match serde_json::from_slice(&text) {
        Ok(manifest) => manifest,
        Err(error) => return Err(ManifestError::Malformed { file, reason: error.to_string() }),
    };
    for (format, found) in manifest.formats {
        // A format without an entry here came with a later version: to this one it is version 0.
        let known = FORMATS.iter().find(|(name, _)| *name == format).map_or(0, |(_, version)| *version);
        if found > known {
            return Err(ManifestError::Newer { file, format, found, known });
        }
    }
    Ok(true)
}

/// Writes the manifest of this version.
pub fn write(disk: &dyn Disk, dir: &Path) -> Result<(), ManifestError> {
    let path = dir.join(FILE);
    let failed = |source| ManifestError::Io { file: path.display().to_string(), source };
    let formats = FORMATS.iter().map(|(name, version)| ((*name).to_owned(), *version)).collect();
    let text = serde_json::to_vec_pretty(&Manifest { formats }).map_err(|error| failed(error.into()))?;
    disk.replace(&path, &text).map_err(failed)
}

#[cfg(test)]
mod tests {
    use sampan_base::disk::MemoryDisk;

    use super::*;

    #[test]
    fn a_newer_format_is_refused_by_name() {
        let (disk, dir) = (MemoryDisk::default(), Path::new("/data"));
        disk.create_dir_all(dir).expect("created");
        assert!(!check(&disk, dir).expect("no manifest is not an error"));
        write(&disk, dir).expect("written");
        assert!(check(&disk, dir).expect("its own manifest"));
        for (format, version) in [("log", 2), ("runes", 1)] {
            let text = format!("{{\"formats\":{{\"manifest\":1,\"{format}\":{version}}}}}");
            disk.replace(&dir.join(FILE), text.as_bytes()).expect("replaced");
            let error = check(&disk, dir).expect_err("newer");
            assert!(
                matches!(&error, ManifestError::Newer { format: f, found, .. } if f == format && *found == version)
            );
        }
        disk.replace(&dir.join(FILE), b"{").expect("replaced");
        assert!(matches!(check(&disk, dir), Err(ManifestError::Malformed { .. })));
    }
}
