//! How fjall is opened.

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
    builder.open().map_err(|error| match error {
        fjall::Error::Locked => Error::Locked { path: dir.to_path_buf() },
        error => error.into(),
    })
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
