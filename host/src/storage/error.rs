//! What can go wrong on disk.

use std::path::PathBuf;
use std::sync::Arc;

/// A failure of storage. Cheap to clone, since one failure may have to be told to many.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The storage engine failed.
    #[error("{}", engine_message(.0))]
    Engine(#[source] Arc<fjall::Error>),
    /// The operating system refused.
    #[error("{0}")]
    Io(#[source] Arc<std::io::Error>),
    /// Another process uses the directory.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// What was read is not what was written.
    #[error("{what} is damaged")]
    Corrupt {
        /// What was read.
        what: String,
    },
    /// The directory was written by a version of brink that this one does not know.
    #[error("{} has format {found}; this version of brink reads format {supported}", path.display())]
    Format {
        /// The directory.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format this version reads.
        supported: u32,
    },
    /// What had been promised is not there any more.
    #[error("{} has lost what it had made durable: {what}", path.display())]
    Lost {
        /// The directory.
        path: PathBuf,
        /// What is missing.
        what: String,
    },
    /// An earlier write failed. What is on disk since then is unknown, so nothing more is written.
    #[error("storage stopped after a failed write: {0}")]
    Poisoned(#[source] Arc<Error>),
    /// The storage was closed.
    #[error("storage is closed")]
    Closed,
}

/// What the engine has to say, in words that an operator knows.
fn engine_message(error: &fjall::Error) -> String {
    match error {
        fjall::Error::Io(error) => error.to_string(),
        fjall::Error::Poisoned => "an earlier write in the background failed".to_owned(),
        error => format!("the storage engine failed: {error}"),
    }
}

impl From<fjall::Error> for Error {
    fn from(error: fjall::Error) -> Self {
        Self::Engine(Arc::new(error))
    }
}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::Io(Arc::new(error))
    }
}
