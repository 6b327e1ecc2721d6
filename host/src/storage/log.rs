//! The Raft log on disk: indexed entries and a few named values, with one fsync for all that wait.
//!
//! One writer thread owns the disk. Whoever appends puts entries into memory, where they can be read at once, and into
//! the thread's queue; the thread drains its whole queue, writes it as one batch, syncs once, and then tells everyone
//! who waited. There is no timer: when the thread is idle a single append is written at once, and under load batches
//! grow by themselves.
//!
//! After a failed write or sync nothing is tried again: what the disk holds is unknown then (see `poison`). Every later
//! call gets the error.
//!
//! What was promised is kept beside the log as well (see `watermark`). A log that is opened and holds less is refused.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};

#[cfg(test)]
use super::engine::memory::SimDisk;
use super::engine::{Database, DatabaseOptions, Durability, Table, TableOptions};
use super::examine::{self, stored_checksum};
use super::poison::Poison;
use super::watermark::{Mark, Place, Watermark};
use super::{Error, format};

/// Called once an operation is durable, or has failed.
pub type Done = Box<dyn FnOnce(Result<(), Error>) + Send>;

/// Told how long each sync took and how many entries it made durable.
pub type OnFsync = Box<dyn Fn(Duration, usize) + Send + Sync>;

/// Bytes of recent entries kept in memory for replication and apply. Entries not yet synced are kept beyond it.
const TAIL_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Entries removed in one batch, so that a long purge does not hold up appends.
const REMOVE_ENTRIES_MAX: u64 = 4_096;

/// Bytes gathered for one batch; a longer queue is written in several.
const BATCH_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Journal bytes kept before the engine flushes its tables; bounds recovery time.
const JOURNAL_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Memory of one table before it is written out.
const MEMTABLE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Memory for blocks that were read. Entries are read from the disk by peers that are behind, each once.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;

/// Threads that write the log's tables out and merge them.
const LOG_WORKERS: usize = 1;

const PURGED: &str = "purged";

/// The key of the number of named values that were made durable.
const PROMISES: &str = "promises";

/// A Raft log. Cheap to clone; all clones are the same log.
#[derive(Clone)]
pub struct Log {
    inner: Arc<Inner>,
}

struct Inner {
    entries: Table,
    meta: Table,
    /// What readers see: ahead of the disk by what is queued.
    view: Mutex<View>,
    /// `None` once the log is closed.
    queue: Mutex<Option<Queue>>,
    /// `None` if a simulation writes the log, and once the log is closed.
    writer: Mutex<Option<JoinHandle<()>>>,
    poison: Poison,
    watermark: Watermark,
}

/// The log as its readers see it.
struct View {
    /// First index, and the index after the last; equal if the log is empty.
    range: Range<u64>,
    /// The newest entries, those not yet synced included.
    tail: BTreeMap<u64, Bytes>,
    tail_bytes: usize,
    /// Entries below this index are synced.
    synced: u64,
    /// Named values, as of the last call that set them.
    meta: HashMap<String, Option<Bytes>>,
}

struct Operation {
    change: Change,
    done: Done,
}

/// The way to the writer.
struct Queue {
    sender: Sender<Operation>,
    /// A writer that is a task is woken by this; a thread waits at the other end of `sender`.
    #[cfg(test)]
    wake: Arc<tokio::sync::Notify>,
}

/// What is done if a log does not hold any more what it had promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum OnLoss {
    Refuse,
    Accept,
}

enum Change {
    Append(Vec<(u64, Bytes)>),
    Remove(Range<u64>),
    Purge { range: Range<u64>, marker: Bytes },
    Meta { key: &'static str, value: Option<Bytes>, sync: bool },
}

impl Log {
    /// Opens the log in `dir`, creating it if there is none, and starts its writer thread. Beside the directory lies a file
    /// of the same name that ends in `.watermark`.
    ///
    /// # Errors
    ///
    /// If the directory cannot be used, is locked, or has another format; [`Error::Lost`] if the log does not hold any
    /// more what it had promised.
    pub fn open(dir: &Path, on_fsync: OnFsync) -> Result<Self, Error> {
        Self::open_in(dir, on_fsync, OnLoss::Refuse)
    }

