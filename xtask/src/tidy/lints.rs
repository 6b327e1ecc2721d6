//! Lints: a package with lint tables of its own has the workspace's lints, or names in a comment those that it leaves out.

use std::path::Path;

use super::source;

/// Describes each lint of the workspace that a package leaves out in silence.
pub(super) fn find(root: &Path) -> Vec<String> {
    let workspace = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let mut found = Vec::new();
    for (path, text) in source::files(root, &[""], "toml") {
        if !text.contains("\n[lints.") {
            continue;
        }
        for tool in ["rust", "clippy"] {
            let own: Vec<&str> = table(&text, &format!("[lints.{tool}]")).collect();
            for lint in table(&workspace, &format!("[workspace.lints.{tool}]")) {
                let name = lint.split(' ').next().unwrap_or_default();
                let is_named = text.lines().any(|line| line.starts_with('#') && line.contains(&format!("`{name}`")));
                if !own.contains(&lint) && !is_named {
                    found.push(format!("{path} neither has the lint {lint} nor names it in a comment"));
                }
            }
        }
    }
    found
}

/// The entries of a table, one a line.
fn table<'a>(text: &'a str, header: &str) -> impl Iterator<Item = &'a str> {
    let lines = text.lines().skip_while(move |line| *line != header).skip(1);
    lines.take_while(|line| !line.starts_with('[')).filter(|line| !line.is_empty() && !line.starts_with('#'))
}
