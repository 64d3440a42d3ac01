//! The images of this machine: what is here, under which names, and the layers as directories.
//!
//! ```text
//! DIR/images/ID.json    one record per image: names, configuration, layers
//! DIR/layers/LAYER/     an unpacked layer, named by the head of the SHA-256 of its plain archive
//! DIR/partial/…         what is being downloaded or unpacked; emptied when the store is opened
//! ```
//!
//! A layer is moved to its place, and a record written, only when everything below it is on disk, so an image that has a
//! record is complete even after a power failure. Records are few and small; they are read once and kept.

mod archive;
mod model;
mod pull;
mod registry;
#[cfg(test)]
mod tests;
mod transport;
mod unpack;
pub mod writer;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Weak};

use async_trait::async_trait;
use sampan_base::disk::{Disk as _, RealDisk};
use sampan_base::{Clock, Dice, task};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

pub use self::transport::RegistryOptions;
use self::transport::Transport;
use crate::reference::{Reference, is_sha256};
use crate::{Error, Image, ImageConfig, Images, RegistryAuth};

const FORMAT: u32 = 1;

/// How much of a layer's hash names its directory: short, so that a hundred of them fit into the options of one overlay;
/// long enough that nobody finds a second layer of the same name.
const LAYER_NAME_DIGITS: usize = 24;

/// The store; clones share it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    directory: PathBuf,
    layers: PathBuf,
    dice: Dice,
    transport: Transport,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// By image id.
    images: BTreeMap<String, Record>,
    /// Container to image id: content that is in use stays.
    held: BTreeMap<String, String>,
    /// Layers that are being added to an image.
    arriving: BTreeMap<String, usize>,
    turns: BTreeMap<String, Weak<tokio::sync::Mutex<()>>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Record {
    format: u32,
    id: String,
    tags: BTreeSet<String>,
    digests: BTreeSet<String>,
    size_bytes: u64,
    /// `sha256:…` of the plain archives, the lowest first.
    layers: Vec<String>,
    config: ImageConfig,
}