    /// Opens the log in `dir` with whatever it holds, up to the first entry that is damaged.
    ///
    /// # Errors
    ///
    /// As for [`Log::open`], losses excepted.
    pub fn open_with_losses(dir: &Path, on_fsync: OnFsync) -> Result<Self, Error> {
        Self::open_in(dir, on_fsync, OnLoss::Accept)
    }

    fn open_in(dir: &Path, on_fsync: OnFsync, on_loss: OnLoss) -> Result<Self, Error> {
        let options = DatabaseOptions {
            cache_bytes: Some(CACHE_BYTES),
            journal_bytes_max: JOURNAL_BYTES_MAX,
            workers: LOG_WORKERS,
        };
        let (log, writer, operations) = Self::load(Database::open(dir, options)?, dir, on_fsync, on_loss)?;
        log.write_on_a_thread(writer, operations)?;
        Ok(log)
    }

    /// Opens the log on a modelled disk, written by a thread as in production.
    #[cfg(test)]
    pub(crate) fn open_on(disk: &SimDisk, on_fsync: OnFsync) -> Result<Self, Error> {
        let (log, writer, operations) =
            Self::load(Database::Memory(disk.open(true)?), Path::new("disk"), on_fsync, OnLoss::Refuse)?;
        log.write_on_a_thread(writer, operations)?;
        Ok(log)
    }

    /// Opens the log on a modelled disk, written by a task of the current runtime; a sync takes simulated time.
    #[cfg(test)]
    pub(crate) fn open_simulated(disk: &SimDisk, on_fsync: OnFsync) -> Result<Self, Error> {
        let (log, writer, operations) =
            Self::load(Database::Memory(disk.open(false)?), Path::new("disk"), on_fsync, OnLoss::Refuse)?;
        let wake = lock(&log.inner.queue).as_ref().map(|queue| queue.wake.clone()).unwrap_or_default();
        tokio::spawn(writer.run_simulated(operations, wake, disk.clone()));
        Ok(log)
    }

    fn load(
        db: Database,
        dir: &Path,
        on_fsync: OnFsync,
        on_loss: OnLoss,
    ) -> Result<(Self, Writer, Receiver<Operation>), Error> {
        let options = TableOptions { memtable_bytes_max: Some(MEMTABLE_BYTES_MAX), ..TableOptions::default() };
        let entries = db.table("entries", options)?;
        let meta = db.table("meta", options)?;
        format::check(&db, &meta, dir)?;
        db.settle(dir)?;

        let range = match entries.first_last_key()? {
            Some((first, last)) => index_of(&first)?..index_of(&last)? + 1,
            None => 0..0,
        };
        let poison = Poison::new(dir);
        let (range, watermark) = examine(&db, dir, (&entries, &meta), range, on_loss, &poison)?;
        let view = View { synced: range.end, range, tail: BTreeMap::new(), tail_bytes: 0, meta: HashMap::new() };
        let (sender, operations) = channel();
        let queue = Queue {
            sender,
            #[cfg(test)]
            wake: Arc::default(),
        };
        let inner = Arc::new(Inner {
            entries: entries.clone(),
            meta: meta.clone(),
            view: Mutex::new(view),
            queue: Mutex::new(Some(queue)),
            writer: Mutex::new(None),
            poison: poison.clone(),
            watermark: watermark.clone(),
        });
        let writer = Writer { db, entries, meta, on_fsync, poison, watermark, log: Arc::downgrade(&inner) };
        Ok((Self { inner }, writer, operations))
    }

    fn write_on_a_thread(&self, writer: Writer, operations: Receiver<Operation>) -> Result<(), Error> {
        let thread = std::thread::Builder::new().name("brink-log".to_owned()).spawn(move || writer.run(&operations))?;
        *lock(&self.inner.writer) = Some(thread);
        Ok(())
    }

