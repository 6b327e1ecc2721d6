//! Calls for the histories that rules are tried on.

use std::ops::Range;
use std::sync::Arc;

use crate::history::{Ask, Call, Effect, Item, Level, Outcome, Seen};

/// A call of a client of its own on node 0.
pub(super) fn call(id: u64, time: Range<i64>, ask: Ask, outcome: Outcome) -> Arc<Call> {
    let (invoked, completed) = (time.start, time.end);
    let client = u32::try_from(id).unwrap();
    Arc::new(Call { id, client, node: 0, life: Some(1), object: 0, ask, invoked, completed, outcome })
}

pub(super) fn put(key: usize, value: u64) -> Ask {
    Ask::Write { items: vec![Item { key, value: Some(value), demand: None }], named: false }
}

pub(super) fn delete(key: usize) -> Ask {
    Ask::Write { items: vec![Item { key, value: None, demand: None }], named: false }
}

pub(super) fn batch(items: &[(usize, Option<u64>)]) -> Ask {
    let item = |(key, value): &(usize, Option<u64>)| Item { key: *key, value: *value, demand: None };
    Ask::Write { items: items.iter().map(item).collect(), named: false }
}

/// A write of one key that was made.
pub(super) fn done(version: u64, revision: u64) -> Outcome {
    Outcome::Done { revision: Some(revision), effects: vec![Effect::Put(version)] }
}

pub(super) fn deleted(existed: bool) -> Outcome {
    Outcome::Done { revision: None, effects: vec![Effect::Deleted(existed)] }
}

pub(super) fn seen(value: u64, version: u64, revision: u64) -> Option<Seen> {
    Some(Seen { value, version, revision })
}

/// A strong read of key 0 and what it saw.
pub(super) fn get(id: u64, time: Range<i64>, entry: Option<Seen>, revision: u64) -> Arc<Call> {
    let outcome = Outcome::Read { entries: vec![(0, entry)], revision, linearizable: true };
    call(id, time, Ask::Get(0, Level::Strong), outcome)
}

/// A local read of key 0 and what it saw.
pub(super) fn local(id: u64, time: Range<i64>, entry: Option<Seen>, revision: u64) -> Arc<Call> {
    let outcome = Outcome::Read { entries: vec![(0, entry)], revision, linearizable: false };
    call(id, time, Ask::Get(0, Level::Local), outcome)
}

/// A range over the first keys, the others being absent.
pub(super) fn range(id: u64, time: Range<i64>, level: Level, entries: &[Option<Seen>], revision: u64) -> Arc<Call> {
    let entries = (0..crate::history::KEYS).map(|key| (key, entries.get(key).copied().flatten())).collect();
    let outcome = Outcome::Read { entries, revision, linearizable: level == Level::Strong };
    call(id, time, Ask::Range(level), outcome)
}
