//! A write-behind buffer before an engine.
//!
//! # Problem
//!
//! The tables in memory of a log-structured merge tree keep every version of a key, in a skip list whose searches miss the
//! caches of the processor. Most of what is applied changes keys that were changed a moment ago, and the log holds it anyway.
//!
//! # Approach
//!
//! Batches go into a layer: ordered maps in memory with the newest row of each key. From time to time, and when it has grown, the
//! layer is *flushed*: all of its rows go to the engine as one batch, and a new layer takes its place. The flushed layer stays
//! below the new one until the next flush, so that rows that were written recently are found in memory.
//!
//! ```text
//! reads → the layer that is written to → the layer before → the engine
//! ```
//!
//! A view holds both layers and a view of the engine. The maps are persistent (they share what is equal), so a view costs three
//! references; the first change after it copies the few nodes of the map that it touches.
//!
//! # Guarantees
//!
//! Those of [`StorageEngine`]. A flush is one batch that ends where a batch ended, so a crash leaves the first batches and takes
//! the rest: those since the last flush if only the process ends, or more. A sync flushes first.
//!
//! # Failure model
//!
//! A failed flush ends the use of the database: every later write and sync fails, as after any failed write. Readers still see
//! what was not written.
//!
//! # Cost
//!
//! A change costs one insertion into a map; a flush, one batch of sorted rows. A layer has about [`FLUSH_BYTES`], and twice as much
//! and a batch at most; two exist, and those that open views hold. When nothing was written for two intervals, both are empty. A
//! read looks into two maps before it asks the engine. A range takes rows from them in chunks, and passes over removed ones. Readers
//! wait while a small batch is added ([`IN_PLACE_CHANGES_MAX`]), for a fifth of a millisecond.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{self, AtomicBool};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use imbl::OrdMap;
use parking_lot::{Mutex, RwLock};

use super::{Bounds, Change, Durability, Generations, Keys, ReadTables, Rows, Slice, StorageEngine, Table, WriteBatch};
use crate::storage::Error;

/// Age at which a layer is flushed. A crash of the process takes what is younger, and the log applies it again.
pub(super) const FLUSH_INTERVAL: Duration = Duration::from_secs(2);

/// Size at which a layer is flushed, in bytes.
const FLUSH_BYTES: usize = 8 * 1024 * 1024;

/// Changes of a batch that are made while readers wait. Of a larger batch, they are made in a copy of the map, which shares
/// what stays as it is.
const IN_PLACE_CHANGES_MAX: usize = 256;

/// Rows that a range takes from the layers at once.
const CHUNK_ROWS: usize = 32;

/// Memory counted for each row beside its key and value, in bytes: its place in a map that is half full, and its allocations.
const ROW_OVERHEAD_BYTES: usize = 128;

/// When layers are flushed.
#[derive(Clone, Copy)]
pub(in crate::storage) enum Flushes {
    /// By a thread, at an age or at a size in bytes. At twice the size, writers wait.
    Behind { interval: Duration, bytes: usize },
    /// By the writer, after so many batches: the same in each run of a simulation.
    #[cfg(test)]
    After(usize),
}

impl Flushes {
    pub(in crate::storage) const USUAL: Self = Self::Behind { interval: FLUSH_INTERVAL, bytes: FLUSH_BYTES };
}

/// The generations of a database, each behind a buffer of its own.
pub(in crate::storage) struct Buffered<G> {
    generations: G,
    flushes: Flushes,
}

impl<G> Buffered<G> {
    pub(in crate::storage) fn new(generations: G, flushes: Flushes) -> Self {
        Self { generations, flushes }
    }
}

impl<G: Generations> Generations for Buffered<G> {
    fn open(&self) -> Result<Arc<dyn StorageEngine>, Error> {
        Ok(Arc::new(WriteBehind::new(self.generations.open()?, self.flushes)?))
    }

    fn create(&self) -> Result<Arc<dyn StorageEngine>, Error> {
        Ok(Arc::new(WriteBehind::new(self.generations.create()?, self.flushes)?))
    }

    fn switch(&self) -> Result<(), Error> {
        self.generations.switch()
    }
}