    /// Appends entries, which can be read when this returns; `done` is called from the writer thread once they are
    /// synced. Entries must follow the last one; into an empty log, any index may come first.
    pub fn append(&self, entries: Vec<(u64, Bytes)>, done: Done) {
        let mut view = self.view();
        for (index, entry) in &entries {
            if view.range.is_empty() {
                view.range = *index..*index;
                view.synced = *index;
            }
            view.range.end = index + 1;
            view.tail_bytes += entry.len();
            view.tail.insert(*index, entry.clone());
        }
        // Queued under the lock, so that the queue has the order that readers saw.
        self.queue(Change::Append(entries), done);
    }

    /// Removes all entries after `index`; all of them, if there is no index.
    pub fn truncate_after(&self, index: Option<u64>, done: Done) {
        let mut view = self.view();
        let keep = index.map_or(view.range.start, |index| index + 1).clamp(view.range.start, view.range.end);
        let removed = keep..view.range.end;
        for (_, entry) in view.tail.split_off(&keep) {
            view.tail_bytes = view.tail_bytes.saturating_sub(entry.len());
        }
        view.range.end = keep;
        view.synced = view.synced.min(keep);
        self.queue(Change::Remove(removed), done);
    }

    /// Removes all entries up to `index`, inclusive, and remembers `marker` in their place.
    pub fn purge_upto(&self, index: u64, marker: Bytes, done: Done) {
        let mut view = self.view();
        let next = index + 1;
        let removed = view.range.start..next.min(view.range.end);
        let kept = view.tail.split_off(&next);
        view.tail = kept;
        view.tail_bytes = view.tail.values().map(Bytes::len).sum();
        view.range = next.max(view.range.start)..next.max(view.range.end);
        view.synced = view.synced.max(next).min(view.range.end);
        view.meta.insert(PURGED.to_owned(), Some(marker.clone()));
        self.queue(Change::Purge { range: removed, marker }, done);
    }

    /// Sets or removes a named value, in order with appends. With `sync`, it is durable when `done` is called.
    pub fn save_meta(&self, key: &'static str, value: Option<Bytes>, sync: bool, done: Done) {
        let mut view = self.view();
        view.meta.insert(key.to_owned(), value.clone());
        self.queue(Change::Meta { key, value, sync }, done);
    }

    /// A named value, as last set.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn meta(&self, key: &str) -> Result<Option<Bytes>, Error> {
        if let Some(value) = self.view().meta.get(key) {
            return Ok(value.clone());
        }
        Ok(self.inner.meta.get(key)?.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// The marker of the last purge.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn purged_marker(&self) -> Result<Option<Bytes>, Error> {
        self.meta(PURGED)
    }

    /// First and last index; none if the log is empty.
    ///
    /// # Errors
    ///
    /// None at present; the signature leaves room.
    pub fn first_last(&self) -> Result<Option<(u64, u64)>, Error> {
        let range = self.view().range.clone();
        Ok((!range.is_empty()).then(|| (range.start, range.end - 1)))
    }

    /// One entry.
    ///
    /// # Errors
    ///
    /// If it cannot be read or is damaged.
    pub fn get(&self, index: u64) -> Result<Option<Bytes>, Error> {
        Ok(self.read(index..index.saturating_add(1))?.into_iter().next())
    }

    /// Every entry the log holds in a range, in order.
    ///
    /// # Errors
    ///
    /// If one cannot be read or is damaged.
    pub fn read(&self, range: Range<u64>) -> Result<Vec<Bytes>, Error> {
        self.read_bounded(range, usize::MAX)
    }

