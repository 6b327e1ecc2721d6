//! The store's state on disk: what clients wrote, the registry, and how far the log is applied.
//!
//! Applying is one batch: entries, revision, hook epoch and the caller's own values together, so that a crash leaves
//! all of it or none (P3). It is not synced: the log holds what a crash takes, and applying it again gives the same
//! state. [`Data::sync`] makes everything applied so far durable, before a snapshot lets the log be cut.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;

use super::apply::Overlay;
use super::cache::{EntryCache, RecentMetas};
use super::command::{Entry, GuardedWrite, Idempotency, Outcome, RangeDigest, Space};
#[cfg(test)]
use super::engine::memory::SimDisk;
use super::engine::{Database, DatabaseOptions, Durability, Slice, Table, TableOptions};
use super::idempotency::Memory;
use super::poison::Poison;
use super::scan::{self, Page, RangeQuery};
use super::snapshot::{self, SnapshotReader};
use super::{Error, format, record};

/// Journal bytes kept before the engine flushes its tables. A node that comes back after a crash reads them all, which
/// takes some seconds a GiB, so that this bounds recovery time.
const JOURNAL_BYTES_MAX: u64 = 128 * 1024 * 1024;

/// Memory for what was written to clients' entries lately, before it is written out. The engine holds up to four more of
/// these that wait for that, before it holds up writers.
const KV_MEMTABLE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// As above, for each of the other tables. A table in memory holds every version of its keys, and positions change with
/// every apply; written out, one version of each is left.
const OTHER_MEMTABLE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Values larger than this are kept apart from their keys, so that compaction does not copy them.
const SEPARATE_BYTES_MIN: u32 = 4 * 1024;

/// Threads that write the tables out and merge them. With more than one, the first takes no merges and hands each to itself
/// again until another takes it: it keeps a core busy for as long as the others merge.
const DATA_WORKERS: usize = 1;

/// The share of the cache that holds entries as they are; the rest holds blocks of the tables.
const ENTRY_CACHE_SHARE: u64 = 4;

const REVISION: &str = "revision";
const HOOK_EPOCH: &str = "hook-epoch";
const INSTALLING: &str = "installing";

/// The state of a node. Cheap to clone; all clones are the same state.
#[derive(Clone)]
pub struct Data {
    inner: Arc<Inner>,
}

pub(super) struct Inner {
    pub(super) db: Database,
    poison: Poison,
    pub(super) kv: Table,
    pub(super) system: Table,
    pub(super) meta: Table,
    pub(super) idempotency: Table,
    /// What clients read lately.
    cache: EntryCache,
    revision: AtomicU64,
    hook_epoch: AtomicU64,
    /// One at a time applies. Holds what it wrote lately, so that it need not look for it in the tables.
    applying: Mutex<RecentMetas>,
    /// Held for writing while a snapshot replaces everything; readers wait then, and never see half of it.
    replacing: RwLock<()>,
}

