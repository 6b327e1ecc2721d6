//! fjall, a log-structured merge tree, as the storage engine.
//!
//! A generation is a directory: `data`, then `data-1`, `data-2`, … The small file `data.current` names the current one; it is
//! replaced atomically, and absent as long as `data` is current. fjall opens files by their paths whenever it needs them,
//! so the directory of an open database is never renamed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ffi::OsString;
use std::fs::{File, TryLockError};
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fjall::{
    AbstractTree, Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, OwnedWriteBatch, PersistMode,
    Readable, Snapshot,
};
use parking_lot::Mutex;
use rustix::fs::statvfs;

use super::compaction::Compactor;
use super::damage::{damaged, explained};
use super::journals::Journals;
use super::{Bounds, Change, Durability, Generations, Keys, ReadTables, Rows, Slice, StorageEngine, Table, WriteBatch};
use crate::storage::{Error, dir};

/// Journal bytes kept before tables are flushed. A node that restarts after a crash reads them all, which takes some
/// seconds per GiB, so this bounds recovery time.
const JOURNAL_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Threads that flush and compact tables. With more than one, the first takes no compactions and hands each to itself
/// again until another thread takes it: it keeps a core busy while the others compact.
const WORKERS: usize = 1;

/// What a flush or a compaction writes at most before it removes anything, about.
const BACKGROUND_BYTES: u64 = 64 * 1024 * 1024;

/// The name of fjall's lock in the directory of a database.
const LOCK: &str = "lock";

/// Settings of a table. They take effect when the table is created, and never again.
pub struct TableOptions {
    pub name: &'static str,
    /// Memory of the table before it is flushed. Up to four more wait for their flush before writers are held up.
    pub memtable_bytes_max: u64,
    /// Values larger than this are stored apart from their keys; none, if absent.
    pub separate_bytes_min: Option<u32>,
    /// Whether the table is compacted after deletions, so that ranges need not pass over them. Otherwise it is compacted
    /// when it has grown.
    pub compacts_deletions: bool,
}

/// The generations of a database.
pub struct Directories {
    /// The directory of the first generation; the names of all others, and of the pointer, begin with its name.
    first: PathBuf,
    /// Memory for blocks of the tables, for each generation.
    cache_bytes: u64,
    tables: &'static [TableOptions],
    /// Number of the newest generation.
    newest: Mutex<u64>,
}

impl Directories {
    pub fn new(first: &Path, cache_bytes: u64, tables: &'static [TableOptions]) -> Self {
        Self { first: first.to_path_buf(), cache_bytes, tables, newest: Mutex::new(0) }
    }

    fn path(&self, generation: u64) -> PathBuf {
        if generation == 0 { self.first.clone() } else { self.beside(&format!("-{generation}")) }
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.first.file_name().map(OsString::from).unwrap_or_default();
        name.push(suffix);
        self.first.with_file_name(name)
    }

    fn pointer(&self) -> PathBuf {
        self.beside(".current")
    }

    fn parent(&self) -> &Path {
        self.first.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// The number of the current generation.
    fn current(&self) -> Result<u64, Error> {
        let path = self.pointer();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let is_lost = !self.first.is_dir() && !self.others(0)?.is_empty();
                return if is_lost { Err(damaged(&path, &"it is missing")) } else { Ok(0) };
            }
            Err(error) => return Err(error.into()),
        };
        let current = parse_pointer(&bytes).filter(|generation| self.path(*generation).is_dir());
        current.ok_or_else(|| Error::corrupt(path.display().to_string()))
    }

    /// The directories of all generations but one.
    fn others(&self, current: u64) -> Result<Vec<PathBuf>, Error> {
        let prefix = self.beside("-");
        let prefix = prefix.file_name().unwrap_or_default().to_string_lossy();
        let mut others = Vec::new();
        let entries = match std::fs::read_dir(self.parent()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(others),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let number = name.strip_prefix(&*prefix).and_then(|number| number.parse::<u64>().ok());
            let is_generation =
                number.is_some() || name == self.first.file_name().unwrap_or_default().to_string_lossy();
            if is_generation && number.unwrap_or(0) != current {
                others.push(path);
            }
        }
        Ok(others)
    }
}

/// A pointer's content: the number of a generation and a checksum, so that no flipped bit makes it name another.
fn pointer(generation: u64) -> Vec<u8> {
    let number = generation.to_string();
    format!("{number} {:08x}\n", crc32fast::hash(number.as_bytes())).into_bytes()
}

fn parse_pointer(bytes: &[u8]) -> Option<u64> {
    let number = std::str::from_utf8(bytes).ok()?.split(' ').next()?.parse().ok()?;
    (pointer(number) == bytes).then_some(number)
}

impl Generations for Directories {
    fn open(&self) -> Result<Arc<dyn StorageEngine>, Error> {
        let current = self.current()?;
        let engine = open(&self.path(current), self.cache_bytes, self.tables)?;
        // Only now: until it is open, another process may use these.
        for other in self.others(current)? {
            std::fs::remove_dir_all(other)?;
        }
        *self.newest.lock() = current;
        Ok(engine)
    }

