//! The whole state as a sequence of chunks, in bounded memory.
//!
//! The first chunk is a magic word and a format number. Each later chunk is a tag (one byte: the table of its entries,
//! or the end), the entries (each: length of the key, length of the value, key, value), and a CRC-32 of all that. The
//! last chunk carries the number of entries, so that a truncated snapshot is noticed. Numbers are big-endian, lengths
//! take four bytes. An entry carries its value, however large that is stored: versions of either format on disk read it.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::tables::{IDEMPOTENCY, KV, META, SYSTEM};
use super::{rows, tables};
use crate::storage::engine::{EVERYTHING, ReadTables, Rows, Table, WriteBatch};
use crate::storage::{Error, format};

const MAGIC: &[u8] = b"brink snapshot";
const FORMAT: u32 = 1;
/// The tag of the last chunk.
const END: u8 = 0;

/// A chunk is closed once it has this many bytes.
const CHUNK_BYTES: usize = 256 * 1024;

/// The tables in the order of their chunks, with their tags.
const PARTS: [(u8, Table); 4] = [(1, KV), (2, SYSTEM), (3, META), (4, IDEMPOTENCY)];

/// The state at one moment. Cheap to clone.
#[derive(Clone)]
pub struct SnapshotReader {
    pub(super) view: Arc<dyn ReadTables>,
    /// Told of errors, which may be damage of the state.
    pub(super) notice: Arc<dyn Fn(&Error) + Send + Sync>,
}

impl SnapshotReader {
    /// A value given to [`super::Data::apply`], as of the snapshot.
    pub fn meta(&self, key: &str) -> Result<Option<Bytes>, Error> {
        Ok(self.view.get(META, key.as_bytes())?.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// The chunks, read on demand; those of clones are the same.
    pub fn into_chunks(self) -> impl Iterator<Item = Result<Bytes, Error>> + Send {
        let mut head = BytesMut::from(MAGIC);
        head.put_u32(FORMAT);
        let mut chunks = Chunks { view: self.view, parts: PARTS.into_iter(), current: None, entries: 0, ended: false };
        let advance = move || chunks.advance().inspect_err(|error| (self.notice)(error)).transpose();
        std::iter::once(Ok(head.freeze())).chain(std::iter::from_fn(advance))
    }
}

struct Chunks {
    view: Arc<dyn ReadTables>,
    parts: std::array::IntoIter<(u8, Table), 4>,
    /// The table that is being read, with its tag and its remaining rows.
    current: Option<(u8, Table, Rows)>,
    entries: u64,
    ended: bool,
}

impl Chunks {
    /// The next chunk of the current table; none at its end.
    fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let Self { view, current, entries, .. } = self;
        let Some((tag, table, stored)) = current else { return Ok(None) };
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        chunk.put_u8(*tag);
        for row in stored {
            let (key, value) = row?;
            if *table == META && *key == *format::KEY {
                continue;
            }
            let value = match tables::space_of(*table) {
                Some(space) => rows::whole(view.as_ref(), space, &key, value)?,
                None => value,
            };
            chunk.put_u32(length(&key)?);
            chunk.put_u32(length(&value)?);
            chunk.put_slice(&key);
            chunk.put_slice(&value);
            *entries += 1;
            if chunk.len() >= CHUNK_BYTES {
                break;
            }
        }
        Ok((chunk.len() > 1).then(|| sealed(chunk)))
    }

    fn advance(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(chunk) = self.chunk()? {
                return Ok(Some(chunk));
            }
            match self.parts.next() {
                Some((tag, table)) => self.current = Some((tag, table, self.view.range(table, EVERYTHING)?)),
                None if self.ended => return Ok(None),
                None => {
                    self.ended = true;
                    self.current = None;
                    let mut end = BytesMut::new();
                    end.put_u8(END);
                    end.put_u64(self.entries);
                    return Ok(Some(sealed(end)));
                }
            }
        }
    }
}

