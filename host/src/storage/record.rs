//! The stored form of an entry: a short header, then the bytes of the value, so that the header can be read alone.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Entry, EntryMeta, Error, Value};

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    meta: EntryMeta,
    content_type: &'a str,
}

pub(super) fn encode(meta: EntryMeta, value: &Value) -> Result<Vec<u8>, Error> {
    let header = Header { meta, content_type: &value.content_type };
    let buffer = Vec::with_capacity(64 + value.content_type.len() + value.bytes.len());
    let mut record = postcard::to_extend(&header, buffer).map_err(|_| Error::corrupt("an entry's header"))?;
    record.extend_from_slice(&value.bytes);
    Ok(record)
}

/// Decodes an entry, with an empty value if only the header is wanted.
pub(super) fn decode(key: String, record: &[u8], with_value: bool) -> Result<Entry, Error> {
    let (header, value) =
        postcard::take_from_bytes::<Header<'_>>(record).map_err(|_| Error::corrupt(format!("the entry of {key:?}")))?;
    let bytes = if with_value { Bytes::copy_from_slice(value) } else { Bytes::new() };
    Ok(Entry { key, meta: header.meta, value: Value { content_type: header.content_type.to_owned(), bytes } })
}

pub(super) fn decode_meta(record: &[u8]) -> Result<EntryMeta, Error> {
    let header = postcard::take_from_bytes::<Header<'_>>(record).map_err(|_| Error::corrupt("an entry's header"))?;
    Ok(header.0.meta)
}

pub(super) fn decode_key(key: &[u8]) -> Result<String, Error> {
    std::str::from_utf8(key).map(str::to_owned).map_err(|_| Error::corrupt("a key"))
}
