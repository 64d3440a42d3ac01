//! The embedded log: segments that are only appended to, on one disk, written by one process.
//!
//! One append is one frame and one sync, however many transactions wait. A frame that was not acknowledged is either
//! whole, and then simply there after a crash, or torn, and then cut off by the next opening. Everything else that
//! doesn't read as it was written refuses to open. When enough has been written since the last snapshot, a new one is
//! made beside the writer (see `compact.rs`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use sampan_base::disk::{AppendFile, Disk, DiskLock, SharedDisk};
use sampan_base::{Clock, task};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::compact::{compact, remove_obsolete};
use super::files::{
    self, Reader, SEGMENT_FORMAT, SnapshotFile, damaged, io_error, part_path, read_part, read_segment_to, segment_path,
    start_frame,
};
use super::frame::{self, Broken, HEADER_LENGTH, Kind};
use super::{
    AppendError, EmptySnapshot, Live, Log, LogError, Proposal, Saved, Snapshot, Tail, Transaction, Verdict, committed,
    decide,
};
use crate::Revision;

const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// When files end and snapshots are made.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// A segment is closed once it is this large. Reading a file takes memory of its size.
    pub segment: u64,
    /// A snapshot is made when the closed segments since the last are as large as it, and at least this: at most twice
    /// what is live, and this, is on the disk and read at start.
    pub compact: u64,
    pub part: usize,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { segment: 16 << 20, compact: 16 << 20, part: 16 << 20 }
    }
}

pub struct EmbeddedLog {
    disk: SharedDisk,
    dir: PathBuf,
    sizes: Sizes,
    writer: tokio::sync::Mutex<Writer>,
    shared: Arc<Mutex<Shared>>,
}

struct Writer {
    /// Away while an append works on it; lost if that append was abandoned half-way, and then the log is at an end.
    file: Option<Box<dyn AppendFile>>,
    /// Until the log is closed.
    lock: Option<DiskLock>,
    closed: bool,
    compaction: Option<JoinHandle<()>>,
}

/// What readers need of the writer.
struct Shared {
    head: Revision,
    snapshot: Option<SnapshotFile>,
    /// What each segment starts after; the last is the one that grows.
    segments: Vec<Revision>,
    /// In the closed segments that no snapshot covers.
    closed_bytes: u64,
    tails: Vec<mpsc::UnboundedSender<Vec<Transaction>>>,
}

impl EmbeddedLog {
    /// Opens the log in `dir`. Where there is none one is made, unless `must_exist`. Cuts a torn last record; refuses
    /// with [`LogError::Damaged`] whatever else is not as it was written. Only the last segment is read: the others are
    /// verified when they are read through [`Log::snapshot`] and [`Log::tail`], which a store does before it opens.
    pub async fn open(disk: SharedDisk, dir: PathBuf, sizes: Sizes, must_exist: bool) -> Result<Self, LogError> {
        let lock = take_lock(&disk, &dir).await?;
        let (inner_disk, inner_dir) = (disk.clone(), dir.clone());
        let opened = run(&disk, move || open(&*inner_disk, &inner_dir, must_exist)).await;
        let (file, shared) = opened.map_err(|reason| LogError::Io { file: dir.display().to_string(), reason })??;
        let writer = Writer { file: Some(file), lock: Some(lock), closed: false, compaction: None };
        let shared = Arc::new(Mutex::new(shared));
        Ok(Self { disk, dir, sizes, writer: tokio::sync::Mutex::new(writer), shared })
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }

    /// Closes the segment and goes on in a new one. A failure that leaves the old one usable is not an error.
    async fn rotate(&self, writer: &mut Writer) -> Result<(), AppendError> {
        let Some(old) = writer.file.take() else { return Ok(()) };
        let old_length = old.len();
        let head = self.shared().head;
        let (disk, path) = (self.disk.clone(), segment_path(&self.dir, head));
        let created = run(&self.disk, move || create_segment(&*disk, &path, head)).await.map_err(AppendError::Fatal)?;
        match created {
            Ok(file) => {
                writer.file = Some(file);
                let mut shared = self.shared();
                shared.segments.push(head);
                shared.closed_bytes += old_length;
            }
            Err(CreateError::Undone(error)) => {
                tracing::warn!(%error, "can't start a new segment of the log; going on in the old one");
                writer.file = Some(old);
            }
            Err(CreateError::Fatal(error)) => return Err(AppendError::Fatal(error.to_string())),
        }
        Ok(())
    }

