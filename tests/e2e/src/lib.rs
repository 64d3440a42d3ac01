//! The harness of the end-to-end tests: the real binary, the real kubectl, real containers. It stands outside: no crate of
//! the product is used here.
//!
//! One cluster per test program ([`Cluster::shared`]), one namespace per test ([`Cluster::namespace`]). A cluster is taken
//! down when the test program ends, however it ends. `make test` runs them; alone:
//! `sudo cargo test -p sampan-e2e --features e2e --test workloads -- --test-threads=1`.

#![allow(clippy::disallowed_methods, reason = "these tests stand outside the seams: real time, real processes")]
#![allow(clippy::unwrap_used, reason = "a harness that cannot go on must stop the test")]

pub mod cluster;
pub mod command;
pub mod load;
pub mod machine;
pub mod registry;

pub use cluster::{Cluster, Namespace, signal};
pub use command::{Done, run, run_with_input};

use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How long a state may take to come about before a test fails. Generous: a loaded machine is no failure.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until there is an answer, and fails the test after [`PATIENCE`]. `what` completes the sentence "waiting for …".
pub fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    const POLL: Duration = Duration::from_millis(50);
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "waiting for {what}: not after {PATIENCE:?}");
        std::thread::sleep(POLL);
    }
}

/// Fails the test when the state does not hold, or stops holding within this time.
pub fn holds_for(what: &str, time: Duration, mut ask: impl FnMut() -> bool) {
    let started = Instant::now();
    while started.elapsed() < time {
        assert!(ask(), "{what}: not any more after {:?}", started.elapsed());
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap().to_path_buf()
}

/// A file of the repository.
pub fn file(path: &str) -> String {
    repository().join(path).to_str().unwrap().to_owned()
}

fn program(variable: &str, default: &str) -> String {
    let path = std::env::var(variable).unwrap_or_else(|_| file(default));
    assert!(std::path::Path::new(&path).exists(), "{path} is missing: run `scripts/test install build images`");
    path
}

/// The binary under test: `$SAMPAN_BIN`, else what `make test` builds.
pub fn sampan() -> String {
    program("SAMPAN_BIN", "target/fast/sampan")
}

/// The real kubectl: `$SAMPAN_KUBECTL`, else what `scripts/install-deps test` installs.
pub fn kubectl() -> String {
    program("SAMPAN_KUBECTL", "target/tools/bin/kubectl")
}

/// The interpreter that has the Python client.
pub fn python() -> String {
    program("SAMPAN_PYTHON", "target/tools/python/bin/python")
}

/// An archive that `cargo xtask images` built.
pub fn archive(name: &str) -> String {
    let path = file(&format!("target/images/{name}.tar"));
    assert!(std::path::Path::new(&path).exists(), "{path} is missing: run `cargo xtask images`");
    path
}
