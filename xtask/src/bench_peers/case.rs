//! A case of the comparison: a load, and what brink must reach under it.

use super::peer::Peer;

/// The requests that the nodes get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    Writes,
    StrongReads,
    LocalReads,
}

impl Load {
    pub(super) fn is_read(self) -> bool {
        matches!(self, Self::StrongReads | Self::LocalReads)
    }
}

/// One load by a number of clients on a number of nodes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Case {
    pub(super) nodes: usize,
    pub(super) load: Load,
    pub(super) clients: u32,
}

impl Case {
    /// The ratio of brink's rate to a peer's that must be reached, if there is a target.
    pub(super) fn rate_target(self, peer: Peer) -> Option<f64> {
        match (self.nodes, peer, self.load, self.clients) {
            (1, Peer::EtcdJson, Load::Writes, _) => Some(2.0),
            (1, ..) => None,
            (_, Peer::EtcdJson, Load::Writes, 1) => Some(1.6),
            (_, Peer::EtcdJson, Load::Writes, 16) => Some(2.5),
            (_, Peer::EtcdJson, Load::Writes, 64) => Some(3.5),
            (_, Peer::EtcdJson, Load::Writes, 256) => Some(4.0),
            (_, Peer::EtcdJson, Load::StrongReads, 64) => Some(5.0),
            (_, Peer::EtcdJson, Load::LocalReads, 64) => Some(6.0),
            (_, Peer::Etcd, Load::Writes, 16..) => Some(2.5),
            (_, Peer::Nats, Load::Writes, 64 | 256) | (_, Peer::Redis, Load::Writes, 256) => Some(1.0),
            _ => None,
        }
    }

    /// The CPU time of a request to brink, in µs over all nodes, that must not be exceeded, if there is a target.
    pub(super) fn cpu_target_us(self) -> Option<f64> {
        match (self.load, self.clients) {
            _ if self.nodes == 1 => None,
            (Load::Writes, 1) => Some(450.0),
            (Load::Writes, 16) => Some(90.0),
            (Load::Writes, 64) => Some(40.0),
            (Load::Writes, 256) => Some(30.0),
            _ => None,
        }
    }
}
