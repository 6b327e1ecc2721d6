//! Log matching: entries at the same position are equal in every log, and so are all entries before them.
//!
//! A position is an index and the leadership that wrote the entry. If two logs have an entry at the same position, the
//! entries are equal, and the previous entries have the same position; the rest follows by induction (section 3.5 of
//! Ongaro's thesis).

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::{Leadership, View, Violation};
use crate::replication::types::{LogEntry, decode};
use openraft::entry::RaftEntry;

const NAME: &str = "log-matching";

/// The entry seen at a position, and the leadership that wrote the previous entry.
struct Seen {
    entry: Bytes,
    before: Option<Leadership>,
}

/// All positions seen so far, and the log of each node.
#[derive(Default)]
pub(super) struct LogMatching {
    positions: HashMap<(u64, Leadership), Seen>,
    logs: HashMap<usize, BTreeMap<u64, Leadership>>,
}

impl LogMatching {
    /// Checks the new part of a node's log, from its end back to the known part.
    pub(super) fn observe(&mut self, view: &View<'_>) -> Result<(), Violation> {
        let held = self.logs.entry(view.number).or_default();
        let Some((first, last)) = view.log.first_last() else {
            held.clear();
            return Ok(());
        };
        // Drop entries that were removed at either end.
        held.split_off(&(last + 1));
        *held = held.split_off(&first);
        let mut after = None;
        for index in (first..=last).rev() {
            let Some(entry) = view.log.get(index).map_err(unreadable)? else { break };
            let position = (index, leadership_of(&entry)?);
            let seen = self.positions.entry(position).or_insert_with(|| Seen { entry: entry.clone(), before: None });
            if seen.entry != entry {
                let detail = format!("node {} holds another entry at {position:?} than was seen there", view.number);
                return Err(Violation::new(NAME, detail));
            }
            if let Some(seen) = after.and_then(|after| self.positions.get_mut(&after))
                && let Some(known) = seen.before.replace(position.1)
                && known != position.1
            {
                let detail = format!("before {after:?} node {} holds {position:?}, another {known:?}", view.number);
                return Err(Violation::new(NAME, detail));
            }
            if held.insert(index, position.1) == Some(position.1) {
                break;
            }
            after = Some(position);
        }
        Ok(())
    }

    /// The entry that a node holds at an index, as of the last check.
    pub(super) fn entry(&self, number: usize, index: u64) -> Option<(Leadership, Bytes)> {
        let leadership = *self.logs.get(&number)?.get(&index)?;
        Some((leadership, self.positions.get(&(index, leadership))?.entry.clone()))
    }

    pub(super) fn crashed(&mut self, number: usize) {
        self.logs.remove(&number);
    }
}

fn leadership_of(bytes: &[u8]) -> Result<Leadership, Violation> {
    let entry: LogEntry = decode(bytes).map_err(unreadable)?;
    let leader = entry.log_id().leader_id;
    Ok((leader.term, leader.node_id))
}

fn unreadable(error: impl std::fmt::Display) -> Violation {
    Violation::new(NAME, format!("an entry cannot be read: {error}"))
}
