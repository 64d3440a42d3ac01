//! A cluster for tests, and a namespace for each test in it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use crate::command::{Done, run, run_with_input};
use crate::{archive, eventually, kubectl, sampan};

/// A running cluster with a kubeconfig and a data directory of its own.
#[derive(Debug)]
pub struct Cluster {
    pub name: String,
    directory: tempfile::TempDir,
    /// Takes the cluster down when this process has ended, because then its standard input ends.
    reaper: Child,
}

impl Cluster {
    /// The cluster of this test program: one node, images loaded. Taken down when the program ends.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Cluster> = OnceLock::new();
        SHARED.get_or_init(|| {
            let cluster = Self::up(&[]);
            cluster.load_images();
            cluster
        })
    }

    /// `sampan up` with these arguments. Taken down when dropped, and when the test program ends.
    pub fn up(arguments: &[&str]) -> Self {
        // SAFETY: geteuid only reads.
        assert_eq!(unsafe { libc::geteuid() }, 0, "the end-to-end tests make clusters and need root");
        let directory = tempfile::Builder::new().prefix("sampan-e2e-").tempdir().unwrap();
        let unique = directory.path().to_str().unwrap().rsplit('-').next().unwrap().to_lowercase();
        let name = format!("e2e-{unique}");
        let reaper = reaper(&name, directory.path());
        let cluster = Self { name, directory, reaper };
        cluster.up_again(arguments).ok();
        cluster
    }

    /// `sampan up` with the same name, data directory and kubeconfig.
    pub fn up_again(&self, arguments: &[&str]) -> Done {
        let mut command = self.sampan_command("up");
        command.arg("--kubeconfig").arg(self.kubeconfig()).arg("--data-dir").arg(self.data());
        run(command.args(arguments))
    }

    pub fn down(&self, arguments: &[&str]) -> Done {
        let mut command = self.sampan_command("down");
        run(command.arg("--kubeconfig").arg(self.kubeconfig()).args(arguments))
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// A place for a test's own files; it goes with the cluster.
    pub fn scratch(&self) -> &Path {
        self.directory.path()
    }

    /// `sampan SUBCOMMAND --name …`; a subcommand of two words is split.
    pub fn sampan_command(&self, subcommand: &str) -> Command {
        let mut command = Command::new(sampan());
        command.args(subcommand.split(' ')).args(["--name", &self.name]);
        command
    }

    pub fn sampan(&self, subcommand: &str, arguments: &[&str]) -> Done {
        run(self.sampan_command(subcommand).args(arguments))
    }

    /// What `sampan status -o json` says of this cluster.
    pub fn status(&self) -> serde_json::Value {
        let mut report = self.sampan("status", &["--output", "json"]).json();
        report["clusters"][0].take()
    }

    /// The process id of `supervisor`, `server` or a node's first process, while it runs.
    pub fn pid(&self, process: &str) -> Option<i32> {
        let status = self.status();
        let process = &status["processes"][process];
        (process["state"] == "running").then(|| process["pid"].as_i64().unwrap() as i32)
    }

    /// The agent of the first node: the child of the node's first process that runs `sampan node`.
    pub fn agent(&self) -> Option<i32> {
        let init = self.pid(&self.node(0))?;
        let children = fs::read_to_string(format!("/proc/{init}/task/{init}/children")).ok()?;
        children.split_whitespace().find_map(|child| {
            let line = fs::read(format!("/proc/{child}/cmdline")).ok()?;
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            line.contains(" node --config ").then(|| child.parse().ok()).flatten()
        })
    }

    pub fn node(&self, position: usize) -> String {
        self.status()["nodes"][position].as_str().unwrap().to_owned()
    }

    pub fn load_images(&self) {
        for name in ["hello", "busybox"] {
            self.sampan("image load", &[&archive(name)]).ok();
        }
    }

    pub fn kubectl_command(&self) -> Command {
        let mut command = Command::new(kubectl());
        command.env("KUBECONFIG", self.kubeconfig()).env_remove("KUBERNETES_SERVICE_HOST");
        // kubectl keeps its cache of discovery by address; a cluster of an earlier test may have had the same.
        command.arg("--cache-dir").arg(self.directory.path().join("kube-cache"));
        command
    }

    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        run(self.kubectl_command().args(arguments)).ok()
    }

    /// Makes a namespace for one test and waits until pods may be created in it.
    pub fn namespace(&self, name: &str) -> Namespace<'_> {
        self.kubectl(&["create", "namespace", name]);
        let namespace = Namespace { cluster: self, name: name.to_owned() };
        eventually("the default service account", || {
            namespace.try_kubectl(&["get", "serviceaccount", "default"]).succeeded().then_some(())
        });
        namespace
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.reaper.stdin.take());
        let _ = self.reaper.wait();
    }
}

