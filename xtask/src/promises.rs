//! `cargo xtask promises`: every row of `docs/promises.md` must name a test that exists and runs.
//!
//! A row is `| promise | tests |`, where each test is `` `path/of/file.rs::function` ``.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

pub fn check(repository: &Path) -> Result<()> {
    let path = repository.join("docs/promises.md");
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let (count, wrong) = examine(&text, |file| fs::read_to_string(repository.join(file)).ok());
    if !wrong.is_empty() {
        bail!("docs/promises.md:\n  {}", wrong.join("\n  "));
    }
    if count == 0 {
        bail!("docs/promises.md has no promises");
    }
    println!("{count} promises have their tests");
    Ok(())
}

/// How many promises there are, and what is wrong with them.
fn examine(text: &str, read: impl Fn(&str) -> Option<String>) -> (usize, Vec<String>) {
    let mut count = 0;
    let mut wrong = Vec::new();
    for line in text.lines().filter(|line| line.starts_with("| ")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [promise, tests] = cells.as_slice() else {
            wrong.push(format!("not two cells: {line}"));
            continue;
        };
        if *promise == "Promise" || promise.starts_with("---") {
            continue;
        }
        count += 1;
        let named: Vec<&str> = tests.split('`').skip(1).step_by(2).collect();
        if named.is_empty() {
            wrong.push(format!("no test: {promise}"));
        }
        for name in named {
            if let Some(problem) = problem(name, &read) {
                wrong.push(format!("{name}: {problem} ({promise})"));
            }
        }
    }
    (count, wrong)
}

fn problem(name: &str, read: impl Fn(&str) -> Option<String>) -> Option<&'static str> {
    let Some((file, function)) = name.split_once(".rs::") else { return Some("is not path/of/file.rs::function") };
    let Some(source) = read(&format!("{file}.rs")) else { return Some("there is no such file") };
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let starts = [format!("fn {function}("), format!("async fn {function}(")];
    let Some(position) = lines.iter().position(|line| starts.iter().any(|start| line.starts_with(start))) else {
        return Some("there is no such function");
    };
    // Attributes and comments stand directly above a function.
    let above = lines[..position].iter().rev().take_while(|line| line.starts_with("#[") || line.starts_with("//"));
    let attributes: Vec<&&str> = above.filter(|line| line.starts_with("#[")).collect();
    let is_test = |line: &&&str| line.starts_with("#[test") || line.contains("::test");
    if !attributes.iter().any(is_test) {
        return Some("the function is not a test");
    }
    if attributes.iter().any(|line| line.starts_with("#[ignore")) {
        return Some("the test is ignored");
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "#[test]\nfn works() {}\n\nfn helper() {}\n\n#[tokio::test]\n// Slow.\n#[ignore = \"slow\"]\n\
                          async fn ignored() {}\n";

    fn wrong(row: &str) -> Vec<String> {
        let read = |file: &str| (file == "a/b.rs").then(|| SOURCE.to_owned());
        let (count, wrong) = examine(&format!("| Promise | Tests |\n| --- | --- |\n{row}\n"), read);
        assert_eq!(count, 1);
        wrong
    }

    #[test]
    fn a_promise_needs_a_test_that_runs() {
        assert!(wrong("| it works | `a/b.rs::works` |").is_empty());
        assert_eq!(wrong("| it works | later |"), ["no test: it works"]);
        for (test, why) in [
            ("a/b.rs::absent", "there is no such function"),
            ("a/c.rs::works", "there is no such file"),
            ("a/b.rs::helper", "the function is not a test"),
            ("a/b.rs::ignored", "the test is ignored"),
            ("works", "is not path/of/file.rs::function"),
        ] {
            assert_eq!(wrong(&format!("| p | `a/b.rs::works`, `{test}` |")), [format!("{test}: {why} (p)")]);
        }
    }
}
