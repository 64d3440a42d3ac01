//! Builds the holder, a separate small static program, for the target this crate is built for; `src/holder.rs` embeds it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let variable = |name: &str| env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"));
    let source = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("../sampan-holder");
    let target = variable("TARGET");
    let out = PathBuf::from(variable("OUT_DIR")).join("holder");
    for path in ["src", "Cargo.toml", "Cargo.lock"] {
        println!("cargo::rerun-if-changed={}", source.join(path).display());
    }
    let mut cargo = Command::new(variable("CARGO"));
    // What was set for the outer build (flags, wrappers, directories) is not meant for this one.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let foreign =
            ["RUSTFLAGS", "RUSTC", "RUSTDOC", "CARGO_ENCODED_RUSTFLAGS", "CARGO_TARGET_DIR", "CARGO_BUILD_TARGET"];
        if foreign.contains(&text.as_ref())
            || text.starts_with("CARGO_PROFILE_")
            || text.starts_with("CARGO_CFG_")
            || text.starts_with("RUSTC_W")
            || text.starts_with("CARGO_FEATURE_")
        {
            cargo.env_remove(&name);
        }
    }
    let status = cargo
        .args(["build", "--release", "--locked", "--quiet", "--manifest-path"])
        .arg(source.join("Cargo.toml"))
        .args(["--target", &target, "--target-dir"])
        .arg(&out)
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static")
        .status()
        .unwrap_or_else(|error| panic!("cargo cannot be run: {error}"));
    assert!(status.success(), "the holder (crates/sampan-holder) does not build for {target}");
    let program = out.join(&target).join("release/sampan-holder");
    println!("cargo::rustc-env=SAMPAN_HOLDER={}", program.display());
}
