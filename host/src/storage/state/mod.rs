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
//! - A read shows one moment of one state: all writes of a batch or none, and no mixture with a snapshot. A batch becomes
//!   visible to all readers at one moment, before its apply returns; so does a snapshot.
//! - Reads never go back in time: a read that begins after another has ended shows a state at least as new, whether from
//!   the cache or the tables, of one key or of many, with its entries or only the store's revision. This holds while a
//!   node runs, and as long as no snapshot is older than the state that it replaces. After a crash it may first answer from
//!   an older state (see [`crate::replication`]).
//! - No read waits for a snapshot that is being installed.
//! - A crash while a snapshot is installed leaves the state from before, or that of the snapshot. If the snapshot is
//!   damaged or does not fit on the disk, the state stays as it was.
//! - Damage that a read or a compaction meets ends the use of the state: the next start examines all of it (see `suspicion`).
//!   [`Data::examine`] reads what nobody else does.
//!
//! # Cost
//!
//! One batch for each apply, which goes into a map in memory and to the disk seconds later (see
//! [`super::engine::write_behind`]). A read holds a shared lock for an instant and opens a view; from the cache it
//! does neither. Values above 3 KiB have rows of their own, which only reads of these values touch
//! ([decision 23](../../../../docs/decisions/0023-large-values-apart.md)). While a snapshot is installed, both states take
//! their space on disk, and twice the memory for blocks of tables.

mod apply;
mod cache;
#[cfg(test)]
mod deletion_tests;
mod heads;
mod idempotency;
#[cfg(test)]
mod moment_tests;
mod rows;
mod scan;
#[cfg(test)]
pub(crate) mod simulated;
mod snapshot;
mod suspicion;
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
use parking_lot::{Mutex, RwLock};

use self::apply::{Counters, Overlay};
use self::cache::EntryCache;
use self::heads::RecentHeads;
use self::idempotency::Outcomes;
pub use self::scan::{Page, RangeQuery};
pub use self::snapshot::{SnapshotReader, verify as verify_snapshot};
pub use self::suspicion::Position;
use self::suspicion::Suspicion;
use self::tables::META;
use super::engine::write_behind::{Buffered, Flushes};
use super::engine::{Durability, Generations, ReadTables, Slice, StorageEngine, WriteBatch, fjall};
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
    /// The newest revision that was applied or that a reader has found in a view, which may be a little newer.
    revision: AtomicU64,
    hook_epoch: AtomicU64,
    /// Whether large values are stored apart.
    has_values_apart: AtomicBool,
    /// Locked during an apply and while a snapshot takes the state's place, so that only one of them happens at a time.
    /// Holds the heads of recently written entries.
    applying: Mutex<RecentHeads>,
    /// Locked while a snapshot is installed, so that only one is.
    installing: Mutex<()>,
}

impl Data {
    /// Opens the state in `dir` and directories beside it whose names begin with the same name, creating it if it is
    /// missing.
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, Error> {
        Self::open_flushed(dir, cache_bytes, Flushes::USUAL)
    }

    fn open_flushed(dir: &Path, cache_bytes: u64, flushes: Flushes) -> Result<Self, Error> {
        let entry_cache_bytes = cache_bytes / ENTRY_CACHE_SHARE;
        let generations = fjall::Directories::new(dir, cache_bytes - entry_cache_bytes, &tables::OPTIONS);
        let generations = Buffered::new(generations, flushes);
        Self::load(Box::new(generations), dir, Suspicion::beside(dir), entry_cache_bytes)
    }

