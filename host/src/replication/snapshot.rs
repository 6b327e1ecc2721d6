//! A snapshot on its way from one node to another, in bounded memory.
//!
//! The sender reads it from its state as it goes; the receiver spools it to a file in its data directory and installs
//! it once it is whole. On the wire and in the file it is a sequence of frames: a length of four bytes (big-endian) and
//! that many bytes. The first frame names the leader and what the snapshot covers; the others are storage chunks, which
//! carry their own checksums and end marker.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};

use super::blocking::Blocking;
use super::types::{SnapshotMeta, Vote, decode, encode};
use crate::storage::{self, SnapshotReader};

/// Longest frame accepted, in bytes.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Chunks read ahead of the network.
const READ_AHEAD: usize = 4;

/// Where the chunks of a snapshot come from.
pub enum SnapshotSource {
    /// This node's own state, as of one moment.
    Live(SnapshotReader),
    /// A file received from another node.
    Received(Spool),
}

/// Chunks of a snapshot, read by a blocking thread.
pub(super) type Chunks = Box<dyn Iterator<Item = Result<Bytes, storage::Error>> + Send>;

impl SnapshotSource {
    /// The chunks, to be read on a blocking thread.
    pub(super) fn into_chunks(self) -> io::Result<Chunks> {
        match self {
            Self::Live(reader) => Ok(Box::new(reader.into_chunks())),
            Self::Received(spool) => {
                let mut frames = Frames::of(&spool.file)?;
                // The header was read when the snapshot arrived.
                frames.next().transpose()?;
                Ok(Box::new(frames.map(|frame| frame.map_err(storage::Error::from))))
            }
        }
    }

    /// The whole snapshot as a body: the header, then the chunks.
    pub(super) fn into_body(
        self,
        vote: Vote,
        meta: &SnapshotMeta,
        blocking: &Blocking,
    ) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let header = encode(&(vote, meta)).map_err(io::Error::other)?;
        Ok(blocking.stream(READ_AHEAD, move || {
            let chunks = self.into_chunks()?.map(|chunk| chunk.map_err(io::Error::other));
            Ok(std::iter::once(Ok(header)).chain(chunks).map(|frame| frame.and_then(|bytes| framed(&bytes))))
        }))
    }
}

fn framed(bytes: &Bytes) -> io::Result<Bytes> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut frame = BytesMut::with_capacity(4 + bytes.len());
    frame.put_u32(length);
    frame.put_slice(bytes);
    Ok(frame.freeze())
}

/// A received snapshot in a file without a name, which the operating system removes when it is closed, crash or not.
pub struct Spool {
    file: File,
}

impl Spool {
    /// Writes a body to a new file in `dir`.
    pub(super) async fn receive<E>(
        dir: &Path,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
        blocking: &Blocking,
    ) -> io::Result<Self>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        let dir = dir.to_path_buf();
        let mut file = blocking.run(move || tempfile::tempfile_in(dir)).await??;
        while let Some(bytes) = body.next().await {
            let bytes = bytes.map_err(io::Error::other)?;
            let written = blocking.run(move || file.write_all(&bytes).map(|()| file)).await?;
            file = written?;
        }
        Ok(Self { file })
    }

    /// The leader that sent the snapshot and what it covers, and the snapshot. It was read once, so that it is known to
    /// be whole: what is installed takes the place of the state that is there. For a blocking thread.
    pub(super) fn open(self) -> io::Result<(Vote, SnapshotMeta, SnapshotSource)> {
        let mut frames = Frames::of(&self.file)?;
        let header = frames.next().transpose()?;
        let header = header.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the snapshot is empty"))?;
        let (vote, meta) = decode(&header).map_err(io::Error::other)?;
        storage::verify_snapshot(frames.map(|frame| frame.map_err(storage::Error::from))).map_err(io::Error::other)?;
        Ok((vote, meta, SnapshotSource::Received(self)))
    }
}

/// The frames of a spooled snapshot, from its beginning.
struct Frames {
    file: BufReader<File>,
}

impl Frames {
    fn of(file: &File) -> io::Result<Self> {
        let mut file = file.try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        Ok(Self { file: BufReader::new(file) })
    }

    fn read_frame(&mut self) -> io::Result<Option<Bytes>> {
        if self.file.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut length = [0; 4];
        self.file.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
        if length > FRAME_BYTES_MAX {
            let message = format!("a frame of {length} bytes; at most {FRAME_BYTES_MAX} are allowed");
            return Err(io::Error::new(io::ErrorKind::InvalidData, message));
        }
        let mut frame = vec![0; length];
        self.file.read_exact(&mut frame)?;
        Ok(Some(frame.into()))
    }
}

impl Iterator for Frames {
    type Item = io::Result<Bytes>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read_frame().transpose()
    }
}
