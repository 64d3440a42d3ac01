//! The audit log: who did what, as `audit.k8s.io/v1` events of level Metadata (never a body), a JSON line each, in files of
//! bounded size: `audit.log`, then `audit.log.1` and so on, the oldest dropped.
//!
//! A request never waits for the disk: its line goes into a bounded queue. When the disk cannot keep up lines are dropped, and
//! the next one that gets through is followed by a line that says how many.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use sampan_base::disk::{AppendFile, SharedDisk};
use sampan_base::task;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::auth::review::user_info;
use crate::auth::{Attributes, User};
use crate::hooks::{Audit, AuditEvent, Stage};

const QUEUE: usize = 4096;
/// Lines written together.
const BATCH: usize = 256;

/// How much is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one file.
    pub file_bytes: u64,
    /// Older files beside the one being written.
    pub files: u32,
}

impl Default for Limits {
    /// 40 MiB in all.
    fn default() -> Self {
        Self { file_bytes: 10 << 20, files: 3 }
    }
}

/// The log as the server sees it.
pub struct AuditLog {
    lines: mpsc::Sender<Vec<u8>>,
    lost: Arc<AtomicU64>,
}

impl AuditLog {
    /// Writes to `DIR/audit.log` from now on, until it is dropped.
    pub fn start(disk: SharedDisk, dir: &Path, limits: Limits) -> Self {
        let (lines, queue) = mpsc::channel(QUEUE);
        let lost = Arc::new(AtomicU64::new(0));
        let file = RotatedFile { disk, path: dir.join("audit.log"), limits, open: None };
        task::spawn("audit", write(file, queue, lost.clone()));
        Self { lines, lost }
    }
}