/// An engine behind a buffer.
struct WriteBehind {
    buffer: Arc<Buffer>,
    flushes: Flushes,
    /// Dropped before the thread is waited for.
    wake: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

struct Buffer {
    engine: Arc<dyn StorageEngine>,
    layers: RwLock<Layers>,
    /// Locked while the newer layer changes, or another one takes its place.
    changing: Mutex<()>,
    /// Locked during a flush.
    flushing: Mutex<()>,
    /// The error that ended the use of the database.
    failed: OnceLock<Error>,
    /// Whether another database takes the place of this one, so that nothing need be flushed.
    is_retired: AtomicBool,
}

/// Cheap to clone.
#[derive(Clone, Default)]
struct Layers {
    /// What was written since the last flush began.
    newer: Arc<Layer>,
    /// What that flush has written, or is writing.
    older: Arc<Layer>,
}

impl Layers {
    /// The row of a key, or that it was removed; `None` if neither layer knows.
    fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Slice>> {
        self.newer.get(table, key).or_else(|| self.older.get(table, key))
    }
}

/// A row of a layer.
type LayerRow<'a> = (&'a Slice, &'a Option<Slice>);

/// The newest rows of keys; a key without a row is removed.
#[derive(Clone, Default)]
struct Layer {
    /// By the number of the table.
    tables: Vec<OrdMap<Slice, Option<Slice>>>,
    bytes: usize,
    #[cfg(test)]
    batches: usize,
}

impl Layer {
    fn change(&mut self, changes: Vec<Change>) {
        #[cfg(test)]
        {
            self.batches += 1;
        }
        changes.into_iter().for_each(|change| self.set(change));
    }

    fn set(&mut self, Change { table, key, value }: Change) {
        if self.tables.len() <= table.0 {
            self.tables.resize_with(table.0 + 1, OrdMap::new);
        }
        let row_bytes = |value: &Option<Slice>| value.as_ref().map_or(0, |value| value.len());
        let key_bytes = key.len() + ROW_OVERHEAD_BYTES;
        self.bytes += row_bytes(&value);
        if let Some(rows) = self.tables.get_mut(table.0) {
            match rows.insert(key, value) {
                Some(former) => self.bytes -= row_bytes(&former),
                None => self.bytes += key_bytes,
            }
        }
    }

    /// The row of a key, or that it was removed; `None` if the layer does not know.
    fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Slice>> {
        self.tables.get(table.0)?.get(key)
    }

    /// The rows of a range, from one of its ends.
    fn range<'a>(&'a self, table: Table, bounds: &'a Bounds, end: End) -> Box<dyn Iterator<Item = LayerRow<'a>> + 'a> {
        let (first, last) = bounds;
        let bounds = (first.as_ref().map(Vec::as_slice), last.as_ref().map(Vec::as_slice));
        let rows = self.tables.get(table.0).into_iter().flat_map(move |rows| rows.range::<_, [u8]>(bounds));
        match end {
            End::Front => Box::new(rows),
            End::Back => Box::new(rows.rev()),
        }
    }

    /// All rows, as one batch.
    fn batch(&self) -> WriteBatch {
        let mut batch = WriteBatch::with_capacity(self.tables.iter().map(OrdMap::len).sum());
        for (table, rows) in (0..).map(Table).zip(&self.tables) {
            rows.iter().for_each(|(key, value)| batch.set(table, key.clone(), value.clone()));
        }
        batch
    }
}

impl Buffer {
    fn new(engine: Arc<dyn StorageEngine>) -> Self {
        let (layers, changing, flushing) = (RwLock::default(), Mutex::default(), Mutex::default());
        Self { engine, layers, changing, flushing, failed: OnceLock::new(), is_retired: AtomicBool::new(false) }
    }

