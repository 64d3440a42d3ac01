//! `hostPath`: a path of this machine, checked or made as its `type` says.

use std::fs::{self, Metadata, Permissions};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::PathBuf;

use k8s_openapi::api::core::v1::HostPathVolumeSource;

use super::{Error, blocking};

pub async fn set_up(source: &HostPathVolumeSource) -> Result<(), Error> {
    let path = PathBuf::from(&source.path);
    let kind = source.type_.clone().unwrap_or_default();
    blocking(move || {
        let found = fs::metadata(&path).ok();
        let wanted = |what: &'static str, holds: fn(&Metadata) -> bool| {
            if found.as_ref().is_some_and(holds) {
                return Ok(());
            }
            Err(Error::HostPath { path: path.clone(), wanted: what })
        };
        match kind.as_str() {
            "" => {
                // A bind mount needs something to bind: runtimes make a directory of what is not there.
                if found.is_none() {
                    fs::create_dir_all(&path).map_err(Error::io("cannot create", &path))?;
                }
                Ok(())
            }
            "DirectoryOrCreate" if found.is_none() => {
                fs::create_dir_all(&path).map_err(Error::io("cannot create", &path))?;
                fs::set_permissions(&path, Permissions::from_mode(0o755))
                    .map_err(Error::io("cannot change the mode of", &path))
            }
            "FileOrCreate" if found.is_none() => {
                fs::File::create(&path).map_err(Error::io("cannot create", &path))?;
                fs::set_permissions(&path, Permissions::from_mode(0o644))
                    .map_err(Error::io("cannot change the mode of", &path))
            }
            "Directory" | "DirectoryOrCreate" => wanted("a directory", Metadata::is_dir),
            "File" | "FileOrCreate" => wanted("a file", Metadata::is_file),
            "Socket" => wanted("a socket", |found| found.file_type().is_socket()),
            "CharDevice" => wanted("a character device", |found| found.file_type().is_char_device()),
            "BlockDevice" => wanted("a block device", |found| found.file_type().is_block_device()),
            _ => Err(Error::Unsupported("hostPath of unknown type")),
        }
    })
    .await
}
