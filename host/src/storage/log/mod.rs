//! The Raft log on disk: indexed entries and a few named values, with one fsync for all that wait.
//!
//! # Approach
//!
//! An append puts entries into memory (`tail`), where they are readable at once, and into the queue of the `writer`.
//! The writer runs on a thread of its own and is the only one to change the disk: `tables` stores the entries, and the
//! `watermark` records outside of them how far they are durable. When a log is opened, the two are compared.
//!
//! # Guarantees
//!
//! - When the `done` of an append, a truncation or a synced value reports success, it and everything queued before it
//!   are durable.
//! - Readers see changes in the order in which they are written.
//! - A log that lost durable data is refused when it is opened ([`Error::Lost`]), as far as the watermark can tell.
//! - A damaged entry is never returned. It ends the use of the log, also after a restart.
//!
//! # Cost
//!
//! One fsync for all appends that wait at one moment, and 8 MiB of recent entries in memory.

#[cfg(test)]
pub(crate) mod simulated;
mod tables;
mod tail;
#[cfg(test)]
mod tests;
mod watermark;
mod writer;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use self::tables::{LogTables, damaged};
use self::tail::Tail;
use self::watermark::WatermarkFile;
use self::writer::{Change, PURGED, Shared, Writer};
pub use self::writer::{Done, OnFsync};
use super::{Error, Poison};

/// A Raft log. Cheap to clone; all clones are the same log.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    /// The queue of the writer; `None` once the log is closed.
    queue: Mutex<Option<UnboundedSender<(Change, Done)>>>,
    /// The writer's thread; `None` if the writer has none, and once the log is closed.
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Log {
    /// Opens the log in `dir`, creating it if it is missing, and starts its writer thread. A log that has lost durable
    /// data is refused ([`Error::Lost`]), or opened with what is left up to the first damaged entry if the loss is
    /// accepted. The watermark is a file beside the directory, with the extension `.watermark`.
    pub fn open(dir: &Path, on_fsync: OnFsync, accepts_loss: bool) -> Result<Self, Error> {
        let (tables, path, poison) = (LogTables::open(dir)?, dir.with_extension("watermark"), Poison::new(dir));
        let (range, mark) = tables.examine(watermark::read(&path), dir, accepts_loss)?;
        let watermark = WatermarkFile::create(&path, mark, poison.clone())?;
        let (log, writer) =
            Self::new(Shared { tables, tail: Mutex::new(Tail::new(range)), poison, watermark }, on_fsync);
        log.start(writer)?;
        Ok(log)
    }

    /// An examined log with its writer, which does not run yet.
    fn new(shared: Shared, on_fsync: OnFsync) -> (Self, Writer) {
        let shared = Arc::new(shared);
        let (sender, queue) = unbounded_channel();
        let writer = Writer { queue, log: shared.clone(), on_fsync };
        let inner = Inner { shared, queue: Mutex::new(Some(sender)), thread: Mutex::new(None) };
        (Self { inner: Arc::new(inner) }, writer)
    }

    fn start(&self, writer: Writer) -> Result<(), Error> {
        let thread = std::thread::Builder::new().name("brink-log".to_owned()).spawn(move || writer.run())?;
        *self.inner.thread.lock() = Some(thread);
        Ok(())
    }

    /// Appends entries, which are readable when this returns; the writer calls `done` once they are synced. Entries
    /// must follow the last one; an empty log may begin with any index.
    pub fn append(&self, entries: Vec<(u64, Bytes)>, done: Done) {
        let mut tail = self.inner.shared.tail.lock();
        tail.append(&entries);
        // Queued under the lock, so that the queue has the order that readers saw. The same goes for all changes below.
        self.queue(Change::Append(entries), done);
    }

    /// Removes all entries after `index`; every entry, without an index.
    pub fn truncate_after(&self, index: Option<u64>, done: Done) {
        let mut tail = self.inner.shared.tail.lock();
        let removed = tail.truncate_after(index);
        self.queue(Change::Truncate(removed), done);
    }

    /// Removes all entries up to `index`, inclusive, and keeps `marker` in their place.
    pub fn purge_upto(&self, index: u64, marker: Bytes, done: Done) {
        let mut tail = self.inner.shared.tail.lock();
        let range = tail.purge_upto(index);
        tail.named.insert(PURGED, Some(marker.clone()));
        self.queue(Change::Purge { range, marker }, done);
    }

    /// Sets or removes a named value, in order with appends. With `sync`, it is durable when `done` is called.
    pub fn save_meta(&self, name: &'static str, value: Option<Bytes>, sync: bool, done: Done) {
        let mut tail = self.inner.shared.tail.lock();
        tail.named.insert(name, value.clone());
        self.queue(Change::Named { name, value, sync }, done);
    }

    /// A named value, as last set.
    pub fn meta(&self, name: &str) -> Result<Option<Bytes>, Error> {
        let in_memory = self.inner.shared.tail.lock().named.get(name).cloned();
        in_memory.map_or_else(|| self.inner.shared.tables.named(name), Ok)
    }

    /// The marker of the last purge.
    pub fn purged_marker(&self) -> Result<Option<Bytes>, Error> {
        self.meta(PURGED)
    }

    /// First and last index; none if the log is empty.
    pub fn first_last(&self) -> Option<(u64, u64)> {
        let range = self.inner.shared.tail.lock().range.clone();
        (!range.is_empty()).then(|| (range.start, range.end - 1))
    }

    /// One entry.
    pub fn get(&self, index: u64) -> Result<Option<Bytes>, Error> {
        Ok(self.read(index..index.saturating_add(1), usize::MAX)?.pop())
    }

    /// The first entries of a range that the log holds: at least one, and no more once they reach `bytes_max`.
    pub fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Bytes>, Error> {
        let (on_disk, in_memory) = self.inner.shared.tail.lock().read(range);
        let mut entries = Vec::new();
        let mut bytes = 0;
        for entry in on_disk.map(|index| self.read_from_disk(index)).chain(in_memory.into_iter().map(Ok)) {
            let entry = entry?;
            bytes += entry.len();
            entries.push(entry);
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(entries)
    }

    /// Writes all queued changes and ends the writer thread. Later changes fail with [`Error::Closed`].
    pub fn close(&self) {
        self.inner.queue.lock().take();
        let thread = self.inner.thread.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the log's writer thread panicked");
        }
    }

    /// The first failure of the log's disk.
    pub fn poison(&self) -> &Poison {
        &self.inner.shared.poison
    }

    fn read_from_disk(&self, index: u64) -> Result<Bytes, Error> {
        let error = match self.inner.shared.tables.entry(index) {
            Ok(Some(entry)) => return Ok(entry),
            // A missing entry may have been removed since it was requested.
            Ok(None) if !self.inner.shared.tail.lock().range.contains(&index) => return Err(damaged(index)),
            Ok(None) => damaged(index),
            Err(error @ Error::Corrupt { .. }) => error,
            Err(error) => return Err(error),
        };
        // Other entries may be damaged too, so the use of the log ends, now and after a restart.
        self.inner.shared.poison.set(&error);
        if let Err(error) = self.inner.shared.watermark.condemn() {
            tracing::error!(%error, "the damage to the log could not be recorded");
        }
        Err(error)
    }

    fn queue(&self, change: Change, done: Done) {
        if let Err(error) = self.inner.shared.poison.check() {
            return done(Err(error));
        }
        let refused = match self.inner.queue.lock().as_ref() {
            Some(queue) => queue.send((change, done)).err().map(|refused| refused.0.1),
            None => Some(done),
        };
        if let Some(done) = refused {
            done(Err(Error::Closed));
        }
    }
}
