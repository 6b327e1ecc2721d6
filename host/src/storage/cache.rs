//! Entries that were read lately, for readers that must not wait for the disk.
//!
//! A reader that finds its entry here needs no thread that may block. What is found is what the state holds: a change of
//! the state forgets the entries it changes before it is done, and nothing is kept that was read before the last change
//! began. So a read that begins after a write was applied never finds what the write replaced.

use std::sync::{Arc, PoisonError, RwLock, TryLockError};

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::command::{Entry, EntryMeta};

/// Counted for each entry beside its key and value, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// Entries are assumed to be about this large when the table is laid out, in bytes.
const ENTRY_BYTES_TYPICAL: u64 = 1_024;

pub(super) struct EntryCache {
    entries: Cache<String, Arc<Entry>, Bytes>,
    /// How often the state began to change. Held for writing while it changes.
    changes: RwLock<u64>,
}

#[derive(Clone)]
struct Bytes;

impl Weighter<String, Arc<Entry>> for Bytes {
    fn weight(&self, key: &String, entry: &Arc<Entry>) -> u64 {
        let value = &entry.value;
        let bytes = 2 * key.len() + value.content_type.len() + value.bytes.len() + ENTRY_OVERHEAD_BYTES;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

impl EntryCache {
    pub(super) fn new(bytes_max: u64) -> Self {
        let entries = usize::try_from(bytes_max / ENTRY_BYTES_TYPICAL).unwrap_or(usize::MAX);
        Self { entries: Cache::with_weighter(entries, bytes_max, Bytes), changes: RwLock::new(0) }
    }

    /// An entry that was read lately.
    pub(super) fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.entries.get(key)
    }

    /// The changes so far; to be asked before the state is read. Waits for a change that goes on.
    pub(super) fn changes(&self) -> u64 {
        *self.changes.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps an entry that was read after so many changes, unless there were more since.
    pub(super) fn keep(&self, entry: &Arc<Entry>, read_after: u64) {
        let changes = match self.changes.try_read() {
            Ok(changes) => changes,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        if *changes == read_after {
            self.entries.insert(entry.key.clone(), entry.clone());
        }
    }

    /// Changes the state, and forgets the entries of these keys; of all, if none are named.
    pub(super) fn change<T, V>(&self, keys: Option<&[(String, V)]>, change: impl FnOnce() -> T) -> T {
        let mut changes = self.changes.write().unwrap_or_else(PoisonError::into_inner);
        *changes += 1;
        let changed = change();
        match keys {
            Some(keys) => keys.iter().for_each(|(key, _)| drop(self.entries.remove(key))),
            None => self.entries.clear(),
        }
        changed
    }
}

/// Bytes of what apply remembers of its own writes.
const RECENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// What applying wrote lately, without the values: a key that is written again and again is not looked for in the tables
/// each time. Not more than that: what is not here must be looked for.
pub(super) struct RecentMetas {
    metas: quick_cache::unsync::Cache<String, EntryMeta, MetaBytes>,
}

#[derive(Clone)]
struct MetaBytes;

impl Weighter<String, EntryMeta> for MetaBytes {
    fn weight(&self, key: &String, _meta: &EntryMeta) -> u64 {
        let bytes = key.len() + size_of::<(String, EntryMeta)>() + META_OVERHEAD_BYTES;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// Counted for each meta beside its key and itself, in bytes.
const META_OVERHEAD_BYTES: usize = 32;

/// Metas are assumed to be about this large when the table is laid out, in bytes.
const META_BYTES_TYPICAL: u64 = 128;

impl Default for RecentMetas {
    fn default() -> Self {
        let metas = usize::try_from(RECENT_BYTES_MAX / META_BYTES_TYPICAL).unwrap_or(usize::MAX);
        Self { metas: quick_cache::unsync::Cache::with_weighter(metas, RECENT_BYTES_MAX, MetaBytes) }
    }
}

impl RecentMetas {
    /// What a key's entry has, if it was written lately and is still there.
    pub(super) fn get(&self, key: &str) -> Option<EntryMeta> {
        self.metas.get(key).copied()
    }

    /// Notes what was written.
    pub(super) fn note(&mut self, written: Vec<(String, Option<EntryMeta>)>) {
        for (key, meta) in written {
            match meta {
                Some(meta) => self.metas.insert(key, meta),
                None => drop(self.metas.remove(&key)),
            }
        }
    }
}
