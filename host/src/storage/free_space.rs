//! How much room the disk has left.
//!
//! A database that runs out of space in the middle of a write is lost until it is opened again, so a node stops taking
//! writes while there is still room for what it has begun: flushes and compactions in flight, and entries that are
//! committed already. That room is the reserve.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

/// Once there is too little space, so much more than the reserve must be free again: an eighth of it.
const RECOVERY_SHARE: u64 = 8;

/// The free space of a disk, as of the last look. Cheap to clone; all clones are the same.
#[derive(Debug, Clone)]
pub struct FreeSpace {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    reserve_bytes: u64,
    free_bytes: AtomicU64,
    is_short: watch::Sender<bool>,
}

/// Too little space, in figures.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
#[error("the disk of {path} has {free_bytes} bytes left; writes are refused below {reserve_bytes}")]
pub struct Shortage {
    /// The directory of the data.
    pub path: String,
    /// What is left.
    pub free_bytes: u64,
    /// What must be left.
    pub reserve_bytes: u64,
}

impl FreeSpace {
    /// The space around a directory, of which so much is to be kept free. Nothing is known of it before the first
    /// [`FreeSpace::look`].
    pub fn new(dir: &Path, reserve_bytes: u64) -> Self {
        let inner = Inner {
            dir: dir.to_path_buf(),
            reserve_bytes,
            free_bytes: AtomicU64::new(u64::MAX),
            is_short: watch::Sender::new(false),
        };
        Self { inner: Arc::new(inner) }
    }

    /// FreeSpace without end.
    pub fn unlimited() -> Self {
        Self::new(Path::new("/"), 0)
    }

    /// Looks how much is free. Blocks for as long as the file system takes to tell.
    pub fn look(&self) {
        match rustix::fs::statvfs(&self.inner.dir) {
            Ok(stat) => self.set_free(stat.f_bavail.saturating_mul(stat.f_frsize)),
            Err(error) => tracing::warn!(dir = %self.inner.dir.display(), %error, "free space is not known"),
        }
    }

    /// If there is too little: the figures.
    pub fn shortage(&self) -> Option<Shortage> {
        self.is_short().then(|| Shortage {
            path: self.inner.dir.display().to_string(),
            free_bytes: self.inner.free_bytes.load(Ordering::Relaxed),
            reserve_bytes: self.inner.reserve_bytes,
        })
    }

    /// Whether there is too little to take writes of clients.
    pub fn is_short(&self) -> bool {
        *self.inner.is_short.borrow()
    }

    /// Whether even the half of what is to be kept free is gone.
    pub fn is_exhausted(&self) -> bool {
        self.inner.free_bytes.load(Ordering::Relaxed) < self.inner.reserve_bytes / 2
    }

    /// Waits until there is too little; for ever, if that does not come to be.
    pub async fn short(&self) {
        // It cannot end otherwise: the sender lives as long as `self`.
        let _ = self.inner.is_short.subscribe().wait_for(|is_short| *is_short).await;
    }

    /// Notes how much is free.
    pub(crate) fn set_free(&self, free_bytes: u64) {
        let inner = &self.inner;
        inner.free_bytes.store(free_bytes, Ordering::Relaxed);
        let was_short = self.is_short();
        let spare = if was_short { inner.reserve_bytes / RECOVERY_SHARE } else { 0 };
        let is_short = free_bytes < inner.reserve_bytes.saturating_add(spare);
        if is_short == was_short {
            return;
        }
        inner.is_short.send_replace(is_short);
        let (dir, reserve_bytes) = (inner.dir.display(), inner.reserve_bytes);
        match is_short {
            true => tracing::error!(%dir, free_bytes, reserve_bytes, "the disk is full: writes are refused"),
            false => tracing::info!(%dir, free_bytes, reserve_bytes, "the disk has space again: writes are taken"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_ends_with_some_space_to_spare() {
        let space = FreeSpace::new(Path::new("/"), 800);
        assert!(space.shortage().is_none());
        space.set_free(799);
        let shortage = space.shortage().unwrap();
        assert_eq!((shortage.free_bytes, shortage.reserve_bytes), (799, 800));
        space.set_free(899);
        assert!(space.is_short());
        space.set_free(900);
        assert!(!space.is_short());
        space.set_free(800);
        assert!(!space.is_short());
    }

    #[test]
    fn the_space_of_a_real_directory_is_known() {
        let space = FreeSpace::new(&std::env::temp_dir(), u64::MAX / 2);
        space.look();
        let free = space.shortage().unwrap().free_bytes;
        assert!(free > 0 && free < u64::MAX / 2, "{free}");
        assert!(!FreeSpace::unlimited().is_short());
    }
}
