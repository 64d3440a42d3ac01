//! The node's own objects: its registration, its status, its Lease.
//!
//! The Lease tells that the agent lives, every ten seconds; the status is written when something changed, and every five
//! minutes (upstream's `pkg/kubelet/kubelet_node_status.go`). An agent that stood still (a laptop asleep) just goes on:
//! nothing here ends a pod.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, Node as NodeObject, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeSpec,
    NodeStatus, NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use sampan_client::api::{Target, decode, encode};
use sampan_client::{Error, PatchKind, WriteOptions};
use serde_json::json;

use crate::machine;
use crate::node::Node;

const LEASE_NAMESPACE: &str = "kube-node-lease";
const RETRY: Duration = Duration::from_millis(200);
const RETRY_MAX: Duration = Duration::from_secs(7);
/// Upstream's `nodeStatusMaxImages`.
const IMAGES_MAX: usize = 50;
/// Upstream's default hard eviction thresholds, here only conditions.
const MEMORY_LOW: i64 = 100 << 20;
const DISK_LOW_PERCENT: i64 = 10;

/// Registers the node and keeps it alive, for ever.
pub async fn run(node: Arc<Node>) {
    let uid = register(&node).await;
    tokio::join!(report(&node), renew(&node, uid));
}

/// Creates the Node or takes the one that is there over. Returns its UID.
async fn register(node: &Node) -> String {
    let clock = &node.parts.clock;
    let mut pause = RETRY;
    loop {
        match try_register(node).await {
            Ok(object) => return object.metadata.uid.unwrap_or_default(),
            Err(error) => tracing::warn!(%error, ?pause, "cannot register the node yet"),
        }
        clock.sleep(pause).await;
        pause = (pause * 2).min(RETRY_MAX);
    }
}

async fn try_register(node: &Node) -> Result<NodeObject, Error> {
    let client = &node.parts.client;
    let status = status(node, &[], node.parts.clock.now()).await;
    let annotations = [("volumes.kubernetes.io/controller-managed-attach-detach".to_owned(), "true".to_owned())];
    let object = NodeObject {
        metadata: ObjectMeta {
            name: Some(node.config.name.clone()),
            labels: Some(labels(node)),
            annotations: Some(annotations.into()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(node.config.taints.clone()).filter(|taints| !taints.is_empty()),
            ..NodeSpec::default()
        }),
        status: Some(status),
    };
    match client.create(&object, &WriteOptions::default()).await {
        Err(error) if error.is_already_exists() => {
            // Labels of a former life may be old; those of others stay.
            let patch = json!({"metadata": {"labels": labels(node), "annotations": object.metadata.annotations}});
            let target = Target::of::<NodeObject>(None).name(&node.config.name);
            client.patch(&target, PatchKind::Merge, &patch, &WriteOptions::default()).await
        }
        other => other,
    }
}

fn labels(node: &Node) -> BTreeMap<String, String> {
    let mut labels = node.config.labels.clone();
    let own = [
        ("kubernetes.io/hostname", node.config.name.as_str()),
        ("kubernetes.io/os", "linux"),
        ("kubernetes.io/arch", architecture()),
        ("beta.kubernetes.io/os", "linux"),
        ("beta.kubernetes.io/arch", architecture()),
    ];
    labels.extend(own.map(|(key, value)| (key.to_owned(), value.to_owned())));
    labels
}

