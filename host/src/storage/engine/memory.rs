//! A modelled disk: what an engine's journal keeps across power loss, failures and lies. For tests.
//!
//! [`SimDisk`] is the disk with one database on it, and outlives whoever opens it. Every batch is a record of a journal.
//! A sync makes all records before it durable. When the power goes ([`SimDisk::lose_power`]) the durable records stay,
//! and a prefix of the others that the disk's seed chooses, which is what the journal of the real engine leaves behind:
//! it is written in order and cut at the first record that is not whole. The process that had the disk open is shut out
//! from then on, whatever tasks of it are still about.
//!
//! A disk can be told to fail ([`SimDisk::fail_next`]), to be full ([`SimDisk::set_full`]), to be slow
//! ([`SimDisk::set_sync_time`]), and to lose records that it reported as synced ([`SimDisk::lose_tail`]). As with the real
//! engine, after a failed write or sync nothing more is written until the database is opened anew.

use std::collections::BTreeMap;
use std::io;
use std::ops::{Bound, RangeInclusive};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::Slice;
use crate::storage::Error;
use crate::storage::watermark::Mark;

/// Marks of which a loss of power leaves any one.
const MARKS_MAX: usize = 16;

/// A disk with one database, on which power may be lost. Cheap to clone; all clones are the same disk.
#[derive(Clone)]
pub(crate) struct SimDisk {
    state: Arc<Mutex<State>>,
}

/// What a disk is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Write a record.
    Write,
    /// Make everything durable.
    Sync,
}

struct State {
    rng: fastrand::Rng,
    /// Everything written, in order.
    journal: Vec<Vec<Change>>,
    /// So many records are durable.
    synced: usize,
    /// Whose turn it is: who opened the disk before the last loss of power is shut out.
    opening: u64,
    is_open: bool,
    fails_next: Option<(Operation, io::ErrorKind)>,
    is_full: bool,
    /// The log's marks since the last that was synced, that one included; the last is what readers see.
    marks: Vec<Mark>,
    sync_ms: RangeInclusive<u64>,
}

