//! The format number, written into each database when it is created.

use std::ops::RangeInclusive;
use std::path::Path;

use super::Error;
use super::engine::{Durability, StorageEngine, Table, WriteBatch};

/// The name of the format number in a database's table of named values.
pub(super) const KEY: &[u8] = b"format";

/// The format number of a database, which must be one of those that can be read. A new database gets the last of them.
pub(super) fn check(
    engine: &dyn StorageEngine,
    table: Table,
    dir: &Path,
    readable: RangeInclusive<u32>,
) -> Result<u32, Error> {
    let supported = *readable.end();
    if let Some(found) = engine.get(table, KEY)? {
        let found = found.as_ref().try_into().map_or(0, u32::from_be_bytes);
        return match readable.contains(&found) {
            true => Ok(found),
            false => Err(Error::Format { path: dir.to_path_buf(), found, supported }),
        };
    }
    let mut batch = WriteBatch::default();
    set(&mut batch, table, supported);
    engine.write(batch, Durability::All)?;
    Ok(supported)
}

/// Adds another format number to a batch.
pub(super) fn set(batch: &mut WriteBatch, table: Table, format: u32) {
    batch.insert(table, KEY, format.to_be_bytes());
}
