//! State-machine safety: no two nodes apply different entries at an index, and nodes that have applied the same log have
//! the same state, which equals the replay of the log.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::{Leadership, View, Violation};
use super::{
    log_matching::LogMatching,
    replay::{Keys, Replay},
};
use crate::storage::{Data, RangeQuery, Space, simulated_data};

const NAME: &str = "state-machine-safety";

/// The committed entries, and the states of the nodes.
#[derive(Default)]
pub(super) struct StateMachineSafety {
    committed: BTreeMap<u64, (Leadership, Bytes)>,
    /// Digest of the state and a node that had it, by the index of the last applied entry.
    digests: HashMap<u64, (u64, usize)>,
    /// The index that each node was last seen to have applied.
    applied: HashMap<usize, u64>,
}

impl StateMachineSafety {
    /// The committed entries, by index.
    pub(super) fn committed(&self) -> &BTreeMap<u64, (Leadership, Bytes)> {
        &self.committed
    }

    /// Checks the entries that a node has applied since the last check.
    pub(super) fn observe(&mut self, view: &View<'_>, logs: &LogMatching) -> Result<(), Violation> {
        let Some(applied) = view.applied else { return Ok(()) };
        let before = self.applied.insert(view.number, applied.index);
        if before == Some(applied.index) {
            return Ok(());
        }
        for index in before.map_or(0, |before| before + 1)..=applied.index {
            // An entry that is not in the log came with a snapshot, and was seen on another node before.
            let Some((writer, entry)) = logs.entry(view.number, index) else { continue };
            match self.committed.get(&index) {
                Some((known, _)) if *known != writer => {
                    let detail = format!(
                        "node {} applied the entry of {writer:?} at {index}, another that of {known:?}",
                        view.number
                    );
                    return Err(Violation::new(NAME, detail));
                }
                Some(_) => {}
                None => drop(self.committed.insert(index, (writer, entry))),
            }
        }
        let digest = simulated_data::digest(view.data);
        match self.digests.insert(applied.index, (digest, view.number)) {
            Some((known, number)) if known != digest => Err(Violation::new(
                NAME,
                format!("having applied {}, nodes {number} and {} have different states", applied.index, view.number),
            )),
            _ => Ok(()),
        }
    }

    pub(super) fn crashed(&mut self, number: usize) {
        self.applied.remove(&number);
    }
}

/// Compares the nodes' states with the replay of the log.
pub(super) fn conclude(replay: &Replay, datas: &[&Data]) -> Result<(), Violation> {
    for data in datas {
        for (space, expected) in [(Space::Kv, &replay.state), (Space::System, &replay.registry)] {
            let query = RangeQuery { space, ..RangeQuery::default() };
            let page = data.scan(&query).map_err(|error| Violation::new(NAME, error.to_string()))?;
            let found = page.entries.into_iter().map(|entry| {
                let value = String::from_utf8_lossy(&entry.value.bytes).into_owned();
                (entry.key, (entry.meta.revision, entry.meta.version, value))
            });
            let found: Keys = found.collect();
            if found != *expected {
                return Err(Violation::new(NAME, format!("the log gives {expected:?}, a node has {found:?}")));
            }
        }
        let (found, expected) = ((data.revision(), data.hook_epoch()), (replay.revision, replay.hook_epoch));
        if found != expected {
            let detail = format!("the log gives revision and hook epoch {expected:?}, a node has {found:?}");
            return Err(Violation::new(NAME, detail));
        }
    }
    Ok(())
}
