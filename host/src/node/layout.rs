//! The directories and files below a data directory.

use std::path::{Path, PathBuf};

/// The log's database.
pub(super) const LOG: &str = "log";

/// The state's database.
pub(super) const DATA: &str = "data";

/// The log's watermark, beside its database.
pub(super) const WATERMARK: &str = "log.watermark";

/// Prefix of the directories that hold damaged data.
pub(super) const QUARANTINE_PREFIX: &str = "damaged-";

/// Where snapshots from other nodes are spooled.
pub(super) fn spool(data_dir: &Path) -> PathBuf {
    data_dir.join("spool")
}

/// Where compiled plugins are kept.
pub(super) fn compiled(data_dir: &Path) -> PathBuf {
    data_dir.join("compiled")
}
