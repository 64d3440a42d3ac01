//! What a sandbox and a container leave on disk, below the run directory:
//!
//! ```text
//! SANDBOX/sandbox.json            written before anything else is made
//! SANDBOX/holder                  the holder's socket
//! SANDBOX/containers/CONTAINER/container.json
//!                              …/started, exit   written by the holder
//! ```
//!
//! The directory is volatile memory on most machines: after a reboot there is nothing, and nothing runs. A record is
//! written under another name and renamed, so it is whole or absent; a directory without its record was being made or
//! removed and is swept. The state is never kept anywhere else: it is what these files and the holder say.

use std::io;
use std::path::Path;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{ContainerConfig, ContainerState, Error, SandboxConfig};

/// The version of both records.
pub(super) const FORMAT: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct SandboxRecord {
    pub format: u32,
    pub created_at: Timestamp,
    pub config: SandboxConfig,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct ContainerRecord {
    pub format: u32,
    pub created_at: Timestamp,
    pub image_id: String,
    pub config: ContainerConfig,
}

/// What the holder wrote of a container.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Progress {
    pub started_at: Option<Timestamp>,
    pub exit: Option<Exit>,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exit {
    pub code: i32,
    pub oom_killed: bool,
    pub finished_at: Timestamp,
    pub message: String,
}

pub(super) fn write<T: Serialize>(directory: &Path, name: &str, record: &T) -> Result<(), Error> {
    let write = || {
        let text = serde_json::to_vec(record).map_err(io::Error::other)?;
        let temporary = directory.join(format!(".{name}"));
        std::fs::write(&temporary, text)?;
        std::fs::rename(temporary, directory.join(name))
    };
    write().map_err(|error| Error::System(format!("write {}: {error}", directory.join(name).display())))
}

/// `None` when it is absent or was not written by this version.
pub(super) fn read<T: DeserializeOwned>(directory: &Path, name: &str) -> Option<T> {
    serde_json::from_slice(&std::fs::read(directory.join(name)).ok()?).ok()
}

impl Progress {
    pub(super) fn read(directory: &Path) -> Self {
        // The start is written before the end, so this order never shows an end without its start.
        let exit = std::fs::read_to_string(directory.join("exit")).ok().and_then(|text| Exit::parse(&text));
        let started = std::fs::read_to_string(directory.join("started")).ok();
        Self { started_at: started.and_then(|text| timestamp(&text)), exit }
    }

    /// `alive`: the sandbox's holder answers and so the process may run.
    pub(super) fn state(&self, alive: bool) -> ContainerState {
        match (&self.exit, self.started_at, alive) {
            (Some(_), _, _) => ContainerState::Exited,
            (None, Some(_), true) => ContainerState::Running,
            (None, None, true) => ContainerState::Created,
            (None, _, false) => ContainerState::Unknown,
        }
    }
}

impl Exit {
    /// `CODE OOM NANOSECONDS MESSAGE`
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.splitn(4, ' ');
        Some(Self {
            code: fields.next()?.parse().ok()?,
            oom_killed: fields.next()? == "1",
            finished_at: timestamp(fields.next()?)?,
            message: fields.next()?.to_owned(),
        })
    }
}

fn timestamp(nanoseconds: &str) -> Option<Timestamp> {
    Timestamp::from_nanosecond(nanoseconds.trim().parse().ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_read_as_the_holder_writes_them() {
        let exit = Exit::parse("137 1 1767323045123456789 ").expect("an exit");
        assert_eq!((exit.code, exit.oom_killed, exit.message.as_str()), (137, true, ""));
        assert_eq!(exit.finished_at.to_string(), "2026-01-02T03:04:05.123456789Z");
        let exit = Exit::parse("128 0 0 exec: \"x y\": not found").expect("an exit");
        assert_eq!(exit.message, "exec: \"x y\": not found");
        assert_eq!(Exit::parse("128 0"), None);
    }
}
