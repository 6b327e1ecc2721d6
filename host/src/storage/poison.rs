//! What becomes of a database whose disk has failed: nothing more.
//!
//! After a failed write or sync it is unknown what the disk holds, and trying again may report success for data that is
//! gone (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020). So the first failure is kept, every
//! later change gets it as its answer, and the node is told, which stops as a whole. What it finds on its disk when it is
//! started again is what counts.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;

use super::Error;

/// The first failure of a database, if there was one. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Poison {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    first: OnceLock<Error>,
    is_poisoned: watch::Sender<bool>,
}

impl Poison {
    /// For the database at a path, which has not failed yet.
    pub(super) fn new(path: &Path) -> Self {
        let inner = Inner { path: path.to_path_buf(), first: OnceLock::new(), is_poisoned: watch::Sender::new(false) };
        Self { inner: Arc::new(inner) }
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Does something to the disk, unless that failed before. A failure is the last thing that is tried.
    pub(super) fn attempt<T>(&self, action: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.check()?;
        action().inspect_err(|error| self.set(error))
    }

    /// Fails if something failed before.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.inner.first.get() {
            Some(error) => Err(Error::Poisoned(Arc::new(error.clone()))),
            None => Ok(()),
        }
    }

    /// Keeps a failure, if it is the first.
    pub(super) fn set(&self, error: &Error) {
        // Those that follow are its consequences, and a closed database has not failed.
        if matches!(error, Error::Closed | Error::Poisoned(_)) || self.inner.first.set(error.clone()).is_err() {
            return;
        }
        tracing::error!(path = %self.inner.path.display(), %error, "the disk has failed; nothing more is written");
        self.inner.is_poisoned.send_replace(true);
    }

    /// Waits for the first failure, for ever if there is none.
    pub async fn poisoned(&self) -> Error {
        let mut told = self.inner.is_poisoned.subscribe();
        // It cannot end without one: the sender lives as long as `self`.
        let _ = told.wait_for(|is_poisoned| *is_poisoned).await;
        self.inner.first.get().cloned().unwrap_or(Error::Closed)
    }
}
