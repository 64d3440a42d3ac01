//! Writes image archives that [`super::Store`] and Docker both load: how test and demo images are built without Docker.

use std::io::{self, Write};

use serde_json::json;

use super::digest;

/// An image of one layer. The same calls give the same bytes.
pub struct Builder {
    layer: tar::Builder<Vec<u8>>,
    config: serde_json::Value,
}

impl Builder {
    /// `config` is the `config` object of an image configuration: `{"Entrypoint": ["/hello"]}`.
    pub fn new(config: serde_json::Value) -> Self {
        Self { layer: tar::Builder::new(Vec::new()), config }
    }

    pub fn directory(&mut self, path: &str, mode: u32) -> io::Result<&mut Self> {
        let mut header = header(tar::EntryType::Directory, mode, 0);
        self.layer.append_data(&mut header, path, io::empty())?;
        Ok(self)
    }

    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<&mut Self> {
        let mut header = header(tar::EntryType::Regular, mode, content.len() as u64);
        self.layer.append_data(&mut header, path, content)?;
        Ok(self)
    }

    pub fn symlink(&mut self, path: &str, target: &str) -> io::Result<&mut Self> {
        let mut header = header(tar::EntryType::Symlink, 0o777, 0);
        self.layer.append_link(&mut header, path, target)?;
        Ok(self)
    }

    /// The archive, in the form of `docker save`.
    pub fn write(self, tags: &[&str], out: impl Write) -> io::Result<()> {
        let layer = self.layer.into_inner()?;
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        });
        let config = serde_json::to_vec(&config)?;
        let config_name = format!("{}.json", digest(&config).trim_start_matches("sha256:"));
        let manifest = json!([{ "Config": config_name, "RepoTags": tags, "Layers": ["layer.tar"] }]);
        let mut archive = tar::Builder::new(out);
        for (name, content) in
            [("manifest.json", serde_json::to_vec(&manifest)?), (config_name.as_str(), config), ("layer.tar", layer)]
        {
            let mut header = header(tar::EntryType::Regular, 0o644, content.len() as u64);
            archive.append_data(&mut header, name, content.as_slice())?;
        }
        archive.into_inner()?.flush()
    }
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// A root filesystem of a static busybox: its applets as links in `/bin`, users, and the usual directories.
pub fn busybox(program: &[u8], applets: &[&str], config: serde_json::Value) -> io::Result<Builder> {
    let mut builder = Builder::new(config);
    for directory in ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "var"] {
        builder.directory(directory, 0o755)?;
    }
    builder.directory("tmp", 0o1777)?;
    builder.file("bin/busybox", 0o755, program)?;
    for applet in applets.iter().filter(|applet| **applet != "busybox") {
        builder.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    builder.symlink("usr/bin", "../bin")?;
    let passwd = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/home:/bin/false\n";
    builder.file("etc/passwd", 0o644, passwd.as_bytes())?;
    builder.file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")?;
    Ok(builder)
}
