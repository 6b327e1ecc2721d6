//! Reading ranges.

use std::ops::Bound;

use super::tables;
use crate::storage::command::{Entry, Space};
use crate::storage::engine::{Bounds, ReadTables, Slice};
use crate::storage::{Error, record};

/// Which entries to read, and how many.
#[derive(Debug, Clone)]
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
    pub limit: usize,
    /// A page ends once its values reach this many bytes; it has at least one entry.
    pub bytes_max: usize,
}

impl Default for RangeQuery {
    /// Everything in [`Space::Kv`].
    fn default() -> Self {
        Self {
            space: Space::Kv,
            start: None,
            end: None,
            prefix: None,
            after: None,
            reverse: false,
            keys_only: false,
            limit: usize::MAX,
            bytes_max: usize::MAX,
        }
    }
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
        let mut low = self.start.clone().map_or(Bound::Unbounded, |start| Bound::Included(start.into_bytes()));
        let mut high = self.end.clone().map_or(Bound::Unbounded, |end| Bound::Included(end.into_bytes()));
        if let Some(prefix) = &self.prefix {
            low = higher(low, Bound::Included(prefix.clone().into_bytes()));
            high = lower(high, end_of_prefix(prefix));
        }
        if let Some(after) = &self.after {
            let after = Bound::Excluded(after.clone().into_bytes());
            if self.reverse {
                high = lower(high, after);
            } else {
                low = higher(low, after);
            }
        }
        let possible = match (&low, &high) {
            (Bound::Included(low), Bound::Included(high)) => low <= high,
            (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => low < high,
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => true,
        };
        possible.then_some((low, high))
    }
}

/// The upper bound of the keys with a prefix. UTF-8 has no byte 0xFF, so the last byte of a prefix can be incremented.
fn end_of_prefix(prefix: &str) -> Bound<Vec<u8>> {
    let mut end = prefix.as_bytes().to_vec();
    match end.pop() {
        Some(last) => {
            end.push(last.saturating_add(1));
            Bound::Excluded(end)
        }
        None => Bound::Unbounded,
    }
}

/// The stricter of two lower bounds.
fn higher(one: Bound<Vec<u8>>, other: Bound<Vec<u8>>) -> Bound<Vec<u8>> {
    match (&one, &other) {
        (Bound::Unbounded, _) => other,
        (_, Bound::Unbounded) => one,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => {
            if a > b || (a == b && matches!(one, Bound::Excluded(_))) { one } else { other }
        }
    }
}

/// The stricter of two upper bounds.
fn lower(one: Bound<Vec<u8>>, other: Bound<Vec<u8>>) -> Bound<Vec<u8>> {
    match (&one, &other) {
        (Bound::Unbounded, _) => other,
        (_, Bound::Unbounded) => one,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => {
            if a < b || (a == b && matches!(one, Bound::Excluded(_))) { one } else { other }
        }
    }
}

/// Reads one page.
pub(super) fn page(view: &dyn ReadTables, query: &RangeQuery, revision: u64) -> Result<Page, Error> {
    let mut page = Page { entries: Vec::new(), has_more: false, revision };
    let Some(bounds) = query.bounds() else { return Ok(page) };
    let mut rows = view.range(tables::of(query.space), bounds)?;
    let mut bytes = 0;
    while let Some(row) = if query.reverse { rows.next_back() } else { rows.next() } {
        if page.entries.len() >= query.limit || bytes >= query.bytes_max {
            page.has_more = true;
            break;
        }
        let (key, found) = row?;
        let entry = record::decode(record::decode_key(&key)?, &found, !query.keys_only)?;
        bytes += entry.value.bytes.len();
        page.entries.push(entry);
    }
    Ok(page)
}

/// The keys with a prefix.
pub(super) fn keys(tables: &dyn ReadTables, space: Space, prefix: &str) -> Result<Vec<String>, Error> {
    let query = RangeQuery { prefix: Some(prefix.to_owned()), ..RangeQuery::default() };
    let Some(bounds) = query.bounds() else { return Ok(Vec::new()) };
    tables.keys(tables::of(space), bounds)?.map(|key| record::decode_key(&key?)).collect()
}

/// The first `limit` keys of a range with their revisions. An empty `end` means no upper bound.
pub(super) fn revisions(
    tables: &dyn ReadTables,
    space: Space,
    start: &str,
    end: &str,
    limit: usize,
) -> Result<Vec<(String, u64)>, Error> {
    let end = if end.is_empty() { None } else { Some(end.to_owned()) };
    let query = RangeQuery { start: Some(start.to_owned()), end, ..RangeQuery::default() };
    let Some(bounds) = query.bounds() else { return Ok(Vec::new()) };
    let revision = |row: Result<_, Error>| {
        let (key, found): (Slice, Slice) = row?;
        Ok((record::decode_key(&key)?, record::decode_meta(&found)?.revision))
    };
    tables.range(tables::of(space), bounds)?.take(limit).map(revision).collect()
}
