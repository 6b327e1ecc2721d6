//! Entries in their tables: headers and small values in one, large values in another.

use bytes::Bytes;

use super::tables;
use crate::storage::engine::{ReadTables, Slice, WriteBatch};
use crate::storage::record::{self, Row, StoredValue};
use crate::storage::{Entry, EntryMeta, Error, Space, Value};

/// What apply needs to know of a stored entry. Read without its value, if that is large.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub meta: EntryMeta,
    /// Whether the value has a row of its own.
    pub is_apart: bool,
}

pub(super) fn head(tables: &dyn ReadTables, space: Space, key: &str) -> Result<Option<Head>, Error> {
    let Some(row) = tables.get(tables::of(space), key.as_bytes())? else { return Ok(None) };
    let row = Row::decode(&row)?;
    Ok(Some(Head { meta: row.meta, is_apart: row.is_apart() }))
}

pub(super) fn get(tables: &dyn ReadTables, space: Space, key: &str) -> Result<Option<Entry>, Error> {
    let row = tables.get(tables::of(space), key.as_bytes())?;
    row.map(|row| entry(tables, space, key.to_owned(), &row, true)).transpose()
}

/// The entry of a row, with an empty value if only the header is wanted. `tables` must show the moment of the row.
pub(super) fn entry(
    tables: &dyn ReadTables,
    space: Space,
    key: String,
    row: &[u8],
    with_value: bool,
) -> Result<Entry, Error> {
    let Row { meta, content_type, value } = Row::decode(row)?;
    let bytes = match value {
        _ if !with_value => Bytes::new(),
        // Copied, because a row holds on to the whole block that it was read from.
        StoredValue::Inline(bytes) => Bytes::copy_from_slice(bytes),
        StoredValue::Apart(length) => Bytes::from_owner(apart(tables, space, key.as_bytes(), length)?),
    };
    Ok(Entry { key, meta, value: Value::of_type(content_type, bytes) })
}

/// A value that is stored apart.
fn apart(tables: &dyn ReadTables, space: Space, key: &[u8], length: u64) -> Result<Slice, Error> {
    let value = tables.get(tables::values_of(space), key)?;
    let value = value.filter(|value| u64::try_from(value.len()) == Ok(length));
    value.ok_or_else(|| Error::corrupt(format!("the value of {:?}", String::from_utf8_lossy(key))))
}

/// A new entry on its way into the tables.
pub(super) struct NewEntry<'a> {
    pub meta: EntryMeta,
    pub value: &'a Value,
    /// Whether its value gets a row of its own.
    pub is_apart: bool,
}

/// Adds the change of an entry to a batch; without a new one, its removal. `was_apart`: whether the old value has a row
/// of its own. `encoded` is memory in which the row is encoded; what it held is lost.
pub(super) fn stage(
    batch: &mut WriteBatch,
    space: Space,
    key: &str,
    was_apart: bool,
    new: Option<NewEntry<'_>>,
    encoded: &mut Vec<u8>,
) -> Result<(), Error> {
    let (row, value) = match new {
        Some(NewEntry { meta, value, is_apart }) => {
            let value = record::encode(meta, value, is_apart, encoded)?;
            (Some(encoded.as_slice().into()), value)
        }
        None => (None, None),
    };
    if was_apart || value.is_some() {
        batch.set(tables::values_of(space), key, value.as_deref().map(Into::into));
    }
    batch.set(tables::of(space), key, row);
    Ok(())
}

/// A row with its value inside, which is how snapshots carry it: the form of format 3, which every version reads.
pub(super) fn whole(tables: &dyn ReadTables, space: Space, key: &[u8], row: Slice) -> Result<Slice, Error> {
    let Row { meta, content_type, value } = Row::decode(&row)?;
    match value {
        StoredValue::Inline(_) => Ok(row),
        StoredValue::Apart(length) => {
            let value = apart(tables, space, key, length)?;
            let mut row = Vec::new();
            record::encode_whole(meta, content_type, &value, &mut row)?;
            Ok(row.into())
        }
    }
}

/// Adds an entry to a batch, given its row as snapshots carry it. `has_values_apart`: whether large values are stored apart here.
pub(super) fn insert_whole(
    batch: &mut WriteBatch,
    space: Space,
    key: Bytes,
    row: Bytes,
    has_values_apart: bool,
) -> Result<(), Error> {
    let Row { meta, content_type, value } = Row::decode(&row)?;
    match value {
        StoredValue::Inline(value) if has_values_apart && value.len() > record::INLINE_VALUE_BYTES_MAX => {
            let value = Value::of_type(content_type, row.slice_ref(value));
            let entry = NewEntry { meta, value: &value, is_apart: true };
            stage(batch, space, &record::decode_key(&key)?, false, Some(entry), &mut Vec::new())
        }
        StoredValue::Inline(_) => {
            batch.insert(tables::of(space), &*key, &*row);
            Ok(())
        }
        StoredValue::Apart(_) => Err(Error::corrupt("the row of an entry")),
    }
}
