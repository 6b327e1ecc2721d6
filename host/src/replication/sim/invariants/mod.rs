//! The invariants of every simulation, one file each.
//!
//! Some are checked during the simulation, inside the nodes ([`Invariants::observe`]); the others at the end, from the
//! history of the clients and the committed log ([`Invariants::conclude`]).

mod durability;
mod election_safety;
mod idempotency;
mod linearizability;
mod log_matching;
mod outcomes;
mod replay;
mod revisions;
mod state_machine_safety;
mod view;

use self::replay::Replay;
use self::view::View;
pub(super) use self::view::Violation;
use super::history::History;
use super::node::Node;
use crate::replication::raft::state_machine::APPLIED;
use crate::replication::types::decode_stored;
use crate::storage::Data;

/// All invariants.
#[derive(Default)]
pub(super) struct Invariants {
    election_safety: election_safety::ElectionSafety,
    log_matching: log_matching::LogMatching,
    state_machine_safety: state_machine_safety::StateMachineSafety,
    revisions: revisions::Revisions,
}

impl Invariants {
    /// Checks a node.
    pub(super) fn observe(&mut self, node: &Node) -> Result<(), Violation> {
        let (Some(running), Some(metrics)) = (&node.running, node.metrics()) else { return Ok(()) };
        if let Err(error) = &metrics.running_state {
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
        };
        self.log_matching.observe(&view)?;
        self.election_safety.observe(&view, &self.state_machine_safety, &self.log_matching)?;
        self.state_machine_safety.observe(&view, &self.log_matching)?;
        self.revisions.observe(&view)
    }

    /// Forgets the log of a crashed node: it may have lost a part.
    pub(super) fn crashed(&mut self, number: usize) {
        self.log_matching.crashed(number);
        self.state_machine_safety.crashed(number);
    }

    /// Checks the whole course, once all members have reached the same state. A linearizable order of all operations is
    /// searched for if `orders` is set.
    pub(super) fn conclude(&self, history: &History, nodes: &[&Node], orders: bool) -> Result<(), Violation> {
        let replay = Replay::of(self.state_machine_safety.committed())?;
        let datas: Vec<&Data> = nodes.iter().map(|node| node.data()).collect();
        idempotency::conclude(history, &datas)?;
        revisions::conclude(history)?;
        durability::conclude(history, &replay)?;
        outcomes::conclude(history, &replay)?;
        linearizability::conclude(history, &replay, orders)?;
        state_machine_safety::conclude(&replay, &datas)
    }
}
