//! The storage engine: ordered tables with atomic batches, views of one moment, and explicit durability.
//!
//! Production uses fjall on a directory (`fjall`). Tests use a simulated disk (`memory`), which loses power, fails and
//! lies on demand, and outlives the node that uses it. Changes of the state pass through a buffer in memory first
//! (`write_behind`), which implements the same traits. The rest of [`crate::storage`] sees only these.
//!
//! A database is replaced as a whole by another *generation* of it ([`Generations`]): the new one is created and filled
//! beside the current one, which is read meanwhile, and takes its place once it is durable.
//!
//! # What an implementation guarantees
//!
//! - A batch takes effect as a whole or not at all, also across a crash.
//! - A crash takes nothing that a sync reported as durable, and nothing that was written to that database before.
//! - Of the batches that were not synced, a crash leaves the first ones and takes the rest.
//! - After a failed write or sync, every later one fails until the database is opened again.
//! - The current generation changes at one moment, also across a crash.
//!
//! # Cost
//!
//! One virtual call for each get, batch, sync, and row of a range, and another one behind the buffer; a few allocations for each
//! range and view. Values, and all but short keys, are never copied on the way.

mod compaction;
mod damage;
pub(super) mod fjall;
mod journals;
#[cfg(test)]
pub(crate) mod memory;
pub(in crate::storage) mod write_behind;

use std::ops::Bound;
use std::sync::Arc;

pub(super) use ::fjall::Slice;

use super::Error;

/// A table of a database: its position in the list of tables with which the database was opened.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Table(pub(super) usize);

/// The first and the last key of a range.
pub(super) type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

pub(super) const EVERYTHING: Bounds = (Bound::Unbounded, Bound::Unbounded);

/// The keys and values of a range in key order, readable from both ends.
pub(super) type Rows = Box<dyn DoubleEndedIterator<Item = Result<(Slice, Slice), Error>> + Send>;

pub(super) type Keys = Box<dyn DoubleEndedIterator<Item = Result<Slice, Error>> + Send>;

/// Read access to the tables of a database.
///
/// A view reads the state at the moment of its creation. A [`StorageEngine`] reads the newest state, a new one with each
/// call; an iterator shows one moment. No read shows a part of a batch.
pub(super) trait ReadTables: Send + Sync {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, Error>;

    fn range(&self, table: Table, bounds: Bounds) -> Result<Rows, Error>;

    /// The keys of a range. An engine that stores large values apart from their keys does not read them.
    fn keys(&self, table: Table, bounds: Bounds) -> Result<Keys, Error> {
        Ok(Box::new(self.range(table, bounds)?.map(|row| Ok(row?.0))))
    }
}

/// An open database.
pub(super) trait StorageEngine: ReadTables {
    /// Applies a batch, and makes it as durable as requested. Later reads see the batch once this returns. An empty
    /// batch does nothing.
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), Error>;

    /// Fills the tables of a new database, which nobody else uses yet and which have none of these rows. In each table, the rows
    /// come in ascending order of their keys. Ends with the first batch that is an error. On a disk, the rows take a bounded
    /// part of the memory.
    ///
    /// IMPORTANT: a crash may leave any part of the rows until the next sync, and another batch must be written before that: the
    /// journals must end after what the files of the tables hold.
    fn fill(&self, batches: &mut dyn Iterator<Item = Result<WriteBatch, Error>>) -> Result<(), Error> {
        for batch in batches {
            self.write(batch?, Durability::None)?;
        }
        Ok(())
    }

    /// Makes everything written so far durable.
    fn sync(&self) -> Result<(), Error>;

    /// Hands what the engine has written so far to the operating system, so that it outlives the process. Fails if work in the
    /// background has failed: a write may not return after that, so somebody must ask now and then.
    fn check(&self) -> Result<(), Error> {
        Ok(())
    }

    /// A view of the current state of all tables. Later writes do not change it.
    fn view(&self) -> Box<dyn ReadTables>;

    /// A view for a change that must not wait for the disk: a read of anything that is not in memory fails with
    /// [`Error::NotInMemory`]. None if a small batch may have to wait.
    fn memory(&self) -> Option<Box<dyn ReadTables>> {
        None
    }

    /// Has the database removed from the disk once nobody uses it any longer: neither this engine, nor its views and
    /// iterators.
    fn retire(&self);
}

/// A database and those that replace it, of which one is current.
pub(super) trait Generations: Send + Sync {
    /// Opens the current generation; the first one is created if it is missing. Removes all others, which were left
    /// behind when the process ended. Called once.
    fn open(&self) -> Result<Arc<dyn StorageEngine>, Error>;

    /// Creates an empty generation. Unless it becomes current, its user retires it.
    fn create(&self) -> Result<Arc<dyn StorageEngine>, Error>;

    /// Makes the generation that was created last the current one; it must be synced. After an error, either generation
    /// may be the current one, so both must be kept.
    fn switch(&self) -> Result<(), Error>;
}

/// How much of a write must be on disk when it returns.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Durability {
    /// Nothing: a crash may take the batch and all later ones.
    None,
    /// The batch and everything before it (fsync).
    All,
}

/// Changes to any tables of one database, applied together. No key may occur twice.
#[derive(Default)]
pub(super) struct WriteBatch {
    changes: Vec<Change>,
}

/// A change of one key. Without a value, the key is removed.
#[derive(Clone)]
struct Change {
    table: Table,
    key: Slice,
    value: Option<Slice>,
}

impl WriteBatch {
    pub(super) fn with_capacity(changes: usize) -> Self {
        Self { changes: Vec::with_capacity(changes) }
    }

    /// Sets the value of a key; without a value, removes the key.
    pub(super) fn set(&mut self, table: Table, key: impl Into<Slice>, value: Option<Slice>) {
        self.changes.push(Change { table, key: key.into(), value });
    }

    pub(super) fn insert(&mut self, table: Table, key: impl Into<Slice>, value: impl Into<Slice>) {
        self.set(table, key, Some(value.into()));
    }

    /// The rows that a table gets.
    pub(super) fn rows_of(&self, table: Table) -> impl Iterator<Item = (&[u8], &[u8])> {
        let of_table = self.changes.iter().filter(move |change| change.table == table);
        of_table.filter_map(|change| Some((&*change.key, change.value.as_deref()?)))
    }
}
