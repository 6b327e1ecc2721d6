//! The check when a log is opened: compares the stored entries with the watermark.

use std::ops::Range;
use std::path::Path;

use super::tables::LogTables;
use super::watermark::Mark;
use crate::storage::Error;

/// Checks the log in `dir` against its stored mark. Returns the range of its entries, and the mark to begin with. A log
/// that has lost durable data is refused ([`Error::Lost`]), or cut at the first damaged entry if the loss is accepted.
pub(super) fn examine(
    tables: &LogTables,
    stored: Result<Option<Mark>, Error>,
    dir: &Path,
    accepts_loss: bool,
) -> Result<(Range<u64>, Mark), Error> {
    let mut range = tables.range()?;
    let promises = tables.promises()?;
    let lost = match stored {
        Ok(mark) => losses(&mark.unwrap_or_default(), promises, &range, tables)?,
        Err(Error::Corrupt(what)) => Some(format!("what it had promised cannot be read from {what}")),
        Err(error) => return Err(error),
    };
    if let Some(what) = lost {
        let error = Error::Lost { path: dir.to_path_buf(), what };
        if !accepts_loss {
            return Err(error);
        }
        range.end = tables.cut_at_damage(range.start)?;
        tracing::error!(%error, "the loss is accepted; the log goes on with what is left, up to entry {}", range.end);
    }
    // A process that ended before its sync may have written some of it.
    tables.engine.sync()?;
    let last = match range.is_empty() {
        true => None,
        false => tables.checksum(range.end - 1)?.map(|checksum| (range.end - 1, checksum)),
    };
    Ok((range, Mark { promises, last, is_damaged: false }))
}

/// A description of the durable data that the log lacks, if any.
fn losses(mark: &Mark, promises: u64, range: &Range<u64>, tables: &LogTables) -> Result<Option<String>, Error> {
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
        if index >= range.start && tables.checksum(index)? != Some(checksum) {
            return Ok(Some(format!("entry {index} is not the one that was written last")));
        }
    }
    if promises < mark.promises {
        return Ok(Some(format!("of {} votes and ids the last {} are gone", mark.promises, mark.promises - promises)));
    }
    Ok(tables.newest_damage(range)?.map(|index| format!("entry {index} is damaged or missing")))
}
