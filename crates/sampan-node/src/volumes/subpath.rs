//! `subPath`: a path inside a volume that may not lead out of it, whatever links a container has put there.
//!
//! The kernel resolves it (`openat2` with `RESOLVE_BENEATH`), and what it found is what gets mounted.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::{Mode, mkdirat};

use super::Error;

/// The real path of `sub` inside `volume`, whose missing directories are made.
pub fn resolve(volume: &Path, sub: &str) -> Result<PathBuf, Error> {
    let escapes = || Error::Escapes(sub.into());
    let parts: Vec<&str> = Path::new(sub)
        .components()
        .filter(|part| *part != Component::CurDir)
        .map(|part| match part {
            Component::Normal(part) => part.to_str().ok_or_else(escapes),
            _ => Err(escapes()),
        })
        .collect::<Result<_, _>>()?;
    let fail = |errno: Errno| match errno {
        Errno::EXDEV | Errno::ELOOP => escapes(),
        errno => Error::Io { step: "cannot open", path: volume.join(sub), source: io::Error::from(errno) },
    };
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let mut found = open(volume, flags | OFlag::O_DIRECTORY, Mode::empty()).map_err(fail)?;
    let root: OwnedFd = found.try_clone().map_err(Error::io("cannot open", volume))?;
    for depth in 1..=parts.len() {
        let so_far = parts[..depth].join("/");
        let how =
            OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        found = match openat2(root.as_fd(), so_far.as_str(), how) {
            Err(Errno::ENOENT) => {
                mkdirat(found.as_fd(), parts[depth - 1], Mode::from_bits_truncate(0o750)).map_err(fail)?;
                openat2(root.as_fd(), so_far.as_str(), how).map_err(fail)?
            }
            other => other.map_err(fail)?,
        };
    }
    let link = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    std::fs::read_link(&link).map_err(Error::io("cannot read", &link))
}
