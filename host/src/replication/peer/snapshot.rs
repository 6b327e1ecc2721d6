//! A snapshot on its way from one node to another: in bounded memory, at a bounded rate, and resumable.
//!
//! The sender reads its state as of one moment while it sends; the [receiver](super::receiver) writes to a
//! [file](super::spool) in its data directory and installs the snapshot once it is complete. Both carry a sequence of
//! frames: a length of four bytes (big-endian) and that many bytes, one storage chunk each, with a checksum of its own. The
//! last chunk is an end marker. On the wire, a frame with the [`Header`] comes first.
//!
//! # Failure model
//!
//! A snapshot has an id, and two streams with one id carry the same bytes. When a stream breaks, the sender still holds the
//! moment it reads: it asks how many bytes the receiver has, and continues there, even if the receiver has restarted. It
//! reads the earlier part again and drops it, at the expense of its disk but not of the network. A sender that has itself
//! restarted, or has failed too often, starts a new snapshot under a new id.
//!
//! A transfer takes as long as it takes: a stream breaks only if the receiver takes nothing for [`STALL_MAX`], or shows no
//! sign of life for as long while it installs the snapshot. Meanwhile the log after the snapshot is kept (see
//! `replication/log_cut`).

use std::{fs::File, io, sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::spool::frames;
use crate::replication::blocking::Blocking;
use crate::replication::types::{SnapshotMeta, Vote, decode, encode};
use crate::storage::{self, SnapshotReader};

/// Chunks read ahead of the network.
const READ_AHEAD: usize = 4;

/// Bytes given to the network at once, so that progress shows on a slow line too.
const PIECE_BYTES_MAX: usize = 256 * 1024;

/// The most that a stream may be behind its pace and catch up.
const PACE_SLACK: Duration = Duration::from_millis(20);

/// Longest header, in bytes.
const HEADER_BYTES_MAX: usize = 1024 * 1024;

/// Time for which a receiver may take no bytes, or give no sign of life, before the stream counts as broken.
pub(crate) const STALL_MAX: Duration = Duration::from_secs(60);

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
    pub(super) id: u64,
    /// The position of the stream's first byte in the snapshot.
    pub(super) offset: u64,
    /// The leader that sends the snapshot.
    pub(crate) vote: Vote,
    /// The log position and membership that it covers.
    pub(crate) meta: SnapshotMeta,
}

impl Header {
    /// Takes the header from the front of the received bytes, once it is complete.
    pub(super) fn take(gathered: &mut BytesMut) -> io::Result<Option<Self>> {
        let Some(length) = gathered.first_chunk::<4>().map(|length| u32::from_be_bytes(*length)) else {
            return Ok(None);
        };
        let length = usize::try_from(length).map_err(io::Error::other)?;
        if length > HEADER_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the header is too long"));
        }
        if gathered.len() < 4 + length {
            return Ok(None);
        }
        let frame = gathered.split_to(4 + length);
        decode(frame.get(4..).unwrap_or_default()).map(Some).map_err(io::Error::other)
    }
}

/// The snapshots that this node sends to nodes that have answered: the id of each receiver, and the index of the last log entry that its snapshot
/// covers.
#[derive(Default)]
pub(crate) struct Transfers(Mutex<Vec<(u64, u64)>>);

impl Transfers {
    /// Adds a transfer, for as long as the result lives.
    pub(crate) fn begin(self: &Arc<Self>, to: u64, covered: u64) -> impl Drop + use<> {
        self.0.lock().push((to, covered));
        Transfer { transfers: self.clone(), to, covered }
    }

    /// The index that the snapshot on its way to a node covers.
    pub(crate) fn covered(&self, to: u64) -> Option<u64> {
        self.0.lock().iter().filter(|transfer| transfer.0 == to).map(|transfer| transfer.1).min()
    }
}

struct Transfer {
    transfers: Arc<Transfers>,
    to: u64,
    covered: u64,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        let mut transfers = self.transfers.0.lock();
        if let Some(position) = transfers.iter().position(|transfer| *transfer == (self.to, self.covered)) {
            transfers.swap_remove(position);
        }
    }
}

/// What the sender of a stream waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    /// Its own disk.
    Read,
    /// That the receiver takes the next bytes, since then.
    Taking(Instant),
    /// The answer: everything was sent.
    Answer,
}

