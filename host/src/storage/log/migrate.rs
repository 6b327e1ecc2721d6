//! Moves a log that an earlier version kept in the storage engine (format 3) into segments.
//!
//! The segments are written beside the old log. Once they are complete and durable, the old log is renamed, which is the
//! moment of the change. A crash before it leaves the old log, and the next start begins anew; after a later crash the
//! next start finishes.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::examine::{losses, unreadable};
use super::record::Named;
use super::segment_dir::SegmentDir;
use super::segments::{SEGMENT_BYTES, SegmentWriter, Segments};
use super::watermark::{self, Mark, Watermark, WatermarkFile};
use crate::storage::engine::fjall::{self, TableOptions};
use crate::storage::engine::{EVERYTHING, StorageEngine, Table};
use crate::storage::{Error, Poison, dir, format};

/// A directory that only the old log has.
const OLD_MARK: &str = "keyspaces";

/// The only format that such a log has.
const FORMAT: u32 = 3;

const ENTRIES: Table = Table(0);
const NAMED: Table = Table(1);

/// The name of the number of durable votes and ids.
const PROMISES: &str = "promises";

/// Entries that are written at once.
const WRITE_ENTRIES: u64 = 4_096;

/// Memory of the old log's tables.
const CACHE_BYTES: u64 = 4 * 1024 * 1024;
const MEMTABLE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// What was found in the old log.
struct Copied {
    segments: SegmentWriter,
    start: u64,
    damage: Option<String>,
    /// Index and old checksum of the entry that the old watermark names.
    marked: Option<(u64, u32)>,
}

/// Migrates the log in `dir`, if it is an old one.
///
/// # Errors
///
/// [`Error::Lost`] if the old log has lost durable data and that is refused; others if the disk refuses.
pub(super) fn migrate(dir: &Path, accepts_loss: bool) -> Result<(), Error> {
    let (new, old) = (dir.with_file_name("log-new"), dir.with_file_name("log-old"));
    let parent = dir.parent().unwrap_or(Path::new("."));
    if dir.join(OLD_MARK).is_dir() {
        tracing::info!(dir = %dir.display(), "the log of an earlier version is migrated");
        absent(std::fs::remove_dir_all(&new))?;
        copy(dir, &new, accepts_loss)?;
        std::fs::rename(dir, &old)?;
        dir::sync(parent)?;
    }
    if old.is_dir() && !dir.exists() {
        absent(std::fs::rename(new.with_extension("watermark"), dir.with_extension("watermark")))?;
        std::fs::rename(&new, dir)?;
        dir::sync(parent)?;
    }
    absent(std::fs::remove_dir_all(&old))?;
    // Left by a migration that was refused.
    absent(std::fs::remove_dir_all(&new))?;
    absent(std::fs::remove_file(new.with_extension("watermark")))
}

fn open_old(dir: &Path) -> Result<Arc<dyn StorageEngine>, Error> {
    let table = |name| TableOptions {
        name,
        memtable_bytes_max: MEMTABLE_BYTES_MAX,
        separate_bytes_min: None,
        compacts_deletions: false,
    };
    let engine = fjall::open(dir, CACHE_BYTES, &[table("entries"), table("meta")])?;
    let _same = format::check(engine.as_ref(), NAMED, dir, FORMAT..=FORMAT)?;
    Ok(engine)
}

fn copy(old: &Path, new: &Path, accepts_loss: bool) -> Result<(), Error> {
    let engine = open_old(old)?;
    let stored = watermark::read(&old.with_extension("watermark"));
    let mark = stored.as_ref().ok().cloned().flatten().unwrap_or_default();

    let files = Box::new(SegmentDir::open(new, SEGMENT_BYTES)?);
    let mut copied = entries(engine.as_ref(), Segments::find(files, new)?.begin()?, &mark)?;
    let promises = engine.get(NAMED, PROMISES.as_bytes())?.map_or(Ok(0), |promises| number(&promises))?;
    let range = copied.start..copied.segments.next();
    let lost = match stored {
        Err(Error::Corrupt(what)) => Some(unreadable(&what)),
        Err(error) => return Err(error),
        Ok(_) => losses(&mark, &range, promises, copied.damage, copied.marked),
    };
    if let Some(what) = lost.filter(|_| !accepts_loss) {
        return Err(Error::Lost { path: old.to_path_buf(), what });
    }

    let mut values = Named { promises, start: range.start, ..Named::default() };
    for row in engine.range(NAMED, EVERYTHING)? {
        let (name, value) = row?;
        if *name != *format::KEY && *name != *PROMISES.as_bytes() {
            let name = String::from_utf8(name.to_vec()).map_err(|_| Error::corrupt("a name in the log"))?;
            values.values.insert(name, Bytes::copy_from_slice(&value));
        }
    }
    copied.segments.set_named(|named| *named = values)?;
    copied.segments.write()?;
    copied.segments.sync()?;
    let mark = Mark { promises, last: copied.segments.last(), is_damaged: false };
    WatermarkFile::create(&new.with_extension("watermark"), mark, Poison::new(new))?.close();
    Ok(())
}

