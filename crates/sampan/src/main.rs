//! The `sampan` binary: command line in, exit code out. Everything else is a library or a module of its own; the wiring
//! of server and node stands in [`server`] and [`node`].

mod cli;
mod doctor;
mod image;
mod kubeconfig;
mod local;
mod node;
mod output;
mod process;
mod server;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What went wrong, as the exit code says it. Anything else is 1.
#[derive(Debug, thiserror::Error)]
pub enum Exit {
    #[error("{0}")]
    Timeout(String),
    #[error("there is no cluster {0:?} on this machine (sampan status lists them)")]
    NoCluster(String),
}

impl Exit {
    fn code(&self) -> u8 {
        match self {
            Self::Timeout(_) => 3,
            Self::NoCluster(_) => 4,
        }
    }
}

fn main() -> ExitCode {
    // Where huge pages are always on, each process of a cluster would hold megabytes it never uses. Inherited by the
    // processes we start; the holder takes it back for containers. Without effect where the kernel refuses.
    let _ = nix::sys::prctl::set_thp_disable(true);
    let cli = Cli::parse();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sampan: {error:#}");
            ExitCode::from(error.downcast_ref::<Exit>().map_or(1, Exit::code))
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Up(options) => local::up::run(&options),
        Command::Down(options) => local::down::run(&options),
        Command::Status(options) => local::status::run(&options),
        Command::Logs(options) => local::logs::run(&options),
        Command::Doctor(options) => doctor::run(&options),
        Command::Kubeconfig(named) => local::status::kubeconfig(&named),
        Command::Image(command) => image::run(&command),
        Command::Version(options) => {
            output::version(&options);
            Ok(())
        }
        Command::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "sampan", &mut std::io::stdout());
            Ok(())
        }
        Command::Server(config) => server::run(&config.config),
        Command::Node(config) => node::run(&config.config),
        Command::Supervise(named) => local::supervisor::run(&named.name),
        Command::NodeInit(config) => local::init::run(&config.config),
    }
}
