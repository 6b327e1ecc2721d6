//! The receiving end of a snapshot.
//!
//! A stream is written to its snapshot's [file](super::spool) as it comes. Once all of it is there, the snapshot is verified as
//! a whole, since installing it replaces the existing state, and installed. That takes minutes for a large state, and goes on
//! by itself if the stream breaks meanwhile: a sender that comes back with the same snapshot waits for the same end. The file
//! stays until then, so that a node which restarts need not receive it again.
//!
//! What a snapshot says of itself is checked before it arrives, and compared with what it holds before it is installed. One arrives
//! or is installed at a time.
//!
//! # Space
//!
//! An installed state takes about as much space as its snapshot, and the old state stays until it is complete. So a snapshot is
//! accepted only as long as the disk has as much space left above its reserve as has arrived, and one that breaks this bound
//! is removed at once. The next one is refused before it arrives, unless space was freed or [`OVERFLOW_MEMORY`] has passed.
//! The space of a stream is measured with every write: the snapshot's length is not known before its end.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::{io, sync::Arc, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, Shared};
use futures::{FutureExt, Stream, StreamExt};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::snapshot::{Header, SnapshotSource};
use super::spool::{IDLE_MAX, Spool, Spools, frames};
use super::turn::Turns;
use crate::replication::blocking::Blocking;
use crate::replication::raft::snapshot_rows;
use crate::replication::types::SnapshotMeta;
use crate::replication::{disk_full, error::Error, error::WriteOutcome};
use crate::storage::{self, FreeSpace};

/// Bytes gathered for one write to the file.
const WRITE_BYTES: usize = 256 * 1024;

/// Time for which it is remembered how much space a snapshot lacked.
const OVERFLOW_MEMORY: Duration = Duration::from_secs(600);

/// Interval at which dead files are looked for.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// The result of an installation, for all streams that wait for it.
type Installed = Shared<BoxFuture<'static, Result<Bytes, Error>>>;

/// Receives snapshots. One for each node.
pub(crate) struct Receiver {
    spools: Arc<Spools>,
    free_space: FreeSpace,
    blocking: Blocking,
    turns: Turns,
    /// The last snapshot that has arrived as a whole.
    arrived: Mutex<Option<Arrived>>,
    /// The last snapshot that did not fit: its bytes until then, and when.
    overflow: Mutex<Option<(u64, Instant)>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

struct Arrived {
    id: u64,
    bytes: u64,
    installed: Installed,
}

impl Receiver {
    pub(crate) fn new(
        dir: PathBuf,
        free_space: FreeSpace,
        blocking: Blocking,
        tasks: TaskTracker,
        stop: CancellationToken,
    ) -> Self {
        let (arrived, overflow) = (Mutex::default(), Mutex::default());
        Self { spools: Spools::new(dir), free_space, blocking, turns: Turns::new(), arrived, overflow, tasks, stop }
    }

    /// Number of bytes of a snapshot that have arrived.
    pub(crate) async fn held(&self, id: u64) -> Result<u64, Error> {
        let arrived = self.arrived.lock().as_ref().filter(|arrived| arrived.id == id).map(|arrived| arrived.bytes);
        if let Some(bytes) = arrived {
            return Ok(bytes);
        }
        let spools = self.spools.clone();
        self.run(move || spools.held(id)).await
    }

