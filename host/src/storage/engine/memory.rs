//! A simulated disk as the storage engine: its journal survives power losses, failures and lies. For tests.
//!
//! A [`SimDisk`] holds one database and outlives the nodes that open it. Every batch is a record of a journal, and a
//! sync makes all records before it durable. A power loss ([`SimDisk::lose_power`]) keeps the durable records and a
//! prefix of the others, chosen by the disk's seed. fjall leaves the same behind: it writes its journal in order, and
//! cuts it at the first incomplete record. A process that had the disk open before a power loss can no longer write to
//! it, even if some of its tasks are still alive.
//!
//! Beside the database lies one small file, the sidecar, which is replaced as a whole.
//!
//! On demand a disk fails, is slow, or loses records that it reported as synced. After a failed write or sync
//! nothing more is written until the database is opened again, as with fjall.

use std::collections::BTreeMap;
use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

use super::{Bounds, Change, Durability, EVERYTHING, ReadTables, Rows, Slice, StorageEngine, Table, WriteBatch};
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
    /// Everything written, in order.
    journal: Vec<Vec<Change>>,
    /// Number of durable records.
    synced: usize,
    /// Whether any sectors of the first lost record survive.
    tears: bool,
    /// Number of the current opening. Earlier openings can no longer write.
    opening: u64,
    is_open: bool,
    fails_next: Option<(Operation, io::ErrorKind)>,
    /// Versions of the sidecar, from the last synced one on; readers see the last.
    sidecars: Vec<Bytes>,
    sync_ms: RangeInclusive<u64>,
}

/// The content of a database. Cheap to clone.
#[derive(Clone, Default)]
struct Tables(BTreeMap<Table, Arc<BTreeMap<Slice, Slice>>>);

