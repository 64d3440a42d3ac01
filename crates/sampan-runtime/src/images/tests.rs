//! The store, its archives, and pulling from a registry on loopback.

mod registry;

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use sampan_base::{Clock, Dice};
use serde_json::json;

use self::registry::Registry;
use super::{RegistryOptions, Store, unpack, writer};
use crate::{Error, ImageErrorKind, Images as _, RegistryAuth};

fn store(directory: &std::path::Path) -> Store {
    Store::open(directory, RegistryOptions::default(), Clock::system(), Dice::system()).expect("a store")
}

/// Unpacking changes owners and makes device nodes.
fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "the tests of the image store need root");
    if !root {
        eprintln!("not run, it needs root");
    }
    root
}

fn layer(files: &[(&str, &str)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o640);
        header.set_uid(7);
        header.set_gid(8);
        header.set_mtime(1_000_000_000);
        archive.append_data(&mut header, name, content.as_bytes()).expect("appended");
    }
    archive.into_inner().expect("an archive")
}

fn kind(error: &Error) -> Option<ImageErrorKind> {
    match error {
        Error::Image { kind, .. } => Some(*kind),
        _ => None,
    }
}

#[tokio::test]
async fn images_are_pulled_checked_and_shared() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let store = store(directory.path());
    let registry = Registry::start().await;
    let base = layer(&[("etc/base", "one")]);
    registry.publish("team/app", "1", &[base.clone(), layer(&[("app", "two")])]);
    registry.publish("team/other", "1", &[base, layer(&[("other", "three")])]);
    let name = format!("{}/team/app:1", registry.address);
    let (image, again) = tokio::join!(store.pull(&name, None), store.pull(&name, None));
    let image = image.expect("pulled");
    assert_eq!(again, Ok(image.clone()));
    assert_eq!((image.config.user.as_str(), image.config.cmd.as_slice()), ("5", ["run".to_owned()].as_slice()));
    assert_eq!(image.tags, std::slice::from_ref(&name));
    for reference in [&name, &image.id, &image.digests[0]] {
        assert_eq!(store.get(reference).await, Ok(Some(image.clone())), "{reference}");
    }
    let layers = store.layers(&image.id).expect("layers");
    let file = store.layers_directory().join(&layers[0]).join("etc/base");
    let metadata = std::fs::metadata(&file).expect("a file");
    assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (7, 8, 0o640));
    assert_eq!(metadata.mtime(), 1_000_000_000);

    store.pull(&format!("{}/team/other:1", registry.address), None).await.expect("pulled");
    let blobs = |state: &registry::State| state.requests.iter().filter(|path| path.contains("/blobs/")).count();
    // Two configurations, three layers: what is here, or on its way, is not fetched again.
    let fetched = blobs(&registry.state.lock().expect("not poisoned"));
    assert!((5..=6).contains(&fetched), "{fetched} blobs");

    // By digest, when the tag has moved on.
    registry.publish("team/app", "1", &[layer(&[("app", "new")])]);
    let newer = store.pull(&name, None).await.expect("pulled");
    assert_ne!(newer.id, image.id);
    let older = store.pull(&image.digests[0], None).await.expect("pulled");
    assert_eq!((older.id, older.tags.len()), (image.id.clone(), 0));

    drop(store);
    let store = self::store(directory.path());
    assert_eq!(store.list().await.expect("a list").len(), 3);
    // A container holds the layers of an image that has lost its names.
    store.hold("c1", &image.id);
    store.remove(&image.id).await.expect("removed");
    assert!(store.by_id(&image.id).is_some());
    store.release("c1");
    assert!(store.by_id(&image.id).is_none());
    let left = std::fs::read_dir(store.layers_directory()).expect("layers").count();
    assert_eq!(left, 3, "the shared layer, the new one, and the other image's");
    assert!(file.exists(), "the layer is shared");
}