#[derive(Clone)]
enum Change {
    Set { table: &'static str, key: Bytes, value: Option<Bytes> },
    Clear { table: &'static str },
}

type Rows = Arc<BTreeMap<Bytes, Bytes>>;
type Tables = BTreeMap<&'static str, Rows>;
type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

impl SimDisk {
    /// An empty disk. The seed decides what losses of power leave of it, and how long its syncs take.
    pub(crate) fn new(seed: u64) -> Self {
        let state = State {
            rng: fastrand::Rng::with_seed(seed),
            journal: Vec::new(),
            synced: 0,
            opening: 0,
            is_open: false,
            fails_next: None,
            is_full: false,
            marks: Vec::new(),
            sync_ms: 0..=0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Takes the power away: what was synced stays, and a part of the rest. Whoever has the disk open is shut out.
    pub(crate) fn lose_power(&self) {
        let mut state = self.lock();
        let (synced, written) = (state.synced, state.journal.len());
        let kept = state.rng.usize(synced..=written);
        state.journal.truncate(kept);
        // What was read back from the disk at the next start is on it.
        state.synced = kept;
        if !state.marks.is_empty() {
            let count = state.marks.len();
            let kept = state.rng.usize(..count);
            state.marks = vec![state.marks.swap_remove(kept)];
        }
        state.shut_out();
    }

    /// Forgets the last `records`, synced or not, as a disk does that lies about syncs. To be called while it is closed.
    pub(crate) fn lose_tail(&self, records: usize) {
        let mut state = self.lock();
        let kept = state.journal.len().saturating_sub(records);
        state.journal.truncate(kept);
        state.synced = state.synced.min(kept);
        state.shut_out();
    }

    /// Forgets everything, as a new disk in the place of this one.
    pub(crate) fn wipe(&self) {
        self.lose_tail(usize::MAX);
        self.lock().marks.clear();
    }

    /// Lets the next write or sync fail, once.
    pub(crate) fn fail_next(&self, operation: Operation, error: io::ErrorKind) {
        self.lock().fails_next = Some((operation, error));
    }

    /// Whether there is no room for anything more.
    pub(crate) fn set_full(&self, is_full: bool) {
        self.lock().is_full = is_full;
    }

    /// How long a sync takes, in milliseconds.
    pub(crate) fn set_sync_time(&self, ms: RangeInclusive<u64>) {
        self.lock().sync_ms = ms;
    }

    /// How long the next sync takes.
    pub(crate) fn next_sync_time(&self) -> Duration {
        let mut state = self.lock();
        let range = state.sync_ms.clone();
        Duration::from_millis(state.rng.u64(range))
    }

    /// How many records the journal has, and how many of them are durable.
    pub(crate) fn records(&self) -> (usize, usize) {
        let state = self.lock();
        (state.journal.len(), state.synced)
    }

    /// Opens the database on the disk. With `waits`, a sync takes its time on the thread that asks for it.
    pub(crate) fn open(&self, waits: bool) -> Result<Database, Error> {
        let mut state = self.lock();
        if state.is_open {
            return Err(Error::Locked { path: PathBuf::from("the modelled disk") });
        }
        state.opening += 1;
        state.is_open = true;
        let mut tables = Tables::new();
        for record in &state.journal {
            apply(&mut tables, record);
        }
        let opening = Opening { disk: self.clone(), number: state.opening, waits, content: Mutex::default() };
        lock(&opening.content).tables = tables;
        Ok(Database { opening: Arc::new(opening) })
    }

    /// The log's mark, as it was last set.
    pub(in crate::storage) fn mark(&self) -> Option<Mark> {
        self.lock().marks.last().copied()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn shut_out(&mut self) {
        self.opening += 1;
        self.is_open = false;
    }

    fn attempt(&mut self, operation: Operation) -> Result<(), Error> {
        let failure = match self.fails_next {
            Some((failing, error)) if failing == operation => {
                self.fails_next = None;
                Some(error)
            }
            _ => (self.is_full && operation == Operation::Write).then_some(io::ErrorKind::StorageFull),
        };
        failure.map_or(Ok(()), |error| Err(fjall::Error::Io(error.into()).into()))
    }
}

/// The database on a disk, as one process has opened it.
#[derive(Clone)]
pub(crate) struct Database {
    opening: Arc<Opening>,
}

struct Opening {
    disk: SimDisk,
    number: u64,
    waits: bool,
    content: Mutex<Content>,
}

/// What readers see.
#[derive(Default)]
struct Content {
    tables: Tables,
    is_poisoned: bool,
}

impl Drop for Opening {
    fn drop(&mut self) {
        let mut state = self.disk.lock();
        if state.opening == self.number {
            state.is_open = false;
        }
    }
}

impl Database {
    pub(crate) fn disk(&self) -> &SimDisk {
        &self.opening.disk
    }

    /// Sets the log's mark. One that is not synced may be lost with the power, up to the last that was.
    pub(in crate::storage) fn set_mark(&self, mark: Mark, sync: bool) -> Result<(), Error> {
        let mut state = self.opening.disk.lock();
        if state.opening != self.opening.number {
            return Err(Error::Closed);
        }
        if sync {
            state.marks.clear();
        } else if state.marks.len() >= MARKS_MAX {
            // In time they are synced in the background.
            state.marks.remove(0);
        }
        state.marks.push(mark);
        Ok(())
    }

    pub(super) fn table(&self, name: &'static str) -> Table {
        lock(&self.opening.content).tables.entry(name).or_default();
        Table { opening: self.opening.clone(), name }
    }

    pub(super) fn batch(&self) -> Batch {
        Batch { opening: self.opening.clone(), changes: Vec::new() }
    }

    pub(super) fn view(&self) -> View {
        View { tables: lock(&self.opening.content).tables.clone() }
    }

    pub(super) fn sync(&self) -> Result<(), Error> {
        self.opening.write(Vec::new(), true)
    }
}

impl Opening {
    fn write(&self, changes: Vec<Change>, sync: bool) -> Result<(), Error> {
        if sync && self.waits {
            std::thread::sleep(self.disk.next_sync_time());
        }
        let mut content = lock(&self.content);
        if content.is_poisoned {
            return Err(fjall::Error::Poisoned.into());
        }
        let written = self.write_to_disk(&changes, sync);
        match written {
            Ok(()) => apply(&mut content.tables, &changes),
            Err(_) => content.is_poisoned = true,
        }
        written
    }

    fn write_to_disk(&self, changes: &[Change], sync: bool) -> Result<(), Error> {
        let mut state = self.disk.lock();
        if state.opening != self.number {
            return Err(Error::Closed);
        }
        if !changes.is_empty() {
            state.attempt(Operation::Write)?;
            state.journal.push(changes.to_vec());
        }
        if sync {
            state.attempt(Operation::Sync)?;
            state.synced = state.journal.len();
        }
        Ok(())
    }
}

fn apply(tables: &mut Tables, changes: &[Change]) {
    for change in changes {
        match change {
            Change::Set { table, key, value: Some(value) } => {
                Arc::make_mut(tables.entry(table).or_default()).insert(key.clone(), value.clone());
            }
            Change::Set { table, key, value: None } => {
                Arc::make_mut(tables.entry(table).or_default()).remove(key);
            }
            Change::Clear { table } => *tables.entry(table).or_default() = Rows::default(),
        }
    }
}

/// A table of the database.
#[derive(Clone)]
pub(crate) struct Table {
    opening: Arc<Opening>,
    name: &'static str,
}

impl Table {
    pub(super) fn get(&self, key: &[u8]) -> Option<Slice> {
        self.rows().get(key).cloned().map(Slice::from)
    }

    pub(super) fn first_last_key(&self) -> Option<(Slice, Slice)> {
        let rows = self.rows();
        let (first, last) = (rows.first_key_value()?, rows.last_key_value()?);
        Some((first.0.clone().into(), last.0.clone().into()))
    }

    pub(super) fn range(&self, bounds: Bounds) -> Iter {
        range(&self.rows(), bounds)
    }

    pub(super) fn clear(&self) -> Result<(), Error> {
        self.opening.write(vec![Change::Clear { table: self.name }], false)
    }

    fn rows(&self) -> Rows {
        lock(&self.opening.content).tables.get(self.name).cloned().unwrap_or_default()
    }
}

/// Changes made at once.
pub(crate) struct Batch {
    opening: Arc<Opening>,
    changes: Vec<Change>,
}

impl Batch {
    pub(super) fn change(&mut self, table: &Table, key: Slice, value: Option<Slice>) {
        self.changes.push(Change::Set { table: table.name, key: key.into(), value: value.map(Bytes::from) });
    }

    pub(super) fn commit(self, sync: bool) -> Result<(), Error> {
        if self.changes.is_empty() {
            // As the engine does it: nothing is written, so nothing is synced.
            return Ok(());
        }
        self.opening.write(self.changes, sync)
    }
}

/// The database as of one moment.
pub(crate) struct View {
    tables: Tables,
}

impl View {
    pub(super) fn get(&self, table: &Table, key: &[u8]) -> Option<Slice> {
        self.tables.get(table.name)?.get(key).cloned().map(Slice::from)
    }

    pub(super) fn range(&self, table: &Table, bounds: Bounds) -> Iter {
        self.tables.get(table.name).map(|rows| range(rows, bounds)).unwrap_or_default()
    }
}

/// Keys and values of a range.
pub(crate) type Iter = std::vec::IntoIter<(Slice, Slice)>;

fn range(rows: &BTreeMap<Bytes, Bytes>, (low, high): Bounds) -> Iter {
    let bounds = (low.as_ref().map(Vec::as_slice), high.as_ref().map(Vec::as_slice));
    let found = rows.range::<[u8], _>(bounds);
    found.map(|(key, value)| (key.clone().into(), value.clone().into())).collect::<Vec<_>>().into_iter()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::super::{Durability, TableOptions};
    use super::*;

    fn open(disk: &SimDisk) -> (super::super::Database, super::super::Table) {
        let db = super::super::Database::Memory(disk.open(true).unwrap());
        let table = db.table("t", TableOptions::default()).unwrap();
        (db, table)
    }

    fn put(disk: &SimDisk, keys: std::ops::Range<u8>, synced: u8) {
        let (db, table) = open(disk);
        for key in keys {
            let mut batch = db.batch();
            batch.insert(&table, [key], "a");
            batch.insert(&table, [100 + key], "b");
            batch.commit(if key == synced { Durability::Data } else { Durability::None }).unwrap();
        }
    }

    #[test]
    fn a_loss_of_power_leaves_what_was_synced_and_a_prefix_of_the_rest_batch_by_batch() {
        let mut left = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let disk = SimDisk::new(seed);
            put(&disk, 0..10, 4);
            disk.lose_power();
            let (_db, table) = open(&disk);
            let keys: Vec<u8> = table.iter().map(|row| row.unwrap().0[0]).collect();
            let first = u8::try_from(keys.len() / 2).unwrap();
            let expected: Vec<u8> = (0..first).chain(100..100 + first).collect();
            assert_eq!(keys, expected);
            left.insert(first);
        }
        assert_eq!(left, (5..=10).collect());
    }

    #[test]
    fn a_process_that_lost_power_writes_nothing_more() {
        let disk = SimDisk::new(1);
        let (before, table) = open(&disk);
        disk.lose_power();
        let (_after, _) = open(&disk);
        let mut batch = before.batch();
        batch.insert(&table, "k", "v");
        assert!(matches!(batch.commit(Durability::Data), Err(Error::Closed)));
        drop((before, table));
        assert!(matches!(disk.open(true), Err(Error::Locked { .. })));
    }

    #[test]
    fn after_a_failed_write_or_sync_nothing_is_written_until_the_database_is_opened_anew() {
        for operation in [Operation::Write, Operation::Sync] {
            let disk = SimDisk::new(1);
            let (db, table) = open(&disk);
            disk.fail_next(operation, io::ErrorKind::Other);
            for _ in 0..2 {
                let mut batch = db.batch();
                batch.insert(&table, "k", "v");
                batch.commit(Durability::Data).unwrap_err();
            }
            assert!(table.get("k").unwrap().is_none());
            drop((db, table));
            put(&disk, 0..1, 0);
            assert_eq!(disk.records(), if operation == Operation::Write { (1, 1) } else { (2, 2) });
        }
    }
}
