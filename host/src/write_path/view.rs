//! The store as plugins see it.

use crate::hooks::{View, ViewError};
use crate::storage::{Data, Entry, RangeDigest, Space};

/// The state of this node, which may lag. Each read becomes a precondition, so a stale read never decides a write.
pub(super) struct LocalView(pub(super) Data);

impl View for LocalView {
    fn get(&self, key: &str) -> Result<Option<Entry>, ViewError> {
        self.0.get(Space::Kv, key).map_err(|error| ViewError(error.into()))
    }

    fn list(&self, start: &str, end: &str, limit: u32) -> Result<(Vec<String>, RangeDigest), ViewError> {
        self.0.digest_range(start, end, limit).map_err(|error| ViewError(error.into()))
    }
}
