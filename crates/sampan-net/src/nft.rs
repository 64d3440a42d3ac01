//! Whole nftables tables as text, through the `nft` program: for what is set up once. Changes of elements go by netlink.

use std::io::Write;
use std::process::{Command, Stdio};

use crate::NetError;

/// Runs a script, all or nothing. Blocks for some milliseconds.
pub fn run(script: &str) -> Result<(), NetError> {
    let spawned = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = spawned.map_err(|error| NetError::Missing {
        missing: format!("cannot run nft: {error}"),
        remedy: "install the package nftables (sampan doctor tells what else is missing)".into(),
    })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(script.as_bytes()).map_err(|error| NetError::step("write to nft", error))?;
    }
    let output = child.wait_with_output().map_err(|error| NetError::step("wait for nft", error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(NetError::System(format!("nft refused a table: {}", String::from_utf8_lossy(&output.stderr).trim())))
}

/// A script that replaces a table whole, whether it exists or not.
pub fn replace(family: &str, table: &str, body: &str) -> String {
    format!("table {family} {table} {{}}\ndelete table {family} {table}\ntable {family} {table} {{\n{body}}}\n")
}

/// A script that deletes a table, whether it exists or not.
pub fn delete(family: &str, table: &str) -> String {
    format!("table {family} {table} {{}}\ndelete table {family} {table}\n")
}
