//! From security contexts to what the runtime applies.

use std::path::Path;

use k8s_openapi::api::core::v1::{Container, Pod, SeccompProfile};
use sampan_runtime::{ImageConfig, Seccomp, Security};

use crate::pod::PodExt;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    #[error("container's runAsUser breaks non-root policy (pod: {pod:?}, container: {container})")]
    RootAsked { pod: String, container: String },
    #[error("container has runAsNonRoot and image will run as root (pod: {pod:?}, container: {container})")]
    RootImage { pod: String, container: String },
    #[error(
        "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (pod: {pod:?}, container: {container})"
    )]
    NamedUser { user: String, pod: String, container: String },
    #[error("{0} is not a user or group number")]
    Number(i64),
    #[error("localhostProfile must be set if seccompProfile type is Localhost")]
    Profile,
}

/// The container's context over the pod's (upstream's `pkg/securitycontext`).
pub fn make(pod: &Pod, container: &Container, image: &ImageConfig, profiles: &Path) -> Result<Security, Error> {
    let of_pod = pod.spec_ref().security_context.as_ref();
    let own = container.security_context.as_ref();
    let number = |value: i64| u32::try_from(value).map_err(|_| Error::Number(value));
    let user =
        own.and_then(|own| own.run_as_user).or(of_pod.and_then(|pod| pod.run_as_user)).map(number).transpose()?;
    let group =
        own.and_then(|own| own.run_as_group).or(of_pod.and_then(|pod| pod.run_as_group)).map(number).transpose()?;
    let non_root = own.and_then(|own| own.run_as_non_root).or(of_pod.and_then(|pod| pod.run_as_non_root));
    if non_root == Some(true) {
        verify_non_root(pod, container, image, user)?;
    }
    let mut groups = Vec::new();
    let asked = of_pod.and_then(|pod| pod.supplemental_groups.as_ref()).into_iter().flatten();
    for one in asked.copied().chain(of_pod.and_then(|pod| pod.fs_group)) {
        let one = number(one)?;
        if !groups.contains(&one) {
            groups.push(one);
        }
    }
    let privileged = own.and_then(|own| own.privileged) == Some(true);
    let capabilities = own.and_then(|own| own.capabilities.as_ref());
    let profile =
        own.and_then(|own| own.seccomp_profile.as_ref()).or(of_pod.and_then(|pod| pod.seccomp_profile.as_ref()));
    Ok(Security {
        user,
        group,
        user_name: String::new(),
        supplementary_groups: groups,
        privileged,
        add_capabilities: capabilities.and_then(|one| one.add.clone()).unwrap_or_default(),
        drop_capabilities: capabilities.and_then(|one| one.drop.clone()).unwrap_or_default(),
        read_only_root: own.and_then(|own| own.read_only_root_filesystem) == Some(true),
        no_new_privileges: own.and_then(|own| own.allow_privilege_escalation) == Some(false),
        seccomp: if privileged { Seccomp::Unconfined } else { seccomp(profile, profiles)? },
        unmasked_proc: own.and_then(|own| own.proc_mount.as_deref()) == Some("Unmasked"),
    })
}

fn verify_non_root(pod: &Pod, container: &Container, image: &ImageConfig, user: Option<u32>) -> Result<(), Error> {
    let shown = format!("{}_{}({})", pod.name(), pod.namespace(), pod.uid());
    let name = container.name.clone();
    match user {
        Some(0) => return Err(Error::RootAsked { pod: shown, container: name }),
        Some(_) => return Ok(()),
        None => {}
    }
    let user = image.user.split(':').next().unwrap_or_default();
    match (user, user.parse::<u32>()) {
        ("", _) | (_, Ok(0)) => Err(Error::RootImage { pod: shown, container: name }),
        (_, Ok(_)) => Ok(()),
        (user, Err(_)) => Err(Error::NamedUser { user: user.into(), pod: shown, container: name }),
    }
}

/// Without a profile the runtime's default applies: secure as shipped.
fn seccomp(profile: Option<&SeccompProfile>, profiles: &Path) -> Result<Seccomp, Error> {
    match profile.map(|profile| (profile.type_.as_str(), profile.localhost_profile.as_deref())) {
        Some(("Unconfined", _)) => Ok(Seccomp::Unconfined),
        Some(("Localhost", Some(name))) if !name.is_empty() => Ok(Seccomp::Localhost(profiles.join(name))),
        Some(("Localhost", _)) => Err(Error::Profile),
        _ => Ok(Seccomp::RuntimeDefault),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn check(pod_context: serde_json::Value, context: serde_json::Value, user: &str) -> Result<Security, Error> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"securityContext": pod_context, "containers": [{"name": "c", "securityContext": context}]},
        }))
        .expect("a pod");
        let image = ImageConfig { user: user.into(), ..ImageConfig::default() };
        make(&pod, &pod.containers()[0], &image, Path::new("/seccomp"))
    }

    #[test]
    fn contexts_combine() {
        let made = check(
            json!({"runAsUser": 1000, "runAsGroup": 10, "fsGroup": 20, "supplementalGroups": [30, 20]}),
            json!({"runAsUser": 2000, "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}),
            "",
        )
        .expect("made");
        assert_eq!((made.user, made.group, made.supplementary_groups), (Some(2000), Some(10), vec![30, 20]));
        assert_eq!((made.no_new_privileges, made.drop_capabilities), (true, vec!["ALL".to_owned()]));
        assert_eq!(made.seccomp, Seccomp::RuntimeDefault);
    }

    #[test]
    fn root_is_refused_where_it_must_be() {
        let strict = json!({"runAsNonRoot": true});
        assert!(matches!(check(strict.clone(), json!({}), ""), Err(Error::RootImage { .. })));
        assert!(matches!(check(strict.clone(), json!({}), "0:0"), Err(Error::RootImage { .. })));
        assert!(matches!(check(strict.clone(), json!({}), "app"), Err(Error::NamedUser { .. })));
        assert!(matches!(check(strict.clone(), json!({"runAsUser": 0}), "app"), Err(Error::RootAsked { .. })));
        assert!(check(strict.clone(), json!({"runAsUser": 1}), "app").is_ok());
        assert!(check(strict.clone(), json!({}), "65532").is_ok());
        assert!(check(strict, json!({"runAsNonRoot": false}), "").is_ok());
    }
}
