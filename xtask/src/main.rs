//! Chores that are programs: `cargo xtask schema <folder>` makes `schema/` from the published API data, `cargo xtask images`
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
