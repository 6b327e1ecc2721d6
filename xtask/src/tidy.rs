//! What the source must look like, checked as tests.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::build::root;

/// The modules of the host and what each may use. Arrows run one way; `telemetry` and `limits` may be used by all.
const ARROWS: [(&str, &[&str]); 10] = [
    ("limits", &[]),
    ("telemetry", &[]),
    ("storage", &[]),
    ("hooks", &["storage"]),
    ("replication", &["storage"]),
    ("write_path", &["hooks", "replication", "storage"]),
    ("registry", &["write_path", "hooks", "replication", "storage"]),
    ("api", &["registry", "write_path", "hooks", "replication", "storage"]),
    ("node", &["api", "registry", "write_path", "hooks", "replication", "storage"]),
    // An author's plugin is tried by the command line, without a node.
    ("cli", &["node", "api", "hooks", "storage"]),
];

/// Crates that a module must not know.
const STRANGERS: [(&str, &[&str]); 4] = [
    ("storage", &["openraft", "wasmtime", "axum", "reqwest"]),
    ("hooks", &["openraft", "fjall", "axum"]),
    ("replication", &["wasmtime", "fjall", "axum"]),
    ("api", &["openraft", "wasmtime", "fjall"]),
];

/// Lines that a file may have.
const LINES_MAX: usize = 800;

/// Every Rust file below a directory of the workspace, with its text.
fn files(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            found.push((path, text));
        }
    }
    found
}

fn host_files() -> Vec<(String, PathBuf, String)> {
    let src = root().join("host/src");
    let module = |path: &Path| {
        let first = path.strip_prefix(&src).unwrap().components().next().unwrap();
        first.as_os_str().to_str().unwrap().trim_end_matches(".rs").to_owned()
    };
    files(&src).into_iter().map(|(path, text)| (module(&path), path, text)).collect()
}

/// Lines that are code, not comment.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.trim_start().starts_with("//"))
}

#[test]
fn imports_run_one_way() {
    for (module, path, text) in host_files() {
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        let allowed = ARROWS.iter().find(|(name, _)| *name == module);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("{module} has no place in the order of modules"));
        for line in code(&text) {
            for (_, rest) in line.match_indices("crate::").map(|(at, found)| line.split_at(at + found.len())) {
                let used = rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap();
                let is_free = used == module || ["telemetry", "limits"].contains(&used);
                assert!(is_free || allowed.contains(&used), "{}: {module} must not use {used}: {line}", path.display());
            }
        }
    }
}

#[test]
fn modules_do_not_know_what_they_need_not() {
    for (module, path, text) in host_files() {
        for (_, strangers) in STRANGERS.iter().filter(|(name, _)| *name == module) {
            for line in code(&text) {
                for stranger in *strangers {
                    let knows = line.contains(&format!("{stranger}::")) || line.contains(&format!("use {stranger}"));
                    assert!(!knows, "{}: {module} must not know {stranger}: {line}", path.display());
                }
            }
        }
    }
}

#[test]
fn every_module_of_the_host_is_in_the_order() {
    let modules: BTreeSet<String> = host_files().into_iter().map(|(module, _, _)| module).collect();
    let ordered: BTreeSet<String> = ARROWS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let others: BTreeSet<String> = ["lib", "main"].map(str::to_owned).into();
    assert_eq!(modules, ordered.union(&others).cloned().collect());
}

#[test]
fn files_are_short_finished_and_say_what_they_are_for() {
    // Spelled apart, so that this file does not find itself.
    let unfinished = [["TO", "DO"], ["FIX", "ME"], ["to", "do!("], ["unimpl", "emented!("], ["#[ig", "nore"]];
    let unfinished = unfinished.map(|parts| parts.concat());
    for dir in ["host", "guest-sdk", "plugins", "tests", "xtask"] {
        for (path, text) in files(&root().join(dir)) {
            let lines = text.lines().count();
            assert!(lines <= LINES_MAX, "{} has {lines} lines", path.display());
            assert!(text.starts_with("//!"), "{} does not say what it is for", path.display());
            for word in &unfinished {
                assert!(!text.contains(word.as_str()), "{} has {word}", path.display());
            }
        }
    }
}

#[test]
fn documents_link_to_what_exists() {
    let mut documents = vec![root().join("README.md"), root().join("ARCHITECTURE.md"), root().join("CHANGELOG.md")];
    let plugins = std::fs::read_dir(root().join("plugins")).unwrap().map(|entry| entry.unwrap().path());
    let others = ["docs", "docs/decisions", "deploy", "guest-sdk"].map(|dir| root().join(dir));
    for dir in plugins.chain(others) {
        let entries = std::fs::read_dir(dir).unwrap();
        let entries = entries.map(|entry| entry.unwrap().path());
        documents.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    for document in documents {
        let text = std::fs::read_to_string(&document).unwrap_or_else(|error| panic!("{}: {error}", document.display()));
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || link.contains("://") {
                continue;
            }
            let target = document.parent().unwrap().join(file);
            assert!(target.exists(), "{} links to {file}, which does not exist", document.display());
        }
    }
}
