//! The state on disk: clients' entries, the registry, remembered outcomes, and the position of the last applied entry.
//!
//! # Approach
//!
//! [`Data::apply`] is the only way to change the state, except for a snapshot that replaces all of it. It applies many
//! log entries as one batch: entries, revision, hook epoch, remembered outcomes and the caller's own values together,
//! so that a crash leaves all of them or none (P3). The batch is not synced: the log still holds whatever a crash
//! takes, and applying it again gives the same state. [`Data::sync`] makes everything applied so far durable, before a
//! snapshot lets the log be cut.
//!
//! # Guarantees
//!
//! - Apply is deterministic: it depends on the state and the writes alone.
//! - A read shows one moment: all writes of a batch or none. A batch becomes visible to all readers at one moment, before
//!   its apply returns.
//! - Reads never go back in time: a read that begins after another has ended shows a state at least as new, whether from
//!   the cache or the tables, of one key or of many, with its entries or only the store's revision. This holds while a
//!   node runs. After a crash it may first answer from an older state (see [`crate::replication`]).
//! - Readers never see a part of a snapshot that is being installed.
//!
//! # Cost
//!
//! One batch without a sync for each apply. A read takes one shared lock and opens a view; from the cache it does neither.
//! Values above 3 KiB have rows of their own, which only reads of these values touch
//! ([decision 23](../../../../docs/decisions/0023-large-values-apart.md)).

mod apply;
mod cache;
#[cfg(test)]
mod deletion_tests;
mod idempotency;
#[cfg(test)]
mod moment_tests;
mod rows;
mod scan;
#[cfg(test)]
pub(crate) mod simulated;
mod snapshot;
mod tables;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod value_tests;

use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use self::apply::{Counters, Overlay};
use self::cache::{EntryCache, RecentHeads};
use self::idempotency::Outcomes;
pub use self::scan::{Page, RangeQuery};
pub use self::snapshot::{SnapshotReader, verify as verify_snapshot};
use self::tables::{IDEMPOTENCY, KV, KV_VALUES, META, SYSTEM, SYSTEM_VALUES};
use super::engine::{Durability, EVERYTHING, ReadTables, Slice, StorageEngine, WriteBatch, fjall};
use super::{Entry, Error, GuardedWrite, Idempotency, Outcome, Poison, RangeDigest, Space, format};

/// The share of the cache that holds entries, as a divisor; the rest holds blocks of the tables.
const ENTRY_CACHE_SHARE: u64 = 4;

/// The format that stores large values apart, in tables that the one before does not know.
const VALUES_APART: u32 = 4;

/// The formats that this version reads. A state of the first goes over to the second with the first write of a feature level that the
/// version before does not know, so that an upgrade can be undone until then.
const FORMATS: RangeInclusive<u32> = 3..=VALUES_APART;

const REVISION: &str = "revision";
const HOOK_EPOCH: &str = "hook-epoch";
const INSTALLING: &str = "installing";

/// The state of a node. Cheap to clone; all clones are the same state.
#[derive(Clone)]
pub struct Data {
    inner: Arc<Inner>,
}

struct Inner {
    engine: Box<dyn StorageEngine>,
    poison: Poison,
    /// Recently read entries of clients.
    cache: EntryCache,
    /// The newest revision that was applied or that a reader has found in a view, which may be a little newer.
    revision: AtomicU64,
    hook_epoch: AtomicU64,
    /// Whether large values are stored apart.
    has_values_apart: AtomicBool,
    /// Locked during an apply, so that only one runs at a time. Holds the heads of recently written entries.
    applying: Mutex<RecentHeads>,
    /// Locked for writing while a snapshot replaces the state, so that readers wait and never see a part of it.
    replacing: RwLock<()>,
}

