//! A snapshot on its way from one node to another: in bounded memory, at a bounded rate, and resumable.
//!
//! The sender reads its state as of one moment while it sends; the receiver writes to a [file](super::spool) in its data
//! directory and installs the snapshot once it is complete. Both carry a sequence of frames: a length of four bytes
//! (big-endian) and that many bytes, one storage chunk each, with a checksum of its own. The last chunk is an end marker.
//! On the wire, a frame with the [`Header`] comes first.
//!
//! # Failure model
//!
//! A snapshot has an id, and two streams with one id carry the same bytes. When a stream breaks, the sender still holds the
//! moment it reads: it asks how many bytes the receiver has, and continues there, even if the receiver has restarted. It
//! reads the earlier part again and drops it, at the expense of its disk but not of the network. A sender that has itself
//! restarted, or has failed too often, starts a new snapshot under a new id.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

pub(crate) use super::spool::held;
use super::spool::{FRAME_BYTES_MAX, Spool, frames};
use crate::replication::blocking::Blocking;
use crate::replication::types::{SnapshotMeta, Vote, decode, encode};
use crate::storage::{self, SnapshotReader};

/// Chunks read ahead of the network.
const READ_AHEAD: usize = 4;

/// Bytes gathered for one write to the file.
const WRITE_BYTES: usize = 256 * 1024;

/// Attempts without progress before a sender gives up: a minute, enough for the receiver to restart.
pub(crate) const RESUME_TRIES_MAX: u32 = 240;

pub(crate) const RESUME_PAUSE: Duration = Duration::from_millis(250);

/// The origin of a snapshot's chunks. Cheap to clone; all clones read the same chunks.
#[derive(Clone)]
pub enum SnapshotSource {
    /// This node's own state, as of one moment.
    Live(SnapshotReader),
    /// A file received from another node.
    Received(Arc<File>),
}

/// The chunks of a snapshot. Reading them blocks.
pub(crate) type Chunks = Box<dyn Iterator<Item = Result<Bytes, storage::Error>> + Send>;

impl SnapshotSource {
    /// The chunks, from the first on. Blocks, and so does reading them.
    pub(crate) fn chunks(&self) -> io::Result<Chunks> {
        match self {
            Self::Live(reader) => Ok(Box::new(reader.clone().into_chunks())),
            Self::Received(file) => Ok(Box::new(frames(file)?)),
        }
    }
}

/// The first frame of a stream.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Header {
    id: u64,
    /// The position of the stream's first byte in the snapshot.
    offset: u64,
    /// The leader that sends the snapshot.
    pub(crate) vote: Vote,
    /// The log position and membership that it covers.
    pub(crate) meta: SnapshotMeta,
}

pub(crate) struct Outgoing {
    pub(crate) id: u64,
    vote: Vote,
    meta: SnapshotMeta,
    source: SnapshotSource,
}

impl Outgoing {
    /// A snapshot with a new id.
    pub(crate) fn new(vote: Vote, meta: SnapshotMeta, source: SnapshotSource) -> Self {
        Self { id: fastrand::u64(..), vote, meta, source }
    }

    /// A stream of the header and the frames from byte `offset` on.
    pub(crate) fn body(
        &self,
        offset: u64,
        bytes_per_second: u64,
        blocking: &Blocking,
    ) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
        let header = Header { id: self.id, offset, vote: self.vote, meta: self.meta.clone() };
        let header = framed(&encode(&header).map_err(io::Error::other)?);
        let source = self.source.clone();
        let frames = blocking.stream(READ_AHEAD, move || {
            let mut skip = usize::try_from(offset).map_err(io::Error::other)?;
            Ok(source.chunks()?.filter_map(move |chunk| {
                let mut frame = match chunk.map_err(io::Error::other).and_then(|chunk| framed(&chunk)) {
                    Ok(frame) => frame,
                    Err(error) => return Some(Err(error)),
                };
                let skipped = frame.split_to(skip.min(frame.len()));
                skip -= skipped.len();
                (!frame.is_empty()).then_some(Ok(frame))
            }))
        });
        Ok(futures::stream::iter([header]).chain(paced(frames, bytes_per_second)).boxed())
    }
}

/// Limits the rate of a stream, so that it leaves network, disk and processor to other work.
fn paced(
    frames: BoxStream<'static, io::Result<Bytes>>,
    bytes_per_second: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures::stream::unfold((frames, Instant::now()), move |(mut frames, due)| async move {
        tokio::time::sleep_until(due).await;
        let frame = frames.next().await?;
        let bytes = frame.as_ref().map_or(0, Bytes::len);
        // Slow reading is not made up for: no burst follows a pause.
        let next = due.max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / bytes_per_second.max(1) as f64);
        Some((frame, (frames, next)))
    })
}

fn framed(bytes: &Bytes) -> io::Result<Bytes> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut frame = BytesMut::with_capacity(4 + bytes.len());
    frame.put_u32(length);
    frame.put_slice(bytes);
    Ok(frame.freeze())
}

