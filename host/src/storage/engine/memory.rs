//! A simulated disk as the storage engine: its journals survive power losses, failures and lies. For tests.
//!
//! A [`SimDisk`] holds the generations of one database and outlives the nodes that open it. Each generation has a journal;
//! every batch is a record of it, and a sync makes all its records before it durable. A power loss
//! ([`SimDisk::lose_power`]) keeps the durable records of each journal and a prefix of the others, chosen by the disk's
//! seed. fjall leaves the same behind: it writes its journal in order, and cuts it at the first incomplete record. A
//! process that had the disk open before a power loss can no longer write to it, even if some of its tasks are still alive.
//!
//! Beside the database lie the pointer to the current generation and one small file, the sidecar; each is replaced as a
//! whole.
//!
//! On demand a disk fails, is slow, loses power by itself, or loses records that it reported as synced. After a failed
//! write or sync nothing more is written until the database is opened again, as with fjall.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Bounds, Change, Durability, Generations, ReadTables, Rows, Slice, StorageEngine, Table, WriteBatch};
use crate::storage::Error;

/// What a disk writes as a whole.
const SECTOR_BYTES: usize = 512;

/// Versions of the sidecar, any of which a power loss may leave.
const SIDECARS_MAX: usize = 16;

/// A disk with one database, which can lose power. Cheap to clone; all clones are the same disk.
#[derive(Clone)]
pub(crate) struct SimDisk {
    state: Arc<Mutex<DiskState>>,
}

/// A disk operation that can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    Write,
    Sync,
}

struct DiskState {
    rng: fastrand::Rng,
    /// The generations by number.
    databases: BTreeMap<u64, Journal>,
    /// Versions of the pointer to the current generation, from the last synced one on; the process sees the last.
    pointers: Vec<u64>,
    /// Whether any sectors of the first lost record survive.
    tears: bool,
    /// Number of the current opening. Earlier openings can no longer write.
    opening: u64,
    /// How many databases are open.
    open: usize,
    fails_next: Option<(Operation, io::ErrorKind)>,
    /// Changes of the disk until it loses power by itself.
    changes_left: Option<u64>,
    /// Versions of the sidecar, from the last synced one on; readers see the last.
    sidecars: Vec<Bytes>,
    sync_ms: RangeInclusive<u64>,
}

/// Everything written to a generation.
#[derive(Default)]
struct Journal {
    records: Vec<Vec<Change>>,
    /// Number of durable records.
    synced: usize,
}

/// The content of a database. Cheap to clone.
#[derive(Clone, Default)]
struct Tables(BTreeMap<Table, Arc<BTreeMap<Slice, Slice>>>);