    fn check(&self) -> Result<(), Error> {
        self.failed.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    fn view(&self) -> View {
        let layers = self.layers.read();
        // While the layers are locked: no flush can end before the engine's view is taken, and begin another layer.
        let below = self.engine.view();
        View { layers: layers.clone(), below }
    }

    fn change(&self, changes: Vec<Change>) {
        let _changes_alone = self.changing.lock();
        if changes.len() <= IN_PLACE_CHANGES_MAX {
            return Arc::make_mut(&mut self.layers.write().newer).change(changes);
        }
        let mut newer = Layer::clone(&self.layers.read().newer);
        newer.change(changes);
        let former = std::mem::replace(&mut self.layers.write().newer, Arc::new(newer));
        // Unlocked, since it takes a while.
        drop(former);
    }

    /// Writes everything to the engine that was written before.
    fn flush(&self) -> Result<(), Error> {
        self.flush_if(|_| true)
    }

    /// Flushes the newer layer, if it is due once the flush before has ended.
    fn flush_if(&self, is_due: impl FnOnce(&Layer) -> bool) -> Result<(), Error> {
        let _flushes_alone = self.flushing.lock();
        self.check()?;
        if self.is_retired.load(atomic::Ordering::Relaxed) || !is_due(&self.layers.read().newer) {
            return Ok(());
        }
        let layer = self.begin_layer();
        if layer.tables.is_empty() {
            return Ok(());
        }
        let write = || {
            self.engine.write(layer.batch(), Durability::None)?;
            // Also has the operating system take what the engine buffers: without its end, the batch would be lost with the
            // process.
            self.engine.check()
        };
        let panicked = |_| Err(io::Error::other("the storage engine panicked").into());
        let written = catch_unwind(AssertUnwindSafe(write)).unwrap_or_else(panicked);
        written.inspect_err(|error| drop(self.failed.set(error.clone())))
    }

    /// Begins a layer. Returns the one before, which is to be flushed.
    fn begin_layer(&self) -> Arc<Layer> {
        let _changes_alone = self.changing.lock();
        let mut layers = self.layers.write();
        let newer = std::mem::take(&mut layers.newer);
        // The engine has its rows: the flush before has ended without an error.
        let former = std::mem::replace(&mut layers.older, newer.clone());
        drop(layers);
        // Unlocked, since it takes a while.
        drop(former);
        newer
    }
}

impl WriteBehind {
    fn new(engine: Arc<dyn StorageEngine>, flushes: Flushes) -> Result<Self, Error> {
        let mut new = Self { buffer: Arc::new(Buffer::new(engine)), flushes, wake: None, thread: None };
        match flushes {
            Flushes::Behind { interval, bytes } => {
                let (wake, woken) = sync_channel(1);
                let buffer = new.buffer.clone();
                let thread = std::thread::Builder::new().name("brink-flush".to_owned());
                new.wake = Some(wake);
                new.thread = Some(thread.spawn(move || flush_behind(&buffer, interval, bytes, &woken))?);
            }
            #[cfg(test)]
            Flushes::After(_) => {}
        }
        Ok(new)
    }
}

/// Flushes from time to time, until the engine is dropped or a flush fails. The error is kept, for the next that writes or checks.
fn flush_behind(buffer: &Buffer, interval: Duration, bytes: usize, woken: &Receiver<()>) {
    loop {
        let (flushed, is_last) = match woken.recv_timeout(interval) {
            // A writer may have flushed the layer itself.
            Ok(()) => (buffer.flush_if(|layer| layer.bytes >= bytes), false),
            Err(RecvTimeoutError::Timeout) => (buffer.flush(), false),
            Err(RecvTimeoutError::Disconnected) => (buffer.flush(), true),
        };
        if let Err(error) = &flushed {
            tracing::error!(%error, "recent changes of the state could not be written; the log has them");
        }
        if flushed.is_err() || is_last {
            return;
        }
    }
}

impl Drop for WriteBehind {
    fn drop(&mut self) {
        drop(self.wake.take());
        // Nobody opens a retired database again, and its flush may wait for a disk.
        if let Some(thread) = self.thread.take()
            && !self.buffer.is_retired.load(atomic::Ordering::Relaxed)
        {
            // If it has panicked, it has said so.
            let _ = thread.join();
        }
    }
}

impl ReadTables for WriteBehind {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, Error> {
        if let Some(row) = self.buffer.layers.read().get(table, key) {
            return Ok(row.clone());
        }
        // What a flush may have moved since is newer than what was asked for.
        self.buffer.engine.get(table, key)
    }

    fn range(&self, table: Table, bounds: Bounds) -> Result<Rows, Error> {
        self.buffer.view().range(table, bounds)
    }

