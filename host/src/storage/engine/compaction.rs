//! Compaction of fjall's tables from which much was deleted.
//!
//! # Problem
//!
//! A deleted key leaves a tombstone, and every range has to pass over it. fjall drops tombstones when it merges tables into
//! the last level, which it does once tables have grown. It does nothing while a database is idle, keeps the newest
//! tombstones in memory and in its first level, and moves tables that overlap with no others down as they are.
//!
//! # Approach
//!
//! One thread merges all files of a watched table (a major compaction):
//!
//! - once a page may notice what was deleted ([`DELETED_MIN`], [`SHARE`]) and no more is being deleted, or
//! - once that is much ([`DELETED_MAX`]).
//!
//! Files count their tombstones, so a restart forgets only those in memory. The thread works a tenth of the time at most, only
//! on tables that are small enough ([`TABLE_BYTES_MAX`]), and not while the first level is behind: fjall merges nothing else of
//! that table meanwhile.
//!
//! # Failure model
//!
//! A node may stop or crash at any time: fjall installs the merged tables as a whole. An error is logged, and the tables are
//! left as they are, unless they proved to be damaged: that is reported like a failure of fjall's own
//! compactions (`StorageEngine::check`). Views that are open keep what they show, tombstones included; a later compaction drops them.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fjall::{AbstractTree, AnyTree, Database, Keyspace};
use parking_lot::{Condvar, Mutex};

use super::Table;
use super::damage::explained;
use super::write_behind::FLUSH_INTERVAL;
use crate::limits::DISK_RESERVE_BYTES;
use crate::storage::Error;

/// Deleted keys below which a table is left alone. A page passes over as many in about three milliseconds.
const DELETED_MIN: u64 = 2_000;

/// Rows for each deleted key below which a quiet table is compacted.
const SHARE: u64 = 1_000;

/// Deleted keys from which on a table is compacted although more are being deleted.
const DELETED_MAX: u64 = 50_000;

/// Time without deletions after which a table is quiet. Deletions arrive in flushes of the buffer before the tables.
const QUIET: Duration = Duration::from_secs(5);

const _: () = assert!(QUIET.as_secs() > 2 * FLUSH_INTERVAL.as_secs());

/// Largest table that is compacted, in bytes. A compaction of it takes about ten seconds, in which fjall flushes what is
/// written but compacts nothing, and a stopping node waits for it.
const TABLE_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// A table whose first level has more files waits: fjall is behind with its own compactions.
const FIRST_LEVEL_FILES_MAX: usize = 8;

/// Rest after a compaction, as a multiple of its duration.
const REST: u32 = 9;

/// Shortest rest.
const REST_MIN: Duration = Duration::from_secs(1);

/// Rest after a compaction that was not possible, or that had to leave most tombstones to open views.
const REST_IN_VAIN: Duration = Duration::from_secs(60);

/// How long a flush may take before the compaction is put off.
const FLUSH_MAX: Duration = Duration::from_secs(30);
const FLUSH_POLL: Duration = Duration::from_millis(10);

/// fjall looks for the oldest open snapshot, whose tombstones it must keep, once in so many closed ones.
const SNAPSHOTS_PER_LOOK: usize = 10_000;

/// The thread that compacts, until it is dropped.
pub(super) struct Compactor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    db: Database,
    dir: PathBuf,
    watched: Vec<Watched>,
    state: Mutex<State>,
    changed: Condvar,
    /// The damage that a compaction has met.
    damage: OnceLock<Error>,
}

#[derive(Default)]
struct State {
    is_stopped: bool,
}

/// A table whose deleted keys are counted.
struct Watched {
    table: Table,
    keyspace: Keyspace,
    /// Keys deleted since the last compaction, and the tombstones that it left.
    deleted: AtomicU64,
}

impl Compactor {
    /// Starts the thread, if any table is watched.
    pub(super) fn start(
        db: &Database,
        dir: PathBuf,
        watched: impl Iterator<Item = (Table, Keyspace)>,
    ) -> Result<Self, Error> {
        let watched: Vec<_> = watched
            .map(|(table, keyspace)| {
                let deleted = AtomicU64::new(keyspace.tree.tombstone_count());
                Watched { table, keyspace, deleted }
            })
            .collect();
        let (is_needed, damage) = (!watched.is_empty(), OnceLock::new());
        let shared = Shared { db: db.clone(), dir, watched, state: Mutex::default(), changed: Condvar::new(), damage };
        let shared = Arc::new(shared);
        let run = {
            let shared = shared.clone();
            move || shared.run()
        };
        let builder = std::thread::Builder::new().name("brink-compaction".to_owned());
        let thread = if is_needed { Some(builder.spawn(run)?) } else { None };
        Ok(Self { shared, thread })
    }