impl Data {
    /// Opens the state in `dir`, creating it if it is missing. If the node stopped while a snapshot was being
    /// installed, the installed part is discarded and the state is empty.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, Error> {
        let entry_cache_bytes = cache_bytes / ENTRY_CACHE_SHARE;
        let engine = fjall::open(dir, cache_bytes - entry_cache_bytes, &tables::OPTIONS)?;
        Self::load(engine, dir, entry_cache_bytes)
    }

    fn load(engine: Box<dyn StorageEngine>, dir: &Path, entry_cache_bytes: u64) -> Result<Self, Error> {
        let format = format::check(engine.as_ref(), META, dir, FORMATS)?;
        let inner = Inner {
            engine,
            poison: Poison::new(dir),
            cache: EntryCache::new(entry_cache_bytes),
            revision: AtomicU64::new(0),
            hook_epoch: AtomicU64::new(0),
            has_values_apart: AtomicBool::new(format == VALUES_APART),
            applying: Mutex::new(cache::recent_heads()),
            replacing: RwLock::new(()),
        };
        if inner.engine.get(META, INSTALLING.as_bytes())?.is_some() {
            tracing::warn!("the installation of a snapshot was interrupted; this node starts from an empty state");
            inner.begin_installing()?;
            inner.end_installing(&[])?;
        }
        inner.load_counters()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Applies writes in order, in one batch, with the caller's own values. Returns one outcome per write. The same
    /// input gives the same outcomes on every node. If the state cannot be read or written, nothing is applied, now or
    /// later.
    pub fn apply(&self, writes: &[GuardedWrite], meta: &[(&'static str, Bytes)]) -> Result<Vec<Outcome>, Error> {
        self.inner.poison.attempt(|| self.apply_all(writes, meta))
    }

    fn apply_all(&self, writes: &[GuardedWrite], meta: &[(&'static str, Bytes)]) -> Result<Vec<Outcome>, Error> {
        let inner = &self.inner;
        let mut recent = inner.applying.lock();
        let view = inner.engine.view();
        let before = Counters {
            revision: self.revision(),
            hook_epoch: self.hook_epoch(),
            has_values_apart: inner.has_values_apart.load(Ordering::Acquire),
        };
        let mut overlay = Overlay::new(view.as_ref(), &recent, before);
        let outcomes = writes.iter().map(|write| overlay.apply(write)).collect::<Result<Vec<_>, _>>()?;

        let mut batch = WriteBatch::with_capacity(writes.len() + meta.len() + 2);
        let changed = overlay.heads();
        let Counters { revision, hook_epoch, has_values_apart } = overlay.stage(&mut batch)?;
        if has_values_apart && !before.has_values_apart {
            format::set(&mut batch, META, VALUES_APART);
        }
        if !writes.is_empty() {
            batch.insert(META, REVISION, revision.to_be_bytes());
            batch.insert(META, HOOK_EPOCH, hook_epoch.to_be_bytes());
        }
        for (key, value) in meta {
            batch.insert(META, *key, value.clone());
        }
        inner.cache.change(Some(&changed), || inner.engine.write(batch, Durability::None))?;
        for (key, head) in changed {
            match head {
                Some(head) => recent.insert(key, head),
                None => drop(recent.remove(&key)),
            }
        }
        inner.revision.store(revision, Ordering::Release);
        inner.hook_epoch.store(hook_epoch, Ordering::Release);
        inner.has_values_apart.store(has_values_apart, Ordering::Release);
        Ok(outcomes)
    }

    /// A value given to [`Data::apply`].
    pub fn meta(&self, key: &str) -> Result<Option<Bytes>, Error> {
        let _whole = self.whole();
        Ok(self.inner.engine.get(META, key.as_bytes())?.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// The entry of a key.
    pub fn get(&self, space: Space, key: &str) -> Result<Option<Entry>, Error> {
        let _whole = self.whole();
        let entry = rows::get(self.inner.engine.view().as_ref(), space, key)?;
        if let Some(entry) = &entry {
            self.inner.note(entry.meta.revision);
        }
        Ok(entry)
    }

    /// The entry of a client's key, cached for [`Data::cached`].
    pub fn get_and_keep(&self, key: &str) -> Result<Option<Arc<Entry>>, Error> {
        self.inner.cache.load(|| self.get(Space::Kv, key))
    }

    /// The entry of a client's key, if it is cached. Never waits for the disk.
    pub fn cached(&self, key: &str) -> Option<Arc<Entry>> {
        self.inner.cache.get(key)
    }

    /// The outcome of an earlier write with the same idempotency key, if this node has applied one and remembers it.
    pub fn recall(&self, idempotency: &Idempotency, now_ms: u64) -> Result<Option<Outcome>, Error> {
        let _whole = self.whole();
        Outcomes::new(self.inner.engine.view().as_ref()).recall(idempotency, now_ms)
    }

    /// A page of a range at one moment.
    pub fn scan(&self, query: &RangeQuery) -> Result<Page, Error> {
        let _whole = self.whole();
        let view = self.inner.engine.view();
        // The counter in memory is updated after the commit, so it may be older than the view.
        let revision = counter(view.as_ref(), REVISION)?;
        self.inner.note(revision);
        scan::page(view.as_ref(), query, revision)
    }

    /// The keys with a prefix. Large values are not read.
    pub fn keys(&self, space: Space, prefix: &str) -> Result<Vec<String>, Error> {
        let _whole = self.whole();
        scan::keys(self.inner.engine.view().as_ref(), space, prefix)
    }

    /// The first `limit` keys of clients from `start` to `end` (inclusive; no upper bound if empty), with their digest.
    pub fn digest_range(&self, start: &str, end: &str, limit: u32) -> Result<(Vec<String>, RangeDigest), Error> {
        let _whole = self.whole();
        let limit = usize::try_from(limit).unwrap_or(0);
        let found = scan::revisions(self.inner.engine.view().as_ref(), Space::Kv, start, end)?;
        let found = found.take(limit).collect::<Result<Vec<_>, _>>()?;
        self.inner.note(found.iter().map(|(_, revision)| *revision).max().unwrap_or(0));
        let digest = RangeDigest::of(found.iter().map(|(key, revision)| (key.as_str(), *revision)));
        Ok((found.into_iter().map(|(key, _)| key).collect(), digest))
    }

    /// The store's revision, at least that of all that was read before. Each write that changes something increments it.
    pub fn revision(&self) -> u64 {
        self.inner.revision.load(Ordering::Acquire)
    }

    /// The revision of the last change of a hook.
    pub fn hook_epoch(&self) -> u64 {
        self.inner.hook_epoch.load(Ordering::Acquire)
    }

    /// Makes everything applied so far durable. If that fails, the log still holds it.
    pub fn sync(&self) -> Result<(), Error> {
        self.inner.poison.attempt(|| self.inner.engine.sync())
    }

    /// The first failure of the state's disk.
    pub fn poison(&self) -> &Poison {
        &self.inner.poison
    }

    /// The current state, readable while the state goes on changing.
    pub fn snapshot(&self) -> SnapshotReader {
        let _nobody_applies = self.inner.applying.lock();
        SnapshotReader { view: self.inner.engine.view().into() }
    }

    /// Replaces the state by a snapshot, with the caller's own values, and syncs. Readers wait meanwhile. The snapshot
    /// should be [verified](verify_snapshot) before: if a chunk is damaged, the end is missing, or the disk refuses, the
    /// state is empty, also after a restart.
    pub fn install(
        &self,
        chunks: impl Iterator<Item = Result<Bytes, Error>>,
        meta: &[(&'static str, Bytes)],
    ) -> Result<(), Error> {
        let inner = &self.inner;
        let mut recent = inner.applying.lock();
        *recent = cache::recent_heads();
        let _nobody_reads = inner.replacing.write();
        let replace = || {
            inner.begin_installing()?;
            let has_values_apart = inner.has_values_apart.load(Ordering::Acquire);
            snapshot::read(chunks, has_values_apart, |batch| inner.engine.write(batch, Durability::None))?;
            inner.end_installing(meta)?;
            inner.load_counters()
        };
        inner.poison.attempt(|| inner.cache.change(None, replace))
    }

    /// Keeps the state whole while it is read: no snapshot replaces it meanwhile.
    fn whole(&self) -> RwLockReadGuard<'_, ()> {
        self.inner.replacing.read()
    }
}

impl Inner {
    /// Removes everything but the format. Until the installation ends, a restart does the same.
    fn begin_installing(&self) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        batch.insert(META, INSTALLING, []);
        self.engine.write(batch, Durability::All)?;
        for table in [KV, SYSTEM, IDEMPOTENCY, KV_VALUES, SYSTEM_VALUES] {
            self.engine.clear(table)?;
        }
        let mut batch = WriteBatch::default();
        for key in self.engine.keys(META, EVERYTHING)? {
            let key = key?;
            if *key != *format::KEY && *key != *INSTALLING.as_bytes() {
                batch.remove(META, key);
            }
        }
        self.engine.write(batch, Durability::All)
    }

    fn end_installing(&self, meta: &[(&'static str, Bytes)]) -> Result<(), Error> {
        let mut batch = WriteBatch::with_capacity(meta.len() + 1);
        batch.remove(META, INSTALLING);
        for (key, value) in meta {
            batch.insert(META, *key, value.clone());
        }
        self.engine.write(batch, Durability::All)
    }

    /// Notes a revision that a reader has found: no later one may be told of an older.
    fn note(&self, revision: u64) {
        self.revision.fetch_max(revision, Ordering::AcqRel);
    }

    fn load_counters(&self) -> Result<(), Error> {
        self.revision.store(counter(self.engine.as_ref(), REVISION)?, Ordering::Release);
        self.hook_epoch.store(counter(self.engine.as_ref(), HOOK_EPOCH)?, Ordering::Release);
        Ok(())
    }
}

/// A stored counter; 0 before it was first stored.
fn counter(tables: &dyn ReadTables, key: &'static str) -> Result<u64, Error> {
    let stored = tables.get(META, key.as_bytes())?;
    let value = stored.map(|value: Slice| value.as_ref().try_into().map(u64::from_be_bytes)).transpose();
    Ok(value.map_err(|_| Error::corrupt(key))?.unwrap_or(0))
}
