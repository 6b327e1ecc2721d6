//! What became of the writes that clients gave a name (`Idempotency-Key`), so that repeating one does nothing twice.
//!
//! Part of the replicated state: every node remembers the same names with the same outcomes, whoever received the first
//! request and whoever receives the repetition. What is remembered is bounded in number, bytes and age; the oldest goes
//! first. Age is counted between the times at which writes were proposed, which the log carries, so that all nodes
//! forget the same.
//!
//! Layout: `k` and a name lead to what is remembered; `s` and a number (big-endian) to the names in the order in which
//! they came; `b` to the [`Bounds`].

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::command::{Fingerprint, Idempotency, Operation, Outcome};
use super::engine::{Batch, Table};
use super::{Error, record};
use crate::limits::{IDEMPOTENCY_AGE_MAX, IDEMPOTENCY_BYTES_MAX, IDEMPOTENCY_KEYS_MAX};

/// Names forgotten per write at most, so that no single one pays for many.
const FORGOTTEN_MAX: usize = 1_024;

const BOUNDS: &[u8] = b"b";

/// How much may be remembered.
#[derive(Debug, Clone, Copy)]
struct Room {
    keys: u64,
    bytes: u64,
}

const ROOM: Room = Room { keys: IDEMPOTENCY_KEYS_MAX, bytes: IDEMPOTENCY_BYTES_MAX };

/// What is remembered of a write.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Remembered {
    fingerprint: Fingerprint,
    proposed_at_ms: u64,
    number: u64,
    outcome: Outcome,
    rewritten: Option<Vec<Operation>>,
}

/// A name in the order in which they came.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Queued {
    key: String,
    proposed_at_ms: u64,
    bytes: u64,
}

/// How much is remembered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Bounds {
    /// The numbers in use are among these.
    first: u64,
    next: u64,
    keys: u64,
    bytes: u64,
}

/// What a batch changes in the memory of names, over the state below it.
pub(super) struct Memory<'a> {
    table: &'a Table,
    room: Room,
    changed: BTreeMap<Vec<u8>, Option<Bytes>>,
}

impl<'a> Memory<'a> {
    pub(super) fn new(table: &'a Table) -> Self {
        Self { table, room: ROOM, changed: BTreeMap::new() }
    }

    /// The outcome of a write whose name is remembered.
    pub(super) fn recall(&self, idempotency: &Idempotency, now_ms: u64) -> Result<Option<Outcome>, Error> {
        let Some(remembered) = self.get::<Remembered>(&name(&idempotency.key))? else { return Ok(None) };
        if is_old(remembered.proposed_at_ms, now_ms) {
            return Ok(None);
        }
        if remembered.fingerprint != idempotency.fingerprint {
            return Ok(Some(Outcome::IdempotencyKeyReused));
        }
        Ok(Some(Outcome::Repeated { first: Box::new(remembered.outcome), rewritten: remembered.rewritten }))
    }

    /// Remembers what a write came to, and forgets what is over the bounds.
    pub(super) fn remember(
        &mut self,
        idempotency: &Idempotency,
        operations: &[Operation],
        outcome: &Outcome,
        now_ms: u64,
    ) -> Result<(), Error> {
        let mut bounds = self.get::<Bounds>(BOUNDS)?.unwrap_or_default();
        // One that is still there is too old to be recalled.
        if let Some(old) = self.get::<Remembered>(&name(&idempotency.key))? {
            self.forget(old.number, &mut bounds)?;
        }
        let remembered = Remembered {
            fingerprint: idempotency.fingerprint,
            proposed_at_ms: now_ms,
            number: bounds.next,
            outcome: outcome.clone(),
            rewritten: idempotency.rewritten.then(|| operations.to_vec()),
        };
        let bytes = self.put(name(&idempotency.key), &remembered)?;
        let queued = Queued { key: idempotency.key.clone(), proposed_at_ms: now_ms, bytes };
        self.put(numbered(bounds.next), &queued)?;
        bounds.next += 1;
        bounds.keys += 1;
        bounds.bytes += bytes;
        for _ in 0..FORGOTTEN_MAX {
            if bounds.first + 1 >= bounds.next || !self.is_over(&bounds, now_ms)? {
                break;
            }
            self.forget(bounds.first, &mut bounds)?;
            bounds.first += 1;
        }
        self.put(BOUNDS.to_vec(), &bounds)?;
        Ok(())
    }

    /// Writes the changes into a batch.
    pub(super) fn stage(self, batch: &mut Batch) {
        for (key, value) in self.changed {
            match value {
                Some(value) => batch.insert(self.table, key, &value[..]),
                None => batch.remove(self.table, key),
            }
        }
    }

    /// Whether the oldest must go.
    fn is_over(&self, bounds: &Bounds, now_ms: u64) -> Result<bool, Error> {
        if bounds.keys > self.room.keys || bounds.bytes > self.room.bytes {
            return Ok(true);
        }
        let oldest = self.get::<Queued>(&numbered(bounds.first))?;
        // A number without a name was forgotten before: its place is free.
        Ok(oldest.is_none_or(|oldest| is_old(oldest.proposed_at_ms, now_ms)))
    }

