//! A log on a simulated disk. For tests.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::Log;
use super::examine::examine;
use super::files::{SegmentFile, SegmentFiles};
use super::watermark::{self, Mark, Watermark};
use super::writer::Writer;
use crate::storage::engine::memory::{MemoryEngine, SimDisk};
use crate::storage::engine::{Durability, EVERYTHING, ReadTables, Rows, StorageEngine, Table, WriteBatch};
use crate::storage::{Error, Poison};

const SEGMENTS: Table = Table(0);

/// Opens a log that is written by a task of the current runtime. A sync takes simulated time.
pub(crate) fn open(disk: &SimDisk, accepts_loss: bool) -> Result<Log, Error> {
    let (log, writer) = load(disk, false, accepts_loss)?;
    tokio::spawn(run(writer, disk.clone()));
    Ok(log)
}

/// Opens a log that is written by a thread, as in production.
pub(crate) fn open_on_thread(disk: &SimDisk) -> Result<Log, Error> {
    let (log, writer) = load(disk, true, false)?;
    log.start(writer)?;
    Ok(log)
}

fn load(disk: &SimDisk, waits: bool, accepts_loss: bool) -> Result<(Log, Writer), Error> {
    let (dir, engine) = (Path::new("disk"), Arc::new(disk.open(waits)?));
    disk.set_tears();
    let sidecar = Sidecar { disk: disk.clone(), opening: engine.opening };
    let (segments, tail, mark) = examine(Box::new(SimSegments(engine)), sidecar.read(), dir, accepts_loss)?;
    sidecar.set(mark, true)?;
    Ok(Log::new(segments, tail, Poison::new(dir), Arc::new(sidecar), Box::new(|_, _| {})))
}

/// [`Writer::run`] as a task: the same, except that time passes between the write and the sync.
async fn run(mut writer: Writer, disk: SimDisk) {
    while let Some(first) = writer.queue.recv().await {
        let mut batch = writer.gather(first);
        let mut result = writer.write(&mut batch);
        tokio::time::sleep(disk.next_sync_time()).await;
        result = result.and_then(|()| writer.sync());
        writer.finish(batch, &result);
    }
    writer.close();
}

/// The segments as a table of a simulated disk: each write is a row, by segment and offset.
struct SimSegments(Arc<MemoryEngine>);

struct SimSegment {
    engine: Arc<MemoryEngine>,
    number: u64,
}

fn key(segment: u64, offset: u64) -> Vec<u8> {
    [segment.to_be_bytes(), offset.to_be_bytes()].concat()
}

fn rows(engine: &MemoryEngine, segment: u64) -> Result<Rows, Error> {
    engine.range(SEGMENTS, (Bound::Included(key(segment, 0)), Bound::Excluded(key(segment + 1, 0))))
}

fn write(engine: &MemoryEngine, segment: u64, offset: u64, bytes: &[u8], durability: Durability) -> Result<(), Error> {
    let mut batch = WriteBatch::default();
    batch.insert(SEGMENTS, key(segment, offset), bytes);
    engine.write(batch, durability)
}

impl SegmentFiles for SimSegments {
    fn list(&self) -> Result<Vec<u64>, Error> {
        let keys = self.0.keys(SEGMENTS, EVERYTHING)?.collect::<Result<Vec<_>, _>>()?;
        let mut segments: Vec<u64> =
            keys.iter().filter_map(|key| Some(u64::from_be_bytes(*key.first_chunk()?))).collect();
        segments.dedup();
        Ok(segments)
    }

    fn read(&self, segment: u64, offset: u64, bytes_max: u64) -> Result<Vec<u8>, Error> {
        let mut content = Vec::new();
        for row in rows(&self.0, segment)? {
            content.extend_from_slice(&row?.1);
        }
        let start = content.len().min(offset as usize);
        let end = content.len().min(start.saturating_add(bytes_max as usize));
        Ok(content[start..end].to_vec())
    }

    fn create(&self, segment: u64, content: &[u8]) -> Result<Box<dyn SegmentFile>, Error> {
        write(&self.0, segment, 0, content, Durability::All)?;
        Ok(Box::new(SimSegment { engine: self.0.clone(), number: segment }))
    }

    fn sync(&self, _segment: u64) -> Result<(), Error> {
        self.0.sync()
    }

    fn remove(&self, segment: u64) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        for row in rows(&self.0, segment)? {
            batch.set(SEGMENTS, row?.0, None);
        }
        self.0.write(batch, Durability::None)
    }
}

impl SegmentFile for SimSegment {
    fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        write(&self.engine, self.number, offset, bytes, Durability::None)
    }

    fn sync(&mut self) -> Result<(), Error> {
        self.engine.sync()
    }

    /// Nothing is reserved.
    fn finish(&mut self, _length: u64) -> Result<(), Error> {
        Ok(())
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
