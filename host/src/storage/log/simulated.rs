//! A log on a simulated disk. For tests.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::Log;
use super::examine::OnLoss;
use super::tables::LogTables;
use super::watermark::{self, Mark, Watermark, WatermarkStore};
use super::writer::Writer;
use crate::storage::engine::Durability;
use crate::storage::engine::memory::SimDisk;
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
    let watermark = Box::new(Sidecar { disk: disk.clone(), opening: engine.opening });
    let tables = LogTables::new(Box::new(engine), dir)?;
    Log::load(tables, watermark, dir, Box::new(|_, _| {}), OnLoss::Refuse)
}

/// [`Writer::run`] as a task: the same, except that time passes between the write and the sync.
async fn run(mut writer: Writer, disk: SimDisk) {
    while let Some(first) = writer.queue.recv().await {
        let staged = writer.gather(first);
        let mut result = writer.commit(&staged, Durability::None);
        if staged.sync {
            tokio::time::sleep(disk.next_sync_time()).await;
            result = result.and_then(|()| writer.poison.attempt(|| writer.tables.sync()));
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
    fn set(&self, mark: Mark, sync: bool) -> Result<(), Error> {
        self.disk.set_sidecar(self.opening, Bytes::from(watermark::encode(mark, 0)), sync)
    }
}

impl WatermarkStore for Sidecar {
    fn read(&self) -> Result<Option<Mark>, Error> {
        self.disk.sidecar().map(|bytes| watermark::newest(&bytes, Path::new("sidecar"))).transpose()
    }

    fn begin(self: Box<Self>, mark: Mark, _poison: &Poison) -> Result<Arc<dyn Watermark>, Error> {
        self.set(mark, true)?;
        Ok(Arc::from(self as Box<dyn Watermark>))
    }
}

impl Watermark for Sidecar {
    fn mark(&self) -> Mark {
        self.read().ok().flatten().unwrap_or_default()
    }

    fn advance(&self, mark: Mark) -> Result<(), Error> {
        self.set(mark, false)
    }

    fn lower(&self, mark: Mark) -> Result<(), Error> {
        self.set(mark, true)
    }

    fn close(&self) {}
}
