//! brink: its arguments, and its leader.

use std::path::Path;
use std::process::Command;

use super::ports::Ports;
use crate::node;

pub(super) fn arguments(command: &mut Command, nodes: &[Ports], _number: usize, own: Ports, dir: &Path) {
    node::without_settings(command);
    node::serve(command, &clients(nodes), own.client, dir);
}

/// The number of the leader, if all nodes agree on it.
pub(super) fn leader(nodes: &[Ports]) -> Option<usize> {
    node::leader(&clients(nodes))
}

fn clients(nodes: &[Ports]) -> Vec<u16> {
    nodes.iter().map(|ports| ports.client).collect()
}