    fn load(
        generations: Box<dyn Generations>,
        dir: &Path,
        suspicion: Suspicion,
        entry_cache_bytes: u64,
    ) -> Result<Self, Error> {
        let engine = generations.open()?;
        let format = format::check(engine.as_ref(), META, dir, FORMATS)?;
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
            has_values_apart: AtomicBool::new(format == VALUES_APART),
            applying: Mutex::default(),
            installing: Mutex::new(()),
        };
        if is_partial {
            tracing::warn!("the installation of a snapshot was interrupted; this node starts from an empty state");
            inner.replace(|_, _| Ok(()))?;
        }
        inner.load_counters()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Applies writes in order, in one batch, with the caller's own values. Returns one outcome per write. The same
    /// input gives the same outcomes on every node. Readers see the batch before it is on the disk. If the state cannot be read, or
    /// an earlier batch could not be written, nothing is applied, now or later.
    pub fn apply(&self, writes: &[GuardedWrite], meta: &[(&'static str, Bytes)]) -> Result<Vec<Outcome>, Error> {
        self.inner.attempt(|| {
            let mut recent = self.inner.applying.lock();
            let engine = self.inner.engine();
            self.apply_alone(&mut recent, engine.as_ref(), engine.view(), writes, meta)
        })
    }

    /// The same for a few small writes, without waiting for the disk. None if that is not possible; nothing is applied then.
    pub fn apply_in_memory(
        &self,
        writes: &[GuardedWrite],
        meta: &[(&'static str, Bytes)],
    ) -> Option<Result<Vec<Outcome>, Error>> {
        let mut recent = self.inner.applying.try_lock()?;
        let engine = self.inner.engine();
        let memory = engine.memory()?;
        let attempt = || match self.apply_alone(&mut recent, engine.as_ref(), memory, writes, meta) {
            Err(Error::NotInMemory) => Ok(None),
            applied => applied.map(Some),
        };
        self.inner.attempt(attempt).transpose()
    }

    fn apply_alone(
        &self,
        recent: &mut RecentHeads,
        engine: &dyn StorageEngine,
        view: Box<dyn ReadTables>,
        writes: &[GuardedWrite],
        meta: &[(&'static str, Bytes)],
    ) -> Result<Vec<Outcome>, Error> {
        let inner = &self.inner;
        let before = Counters {
            revision: self.revision(),
            hook_epoch: self.hook_epoch(),
            has_values_apart: inner.has_values_apart.load(Ordering::Acquire),
        };
        let mut overlay = Overlay::new(view.as_ref(), recent, before);
        let outcomes = writes.iter().map(|write| overlay.apply(write)).collect::<Result<Vec<_>, _>>()?;

        let mut batch = WriteBatch::with_capacity(writes.len() + meta.len() + 2);
        let heads = overlay.heads();
        let Counters { revision, hook_epoch, has_values_apart } = overlay.stage(&mut batch)?;
        // A map that nobody else holds is changed in place.
        drop(view);
        if has_values_apart && !before.has_values_apart {
            format::set(&mut batch, META, VALUES_APART);
        }
        for (name, counter, before) in
            [(REVISION, revision, before.revision), (HOOK_EPOCH, hook_epoch, before.hook_epoch)]
        {
            if counter != before {
                batch.insert(META, name, counter.to_be_bytes());
            }
        }
        for (key, value) in meta {
            batch.insert(META, *key, &**value);
        }
        let applied = writes.iter().zip(&outcomes).filter(|(_, outcome)| matches!(outcome, Outcome::Applied { .. }));
        let operations = applied.flat_map(|(write, _)| &write.operations);
        let keys = operations.filter(|operation| operation.space == Space::Kv).map(|operation| operation.key.as_str());
        inner.cache.change(keys, || engine.write(batch, Durability::None))?;
        recent.note(heads);
        inner.revision.store(revision, Ordering::Release);
        inner.hook_epoch.store(hook_epoch, Ordering::Release);
        inner.has_values_apart.store(has_values_apart, Ordering::Release);
        Ok(outcomes)
    }

    /// A value given to [`Data::apply`].
    pub fn meta(&self, key: &str) -> Result<Option<Bytes>, Error> {
        self.read(|view| Ok(view.get(META, key.as_bytes())?.map(|value| Bytes::copy_from_slice(&value))))
    }

    /// The entry of a key.
    pub fn get(&self, space: Space, key: &str) -> Result<Option<Entry>, Error> {
        self.read(|view| {
            let entry = rows::get(view, space, key)?;
            if let Some(entry) = &entry {
                self.inner.note(entry.meta.revision);
            }
            Ok(entry)
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
        self.read(|view| Outcomes::new(view).recall(idempotency, now_ms))
    }

    /// A page of a range at one moment.
    pub fn scan(&self, query: &RangeQuery) -> Result<Page, Error> {
        self.read(|view| {
            // The counter in memory is updated after the commit, so it may be older than the view.
            let revision = counter(view, REVISION)?;
            self.inner.note(revision);
            scan::page(view, query, revision)
        })
    }

    /// The keys with a prefix. Large values are not read.
    pub fn keys(&self, space: Space, prefix: &str) -> Result<Vec<String>, Error> {
        self.read(|view| scan::keys(view, space, prefix))
    }

    /// The first `limit` keys of clients from `start` to `end` (inclusive; no upper bound if empty), with their digest.
    pub fn digest_range(&self, start: &str, end: &str, limit: u32) -> Result<(Vec<String>, RangeDigest), Error> {
        let limit = usize::try_from(limit).unwrap_or(0);
        let found: Vec<_> = self.read(|view| scan::revisions(view, Space::Kv, start, end)?.take(limit).collect())?;
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
        self.inner.attempt(|| self.inner.engine().sync())
    }

    /// Looks for failures of the engine in the background, which end the use of the state. Blocks.
    pub fn check(&self) -> Result<(), Error> {
        self.inner.attempt(|| self.inner.engine().check())
    }

    /// The first failure of the state's disk.
    pub fn poison(&self) -> &Poison {
        &self.inner.poison
    }

    /// The current state, readable while the state goes on changing.
    pub fn snapshot(&self) -> SnapshotReader {
        let _nobody_applies = self.inner.applying.lock();
        let inner = self.inner.clone();
        let notice = Arc::new(move |error: &Error| inner.notice(error));
        SnapshotReader { view: self.inner.engine().view().into(), notice }
    }

    /// Reads about `bytes` bytes of the state from a position on, to find damage where nobody reads. Returns the position
    /// after them; none at the end.
    pub fn examine(&self, from: Position, bytes: usize) -> Result<Option<Position>, Error> {
        self.read(|view| suspicion::read_some(view, from, bytes))
    }

    /// Replaces the state by a snapshot, with the caller's own values. The new state is durable when this returns. Reads go
    /// on meanwhile; what is applied meanwhile is replaced with the rest. If the snapshot is damaged or incomplete, or the disk
    /// has no space for a second state, the state stays as it was and goes on; if the disk fails otherwise, nothing more is written.
    pub fn install(
        &self,
        chunks: impl Iterator<Item = Result<Bytes, Error>>,
        meta: &[(&'static str, Bytes)],
    ) -> Result<(), Error> {
        let inner = &self.inner;
        inner.poison.check()?;
        let fill = |engine: &dyn StorageEngine, has_values_apart| {
            engine.fill(&mut snapshot::read(chunks, has_values_apart))?;
            let mut batch = WriteBatch::with_capacity(meta.len());
            for (key, value) in meta {
                batch.insert(META, *key, &**value);
            }
            engine.write(batch, Durability::None)
        };
        inner.replace(fill)
    }

    /// Reads the state as it is at this moment, whatever changes or replaces it meanwhile. If it is damaged, its use ends.
    fn read<T>(&self, read: impl FnOnce(&dyn ReadTables) -> Result<T, Error>) -> Result<T, Error> {
        let view = self.inner.engine().view();
        read(view.as_ref()).inspect_err(|error| self.inner.notice(error))
    }
}

impl Inner {
    /// Ends the use of the state, if an error shows that it may be damaged. IMPORTANT: that is remembered first, since the process
    /// ends as soon as it is poisoned.
    fn notice(&self, error: &Error) {
        self.suspicion.notice(error);
        if matches!(error, Error::Corrupt(_)) {
            self.poison.set(error);
        }
    }

    /// Changes the state, unless its use has ended. It ends if this fails.
    fn attempt<T>(&self, change: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.poison.attempt(|| change().inspect_err(|error| self.notice(error)))
    }

    fn engine(&self) -> Arc<dyn StorageEngine> {
        self.engine.read().clone()
    }

    /// Replaces the state by a new one that `fill` writes, given whether large values are stored apart in it.
    fn replace(&self, fill: impl FnOnce(&dyn StorageEngine, bool) -> Result<(), Error>) -> Result<(), Error> {
        let _installs_alone = self.installing.lock();
        let (next, has_values_apart) = self.fill_next(fill).inspect_err(|error| {
            // A damaged snapshot is no failure of this disk, and a full one has not touched the current state.
            if !matches!(error, Error::Corrupt(_)) && !error.is_disk_full() {
                self.poison.set(error);
            }
        })?;
        self.switch_to(next, has_values_apart).inspect_err(|error| self.poison.set(error))
    }

    /// The next generation, durable, and whether large values are stored apart in it. After an error, it is removed.
    fn fill_next(
        &self,
        fill: impl FnOnce(&dyn StorageEngine, bool) -> Result<(), Error>,
    ) -> Result<(Arc<dyn StorageEngine>, bool), Error> {
        let next = self.generations.create()?;
        let filled = format::check(next.as_ref(), META, self.poison.path(), FORMATS).and_then(|format| {
            let has_values_apart = format == VALUES_APART;
            fill(next.as_ref(), has_values_apart)?;
            // A batch must come after the rows (see `StorageEngine::fill`).
            let mut last = WriteBatch::default();
            format::set(&mut last, META, format);
            next.write(last, Durability::All)?;
            Ok(has_values_apart)
        });
        let has_values_apart = filled.inspect_err(|_| next.retire())?;
        Ok((next, has_values_apart))
    }

    /// Makes the next generation the current one. After an error, either may be it.
    fn switch_to(&self, next: Arc<dyn StorageEngine>, has_values_apart: bool) -> Result<(), Error> {
        let mut recent = self.applying.lock();
        self.generations.switch()?;
        self.cache.replace(|| {
            let former = std::mem::replace(&mut *self.engine.write(), next);
            former.retire();
        });
        *recent = RecentHeads::default();
        self.has_values_apart.store(has_values_apart, Ordering::Release);
        self.suspicion.lift()?;
        self.load_counters()
    }

    /// Notes a revision that a reader has found: no later one may be told of an older.
    fn note(&self, revision: u64) {
        self.revision.fetch_max(revision, Ordering::AcqRel);
    }

    /// Reads the counters of a state that has just become current. IMPORTANT: apply goes on from these, and from no other
    /// revision that a reader may have noted. For readers they do not go back, since a snapshot is newer than what it replaces.
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
