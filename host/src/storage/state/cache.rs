//! A cache of the state: entries for readers that must not wait for the disk.

use std::sync::Arc;

use parking_lot::RwLock;
use quick_cache::Weighter;
use quick_cache::sync::Cache;

use crate::storage::command::Entry;

/// Memory counted for each entry beside its key and value, in bytes.
const ENTRY_OVERHEAD_BYTES: usize = 256;

/// Assumed size of an entry when the cache is laid out, in bytes.
const ENTRY_BYTES_TYPICAL: u64 = 1_024;

/// Recently read entries. A reader that finds its entry here needs no thread that may block.
///
/// A cached entry is never older than what any reader has seen: a change of the state removes the entries that it
/// changes before it becomes visible, and until it has ended nothing is cached. An entry that was read before a change
/// began is not cached after it.
pub(super) struct EntryCache {
    entries: Cache<String, Arc<Entry>, ByteWeight>,
    /// The changes of the state. Locked for reading while an entry is cached.
    changes: RwLock<Changes>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Changes {
    /// How many have begun.
    begun: u64,
    /// Whether one is under way. There is one at a time.
    is_under_way: bool,
}

/// Counts the memory of entries.
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
        Self { entries: Cache::with_weighter(entries, bytes_max, ByteWeight), changes: RwLock::default() }
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Entry>> {
        self.entries.get(key)
    }

    /// Reads an entry, and caches it unless a change is under way or has begun meanwhile.
    pub(super) fn load<E>(&self, read: impl FnOnce() -> Result<Option<Entry>, E>) -> Result<Option<Arc<Entry>>, E> {
        let before = *self.changes.read();
        let Some(entry) = read()?.map(Arc::new) else { return Ok(None) };
        // IMPORTANT: locked until the entry is inserted, so that no change begins in between.
        if let Some(changes) = self.changes.try_read()
            && !before.is_under_way
            && *changes == before
        {
            self.entries.insert(entry.key.clone(), entry.clone());
        }
        Ok(Some(entry))
    }

    /// Removes the entries of these keys, then changes the state.
    pub(super) fn change<'k, T>(&self, keys: impl Iterator<Item = &'k str>, change: impl FnOnce() -> T) -> T {
        let remove = |entries: &Cache<_, _, _>| {
            // Of a node that only writes.
            if !entries.is_empty() {
                keys.for_each(|key| drop(entries.remove(key)));
            }
        };
        self.change_after(remove, change)
    }

    /// Removes all entries, then replaces the state.
    pub(super) fn replace<T>(&self, replace: impl FnOnce() -> T) -> T {
        self.change_after(Cache::clear, replace)
    }

    /// IMPORTANT: removes entries first. Once a reader has found a part of the change in the tables, no later one may find an
    /// older entry here.
    fn change_after<T>(
        &self,
        remove: impl FnOnce(&Cache<String, Arc<Entry>, ByteWeight>),
        change: impl FnOnce() -> T,
    ) -> T {
        {
            let mut changes = self.changes.write();
            changes.begun += 1;
            changes.is_under_way = true;
            remove(&self.entries);
        }
        let changed = change();
        self.changes.write().is_under_way = false;
        changed
    }
}
