//! Compiled code on disk, so that a node that starts again does not compile again.
//!
//! # Guarantees
//!
//! - An entry is used by the engine that wrote it and by none that compiles otherwise: its name has a digest of the
//!   engine's version and settings, beside what it was compiled from.
//! - It is used only if it is whole: it has a checksum (SHA-256), since the engine runs what it is given.
//! - It comes from this node alone. The folder is for its owner only; what others can write there is not used. Compiled
//!   code never travels between nodes and is never taken from clients.
//! - It is a cache: whatever is wrong with it, the node compiles instead, and says so in its log.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use wasmtime::Engine;

/// How an entry begins: what it is, and the version of this format.
const MAGIC: &[u8; 8] = b"brinkc\0\x01";

/// What comes before the code: the magic and the checksum.
const HEADER_BYTES: usize = MAGIC.len() + 32;

/// How entries' names end.
const EXTENSION: &str = "compiled";

/// A folder of compiled code.
pub(super) struct Cache {
    dir: PathBuf,
    /// Of the engine's version and settings.
    engine: u64,
}

impl Cache {
    /// Opens the folder, and makes it if it is not there.
    pub(super) fn open(dir: &Path, engine: &Engine) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let metadata = fs::metadata(dir)?;
        if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.permissions().mode() & 0o022 != 0 {
            let advice = format!("others may write to {}; it must be its owner's alone (mode 0700)", dir.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, advice));
        }
        let mut hash = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hash);
        Ok(Self { dir: dir.to_owned(), engine: hash.finish() })
    }

    /// The code of an entry, if there is one and it is whole.
    pub(super) fn get(&self, key: &str) -> Option<Vec<u8>> {
        let path = self.path(key);
        let mut entry = match fs::read(&path) {
            Ok(entry) => entry,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "compiled code cannot be read; it is compiled again");
                return None;
            }
        };
        let is_whole = entry.split_at_checked(HEADER_BYTES).is_some_and(|(header, code)| header == self::header(code));
        if !is_whole {
            tracing::warn!(path = %path.display(), "compiled code is damaged; it is compiled again");
            return None;
        }
        entry.drain(..HEADER_BYTES);
        Some(entry)
    }

    /// Keeps code. What is not kept is compiled again another time.
    pub(super) fn put(&self, key: &str, code: &[u8]) {
        if let Err(error) = self.write(key, code) {
            tracing::warn!(dir = %self.dir.display(), %error, "compiled code cannot be kept");
        }
    }

    /// Removes all entries but those of these keys, those of other engines included.
    pub(super) fn keep(&self, keys: &HashSet<String>) {
        let kept: HashSet<PathBuf> = keys.iter().map(|key| self.path(key)).collect();
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in entries.filter(|path| path.extension() == Some(OsStr::new(EXTENSION)) && !kept.contains(path)) {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "compiled code that is not needed cannot be removed");
            }
        }
    }

    fn write(&self, key: &str, code: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.dir)?;
        file.write_all(&header(code))?;
        file.write_all(code)?;
        // A loss of power may leave less than this of it; the checksum tells.
        file.persist(self.path(key)).map(|_: File| ()).map_err(|error| error.error)
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}-{:016x}.{EXTENSION}", self.engine))
    }
}

fn header(code: &[u8]) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend(Sha256::digest(code));
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_found_until_it_is_damaged_or_not_kept() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("compiled");
        let cache = Cache::open(&dir, &Engine::default()).unwrap();
        assert_eq!(cache.get("a"), None);
        cache.put("a", b"code of a");
        cache.put("b", b"code of b");
        assert_eq!(cache.get("a").as_deref(), Some(&b"code of a"[..]));

        for damage in 0..HEADER_BYTES + 9 {
            let mut entry = fs::read(cache.path("a")).unwrap();
            entry[damage] ^= 1;
            fs::write(cache.path("b"), entry).unwrap();
            assert_eq!(cache.get("b"), None, "byte {damage}");
        }
        fs::write(cache.path("b"), b"").unwrap();
        assert_eq!(cache.get("b"), None);

        cache.keep(&HashSet::from(["a".to_owned()]));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        assert!(cache.get("a").is_some());
    }

    #[test]
    fn code_of_an_engine_with_other_settings_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let other = Engine::new(wasmtime::Config::new().epoch_interruption(true)).unwrap();
        Cache::open(dir.path(), &Engine::default()).unwrap().put("a", b"code");
        assert_eq!(Cache::open(dir.path(), &other).unwrap().get("a"), None);
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Cache::open(dir.path(), &Engine::default()).is_err());
    }
}