    /// Starts a compaction if it is time and none runs.
    async fn compact_if_due(&self, writer: &mut Writer) {
        if writer.compaction.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let (old, closed, revision) = {
            let shared = self.shared();
            let snapshot_bytes = shared.snapshot.as_ref().map_or(0, |snapshot| snapshot.bytes);
            let Some((revision, closed)) = shared.segments.split_last() else { return };
            if closed.is_empty() || shared.closed_bytes < self.sizes.compact.max(snapshot_bytes) {
                return;
            }
            (shared.snapshot.clone(), closed.to_vec(), *revision)
        };
        let (disk, dir, sizes, shared) = (self.disk.clone(), self.dir.clone(), self.sizes, self.shared.clone());
        let bytes_before = self.shared().closed_bytes;
        let held = writer.lock.clone();
        let work = move || {
            match compact(&*disk, &dir, old.as_ref(), &closed, revision, sizes.part) {
                Ok(snapshot) => {
                    let mut shared = lock(&shared);
                    shared.segments.retain(|after| *after >= revision);
                    shared.snapshot = Some(snapshot);
                    shared.closed_bytes -= bytes_before;
                }
                Err(error) => tracing::warn!(%error, "no snapshot of the log was made; it will be tried again"),
            }
            // Not before: the log may have been dropped meanwhile, and nobody else may open it while files go.
            drop(held);
        };
        if self.disk.blocks() {
            writer.compaction = Some(task::spawn_blocking(work));
        } else {
            work();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Runs disk work off the async threads, or right here where the disk doesn't block. Fails when the work panicked.
async fn run<R: Send + 'static>(disk: &SharedDisk, work: impl FnOnce() -> R + Send + 'static) -> Result<R, String> {
    if disk.blocks() { task::spawn_blocking(work).await.map_err(|error| error.to_string()) } else { Ok(work()) }
}

/// Keeps a second process out. One that is just ending gets a moment to do so.
async fn take_lock(disk: &SharedDisk, dir: &Path) -> Result<DiskLock, LogError> {
    let path = dir.join("lock");
    let failed = |error: io::Error| io_error(&path, &error);
    disk.create_dir_all(dir).map_err(failed)?;
    let clock = Clock::system();
    let deadline = clock.instant() + LOCK_PATIENCE;
    loop {
        match disk.lock(&path) {
            Ok(lock) => return Ok(lock),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(failed(error)),
            Err(_) if clock.instant() >= deadline => return Err(LogError::Busy { file: path.display().to_string() }),
            Err(_) => clock.sleep(Duration::from_millis(10)).await,
        }
    }
}

enum CreateError {
    /// Nothing is left of the new file.
    Undone(io::Error),
    Fatal(io::Error),
}

fn create_segment(disk: &dyn Disk, path: &Path, after: Revision) -> Result<Box<dyn AppendFile>, CreateError> {
    let mut file = disk.open_append(path).map_err(CreateError::Undone)?;
    if let Err(error) = file.append(&[&start_frame(SEGMENT_FORMAT, after)]) {
        drop(file);
        // A segment that starts here while the old one goes on would look like a damaged log.
        return Err(match disk.remove(path) {
            Ok(()) => CreateError::Undone(error),
            Err(second) => CreateError::Fatal(second),
        });
    }
    file.sync().map_err(CreateError::Fatal)?;
    Ok(file)
}

fn open(disk: &dyn Disk, dir: &Path, must_exist: bool) -> Result<(Box<dyn AppendFile>, Shared), LogError> {
    disk.create_dir_all(dir).map_err(|error| io_error(dir, &error))?;
    let mut inventory = files::inventory(disk, dir)?;
    remove_unborn_segment(disk, dir, &mut inventory.segments)?;
    let from = inventory.snapshot.as_ref().map_or(Revision(0), |snapshot| snapshot.revision);
    let fresh = inventory.segments.is_empty() && inventory.snapshot.is_none();
    if fresh && must_exist {
        return Err(damaged(dir, 0, "the log is gone"));
    }
    if fresh {
        let path = segment_path(dir, from);
        let file = create_segment(disk, &path, from).map_err(|error| match error {
            CreateError::Undone(error) | CreateError::Fatal(error) => io_error(&path, &error),
        })?;
        inventory.segments.push(from);
        let snapshot = None;
        let shared = Shared { head: from, snapshot, segments: inventory.segments, closed_bytes: 0, tails: Vec::new() };
        return Ok((file, shared));
    }
    let (Some(first), Some(last)) = (inventory.segments.first(), inventory.segments.last().copied()) else {
        return Err(damaged(dir, 0, "the segments of the log are gone"));
    };
    if *first > from {
        return Err(damaged(dir, 0, format!("the segment with the revisions after {} is gone", from.0)));
    }
    let path = segment_path(dir, last);
    let (head, whole, length) = scan_last(disk, &path, last)?;
    let mut file = disk.open_append(&path).map_err(|error| io_error(&path, &error))?;
    if whole < length {
        tracing::warn!(file = %path.display(), bytes = length - whole, "cutting a record that was never acknowledged");
        file.truncate(whole as u64).map_err(|error| io_error(&path, &error))?;
    }
    // A record can be whole without having been synced; it is about to be shown to readers.
    file.sync().map_err(|error| io_error(&path, &error))?;
    if head < from {
        return Err(damaged(&path, whole, format!("it ends at revision {}, before the snapshot", head.0)));
    }
    let mut closed_bytes = 0;
    for after in &inventory.segments[..inventory.segments.len() - 1] {
        let path = segment_path(dir, *after);
        closed_bytes += disk.open_append(&path).map_err(|error| io_error(&path, &error))?.len();
    }
    remove_obsolete(disk, &inventory)?;
    let (snapshot, segments) = (inventory.snapshot, inventory.segments);
    Ok((file, Shared { head, snapshot, segments, closed_bytes, tails: Vec::new() }))
}

/// A crash while a segment was created can leave a last one without a whole first frame. Nothing was written to it yet.
fn remove_unborn_segment(disk: &dyn Disk, dir: &Path, segments: &mut Vec<Revision>) -> Result<(), LogError> {
    let Some(last) = segments.last().copied() else { return Ok(()) };
    let path = segment_path(dir, last);
    let content = disk.read(&path).map_err(|error| io_error(&path, &error))?;
    let start = start_frame(SEGMENT_FORMAT, last);
    let unborn =
        content.len() <= start.len() && frame::read(&content.clone().into(), 0).is_err_and(|b| b == Broken::Torn);
    if content.is_empty() || unborn {
        disk.remove(&path).map_err(|error| io_error(&path, &error))?;
        segments.pop();
    }
    Ok(())
}

/// The last revision in the segment, how many bytes of it are whole records, and its length.
fn scan_last(disk: &dyn Disk, path: &Path, after: Revision) -> Result<(Revision, usize, usize), LogError> {
    let mut reader = Reader::open(disk, path, SEGMENT_FORMAT, after)?;
    let mut head = after;
    loop {
        match reader.try_frame() {
            Ok(None) | Err(Broken::Torn) => return Ok((head, reader.offset(), reader.length())),
            Ok(Some(frame)) => {
                let last = reader.transactions(&frame, head)?.pop();
                head = last.map_or(head, |transaction| transaction.revision);
            }
            Err(Broken::Damaged(reason)) => return Err(damaged(path, reader.offset(), reason)),
        }
    }
}

/// Writes one frame and makes it durable. The file comes back unless it must not be used again.
fn write_frame(
    mut file: Box<dyn AppendFile>,
    base: Revision,
    transactions: &[Transaction],
    size: usize,
) -> (Option<Box<dyn AppendFile>>, Result<(), AppendError>) {
    let payload = frame::encode_transactions(transactions, size);
    let length = file.len();
    if let Err(error) = file.append(&[&frame::header(Kind::Transactions, base, &payload), &payload]) {
        let text = match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "the disk is full".to_owned(),
            _ => error.to_string(),
        };
        return match file.truncate(length) {
            Ok(()) => (Some(file), Err(AppendError::Refused(text))),
            Err(second) => (None, Err(AppendError::Fatal(format!("{text}, and undoing the write failed: {second}")))),
        };
    }
    match file.sync() {
        Ok(()) => (Some(file), Ok(())),
        Err(error) => (None, Err(AppendError::Fatal(format!("sync failed: {error}")))),
    }
}

#[async_trait]
impl Log for EmbeddedLog {
    async fn append(&self, batch: Vec<Proposal>, live: &dyn Live) -> Result<Vec<Verdict>, AppendError> {
        let mut writer = self.writer.lock().await;
        if writer.closed {
            return Err(AppendError::Refused("the log is closed".to_owned()));
        }
        let head = self.shared().head;
        let size: usize = batch.iter().map(Proposal::size).sum();
        let verdicts = decide(&batch, head, live);
        let transactions = committed(batch, &verdicts);
        let Some(last) = transactions.last().map(|transaction| transaction.revision) else { return Ok(verdicts) };
        let Some(file) = writer.file.take() else {
            return Err(AppendError::Fatal("an earlier write failed".to_owned()));
        };
        let work = move || {
            let (file, result) = write_frame(file, head, &transactions, size + HEADER_LENGTH);
            (file, result.map(|()| transactions))
        };
        let (file, result) = run(&self.disk, work).await.map_err(AppendError::Fatal)?;
        writer.file = file;
        let transactions = result?;
        {
            let mut shared = self.shared();
            shared.head = last;
            shared.tails.retain(|tail| tail.send(transactions.clone()).is_ok());
        }
        if writer.file.as_ref().is_some_and(|file| file.len() >= self.sizes.segment) {
            if let Err(error) = self.rotate(&mut writer).await {
                // This batch is durable; the next append finds no file and says so.
                tracing::error!(%error, "the log can't go on");
            } else {
                self.compact_if_due(&mut writer).await;
            }
        }
        Ok(verdicts)
    }

