//! The files of a log: numbered segments in one directory.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::files::{SegmentFile, SegmentFiles};
use super::open_segment::OpenSegment;
use crate::storage::{Error, dir};

const EXTENSION: &str = "segment";

/// Held while a process uses the directory.
const LOCK: &str = "lock";

/// Segments in a directory of the file system.
pub(super) struct SegmentDir {
    dir: PathBuf,
    /// Space reserved for each new segment, so that a write neither grows the file nor meets a full disk.
    reserve_bytes: u64,
    /// Its lock keeps other processes out.
    _lock: File,
}

impl SegmentDir {
    /// Opens a directory, creating it if it is missing.
    ///
    /// # Errors
    ///
    /// [`Error::Locked`] if another process uses it; others if the system refuses.
    pub(super) fn open(dir: &Path, reserve_bytes: u64) -> Result<Self, Error> {
        dir::create(dir)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(dir.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { dir: dir.to_path_buf(), reserve_bytes, _lock: lock }),
            Err(std::fs::TryLockError::WouldBlock) => Err(Error::Locked(dir.to_path_buf())),
            Err(std::fs::TryLockError::Error(error)) => Err(error.into()),
        }
    }

    fn path(&self, segment: u64) -> PathBuf {
        // Of a fixed width, so that tools list the segments in order.
        self.dir.join(format!("{segment:016}.{EXTENSION}"))
    }
}

impl SegmentFiles for SegmentDir {
    fn list(&self) -> Result<Vec<u64>, Error> {
        let mut segments = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                segments.extend(path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok()));
            }
        }
        segments.sort_unstable();
        Ok(segments)
    }

    fn read(&self, segment: u64, offset: u64, bytes_max: u64) -> Result<Vec<u8>, Error> {
        let file = File::open(self.path(segment))?;
        let bytes = bytes_max.min(file.metadata()?.len().saturating_sub(offset));
        let mut content = vec![0; usize::try_from(bytes).map_err(|_| Error::corrupt("the length of a segment"))?];
        file.read_exact_at(&mut content, offset)?;
        Ok(content)
    }

    fn create(&self, segment: u64, content: &[u8]) -> Result<Box<dyn SegmentFile>, Error> {
        let mut file = OpenSegment::create(&self.path(segment), self.reserve_bytes)?;
        file.write(0, content)?;
        file.file.sync_all()?;
        dir::sync(&self.dir)?;
        Ok(Box::new(file))
    }

    fn sync(&self, segment: u64) -> Result<(), Error> {
        Ok(File::open(self.path(segment))?.sync_all()?)
    }

    fn remove(&self, segment: u64) -> Result<(), Error> {
        match std::fs::remove_file(self.path(segment)) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}
