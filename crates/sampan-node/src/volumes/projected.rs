//! `projected`: several sources in one directory.

use k8s_openapi::api::core::v1::{Pod, ProjectedVolumeSource};

use super::token::Tokens;
use super::{Error, File, Payload, config_map, downward, fs_group, mode, secret};
use crate::downward::Surroundings;
use crate::objects::Objects;
use crate::pod::PodExt;

pub async fn payload(
    objects: &Objects,
    tokens: &Tokens,
    pod: &Pod,
    source: &ProjectedVolumeSource,
    around: &Surroundings,
) -> Result<Payload, Error> {
    let mode = mode(source.default_mode);
    let mut payload = Payload::new();
    for source in source.sources.iter().flatten() {
        if let Some(one) = &source.config_map {
            let optional = one.optional == Some(true);
            payload.extend(config_map::files(objects, pod, &one.name, one.items.as_ref(), optional, mode).await?);
        } else if let Some(one) = &source.secret {
            let optional = one.optional == Some(true);
            payload.extend(secret::files(objects, pod, &one.name, one.items.as_ref(), optional, mode).await?);
        } else if let Some(one) = &source.downward_api {
            payload.extend(downward::files(pod, one.items.as_deref().unwrap_or_default(), mode, around)?);
        } else if let Some(one) = &source.service_account_token {
            let token = tokens.get(pod, one).await?;
            payload.insert(one.path.clone(), token_file(pod, token, mode));
        } else {
            return Err(Error::Unsupported("projected clusterTrustBundle or podCertificate"));
        }
    }
    Ok(payload)
}

/// A token is readable by its pod only: by the user all its containers run as, else through the pod's group
/// (upstream's `pkg/volume/projected/projected.go`).
fn token_file(pod: &Pod, token: String, mode: u32) -> File {
    let of_pod = pod.spec_ref().security_context.as_ref().and_then(|context| context.run_as_user);
    let mut users = pod
        .all_containers()
        .map(|container| container.security_context.as_ref().and_then(|context| context.run_as_user).or(of_pod));
    let first = users.next().flatten();
    let shared = first.filter(|first| users.all(|user| user == Some(*first)));
    let user = shared.and_then(|user| u32::try_from(user).ok());
    let mode = match (fs_group(pod), user) {
        (Some(_), _) | (None, Some(_)) => 0o600,
        (None, None) => mode,
    };
    File { data: token.into_bytes(), mode, user: if fs_group(pod).is_some() { None } else { user } }
}
