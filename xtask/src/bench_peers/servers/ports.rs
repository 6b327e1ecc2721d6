//! The ports of a node.

use crate::node::free_ports;

/// The ports of a node, all of 127.0.0.1.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ports {
    pub(super) client: u16,
    /// For other nodes, if a server has a port of its own for them.
    pub(super) peer: u16,
    /// For questions about the node, likewise.
    pub(super) monitor: u16,
}

impl Ports {
    /// Ports for some nodes that are free now.
    pub(super) fn free(nodes: usize) -> std::io::Result<Vec<Self>> {
        let ports = free_ports(3 * nodes)?;
        let (each, _) = ports.as_chunks();
        Ok(each
            .iter()
            .map(|[client, peer, monitor]| Self { client: *client, peer: *peer, monitor: *monitor })
            .collect())
    }
}
