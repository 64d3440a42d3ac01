//! Reading a pod's specification: the accessors that hide `Option` and upstream's defaults, and nothing that decides.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Probe};

use super::state::ProbeKind;

/// `terminationGracePeriodSeconds` where the API server did not default it.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// What the rest of the crate asks of a pod. An absent `spec` reads as an empty one.
pub trait PodExt {
    fn uid(&self) -> &str;
    fn name(&self) -> &str;
    fn namespace(&self) -> &str;
    fn spec_ref(&self) -> &PodSpec;
    fn init_containers(&self) -> &[Container];
    fn containers(&self) -> &[Container];
    /// Init containers in order, then the regular ones.
    fn all_containers(&self) -> impl Iterator<Item = &Container>;
    fn container(&self, name: &str) -> Option<&Container>;
    fn restart_policy(&self) -> &str;
    fn host_network(&self) -> bool;
    fn deletion(&self) -> Option<Timestamp>;
    /// How long a container may take to stop: the deletion's grace period, else the specification's. At least a second,
    /// as in upstream's pod workers.
    fn grace(&self) -> Duration;
    /// `namespace/name`, for logs.
    fn full_name(&self) -> String {
        format!("{}/{}", self.namespace(), self.name())
    }
}

fn text(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or_default()
}

impl PodExt for Pod {
    fn uid(&self) -> &str {
        text(&self.metadata.uid)
    }

    fn name(&self) -> &str {
        text(&self.metadata.name)
    }

    fn namespace(&self) -> &str {
        text(&self.metadata.namespace)
    }

    fn spec_ref(&self) -> &PodSpec {
        static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
        self.spec.as_ref().unwrap_or(&EMPTY)
    }

    fn init_containers(&self) -> &[Container] {
        self.spec_ref().init_containers.as_deref().unwrap_or_default()
    }

    fn containers(&self) -> &[Container] {
        &self.spec_ref().containers
    }

    fn all_containers(&self) -> impl Iterator<Item = &Container> {
        self.init_containers().iter().chain(self.containers())
    }

    fn container(&self, name: &str) -> Option<&Container> {
        self.all_containers().find(|container| container.name == name)
    }

    fn restart_policy(&self) -> &str {
        self.spec_ref().restart_policy.as_deref().unwrap_or("Always")
    }

    fn host_network(&self) -> bool {
        self.spec_ref().host_network.unwrap_or(false)
    }

    fn deletion(&self) -> Option<Timestamp> {
        self.metadata.deletion_timestamp.as_ref().map(|time| time.0)
    }

    fn grace(&self) -> Duration {
        let of_spec = self.spec_ref().termination_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECONDS);
        let seconds = self.metadata.deletion_grace_period_seconds.unwrap_or(of_spec);
        Duration::from_secs(seconds.max(1).unsigned_abs())
    }
}

/// An init container that keeps running beside the regular ones (a native sidecar).
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

pub fn probe(container: &Container, kind: ProbeKind) -> Option<&Probe> {
    match kind {
        ProbeKind::Startup => container.startup_probe.as_ref(),
        ProbeKind::Liveness => container.liveness_probe.as_ref(),
        ProbeKind::Readiness => container.readiness_probe.as_ref(),
    }
}
