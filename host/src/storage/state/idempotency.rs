//! Outcomes of writes with an idempotency key, so that a repeated write is not applied again (P4).
//!
//! They are part of the replicated state: every node remembers the same keys with the same outcomes, whichever node
//! received the first request or the repetition. They are bounded in number, bytes and age, and the oldest goes first.
//! Age is the difference of the times in the log, so all nodes forget the same, whatever their own clocks show.
//!
//! Revisions and effects are remembered, and values are not: the request has them, or the entries, if hooks changed them.
//!
//! Layout of the table: `k` and a key lead to a [`Remembered`]; `s` and a number (big-endian) to the [`Queued`] keys in
//! order of arrival; `b` to the [`Totals`].

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::tables::IDEMPOTENCY;
use crate::limits::{IDEMPOTENCY_AGE_MAX, IDEMPOTENCY_BYTES_MAX, IDEMPOTENCY_KEYS_MAX};
use crate::storage::engine::{ReadTables, WriteBatch};
use crate::storage::{Error, Fingerprint, Idempotency, Operation, Outcome};

/// Maximum number of keys forgotten per write, so that no single write pays for many.
const FORGOTTEN_MAX: usize = 1_024;

const TOTALS: &[u8] = b"b";

/// How much may be remembered.
#[derive(Clone, Copy)]
struct Capacity {
    keys: u64,
    bytes: u64,
}

const CAPACITY: Capacity = Capacity { keys: IDEMPOTENCY_KEYS_MAX, bytes: IDEMPOTENCY_BYTES_MAX };

#[derive(Serialize, Deserialize)]
struct Remembered {
    fingerprint: Fingerprint,
    proposed_at_ms: u64,
    number: u64,
    outcome: Outcome,
    /// Present if hooks changed the operations. Empty, except in records of writes that were proposed at the first feature
    /// level.
    rewritten: Option<Vec<Operation>>,
}

/// What is remembered of operations that hooks have changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Rewritten {
    /// That they were changed.
    Noted,
    /// The operations themselves.
    Kept,
}

/// A key in order of arrival.
#[derive(Serialize, Deserialize)]
struct Queued {
    key: String,
    proposed_at_ms: u64,
    bytes: u64,
}

/// How much is remembered.
#[derive(Default, Serialize, Deserialize)]
struct Totals {
    /// All numbers in use are from here on.
    first: u64,
    /// The next number to use.
    next: u64,
    keys: u64,
    bytes: u64,
}

/// The remembered outcomes: the changes of a batch, over the state below it.
pub(super) struct Outcomes<'a> {
    tables: &'a dyn ReadTables,
    capacity: Capacity,
    changed: BTreeMap<Vec<u8>, Option<Bytes>>,
}

impl<'a> Outcomes<'a> {
    pub(super) fn new(tables: &'a dyn ReadTables) -> Self {
        Self { tables, capacity: CAPACITY, changed: BTreeMap::new() }
    }

    /// The outcome of a repeated write, if its key is remembered.
    pub(super) fn recall(&self, idempotency: &Idempotency, now_ms: u64) -> Result<Option<Outcome>, Error> {
        let Some(remembered) = self.get::<Remembered>(&stored_key(&idempotency.key))? else { return Ok(None) };
        if is_old(remembered.proposed_at_ms, now_ms) {
            return Ok(None);
        }
        if remembered.fingerprint != idempotency.fingerprint {
            return Ok(Some(Outcome::IdempotencyKeyReused));
        }
        Ok(Some(Outcome::Repeated { first: Box::new(remembered.outcome), rewritten: remembered.rewritten }))
    }

