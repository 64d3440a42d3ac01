//! Which image a container starts from: pull policy, credentials of the pod's pull secrets, and the words of upstream's
//! `pkg/kubelet/images/image_manager.go`. Back-off is the lifecycle's.

use std::collections::BTreeMap;

use base64::Engine as _;
use k8s_openapi::api::core::v1::{Container, Pod};
use sampan_base::Clock;
use sampan_runtime::reference::Reference;
use sampan_runtime::{Error, Image, ImageErrorKind, Images, RegistryAuth};
use serde::Deserialize;

use crate::events::PodEvents;
use crate::objects::Objects;
use crate::pod::PodExt;
use crate::pod::state::Trouble;

/// Makes sure the container's image is here. Returns its id.
pub async fn ensure(
    images: &dyn Images,
    objects: &Objects,
    clock: &Clock,
    events: &PodEvents,
    pod: &Pod,
    container: &Container,
) -> Result<String, Trouble> {
    let name = container.image.as_deref().unwrap_or_default();
    let trouble = |reason: &'static str, message: String| Trouble { reason, message };
    if let Err(error) = Reference::parse(name) {
        let message =
            format!("Failed to apply default image tag {name:?}: couldn't parse image name {name:?}: {error}");
        events.warning(Some(container), "InspectFailed", &message);
        return Err(trouble("InvalidImageName", message));
    }
    let present = images.get(name).await.map_err(|error| {
        let message = format!("Failed to inspect image {name:?}: {error}");
        events.warning(Some(container), "InspectFailed", &message);
        trouble("ImageInspectError", message)
    })?;
    match (policy(container, name), present) {
        ("Never", None) => {
            let message = format!("Container image {name:?} is not present with pull policy of Never");
            events.warning(Some(container), "ErrImageNeverPull", &message);
            return Err(trouble("ErrImageNeverPull", message));
        }
        ("Never" | "IfNotPresent", Some(image)) => {
            let message = format!("Container image {name:?} already present on machine and can be accessed by the pod");
            events.normal(Some(container), "Pulled", &message);
            return Ok(image.id);
        }
        _ => {}
    }
    events.normal(Some(container), "Pulling", &format!("Pulling image {name:?}"));
    let started = clock.instant();
    let credentials = credentials(objects, pod, name).await;
    match pull(images, name, &credentials).await {
        Ok(image) => {
            let took = started.elapsed();
            let size = image.size_bytes;
            let message = format!(
                "Successfully pulled image {name:?} in {took:.3?} ({took:.3?} including waiting). Image size: {size} bytes."
            );
            events.normal(Some(container), "Pulled", &message);
            Ok(image.id)
        }
        Err(error) => {
            let message = format!("Failed to pull image {name:?}: {error}");
            events.warning(Some(container), "Failed", &message);
            events.warning(Some(container), "Failed", "Error: ErrImagePull");
            let reason = match &error {
                Error::Image { kind: ImageErrorKind::InvalidName, .. } => "InvalidImageName",
                _ => "ErrImagePull",
            };
            Err(trouble(reason, error.to_string()))
        }
    }
}

/// With every credential in turn while the registry refuses; without any when there are none.
async fn pull(images: &dyn Images, name: &str, credentials: &[RegistryAuth]) -> Result<Image, Error> {
    let mut last = None;
    for auth in credentials {
        match images.pull(name, Some(auth)).await {
            Err(error @ Error::Image { kind: ImageErrorKind::Unauthorized | ImageErrorKind::NotFound, .. }) => {
                last = Some(error);
            }
            other => return other,
        }
    }
    match last {
        Some(error) => Err(error),
        None => images.pull(name, None).await,
    }
}

/// The declared policy, else `Always` for a `latest` tag and `IfNotPresent` otherwise.
fn policy<'a>(container: &'a Container, name: &str) -> &'a str {
    match container.image_pull_policy.as_deref() {
        Some(policy @ ("Always" | "Never" | "IfNotPresent")) => policy,
        _ => {
            let tagged = name.rsplit('/').next().is_some_and(|last| last.contains(':') || last.contains('@'));
            if tagged && !name.ends_with(":latest") { "IfNotPresent" } else { "Always" }
        }
    }
}

