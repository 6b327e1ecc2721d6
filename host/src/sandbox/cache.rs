//! Compiled code on disk, so that a node that starts again does not compile again.
//!
//! - An entry is loaded only by an engine with the version and settings of the one that wrote it: its name contains a
//!   digest of both, next to the digest of its source.
//! - An entry is loaded only if it is complete: its header has a checksum (SHA-256), because wasmtime runs what it is given.
//! - Entries come from this node and its compilers alone. A folder that other users may write to is refused. Compiled code
//!   never travels between nodes and is never accepted from clients.
//! - Whatever is wrong with an entry, the node compiles again, and its log says why.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read as _, Seek as _, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;
use wasmtime::Engine;
use wasmtime::component::Component;

/// The first bytes of an entry: its kind, and the version of the format.
const MAGIC: &[u8; 8] = b"brinkc\0\x01";

/// Length of the magic and the checksum, which precede the code.
const HEADER_BYTES: usize = MAGIC.len() + 32;

const EXTENSION: &str = "compiled";

/// The first part of the name of an entry that is being written.
const UNFINISHED: &str = "compiling-";

pub(super) struct Cache {
    dir: PathBuf,
    /// Digest of the engine's version and settings.
    engine_digest: u64,
}

impl Cache {
    /// Opens the folder, and creates it if it is missing.
    pub(super) fn open(dir: &Path, engine: &Engine) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        let metadata = fs::metadata(dir)?;
        if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.permissions().mode() & 0o022 != 0 {
            let advice = format!("others may write to {}; it must be its owner's alone (mode 0700)", dir.display());
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, advice));
        }
        // What a process that was killed has left.
        let entries = fs::read_dir(dir)?.flatten();
        for left in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED)) {
            fs::remove_file(left.path())?;
        }
        let mut hash = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hash);
        Ok(Self { dir: dir.to_owned(), engine_digest: hash.finish() })
    }

    /// The component stored under a key, if there is one that this engine can load.
    pub(super) fn load(&self, engine: &Engine, key: &str) -> Option<Component> {
        let code = self.get(key)?;
        #[allow(unsafe_code, reason = "this node or its compiler wrote the code")]
        // SAFETY: this node or one of its compilers serialized the code, and `get` has checked that it is complete. Only this
        // user can write to the folder.
        unsafe {
            deserialize(engine, &code)
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// A file for an entry that a compiler [writes](write). It is removed if it is not [adopted](Self::adopt).
    pub(super) fn new_entry(&self) -> io::Result<NamedTempFile> {
        // Only its owner may write to it, as is the default.
        let permissions = Permissions::from_mode(0o600);
        tempfile::Builder::new().prefix(UNFINISHED).permissions(permissions).tempfile_in(&self.dir)
    }

    /// Puts a new entry under a key.
    pub(super) fn adopt(&self, key: &str, entry: NamedTempFile) -> io::Result<()> {
        // A power loss may leave less of it, which the checksum reveals.
        entry.persist(self.path(key)).map(|_: File| ()).map_err(|error| error.error)
    }

    /// Stores a component. A component that cannot be stored is compiled again another time.
    pub(super) fn store(&self, key: &str, component: &Component) {
        let stored = component.serialize().and_then(|code| Ok(self.put(key, &code)?));
        if let Err(error) = stored {
            tracing::warn!(dir = %self.dir.display(), error = format!("{error:#}"), "compiled code cannot be stored");
        }
    }

    /// Removes all entries except those of these keys, also those of other engines.
    pub(super) fn retain(&self, keys: &HashSet<String>) {
        let kept: HashSet<PathBuf> = keys.iter().map(|key| self.path(key)).collect();
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in entries.filter(|path| path.extension() == Some(OsStr::new(EXTENSION)) && !kept.contains(path)) {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "unneeded compiled code cannot be removed");
            }
        }
    }

    /// The bytes of an entry, if there is one and it is complete.
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        let path = self.path(key);
        let entry = match fs::read(&path) {
            Ok(entry) => entry,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "compiled code cannot be read; it is compiled again");
                return None;
            }
        };
        let code = code(entry);
        if code.is_none() {
            tracing::warn!(path = %path.display(), "compiled code is damaged; it is compiled again");
        }
        code
    }

    fn put(&self, key: &str, code: &[u8]) -> io::Result<()> {
        let mut entry = self.new_entry()?;
        write(&mut entry, code)?;
        self.adopt(key, entry)
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}-{:016x}.{EXTENSION}", self.engine_digest))
    }
}

