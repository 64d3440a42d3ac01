//! Chores that are programs: `cargo xtask schema <folder>` makes `schema/` from the published API data, `cargo xtask images`
//! builds the images of tests and the demo, `cargo xtask vm-test` runs the runtime's tests in a virtual machine; the rest are
//! checks that `make test` runs, each described in its file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

mod docs;
mod edges;
mod images;
mod licences;
mod metadata;
mod promises;
mod schema;
mod tsv;
mod vm;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["schema", data] => schema::generate(Path::new(data), &repository()?.join("schema")),
        ["images"] => images::build(&repository()?).map(drop),
        ["docs"] => docs::check(&repository()?),
        ["edges"] => edges::check(),
        ["licences"] => licences::check(),
        ["promises"] => promises::check(&repository()?),
        ["vm-test", kernel, modules] => vm::test(&repository()?, Path::new(kernel), Path::new(modules)),
        _ => bail!(
            "usage: cargo xtask docs | edges | images | licences | promises | vm-test <kernel> <modules> | \
             schema <folder with fields.tsv, types.tsv, enums.tsv and resources.tsv>"
        ),
    }
}

/// The repository's root: the folder above this crate.
fn repository() -> Result<PathBuf> {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    Ok(manifest.parent().context("xtask has no parent folder")?.to_path_buf())
}
