//! Which of fjall's errors show that its files are damaged.

use std::io;
use std::path::Path;

use fjall::LsmError;

use crate::storage::Error;

pub(super) fn damaged(dir: &Path, reason: &dyn std::fmt::Display) -> Error {
    Error::corrupt(format!("{} ({reason})", dir.display()))
}

/// Tells damage apart from failures of the disk.
pub(super) fn explained(error: fjall::Error, dir: &Path) -> Error {
    use io::ErrorKind::{InvalidData, NotFound, UnexpectedEof};
    match error {
        fjall::Error::Poisoned | fjall::Error::Locked | fjall::Error::KeyspaceDeleted => error.into(),
        fjall::Error::Io(source) | fjall::Error::Storage(LsmError::Io(source)) => match source.kind() {
            // Files that are missing or too short.
            InvalidData | NotFound | UnexpectedEof => damaged(dir, &source),
            _ => source.into(),
        },
        error => damaged(dir, &error),
    }
}
