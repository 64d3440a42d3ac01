//! Unpacks a layer's archive into a directory of its own, in the form overlayfs wants: a removed file is a character device
//! 0/0, a replaced directory is marked opaque.
//!
//! Nothing an archive says can touch anything outside that directory: every parent is opened by the kernel as if the
//! directory were the root (`RESOLVE_IN_ROOT`), and the last component is never followed.

use std::ffi::{CStr, CString, OsStr};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, LinkatFlags, Uid, UnlinkatFlags};
use sha2::{Digest as _, Sha256};
use tar::EntryType;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
const OVERLAY_OPAQUE: &CStr = c"trusted.overlay.opaque";

/// Unpacks a plain or compressed archive. Returns `sha256:…` of the plain archive and the bytes written.
pub(super) fn layer(blob: impl Read, directory: &Path) -> io::Result<(String, u64)> {
    std::fs::create_dir_all(directory)?;
    std::fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let mut plain = Hashing::new(decompress(blob)?);
    let size = Unpacker { root: File::open(directory)?.into(), times: Vec::new() }.run(&mut plain)?;
    // The hash is of the whole archive, also of what follows its last entry.
    io::copy(&mut plain, &mut io::sink())?;
    Ok((plain.digest(), size))
}

/// Recognises gzip and zstd by their first bytes; everything else is taken as plain.
pub(super) fn decompress<'a>(mut input: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
    let mut head = Vec::new();
    input.by_ref().take(4).read_to_end(&mut head)?;
    let kind = head.clone();
    let input = io::Cursor::new(head).chain(input);
    Ok(match kind.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(input)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::Decoder::new(input)?),
        _ => Box::new(input),
    })
}

/// Hashes what is read through it.
pub(super) struct Hashing<R> {
    inner: R,
    hash: Sha256,
    pub(super) length: u64,
}

impl<R> Hashing<R> {
    pub(super) fn new(inner: R) -> Self {
        Self { inner, hash: Sha256::new(), length: 0 }
    }

    pub(super) fn digest(self) -> String {
        super::hex(&self.hash.finalize())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        self.hash.update(&buffer[..length]);
        self.length += length as u64;
        Ok(length)
    }
}

struct Unpacker {
    root: OwnedFd,
    /// Of directories, set last: making what is in them changes them.
    times: Vec<(PathBuf, i64)>,
}

impl Unpacker {
    fn run(mut self, archive: impl Read) -> io::Result<u64> {
        let mut size = 0;
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = plain_path(&entry.path_bytes())?;
            let made = self.entry(&mut entry, &path);
            size += made.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        }
        for (path, seconds) in self.times.iter().rev() {
            if let Ok(directory) = self.open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
                set_times(directory.as_fd(), c"", *seconds)?;
            }
        }
        Ok(size)
    }

    fn entry<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>, path: &Path) -> io::Result<u64> {
        let header = entry.header();
        let (kind, seconds) = (header.entry_type(), header.mtime()? as i64);
        let mode = Mode::from_bits_truncate(header.mode()? & 0o7777);
        let (uid, gid) = (number(header.uid()?)?, number(header.gid()?)?);
        if matches!(kind, EntryType::XGlobalHeader) {
            return Ok(0);
        }
        let Some(name) = path.file_name() else {
            // The root itself.
            return self.finish_directory(self.root.try_clone()?, path, mode, (uid, gid), seconds, &xattrs(entry)?);
        };
        let parent = self.make_directories(path.parent().unwrap_or(Path::new("")))?;
        if name.as_bytes() == OPAQUE {
            set_xattr(&parent, OVERLAY_OPAQUE, b"y")?;
            return Ok(0);
        }
        if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
            let hidden = file_name(hidden)?;
            clear(&parent, &hidden)?;
            nix::sys::stat::mknodat(&parent, hidden.as_c_str(), SFlag::S_IFCHR, Mode::empty(), 0)?;
            return Ok(0);
        }
        let name = file_name(name.as_bytes())?;
        let name = name.as_c_str();
        if kind.is_dir() {
            let directory = match open_at(&parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW) {
                Ok(directory) => directory,
                Err(_) => {
                    clear(&parent, name)?;
                    nix::sys::stat::mkdirat(&parent, name, Mode::from_bits_truncate(0o755))?;
                    open_at(&parent, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW)?
                }
            };
            return self.finish_directory(directory, path, mode, (uid, gid), seconds, &xattrs(entry)?);
        }
        clear(&parent, name)?;
        let mut size = 0;
        match kind {
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
                let file =
                    nix::fcntl::openat(&parent, name, flags | OFlag::O_CLOEXEC, Mode::from_bits_truncate(0o600))?;
                let mut file = File::from(file);
                size = io::copy(entry, &mut file)?;
                let attributes = xattrs(entry)?;
                // The owner first: changing it clears set-user-id bits and file capabilities.
                nix::unistd::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
                nix::sys::stat::fchmod(&file, mode)?;
                for (key, value) in attributes {
                    set_xattr(&file, &key, &value)?;
                }
                set_times(file.as_fd(), c"", seconds)?;
                return Ok(size);
            }
            EntryType::Link => {
                let target = entry.link_name_bytes().ok_or_else(|| invalid("a link without a target"))?;
                let target = plain_path(&target)?;
                let target_name = target.file_name().ok_or_else(|| invalid("a link to the root"))?;
                let target_parent = self.open(target.parent().unwrap_or(Path::new("")), OFlag::O_PATH)?;
                let target_name = file_name(target_name.as_bytes())?;
                nix::unistd::linkat(&target_parent, target_name.as_c_str(), &parent, name, LinkatFlags::empty())?;
                return Ok(0);
            }
            EntryType::Symlink => {
                let target = entry.link_name_bytes().ok_or_else(|| invalid("a link without a target"))?;
                nix::unistd::symlinkat(OsStr::from_bytes(&target), &parent, name)?;
            }
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                let header = entry.header();
                let (major, minor) = (header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0));
                let kind = match kind {
                    EntryType::Char => SFlag::S_IFCHR,
                    EntryType::Block => SFlag::S_IFBLK,
                    _ => SFlag::S_IFIFO,
                };
                let device = nix::sys::stat::makedev(major.into(), minor.into());
                nix::sys::stat::mknodat(&parent, name, kind, mode, device)?;
            }
            // Extensions this machine does not know carry nothing to unpack.
            _ => return Ok(0),
        }
        nix::unistd::fchownat(
            &parent,
            name,
            Some(Uid::from_raw(uid)),
            Some(Gid::from_raw(gid)),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?;
        if kind != EntryType::Symlink {
            nix::sys::stat::fchmodat(&parent, name, mode, nix::sys::stat::FchmodatFlags::FollowSymlink)?;
        }
        set_times(parent.as_fd(), name, seconds)?;
        Ok(size)
    }

    fn finish_directory(
        &mut self,
        directory: OwnedFd,
        path: &Path,
        mode: Mode,
        (uid, gid): (u32, u32),
        seconds: i64,
        attributes: &[(CString, Vec<u8>)],
    ) -> io::Result<u64> {
        nix::unistd::fchown(&directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        nix::sys::stat::fchmod(&directory, mode)?;
        for (key, value) in attributes {
            set_xattr(&directory, key, value)?;
        }
        self.times.push((path.to_owned(), seconds));
        Ok(0)
    }

    /// Opens a path as if the layer were the whole machine.
    fn open(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(nix::fcntl::openat2(&self.root, path, how)?)
    }

    /// Opens a directory, making it and its parents when the archive has not told of them.
    fn make_directories(&self, path: &Path) -> io::Result<OwnedFd> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY;
        match self.open(path, flags) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            opened => return opened,
        }
        let parent = self.make_directories(path.parent().unwrap_or(Path::new("")))?;
        let name = file_name(path.file_name().map(OsStr::as_bytes).unwrap_or_default())?;
        nix::sys::stat::mkdirat(&parent, name.as_c_str(), Mode::from_bits_truncate(0o755))?;
        self.open(path, flags)
    }
}