impl Store {
    /// Opens the store below `data_dir` and removes what was half done. Blocks.
    pub fn open(data_dir: &Path, options: RegistryOptions, clock: Clock, dice: Dice) -> Result<Self, Error> {
        let (directory, layers) = (data_dir.join("images"), data_dir.join("layers"));
        let partial = data_dir.join("partial");
        let prepared = match std::fs::remove_dir_all(&partial) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => [&directory, &layers, &partial].into_iter().try_for_each(std::fs::create_dir_all),
        };
        prepared.map_err(|error| Error::System(format!("open the image store {}: {error}", data_dir.display())))?;
        let transport = Transport::new(options, clock).map_err(|error| Error::Invalid(error.to_string()))?;
        let mut state = State::default();
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let record = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
            match record.filter(|record| record.format == FORMAT) {
                Some(record) => drop(state.images.insert(record.id.clone(), record)),
                None => tracing::warn!(path = %path.display(), "not an image record of this version; left alone"),
            }
        }
        let inner = Inner { directory: data_dir.to_owned(), layers, dice, transport, state: Mutex::new(state) };
        Ok(Self(Arc::new(inner)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The image a reference names.
    pub fn find(&self, reference: &str) -> Result<Option<Image>, Error> {
        Ok(self.state().find(reference)?.map(Record::image))
    }

    /// The image of an id.
    pub fn by_id(&self, id: &str) -> Option<Image> {
        self.state().images.get(id).map(Record::image)
    }

    /// Where layers are; the names of [`Store::layers`] are directories in it.
    pub fn layers_directory(&self) -> &Path {
        &self.0.layers
    }

    /// The directories of an image's layers, the lowest first.
    pub fn layers(&self, id: &str) -> Result<Vec<String>, Error> {
        let state = self.state();
        let record = state.images.get(id).ok_or_else(|| Error::NotFound { what: "image", id: id.to_owned() })?;
        Ok(record.layers.iter().map(|digest| layer_name(digest).to_owned()).collect())
    }

    /// The container uses the image from now on.
    pub fn hold(&self, container: &str, image: &str) {
        self.state().held.insert(container.to_owned(), image.to_owned());
    }

    /// The container is gone; an image without a name goes with its last one.
    pub fn release(&self, container: &str) {
        let image = self.state().held.remove(container);
        if let Some(image) = image
            && let Err(error) = self.collect(&image)
        {
            tracing::warn!(image, %error, "an image that nothing needs cannot be removed");
        }
    }

    /// A new place for what is not complete yet.
    fn partial(&self) -> PathBuf {
        self.0.directory.join("partial").join(format!("{:016x}", self.0.dice.next_u64()))
    }

    fn record_path(&self, id: &str) -> PathBuf {
        self.0.directory.join(format!("images/{}.json", id.trim_start_matches("sha256:")))
    }

    fn has_layer(&self, digest: &str) -> bool {
        self.0.layers.join(layer_name(digest)).is_dir()
    }

    /// Keeps layers that nothing names yet from being collected while an image of them is put together.
    fn expect_layers(&self, digests: &[String]) -> Arriving<'_> {
        let mut state = self.state();
        for digest in digests {
            *state.arriving.entry(digest.clone()).or_default() += 1;
        }
        Arriving { store: self, digests: digests.to_vec() }
    }

    /// Only one at a time fetches a layer; the lock belongs to the layer.
    fn turn(&self, digest: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut state = self.state();
        state.turns.retain(|_, turn| turn.strong_count() > 0);
        if let Some(turn) = state.turns.get(digest).and_then(Weak::upgrade) {
            return turn;
        }
        let turn = Arc::default();
        state.turns.insert(digest.to_owned(), Arc::downgrade(&turn));
        turn
    }

    /// Moves a layer that is unpacked in `partial` to its place, once all of it is on disk. Blocks.
    fn place(&self, digest: &str, partial: &Path) -> Result<(), Error> {
        let failed = |error: io::Error| Error::System(format!("store layer {digest}: {error}"));
        sync_filesystem(&self.0.layers).map_err(failed)?;
        let place = self.0.layers.join(layer_name(digest));
        match std::fs::rename(partial, &place) {
            // Somebody else has just unpacked the same.
            Err(_) if place.is_dir() => std::fs::remove_dir_all(partial).map_err(failed),
            result => result.map_err(failed),
        }
    }

    /// Writes the record of an image whose layers are in their places. Blocks.
    fn commit(&self, parts: Parts) -> Result<Image, Error> {
        let mut state = self.state();
        let mut record = state.images.get(&parts.id).cloned().unwrap_or_else(|| Record {
            format: FORMAT,
            id: parts.id.clone(),
            tags: BTreeSet::new(),
            digests: BTreeSet::new(),
            size_bytes: parts.size_bytes,
            layers: parts.layers.clone(),
            config: parts.config.clone(),
        });
        record.tags.extend(parts.tags.iter().cloned());
        record.digests.extend(parts.digests.iter().cloned());
        self.write(&record)?;
        let image = record.image();
        state.images.insert(parts.id.clone(), record);
        // A tag names one image; the older one that had it may have lost its last name.
        let older: Vec<Record> =
            state.images.values().filter(|r| r.id != parts.id && !r.tags.is_disjoint(&parts.tags)).cloned().collect();
        for mut other in older {
            other.tags = other.tags.difference(&parts.tags).cloned().collect();
            self.write(&other)?;
            state.images.insert(other.id.clone(), other);
        }
        Ok(image)
    }

    fn write(&self, record: &Record) -> Result<(), Error> {
        let write = || {
            let text = serde_json::to_vec(record).map_err(io::Error::other)?;
            RealDisk.replace(&self.record_path(&record.id), &text)
        };
        write().map_err(|error| Error::System(format!("write the image's record: {error}")))
    }

    /// Removes the image when it has no name and no container, and the layers that only it had.
    fn collect(&self, id: &str) -> Result<(), Error> {
        let failed = |error: io::Error| Error::System(format!("remove image {id}: {error}"));
        let mut state = self.state();
        let needed = state.images.get(id).is_none_or(|record| !record.tags.is_empty() || !record.digests.is_empty())
            || state.held.values().any(|held| held == id);
        if needed {
            return Ok(());
        }
        // The record first: a layer without an image is swept, an image without a layer would not start.
        match RealDisk.remove(&self.record_path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => drop(state.images.remove(id)),
        }
        self.sweep_layers(&state).map_err(failed)
    }

    /// Removes the layers nothing needs.
    fn sweep_layers(&self, state: &State) -> io::Result<()> {
        let recorded = state.images.values().flat_map(|record| &record.layers);
        let needed: BTreeSet<&str> = recorded.chain(state.arriving.keys()).map(|digest| layer_name(digest)).collect();
        for entry in std::fs::read_dir(&self.0.layers)?.flatten() {
            if entry.file_name().to_str().is_none_or(|name| !needed.contains(name)) {
                // Moved first: a layer that is half removed must not look whole.
                let partial = self.partial();
                std::fs::rename(entry.path(), &partial)?;
                std::fs::remove_dir_all(&partial)?;
            }
        }
        Ok(())
    }

    fn forget_name(&self, reference: &str) -> Result<(), Error> {
        let Some(id) = self.state().find(reference)?.map(|record| record.id.clone()) else { return Ok(()) };
        {
            let mut state = self.state();
            let Some(record) = state.images.get_mut(&id) else { return Ok(()) };
            let tag = Reference::parse(reference).ok().filter(|parsed| parsed.digest.is_none());
            match tag.and_then(|parsed| parsed.tagged()).filter(|tag| record.tags.contains(tag)) {
                // Other tags keep the content; without one, digests alone do not.
                Some(tag) if record.tags.len() > 1 => drop(record.tags.remove(&tag)),
                _ => {
                    record.tags.clear();
                    record.digests.clear();
                }
            }
            let record = record.clone();
            self.write(&record)?;
        }
        self.collect(&id)
    }
}

