//! A snapshot on its way from one node to another, in bounded memory, at a bounded pace, and resumable.
//!
//! The sender reads it from its state as of one moment as it goes; the receiver spools it to a file in its data directory
//! and installs it once it is whole. On the wire and in the file it is a sequence of frames: a length of four bytes
//! (big-endian) and that many bytes, a storage chunk each, which carries its own checksum; the last is an end marker. On
//! the wire a frame with the [`Header`] comes first.
//!
//! # When it breaks off
//!
//! A snapshot has an id of its own, which names the file, and two streams of the same id carry the same bytes. When a
//! stream breaks, the sender still holds the moment it reads, asks how much the receiver has, and goes on from there; the
//! receiver may have restarted meanwhile. What was sent before is read again and dropped, which costs the sender's disk but
//! not the network. A sender that has itself restarted, or has tried in vain too often, starts a new snapshot
//! under a new id. Files that nobody goes on with are removed: few are kept, and none for long.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::blocking::Blocking;
use super::types::{SnapshotMeta, Vote, decode, encode};
use crate::storage::{self, SnapshotReader};

/// Longest frame accepted, in bytes.
const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Chunks read ahead of the network.
const READ_AHEAD: usize = 4;

/// Bytes gathered before they are written to the spool.
const WRITE_BYTES: usize = 256 * 1024;

/// Snapshots kept that are not whole: the one that arrives, and the one before, whose sender may yet go on.
const SPOOLS_MAX: usize = 2;

/// How long an unfinished snapshot is kept after its last byte.
const SPOOL_AGE_MAX: Duration = Duration::from_secs(3_600);

/// How the files of unfinished snapshots end.
const SPOOL_EXTENSION: &str = "snapshot";

/// How often a sender tries in vain to go on: a minute, long enough for the receiver's restart.
pub(super) const RESUME_TRIES_MAX: u32 = 240;

/// How long it waits before it tries again.
pub(super) const RESUME_PAUSE: Duration = Duration::from_millis(250);

/// Where the chunks of a snapshot come from. Cheap to clone; all clones read the same.
#[derive(Clone)]
pub enum SnapshotSource {
    /// This node's own state, as of one moment.
    Live(SnapshotReader),
    /// A file received from another node.
    Received(Arc<File>),
}

/// Chunks of a snapshot, read by a blocking thread.
pub(super) type Chunks = Box<dyn Iterator<Item = Result<Bytes, storage::Error>> + Send>;

impl SnapshotSource {
    /// The chunks from the first on, to be read on a blocking thread.
    pub(super) fn chunks(&self) -> io::Result<Chunks> {
        match self {
            Self::Live(reader) => Ok(Box::new(reader.clone().into_chunks())),
            Self::Received(file) => Ok(Box::new(Frames::of(file)?.map(|frame| frame.map_err(storage::Error::from)))),
        }
    }
}

/// What a stream begins with.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Header {
    /// The snapshot's id.
    id: u64,
    /// Bytes of frames before those that follow.
    offset: u64,
    /// The leader that sends it.
    pub(super) vote: Vote,
    /// What it covers.
    pub(super) meta: SnapshotMeta,
}

/// A snapshot to be sent.
pub(super) struct Outgoing {
    pub(super) id: u64,
    vote: Vote,
    meta: SnapshotMeta,
    source: SnapshotSource,
}

impl Outgoing {
    /// Under a new id.
    pub(super) fn new(vote: Vote, meta: SnapshotMeta, source: SnapshotSource) -> Self {
        Self { id: fastrand::u64(..), vote, meta, source }
    }

