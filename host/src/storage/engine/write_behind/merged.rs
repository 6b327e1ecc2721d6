//! Views: the rows of the layers and of the engine, as if they were in one table.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::ops::Bound;

use super::layers::{End, Layers};
use crate::storage::Error;
use crate::storage::engine::{Bounds, Keys, ReadTables, Rows, Slice, Table};

/// Rows that a range takes from the layers at once.
const CHUNK_ROWS: usize = 32;

/// The state at one moment.
pub(super) struct View {
    layers: Layers,
    below: Box<dyn ReadTables>,
}

impl ReadTables for View {
    fn get(&self, table: Table, key: &[u8]) -> Result<Option<Slice>, Error> {
        match self.layers.get(table, key) {
            Some(row) => Ok(row.clone()),
            None => self.below.get(table, key),
        }
    }

    fn range(&self, table: Table, bounds: Bounds) -> Result<Rows, Error> {
        let below = self.below.range(table, bounds.clone())?;
        Ok(Box::new(self.merged(table, bounds, below)))
    }

    fn keys(&self, table: Table, bounds: Bounds) -> Result<Keys, Error> {
        let below = self.below.keys(table, bounds.clone())?.map(|key| Ok((key?, Slice::from([]))));
        let merged = self.merged(table, bounds, Box::new(below));
        Ok(Box::new(merged.map(|row| Ok(row?.0))))
    }
}

impl View {
    /// `below` must show a moment at which the engine had all rows but those of the layers.
    pub(super) fn new(layers: Layers, below: Box<dyn ReadTables>) -> Self {
        Self { layers, below }
    }

    fn merged(&self, table: Table, bounds: Bounds, below: Rows) -> Merged {
        let (buffered, stored) = (Ends::default(), Ends::default());
        Merged { layers: self.layers.clone(), table, bounds, buffered, below, stored }
    }
}

/// Tables that may not be read.
pub(super) struct Unread;

impl ReadTables for Unread {
    fn get(&self, _: Table, _: &[u8]) -> Result<Option<Slice>, Error> {
        Err(Error::NotInMemory)
    }

    fn range(&self, _: Table, _: Bounds) -> Result<Rows, Error> {
        Err(Error::NotInMemory)
    }
}

/// The rows of a range. Those of an upper layer hide those below.
struct Merged {
    layers: Layers,
    table: Table,
    /// The part of the range that was not taken from the layers.
    bounds: Bounds,
    /// Rows that were taken from the layers, from either end.
    buffered: Ends<(Slice, Option<Slice>)>,
    below: Rows,
    /// The next rows below, from either end, if they were taken already.
    stored: Ends<(Slice, Slice)>,
}

/// What was taken from the ends of a sequence, and not used yet. What comes next from one end, if nothing is left between them, is
/// what was taken last from the other.
struct Ends<T> {
    /// The first of the sequence comes first.
    front: VecDeque<T>,
    /// The last of the sequence comes first.
    back: VecDeque<T>,
    /// Whether nothing is left between them.
    is_drained: bool,
}

impl<T> Default for Ends<T> {
    fn default() -> Self {
        Self { front: VecDeque::new(), back: VecDeque::new(), is_drained: false }
    }
}

impl<T> Ends<T> {
    /// Has the next item from an end at the start of the queue that it returns. `take` takes more from that end, if there is more.
    fn next<E>(
        &mut self,
        end: End,
        take: impl FnOnce(&mut VecDeque<T>) -> Result<(), E>,
    ) -> Result<&mut VecDeque<T>, E> {
        let (near, far) = match end {
            End::Front => (&mut self.front, &mut self.back),
            End::Back => (&mut self.back, &mut self.front),
        };
        if near.is_empty() && !self.is_drained {
            take(near)?;
            self.is_drained = near.is_empty();
        }
        if near.is_empty() {
            near.extend(far.pop_back());
        }
        Ok(near)
    }
}

impl Merged {
    fn step(&mut self, end: End) -> Result<Option<(Slice, Slice)>, Error> {
        loop {
            let Self { layers, table, bounds, buffered, below, stored } = self;
            let stored = stored.next(end, |stored| {
                let row = match end {
                    End::Front => below.next(),
                    End::Back => below.next_back(),
                };
                stored.extend(row.transpose()?);
                Ok::<_, Error>(())
            })?;
            let Ok(buffered) = buffered.next(end, |taken| {
                take_chunk(layers, *table, bounds, end, taken);
                Ok::<_, Infallible>(())
            });
            let order = match (stored.front(), buffered.front()) {
                (None, None) => return Ok(None),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some((stored, _)), Some((buffered, _))) => end.order(stored, buffered),
            };
            match order {
                Ordering::Less => return Ok(stored.pop_front()),
                Ordering::Equal => drop(stored.pop_front()),
                Ordering::Greater => {}
            }
            if let Some((key, Some(value))) = buffered.pop_front() {
                return Ok(Some((key, value)));
            }
        }
    }
}

/// Takes rows from an end of a range of the layers, of two equal keys the newer layer's, and shortens the range by them.
fn take_chunk(
    layers: &Layers,
    table: Table,
    bounds: &mut Bounds,
    end: End,
    taken: &mut VecDeque<(Slice, Option<Slice>)>,
) {
    let [mut newer, mut older] = [&layers.newer, &layers.older].map(|layer| layer.range(table, bounds, end).peekable());
    while taken.len() < CHUNK_ROWS {
        let order = match (newer.peek(), older.peek()) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((newer, _)), Some((older, _))) => end.order(newer, older),
        };
        if order == Ordering::Equal {
            older.next();
        }
        let row = if order == Ordering::Greater { older.next() } else { newer.next() };
        taken.extend(row.map(|(key, value)| (key.clone(), value.clone())));
    }
    drop((newer, older));
    if let Some((last, _)) = taken.back() {
        let passed = Bound::Excluded(last.to_vec());
        match end {
            End::Front => bounds.0 = passed,
            End::Back => bounds.1 = passed,
        }
    }
}

impl Iterator for Merged {
    type Item = Result<(Slice, Slice), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.step(End::Front).transpose()
    }
}

impl DoubleEndedIterator for Merged {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.step(End::Back).transpose()
    }
}
