//! The Raft log on disk: indexed entries and a few named values, with one fsync for all that wait.
//!
//! # Approach
//!
//! An append puts entries into memory (`tail`), where they are readable at once, and into the queue of the `writer`.
//! The writer runs on a thread of its own and is the only one to change the disk: it appends records (`record`) to the
//! newest of the `segments`, and the `watermark` records outside of them how far they are durable. When a log is opened,
//! the two are compared (`examine`): whatever the watermark does not know of was promised to nobody, and may be torn.
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
//! One write and one fsync for all appends that wait at one moment; two copies of each entry. A new segment, every
//! 16 MiB, costs an fsync and one of the directory. In memory are 8 MiB of recent entries, and 4 bytes for each older one.
//! Opening a log reads all of it.

mod examine;
mod files;
mod migrate;
mod open_segment;
mod record;
mod segment_dir;
mod segments;
#[cfg(test)]
pub(crate) mod simulated;
mod tail;
#[cfg(test)]
mod tests;
mod watermark;
mod writer;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use self::examine::examine;
use self::migrate::migrate;
use self::segment_dir::SegmentDir;
use self::segments::{SEGMENT_BYTES, SegmentWriter, damaged};
use self::tail::Tail;
use self::watermark::{Watermark, WatermarkFile};
use self::writer::{Change, Shared, Writer};
pub use self::writer::{Done, OnFsync};
use super::{Error, Poison};

