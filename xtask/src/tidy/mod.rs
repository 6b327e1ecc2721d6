//! The shape of the source, checked as tests.
//!
//! The rooms of the host use each other in one direction, and so do the files of a room. A reader can therefore start at
//! the bottom and understand each file without those above it. [`modules`] reads the files of a crate with `syn` and follows
//! paths through imports and re-exports to the file that defines their item; [`arrows`] checks the order of rooms, and
//! [`circles`] finds files that use each other. Method calls are not followed, since they do not name a type.
//!
//! The other checks look at one file at a time: [`files`], [`test_only`], [`output`], [`promises`], [`documents`],
//! [`lints`].

mod arrows;
mod circles;
mod documents;
mod files;
mod lints;
mod modules;
mod output;
mod paths;
mod promises;
mod source;
mod test_only;

use std::path::Path;

use self::modules::Crate;
use crate::build::root;

/// The crates whose files must not form circles.
const CRATES: [&str; 4] = ["host/src/lib.rs", "guest-sdk/src/lib.rs", "tests/src/lib.rs", "xtask/src/main.rs"];

/// Fails with everything that was found.
fn assert_none(found: Vec<String>) {
    assert!(found.is_empty(), "{} found:\n{}", found.len(), found.join("\n"));
}

#[test]
fn rooms_use_each_other_in_one_direction() {
    let host = Crate::read(&root().join("host/src/lib.rs"));
    assert_eq!(arrows::unknown_rooms(&host), [""; 0], "these rooms are not in the order");
    assert_none(arrows::find(&host));
}

#[test]
fn files_form_no_circles() {
    let mut found = Vec::new();
    for path in CRATES {
        let circles = circles::find(&Crate::read(&root().join(path)));
        found.extend(circles.iter().map(|circle| format!("{path}: {circle}")));
    }
    assert_none(found);
}

#[test]
fn production_code_does_not_ask_whether_it_is_tested() {
    assert_none(test_only::find(&Crate::read(&root().join("host/src/lib.rs"))));
}

#[test]
fn one_file_writes_to_terminals() {
    assert_none(output::find(&Crate::read(&root().join("host/src/lib.rs"))));
}

#[test]
fn files_are_short_finished_and_say_what_they_are_for() {
    assert_none(files::find(&root()));
}

#[test]
fn promises_are_defined() {
    assert_none(promises::find(&root()));
}

#[test]
fn documents_link_to_what_exists() {
    assert_none(documents::find(&root()));
}

#[test]
fn packages_have_the_lints_of_the_workspace() {
    assert_none(lints::find(&root()));
}

/// Writes files into a directory that vanishes with the test.
fn workspace(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    dir
}

fn krate(dir: &Path) -> Crate {
    Crate::read(&dir.join("lib.rs"))
}

#[test]
fn a_circle_made_on_purpose_is_found() {
    let dir = workspace(&[
        ("lib.rs", "mod room;"),
        ("room/mod.rs", "mod a; mod b; mod c; pub use self::a::A;"),
        ("room/a.rs", "use super::b::B; pub struct A(B);"),
        ("room/b.rs", "pub struct B; impl B { fn c(&self) { vec![super::c::c()]; } }"),
        // By the name that `mod.rs` gives it.
        ("room/c.rs", "use super::A;\n pub fn c() -> Option<A> { None }"),
        ("room/d.rs", "not compiled"),
    ]);
    let found = circles::find(&krate(dir.path()));
    let expected = "a circle of 3 files:
    room/a.rs uses room/b.rs (line 1: super::b::B)
    room/b.rs uses room/c.rs (line 1: super::c::c)
    room/c.rs uses room/a.rs (line 1: super::A)";
    assert_eq!(found, [expected]);
}

#[test]
fn a_child_and_its_parent_form_a_circle_if_the_parent_defines_something() {
    let child = ("room/child.rs", "use super::*; pub struct Child(Parent);");
    let declares = workspace(&[
        ("lib.rs", "mod room;"),
        ("room/mod.rs", "mod child; pub use self::child::Child; pub struct Parent;"),
        child,
    ]);
    assert_eq!(circles::find(&krate(declares.path())), [""; 0]);
    let uses = workspace(&[
        ("lib.rs", "mod room;"),
        ("room/mod.rs", "mod child; pub struct Parent(Option<child::Child>);"),
        child,
    ]);
    assert_eq!(circles::find(&krate(uses.path())).len(), 1);
}

#[test]
fn code_for_tests_forms_no_circles() {
    let dir = workspace(&[
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "pub fn a() {} #[cfg(test)] mod tests { use crate::b::b; }"),
        ("b.rs", "use crate::a::a; pub fn b() { a() } #[cfg(test)] mod tests;"),
        ("b/tests.rs", "use super::b; use crate::a;"),
    ]);
    assert_eq!(circles::find(&krate(dir.path())), [""; 0]);
}