fn length(bytes: &[u8]) -> Result<u32, Error> {
    u32::try_from(bytes.len()).map_err(|_| Error::corrupt("the length of an entry"))
}

fn sealed(mut chunk: BytesMut) -> Bytes {
    let checksum = crc32fast::hash(&chunk);
    chunk.put_u32(checksum);
    chunk.freeze()
}

/// Fails unless a snapshot is complete and undamaged. Returns its values of `keys`, as [`SnapshotReader::meta`] gives them.
pub fn verify<const N: usize>(
    chunks: impl Iterator<Item = Result<Bytes, Error>>,
    keys: [&str; N],
) -> Result<[Option<Bytes>; N], Error> {
    let mut found = [const { None }; N];
    for batch in read(chunks, false) {
        for (key, value) in batch?.rows_of(META) {
            let place = keys.iter().position(|wanted| wanted.as_bytes() == key).and_then(|place| found.get_mut(place));
            // The last of two would count.
            if place.is_some_and(|place| place.replace(Bytes::copy_from_slice(value)).is_some()) {
                return Err(damaged());
            }
        }
    }
    Ok(found)
}

/// Reads a snapshot: one batch for each chunk. Their rows come in the order of their keys in each table. The last item is an error
/// if the snapshot is damaged or incomplete. `has_values_apart`: whether large values are stored apart here.
pub(super) fn read(
    chunks: impl Iterator<Item = Result<Bytes, Error>>,
    has_values_apart: bool,
) -> impl Iterator<Item = Result<WriteBatch, Error>> {
    let mut reader = Reader { chunks, has_values_apart, is_open: false, entries: 0 };
    std::iter::from_fn(move || reader.batch().transpose())
}

struct Reader<I> {
    chunks: I,
    has_values_apart: bool,
    /// Whether the first chunk was read.
    is_open: bool,
    entries: u64,
}

impl<I: Iterator<Item = Result<Bytes, Error>>> Reader<I> {
    /// The entries of the next chunk; none at the end of the snapshot.
    fn batch(&mut self) -> Result<Option<WriteBatch>, Error> {
        if !self.is_open {
            if self.chunk()?.strip_prefix(MAGIC) != Some(FORMAT.to_be_bytes().as_slice()) {
                return Err(damaged());
            }
            self.is_open = true;
        }
        let mut chunk = self.chunk()?;
        let mut body = chunk.split_to(chunk.len().checked_sub(4).ok_or_else(damaged)?);
        if chunk.get_u32() != crc32fast::hash(&body) {
            return Err(damaged());
        }
        let tag = body.try_get_u8().map_err(|_| damaged())?;
        if tag == END {
            return if body.try_get_u64().is_ok_and(|count| count == self.entries) { Ok(None) } else { Err(damaged()) };
        }
        let (_, table) = PARTS.into_iter().find(|part| part.0 == tag).ok_or_else(damaged)?;
        let mut batch = WriteBatch::default();
        while body.has_remaining() {
            let (key, value) = read_entry(&mut body).ok_or_else(damaged)?;
            match tables::space_of(table) {
                Some(space) => rows::insert_whole(&mut batch, space, key, value, self.has_values_apart)?,
                None => batch.insert(table, &*key, &*value),
            }
            self.entries += 1;
        }
        Ok(Some(batch))
    }

    /// The next chunk. A missing one is damage, since a snapshot ends with a chunk of its own.
    fn chunk(&mut self) -> Result<Bytes, Error> {
        self.chunks.next().ok_or_else(damaged)?
    }
}

fn damaged() -> Error {
    Error::corrupt("the snapshot")
}

fn read_entry(body: &mut Bytes) -> Option<(Bytes, Bytes)> {
    let key = usize::try_from(body.try_get_u32().ok()?).ok()?;
    let value = usize::try_from(body.try_get_u32().ok()?).ok()?;
    (body.len() >= key.checked_add(value)?).then(|| (body.split_to(key), body.split_to(value)))
}
