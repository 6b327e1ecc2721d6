//! The writer: the only one that changes the log on disk.
//!
//! It drains its whole queue, writes everything as one batch, syncs once, and then calls back everyone who waits. It
//! uses no timer: when it is idle it writes a single append at once, and under load the batches grow by themselves.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedReceiver;

use super::tables::{Changes, LogTables, REMOVE_ENTRIES_MAX, checksum};
use super::tail::Tail;
use super::watermark::{Mark, Watermark};
use crate::storage::engine::Durability;
use crate::storage::{Error, Poison};

/// Called once an operation is durable, or has failed.
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Told how long each sync took and how many entries it made durable.
pub type OnFsync = Box<dyn Fn(Duration, usize) + Send + Sync>;

/// Bytes of entries in one batch; a longer queue is written in several.
const BATCH_BYTES_MAX: usize = 32 * 1024 * 1024;

/// The name of the value that stands in for purged entries.
pub(super) const PURGED: &str = "purged";

pub(super) enum Change {
    Append(Vec<(u64, Bytes)>),
    Truncate(Range<u64>),
    Purge { range: Range<u64>, marker: Bytes },
    Named { name: &'static str, value: Option<Bytes>, sync: bool },
}

/// What the writer and the log's handles share.
pub(super) struct Shared {
    pub(super) tables: LogTables,
    /// The log as readers see it, including queued changes.
    pub(super) tail: Mutex<Tail>,
    pub(super) poison: Poison,
    pub(super) watermark: Arc<dyn Watermark>,
}

/// The writer of a log. Production gives it a thread; a simulation drives its steps itself.
pub(super) struct Writer {
    /// The queued changes. Closed by the log's handle.
    pub(super) queue: UnboundedReceiver<(Change, Done)>,
    pub(super) log: Arc<Shared>,
    pub(super) on_fsync: OnFsync,
}

/// Changes that are written together.
#[derive(Default)]
pub(super) struct Staged {
    changes: Changes,
    bytes: usize,
    appended: usize,
    /// Whether any of them must be durable.
    pub(super) sync: bool,
    /// How many named values must be durable.
    promises: u64,
    done: Vec<Done>,
}

impl Writer {
    /// Writes until the queue is closed and empty.
    pub(super) fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let staged = self.gather(first);
            self.write(staged);
        }
        self.log.watermark.close();
    }

    /// Takes everything that is queued, up to one batch.
    pub(super) fn gather(&mut self, first: (Change, Done)) -> Staged {
        let mut staged = Staged::default();
        self.stage(first, &mut staged);
        while staged.bytes < BATCH_BYTES_MAX {
            let Ok(next) = self.queue.try_recv() else { break };
            self.stage(next, &mut staged);
        }
        staged
    }

    /// Writes a batch, syncs it if needed, and calls back.
    fn write(&self, staged: Staged) {
        let durability = if staged.sync { Durability::Data } else { Durability::None };
        let began = Instant::now();
        let mut result = self.commit(&staged, durability);
        if staged.sync {
            result = result.and_then(|()| self.raise_mark(&staged));
            if result.is_ok() {
                (self.on_fsync)(began.elapsed(), staged.appended);
            }
        }
        self.finish(staged, &result);
    }

    pub(super) fn commit(&self, staged: &Staged, durability: Durability) -> Result<(), Error> {
        self.log.poison.attempt(|| {
            let mark = self.lower_mark(&staged.changes)?;
            let promises = (staged.promises > 0).then_some(mark.promises + staged.promises);
            self.log.tables.write(&staged.changes, promises, durability)
        })
    }

    /// Raises the watermark to a batch that is now durable.
    pub(super) fn raise_mark(&self, staged: &Staged) -> Result<(), Error> {
        self.log.poison.attempt(|| {
            let mark = self.log.watermark.mark();
            let newest = staged.newest().map(|(index, entry)| (index, checksum(index, entry)));
            let raised = Mark { last: newest.or(mark.last), promises: mark.promises + staged.promises, ..mark };
            if raised == mark { Ok(()) } else { self.log.watermark.set(raised, false) }
        })
    }

    /// Calls back everyone who waits for a batch.
    pub(super) fn finish(&self, staged: Staged, result: &Result<(), Error>) {
        if let (Ok(()), Some((index, _))) = (result, staged.newest()) {
            self.log.tail.lock().forget_synced(index + 1);
        }
        for done in staged.done {
            done(result.clone());
        }
    }

    fn stage(&self, (change, done): (Change, Done), staged: &mut Staged) {
        let changes = &mut staged.changes;
        match change {
            Change::Append(entries) => {
                staged.appended += entries.len();
                staged.sync = true;
                for (index, entry) in entries {
                    staged.bytes += entry.len();
                    changes.entries.insert(index, Some(entry));
                }
            }
            Change::Truncate(range) => {
                staged.sync = true;
                changes.entries.extend(range.map(|index| (index, None)));
            }
            Change::Purge { range, marker } => {
                changes.named.insert(PURGED, Some(marker));
                for (count, index) in range.enumerate() {
                    if count > 0 && count.is_multiple_of(REMOVE_ENTRIES_MAX) {
                        self.write(std::mem::take(staged));
                    }
                    staged.changes.entries.insert(index, None);
                }
            }
            Change::Named { name, value, sync } => {
                staged.sync |= sync;
                staged.promises += u64::from(sync);
                changes.named.insert(name, value);
            }
        }
        staged.done.push(done);
    }

    /// If a batch removes or replaces the entry of the mark, lowers the mark to the entry before. Returns the mark.
    fn lower_mark(&self, changes: &Changes) -> Result<Mark, Error> {
        let mark = self.log.watermark.mark();
        let Some((index, marked)) = mark.last else { return Ok(mark) };
        let is_same = |entry: &Option<Bytes>| entry.as_ref().is_some_and(|entry| checksum(index, entry) == marked);
        if changes.entries.get(&index).is_none_or(is_same) {
            return Ok(mark);
        }
        let mut end = index;
        while end > 0 && changes.entries.contains_key(&(end - 1)) {
            end -= 1;
        }
        let lowered = Mark { last: self.log.tables.last_before(end)?, ..mark };
        self.log.watermark.set(lowered, true)?;
        Ok(lowered)
    }
}

impl Staged {
    /// The newest appended entry.
    fn newest(&self) -> Option<(u64, &Bytes)> {
        self.changes.entries.iter().rev().find_map(|(index, entry)| Some((*index, entry.as_ref()?)))
    }
}
