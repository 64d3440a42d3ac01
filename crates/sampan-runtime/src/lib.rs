//! Images, sandboxes and containers on one Linux machine: what a CRI runtime is to a kubelet.
//!
//! [`Runtime`] and [`Images`] are shaped like CRI (`k8s.io/cri-api`), so that a CRI socket can stand behind them too. It
//! knows no pods, no probes, no volumes sources and no cluster: mounts are host paths, limits are numbers.
//! **No cgroup operation ever leaves the prefix the runtime was opened with** (see `cgroup`'s guard).

pub mod cgroup;
#[cfg(test)]
mod contract;
pub mod fake;
pub mod images;
pub mod linux;
pub mod reference;
mod seccomp;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};

/// Sandboxes and containers. Every call is idempotent where CRI's is: stopping what is stopped and removing what is
/// absent succeed.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// Makes the pod's namespaces and cgroup and starts its holder. The network namespace is up with loopback only.
    async fn run_sandbox(&self, config: &SandboxConfig) -> Result<SandboxStatus, Error>;
    /// Kills every process of the sandbox; its network namespace may vanish. Logs and exit codes stay readable.
    async fn stop_sandbox(&self, sandbox: &str) -> Result<(), Error>;
    /// Removes the stopped sandbox with its containers, mounts and cgroup.
    async fn remove_sandbox(&self, sandbox: &str) -> Result<(), Error>;
    /// All sandboxes, also those of a previous agent process: this is how pods are adopted after a restart.
    async fn sandboxes(&self) -> Result<Vec<SandboxStatus>, Error>;

    /// Prepares a container (root filesystem, mounts, limits) without starting its process. Returns its id.
    async fn create_container(&self, sandbox: &str, config: &ContainerConfig) -> Result<String, Error>;
    /// Starts the process. A command that does not exist in the image is [`Error::Start`].
    async fn start_container(&self, container: &str) -> Result<(), Error>;
    /// Sends the stop signal, waits `grace`, then kills. Returns when the process has ended.
    async fn stop_container(&self, container: &str, grace: Duration) -> Result<(), Error>;
    async fn remove_container(&self, container: &str) -> Result<(), Error>;
    async fn containers(&self) -> Result<Vec<ContainerStatus>, Error>;
    async fn container(&self, container: &str) -> Result<ContainerStatus, Error>;
    /// Changes the limits of a running container.
    async fn update_container(&self, container: &str, resources: &Resources) -> Result<(), Error>;
    /// Closes the log file and opens it anew, for rotation.
    async fn reopen_log(&self, container: &str) -> Result<(), Error>;

    /// Runs a command in a running container with its environment, user and limits.
    async fn exec(&self, container: &str, request: &ExecRequest) -> Result<ExecSession, Error>;
    /// Joins the streams of the main process, from now on.
    async fn attach(&self, container: &str, request: &AttachRequest) -> Result<ExecSession, Error>;
    /// A TCP connection to `127.0.0.1:port` inside the sandbox's network namespace.
    async fn port_forward(&self, sandbox: &str, port: u16) -> Result<Box<dyn Duplex>, Error>;

    /// Usage of one container now.
    async fn stats(&self, container: &str) -> Result<Stats, Error>;
    /// Ends of containers and sandboxes from now on. After a gap the caller lists again.
    fn events(&self) -> BoxStream<'static, Event>;
}

/// The images of this machine.
#[async_trait]
pub trait Images: Send + Sync + 'static {
    /// Fetches an image unless its content is here already; concurrent pulls of one image share the work.
    async fn pull(&self, reference: &str, auth: Option<&RegistryAuth>) -> Result<Image, Error>;
    /// The image a reference (name, tag, digest or id) names, `None` when absent.
    async fn get(&self, reference: &str) -> Result<Option<Image>, Error>;
    async fn list(&self) -> Result<Vec<Image>, Error>;
    /// Removes a reference; content goes when no reference and no container needs it.
    async fn remove(&self, reference: &str) -> Result<(), Error>;
    /// Loads a `docker save` or OCI layout archive (plain or compressed). Returns what it held.
    async fn load(&self, archive: &mut (dyn std::io::Read + Send)) -> Result<Vec<Image>, Error>;
}

pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SandboxConfig {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Counts the sandboxes made for this pod.
    pub attempt: u32,
    pub hostname: String,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// `/var/log/pods/NAMESPACE_NAME_UID`
    pub log_directory: PathBuf,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    /// All containers share one PID namespace.
    pub share_process_namespace: bool,
    pub sysctls: BTreeMap<String, String>,
    /// Below the runtime's prefix: `burstable/podUID`, no leading slash.
    pub cgroup: String,
    /// Limits of the whole pod.
    pub resources: Resources,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SandboxStatus {
    pub id: String,
    pub config: SandboxConfig,
    pub ready: bool,
    pub created_at: Timestamp,
    /// What a network plug-in attaches to; `None` with host network or when the sandbox has stopped.
    pub netns: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerConfig {
    pub name: String,
    pub attempt: u32,
    /// A reference or id known to [`Images`].
    pub image: String,
    /// Replaces the image's entrypoint when not empty.
    pub command: Vec<String>,
    /// Replaces the image's cmd when not empty (or when `command` is given).
    pub args: Vec<String>,
    pub working_dir: String,
    /// Added to the image's environment, in order.
    pub env: Vec<(String, String)>,
    pub mounts: Vec<Mount>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Relative to the sandbox's log directory: `NAME/ATTEMPT.log`.
    pub log_path: PathBuf,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub stop_signal: Option<String>,
    pub resources: Resources,
    pub security: Security,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
    pub read_only: bool,
    pub propagation: Propagation,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// Limits; `None` leaves the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Resources {
    /// cgroup v1 scale (2 … 262144); converted for v2.
    pub cpu_shares: Option<u64>,
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub memory_limit_bytes: Option<i64>,
    /// v2 `memory.min`-family only.
    pub memory_request_bytes: Option<i64>,
    pub pids_limit: Option<i64>,
    pub oom_score_adj: Option<i32>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Security {
    /// `None`: the image's user.
    pub user: Option<u32>,
    pub group: Option<u32>,
    /// A user name from the image's passwd, when no number is given.
    pub user_name: String,
    pub supplementary_groups: Vec<u32>,
    pub privileged: bool,
    pub add_capabilities: Vec<String>,
    pub drop_capabilities: Vec<String>,
    pub read_only_root: bool,
    pub no_new_privileges: bool,
    pub seccomp: Seccomp,
    /// `procMount: Unmasked`.
    pub unmasked_proc: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    #[default]
    RuntimeDefault,
    Unconfined,
    /// An OCI seccomp profile file on this machine.
    Localhost(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    Created,
    Running,
    Exited,
    /// The holder is gone and the exit code with it.
    Unknown,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ContainerStatus {
    pub id: String,
    pub sandbox: String,
    pub config: ContainerConfig,
    pub state: ContainerState,
    pub image_id: String,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    /// 128 + signal when a signal ended it.
    pub exit_code: i32,
    pub oom_killed: bool,
    /// Why it could not start, for people.
    pub message: String,
    /// The absolute log file.
    pub log_path: PathBuf,
}

#[derive(Clone, Debug, Default)]
pub struct ExecRequest {
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
    /// Kills the command when it runs longer; the exit is then [`Error::Timeout`].
    pub timeout: Option<Duration>,
}

#[derive(Clone, Debug, Default)]
pub struct AttachRequest {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A running command. Dropping it closes the streams; the command goes on.
pub struct ExecSession {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// `None` with a terminal.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Terminal size changes: columns, rows.
    pub resize: Option<tokio::sync::mpsc::Sender<(u16, u16)>>,
    /// The exit code, once.
    pub exit: tokio::sync::oneshot::Receiver<Result<i32, Error>>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    pub cpu_usage_nanoseconds: u64,
    pub memory_usage_bytes: u64,
    pub memory_working_set_bytes: u64,
    pub memory_rss_bytes: u64,
    pub pids: u64,
    /// Bytes of the writable layer.
    pub writable_bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    ContainerExited { sandbox: String, container: String },
    SandboxExited { sandbox: String },
}

#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// `sha256:…` of the image configuration.
    pub id: String,
    /// Normalised names: `docker.io/library/nginx:1.27`.
    pub tags: Vec<String>,
    /// `docker.io/library/nginx@sha256:…`
    pub digests: Vec<String>,
    pub size_bytes: u64,
    pub config: ImageConfig,
}

/// The part of the image configuration that matters for running it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    pub user: String,
    pub env: Vec<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub working_dir: String,
    pub stop_signal: Option<String>,
    pub volumes: Vec<String>,
    pub exposed_ports: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
    pub identity_token: String,
}

/// Messages are for people and end in events and container statuses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("{what} {id:?} not found")]
    NotFound { what: &'static str, id: String },
    #[error("invalid request: {0}")]
    Invalid(String),
    /// The process could not be started: command not found, not executable, bad user.
    #[error("{0}")]
    Start(String),
    #[error("image {reference:?}: {message}")]
    Image { reference: String, kind: ImageErrorKind, message: String },
    #[error("the command did not end within {0:?}")]
    Timeout(Duration),
    /// Mounts, cgroups, namespaces: the step that failed and the kernel's word.
    #[error("{0}")]
    System(String),
    /// The holder is gone: the sandbox is lost and must be made anew.
    #[error("sandbox {0} is lost")]
    Lost(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageErrorKind {
    InvalidName,
    NotFound,
    Unauthorized,
    Unreachable,
    Corrupt,
    Other,
}
