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
use super::turn::{Turn, Turns};
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
        let turn = Arc::new(self.turns.take().await?);
        // Another stream may have ended with it meanwhile.
        if let Some(installed) = self.installed(id) {
            drop(turn);
            return installed.await;
        }
        let spool = self.begin(&turn, id, header.offset).await?;
        let bytes = turn.run(self.fill(&turn, &spool, header.offset, gathered, body)).await?;
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
    async fn begin(&self, turn: &Arc<Turn>, id: u64, offset: u64) -> Result<Arc<Spool>, Error> {
        let (free_space, spools) = (self.free_space.clone(), self.spools.clone());
        self.blocking.run(move || free_space.measure()).await.map_err(refused)?;
        disk_full::check(&self.free_space)?;
        let overflow = self.overflow.lock().filter(|(_, at)| at.elapsed() < OVERFLOW_MEMORY);
        if let Some((bytes, _)) = overflow {
            // The file and the state each, and some more than the last time.
            let needed = bytes.saturating_mul(2).saturating_add(bytes / 8).saturating_sub(offset);
            self.check_spare(needed)?;
        }
        let place = turn.clone();
        let open = move || {
            // Held until this has ended, though nobody may wait for it any more.
            let _place = place;
            spools.open(id, offset)
        };
        let spool = self.run(open).await?;
        tracing::info!(id = format!("{id:016x}"), offset, "a snapshot arrives");
        Ok(Arc::new(spool))
    }

    /// Writes a stream to its file from byte `at` on; returns the length of the whole.
    async fn fill<E>(
        &self,
        turn: &Arc<Turn>,
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
                self.write(turn, spool, bytes, at).await?;
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
    async fn write(&self, turn: &Arc<Turn>, spool: &Arc<Spool>, bytes: Bytes, at: u64) -> Result<(), Error> {
        let (file, free_space, end) = (spool.clone(), self.free_space.clone(), at + bytes.len() as u64);
        let place = turn.clone();
        let written = self.blocking.run(move || {
            free_space.measure();
            let written = file.file.write_all_at(&bytes, at);
            // In this order: who has the place next finds the file unused.
            drop(file);
            drop(place);
            written
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
mod tests;
