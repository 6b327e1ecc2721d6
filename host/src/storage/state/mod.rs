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
//! A snapshot is installed into another generation of the database, which takes the place of the current one once it is
//! durable. Reads go on meanwhile, on the current one. Those under way at the change end on the state they began with;
//! that is removed once the last of them has ended.
//!
//! # Guarantees
//!
//! - Apply is deterministic: it depends on the state and the writes alone.
//! - A read that begins after an apply has returned sees its result, whether from the cache or from the tables.
//! - No read waits for a snapshot that is being installed, or sees a part of it, or a mixture of two states.
//! - A crash while a snapshot is installed leaves the state from before, or that of the snapshot. If the snapshot is
//!   damaged, the state stays as it was.
//! - Damage that a read meets ends the use of the state: the next start examines all of it (see `suspicion`).
//!   [`Data::examine`] reads what nobody else does.
//!
//! # Cost
//!
//! One batch without a sync for each apply. A read holds a shared lock for an instant, and from the cache none. While a
//! snapshot is installed, both states take their space on disk, and twice the memory for blocks of tables.

mod apply;
mod cache;
mod idempotency;
mod scan;
#[cfg(test)]
pub(crate) mod simulated;
mod snapshot;
mod suspicion;
mod tables;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};

use self::apply::Overlay;
use self::cache::{EntryCache, RecentMetas};
use self::idempotency::Outcomes;
pub use self::scan::{Page, RangeQuery};
pub use self::snapshot::{SnapshotReader, verify as verify_snapshot};
pub use self::suspicion::Position;
use self::suspicion::Suspicion;
use self::tables::META;
use super::engine::{Durability, Generations, ReadTables, Slice, StorageEngine, WriteBatch, fjall};
use super::{Entry, Error, GuardedWrite, Idempotency, Outcome, Poison, RangeDigest, Space, format, record};

/// The share of the cache that holds entries, as a divisor; the rest holds blocks of the tables.
const ENTRY_CACHE_SHARE: u64 = 4;

const REVISION: &str = "revision";
const HOOK_EPOCH: &str = "hook-epoch";
/// Marks a state that an earlier version was replacing in place when it stopped: a part of a snapshot.
const INSTALLING: &str = "installing";

/// The state of a node. Cheap to clone; all clones are the same state.
#[derive(Clone)]
pub struct Data {
    inner: Arc<Inner>,
}

struct Inner {
    generations: Box<dyn Generations>,
    /// The current generation. Locked for an instant only: readers take their own handle on it.
    engine: RwLock<Arc<dyn StorageEngine>>,
    poison: Poison,
    suspicion: Suspicion,
    /// Recently read entries of clients.
    cache: EntryCache,
    revision: AtomicU64,
    hook_epoch: AtomicU64,
    /// Locked during an apply and while a snapshot takes the state's place, so that only one of them happens at a time.
    /// Holds recently written metadata.
    applying: Mutex<RecentMetas>,
    /// Locked while a snapshot is installed, so that only one is.
    installing: Mutex<()>,
}

