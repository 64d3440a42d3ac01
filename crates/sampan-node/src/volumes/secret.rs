//! `secret`: keys of a Secret as files, in memory.

use k8s_openapi::api::core::v1::{KeyToPath, Pod, SecretVolumeSource};

use super::{Error, Payload, mode, select};
use crate::objects::{Missing, Objects};
use crate::pod::PodExt;

pub async fn payload(objects: &Objects, pod: &Pod, source: &SecretVolumeSource) -> Result<Payload, Error> {
    let name = source.secret_name.as_deref().unwrap_or_default();
    let optional = source.optional == Some(true);
    files(objects, pod, name, source.items.as_ref(), optional, mode(source.default_mode)).await
}

pub async fn files(
    objects: &Objects,
    pod: &Pod,
    name: &str,
    items: Option<&Vec<KeyToPath>>,
    optional: bool,
    mode: u32,
) -> Result<Payload, Error> {
    match objects.secret(pod.namespace(), name).await {
        Ok(secret) => {
            let data = secret.data.iter().flatten().map(|(key, value)| (key.as_str(), value.0.as_slice())).collect();
            select("secret", &data, items, optional, mode)
        }
        Err(Missing::Absent { .. }) if optional => Ok(Payload::new()),
        Err(missing) => Err(missing.into()),
    }
}