/// How far a stream is. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Mutex<Awaited>>);

impl Progress {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Awaited::Read)))
    }

    pub(crate) fn awaited(&self) -> Awaited {
        *self.0.lock()
    }

    /// Passes a stream on, and records its progress.
    pub(crate) fn watch(
        &self,
        mut body: BoxStream<'static, io::Result<Bytes>>,
    ) -> BoxStream<'static, io::Result<Bytes>> {
        let awaited = self.0.clone();
        let watched = futures::stream::poll_fn(move |context| {
            *awaited.lock() = Awaited::Read;
            let next = body.poll_next_unpin(context);
            match next {
                std::task::Poll::Ready(Some(_)) => *awaited.lock() = Awaited::Taking(Instant::now()),
                std::task::Poll::Ready(None) => *awaited.lock() = Awaited::Answer,
                std::task::Poll::Pending => {}
            }
            next
        });
        watched.boxed()
    }
}

pub(crate) struct Outgoing {
    pub(crate) id: u64,
    vote: Vote,
    pub(super) meta: SnapshotMeta,
    pub(super) source: SnapshotSource,
}

impl Outgoing {
    /// A snapshot with a new id.
    pub(crate) fn new(vote: Vote, meta: SnapshotMeta, source: SnapshotSource) -> Self {
        Self { id: fastrand::u64(..), vote, meta, source }
    }

    /// The index of the last log entry that the snapshot covers.
    pub(crate) fn covered(&self) -> u64 {
        self.meta.last_log_id.map_or(0, |log_id| log_id.index())
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
        let pieces = frames.flat_map(|frame| futures::stream::iter(pieces(frame))).boxed();
        Ok(futures::stream::iter([header]).chain(paced(pieces, bytes_per_second)).boxed())
    }
}

/// Cuts a frame into pieces for the network.
fn pieces(frame: io::Result<Bytes>) -> impl Iterator<Item = io::Result<Bytes>> + Send {
    let mut left = Some(frame);
    std::iter::from_fn(move || match left.take()? {
        Ok(mut frame) => {
            let piece = frame.split_to(frame.len().min(PIECE_BYTES_MAX));
            left = (!frame.is_empty()).then_some(Ok(frame));
            Some(Ok(piece))
        }
        Err(error) => Some(Err(error)),
    })
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
        // Late timers are made up for, and slow reading is not: no burst follows a pause.
        let now = Instant::now();
        let next = due.max(now.checked_sub(PACE_SLACK).unwrap_or(now))
            + Duration::from_secs_f64(bytes as f64 / bytes_per_second.max(1) as f64);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Data;

    #[tokio::test]
    async fn a_snapshot_keeps_its_pace() {
        let dir = tempfile::tempdir().unwrap();
        let data = Data::open(dir.path(), 1024 * 1024).unwrap();
        for key in ["a", "b", "c", "d"] {
            data.apply(&[], &[(key, vec![7; 300_000].into())]).unwrap();
        }
        let source = SnapshotSource::Live(data.snapshot());
        let outgoing = Outgoing::new(Vote::new(1, 1), SnapshotMeta::default(), source);
        let began = Instant::now();
        let body = outgoing.body(0, 4_000_000, &Blocking::Threads).unwrap();
        let bytes: usize =
            body.map(|frame| frame.unwrap().len()).fold(0, |sum, bytes| async move { sum + bytes }).await;
        let least = Duration::from_secs_f64((bytes - 400_000) as f64 / 4_000_000.0);
        assert!(began.elapsed() >= least, "{bytes} bytes within {:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_knows_whom_it_waits_for() {
        let progress = Progress::new();
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let receiver = futures::stream::unfold(receiver, |mut receiver| async {
            let next: Option<io::Result<Bytes>> = receiver.recv().await;
            Some((next?, receiver))
        });
        let mut body = progress.watch(receiver.boxed());
        assert!(futures::poll!(body.next()).is_pending());
        assert_eq!(progress.awaited(), Awaited::Read);
        sender.send(Ok(Bytes::new())).await.unwrap();
        let taken = Instant::now();
        assert!(body.next().await.is_some());
        tokio::time::advance(STALL_MAX).await;
        assert_eq!(progress.awaited(), Awaited::Taking(taken));
        drop(sender);
        assert!(body.next().await.is_none());
        assert_eq!(progress.awaited(), Awaited::Answer);
    }
}
