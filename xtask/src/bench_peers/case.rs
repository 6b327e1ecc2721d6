//! A case of the comparison: a load, and the ratio that brink must reach under it.

/// The requests that the nodes get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Load {
    Writes,
    StrongReads,
    LocalReads,
    SingleWrites,
}

/// One load by a number of clients.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Case {
    pub(super) load: Load,
    pub(super) clients: u32,
    /// The ratio of brink's rate to etcd's that must be reached, if there is a target.
    pub(super) target: Option<f64>,
}

impl Case {
    /// A case with its target.
    pub(super) fn new(load: Load, clients: u32) -> Self {
        let target = match (load, clients) {
            (Load::Writes, 1) => Some(1.6),
            (Load::Writes, 16) => Some(2.5),
            (Load::Writes, 64) => Some(3.5),
            (Load::Writes, 256) => Some(4.0),
            (Load::Writes, _) => None,
            (Load::StrongReads, 64) => Some(5.0),
            (Load::LocalReads, 64) => Some(6.0),
            (Load::StrongReads | Load::LocalReads, _) => None,
            (Load::SingleWrites, _) => Some(2.0),
        };
        Self { load, clients, target }
    }
}
