//! A case of the comparison: a load, and what brink must reach under it.

use super::peer::Peer;

/// The requests that the nodes get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    Writes,
    StrongReads,
    LocalReads,
    SingleWrites,
}

impl Load {
    pub(super) fn is_read(self) -> bool {
        matches!(self, Self::StrongReads | Self::LocalReads)
    }
}

/// One load by a number of clients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Case {
    pub(super) load: Load,
    pub(super) clients: u32,
}

impl Case {
    /// The ratio of brink's rate to a peer's that must be reached, if there is a target.
    pub(super) fn rate_target(self, peer: Peer) -> Option<f64> {
        match (peer, self.load, self.clients) {
            (Peer::EtcdJson, Load::Writes, 1) => Some(1.6),
            (Peer::EtcdJson, Load::Writes, 16) => Some(2.5),
            (Peer::EtcdJson, Load::Writes, 64) => Some(3.5),
            (Peer::EtcdJson, Load::Writes, 256) => Some(4.0),
            (Peer::EtcdJson, Load::StrongReads, 64) => Some(5.0),
            (Peer::EtcdJson, Load::LocalReads, 64) => Some(6.0),
            (Peer::EtcdJson, Load::SingleWrites, _) => Some(2.0),
            (Peer::Etcd, Load::Writes, 16..) => Some(2.5),
            (Peer::Nats, Load::Writes, 64 | 256) | (Peer::Redis, Load::Writes, 256) => Some(1.0),
            _ => None,
        }
    }

    /// The CPU time of a request to brink, in µs over all nodes, that must not be exceeded, if there is a target.
    pub(super) fn cpu_target_us(self) -> Option<f64> {
        match (self.load, self.clients) {
            (Load::Writes, 1) => Some(450.0),
            (Load::Writes, 16) => Some(90.0),
            (Load::Writes, 64) => Some(40.0),
            (Load::Writes, 256) => Some(30.0),
            _ => None,
        }
    }
}