    /// Receives a stream whose header passes a check, and installs the snapshot once all of it is there. If the stream breaks, what
    /// has arrived stays.
    ///
    /// # Errors
    ///
    /// If the stream breaks or the snapshot is damaged, does not fit, or is not installed. Nothing is changed then.
    pub(crate) async fn receive<E, I>(
        &self,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
        check: impl FnOnce(&Header) -> Result<(), Error>,
        install: impl FnOnce(Header, SnapshotSource) -> I + Send + 'static,
    ) -> Result<Bytes, Error>
    where
        E: std::error::Error + Send + Sync + 'static,
        I: Future<Output = Result<Bytes, Error>> + Send + 'static,
    {
        let mut gathered = BytesMut::new();
        let header = loop {
            if let Some(header) = Header::take(&mut gathered).map_err(refused)? {
                break header;
            }
            match next(&mut body).await? {
                Some(bytes) => gathered.extend_from_slice(&bytes),
                None => return Err(refused("a snapshot without a header")),
            }
        };
        check(&header)?;
        let id = header.id;
        if let Some(installed) = self.installed(id) {
            return installed.await;
        }
        let turn = self.turns.take().await?;
        // Another stream may have ended with it meanwhile.
        if let Some(installed) = self.installed(id) {
            drop(turn);
            return installed.await;
        }
        let spool = self.begin(id, header.offset).await?;
        let bytes = turn.run(self.fill(&spool, header.offset, gathered, body)).await?;
        let (blocking, stop, meta) = (self.blocking.clone(), self.stop.clone(), header.meta.clone());
        let finish = async move {
            let _turn = turn;
            finish(spool, blocking, stop, meta, |source| install(header, source)).await
        };
        let installed = {
            let mut arrived = self.arrived.lock();
            match arrived.as_ref().filter(|arrived| arrived.id == id) {
                Some(arrived) => arrived.installed.clone(),
                None => {
                    let task = self.tasks.spawn(finish);
                    let stopped = Error::Stopped { outcome: WriteOutcome::Unknown };
                    let installed = task.map(|end| end.unwrap_or(Err(stopped))).boxed().shared();
                    *arrived = Some(Arrived { id, bytes, installed: installed.clone() });
                    installed
                }
            }
        };
        installed.await
    }

    /// Removes the files of snapshots that nobody will continue, until `stop`. `is_up_to_date`: whether this node needs none.
    pub(crate) async fn sweep(self: Arc<Self>, is_up_to_date: impl Fn() -> bool, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(SWEEP_INTERVAL)).await.is_some() {
            let (spools, is_up_to_date) = (self.spools.clone(), is_up_to_date());
            if let Err(error) = self.run(move || spools.sweep(is_up_to_date)).await {
                tracing::warn!(%error, "the files of unfinished snapshots cannot be removed");
            }
        }
    }

    /// The end of a snapshot that has arrived as a whole.
    fn installed(&self, id: u64) -> Option<Installed> {
        self.arrived.lock().as_ref().filter(|arrived| arrived.id == id).map(|arrived| arrived.installed.clone())
    }

    /// Opens the file of a snapshot, if there is space.
    async fn begin(&self, id: u64, offset: u64) -> Result<Arc<Spool>, Error> {
        let (free_space, spools) = (self.free_space.clone(), self.spools.clone());
        self.blocking.run(move || free_space.measure()).await.map_err(refused)?;
        disk_full::check(&self.free_space)?;
        let overflow = self.overflow.lock().filter(|(_, at)| at.elapsed() < OVERFLOW_MEMORY);
        if let Some((bytes, _)) = overflow {
            // The file and the state each, and some more than the last time.
            let needed = bytes.saturating_mul(2).saturating_add(bytes / 8).saturating_sub(offset);
            self.check_spare(needed)?;
        }
        let spool = self.run(move || spools.open(id, offset)).await?;
        tracing::info!(id = format!("{id:016x}"), offset, "a snapshot arrives");
        Ok(Arc::new(spool))
    }

    /// Writes a stream to its file from byte `at` on; returns the length of the whole.
    async fn fill<E>(
        &self,
        spool: &Arc<Spool>,
        mut at: u64,
        mut gathered: BytesMut,
        mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<u64, Error>
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        loop {
            let part = next(&mut body).await;
            if let Ok(Some(bytes)) = &part {
                gathered.extend_from_slice(bytes);
            }
            let is_over = !matches!(part, Ok(Some(_)));
            if gathered.len() >= WRITE_BYTES || is_over {
                let bytes = gathered.split().freeze();
                let length = bytes.len() as u64;
                self.write(spool, bytes, at).await?;
                at += length;
            }
            match part {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(at),
                Err(error) => {
                    tracing::warn!(bytes = at, %error, "a snapshot broke off");
                    return Err(error);
                }
            }
        }
    }

    /// Writes a part of a snapshot, unless the disk has no room for it. Then nothing of the snapshot is kept.
    async fn write(&self, spool: &Arc<Spool>, bytes: Bytes, at: u64) -> Result<(), Error> {
        let (file, free_space, end) = (spool.clone(), self.free_space.clone(), at + bytes.len() as u64);
        let written = self.blocking.run(move || {
            free_space.measure();
            file.file.write_all_at(&bytes, at)
        });
        let written = written.await.map_err(refused)?;
        let error = match disk_full::check(&self.free_space).and_then(|()| self.check_spare(end)) {
            Err(error) => error,
            Ok(()) => match written {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => refused(error),
                written => return written.map_err(refused),
            },
        };
        tracing::error!(bytes = end, %error, "a snapshot does not fit on the disk, and its receipt was given up");
        *self.overflow.lock() = Some((end, Instant::now()));
        let file = spool.clone();
        self.run(move || file.remove()).await?;
        Err(error)
    }