#[tokio::test]
async fn broken_downloads_are_continued() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let registry = Registry::start().await;
    let mut noise = vec![0; 200_000];
    Dice::seeded(1).fill(&mut noise);
    let noise: String = noise.iter().map(|byte| format!("{byte:02x}")).collect();
    registry.publish("big", "1", &[layer(&[("noise", &noise)])]);
    registry.state.lock().expect("not poisoned").cuts = (50_000, 3);
    let image = store(directory.path()).pull(&format!("{}/big:1", registry.address), None).await.expect("pulled");
    assert_eq!(registry.state.lock().expect("not poisoned").cuts.1, 0);
    assert!(image.size_bytes > 100_000);
}

#[tokio::test]
async fn refusals_are_told_apart() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let store = store(directory.path());
    let registry = Registry::start().await;
    registry.publish("app", "1", &[layer(&[("a", "b")])]);
    let pull = async |name: &str, auth: Option<&RegistryAuth>| {
        let name = name.replace("HERE", &registry.address);
        store.pull(&name, auth).await.map_err(|error| kind(&error).expect("an image error"))
    };
    assert_eq!(pull("HERE/absent:1", None).await.err(), Some(ImageErrorKind::NotFound));
    assert_eq!(pull("HERE/app:2", None).await.err(), Some(ImageErrorKind::NotFound));
    assert_eq!(pull("HERE/App", None).await.err(), Some(ImageErrorKind::InvalidName));
    assert_eq!(pull("127.0.0.1:1/app", None).await.err(), Some(ImageErrorKind::Unreachable));

    registry.state.lock().expect("not poisoned").password = Some("me:secret".to_owned());
    let auth = |username: &str, password: &str, identity: &str| RegistryAuth {
        username: username.to_owned(),
        password: password.to_owned(),
        identity_token: identity.to_owned(),
    };
    assert_eq!(pull("HERE/app:1", None).await.err(), Some(ImageErrorKind::Unauthorized));
    assert_eq!(pull("HERE/app:1", Some(&auth("me", "wrong", ""))).await.err(), Some(ImageErrorKind::Unauthorized));
    assert!(pull("HERE/app:1", Some(&auth("me", "secret", ""))).await.is_ok());
    assert!(pull("HERE/app:1", Some(&auth("", "", "identity"))).await.is_ok());
    registry.state.lock().expect("not poisoned").password = None;

    // A layer whose bytes are not what the manifest says.
    registry.publish("bad", "1", &[layer(&[("a", "tampered with")])]);
    for (path, content) in &mut registry.state.lock().expect("not poisoned").documents {
        if path.starts_with("/v2/bad/blobs/") && content.starts_with(&[0x1f, 0x8b]) {
            let last = content.len() - 1;
            content[last] ^= 1;
        }
    }
    assert_eq!(pull("HERE/bad:1", None).await.err(), Some(ImageErrorKind::Corrupt));
    assert_eq!(std::fs::read_dir(directory.path().join("partial")).expect("a directory").count(), 0);
}

#[tokio::test]
async fn archives_are_loaded_or_refused_whole() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let store = store(directory.path());
    let mut archive = Vec::new();
    let mut builder = writer::Builder::new(json!({ "Entrypoint": ["/app"], "Env": ["A=1"] }));
    builder.file("app", 0o755, b"program").expect("a file");
    builder.write(&["app:1", "other/app:2"], &mut archive).expect("an archive");
    let compressed = zstd::encode_all(archive.as_slice(), 1).expect("compressed");
    for bytes in [&archive, &compressed] {
        let images = store.load(&mut bytes.as_slice()).await.expect("loaded");
        assert_eq!(images.len(), 1);
        assert_eq!(images[0].tags, ["docker.io/library/app:1", "docker.io/other/app:2"]);
        assert_eq!(images[0].config.entrypoint, ["/app"]);
    }
    store.remove("app:1").await.expect("removed");
    assert!(store.get("app:1").await.expect("a look-up").is_none());
    assert!(store.get("other/app:2").await.expect("a look-up").is_some());
    store.remove("other/app:2").await.expect("removed");
    assert_eq!(std::fs::read_dir(store.layers_directory()).expect("layers").count(), 0);

    let half = &archive[..archive.len() / 2];
    let flipped: Vec<u8> = {
        let at = archive.windows(7).position(|window| window == b"program").expect("the content");
        archive.iter().enumerate().map(|(index, byte)| if index == at { byte ^ 1 } else { *byte }).collect()
    };
    for broken in [half, &flipped, b"no archive at all", b"".as_slice()] {
        let error = store.load(&mut &*broken).await.expect_err("broken");
        assert_eq!(kind(&error), Some(ImageErrorKind::Corrupt), "{error}");
    }
    assert_eq!(store.list().await, Ok(Vec::new()));
    assert_eq!(std::fs::read_dir(directory.path().join("partial")).expect("a directory").count(), 0);
}

