//! Opens a node's databases, and handles those that are damaged.
//!
//! The log holds what a node has promised to others. If it has lost entries that it had made durable, the node must not go on
//! under its old identity: both databases are set aside, and the node joins its cluster as a new member. While such a log is
//! there, the node never founds a cluster: if all nodes lose their data, they must not quietly start over.
//!
//! The state holds no promise: everything in it comes from the log. If it is lost or damaged, it alone is set aside. A node
//! whose log was never cut applies the log from its start, and another fetches the state from another node (see
//! `replication`), under its own id, with its votes and its log. Without another node to get it from, it does not start.
//!
//! Databases are set aside, not deleted, since someone may want to look at them: they move to a directory below the data
//! directory, named by the time. Only the newest such directory is kept.
//!
//! What a node keeps is for its user alone. The process creates no file that others may read (see `cli::serve`); what an earlier
//! version has left open is closed at the start.

use std::ffi::{OsStr, OsString};
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::settings::Settings;
use crate::storage::{self, Data, Log, OnFsync, dir};
use crate::{clock, replication};

// Directories and files below the data directory: both databases, the log's watermark, the prefix of the directories that
// hold damaged databases, and the directory for snapshots from other nodes. The state is in several files and directories
// whose names begin with `data`.
const LOG: &str = "log";
const DATA: &str = "data";
const WATERMARK: &str = "log.watermark";
const ASIDE_PREFIX: &str = "damaged-";
pub(super) const SPOOL: &str = "spool";

/// The bits of a file's mode that give other users access, its group included.
const OTHERS: u32 = 0o077;

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
    /// The state is gone or damaged, the log was cut, and there is no other node.
    #[error(
        "the state of this node is lost: {reason}; and its log was cut, so the state cannot be rebuilt from it. If this node \
         belongs to a cluster, start it with the other nodes in REPLICA_NODES: it will get the state from them. If it is a \
         single node, restore a backup of {}, or move its content elsewhere to start with an empty store", path.display()
    )]
    StateLost { path: PathBuf, reason: String },
}

/// Opens both databases, creating what is missing. Sets aside what is damaged, as long as it can be got from elsewhere.
pub(super) fn open(settings: &Settings, on_fsync: impl Fn() -> OnFsync) -> Result<(Log, Data), Error> {
    let path = || settings.data_dir.clone();
    let refused = |source| Error::Dir { path: path(), source };
    dir::create(&settings.data_dir.join(SPOOL)).map_err(refused)?;
    close_to_others(&settings.data_dir).map_err(refused)?;
    let opened = match open_both(settings, on_fsync()) {
        Err(Error::Lost { source, .. }) if !settings.peer_urls.is_empty() => {
            let parts =
                [state_parts(&settings.data_dir).map_err(refused)?, vec![LOG.into(), WATERMARK.into()]].concat();
            let aside = set_aside(&settings.data_dir, &parts).map_err(refused)?;
            tracing::error!(
                error = %source,
                aside = %aside.display(),
                "this node must not vote with the remaining data: it was set aside, and the node joins its cluster as \
                 a new member; the directory may be removed once that is done"
            );
            open_both(settings, on_fsync())
        }
        opened => opened,
    }?;
    // The databases sync the content of their directories, but not the data directory that contains these.
    dir::sync(&settings.data_dir).map_err(refused)?;
    Ok(opened)
}

fn open_both(settings: &Settings, on_fsync: OnFsync) -> Result<(Log, Data), Error> {
    let failed = |error| failed(settings, error);
    let dir = settings.data_dir.join(LOG);
    let log = Log::open(&dir, on_fsync, settings.accept_data_loss).map_err(failed)?;
    let data = open_state(settings, &log).inspect_err(|_| log.close())?;
    Ok((log, data))
}

/// Opens the state that belongs to a log. If it is lost, an empty one, to be filled from the log or from another node.
fn open_state(settings: &Settings, log: &Log) -> Result<Data, Error> {
    let failed = |error| failed(settings, error);
    let refused = |source| Error::Dir { path: settings.data_dir.clone(), source };
    let dir = settings.data_dir.join(DATA);
    let open = || Data::open(&dir, settings.cache_bytes);
    let reason = match open() {
        Ok(data) => match replication::check_storage(log, &data, &settings.data_dir) {
            Ok(replication::Condition::Whole) => return Ok(data),
            Ok(replication::Condition::StateLost(reason)) => reason,
            Err(error @ storage::Error::Lost { .. }) if settings.accept_data_loss => {
                tracing::error!(%error, "the loss is accepted");
                replication::accept_loss(log);
                return Ok(data);
            }
            Err(error) => return Err(failed(error)),
        },
        Err(error @ storage::Error::Corrupt(_)) => error.to_string(),
        Err(error) => return Err(failed(error)),
    };
    let was_cut = log.purged_marker().is_some();
    if was_cut && settings.peer_urls.is_empty() {
        return Err(Error::StateLost { path: settings.data_dir.clone(), reason });
    }
    let aside = set_aside(&settings.data_dir, &state_parts(&settings.data_dir).map_err(refused)?).map_err(refused)?;
    tracing::error!(
        reason,
        aside = %aside.display(),
        from = if was_cut { "another node" } else { "the log" },
        "the state of this node is lost: it was set aside, and is rebuilt; the directory may be removed once that is done"
    );
    open().map_err(failed)
}

fn failed(settings: &Settings, error: storage::Error) -> Error {
    let path = settings.data_dir.clone();
    match error {
        source @ storage::Error::Lost { .. } => Error::Lost { path, source },
        // To this node, entries that cannot be read are lost.
        storage::Error::Corrupt(what) => {
            let source = storage::Error::Lost { path: path.clone(), what: format!("{what} is damaged") };
            Error::Lost { path, source }
        }
        source => Error::Storage { path, source },
    }
}

