//! Events about one pod and its containers, through the client's recorder.

use k8s_openapi::api::core::v1::{Container, Pod};
use sampan_client::events::{Recorder, Reference};

use crate::pod::PodExt;

/// Records about one pod. Cheap to clone.
#[derive(Clone)]
pub struct PodEvents {
    recorder: Recorder,
    about: Reference,
    init: Vec<String>,
}

impl PodEvents {
    pub fn new(recorder: Recorder, pod: &Pod) -> Self {
        let about = Reference {
            api_version: "v1".into(),
            kind: "Pod".into(),
            namespace: pod.namespace().into(),
            name: pod.name().into(),
            uid: pod.uid().into(),
            field_path: String::new(),
        };
        let init = pod.init_containers().iter().map(|container| container.name.clone()).collect();
        Self { recorder, about, init }
    }

    pub fn normal(&self, container: Option<&Container>, reason: &str, message: &str) {
        self.recorder.normal(&self.about(container), reason, message);
    }

    pub fn warning(&self, container: Option<&Container>, reason: &str, message: &str) {
        self.recorder.warning(&self.about(container), reason, message);
    }

    fn about(&self, container: Option<&Container>) -> Reference {
        let field_path = container.map_or_else(String::new, |container| {
            let list = if self.init.contains(&container.name) { "initContainers" } else { "containers" };
            format!("spec.{list}{{{}}}", container.name)
        });
        Reference { field_path, ..self.about.clone() }
    }
}
