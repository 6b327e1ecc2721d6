//! The invariants of every simulation, one file each.
//!
//! Some are checked during the simulation, inside the nodes ([`Invariants::observe`]); the others at the end, from the
//! history of the clients and the committed log ([`Invariants::conclude`]).

mod durability;
mod election_safety;
mod idempotency;
mod linearizability;
mod log_matching;
pub(super) mod membership;
mod outcomes;
mod reads;
mod replay;
mod revisions;
mod state_machine_safety;
mod time;

use self::replay::Replay;
use super::{history::History, node::Node};
use crate::replication::types::{LogId, Metrics, decode_stored};
use crate::replication::{Handle, raft::state_machine::APPLIED};
use crate::storage::{Data, Log};

#[derive(Default)]
pub(super) struct Invariants {
    election_safety: election_safety::ElectionSafety,
    log_matching: log_matching::LogMatching,
    state_machine_safety: state_machine_safety::StateMachineSafety,
    revisions: revisions::Revisions,
    /// The changes of members that were requested.
    pub(super) changes: membership::Changes,
    time: time::Time,
}

impl Invariants {
    pub(super) fn observe(&mut self, node: &Node, now_ms: u64) -> Result<(), Violation> {
        let (Some(running), Some(metrics)) = (&node.running, node.metrics()) else { return Ok(()) };
        if let Err(error) = &metrics.running_state {
            // A node that takes a new id stops its engine and starts another, which reads its disks first.
            if matches!(error, openraft::error::Fatal::Stopped) {
                return Ok(());
            }
            return Err(Violation::new("availability", format!("node {} has stopped: {error}", node.number)));
        }
        let leader = metrics.vote.leader_id;
        let view = View {
            number: node.number,
            start: node.starts,
            log: &running.log,
            data: &running.data,
            leads: (metrics.state == openraft::ServerState::Leader).then_some((leader.term, leader.node_id)),
            applied: decode_stored(running.data.meta(APPLIED)).ok().flatten(),
            now_ms,
            time_ms: node.handle().and_then(Handle::applied_time_ms).unwrap_or(0),
        };
        self.log_matching.observe(&view)?;
        self.election_safety.observe(&view, &self.state_machine_safety, &self.log_matching)?;
        self.state_machine_safety.observe(&view, &self.log_matching)?;
        self.time.observe(&view)?;
        self.revisions.observe(&view)
    }

    /// Forgets the log of a crashed node: it may have lost a part.
    pub(super) fn crashed(&mut self, number: usize) {
        self.log_matching.crashed(number);
        self.state_machine_safety.crashed(number);
    }

    /// Checks the whole course, once all members have reached the same state. A linearizable order of all operations is
    /// searched for if `orders` is set.
    pub(super) fn conclude(
        &self,
        history: &History,
        (leader, members): &(Metrics, Vec<&Node>),
        orders: bool,
    ) -> Result<(), Violation> {
        membership::conclude(&self.changes, leader)?;
        let replay = Replay::of(self.state_machine_safety.committed())?;
        let datas: Vec<&Data> = members.iter().map(|node| node.data()).collect();
        idempotency::conclude(history, &datas)?;
        revisions::conclude(history)?;
        self.time.conclude(history, &datas)?;
        durability::conclude(history, &replay)?;
        outcomes::conclude(history, &replay)?;
        reads::conclude(history, &replay)?;
        linearizability::conclude(history, &replay, orders)?;
        state_machine_safety::conclude(&replay, &datas)
    }
}

/// A leadership: a term and the leader's id. openraft may have several leaders in one term; it orders them by id.
type Leadership = (u64, u64);

#[derive(Debug, Clone)]
pub(super) struct Violation {
    pub(super) invariant: &'static str,
    pub(super) detail: String,
}

impl Violation {
    pub(super) fn new(invariant: &'static str, detail: impl Into<String>) -> Self {
        Self { invariant, detail: detail.into() }
    }
}

struct View<'a> {
    number: usize,
    /// The number of its start.
    start: u64,
    log: &'a Log,
    data: &'a Data,
    /// The leadership it believes that it has.
    leads: Option<Leadership>,
    /// The last entry it has applied.
    applied: Option<LogId>,
    /// The world's time.
    now_ms: u64,
    /// The time of the newest round that it has applied; 0 before the first with a time.
    time_ms: u64,
}