    fn create(&self) -> Result<Arc<dyn StorageEngine>, Error> {
        let mut newest = self.newest.lock();
        *newest += 1;
        let path = self.path(*newest);
        let created = dir::create(&path).map_err(Error::from);
        created.and_then(|()| open(&path, self.cache_bytes, self.tables)).inspect_err(|_| {
            if let Err(error) = std::fs::remove_dir_all(&path) {
                tracing::warn!(dir = %path.display(), %error, "an unfinished state is left until the next start");
            }
        })
    }

    fn switch(&self) -> Result<(), Error> {
        let newest = *self.newest.lock();
        dir::sync_tree(&self.path(newest))?;
        let unfinished = self.beside(".current-new");
        let mut file = File::create(&unfinished)?;
        file.write_all(&pointer(newest))?;
        file.sync_all()?;
        std::fs::rename(&unfinished, self.pointer())?;
        Ok(dir::sync(self.parent())?)
    }
}

/// Opens the database in a directory. Creates the database and its tables if they are missing.
pub fn open(dir: &Path, cache_bytes: u64, tables: &[TableOptions]) -> Result<Arc<dyn StorageEngine>, Error> {
    check_unlocked(dir)?;
    let journals = Journals::read(dir)?;
    let db = open_database(dir, cache_bytes)?;
    let keyspace = |table: &TableOptions| {
        let separation = |bytes| KvSeparationOptions::default().separation_threshold(bytes);
        let options = KeyspaceCreateOptions::default().max_memtable_size(table.memtable_bytes_max);
        db.keyspace(table.name, || options.with_kv_separation(table.separate_bytes_min.map(separation)))
    };
    let keyspaces: Arc<[Keyspace]> =
        tables.iter().map(keyspace).collect::<Result<_, _>>().map_err(|error| explained(error, dir))?;
    if !journals.explain(keyspaces.iter().map(|keyspace| keyspace.tree.get_highest_persisted_seqno())) {
        return Err(damaged(dir, &"its journal has lost batches that its tables hold"));
    }
    // fjall syncs the files in its directories, but not the names of the directories.
    dir::sync_tree(dir)?;
    let numbered = (0..).map(Table).zip(tables).zip(keyspaces.iter());
    let watched = numbered.filter(|((_, options), _)| options.compacts_deletions);
    let watched = watched.map(|((table, _), keyspace)| (table, keyspace.clone()));
    let compactor = Some(Compactor::start(&db, dir.to_path_buf(), watched)?);
    let opened = Opened { compactor, db, keyspaces, dir: dir.to_path_buf(), is_retired: AtomicBool::new(false) };
    Ok(Arc::new(FjallEngine { opened: Arc::new(opened) }))
}

