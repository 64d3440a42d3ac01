//! `cargo xtask licences`: every dependency must offer a licence of the permissive list. `cargo deny` checks the same with
//! `deny.toml` and more, where it is installed; this needs nothing but cargo.

use anyhow::{Result, bail};

use crate::metadata::{Metadata, Package};

/// `deny.toml` lists the same.
const PERMISSIVE: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Zlib",
];

pub fn check() -> Result<()> {
    let metadata = Metadata::read()?;
    let foreign: Vec<&Package> = metadata.packages.iter().filter(|package| package.source.is_some()).collect();
    let mut wrong = Vec::new();
    for package in &foreign {
        let licence = package.license.as_deref().unwrap_or("no licence");
        if !fits(licence) {
            wrong.push(format!("{} {}: {licence}", package.name, package.version));
        }
    }
    if !wrong.is_empty() {
        bail!("not permissive:\n  {}", wrong.join("\n  "));
    }
    println!("{} dependencies have a permissive licence", foreign.len());
    Ok(())
}

/// Whether an SPDX expression can be met from the list: of `OR` one side, of `AND` both. Old crates write `/` for `OR`.
fn fits(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let words = expression.replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = words.split_whitespace().collect();
    let mut position = 0;
    let result = either(&words, &mut position);
    result && position == words.len()
}

fn either(words: &[&str], position: &mut usize) -> bool {
    let mut result = both(words, position);
    while words.get(*position) == Some(&"OR") {
        *position += 1;
        result |= both(words, position);
    }
    result
}

fn both(words: &[&str], position: &mut usize) -> bool {
    let mut result = one(words, position);
    while words.get(*position) == Some(&"AND") {
        *position += 1;
        result &= one(words, position);
    }
    result
}

fn one(words: &[&str], position: &mut usize) -> bool {
    let Some(word) = words.get(*position) else { return false };
    *position += 1;
    if *word == "(" {
        let result = either(words, position);
        *position += 1;
        return result && words.get(*position - 1) == Some(&")");
    }
    if words.get(*position) == Some(&"WITH") {
        let exception = words.get(*position + 1).copied().unwrap_or_default();
        *position += 2;
        return PERMISSIVE.contains(&format!("{word} WITH {exception}").as_str());
    }
    PERMISSIVE.contains(word)
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn expressions() {
        for fine in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(MIT OR Apache-2.0) AND Unicode-3.0",
            "ISC AND (Apache-2.0 OR ISC)",
        ] {
            assert!(fits(fine), "{fine}");
        }
        assert!(fits("Apache-2.0 WITH LLVM-exception OR GPL-2.0"));
        for bad in
            ["GPL-3.0", "MIT AND GPL-3.0", "GPL-2.0 WITH Classpath-exception-2.0", "no licence", "", "(MIT", "MIT MIT"]
        {
            assert!(!fits(bad), "{bad}");
        }
    }
}
