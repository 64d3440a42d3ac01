//! `cargo xtask images`: builds the images of tests and the demo (see `images/README.md`) without Docker.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sampan_runtime::images::writer::{self, Builder};
use serde_json::json;

/// Writes the archives to `target/images`. Returns their paths.
pub fn build(repository: &Path) -> Result<Vec<PathBuf>> {
    let out = repository.join("target/images");
    fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    let archives = [
        ("hello", hello(repository, &out)?, ["hello:1", "hello:2"].as_slice()),
        ("busybox", busybox(repository)?, &["busybox:1"]),
    ];
    let mut paths = Vec::new();
    for (name, builder, tags) in archives {
        let path = out.join(format!("{name}.tar"));
        let file = File::create(&path).with_context(|| format!("write {}", path.display()))?;
        builder.write(tags, BufWriter::new(file)).with_context(|| format!("write {}", path.display()))?;
        println!("{}: {}", path.display(), tags.join(", "));
        paths.push(path);
    }
    Ok(paths)
}

fn hello(repository: &Path, out: &Path) -> Result<Builder> {
    let (source, build) = (repository.join("images/hello/Cargo.toml"), out.join("build"));
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--quiet", "--target", &target, "--target-dir"])
        .arg(&build)
        .arg("--manifest-path")
        .arg(&source)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .status()
        .context("run cargo")?;
    if !status.success() {
        bail!("{} does not build", source.display());
    }
    let program = build.join(&target).join("release/hello");
    let program = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
    let config = json!({
        "Entrypoint": ["/hello"],
        "Env": ["VERSION=1"],
        "User": "65534:65534",
        "ExposedPorts": { "8080/tcp": {} },
    });
    let mut builder = Builder::new(config);
    builder.file("hello", 0o755, &program)?;
    Ok(builder)
}

fn busybox(repository: &Path) -> Result<Builder> {
    let places = [repository.join("target/tools/bin/busybox-static"), "/bin/busybox".into(), "/usr/bin/busybox".into()];
    let path = places.into_iter().find(|path| path.exists());
    let path = path.context("busybox is missing: run scripts/install-deps run")?;
    let list = Command::new(&path).arg("--list").output().with_context(|| format!("run {}", path.display()))?;
    let applets = String::from_utf8(list.stdout).context("busybox --list")?;
    let program = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let config = json!({ "Cmd": ["sh"], "Env": ["PATH=/bin"] });
    Ok(writer::busybox(&program, &applets.lines().collect::<Vec<_>>(), config)?)
}
