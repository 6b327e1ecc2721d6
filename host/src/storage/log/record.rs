//! The bytes of a segment: a header, then records.
//!
//! A segment begins with its number and the index of its first entry, followed by the named values at that moment, so
//! that older segments can be deleted. Each record is one entry or one new state of the named values. Every checksum
//! starts from the number of the segment: bytes left over from another segment never pass for a record of this one.
//!
//! | bytes | header | bytes | record |
//! |---|---|---|---|
//! | 8 | magic | 4 | length of the content |
//! | 4 | format | 4 | checksum of all that follows |
//! | 8 | number of the segment | 1 | kind |
//! | 8 | index of its first entry | 8 | index, for an entry |
//! | 4 | checksum of all that | | content |
//!
//! Numbers are big-endian.

use std::collections::BTreeMap;
use std::ops::Range;

use bytes::{Buf, BufMut, Bytes};
use serde::{Deserialize, Serialize};

use crate::storage::Error;

const MAGIC: &[u8; 8] = b"brinklog";

/// The format of a segment. Any change of the layout raises it.
pub(super) const FORMAT: u32 = 1;

/// Length of a segment's header.
pub(super) const HEADER_BYTES: usize = 8 + 4 + 8 + 8 + 4;

/// Length of what precedes a record's content.
pub(super) const PREFIX_BYTES: usize = 4 + 4 + 1 + 8;

const KIND_ENTRY: u8 = 1;
const KIND_NAMED: u8 = 2;

/// Everything that the log keeps beside its entries. Written as a whole, whenever any of it changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Named {
    /// How many votes and ids were made durable so far.
    pub(super) promises: u64,
    /// Entries below this index were removed on purpose.
    pub(super) start: u64,
    /// Votes, ids and positions by name.
    pub(super) values: BTreeMap<String, Bytes>,
}

/// A record, as found in a segment.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Record {
    /// An entry of the log, with the place of its content in the segment and its checksum.
    Entry { index: u64, content: Range<usize>, checksum: u32 },
    /// The named values from here on.
    Named(Named),
}

/// The header of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Header {
    /// It is complete, and the segment's first entry has this index.
    First(u64),
    /// The segment has a format that this version cannot read.
    Format(u32),
    /// It is not the header of this segment.
    Invalid,
}

/// Writes the header of a segment.
pub(super) fn put_header(buffer: &mut Vec<u8>, segment: u64, first: u64) {
    let start = buffer.len();
    buffer.put_slice(MAGIC);
    buffer.put_u32(FORMAT);
    buffer.put_u64(segment);
    buffer.put_u64(first);
    let checksum = crc32fast::hash(buffer.get(start..).unwrap_or_default());
    buffer.put_u32(checksum);
}

/// Reads the header of a segment.
pub(super) fn header(bytes: &[u8], segment: u64) -> Header {
    let Some((mut header, mut checksum)) =
        bytes.get(..HEADER_BYTES).and_then(|header| header.split_at_checked(HEADER_BYTES - 4))
    else {
        return Header::Invalid;
    };
    if !header.starts_with(MAGIC) || checksum.get_u32() != crc32fast::hash(header) {
        return Header::Invalid;
    }
    header.advance(MAGIC.len());
    match (header.get_u32(), header.get_u64(), header.get_u64()) {
        (FORMAT, number, first) if number == segment => Header::First(first),
        (FORMAT, ..) => Header::Invalid,
        (format, ..) => Header::Format(format),
    }
}

/// Writes an entry. Returns its checksum.
pub(super) fn put_entry(buffer: &mut Vec<u8>, segment: u64, index: u64, content: &[u8]) -> u32 {
    put(buffer, segment, KIND_ENTRY, index, content)
}

/// Writes the named values.
pub(super) fn put_named(buffer: &mut Vec<u8>, segment: u64, named: &Named) -> Result<(), Error> {
    let content = postcard::to_stdvec(named).map_err(|_| Error::corrupt("the named values of the log"))?;
    put(buffer, segment, KIND_NAMED, 0, &content);
    Ok(())
}