impl Audit for AuditLog {
    fn record(&self, event: &AuditEvent<'_>) {
        if !worth_keeping(event) {
            return;
        }
        let mut line = to_json(event).to_string().into_bytes();
        line.push(b'\n');
        if self.lines.try_send(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn write(mut file: RotatedFile, mut queue: mpsc::Receiver<Vec<u8>>, lost: Arc<AtomicU64>) {
    let mut lines = Vec::new();
    while queue.recv_many(&mut lines, BATCH).await > 0 {
        let mut batch = std::mem::take(&mut lines);
        let missing = lost.swap(0, Ordering::Relaxed);
        if missing > 0 {
            batch.push(format!("{}\n", json!({"kind": "Lost", "events": missing})).into_bytes());
        }
        let count = batch.len() as u64;
        let written = task::spawn_blocking(move || {
            let written = file.append(&batch);
            (file, written)
        });
        let Ok((back, written)) = written.await else { return };
        file = back;
        if let Err(error) = written {
            tracing::warn!(%error, path = %file.path.display(), "audit events could not be written");
            lost.fetch_add(missing + count, Ordering::Relaxed);
        }
    }
}

/// A file that is renamed away when it is full.
struct RotatedFile {
    disk: SharedDisk,
    path: PathBuf,
    limits: Limits,
    open: Option<Box<dyn AppendFile>>,
}

impl RotatedFile {
    /// Not synced: a crash of the machine may cost the last seconds.
    fn append(&mut self, lines: &[Vec<u8>]) -> io::Result<()> {
        if self.open.as_ref().is_some_and(|file| file.len() >= self.limits.file_bytes) {
            self.open = None;
            self.rotate()?;
        }
        if self.open.is_none() {
            if let Some(dir) = self.path.parent() {
                self.disk.create_dir_all(dir)?;
            }
            self.open = Some(self.disk.open_append(&self.path)?);
        }
        let Some(file) = self.open.as_mut() else { return Ok(()) };
        let parts: Vec<&[u8]> = lines.iter().map(Vec::as_slice).collect();
        let before = file.len();
        let written = file.append(&parts);
        // Half a line would spoil the next one. When the cut fails too the file is opened anew.
        if written.is_err() && file.truncate(before).is_err() {
            self.open = None;
        }
        written
    }

    fn rotate(&self) -> io::Result<()> {
        let name = |number: u32| match number {
            0 => self.path.clone(),
            number => PathBuf::from(format!("{}.{number}", self.path.display())),
        };
        let missing_is_fine = |result: io::Result<()>| match result {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        };
        missing_is_fine(self.disk.remove(&name(self.limits.files)))?;
        for number in (0..self.limits.files).rev() {
            missing_is_fine(self.disk.rename(&name(number), &name(number + 1)))?;
        }
        Ok(())
    }
}

/// The policy: one event a request, when it is answered. Left out is what a cluster does with itself all the time and changes
/// nothing worth asking about: reads of its components, renewed leases, events, and paths outside the API.
fn worth_keeping(event: &AuditEvent<'_>) -> bool {
    let Attributes { verb, resource_request, resource, .. } = event.attributes;
    if event.stage == Stage::Panic || event.code == 403 {
        return true;
    }
    if event.stage == Stage::RequestReceived || !resource_request || resource == "events" {
        return false;
    }
    let own = is_component(event.authenticated);
    let reads = matches!(verb.as_str(), "get" | "list" | "watch");
    !(own && (reads || resource == "leases"))
}

fn is_component(user: &User) -> bool {
    let name = user.name.as_str();
    name.starts_with("system:kube-")
        || name == crate::bootstrap::USER
        || name.starts_with("system:serviceaccount:kube-system:")
        || user.in_group(crate::auth::node::NODES_GROUP)
}

fn micro_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

fn to_json(event: &AuditEvent<'_>) -> Value {
    let Attributes { user, verb, resource_request, group, version, resource, subresource, namespace, name, .. } =
        event.attributes;
    let stage = match event.stage {
        Stage::RequestReceived => "RequestReceived",
        Stage::ResponseStarted => "ResponseStarted",
        Stage::ResponseComplete => "ResponseComplete",
        Stage::Panic => "Panic",
    };
    let mut line = json!({
        "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata",
        "auditID": event.id, "stage": stage, "requestURI": event.uri, "verb": verb,
        "user": user_info(event.authenticated),
        "requestReceivedTimestamp": micro_time(event.received), "stageTimestamp": micro_time(event.now),
    });
    if event.impersonating {
        line["impersonatedUser"] = user_info(user);
    }
    if let Some(source) = event.source {
        line["sourceIPs"] = json!([source]);
    }
    if !event.user_agent.is_empty() {
        line["userAgent"] = event.user_agent.into();
    }
    if *resource_request {
        let parts = [
            ("resource", resource),
            ("namespace", namespace),
            ("name", name),
            ("apiGroup", group),
            ("apiVersion", version),
            ("subresource", subresource),
        ];
        let parts = parts.into_iter().filter(|(_, value)| !value.is_empty());
        let parts: Map<String, Value> = parts.map(|(key, value)| (key.into(), value.as_str().into())).collect();
        line["objectRef"] = parts.into();
    }
    if event.code != 0 {
        line["responseStatus"] = json!({"metadata": {}, "code": event.code});
    }
    if !event.decision.is_empty() {
        line["annotations"] = json!({"authorization.k8s.io/reason": event.decision});
    }
    line
}

#[cfg(test)]
mod tests {
    use sampan_base::disk::{Disk, MemoryDisk};

    use super::*;

    fn event<'a>(user: &'a User, attributes: &'a Attributes) -> AuditEvent<'a> {
        let time: Timestamp = "2030-01-01T00:00:00.5Z".parse().expect("a time");
        AuditEvent {
            id: "id",
            stage: Stage::ResponseComplete,
            authenticated: user,
            impersonating: false,
            attributes,
            uri: "/api/v1/namespaces/ns/secrets/s",
            source: Some([10, 0, 0, 1].into()),
            user_agent: "kubectl",
            code: 200,
            received: time,
            now: time,
            decision: "why",
        }
    }

    fn attributes(verb: &str, resource: &str) -> Attributes {
        Attributes {
            verb: verb.into(),
            resource_request: true,
            version: "v1".into(),
            resource: resource.into(),
            namespace: "ns".into(),
            name: "s".into(),
            ..Attributes::default()
        }
    }

    #[test]
    fn an_event_in_upstreams_shape() {
        let (user, attributes) = (User::new("alice", &["dev"]), attributes("get", "secrets"));
        assert_eq!(
            to_json(&event(&user, &attributes)),
            json!({
                "kind": "Event", "apiVersion": "audit.k8s.io/v1", "level": "Metadata", "auditID": "id",
                "stage": "ResponseComplete", "requestURI": "/api/v1/namespaces/ns/secrets/s", "verb": "get",
                "user": {"username": "alice", "groups": ["dev"]}, "sourceIPs": ["10.0.0.1"], "userAgent": "kubectl",
                "objectRef": {"resource": "secrets", "namespace": "ns", "name": "s", "apiVersion": "v1"},
                "responseStatus": {"metadata": {}, "code": 200},
                "requestReceivedTimestamp": "2030-01-01T00:00:00.500000Z",
                "stageTimestamp": "2030-01-01T00:00:00.500000Z",
                "annotations": {"authorization.k8s.io/reason": "why"},
            })
        );
    }

    #[test]
    fn what_is_kept() {
        let alice = User::new("alice", &[]);
        let node = User::new("system:node:n1", &["system:nodes"]);
        let keeps = |user: &User, verb: &str, resource: &str| worth_keeping(&event(user, &attributes(verb, resource)));
        assert!(keeps(&alice, "get", "secrets") && keeps(&alice, "update", "leases"));
        assert!(keeps(&node, "create", "pods") && !keeps(&node, "get", "secrets") && !keeps(&node, "update", "leases"));
        let reads = attributes("get", "secrets");
        assert!(worth_keeping(&AuditEvent { code: 403, ..event(&node, &reads) }), "refusals are always kept");
    }

    #[tokio::test]
    async fn files_are_rotated_and_bounded() {
        let disk = Arc::new(MemoryDisk::default());
        let dir = Path::new("/audit");
        let limits = Limits { file_bytes: 2_000, files: 2 };
        let mut file = RotatedFile { disk: disk.clone(), path: dir.join("audit.log"), limits, open: None };
        for number in 0..100 {
            file.append(&[format!("{number:0>99}\n").into_bytes()]).expect("written");
        }
        let names = disk.list(dir).expect("a directory");
        let names: Vec<String> = names.iter().filter_map(|name| Some(name.file_name()?.to_str()?.to_owned())).collect();
        assert_eq!(names, ["audit.log", "audit.log.1", "audit.log.2"]);
        let read = |name: &str| String::from_utf8(disk.read(&dir.join(name)).expect("a file")).expect("text");
        assert_eq!(read("audit.log").lines().last().map(|line| line.trim_start_matches('0')), Some("99"));
        let lines: usize =
            ["audit.log", "audit.log.1", "audit.log.2"].iter().map(|name| read(name).lines().count()).sum();
        assert_eq!(lines, 60, "three full files, the last one of them just filled");
    }

    #[tokio::test]
    async fn a_queue_that_is_full_loses_lines_and_says_so() {
        let (lines, queue) = mpsc::channel(1);
        let log = AuditLog { lines, lost: Arc::new(AtomicU64::new(0)) };
        let (user, attributes) = (User::new("alice", &[]), attributes("get", "secrets"));
        for _ in 0..3 {
            log.record(&event(&user, &attributes));
        }
        let AuditLog { lines, lost } = log;
        drop(lines);
        let disk = Arc::new(MemoryDisk::default());
        let path = PathBuf::from("/audit/audit.log");
        let file = RotatedFile { disk: disk.clone(), path: path.clone(), limits: Limits::default(), open: None };
        write(file, queue, lost).await;
        let text = String::from_utf8(disk.read(&path).expect("a file")).expect("text");
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1], json!({"kind": "Lost", "events": 2}));
    }
}
