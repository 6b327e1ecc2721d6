//! Reads the cluster's secrets: from a file that is named, or from one of the user for nodes on loopback addresses.
//!
//! Nodes that only their own machine reaches need no setting: all nodes that a user runs there share a secret, which the first of
//! them makes. It lies where only that user reads it, as a key for ssh does.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;
use tokio::task::spawn_blocking;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::replication::{Credentials, Secrets, SecretsError};

/// Interval at which the file is looked at for changes.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Most bytes that are read of the file.
const FILE_BYTES_MAX: u64 = 16 * 1024;

/// Name of the user's own file.
const FILE_NAME: &str = "cluster.secret";

/// Why there are no secrets.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// The file that was named.
    #[error("--cluster-secret-file: {}: {reason}", path.display())]
    File { path: PathBuf, reason: String },
    /// The user's own.
    #[error(
        "{}: {reason}; nodes on a loopback address prove themselves by it, unless they are started with --cluster-secret-file",
        path.display()
    )]
    OfUser { path: PathBuf, reason: String },
    #[error("there is no home directory for a cluster secret; start the nodes with --cluster-secret-file")]
    NoHome,
}

/// A file with secrets, and what was read of it.
pub(super) struct SecretFile {
    path: PathBuf,
    /// How it is opened, which checks whose it is.
    open: Open,
    seen: Stamp,
    pub secrets: Secrets,
}

type Open = fn(&Path) -> io::Result<File>;

/// A new secret, as a line of text.
pub(crate) fn generate() -> io::Result<String> {
    Secrets::generate()
}

/// What changes when a file is written or replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    inode: u64,
    length: u64,
}

impl SecretFile {
    /// Reads the file that was named.
    pub fn named(path: &Path) -> Result<Self, Error> {
        let file = open_named(path).map_err(|error| format!("it cannot be read: {error}"));
        file.and_then(|file| {
            if file.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0) {
                tracing::warn!(path = %path.display(), "everyone on this machine can read the cluster's secret");
            }
            Self::read(path, open_named, file)
        })
        .map_err(|reason| Error::File { path: path.to_owned(), reason })
    }

    /// Reads the user's own file, and makes it first if there is none.
    pub fn of_user() -> Result<Self, Error> {
        Self::in_dir(&user_dir().ok_or(Error::NoHome)?)
    }

    fn in_dir(dir: &Path) -> Result<Self, Error> {
        let path = dir.join(FILE_NAME);
        let failed = |reason| Error::OfUser { path: path.clone(), reason };
        let opened = match open_own(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => make(dir, &path).and_then(|()| open_own(&path)),
            opened => opened,
        };
        let file = opened.map_err(|error| failed(error.to_string()))?;
        Self::read(&path, open_own, file).map_err(failed)
    }

    fn read(path: &Path, open: Open, file: File) -> Result<Self, String> {
        let (seen, mut text) = (Stamp::of(&file).map_err(|error| error.to_string())?, String::new());
        let read = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
        read.map_err(|error| format!("it cannot be read: {error}"))?;
        let secrets = Secrets::parse(&text).map_err(|error: SecretsError| error.to_string())?;
        Ok(Self { path: path.to_owned(), open, seen, secrets })
    }

    /// Gives the node the secrets that are in the file whenever it changes, until `stop`.
    pub async fn watch(mut self, credentials: Credentials, stop: CancellationToken) {
        while stop.run_until_cancelled(sleep(LOOK_INTERVAL)).await.is_some() {
            let (path, open, seen) = (self.path.clone(), self.open, self.seen);
            // An error means that the runtime shuts down.
            let Ok(changed) = spawn_blocking(move || Self::changed(&path, open, seen)).await else { return };
            match changed {
                None => {}
                Some(Ok(read)) => {
                    tracing::info!(path = %self.path.display(), secrets = ?read.secrets, "cluster secrets were read again");
                    credentials.replace(read.secrets.clone());
                    self = read;
                }
                Some(Err((now, reason))) => {
                    tracing::warn!(path = %self.path.display(), reason, "the cluster secrets stay what they were");
                    self.seen = now;
                }
            }
        }
    }

    /// The file as it is now, if it is not as it was seen. An error comes with what was seen of the file this time.
    fn changed(path: &Path, open: Open, seen: Stamp) -> Option<Result<Self, (Stamp, String)>> {
        let opened = open(path).and_then(|file| Ok((Stamp::of(&file)?, file)));
        let (now, file) = match opened {
            Ok(opened) => opened,
            // Reported once: while there is no file, what is seen of it stays the same.
            Err(error) => {
                return (seen != Stamp::NOTHING).then(|| Err((Stamp::NOTHING, format!("it cannot be read: {error}"))));
            }
        };
        (now != seen).then(|| Self::read(path, open, file).map_err(|reason| (now, reason)))
    }
}

