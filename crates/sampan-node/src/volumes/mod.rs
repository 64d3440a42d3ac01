//! A pod's volumes: one file per source, and the directory each becomes on this machine.
//!
//! Sources whose content is text (ConfigMap, Secret, downward API, projected) are pure functions to a [`Payload`], which
//! [`atomic`] writes so that readers see the old or the new content, never a mix. Setting up is idempotent: it runs again
//! at every start of the agent and at every change of a referenced object.
//!
//! Not here: CSI and network storage. A pod that wants those stays in `ContainerCreating` with a `FailedMount` event.

mod atomic;
mod claim;
mod config_map;
mod downward;
mod empty_dir;
mod host_path;
mod ownership;
mod projected;
mod secret;
pub mod subpath;
mod token;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{KeyToPath, Pod, Volume};
use sampan_base::{Clock, Dice, task};
use sampan_client::Client;

pub use self::atomic::{File, Payload};
use self::token::Tokens;
use crate::downward::Surroundings;
use crate::objects::{Missing, Objects};
use crate::pod::PodExt;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Missing(#[from] Missing),
    #[error("references non-existent {kind} key: {key}")]
    Key { kind: &'static str, key: String },
    #[error(transparent)]
    Downward(#[from] crate::downward::Error),
    #[error("cannot get a token of service account {account:?}: {source}")]
    Token { account: String, source: sampan_client::Error },
    #[error("cannot read persistent volume {name:?}: {source}")]
    PersistentVolume { name: String, source: sampan_client::Error },
    #[error("persistentvolumeclaim {0:?} is not bound yet")]
    Unbound(String),
    #[error("{step} {path:?}: {source}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("hostPath type check failed: {path:?} is not {wanted}")]
    HostPath { path: PathBuf, wanted: &'static str },
    #[error("volumes of type {0} are not supported by this node")]
    Unsupported(&'static str),
    #[error("path {0:?} leads out of the volume")]
    Escapes(String),
}

impl Error {
    fn io(step: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { step, path: path.into(), source }
    }

    /// The API could not be asked: what is on the disk is as good as can be had.
    fn is_outage(&self) -> bool {
        matches!(
            self,
            Self::Missing(Missing::NotYet { .. })
                | Self::Token { source: sampan_client::Error::Transport(_), .. }
                | Self::PersistentVolume { source: sampan_client::Error::Transport(_), .. }
        )
    }
}

/// A volume that could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume {volume:?} : {source}")]
pub struct SetUpError {
    pub volume: String,
    pub source: Error,
}

/// Where a container finds its volumes on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mounted {
    pub paths: BTreeMap<String, PathBuf>,
    /// When a token has to be renewed.
    pub refresh_at: Option<Timestamp>,
}

/// Sets volumes up and takes them down.
pub struct Volumes {
    root: PathBuf,
    tmpfs: bool,
    objects: Objects,
    client: Client,
    tokens: Tokens,
    clock: Clock,
    dice: Dice,
}

/// `ROOT/pods/UID`
pub fn pod_directory(root: &Path, uid: &str) -> PathBuf {
    root.join("pods").join(uid)
}

impl Volumes {
    pub fn new(root: PathBuf, tmpfs: bool, objects: Objects, client: Client, clock: Clock, dice: Dice) -> Self {
        let tokens = Tokens::new(client.clone(), clock.clone());
        Self { root, tmpfs, objects, client, tokens, clock, dice }
    }

    /// Sets all volumes up, or brings them up to date.
    pub async fn prepare(&self, pod: &Pod, around: &Surroundings) -> Result<Mounted, SetUpError> {
        let volumes = pod.spec_ref().volumes.as_deref().unwrap_or_default();
        let done = join_all(volumes.iter().map(|volume| async move {
            let path = self.set_up(pod, volume, around).await;
            path.map(|path| (volume.name.clone(), path))
                .map_err(|source| SetUpError { volume: volume.name.clone(), source })
        }))
        .await;
        let paths = done.into_iter().collect::<Result<BTreeMap<_, _>, _>>()?;
        Ok(Mounted { paths, refresh_at: self.tokens.refresh_at(pod.uid()) })
    }

    async fn set_up(&self, pod: &Pod, volume: &Volume, around: &Surroundings) -> Result<PathBuf, Error> {
        let at = |plugin: &str| {
            pod_directory(&self.root, pod.uid())
                .join("volumes")
                .join(format!("kubernetes.io~{plugin}"))
                .join(&volume.name)
        };
        if let Some(source) = &volume.empty_dir {
            let path = at("empty-dir");
            empty_dir::set_up(&path, source, self.tmpfs, fs_group(pod)).await?;
            return Ok(path);
        }
        if let Some(source) = &volume.host_path {
            host_path::set_up(source).await?;
            return Ok(PathBuf::from(&source.path));
        }
        if let Some(source) = &volume.persistent_volume_claim {
            return claim::set_up(&self.objects, &self.client, pod, &source.claim_name).await;
        }
        if volume.ephemeral.is_some() {
            let name = format!("{}-{}", pod.name(), volume.name);
            return claim::set_up(&self.objects, &self.client, pod, &name).await;
        }
        let (path, payload, in_memory) = if let Some(source) = &volume.config_map {
            (at("configmap"), config_map::payload(&self.objects, pod, source).await, false)
        } else if let Some(source) = &volume.secret {
            (at("secret"), secret::payload(&self.objects, pod, source).await, true)
        } else if let Some(source) = &volume.downward_api {
            (at("downward-api"), downward::payload(pod, source, around), true)
        } else if let Some(source) = &volume.projected {
            let payload = projected::payload(&self.objects, &self.tokens, pod, source, around).await;
            (at("projected"), payload, true)
        } else {
            return Err(Error::Unsupported(unsupported(volume)));
        };
        let payload = match payload {
            Err(error) if error.is_outage() && atomic::is_written(&path) => {
                tracing::warn!(pod = pod.full_name(), volume = volume.name, %error, "keeps what it has");
                return Ok(path);
            }
            other => other?,
        };
        let tmpfs = in_memory && self.tmpfs;
        let (group, stamp) = (fs_group(pod), self.stamp());
        let target = path.clone();
        blocking(move || {
            std::fs::create_dir_all(&target).map_err(Error::io("cannot create", &target))?;
            if tmpfs {
                empty_dir::mount_tmpfs(&target, None)?;
            }
            atomic::write(&target, &payload, &stamp, group)
        })
        .await?;
        Ok(path)
    }

    /// `2030_01_02_03_04_05.SUFFIX`, as upstream names the directories behind `..data`.
    fn stamp(&self) -> String {
        format!("{}.{}", self.clock.now().strftime("%Y_%m_%d_%H_%M_%S"), self.dice.suffix(10))
    }

    /// Unmounts what was mounted for the pod and removes what it alone had: its `emptyDir`s and written volumes.
    pub async fn release(&self, uid: &str) -> Result<(), Error> {
        self.tokens.forget(uid);
        let directory = pod_directory(&self.root, uid).join("volumes");
        let tmpfs = self.tmpfs;
        blocking(move || remove_tree(&directory, tmpfs)).await
    }

    /// Removes the pod's directory.
    pub async fn remove(&self, uid: &str) -> Result<(), Error> {
        let directory = pod_directory(&self.root, uid);
        let tmpfs = self.tmpfs;
        blocking(move || remove_tree(&directory, tmpfs)).await
    }
}

/// Unmounts everything below a directory, then removes it. Never crosses into a mount that stays.
fn remove_tree(directory: &Path, tmpfs: bool) -> Result<(), Error> {
    if tmpfs {
        for mount in empty_dir::mounts_below(directory)?.into_iter().rev() {
            nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH)
                .map_err(io::Error::from)
                .map_err(Error::io("cannot unmount", &mount))?;
        }
    }
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(Error::io("cannot remove", directory)),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    match task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Io { step: "volume work", path: PathBuf::new(), source: io::Error::other(error) }),
    }
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let group = pod.spec_ref().security_context.as_ref()?.fs_group?;
    u32::try_from(group).ok()
}

