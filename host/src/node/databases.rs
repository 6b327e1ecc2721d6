//! Opens a node's databases, and handles those that are damaged.
//!
//! A node whose log has lost entries that it had made durable must not go on under its old identity. Its databases are set
//! aside, not deleted, since someone may want to look at them: they move to a directory below the data directory, named by
//! the time, and the node starts with empty ones. Only the newest such directory is kept. While there is one, the node never
//! founds a cluster: if all nodes lose their data, they must not quietly start over.

use std::fs::DirEntry;
use std::io;
use std::path::{Path, PathBuf};

use super::settings::Settings;
use crate::storage::{self, Data, Log, OnFsync, dir};
use crate::{clock, replication};

// Directories and files below the data directory: both databases, the log's watermark, the prefix of the directories that
// hold damaged databases, and the directory for snapshots from other nodes.
const LOG: &str = "log";
const DATA: &str = "data";
const WATERMARK: &str = "log.watermark";
const ASIDE_PREFIX: &str = "damaged-";
pub(super) const SPOOL: &str = "spool";

/// Why the databases cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("--data-dir: {}: {source}", path.display())]
    Dir { path: PathBuf, source: io::Error },
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
    dir::create(&settings.data_dir.join(SPOOL)).map_err(refused)?;
    let opened = match try_open(settings, on_fsync()) {
        Err(lost @ storage::Error::Lost { .. }) if !settings.peer_urls.is_empty() => {
            let aside = set_aside(&settings.data_dir).map_err(refused)?;
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
    dir::sync(&settings.data_dir).map_err(refused)?;
    Ok(opened)
}

fn try_open(settings: &Settings, on_fsync: OnFsync) -> Result<(Log, Data), storage::Error> {
    open_both(settings, on_fsync).map_err(|error| match error {
        // To this node, entries that cannot be read are lost.
        storage::Error::Corrupt(what) => {
            storage::Error::Lost { path: settings.data_dir.clone(), what: format!("{what} is damaged") }
        }
        error => error,
    })
}

fn open_both(settings: &Settings, on_fsync: OnFsync) -> Result<(Log, Data), storage::Error> {
    let dir = settings.data_dir.join(LOG);
    let log = Log::open(&dir, on_fsync, settings.accept_data_loss)?;
    let data =
        Data::open(&settings.data_dir.join(DATA), settings.cache_bytes).and_then(
            |data| match replication::check_storage(&log, &data, &settings.data_dir) {
                Err(error @ storage::Error::Lost { .. }) if settings.accept_data_loss => {
                    tracing::error!(%error, "the loss is accepted");
                    Ok(data)
                }
                checked => checked.map(|()| data),
            },
        );
    let data = data.inspect_err(|_| log.close())?;
    Ok((log, data))
}

/// Sets the databases aside. Returns the directory they are in now.
fn set_aside(data_dir: &Path) -> io::Result<PathBuf> {
    let earlier = all_aside(data_dir)?;
    let now = humantime::format_rfc3339_millis(clock::now()).to_string().replace(':', "-");
    let aside = data_dir.join(format!("{ASIDE_PREFIX}{now}"));
    dir::create(&aside)?;
    // The watermark goes last: if the move is interrupted, the rest is still recognized as damaged.
    for part in [DATA, LOG, WATERMARK] {
        match std::fs::rename(data_dir.join(part), aside.join(part)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        dir::sync(&aside)?;
        dir::sync(data_dir)?;
    }
    for dir in earlier {
        std::fs::remove_dir_all(dir)?;
    }
    Ok(aside)
}

/// Whether databases were set aside here and are still there.
pub(super) fn have_been_set_aside(data_dir: &Path) -> Result<bool, Error> {
    let aside = all_aside(data_dir).map_err(|source| Error::Dir { path: data_dir.to_path_buf(), source })?;
    Ok(!aside.is_empty())
}

fn all_aside(data_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries: Vec<_> = std::fs::read_dir(data_dir)?.collect::<Result<_, _>>()?;
    let is_aside = |entry: &DirEntry| entry.file_name().to_string_lossy().starts_with(ASIDE_PREFIX);
    Ok(entries.into_iter().filter(is_aside).map(|entry| entry.path()).collect())
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

    /// Fills the log, then damages its last entry.
    fn damaged(dir: &tempfile::TempDir) {
        let (log, data) = open(dir, false, false).unwrap();
        let (done, is_done) = std::sync::mpsc::channel();
        let entries = (1..10).map(|index| (index, "entry".into())).collect();
        log.append(entries, Box::new(move |result| done.send(result).unwrap()));
        is_done.recv().unwrap().unwrap();
        log.close();
        drop((log, data));
        let segments = std::fs::read_dir(dir.path().join("new/data/log")).unwrap().map(|file| file.unwrap().path());
        let newest = segments.filter(|path| path.extension().is_some_and(|extension| extension == "segment")).max();
        let (path, entry) = (newest.unwrap(), b"entry");
        let mut bytes = std::fs::read(&path).unwrap();
        let last = bytes.windows(entry.len()).rposition(|window| window == entry).unwrap();
        bytes[last] ^= 1;
        std::fs::write(path, bytes).unwrap();
    }

    #[test]
    fn a_node_with_others_sets_damaged_data_aside_and_starts_empty() {
        let dir = tempfile::tempdir().unwrap();
        damaged(&dir);
        let (log, _data) = open(&dir, true, false).unwrap();
        assert_eq!(log.first_last(), None);
        assert!(have_been_set_aside(&dir.path().join("new/data")).unwrap());
        log.close();
    }

    #[test]
    fn a_node_alone_refuses_to_start_until_the_loss_is_accepted() {
        let dir = tempfile::tempdir().unwrap();
        damaged(&dir);
        let refusal = open(&dir, false, false).err().unwrap().to_string();
        assert!(
            refusal.contains("entry 9 is damaged or missing") && refusal.contains("--accept-data-loss"),
            "{refusal}"
        );
        let (log, data) = open(&dir, false, true).unwrap();
        assert_eq!(log.first_last(), Some((1, 8)));
        log.close();
        drop((log, data));
        open(&dir, false, false).unwrap().0.close();
    }

    #[test]
    fn data_that_was_set_aside_is_kept_until_the_next_time() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!have_been_set_aside(dir.path()).unwrap());
        let fill = |text: &str| {
            std::fs::create_dir(dir.path().join("log")).unwrap();
            std::fs::write(dir.path().join("log/0"), text).unwrap();
            std::fs::write(dir.path().join(WATERMARK), text).unwrap();
        };
        fill("first");
        let first = set_aside(dir.path()).unwrap();
        assert!(have_been_set_aside(dir.path()).unwrap() && !dir.path().join("log").exists());
        assert_eq!(std::fs::read(first.join("log/0")).unwrap(), b"first");
        std::thread::sleep(std::time::Duration::from_millis(2));
        fill("second");
        let second = set_aside(dir.path()).unwrap();
        assert_eq!(std::fs::read(second.join(WATERMARK)).unwrap(), b"second");
        assert!(!first.exists());
    }
}
