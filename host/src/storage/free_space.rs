//! Free space on the disk, and the reserve below which a node refuses writes.
//!
//! A database that runs out of space in the middle of a write is unusable until it is opened again. So a node refuses
//! writes while the disk still has room for the work in progress: running flushes and compactions, and entries that are
//! already committed. That room is the reserve.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// A full disk counts as full until the reserve and this share of it more, one eighth, are free.
const RECOVERY_SHARE: u64 = 8;

/// The free space of a disk, as last measured. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct FreeSpace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    reserve_bytes: u64,
    free_bytes: AtomicU64,
    is_full: watch::Sender<bool>,
}

/// The figures of a disk with less free space than the reserve.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
#[error("the disk of {path} has {free_bytes} bytes left; writes are refused below {reserve_bytes}")]
pub struct DiskFull {
    /// The data directory.
    pub path: String,
    /// Free space.
    pub free_bytes: u64,
    /// Free space below which writes are refused.
    pub reserve_bytes: u64,
}

impl FreeSpace {
    /// The disk that holds a directory. It counts as empty until the first [`FreeSpace::measure`].
    pub fn new(dir: &Path, reserve_bytes: u64) -> Self {
        let (dir, free_bytes, is_full) = (dir.to_path_buf(), AtomicU64::new(u64::MAX), watch::Sender::new(false));
        Self { inner: Arc::new(Inner { dir, reserve_bytes, free_bytes, is_full }) }
    }

    /// Blocks until the file system answers.
    pub fn measure(&self) {
        match rustix::fs::statvfs(&self.inner.dir) {
            Ok(stat) => self.set_free(stat.f_bavail.saturating_mul(stat.f_frsize)),
            Err(error) => tracing::warn!(dir = %self.inner.dir.display(), %error, "free space is not known"),
        }
    }

    /// The figures of the disk, if it is full.
    pub fn disk_full(&self) -> Option<DiskFull> {
        self.is_full().then(|| DiskFull {
            path: self.inner.dir.display().to_string(),
            free_bytes: self.inner.free_bytes.load(Ordering::Relaxed),
            reserve_bytes: self.inner.reserve_bytes,
        })
    }

    /// Whether the disk is too full to take writes of clients.
    pub fn is_full(&self) -> bool {
        *self.inner.is_full.borrow()
    }

    /// Whether less than half of the reserve is left.
    pub fn is_exhausted(&self) -> bool {
        self.inner.free_bytes.load(Ordering::Relaxed) < self.inner.reserve_bytes / 2
    }

    /// Free space above the reserve.
    pub fn spare_bytes(&self) -> u64 {
        self.inner.free_bytes.load(Ordering::Relaxed).saturating_sub(self.inner.reserve_bytes)
    }

    /// Waits until the disk is full; forever, if it never is.
    pub async fn until_full(&self) {
        // The channel stays open: its sender lives as long as `self`.
        let _ = self.inner.is_full.subscribe().wait_for(|is_full| *is_full).await;
    }

    pub(crate) fn set_free(&self, free_bytes: u64) {
        let inner = &self.inner;
        inner.free_bytes.store(free_bytes, Ordering::Relaxed);
        let was_full = self.is_full();
        let spare = if was_full { inner.reserve_bytes / RECOVERY_SHARE } else { 0 };
        let is_full = free_bytes < inner.reserve_bytes.saturating_add(spare);
        if is_full == was_full {
            return;
        }
        inner.is_full.send_replace(is_full);
        let (dir, reserve_bytes) = (inner.dir.display(), inner.reserve_bytes);
        match is_full {
            true => tracing::error!(%dir, free_bytes, reserve_bytes, "the disk is full: writes are refused"),
            false => tracing::info!(%dir, free_bytes, reserve_bytes, "the disk has space again: writes are taken"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_needs_more_than_its_reserve_to_count_as_usable_again() {
        let space = FreeSpace::new(Path::new("/"), 800);
        assert!(space.disk_full().is_none());
        for (free_bytes, is_full) in [(799, true), (899, true), (900, false), (800, false)] {
            space.set_free(free_bytes);
            let expected = is_full.then(|| DiskFull { path: "/".into(), free_bytes, reserve_bytes: 800 });
            assert_eq!(space.disk_full(), expected);
        }
    }

    #[test]
    fn the_free_space_of_a_real_directory_is_measured() {
        let space = FreeSpace::new(&std::env::temp_dir(), u64::MAX / 2);
        space.measure();
        let free = space.disk_full().unwrap().free_bytes;
        assert!(free > 0 && free < u64::MAX / 2, "{free}");
        assert!(!FreeSpace::new(Path::new("/"), 0).is_full());
    }
}