/// Copies the entries, up to the first damaged one.
fn entries(engine: &dyn StorageEngine, mut segments: SegmentWriter, mark: &Mark) -> Result<Copied, Error> {
    let mut start = None;
    let mut marked = None;
    let mut damage = None;
    for row in engine.range(ENTRIES, EVERYTHING)? {
        let (key, record) = row?;
        let index = number(&key)?;
        let expected = if start.is_none() { index } else { segments.next() };
        let content = content(index, &record).filter(|_| index == expected);
        let Some((checksum, content)) = content else {
            damage = Some(format!("entry {expected} is damaged or missing"));
            break;
        };
        if mark.last.is_some_and(|(last, _)| last == index) {
            marked = Some((index, checksum));
        }
        start.get_or_insert(index);
        segments.push_entry(index, content)?;
        if index % WRITE_ENTRIES == 0 {
            segments.write()?;
        }
    }
    segments.write()?;
    Ok(Copied { start: start.unwrap_or(segments.next()), segments, damage, marked })
}

/// The checksum and the content of a stored entry, if they fit.
fn content(index: u64, record: &[u8]) -> Option<(u32, &[u8])> {
    let (stored, entry) = record.split_first_chunk()?;
    let mut checksum = crc32fast::Hasher::new();
    checksum.update(&index.to_be_bytes());
    checksum.update(entry);
    let stored = u32::from_be_bytes(*stored);
    (stored == checksum.finalize()).then_some((stored, entry))
}

fn number(bytes: &[u8]) -> Result<u64, Error> {
    Ok(u64::from_be_bytes(bytes.try_into().map_err(|_| Error::corrupt("a number in the log"))?))
}

/// Success also if there was nothing to remove.
fn absent(removed: std::io::Result<()>) -> Result<(), Error> {
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;
    use crate::storage::Log;
    use crate::storage::engine::{Durability, WriteBatch};

    /// A log of format 3 with the entries 5 to 7, whose watermark names the entry `last`.
    fn old_log(last: u64) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        let engine = open_old(&dir.path().join("log")).unwrap();
        let record = |index: u64| {
            let content = format!("entry {index}").into_bytes();
            let checksum = crc32fast::hash(&[&index.to_be_bytes()[..], &content].concat());
            (checksum, [&checksum.to_be_bytes()[..], &content].concat())
        };
        let mut batch = WriteBatch::default();
        for index in 5..8_u64 {
            batch.insert(ENTRIES, index.to_be_bytes(), record(index).1);
        }
        batch.insert(NAMED, "vote", "mine".as_bytes());
        batch.insert(NAMED, PROMISES, 1_u64.to_be_bytes());
        engine.write(batch, Durability::All).unwrap();
        let mark = Mark { promises: 1, last: Some((last, record(last).0)), is_damaged: false };
        let watermark = dir.path().join("log.watermark");
        WatermarkFile::create(&watermark, mark, Poison::new(dir.path())).unwrap().close();
        dir
    }

    fn open(dir: &TempDir, accepts_loss: bool) -> Result<Log, Error> {
        Log::open(&dir.path().join("log"), Box::new(|_, _| {}), accepts_loss)
    }

    /// Opens the log twice: it is migrated once.
    fn check(dir: &TempDir) {
        for _ in 0..2 {
            let log = open(dir, false).unwrap();
            assert_eq!(log.read(0..100, usize::MAX).unwrap(), ["entry 5", "entry 6", "entry 7"]);
            assert_eq!(log.named("vote").unwrap(), "mine");
            log.close();
        }
        let mut left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["log", "log.watermark"]);
    }

    #[test]
    fn a_log_of_format_3_is_migrated() {
        check(&old_log(7));
    }

    #[test]
    fn a_migration_that_a_crash_interrupted_begins_anew_or_is_finished() {
        let copied = || {
            let dir = old_log(7);
            copy(&dir.path().join("log"), &dir.path().join("log-new"), false).unwrap();
            dir
        };
        let rename = |dir: &TempDir, from: &str, to: &str| {
            std::fs::rename(dir.path().join(from), dir.path().join(to)).unwrap();
        };
        check(&copied());
        let renamed = copied();
        rename(&renamed, "log", "log-old");
        check(&renamed);
        let has_watermark = copied();
        rename(&has_watermark, "log", "log-old");
        rename(&has_watermark, "log-new.watermark", "log.watermark");
        check(&has_watermark);
        let is_complete = copied();
        rename(&is_complete, "log", "log-old");
        rename(&is_complete, "log-new.watermark", "log.watermark");
        rename(&is_complete, "log-new", "log");
        check(&is_complete);
    }

    #[test]
    fn an_old_log_that_lost_entries_is_refused_until_the_loss_is_accepted() {
        let dir = old_log(8);
        let Err(Error::Lost { what, .. }) = open(&dir, false) else { panic!("the loss is not noticed") };
        assert_eq!(what, "entry 8 is damaged or missing");
        open(&dir, true).unwrap().close();
        check(&dir);
    }
}
