//! Reads: whatever a node shows is committed, all of it is of one moment, and a node that runs never goes back in time. A
//! strong read of several keys sees all that was acknowledged before it began.
//!
//! What a read of one key shows, the key showed from one revision of the store to another. So each read tells how far its
//! node had come at least.

use std::collections::{BTreeMap, HashMap};

use super::{Violation, replay::Replay};
use crate::replication::sim::clients::{KEYS, applied_revision};
use crate::replication::sim::history::{History, Operation, Request, Response, Scanned, Seen, Unique};

const NAME: &str = "reads";

pub(super) fn conclude(history: &History, replay: &Replay) -> Result<(), Violation> {
    let mut returned: Vec<&Operation> = history.operations.iter().filter(|read| read.returned.is_some()).collect();
    returned.sort_unstable_by_key(|operation| operation.returned);
    // By node and start: the least revision of the store that explains all reads so far.
    let mut reached: HashMap<(usize, u64), u64> = HashMap::new();
    for read in &returned {
        let reached = reached.entry((read.node, read.start)).or_default();
        let shown = match (&read.request, &read.response) {
            (Request::StrongRead { key } | Request::LocalRead { key }, Some(Response::Read(seen))) => {
                first_shown(replay, key, *seen, *reached)
            }
            (Request::Scan { .. }, Some(Response::Scanned(scanned))) => {
                (scanned.revision >= *reached && shows(replay, scanned)).then_some(scanned.revision)
            }
            _ => continue,
        };
        let Some(shown) = shown else {
            let detail = format!("{read:?} shows what is not committed, or is older than revision {reached}");
            return Err(Violation::new(NAME, detail));
        };
        *reached = shown;
    }
    scans_are_fresh(&returned)
}

/// The least revision, from `reached` on, at which the store shows a key like this.
fn first_shown(replay: &Replay, key: &str, seen: Seen, reached: u64) -> Option<u64> {
    let none = BTreeMap::new();
    let changes = replay.changes.get(key).unwrap_or(&none);
    let at_reached = changes.range(..=reached).next_back().map(|(revision, value)| (*revision, *value));
    let shows = |state: Option<(u64, Option<Unique>)>| state.and_then(|(at, value)| Some((at, value?))) == seen;
    if shows(at_reached) {
        return Some(reached);
    }
    let mut later = changes.range(reached + 1..).map(|(revision, value)| (*revision, *value));
    later.find(|state| shows(Some(*state))).map(|(revision, _)| revision)
}

/// Whether the store shows these entries at their revision.
fn shows(replay: &Replay, scanned: &Scanned) -> bool {
    let state = |key: &&str| {
        let (revision, value) = replay.changes.get(*key)?.range(..=scanned.revision).next_back()?;
        Some(((*key).to_owned(), *revision, (*value)?))
    };
    KEYS.iter().filter_map(state).eq(scanned.entries.iter().cloned())
}

/// Checks that each strong scan has all writes that were acknowledged, and all that was scanned, before it began.
fn scans_are_fresh(returned: &[&Operation]) -> Result<(), Violation> {
    for scan in returned {
        let (Request::Scan { strong: true }, Some(Response::Scanned(found))) = (&scan.request, &scan.response) else {
            continue;
        };
        let before = returned.iter().take_while(|other| other.returned < Some(scan.called));
        let known = before.filter_map(|other| match &other.response {
            Some(Response::Scanned(scanned)) => Some(scanned.revision),
            Some(Response::Read(seen)) => seen.map(|(revision, _)| revision),
            Some(Response::Committed(_)) => other.outcome().and_then(applied_revision),
            _ => None,
        });
        let newest = known.max().unwrap_or(0);
        if found.revision < newest {
            let detail = format!("{scan:?} shows revision {}; {newest} was known before", found.revision);
            return Err(Violation::new(NAME, detail));
        }
    }
    Ok(())
}
