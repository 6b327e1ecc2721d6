//! Opens a node's databases, and handles those that are damaged.

use std::path::PathBuf;

use super::{layout, quarantine};
use crate::replication;
use crate::storage::{self, Data, Log, OnFsync};

/// How to open the databases.
pub(super) struct Opening {
    pub(super) data_dir: PathBuf,
    /// Memory for cached blocks, in bytes.
    pub(super) cache_bytes: u64,
    /// Whether the node was started with the URLs of other nodes, which can send it everything again.
    pub(super) has_peers: bool,
    /// Whether the operator accepts that lost entries stay lost.
    pub(super) accepts_loss: bool,
}

/// Why the databases cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The data directory cannot be used.
    #[error("--data-dir: {}: {source}", path.display())]
    Dir {
        /// The directory.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The data in the directory cannot be opened.
    #[error("--data-dir: {}: {source}", path.display())]
    Storage {
        /// The directory.
        path: PathBuf,
        /// The storage's error.
        source: storage::Error,
    },
    /// Durable entries are gone, and there is no other node to get them from.
    #[error(
        "{source}. Acknowledged writes may be lost with it. If this node belongs to a cluster, start it with the other \
         nodes in REPLICA_NODES: it will set its data aside and get everything from them. If it is a single node, restore \
         a backup of {}, or go on with the remaining data by --accept-data-loss", path.display()
    )]
    Lost {
        /// The data directory.
        path: PathBuf,
        /// The loss.
        source: storage::Error,
    },
}

impl Opening {
    /// Opens both databases, creating what is missing. If they have lost entries that were durable, and there are other
    /// nodes, they are set aside and empty ones are opened: the node must not go on under its old identity.
    pub(super) fn open(&self, on_fsync: impl Fn() -> OnFsync) -> Result<(Log, Data), Error> {
        let path = || self.data_dir.clone();
        let refused = |source| Error::Dir { path: path(), source };
        storage::dir::create(&layout::spool(&self.data_dir)).map_err(refused)?;
        let opened = match self.try_open(on_fsync()) {
            Err(lost @ storage::Error::Lost { .. }) if self.has_peers => {
                let aside = quarantine::set_aside(&self.data_dir).map_err(refused)?;
                tracing::error!(
                    error = %lost,
                    aside = %aside.display(),
                    "this node must not vote with the remaining data: it was set aside, and the node joins its cluster as \
                     a new member; the directory may be removed once that is done"
                );
                self.try_open(on_fsync())
            }
            Err(source @ storage::Error::Lost { .. }) => return Err(Error::Lost { path: path(), source }),
            opened => opened,
        };
        let opened = opened.map_err(|source| Error::Storage { path: path(), source })?;
        // The databases sync the content of their directories, but not the data directory that contains these.
        storage::dir::sync(&self.data_dir).map_err(refused)?;
        Ok(opened)
    }

    fn try_open(&self, on_fsync: OnFsync) -> Result<(Log, Data), storage::Error> {
        self.open_both(on_fsync).map_err(|error| match error {
            // To this node, entries that cannot be read are lost.
            storage::Error::Corrupt(what) => {
                storage::Error::Lost { path: self.data_dir.clone(), what: format!("{what} is damaged") }
            }
            error => error,
        })
    }

    fn open_both(&self, on_fsync: OnFsync) -> Result<(Log, Data), storage::Error> {
        let dir = self.data_dir.join(layout::LOG);
        let log = Log::open(&dir, on_fsync, self.accepts_loss)?;
        let checked = Data::open(&self.data_dir.join(layout::DATA), self.cache_bytes)
            .and_then(|data| self.check(&log, &data).map(|()| data));
        match checked {
            Ok(data) => Ok((log, data)),
            Err(error) => {
                log.close();
                Err(error)
            }
        }
    }

    fn check(&self, log: &Log, data: &Data) -> Result<(), storage::Error> {
        match replication::check_storage(log, data, &self.data_dir) {
            Err(error @ storage::Error::Lost { .. }) if self.accepts_loss => {
                tracing::error!(%error, "the loss is accepted");
                Ok(())
            }
            checked => checked,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn opening(dir: &tempfile::TempDir, has_peers: bool, accepts_loss: bool) -> Opening {
        Opening { data_dir: dir.path().join("new/data"), cache_bytes: 8 << 20, has_peers, accepts_loss }
    }

    fn open(opening: &Opening) -> Result<(Log, Data), Error> {
        opening.open(|| Box::new(|_, _| {}))
    }

    /// Fills the log, then removes an entry without its knowledge.
    fn damaged(dir: &tempfile::TempDir) {
        let (log, data) = open(&opening(dir, false, false)).unwrap();
        let (done, is_done) = std::sync::mpsc::channel();
        let entries = (1..10).map(|index| (index, "entry".into())).collect();
        log.append(entries, Box::new(move |result| done.send(result).unwrap()));
        is_done.recv().unwrap().unwrap();
        log.close();
        drop((log, data));
        let db = fjall::Database::builder(dir.path().join("new/data/log")).open().unwrap();
        let entries = db.keyspace("entries", fjall::KeyspaceCreateOptions::default).unwrap();
        entries.remove(9_u64.to_be_bytes()).unwrap();
    }

    #[test]
    fn a_node_with_others_sets_damaged_data_aside_and_starts_empty() {
        let dir = tempfile::tempdir().unwrap();
        damaged(&dir);
        let (log, _data) = open(&opening(&dir, true, false)).unwrap();
        assert_eq!(log.first_last(), None);
        assert!(quarantine::exists(&dir.path().join("new/data")).unwrap());
        log.close();
    }

    #[test]
    fn a_node_alone_refuses_to_start_until_the_loss_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        damaged(&dir);
        let refusal = open(&opening(&dir, false, false)).err().unwrap().to_string();
        assert!(refusal.contains("entries 9 to 9 are gone") && refusal.contains("--accept-data-loss"), "{refusal}");
        let (log, data) = open(&opening(&dir, false, true)).unwrap();
        assert_eq!(log.first_last(), Some((1, 8)));
        log.close();
        drop((log, data));
        open(&opening(&dir, false, false)).unwrap().0.close();
    }
}
