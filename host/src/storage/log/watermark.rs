//! The watermark: a record, outside the log, of how far the log is durable.
//!
//! # Problem
//!
//! A log ends at the first record that cannot be read. A log that lost its tail looks like a shorter log, and a node that
//! votes with it may elect a leader that lacks acknowledged entries.
//!
//! # Approach
//!
//! A file beside the log holds a [`Mark`]: index and checksum of the last synced entry, and the number of durable votes
//! and ids. The writer updates it after each sync of the log and before that sync is acknowledged, which costs a copy
//! into the page cache. A separate thread syncs the file every [`SYNC_INTERVAL`] while it changes. Before entries are
//! removed on purpose the mark is lowered, and synced at once.
//!
//! The file has three slots: one is being written, one is being synced, and one holds the mark that was synced last, so
//! no power loss can tear them all. The valid slot with the highest number counts.
//!
//! # What it detects
//!
//! - After a killed process or an orderly restart, the file holds the last mark, and any missing entry or vote is
//!   noticed.
//! - After a power loss the mark may be older than the log by [`SYNC_INTERVAL`] and one sync. If the disk also broke
//!   its promise, a loss within that window goes unnoticed. Syncing the mark with every write would close the window,
//!   at the price of a second sync on every write for a disk that lies about the first.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::{Buf, BufMut};
use parking_lot::{Condvar, Mutex};

use crate::storage::{Error, Poison, dir};

/// Maximum age of the synced mark.
const SYNC_INTERVAL: Duration = Duration::from_millis(50);

const MAGIC: &[u8; 8] = b"brink-wm";
const FORMAT: u32 = 1;
const SLOTS: u64 = 3;

/// Distance of the slots: more than a disk writes at once.
const SLOT_BYTES: u64 = 4_096;

/// Length of a slot's content: magic, format, number, promises, whether the log is damaged, whether there is a last
/// entry, its index and checksum, and a checksum of all that.
const RECORD_BYTES: usize = 8 + 4 + 8 + 8 + 1 + 1 + 8 + 4 + 4;

/// How far a log was durable at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Mark {
    /// How many named values (votes and ids) were made durable.
    pub(super) promises: u64,
    /// Index and checksum of the last entry, if there is one.
    pub(super) last: Option<(u64, u32)>,
    /// Whether an entry was found damaged.
    pub(super) is_damaged: bool,
}

/// The mark of an open log. The writer alone sets it; any thread may condemn.
pub(super) trait Watermark: Send + Sync {
    /// The mark as it was last set.
    fn mark(&self) -> Mark;

    /// Sets the mark. With `sync` it is durable when this returns, otherwise soon.
    fn set(&self, mark: Mark, sync: bool) -> Result<(), Error>;

    /// Records, for good, that an entry of the log is damaged.
    fn condemn(&self) -> Result<(), Error> {
        self.set(Mark { is_damaged: true, ..self.mark() }, true)
    }

    /// Makes the last mark durable, and ends all background work.
    fn close(&self) {}
}

/// The watermark file of an open log.
pub(super) struct WatermarkFile {
    file: File,
    poison: Poison,
    slots: Mutex<Slots>,
    /// Notified when there is something to sync, and on closing.
    changed: Condvar,
    syncing: Mutex<Option<JoinHandle<()>>>,
}

/// The state of the file. Locked only while a slot is written.
struct Slots {
    mark: Mark,
    number: u64,
    /// The slot that is written to.
    current: u64,
    is_dirty: bool,
    is_closed: bool,
}

/// Reads the mark in a file; none, if there never was one.
pub(super) fn read(path: &Path) -> Result<Option<Mark>, Error> {
    match std::fs::read(path) {
        Ok(bytes) => newest(&bytes, path).map(Some),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error.into()),
    }
}

impl Watermark for WatermarkFile {
    fn mark(&self) -> Mark {
        self.slots.lock().mark
    }

    fn set(&self, mark: Mark, sync: bool) -> Result<(), Error> {
        let was_clean = self.write(mark)?;
        if sync {
            return self.sync();
        }
        // While there is something to sync the thread sleeps, and must not be woken by each write.
        if was_clean {
            self.changed.notify_one();
        }
        Ok(())
    }

    fn close(&self) {
        self.slots.lock().is_closed = true;
        self.changed.notify_one();
        let thread = self.syncing.lock().take();
        if thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that syncs the watermark panicked");
        }
    }
}

impl WatermarkFile {
    /// Durably replaces whatever is stored by a mark. A failed sync in the background poisons the log.
    pub(super) fn create(path: &Path, mark: Mark, poison: Poison) -> Result<Arc<Self>, Error> {
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
        let open = Arc::new(Self { file, poison, slots, changed, syncing });
        let (builder, syncing) = (std::thread::Builder::new().name("brink-watermark".to_owned()), open.clone());
        *open.syncing.lock() = Some(builder.spawn(move || syncing.sync_until_closed())?);
        Ok(open)
    }