    fn check_spare(&self, needed: u64) -> Result<(), Error> {
        let spare = self.free_space.spare_bytes();
        if spare >= needed {
            return Ok(());
        }
        Err(refused(format!("the disk has {spare} bytes above its reserve, and the snapshot needs at least {needed}")))
    }

    async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> io::Result<T> + Send + 'static) -> Result<T, Error> {
        self.blocking.run(job).await.and_then(|result| result).map_err(refused)
    }
}

/// Verifies a snapshot that has arrived, and installs it. Its file is removed, unless this node stops meanwhile.
async fn finish<I>(
    spool: Arc<Spool>,
    blocking: Blocking,
    stop: CancellationToken,
    meta: SnapshotMeta,
    install: impl FnOnce(SnapshotSource) -> I,
) -> Result<Bytes, Error>
where
    I: Future<Output = Result<Bytes, Error>>,
{
    let (verified, stopping) = (spool.clone(), stop.clone());
    let verify = move || {
        let going_on = || if stopping.is_cancelled() { Err(storage::Error::Closed) } else { Ok(()) };
        let frames = frames(&verified.file)?.map(|frame| going_on().and(frame));
        let values = storage::verify_snapshot(frames, snapshot_rows::KEYS)?;
        Ok::<_, storage::Error>((values, verified.file.try_clone()?))
    };
    let result = match blocking.run(verify).await.map_err(refused)? {
        Ok((values, file)) => match snapshot_rows::check(&meta, values) {
            Ok(()) => install(SnapshotSource::Received(Arc::new(file))).await,
            Err(error) => Err(refused(error)),
        },
        Err(_) if stop.is_cancelled() => Err(Error::Stopped { outcome: WriteOutcome::Unknown }),
        Err(error) => Err(refused(error)),
    };
    if !stop.is_cancelled() {
        blocking.run(move || spool.remove()).await.map_err(refused)?.map_err(refused)?;
    }
    result
}

/// The next part of a stream, unless its sender was silent for too long.
async fn next<E>(body: &mut (impl Stream<Item = Result<Bytes, E>> + Unpin)) -> Result<Option<Bytes>, Error>
where
    E: std::error::Error + Send + Sync + 'static,
{
    // A sender that continues a snapshot first reads the part that it has sent before.
    let next = tokio::time::timeout(IDLE_MAX, body.next()).await;
    next.map_err(|_| refused("the sender of a snapshot was silent"))?.transpose().map_err(refused)
}

