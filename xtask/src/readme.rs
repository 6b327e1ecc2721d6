//! Runs the README's examples as they are written.
//!
//! Bash runs each shell block that calls a node, against the cluster of `cargo xtask dev`, after all `export` blocks above
//! it. If a text block follows, the output must match it; `…` in the text stands for anything.

use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use crate::build;
use crate::dev::Cluster;
use crate::interrupt::Interrupt;

/// The port of the first node in the README.
const PORT: u16 = 8001;

/// A shell block, and the output it must have.
#[derive(Debug, PartialEq)]
struct Example {
    shell: String,
    prints: Option<String>,
}

/// Starts the cluster of `dev` and runs the examples against it.
pub(crate) fn run() -> anyhow::Result<()> {
    let text = std::fs::read_to_string(build::root().join("README.md")).context("README.md")?;
    let examples = examples(&text);
    if examples.is_empty() {
        bail!("the README has no examples");
    }
    let mut cluster = Cluster::start(PORT)?;
    cluster.prepare(&Interrupt::default())?;
    for example in &examples {
        check(example)?;
    }
    eprintln!("--- {} examples of the README work as written", examples.len());
    cluster.stop()
}

/// The shell blocks that call a node.
fn examples(text: &str) -> Vec<Example> {
    let mut exports = String::new();
    let mut examples = Vec::new();
    let mut blocks = blocks(text).into_iter().peekable();
    while let Some((language, shell)) = blocks.next() {
        if language == "sh" && shell.starts_with("export ") {
            exports.push_str(&shell);
            continue;
        }
        if language != "sh" || !(shell.contains("http://127.0.0.1:") || shell.contains("brink ")) {
            continue;
        }
        let shell = format!("{exports}{shell}");
        let prints = blocks.next_if(|(language, _)| language == "text").map(|(_, text)| text);
        examples.push(Example { shell, prints });
    }
    examples
}

/// The language and contents of each fenced block.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut open: Option<(String, String)> = None;
    for line in text.lines() {
        match (line.strip_prefix("```"), &mut open) {
            (Some(language), None) => open = Some((language.to_owned(), String::new())),
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (None, Some((_, block))) => {
                block.push_str(line);
                block.push('\n');
            }
            (None, None) => {}
        }
    }
    blocks
}

fn check(example: &Example) -> anyhow::Result<()> {
    let bin = build::brink_bin()?;
    let dir = bin.parent().context("the binary is in no directory")?;
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap_or_default());
    let mut command = Command::new("bash");
    command.args(["-uo", "pipefail", "-c", &example.shell]).env("PATH", path);
    let output = command.current_dir(build::root()).stdin(Stdio::null()).output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    // A command that fails prints why to stderr, and the README shows that.
    let printed = format!("{printed}{errors}").replace('\r', "");
    if let Some(expected) = &example.prints {
        if !matches(expected, &printed) {
            bail!("an example of the README\n\n{}\nmust print\n\n{expected}\nand printed\n\n{printed}", example.shell);
        }
    } else if !output.status.success() {
        bail!("an example of the README\n\n{}\nfailed ({}):\n{printed}", example.shell, output.status);
    }
    Ok(())
}

/// Whether `text` contains the parts of `expected` between `…`, in order.
fn matches(expected: &str, text: &str) -> bool {
    let mut rest = text;
    expected.split('…').map(str::trim).filter(|part| !part.is_empty()).all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn examples_are_found_with_what_they_print() {
        let text = "a\n```sh\nexport A=1\n```\n```sh\ncurl http://127.0.0.1:8001/a\n```\nprints\n```text\nx\n```\n```sh\ncargo build\n```\n```sh\nbrink kv list\n```\n";
        let first =
            Example { shell: "export A=1\ncurl http://127.0.0.1:8001/a\n".to_owned(), prints: Some("x\n".to_owned()) };
        let second = Example { shell: "export A=1\nbrink kv list\n".to_owned(), prints: None };
        assert_eq!(examples(text), [first, second]);
    }

    #[test]
    fn an_ellipsis_stands_for_anything() {
        assert!(matches("{\"a\":1,…}\n", "{\"a\":1,\"b\":2}"));
        assert!(!matches("{\"a\":1,…\"c\"", "{\"a\":1,\"b\":2}"));
    }
}