    /// Remembers the outcome of a write, and forgets the oldest ones beyond the capacity.
    pub(super) fn remember(
        &mut self,
        idempotency: &Idempotency,
        operations: &[Operation],
        rewritten: Rewritten,
        outcome: &Outcome,
        now_ms: u64,
    ) -> Result<(), Error> {
        let mut totals = self.get::<Totals>(TOTALS)?.unwrap_or_default();
        // A stored outcome of this key is too old to be recalled.
        if let Some(old) = self.get::<Remembered>(&stored_key(&idempotency.key))? {
            self.forget(old.number, &mut totals)?;
        }
        let remembered = Remembered {
            fingerprint: idempotency.fingerprint,
            proposed_at_ms: now_ms,
            number: totals.next,
            outcome: outcome.clone(),
            rewritten: idempotency.rewritten.then(|| match rewritten {
                Rewritten::Noted => Vec::new(),
                Rewritten::Kept => operations.to_vec(),
            }),
        };
        let bytes = self.put(stored_key(&idempotency.key), &remembered)?;
        let queued = Queued { key: idempotency.key.clone(), proposed_at_ms: now_ms, bytes };
        self.put(stored_number(totals.next), &queued)?;
        totals.next += 1;
        totals.keys += 1;
        totals.bytes += bytes;
        for _ in 0..FORGOTTEN_MAX {
            if totals.first + 1 >= totals.next || !self.is_over(&totals, now_ms)? {
                break;
            }
            self.forget(totals.first, &mut totals)?;
            totals.first += 1;
        }
        self.put(TOTALS.to_vec(), &totals).map(drop)
    }

    pub(super) fn stage(self, batch: &mut WriteBatch) {
        for (key, value) in self.changed {
            batch.set(IDEMPOTENCY, key, value.as_deref().map(Into::into));
        }
    }

    /// Whether the oldest key must be forgotten.
    fn is_over(&self, totals: &Totals, now_ms: u64) -> Result<bool, Error> {
        if totals.keys > self.capacity.keys || totals.bytes > self.capacity.bytes {
            return Ok(true);
        }
        let oldest = self.get::<Queued>(&stored_number(totals.first))?;
        // The key of a missing number was forgotten before.
        Ok(oldest.is_none_or(|oldest| is_old(oldest.proposed_at_ms, now_ms)))
    }

    fn forget(&mut self, number: u64, totals: &mut Totals) -> Result<(), Error> {
        if let Some(queued) = self.get::<Queued>(&stored_number(number))? {
            self.changed.insert(stored_key(&queued.key), None);
            self.changed.insert(stored_number(number), None);
            totals.keys = totals.keys.saturating_sub(1);
            totals.bytes = totals.bytes.saturating_sub(queued.bytes);
        }
        Ok(())
    }

    fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, Error> {
        let decode = |bytes: &[u8]| postcard::from_bytes(bytes).map_err(|_| Error::corrupt("an idempotency record"));
        match self.changed.get(key) {
            Some(changed) => changed.as_deref().map(decode).transpose(),
            None => self.tables.get(IDEMPOTENCY, key)?.as_deref().map(decode).transpose(),
        }
    }

    /// Sets a value; returns the length of key and value in bytes.
    fn put<T: Serialize>(&mut self, key: Vec<u8>, value: &T) -> Result<u64, Error> {
        let value = postcard::to_stdvec(value).map_err(|_| Error::corrupt("an idempotency record"))?;
        let bytes = u64::try_from(key.len() + value.len()).unwrap_or(u64::MAX);
        self.changed.insert(key, Some(value.into()));
        Ok(bytes)
    }
}

fn is_old(proposed_at_ms: u64, now_ms: u64) -> bool {
    u128::from(now_ms.saturating_sub(proposed_at_ms)) >= IDEMPOTENCY_AGE_MAX.as_millis()
}

fn stored_key(key: &str) -> Vec<u8> {
    [b"k", key.as_bytes()].concat()
}