    async fn head(&self) -> Result<Revision, LogError> {
        Ok(self.shared().head)
    }

    async fn tail(&self, after: Revision) -> Result<Box<dyn Tail>, LogError> {
        let (sender, live) = mpsc::unbounded_channel();
        let mut shared = self.shared();
        let oldest = shared.segments.first().copied().unwrap_or_default();
        if after < oldest {
            return Err(LogError::Compacted { asked: after, oldest });
        }
        shared.tails.push(sender);
        // Of the segments that start no later than `after` only the last has anything behind it.
        let skip = shared.segments.partition_point(|start| *start <= after).saturating_sub(1);
        let mut backlog: Vec<Revision> = shared.segments[skip..].to_vec();
        backlog.reverse();
        let (disk, dir) = (self.disk.clone(), self.dir.clone());
        Ok(Box::new(EmbeddedTail { disk, dir, after, backlog, backlog_end: shared.head, live }))
    }

    async fn snapshot(&self) -> Result<Box<dyn Snapshot>, LogError> {
        let snapshot = self.shared().snapshot.clone();
        Ok(match snapshot {
            None => Box::new(EmptySnapshot),
            Some(file) => {
                Box::new(EmbeddedSnapshot { disk: self.disk.clone(), dir: self.dir.clone(), file, next_part: 0 })
            }
        })
    }

