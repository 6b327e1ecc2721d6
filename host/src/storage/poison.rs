//! Stops all writes to a database whose disk has failed.
//!
//! After a failed write or sync the content of the disk is unknown, and a retry may report success for data that is
//! gone (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020). So the first failure is kept,
//! every later change fails because of it, and the node is told and stops. The next start trusts only the content of
//! the disk.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::SetOnce;

use super::Error;

/// The first failure of a database, if there was one. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub struct Poison {
    path: Arc<Path>,
    first: Arc<SetOnce<Error>>,
}

impl Poison {
    pub(super) fn new(path: &Path) -> Self {
        Self { path: path.into(), first: Arc::default() }
    }

    /// The directory of the database.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs an action on the disk, unless an earlier one failed. Keeps the failure of this one.
    pub(super) fn attempt<T>(&self, action: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.check()?;
        action().inspect_err(|error| self.set(error))
    }

    /// Fails if an earlier action failed.
    pub(super) fn check(&self) -> Result<(), Error> {
        match self.first.get() {
            Some(error) => Err(Error::Poisoned(Arc::new(error.clone()))),
            None => Ok(()),
        }
    }

    /// Keeps a failure, if it is the first.
    pub(super) fn set(&self, error: &Error) {
        // Later failures are consequences of the first, and a closed database has not failed.
        let is_consequence = matches!(error, Error::Closed | Error::Poisoned(_));
        if !is_consequence && self.first.set(error.clone()).is_ok() {
            tracing::error!(path = %self.path.display(), %error, "the disk has failed; nothing more is written");
        }
    }

    /// Waits for the first failure; forever, if there is none.
    pub async fn poisoned(&self) -> Error {
        self.first.wait().await.clone()
    }
}
