//! `docker save` and OCI layout archives, plain or compressed.
//!
//! The files of an archive may come in any order, so it is spooled to disk first and then read as a directory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

use super::model::{ConfigFile, Descriptor, Manifest, SavedImage};
use super::{Parts, Store, unpack};
use crate::reference::{Reference, is_digest};
use crate::{Error, Image, ImageErrorKind};

/// The files of an archive, by their names in it. Removed from disk when dropped.
pub(super) struct Spool {
    directory: PathBuf,
    files: BTreeMap<String, PathBuf>,
}

impl Spool {
    pub(super) fn read(archive: &mut (dyn Read + Send), directory: &Path) -> Result<Self, Error> {
        std::fs::create_dir_all(directory)
            .map_err(|error| Error::System(format!("make {}: {error}", directory.display())))?;
        let mut spool = Self { directory: directory.to_owned(), files: BTreeMap::new() };
        spool.fill(archive).map_err(|error| corrupt("archive", error))?;
        Ok(spool)
    }

    fn fill(&mut self, archive: &mut dyn Read) -> io::Result<()> {
        let mut archive = tar::Archive::new(unpack::decompress(archive)?);
        // Old archives have equal layers once and links to it.
        let mut links = Vec::new();
        for entry in archive.entries()? {
            let mut entry = entry?;
            let name = normal(&entry.path()?);
            match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    let path = self.directory.join(self.files.len().to_string());
                    io::copy(&mut entry, &mut File::create_new(&path)?)?;
                    self.files.insert(name, path);
                }
                kind @ (tar::EntryType::Symlink | tar::EntryType::Link) => {
                    let target = entry.link_name()?.map(|target| target.into_owned()).unwrap_or_default();
                    let base = Path::new(&name).parent().filter(|_| kind.is_symlink()).map(Path::to_owned);
                    links.push((name, normal(&base.unwrap_or_default().join(target))));
                }
                _ => {}
            }
        }
        for (name, target) in links {
            if let Some(path) = self.files.get(&target).cloned() {
                self.files.insert(name, path);
            }
        }
        Ok(())
    }

    fn open(&self, name: &str) -> Result<File, Error> {
        let path = self.files.get(&normal(Path::new(name)));
        let path = path.ok_or_else(|| corrupt(name, "the archive does not have it"))?;
        File::open(path).map_err(|error| Error::System(format!("read the spooled archive: {error}")))
    }

    fn bytes(&self, name: &str) -> Result<Vec<u8>, Error> {
        const DOCUMENT_BYTES_MAX: u64 = 16 << 20;
        let mut bytes = Vec::new();
        let mut file = self.open(name)?.take(DOCUMENT_BYTES_MAX);
        file.read_to_end(&mut bytes).map_err(|error| Error::System(format!("read the spooled archive: {error}")))?;
        Ok(bytes)
    }

    fn document<T: DeserializeOwned>(&self, name: &str) -> Result<T, Error> {
        serde_json::from_slice(&self.bytes(name)?).map_err(|error| corrupt(name, error))
    }

    /// A document of an OCI layout, checked against its digest.
    fn blob<T: DeserializeOwned>(&self, descriptor: &Descriptor) -> Result<T, Error> {
        let name = blob_name(&descriptor.digest)?;
        let bytes = self.bytes(&name)?;
        if super::digest(&bytes) != descriptor.digest {
            return Err(corrupt(&name, "its content does not have this digest"));
        }
        serde_json::from_slice(&bytes).map_err(|error| corrupt(&name, error))
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// `a/../b` and `./b` as `b`; what climbs out ends at the root.
fn normal(path: &Path) -> String {
    let mut parts: Vec<String> = Vec::new();
    for component in path.components() {
        match component {
            std::path::Component::Normal(name) => parts.push(name.to_string_lossy().into_owned()),
            std::path::Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    parts.join("/")
}

fn blob_name(digest: &str) -> Result<String, Error> {
    match is_digest(digest) {
        true => Ok(digest.replacen(':', "/", 1).replace("sha256/", "blobs/sha256/")),
        false => Err(corrupt(digest, "not a SHA-256 digest")),
    }
}

fn corrupt(what: &str, why: impl std::fmt::Display) -> Error {
    Error::Image {
        reference: what.to_owned(),
        kind: ImageErrorKind::Corrupt,
        message: format!("the image archive is damaged or of an unknown form: {why}"),
    }
}

/// One image of an archive.
struct Found {
    config: Vec<u8>,
    /// Names of layer files, with their digests where the archive tells them.
    layers: Vec<(String, Option<String>)>,
    tags: Vec<String>,
    /// Of the manifest.
    digest: Option<String>,
}

pub(super) fn load(store: &Store, spool: &Spool) -> Result<Vec<Image>, Error> {
    let found = if spool.files.contains_key("manifest.json") {
        saved(spool)?
    } else if spool.files.contains_key("index.json") {
        let index: Manifest = spool.document("index.json")?;
        layout(spool, &index)?
    } else {
        return Err(corrupt("archive", "it has neither manifest.json nor index.json"));
    };
    found.into_iter().map(|found| keep(store, spool, found)).collect()
}

fn saved(spool: &Spool) -> Result<Vec<Found>, Error> {
    let images: Vec<SavedImage> = spool.document("manifest.json")?;
    let found = images.into_iter().map(|image| {
        Ok(Found {
            config: spool.bytes(&image.config)?,
            layers: image.layers.into_iter().map(|name| (name, None)).collect(),
            tags: image.repo_tags.unwrap_or_default(),
            digest: None,
        })
    });
    found.collect()
}

fn layout(spool: &Spool, index: &Manifest) -> Result<Vec<Found>, Error> {
    let mut images = Vec::new();
    for listed in &index.manifests {
        let mut descriptor = listed.clone();
        let mut manifest: Manifest = spool.blob(&descriptor)?;
        // An index of the image's platforms, when it is there.
        if !manifest.manifests.is_empty() {
            let Some(own) = manifest.for_this_machine().cloned() else { continue };
            if !spool.files.contains_key(&blob_name(&own.digest)?) {
                continue;
            }
            manifest = spool.blob(&own)?;
            descriptor.digest = own.digest;
        }
        let Some(config) = &manifest.config else { continue };
        let layers = manifest.layers.iter().map(|layer| Ok((blob_name(&layer.digest)?, Some(layer.digest.clone()))));
        let annotation = |key: &str| listed.annotations.get(key).cloned();
        let name = annotation("io.containerd.image.name").or_else(|| annotation("org.opencontainers.image.ref.name"));
        let config_bytes = spool.bytes(&blob_name(&config.digest)?)?;
        if super::digest(&config_bytes) != config.digest {
            return Err(corrupt(&config.digest, "its content does not have this digest"));
        }
        images.push(Found {
            config: config_bytes,
            layers: layers.collect::<Result<_, Error>>()?,
            tags: name.into_iter().collect(),
            digest: Some(descriptor.digest),
        });
    }
    match images.is_empty() {
        true => Err(corrupt("index.json", "it has no image for this machine's architecture")),
        false => Ok(images),
    }
}

fn keep(store: &Store, spool: &Spool, found: Found) -> Result<Image, Error> {
    let id = super::digest(&found.config);
    let config: ConfigFile = serde_json::from_slice(&found.config).map_err(|error| corrupt("configuration", error))?;
    let diff_ids = config.rootfs.diff_ids;
    if diff_ids.len() != found.layers.len() || !diff_ids.iter().all(|digest| is_digest(digest)) {
        return Err(corrupt(&id, "its layers and its configuration do not fit together"));
    }
    let names = found.tags.iter().map(|tag| Reference::parse(tag)).collect::<Result<Vec<_>, _>>()?;
    let digests = names.iter().filter_map(|name| found.digest.as_ref().map(|digest| name.with_digest(digest)));
    let _arriving = store.expect_layers(&diff_ids);
    let mut size_bytes = found.config.len() as u64;
    for ((name, digest), diff_id) in found.layers.iter().zip(&diff_ids) {
        let file = spool.open(name)?;
        size_bytes += file.metadata().map_or(0, |metadata| metadata.len());
        if store.has_layer(diff_id) {
            continue;
        }
        let partial = store.partial();
        let mut blob = unpack::Hashing::new(io::BufReader::with_capacity(1 << 16, file));
        let unpacked = unpack::layer(&mut blob, &partial).and_then(|(plain, _)| {
            io::copy(&mut blob, &mut io::sink())?;
            Ok(plain)
        });
        let placed = match unpacked {
            Ok(plain) if plain == *diff_id && digest.as_ref().is_none_or(|digest| *digest == blob.digest()) => {
                store.place(diff_id, &partial)
            }
            Ok(_) => Err(corrupt(name, "its content does not have the digest the image tells")),
            Err(error) => Err(corrupt(name, error)),
        };
        if placed.is_err() {
            let _ = std::fs::remove_dir_all(&partial);
        }
        placed?;
    }
    let parts = Parts {
        id,
        tags: names.iter().filter_map(Reference::tagged).collect(),
        digests: digests.collect(),
        size_bytes,
        layers: diff_ids,
        config: config.config.unwrap_or_default().into(),
    };
    store.commit(parts)
}