/// Fails if another process uses the database: its journals must not be judged while they are written.
fn check_unlocked(dir: &Path) -> Result<(), Error> {
    let lock = match File::open(dir.join(LOCK)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        lock => lock?,
    };
    match lock.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(Error::Locked(dir.to_path_buf())),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Opens a database, and tells apart the failures that an operator can mend.
fn open_database(dir: &Path, cache_bytes: u64) -> Result<Database, Error> {
    let builder =
        Database::builder(dir).max_journaling_size(JOURNAL_BYTES_MAX).worker_threads(WORKERS).cache_size(cache_bytes);
    // fjall panics on some kinds of damage.
    match catch_unwind(AssertUnwindSafe(|| builder.open())) {
        Ok(Err(fjall::Error::Locked)) => Err(Error::Locked(dir.to_path_buf())),
        Ok(opened) => opened.map_err(|error| explained(error, dir)),
        Err(_) => Err(damaged(dir, &"the storage engine panicked while reading it")),
    }
}

/// An open database.
struct FjallEngine {
    opened: Arc<Opened>,
}

/// A database at one moment.
///
/// IMPORTANT: every read goes through a snapshot. fjall's reads without one see the rows of a batch as they go into the
/// tables, one after the other.
struct View {
    /// Dropped before the database that it belongs to.
    snapshot: Snapshot,
    opened: Arc<Opened>,
}

/// An open database, as long as anything reads it.
struct Opened {
    /// None once it is being closed. Dropped before the database that it belongs to.
    compactor: Option<Compactor>,
    db: Database,
    /// One for each [`Table`], in the order of their numbers.
    keyspaces: Arc<[Keyspace]>,
    dir: PathBuf,
    is_retired: AtomicBool,
}

impl Opened {
    fn keyspace(&self, table: Table) -> Result<&Keyspace, Error> {
        self.keyspaces.get(table.0).ok_or_else(|| fjall::Error::KeyspaceDeleted.into())
    }

    fn read<T>(&self, found: fjall::Result<T>) -> Result<T, Error> {
        found.map_err(|error| explained(error, &self.dir))
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        if !self.is_retired.load(Ordering::Acquire) {
            return;
        }
        let (compactor, db) = (self.compactor.take(), self.db.clone());
        let (keyspaces, dir) = (self.keyspaces.clone(), self.dir.clone());
        let remove = move || {
            // Stopping the compactor and closing the database wait for their threads, so both are done here: the last reader
            // may be an async thread, which drops its own handles at this moment.
            drop(compactor);
            while Arc::strong_count(&keyspaces) > 1 {
                std::thread::sleep(Duration::from_millis(1));
            }
            drop((keyspaces, db));
            if let Err(error) = std::fs::remove_dir_all(&dir) {
                tracing::warn!(dir = %dir.display(), %error, "a replaced state is left until the next start");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("brink-retire".to_owned()).spawn(remove) {
            tracing::warn!(dir = %self.dir.display(), %error, "a replaced state is left until the next start");
        }
    }
}

impl FjallEngine {
    fn newest(&self) -> View {
        View { snapshot: self.opened.db.snapshot(), opened: self.opened.clone() }
    }

    /// The error of a write. fjall does not say why its background threads have failed: if there is no room for what they write,
    /// that is taken for the reason.
    fn explained(&self, error: fjall::Error) -> Error {
        let is_background = matches!(error, fjall::Error::Poisoned);
        let free_bytes = || statvfs(&self.opened.dir).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        match is_background && free_bytes().is_ok_and(|free_bytes| free_bytes < BACKGROUND_BYTES) {
            true => io::Error::from(io::ErrorKind::StorageFull).into(),
            false => error.into(),
        }
    }
}

impl ReadTables for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, Error> {
        self.opened.read(self.snapshot.get(self.opened.keyspace(table)?, key))
    }

    fn range(&self, table: Table, bounds: Bounds) -> Result<Rows, Error> {
        let (rows, opened) = (self.snapshot.range(self.opened.keyspace(table)?, bounds), self.opened.clone());
        Ok(Box::new(rows.map(move |row| opened.read(row.into_inner()))))
    }

    fn keys(&self, table: Table, bounds: Bounds) -> Result<Keys, Error> {
        let (rows, opened) = (self.snapshot.range(self.opened.keyspace(table)?, bounds), self.opened.clone());
        Ok(Box::new(rows.map(move |row| opened.read(row.key()))))
    }
}

impl ReadTables for FjallEngine {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, Error> {
        self.newest().get(table, key)
    }

    fn range(&self, table: Table, bounds: Bounds) -> Result<Rows, Error> {
        self.newest().range(table, bounds)
    }

    fn keys(&self, table: Table, bounds: Bounds) -> Result<Keys, Error> {
        self.newest().keys(table, bounds)
    }
}

impl StorageEngine for FjallEngine {
    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), Error> {
        let mode = match durability {
            Durability::None => None,
            Durability::All => Some(PersistMode::SyncAll),
        };
        let db = self.opened.db.clone();
        let mut changes = OwnedWriteBatch::with_capacity(db, batch.changes.len()).durability(mode);
        for change in batch.changes {
            let keyspace = self.opened.keyspace(change.table)?;
            match change.value {
                Some(value) => changes.insert(keyspace, change.key, value),
                None => {
                    changes.remove(keyspace, change.key);
                    if let Some(compactor) = &self.opened.compactor {
                        compactor.note_deleted(change.table);
                    }
                }
            }
        }
        changes.commit().map_err(|error| self.explained(error))
    }

    /// Writes the rows directly into the files of tables, past the journal and the tables in memory.
    fn fill(&self, batches: &mut dyn Iterator<Item = Result<WriteBatch, Error>>) -> Result<(), Error> {
        // The ingestion of each table, and its last key. fjall panics unless keys ascend.
        let mut filled = BTreeMap::new();
        for batch in batches {
            for Change { table, key, value } in batch?.changes {
                let (ingestion, last) = match filled.entry(table) {
                    Entry::Occupied(entry) => entry.into_mut(),
                    Entry::Vacant(entry) => {
                        let ingestion = self.opened.keyspace(table)?.start_ingestion();
                        entry.insert((ingestion.map_err(|error| self.explained(error))?, None))
                    }
                };
                let Some(value) = value.filter(|_| last.as_ref() < Some(&key)) else {
                    return Err(Error::corrupt("the order of rows"));
                };
                ingestion.write(key.clone(), value).map_err(|error| self.explained(error))?;
                *last = Some(key);
            }
        }
        filled.into_values().try_for_each(|(ingestion, _)| ingestion.finish()).map_err(|error| self.explained(error))
    }

    fn sync(&self) -> Result<(), Error> {
        self.opened.db.persist(PersistMode::SyncAll).map_err(|error| self.explained(error))
    }

    /// A writer that fjall holds up waits for its background threads for ever if these have failed.
    fn check(&self) -> Result<(), Error> {
        self.opened.compactor.as_ref().map_or(Ok(()), Compactor::check)?;
        self.opened.db.persist(PersistMode::Buffer).map_err(|error| self.explained(error))
    }

    fn view(&self) -> Box<dyn ReadTables> {
        Box::new(self.newest())
    }

    fn retire(&self) {
        self.opened.is_retired.store(true, Ordering::Release);
    }
}