/// Picks keys of a map: all of them, or `items` under their paths. A key that is missing is an error unless `optional`.
fn select(
    kind: &'static str,
    data: &BTreeMap<&str, &[u8]>,
    items: Option<&Vec<KeyToPath>>,
    optional: bool,
    mode: u32,
) -> Result<Payload, Error> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(data.iter().map(|(key, value)| ((*key).to_owned(), File::new(value.to_vec(), mode))).collect());
    };
    let mut payload = Payload::new();
    for item in items {
        match data.get(item.key.as_str()) {
            Some(value) => {
                let mode = item.mode.map_or(mode, |mode| mode.unsigned_abs());
                payload.insert(item.path.clone(), File::new(value.to_vec(), mode));
            }
            None if optional => {}
            None => return Err(Error::Key { kind, key: item.key.clone() }),
        }
    }
    Ok(payload)
}

/// Upstream's default for files of these volumes.
fn mode(default_mode: Option<i32>) -> u32 {
    default_mode.map_or(0o644, i32::unsigned_abs)
}

fn unsupported(volume: &Volume) -> &'static str {
    match volume {
        Volume { csi: Some(_), .. } => "csi",
        Volume { nfs: Some(_), .. } => "nfs",
        Volume { iscsi: Some(_), .. } => "iscsi",
        Volume { image: Some(_), .. } => "image",
        Volume { fc: Some(_), .. } => "fc",
        Volume { flex_volume: Some(_), .. } => "flexVolume",
        Volume { git_repo: Some(_), .. } => "gitRepo",
        _ => "this kind",
    }
}

#[cfg(test)]
mod tests;