/// The names of the files and directories that hold the state. The pointer to the current directory comes last: if setting
/// them aside is interrupted, the rest is still recognized as damaged.
fn state_parts(data_dir: &Path) -> io::Result<Vec<OsString>> {
    let mut parts = names(data_dir)?;
    parts.retain(|name| is_state_part(name));
    parts.sort_by_key(|name| name.to_string_lossy().contains('.'));
    Ok(parts)
}

fn is_state_part(name: &OsStr) -> bool {
    name.to_str()
        .and_then(|name| name.strip_prefix(DATA))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
}

/// Takes from other users what this node keeps in the data directory. Closing a directory closes all that is in it. The data
/// directory itself stays as it is: it may be one that the operator shares.
fn close_to_others(data_dir: &Path) -> io::Result<()> {
    let is_ours = |name: &OsString| {
        let aside = |name: &str| name.starts_with(ASIDE_PREFIX);
        [LOG, WATERMARK, SPOOL].iter().any(|ours| name == ours)
            || is_state_part(name)
            || name.to_str().is_some_and(aside)
    };
    for path in names(data_dir)?.into_iter().filter(is_ours).map(|name| data_dir.join(name)) {
        let closed = fs::metadata(&path).and_then(|metadata| match metadata.permissions().mode() {
            mode if mode & OTHERS == 0 => Ok(()),
            mode => fs::set_permissions(&path, Permissions::from_mode(mode & !OTHERS)),
        });
        if let Err(error) = closed {
            tracing::warn!(path = %path.display(), %error, "other users of this machine may read this");
        }
    }
    Ok(())
}

/// Sets parts of the data directory aside, in this order. Returns the directory they are in now.
fn set_aside(data_dir: &Path, parts: &[OsString]) -> io::Result<PathBuf> {
    let earlier = all_aside(data_dir)?;
    let now = humantime::format_rfc3339_millis(clock::now()).to_string().replace(':', "-");
    let aside = data_dir.join(format!("{ASIDE_PREFIX}{now}"));
    dir::create(&aside)?;
    // The log's watermark goes last: if the move is interrupted, the rest is still recognized as damaged.
    for part in parts {
        match std::fs::rename(data_dir.join(part), aside.join(part)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        dir::sync(&aside)?;
        dir::sync(data_dir)?;
    }
    // A log that was set aside is kept as long as it keeps this node from founding a cluster.
    let holds_log = |dir: &PathBuf| dir.join(LOG).exists();
    for dir in earlier.iter().filter(|dir| holds_log(&aside) || !holds_log(dir)) {
        std::fs::remove_dir_all(dir)?;
    }
    Ok(aside)
}

/// Whether a log was set aside here and is still there.
pub(super) fn has_log_aside(data_dir: &Path) -> Result<bool, Error> {
    let aside = all_aside(data_dir).map_err(|source| Error::Dir { path: data_dir.to_path_buf(), source })?;
    Ok(aside.iter().any(|dir| dir.join(LOG).exists()))
}

fn all_aside(data_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut names = names(data_dir)?;
    names.retain(|name| name.to_string_lossy().starts_with(ASIDE_PREFIX));
    Ok(names.into_iter().map(|name| data_dir.join(name)).collect())
}

fn names(dir: &Path) -> io::Result<Vec<OsString>> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name())).collect()
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
        assert!(has_log_aside(&dir.path().join("new/data")).unwrap());
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
    fn what_an_earlier_version_has_left_open_is_closed_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("new/data");
        let reopen = || open(&dir, false, false).unwrap().0.close();
        reopen();
        fs::create_dir(data_dir.join("damaged-2026")).unwrap();
        fs::write(data_dir.join("data.suspect"), "").unwrap();
        fs::write(data_dir.join("databank"), "").unwrap();
        let set = |name: &str, mode| fs::set_permissions(data_dir.join(name), Permissions::from_mode(mode)).unwrap();
        let mode = |name: &str| fs::metadata(data_dir.join(name)).unwrap().permissions().mode() & 0o7777;
        let (dirs, files) = (["log", "data", "spool", "damaged-2026"], ["log.watermark", "data.suspect"]);
        dirs.iter().for_each(|name| set(name, 0o755));
        files.iter().for_each(|name| set(name, 0o644));
        set("databank", 0o644);
        set("", 0o1777);
        close_to_others(&data_dir).unwrap();
        assert_eq!(dirs.map(mode), [0o700; 4]);
        assert_eq!(files.map(mode), [0o600; 2]);
        assert_eq!((mode("databank"), mode("")), (0o644, 0o1777), "they are not ours");

        set("log", 0o755);
        reopen();
        assert_eq!(mode("log"), 0o700, "at each start");
    }

    #[test]
    fn data_that_was_set_aside_is_kept_until_the_next_time() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!has_log_aside(dir.path()).unwrap());
        let fill = |text: &str| {
            std::fs::create_dir(dir.path().join("log")).unwrap();
            std::fs::write(dir.path().join("log/0"), text).unwrap();
            std::fs::write(dir.path().join(WATERMARK), text).unwrap();
        };
        fill("first");
        let parts = [LOG, WATERMARK].map(OsString::from);
        let first = set_aside(dir.path(), &parts).unwrap();
        assert!(has_log_aside(dir.path()).unwrap() && !dir.path().join("log").exists());
        assert_eq!(std::fs::read(first.join("log/0")).unwrap(), b"first");
        std::thread::sleep(std::time::Duration::from_millis(2));
        fill("second");
        let second = set_aside(dir.path(), &parts).unwrap();
        assert_eq!(std::fs::read(second.join(WATERMARK)).unwrap(), b"second");
        assert!(!first.exists());
    }
}
