//! What happens to a state that may be damaged.
//!
//! Damage shows when it is read, and a node that has met some must not go on with the rest: other entries may be damaged
//! without a trace. So the node stops, and a file beside the state tells the next start to read all of it before it is used.
//! The same goes for a failure of the engine in the background, which does not say whether the disk or its content is to
//! blame. A state that proves to be damaged is refused with [`Error::Corrupt`].

use std::fs::File;
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};

use super::tables::{IDEMPOTENCY, KV, META, SYSTEM};
use super::{rows, tables};
use crate::storage::engine::ReadTables;
use crate::storage::{Error, dir, record};

/// The suspicion that a state is damaged. By default there is nothing to remember it.
#[derive(Default)]
pub(super) struct Suspicion {
    file: Option<PathBuf>,
}

impl Suspicion {
    /// The suspicion against the state in a directory.
    pub(super) fn beside(dir: &Path) -> Self {
        let mut name = dir.file_name().unwrap_or_default().to_owned();
        name.push(".suspect");
        Self { file: Some(dir.with_file_name(name)) }
    }

    /// Remembers an error that shows that the state may be damaged.
    pub(super) fn notice(&self, error: &Error) {
        let is_suspect = match error {
            Error::Corrupt(_) => true,
            Error::Fjall(error) => matches!(**error, fjall::Error::Poisoned),
            _ => false,
        };
        if is_suspect && let Err(failure) = self.raise() {
            tracing::error!(%error, %failure, "the suspicion of damage could not be recorded");
        }
    }

    fn raise(&self) -> io::Result<()> {
        let Some(file) = self.file.as_ref().filter(|file| !file.exists()) else { return Ok(()) };
        File::create(file)?.sync_all()?;
        dir::sync(parent(file))
    }

    /// Withdraws the suspicion, durably.
    pub(super) fn lift(&self) -> Result<(), Error> {
        let Some(file) = self.file.as_ref().filter(|file| file.exists()) else { return Ok(()) };
        std::fs::remove_file(file)?;
        Ok(dir::sync(parent(file))?)
    }

    /// Reads all of a state that is suspected, and withdraws the suspicion if all is well.
    pub(super) fn examine(&self, tables: &dyn ReadTables) -> Result<(), Error> {
        if self.file.as_ref().is_none_or(|file| !file.exists()) {
            return Ok(());
        }
        tracing::warn!("the state may be damaged; all of it is read");
        let mut position = Some(Position::default());
        while let Some(from) = position {
            position = read_some(tables, from, usize::MAX)?;
        }
        self.lift()
    }
}

/// A position in a walk over all rows of a state.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Position {
    /// The tables that have been read whole.
    tables: usize,
    /// The last key that was read of the next one.
    after: Option<Vec<u8>>,
}

/// Reads about `bytes` bytes of a state from a position on: all rows of entries with their values, wherever these are
/// stored, and of the other tables. Returns the position after them; none at the end. Fails if a row
/// is damaged.
pub(super) fn read_some(view: &dyn ReadTables, from: Position, bytes: usize) -> Result<Option<Position>, Error> {
    let Some(table) = [KV, SYSTEM, META, IDEMPOTENCY].get(from.tables).copied() else { return Ok(None) };
    let mut read = 0;
    for row in view.range(table, (from.after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded))? {
        let (key, found) = row?;
        let found = match tables::space_of(table) {
            Some(space) => {
                record::decode_key(&key)?;
                rows::whole(view, space, &key, found)?
            }
            None => found,
        };
        read += key.len() + found.len();
        if read >= bytes {
            return Ok(Some(Position { tables: from.tables, after: Some(key.to_vec()) }));
        }
    }
    Ok(Some(Position { tables: from.tables + 1, after: None }))
}

fn parent(file: &Path) -> &Path {
    file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
