//! A real image registry (Debian's `docker-registry`) on loopback, over plain HTTP, with images of `cargo xtask images`
//! pushed through its API.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::command::run;
use crate::{eventually, program};

/// What the registry asks for when it asks for a password.
pub const USER: &str = "sailor";
pub const PASSWORD: &str = "kelp-and-salt";

/// A running registry; ended when dropped.
#[derive(Debug)]
pub struct Registry {
    pub address: SocketAddr,
    process: Child,
    protected: bool,
}

impl Registry {
    /// Starts one with its data in a directory.
    pub fn start(directory: &Path, protected: bool) -> Self {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let data = directory.join(format!("registry-{}", address.port()));
        fs::create_dir_all(&data).unwrap();
        let mut config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: {address}\n",
            data.display()
        );
        if protected {
            let passwords = data.join("passwords");
            fs::write(&passwords, format!("{USER}:{}\n", bcrypt(PASSWORD))).unwrap();
            config += &format!("auth:\n  htpasswd: {{realm: test, path: {}}}\n", passwords.display());
        }
        let path = data.join("config.yml");
        fs::write(&path, config).unwrap();
        let registry = program("SAMPAN_REGISTRY", "target/tools/bin/docker-registry");
        let mut command = Command::new(registry);
        command.arg("serve").arg(&path).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().unwrap();
        let registry = Self { address, process, protected };
        eventually("the registry to listen", || TcpStream::connect(address).ok());
        registry
    }

    /// The name of an image in it.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.address)
    }

    /// Pushes the first image of a `docker save` archive.
    pub fn push(&self, archive: &str, repository: &str, tag: &str) {
        let unpacked = tempfile::tempdir().unwrap();
        run(Command::new("tar").args(["-xf", archive, "-C"]).arg(unpacked.path())).ok();
        let read = |name: &str| fs::read(unpacked.path().join(name)).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&read("manifest.json")).unwrap();
        let config = manifest[0]["Config"].as_str().unwrap();
        let layers = manifest[0]["Layers"].as_array().unwrap();
        let layers = layers.iter().map(|layer| layer.as_str().unwrap());
        let described = |name: &str, kind: &str| {
            let (digest, size) = self.push_blob(repository, &unpacked.path().join(name));
            serde_json::json!({"mediaType": kind, "digest": digest, "size": size})
        };
        let image = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described(config, "application/vnd.oci.image.config.v1+json"),
            "layers": layers.map(|layer| described(layer, "application/vnd.oci.image.layer.v1.tar")).collect::<Vec<_>>(),
        });
        let path = unpacked.path().join("pushed.json");
        fs::write(&path, image.to_string()).unwrap();
        let url = format!("http://{}/v2/{repository}/manifests/{tag}", self.address);
        let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json";
        self.curl(&["--request", "PUT", "--header", kind, "--data-binary", &format!("@{}", path.display()), &url]);
    }

    /// A blob in one piece: a session, then the content. Returns digest and size.
    fn push_blob(&self, repository: &str, path: &Path) -> (String, u64) {
        let sum = run(Command::new("sha256sum").arg(path)).ok();
        let digest = format!("sha256:{}", sum.split_whitespace().next().unwrap());
        let start = format!("http://{}/v2/{repository}/blobs/uploads/", self.address);
        let headers = self.curl(&["--request", "POST", "--dump-header", "-", "--output", "/dev/null", &start]);
        let location = headers.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("location").then(|| value.trim().to_owned())
        });
        let location = location.unwrap();
        let join = if location.contains('?') { '&' } else { '?' };
        let url = format!("{location}{join}digest={digest}");
        let data = format!("@{}", path.display());
        self.curl(&[
            "--request",
            "PUT",
            "--header",
            "Content-Type: application/octet-stream",
            "--data-binary",
            &data,
            &url,
        ]);
        (digest, fs::metadata(path).unwrap().len())
    }

    fn curl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--noproxy", "*"]);
        if self.protected {
            command.args(["--user", &format!("{USER}:{PASSWORD}")]);
        }
        run(command.args(arguments)).ok()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// By the C library's `crypt`, through perl, which every Debian has.
fn bcrypt(password: &str) -> String {
    let script = "print crypt($ARGV[0], '$2y$05$abcdefghijklmnopqrstuu')";
    let hash = run(Command::new("perl").args(["-e", script, password])).ok();
    assert!(hash.starts_with("$2"), "crypt does not know bcrypt: {hash}");
    hash
}