/// Receives a stream into its snapshot's file; returns the header and the complete snapshot. The snapshot is verified as a
/// whole, since installing it replaces the existing state. If the stream breaks, the bytes received stay in the file.
pub(crate) async fn receive<E>(
    dir: &Path,
    mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    blocking: &Blocking,
) -> io::Result<(Header, SnapshotSource)>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let mut gathered = BytesMut::new();
    let header = loop {
        if let Some(header) = take_header(&mut gathered)? {
            break header;
        }
        let bytes = body.next().await.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no header"))?;
        gathered.extend_from_slice(&bytes.map_err(io::Error::other)?);
    };
    let (dir, id, mut at) = (dir.to_path_buf(), header.id, header.offset);
    let spool = Arc::new(blocking.run(move || Spool::open(&dir, id, at)).await??);
    tracing::info!(id = format!("{id:016x}"), offset = at, "a snapshot arrives");
    let mut broken = None;
    let mut is_over = false;
    while !is_over {
        match body.next().await {
            Some(Ok(bytes)) => gathered.extend_from_slice(&bytes),
            Some(Err(error)) => (broken, is_over) = (Some(io::Error::other(error)), true),
            None => is_over = true,
        }
        if gathered.len() >= WRITE_BYTES || is_over {
            let (bytes, spool) = (gathered.split().freeze(), spool.clone());
            let length = bytes.len() as u64;
            blocking.run(move || spool.file.write_all_at(&bytes, at)).await??;
            at += length;
        }
    }
    if let Some(error) = broken {
        tracing::warn!(id = format!("{id:016x}"), bytes = at, %error, "a snapshot broke off");
        return Err(error);
    }
    let file = blocking.run(move || spool.finish()).await??;
    Ok((header, SnapshotSource::Received(Arc::new(file))))
}

/// Takes the header from the front of the received bytes, once it is complete.
fn take_header(gathered: &mut BytesMut) -> io::Result<Option<Header>> {
    let Some(length) = gathered.first_chunk::<4>().map(|length| u32::from_be_bytes(*length)) else { return Ok(None) };
    let length = usize::try_from(length).map_err(io::Error::other)?;
    if length > FRAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the header is too long"));
    }
    if gathered.len() < 4 + length {
        return Ok(None);
    }
    let frame = gathered.split_to(4 + length);
    decode(frame.get(4..).unwrap_or_default()).map(Some).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Data;

    /// A snapshot of a state of a few chunks.
    fn outgoing(dir: &Path) -> Outgoing {
        let data = Data::open(dir, 1024 * 1024).unwrap();
        let blob = Bytes::from(vec![7; 300_000]);
        for key in ["a", "b", "c", "d"] {
            data.apply(&[], &[(key, blob.clone())]).unwrap();
        }
        let source = SnapshotSource::Live(data.snapshot());
        Outgoing::new(Vote::new(1, 1), SnapshotMeta::default(), source)
    }

    /// The stream from byte `offset` on, broken after `cut` frames.
    async fn stream(outgoing: &Outgoing, offset: u64, cut: usize) -> Vec<io::Result<Bytes>> {
        let body = outgoing.body(offset, u64::MAX, &Blocking::Threads).unwrap();
        let mut all: Vec<io::Result<Bytes>> = body.collect().await;
        if cut < all.len() {
            all.truncate(cut);
            all.push(Err(io::Error::other("cut")));
        }
        all
    }

    #[tokio::test]
    async fn a_snapshot_goes_on_where_it_broke_off() {
        let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outgoing = outgoing(sender.path());
        let cut = stream(&outgoing, 0, 3).await;
        let sent: usize = cut.iter().skip(1).flatten().map(Bytes::len).sum();
        assert!(receive(spool.path(), futures::stream::iter(cut), &Blocking::Threads).await.is_err());
        let held_bytes = held(spool.path(), outgoing.id).unwrap();
        assert_eq!(held_bytes, sent as u64);

        // A receiver that holds half a frame gets the other half.
        for offset in [held_bytes - 10, held_bytes] {
            let rest = stream(&outgoing, offset, usize::MAX).await;
            let (_, source) = receive(spool.path(), futures::stream::iter(rest), &Blocking::Threads).await.unwrap();
            let whole: Vec<Bytes> = source.chunks().unwrap().map(Result::unwrap).collect();
            let expected: Vec<Bytes> = outgoing.source.chunks().unwrap().map(Result::unwrap).collect();
            assert_eq!(whole, expected);
            // Its file is gone once it is complete, so the second time all of it is sent again.
            assert_eq!(held(spool.path(), outgoing.id).unwrap(), 0);
            let again = stream(&outgoing, 0, 3).await;
            assert!(receive(spool.path(), futures::stream::iter(again), &Blocking::Threads).await.is_err());
        }
    }

    #[tokio::test]
    async fn a_snapshot_with_a_gap_or_damage_is_refused_and_forgotten() {
        let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outgoing = outgoing(sender.path());
        let late = stream(&outgoing, 100, usize::MAX).await;
        assert!(receive(spool.path(), futures::stream::iter(late), &Blocking::Threads).await.is_err());

        let mut damaged = stream(&outgoing, 0, usize::MAX).await;
        damaged[2] = Ok(Bytes::from(vec![0; 300_000]));
        assert!(receive(spool.path(), futures::stream::iter(damaged), &Blocking::Threads).await.is_err());
        assert_eq!(held(spool.path(), outgoing.id).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_snapshot_keeps_its_pace() {
        let dir = tempfile::tempdir().unwrap();
        let began = Instant::now();
        let body = outgoing(dir.path()).body(0, 4_000_000, &Blocking::Threads).unwrap();
        let bytes: usize =
            body.map(|frame| frame.unwrap().len()).fold(0, |sum, bytes| async move { sum + bytes }).await;
        let least = Duration::from_secs_f64((bytes - 400_000) as f64 / 4_000_000.0);
        assert!(began.elapsed() >= least, "{bytes} bytes within {:?}", began.elapsed());
    }
}