    /// The header and the frames from a byte on, at no more than so many bytes per second.
    pub(super) fn body(
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

/// A stream that takes its time, so that what goes on beside it has its share of network, disk and processor.
fn paced(
    frames: BoxStream<'static, io::Result<Bytes>>,
    bytes_per_second: u64,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures::stream::unfold((frames, Instant::now()), move |(mut frames, due)| async move {
        tokio::time::sleep_until(due).await;
        let frame = frames.next().await?;
        let bytes = frame.as_ref().map_or(0, Bytes::len);
        // Time that reading took is not made up for: a pause is no reason for a burst.
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

fn unfinished(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, reason)
}

/// Receives a stream into the spool of its snapshot, and returns its header and the whole snapshot. It is read once, so
/// that it is known to be whole: what is installed takes the place of the state that is there. If the stream breaks, what
/// came of it stays in the spool.
pub(super) async fn receive<E>(
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
        gathered
            .extend_from_slice(&body.next().await.ok_or_else(|| unfinished("no header"))?.map_err(io::Error::other)?);
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
    let source = blocking.run(move || spool.finish()).await??;
    Ok((header, source))
}

/// Takes the header from the front of what has come, once it is there.
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

/// How many bytes of a snapshot have come so far. For a blocking thread.
pub(super) fn held(dir: &Path, id: u64) -> io::Result<u64> {
    match std::fs::metadata(spool_path(dir, id)) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn spool_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.{SPOOL_EXTENSION}"))
}

/// The file of a snapshot that arrives: always a beginning of it, without gaps, since a stream begins no later than where
/// the file ends.
struct Spool {
    file: File,
    path: PathBuf,
}

impl Spool {
    fn open(dir: &Path, id: u64, offset: u64) -> io::Result<Self> {
        let path = spool_path(dir, id);
        sweep(dir, &path)?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        if file.metadata()?.len() < offset {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "bytes before these are missing"));
        }
        Ok(Self { file, path })
    }

    /// Checks that the snapshot is whole. The file has no name afterwards, so that the system removes it when it is closed.
    fn finish(&self) -> io::Result<SnapshotSource> {
        let frames = Frames::of(&self.file)?;
        let verified = storage::verify_snapshot(frames.map(|frame| frame.map_err(storage::Error::from)));
        std::fs::remove_file(&self.path)?;
        verified.map_err(io::Error::other)?;
        Ok(SnapshotSource::Received(Arc::new(self.file.try_clone()?)))
    }
}

/// Removes what nobody will go on with: what is old, and all but the newest beside the one at `keep`.
fn sweep(dir: &Path, keep: &Path) -> io::Result<()> {
    let mut others = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path != keep && path.extension().is_some_and(|extension| extension == SPOOL_EXTENSION) {
            let written = path.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            others.push((written, path));
        }
    }
    others.sort_by(|a, b| b.cmp(a));
    for (position, (written, path)) in others.iter().enumerate() {
        let is_old = written.elapsed().is_ok_and(|age| age > SPOOL_AGE_MAX);
        if is_old || position + 1 >= SPOOLS_MAX {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::Data;

    fn bytes_of(name: &str) -> Bytes {
        Bytes::copy_from_slice(name.as_bytes())
    }

    /// A state with a few chunks, to be sent.
    fn outgoing(dir: &Path) -> Outgoing {
        let data = Data::open(dir, 1024 * 1024).unwrap();
        let blob = Bytes::from(vec![7; 300_000]);
        for key in ["a", "b", "c", "d"] {
            data.apply(&[], &[(key, blob.clone())]).unwrap();
        }
        let source = SnapshotSource::Live(data.snapshot());
        Outgoing::new(Vote::new(1, 1), SnapshotMeta::default(), source)
    }

    /// The stream from a byte on, cut after so many bytes.
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
            // Its file is gone once it is whole; the second time, all of it is sent again up to there.
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

    #[test]
    fn few_unfinished_snapshots_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for id in 0..5 {
            Spool::open(dir.path(), id, 0).unwrap().file.write_all_at(&bytes_of("x"), 0).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), SPOOLS_MAX);
        assert_eq!(held(dir.path(), 4).unwrap(), 1);
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
