//! Sample calls for the tests of invariants.

use std::ops::Range;
use std::sync::Arc;

use crate::history::{Call, Consistency, Effect, Item, Outcome, Request, Seen};

/// A call on node 0, from a client of its own.
pub(crate) fn call(id: u64, time: Range<i64>, request: Request, outcome: Outcome) -> Arc<Call> {
    let (invoked, completed) = (time.start, time.end);
    let client = u32::try_from(id).unwrap();
    Arc::new(Call { id, client, node: 0, incarnation: Some(1), object: 0, request, invoked, completed, outcome })
}

pub(crate) fn put(key: usize, value: u64) -> Request {
    Request::Write { items: vec![Item { key, value: Some(value), precondition: None }], idempotent: false }
}

pub(crate) fn delete(key: usize) -> Request {
    Request::Write { items: vec![Item { key, value: None, precondition: None }], idempotent: false }
}

pub(crate) fn batch(items: &[(usize, Option<u64>)]) -> Request {
    let item = |(key, value): &(usize, Option<u64>)| Item { key: *key, value: *value, precondition: None };
    Request::Write { items: items.iter().map(item).collect(), idempotent: false }
}

/// The outcome of a committed write of one key.
pub(crate) fn done(version: u64, revision: u64) -> Outcome {
    Outcome::Done { revision: Some(revision), effects: vec![Effect::Put(version)] }
}

pub(crate) fn deleted(existed: bool) -> Outcome {
    Outcome::Done { revision: None, effects: vec![Effect::Deleted(existed)] }
}

pub(crate) fn seen(value: u64, version: u64, revision: u64) -> Option<Seen> {
    Some(Seen { value, version, revision })
}

/// A strong read of key 0 with its result.
pub(crate) fn get(id: u64, time: Range<i64>, entry: Option<Seen>, revision: u64) -> Arc<Call> {
    let outcome = Outcome::Read { entries: vec![(0, entry)], revision, linearizable: true };
    call(id, time, Request::Get(0, Consistency::Strong), outcome)
}

/// A local read of key 0 with its result.
pub(crate) fn local(id: u64, time: Range<i64>, entry: Option<Seen>, revision: u64) -> Arc<Call> {
    let outcome = Outcome::Read { entries: vec![(0, entry)], revision, linearizable: false };
    call(id, time, Request::Get(0, Consistency::Local), outcome)
}

/// A range with these entries of the first keys; the other keys are absent.
pub(crate) fn range(
    id: u64,
    time: Range<i64>,
    consistency: Consistency,
    entries: &[Option<Seen>],
    revision: u64,
) -> Arc<Call> {
    let entries = (0..crate::history::KEYS).map(|key| (key, entries.get(key).copied().flatten())).collect();
    let outcome = Outcome::Read { entries, revision, linearizable: consistency == Consistency::Strong };
    call(id, time, Request::Range(consistency), outcome)
}
