//! Caches of the state: entries for readers that must not wait for the disk, and metadata for apply.

use std::sync::Arc;

use parking_lot::RwLock;
use quick_cache::sync::Cache;
use quick_cache::{Weighter, unsync};

use crate::storage::command::{Entry, EntryMeta};

/// Memory counted for each entry beside its key and value, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// Assumed size of an entry when the cache is laid out, in bytes.
const ENTRY_BYTES_TYPICAL: u64 = 1_024;

/// Recently read entries. A reader that finds its entry here needs no thread that may block.
///
/// A cached entry is never older than the state: a change of the state removes the changed entries before it ends, and
/// an entry is cached only if no change began since it was read. So a read that begins after a write was applied never
/// returns the replaced entry.
pub(super) struct EntryCache {
    entries: Cache<String, Arc<Entry>, ByteWeight>,
    /// Number of changes of the state that have begun. Locked for writing during a change.
    changes: RwLock<u64>,
}

/// Counts the memory of the items of both caches.
#[derive(Clone)]
pub(super) struct ByteWeight;

impl Weighter<String, Arc<Entry>> for ByteWeight {
    fn weight(&self, key: &String, entry: &Arc<Entry>) -> u64 {
        let value = &entry.value;
        let bytes = 2 * key.len() + value.content_type.len() + value.bytes.len() + ENTRY_OVERHEAD_BYTES;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

impl EntryCache {
    pub(super) fn new(bytes_max: u64) -> Self {
        let entries = usize::try_from(bytes_max / ENTRY_BYTES_TYPICAL).unwrap_or(usize::MAX);
        Self { entries: Cache::with_weighter(entries, bytes_max, ByteWeight), changes: RwLock::new(0) }
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.entries.get(key)
    }

    /// Reads an entry, and caches it unless a change has begun meanwhile. Waits for a change in progress.
    pub(super) fn load<E>(&self, read: impl FnOnce() -> Result<Option<Entry>, E>) -> Result<Option<Arc<Entry>>, E> {
        let before = *self.changes.read();
        let Some(entry) = read()?.map(Arc::new) else { return Ok(None) };
        // IMPORTANT: locked until the entry is inserted, so that no change begins in between.
        if let Some(changes) = self.changes.try_read()
            && *changes == before
        {
            self.entries.insert(entry.key.clone(), entry.clone());
        }
        Ok(Some(entry))
    }

    /// Changes the state, and removes the entries of these keys; every entry, without keys.
    pub(super) fn change<T>(&self, keys: Option<&[(String, Option<EntryMeta>)]>, change: impl FnOnce() -> T) -> T {
        let mut changes = self.changes.write();
        *changes += 1;
        if keys.is_none() {
            // Before, so that nobody who has seen the new state finds an entry of the former one.
            self.entries.clear();
        }
        let changed = change();
        keys.into_iter().flatten().for_each(|(key, _)| drop(self.entries.remove(key)));
        changed
    }
}

/// Memory for recently written metadata, in bytes.
const RECENT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Memory counted for each item of metadata beside its key and itself, in bytes.
const META_OVERHEAD_BYTES: usize = 32;

/// Assumed size of an item of metadata when the cache is laid out, in bytes.
const META_BYTES_TYPICAL: u64 = 128;

/// Metadata of recently written entries, so that apply need not look up a key in the tables each time it is written. A
/// key that is absent here may be present in the tables.
pub(super) type RecentMetas = unsync::Cache<String, EntryMeta, ByteWeight>;

impl Weighter<String, EntryMeta> for ByteWeight {
    fn weight(&self, key: &String, _meta: &EntryMeta) -> u64 {
        let bytes = key.len() + size_of::<(String, EntryMeta)>() + META_OVERHEAD_BYTES;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

pub(super) fn recent_metas() -> RecentMetas {
    let metas = usize::try_from(RECENT_BYTES_MAX / META_BYTES_TYPICAL).unwrap_or(usize::MAX);
    unsync::Cache::with_weighter(metas, RECENT_BYTES_MAX, ByteWeight)
}