    fn keys(&self, table: Table, bounds: Bounds) -> Result<Keys, Error> {
        self.buffer.view().keys(table, bounds)
    }
}

impl StorageEngine for WriteBehind {
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), Error> {
        self.buffer.check()?;
        self.buffer.change(batch.changes);
        match self.flushes {
            Flushes::Behind { bytes, .. } => {
                let held = self.buffer.layers.read().newer.bytes;
                // If the thread was woken already, it comes anyway.
                if held >= bytes
                    && let Some(wake) = &self.wake
                {
                    let _ = wake.try_send(());
                }
                if held >= 2 * bytes {
                    self.buffer.flush_if(|layer| layer.bytes >= 2 * bytes)?;
                }
            }
            #[cfg(test)]
            Flushes::After(batches) => self.buffer.flush_if(|layer| layer.batches >= batches)?,
        }
        if durability == Durability::All { self.sync() } else { Ok(()) }
    }

    fn fill(&self, batches: &mut dyn Iterator<Item = Result<WriteBatch, Error>>) -> Result<(), Error> {
        self.buffer.flush()?;
        self.buffer.engine.fill(batches)
    }

    fn sync(&self) -> Result<(), Error> {
        self.buffer.flush()?;
        self.buffer.engine.sync()
    }

    fn check(&self) -> Result<(), Error> {
        self.buffer.check()?;
        self.buffer.engine.check()
    }

    fn view(&self) -> Box<dyn ReadTables> {
        Box::new(self.buffer.view())
    }

    fn retire(&self) {
        self.buffer.is_retired.store(true, atomic::Ordering::Relaxed);
        self.buffer.engine.retire();
    }
}

/// The state at one moment.
struct View {
    layers: Layers,
    below: Box<dyn ReadTables>,
}

impl ReadTables for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, Error> {
        match self.layers.get(table, key) {
            Some(row) => Ok(row.clone()),
            None => self.below.get(table, key),
        }
    }

    fn range(&self, table: Table, bounds: Bounds) -> Result<Rows, Error> {
        let below = self.below.range(table, bounds.clone())?;
        Ok(Box::new(self.merged(table, bounds, below)))
    }

    fn keys(&self, table: Table, bounds: Bounds) -> Result<Keys, Error> {
        let below = self.below.keys(table, bounds.clone())?.map(|key| Ok((key?, Slice::from([]))));
        let merged = self.merged(table, bounds, Box::new(below));
        Ok(Box::new(merged.map(|row| Ok(row?.0))))
    }
}

impl View {
    fn merged(&self, table: Table, bounds: Bounds, below: Rows) -> Merged {
        let (buffered, stored) = (Ends::default(), Ends::default());
        Merged { layers: self.layers.clone(), table, bounds, buffered, below, stored }
    }
}

/// The rows of a range. Those of an upper layer hide those below.
struct Merged {
    layers: Layers,
    table: Table,
    /// The part of the range that was not taken from the layers.
    bounds: Bounds,
    /// Rows that were taken from the layers, from either end.
    buffered: Ends<(Slice, Option<Slice>)>,
    below: Rows,
    /// The next rows below, from either end, if they were taken already.
    stored: Ends<(Slice, Slice)>,
}

/// What was taken from the ends of a sequence, and not used yet. What comes next from one end, if nothing is left between them, is
/// what was taken last from the other.
struct Ends<T> {
    /// The first of the sequence comes first.
    front: VecDeque<T>,
    /// The last of the sequence comes first.
    back: VecDeque<T>,
    /// Whether nothing is left between them.
    is_drained: bool,
}

impl<T> Default for Ends<T> {
    fn default() -> Self {
        Self { front: VecDeque::new(), back: VecDeque::new(), is_drained: false }
    }
}

impl<T> Ends<T> {
    /// Has the next item from an end at the start of the queue that it returns. `take` takes more from that end, if there is more.
    fn next<E>(
        &mut self,
        end: End,
        take: impl FnOnce(&mut VecDeque<T>) -> Result<(), E>,
    ) -> Result<&mut VecDeque<T>, E> {
        let (near, far) = match end {
            End::Front => (&mut self.front, &mut self.back),
            End::Back => (&mut self.back, &mut self.front),
        };
        if near.is_empty() && !self.is_drained {
            take(near)?;
            self.is_drained = near.is_empty();
        }
        if near.is_empty() {
            near.extend(far.pop_back());
        }
        Ok(near)
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Front,
    Back,
}

impl Merged {
    fn step(&mut self, end: End) -> Result<Option<(Slice, Slice)>, Error> {
        loop {
            let Self { layers, table, bounds, buffered, below, stored } = self;
            let stored = stored.next(end, |stored| {
                let row = match end {
                    End::Front => below.next(),
                    End::Back => below.next_back(),
                };
                stored.extend(row.transpose()?);
                Ok::<_, Error>(())
            })?;
            let Ok(buffered) = buffered.next(end, |taken| {
                take_chunk(layers, *table, bounds, end, taken);
                Ok::<_, Infallible>(())
            });
            let order = match (stored.front(), buffered.front()) {
                (None, None) => return Ok(None),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((stored, _)), Some((buffered, _))) => end.order(stored, buffered),
            };
            match order {
                Ordering::Less => return Ok(stored.pop_front()),
                Ordering::Equal => drop(stored.pop_front()),
                Ordering::Greater => {}
            }
            if let Some((key, Some(value))) = buffered.pop_front() {
                return Ok(Some((key, value)));
            }
        }
    }
}

