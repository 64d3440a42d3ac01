//! What every part of the agent shares: configuration, parts, followed objects, volumes, and facts of the machine.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};

use k8s_openapi::api::core::v1::Pod;
use sampan_base::clock::Instant;
use sampan_client::events::Recorder;

use crate::config::{NodeConfig, Parts};
use crate::downward::Surroundings;
use crate::machine::Machine;
use crate::objects::Objects;
use crate::pod::PodExt;
use crate::pod::status::HostFacts;
use crate::volumes::{Volumes, pod_directory};

pub struct Node {
    pub config: NodeConfig,
    pub parts: Parts,
    pub objects: Objects,
    pub volumes: Volumes,
    pub recorder: Recorder,
    pub machine: Machine,
    pub started: Instant,
    /// Whose a sandbox is, by sandbox: the UID of its pod.
    owners: Mutex<BTreeMap<String, String>>,
}

impl Node {
    pub fn new(config: NodeConfig, parts: Parts) -> Arc<Self> {
        let Parts { client, clock, dice, .. } = parts.clone();
        let objects = Objects::new(client.clone(), clock.clone());
        let volumes = Volumes::new(
            config.root.clone(),
            config.tmpfs,
            objects.clone(),
            client.clone(),
            clock.clone(),
            dice.clone(),
        );
        let recorder = Recorder::spawn(client, "kubelet", &config.name, clock.clone(), dice);
        let machine = Machine::read(&config.root);
        Arc::new(Self {
            started: clock.instant(),
            owners: Mutex::default(),
            config,
            parts,
            objects,
            volumes,
            recorder,
            machine,
        })
    }

    pub fn host_facts(&self) -> HostFacts {
        HostFacts { addresses: self.config.addresses.clone() }
    }

    /// What the downward API shows a pod with these addresses.
    pub fn surroundings(&self, pod: &Pod, addresses: &[IpAddr]) -> Surroundings {
        let host = &self.config.addresses;
        Surroundings {
            node_name: self.config.name.clone(),
            host_addresses: host.clone(),
            pod_addresses: if pod.host_network() { host.clone() } else { addresses.to_vec() },
            milli_cpu: self.machine.milli_cpu - self.config.reserved_milli_cpu,
            memory: self.machine.memory - self.config.reserved_memory,
            ephemeral_storage: self.machine.disk,
        }
    }

    pub fn pod_directory(&self, uid: &str) -> PathBuf {
        pod_directory(&self.config.root, uid)
    }

    /// `LOG_ROOT/NAMESPACE_NAME_UID`
    pub fn log_directory(&self, pod: &Pod) -> PathBuf {
        self.config.log_root.join(format!("{}_{}_{}", pod.namespace(), pod.name(), pod.uid()))
    }

    fn owners(&self) -> MutexGuard<'_, BTreeMap<String, String>> {
        self.owners.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub fn own_sandbox(&self, sandbox: &str, uid: &str) {
        self.owners().insert(sandbox.into(), uid.into());
    }

    pub fn disown_sandbox(&self, sandbox: &str) {
        self.owners().remove(sandbox);
    }

    pub fn owner(&self, sandbox: &str) -> Option<String> {
        self.owners().get(sandbox).cloned()
    }
}
