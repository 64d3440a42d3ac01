//! `cargo xtask vm-test KERNEL MODULES`: the real runtime's tests on a pure cgroup v2 machine, an emulated one. It needs
//! `qemu-system-x86_64` and static busybox, no root and no network.
//!
//! `KERNEL` and `MODULES` are a kernel image and its module directory, for instance from the unpacked package
//! `linux-image-cloud-amd64`: `boot/vmlinuz-VERSION` and `lib/modules/VERSION`.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The runtime needs a root that is a mount, which an initial memory filesystem is not: the first program moves on to one.
const INIT: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /new
/bin/busybox mount -t tmpfs -o size=80% root /new
for name in bin lib lib64 test overlay.ko second; do [ -e /$name ] && /bin/busybox cp -a /$name /new/; done
exec /bin/busybox switch_root /new /second
";

const SECOND: &str = "#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /tmp /run /root /etc
/bin/busybox --install -s /bin
export PATH=/bin HOME=/root RUST_BACKTRACE=0 CI=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
insmod /overlay.ko
ip link set lo up
uname -r; cat /sys/fs/cgroup/cgroup.controllers
/test --test-threads=1 linux::tests cgroup::tests
echo VM-TEST-EXIT=$?
poweroff -f
";

pub fn test(repository: &Path, kernel: &Path, modules: &Path) -> Result<()> {
    let out = repository.join("target/vm");
    fs::create_dir_all(&out).with_context(|| format!("make {}", out.display()))?;
    let archive = out.join("initramfs.cpio");
    fs::write(&archive, initramfs(&test_program(repository)?, modules)?)?;
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "3072", "-nographic", "-no-reboot"])
        .args(["-nic", "none", "-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(&archive)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("run qemu-system-x86_64 (Debian package qemu-system-x86)")?;
    let console = machine.stdout.take().context("the machine's console")?;
    let mut passed = false;
    for line in BufReader::new(console).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).trim_end().to_owned();
        println!("{line}");
        passed |= line == "VM-TEST-EXIT=0";
    }
    machine.wait()?;
    if !passed {
        bail!("the tests did not pass in the machine");
    }
    Ok(())
}

/// Builds the tests of sampan-runtime and finds the program.
fn test_program(repository: &Path) -> Result<PathBuf> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["test", "-p", "sampan-runtime", "--lib", "--no-run", "--message-format=json"])
        .current_dir(repository)
        .stderr(Stdio::inherit())
        .output()
        .context("run cargo")?;
    let executable = |line: &str| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        message["executable"].as_str().map(PathBuf::from)
    };
    let text = String::from_utf8(output.stdout)?;
    text.lines().rev().find_map(executable).context("cargo built no test program")
}

fn initramfs(program: &Path, modules: &Path) -> Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "lib", "lib64", "proc", "sys"] {
        archive.entry(directory, 0o040_755, b"");
    }
    // The kernel gives the first program no console without it.
    archive.node("dev/console", 0o020_600, b"", (5, 1));
    archive.entry("bin/busybox", 0o100_755, &fs::read("/bin/busybox").context("busybox-static is installed")?);
    archive.entry("bin/sh", 0o120_777, b"busybox");
    archive.entry("test", 0o100_755, &fs::read(program)?);
    let module = modules.join("kernel/fs/overlayfs/overlay.ko");
    archive.entry("overlay.ko", 0o100_644, &fs::read(&module).with_context(|| format!("read {}", module.display()))?);
    archive.entry("init", 0o100_755, INIT.as_bytes());
    archive.entry("second", 0o100_755, SECOND.as_bytes());
    for library in libraries(program)? {
        let name = library.file_name().and_then(|name| name.to_str()).context("a library's name")?;
        let directory = if name.starts_with("ld-") { "lib64" } else { "lib" };
        archive.entry(&format!("{directory}/{name}"), 0o100_755, &fs::read(&library)?);
    }
    Ok(archive.finish())
}

/// What the dynamic linker would load.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("run ldd")?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(Into::into)
        .collect())
}

/// A cpio archive of the form the kernel unpacks ("newc").
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.node(name, mode, content, (0, 0));
    }

    fn node(&mut self, name: &str, mode: u32, content: &[u8], (major, minor): (u32, u32)) {
        self.entries += 1;
        let fields =
            [self.entries, mode, 0, 0, 1, 0, content.len() as u32, 0, 0, major, minor, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            // Writing to a vector cannot fail.
            let _ = write!(self.bytes, "{field:08x}");
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, b"");
        self.bytes
    }
}
