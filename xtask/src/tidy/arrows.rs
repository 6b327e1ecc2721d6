//! Which room of the host may use which, and which crates each knows.

use super::modules::{Crate, Target};

/// Rooms that others use freely, from the bottom up. Each may use those before it.
const FREE: [&str; 4] = ["limits", "clock", "json", "telemetry"];

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
    // An author's plugin is tried by the command line, without a node.
    ("cli", &["net", "node", "api", "hooks", "sandbox", "storage"]),
];

/// Crates that a room must not know.
const STRANGERS: [(&str, &[&str]); 6] = [
    ("storage", &["openraft", "wasmtime", "axum", "reqwest", "hyper"]),
    ("sandbox", &["openraft", "fjall", "axum", "reqwest", "hyper"]),
    ("hooks", &["openraft", "fjall", "axum", "reqwest", "hyper"]),
    ("replication", &["wasmtime", "fjall", "axum"]),
    ("api", &["openraft", "wasmtime", "fjall"]),
    ("net", &["openraft", "wasmtime", "fjall"]),
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

/// Describes each file that breaks a rule above, with the first line that does. Code for tests keeps the order of rooms too,
/// and may open sockets.
pub(super) fn find(host: &Crate) -> Vec<String> {
    let mut found: Vec<(String, String)> = Vec::new();
    for used in host.uses() {
        let file = &host.files[used.file];
        let Some(room) = room(&file.name) else { continue };
        let mut complain = |what: String| {
            let rule = format!("{room} must not {what}");
            if !found.iter().any(|(place, other)| *other == rule && place.starts_with(&format!("{}:", file.name))) {
                let path = used.path.segments.join("::");
                found.push((format!("{}:{}: {path}", file.name, used.path.line), rule));
            }
        };
        let target = match &used.target {
            Target::Item(file) => *file,
            Target::Module(module) => host.file_of(*module),
            Target::Outside(path) => {
                let path = path.join("::");
                let stranger = STRANGERS.iter().filter(|(name, _)| *name == room).flat_map(|(_, crates)| *crates);
                stranger.filter(|stranger| starts_with(&path, stranger)).for_each(|it| complain(format!("know {it}")));
                BANNED.iter().filter(|banned| starts_with(&path, banned)).for_each(|it| complain(format!("use {it}")));
                let reserved = RESERVED.iter().filter(|(owner, _)| *owner != room && !used.in_test);
                let reserved = reserved.flat_map(|(owner, paths)| paths.iter().map(move |path| (owner, path)));
                for (owner, it) in reserved.filter(|(_, reserved)| starts_with(&path, reserved)) {
                    complain(format!("name {it}, only {owner} does"));
                }
                continue;
            }
        };
        match self::room(&host.files[target].name) {
            Some(below) if !may_use(room, below) => complain(format!("use {below}")),
            _ => {}
        }
    }
    found.into_iter().map(|(place, rule)| format!("{place}: {rule}")).collect()
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

fn may_use(room: &str, other: &str) -> bool {
    let height = |room: &str| FREE.iter().position(|free| *free == room);
    let allowed = || ROOMS.iter().any(|(name, others)| *name == room && others.contains(&other));
    room == other || height(other).is_some_and(|other| height(room).is_none_or(|room| other < room)) || allowed()
}

fn starts_with(path: &str, start: &str) -> bool {
    path.strip_prefix(start).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}
