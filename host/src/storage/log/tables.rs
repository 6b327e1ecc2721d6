//! The log in the storage engine: a table of entries by index, and a table of named values.
//!
//! The rest of the log does not know how entries are stored. Each is stored with a checksum over its index and content.
//! When a log is opened, the stored entries are compared with the watermark.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, Range};
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};

use super::watermark::Mark;
use crate::storage::engine::{Durability, EVERYTHING, Slice, StorageEngine, Table, WriteBatch, fjall};
use crate::storage::{Error, format};

/// Memory of one table before it is flushed.
const MEMTABLE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Memory for cached blocks. Only peers that are behind read entries from disk, each entry once.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;

/// How many bytes of the newest entries are checked when a log is opened. Older entries are checked when they are read.
const CHECK_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Entries removed in one batch, so that a long removal does not grow a batch without bound.
pub(super) const REMOVE_ENTRIES_MAX: usize = 4_096;

pub(super) const ENTRIES: Table = Table(0);
const NAMED: Table = Table(1);

/// The name of the number of named values that were made durable.
const PROMISES: &str = "promises";

pub(super) struct LogTables {
    pub(super) engine: Box<dyn StorageEngine>,
}

/// Changes that are written together. Each index and each name occurs once, since the engine gives all changes of a
/// batch the same age.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) entries: BTreeMap<u64, Option<Bytes>>,
    pub(super) named: HashMap<&'static str, Option<Bytes>>,
}

impl LogTables {
    pub(super) fn open(dir: &Path) -> Result<Self, Error> {
        let table =
            |name| fjall::TableOptions { name, memtable_bytes_max: MEMTABLE_BYTES_MAX, separate_bytes_min: None };
        Self::new(fjall::open(dir, CACHE_BYTES, &[table("entries"), table("meta")])?, dir)
    }

    pub(super) fn new(engine: Box<dyn StorageEngine>, dir: &Path) -> Result<Self, Error> {
        format::check(engine.as_ref(), NAMED, dir)?;
        Ok(Self { engine })
    }

    /// Checks the log in `dir` against its stored mark. Returns the range of its entries, and the mark to begin with. A
    /// log that has lost durable data is refused ([`Error::Lost`]), or cut at the first damaged entry if the loss is
    /// accepted.
    pub(super) fn examine(
        &self,
        stored: Result<Option<Mark>, Error>,
        dir: &Path,
        accepts_loss: bool,
    ) -> Result<(Range<u64>, Mark), Error> {
        let mut range = self.range()?;
        let promises = self.promises()?;
        let lost = match stored {
            Ok(mark) => self.losses(&mark.unwrap_or_default(), promises, &range)?,
            Err(Error::Corrupt(what)) => Some(format!("what it had promised cannot be read from {what}")),
            Err(error) => return Err(error),
        };
        if let Some(what) = lost {
            let error = Error::Lost { path: dir.to_path_buf(), what };
            if !accepts_loss {
                return Err(error);
            }
            range.end = self.cut_at_damage(range.start)?;
            tracing::error!(%error, "the loss is accepted; the log goes on with what is left, up to entry {}", range.end);
        }
        // A process that ended before its sync may have written some of it.
        self.engine.sync()?;
        let last = self.last_before(range.end)?;
        Ok((range, Mark { promises, last, is_damaged: false }))
    }

    /// A description of the durable data that the log lacks, if any.
    fn losses(&self, mark: &Mark, promises: u64, range: &Range<u64>) -> Result<Option<String>, Error> {
        if mark.is_damaged {
            return Ok(Some("an entry was found damaged".to_owned()));
        }
        if let Some((index, checksum)) = mark.last {
            // Entries before the first one were removed on purpose. If that left none, the mark was lowered.
            if range.is_empty() {
                return Ok(Some(format!("entry {index} was the last, and the log is empty")));
            }
            if index >= range.end {
                return Ok(Some(format!("entries {} to {index} are gone", range.end)));
            }
            if index >= range.start && self.checksum(index)? != Some(checksum) {
                return Ok(Some(format!("entry {index} is not the one that was written last")));
            }
        }
        if promises < mark.promises {
            let gone = mark.promises - promises;
            return Ok(Some(format!("of {} votes and ids the last {gone} are gone", mark.promises)));
        }
        Ok(self.newest_damage(range)?.map(|index| format!("entry {index} is damaged or missing")))
    }

    /// The indexes of the stored entries, from the first to after the last.
    fn range(&self) -> Result<Range<u64>, Error> {
        let mut keys = self.engine.keys(ENTRIES, EVERYTHING)?;
        let Some(first) = keys.next() else { return Ok(0..0) };
        let first = number(&first?)?;
        let last = keys.next_back().map_or(Ok(first), |last| number(&last?))?;
        Ok(first..last + 1)
    }

