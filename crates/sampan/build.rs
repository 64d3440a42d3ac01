//! Links the binary to a fixed address: a position-independent one writes its relocations, megabytes of type descriptions,
//! into private memory of each of a cluster's processes.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-link-arg-bin=sampan=-no-pie");
}
