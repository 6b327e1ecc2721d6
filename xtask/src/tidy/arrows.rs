//! Which room of the host may use which, and which crates each knows.

use std::collections::BTreeSet;

use super::modules::{Crate, Target, Use};

/// Rooms that others use freely, from the bottom up. Each may use those before it.
const FREE: [&str; 5] = ["limits", "clock", "text", "json", "telemetry"];

/// The other rooms, from the bottom up, and which of the others each may use.
const ROOMS: [(&str, &[&str]); 11] = [
    ("net", &[]),
    ("storage", &[]),
    ("sandbox", &[]),
    ("hooks", &["sandbox", "storage"]),
    ("replication", &["net", "storage"]),
    ("write_path", &["hooks", "sandbox", "replication", "storage"]),
    ("registry", &["write_path", "hooks", "sandbox", "replication", "storage"]),
    ("api", &["net", "registry", "write_path", "hooks", "sandbox", "replication", "storage"]),
    ("console", &["net", "registry", "write_path", "hooks", "sandbox", "replication", "storage"]),
    ("node", &["net", "api", "console", "registry", "write_path", "hooks", "sandbox", "replication", "storage"]),
    // The command line reaches a node over HTTP. It tries an author's plugin without one.
    ("cli", &["net", "node", "hooks", "sandbox", "storage"]),
];

/// Crates that a room must not know.
const STRANGERS: [(&str, &[&str]); 10] = [
    ("net", &["openraft", "wasmtime", "fjall"]),
    ("storage", &["openraft", "wasmtime", "axum", "reqwest", "hyper"]),
    ("sandbox", &["openraft", "fjall", "axum", "reqwest", "hyper"]),
    ("hooks", &["openraft", "wasmtime", "fjall", "axum", "reqwest", "hyper"]),
    ("replication", &["wasmtime", "fjall", "axum"]),
    ("write_path", &["openraft", "wasmtime", "fjall", "axum"]),
    ("registry", &["openraft", "wasmtime", "fjall", "axum"]),
    ("api", &["openraft", "wasmtime", "fjall"]),
    ("node", &["openraft", "wasmtime"]),
    ("cli", &["openraft", "wasmtime", "fjall", "axum"]),
];

/// Paths that one room alone names.
const RESERVED: [(&str, &[&str]); 2] = [
    (
        "net",
        &[
            "tokio::net",
            "std::net::TcpListener",
            "std::net::TcpStream",
            "socket2",
            "reqwest::Client::builder",
            "reqwest::Client::new",
            "reqwest::ClientBuilder",
            "reqwest::blocking",
        ],
    ),
    ("clock", &["std::time::SystemTime::now"]),
];

/// Paths that no room names: their locks are poisoned by a panic, those of `parking_lot` are not.
const BANNED: [&str; 3] = ["std::sync::Mutex", "std::sync::RwLock", "std::sync::PoisonError"];

/// Describes each file that breaks a rule above, with the first line that does.
pub(super) fn find(host: &Crate) -> Vec<String> {
    let mut found = Vec::new();
    let mut seen = BTreeSet::new();
    for used in host.uses() {
        let file = &host.files[used.file];
        let Some(room) = room(&file.name) else { continue };
        for rule in broken(host, room, &used) {
            if seen.insert((used.file, rule.clone())) {
                let path = used.path.segments.join("::");
                found.push(format!("{}:{}: {path}: {room} must not {rule}", file.name, used.path.line));
            }
        }
    }
    found
}

/// The rules that one use breaks. Code for tests keeps to the order of rooms too, but may open sockets and read the clock.
fn broken(host: &Crate, room: &str, used: &Use<'_>) -> Vec<String> {
    let path = match &used.target {
        Target::Item(file) => return wrong_arrow(room, &host.files[*file].name),
        Target::Module(module) => return wrong_arrow(room, &host.files[host.file_of(*module)].name),
        Target::Outside(path) => path.join("::"),
    };
    let is_named = |name: &&str| path.strip_prefix(*name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    let mut rules: Vec<String> =
        BANNED.iter().filter(|name| is_named(name)).map(|name| format!("use {name}")).collect();
    for (_, strangers) in STRANGERS.iter().filter(|(name, _)| *name == room) {
        rules.extend(strangers.iter().filter(|name| is_named(name)).map(|name| format!("know {name}")));
    }
    for (owner, reserved) in RESERVED.iter().filter(|(owner, _)| *owner != room && !used.in_test) {
        let named = reserved.iter().filter(|name| is_named(name));
        rules.extend(named.map(|name| format!("name {name}, only {owner} does")));
    }
    rules
}

/// A message if a room must not use the room of a file.
fn wrong_arrow(from: &str, file: &str) -> Vec<String> {
    room(file).filter(|to| !may_use(from, to)).map(|to| format!("use {to}")).into_iter().collect()
}

/// Rooms that are not in the order.
pub(super) fn unknown_rooms(host: &Crate) -> Vec<&str> {
    let is_known = |room: &str| FREE.contains(&room) || ROOMS.iter().any(|(name, _)| *name == room);
    host.files.iter().filter_map(|file| room(&file.name)).filter(|room| !is_known(room)).collect()
}

/// The room of a file: its top folder, or the file itself. The crate's root is in no room.
fn room(name: &str) -> Option<&str> {
    let room = name.split('/').next()?.trim_end_matches(".rs");
    (!["lib", "main"].contains(&room)).then_some(room)
}

fn may_use(from: &str, to: &str) -> bool {
    let height = |room: &str| FREE.iter().position(|free| *free == room);
    match (height(from), height(to)) {
        _ if from == to => true,
        (None, Some(_)) => true,
        (Some(from), Some(to)) => to < from,
        (_, None) => ROOMS.iter().any(|(name, others)| *name == from && others.contains(&to)),
    }
}
