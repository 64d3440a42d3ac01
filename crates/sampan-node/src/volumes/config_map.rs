//! `configMap`: keys of a ConfigMap as files.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, ConfigMapVolumeSource, KeyToPath, Pod};

use super::{Error, Payload, mode, select};
use crate::objects::{Missing, Objects};
use crate::pod::PodExt;

pub async fn payload(objects: &Objects, pod: &Pod, source: &ConfigMapVolumeSource) -> Result<Payload, Error> {
    let optional = source.optional == Some(true);
    files(objects, pod, &source.name, source.items.as_ref(), optional, mode(source.default_mode)).await
}

pub async fn files(
    objects: &Objects,
    pod: &Pod,
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    optional: bool,
    mode: u32,
) -> Result<Payload, Error> {
    match objects.config_map(pod.namespace(), name).await {
        Ok(map) => select("config", &data(&map), items, optional, mode),
        Err(Missing::Absent { .. }) if optional => Ok(Payload::new()),
        Err(missing) => Err(missing.into()),
    }
}

fn data(map: &ConfigMap) -> BTreeMap<&str, &[u8]> {
    let text = map.data.iter().flatten().map(|(key, value)| (key.as_str(), value.as_bytes()));
    let binary = map.binary_data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice()));
    text.chain(binary).collect()
}
