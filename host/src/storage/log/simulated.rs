//! A log on a simulated disk. For tests.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::Log;
use super::tables::LogTables;
use super::tail::Tail;
use super::watermark::{self, Mark, Watermark};
use super::writer::{Shared, Writer};
use crate::storage::engine::{Durability, memory::SimDisk};
use crate::storage::{Error, Poison};

/// Opens a log that is written by a task of the current runtime. A sync takes simulated time.
pub(crate) fn open(disk: &SimDisk) -> Result<Log, Error> {
    let (log, writer) = load(disk, false)?;
    tokio::spawn(run(writer, disk.clone()));
    Ok(log)
}

/// Opens a log that is written by a thread, as in production.
pub(crate) fn open_on_thread(disk: &SimDisk) -> Result<Log, Error> {
    let (log, writer) = load(disk, true)?;
    log.start(writer)?;
    Ok(log)
}

fn load(disk: &SimDisk, waits: bool) -> Result<(Log, Writer), Error> {
    let (dir, engine) = (Path::new("disk"), disk.open(waits)?);
    let sidecar = Sidecar { disk: disk.clone(), opening: engine.opening };
    let tables = LogTables::new(Box::new(engine), dir)?;
    let (range, mark) = tables.examine(sidecar.read(), dir, false)?;
    sidecar.set(mark, true)?;
    let (tail, poison, watermark) = (Mutex::new(Tail::new(range)), Poison::new(dir), Arc::new(sidecar));
    Ok(Log::new(Shared { tables, tail, poison, watermark }, Box::new(|_, _| {})))
}

/// [`Writer::run`] as a task: the same, except that time passes between the write and the sync.
async fn run(mut writer: Writer, disk: SimDisk) {
    while let Some(first) = writer.queue.recv().await {
        let staged = writer.gather(first);
        let mut result = writer.commit(&staged, Durability::None);
        if staged.sync {
            tokio::time::sleep(disk.next_sync_time()).await;
            result = result.and_then(|()| writer.log.poison.attempt(|| writer.log.tables.engine.sync()));
            result = result.and_then(|()| writer.raise_mark(&staged));
        }
        writer.finish(staged, &result);
    }
}

/// A watermark in the sidecar of a simulated disk.
struct Sidecar {
    disk: SimDisk,
    opening: u64,
}

impl Sidecar {
    fn read(&self) -> Result<Option<Mark>, Error> {
        self.disk.sidecar().map(|bytes| watermark::newest(&bytes, Path::new("sidecar"))).transpose()
    }
}

impl Watermark for Sidecar {
    fn mark(&self) -> Mark {
        self.read().ok().flatten().unwrap_or_default()
    }

    fn set(&self, mark: Mark, sync: bool) -> Result<(), Error> {
        self.disk.set_sidecar(self.opening, Bytes::from(watermark::encode(mark, 0)), sync)
    }
}