impl Data {
    /// Opens the state in `dir`, creating it if there is none. If a snapshot was being installed when the node
    /// stopped, what there is of it is discarded and the state is empty.
    ///
    /// # Errors
    ///
    /// If the directory cannot be used, is locked, or has another format.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, Error> {
        let entry_cache_bytes = cache_bytes / ENTRY_CACHE_SHARE;
        let options = DatabaseOptions {
            cache_bytes: Some(cache_bytes - entry_cache_bytes),
            journal_bytes_max: JOURNAL_BYTES_MAX,
            workers: DATA_WORKERS,
        };
        Self::load(Database::open(dir, options)?, dir, entry_cache_bytes)
    }

    /// Opens the state on a modelled disk.
    #[cfg(test)]
    pub(crate) fn open_on(disk: &SimDisk, cache_bytes: u64) -> Result<Self, Error> {
        Self::load(Database::Memory(disk.open(false)?), Path::new("disk"), cache_bytes)
    }

    fn load(db: Database, dir: &Path, entry_cache_bytes: u64) -> Result<Self, Error> {
        let separate_bytes_min = Some(SEPARATE_BYTES_MIN);
        let other = TableOptions { memtable_bytes_max: Some(OTHER_MEMTABLE_BYTES_MAX), separate_bytes_min: None };
        let kv =
            db.table("kv", TableOptions { memtable_bytes_max: Some(KV_MEMTABLE_BYTES_MAX), separate_bytes_min })?;
        let system = db.table("system", TableOptions { separate_bytes_min, ..other })?;
        let meta = db.table("meta", other)?;
        let idempotency = db.table("idempotency", other)?;
        format::check(&db, &meta, dir)?;
        db.settle(dir)?;
        let inner = Inner {
            db,
            poison: Poison::new(dir),
            kv,
            system,
            meta,
            idempotency,
            cache: EntryCache::new(entry_cache_bytes),
            revision: AtomicU64::new(0),
            hook_epoch: AtomicU64::new(0),
            applying: Mutex::new(RecentMetas::default()),
            replacing: RwLock::new(()),
        };
        if inner.meta.contains_key(INSTALLING)? {
            tracing::warn!("a snapshot was not installed to its end; this node starts from an empty state");
            inner.clear()?;
        }
        inner.load_counters()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Applies writes in order, in one batch, with values of the caller's own; one outcome per write. The same input
    /// gives the same outcome on every node.
    ///
    /// # Errors
    ///
    /// If the state cannot be read or written; nothing is applied then, nor later.
    pub fn apply(&self, writes: &[GuardedWrite], meta: &[(&'static str, Bytes)]) -> Result<Vec<Outcome>, Error> {
        self.inner.poison.attempt(|| self.apply_all(writes, meta))
    }

    fn apply_all(&self, writes: &[GuardedWrite], meta: &[(&'static str, Bytes)]) -> Result<Vec<Outcome>, Error> {
        let inner = &self.inner;
        let mut recent = inner.applying.lock().unwrap_or_else(PoisonError::into_inner);
        let mut overlay = Overlay::new(inner, &recent, self.revision(), self.hook_epoch());
        let outcomes = writes.iter().map(|write| overlay.apply(write)).collect::<Result<Vec<_>, _>>()?;

        let mut batch = inner.db.batch();
        let changed = overlay.metas(Space::Kv);
        let (revision, hook_epoch) = overlay.stage(&mut batch)?;
        if !writes.is_empty() {
            batch.insert(&inner.meta, REVISION, revision.to_be_bytes());
            batch.insert(&inner.meta, HOOK_EPOCH, hook_epoch.to_be_bytes());
        }
        for (key, value) in meta {
            batch.insert(&inner.meta, *key, &value[..]);
        }
        inner.cache.change(Some(&changed), || batch.commit(Durability::None))?;
        recent.note(changed);
        inner.revision.store(revision, Ordering::Release);
        inner.hook_epoch.store(hook_epoch, Ordering::Release);
        Ok(outcomes)
    }

    /// A value that was given to [`Data::apply`].
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn meta(&self, key: &str) -> Result<Option<Bytes>, Error> {
        let _whole = self.whole();
        Ok(self.inner.meta.get(key)?.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// The entry of a key.
    ///
    /// # Errors
    ///
    /// If it cannot be read or is damaged.
    pub fn get(&self, space: Space, key: &str) -> Result<Option<Entry>, Error> {
        let _whole = self.whole();
        let found = self.inner.keyspace(space).get(key)?;
        found.map(|found| record::decode(key.to_owned(), &found, true)).transpose()
    }

    /// The entry of a client's key, kept for [`Data::cached`].
    ///
    /// # Errors
    ///
    /// As for [`Data::get`].
    pub fn get_and_keep(&self, key: &str) -> Result<Option<Arc<Entry>>, Error> {
        let changes = self.inner.cache.changes();
        let found = self.get(Space::Kv, key)?.map(Arc::new);
        if let Some(entry) = &found {
            self.inner.cache.keep(entry, changes);
        }
        Ok(found)
    }

    /// The entry of a client's key, if it was read lately and has not changed since. Never waits for the disk.
    pub fn cached(&self, key: &str) -> Option<Arc<Entry>> {
        self.inner.cache.get(key)
    }

    /// The outcome of an earlier write of the same name, if this node has applied one and still remembers it.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn recall(&self, idempotency: &Idempotency, now_ms: u64) -> Result<Option<Outcome>, Error> {
        let _whole = self.whole();
        Memory::new(&self.inner.idempotency).recall(idempotency, now_ms)
    }

    /// A page of a range, as of one moment.
    ///
    /// # Errors
    ///
    /// If it cannot be read or is damaged.
    pub fn scan(&self, query: &RangeQuery) -> Result<Page, Error> {
        let _whole = self.whole();
        let view = self.inner.db.view();
        // The counter in memory follows a commit a little later, so it may be behind the entries of the view.
        let revision = counter(REVISION, view.get(&self.inner.meta, REVISION)?)?;
        scan::page(&view, self.inner.keyspace(query.space), query, revision)
    }

    /// The keys with a prefix, whatever their values: large ones are not read.
    ///
    /// # Errors
    ///
    /// If they cannot be read or are damaged.
    pub fn keys(&self, space: Space, prefix: &str) -> Result<Vec<String>, Error> {
        let _whole = self.whole();
        scan::keys(self.inner.keyspace(space), prefix)
    }

    /// The first `limit` keys from `start` to `end` (inclusive; empty: no upper bound), with their digest.
    ///
    /// # Errors
    ///
    /// If they cannot be read or are damaged.
    pub fn digest_range(
        &self,
        space: Space,
        start: &str,
        end: &str,
        limit: u32,
    ) -> Result<(Vec<String>, RangeDigest), Error> {
        let _whole = self.whole();
        let found = scan::revisions(self.inner.keyspace(space), start, end, usize::try_from(limit).unwrap_or(0))?;
        let digest = RangeDigest::of(found.iter().map(|(key, revision)| (key.as_str(), *revision)));
        Ok((found.into_iter().map(|(key, _)| key).collect(), digest))
    }

    /// The store's revision: one more for each write that changed something.
    pub fn revision(&self) -> u64 {
        self.inner.revision.load(Ordering::Acquire)
    }

    /// The revision of the last change of a hook.
    pub fn hook_epoch(&self) -> u64 {
        self.inner.hook_epoch.load(Ordering::Acquire)
    }

    /// Makes everything applied so far durable.
    ///
    /// # Errors
    ///
    /// If the disk refuses. What was applied is still in the log then.
    pub fn sync(&self) -> Result<(), Error> {
        self.inner.poison.attempt(|| self.inner.db.sync())
    }

    /// Whether the state's disk has failed.
    pub fn poison(&self) -> &Poison {
        &self.inner.poison
    }

    /// The state as of now, to be read while the state goes on changing.
    pub fn snapshot(&self) -> SnapshotReader {
        let _one_at_a_time = self.inner.applying.lock().unwrap_or_else(PoisonError::into_inner);
        SnapshotReader::new(&self.inner)
    }

    /// Replaces everything by a snapshot, with values of the caller's own, and syncs. Readers wait meanwhile. The snapshot should have been
    /// [verified](snapshot::verify) before: from the first chunk on the old state is gone.
    ///
    /// # Errors
    ///
    /// If a chunk is damaged, the end is missing, or the disk refuses. The state is empty then, also after a restart.
    pub fn install(
        &self,
        chunks: impl Iterator<Item = Result<Bytes, Error>>,
        meta: &[(&'static str, Bytes)],
    ) -> Result<(), Error> {
        let inner = &self.inner;
        let mut recent = inner.applying.lock().unwrap_or_else(PoisonError::into_inner);
        *recent = RecentMetas::default();
        let _nobody_reads = inner.replacing.write().unwrap_or_else(PoisonError::into_inner);
        inner.poison.attempt(|| inner.cache.change(None::<&[(String, ())]>, || inner.replace(chunks, meta)))
    }

    /// A digest of the state, the same on nodes that have applied the same.
    #[cfg(test)]
    pub(crate) fn digest(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut digest = DefaultHasher::new();
        let inner = &self.inner;
        for table in [&inner.kv, &inner.system, &inner.idempotency] {
            for row in table.iter() {
                let (key, value) = row.unwrap();
                (&key[..], &value[..]).hash(&mut digest);
            }
        }
        (self.revision(), self.hook_epoch()).hash(&mut digest);
        digest.finish()
    }

    fn whole(&self) -> RwLockReadGuard<'_, ()> {
        self.inner.replacing.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    pub(super) fn keyspace(&self, space: Space) -> &Table {
        match space {
            Space::Kv => &self.kv,
            Space::System => &self.system,
        }
    }

    fn keyspace_of(&self, part: snapshot::Part) -> &Table {
        match part {
            snapshot::Part::Kv => &self.kv,
            snapshot::Part::System => &self.system,
            snapshot::Part::Meta => &self.meta,
            snapshot::Part::Idempotency => &self.idempotency,
        }
    }

    fn replace(
        &self,
        chunks: impl Iterator<Item = Result<Bytes, Error>>,
        meta: &[(&'static str, Bytes)],
    ) -> Result<(), Error> {
        self.clear()?;
        self.set_installing()?;
        snapshot::read(chunks, |space, entries| {
            let keyspace = self.keyspace_of(space);
            let mut batch = self.db.batch();
            for (key, value) in entries {
                batch.insert(keyspace, key, value);
            }
            batch.commit(Durability::None)
        })?;
        let mut batch = self.db.batch();
        batch.remove(&self.meta, INSTALLING);
        for (key, value) in meta {
            batch.insert(&self.meta, *key, &value[..]);
        }
        batch.commit(Durability::All)?;
        self.load_counters()
    }

    fn load_counters(&self) -> Result<(), Error> {
        self.revision.store(counter(REVISION, self.meta.get(REVISION)?)?, Ordering::Release);
        self.hook_epoch.store(counter(HOOK_EPOCH, self.meta.get(HOOK_EPOCH)?)?, Ordering::Release);
        Ok(())
    }

    fn set_installing(&self) -> Result<(), Error> {
        let mut batch = self.db.batch();
        batch.insert(&self.meta, INSTALLING, []);
        batch.commit(Durability::All)
    }

    /// Empties the state, all but its format.
    fn clear(&self) -> Result<(), Error> {
        self.set_installing()?;
        self.kv.clear()?;
        self.system.clear()?;
        self.idempotency.clear()?;
        let mut batch = self.db.batch();
        for item in self.meta.iter() {
            let (key, _) = item?;
            if !format::is_marker(&key) {
                batch.remove(&self.meta, key);
            }
        }
        batch.commit(Durability::All)
    }
}

/// A counter as it is stored; 0 before it was.
fn counter(key: &'static str, stored: Option<Slice>) -> Result<u64, Error> {
    let value = stored.map(|value| value.as_ref().try_into().map(u64::from_be_bytes)).transpose();
    Ok(value.map_err(|_| record::corrupt(key))?.unwrap_or(0))
}