impl Stamp {
    /// There is no file.
    const NOTHING: Self = Self { modified: None, inode: 0, length: 0 };

    fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self { modified: metadata.modified().ok(), inode: metadata.ino(), length: metadata.len() })
    }
}

/// Where a user's programs keep what they have made, by the XDG Base Directory Specification.
fn user_dir() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|dir| dir.is_absolute());
    let state = state.or_else(|| std::env::home_dir().map(|home| home.join(".local/state")));
    state.filter(|dir| dir.is_absolute()).map(|dir| dir.join("brink"))
}

/// Opens a file; anything else, such as a pipe that nobody writes to, would hold up the node.
fn open_named(path: &Path) -> io::Result<File> {
    open_file(path, OFlags::NONBLOCK)
}

fn open_file(path: &Path, flags: OFlags) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a file")) }
}

/// Opens a file of this user that nobody else can read or write.
fn open_own(path: &Path) -> io::Result<File> {
    let file = open_file(path, OFlags::NOFOLLOW | OFlags::NONBLOCK)?;
    let metadata = file.metadata()?;
    match metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o077 == 0 {
        true => Ok(file),
        false => Err(io::Error::other("it must be a file of this user that nobody else can read or write (mode 600)")),
    }
}

/// Makes a file with a new secret, unless another node just has.
fn make(dir: &Path, path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // Under its name it is whole: two nodes that start at once must not read half a secret, nor two.
    let mut file = tempfile::NamedTempFile::new_in(dir)?;
    writeln!(file, "{}", generate()?)?;
    file.as_file().sync_all()?;
    match file.persist_noclobber(path) {
        Err(error) if error.error.kind() != io::ErrorKind::AlreadyExists => Err(error.error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn a_user_has_one_secret_that_nobody_else_reads() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state/brink");
        let start = || Credentials::new("a", Some(SecretFile::in_dir(&dir).unwrap().secrets), false).proves_by();
        let starts: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(starts.iter().all(|secret| *secret == starts[0]), "{starts:?}");
        let path = dir.join(FILE_NAME);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);

        let refused = || SecretFile::in_dir(&dir).err().unwrap().to_string();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(refused().contains("nobody else can read"), "{}", refused());
        fs::rename(&path, dir.join("other")).unwrap();
        std::os::unix::fs::symlink(dir.join("other"), &path).unwrap();
        assert!(refused().contains(FILE_NAME), "{}", refused());
    }

    #[test]
    fn a_file_that_is_read_again_must_still_be_of_its_user() {
        let dir = tempfile::tempdir().unwrap();
        let read = SecretFile::in_dir(dir.path()).unwrap();
        let path = dir.path().join(FILE_NAME);
        fs::remove_file(&path).unwrap();
        fs::write(&path, SECRET).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
        assert!(SecretFile::changed(&path, read.open, read.seen).unwrap().is_err());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(SecretFile::changed(&path, read.open, read.seen).unwrap().is_ok());
    }

    #[test]
    fn a_named_file_says_what_is_wrong_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        let refused = || SecretFile::named(&path).err().unwrap().to_string();
        assert!(refused().starts_with("--cluster-secret-file: /") && refused().contains("cannot be read"));
        for (text, reason) in [("", "it is empty"), ("short", "each line must have 32")] {
            fs::write(&path, text).unwrap();
            assert!(refused().contains(reason), "{}", refused());
        }
        fs::write(&path, SECRET).unwrap();
        assert!(SecretFile::named(&path).is_ok());
    }

    #[test]
    fn a_file_is_read_again_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        fs::write(&path, SECRET).unwrap();
        let seen = SecretFile::named(&path).unwrap().seen;
        assert!(SecretFile::changed(&path, open_named, seen).is_none());
        fs::write(&path, format!("{SECRET}{SECRET}")).unwrap();
        let read = SecretFile::changed(&path, open_named, seen).unwrap().ok().unwrap();
        assert!(SecretFile::changed(&path, open_named, read.seen).is_none());
        fs::write(&path, "short").unwrap();
        let (wrong, _) = SecretFile::changed(&path, open_named, read.seen).unwrap().err().unwrap();
        assert!(SecretFile::changed(&path, open_named, wrong).is_none(), "it is reported once");
        fs::remove_file(&path).unwrap();
        let (gone, _) = SecretFile::changed(&path, open_named, wrong).unwrap().err().unwrap();
        assert!(SecretFile::changed(&path, open_named, gone).is_none(), "it is reported once");
        fs::write(&path, SECRET).unwrap();
        assert!(SecretFile::changed(&path, open_named, gone).unwrap().is_ok());
    }
}
