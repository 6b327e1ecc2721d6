//! Redis: its arguments, and whether the replicas follow.
//!
//! The first node is the primary, the others are its replicas; nobody elects another. The primary syncs a write before it
//! answers; a replica acknowledges what it has received.

use std::path::Path;
use std::process::Command;

use super::ports::Ports;
use crate::http::ask_text;

pub(super) fn arguments(command: &mut Command, nodes: &[Ports], number: usize, ports: Ports, dir: &Path) {
    command.args(["--port", &ports.client.to_string(), "--bind", "127.0.0.1", "--save", ""]).arg("--dir").arg(dir);
    command.args(["--appendonly", "yes", "--appendfsync", "always"]);
    // A new replica is served at once, instead of waiting for others that may come.
    command.args(["--repl-diskless-sync-delay", "0"]);
    if let (Some(primary), true) = (nodes.first(), number > 0) {
        command.args(["--replicaof", "127.0.0.1", &primary.client.to_string()]);
    }
}

/// The primary, once all replicas follow it.
pub(super) fn leader(nodes: &[Ports]) -> Option<usize> {
    let info = ask_text(nodes.first()?.client, "INFO replication\r\nQUIT\r\n")?;
    let online = info.lines().filter(|line| line.starts_with("slave") && line.contains("state=online")).count();
    (info.contains("role:master") && online + 1 == nodes.len()).then_some(0)
}
