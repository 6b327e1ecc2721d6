//! What the log has promised, in a file of its own.
//!
//! # Problem
//!
//! The engine cuts its journal at the first record it cannot read, and says nothing. A log that lost its tail that way
//! looks like one that was never longer, and a node that votes with it may elect a leader that lacks what a majority had
//! acknowledged.
//!
//! # Approach
//!
//! Beside the log lies a file with a [`Mark`]: the last entry that was synced, by index and checksum, and how many votes
//! and ids were. It is written after each sync of the log and before that sync is acknowledged, which costs a copy into
//! the page cache. It is synced by a thread of its own, once in [`SYNC_INTERVAL`] while it changes. When the log is to
//! lose entries on purpose, the mark is lowered first, and that is synced at once.
//!
//! The file has three slots. One is written, one is being synced, and one holds what was synced last, so that no loss of
//! power can tear them all. The valid slot with the highest number counts.
//!
//! # What it finds, and what not
//!
//! - A process that was killed, a machine that was restarted in good order: the file has the last mark, and any entry or
//!   vote that is missing is noticed.
//! - A loss of power: the mark may be older than the log by up to [`SYNC_INTERVAL`] and one sync. If the disk also broke
//!   its promise, what was lost of the log's last moments may go unnoticed. Syncing the mark with every write would close
//!   that window, and cost a second sync on every write for a disk that lies about the first.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Buf, BufMut};

use super::engine::Database;
#[cfg(test)]
use super::engine::memory;
use super::poison::Poison;
use super::{Error, dir};

/// How old the mark on disk may become.
const SYNC_INTERVAL: Duration = Duration::from_millis(50);

const MAGIC: &[u8; 8] = b"brink-wm";

/// The format of the file.
const FORMAT: u32 = 1;

const SLOTS: u64 = 3;

/// Slots are apart by more than what a disk writes at once.
const SLOT_BYTES: u64 = 4_096;

/// A slot's content: magic, format, number, promises, whether the log is damaged, whether there is a last entry, its index
/// and checksum, and a checksum of all that.
const RECORD_BYTES: usize = 8 + 4 + 8 + 8 + 1 + 1 + 8 + 4 + 4;

/// What a log had made durable at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    /// How often named values were made durable: votes and ids.
    pub(super) promises: u64,
    /// Index and checksum of the last entry, if there is one to answer for.
    pub(super) last: Option<(u64, u32)>,
    /// Whether an entry was found damaged.
    pub(super) is_damaged: bool,
}

/// Where a mark is kept.
pub(super) enum Place {
    /// A file.
    File(PathBuf),
    /// A modelled disk.
    #[cfg(test)]
    Memory(memory::Database),
}

/// A log's mark. All clones are the same.
#[derive(Clone)]
pub(super) enum Watermark {
    File(Arc<Inner>),
    #[cfg(test)]
    Memory(memory::Database),
}

pub(super) struct Inner {
    file: File,
    poison: Poison,
    slots: Mutex<Slots>,
    /// Told when there is something to sync, and at the end.
    changed: Condvar,
    syncing: Mutex<Option<JoinHandle<()>>>,
}

/// What is in the file. Locked only for as long as it takes to write a slot.
struct Slots {
    mark: Mark,
    number: u64,
    /// The slot that is written to.
    current: u64,
    is_dirty: bool,
    is_closed: bool,
}

impl Place {
    /// The place of the mark of a database in a directory: beside it.
    pub(super) fn beside(db: &Database, dir: &Path) -> Self {
        match db {
            Database::Disk(_) => Self::File(dir.with_extension("watermark")),
            #[cfg(test)]
            Database::Memory(db) => Self::Memory(db.clone()),
        }
    }

