//! The format of the databases, written into each when it is created.

use std::path::Path;

use fjall::{Database, DatabaseBuilder, Keyspace, PersistMode};

use super::Error;

/// The format this version reads and writes. Any change of a stored layout raises it.
const FORMAT: u32 = 2;

const KEY: &str = "format";

/// Opens a database, telling apart what an operator can mend.
pub(super) fn open(builder: DatabaseBuilder<Database>, dir: &Path) -> Result<Database, Error> {
    builder.open().map_err(|error| match error {
        fjall::Error::Locked => Error::Locked { path: dir.to_path_buf() },
        error => error.into(),
    })
}

/// Checks the format of a database by its meta keyspace; writes it, if the database is new.
pub(super) fn check(db: &Database, meta: &Keyspace, dir: &Path) -> Result<(), Error> {
    match meta.get(KEY)? {
        Some(found) if *found == FORMAT.to_be_bytes() => Ok(()),
        Some(found) => {
            let found = found.as_ref().try_into().map_or(0, u32::from_be_bytes);
            Err(Error::Format { path: dir.to_path_buf(), found, supported: FORMAT })
        }
        None => {
            let mut batch = db.batch().durability(Some(PersistMode::SyncAll));
            batch.insert(meta, KEY, FORMAT.to_be_bytes());
            Ok(batch.commit()?)
        }
    }
}

/// Whether a key of a meta keyspace is the format's own.
pub(super) fn is_marker(key: &[u8]) -> bool {
    key == KEY.as_bytes()
}
