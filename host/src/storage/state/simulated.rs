//! The state on a simulated disk, and its digest. For tests.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use super::Data;
use super::suspicion::Suspicion;
use super::tables::{IDEMPOTENCY, KV, KV_VALUES, SYSTEM, SYSTEM_VALUES};
use crate::storage::Error;
use crate::storage::engine::write_behind::{Buffered, Flushes};
use crate::storage::engine::{EVERYTHING, memory::SimDisk, memory::SimGenerations};

/// A simulated node flushes after a few batches, so that power losses meet every state of the buffer.
const FLUSHES: Flushes = Flushes { interval: None, bytes: 1_500 };

pub(crate) fn open(disk: &SimDisk, cache_bytes: u64) -> Result<Data, Error> {
    let generations = Buffered::new(SimGenerations::new(disk), FLUSHES);
    Data::load(Box::new(generations), Path::new("disk"), Suspicion::default(), cache_bytes)
}

/// A digest of the state, the same on nodes that have applied the same entries.
pub(crate) fn digest(data: &Data) -> u64 {
    let mut digest = DefaultHasher::new();
    for table in [KV, SYSTEM, IDEMPOTENCY, KV_VALUES, SYSTEM_VALUES] {
        for row in data.inner.engine().range(table, EVERYTHING).unwrap() {
            let (key, value) = row.unwrap();
            (&key[..], &value[..]).hash(&mut digest);
        }
    }
    (data.revision(), data.hook_epoch()).hash(&mut digest);
    digest.finish()
}
