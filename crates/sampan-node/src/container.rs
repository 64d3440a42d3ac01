//! What the runtime is told of a sandbox and of a container. Assembles; decides nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, VolumeMount};
use sampan_runtime::{ContainerConfig, Image, Mount, Propagation, SandboxConfig};

use crate::expand::expand;
use crate::node::Node;
use crate::pod::PodExt;
use crate::pod::state::Trouble;
use crate::volumes::{Mounted, subpath};
use crate::{environment, names, resources, security};

/// Upstream's default of `terminationMessagePath`.
const TERMINATION_MESSAGE_PATH: &str = "/dev/termination-log";

pub fn sandbox_config(node: &Node, pod: &Pod, attempt: u32) -> SandboxConfig {
    let spec = pod.spec_ref();
    let sysctls = spec.security_context.as_ref().and_then(|context| context.sysctls.as_ref()).into_iter().flatten();
    SandboxConfig {
        namespace: pod.namespace().into(),
        name: pod.name().into(),
        uid: pod.uid().into(),
        attempt,
        hostname: names::hostname(pod, &node.config.name, &node.config.cluster_domain),
        labels: pod.metadata.labels.clone().unwrap_or_default(),
        annotations: pod.metadata.annotations.clone().unwrap_or_default(),
        log_directory: node.log_directory(pod),
        host_network: pod.host_network(),
        host_pid: spec.host_pid == Some(true),
        host_ipc: spec.host_ipc == Some(true),
        share_process_namespace: spec.share_process_namespace == Some(true),
        sysctls: sysctls.map(|one| (one.name.clone(), one.value.clone())).collect(),
        cgroup: resources::cgroup(pod),
        resources: resources::of_pod(pod, node.config.pod_pids_limit),
    }
}

/// The files a pod's containers share: its `/etc/hosts` and `/etc/resolv.conf`.
pub fn shared_files(directory: &Path) -> (PathBuf, PathBuf) {
    (directory.join("etc-hosts"), directory.join("etc-resolv.conf"))
}

/// Where a run leaves its termination message on the host.
pub fn message_file(node: &Node, uid: &str, container: &str, attempt: u32) -> PathBuf {
    node.pod_directory(uid).join("containers").join(container).join(format!("{attempt}.message"))
}

/// Reasons are upstream's `CreateContainerConfigError`.
pub async fn container_config(
    node: &Node,
    pod: &Pod,
    container: &Container,
    attempt: u32,
    image: &Image,
    mounted: &Mounted,
    addresses: &[IpAddr],
) -> Result<ContainerConfig, Trouble> {
    let trouble = |message: String| Trouble { reason: "CreateContainerConfigError", message };
    let around = node.surroundings(pod, addresses);
    let env =
        environment::make(pod, container, &node.objects, &around).await.map_err(|error| trouble(error.to_string()))?;
    let lookup = |name: &str| env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let expanded = |words: &Option<Vec<String>>| -> Vec<String> {
        words.iter().flatten().map(|word| expand(word, lookup)).collect()
    };
    let profiles = node.config.root.join("seccomp");
    let security =
        security::make(pod, container, &image.config, &profiles).map_err(|error| trouble(error.to_string()))?;
    let message = message_file(node, pod.uid(), &container.name, attempt);
    let mounts = mounts(node, pod, container, mounted, &message, lookup).map_err(trouble)?;
    let labels = [
        ("io.kubernetes.container.name", container.name.as_str()),
        ("io.kubernetes.pod.name", pod.name()),
        ("io.kubernetes.pod.namespace", pod.namespace()),
        ("io.kubernetes.pod.uid", pod.uid()),
    ];
    Ok(ContainerConfig {
        name: container.name.clone(),
        attempt,
        image: container.image.clone().unwrap_or_else(|| image.id.clone()),
        command: expanded(&container.command),
        args: expanded(&container.args),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts,
        labels: labels.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        annotations: BTreeMap::new(),
        log_path: PathBuf::from(&container.name).join(format!("{attempt}.log")),
        stdin: container.stdin == Some(true),
        stdin_once: container.stdin_once == Some(true),
        tty: container.tty == Some(true),
        stop_signal: container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.stop_signal.clone()),
        resources: resources::of_container(pod, container, node.machine.memory),
        security,
        env,
    })
}

fn mounts<'a>(
    node: &Node,
    pod: &Pod,
    container: &Container,
    mounted: &Mounted,
    message: &Path,
    lookup: impl Fn(&str) -> Option<&'a str>,
) -> Result<Vec<Mount>, String> {
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        mounts.push(volume_mount(container, mount, mounted, &lookup)?);
    }
    let taken = |target: &str| mounts.iter().any(|mount| mount.target == Path::new(target));
    let (hosts, resolver) = shared_files(&node.pod_directory(pod.uid()));
    let message_path = container
        .termination_message_path
        .as_deref()
        .filter(|path| !path.is_empty())
        .unwrap_or(TERMINATION_MESSAGE_PATH);
    let own: Vec<Mount> = [(hosts.as_path(), "/etc/hosts"), (&resolver, "/etc/resolv.conf"), (message, message_path)]
        .into_iter()
        .filter(|(_, target)| !taken(target))
        .map(|(source, target)| Mount {
            source: source.into(),
            target: target.into(),
            read_only: false,
            propagation: Propagation::Private,
        })
        .collect();
    mounts.extend(own);
    Ok(mounts)
}

fn volume_mount<'a>(
    container: &Container,
    mount: &VolumeMount,
    mounted: &Mounted,
    lookup: impl Fn(&str) -> Option<&'a str>,
) -> Result<Mount, String> {
    let name = &mount.name;
    let source = mounted
        .paths
        .get(name)
        .ok_or_else(|| format!("cannot find volume {name:?} to mount into container {:?}", container.name))?;
    let sub = match (&mount.sub_path_expr, &mount.sub_path) {
        (Some(text), _) if !text.is_empty() => expand(text, lookup),
        (_, Some(text)) => text.clone(),
        _ => String::new(),
    };
    let source = if sub.is_empty() {
        source.clone()
    } else {
        subpath::resolve(source, &sub).map_err(|error| {
            format!("failed to prepare subPath for volumeMount {name:?} of container {:?}: {error}", container.name)
        })?
    };
    let target =
        if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
    Ok(Mount {
        source,
        target: target.into(),
        read_only: mount.read_only == Some(true),
        propagation: match mount.mount_propagation.as_deref() {
            Some("HostToContainer") => Propagation::HostToContainer,
            Some("Bidirectional") => Propagation::Bidirectional,
            _ => Propagation::Private,
        },
    })
}
