//! Other clients than kubectl.

use std::process::Command;

use sampan_e2e::{Cluster, python, run};

#[test]
fn the_python_client_does_the_core_of_it() {
    let cluster = Cluster::shared();
    let here = cluster.namespace("python");
    let mut command = Command::new(python());
    command.arg(sampan_e2e::file("tests/e2e/tests/clients.py")).arg(&here.name);
    let done = run(command.env("KUBECONFIG", cluster.kubeconfig()).env("NO_PROXY", "127.0.0.1"));
    assert_eq!(done.ok().trim(), "done");
}
