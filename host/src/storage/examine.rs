//! What a log still holds of what it had promised, looked at when it is opened.

use std::ops::{Bound, Range};

use super::Error;
use super::engine::{Database, Durability, Table};
use super::log::{checksum_of, index_of};
use super::watermark::Mark;

/// The newest entries that are read when a log is opened, in bytes, to see that none is damaged. What is older is looked
/// at when it is read.
const EXAMINE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Entries removed in one batch.
const REMOVE_ENTRIES_MAX: usize = 4_096;

/// What the log lacks of its promises, in words; nothing, if it holds them all.
pub(super) fn losses(mark: &Mark, promises: u64, range: &Range<u64>, entries: &Table) -> Result<Option<String>, Error> {
    if mark.is_damaged {
        return Ok(Some("an entry was found damaged".to_owned()));
    }
    if let Some((index, checksum)) = mark.last {
        // What is before the first entry was cut on purpose, and the mark was lowered if nothing was left.
        if range.is_empty() {
            return Ok(Some(format!("entry {index} was the last, and the log is empty")));
        }
        if index >= range.end {
            return Ok(Some(format!("entries {} to {index} are gone", range.end)));
        }
        if index >= range.start && stored_checksum(entries, index)? != Some(checksum) {
            return Ok(Some(format!("entry {index} is not the one that was written last")));
        }
    }
    if promises < mark.promises {
        return Ok(Some(format!("of {} votes and ids the last {} are gone", mark.promises, mark.promises - promises)));
    }
    Ok(newest_damage(range, entries)?.map(|index| format!("entry {index} is damaged or missing")))
}

/// The checksum stored with an entry.
pub(super) fn stored_checksum(entries: &Table, index: u64) -> Result<Option<u32>, Error> {
    let record = entries.get(index.to_be_bytes())?;
    Ok(record.and_then(|record| Some(u32::from_be_bytes(*record.first_chunk()?))))
}

/// An entry among the newest that is damaged or missing.
fn newest_damage(range: &Range<u64>, entries: &Table) -> Result<Option<u64>, Error> {
    let mut bytes = 0;
    let mut expected = range.end;
    for row in entries.range((Bound::Unbounded, Bound::Unbounded)).rev() {
        let (key, record) = row?;
        expected -= 1;
        if index_of(&key)? != expected || !is_whole(expected, &record) {
            return Ok(Some(expected));
        }
        bytes += record.len();
        if bytes >= EXAMINE_BYTES_MAX {
            break;
        }
    }
    Ok(None)
}

fn is_whole(index: u64, record: &[u8]) -> bool {
    record
        .split_first_chunk()
        .is_some_and(|(checksum, entry)| u32::from_be_bytes(*checksum) == checksum_of(index, entry))
}

/// Removes the first damaged entry and all that follow it. Returns the index after the last that is left.
pub(super) fn cut_at_damage(db: &Database, entries: &Table, range: &Range<u64>) -> Result<u64, Error> {
    let mut end = range.start;
    for row in entries.iter() {
        let (key, record) = row?;
        if index_of(&key)? != end || !is_whole(end, &record) {
            break;
        }
        end += 1;
    }
    let bounds = (Bound::Included(end.to_be_bytes().to_vec()), Bound::Unbounded);
    let gone = entries.range(bounds).map(|row| Ok(row?.0)).collect::<Result<Vec<_>, Error>>()?;
    for keys in gone.chunks(REMOVE_ENTRIES_MAX) {
        let mut batch = db.batch();
        for key in keys {
            batch.remove(entries, key.clone());
        }
        batch.commit(Durability::Data)?;
    }
    Ok(end)
}