    /// Reads the mark; none, if there never was one.
    ///
    /// # Errors
    ///
    /// If the file cannot be read, has another format, or is damaged.
    pub(super) fn read(&self) -> Result<Option<Mark>, Error> {
        let path = match self {
            Self::File(path) => path,
            #[cfg(test)]
            Self::Memory(db) => return Ok(db.disk().mark()),
        };
        match std::fs::read(path) {
            Ok(bytes) => newest(&bytes, path).map(Some),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts a mark in the place of whatever there is, and begins to keep it.
    ///
    /// # Errors
    ///
    /// If the system refuses.
    pub(super) fn keep(self, mark: Mark, poison: Poison) -> Result<Watermark, Error> {
        match self {
            Self::File(path) => Inner::create(&path, mark, poison).map(Watermark::File),
            #[cfg(test)]
            Self::Memory(db) => db.set_mark(mark, true).map(|()| Watermark::Memory(db)),
        }
    }
}

impl Watermark {
    /// The mark as it was last set.
    pub(super) fn mark(&self) -> Mark {
        match self {
            Self::File(inner) => lock(&inner.slots).mark,
            #[cfg(test)]
            Self::Memory(db) => db.disk().mark().unwrap_or_default(),
        }
    }

    /// Sets the mark; it is synced soon.
    ///
    /// # Errors
    ///
    /// If it cannot be written.
    pub(super) fn advance(&self, mark: Mark) -> Result<(), Error> {
        match self {
            Self::File(inner) => {
                // While there is something to sync the thread sleeps, and must not be woken for each write.
                if inner.write(mark)? {
                    inner.changed.notify_one();
                }
                Ok(())
            }
            #[cfg(test)]
            Self::Memory(db) => db.set_mark(mark, false),
        }
    }

    /// Sets the mark; it is synced when this returns.
    ///
    /// # Errors
    ///
    /// If it cannot be written or synced.
    pub(super) fn lower(&self, mark: Mark) -> Result<(), Error> {
        match self {
            Self::File(inner) => inner.write(mark).and_then(|_| inner.sync()),
            #[cfg(test)]
            Self::Memory(db) => db.set_mark(mark, true),
        }
    }

    /// Notes, for good, that an entry of the log is damaged.
    ///
    /// # Errors
    ///
    /// If that cannot be written or synced.
    pub(super) fn condemn(&self) -> Result<(), Error> {
        self.lower(Mark { is_damaged: true, ..self.mark() })
    }

    /// Syncs what there is to sync, and ends the thread that does so.
    pub(super) fn close(&self) {
        match self {
            Self::File(inner) => inner.close(),
            #[cfg(test)]
            Self::Memory(_) => {}
        }
    }
}

impl Inner {
    fn create(path: &Path, mark: Mark, poison: Poison) -> Result<Arc<Self>, Error> {
        let new = path.with_extension("watermark-new");
        let file = OpenOptions::new().create(true).truncate(true).write(true).open(&new)?;
        for slot in 0..SLOTS {
            file.write_all_at(&encode(mark, slot), slot * SLOT_BYTES)?;
        }
        file.set_len(SLOTS * SLOT_BYTES)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        dir::sync(path.parent().unwrap_or(Path::new(".")))?;
        // The last slot has the highest number; the next one is written first.
        let slots = Slots { mark, number: SLOTS, current: 0, is_dirty: false, is_closed: false };
        let (slots, changed, syncing) = (Mutex::new(slots), Condvar::new(), Mutex::new(None));
        let inner = Arc::new(Self { file, poison, slots, changed, syncing });
        let thread = std::thread::Builder::new().name("brink-watermark".to_owned());
        let thread = thread.spawn({
            let inner = inner.clone();
            move || inner.keep_synced()
        })?;
        *lock(&inner.syncing) = Some(thread);
        Ok(inner)
    }

    fn close(&self) {
        lock(&self.slots).is_closed = true;
        self.changed.notify_one();
        let thread = lock(&self.syncing).take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that syncs the watermark panicked");
        }
    }

    /// Writes the mark into the current slot. Returns whether there was nothing to sync before.
    fn write(&self, mark: Mark) -> Result<bool, Error> {
        let mut slots = lock(&self.slots);
        // Once damaged, always damaged: whoever sets the mark need not know.
        let mark = Mark { is_damaged: mark.is_damaged || slots.mark.is_damaged, ..mark };
        self.file.write_all_at(&encode(mark, slots.number), slots.current * SLOT_BYTES)?;
        slots.mark = mark;
        slots.number += 1;
        Ok(!std::mem::replace(&mut slots.is_dirty, true))
    }

    /// Syncs the slot that was written last. The next one is written meanwhile.
    fn sync(&self) -> Result<(), Error> {
        {
            let mut slots = lock(&self.slots);
            slots.current = (slots.current + 1) % SLOTS;
            slots.is_dirty = false;
        }
        Ok(self.file.sync_data()?)
    }

    fn keep_synced(&self) {
        let mut slots = lock(&self.slots);
        loop {
            while !slots.is_dirty && !slots.is_closed {
                slots = self.changed.wait(slots).unwrap_or_else(PoisonError::into_inner);
            }
            if !slots.is_closed {
                let closed = self.changed.wait_timeout_while(slots, SYNC_INTERVAL, |slots| !slots.is_closed);
                slots = closed.unwrap_or_else(PoisonError::into_inner).0;
            }
            let (is_dirty, is_closed) = (slots.is_dirty, slots.is_closed);
            drop(slots);
            let has_failed = is_dirty && self.poison.attempt(|| self.sync()).is_err();
            if has_failed || is_closed {
                return;
            }
            slots = lock(&self.slots);
        }
    }
}

fn encode(mark: Mark, number: u64) -> Vec<u8> {
    let (index, checksum) = mark.last.unwrap_or_default();
    let mut record = Vec::with_capacity(RECORD_BYTES);
    record.put_slice(MAGIC);
    record.put_u32(FORMAT);
    record.put_u64(number);
    record.put_u64(mark.promises);
    record.put_u8(mark.is_damaged.into());
    record.put_u8(mark.last.is_some().into());
    record.put_u64(index);
    record.put_u32(checksum);
    record.put_u32(crc32fast::hash(&record));
    record
}

/// The mark of the newest valid slot.
fn newest(bytes: &[u8], path: &Path) -> Result<Mark, Error> {
    let mut found: Option<(Mark, u64)> = None;
    for slot in bytes.chunks(usize::try_from(SLOT_BYTES).unwrap_or(usize::MAX)) {
        if let Some((mark, number)) = decode(slot, path)?
            && found.is_none_or(|(_, other)| number > other)
        {
            found = Some((mark, number));
        }
    }
    found.map(|(mark, _)| mark).ok_or_else(|| Error::Corrupt { what: path.display().to_string() })
}

/// The mark of a slot; none, if the slot is not whole.
fn decode(slot: &[u8], path: &Path) -> Result<Option<(Mark, u64)>, Error> {
    let Some((mut record, mut checksum)) =
        slot.get(..RECORD_BYTES).and_then(|record| record.split_at_checked(RECORD_BYTES - 4))
    else {
        return Ok(None);
    };
    if !record.starts_with(MAGIC) || checksum.get_u32() != crc32fast::hash(record) {
        return Ok(None);
    }
    record.advance(MAGIC.len());
    let format = record.get_u32();
    if format != FORMAT {
        return Err(Error::Format { path: path.to_path_buf(), found: format, supported: FORMAT });
    }
    let number = record.get_u64();
    let promises = record.get_u64();
    let is_damaged = record.get_u8() != 0;
    let has_last = record.get_u8() != 0;
    let last = (record.get_u64(), record.get_u32());
    Ok(Some((Mark { promises, last: has_last.then_some(last), is_damaged }, number)))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(index: u64) -> Mark {
        Mark { promises: 7, last: Some((index, 99)), is_damaged: false }
    }

    fn create(dir: &tempfile::TempDir) -> (PathBuf, Watermark) {
        let path = dir.path().join("log.watermark");
        let place = Place::File(path.clone());
        (path, place.keep(Mark::default(), Poison::new(dir.path())).unwrap())
    }

    fn read(path: &Path) -> Mark {
        Place::File(path.to_path_buf()).read().unwrap().unwrap()
    }

    fn sync(watermark: &Watermark) {
        let Watermark::File(inner) = watermark else { panic!("a file") };
        inner.sync().unwrap();
    }

    #[test]
    fn the_newest_mark_is_found_and_survives_a_torn_slot() {
        let dir = tempfile::tempdir().unwrap();
        let (path, watermark) = create(&dir);
        assert_eq!(read(&path), Mark::default());
        for index in 1..20 {
            watermark.advance(mark(index)).unwrap();
            assert_eq!(read(&path), mark(index));
            if index % 4 == 0 {
                sync(&watermark);
            }
        }
        watermark.lower(mark(3)).unwrap();
        watermark.close();
        assert_eq!(read(&path), mark(3));
        // Whatever slot is torn, another is left.
        let whole = std::fs::read(&path).unwrap();
        for slot in 0..3 {
            let mut torn = whole.clone();
            torn[slot * 4_096 + 20] ^= 1;
            assert!(newest(&torn, &path).is_ok());
        }
        assert!(matches!(newest(&[0; 9_000], &path), Err(Error::Corrupt { .. })));
    }

    #[test]
    fn the_slot_that_was_synced_last_is_not_written_until_the_next_is_synced() {
        let dir = tempfile::tempdir().unwrap();
        let (path, watermark) = create(&dir);
        // Only this test syncs.
        watermark.close();
        let slot = |number: usize| std::fs::read(&path).unwrap()[number * 4_096..][..RECORD_BYTES].to_vec();
        watermark.lower(mark(1)).unwrap();
        let synced = slot(0);
        for index in 2..10 {
            watermark.advance(mark(index)).unwrap();
            assert_eq!(slot(0), synced);
        }
        sync(&watermark);
        sync(&watermark);
        watermark.advance(mark(10)).unwrap();
        assert_ne!(slot(0), synced);
    }

    #[test]
    fn damage_is_never_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (path, watermark) = create(&dir);
        watermark.condemn().unwrap();
        watermark.advance(mark(5)).unwrap();
        watermark.close();
        assert!(read(&path).is_damaged);
    }

    #[test]
    fn an_unknown_format_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (path, watermark) = create(&dir);
        watermark.close();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(RECORD_BYTES);
        bytes[11] = 9;
        let checksum = crc32fast::hash(&bytes[..RECORD_BYTES - 4]);
        bytes[RECORD_BYTES - 4..].copy_from_slice(&checksum.to_be_bytes());
        assert!(matches!(newest(&bytes, &path), Err(Error::Format { found: 9, supported: 1, .. })));
    }
}
