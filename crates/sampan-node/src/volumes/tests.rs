use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;

fn payload(files: &[(&str, &str)]) -> Payload {
    files.iter().map(|(path, data)| ((*path).to_owned(), File::new(data.as_bytes().to_vec(), 0o644))).collect()
}

#[test]
fn a_written_volume_changes_at_once_and_keeps_nothing_old() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = directory.path();
    let read = |path: &str| fs::read_to_string(root.join(path)).ok();
    atomic::write(root, &payload(&[("a", "1"), ("d/b", "2")]), "one", None).expect("written");
    assert_eq!((read("a").as_deref(), read("d/b").as_deref()), (Some("1"), Some("2")));
    let before = fs::read_link(root.join("..data")).expect("a link");
    atomic::write(root, &payload(&[("a", "1"), ("d/b", "2")]), "two", None).expect("written");
    assert_eq!(fs::read_link(root.join("..data")).expect("a link"), before, "nothing changed, nothing written");
    atomic::write(root, &payload(&[("a", "3")]), "three", None).expect("written");
    assert_eq!((read("a").as_deref(), read("d/b")), (Some("3"), None));
    let mut names: Vec<String> = fs::read_dir(root)
        .expect("a list")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, ["..data", "..three", "a"]);
    assert!(matches!(atomic::write(root, &payload(&[("../x", "1")]), "four", None), Err(Error::Escapes(_))));
    assert!(matches!(atomic::write(root, &payload(&[("/x", "1")]), "five", None), Err(Error::Escapes(_))));
}

#[test]
fn keys_are_selected_and_missing_ones_named() {
    let data: BTreeMap<&str, &[u8]> = [("a", b"1".as_slice()), ("b", b"2")].into();
    let item = |key: &str| KeyToPath { key: key.into(), path: format!("x/{key}"), mode: Some(0o400), user: None };
    let all = select("config", &data, None, false, 0o644).expect("all");
    assert_eq!(all.keys().collect::<Vec<_>>(), ["a", "b"]);
    let some = select("config", &data, Some(&vec![item("b")]), false, 0o644).expect("one");
    assert_eq!(some, Payload::from([("x/b".into(), File::new(b"2".to_vec(), 0o400))]));
    let missing = select("config", &data, Some(&vec![item("c")]), false, 0o644).expect_err("missing");
    assert_eq!(missing.to_string(), "references non-existent config key: c");
    assert_eq!(select("config", &data, Some(&vec![item("c")]), true, 0o644).expect("optional"), Payload::new());
}

#[test]
fn a_sub_path_stays_inside_its_volume() {
    let directory = tempfile::tempdir().expect("a directory");
    let outside = tempfile::tempdir().expect("a directory");
    let root = directory.path().canonicalize().expect("a path");
    assert_eq!(subpath::resolve(&root, "a/b").expect("made"), root.join("a/b"));
    assert!(root.join("a/b").is_dir());
    symlink(outside.path(), root.join("out")).expect("a link");
    symlink("a", root.join("in")).expect("a link");
    symlink("../..", root.join("a/up")).expect("a link");
    assert_eq!(subpath::resolve(&root, "in/b").expect("inside"), root.join("a/b"));
    for bad in ["out", "out/x", "a/up", "../x", "/etc"] {
        assert!(matches!(subpath::resolve(&root, bad), Err(Error::Escapes(_))), "{bad}");
    }
    assert!(!outside.path().join("x").exists());
}

#[test]
fn the_group_of_a_pod_owns_its_files() {
    let directory = tempfile::tempdir().expect("a directory");
    let group = nix::unistd::getegid().as_raw();
    fs::write(directory.path().join("f"), "x").expect("a file");
    fs::set_permissions(directory.path().join("f"), fs::Permissions::from_mode(0o600)).expect("a mode");
    ownership::apply(directory.path(), group, false).expect("applied");
    let mode = |path: &Path| fs::metadata(path).expect("metadata").permissions().mode() & 0o7777;
    assert_eq!(mode(&directory.path().join("f")), 0o660);
    assert_eq!(mode(directory.path()) & 0o2770, 0o2770);
}
