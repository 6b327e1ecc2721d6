//! Reading ranges.
//!
//! A page without values, the revisions of a range, and its keys are read without large values, which are stored apart
//! (those that a version of format 3 wrote are not, until they are written again).

use std::ops::Bound;

use super::{rows, tables};
use crate::storage::engine::{Bounds, ReadTables, Slice};
use crate::storage::{Entry, Error, Space, record};

/// Which entries to read, and how many. By default everything in [`Space::Kv`].
#[derive(Debug, Clone, Default)]
pub struct RangeQuery {
    /// The space of the keys.
    pub space: Space,
    /// First key, inclusive.
    pub start: Option<String>,
    /// Last key, inclusive.
    pub end: Option<String>,
    /// Only keys with this prefix.
    pub prefix: Option<String>,
    /// The last key of the previous page: only keys after it, in the direction of reading.
    pub after: Option<String>,
    /// From the last key to the first.
    pub reverse: bool,
    /// Leave the values out.
    pub keys_only: bool,
    /// Maximum number of entries.
    pub limit: Option<usize>,
    /// A page ends once its values reach this many bytes; it has at least one entry.
    pub bytes_max: Option<usize>,
}

/// A part of a range at one moment.
#[derive(Debug, Clone)]
pub struct Page {
    /// The entries, in the requested order.
    pub entries: Vec<Entry>,
    /// Whether the range has more entries after the last one.
    pub has_more: bool,
    /// The store's revision at that moment.
    pub revision: u64,
}

impl RangeQuery {
    /// The bounds of the requested keys; none if no key can match.
    fn bounds(&self) -> Option<Bounds> {
        let (after, before) = match &self.after {
            Some(key) if self.reverse => (None, Some(key.clone().into_bytes())),
            key => (key.as_deref().map(next_key), None),
        };
        let bytes = |key: &String| key.clone().into_bytes();
        let lows = [self.start.as_ref().map(bytes), self.prefix.as_ref().map(bytes), after];
        let highs = [self.end.as_deref().map(next_key), self.prefix.as_deref().and_then(end_of_prefix), before];
        let low = lows.into_iter().flatten().max().unwrap_or_default();
        match highs.into_iter().flatten().min() {
            Some(high) => (low < high).then_some((Bound::Included(low), Bound::Excluded(high))),
            None => Some((Bound::Included(low), Bound::Unbounded)),
        }
    }
}

/// The least key above another.
fn next_key(key: &str) -> Vec<u8> {
    [key.as_bytes(), &[0]].concat()
}

/// The least bytes above all keys with a prefix; none for an empty one. UTF-8 has no byte 0xFF, so the last byte can be
/// incremented.
fn end_of_prefix(prefix: &str) -> Option<Vec<u8>> {
    let mut end = prefix.as_bytes().to_vec();
    *end.last_mut()? += 1;
    Some(end)
}

pub(super) type Revisions = Box<dyn Iterator<Item = Result<(String, u64), Error>>>;

pub(super) fn page(view: &dyn ReadTables, query: &RangeQuery, revision: u64) -> Result<Page, Error> {
    let mut page = Page { entries: Vec::new(), has_more: false, revision };
    let Some(bounds) = query.bounds() else { return Ok(page) };
    let mut rows = view.range(tables::of(query.space), bounds)?;
    let mut bytes = 0;
    while let Some(row) = if query.reverse { rows.next_back() } else { rows.next() } {
        let is_long = query.limit.is_some_and(|limit| page.entries.len() >= limit);
        if is_long || query.bytes_max.is_some_and(|bytes_max| bytes >= bytes_max) {
            page.has_more = true;
            break;
        }
        let (key, found) = row?;
        let entry = rows::entry(view, query.space, record::decode_key(&key)?, &found, !query.keys_only)?;
        bytes += entry.value.bytes.len();
        page.entries.push(entry);
    }
    Ok(page)
}

pub(super) fn keys(tables: &dyn ReadTables, space: Space, prefix: &str) -> Result<Vec<String>, Error> {
    let query = RangeQuery { prefix: Some(prefix.to_owned()), ..RangeQuery::default() };
    let Some(bounds) = query.bounds() else { return Ok(Vec::new()) };
    tables.keys(tables::of(space), bounds)?.map(|key| record::decode_key(&key?)).collect()
}

/// The keys of a range with their revisions. An empty `end` means no upper bound.
pub(super) fn revisions(tables: &dyn ReadTables, space: Space, start: &str, end: &str) -> Result<Revisions, Error> {
    let end = (!end.is_empty()).then(|| end.to_owned());
    let query = RangeQuery { start: Some(start.to_owned()), end, ..RangeQuery::default() };
    let Some(bounds) = query.bounds() else { return Ok(Box::new(std::iter::empty())) };
    let revision = |row: Result<(Slice, Slice), Error>| {
        let (key, found) = row?;
        Ok((record::decode_key(&key)?, record::Row::decode(&found)?.meta.revision))
    };
    Ok(Box::new(tables.range(tables::of(space), bounds)?.map(revision)))
}
