//! Election safety and leader completeness: a leadership belongs to one start of one node, and a leader holds all entries
//! committed before.
//!
//! Raft has one leader in a term; openraft orders the leaders of one term by id, so a leadership is the pair of both. A
//! restarted node must not continue to lead, since it has forgotten its promises: a leadership seen in two starts of a node
//! is a violation.

use std::collections::HashMap;

use super::{Leadership, View, Violation};
use super::{log_matching::LogMatching, state_machine_safety::StateMachineSafety};

const NAME: &str = "election-safety";

/// Every leadership seen so far, with its node and the number of the node's start.
#[derive(Default)]
pub(super) struct ElectionSafety {
    leaderships: HashMap<Leadership, (usize, u64)>,
}

impl ElectionSafety {
    pub(super) fn observe(
        &mut self,
        view: &View<'_>,
        machine: &StateMachineSafety,
        logs: &LogMatching,
    ) -> Result<(), Violation> {
        let Some(leadership) = view.leads else { return Ok(()) };
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
        let earlier = machine.committed().iter().rev().find(|(_, (writer, _))| *writer < leadership);
        let Some((index, (writer, _))) = earlier.filter(|(index, _)| **index > applied) else { return Ok(()) };
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
}
