//! Takes the descriptions of types and fields out of the doc comments of the k8s-openapi dependency, so that
//! `kubectl explain` has them and the repository does not. Writes one compressed text; `src/descriptions.rs` reads it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

/// The API version whose sources are read; the workspace enables the same feature of the dependency.
const API: &str = "v1_37";

type Failure = Box<dyn std::error::Error>;

/// Of one type: its own description under ``, those of its fields under their JSON names.
type Texts = BTreeMap<String, String>;

fn main() -> Result<(), Failure> {
    println!("cargo::rerun-if-changed=build.rs");
    let sources = dependency()?.join("src").join(API);
    let mut types = BTreeMap::new();
    for file in rust_files(&sources)? {
        scan(&fs::read_to_string(file)?, &mut types);
    }
    if types.len() < 500 {
        return Err(
            format!("only {} described types in {}: has its layout changed?", types.len(), sources.display()).into()
        );
    }
    let compressed = zstd::encode_all(render(&types).as_bytes(), 19)?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("descriptions.zst"), compressed)?;
    Ok(())
}

/// Where cargo keeps the sources of k8s-openapi. Without the network first: all that is asked for is unpacked already
/// unless this is a fresh checkout built without its development dependencies.
fn dependency() -> Result<PathBuf, Failure> {
    let metadata = |offline: &[&str]| -> Result<Vec<u8>, Failure> {
        let output = Command::new(env::var("CARGO")?)
            .args(["metadata", "--format-version", "1", "--locked", "--filter-platform", &env::var("TARGET")?])
            .args(offline)
            .current_dir(env::var("CARGO_MANIFEST_DIR")?)
            .output()?;
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)).into())
        }
    };
    let metadata = metadata(&["--offline"]).or_else(|_| metadata(&[]))?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata)?;
    let packages = metadata["packages"].as_array().into_iter().flatten();
    let manifest = packages
        .filter(|package| package["name"] == "k8s-openapi")
        .find_map(|package| package["manifest_path"].as_str())
        .ok_or("k8s-openapi is not among the dependencies")?;
    Ok(Path::new(manifest).parent().ok_or("a manifest is in a directory")?.to_owned())
}

fn rust_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Reads one generated file: a line names the definition, doc comments precede the struct and its fields, and the
/// decoder's match arms tell the fields' JSON names.
fn scan(source: &str, types: &mut BTreeMap<String, Texts>) {
    let mut name = None;
    let mut docs: Vec<String> = Vec::new();
    let mut fields: BTreeMap<&str, String> = BTreeMap::new();
    let mut texts = Texts::new();
    let mut inside = false;
    for line in source.lines().map(str::trim) {
        if let Some(definition) = line.strip_prefix("// Generated from definition ") {
            keep(types, name.replace(definition), std::mem::take(&mut texts));
            fields.clear();
        } else if let Some(text) = line.strip_prefix("///") {
            docs.push(plain(text.trim()));
        } else if line.starts_with("pub struct ") || line.starts_with("pub enum ") {
            inside = line.ends_with('{');
            texts.insert(String::new(), joined(&mut docs));
        } else if let (true, Some((field, _))) =
            (inside, line.strip_prefix("pub ").and_then(|rest| rest.split_once(':')))
        {
            fields.insert(field, joined(&mut docs));
        } else if let Some((json, field)) = line.strip_prefix('"').and_then(|rest| rest.split_once("\" => Field::Key_"))
        {
            let text = fields.get(field.trim_end_matches(','));
            texts.extend(text.map(|text| (json.to_owned(), text.clone())));
        } else if line == "}" {
            inside = false;
        } else if !line.starts_with("#[") {
            docs.clear();
        }
    }
    keep(types, name, texts);
}

fn keep(types: &mut BTreeMap<String, Texts>, name: Option<&str>, mut texts: Texts) {
    texts.retain(|_, text| !text.is_empty());
    if let (Some(name), false) = (name, texts.is_empty()) {
        types.insert(name.to_owned(), texts);
    }
}

/// Without the backslashes that keep rustdoc from reading markup.
fn plain(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let escape = c == '\\' && chars.peek().is_some_and(|next| "<>[]*_#`".contains(*next));
        if !escape {
            out.push(c);
        }
    }
    out
}

/// Paragraphs joined by blank lines.
fn joined(docs: &mut Vec<String>) -> String {
    let text = docs.join("\n");
    docs.clear();
    text.trim().to_owned()
}

/// Control characters divide: a record a type (`\u{1e}`), in it the name, then field and text by turns (`\u{1f}`).
fn render(types: &BTreeMap<String, Texts>) -> String {
    let mut out = String::new();
    for (name, texts) in types {
        out += &format!("\u{1e}{name}");
        for (field, text) in texts {
            out += &format!("\u{1f}{field}\u{1f}{text}");
        }
    }
    out
}
