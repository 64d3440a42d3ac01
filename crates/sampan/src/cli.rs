//! The command line: what can be asked. What is done stands in the module of each command.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

/// A container orchestrator in one binary that speaks the Kubernetes API.
#[derive(Debug, Parser)]
#[command(
    name = "sampan",
    version,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not in time, 4 no such cluster.\n\n\
                  Examples:\n  \
                  sudo sampan up                         a cluster of one node on this machine\n  \
                  sudo sampan up --nodes 3 --publish 8080:80\n  \
                  kubectl get nodes                      the context is already in your kubeconfig\n  \
                  sudo sampan down                       remove it all"
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring up a cluster on this machine and wait until it works
    Up(Up),
    /// Take a local cluster down and remove what it made on this machine
    Down(Down),
    /// What runs: clusters, processes, addresses, and what was changed on this machine
    Status(Status),
    /// The logs of a cluster's own processes
    Logs(Logs),
    /// Check what this machine lacks or blocks, with the remedy
    Doctor(Output),
    /// Print the kubeconfig of a local cluster
    Kubeconfig(Named),
    /// Images in a local cluster
    #[command(subcommand)]
    Image(Image),
    /// Version and build
    Version(Output),
    /// Completion script for a shell
    Completion { shell: clap_complete::Shell },
    /// Run the control plane in the foreground (what systemd starts)
    Server(Config),
    /// Run the node agent in the foreground (what systemd starts)
    Node(Config),
    /// Looks after one local cluster's processes; started by `up`
    #[command(hide = true)]
    Supervise(Named),
    /// PID 1 of a local node; started by `supervise`
    #[command(hide = true)]
    NodeInit(Config),
}

#[derive(Clone, Debug, Args)]
pub struct Named {
    /// Which local cluster
    #[arg(long, default_value = crate::local::DEFAULT_NAME)]
    pub name: String,
}

#[derive(Clone, Debug, Args)]
pub struct Output {
    /// Print JSON
    #[arg(short, long, value_parser = ["json"])]
    pub output: Option<String>,
}

#[derive(Clone, Debug, Args)]
pub struct Config {
    /// A JSON file; see docs/configuration.md
    #[arg(long)]
    pub config: PathBuf,
}

#[derive(Clone, Debug, Args)]
#[command(after_help = "Examples:\n  sudo sampan up\n  sudo sampan up --name ci --nodes 2 --timeout 30s\n  \
                        sudo sampan up --publish 8080:80 --mount ~/src:/src")]
pub struct Up {
    #[command(flatten)]
    pub named: Named,
    /// How many nodes, each an isolated host on this machine
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub nodes: u8,
    /// Answer on this machine's HOST for a LoadBalancer Service's PORT: [ADDRESS:]HOST:PORT (address: 127.0.0.1)
    #[arg(long, value_name = "HOST:PORT", value_parser = parse_publish)]
    pub publish: Vec<Publish>,
    /// Show a directory of this machine to the nodes (for hostPath volumes)
    #[arg(long, value_name = "SRC:DST", value_parser = parse_mount)]
    pub mount: Vec<Mount>,
    /// Where the cluster keeps its state [default: /var/lib/sampan/clusters/NAME]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// The kubeconfig to merge the context into [default: the invoking user's]
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
    /// Give up after this long
    #[arg(long, default_value = "60s", value_parser = parse_duration)]
    pub timeout: Duration,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Clone, Debug, Args)]
pub struct Down {
    #[command(flatten)]
    pub named: Named,
    /// All local clusters
    #[arg(long, conflicts_with = "name")]
    pub all: bool,
    /// Keep the state, so that `up` continues where `down` stopped
    #[arg(long)]
    pub keep_data: bool,
    /// The kubeconfig to take the context out of [default: the invoking user's]
    #[arg(long, value_name = "PATH")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct Status {
    /// Only this cluster
    #[arg(long)]
    pub name: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Clone, Debug, Args)]
pub struct Logs {
    #[command(flatten)]
    pub named: Named,
    /// Only this process: `server`, `supervisor` or a node's name
    pub process: Option<String>,
    /// Write all logs and the state of the cluster to a directory, for a bug report
    #[arg(long, value_name = "DIR")]
    pub export: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Image {
    /// Load an archive (`docker save`, OCI layout) into all nodes; `-` reads standard input
    Load {
        archive: PathBuf,
        #[command(flatten)]
        named: Named,
    },
    /// Pull an image into all nodes
    Pull {
        reference: String,
        #[command(flatten)]
        named: Named,
    },
    /// List the images of the nodes
    Ls {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        output: Output,
    },
    /// Remove an image from all nodes
    Rm {
        reference: String,
        #[command(flatten)]
        named: Named,
    },
}

/// A port of this machine that leads to a Service of type LoadBalancer.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Publish {
    pub listen: SocketAddr,
    pub port: u16,
}

/// A directory of this machine that the nodes see.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mount {
    pub source: PathBuf,
    pub target: PathBuf,
}

fn parse_publish(text: &str) -> Result<Publish, String> {
    let wrong = || format!("{text:?} is not [ADDRESS:]HOST:PORT, for example 8080:80");
    let (listen, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let listen = match listen.rsplit_once(':') {
        Some(_) => listen.parse().map_err(|_| wrong())?,
        None => SocketAddr::from(([127, 0, 0, 1], listen.parse().map_err(|_| wrong())?)),
    };
    Ok(Publish { listen, port: port.parse().map_err(|_| wrong())? })
}

fn parse_mount(text: &str) -> Result<Mount, String> {
    let (source, target) = text.split_once(':').ok_or_else(|| format!("{text:?} is not SRC:DST"))?;
    let (source, target) = (PathBuf::from(source), PathBuf::from(target));
    let source = source.canonicalize().map_err(|error| format!("{}: {error}", source.display()))?;
    if !target.is_absolute() || target.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(format!("{}: the target must be an absolute path without ..", target.display()));
    }
    Ok(Mount { source, target })
}

/// `90s`, `2m`, `1h30m`.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let span: jiff::SignedDuration = text.parse().map_err(|_| format!("{text:?} is not a duration such as 90s"))?;
    Duration::try_from(span).map_err(|_| format!("{text:?} is negative"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn publish_takes_an_optional_address() {
        let publish = |text| parse_publish(text).map(|publish| (publish.listen.to_string(), publish.port));
        assert_eq!(publish("8080:80"), Ok(("127.0.0.1:8080".into(), 80)));
        assert_eq!(publish("0.0.0.0:8443:443"), Ok(("0.0.0.0:8443".into(), 443)));
        assert!(publish("80").is_err());
        assert!(publish("x:80").is_err());
    }
}
