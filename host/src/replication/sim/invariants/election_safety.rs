//! Election safety and leader completeness: a leadership belongs to one start of one node, and a leader holds all entries
//! committed before.
//!
//! Raft has one leader in a term; openraft orders the leaders of one term by id, so a leadership is the pair of both. A
//! restarted node must not continue to lead, since it has forgotten its promises: a leadership seen in two starts of a node
//! is a violation.
//!
//! An entry may be committed by a later leader than the one that wrote it. Which one did is not seen, but it was not later than
//! the newest leadership at the moment at which the first node applied the entry. A node that was paused may find out late that
//! it was elected before that, and need not hold the entry: it can commit nothing any more.

use std::collections::{BTreeMap, HashMap};

use super::{Leadership, View, Violation};
use super::{log_matching::LogMatching, state_machine_safety::StateMachineSafety};

const NAME: &str = "election-safety";

/// Every leadership seen so far, with its node and the number of the node's start.
#[derive(Default)]
pub(super) struct ElectionSafety {
    leaderships: HashMap<Leadership, (usize, u64)>,
    newest: Option<Leadership>,
    /// For each committed entry, the newest leadership when it was first applied.
    committed_until: BTreeMap<u64, Leadership>,
}

impl ElectionSafety {
    pub(super) fn observe(
        &mut self,
        view: &View<'_>,
        machine: &StateMachineSafety,
        logs: &LogMatching,
    ) -> Result<(), Violation> {
        self.note_committed(machine);
        let Some(leadership) = view.leads else { return Ok(()) };
        self.newest = self.newest.max(Some(leadership));
        let own = (view.number, view.start);
        match self.leaderships.insert(leadership, own) {
            Some(before) if before == own => return Ok(()),
            Some(before) => {
                let detail = format!("{leadership:?} was led by (node, start) {before:?} and {own:?}");
                return Err(Violation::new(NAME, detail));
            }
            None => {}
        }
        // A new leader must hold every entry committed under earlier leaders.
        let applied = view.applied.map_or(0, |applied| applied.index);
        let earlier = self.committed_until.iter().rev().find(|(_, newest)| **newest < leadership);
        let Some((index, _)) = earlier.filter(|(index, _)| **index > applied) else { return Ok(()) };
        let Some((writer, _)) = machine.committed().get(index) else { return Ok(()) };
        let held = logs.entry(view.number, *index).map(|(writer, _)| writer);
        if held == Some(*writer) {
            return Ok(());
        }
        let node = view.number;
        let detail = format!(
            "node {node} leads as {leadership:?} without the committed entry {index} of {writer:?}; it holds {held:?}"
        );
        Err(Violation::new(NAME, detail))
    }

    fn note_committed(&mut self, machine: &StateMachineSafety) {
        let next = self.committed_until.last_key_value().map_or(0, |(index, _)| index + 1);
        for (index, (writer, _)) in machine.committed().range(next..) {
            let newest = self.newest.map_or(*writer, |newest| newest.max(*writer));
            self.committed_until.insert(*index, newest);
        }
    }
}
