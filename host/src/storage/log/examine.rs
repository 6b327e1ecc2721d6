//! The check when a log is opened: compares its entries with the watermark.

use std::ops::Range;
use std::path::Path;

use super::files::SegmentFiles;
use super::segments::{SegmentWriter, Segments, missing};
use super::tail::Tail;
use super::watermark::Mark;
use crate::storage::Error;

/// Checks the log in `dir` against its stored mark. Returns the end of the log, its content in memory, and the new mark.
///
/// Whatever follows the last valid record of the last segment is torn, if the mark does not know of it, and is cut. A log
/// that has lost durable data is refused ([`Error::Lost`]), or cut at the first damaged entry if the loss is accepted.
pub(super) fn examine(
    files: Box<dyn SegmentFiles>,
    stored: Result<Option<Mark>, Error>,
    dir: &Path,
    accepts_loss: bool,
) -> Result<(SegmentWriter, Tail, Mark), Error> {
    let found = Segments::find(files, dir)?;
    let lost = match stored {
        Ok(mark) => {
            let mark = mark.unwrap_or_default();
            let marked = mark.last.map_or(Ok(None), |(last, _)| found.segments.last_before(last + 1))?;
            losses(&mark, &found.range, found.named.promises, found.damage.clone(), marked)
        }
        Err(Error::Corrupt(what)) => Some(unreadable(&what)),
        Err(error) => return Err(error),
    };
    if let Some(what) = lost {
        let error = Error::Lost { path: dir.to_path_buf(), what };
        if !accepts_loss {
            return Err(error);
        }
        tracing::error!(%error, "the loss is accepted; the log goes on before entry {}", found.range.end);
    }
    let tail = Tail::new(found.range.clone(), found.named.values.clone());
    let segments = found.begin()?;
    let mark = Mark { promises: segments.named().promises, last: segments.last(), is_damaged: false };
    Ok((segments, tail, mark))
}

/// The description of a mark that cannot be read.
pub(super) fn unreadable(what: &str) -> String {
    format!("what it had promised cannot be read from {what}")
}

/// A description of the durable data that a log lacks, if any. `marked` is the entry that the mark names, as found.
pub(super) fn losses(
    mark: &Mark,
    range: &Range<u64>,
    promises: u64,
    damage: Option<String>,
    marked: Option<(u64, u32)>,
) -> Option<String> {
    if mark.is_damaged {
        return Some("an entry was found damaged".to_owned());
    }
    if damage.is_some() {
        return damage;
    }
    // Entries before the first one were removed on purpose.
    if let Some((index, _)) = mark.last.filter(|(index, _)| *index >= range.start) {
        if index >= range.end {
            return Some(missing(range.end, index));
        }
        if marked != mark.last {
            return Some(format!("entry {index} is not the one that was written last"));
        }
    }
    let gone = mark.promises.saturating_sub(promises);
    (gone > 0).then(|| format!("of {} votes and ids the last {gone} are gone", mark.promises))
}