    fn forget(&mut self, number: u64, bounds: &mut Bounds) -> Result<(), Error> {
        if let Some(queued) = self.get::<Queued>(&numbered(number))? {
            self.changed.insert(name(&queued.key), None);
            self.changed.insert(numbered(number), None);
            bounds.keys = bounds.keys.saturating_sub(1);
            bounds.bytes = bounds.bytes.saturating_sub(queued.bytes);
        }
        Ok(())
    }

    fn get<T: DeserializeOwned>(&self, key: &[u8]) -> Result<Option<T>, Error> {
        let decode = |bytes: &[u8]| postcard::from_bytes(bytes).map_err(|_| record::corrupt("an idempotency record"));
        match self.changed.get(key) {
            Some(changed) => changed.as_deref().map(decode).transpose(),
            None => self.table.get(key)?.as_deref().map(decode).transpose(),
        }
    }

    /// Sets a value; returns its length in bytes.
    fn put<T: Serialize>(&mut self, key: Vec<u8>, value: &T) -> Result<u64, Error> {
        let value = postcard::to_stdvec(value).map_err(|_| record::corrupt("an idempotency record"))?;
        let bytes = u64::try_from(key.len() + value.len()).unwrap_or(u64::MAX);
        self.changed.insert(key, Some(value.into()));
        Ok(bytes)
    }
}

fn is_old(proposed_at_ms: u64, now_ms: u64) -> bool {
    u128::from(now_ms.saturating_sub(proposed_at_ms)) >= IDEMPOTENCY_AGE_MAX.as_millis()
}

fn name(key: &str) -> Vec<u8> {
    [b"k", key.as_bytes()].concat()
}

fn numbered(number: u64) -> Vec<u8> {
    [b"s".as_slice(), &number.to_be_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::engine::memory::SimDisk;
    use crate::storage::engine::{Database, Durability, TableOptions};

    struct Names {
        db: Database,
        table: Table,
        room: Room,
    }

    impl Names {
        fn new(room: Room) -> Self {
            let db = Database::Memory(SimDisk::new(1).open(true).unwrap());
            let table = db.table("idempotency", TableOptions::default()).unwrap();
            Self { db, table, room }
        }

        fn remember(&self, key: &str, now_ms: u64) {
            let mut memory = Memory { room: self.room, ..Memory::new(&self.table) };
            memory.remember(&idempotency(key), &[], &outcome(now_ms), now_ms).unwrap();
            let mut batch = self.db.batch();
            memory.stage(&mut batch);
            batch.commit(Durability::None).unwrap();
        }

        fn knows(&self, key: &str, now_ms: u64) -> bool {
            Memory::new(&self.table).recall(&idempotency(key), now_ms).unwrap().is_some()
        }

        fn stored(&self) -> usize {
            self.table.iter().count()
        }
    }

    fn idempotency(key: &str) -> Idempotency {
        Idempotency { key: key.into(), fingerprint: Fingerprint([0; 32]), rewritten: false }
    }

    fn outcome(revision: u64) -> Outcome {
        Outcome::Applied { revision, effects: vec![] }
    }

    const HOUR_MS: u64 = 3_600_000;

    #[test]
    fn the_oldest_name_goes_when_there_are_too_many() {
        let names = Names::new(Room { keys: 3, bytes: u64::MAX });
        for number in 0..10 {
            names.remember(&number.to_string(), number);
        }
        let known: Vec<_> = (0..10).filter(|number: &u64| names.knows(&number.to_string(), 10)).collect();
        assert_eq!(known, [7, 8, 9]);
        assert_eq!(names.stored(), 2 * 3 + 1);
    }

    #[test]
    fn the_oldest_name_goes_when_they_take_too_much_room() {
        let names = Names::new(Room { keys: u64::MAX, bytes: 1_000 });
        for number in 0..100 {
            names.remember(&format!("{number:0100}"), number);
        }
        assert!(names.knows(&format!("{:0100}", 99), 100));
        assert!(!names.knows(&format!("{:0100}", 80), 100));
        assert!(names.stored() < 2 * 10 + 1);
    }

    #[test]
    fn a_name_is_forgotten_when_it_is_too_old_and_may_be_used_again() {
        let names = Names::new(ROOM);
        names.remember("a", 0);
        names.remember("b", HOUR_MS);
        assert!(names.knows("a", 24 * HOUR_MS - 1));
        assert!(!names.knows("a", 24 * HOUR_MS));
        names.remember("a", 24 * HOUR_MS);
        names.remember("c", 40 * HOUR_MS);
        assert!(names.knows("a", 40 * HOUR_MS) && names.knows("c", 40 * HOUR_MS));
        assert!(!names.knows("b", 40 * HOUR_MS));
        assert_eq!(names.stored(), 2 * 2 + 1);
    }
}
