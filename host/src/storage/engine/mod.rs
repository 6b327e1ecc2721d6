//! The storage engine: ordered tables with atomic batches, point-in-time views, and a say in what is synced.
//!
//! In production it is fjall on a directory (`disk`). Tests can put it on a modelled disk instead (`memory`), which
//! loses power, fails, fills up and lies when it is told to, and which outlives the node that uses it. The rest of
//! [`crate::storage`] cannot tell them apart. In production each type here is exactly its fjall counterpart.
//!
//! # What both promise
//!
//! - A batch takes effect whole or not at all, also across a crash.
//! - What a sync reported as done survives a crash, and so does everything written to the same database before it.
//! - What was not synced survives a crash up to some batch, and nothing after that one does.
//! - After a failed write or sync every later one fails, until the database is opened anew.

mod disk;
#[cfg(test)]
pub(crate) mod memory;

use std::ops::Bound;
use std::path::Path;

pub(super) use fjall::Slice;
use fjall::{PersistMode, Readable};

use super::{Error, dir};

/// How a database lays itself out; the modelled disk has no use for it.
#[derive(Debug, Clone, Copy)]
pub(super) struct DatabaseOptions {
    /// Memory for blocks that were read; the engine's default, if not given.
    pub(super) cache_bytes: Option<u64>,
    /// Journal bytes kept before tables are written out; bounds recovery time.
    pub(super) journal_bytes_max: u64,
    /// Threads that write tables out and merge them.
    pub(super) workers: usize,
}

/// How a table lays itself out. It counts when the table is created, and never again.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct TableOptions {
    /// Memory of the table before it is written out; the engine's default, if not given.
    pub(super) memtable_bytes_max: Option<u64>,
    /// Values larger than this are kept apart from their keys; none, if not given.
    pub(super) separate_bytes_min: Option<u32>,
}

/// What a batch waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// Nothing: a crash may take the batch back, with all that follows it.
    None,
    /// The batch and all before it are on disk (fdatasync).
    Data,
    /// The same, file metadata included (fsync).
    All,
}

/// A database: tables that share a journal. Cheap to clone.
#[derive(Clone)]
pub(super) enum Database {
    Disk(fjall::Database),
    #[cfg(test)]
    Memory(memory::Database),
}

/// A table of a database: bytes by bytes, ordered. Cheap to clone.
#[derive(Clone)]
pub(super) enum Table {
    Disk(fjall::Keyspace),
    #[cfg(test)]
    Memory(memory::Table),
}

/// Changes of any tables of one database, made at once. No key may occur twice.
pub(super) enum Batch {
    Disk(fjall::OwnedWriteBatch),
    #[cfg(test)]
    Memory(memory::Batch),
}

/// All tables of a database as of one moment.
pub(super) enum View {
    Disk(fjall::Snapshot),
    #[cfg(test)]
    Memory(memory::View),
}

/// Keys and values of a range as of one moment, from both ends.
pub(super) enum Iter {
    Disk(fjall::Iter),
    #[cfg(test)]
    Memory(memory::Iter),
}

impl Database {
    /// Opens the database in a directory, creating it if there is none.
    pub(super) fn open(dir: &Path, options: DatabaseOptions) -> Result<Self, Error> {
        disk::open(dir, options).map(Self::Disk)
    }

    /// Opens a table, creating it if there is none.
    pub(super) fn table(&self, name: &'static str, options: TableOptions) -> Result<Table, Error> {
        Ok(match self {
            Self::Disk(db) => Table::Disk(db.keyspace(name, || disk::keyspace_options(options))?),
            #[cfg(test)]
            Self::Memory(db) => Table::Memory(db.table(name)),
        })
    }

    /// Makes the tables that were created durable. The engine syncs what it writes into its directories; that the
    /// directories are there itself is another matter.
    pub(super) fn settle(&self, dir: &Path) -> Result<(), Error> {
        match self {
            Self::Disk(_) => Ok(dir::sync_tree(dir)?),
            #[cfg(test)]
            Self::Memory(_) => Ok(()),
        }
    }

    /// Begins a batch.
    pub(super) fn batch(&self) -> Batch {
        match self {
            Self::Disk(db) => Batch::Disk(db.batch()),
            #[cfg(test)]
            Self::Memory(db) => Batch::Memory(db.batch()),
        }
    }

    /// The state as of now.
    pub(super) fn view(&self) -> View {
        match self {
            Self::Disk(db) => View::Disk(db.snapshot()),
            #[cfg(test)]
            Self::Memory(db) => View::Memory(db.view()),
        }
    }

    /// Makes everything written so far durable.
    pub(super) fn sync(&self) -> Result<(), Error> {
        match self {
            Self::Disk(db) => Ok(db.persist(PersistMode::SyncAll)?),
            #[cfg(test)]
            Self::Memory(db) => db.sync(),
        }
    }
}

impl Table {
    /// The value of a key.
    pub(super) fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Slice>, Error> {
        match self {
            Self::Disk(table) => Ok(table.get(key)?),
            #[cfg(test)]
            Self::Memory(table) => Ok(table.get(key.as_ref())),
        }
    }

    /// Whether a key has a value.
    pub(super) fn contains_key(&self, key: impl AsRef<[u8]>) -> Result<bool, Error> {
        match self {
            Self::Disk(table) => Ok(table.contains_key(key)?),
            #[cfg(test)]
            Self::Memory(table) => Ok(table.get(key.as_ref()).is_some()),
        }
    }

