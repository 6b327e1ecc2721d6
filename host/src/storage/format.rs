//! The format number, written into each database when it is created.

use std::path::Path;

use super::Error;
use super::engine::{Durability, StorageEngine, Table, WriteBatch};

/// The format this version reads and writes. Any change of a stored layout raises it.
const FORMAT: u32 = 3;

/// The name of the format number in a database's table of named values.
pub(super) const KEY: &[u8] = b"format";

/// Checks the format number of a database, and writes it if the database is new.
pub(super) fn check(engine: &dyn StorageEngine, table: Table, dir: &Path) -> Result<(), Error> {
    match engine.get(table, KEY)? {
        Some(found) if *found == FORMAT.to_be_bytes() => Ok(()),
        Some(found) => {
            let found = found.as_ref().try_into().map_or(0, u32::from_be_bytes);
            Err(Error::Format { path: dir.to_path_buf(), found, supported: FORMAT })
        }
        None => {
            let mut batch = WriteBatch::default();
            batch.insert(table, KEY, FORMAT.to_be_bytes());
            engine.write(batch, Durability::All)
        }
    }
}