    /// Fails if a compaction has met damage.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.shared.damage.get().map_or(Ok(()), |damage| Err(damage.clone()))
    }

    /// Counts a key that is deleted.
    pub(super) fn note_deleted(&self, table: Table) {
        let Some(watched) = self.shared.watched.iter().find(|watched| watched.table == table) else { return };
        if watched.deleted.fetch_add(1, Ordering::Relaxed) + 1 == DELETED_MIN {
            // Locked, so that the thread does not miss it between its look and its sleep.
            let _state = self.shared.state.lock();
            self.shared.changed.notify_all();
        }
    }
}

impl Drop for Compactor {
    fn drop(&mut self) {
        self.shared.state.lock().is_stopped = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            // Fails if the thread has panicked, which its panic has told.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        loop {
            let Some(watched) = self.next() else { return };
            let began = Instant::now();
            let rest = match watched.compact(self) {
                Ok(true) => REST_MIN.max(began.elapsed() * REST),
                Ok(false) => REST_IN_VAIN.max(began.elapsed() * REST),
                Err(error) => {
                    tracing::warn!(table = &**watched.keyspace.name(), %error, "a table could not be compacted");
                    if matches!(error, Error::Corrupt(_)) {
                        // The first is enough.
                        let _ = self.damage.set(error);
                    }
                    REST_IN_VAIN
                }
            };
            if self.is_stopped_within(rest) {
                return;
            }
        }
    }

    /// Waits for a table from which enough was deleted; none once stopped.
    fn next(&self) -> Option<&Watched> {
        loop {
            self.wait_for_deletions()?;
            let before: Vec<u64> = self.watched.iter().map(Watched::deleted).collect();
            if self.is_stopped_within(QUIET) {
                return None;
            }
            let due = self.watched.iter().zip(before).find(|(watched, before)| watched.is_due(*before));
            if let Some((watched, _)) = due {
                return Some(watched);
            }
        }
    }

    fn wait_for_deletions(&self) -> Option<()> {
        let mut state = self.state.lock();
        while !state.is_stopped {
            if self.watched.iter().any(|watched| watched.deleted() >= DELETED_MIN) {
                return Some(());
            }
            self.changed.wait(&mut state);
        }
        None
    }

    fn is_stopped_within(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        let mut state = self.state.lock();
        while !state.is_stopped && !self.changed.wait_until(&mut state, until).timed_out() {}
        state.is_stopped
    }

    fn has_room_for(&self, bytes: u64) -> bool {
        // A compaction writes the tables anew before it removes them.
        let free = rustix::fs::statvfs(&self.dir).map(|stat| stat.f_bavail.saturating_mul(stat.f_frsize));
        free.is_ok_and(|free| free >= bytes.saturating_add(DISK_RESERVE_BYTES))
    }
}

impl Watched {
    fn deleted(&self) -> u64 {
        self.deleted.load(Ordering::Relaxed)
    }

    /// `before`: how many were deleted a while ago.
    fn is_due(&self, before: u64) -> bool {
        let deleted = self.deleted();
        let rows = u64::try_from(self.keyspace.approximate_len()).unwrap_or(u64::MAX);
        let is_quiet = deleted == before && deleted >= DELETED_MIN.max(rows / SHARE);
        is_quiet || deleted >= DELETED_MAX
    }

    /// Drops the tombstones of the table; false if most of them had to stay.
    fn compact(&self, shared: &Shared) -> Result<bool, Error> {
        let began = Instant::now();
        let (table, bytes) = (&**self.keyspace.name(), self.table_bytes());
        let is_behind = self.keyspace.l0_table_count() > FIRST_LEVEL_FILES_MAX;
        if is_behind || bytes > TABLE_BYTES_MAX || !shared.has_room_for(bytes) || !self.flush(shared)? {
            tracing::debug!(table, bytes, is_behind, "the compaction after deletions is put off");
            return Ok(false);
        }
        // What is deleted from here on counts for the next time.
        self.deleted.store(0, Ordering::Relaxed);
        let before = self.keyspace.tree.tombstone_count();
        if before >= DELETED_MIN / 2 {
            for _ in 0..SNAPSHOTS_PER_LOOK {
                drop(shared.db.snapshot());
            }
            self.keyspace.major_compact().map_err(|error| explained(error, &shared.dir))?;
        }
        let left = self.keyspace.tree.tombstone_count();
        self.deleted.fetch_add(left, Ordering::Relaxed);
        let took_ms = began.elapsed().as_millis();
        tracing::debug!(table, bytes, before, left, took_ms, "compaction after deletions");
        Ok(left <= before / 2)
    }

    /// Flushes the table from memory, so that the compaction sees everything; false if that did not end in time.
    fn flush(&self, shared: &Shared) -> Result<bool, Error> {
        self.keyspace.rotate_memtable()?;
        let until = Instant::now() + FLUSH_MAX;
        while self.keyspace.sealed_memtable_count() > 0 {
            if shared.is_stopped_within(FLUSH_POLL) || Instant::now() > until {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Bytes of the tables that a compaction merges. Rows that are stored apart from their keys stay where they are.
    fn table_bytes(&self) -> u64 {
        match &self.keyspace.tree {
            AnyTree::Standard(tree) => tree.disk_space(),
            AnyTree::Blob(tree) => tree.index.disk_space(),
        }
    }
}