/// Go's name of this machine's architecture.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Writes the status when it changed, and now and then although it did not.
async fn report(node: &Node) {
    let clock = &node.parts.clock;
    let beat = node.config.heartbeat;
    let mut last: Option<(NodeStatus, tokio::time::Instant)> = None;
    let mut pause = RETRY;
    loop {
        let old = last.as_ref().and_then(|(status, _)| status.conditions.clone()).unwrap_or_default();
        let fresh = status(node, &old, clock.now()).await;
        let due = last.as_ref().is_none_or(|(status, at)| at.elapsed() >= beat.report || differs(status, &fresh));
        if due {
            match write(node, &fresh).await {
                Ok(()) => {
                    last = Some((fresh, clock.instant()));
                    pause = RETRY;
                }
                Err(error) => {
                    tracing::warn!(%error, ?pause, "cannot write the node's status");
                    if error.is_not_found() {
                        // Deleted by somebody: an agent that runs has a node.
                        register(node).await;
                    }
                    clock.sleep(pause).await;
                    pause = (pause * 2).min(RETRY_MAX);
                    continue;
                }
            }
        }
        clock.sleep(beat.check).await;
    }
}

async fn write(node: &Node, status: &NodeStatus) -> Result<(), Error> {
    let target = Target::of::<NodeObject>(None).name(&node.config.name).subresource("status");
    let patch = json!({"status": status});
    // Addresses merge by type upstream, which would keep an address the node has lost.
    let patch = with_replaced(patch, "addresses");
    let client = &node.parts.client;
    client.patch_raw(&target, PatchKind::Strategic, Bytes::from(patch.to_string()), &WriteOptions::default()).await?;
    Ok(())
}

fn with_replaced(mut patch: serde_json::Value, list: &str) -> serde_json::Value {
    if let Some(items) = patch["status"][list].as_array_mut() {
        items.push(json!({"$patch": "replace"}));
    }
    patch
}

/// Whether two statuses differ in more than the time they were taken.
fn differs(old: &NodeStatus, new: &NodeStatus) -> bool {
    let timeless = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    timeless(old) != timeless(new)
}

async fn status(node: &Node, old: &[NodeCondition], now: Timestamp) -> NodeStatus {
    let machine = &node.machine;
    let config = &node.config;
    let resources = |milli_cpu: i64, memory: i64| -> BTreeMap<String, Quantity> {
        let cpu = if milli_cpu % 1000 == 0 { (milli_cpu / 1000).to_string() } else { format!("{milli_cpu}m") };
        [
            ("cpu", cpu),
            ("memory", format!("{}Ki", memory / 1024)),
            ("ephemeral-storage", format!("{}Ki", machine.disk / 1024)),
            ("pods", config.max_pods.to_string()),
        ]
        .map(|(name, amount)| (name.to_owned(), Quantity(amount)))
        .into()
    };
    let address = |type_: &str, address: String| NodeAddress { type_: type_.into(), address };
    let mut addresses: Vec<NodeAddress> =
        config.addresses.iter().map(|one| address("InternalIP", one.to_string())).collect();
    addresses.push(address("Hostname", config.name.clone()));
    NodeStatus {
        capacity: Some(resources(machine.milli_cpu, machine.memory)),
        allocatable: Some(resources(
            machine.milli_cpu - config.reserved_milli_cpu,
            machine.memory - config.reserved_memory,
        )),
        addresses: Some(addresses),
        conditions: Some(conditions(node, old, now)),
        daemon_endpoints: config.listen.map(|listen| NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(listen.port()) }),
        }),
        images: Some(images(node).await),
        node_info: Some(NodeSystemInfo {
            architecture: architecture().into(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: concat!("sampan://", env!("CARGO_PKG_VERSION")).into(),
            kernel_version: machine.kernel.clone(),
            kube_proxy_version: String::new(),
            kubelet_version: config.version.clone(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".into(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            ..NodeSystemInfo::default()
        }),
        ..NodeStatus::default()
    }
}

