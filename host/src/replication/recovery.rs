//! Whether what a node finds on its disk fits together, before it takes any part with it.
//!
//! The log's own losses are found by its watermark. What is found here is a log and a state that tell different stories:
//! they are two databases, and each may lose what the other kept.

use std::path::Path;

use super::state_machine::{APPLIED, INSTALLED};
use super::types::{LogId, decode};
use crate::storage::{Data, Error, Log};

/// The first index that a log may begin with if nothing was ever cut from it.
const FIRST_INDEX_MAX: u64 = 1;

/// Checks that the log and the state in `dir` belong together.
///
/// # Errors
///
/// [`Error::Lost`] if one of them lacks what the other shows it once had; others if they cannot be read.
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
    // A snapshot brings the state ahead of the log until the log is cut behind it.
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
        Some(bytes) => Some(decode(&bytes).map_err(|_| Error::Corrupt { what: "a log id".to_owned() })?),
        None => None,
    };
    Ok(log_id.map(|log_id| log_id.index()))
}
