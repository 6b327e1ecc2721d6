//! brink: its arguments, and its leader.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::node::{Ports, ask, same};

/// The base URL of a node.
pub(super) fn url(ports: Ports) -> String {
    format!("http://127.0.0.1:{}/kv-store/v1", ports.client)
}

pub(super) fn arguments(command: &mut Command, nodes: &[Ports], number: usize, ports: Ports, dir: &Path) {
    let others = nodes.iter().enumerate().filter(|(other, _)| *other != number);
    let others: Vec<Value> = others.map(|(_, ports)| json!({"url": url(*ports)})).collect();
    command.arg("serve").args(["--listen", &format!("127.0.0.1:{}", ports.client)]);
    command.args(["--advertise-url", &url(ports)]).arg("--data-dir").arg(dir.join("data"));
    command.env("REPLICA_NODES", json!(others).to_string());
}

/// The number of the leader, if all nodes agree on it.
pub(super) fn leader(nodes: &[Ports]) -> Option<usize> {
    let view = |ports: &Ports| {
        let health = ask(ports.client, "GET", "/kv-store/v1/health/", "")?;
        Some(health.pointer("/cluster/leader")?.as_str()?.to_owned())
    };
    let leader = same(nodes.iter().map(view))?;
    nodes.iter().position(|ports| url(*ports) == leader)
}