fn conditions(node: &Node, old: &[NodeCondition], now: Timestamp) -> Vec<NodeCondition> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let memory_low = machine::meminfo(&meminfo, "MemAvailable").is_some_and(|bytes| bytes < MEMORY_LOW);
    let disk_low = machine::disk(&node.config.root)
        .is_some_and(|(total, free)| i128::from(free) * 100 < i128::from(total) * i128::from(DISK_LOW_PERCENT));
    let pids_low = pids().is_some_and(|(running, most)| running * 10 > most * 9);
    [
        (
            "MemoryPressure",
            memory_low,
            ["KubeletHasSufficientMemory", "kubelet has sufficient memory available"],
            ["KubeletHasInsufficientMemory", "kubelet has insufficient memory available"],
        ),
        (
            "DiskPressure",
            disk_low,
            ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
            ["KubeletHasDiskPressure", "kubelet has disk pressure"],
        ),
        (
            "PIDPressure",
            pids_low,
            ["KubeletHasSufficientPID", "kubelet has sufficient PID available"],
            ["KubeletHasInsufficientPID", "kubelet has insufficient PID available"],
        ),
        ("Ready", true, ["", ""], ["KubeletReady", "kubelet is posting ready status"]),
    ]
    .into_iter()
    .map(|(type_, holds, no, yes)| {
        let [reason, message] = if holds { yes } else { no };
        let status = if holds { "True" } else { "False" };
        let before = old.iter().find(|old| old.type_ == type_ && old.status == status);
        NodeCondition {
            type_: type_.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_heartbeat_time: Some(Time(now)),
            last_transition_time: before.and_then(|old| old.last_transition_time.clone()).or(Some(Time(now))),
        }
    })
    .collect()
}

/// Threads there are, and may be (`/proc/loadavg`, `kernel.threads-max`).
fn pids() -> Option<(u64, u64)> {
    let load = std::fs::read_to_string("/proc/loadavg").ok()?;
    let running = load.split_whitespace().nth(3)?.split_once('/')?.1.parse().ok()?;
    let most = std::fs::read_to_string("/proc/sys/kernel/threads-max").ok()?.trim().parse().ok()?;
    Some((running, most))
}

/// The largest images, which is what the scheduler's image locality looks at.
async fn images(node: &Node) -> Vec<ContainerImage> {
    let mut images = node.parts.images.list().await.unwrap_or_default();
    images.sort_by(|a, b| b.size_bytes.cmp(&a.size_bytes).then_with(|| a.id.cmp(&b.id)));
    images.truncate(IMAGES_MAX);
    images
        .into_iter()
        .map(|image| ContainerImage {
            names: Some(image.digests.into_iter().chain(image.tags).collect()),
            size_bytes: i64::try_from(image.size_bytes).ok(),
        })
        .collect()
}

/// Renews the Lease for ever.
async fn renew(node: &Node, uid: String) {
    let clock = &node.parts.clock;
    let beat = node.config.heartbeat;
    let mut pause = RETRY;
    loop {
        match try_renew(node, &uid, clock.now()).await {
            Ok(()) => {
                pause = RETRY;
                clock.sleep(beat.renew).await;
            }
            Err(error) => {
                tracing::warn!(%error, ?pause, "cannot renew the node's lease");
                clock.sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
        }
    }
}

async fn try_renew(node: &Node, uid: &str, now: Timestamp) -> Result<(), Error> {
    let client = &node.parts.client;
    let name = &node.config.name;
    let spec = json!({
        "holderIdentity": name,
        "leaseDurationSeconds": node.config.heartbeat.lease.as_secs(),
        "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
    });
    let leases = Target::of::<Lease>(Some(LEASE_NAMESPACE));
    let target = leases.clone().name(name);
    let patch = encode(&json!({"spec": spec}))?;
    match client.patch_raw(&target, PatchKind::Merge, patch, &WriteOptions::default()).await {
        Err(error) if error.is_not_found() => {
            let owner = json!({"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid});
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {"name": name, "namespace": LEASE_NAMESPACE, "ownerReferences": [owner]},
                "spec": spec,
            });
            let made = client.create_raw(&leases, encode(&lease)?, &WriteOptions::default()).await?;
            decode::<Lease>(&made).map(|_| ())
        }
        other => other.map(|_| ()),
    }
}
