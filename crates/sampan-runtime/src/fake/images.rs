//! The images of a pretended machine.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use sha2::{Digest as _, Sha256};

use super::{Fake, Operation};
use crate::reference::{Reference, is_sha256};
use crate::{Error, Image, ImageConfig, ImageErrorKind, Images, RegistryAuth};

#[derive(Default)]
pub(super) struct Store {
    /// What registries have, by normalised name.
    registry: BTreeMap<String, Remote>,
    /// What the machine has, by image id.
    local: BTreeMap<String, Image>,
}

#[derive(Clone)]
struct Remote {
    config: ImageConfig,
    takes: Duration,
    /// Who may pull it; `None`: everybody.
    auth: Option<RegistryAuth>,
}

impl Fake {
    /// Puts an image on the machine. Returns its id.
    pub fn add_image(&self, reference: &str, config: ImageConfig) -> Result<String, Error> {
        let reference = Reference::parse(reference)?;
        let image = image(&reference, &config);
        let id = image.id.clone();
        self.state().images.keep(image);
        Ok(id)
    }

    /// Puts an image into a registry: pulling it takes `takes` and, when `auth` is given, exactly that password.
    pub fn publish(
        &self,
        reference: &str,
        config: ImageConfig,
        takes: Duration,
        auth: Option<RegistryAuth>,
    ) -> Result<(), Error> {
        let name = Reference::parse(reference)?.to_string();
        self.state().images.registry.insert(name, Remote { config, takes, auth });
        Ok(())
    }
}

impl Store {
    pub(super) fn get(&self, reference: &str) -> Result<Option<&Image>, Error> {
        let hex = reference.strip_prefix("sha256:").unwrap_or(reference);
        if is_sha256(hex) {
            return Ok(self.local.get(&format!("sha256:{hex}")));
        }
        let reference = Reference::parse(reference)?;
        let named = |image: &&Image| match &reference.digest {
            Some(digest) => image.digests.contains(&reference.with_digest(digest)),
            None => reference.tagged().is_some_and(|tagged| image.tags.contains(&tagged)),
        };
        Ok(self.local.values().find(named))
    }

    /// A tag names one image: taking it over leaves the older image without it.
    fn keep(&mut self, image: Image) {
        for other in self.local.values_mut() {
            other.tags.retain(|tag| !image.tags.contains(tag));
        }
        match self.local.get_mut(&image.id) {
            Some(known) => {
                known.tags.extend(image.tags);
                known.digests.extend(image.digests);
                known.tags.sort();
                known.digests.sort();
                known.digests.dedup();
            }
            None => {
                self.local.insert(image.id.clone(), image);
            }
        }
    }
}

/// Content addressing without content: the configuration decides the id.
fn image(reference: &Reference, config: &ImageConfig) -> Image {
    let text = serde_json::to_vec(config).unwrap_or_default();
    let hash = |salt: &str| {
        let digest = Sha256::new().chain_update(salt).chain_update(&text).finalize();
        format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
    };
    Image {
        id: hash("config"),
        tags: reference.tagged().into_iter().collect(),
        digests: vec![reference.with_digest(&hash("manifest"))],
        size_bytes: 1 << 20,
        config: config.clone(),
    }
}

#[async_trait]
impl Images for Fake {
    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<Image, Error> {
        self.begin(Operation::Pull, reference)?;
        let parsed = Reference::parse(reference)?;
        let failure =
            |kind, message: &str| Error::Image { reference: reference.to_owned(), kind, message: message.to_owned() };
        let remote = self.state().images.registry.get(&parsed.to_string()).cloned();
        let remote = remote.ok_or_else(|| failure(ImageErrorKind::NotFound, "no such image in the registry"))?;
        if remote.auth.is_some() && remote.auth.as_ref() != auth {
            return Err(failure(ImageErrorKind::Unauthorized, "the registry wants a password"));
        }
        self.clock().sleep(remote.takes).await;
        let image = image(&parsed, &remote.config);
        let mut state = self.state();
        state.images.keep(image.clone());
        Ok(state.images.local.get(&image.id).cloned().unwrap_or(image))
    }

    async fn get(&self, reference: &str) -> Result<Option<Image>, Error> {
        Ok(self.state().images.get(reference)?.cloned())
    }

    async fn list(&self) -> Result<Vec<Image>, Error> {
        Ok(self.state().images.local.values().cloned().collect())
    }

    async fn remove(&self, reference: &str) -> Result<(), Error> {
        self.begin(Operation::RemoveImage, reference)?;
        let mut state = self.state();
        let Some(id) = state.images.get(reference)?.map(|image| image.id.clone()) else { return Ok(()) };
        let tag = Reference::parse(reference).ok().and_then(|parsed| parsed.tagged());
        let left = state.images.local.get_mut(&id).is_some_and(|image| match tag {
            Some(tag) if image.tags.contains(&tag) => {
                image.tags.retain(|other| *other != tag);
                !image.tags.is_empty()
            }
            _ => false,
        });
        if !left {
            state.images.local.remove(&id);
        }
        Ok(())
    }

    async fn load(&self, _archive: &mut (dyn std::io::Read + Send)) -> Result<Vec<Image>, Error> {
        Err(Error::Invalid("the pretended machine reads no archives; use Fake::add_image".to_owned()))
    }
}
