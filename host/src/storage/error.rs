//! Storage failures.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;

/// A failure of storage. Cheap to clone, since one failure may be reported to many callers.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// fjall failed.
    #[error("{}", fjall_message(.0))]
    Fjall(#[source] Arc<fjall::Error>),
    /// The operating system refused.
    #[error("{0}")]
    Io(#[source] Arc<std::io::Error>),
    /// Another process uses the directory.
    #[error("{} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// Stored data differs from the data that was written.
    #[error("{0} is damaged")]
    Corrupt(String),
    /// The directory was written by another version of brink, in a format that this one cannot read.
    #[error("{} has format {found}; this version of brink reads format {supported}", path.display())]
    Format {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format this version reads.
        supported: u32,
    },
    /// Data that was reported as durable is missing.
    #[error("{} has lost what it had made durable: {what}", path.display())]
    Lost {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// An earlier write failed. The content of the disk is unknown since then, so nothing more is written.
    #[error("storage stopped after a failed write: {0}")]
    Poisoned(#[source] Arc<Error>),
    /// The disk would have to be read, where that is not allowed. Stays within [`crate::storage`].
    #[error("the disk would have to be read")]
    NotInMemory,
    /// The storage was closed.
    #[error("storage is closed")]
    Closed,
}

impl Error {
    /// Whether there was no space on the disk.
    pub fn is_disk_full(&self) -> bool {
        let is_full = |error: &io::Error| matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded);
        match self {
            Self::Io(error) => is_full(error),
            Self::Fjall(error) => match &**error {
                fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => is_full(error),
                _ => false,
            },
            _ => false,
        }
    }

    pub(super) fn corrupt(what: impl Into<String>) -> Self {
        Self::Corrupt(what.into())
    }
}

/// fjall's error in words that an operator knows.
fn fjall_message(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(error) => error.to_string(),
        fjall::Error::Poisoned => "an earlier write in the background failed".to_owned(),
        error => format!("the storage engine failed: {error}"),
    }
}

impl From<fjall::Error> for Error {
    fn from(error: fjall::Error) -> Self {
        Self::Fjall(Arc::new(error))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}