/// Sends a signal to a process that was just found to be one of a test's own.
#[track_caller]
pub fn signal(pid: i32, number: i32) {
    // SAFETY: a plain system call.
    assert_eq!(unsafe { libc::kill(pid, number) }, 0, "signal {number} to {pid}");
}

/// A shell that waits for the end of its input, and then takes the cluster down. In a session of its own: an interrupt of
/// the test run does not reach it.
fn reaper(name: &str, directory: &Path) -> Child {
    let script = "cat >/dev/null; \"$0\" down --name \"$1\" --kubeconfig \"$2/kubeconfig\"; rm -rf \"$2\"";
    let log = fs::File::options().create(true).append(true).open(std::env::temp_dir().join("sampan-e2e-reaper.log"));
    let log = log.unwrap();
    let mut command = Command::new("sh");
    command.args(["-c", script, &sampan(), name]).arg(directory).current_dir("/");
    command.stdin(Stdio::piped()).stdout(log.try_clone().unwrap()).stderr(log);
    // SAFETY: setsid is a plain system call.
    unsafe {
        command.pre_exec(|| if libc::setsid() < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) });
    }
    command.spawn().unwrap()
}

/// A namespace of the cluster. When its test fails, what is in it is printed.
#[derive(Debug)]
pub struct Namespace<'a> {
    pub cluster: &'a Cluster,
    pub name: String,
}

impl Namespace<'_> {
    pub fn kubectl_command(&self) -> Command {
        let mut command = self.cluster.kubectl_command();
        command.args(["--namespace", &self.name]);
        command
    }

    pub fn try_kubectl(&self, arguments: &[&str]) -> Done {
        run(self.kubectl_command().args(arguments))
    }

    #[track_caller]
    pub fn kubectl(&self, arguments: &[&str]) -> String {
        self.try_kubectl(arguments).ok()
    }

    /// With a manifest on standard input, for `-f -`.
    pub fn try_kubectl_with(&self, arguments: &[&str], manifest: &str) -> Done {
        run_with_input(self.kubectl_command().args(arguments), manifest.as_bytes())
    }

    #[track_caller]
    pub fn apply(&self, manifest: &str) {
        self.try_kubectl_with(&["apply", "-f", "-"], manifest).ok();
    }

    /// One value of one object, by JSONPath; empty when absent.
    #[track_caller]
    pub fn field(&self, object: &str, path: &str) -> String {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={path}")])
    }

    /// Waits until a value of an object is this.
    #[track_caller]
    pub fn until(&self, object: &str, path: &str, value: &str) {
        let mut last = String::new();
        let what = format!("{object} {path} to be {value:?}");
        eventually(&what, || {
            last = self.try_kubectl(&["get", object, "-o", &format!("jsonpath={path}")]).stdout;
            (last == value).then_some(())
        });
    }

    #[track_caller]
    pub fn ready(&self, pod: &str) {
        self.kubectl(&["wait", "--for=condition=Ready", &format!("pod/{pod}"), "--timeout=60s"]);
    }

    #[track_caller]
    pub fn rolled_out(&self, deployment: &str) {
        self.kubectl(&["rollout", "status", &format!("deployment/{deployment}"), "--timeout=60s"]);
    }

    /// A pod of busybox that stays, for calls from inside.
    pub fn shell_pod(&self, name: &str) {
        self.kubectl(&["run", name, "--image=busybox:1", "--restart=Never", "--command", "--", "sleep", "3600"]);
        self.ready(name);
    }

    /// A shell command in a pod.
    pub fn sh(&self, pod: &str, command: &str) -> Done {
        self.try_kubectl(&["exec", pod, "--", "sh", "-c", command])
    }

    /// The application of `examples/hello`, here instead of in its own namespace, without Namespace and NodePort clashes.
    pub fn hello(&self) {
        for part in ["config", "secret", "deployment", "service"] {
            let manifest = fs::read_to_string(crate::file(&format!("examples/hello/{part}.yaml"))).unwrap();
            self.apply(&manifest.replace("namespace: hello", &format!("namespace: {}", self.name)));
        }
        self.rolled_out("hello");
    }
}

impl Drop for Namespace<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for arguments in [["get", "all", "-o", "wide"], ["get", "events", "-o", "wide"]] {
                let done = self.try_kubectl(&arguments);
                eprintln!("{}\n{}{}", done.command, done.stdout, done.stderr);
            }
        } else {
            // Makes room for the next test; the cluster goes with the program.
            self.try_kubectl(&["delete", "namespace", &self.name, "--wait=false"]);
        }
    }
}