    /// An entry, unless it is missing. Fails if it is damaged.
    pub(super) fn entry(&self, index: u64) -> Result<Option<Bytes>, Error> {
        let record = self.engine.get(ENTRIES, &index.to_be_bytes())?;
        let content = |record: Slice| Some(Bytes::copy_from_slice(content(index, &record)?));
        record.map(|record| content(record).ok_or_else(|| damaged(index))).transpose()
    }

    /// Index and checksum of the entry before `end`, if it is stored.
    pub(super) fn last_before(&self, end: u64) -> Result<Option<(u64, u32)>, Error> {
        let Some(index) = end.checked_sub(1) else { return Ok(None) };
        Ok(self.checksum(index)?.map(|checksum| (index, checksum)))
    }

    /// The checksum stored with an entry.
    fn checksum(&self, index: u64) -> Result<Option<u32>, Error> {
        let record = self.engine.get(ENTRIES, &index.to_be_bytes())?;
        Ok(record.and_then(|record| Some(u32::from_be_bytes(*record.first_chunk()?))))
    }

    pub(super) fn named(&self, name: &str) -> Result<Option<Bytes>, Error> {
        Ok(self.engine.get(NAMED, name.as_bytes())?.map(|value| Bytes::copy_from_slice(&value)))
    }

    fn promises(&self) -> Result<u64, Error> {
        self.engine.get(NAMED, PROMISES.as_bytes())?.map_or(Ok(0), |value| number(&value))
    }

    /// Writes changes as one batch, with the number of durable named values if it changed.
    pub(super) fn write(&self, changes: &Changes, promises: Option<u64>, durability: Durability) -> Result<(), Error> {
        let mut batch = WriteBatch::with_capacity(changes.entries.len() + changes.named.len() + 1);
        if let Some(promises) = promises {
            batch.insert(NAMED, PROMISES, promises.to_be_bytes());
        }
        for (index, entry) in &changes.entries {
            match entry {
                Some(entry) => {
                    let mut record = BytesMut::with_capacity(4 + entry.len());
                    record.put_u32(checksum(*index, entry));
                    record.put_slice(entry);
                    batch.insert(ENTRIES, index.to_be_bytes(), record.freeze());
                }
                None => batch.remove(ENTRIES, index.to_be_bytes()),
            }
        }
        for (name, value) in &changes.named {
            batch.set(NAMED, *name, value.clone().map(Into::into));
        }
        self.engine.write(batch, durability)
    }

    /// A damaged or missing entry among the newest ones of a range.
    fn newest_damage(&self, range: &Range<u64>) -> Result<Option<u64>, Error> {
        let mut bytes = 0;
        let mut expected = range.end;
        for row in self.engine.range(ENTRIES, EVERYTHING)?.rev() {
            let (key, record) = row?;
            expected -= 1;
            if number(&key)? != expected || content(expected, &record).is_none() {
                return Ok(Some(expected));
            }
            bytes += record.len();
            if bytes >= CHECK_BYTES_MAX {
                break;
            }
        }
        Ok(None)
    }

    /// Removes the first damaged entry from `start` on, and all entries after it. Returns the index after the last one
    /// left.
    fn cut_at_damage(&self, start: u64) -> Result<u64, Error> {
        let mut end = start;
        for row in self.engine.range(ENTRIES, EVERYTHING)? {
            let (key, record) = row?;
            if number(&key)? != end || content(end, &record).is_none() {
                break;
            }
            end += 1;
        }
        let bounds = (Bound::Included(end.to_be_bytes().to_vec()), Bound::Unbounded);
        let removed = self.engine.keys(ENTRIES, bounds)?.collect::<Result<Vec<_>, Error>>()?;
        for keys in removed.chunks(REMOVE_ENTRIES_MAX) {
            let mut batch = WriteBatch::with_capacity(keys.len());
            for key in keys {
                batch.remove(ENTRIES, key.clone());
            }
            self.engine.write(batch, Durability::Data)?;
        }
        Ok(end)
    }
}

pub(super) fn checksum(index: u64, entry: &[u8]) -> u32 {
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&index.to_be_bytes());
    checksum.update(entry);
    checksum.finalize()
}

/// The error for an entry that is damaged or missing.
pub(super) fn damaged(index: u64) -> Error {
    Error::corrupt(format!("log entry {index}"))
}

/// The content of a stored entry, if its checksum is right.
fn content(index: u64, record: &[u8]) -> Option<&[u8]> {
    let (stored, entry) = record.split_first_chunk()?;
    (u32::from_be_bytes(*stored) == checksum(index, entry)).then_some(entry)
}

fn number(bytes: &[u8]) -> Result<u64, Error> {
    Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| Error::corrupt("a number in the log"))?))
}