    async fn close(&self) {
        let compaction = {
            let mut writer = self.writer.lock().await;
            writer.closed = true;
            writer.file = None;
            writer.lock = None;
            writer.compaction.take()
        };
        self.shared().tails.clear();
        if let Some(compaction) = compaction {
            // It logs its own failure.
            let _ = compaction.await;
        }
    }
}

struct EmbeddedTail {
    disk: SharedDisk,
    dir: PathBuf,
    after: Revision,
    /// Segments still to read, the next one last.
    backlog: Vec<Revision>,
    /// Where `live` takes over from the files.
    backlog_end: Revision,
    live: mpsc::UnboundedReceiver<Vec<Transaction>>,
}

#[async_trait]
impl Tail for EmbeddedTail {
    async fn next(&mut self) -> Result<Vec<Transaction>, LogError> {
        while let Some(start) = self.backlog.last().copied() {
            let (disk, path, end) = (self.disk.clone(), segment_path(&self.dir, start), self.backlog_end);
            let name = path.display().to_string();
            let read = run(&self.disk, move || read_segment_to(&*disk, &path, start, end)).await;
            let mut transactions = read.map_err(|reason| LogError::Io { file: name, reason })??;
            // No await from here on: a cancelled call has changed nothing.
            self.backlog.pop();
            let reached = transactions.last().map_or(start, |transaction| transaction.revision);
            let due = self.backlog.last().copied().unwrap_or(self.backlog_end);
            if reached != due {
                let reason = format!("it ends at revision {}, not at {}", reached.0, due.0);
                return Err(damaged(&segment_path(&self.dir, start), 0, reason));
            }
            transactions.retain(|transaction| transaction.revision > self.after);
            if let Some(last) = transactions.last() {
                self.after = last.revision;
                return Ok(transactions);
            }
        }
        let mut transactions = self.live.recv().await.ok_or(LogError::Closed)?;
        transactions.retain(|transaction| transaction.revision > self.after);
        self.after = transactions.last().map_or(self.after, |last| last.revision);
        Ok(transactions)
    }
}

struct EmbeddedSnapshot {
    disk: SharedDisk,
    dir: PathBuf,
    file: SnapshotFile,
    next_part: u64,
}

#[async_trait]
impl Snapshot for EmbeddedSnapshot {
    fn revision(&self) -> Revision {
        self.file.revision
    }

    async fn next(&mut self) -> Result<Option<Vec<Saved>>, LogError> {
        if self.next_part == self.file.parts {
            return Ok(None);
        }
        let revision = self.file.revision;
        let (disk, path) = (self.disk.clone(), part_path(&self.dir, revision, self.next_part));
        let name = path.display().to_string();
        let read = run(&self.disk, move || read_part(&*disk, &path, revision)).await;
        let saved = read.map_err(|reason| LogError::Io { file: name, reason })??;
        self.next_part += 1;
        Ok(Some(saved))
    }
}
