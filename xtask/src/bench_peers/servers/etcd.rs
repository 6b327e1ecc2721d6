//! etcd: its arguments, and its leader.

use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::ports::Ports;
use crate::http::ask;
use crate::node::same;

/// Only addresses are set; all other settings have etcd's defaults, fsync included.
pub(super) fn arguments(command: &mut Command, nodes: &[Ports], number: usize, ports: Ports, dir: &Path) {
    let url = |port: u16| format!("http://127.0.0.1:{port}");
    let members: Vec<String> =
        nodes.iter().enumerate().map(|(number, ports)| format!("node{number}={}", url(ports.peer))).collect();
    command.arg("--name").arg(format!("node{number}")).arg("--data-dir").arg(dir.join("data"));
    for flag in ["--listen-client-urls", "--advertise-client-urls"] {
        command.args([flag, &url(ports.client)]);
    }
    for flag in ["--listen-peer-urls", "--initial-advertise-peer-urls"] {
        command.args([flag, &url(ports.peer)]);
    }
    command.args(["--initial-cluster", &members.join(","), "--initial-cluster-state", "new", "--logger", "zap"]);
}

/// The number of the leader, if all nodes agree on it.
pub(super) fn leader(nodes: &[Ports]) -> Option<usize> {
    let view = |ports: &Ports| ask(ports.client, "POST", "/v3/maintenance/status", "{}");
    let views: Vec<Value> = nodes.iter().map(view).collect::<Option<_>>()?;
    let leader = same(views.iter().map(|view| view.get("leader").cloned()))?;
    views.iter().position(|view| view.pointer("/header/member_id") == Some(&json!(leader)))
}
