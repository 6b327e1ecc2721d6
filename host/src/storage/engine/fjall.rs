//! fjall, a log-structured merge tree, as the storage engine.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use fjall::{
    Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, OwnedWriteBatch, PersistMode, Readable, Snapshot,
};

use super::compaction::Compactor;
use super::{Bounds, Durability, Keys, ReadTables, Rows, Slice, StorageEngine, Table, WriteBatch};
use crate::storage::{Error, dir};

/// Journal bytes kept before tables are flushed. A node that restarts after a crash reads them all, which takes some
/// seconds per GiB, so this bounds recovery time.
const JOURNAL_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Threads that flush and compact tables. With more than one, the first takes no compactions and hands each to itself
/// again until another thread takes it: it keeps a core busy while the others compact.
const WORKERS: usize = 1;

/// Settings of a table. They take effect when the table is created, and never again.
pub struct TableOptions {
    pub name: &'static str,
    /// Memory of the table before it is flushed. Up to four more wait for their flush before writers are held up.
    pub memtable_bytes_max: u64,
    /// Values larger than this are stored apart from their keys; none, if absent.
    pub separate_bytes_min: Option<u32>,
    /// Whether the table is compacted after deletions, so that ranges need not pass over them. Otherwise it is compacted
    /// when it has grown.
    pub compacts_deletions: bool,
}

/// Opens the database in a directory, with `cache_bytes` of memory for blocks of its tables. Creates the database and
/// its tables if they are missing.
pub fn open(dir: &Path, cache_bytes: u64, tables: &[TableOptions]) -> Result<Box<dyn StorageEngine>, Error> {
    let db = open_database(dir, cache_bytes)?;
    let keyspace = |table: &TableOptions| {
        let separation = |bytes| KvSeparationOptions::default().separation_threshold(bytes);
        let options = KeyspaceCreateOptions::default().max_memtable_size(table.memtable_bytes_max);
        db.keyspace(table.name, || options.with_kv_separation(table.separate_bytes_min.map(separation)))
    };
    let keyspaces = tables.iter().map(keyspace).collect::<Result<Arc<[Keyspace]>, _>>()?;
    // fjall syncs the files in its directories, but not the names of the directories.
    dir::sync_tree(dir)?;
    let numbered = (0..).map(Table).zip(tables).zip(keyspaces.iter());
    let watched = numbered.filter(|((_, options), _)| options.compacts_deletions);
    let watched = watched.map(|((table, _), keyspace)| (table, keyspace.clone()));
    let compactor = Compactor::start(&db, dir.to_path_buf(), watched)?;
    Ok(Box::new(FjallEngine { compactor, db, keyspaces }))
}

/// Opens a database, and tells apart the failures that an operator can mend.
fn open_database(dir: &Path, cache_bytes: u64) -> Result<Database, Error> {
    let builder =
        Database::builder(dir).max_journaling_size(JOURNAL_BYTES_MAX).worker_threads(WORKERS).cache_size(cache_bytes);
    // fjall panics on some kinds of damage.
    let opened = catch_unwind(AssertUnwindSafe(|| builder.open()));
    let damaged = |reason: &dyn std::fmt::Display| Error::corrupt(format!("{} ({reason})", dir.display()));
    match opened {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(fjall::Error::Locked)) => Err(Error::Locked(dir.to_path_buf())),
        Ok(Err(fjall::Error::Io(error))) => Err(error.into()),
        Ok(Err(error)) => Err(damaged(&error)),
        Err(_) => Err(damaged(&"the storage engine panicked while reading it")),
    }
}

/// An open database.
struct FjallEngine {
    compactor: Compactor,
    db: Database,
    /// One for each [`Table`], in the order of their numbers.
    keyspaces: Arc<[Keyspace]>,
}

/// A database at one moment.
///
/// IMPORTANT: every read goes through a snapshot. fjall's reads without one see the rows of a batch as they go into the
/// tables, one after the other.
struct View {
    snapshot: Snapshot,
    keyspaces: Arc<[Keyspace]>,
}

impl FjallEngine {
    fn newest(&self) -> View {
        View { snapshot: self.db.snapshot(), keyspaces: self.keyspaces.clone() }
    }
}

fn keyspace(keyspaces: &[Keyspace], table: Table) -> Result<&Keyspace, Error> {
    keyspaces.get(table.0).ok_or_else(|| fjall::Error::KeyspaceDeleted.into())
}

impl ReadTables for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, Error> {
        Ok(self.snapshot.get(keyspace(&self.keyspaces, table)?, key)?)
    }

    fn range(&self, table: Table, bounds: Bounds) -> Result<Rows, Error> {
        let rows = self.snapshot.range(keyspace(&self.keyspaces, table)?, bounds);
        Ok(Box::new(rows.map(|row| Ok(row.into_inner()?))))
    }

    fn keys(&self, table: Table, bounds: Bounds) -> Result<Keys, Error> {
        let rows = self.snapshot.range(keyspace(&self.keyspaces, table)?, bounds);
        Ok(Box::new(rows.map(|row| Ok(row.key()?))))
    }
}

impl ReadTables for FjallEngine {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, Error> {
        self.newest().get(table, key)
    }

    fn range(&self, table: Table, bounds: Bounds) -> Result<Rows, Error> {
        self.newest().range(table, bounds)
    }

    fn keys(&self, table: Table, bounds: Bounds) -> Result<Keys, Error> {
        self.newest().keys(table, bounds)
    }
}

impl StorageEngine for FjallEngine {
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), Error> {
        let mode = match durability {
            Durability::None => None,
            Durability::All => Some(PersistMode::SyncAll),
        };
        let mut changes = OwnedWriteBatch::with_capacity(self.db.clone(), batch.changes.len()).durability(mode);
        for change in batch.changes {
            let keyspace = keyspace(&self.keyspaces, change.table)?;
            match change.value {
                Some(value) => changes.insert(keyspace, change.key, value),
                None => {
                    changes.remove(keyspace, change.key);
                    self.compactor.note_deleted(change.table);
                }
            }
        }
        Ok(changes.commit()?)
    }

    fn sync(&self) -> Result<(), Error> {
        Ok(self.db.persist(PersistMode::SyncAll)?)
    }

    fn view(&self) -> Box<dyn ReadTables> {
        Box::new(self.newest())
    }

    fn clear(&self, table: Table) -> Result<(), Error> {
        Ok(keyspace(&self.keyspaces, table)?.clear()?)
    }
}
