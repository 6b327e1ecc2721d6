//! Opens a node's databases, and handles those that are damaged.

use std::path::PathBuf;

use super::quarantine::{self, DATA, LOG};
use super::settings::Settings;
use crate::replication;
use crate::storage::{self, Data, Log, OnFsync};

/// Directory for snapshots from other nodes.
pub(super) const SPOOL: &str = "spool";

/// Why the databases cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The data directory cannot be used.
    #[error("--data-dir: {}: {source}", path.display())]
    Dir { path: PathBuf, source: std::io::Error },
    /// The data in the directory cannot be opened.
    #[error("--data-dir: {}: {source}", path.display())]
    Storage { path: PathBuf, source: storage::Error },
    /// Durable entries are gone, and there is no other node to get them from.
    #[error(
        "{source}. Acknowledged writes may be lost with it. If this node belongs to a cluster, start it with the other \
         nodes in REPLICA_NODES: it will set its data aside and get everything from them. If it is a single node, restore \
         a backup of {}, or go on with the remaining data by --accept-data-loss", path.display()
    )]
    Lost { path: PathBuf, source: storage::Error },
}

/// Opens both databases, creating what is missing. If they have lost entries that were durable, and there are other nodes,
/// they are set aside and empty ones are opened: the node must not go on under its old identity.
pub(super) fn open(settings: &Settings, on_fsync: impl Fn() -> OnFsync) -> Result<(Log, Data), Error> {
    let path = || settings.data_dir.clone();
    let refused = |source| Error::Dir { path: path(), source };
    storage::dir::create(&settings.data_dir.join(SPOOL)).map_err(refused)?;
    let opened = match try_open(settings, on_fsync()) {
        Err(lost @ storage::Error::Lost { .. }) if !settings.peer_urls.is_empty() => {
            let aside = quarantine::set_aside(&settings.data_dir).map_err(refused)?;
            tracing::error!(
                error = %lost,
                aside = %aside.display(),
                "this node must not vote with the remaining data: it was set aside, and the node joins its cluster as \
                 a new member; the directory may be removed once that is done"
            );
            try_open(settings, on_fsync())
        }
        Err(source @ storage::Error::Lost { .. }) => return Err(Error::Lost { path: path(), source }),
        opened => opened,
    };
    let opened = opened.map_err(|source| Error::Storage { path: path(), source })?;
    // The databases sync the content of their directories, but not the data directory that contains these.
    storage::dir::sync(&settings.data_dir).map_err(refused)?;
    Ok(opened)
}

fn try_open(settings: &Settings, on_fsync: OnFsync) -> Result<(Log, Data), storage::Error> {
    open_both(settings, on_fsync).map_err(|error| match error {
        // To this node, entries that cannot be read are lost.
        storage::Error::Corrupt { what } => {
            storage::Error::Lost { path: settings.data_dir.clone(), what: format!("{what} is damaged") }
        }
        error => error,
    })
}

fn open_both(settings: &Settings, on_fsync: OnFsync) -> Result<(Log, Data), storage::Error> {
    let dir = settings.data_dir.join(LOG);
    let log = match settings.accept_data_loss {
        true => Log::open_with_losses(&dir, on_fsync)?,
        false => Log::open(&dir, on_fsync)?,
    };
    let checked = Data::open(&settings.data_dir.join(DATA), settings.cache_bytes)
        .and_then(|data| check(settings, &log, &data).map(|()| data));
    match checked {
        Ok(data) => Ok((log, data)),
        Err(error) => {
            log.close();
            Err(error)
        }
    }
}

fn check(settings: &Settings, log: &Log, data: &Data) -> Result<(), storage::Error> {
    match replication::check_storage(log, data, &settings.data_dir) {
        Err(error @ storage::Error::Lost { .. }) if settings.accept_data_loss => {
            tracing::error!(%error, "the loss is accepted");
            Ok(())
        }
        checked => checked,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::Given;

    fn open(dir: &tempfile::TempDir, has_peers: bool, accepts_loss: bool) -> Result<(Log, Data), Error> {
        let given = Given {
            data_dir: Some(dir.path().join("new/data")),
            cache_mib: Some(8),
            replica_nodes: has_peers.then(|| r#"["http://b:1/kv-store/v1"]"#.to_owned()),
            accept_data_loss: Some(accepts_loss),
            ..Given::default()
        };
        super::open(&given.check().unwrap(), || Box::new(|_, _| {}))
    }

    /// Fills the log, then removes an entry without its knowledge.
    fn damaged(dir: &tempfile::TempDir) {
        let (log, data) = open(dir, false, false).unwrap();
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
        let (log, _data) = open(&dir, true, false).unwrap();
        assert_eq!(log.first_last(), None);
        assert!(quarantine::exists(&dir.path().join("new/data")).unwrap());
        log.close();
    }

    #[test]
    fn a_node_alone_refuses_to_start_until_the_loss_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        damaged(&dir);
        let refusal = open(&dir, false, false).err().unwrap().to_string();
        assert!(refusal.contains("entries 9 to 9 are gone") && refusal.contains("--accept-data-loss"), "{refusal}");
        let (log, data) = open(&dir, false, true).unwrap();
        assert_eq!(log.first_last(), Some((1, 8)));
        log.close();
        drop((log, data));
        open(&dir, false, false).unwrap().0.close();
    }
}