impl SimDisk {
    /// An empty disk. The seed decides what a power loss leaves of it, and how long a sync takes.
    pub(crate) fn new(seed: u64) -> Self {
        let state = DiskState {
            rng: fastrand::Rng::with_seed(seed),
            databases: BTreeMap::new(),
            pointers: vec![0],
            tears: false,
            opening: 0,
            open: 0,
            fails_next: None,
            changes_left: None,
            sidecars: Vec::new(),
            sync_ms: 0..=0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// A disk with the same content, of which everything is durable.
    pub(crate) fn copy(&self) -> Self {
        let copy = Self::new(self.state.lock().rng.fork().u64(..));
        {
            let (from, mut to) = (self.state.lock(), copy.state.lock());
            for (number, Journal { records, .. }) in &from.databases {
                to.databases.insert(*number, Journal { records: records.clone(), synced: records.len() });
            }
            (to.pointers, to.sidecars) =
                (vec![from.newest_pointer()], from.sidecars.last().cloned().into_iter().collect());
        }
        copy
    }

    /// Cuts the power: synced records stay, and a prefix of the others. An open database can no longer write.
    pub(crate) fn lose_power(&self) {
        self.state.lock().lose_power();
    }

    /// Cuts the power by itself after this many more changes.
    pub(crate) fn lose_power_after(&self, changes: u64) {
        self.state.lock().changes_left = Some(changes);
    }

    /// Forgets the last `records` of the current generation, synced or not, like a disk that lies about syncs. Call it
    /// while the disk is closed.
    pub(crate) fn lose_tail(&self, records: usize) {
        let mut state = self.state.lock();
        let journal = state.current();
        let kept = journal.records.len().saturating_sub(records);
        journal.records.truncate(kept);
        journal.synced = journal.synced.min(kept);
        state.shut_out();
    }

    /// Loses synced records of a process that has just been killed, while the sidecar stays: either up to `most` at the
    /// end, or as many somewhere before, where zeros remain.
    pub(crate) fn lie(&self, most: usize) {
        let mut state = self.state.lock();
        let written = state.current().records.len();
        let (lost, is_tail) = (state.rng.usize(1..=most).min(written), state.rng.bool());
        let from = if is_tail { written - lost } else { state.rng.usize(0..=written - lost) };
        let journal = state.current();
        match is_tail {
            true => journal.records.truncate(from),
            false => journal.records[from..from + lost].iter_mut().flatten().for_each(clear),
        }
        journal.synced = journal.records.len();
        let last = state.sidecars.pop();
        state.sidecars = last.into_iter().collect();
        state.shut_out();
    }

    /// Forgets everything, like a new disk.
    pub(crate) fn wipe(&self) {
        let mut state = self.state.lock();
        state.databases.clear();
        state.pointers = vec![0];
        state.sidecars.clear();
        state.shut_out();
    }

    /// Makes the next write or sync fail, once.
    pub(crate) fn fail_next(&self, operation: Operation, error: io::ErrorKind) {
        self.state.lock().fails_next = Some((operation, error));
    }

    /// Makes a power loss leave any sectors of the first record that it takes, as of a file that is written to.
    pub(crate) fn set_tears(&self) {
        self.state.lock().tears = true;
    }

    /// Sets how long a sync takes, in milliseconds.
    pub(crate) fn set_sync_time(&self, ms: RangeInclusive<u64>) {
        self.state.lock().sync_ms = ms;
    }

    pub(crate) fn next_sync_time(&self) -> Duration {
        let mut state = self.state.lock();
        let range = state.sync_ms.clone();
        Duration::from_millis(state.rng.u64(range))
    }

    /// How many records are in the current generation, and how many of them are durable.
    pub(crate) fn records(&self) -> (usize, usize) {
        let mut state = self.state.lock();
        let journal = state.current();
        (journal.records.len(), journal.synced)
    }

    /// How many generations the disk holds.
    pub(crate) fn generations(&self) -> usize {
        self.state.lock().databases.len()
    }

    /// Opens the current generation. With `waits`, a sync takes its time on the thread that requests it.
    pub(crate) fn open(&self, waits: bool) -> Result<MemoryEngine, Error> {
        let mut state = self.state.lock();
        if state.open > 0 {
            return Err(Error::Locked(PathBuf::from("the simulated disk")));
        }
        state.opening += 1;
        let current = state.newest_pointer();
        if current != 0 && !state.databases.contains_key(&current) {
            return Err(Error::corrupt("the pointer"));
        }
        state.databases.retain(|generation, _| *generation == current);
        drop(state);
        Ok(self.engine(current, waits))
    }

    fn engine(&self, generation: u64, waits: bool) -> MemoryEngine {
        let mut state = self.state.lock();
        state.open += 1;
        let mut tables = Tables::default();
        state.databases.entry(generation).or_default().records.iter().for_each(|record| tables.apply(record));
        let content = Mutex::new(Content { tables, is_poisoned: false });
        let is_retired = AtomicBool::new(false);
        MemoryEngine { disk: self.clone(), opening: state.opening, generation, waits, content, is_retired }
    }

    pub(in crate::storage) fn sidecar(&self) -> Option<Bytes> {
        self.state.lock().sidecars.last().cloned()
    }

    /// Replaces the sidecar, for the process of an opening. A power loss may bring back any version since the last that
    /// was synced.
    pub(in crate::storage) fn set_sidecar(&self, opening: u64, content: Bytes, sync: bool) -> Result<(), Error> {
        let mut state = self.state.lock();
        state.check(opening)?;
        if sync {
            state.sidecars.clear();
        } else if state.sidecars.len() >= SIDECARS_MAX {
            // The background syncs it in time.
            state.sidecars.remove(0);
        }
        state.sidecars.push(content);
        Ok(())
    }
}

impl DiskState {
    /// The change as a power loss may leave it: with zeros in some sectors of its value.
    fn tear(&mut self, change: Change) -> Change {
        let mut value = change.value.as_deref().unwrap_or_default().to_vec();
        value.chunks_mut(SECTOR_BYTES).filter(|_| self.rng.bool()).for_each(|sector| sector.fill(0));
        Change { value: change.value.map(|_| value.into()), ..change }
    }

    fn lose_power(&mut self) {
        for (number, mut journal) in std::mem::take(&mut self.databases) {
            let kept = self.rng.usize(journal.synced..=journal.records.len());
            let torn = journal.records.drain(kept..).next();
            if let Some(record) = torn.filter(|_| self.tears) {
                let torn = record.into_iter().map(|change| self.tear(change)).collect();
                journal.records.push(torn);
            }
            // The next start reads these records back from the disk, so they are durable.
            journal.synced = journal.records.len();
            self.databases.insert(number, journal);
        }
        keep_one(&mut self.pointers, &mut self.rng);
        keep_one(&mut self.sidecars, &mut self.rng);
        self.changes_left = None;
        self.shut_out();
    }

    fn shut_out(&mut self) {
        self.opening += 1;
        self.open = 0;
    }

    fn newest_pointer(&self) -> u64 {
        self.pointers.last().copied().unwrap_or(0)
    }

    /// The current generation.
    fn current(&mut self) -> &mut Journal {
        let current = self.newest_pointer();
        self.databases.entry(current).or_default()
    }

    /// Fails if the disk was shut out or opened again since an opening.
    fn check(&self, opening: u64) -> Result<(), Error> {
        if self.opening == opening { Ok(()) } else { Err(Error::Closed) }
    }

    /// Begins a change of the disk, for the process of an opening.
    fn begin(&mut self, opening: u64) -> Result<(), Error> {
        self.check(opening)?;
        match &mut self.changes_left {
            Some(0) => {
                self.lose_power();
                Err(Error::Closed)
            }
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn write(&mut self, opening: u64, generation: u64, record: &[Change], sync: bool) -> Result<(), Error> {
        if !record.is_empty() {
            self.begin(opening)?;
            self.attempt(Operation::Write)?;
            self.databases.entry(generation).or_default().records.push(record.to_vec());
        }
        if sync {
            self.begin(opening)?;
            self.attempt(Operation::Sync)?;
            let journal = self.databases.entry(generation).or_default();
            journal.synced = journal.records.len();
        }
        Ok(())
    }

    fn attempt(&mut self, operation: Operation) -> Result<(), Error> {
        match self.fails_next.take_if(|(failing, _)| *failing == operation) {
            Some((_, error)) => Err(io::Error::from(error).into()),
            None => Ok(()),
        }
    }
}

/// Replaces a value by zeros.
fn clear(change: &mut Change) {
    if let Some(value) = &mut change.value {
        *value = vec![0; value.len()].into();
    }
}

/// What a power loss leaves of the versions of a file.
fn keep_one<T>(versions: &mut Vec<T>, rng: &mut fastrand::Rng) {
    if versions.len() > 1 {
        let kept = rng.usize(..versions.len());
        *versions = vec![versions.swap_remove(kept)];
    }
}

/// The generations on a disk, as one process has opened them.
pub(in crate::storage) struct SimGenerations {
    disk: SimDisk,
    /// The opening, and the number of the newest generation.
    newest: Mutex<(u64, u64)>,
}

impl SimGenerations {
    pub(in crate::storage) fn new(disk: &SimDisk) -> Self {
        Self { disk: disk.clone(), newest: Mutex::default() }
    }
}

impl Generations for SimGenerations {
    fn open(&self) -> Result<Arc<dyn StorageEngine>, Error> {
        let engine = self.disk.open(false)?;
        *self.newest.lock() = (engine.opening, engine.generation);
        Ok(Arc::new(engine))
    }

    fn create(&self) -> Result<Arc<dyn StorageEngine>, Error> {
        let mut newest = self.newest.lock();
        self.disk.state.lock().begin(newest.0)?;
        newest.1 += 1;
        Ok(Arc::new(self.disk.engine(newest.1, false)))
    }

    fn switch(&self) -> Result<(), Error> {
        let (opening, generation) = *self.newest.lock();
        let mut state = self.disk.state.lock();
        state.begin(opening)?;
        state.pointers.push(generation);
        state.begin(opening)?;
        state.pointers = vec![generation];
        Ok(())
    }
}

/// The database on a disk, as one process has opened it, until it is dropped.
pub(crate) struct MemoryEngine {
    disk: SimDisk,
    pub(in crate::storage) opening: u64,
    generation: u64,
    waits: bool,
    content: Mutex<Content>,
    is_retired: AtomicBool,
}

/// The content as readers see it.
struct Content {
    tables: Tables,
    is_poisoned: bool,
}

impl Drop for MemoryEngine {
    fn drop(&mut self) {
        let mut state = self.disk.state.lock();
        if state.opening == self.opening {
            state.open -= 1;
            if self.is_retired.load(Ordering::Relaxed) {
                state.databases.remove(&self.generation);
            }
        }
    }
}

impl MemoryEngine {
    fn tables(&self) -> Tables {
        self.content.lock().tables.clone()
    }

    fn commit(&self, record: &[Change], sync: bool) -> Result<(), Error> {
        if sync && self.waits {
            std::thread::sleep(self.disk.next_sync_time());
        }
        let mut content = self.content.lock();
        if content.is_poisoned {
            return Err(fjall::Error::Poisoned.into());
        }
        let written = self.disk.state.lock().write(self.opening, self.generation, record, sync);
        match written {
            Ok(()) => content.tables.apply(record),
            Err(_) => content.is_poisoned = true,
        }
        written
    }
}

impl Tables {
    fn apply(&mut self, record: &[Change]) {
        for Change { table, key, value } in record {
            let rows = Arc::make_mut(self.0.entry(*table).or_default());
            match value {
                Some(value) => drop(rows.insert(key.clone(), value.clone())),
                None => drop(rows.remove(key)),
            }
        }
    }
}

impl StorageEngine for MemoryEngine {
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), Error> {
        if batch.changes.is_empty() {
            return Ok(());
        }
        self.commit(&batch.changes, durability != Durability::None)
    }

    fn sync(&self) -> Result<(), Error> {
        self.commit(&[], true)
    }

    fn view(&self) -> Box<dyn ReadTables> {
        Box::new(self.tables())
    }

    fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }
}

impl ReadTables for MemoryEngine {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, Error> {
        self.content.lock().tables.get(table, key)
    }

    fn range(&self, table: Table, bounds: Bounds) -> Result<Rows, Error> {
        self.tables().range(table, bounds)
    }
}

impl ReadTables for Tables {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, Error> {
        Ok(self.0.get(&table).and_then(|rows| rows.get(key)).cloned())
    }

    fn range(&self, table: Table, (low, high): Bounds) -> Result<Rows, Error> {
        let bounds = (low.as_ref().map(Vec::as_slice), high.as_ref().map(Vec::as_slice));
        let rows = self.0.get(&table).into_iter().flat_map(|rows| rows.range::<[u8], _>(bounds));
        let rows: Vec<_> = rows.map(|(key, value)| Ok((key.clone(), value.clone()))).collect();
        Ok(Box::new(rows.into_iter()))
    }
}