/// Without a leading slash and without `.`; one that climbs is refused.
fn plain_path(bytes: &[u8]) -> io::Result<PathBuf> {
    let mut plain = PathBuf::new();
    for component in Path::new(OsStr::from_bytes(bytes)).components() {
        match component {
            Component::Normal(name) => plain.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(invalid("a path that climbs out of the layer")),
        }
    }
    Ok(plain)
}

fn file_name(bytes: &[u8]) -> io::Result<CString> {
    match bytes {
        b"" | b"." | b".." => Err(invalid("not a file name")),
        name if name.contains(&b'/') => Err(invalid("not a file name")),
        name => CString::new(name).map_err(|_| invalid("a name with a zero byte")),
    }
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn number(id: u64) -> io::Result<u32> {
    u32::try_from(id).map_err(|_| invalid("an owner beyond 32 bits"))
}

fn open_at(parent: &OwnedFd, name: &CStr, flags: OFlag) -> io::Result<OwnedFd> {
    Ok(nix::fcntl::openat(parent, name, flags | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// What an earlier entry of the same name made gives way.
fn clear(parent: &OwnedFd, name: &CStr) -> io::Result<()> {
    match nix::unistd::unlinkat(parent, name, UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(nix::errno::Errno::ENOENT) => Ok(()),
        Err(nix::errno::Errno::EISDIR) => {
            // By the directory's descriptor, so that nothing on the way to it is followed.
            let path = format!("/proc/self/fd/{}", parent.as_raw_fd());
            std::fs::remove_dir_all(Path::new(&path).join(OsStr::from_bytes(name.to_bytes())))
        }
        Err(error) => Err(error.into()),
    }
}

/// Of the PAX headers; what is overlayfs' own is not an image's to set.
fn xattrs<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Vec<(CString, Vec<u8>)>> {
    let mut found = Vec::new();
    if let Some(extensions) = entry.pax_extensions()? {
        for extension in extensions {
            let extension = extension?;
            if let Some(name) = extension.key_bytes().strip_prefix(b"SCHILY.xattr.")
                && !name.starts_with(b"trusted.overlay.")
                && let Ok(name) = CString::new(name)
            {
                found.push((name, extension.value_bytes().to_vec()));
            }
        }
    }
    Ok(found)
}

fn set_xattr(file: &impl std::os::fd::AsRawFd, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: a terminated string and a pointer with its length.
    let result = unsafe { libc::fsetxattr(file.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    let error = io::Error::last_os_error();
    match result {
        0 => Ok(()),
        // Not every filesystem keeps every attribute; without it the file is still what the image needs.
        _ if error.raw_os_error() == Some(libc::ENOTSUP) && !name.to_bytes().starts_with(b"trusted.") => Ok(()),
        _ => Err(error),
    }
}

/// The time of a file, or with an empty name of the descriptor itself.
fn set_times(at: BorrowedFd<'_>, name: &CStr, seconds: i64) -> io::Result<()> {
    let time = TimeSpec::new(seconds, 0);
    if name.is_empty() {
        nix::sys::stat::futimens(at, &time, &time)?;
    } else {
        nix::sys::stat::utimensat(at, name, &time, &time, UtimensatFlags::NoFollowSymlink)?;
    }
    Ok(())
}