/// A file without a name for an entry that a compiler [writes](write), in the folder for temporary files.
pub(super) fn unnamed_entry() -> io::Result<File> {
    tempfile::tempfile()
}

/// The component in an [unnamed entry](unnamed_entry), if its compiler has written one that this engine can load.
pub(super) fn load_unnamed(engine: &Engine, entry: &mut File) -> Option<Component> {
    let mut bytes = Vec::new();
    let read = entry.rewind().and_then(|()| entry.read_to_end(&mut bytes));
    read.map_err(|error| tracing::warn!(%error, "compiled code cannot be read")).ok()?;
    let code = code(bytes)?;
    #[allow(unsafe_code, reason = "the compiler of this process wrote the code")]
    // SAFETY: a compiler of this process serialized the code, and `code` has checked that it is complete. The file has no name,
    // so nobody else can write to it.
    unsafe {
        deserialize(engine, &code)
    }
}

/// # Safety
///
/// An engine serialized the code, and nobody has changed it since.
#[allow(unsafe_code, reason = "wasmtime runs what it is given")]
unsafe fn deserialize(engine: &Engine, code: &[u8]) -> Option<Component> {
    // SAFETY: as the caller guarantees.
    let component = unsafe { Component::deserialize(engine, code) };
    component.map_err(|error| tracing::warn!(error = format!("{error:#}"), "compiled code cannot be used")).ok()
}

/// The code of an entry, if the entry is complete.
fn code(mut entry: Vec<u8>) -> Option<Vec<u8>> {
    let is_whole = entry.split_at_checked(HEADER_BYTES).is_some_and(|(header, code)| header == self::header(code));
    is_whole.then(|| {
        entry.drain(..HEADER_BYTES);
        entry
    })
}

/// Writes an entry with this code.
pub(super) fn write(entry: &mut impl Write, code: &[u8]) -> io::Result<()> {
    entry.write_all(&header(code))?;
    entry.write_all(code)?;
    entry.flush()
}

fn header(code: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &Sha256::digest(code)[..]].concat()
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
        cache.put("a", b"code of a").unwrap();
        cache.put("b", b"code of b").unwrap();
        assert_eq!(cache.get("a").as_deref(), Some(&b"code of a"[..]));

        for damage in 0..HEADER_BYTES + 9 {
            let mut entry = fs::read(cache.path("a")).unwrap();
            entry[damage] ^= 1;
            fs::write(cache.path("b"), entry).unwrap();
            assert_eq!(cache.get("b"), None, "byte {damage}");
        }
        fs::write(cache.path("b"), b"").unwrap();
        assert_eq!(cache.get("b"), None);

        // What a process that was killed has left goes at the next start.
        cache.new_entry().unwrap().keep().unwrap();
        Cache::open(&dir, &Engine::default()).unwrap();
        cache.retain(&HashSet::from(["a".to_owned()]));
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        assert!(cache.get("a").is_some());
    }

    #[test]
    fn an_entry_without_a_name_is_loaded_if_it_is_complete() {
        let engine = Engine::default();
        let component = Component::new(&engine, wat::parse_str("(component)").unwrap()).unwrap();
        let mut entry = unnamed_entry().unwrap();
        assert!(load_unnamed(&engine, &mut entry).is_none(), "it is empty");
        write(&mut entry, &component.serialize().unwrap()).unwrap();
        assert!(load_unnamed(&engine, &mut entry).is_some());
        entry.set_len(HEADER_BYTES as u64 + 100).unwrap();
        assert!(load_unnamed(&engine, &mut entry).is_none(), "it is cut");
    }

    #[test]
    fn code_of_an_engine_with_other_settings_is_not_found() {
        let dir = tempfile::tempdir().unwrap();
        let other = Engine::new(wasmtime::Config::new().epoch_interruption(true)).unwrap();
        Cache::open(dir.path(), &Engine::default()).unwrap().put("a", b"code").unwrap();
        assert_eq!(Cache::open(dir.path(), &other).unwrap().get("a"), None);
    }

    #[test]
    fn a_folder_that_others_may_write_to_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(Cache::open(dir.path(), &Engine::default()).is_err());
    }
}