impl SimDisk {
    /// An empty disk. The seed decides what a power loss leaves of it, and how long a sync takes.
    pub(crate) fn new(seed: u64) -> Self {
        let state = DiskState {
            rng: fastrand::Rng::with_seed(seed),
            journal: Vec::new(),
            synced: 0,
            tears: false,
            opening: 0,
            is_open: false,
            fails_next: None,
            sidecars: Vec::new(),
            sync_ms: 0..=0,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// Cuts the power: synced records stay, and a prefix of the others. An open database can no longer write.
    pub(crate) fn lose_power(&self) {
        let mut state = self.state.lock();
        let (synced, written) = (state.synced, state.journal.len());
        let kept = state.rng.usize(synced..=written);
        let torn = state.journal.drain(kept..).next();
        if let Some(record) = torn.filter(|_| state.tears) {
            let torn = record.into_iter().map(|change| state.tear(change)).collect();
            state.journal.push(torn);
        }
        // The next start reads these records back from the disk, so they are durable.
        state.synced = state.journal.len();
        if !state.sidecars.is_empty() {
            let count = state.sidecars.len();
            let kept = state.rng.usize(..count);
            state.sidecars = vec![state.sidecars.swap_remove(kept)];
        }
        state.shut_out();
    }

    /// Forgets the last `records`, synced or not, like a disk that lies about syncs. Call it while the disk is closed.
    pub(crate) fn lose_tail(&self, records: usize) {
        let mut state = self.state.lock();
        let kept = state.journal.len().saturating_sub(records);
        state.journal.truncate(kept);
        state.synced = state.synced.min(kept);
        state.shut_out();
    }

    /// Loses synced records of a process that has just been killed, while the sidecar stays: either up to `most` at the
    /// end, or as many somewhere before, where zeros remain.
    pub(crate) fn lie(&self, most: usize) {
        let mut state = self.state.lock();
        let written = state.journal.len();
        let (lost, is_tail) = (state.rng.usize(1..=most).min(written), state.rng.bool());
        let from = if is_tail { written - lost } else { state.rng.usize(0..=written - lost) };
        match is_tail {
            true => state.journal.truncate(from),
            false => state.journal[from..from + lost].iter_mut().flatten().for_each(clear),
        }
        state.synced = state.journal.len();
        let last = state.sidecars.pop();
        state.sidecars = last.into_iter().collect();
        state.shut_out();
    }

    /// Forgets everything, like a new disk.
    pub(crate) fn wipe(&self) {
        self.lose_tail(usize::MAX);
        self.state.lock().sidecars.clear();
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

    /// How many records are in the journal, and how many of them are durable.
    pub(crate) fn records(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.journal.len(), state.synced)
    }

    /// Opens the database on the disk. With `waits`, a sync takes its time on the thread that requests it.
    pub(crate) fn open(&self, waits: bool) -> Result<MemoryEngine, Error> {
        let mut state = self.state.lock();
        if state.is_open {
            return Err(Error::Locked(PathBuf::from("the simulated disk")));
        }
        state.opening += 1;
        state.is_open = true;
        let mut tables = Tables::default();
        state.journal.iter().for_each(|record| tables.apply(record));
        let content = Mutex::new(Content { tables, is_poisoned: false });
        Ok(MemoryEngine { disk: self.clone(), opening: state.opening, waits, content })
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

    fn shut_out(&mut self) {
        self.opening += 1;
        self.is_open = false;
    }

    /// Fails if the disk was shut out or opened again since an opening.
    fn check(&self, opening: u64) -> Result<(), Error> {
        if self.opening == opening { Ok(()) } else { Err(Error::Closed) }
    }

    fn write(&mut self, opening: u64, record: &[Change], sync: bool) -> Result<(), Error> {
        self.check(opening)?;
        if !record.is_empty() {
            self.attempt(Operation::Write)?;
            self.journal.push(record.to_vec());
        }
        if sync {
            self.attempt(Operation::Sync)?;
            self.synced = self.journal.len();
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

/// The database on a disk, as one process has opened it, until it is dropped.
pub(crate) struct MemoryEngine {
    disk: SimDisk,
    pub(in crate::storage) opening: u64,
    waits: bool,
    content: Mutex<Content>,
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
            state.is_open = false;
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
        let written = self.disk.state.lock().write(self.opening, record, sync);
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

    fn clear(&self, table: Table) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        for key in self.keys(table, EVERYTHING)? {
            batch.remove(table, key?);
        }
        self.write(batch, Durability::None)
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

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: Table = Table(0);

    fn put(db: &MemoryEngine, keys: &[u8], durability: Durability) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        keys.iter().for_each(|key| batch.insert(TABLE, [*key], "value"));
        db.write(batch, durability)
    }

    #[test]
    fn a_loss_of_power_leaves_what_was_synced_and_a_prefix_of_the_rest_batch_by_batch() {
        let mut left = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let disk = SimDisk::new(seed);
            let db = disk.open(true).unwrap();
            for key in 0..10 {
                put(&db, &[key, 100 + key], if key == 4 { Durability::All } else { Durability::None }).unwrap();
            }
            disk.lose_power();
            let db = disk.open(true).unwrap();
            let keys: Vec<u8> = db.keys(TABLE, EVERYTHING).unwrap().map(|key| key.unwrap()[0]).collect();
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
        let before = disk.open(true).unwrap();
        disk.lose_power();
        let _after = disk.open(true).unwrap();
        assert!(matches!(put(&before, &[1], Durability::All), Err(Error::Closed)));
        drop(before);
        assert!(matches!(disk.open(true), Err(Error::Locked { .. })));
    }

    #[test]
    fn after_a_failed_write_or_sync_nothing_is_written_until_the_database_is_opened_anew() {
        for operation in [Operation::Write, Operation::Sync] {
            let disk = SimDisk::new(1);
            let db = disk.open(true).unwrap();
            disk.fail_next(operation, io::ErrorKind::Other);
            for _ in 0..2 {
                put(&db, &[1], Durability::All).unwrap_err();
            }
            assert!(db.get(TABLE, &[1]).unwrap().is_none());
            drop(db);
            put(&disk.open(true).unwrap(), &[1], Durability::All).unwrap();
            assert_eq!(disk.records(), if operation == Operation::Write { (1, 1) } else { (2, 2) });
        }
    }
}
