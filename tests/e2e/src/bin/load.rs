//! `load [--rate N] [--workers N] http://ADDRESS:PORT/PATH -- COMMAND…`: requests while the command runs, each on a
//! connection of its own; then what came of them. Exit code 1 when a request or the command failed.

#![allow(clippy::disallowed_methods, reason = "it measures real time from outside the cluster")]

use std::net::{SocketAddr, ToSocketAddrs};
use std::process::{Command, ExitCode};

use sampan_e2e::load::Load;

const USAGE: &str = "usage: load [--rate N] [--workers N] http://ADDRESS:PORT/PATH -- COMMAND...";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((load, command)) = parse(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let (status, report) = load.during(|| Command::new(&command[0]).args(&command[1..]).status());
    println!(
        "{} requests in {:.1} s, {} failed; half within {:.1} ms, 99 % within {:.1} ms",
        report.requests,
        report.took.as_secs_f64(),
        report.failed(),
        report.quantile(0.5).as_secs_f64() * 1000.0,
        report.quantile(0.99).as_secs_f64() * 1000.0,
    );
    for (failure, count) in &report.failures {
        println!("  {count:>6} failed: {failure}");
    }
    for (who, count) in &report.answers {
        println!("  {count:>6} answers of {who}");
    }
    match status {
        Ok(status) if status.success() && report.failed() == 0 && report.requests > 0 => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("load: {}: {error}", command[0]);
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: &[String]) -> Option<(Load, &[String])> {
    let split = arguments.iter().position(|argument| argument == "--")?;
    let (options, command) = (&arguments[..split], &arguments[split + 1..]);
    let (url, options) = options.split_last()?;
    let (authority, path) = url.strip_prefix("http://")?.split_once('/')?;
    let address: SocketAddr = authority.to_socket_addrs().ok()?.next()?;
    let mut load = Load::new(address, &format!("/{path}"));
    for option in options.chunks(2) {
        match option {
            [name, value] if name == "--rate" => load.rate = value.parse().ok().filter(|rate| *rate > 0)?,
            [name, value] if name == "--workers" => load.workers = value.parse().ok().filter(|workers| *workers > 0)?,
            _ => return None,
        }
    }
    (!command.is_empty()).then_some((load, command))
}