fn stored_number(number: u64) -> Vec<u8> {
    [b"s".as_slice(), &number.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::engine::memory::{MemoryEngine, SimDisk};
    use crate::storage::engine::{Durability, EVERYTHING, StorageEngine};
    use crate::storage::{Action, Space, Value};

    struct Keys {
        engine: MemoryEngine,
        capacity: Capacity,
    }

    impl Keys {
        fn new(capacity: Capacity) -> Self {
            Self { engine: SimDisk::new(1).open(true).unwrap(), capacity }
        }

        fn remember(&self, key: &str, now_ms: u64) {
            let mut outcomes = Outcomes { capacity: self.capacity, ..Outcomes::new(&self.engine) };
            let outcome = Outcome::Applied { revision: now_ms, effects: vec![] };
            outcomes.remember(&idempotency(key), &[], Rewritten::Noted, &outcome, now_ms).unwrap();
            let mut batch = WriteBatch::default();
            outcomes.stage(&mut batch);
            self.engine.write(batch, Durability::None).unwrap();
        }

        fn knows(&self, key: &str, now_ms: u64) -> bool {
            Outcomes::new(&self.engine).recall(&idempotency(key), now_ms).unwrap().is_some()
        }

        fn stored(&self) -> usize {
            self.engine.keys(IDEMPOTENCY, EVERYTHING).unwrap().count()
        }
    }

    fn idempotency(key: &str) -> Idempotency {
        Idempotency { key: key.into(), fingerprint: Fingerprint([0; 32]), rewritten: false }
    }

    const HOUR_MS: u64 = 3_600_000;

    #[test]
    fn what_hooks_made_of_a_write_is_remembered_only_where_it_must_be() {
        let keys = Keys::new(CAPACITY);
        let value = Value::json("x".repeat(1_000));
        let operations = [Operation { space: Space::Kv, key: "k".into(), action: Action::Put(value) }];
        let outcome = Outcome::Applied { revision: 1, effects: vec![] };
        for (rewritten, remembered) in [(Rewritten::Noted, &[][..]), (Rewritten::Kept, &operations)] {
            let mut outcomes = Outcomes::new(&keys.engine);
            let idempotency = Idempotency { rewritten: true, ..idempotency("a") };
            outcomes.remember(&idempotency, &operations, rewritten, &outcome, 0).unwrap();
            let recalled = outcomes.recall(&idempotency, 0).unwrap();
            let first = Box::new(outcome.clone());
            assert_eq!(recalled, Some(Outcome::Repeated { first, rewritten: Some(remembered.to_vec()) }));
            let bytes = outcomes.get::<Totals>(TOTALS).unwrap().unwrap().bytes;
            assert_eq!(bytes > 1_000, rewritten == Rewritten::Kept, "{bytes}");
        }
    }

    #[test]
    fn the_oldest_key_goes_when_there_are_too_many() {
        let keys = Keys::new(Capacity { keys: 3, bytes: u64::MAX });
        for number in 0..10 {
            keys.remember(&number.to_string(), number);
        }
        let known: Vec<_> = (0..10).filter(|number: &u64| keys.knows(&number.to_string(), 10)).collect();
        assert_eq!(known, [7, 8, 9]);
        assert_eq!(keys.stored(), 2 * 3 + 1);
    }

    #[test]
    fn the_oldest_key_goes_when_they_take_too_many_bytes() {
        let keys = Keys::new(Capacity { keys: u64::MAX, bytes: 1_000 });
        for number in 0..100 {
            keys.remember(&format!("{number:0100}"), number);
        }
        assert!(keys.knows(&format!("{:0100}", 99), 100));
        assert!(!keys.knows(&format!("{:0100}", 80), 100));
        assert!(keys.stored() < 2 * 10 + 1);
    }

    #[test]
    fn a_key_is_forgotten_when_it_is_too_old_and_may_be_used_again() {
        let keys = Keys::new(CAPACITY);
        keys.remember("a", 0);
        keys.remember("b", HOUR_MS);
        assert!(keys.knows("a", 24 * HOUR_MS - 1));
        assert!(!keys.knows("a", 24 * HOUR_MS));
        keys.remember("a", 24 * HOUR_MS);
        keys.remember("c", 40 * HOUR_MS);
        assert!(keys.knows("a", 40 * HOUR_MS) && keys.knows("c", 40 * HOUR_MS));
        assert!(!keys.knows("b", 40 * HOUR_MS));
        assert_eq!(keys.stored(), 2 * 2 + 1);
    }
}