impl End {
    /// Which key comes first from this end.
    fn order(self, one: &Slice, other: &Slice) -> Ordering {
        match self {
            Self::Front => one.cmp(other),
            Self::Back => other.cmp(one),
        }
    }
}

/// Takes rows from an end of a range of the layers, of two equal keys the newer layer's, and shortens the range by them.
fn take_chunk(
    layers: &Layers,
    table: Table,
    bounds: &mut Bounds,
    end: End,
    taken: &mut VecDeque<(Slice, Option<Slice>)>,
) {
    let [mut newer, mut older] = [&layers.newer, &layers.older].map(|layer| layer.range(table, bounds, end).peekable());
    while taken.len() < CHUNK_ROWS {
        let order = match (newer.peek(), older.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((newer, _)), Some((older, _))) => end.order(newer, older),
        };
        if order == Ordering::Equal {
            older.next();
        }
        let row = if order == Ordering::Greater { older.next() } else { newer.next() };
        taken.extend(row.map(|(key, value)| (key.clone(), value.clone())));
    }
    drop((newer, older));
    if let Some((last, _)) = taken.back() {
        let passed = Bound::Excluded(last.to_vec());
        match end {
            End::Front => bounds.0 = passed,
            End::Back => bounds.1 = passed,
        }
    }
}

impl Iterator for Merged {
    type Item = Result<(Slice, Slice), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(End::Front).transpose()
    }
}

impl DoubleEndedIterator for Merged {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(End::Back).transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::memory::{SimDisk, SimGenerations};
    use super::*;

    const TABLES: [Table; 2] = [Table(0), Table(1)];

    fn open(disk: &SimDisk) -> Arc<dyn StorageEngine> {
        Buffered::new(SimGenerations::new(disk), Flushes::After(usize::MAX)).open().unwrap()
    }

    fn key(rng: &mut fastrand::Rng) -> Vec<u8> {
        vec![rng.u8(0..40)]
    }

    /// What a range has, read from both ends in turns that the generator draws.
    fn read(rng: &mut fastrand::Rng, mut rows: Rows) -> Vec<(Vec<u8>, Vec<u8>)> {
        let (mut front, mut back) = (Vec::new(), Vec::new());
        loop {
            let is_first = rng.bool();
            let Some(row) = (if is_first { rows.next() } else { rows.next_back() }) else { break };
            let (key, value) = row.unwrap();
            if is_first { &mut front } else { &mut back }.push((key.to_vec(), value.to_vec()));
        }
        front.extend(back.into_iter().rev());
        front
    }

