//! The documents of the OCI image specification and of Docker's schema 2, as far as they matter here. Docker's have the
//! same fields.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::ImageConfig;

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Descriptor {
    pub digest: String,
    pub size: u64,
    #[serde(default)]
    pub platform: Option<Platform>,
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Platform {
    pub architecture: String,
    pub os: String,
    #[serde(default)]
    pub variant: String,
}

/// An image manifest or an index of them; which one is told by the fields it has.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    #[serde(default)]
    pub config: Option<Descriptor>,
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
}

/// The configuration blob.
#[derive(Debug, Deserialize)]
pub(super) struct ConfigFile {
    pub rootfs: RootFs,
    #[serde(default)]
    pub config: Option<RunConfig>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RootFs {
    #[serde(default)]
    pub diff_ids: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct RunConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    stop_signal: Option<String>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
}

impl From<RunConfig> for ImageConfig {
    fn from(config: RunConfig) -> Self {
        Self {
            user: config.user.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
            stop_signal: config.stop_signal.filter(|signal| !signal.is_empty()),
            volumes: config.volumes.unwrap_or_default().into_keys().collect(),
            exposed_ports: config.exposed_ports.unwrap_or_default().into_keys().collect(),
            labels: config.labels.unwrap_or_default(),
        }
    }
}

/// `manifest.json` of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct SavedImage {
    pub config: String,
    #[serde(default)]
    pub repo_tags: Option<Vec<String>>,
    pub layers: Vec<String>,
}

impl Manifest {
    /// The manifest of an index for a machine of this kind.
    pub(super) fn for_this_machine(&self) -> Option<&Descriptor> {
        let (architecture, variant) = match std::env::consts::ARCH {
            "x86_64" => ("amd64", ""),
            "aarch64" => ("arm64", "v8"),
            other => (other, ""),
        };
        let fits = |platform: &&Platform| platform.os == "linux" && platform.architecture == architecture;
        let mut fitting: Vec<&Descriptor> =
            self.manifests.iter().filter(|m| m.platform.as_ref().filter(fits).is_some()).collect();
        // The exact variant first, then one without, then whatever fits.
        fitting.sort_by_key(|m| {
            let given = m.platform.as_ref().map_or("", |platform| platform.variant.as_str());
            if given == variant {
                0
            } else if given.is_empty() {
                1
            } else {
                2
            }
        });
        fitting.first().copied()
    }
}
