//! The disk as durable state sees it: append-only files, whole-file replacement, and the syncs that make either last.
//!
//! Two implementations obey one contract suite: [`RealDisk`] and [`MemoryDisk`], which can lose what was not synced,
//! fill up and fail. Not for images and volumes: those are the node's and use the filesystem directly.

mod memory;
mod real;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use memory::MemoryDisk;
pub use real::RealDisk;

/// A directory tree. Calls block; callers run them off the async threads.
pub trait Disk: Send + Sync + 'static {
    /// Whether calls can wait for a device. Where they can't, callers make them in place, so that a run on a disk in
    /// memory doesn't depend on how threads are scheduled.
    fn blocks(&self) -> bool {
        true
    }
    /// Creates a directory and its parents. Durable when it returns.
    fn create_dir_all(&self, path: &Path) -> io::Result<()>;
    /// The names in a directory, sorted. An absent directory is `NotFound`.
    fn list(&self, path: &Path) -> io::Result<Vec<PathBuf>>;
    /// The whole file.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
    /// Opens for appending, creating it (mode 0600, name durable) when absent.
    fn open_append(&self, path: &Path) -> io::Result<Box<dyn AppendFile>>;
    /// Writes a whole file so that after a crash either the old or the new content is there: temporary file (mode
    /// 0600), sync, rename, sync of the directory.
    fn replace(&self, path: &Path, content: &[u8]) -> io::Result<()>;
    /// Renames within one directory tree; durable when it returns.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; durable when it returns. An absent file is `NotFound`.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Keeps other processes (and other callers in this one) from taking the same lock until the answer and its clones
    /// are dropped or the process ends, however it ends. `WouldBlock` when someone has it. A disk that no second process
    /// can reach needs none.
    fn lock(&self, _path: &Path) -> io::Result<DiskLock> {
        Ok(Arc::new(()))
    }
}

/// A file that only grows.
pub trait AppendFile: Send {
    /// The length in bytes.
    fn len(&self) -> u64;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Appends the parts in order. After an error the length is unknown until `truncate`.
    fn append(&mut self, parts: &[&[u8]]) -> io::Result<()>;
    /// Makes everything appended so far survive a crash. **A failure is fatal for the caller**: the kernel may have
    /// dropped the dirty pages, and a second sync that succeeds proves nothing.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to `length` and syncs.
    fn truncate(&mut self, length: u64) -> io::Result<()>;
}

/// What [`Disk::lock`] answers: held until the last clone is dropped.
pub type DiskLock = Arc<dyn std::any::Any + Send + Sync>;

/// The disk a component was given.
pub type SharedDisk = Arc<dyn Disk>;