    /// The first entries of a range: at least one, and no more once they reach `bytes_max`.
    ///
    /// # Errors
    ///
    /// If one cannot be read or is damaged.
    pub fn read_bounded(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Bytes>, Error> {
        let (range, tail) = {
            let view = self.view();
            let range = range.start.max(view.range.start)..range.end.min(view.range.end);
            if range.is_empty() {
                return Ok(Vec::new());
            }
            let tail: Vec<(u64, Bytes)> =
                view.tail.range(range.clone()).map(|(index, entry)| (*index, entry.clone())).collect();
            (range, tail)
        };
        let on_disk = range.start..tail.first().map_or(range.end, |(index, _)| *index);
        let mut entries = Vec::new();
        let mut bytes = 0;
        for index in on_disk {
            let entry = self.read_from_disk(index)?;
            bytes += entry.len();
            entries.push(entry);
            if bytes >= bytes_max {
                return Ok(entries);
            }
        }
        for (_, entry) in tail {
            bytes += entry.len();
            entries.push(entry);
            if bytes >= bytes_max {
                break;
            }
        }
        Ok(entries)
    }

    /// Writes what is queued and ends the writer thread. Later changes fail with [`Error::Closed`].
    pub fn close(&self) {
        lock(&self.inner.queue).take();
        let writer = lock(&self.inner.writer).take();
        if writer.is_some_and(|writer| writer.join().is_err()) {
            tracing::error!("the log's writer thread panicked");
        }
    }

    /// Whether the log's disk has failed.
    pub fn poison(&self) -> &Poison {
        &self.inner.poison
    }

    fn read_from_disk(&self, index: u64) -> Result<Bytes, Error> {
        let record = self.inner.entries.get(index.to_be_bytes())?;
        let entry = record.as_ref().and_then(|record| {
            let (checksum, entry) = record.split_at_checked(4)?;
            (checksum == checksum_of(index, entry).to_be_bytes()).then(|| Bytes::copy_from_slice(entry))
        });
        entry.ok_or_else(|| {
            let error = Error::Corrupt { what: format!("log entry {index}") };
            // One that is not there may have been cut since it was asked for.
            if record.is_some() || self.view().range.contains(&index) {
                self.condemn(&error);
            }
            error
        })
    }

    /// Changes an entry on the disk.
    #[cfg(test)]
    pub(super) fn damage(&self, index: u64) {
        let Table::Disk(entries) = &self.inner.entries else { panic!("a log in a directory") };
        entries.insert(index.to_be_bytes(), "not a record").unwrap();
    }

    /// Stops using the log, now and when it is opened again: what else may be damaged is not known.
    fn condemn(&self, error: &Error) {
        self.inner.poison.set(error);
        if let Err(error) = self.inner.watermark.condemn() {
            tracing::error!(%error, "that the log is damaged could not be noted");
        }
    }

    fn queue(&self, change: Change, done: Done) {
        if let Err(error) = self.inner.poison.check() {
            return done(Err(error));
        }
        let refused = match lock(&self.inner.queue).as_ref() {
            Some(queue) => queue.send(Operation { change, done }),
            None => Some(Operation { change, done }),
        };
        if let Some(operation) = refused {
            (operation.done)(Err(Error::Closed));
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        lock(&self.inner.view)
    }
}

impl Queue {
    /// Hands an operation to the writer; gives it back, if the writer is gone.
    fn send(&self, operation: Operation) -> Option<Operation> {
        let refused = self.sender.send(operation).err().map(|refused| refused.0);
        #[cfg(test)]
        self.wake.notify_one();
        refused
    }
}

/// What owns the disk: a thread, or in a simulation a task.
struct Writer {
    db: Database,
    entries: Table,
    meta: Table,
    on_fsync: OnFsync,
    poison: Poison,
    watermark: Watermark,
    log: std::sync::Weak<Inner>,
}

/// What one batch will write. Each key once: the engine gives all items of a batch the same age.
#[derive(Default)]
struct Staged {
    entries: BTreeMap<u64, Option<Bytes>>,
    meta: HashMap<&'static str, Option<Bytes>>,
    bytes: usize,
    appended: usize,
    sync: bool,
    /// How many named values are to be durable.
    promises: u64,
    done: Vec<Done>,
}

impl Writer {
    fn run(self, operations: &Receiver<Operation>) {
        while let Ok(first) = operations.recv() {
            let staged = self.gather(first, operations);
            self.write(staged);
        }
        self.watermark.close();
    }

    /// The writer as a task of a simulation: the same, except that time passes between the write and the sync.
    #[cfg(test)]
    async fn run_simulated(self, operations: Receiver<Operation>, wake: Arc<tokio::sync::Notify>, disk: SimDisk) {
        use std::sync::mpsc::TryRecvError;
        loop {
            let staged = match operations.try_recv() {
                Ok(first) => self.gather(first, &operations),
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => {
                    wake.notified().await;
                    continue;
                }
            };
            let mut result = self.poison.attempt(|| self.commit(&staged, Durability::None));
            if staged.sync {
                tokio::time::sleep(disk.next_sync_time()).await;
                result = result.and_then(|()| self.poison.attempt(|| self.db.sync()));
                result = result.and_then(|()| self.poison.attempt(|| self.raise_mark(&staged)));
            }
            self.finish(staged, &result);
        }
    }

    /// All that waits, up to one batch.
    fn gather(&self, first: Operation, operations: &Receiver<Operation>) -> Staged {
        let mut staged = Staged::default();
        self.stage(first, &mut staged);
        while staged.bytes < BATCH_BYTES_MAX {
            let Ok(next) = operations.try_recv() else { break };
            self.stage(next, &mut staged);
        }
        staged
    }

    fn stage(&self, operation: Operation, staged: &mut Staged) {
        match operation.change {
            Change::Append(entries) => {
                staged.appended += entries.len();
                staged.sync = true;
                for (index, entry) in entries {
                    staged.bytes += entry.len();
                    staged.entries.insert(index, Some(entry));
                }
            }
            Change::Remove(range) => {
                staged.sync = true;
                staged.entries.extend(range.map(|index| (index, None)));
            }
            Change::Purge { range, marker } => {
                staged.meta.insert(PURGED, Some(marker));
                let mut next = range.start;
                while next < range.end {
                    let end = range.end.min(next + REMOVE_ENTRIES_MAX);
                    staged.entries.extend((next..end).map(|index| (index, None)));
                    next = end;
                    if next < range.end {
                        self.write(std::mem::take(staged));
                    }
                }
            }
            Change::Meta { key, value, sync } => {
                staged.sync |= sync;
                staged.promises += u64::from(sync);
                staged.meta.insert(key, value);
            }
        }
        staged.done.push(operation.done);
    }

    /// Writes a batch, syncs it if anything in it must be durable, and tells those who wait.
    fn write(&self, staged: Staged) {
        let durability = if staged.sync { Durability::Data } else { Durability::None };
        let began = Instant::now();
        let result = self.poison.attempt(|| {
            self.commit(&staged, durability)?;
            if staged.sync { self.raise_mark(&staged) } else { Ok(()) }
        });
        if staged.sync && result.is_ok() {
            (self.on_fsync)(began.elapsed(), staged.appended);
        }
        self.finish(staged, &result);
    }

    /// Tells those who wait what came of a batch.
    fn finish(&self, staged: Staged, result: &Result<(), Error>) {
        let end = staged.entries.iter().rev().find(|(_, entry)| entry.is_some()).map(|(index, _)| index + 1);
        if let (Ok(()), Some(end), Some(log)) = (result, end, self.log.upgrade()) {
            lock(&log.view).forget_synced(end);
        }
        for done in staged.done {
            done(result.clone());
        }
    }

    fn commit(&self, staged: &Staged, durability: Durability) -> Result<(), Error> {
        let mark = self.lower_mark(staged)?;
        let mut batch = self.db.batch();
        if staged.promises > 0 {
            batch.insert(&self.meta, PROMISES, (mark.promises + staged.promises).to_be_bytes());
        }
        for (index, entry) in &staged.entries {
            match entry {
                Some(entry) => {
                    let mut record = BytesMut::with_capacity(4 + entry.len());
                    record.put_u32(checksum_of(*index, entry));
                    record.put_slice(entry);
                    batch.insert(&self.entries, index.to_be_bytes(), &record[..]);
                }
                None => batch.remove(&self.entries, index.to_be_bytes()),
            }
        }
        for (key, value) in &staged.meta {
            match value {
                Some(value) => batch.insert(&self.meta, *key, &value[..]),
                None => batch.remove(&self.meta, *key),
            }
        }
        batch.commit(durability)
    }

    /// If a batch takes back the entry that the mark answers for, the mark goes back first, to the one before. Returns it.
    fn lower_mark(&self, staged: &Staged) -> Result<Mark, Error> {
        let mark = self.watermark.mark();
        let Some((index, checksum)) = mark.last else { return Ok(mark) };
        let stays = match staged.entries.get(&index) {
            None => true,
            Some(entry) => entry.as_ref().is_some_and(|entry| checksum_of(index, entry) == checksum),
        };
        if stays {
            return Ok(mark);
        }
        let mut end = index;
        while end > 0 && staged.entries.contains_key(&(end - 1)) {
            end -= 1;
        }
        let last = match end.checked_sub(1) {
            Some(last) => stored_checksum(&self.entries, last)?.map(|checksum| (last, checksum)),
            None => None,
        };
        let lowered = Mark { last, ..mark };
        self.watermark.lower(lowered)?;
        Ok(lowered)
    }

    /// The mark answers for what a batch has made durable.
    fn raise_mark(&self, staged: &Staged) -> Result<(), Error> {
        let mark = self.watermark.mark();
        let newest = staged.entries.iter().rev().find_map(|(index, entry)| Some((*index, entry.as_ref()?)));
        let last = newest.map(|(index, entry)| (index, checksum_of(index, entry))).or(mark.last);
        let raised = Mark { last, promises: mark.promises + staged.promises, ..mark };
        if raised == mark { Ok(()) } else { self.watermark.advance(raised) }
    }
}

/// Looks whether the log holds what its watermark says. Returns what it holds, and the watermark.
fn examine(
    db: &Database,
    dir: &Path,
    (entries, meta): (&Table, &Table),
    mut range: Range<u64>,
    on_loss: OnLoss,
    poison: &Poison,
) -> Result<(Range<u64>, Watermark), Error> {
    let promises = match meta.get(PROMISES)? {
        Some(value) => u64_of(&value)?,
        None => 0,
    };
    let place = Place::beside(db, dir);
    let lost = match place.read() {
        Ok(mark) => examine::losses(&mark.unwrap_or_default(), promises, &range, entries)?,
        Err(Error::Corrupt { what }) => Some(format!("what it had promised cannot be read from {what}")),
        Err(error) => return Err(error),
    };
    if let Some(what) = lost {
        let error = Error::Lost { path: dir.to_path_buf(), what };
        if on_loss == OnLoss::Refuse {
            return Err(error);
        }
        range.end = examine::cut_at_damage(db, entries, &range)?;
        tracing::error!(%error, "the loss is accepted; the log goes on with what is left, up to entry {}", range.end);
    }
    // What was found may have been written by a process that ended before it was synced.
    db.sync()?;
    let last = match range.is_empty() {
        true => None,
        false => stored_checksum(entries, range.end - 1)?.map(|checksum| (range.end - 1, checksum)),
    };
    Ok((range, place.keep(Mark { promises, last, is_damaged: false }, poison.clone())?))
}

impl View {
    /// Notes that entries below `end` are synced, and forgets the oldest of them beyond the memory allowed.
    fn forget_synced(&mut self, end: u64) {
        self.synced = self.synced.max(end).min(self.range.end);
        while self.tail_bytes > TAIL_BYTES_MAX {
            let Some(oldest) = self.tail.first_entry().filter(|oldest| *oldest.key() < self.synced) else { break };
            let entry = oldest.remove();
            self.tail_bytes = self.tail_bytes.saturating_sub(entry.len());
        }
    }
}

pub(super) fn checksum_of(index: u64, entry: &[u8]) -> u32 {
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&index.to_be_bytes());
    checksum.update(entry);
    checksum.finalize()
}

pub(super) fn index_of(key: &[u8]) -> Result<u64, Error> {
    u64_of(key)
}

fn u64_of(bytes: &[u8]) -> Result<u64, Error> {
    let bytes = bytes.try_into().map_err(|_| Error::Corrupt { what: "a number in the log".to_owned() })?;
    Ok(u64::from_be_bytes(bytes))
}

/// Locks a mutex whose data is consistent between any two statements, so that a panic elsewhere does not matter.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