#[test]
fn an_arrow_that_runs_back_up_is_found() {
    let dir = workspace(&[
        ("lib.rs", "mod api; mod storage; mod limits; mod attic;"),
        ("api/mod.rs", "use crate::storage::Data; use std::net as sockets; fn a() -> sockets::TcpListener { Data }"),
        ("storage/mod.rs", "mod log; pub struct Data;"),
        ("storage/log.rs", "use super::super::api; use axum::Router;\nfn log() { api::a(); crate::limits::MAX; }"),
        ("limits.rs", "use std::sync::{Arc, Mutex}; pub const MAX: usize = 1;"),
        ("attic.rs", ""),
    ]);
    let host = krate(dir.path());
    let expected = [
        "api/mod.rs:1: sockets::TcpListener: api must not name std::net::TcpListener, only net does",
        "storage/log.rs:1: super::super::api: storage must not use api",
        "storage/log.rs:1: axum::Router: storage must not know axum",
        "limits.rs:1: std::sync::Mutex: limits must not use std::sync::Mutex",
    ];
    assert_eq!(arrows::find(&host), expected);
    assert_eq!(arrows::unknown_rooms(&host), ["attic"]);
}

#[test]
fn a_file_that_is_too_long_is_found_unless_it_says_why() {
    let long = |header: &str| format!("{header}\n{}", "// line\n".repeat(500));
    let dir = workspace(&[
        ("host/long.rs", &long("//! Long.")),
        ("host/table.rs", &long("//! A table. This file is long\n//! because it has a line for each country.")),
        ("xtask/short.rs", "fn short() {}"),
    ]);
    let expected = [
        "host/long.rs has 501 lines; above 500 its header says \"This file is long because …\"",
        "xtask/short.rs does not open with `//!` and what it is for",
    ];
    assert_eq!(files::find(dir.path()), expected);
}

#[test]
fn a_switch_between_tests_and_production_is_found() {
    let dir = workspace(&[(
        "lib.rs",
        "#[cfg(test)] mod tests { struct T { #[cfg(test)] a: u8 } }
        #[cfg(test)] use std::fmt;
        struct S {
            #[cfg(test)] a: u8,
            #[cfg(unix)] b: u8,
        }
        fn f() { if cfg!(test) {} }
        #[cfg(not(test))] fn g() {}
        #[cfg(all(test, unix))] fn h() {}",
    )]);
    let lines = test_only::find(&krate(dir.path()));
    let lines: Vec<_> = lines.iter().filter_map(|line| line.split(':').nth(1)).collect();
    assert_eq!(lines, ["4", "7", "8", "9"]);
}

#[test]
fn what_writes_past_the_one_file_is_found() {
    let dir = workspace(&[
        ("lib.rs", "mod cli; mod node; mod telemetry;"),
        ("cli.rs", "mod io; mod kv; mod serve; #[cfg(test)] mod tests { fn f() { println!(); } }"),
        ("cli/io.rs", "use std::io; fn f() { println!(); io::stdout(); }"),
        ("cli/kv.rs", "use std::io::stdout as out;\nfn f() { let print = || 1; print(); a != b; dbg!(out()); }"),
        ("cli/serve.rs", "use std::io; fn f() { format!(\"\"); io::stderr().is_terminal(); }"),
        ("node.rs", "fn f() {\n select! { _ => std::println!() }\n tokio::io::stderr(); }"),
        ("telemetry/mod.rs", ""),
    ]);
    let mut found = output::find(&krate(dir.path()));
    found.sort();
    let expected = [
        "cli/kv.rs:1: std::io::stdout: only cli/io.rs writes to it",
        "cli/kv.rs:2: dbg!: only cli/io.rs prints",
        "cli/kv.rs:2: std::io::stdout: only cli/io.rs writes to it",
        "node.rs:2: std::println!: only cli/io.rs prints",
        "node.rs:3: tokio::io::stderr: only cli/io.rs writes to it",
        "telemetry/mod.rs does not name std::io::stderr any more",
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_lint_that_is_left_out_in_silence_is_found() {
    let dir = workspace(&[
        (
            "Cargo.toml",
            "[workspace.lints.rust]\n# Why.\na = \"deny\"\nb = \"warn\"\n\n[workspace.lints.clippy]\nc = \"warn\"\n",
        ),
        ("one/Cargo.toml", "[package]\n\n[lints]\nworkspace = true\n"),
        ("two/Cargo.toml", "[package]\n\n# Without `c`.\n[lints.rust]\na = \"warn\"\nb = \"warn\"\n"),
    ]);
    assert_eq!(lints::find(dir.path()), ["two/Cargo.toml neither has the lint a = \"deny\" nor names it in a comment"]);
}

#[test]
fn an_undefined_promise_is_found() {
    let dir = workspace(&[
        ("ARCHITECTURE.md", "- **P1 Kept.** Said.\n"),
        ("docs/a.md", "P1 and P3, not P3a or p4"),
        ("host/a.rs", "//! P2: yes.\nconst P5: u8 = 1; // (P1, P6)"),
        ("tests/a.rs", "//! P1"),
    ]);
    let found = promises::find(dir.path());
    let places: Vec<_> = found.iter().filter_map(|line| line.split_once(": ")).map(|(place, _)| place).collect();
    assert_eq!(places, ["docs/a.md:1", "host/a.rs:1", "host/a.rs:2"]);
}
