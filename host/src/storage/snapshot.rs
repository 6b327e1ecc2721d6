//! The whole state as a sequence of chunks, in bounded memory.
//!
//! The first chunk is a magic word and a format number. Each further chunk is a tag (one byte: the part its entries are
//! of, or the end), the entries (each: length of the key, length of the value, key, value), and a CRC-32 of all that.
//! The last chunk carries the number of entries, so that a snapshot that was cut short is noticed. Numbers are
//! big-endian, lengths of four bytes.

use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::data::Inner;
use super::engine::{Iter, Table, View};
use super::{Error, format, record};

const MAGIC: &[u8] = b"brink snapshot";
const FORMAT: u32 = 1;

/// A chunk is closed once it has this many bytes.
const CHUNK_BYTES: usize = 256 * 1024;

const END: u8 = 0;

/// What the entries of a chunk are part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// What clients wrote.
    Kv,
    /// The registry.
    System,
    /// Revision, hook epoch and the caller's own values.
    Meta,
    /// What became of the writes that clients gave a name.
    Idempotency,
}

impl Part {
    const ALL: [Self; 4] = [Self::Kv, Self::System, Self::Meta, Self::Idempotency];

    const fn tag(self) -> u8 {
        match self {
            Self::Kv => 1,
            Self::System => 2,
            Self::Meta => 3,
            Self::Idempotency => 4,
        }
    }

    fn table(self, inner: &Inner) -> &Table {
        match self {
            Self::Kv => &inner.kv,
            Self::System => &inner.system,
            Self::Meta => &inner.meta,
            Self::Idempotency => &inner.idempotency,
        }
    }
}

/// The state as of one moment. Cheap to clone.
#[derive(Clone)]
pub struct SnapshotReader {
    view: Arc<View>,
    inner: Arc<Inner>,
}

impl SnapshotReader {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        Self { view: Arc::new(inner.db.view()), inner: inner.clone() }
    }

    /// A value given to [`super::Data::apply`], as of the snapshot.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn meta(&self, key: &str) -> Result<Option<Bytes>, Error> {
        Ok(self.view.get(&self.inner.meta, key)?.map(|value| Bytes::copy_from_slice(&value)))
    }

    /// The chunks, read as they are asked for; those of clones are the same.
    pub fn into_chunks(self) -> impl Iterator<Item = Result<Bytes, Error>> + Send {
        let mut head = BytesMut::from(MAGIC);
        head.put_u32(FORMAT);
        let parts = Part::ALL.into_iter();
        let chunks = Chunks { reader: self, parts, current: None, entries: 0, ended: false };
        std::iter::once(Ok(head.freeze())).chain(chunks)
    }
}

struct Chunks {
    reader: SnapshotReader,
    parts: std::array::IntoIter<Part, 4>,
    current: Option<(Part, Iter)>,
    entries: u64,
    ended: bool,
}

impl Chunks {
    /// The next chunk of the current part; none at its end.
    fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        let Some((part, iter)) = &mut self.current else { return Ok(None) };
        let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
        chunk.put_u8(part.tag());
        for item in iter.by_ref() {
            let (key, value) = item?;
            if *part == Part::Meta && format::is_marker(&key) {
                continue;
            }
            chunk.put_u32(length(&key)?);
            chunk.put_u32(length(&value)?);
            chunk.put_slice(&key);
            chunk.put_slice(&value);
            self.entries += 1;
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
                Some(part) => {
                    let table = part.table(&self.reader.inner);
                    self.current = Some((part, self.reader.view.iter(table)));
                }
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

impl Iterator for Chunks {
    type Item = Result<Bytes, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

fn length(bytes: &[u8]) -> Result<u32, Error> {
    u32::try_from(bytes.len()).map_err(|_| record::corrupt("the length of an entry"))
}

fn sealed(mut chunk: BytesMut) -> Bytes {
    let checksum = crc32fast::hash(&chunk);
    chunk.put_u32(checksum);
    chunk.freeze()
}

/// Checks that a snapshot is whole and undamaged, without installing it.
///
/// # Errors
///
/// If it is not.
pub fn verify(chunks: impl Iterator<Item = Result<Bytes, Error>>) -> Result<(), Error> {
    read(chunks, |_, _| Ok(()))
}

/// Reads a snapshot, giving each chunk's entries to `take`.
pub(super) fn read(
    mut chunks: impl Iterator<Item = Result<Bytes, Error>>,
    mut take: impl FnMut(Part, Vec<(Bytes, Bytes)>) -> Result<(), Error>,
) -> Result<(), Error> {
    let damaged = || record::corrupt("the snapshot");
    let head = chunks.next().ok_or_else(damaged)??;
    if head.strip_prefix(MAGIC) != Some(FORMAT.to_be_bytes().as_slice()) {
        return Err(damaged());
    }
    let mut entries = 0;
    for chunk in chunks {
        let mut chunk = chunk?;
        let body = chunk.split_to(chunk.len().checked_sub(4).ok_or_else(damaged)?);
        if chunk.get_u32() != crc32fast::hash(&body) {
            return Err(damaged());
        }
        let mut body = body;
        let tag = body.try_get_u8().map_err(|_| damaged())?;
        if tag == END {
            return if body.try_get_u64().is_ok_and(|count| count == entries) { Ok(()) } else { Err(damaged()) };
        }
        let part = Part::ALL.into_iter().find(|part| part.tag() == tag).ok_or_else(damaged)?;
        let mut found = Vec::new();
        while body.has_remaining() {
            found.push(read_entry(&mut body).ok_or_else(damaged)?);
        }
        entries += u64::try_from(found.len()).unwrap_or(u64::MAX);
        take(part, found)?;
    }
    // The end is missing.
    Err(damaged())
}

fn read_entry(body: &mut Bytes) -> Option<(Bytes, Bytes)> {
    let key = usize::try_from(body.try_get_u32().ok()?).ok()?;
    let value = usize::try_from(body.try_get_u32().ok()?).ok()?;
    (body.len() >= key.checked_add(value)?).then(|| (body.split_to(key), body.split_to(value)))
}
