//! The inside of a node, as invariants observe it, and their violations.

use crate::replication::types::LogId;
use crate::storage::{Data, Log};

/// A leadership: a term and the leader's id. openraft may have several leaders in one term; it orders them by id.
pub(super) type Leadership = (u64, u64);

/// A violated invariant.
#[derive(Debug, Clone)]
pub(in crate::replication::sim) struct Violation {
    pub(in crate::replication::sim) invariant: &'static str,
    pub(in crate::replication::sim) detail: String,
}

impl Violation {
    pub(in crate::replication::sim) fn new(invariant: &'static str, detail: impl Into<String>) -> Self {
        Self { invariant, detail: detail.into() }
    }
}

/// The inside of a running node.
pub(super) struct View<'a> {
    pub(super) number: usize,
    /// The number of its start.
    pub(super) start: u64,
    pub(super) log: &'a Log,
    pub(super) data: &'a Data,
    /// The leadership it believes that it has.
    pub(super) leads: Option<Leadership>,
    /// The last entry it has applied.
    pub(super) applied: Option<LogId>,
}
