//! The stored form of an entry.
//!
//! An entry has a row in the table of its space: its header, then the bytes of its value. A value above
//! [`INLINE_VALUE_BYTES_MAX`] has a row of its own in another table, so that headers are read without large values; the
//! entry's row then begins with a zero, and ends with the length of the value. A header begins with the version of the
//! entry, which is at least 1, so the two forms cannot be confused.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{EntryMeta, Error, Value};

/// Longest value that is stored in the row of its entry, in bytes. With its header such a row stays below 4 KiB, from
/// where on the storage engine would store it apart from its key and read it only as a whole.
pub(super) const INLINE_VALUE_BYTES_MAX: usize = 3 * 1024;

/// The first byte of a row whose value is stored apart.
const APART: u8 = 0;

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    meta: EntryMeta,
    content_type: &'a str,
}

/// The row of an entry, decoded.
pub(super) struct Row<'a> {
    pub meta: EntryMeta,
    pub content_type: &'a str,
    pub value: StoredValue<'a>,
}

/// Where the value of an entry is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum StoredValue<'a> {
    Inline(&'a [u8]),
    /// In a row of its own; its length in bytes.
    Apart(u64),
}

impl<'a> Row<'a> {
    pub(super) fn decode(row: &'a [u8]) -> Result<Self, Error> {
        let damaged = || Error::corrupt("the row of an entry");
        let (header, is_apart) = match row.split_first() {
            Some((&APART, header)) => (header, true),
            _ => (row, false),
        };
        let (Header { meta, content_type }, rest) = postcard::take_from_bytes(header).map_err(|_| damaged())?;
        let value = match is_apart {
            true => StoredValue::Apart(postcard::from_bytes(rest).map_err(|_| damaged())?),
            false => StoredValue::Inline(rest),
        };
        Ok(Self { meta, content_type, value })
    }

    pub(super) fn is_apart(&self) -> bool {
        matches!(self.value, StoredValue::Apart(_))
    }
}

/// Whether a value is large enough to be stored apart.
pub(super) fn is_large(value: &Value) -> bool {
    value.bytes.len() > INLINE_VALUE_BYTES_MAX
}

/// Replaces what is in `row` by the row of an entry. Returns the value if that is to be stored apart.
pub(super) fn encode(meta: EntryMeta, value: &Value, apart: bool, row: &mut Vec<u8>) -> Result<Option<Bytes>, Error> {
    if !apart {
        encode_whole(meta, &value.content_type, &value.bytes, row)?;
        return Ok(None);
    }
    row.clear();
    row.push(APART);
    extend(row, &Header { meta, content_type: &value.content_type })?;
    extend(row, &value.bytes.len())?;
    Ok(Some(value.bytes.clone()))
}

/// Replaces what is in `row` by the row of an entry with its value, however long that is.
pub(super) fn encode_whole(meta: EntryMeta, content_type: &str, value: &[u8], row: &mut Vec<u8>) -> Result<(), Error> {
    row.clear();
    row.reserve(64 + content_type.len() + value.len());
    extend(row, &Header { meta, content_type })?;
    row.extend_from_slice(value);
    Ok(())
}

fn extend(row: &mut Vec<u8>, part: &impl Serialize) -> Result<(), Error> {
    let extended = postcard::to_extend(part, std::mem::take(row)).map_err(|_| Error::corrupt("an entry's header"))?;
    *row = extended;
    Ok(())
}

pub(super) fn decode_key(key: &[u8]) -> Result<String, Error> {
    std::str::from_utf8(key).map(str::to_owned).map_err(|_| Error::corrupt("a key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const META: EntryMeta = EntryMeta { version: 1, revision: 300, created_at_ms: 1, updated_at_ms: 2 };

    #[test]
    fn a_row_with_an_inline_value_is_below_what_the_engine_stores_apart() {
        let meta =
            EntryMeta { version: u64::MAX, revision: u64::MAX, created_at_ms: u64::MAX, updated_at_ms: u64::MAX };
        let content_type = "x".repeat(crate::limits::CONTENT_TYPE_BYTES_MAX);
        let value = Value { content_type: content_type.into(), bytes: vec![b'x'; INLINE_VALUE_BYTES_MAX].into() };
        let mut row = Vec::new();
        let apart = encode(meta, &value, is_large(&value), &mut row).unwrap();
        assert!(apart.is_none() && row.len() < 4 * 1024, "{}", row.len());
    }

    #[test]
    fn the_row_of_a_large_value_has_its_length_and_not_the_value() {
        let value = Value::json(vec![b' '; INLINE_VALUE_BYTES_MAX + 1]);
        let mut row = b"of another entry".to_vec();
        let apart = encode(META, &value, is_large(&value), &mut row).unwrap();
        assert!(row.len() < 64 && apart == Some(value.bytes.clone()));
        let decoded = Row::decode(&row).unwrap();
        assert_eq!((decoded.meta, decoded.content_type), (META, Value::JSON));
        assert!(decoded.value == StoredValue::Apart(3 * 1024 + 1));
    }

    #[test]
    fn a_row_of_format_3_is_readable_whatever_its_length() {
        for length in [0, 5, 100_000] {
            let value = vec![b'1'; length];
            let mut row = b"of another entry".to_vec();
            encode_whole(META, Value::JSON, &value, &mut row).unwrap();
            assert_eq!(row[..3], [1, 0xac, 2], "it begins with the version, then the revision");
            assert!(Row::decode(&row).unwrap().value == StoredValue::Inline(&value));
        }
    }
}