impl Data {
    /// Opens the state in `dir` and directories beside it whose names begin with the same name, creating it if it is
    /// missing.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, Error> {
        let entry_cache_bytes = cache_bytes / ENTRY_CACHE_SHARE;
        let generations = fjall::Directories::new(dir, cache_bytes - entry_cache_bytes, &tables::OPTIONS);
        Self::load(Box::new(generations), dir, Suspicion::beside(dir), entry_cache_bytes)
    }

    fn load(
        generations: Box<dyn Generations>,
        dir: &Path,
        suspicion: Suspicion,
        entry_cache_bytes: u64,
    ) -> Result<Self, Error> {
        let engine = generations.open()?;
        format::check(engine.as_ref(), META, dir)?;
        suspicion.examine(engine.as_ref())?;
        let is_partial = engine.get(META, INSTALLING.as_bytes())?.is_some();
        let inner = Inner {
            generations,
            engine: RwLock::new(engine),
            poison: Poison::new(dir),
            suspicion,
            cache: EntryCache::new(entry_cache_bytes),
            revision: AtomicU64::new(0),
            hook_epoch: AtomicU64::new(0),
            applying: Mutex::new(cache::recent_metas()),
            installing: Mutex::new(()),
        };
        if is_partial {
            tracing::warn!("the installation of a snapshot was interrupted; this node starts from an empty state");
            inner.replace(|_| Ok(()))?;
        }
        inner.load_counters()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Applies writes in order, in one batch, with the caller's own values. Returns one outcome per write. The same
    /// input gives the same outcomes on every node. If the state cannot be read or written, nothing is applied, now or
    /// later.
    pub fn apply(&self, writes: &[GuardedWrite], meta: &[(&'static str, Bytes)]) -> Result<Vec<Outcome>, Error> {
        self.inner.poison.attempt(|| self.apply_all(writes, meta)).inspect_err(|error| self.inner.notice(error))
    }

    fn apply_all(&self, writes: &[GuardedWrite], meta: &[(&'static str, Bytes)]) -> Result<Vec<Outcome>, Error> {
        let inner = &self.inner;
        let mut recent = inner.applying.lock();
        let engine = inner.engine();
        let mut overlay = Overlay::new(engine.as_ref(), &recent, self.revision(), self.hook_epoch());
        let outcomes = writes.iter().map(|write| overlay.apply(write)).collect::<Result<Vec<_>, _>>()?;

        let mut batch = WriteBatch::with_capacity(writes.len() + meta.len() + 2);
        let changed = overlay.metas();
        let (revision, hook_epoch) = overlay.stage(&mut batch)?;
        if !writes.is_empty() {
            batch.insert(META, REVISION, revision.to_be_bytes());
            batch.insert(META, HOOK_EPOCH, hook_epoch.to_be_bytes());
        }
        for (key, value) in meta {
            batch.insert(META, *key, value.clone());
        }
        inner.cache.change(Some(&changed), || engine.write(batch, Durability::None))?;
        for (key, meta) in changed {
            match meta {
                Some(meta) => recent.insert(key, meta),
                None => drop(recent.remove(&key)),
            }
        }
        inner.revision.store(revision, Ordering::Release);
        inner.hook_epoch.store(hook_epoch, Ordering::Release);
        Ok(outcomes)
    }

    /// A value given to [`Data::apply`].
    pub fn meta(&self, key: &str) -> Result<Option<Bytes>, Error> {
        self.read(|engine| Ok(engine.get(META, key.as_bytes())?.map(|value| Bytes::copy_from_slice(&value))))
    }

    /// The entry of a key.
    pub fn get(&self, space: Space, key: &str) -> Result<Option<Entry>, Error> {
        self.read(|engine| {
            let found = engine.get(tables::of(space), key.as_bytes())?;
            found.map(|found| record::decode(key.to_owned(), &found, true)).transpose()
        })
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
        self.read(|engine| Outcomes::new(engine).recall(idempotency, now_ms))
    }

    /// A page of a range at one moment.
    pub fn scan(&self, query: &RangeQuery) -> Result<Page, Error> {
        self.read(|engine| {
            let view = engine.view();
            // The counter in memory is updated after the commit, so it may be older than the view.
            let revision = counter(view.as_ref(), REVISION)?;
            scan::page(view.as_ref(), query, revision)
        })
    }

    /// The keys with a prefix. Large values are not read.
    pub fn keys(&self, space: Space, prefix: &str) -> Result<Vec<String>, Error> {
        self.read(|engine| scan::keys(engine, space, prefix))
    }

    /// The first `limit` keys of clients from `start` to `end` (inclusive; no upper bound if empty), with their digest.
    pub fn digest_range(&self, start: &str, end: &str, limit: u32) -> Result<(Vec<String>, RangeDigest), Error> {
        let limit = usize::try_from(limit).unwrap_or(0);
        let found = self.read(|engine| scan::revisions(engine, Space::Kv, start, end, limit))?;
        let digest = RangeDigest::of(found.iter().map(|(key, revision)| (key.as_str(), *revision)));
        Ok((found.into_iter().map(|(key, _)| key).collect(), digest))
    }

    /// The store's revision. Each write that changes something increments it.
    pub fn revision(&self) -> u64 {
        self.inner.revision.load(Ordering::Acquire)
    }

    /// The revision of the last change of a hook.
    pub fn hook_epoch(&self) -> u64 {
        self.inner.hook_epoch.load(Ordering::Acquire)
    }

    /// Makes everything applied so far durable. If that fails, the log still holds it.
    pub fn sync(&self) -> Result<(), Error> {
        self.inner.poison.attempt(|| self.inner.engine().sync())
    }

    /// The first failure of the state's disk.
    pub fn poison(&self) -> &Poison {
        &self.inner.poison
    }

    /// The current state, readable while the state goes on changing.
    pub fn snapshot(&self) -> SnapshotReader {
        let _nobody_applies = self.inner.applying.lock();
        SnapshotReader { view: self.inner.engine().view().into(), data: self.clone() }
    }

    /// Reads about `bytes` bytes of the state from a position on, to find damage where nobody reads. Returns the position
    /// after them; none at the end.
    pub fn examine(&self, from: Position, bytes: usize) -> Result<Option<Position>, Error> {
        self.read(|engine| suspicion::read_some(engine, from, bytes))
    }

    /// Replaces the state by a snapshot, with the caller's own values. The new state is durable when this returns. Reads go
    /// on meanwhile; what is applied meanwhile is replaced with the rest. If the snapshot is damaged or incomplete, the
    /// state stays as it was; if the disk refuses, nothing more is written.
    pub fn install(
        &self,
        chunks: impl Iterator<Item = Result<Bytes, Error>>,
        meta: &[(&'static str, Bytes)],
    ) -> Result<(), Error> {
        let inner = &self.inner;
        inner.poison.check()?;
        let fill = |engine: &dyn StorageEngine| {
            snapshot::read(chunks, |batch| engine.write(batch, Durability::None))?;
            let mut batch = WriteBatch::with_capacity(meta.len());
            for (key, value) in meta {
                batch.insert(META, *key, value.clone());
            }
            engine.write(batch, Durability::None)
        };
        inner.replace(fill).inspect_err(|error| {
            // A damaged snapshot is no failure of this disk.
            if !matches!(error, Error::Corrupt(_)) {
                inner.poison.set(error);
            }
        })
    }

    /// Reads the state as it is now, whatever replaces it meanwhile. If it is damaged, its use ends.
    fn read<T>(&self, read: impl FnOnce(&dyn StorageEngine) -> Result<T, Error>) -> Result<T, Error> {
        read(self.inner.engine().as_ref()).inspect_err(|error| self.inner.notice(error))
    }
}

impl Inner {
    /// Ends the use of the state, if an error shows that it may be damaged.
    fn notice(&self, error: &Error) {
        if matches!(error, Error::Corrupt(_)) {
            self.poison.set(error);
        }
        self.suspicion.notice(error);
    }

    fn engine(&self) -> Arc<dyn StorageEngine> {
        self.engine.read().clone()
    }

    /// Replaces the state by a new one that `fill` writes.
    fn replace(&self, fill: impl FnOnce(&dyn StorageEngine) -> Result<(), Error>) -> Result<(), Error> {
        let _installs_alone = self.installing.lock();
        let next = self.generations.create()?;
        let filled = format::check(next.as_ref(), META, self.poison.path())
            .and_then(|()| fill(next.as_ref()))
            .and_then(|()| next.sync());
        if let Err(error) = filled {
            next.retire();
            return Err(error);
        }
        let mut recent = self.applying.lock();
        self.generations.switch()?;
        self.cache.change(None, || {
            let former = std::mem::replace(&mut *self.engine.write(), next);
            former.retire();
        });
        *recent = cache::recent_metas();
        self.suspicion.lift()?;
        self.load_counters()
    }

    fn load_counters(&self) -> Result<(), Error> {
        let engine = self.engine();
        self.revision.store(counter(engine.as_ref(), REVISION)?, Ordering::Release);
        self.hook_epoch.store(counter(engine.as_ref(), HOOK_EPOCH)?, Ordering::Release);
        Ok(())
    }
}

/// A stored counter; 0 before it was first stored.
fn counter(tables: &dyn ReadTables, key: &'static str) -> Result<u64, Error> {
    let stored = tables.get(META, key.as_bytes())?;
    let value = stored.map(|value: Slice| value.as_ref().try_into().map(u64::from_be_bytes)).transpose();
    Ok(value.map_err(|_| Error::corrupt(key))?.unwrap_or(0))
}
