//! The layers of the buffer: ordered maps with the newest row of each key.

use std::cmp::Ordering;
use std::sync::Arc;

use imbl::OrdMap;

use crate::storage::engine::{Bounds, Change, Slice, Table, WriteBatch};

/// Memory counted for each row beside its key and value, in bytes: its place in a map that is half full, and its allocations.
const ROW_OVERHEAD_BYTES: usize = 128;

/// Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Layers {
    /// What was written since the last flush began.
    pub(super) newer: Arc<Layer>,
    /// What that flush has written, or is writing.
    pub(super) older: Arc<Layer>,
}

impl Layers {
    /// The row of a key, or that it was removed; `None` if neither layer knows.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Slice>> {
        self.newer.get(table, key).or_else(|| self.older.get(table, key))
    }
}

/// A row of a layer.
pub(super) type LayerRow<'a> = (&'a Slice, &'a Option<Slice>);

/// The newest rows of keys; a key without a row is removed.
#[derive(Clone, Default)]
pub(super) struct Layer {
    /// By the number of the table.
    tables: Vec<OrdMap<Slice, Option<Slice>>>,
    /// Memory of the rows, about.
    pub(super) bytes: usize,
}

impl Layer {
    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    pub(super) fn change(&mut self, changes: Vec<Change>) {
        changes.into_iter().for_each(|change| self.set(change));
    }

    fn set(&mut self, Change { table, key, value }: Change) {
        if self.tables.len() <= table.0 {
            self.tables.resize_with(table.0 + 1, OrdMap::new);
        }
        let row_bytes = |value: &Option<Slice>| value.as_ref().map_or(0, |value| value.len());
        let key_bytes = key.len() + ROW_OVERHEAD_BYTES;
        self.bytes += row_bytes(&value);
        if let Some(rows) = self.tables.get_mut(table.0) {
            match rows.insert(key, value) {
                Some(former) => self.bytes -= row_bytes(&former),
                None => self.bytes += key_bytes,
            }
        }
    }

    /// The row of a key, or that it was removed; `None` if the layer does not know.
    pub(super) fn get(&self, table: Table, key: &[u8]) -> Option<&Option<Slice>> {
        self.tables.get(table.0)?.get(key)
    }

    /// The rows of a range, from one of its ends.
    pub(super) fn range<'a>(
        &'a self,
        table: Table,
        bounds: &'a Bounds,
        end: End,
    ) -> Box<dyn Iterator<Item = LayerRow<'a>> + 'a> {
        let (first, last) = bounds;
        let bounds = (first.as_ref().map(Vec::as_slice), last.as_ref().map(Vec::as_slice));
        let rows = self.tables.get(table.0).into_iter().flat_map(move |rows| rows.range::<_, [u8]>(bounds));
        match end {
            End::Front => Box::new(rows),
            End::Back => Box::new(rows.rev()),
        }
    }

    /// All rows, as one batch.
    pub(super) fn batch(&self) -> WriteBatch {
        let mut batch = WriteBatch::with_capacity(self.tables.iter().map(OrdMap::len).sum());
        for (table, rows) in (0..).map(Table).zip(&self.tables) {
            rows.iter().for_each(|(key, value)| batch.set(table, key.clone(), value.clone()));
        }
        batch
    }
}

/// An end of a range.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Front,
    Back,
}

impl End {
    /// Which key comes first from this end.
    pub(super) fn order(self, one: &Slice, other: &Slice) -> Ordering {
        match self {
            Self::Front => one.cmp(other),
            Self::Back => other.cmp(one),
        }
    }
}
