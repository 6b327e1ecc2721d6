//! The format number, written into each database when it is created.

use std::ops::RangeInclusive;
use std::path::Path;

use super::Error;
use super::engine::{Durability, StorageEngine, Table, WriteBatch};

/// The name of the format number in a database's table of named values.
pub(super) const KEY: &[u8] = b"format";

/// Checks the format number of a database against those that can be read. Writes the last of them if the database is new
/// or older, so that a version that cannot read what is written from now on refuses it.
pub(super) fn check(
    engine: &dyn StorageEngine,
    table: Table,
    dir: &Path,
    readable: RangeInclusive<u32>,
) -> Result<(), Error> {
    let supported = *readable.end();
    if let Some(found) = engine.get(table, KEY)? {
        let found = found.as_ref().try_into().map_or(0, u32::from_be_bytes);
        if !readable.contains(&found) {
            return Err(Error::Format { path: dir.to_path_buf(), found, supported });
        }
        if found == supported {
            return Ok(());
        }
    }
    let mut batch = WriteBatch::default();
    batch.insert(table, KEY, supported.to_be_bytes());
    engine.write(batch, Durability::All)
}
