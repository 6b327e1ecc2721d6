//! What plugins may read from the store, and what they have read.
//!
//! Every read becomes a precondition of the write (P6). The first answer counts: if a later read of the same key differs,
//! the write fails its precondition and is judged again. Every node checks the preconditions when it applies the write, so
//! the keys that they cover are bounded for all hooks of a write together.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::limits;
use crate::sandbox::{HostReads, wit};
use crate::storage::command::{AskedBy, Entry, Fact, Precondition, RangeDigest, Space};

/// A view of the store's [`Space::Kv`] for the plugins of one judgement. Called on blocking threads; may wait for disk.
pub trait View: Send + Sync {
    /// The entry of a key, or `None` if it has none.
    fn get(&self, key: &str) -> Result<Option<Entry>, ViewError>;

    /// The first `limit` keys from `start` to `end`, both inclusive, in byte order (an empty `end` means no upper
    /// bound), with the digest of these keys and their revisions, taken in the same instant.
    fn list(&self, start: &str, end: &str, limit: u32) -> Result<(Vec<String>, RangeDigest), ViewError>;
}

/// The node's storage could not answer a read.
#[derive(Debug, thiserror::Error)]
#[error("the node's storage cannot be read")]
pub struct ViewError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// The reads of one call of a plugin: counted, bounded and recorded.
#[derive(Default)]
pub struct Reads {
    /// `None`: it belongs to no call, and all reads are refused.
    view: Option<Arc<dyn View>>,
    count: usize,
    bytes: usize,
    /// Keys that the earlier calls of the write have covered.
    covered_before: usize,
    facts: Facts,
    failure: Option<ViewError>,
}

impl HostReads for Reads {
    fn get(&mut self, key: &str) -> Result<Option<wit::Entry>, wit::ReadError> {
        let view = self.begin()?;
        if !is_key(key) {
            return Ok(None);
        }
        let entry = view.get(key).map_err(|error| self.fail(error))?;
        self.facts.see(key, Seen::Revision(entry.as_ref().map(|entry| entry.meta.revision)));
        self.cover()?;
        let entry_bytes = entry.as_ref().map_or(0, |entry| entry.key.len() + entry.value.bytes.len());
        self.charge(entry_bytes)?;
        Ok(entry.map(|entry| wit::Entry {
            key: entry.key,
            content_type: entry.value.content_type.into_owned(),
            value: entry.value.bytes.to_vec(),
            version: entry.meta.version,
            revision: entry.meta.revision,
        }))
    }

    fn exists(&mut self, key: &str) -> Result<bool, wit::ReadError> {
        let view = self.begin()?;
        if !is_key(key) {
            return Ok(false);
        }
        let exists = view.get(key).map_err(|error| self.fail(error))?.is_some();
        self.facts.see(key, if exists { Seen::Exists } else { Seen::Revision(None) });
        self.cover()?;
        Ok(exists)
    }

    fn list(&mut self, start: &str, end: &str, limit: u32) -> Result<Vec<String>, wit::ReadError> {
        let view = self.begin()?;
        if limit == 0 || limit as usize > limits::PLUGIN_LIST_MAX {
            return Err(wit::ReadError::Limit(format!("limit is {limit}; allowed: 1 to {}", limits::PLUGIN_LIST_MAX)));
        }
        if start.len() > limits::KEY_BYTES_MAX || end.len() > limits::KEY_BYTES_MAX {
            return Err(wit::ReadError::Limit(format!("start and end may have {} bytes", limits::KEY_BYTES_MAX)));
        }
        let (keys, digest) = view.list(start, end, limit).map_err(|error| self.fail(error))?;
        self.facts.see_range(start, end, limit, keys.len(), digest);
        self.cover()?;
        self.charge(keys.iter().map(String::len).sum())?;
        Ok(keys)
    }
}

impl Reads {
    /// The reads of a call, after earlier ones of the same write.
    pub(super) fn of(view: Arc<dyn View>, earlier: &Facts) -> Self {
        Self { view: Some(view), covered_before: earlier.covered, ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What was read. If the storage failed, its error: a judgement made without the answer does not count.
    pub(super) fn close(self) -> Result<Facts, ViewError> {
        self.failure.map_or(Ok(self.facts), Err)
    }

    fn begin(&mut self) -> Result<Arc<dyn View>, wit::ReadError> {
        let Some(view) = self.view.clone() else {
            return Err(wit::ReadError::Unavailable("the store cannot be read during `configure`".to_owned()));
        };
        if self.count >= limits::PLUGIN_READS_MAX {
            return Err(wit::ReadError::Limit(format!("a call may read {} times", limits::PLUGIN_READS_MAX)));
        }
        // A read that was refused is a fact as well, since the plugin may judge by the refusal. There is one of them at most.
        self.cover()?;
        self.count += 1;
        Ok(view)
    }

    fn charge(&mut self, bytes: usize) -> Result<(), wit::ReadError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > limits::PLUGIN_READ_BYTES_MAX {
            return Err(wit::ReadError::Limit(format!("a call may read {} bytes", limits::PLUGIN_READ_BYTES_MAX)));
        }
        Ok(())
    }

    /// Refuses a read that covers more keys than those of a write may.
    fn cover(&self) -> Result<(), wit::ReadError> {
        if self.covered_before.saturating_add(self.facts.covered) > limits::WRITE_READ_KEYS_MAX {
            let limit = limits::WRITE_READ_KEYS_MAX;
            return Err(wit::ReadError::Limit(format!("the hooks of a write may read {limit} keys in all")));
        }
        Ok(())
    }

    fn fail(&mut self, error: ViewError) -> wit::ReadError {
        self.failure.get_or_insert(error);
        wit::ReadError::Unavailable("the node's storage failed".to_owned())
    }
}

/// Facts about the store, each recorded once, as first seen.
#[derive(Debug, Default)]
pub(super) struct Facts {
    keys: BTreeMap<String, Seen>,
    /// Each with the limit that its precondition needs.
    ranges: BTreeMap<(String, String, u32), (u32, RangeDigest)>,
    /// Keys that the preconditions look at.
    covered: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Exists,
    Revision(Option<u64>),
}

impl Facts {
    /// Adds the facts of a later call. Earlier facts take precedence.
    pub(super) fn absorb(&mut self, later: Self) {
        let covered = self.covered.saturating_add(later.covered);
        for (key, seen) in later.keys {
            self.see(&key, seen);
        }
        for (range, seen) in later.ranges {
            self.ranges.entry(range).or_insert(seen);
        }
        self.covered = covered;
    }