#[test]
fn layers_become_what_overlayfs_wants() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("layer");
    let mut archive = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, link: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o755);
        header.set_size(0);
        header.set_mtime(1_000_000_000);
        header.set_uid(0);
        header.set_gid(0);
        match link {
            "" => archive.append_data(&mut header, name, std::io::empty()).expect("appended"),
            link => archive.append_link(&mut header, name, link).expect("appended"),
        }
    };
    add("new/.wh..wh..opq", tar::EntryType::Regular, "");
    add("old/.wh.gone", tar::EntryType::Regular, "");
    add("setuid", tar::EntryType::Regular, "");
    add("hard", tar::EntryType::Link, "setuid");
    add("dir", tar::EntryType::Directory, "");
    add("dir", tar::EntryType::Symlink, "/etc");
    let archive = archive.into_inner().expect("an archive");
    unpack::layer(archive.as_slice(), &place).expect("unpacked");
    let gone = std::fs::symlink_metadata(place.join("old/gone")).expect("a whiteout");
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let (path, mut value) =
        (std::ffi::CString::new(place.join("new").as_os_str().as_encoded_bytes()).expect("a path"), [0u8; 8]);
    // SAFETY: terminated strings and a buffer with its length.
    let length = unsafe {
        libc::getxattr(path.as_ptr(), c"trusted.overlay.opaque".as_ptr(), value.as_mut_ptr().cast(), value.len())
    };
    assert_eq!((length, value[0]), (1, b'y'));
    let inode = |name: &str| std::fs::metadata(place.join(name)).expect("a file").ino();
    assert_eq!(inode("hard"), inode("setuid"));
    assert!(std::fs::symlink_metadata(place.join("dir")).expect("a link").is_symlink(), "a later entry replaces");
}

#[test]
fn nothing_is_written_outside_the_layer() {
    if !is_root() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let (place, outside) = (directory.path().join("layer"), directory.path().join("outside"));
    std::fs::create_dir_all(&outside).expect("a directory");
    let raw = |entries: &[(&str, tar::EntryType, &str)]| {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, kind, link) in entries {
            let mut header = tar::Header::new_old();
            // As a malicious tool would write it: the library's own checks are not asked.
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            header.set_size(0);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_cksum();
            archive.append(&header, std::io::empty()).expect("appended");
        }
        archive.into_inner().expect("an archive")
    };
    let climbing = outside.to_str().expect("a path").trim_start_matches('/');
    let up = format!("../../../../../../{climbing}");
    let absolute = outside.to_str().expect("a path");
    use tar::EntryType::{Link, Regular, Symlink};
    for entries in [
        vec![("../outside/x", Regular, "")],
        vec![("trap", Symlink, up.as_str()), ("trap/x", Regular, "")],
        vec![("trap", Symlink, absolute), ("trap/x", Regular, "")],
        vec![("x", Link, "../outside/x")],
        vec![("trap", Symlink, absolute), ("trap/.wh.y", Regular, "")],
    ] {
        // Refused, or made inside: both are right.
        let _ = unpack::layer(raw(&entries).as_slice(), &place);
        assert_eq!(std::fs::read_dir(&outside).expect("a directory").count(), 0, "{entries:?}");
        let _ = std::fs::remove_dir_all(&place);
    }
}
