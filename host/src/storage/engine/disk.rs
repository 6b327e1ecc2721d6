//! How fjall is opened.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fjall::{Database, KeyspaceCreateOptions, KvSeparationOptions};

use super::{DatabaseOptions, TableOptions};
use crate::storage::Error;

/// Opens a database, telling apart what an operator can mend.
pub(super) fn open(dir: &Path, options: DatabaseOptions) -> Result<Database, Error> {
    let mut builder =
        Database::builder(dir).max_journaling_size(options.journal_bytes_max).worker_threads(options.workers);
    if let Some(bytes) = options.cache_bytes {
        builder = builder.cache_size(bytes);
    }
    // The engine checks some of what it reads by assertions.
    let opened = catch_unwind(AssertUnwindSafe(|| builder.open()));
    let damaged = |reason: &dyn std::fmt::Display| Error::Corrupt { what: format!("{} ({reason})", dir.display()) };
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(fjall::Error::Locked)) => Err(Error::Locked { path: dir.to_path_buf() }),
        Ok(Err(fjall::Error::Io(error))) => Err(error.into()),
        Ok(Err(error)) => Err(damaged(&error)),
        Err(_) => Err(damaged(&"the storage engine panicked as it read it")),
    }
}

pub(super) fn keyspace_options(options: TableOptions) -> KeyspaceCreateOptions {
    let mut keyspace = KeyspaceCreateOptions::default();
    if let Some(bytes) = options.memtable_bytes_max {
        keyspace = keyspace.max_memtable_size(bytes);
    }
    if let Some(bytes) = options.separate_bytes_min {
        let separation = KvSeparationOptions::default().separation_threshold(bytes);
        keyspace = keyspace.with_kv_separation(Some(separation));
    }
    keyspace
}
