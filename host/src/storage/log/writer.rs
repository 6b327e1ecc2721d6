//! The writer of the log: turns everything that is queued into one write and one sync, and calls back.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;

use super::segments::{SegmentWriter, Segments};
use super::tail::Tail;
use super::watermark::{Mark, Watermark};
use crate::storage::{Error, Poison};

/// Called once an operation is durable, or has failed.
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Told how long each sync took and how many entries it made durable.
pub type OnFsync = Box<dyn Fn(Duration, usize) + Send + Sync>;

/// Bytes of entries in one batch; a longer queue is written in several.
const BATCH_BYTES_MAX: usize = 8 * 1024 * 1024;

pub(super) enum Change {
    Append(Vec<(u64, Bytes)>),
    /// Remove the entries from an index on.
    Truncate(u64),
    /// Remove the entries before an index.
    Purge(u64),
    /// Make the named values durable, which are in the tail.
    Named,
}

pub(super) fn bytes_of(entries: &[(u64, Bytes)]) -> usize {
    entries.iter().map(|(_, entry)| entry.len()).sum()
}

/// What the writer and the log's handles share.
pub(super) struct Shared {
    pub(super) segments: Arc<Segments>,
    /// The log as readers see it, including queued changes.
    pub(super) tail: Mutex<Tail>,
    /// Bytes of queued entries, and of those being written.
    pub(super) unsynced_bytes: AtomicUsize,
    pub(super) poison: Poison,
    pub(super) watermark: Arc<dyn Watermark>,
}

/// The writer of a log. Production gives it a thread; a simulation drives its steps itself.
pub(super) struct Writer {
    /// The queued changes. Closed by the log's handle.
    pub(super) queue: UnboundedReceiver<(Change, Done)>,
    pub(super) log: Arc<Shared>,
    pub(super) segments: SegmentWriter,
    pub(super) on_fsync: OnFsync,
}

/// Changes that are written together.
#[derive(Default)]
pub(super) struct Batch {
    changes: Vec<Change>,
    bytes: usize,
    appended: usize,
    done: Vec<Done>,
}

impl Batch {
    fn push(&mut self, (change, done): (Change, Done)) {
        if let Change::Append(entries) = &change {
            self.appended += entries.len();
            self.bytes += bytes_of(entries);
        }
        self.changes.push(change);
        self.done.push(done);
    }
}

impl Writer {
    /// Writes until the queue is closed and empty.
    pub(super) fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let mut batch = self.gather(first);
            let began = Instant::now();
            let result = self.write(&mut batch).and_then(|()| self.sync());
            if result.is_ok() {
                (self.on_fsync)(began.elapsed(), batch.appended);
            }
            self.finish(batch, &result);
        }
        self.close();
    }

    /// Takes everything that is queued, up to one batch.
    pub(super) fn gather(&mut self, first: (Change, Done)) -> Batch {
        let mut batch = Batch::default();
        batch.push(first);
        while batch.bytes < BATCH_BYTES_MAX {
            let Ok(next) = self.queue.try_recv() else { break };
            batch.push(next);
        }
        batch
    }

    /// Writes a batch.
    pub(super) fn write(&mut self, batch: &mut Batch) -> Result<(), Error> {
        let poison = self.log.poison.clone();
        poison.attempt(|| {
            let mut promises = 0;
            for change in batch.changes.drain(..) {
                match change {
                    Change::Append(entries) => {
                        entries.iter().try_for_each(|(index, entry)| self.segments.push_entry(*index, entry))?;
                    }
                    Change::Truncate(end) => self.truncate(end)?,
                    Change::Purge(start) => self.segments.set_named(|named| named.start = named.start.max(start))?,
                    Change::Named => promises += 1,
                }
            }
            self.write_named(promises)?;
            self.segments.write()
        })
    }

    /// Makes everything written durable, and raises the watermark to it.
    pub(super) fn sync(&mut self) -> Result<(), Error> {
        let poison = self.log.poison.clone();
        poison.attempt(|| {
            self.segments.sync()?;
            let mark = self.log.watermark.mark();
            let raised = Mark { last: self.segments.last(), promises: self.segments.named().promises, ..mark };
            if raised == mark { Ok(()) } else { self.log.watermark.set(raised, false) }
        })
    }

    /// Calls back everyone who waits for a batch.
    pub(super) fn finish(&self, batch: Batch, result: &Result<(), Error>) {
        if let (Ok(()), Some((last, _))) = (result, self.segments.last()) {
            self.log.tail.lock().forget_synced(last + 1);
        }
        self.log.unsynced_bytes.fetch_sub(batch.bytes, Ordering::Relaxed);
        for done in batch.done {
            done(result.clone());
        }
    }

    /// Writes what nobody waits for.
    pub(super) fn close(mut self) {
        let poison = self.log.poison.clone();
        // A failure has been reported already, or is reported by the poison.
        let _ = poison.attempt(|| {
            self.write_named(0)?;
            self.segments.write()?;
            self.segments.sync()
        });
        self.log.watermark.close();
    }

    /// Writes the named values, if they have changed.
    fn write_named(&mut self, promises: u64) -> Result<(), Error> {
        // They may be newer than what is queued before them, as readers see them already.
        let (values, have_changed) = self.log.tail.lock().take_named();
        if !have_changed && promises == 0 {
            return Ok(());
        }
        self.segments.set_named(|named| {
            named.promises += promises;
            named.values = values;
        })
    }

    /// Removes the entries from `end` on. The watermark is lowered first, so that none of them is missed.
    fn truncate(&mut self, end: u64) -> Result<(), Error> {
        if end >= self.segments.next() {
            return Ok(());
        }
        self.segments.write()?;
        let mark = self.log.watermark.mark();
        if mark.last.is_some_and(|(last, _)| last >= end) {
            let last = self.log.segments.last_before(end)?;
            self.log.watermark.set(Mark { last, ..mark }, true)?;
        }
        self.segments.truncate(end)
    }
}
