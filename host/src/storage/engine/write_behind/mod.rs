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

mod layers;
mod merged;
#[cfg(test)]
mod tests;

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};

use self::layers::{Layer, Layers};
use self::merged::{Unread, View};
use super::{Bounds, Change, Durability, Generations, Keys, ReadTables, Rows, Slice, StorageEngine, Table, WriteBatch};
use crate::storage::Error;

/// Age at which a layer is flushed. A crash of the process takes what is younger, and the log applies it again.
pub(super) const FLUSH_INTERVAL: Duration = Duration::from_secs(2);

/// Size at which a layer is flushed, in bytes.
const FLUSH_BYTES: usize = 8 * 1024 * 1024;

/// Changes of a batch that are made while readers wait. Of a larger batch, they are made in a copy of the map, which shares
/// what stays as it is.
const IN_PLACE_CHANGES_MAX: usize = 256;

/// When layers are flushed.
#[derive(Clone, Copy)]
pub(in crate::storage) struct Flushes {
    /// Age at which a thread flushes a layer. None: there is no such thread, so that a simulation takes the same course each time.
    pub(in crate::storage) interval: Option<Duration>,
    /// Size at which it does that, in bytes. At twice the size, the writer does it.
    pub(in crate::storage) bytes: usize,
}

impl Flushes {
    pub(in crate::storage) const USUAL: Self = Self { interval: Some(FLUSH_INTERVAL), bytes: FLUSH_BYTES };
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
    /// Size at which a layer is flushed.
    bytes: usize,
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
        View::new(layers.clone(), below)
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
        if self.is_retired.load(Ordering::Relaxed) || !is_due(&self.layers.read().newer) {
            return Ok(());
        }
        let layer = self.begin_layer();
        if layer.is_empty() {
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
        let Flushes { interval, bytes } = flushes;
        let mut new = Self { buffer: Arc::new(Buffer::new(engine)), bytes, wake: None, thread: None };
        if let Some(interval) = interval {
            let (wake, woken) = sync_channel(1);
            let buffer = new.buffer.clone();
            let thread = std::thread::Builder::new().name("brink-flush".to_owned());
            new.wake = Some(wake);
            new.thread = Some(thread.spawn(move || flush_behind(&buffer, interval, bytes, &woken))?);
        }
        Ok(new)
    }

    /// Size at which a writer flushes the layer.
    fn full(&self) -> usize {
        2 * self.bytes
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
            && !self.buffer.is_retired.load(Ordering::Relaxed)
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
        let held = self.buffer.layers.read().newer.bytes;
        // If the thread was woken already, it comes anyway.
        if held >= self.bytes
            && let Some(wake) = &self.wake
        {
            let _ = wake.try_send(());
        }
        if held >= self.full() {
            self.buffer.flush_if(|layer| layer.bytes >= self.full())?;
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

    fn memory(&self) -> Option<Box<dyn ReadTables>> {
        let layers = self.buffer.layers.read();
        // A small batch takes less, so that its writer has nothing to flush.
        let has_room = layers.newer.bytes + self.bytes / 2 < self.full();
        has_room.then(|| Box::new(View::new(layers.clone(), Box::new(Unread))) as Box<dyn ReadTables>)
    }

    fn retire(&self) {
        self.buffer.is_retired.store(true, Ordering::Relaxed);
        self.buffer.engine.retire();
    }
}