    /// The facts as preconditions of the write, in a stable order.
    pub(super) fn into_preconditions(self) -> Vec<Precondition> {
        let keys = self.keys.into_iter().map(|(key, seen)| match seen {
            Seen::Exists => Fact::Exists { key },
            Seen::Revision(revision) => Fact::Revision { key, revision },
        });
        let ranges =
            self.ranges.into_iter().map(|((start, end, _), (limit, digest))| Fact::Range { start, end, limit, digest });
        keys.chain(ranges).map(|fact| Precondition { asked_by: AskedBy::Plugin, space: Space::Kv, fact }).collect()
    }

    /// The precondition looks one key beyond those that were found, and no further: a new key shows there.
    fn see_range(&mut self, start: &str, end: &str, limit: u32, found: usize, digest: RangeDigest) {
        self.ranges.entry((start.to_owned(), end.to_owned(), limit)).or_insert_with(|| {
            let needed = limit.min(u32::try_from(found).unwrap_or(u32::MAX).saturating_add(1));
            self.covered = self.covered.saturating_add(needed as usize);
            (needed, digest)
        });
    }

    /// An exact revision replaces mere existence, because it says more.
    fn see(&mut self, key: &str, seen: Seen) {
        match (self.keys.get_mut(key), seen) {
            (None, _) => {
                self.keys.insert(key.to_owned(), seen);
                self.covered = self.covered.saturating_add(1);
            }
            // If it is gone now, `Exists` stays: with that the write fails its precondition, as it should.
            (Some(known @ Seen::Exists), Seen::Revision(Some(_))) => *known = seen,
            (Some(_), _) => {}
        }
    }
}

/// Whether a key of this form can have an entry at all. If not, reading it needs no precondition.
fn is_key(key: &str) -> bool {
    !key.is_empty() && key.len() <= limits::KEY_BYTES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A store in which every range has this many keys.
    struct Ranges(usize);

    impl View for Ranges {
        fn get(&self, _: &str) -> Result<Option<Entry>, ViewError> {
            Ok(None)
        }

        fn list(&self, start: &str, _: &str, limit: u32) -> Result<(Vec<String>, RangeDigest), ViewError> {
            let found = (0..self.0).take(limit as usize).map(|number| format!("{start}{number:04}")).collect();
            Ok((found, RangeDigest([0; 32])))
        }
    }

    fn is_limit<T>(answer: Result<T, wit::ReadError>) -> bool {
        matches!(answer, Err(wit::ReadError::Limit(_)))
    }

    #[test]
    fn the_keys_that_the_reads_of_all_calls_cover_are_bounded_together() {
        let view: Arc<dyn View> = Arc::new(Ranges(5_000));
        let mut facts = Facts::default();
        for call in 0..limits::WRITE_READ_KEYS_MAX / 1_000 {
            let mut reads = Reads::of(Arc::clone(&view), &facts);
            reads.list(&format!("{call}/"), "", 1_000).unwrap();
            // Asked once more, it covers nothing more.
            reads.list(&format!("{call}/"), "", 1_000).unwrap();
            facts.absorb(reads.close().unwrap());
        }
        let reads = || Reads::of(Arc::clone(&view), &facts);
        assert!(is_limit(reads().get("k")) && is_limit(reads().exists("k")) && is_limit(reads().list("k", "", 1)));
        // A plugin may pass over the refusal and read on.
        let mut reading_on = reads();
        for number in 0..100 {
            assert!(is_limit(reading_on.list(&format!("more {number}"), "", 1_000)));
        }
        assert!(reading_on.close().unwrap().covered <= 1_001);
        assert!(Reads::of(Arc::clone(&view), &Facts::default()).get("k").is_ok());
    }

    #[test]
    fn the_precondition_of_a_list_looks_one_key_beyond_those_that_were_found() {
        for (asked, needed) in [(1_000, 4), (4, 4), (3, 3), (2, 2)] {
            let mut reads = Reads::of(Arc::new(Ranges(3)), &Facts::default());
            reads.list("a", "b", asked).unwrap();
            let facts = reads.close().unwrap();
            assert_eq!(facts.covered, needed as usize);
            let preconditions = facts.into_preconditions();
            assert!(matches!(preconditions[0].fact, Fact::Range { limit, .. } if limit == needed), "{preconditions:?}");
        }
    }
}
