//! `cargo xtask edges`: which crate of the workspace may use which. ARCHITECTURE.md says why; this file says what.

use anyhow::{Result, bail};

use crate::metadata::Metadata;

/// Each crate and what of the workspace it may use. Everything may use `sampan-api` and `sampan-base` but these two.
const ALLOWED: &[(&str, &[&str])] = &[
    ("sampan-base", &[]),
    ("sampan-api", &["sampan-base"]),
    ("sampan-wire", &[]),
    ("sampan-store", &[]),
    ("sampan-client", &["sampan-wire"]),
    // Only the API server uses the store; it uses the client for its types of requests and for the in-process transport.
    ("sampan-apiserver", &["sampan-store", "sampan-client", "sampan-wire"]),
    ("sampan-scheduler", &["sampan-client"]),
    ("sampan-controllers", &["sampan-client"]),
    ("sampan-runtime", &[]),
    ("sampan-net", &["sampan-client"]),
    ("sampan-node", &["sampan-client", "sampan-runtime", "sampan-net", "sampan-wire"]),
    // The binary alone sees all.
    (
        "sampan",
        &[
            "sampan-apiserver",
            "sampan-client",
            "sampan-controllers",
            "sampan-net",
            "sampan-node",
            "sampan-runtime",
            "sampan-scheduler",
            "sampan-store",
            "sampan-wire",
        ],
    ),
    // It builds images with the runtime's writer.
    ("xtask", &["sampan-runtime"]),
    // It speaks to the API as a client, and enters namespaces to ask the cluster's DNS.
    ("sampan-bench", &["sampan-client", "sampan-net", "sampan-wire"]),
    // From outside only: it starts the binary and kubectl.
    ("sampan-e2e", &[]),
];

const EVERYWHERE: [&str; 2] = ["sampan-api", "sampan-base"];

pub fn check() -> Result<()> {
    let metadata = Metadata::read()?;
    let edges = metadata.members().flat_map(|package| {
        // What a test uses is no edge of the product.
        let used = package.dependencies.iter().filter(|dependency| dependency.kind.as_deref() != Some("dev"));
        used.map(|dependency| (package.name.as_str(), dependency.name.as_str()))
    });
    let names: Vec<&str> = metadata.members().map(|package| package.name.as_str()).collect();
    let wrong = wrong(&names, edges);
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    println!("{} crates keep to the allowed edges", names.len());
    Ok(())
}

fn wrong<'a>(members: &[&str], edges: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<String> {
    let allowed = |name: &str| ALLOWED.iter().find(|(crate_, _)| *crate_ == name).map(|(_, allowed)| *allowed);
    let unknown = members.iter().filter(|name| allowed(name).is_none());
    let mut wrong: Vec<String> =
        unknown.map(|name| format!("{name} is not in the list of xtask/src/edges.rs")).collect();
    for (from, to) in edges.filter(|(_, to)| members.contains(to)) {
        let everywhere = EVERYWHERE.contains(&to) && !EVERYWHERE.contains(&from) && from != "sampan-e2e";
        if !everywhere && allowed(from).is_some_and(|allowed| !allowed.contains(&to)) {
            wrong.push(format!("{from} must not depend on {to}"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    const MEMBERS: [&str; 6] =
        ["sampan-base", "sampan-api", "sampan-store", "sampan-node", "sampan-apiserver", "sampan-client"];

    fn wrong_of(from: &str, to: &str) -> Vec<String> {
        wrong(&MEMBERS, [(from, to)].into_iter())
    }

    #[test]
    fn the_edges_of_the_design() {
        assert!(wrong_of("sampan-apiserver", "sampan-store").is_empty());
        assert!(wrong_of("sampan-node", "sampan-base").is_empty());
        assert!(wrong_of("sampan-node", "serde").is_empty());
        assert_eq!(wrong_of("sampan-node", "sampan-store"), ["sampan-node must not depend on sampan-store"]);
        assert_eq!(wrong_of("sampan-node", "sampan-apiserver"), ["sampan-node must not depend on sampan-apiserver"]);
        assert_eq!(wrong_of("sampan-base", "sampan-api"), ["sampan-base must not depend on sampan-api"]);
        assert_eq!(wrong_of("sampan-store", "sampan-client"), ["sampan-store must not depend on sampan-client"]);
    }

    #[test]
    fn a_new_crate_must_be_listed() {
        assert_eq!(wrong(&["sampan-new"], [].into_iter()), ["sampan-new is not in the list of xtask/src/edges.rs"]);
    }
}