    /// Writes the mark into the current slot. Returns whether everything before it was synced.
    fn write(&self, mark: Mark) -> Result<bool, Error> {
        let mut slots = self.slots.lock();
        // Once damaged, always damaged: the caller need not know.
        let mark = Mark { is_damaged: mark.is_damaged || slots.mark.is_damaged, ..mark };
        self.file.write_all_at(&encode(mark, slots.number), slots.current * SLOT_BYTES)?;
        slots.mark = mark;
        slots.number += 1;
        Ok(!std::mem::replace(&mut slots.is_dirty, true))
    }

    /// Syncs the slot that was written last. Meanwhile the next one is written.
    fn sync(&self) -> Result<(), Error> {
        let mut slots = self.slots.lock();
        slots.current = (slots.current + 1) % SLOTS;
        slots.is_dirty = false;
        drop(slots);
        Ok(self.file.sync_data()?)
    }

    fn sync_until_closed(&self) {
        loop {
            let mut slots = self.slots.lock();
            self.changed.wait_while(&mut slots, |slots| !slots.is_dirty && !slots.is_closed);
            self.changed.wait_while_for(&mut slots, |slots| !slots.is_closed, SYNC_INTERVAL);
            let (is_dirty, is_closed) = (slots.is_dirty, slots.is_closed);
            drop(slots);
            let has_failed = is_dirty && self.poison.attempt(|| self.sync()).is_err();
            if has_failed || is_closed {
                return;
            }
        }
    }
}

pub(super) fn encode(mark: Mark, number: u64) -> Vec<u8> {
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
pub(super) fn newest(bytes: &[u8], path: &Path) -> Result<Mark, Error> {
    let slots = bytes.chunks(usize::try_from(SLOT_BYTES).unwrap_or(usize::MAX));
    let valid: Vec<_> = slots.filter_map(|slot| decode(slot, path).transpose()).collect::<Result<_, _>>()?;
    let newest = valid.into_iter().max_by_key(|(_, number)| *number);
    newest.map(|(mark, _)| mark).ok_or_else(|| Error::corrupt(path.display().to_string()))
}

/// The mark and the number of a slot, unless the slot is torn.
fn decode(slot: &[u8], path: &Path) -> Result<Option<(Mark, u64)>, Error> {
    let Some((mut record, mut rest)) = slot.split_at_checked(RECORD_BYTES - 4) else { return Ok(None) };
    if !record.starts_with(MAGIC) || rest.try_get_u32() != Ok(crc32fast::hash(record)) {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(index: u64) -> Mark {
        Mark { promises: 7, last: Some((index, 99)), is_damaged: false }
    }

    fn create() -> (tempfile::TempDir, std::path::PathBuf, Arc<WatermarkFile>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.watermark");
        let watermark = WatermarkFile::create(&path, Mark::default(), Poison::new(dir.path())).unwrap();
        (dir, path, watermark)
    }

    fn read(path: &Path) -> Mark {
        super::read(path).unwrap().unwrap()
    }

    #[test]
    fn the_newest_mark_is_found_and_survives_a_torn_slot() {
        let (_dir, path, watermark) = create();
        assert_eq!(read(&path), Mark::default());
        for index in 1..20 {
            watermark.set(mark(index), false).unwrap();
            assert_eq!(read(&path), mark(index));
            if index % 4 == 0 {
                watermark.sync().unwrap();
            }
        }
        watermark.set(mark(3), true).unwrap();
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
        let (_dir, path, watermark) = create();
        // Only this test syncs.
        watermark.close();
        let slot = |number: usize| std::fs::read(&path).unwrap()[number * 4_096..][..RECORD_BYTES].to_vec();
        watermark.set(mark(1), true).unwrap();
        let synced = slot(0);
        for index in 2..10 {
            watermark.set(mark(index), false).unwrap();
            assert_eq!(slot(0), synced);
        }
        watermark.sync().unwrap();
        watermark.sync().unwrap();
        watermark.set(mark(10), false).unwrap();
        assert_ne!(slot(0), synced);
    }

    #[test]
    fn damage_is_never_forgotten() {
        let (_dir, path, watermark) = create();
        watermark.condemn().unwrap();
        watermark.set(mark(5), false).unwrap();
        watermark.close();
        assert!(read(&path).is_damaged);
    }

    #[test]
    fn an_unknown_format_is_named() {
        let (_dir, path, watermark) = create();
        watermark.close();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.truncate(RECORD_BYTES);
        bytes[11] = 9;
        let checksum = crc32fast::hash(&bytes[..RECORD_BYTES - 4]);
        bytes[RECORD_BYTES - 4..].copy_from_slice(&checksum.to_be_bytes());
        assert!(matches!(newest(&bytes, &path), Err(Error::Format { found: 9, supported: 1, .. })));
    }
}