fn put(buffer: &mut Vec<u8>, segment: u64, kind: u8, index: u64, content: &[u8]) -> u32 {
    let checksum = checksum(segment, kind, index, content);
    // Whoever encodes an entry bounds it far below 4 GiB.
    buffer.put_u32(u32::try_from(content.len()).unwrap_or(u32::MAX));
    buffer.put_u32(checksum);
    buffer.put_u8(kind);
    buffer.put_u64(index);
    buffer.put_slice(content);
    checksum
}

/// The record that starts at an offset of a segment, and the offset after it; none, if there is no valid record.
pub(super) fn record(bytes: &[u8], segment: u64, start: usize) -> Option<(Record, usize)> {
    let content_start = start.checked_add(PREFIX_BYTES)?;
    let mut prefix = bytes.get(start..content_start)?;
    let content_bytes = usize::try_from(prefix.get_u32()).ok()?;
    let (stored, kind, index) = (prefix.get_u32(), prefix.get_u8(), prefix.get_u64());
    let end = content_start.checked_add(content_bytes)?;
    let content = bytes.get(content_start..end)?;
    if stored != checksum(segment, kind, index, content) {
        return None;
    }
    let record = match kind {
        KIND_ENTRY => Record::Entry { index, content: content_start..end, checksum: stored },
        KIND_NAMED => Record::Named(postcard::from_bytes(content).ok()?),
        _ => return None,
    };
    Some((record, end))
}

fn checksum(segment: u64, kind: u8, index: u64, content: &[u8]) -> u32 {
    let mut checksum = crc32fast::Hasher::new();
    let mut place = [0; 17];
    let mut fields = place.as_mut_slice();
    fields.put_u64(segment);
    fields.put_u8(kind);
    fields.put_u64(index);
    checksum.update(&place);
    checksum.update(content);
    checksum.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named() -> Named {
        Named { promises: 3, start: 7, values: BTreeMap::from([("vote".to_owned(), "mine".into())]) }
    }

    fn segment() -> Vec<u8> {
        let mut bytes = Vec::new();
        put_header(&mut bytes, 5, 7);
        put_named(&mut bytes, 5, &named()).unwrap();
        put_entry(&mut bytes, 5, 7, b"seven");
        bytes
    }

    #[test]
    fn a_segment_is_read_as_it_was_written() {
        let bytes = segment();
        assert_eq!(header(&bytes, 5), Header::First(7));
        let (first, end) = record(&bytes, 5, HEADER_BYTES).unwrap();
        assert_eq!(first, Record::Named(named()));
        let (Record::Entry { index, content, .. }, end) = record(&bytes, 5, end).unwrap() else { panic!() };
        assert_eq!((index, &bytes[content], end), (7, &b"seven"[..], bytes.len()));
        assert_eq!(record(&bytes, 5, end), None);
    }

    #[test]
    fn any_changed_bit_and_any_missing_byte_is_noticed() {
        let whole = segment();
        let records = |bytes: &[u8]| {
            let mut records = Vec::new();
            let mut at = HEADER_BYTES;
            while let Some((record, end)) = record(bytes, 5, at) {
                records.push(record);
                at = end;
            }
            (header(bytes, 5), records)
        };
        let expected = records(&whole);
        for bit in 0..whole.len() * 8 {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(records(&flipped), expected, "bit {bit}");
        }
        for end in 0..whole.len() {
            assert_ne!(records(&whole[..end]), expected, "{end} bytes");
        }
        assert_eq!(record(&vec![0; 1_000], 5, 0), None, "zeros are no record");
    }

    #[test]
    fn bytes_of_another_segment_or_format_are_told_apart() {
        let mut bytes = segment();
        assert_eq!((header(&bytes, 6), record(&bytes, 6, HEADER_BYTES)), (Header::Invalid, None));
        bytes[11] = 9;
        let checksum = crc32fast::hash(&bytes[..HEADER_BYTES - 4]);
        bytes[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(header(&bytes, 5), Header::Format(9));
    }
}