fn refused(error: impl std::fmt::Display) -> Error {
    tracing::debug!(%error, "a snapshot was not received");
    Error::Refused(error.to_string())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Semaphore;

    use super::*;
    use crate::replication::peer::snapshot::Outgoing;
    use crate::replication::types::{SnapshotMeta, Vote};
    use crate::storage::Data;

    /// A snapshot of a state with these values.
    fn outgoing(dir: &Path, values: &[(&'static str, usize)]) -> Outgoing {
        let data = Data::open(dir, 1024 * 1024).unwrap();
        for (key, bytes) in values {
            data.apply(&[], &[(key, vec![7; *bytes].into())]).unwrap();
        }
        Outgoing::new(Vote::new(1, 1), SnapshotMeta::default(), SnapshotSource::Live(data.snapshot()))
    }

    const FEW_CHUNKS: [(&str, usize); 4] = [("a", 300_000), ("b", 300_000), ("c", 300_000), ("d", 300_000)];

    /// The stream from byte `offset` on, broken after `cut` pieces.
    async fn stream(outgoing: &Outgoing, offset: u64, cut: usize) -> Vec<io::Result<Bytes>> {
        let body = outgoing.body(offset, u64::MAX, &Blocking::Threads).unwrap();
        let mut all: Vec<io::Result<Bytes>> = body.collect().await;
        if cut < all.len() {
            all.truncate(cut);
            all.push(Err(io::Error::other("cut")));
        }
        all
    }

    fn receiver(dir: &Path, reserve_bytes: u64) -> Receiver {
        let free_space = FreeSpace::new(dir, reserve_bytes);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        Receiver::new(dir.to_path_buf(), free_space, Blocking::Threads, tasks, stop)
    }

    async fn receive(receiver: &Receiver, stream: Vec<io::Result<Bytes>>) -> Result<Vec<Bytes>, Error> {
        let whole = Arc::new(Mutex::new(Vec::new()));
        let installed = whole.clone();
        let install = async move |_, source: SnapshotSource| {
            *installed.lock() = source.chunks().unwrap().map(Result::unwrap).collect();
            Ok(Bytes::new())
        };
        receiver.receive(futures::stream::iter(stream), |_| Ok(()), install).await?;
        Ok(std::mem::take(&mut *whole.lock()))
    }

    fn chunks(outgoing: &Outgoing) -> Vec<Bytes> {
        outgoing.source.chunks().unwrap().map(Result::unwrap).collect()
    }

    fn files(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[tokio::test]
    async fn a_snapshot_goes_on_where_it_broke_off() {
        let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outgoing = outgoing(sender.path(), &FEW_CHUNKS);
        for half_a_frame in [0, 10] {
            let receiver = receiver(spool.path(), 0);
            let cut = stream(&outgoing, 0, 4).await;
            let sent: usize = cut.iter().skip(1).flatten().map(Bytes::len).sum();
            assert!(receive(&receiver, cut).await.is_err());
            let held = receiver.held(outgoing.id).await.unwrap();
            assert_eq!(held, sent as u64);

            let rest = stream(&outgoing, held - half_a_frame, usize::MAX).await;
            assert_eq!(receive(&receiver, rest).await.unwrap(), chunks(&outgoing));
            assert_eq!(files(spool.path()), 0);
        }
    }

    #[tokio::test]
    async fn a_row_of_any_size_fits_into_a_snapshot() {
        let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outgoing = outgoing(sender.path(), &[("small", 1), ("large", 80 * 1024 * 1024)]);
        let whole = stream(&outgoing, 0, usize::MAX).await;
        assert!(receive(&receiver(spool.path(), 0), whole).await.unwrap() == chunks(&outgoing));
    }

    #[tokio::test]
    async fn a_snapshot_with_a_gap_or_damage_is_refused_and_forgotten() {
        let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outgoing = outgoing(sender.path(), &FEW_CHUNKS);
        let receiver = receiver(spool.path(), 0);
        let late = stream(&outgoing, 100, usize::MAX).await;
        assert!(receive(&receiver, late).await.is_err());

        let mut damaged = stream(&outgoing, 0, usize::MAX).await;
        damaged[2] = Ok(Bytes::from(vec![0; damaged[2].as_ref().unwrap().len()]));
        assert!(receive(&receiver, damaged).await.is_err());
        assert_eq!(files(spool.path()), 0);
    }

    #[tokio::test]
    async fn an_installation_goes_on_without_its_stream_and_happens_once() {
        let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outgoing = outgoing(sender.path(), &FEW_CHUNKS);
        let receiver = receiver(spool.path(), 0);
        let (installations, may_end) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
        let install = {
            let (installations, may_end) = (installations.clone(), may_end.clone());
            move |_, _| async move {
                installations.fetch_add(1, Ordering::Relaxed);
                drop(may_end.acquire().await);
                Ok(Bytes::from_static(b"done"))
            }
        };
        let whole = stream(&outgoing, 0, usize::MAX).await;
        let bytes: usize = whole.iter().skip(1).flatten().map(Bytes::len).sum();
        let first = receiver.receive(futures::stream::iter(whole), |_| Ok(()), install.clone());
        assert!(tokio::time::timeout(Duration::from_millis(300), first).await.is_err(), "the stream breaks");

        // The sender learns that everything is there, and the rest of the stream is empty.
        assert_eq!(receiver.held(outgoing.id).await.unwrap(), bytes as u64);
        let rest = stream(&outgoing, bytes as u64, usize::MAX).await;
        assert_eq!(rest.len(), 1);
        let again = receiver.receive(futures::stream::iter(rest), |_| Ok(()), install.clone());
        may_end.add_permits(1);
        assert_eq!(again.await.unwrap(), "done");
        assert_eq!(files(spool.path()), 0);

        // The answer may be lost too.
        let rest = stream(&outgoing, receiver.held(outgoing.id).await.unwrap(), usize::MAX).await;
        assert_eq!(receiver.receive(futures::stream::iter(rest), |_| Ok(()), install).await.unwrap(), "done");
        assert_eq!(installations.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_snapshot_that_holds_another_state_than_it_says_is_not_installed() {
        let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let last_log_id = Some(openraft::LogId::new(Vote::new(1, 1).leader_id, 7));
        let mut outgoing = outgoing(sender.path(), &FEW_CHUNKS);
        outgoing.meta = SnapshotMeta { last_log_id, ..SnapshotMeta::default() };
        let receiver = receiver(spool.path(), 0);
        let refused = receive(&receiver, stream(&outgoing, 0, usize::MAX).await).await.unwrap_err();
        assert!(refused.to_string().contains("another state"), "{refused}");
        assert_eq!(files(spool.path()), 0);
    }

    #[tokio::test]
    async fn a_snapshot_whose_header_is_refused_takes_no_space() {
        let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outgoing = outgoing(sender.path(), &FEW_CHUNKS);
        let receiver = receiver(spool.path(), 0);
        let whole = futures::stream::iter(stream(&outgoing, 0, usize::MAX).await);
        let check = |_: &Header| Err(Error::Refused("no".to_owned()));
        let refused = receiver.receive(whole, check, async |_, _| Ok(Bytes::new())).await.unwrap_err();
        assert_eq!((refused.to_string().as_str(), files(spool.path())), ("no", 0));
    }

    #[tokio::test]
    async fn however_many_snapshots_arrive_they_take_the_space_of_one() {
        let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let receiver = Arc::new(receiver(spool.path(), 0));
        let mut outgoing = outgoing(sender.path(), &FEW_CHUNKS);
        let mut stuck = Vec::new();
        for id in 0..20 {
            outgoing.id = id;
            // None of them ends.
            let body = futures::stream::iter(stream(&outgoing, 0, usize::MAX).await).chain(futures::stream::pending());
            let receiver = receiver.clone();
            stuck.push(tokio::spawn(
                async move { receiver.receive(body, |_| Ok(()), async |_, _| Ok(Bytes::new())).await },
            ));
        }
        let last = stuck.pop().unwrap();
        for displaced in stuck {
            assert!(displaced.await.unwrap().unwrap_err().to_string().contains("another snapshot"));
        }
        assert!(!last.is_finished());
        // The one that arrives, and one that may be continued.
        assert!(files(spool.path()) <= 2, "{} files", files(spool.path()));
        last.abort();
        assert!(last.await.is_err());

        let whole = stream(&outgoing, 0, usize::MAX).await;
        assert_eq!(receive(&receiver, whole).await.unwrap(), chunks(&outgoing));
    }

    #[tokio::test]
    async fn a_snapshot_that_does_not_fit_is_given_up_and_leaves_nothing() {
        // A file system that no build writes to.
        let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let outgoing = outgoing(sender.path(), &[("a", 4 << 20), ("b", 4 << 20), ("c", 4 << 20), ("d", 4 << 20)]);
        let all = FreeSpace::new(spool.path(), 0);
        all.measure();
        // The snapshot alone would fit.
        let receiver = receiver(spool.path(), all.spare_bytes() - (24 << 20));
        let refused = receive(&receiver, stream(&outgoing, 0, usize::MAX).await).await.unwrap_err();
        assert!(refused.to_string().contains("above its reserve"), "{refused}");
        assert_eq!(files(spool.path()), 0);
        assert!(receiver.free_space.disk_full().is_none());

        // The next one is refused before it arrives.
        let header = stream(&outgoing, 0, 1).await.into_iter().next();
        let stuck = futures::stream::iter(header).chain(futures::stream::pending());
        let install = async |_, _| Ok(Bytes::new());
        let refused = tokio::time::timeout(Duration::from_secs(5), receiver.receive(stuck, |_| Ok(()), install)).await;
        assert!(refused.unwrap().is_err());
        assert_eq!(files(spool.path()), 0);
    }

    #[tokio::test]
    async fn a_full_disk_takes_no_snapshot() {
        let (sender, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let outgoing = outgoing(sender.path(), &FEW_CHUNKS);
        let receiver = receiver(spool.path(), u64::MAX / 2);
        let refused = receive(&receiver, stream(&outgoing, 0, usize::MAX).await).await;
        assert!(matches!(refused, Err(Error::DiskFull(_))), "{refused:?}");
        assert_eq!(files(spool.path()), 0);
    }
}
