//! Termination messages: the file a container writes, or the end of its log (`terminationMessagePolicy`).

use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use sampan_base::task;
use sampan_runtime::ContainerStatus;

use crate::container::message_file;
use crate::logs;
use crate::node::Node;
use crate::pod::PodExt;

/// Upstream's `MaxContainerTerminationMessageLength`, and the two for logs.
const FILE_MAX: u64 = 4096;
const LOG_BYTES_MAX: usize = 2048;
const LOG_LINES_MAX: usize = 80;

/// The message of a run that has ended; `None` when it left none.
pub async fn read(node: &Node, pod: &Pod, run: &ContainerStatus) -> Option<String> {
    let file = message_file(node, pod.uid(), &run.config.name, run.config.attempt);
    let container = pod.container(&run.config.name);
    let falls_back =
        container.and_then(|one| one.termination_message_policy.as_deref()) == Some("FallbackToLogsOnError");
    let log = (falls_back && run.exit_code != 0).then(|| run.log_path.clone());
    let read = task::spawn_blocking(move || {
        let text = read_at_most(&file).unwrap_or_default();
        match log {
            Some(log) if text.is_empty() => logs::tail_text(&log, LOG_LINES_MAX, LOG_BYTES_MAX).unwrap_or_default(),
            _ => text,
        }
    });
    read.await.ok().filter(|text| !text.is_empty())
}

fn read_at_most(file: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(file)?.take(FILE_MAX).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
