//! What plugins may read from the store, and what they have read.
//!
//! Every read becomes a precondition of the write (P6). The first answer counts: if a later read of the same key differs,
//! the write fails its precondition and is judged again.

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
        let entry_bytes = entry.as_ref().map_or(0, |entry| entry.key.len() + entry.value.bytes.len());
        self.charge(entry_bytes)?;
        Ok(entry.map(|entry| wit::Entry {
            key: entry.key,
            content_type: entry.value.content_type,
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
        self.facts.ranges.entry((start.to_owned(), end.to_owned(), limit)).or_insert(digest);
        self.charge(keys.iter().map(String::len).sum())?;
        Ok(keys)
    }
}

impl Reads {
    pub(super) fn of(view: Arc<dyn View>) -> Self {
        Self { view: Some(view), ..Self::default() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// What was read. If the storage failed, its error: a judgement made without the answer does not count.
    pub(super) fn close(self) -> Result<Facts, ViewError> {
        self.failure.map_or(Ok(self.facts), Err)
    }

    fn begin(&mut self) -> Result<Arc<dyn View>, wit::ReadError> {
        let Some(view) = &self.view else {
            return Err(wit::ReadError::Unavailable("the store cannot be read during `configure`".to_owned()));
        };
        if self.count >= limits::PLUGIN_READS_MAX {
            return Err(wit::ReadError::Limit(format!("a call may read {} times", limits::PLUGIN_READS_MAX)));
        }
        self.count += 1;
        Ok(Arc::clone(view))
    }

    fn charge(&mut self, bytes: usize) -> Result<(), wit::ReadError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > limits::PLUGIN_READ_BYTES_MAX {
            return Err(wit::ReadError::Limit(format!("a call may read {} bytes", limits::PLUGIN_READ_BYTES_MAX)));
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
    ranges: BTreeMap<(String, String, u32), RangeDigest>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Exists,
    Revision(Option<u64>),
}

impl Facts {
    /// Adds the facts of a later call. Earlier facts take precedence.
    pub(super) fn absorb(&mut self, later: Self) {
        for (key, seen) in later.keys {
            self.see(&key, seen);
        }
        for (range, digest) in later.ranges {
            self.ranges.entry(range).or_insert(digest);
        }
    }

    /// The facts as preconditions of the write, in a stable order.
    pub(super) fn into_preconditions(self) -> Vec<Precondition> {
        let keys = self.keys.into_iter().map(|(key, seen)| match seen {
            Seen::Exists => Fact::Exists { key },
            Seen::Revision(revision) => Fact::Revision { key, revision },
        });
        let ranges =
            self.ranges.into_iter().map(|((start, end, limit), digest)| Fact::Range { start, end, limit, digest });
        keys.chain(ranges).map(|fact| Precondition { asked_by: AskedBy::Plugin, space: Space::Kv, fact }).collect()
    }

    /// An exact revision replaces mere existence, because it says more.
    fn see(&mut self, key: &str, seen: Seen) {
        match (self.keys.get_mut(key), seen) {
            (None, _) => {
                self.keys.insert(key.to_owned(), seen);
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
