//! `cargo xtask docs`: relative links in Markdown lead to files that exist, and the two READMEs show the same commands.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub fn check(repository: &Path) -> Result<()> {
    let mut pages = Vec::new();
    collect(repository, &mut pages)?;
    pages.sort();
    let mut wrong = Vec::new();
    for page in &pages {
        let text = fs::read_to_string(page).with_context(|| format!("read {}", page.display()))?;
        let folder = page.parent().unwrap_or(repository);
        let broken = links(&text).into_iter().filter(|link| !folder.join(link).exists());
        let shown = page.strip_prefix(repository).unwrap_or(page).display();
        wrong.extend(broken.map(|link| format!("{shown}: {link} does not exist")));
    }
    let read = |name: &str| fs::read_to_string(repository.join(name)).with_context(|| format!("read {name}"));
    if commands(&read("README.md")?) != commands(&read("README.zh-CN.md")?) {
        wrong.push("README.md and README.zh-CN.md show different commands".into());
    }
    if !wrong.is_empty() {
        bail!("{}", wrong.join("\n"));
    }
    println!("{} pages have no broken link", pages.len());
    Ok(())
}

fn collect(folder: &Path, pages: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        if entry.file_type()?.is_dir() {
            if name != "target" && !name.to_string_lossy().starts_with('.') {
                collect(&path, pages)?;
            }
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    Ok(())
}

/// The targets of `[text](target)` that are files of the repository, without `#anchor`. Code is skipped.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    for line in prose(text) {
        for rest in line.split("](").skip(1) {
            let target = rest.split(')').next().unwrap_or_default().split('#').next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                links.push(target.to_owned());
            }
        }
    }
    links
}

fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut code = false;
    text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        !code && !fence
    })
}

/// The lines inside fences, without their comments: those are prose, and translated.
fn commands(text: &str) -> Vec<&str> {
    let mut code = false;
    let inside = text.lines().filter(move |line| {
        let fence = line.trim_start().starts_with("```");
        code ^= fence;
        code && !fence
    });
    inside.map(|line| line.split(" # ").next().unwrap_or(line).trim_end()).filter(|line| !line.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "See [a](docs/a.md#part), [b](https://example.org/) and [c](#here).\n```sh\n[x](no.md)\nsampan up   # up\n```\n";

    #[test]
    fn links_are_found_outside_code() {
        assert_eq!(links(PAGE), ["docs/a.md"]);
    }

    #[test]
    fn commands_are_compared_without_comments() {
        assert_eq!(commands(PAGE), ["[x](no.md)", "sampan up"]);
    }
}