/// The name of the value that stands in for purged entries.
const PURGED: &str = "purged";

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
    /// accepted. The watermark is a file beside the directory, with the extension `.watermark`. A log of format 3 is
    /// migrated first.
    pub fn open(dir: &Path, on_fsync: OnFsync, accepts_loss: bool) -> Result<Self, Error> {
        migrate(dir, accepts_loss)?;
        let (path, poison) = (dir.with_extension("watermark"), Poison::new(dir));
        let files = Box::new(SegmentDir::open(dir, SEGMENT_BYTES)?);
        let (segments, tail, mark) = examine(files, watermark::read(&path), dir, accepts_loss)?;
        let watermark = WatermarkFile::create(&path, mark, poison.clone())?;
        let (log, writer) = Self::new(segments, tail, poison, watermark, on_fsync);
        log.start(writer)?;
        Ok(log)
    }

    /// An examined log with its writer, which does not run yet.
    fn new(
        segments: SegmentWriter,
        tail: Tail,
        poison: Poison,
        watermark: Arc<dyn Watermark>,
        on_fsync: OnFsync,
    ) -> (Self, Writer) {
        let shared = Arc::new(Shared {
            segments: segments.segments(),
            tail: Mutex::new(tail),
            unsynced_bytes: AtomicUsize::new(0),
            poison,
            watermark,
        });
        let (sender, queue) = unbounded_channel();
        let writer = Writer { queue, log: shared.clone(), segments, on_fsync };
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
        self.inner.shared.unsynced_bytes.fetch_add(writer::bytes_of(&entries), Ordering::Relaxed);
        let mut tail = self.inner.shared.tail.lock();
        tail.append(&entries);
        // Queued under the lock, so that the queue has the order that readers saw. The same goes for all changes below.
        self.queue(Change::Append(entries), done);
    }

    /// Bytes of the appended entries that are not synced yet.
    pub fn unsynced_bytes(&self) -> usize {
        self.inner.shared.unsynced_bytes.load(Ordering::Relaxed)
    }

    /// Removes all entries after `index`; every entry, without an index.
    pub fn truncate_after(&self, index: Option<u64>, done: Done) {
        let mut tail = self.inner.shared.tail.lock();
        let end = tail.truncate_after(index);
        self.queue(Change::Truncate(end), done);
    }

    /// Removes all entries up to `index`, inclusive, and keeps `marker` in their place.
    pub fn purge_upto(&self, index: u64, marker: Bytes, done: Done) {
        let mut tail = self.inner.shared.tail.lock();
        tail.purge_upto(index);
        tail.set_named(PURGED, Some(marker));
        self.queue(Change::Purge(index + 1), done);
    }

    /// Sets or removes a named value. It is durable when `done` is called.
    pub fn save_named(&self, name: &str, value: Option<Bytes>, done: Done) {
        let mut tail = self.inner.shared.tail.lock();
        tail.set_named(name, value);
        self.queue(Change::Named, done);
    }

    /// Sets a named value that a crash may take back. It is written with the next entries, or when the log is closed.
    pub fn note_named(&self, name: &str, value: Bytes) {
        self.inner.shared.tail.lock().set_named(name, Some(value));
    }

    /// A named value, as last set.
    pub fn named(&self, name: &str) -> Option<Bytes> {
        self.inner.shared.tail.lock().named.get(name).cloned()
    }

    /// The marker of the last purge.
    pub fn purged_marker(&self) -> Option<Bytes> {
        self.named(PURGED)
    }

    /// First and last index; none if the log is empty.
    pub fn first_last(&self) -> Option<(u64, u64)> {
        let range = self.inner.shared.tail.lock().range.clone();
        (!range.is_empty()).then(|| (range.start, range.end - 1))
    }

    /// Space that the entries take on disk, in bytes.
    pub fn bytes(&self) -> u64 {
        self.inner.shared.segments.bytes()
    }

    /// One entry.
    pub fn get(&self, index: u64) -> Result<Option<Bytes>, Error> {
        Ok(self.read(index..index.saturating_add(1), usize::MAX)?.pop())
    }

    /// [`Log::read`], if all the entries it returns are in memory; it never waits for the disk.
    pub fn read_in_memory(&self, range: Range<u64>, bytes_max: usize) -> Option<Vec<Bytes>> {
        let (on_disk, in_memory) = self.inner.shared.tail.lock().read(range);
        on_disk.is_empty().then(|| {
            let mut entries = Vec::with_capacity(in_memory.len());
            extend(&mut entries, in_memory, 0, bytes_max);
            entries
        })
    }

    /// The first entries of a range that the log holds: at least one, and no more once they reach `bytes_max`. Blocks, if
    /// they are not in memory.
    pub fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Bytes>, Error> {
        let ((mut on_disk, in_memory), truncations) = {
            let tail = self.inner.shared.tail.lock();
            (tail.read(range), tail.truncations)
        };
        let mut entries = Vec::new();
        let mut bytes = 0;
        while !on_disk.is_empty() && (entries.is_empty() || bytes < bytes_max) {
            let read = self.read_from_disk(on_disk.clone(), bytes_max.saturating_sub(bytes), truncations)?;
            on_disk.start += read.len() as u64;
            bytes += read.iter().map(Bytes::len).sum::<usize>();
            entries.extend(read);
        }
        extend(&mut entries, in_memory, bytes, bytes_max);
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

    /// The first entries of a range that is not in memory, and was not after so many truncations.
    fn read_from_disk(&self, range: Range<u64>, bytes_max: usize, truncations: u64) -> Result<Vec<Bytes>, Error> {
        let first = range.start;
        let is_of_the_log = || {
            let tail = self.inner.shared.tail.lock();
            tail.range.contains(&first) && tail.truncations == truncations
        };
        let error = match self.inner.shared.segments.read(range, bytes_max) {
            Ok(entries) if !entries.is_empty() => return Ok(entries),
            // It may have been removed since it was requested.
            _ if !is_of_the_log() => return Err(damaged(first)),
            Ok(_) => damaged(first),
            Err(error @ Error::Corrupt(_)) => error,
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

/// Adds entries to those of `bytes` bytes that were read before, up to `bytes_max` and at least one.
fn extend(entries: &mut Vec<Bytes>, more: Vec<Bytes>, mut bytes: usize, bytes_max: usize) {
    for entry in more {
        if !entries.is_empty() && bytes >= bytes_max {
            break;
        }
        bytes += entry.len();
        entries.push(entry);
    }
}