/// What an image is put together from.
struct Parts {
    id: String,
    tags: BTreeSet<String>,
    digests: BTreeSet<String>,
    size_bytes: u64,
    layers: Vec<String>,
    config: ImageConfig,
}

struct Arriving<'a> {
    store: &'a Store,
    digests: Vec<String>,
}

impl Drop for Arriving<'_> {
    fn drop(&mut self) {
        let mut state = self.store.state();
        for digest in &self.digests {
            if let Some(count) = state.arriving.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    state.arriving.remove(digest);
                }
            }
        }
    }
}

impl State {
    fn find(&self, reference: &str) -> Result<Option<&Record>, Error> {
        let hex = reference.strip_prefix("sha256:").unwrap_or(reference);
        if is_sha256(hex) {
            return Ok(self.images.get(&format!("sha256:{hex}")));
        }
        let reference = Reference::parse(reference)?;
        Ok(self.images.values().find(|record| match &reference.digest {
            Some(digest) => record.digests.contains(&reference.with_digest(digest)),
            None => reference.tagged().is_some_and(|tagged| record.tags.contains(&tagged)),
        }))
    }
}

impl Record {
    fn image(&self) -> Image {
        Image {
            id: self.id.clone(),
            tags: self.tags.iter().cloned().collect(),
            digests: self.digests.iter().cloned().collect(),
            size_bytes: self.size_bytes,
            config: self.config.clone(),
        }
    }
}

#[async_trait]
impl Images for Store {
    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<Image, Error> {
        pull::pull(self, &self.0.transport, &Reference::parse(reference)?, auth).await
    }

    async fn get(&self, reference: &str) -> Result<Option<Image>, Error> {
        self.find(reference)
    }

    async fn list(&self) -> Result<Vec<Image>, Error> {
        Ok(self.state().images.values().map(Record::image).collect())
    }

    async fn remove(&self, reference: &str) -> Result<(), Error> {
        let (store, reference) = (self.clone(), reference.to_owned());
        blocking(move || store.forget_name(&reference)).await
    }

    async fn load(&self, archive: &mut (dyn io::Read + Send)) -> Result<Vec<Image>, Error> {
        // The reader is the caller's and cannot go to another thread; what it gives can.
        let spool = archive::Spool::read(archive, &self.partial())?;
        let store = self.clone();
        blocking(move || archive::load(&store, &spool)).await
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    task::spawn_blocking(work).await.map_err(|error| Error::System(error.to_string()))?
}

fn layer_name(digest: &str) -> &str {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.get(..LAYER_NAME_DIGITS).unwrap_or(hex)
}

fn sync_filesystem(directory: &Path) -> io::Result<()> {
    Ok(nix::unistd::syncfs(std::fs::File::open(directory)?)?)
}

/// `sha256:…` of bytes.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hex(hash: &[u8]) -> String {
    let digits: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{digits}")
}
