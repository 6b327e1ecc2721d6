//! Reading ranges.

use std::ops::Bound;

use super::command::{Entry, Space};
use super::engine::{Slice, Table, View};
use super::{Error, record};

/// Which entries to read, and how many.
#[derive(Debug, Clone)]
pub struct RangeQuery {
    /// The space of the keys.
    pub space: Space,
    /// First key, inclusive.
    pub start: Option<String>,
    /// Last key, inclusive.
    pub end: Option<String>,
    /// What keys begin with.
    pub prefix: Option<String>,
    /// Where an earlier page ended: only keys beyond it, in the direction of reading.
    pub after: Option<String>,
    /// From the last key to the first.
    pub reverse: bool,
    /// Leave the values out.
    pub keys_only: bool,
    /// Most entries.
    pub limit: usize,
    /// A page ends once its values reach this many bytes; it has one entry at least.
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

/// A part of a range, as of one moment.
#[derive(Debug, Clone)]
pub struct Page {
    /// The entries, in the order asked for.
    pub entries: Vec<Entry>,
    /// Whether there are more beyond the last one.
    pub has_more: bool,
    /// The store's revision of that moment.
    pub revision: u64,
}

type Bounds = (Bound<Vec<u8>>, Bound<Vec<u8>>);

impl RangeQuery {
    /// The bounds of the keys wanted; none if no key can be wanted.
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

/// Where the keys with a prefix end. UTF-8 has no byte 0xFF, so the last byte of a prefix can always be raised.
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

/// The lower bound that admits less.
fn higher(one: Bound<Vec<u8>>, other: Bound<Vec<u8>>) -> Bound<Vec<u8>> {
    match (&one, &other) {
        (Bound::Unbounded, _) => other,
        (_, Bound::Unbounded) => one,
        (Bound::Included(a) | Bound::Excluded(a), Bound::Included(b) | Bound::Excluded(b)) => {
            if a > b || (a == b && matches!(one, Bound::Excluded(_))) { one } else { other }
        }
    }
}

/// The upper bound that admits less.
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
pub(super) fn page(view: &View, table: &Table, query: &RangeQuery, revision: u64) -> Result<Page, Error> {
    let mut page = Page { entries: Vec::new(), has_more: false, revision };
    let Some(bounds) = query.bounds() else { return Ok(page) };
    let iter = view.range(table, bounds);
    let mut directed: Box<dyn Iterator<Item = Result<(Slice, Slice), Error>>> =
        if query.reverse { Box::new(iter.rev()) } else { Box::new(iter) };
    let mut bytes = 0;
    for item in directed.by_ref() {
        if page.entries.len() >= query.limit || bytes >= query.bytes_max {
            page.has_more = true;
            break;
        }
        let (key, found) = item?;
        let entry = record::decode(record::decode_key(&key)?, &found, !query.keys_only)?;
        bytes += entry.value.bytes.len();
        page.entries.push(entry);
    }
    Ok(page)
}

/// The keys with a prefix.
pub(super) fn keys(table: &Table, prefix: &str) -> Result<Vec<String>, Error> {
    let query = RangeQuery { prefix: Some(prefix.to_owned()), ..RangeQuery::default() };
    let Some(bounds) = query.bounds() else { return Ok(Vec::new()) };
    table.range(bounds).keys().map(|key| record::decode_key(&key?)).collect()
}

/// The first `limit` keys of a range with their revisions. An empty `end` means no upper bound.
pub(super) fn revisions(table: &Table, start: &str, end: &str, limit: usize) -> Result<Vec<(String, u64)>, Error> {
    let end = if end.is_empty() { None } else { Some(end.to_owned()) };
    let query = RangeQuery { start: Some(start.to_owned()), end, ..RangeQuery::default() };
    let Some(bounds) = query.bounds() else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for item in table.range(bounds).take(limit) {
        let (key, value) = item?;
        found.push((record::decode_key(&key)?, record::decode_meta(&value)?.revision));
    }
    Ok(found)
}
