//! The format of the databases, written into each when it is created.

use std::path::Path;

use super::Error;
use super::engine::{Database, Durability, Table};

/// The format this version reads and writes. Any change of a stored layout raises it.
const FORMAT: u32 = 3;

const KEY: &str = "format";

/// Checks the format of a database by its meta keyspace; writes it, if the database is new.
pub(super) fn check(db: &Database, meta: &Table, dir: &Path) -> Result<(), Error> {
    match meta.get(KEY)? {
        Some(found) if *found == FORMAT.to_be_bytes() => Ok(()),
        Some(found) => {
            let found = found.as_ref().try_into().map_or(0, u32::from_be_bytes);
            Err(Error::Format { path: dir.to_path_buf(), found, supported: FORMAT })
        }
        None => {
            let mut batch = db.batch();
            batch.insert(meta, KEY, FORMAT.to_be_bytes());
            batch.commit(Durability::All)
        }
    }
}

/// Whether a key of a meta keyspace is the format's own.
pub(super) fn is_marker(key: &[u8]) -> bool {
    key == KEY.as_bytes()
}
