//! Pulling: from a name to an image that is here. Layers come in parallel, each checked before it is unpacked, and a layer
//! another image has is not fetched at all.

use std::collections::BTreeSet;
use std::path::PathBuf;

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use serde::de::DeserializeOwned;

use super::model::{ConfigFile, Descriptor, Manifest};
use super::registry::{self, Repository};
use super::transport::Transport;
use super::{Parts, Store, blocking, unpack};
use crate::reference::{Reference, is_digest};
use crate::{Error, Image, ImageErrorKind, RegistryAuth};

/// Layers of one image fetched at a time, as containerd and Docker do.
const LAYERS_AT_ONCE: usize = 3;

pub(super) async fn pull(
    store: &Store,
    transport: &Transport,
    reference: &Reference,
    auth: Option<&RegistryAuth>,
) -> Result<Image, Error> {
    let mut result = Err(failure(reference, ImageErrorKind::Unreachable, "no place to pull from"));
    for base in registry::bases(transport, &reference.registry) {
        // A mirror that fails in whatever way is not the last word; the registry itself comes last.
        result = pull_from(store, &Repository::new(transport, reference, base, auth), reference).await;
        match &result {
            Ok(_) | Err(Error::System(_)) => break,
            Err(error) => tracing::debug!(%reference, %error, "pull failed"),
        }
    }
    result
}

fn failure(reference: &Reference, kind: ImageErrorKind, message: impl Into<String>) -> Error {
    Error::Image { reference: reference.to_string(), kind, message: message.into() }
}

fn document<T: DeserializeOwned>(reference: &Reference, bytes: &[u8]) -> Result<T, Error> {
    let wrong = |error| failure(reference, ImageErrorKind::Corrupt, format!("not a document of an image: {error}"));
    serde_json::from_slice(bytes).map_err(wrong)
}

async fn pull_from(store: &Store, repository: &Repository<'_>, reference: &Reference) -> Result<Image, Error> {
    let corrupt = |message: &str| failure(reference, ImageErrorKind::Corrupt, message);
    let which = reference.digest.as_deref().or(reference.tag.as_deref()).unwrap_or("latest");
    let (digest, bytes) = repository.manifest(which).await?;
    let mut manifest: Manifest = document(reference, &bytes)?;
    if manifest.config.is_none() && !manifest.manifests.is_empty() {
        let own = manifest.for_this_machine().ok_or_else(|| {
            let message = format!("the image is not made for linux on {}", std::env::consts::ARCH);
            failure(reference, ImageErrorKind::NotFound, message)
        })?;
        manifest = document(reference, &repository.manifest(&own.digest.clone()).await?.1)?;
    }
    let config = manifest.config.as_ref().ok_or_else(|| corrupt("the manifest names no configuration"))?;
    if !manifest.layers.iter().chain([config]).all(|descriptor| is_digest(&descriptor.digest)) {
        return Err(corrupt("the manifest has a digest that is not SHA-256"));
    }
    let config_bytes = repository.small_blob(&config.digest).await?;
    let parsed: ConfigFile = document(reference, &config_bytes)?;
    let diff_ids = parsed.rootfs.diff_ids;
    if diff_ids.len() != manifest.layers.len() || !diff_ids.iter().all(|digest| is_digest(digest)) {
        return Err(corrupt("its layers and its configuration do not fit together"));
    }
    let _arriving = store.expect_layers(&diff_ids);
    let mut seen = BTreeSet::new();
    let wanted = manifest.layers.iter().zip(&diff_ids).filter(|(_, diff_id)| seen.insert(diff_id.as_str()));
    let mut fetches = Vec::new();
    for (layer, diff_id) in wanted {
        fetches.push(fetch(store, repository, reference, layer, diff_id).boxed());
    }
    futures::stream::iter(fetches)
        .buffer_unordered(LAYERS_AT_ONCE)
        .try_for_each(|()| std::future::ready(Ok(())))
        .await?;
    let parts = Parts {
        id: config.digest.clone(),
        tags: reference.tagged().into_iter().collect(),
        digests: BTreeSet::from([reference.with_digest(&digest)]),
        size_bytes: config.size + manifest.layers.iter().map(|layer| layer.size).sum::<u64>(),
        layers: diff_ids,
        config: parsed.config.unwrap_or_default().into(),
    };
    let store = store.clone();
    blocking(move || store.commit(parts)).await
}

/// Fetches and unpacks one layer, unless it is here already.
async fn fetch(
    store: &Store,
    repository: &Repository<'_>,
    reference: &Reference,
    layer: &Descriptor,
    diff_id: &str,
) -> Result<(), Error> {
    // Another pull of the same layer goes first, and then it is here.
    let turn = store.turn(diff_id);
    let _turn = turn.lock().await;
    if store.has_layer(diff_id) {
        return Ok(());
    }
    let (blob, directory) = (Removed(store.partial()), store.partial());
    repository.blob(&layer.digest, layer.size, &blob.0).await?;
    let (store, expected, reference) = (store.clone(), diff_id.to_owned(), reference.clone());
    let work = move || {
        let corrupt = |message: String| failure(&reference, ImageErrorKind::Corrupt, message);
        let file = std::fs::File::open(&blob.0);
        let file = file.map_err(|error| Error::System(format!("read {}: {error}", blob.0.display())))?;
        let unpacked = unpack::layer(std::io::BufReader::with_capacity(1 << 16, file), &directory);
        let placed = match unpacked {
            Ok((found, _)) if found == expected => store.place(&expected, &directory),
            Ok((found, _)) => Err(corrupt(format!("the layer unpacks to {found} and not to {expected}"))),
            Err(error) => Err(corrupt(format!("a layer cannot be unpacked: {error}"))),
        };
        if placed.is_err() {
            let _ = std::fs::remove_dir_all(&directory);
        }
        placed
    };
    blocking(work).await
}

/// A file that goes with its owner.
struct Removed(PathBuf);

impl Drop for Removed {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