#[derive(Deserialize)]
struct DockerConfigJson {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Auth {
    username: String,
    password: String,
    auth: String,
    identitytoken: String,
}

impl Auth {
    fn into_registry(self) -> RegistryAuth {
        let (mut username, mut password) = (self.username, self.password);
        if username.is_empty()
            && let Ok(decoded) = base64::engine::general_purpose::STANDARD.decode(self.auth.trim())
            && let Some((user, secret)) = String::from_utf8_lossy(&decoded).split_once(':')
        {
            (username, password) = (user.to_owned(), secret.to_owned());
        }
        RegistryAuth { username, password, identity_token: self.identitytoken }
    }
}

/// The credentials of the pod's pull secrets that match this image, the most specific first. A secret that is missing or
/// unreadable is passed over, as upstream does: the pull may work without it.
async fn credentials(objects: &Objects, pod: &Pod, image: &str) -> Vec<RegistryAuth> {
    let mut found: Vec<(usize, RegistryAuth)> = Vec::new();
    for reference in pod.spec_ref().image_pull_secrets.iter().flatten() {
        let Ok(secret) = objects.secret(pod.namespace(), &reference.name).await else {
            tracing::warn!(pod = pod.full_name(), secret = reference.name, "cannot read an image pull secret");
            continue;
        };
        let data = secret.data.as_ref();
        let auths = if let Some(bytes) = data.and_then(|data| data.get(".dockerconfigjson")) {
            serde_json::from_slice::<DockerConfigJson>(&bytes.0).map(|config| config.auths)
        } else if let Some(bytes) = data.and_then(|data| data.get(".dockercfg")) {
            serde_json::from_slice(&bytes.0)
        } else {
            continue;
        };
        match auths {
            Ok(auths) => found.extend(
                auths
                    .into_iter()
                    .filter(|(pattern, _)| matches(pattern, image))
                    .map(|(pattern, auth)| (pattern.len(), auth.into_registry())),
            ),
            Err(error) => {
                tracing::warn!(pod = pod.full_name(), secret = reference.name, %error, "unreadable pull secret")
            }
        }
    }
    found.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
    found.into_iter().map(|(_, auth)| auth).collect()
}

/// Whether a key of a docker configuration (`https://index.docker.io/v1/`, `*.example.com`, `host:5000/team`) covers an
/// image.
fn matches(pattern: &str, image: &str) -> bool {
    let pattern = pattern.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let (host, path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let path = if matches!(path, "v1" | "v2") { "" } else { path };
    let (first, rest) = image.split_once('/').unwrap_or(("", image));
    let has_host = first.contains(['.', ':']) || first == "localhost";
    let (image_host, image_path) = if has_host { (first, rest) } else { ("docker.io", image) };
    let docker = |host: &str| matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let same_host = (docker(host) && docker(image_host)) || {
        let (wanted, given): (Vec<&str>, Vec<&str>) = (host.split('.').collect(), image_host.split('.').collect());
        wanted.len() == given.len() && wanted.iter().zip(&given).all(|(wanted, given)| part_matches(wanted, given))
    };
    same_host && (path.is_empty() || image_path == path || image_path.starts_with(&format!("{path}/")))
}

fn part_matches(wanted: &str, given: &str) -> bool {
    match wanted.split_once('*') {
        None => wanted == given,
        Some((before, behind)) => {
            given.len() >= before.len() + behind.len() && given.starts_with(before) && given.ends_with(behind)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_match_by_host_and_path() {
        for (pattern, image, expected) in [
            ("https://index.docker.io/v1/", "nginx", true),
            ("https://index.docker.io/v1/", "docker.io/library/nginx", true),
            ("localhost:5000", "localhost:5000/a/b:1", true),
            ("localhost:5000", "localhost:5001/a", false),
            ("*.example.com", "r.example.com/a", true),
            ("*.example.com", "a.b.example.com/a", false),
            ("r.io/team", "r.io/team/app", true),
            ("r.io/team", "r.io/teamster/app", false),
        ] {
            assert_eq!(matches(pattern, image), expected, "{pattern} {image}");
        }
    }

    #[test]
    fn the_default_policy_depends_on_the_tag() {
        let container = Container::default();
        for (name, expected) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.27", "IfNotPresent"),
            ("localhost:5000/nginx", "Always"),
            ("nginx@sha256:00", "IfNotPresent"),
        ] {
            assert_eq!(policy(&container, name), expected, "{name}");
        }
    }
}