    /// The first and the last key; none if the table is empty.
    pub(super) fn first_last_key(&self) -> Result<Option<(Slice, Slice)>, Error> {
        match self {
            Self::Disk(table) => match (table.first_key_value(), table.last_key_value()) {
                (Some(first), Some(last)) => Ok(Some((first.key()?, last.key()?))),
                _ => Ok(None),
            },
            #[cfg(test)]
            Self::Memory(table) => Ok(table.first_last_key()),
        }
    }

    /// Everything in the table, in order.
    pub(super) fn iter(&self) -> Iter {
        match self {
            Self::Disk(table) => Iter::Disk(table.iter()),
            #[cfg(test)]
            Self::Memory(table) => Iter::Memory(table.range((Bound::Unbounded, Bound::Unbounded))),
        }
    }

    /// What is between two bounds, in order.
    pub(super) fn range(&self, bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>)) -> Iter {
        match self {
            Self::Disk(table) => Iter::Disk(table.range(bounds)),
            #[cfg(test)]
            Self::Memory(table) => Iter::Memory(table.range(bounds)),
        }
    }

    /// Removes everything.
    pub(super) fn clear(&self) -> Result<(), Error> {
        match self {
            Self::Disk(table) => Ok(table.clear()?),
            #[cfg(test)]
            Self::Memory(table) => table.clear(),
        }
    }
}

impl Batch {
    /// Sets the value of a key.
    pub(super) fn insert(&mut self, table: &Table, key: impl Into<Slice>, value: impl Into<Slice>) {
        match (self, table) {
            (Self::Disk(batch), Table::Disk(table)) => batch.insert(table, key, value),
            #[cfg(test)]
            (Self::Memory(batch), Table::Memory(table)) => batch.change(table, key.into(), Some(value.into())),
            #[cfg(test)]
            _ => panic!("a batch is of one database"),
        }
    }

    /// Removes a key.
    pub(super) fn remove(&mut self, table: &Table, key: impl Into<Slice>) {
        match (self, table) {
            (Self::Disk(batch), Table::Disk(table)) => batch.remove(table, key),
            #[cfg(test)]
            (Self::Memory(batch), Table::Memory(table)) => batch.change(table, key.into(), None),
            #[cfg(test)]
            _ => panic!("a batch is of one database"),
        }
    }

    /// Makes the changes.
    pub(super) fn commit(self, durability: Durability) -> Result<(), Error> {
        match self {
            Self::Disk(batch) => {
                let mode = match durability {
                    Durability::None => None,
                    Durability::Data => Some(PersistMode::SyncData),
                    Durability::All => Some(PersistMode::SyncAll),
                };
                Ok(batch.durability(mode).commit()?)
            }
            #[cfg(test)]
            Self::Memory(batch) => batch.commit(durability != Durability::None),
        }
    }
}

impl View {
    /// The value that a key had.
    pub(super) fn get(&self, table: &Table, key: impl AsRef<[u8]>) -> Result<Option<Slice>, Error> {
        match (self, table) {
            (Self::Disk(view), Table::Disk(table)) => Ok(view.get(table, key)?),
            #[cfg(test)]
            (Self::Memory(view), Table::Memory(table)) => Ok(view.get(table, key.as_ref())),
            #[cfg(test)]
            _ => panic!("a view is of one database"),
        }
    }

    /// Everything that a table held, in order.
    pub(super) fn iter(&self, table: &Table) -> Iter {
        match (self, table) {
            (Self::Disk(view), Table::Disk(table)) => Iter::Disk(view.iter(table)),
            #[cfg(test)]
            (Self::Memory(view), Table::Memory(table)) => {
                Iter::Memory(view.range(table, (Bound::Unbounded, Bound::Unbounded)))
            }
            #[cfg(test)]
            _ => panic!("a view is of one database"),
        }
    }

    /// What a table held between two bounds, in order.
    pub(super) fn range(&self, table: &Table, bounds: (Bound<Vec<u8>>, Bound<Vec<u8>>)) -> Iter {
        match (self, table) {
            (Self::Disk(view), Table::Disk(table)) => Iter::Disk(view.range(table, bounds)),
            #[cfg(test)]
            (Self::Memory(view), Table::Memory(table)) => Iter::Memory(view.range(table, bounds)),
            #[cfg(test)]
            _ => panic!("a view is of one database"),
        }
    }
}

impl Iter {
    /// The keys alone. Values that are kept apart from them are not read.
    pub(super) fn keys(mut self) -> impl Iterator<Item = Result<Slice, Error>> {
        std::iter::from_fn(move || match &mut self {
            Self::Disk(iter) => iter.next().map(|item| Ok(item.key()?)),
            #[cfg(test)]
            Self::Memory(iter) => iter.next().map(|(key, _)| Ok(key)),
        })
    }
}

impl Iterator for Iter {
    type Item = Result<(Slice, Slice), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Disk(iter) => iter.next().map(|item| Ok(item.into_inner()?)),
            #[cfg(test)]
            Self::Memory(iter) => iter.next().map(Ok),
        }
    }
}

impl DoubleEndedIterator for Iter {
    fn next_back(&mut self) -> Option<Self::Item> {
        match self {
            Self::Disk(iter) => iter.next_back().map(|item| Ok(item.into_inner()?)),
            #[cfg(test)]
            Self::Memory(iter) => iter.next_back().map(Ok),
        }
    }
}
