//! The check that the log and the state on a node's disk belong together, before the node takes part with them.
//!
//! The log detects its own losses by its watermark. This check detects that the log and the state contradict each other:
//! they are two databases, and each may have lost entries that the other still shows.

use std::path::Path;

use super::state_machine::{APPLIED, INSTALLED};
use crate::replication::types::{LogId, decode};
use crate::storage::{Data, Error, Log};

/// The highest index at which a log that was never cut may begin.
const FIRST_INDEX_MAX: u64 = 1;

/// Checks that the log and the state in `dir` belong together.
///
/// # Errors
///
/// [`Error::Lost`] if one of them lacks entries that it once had, as the other shows; other errors if they cannot be read.
pub fn check(log: &Log, data: &Data, dir: &Path) -> Result<(), Error> {
    let lost = |what: String| Error::Lost { path: dir.to_path_buf(), what };
    let purged = index(log.purged_marker()?)?;
    let range = log.first_last();
    if let Some((first, _)) = range {
        let expected = purged.map_or(FIRST_INDEX_MAX, |purged| purged + 1);
        if first > expected {
            return Err(lost(format!(
                "the log begins with entry {first}, though only those before {expected} were cut"
            )));
        }
    }
    // After a snapshot was installed, the state is ahead of the log until the log is purged.
    let known = [range.map(|(_, last)| last), purged, index(data.meta(INSTALLED)?)?].into_iter().max().flatten();
    match (index(data.meta(APPLIED)?)?, known) {
        (applied, _) if applied < purged => Err(lost(format!(
            "the log was cut up to entry {}, and the state ends with {}",
            name(purged),
            name(applied)
        ))),
        (Some(applied), known) if known.is_none_or(|known| applied > known) => {
            Err(lost(format!("the state holds entry {applied}, and the log ends with {}", name(known))))
        }
        _ => Ok(()),
    }
}

fn name(index: Option<u64>) -> String {
    index.map_or_else(|| "none".to_owned(), |index| index.to_string())
}

fn index(bytes: Option<bytes::Bytes>) -> Result<Option<u64>, Error> {
    let log_id: Option<LogId> = match bytes {
        Some(bytes) => Some(decode(&bytes).map_err(|_| Error::Corrupt("a log id".to_owned()))?),
        None => None,
    };
    Ok(log_id.map(|log_id| log_id.index()))
}