    #[test]
    fn views_show_what_was_written_before_whatever_is_flushed() {
        for seed in 0..200 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let disk = SimDisk::new(seed);
            let engine = Buffered::new(SimGenerations::new(&disk), Flushes::After(rng.usize(1..6))).open().unwrap();
            let mut model: BTreeMap<(usize, Vec<u8>), Vec<u8>> = BTreeMap::new();
            let mut views = Vec::new();
            for _ in 0..40 {
                let mut batch: BTreeMap<(usize, Vec<u8>), Option<Vec<u8>>> = BTreeMap::new();
                let changes = if rng.u8(..) == 0 { 2 * IN_PLACE_CHANGES_MAX } else { rng.usize(1..6) };
                for _ in 0..changes {
                    let value = rng.bool().then(|| vec![rng.u8(..)]);
                    batch.insert((rng.usize(0..TABLES.len()), key(&mut rng)), value);
                }
                let mut changes = WriteBatch::default();
                for ((table, key), value) in batch {
                    changes.set(Table(table), key.as_slice(), value.as_deref().map(Into::into));
                    match value {
                        Some(value) => drop(model.insert((table, key), value)),
                        None => drop(model.remove(&(table, key))),
                    }
                }
                engine.write(changes, Durability::None).unwrap();
                views.push((engine.view(), model.clone()));
            }
            for (view, model) in views {
                let table = rng.usize(0..TABLES.len());
                let (first, last) = (key(&mut rng), key(&mut rng));
                if first > last {
                    continue;
                }
                let found = view.get(Table(table), &first).unwrap().map(|value| value.to_vec());
                assert_eq!(found.as_ref(), model.get(&(table, first.clone())), "seed {seed}");
                let expected = model.range((table, first.clone())..=(table, last.clone()));
                let expected: Vec<_> = expected.map(|((_, key), value)| (key.clone(), value.clone())).collect();
                let bounds = (Bound::Included(first), Bound::Included(last));
                assert_eq!(read(&mut rng, view.range(Table(table), bounds.clone()).unwrap()), expected, "seed {seed}");
                let keys: Vec<_> = view.keys(Table(table), bounds).unwrap().map(|key| key.unwrap().to_vec()).collect();
                assert!(keys.iter().eq(expected.iter().map(|(key, _)| key)), "seed {seed}");
            }
        }
    }

    #[test]
    fn a_crash_takes_what_was_not_flushed_and_a_sync_keeps_all() {
        let disk = SimDisk::new(1);
        let engine = open(&disk);
        let write = |number: u8| {
            let mut batch = WriteBatch::default();
            TABLES.into_iter().for_each(|table| batch.insert(table, [number], [number]));
            engine.write(batch, Durability::None).unwrap();
        };
        (0..3).for_each(write);
        engine.sync().unwrap();
        (3..6).for_each(write);
        disk.lose_power();
        let engine = open(&disk);
        for table in TABLES {
            assert_eq!(engine.keys(table, super::super::EVERYTHING).unwrap().count(), 3);
        }
    }

    #[test]
    fn a_failed_flush_ends_the_use_of_the_database() {
        let disk = SimDisk::new(1);
        let engine = open(&disk);
        let write = || {
            let mut batch = WriteBatch::default();
            batch.insert(Table(0), [1], [1]);
            engine.write(batch, Durability::None)
        };
        write().unwrap();
        disk.fail_next(super::super::memory::Operation::Write, std::io::ErrorKind::Other);
        assert!(engine.sync().is_err());
        assert!(write().is_err() && engine.sync().is_err() && engine.check().is_err());
    }

    #[test]
    fn a_full_layer_is_flushed_by_its_writer_and_all_is_flushed_at_the_end() {
        let disk = SimDisk::new(1);
        let engine = Buffered::new(SimGenerations::new(&disk), Flushes::USUAL).open().unwrap();
        let value = vec![0; FLUSH_BYTES / 2];
        for number in 0..10_u8 {
            let mut batch = WriteBatch::default();
            batch.insert(Table(0), [number], value.as_slice());
            engine.write(batch, Durability::None).unwrap();
        }
        drop(engine);
        let engine = SimGenerations::new(&disk).open().unwrap();
        assert_eq!(engine.keys(Table(0), super::super::EVERYTHING).unwrap().count(), 10);
    }
    #[test]
    fn a_check_finds_a_flush_that_failed_in_the_background() {
        let disk = SimDisk::new(1);
        let behind = Flushes::Behind { interval: Duration::from_millis(1), bytes: FLUSH_BYTES };
        let engine = Buffered::new(SimGenerations::new(&disk), behind).open().unwrap();
        engine.check().unwrap();
        disk.fail_next(super::super::memory::Operation::Write, io::ErrorKind::Other);
        let mut batch = WriteBatch::default();
        batch.insert(Table(0), [1], [1]);
        engine.write(batch, Durability::None).unwrap();
        let began = std::time::Instant::now();
        while engine.check().is_ok() {
            assert!(began.elapsed() < Duration::from_secs(30), "the failure was not found");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(engine.write(WriteBatch::default(), Durability::None).is_err());
        assert_eq!(engine.get(Table(0), &[1]).unwrap().as_deref(), Some(&[1][..]));
    }
}
