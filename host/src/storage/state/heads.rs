//! The heads of recently written entries, so that apply need not search the tables for a key each time it is written.

use std::collections::HashMap;

use super::rows::Head;
use crate::storage::engine::Slice;

/// Most keys of one generation, and most bytes of theirs.
const KEYS_MAX: usize = 32 * 1024;
const KEY_BYTES_MAX: usize = 2 * 1024 * 1024;

/// Two generations: once the newer one is full, it takes the place of the older one. A key that is absent here may be
/// present in the tables.
#[derive(Default)]
pub(super) struct RecentHeads {
    newer: Generation,
    older: Generation,
}

/// By key; none for a deleted entry.
#[derive(Default)]
struct Generation {
    heads: HashMap<Slice, Option<Head>, ahash::RandomState>,
    key_bytes: usize,
}

impl RecentHeads {
    /// The head of a key, or that it has no entry; `None` if that is not known here.
    pub(super) fn get(&self, key: &[u8]) -> Option<Option<Head>> {
        self.newer.heads.get(key).or_else(|| self.older.heads.get(key)).copied()
    }

    /// Notes what has become of keys.
    pub(super) fn note(&mut self, changed: impl IntoIterator<Item = (Slice, Option<Head>)>) {
        for (key, head) in changed {
            if self.newer.heads.len() >= KEYS_MAX || self.newer.key_bytes >= KEY_BYTES_MAX {
                self.older = std::mem::take(&mut self.newer);
            }
            self.newer.key_bytes += key.len();
            self.newer.heads.insert(key, head);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::EntryMeta;

    fn head(revision: u64) -> Option<Head> {
        let meta = EntryMeta { version: 1, revision, created_at_ms: 0, updated_at_ms: 0 };
        Some(Head { meta, is_apart: false })
    }

    #[test]
    fn the_newest_head_of_a_key_is_found_or_none() {
        let mut recent = RecentHeads::default();
        let key = |number: usize| Slice::from(number.to_string().as_bytes());
        recent.note([(key(0), head(1)), (key(1), head(1))]);
        // Until the first generation is the older one.
        recent.note((2..=KEYS_MAX).map(|number| (key(number), head(2))));
        recent.note([(key(1), None)]);
        assert_eq!((recent.get(b"0"), recent.get(b"1"), recent.get(b"x")), (Some(head(1)), Some(None), None));
        recent.note((0..KEYS_MAX).map(|number| (key(number + 1_000_000), head(3))));
        assert_eq!((recent.get(b"0"), recent.get(b"1")), (None, Some(None)));
        let long = |number: usize| Slice::from(format!("{number}{}", "x".repeat(1_000)).as_bytes());
        recent.note((0..3 * KEY_BYTES_MAX / 1_000).map(|number| (long(number), head(4))));
        assert!(recent.newer.key_bytes + recent.older.key_bytes < 2 * KEY_BYTES_MAX + 4_000);
        assert_eq!((recent.get(&long(0)), recent.get(b"1")), (None, None));
    }
}
