//! Directories that survive a power loss.
//!
//! A synced file can still be lost with its name: the name belongs to the directory and is durable once the directory
//! is synced. Likewise, the name of a new directory belongs to its parent.

use std::fs::File;
use std::path::Path;

/// Creates a directory and its missing parents, durably.
pub fn create(dir: &Path) -> std::io::Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create(parent)?;
    match std::fs::create_dir(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => sync(parent),
    }
}

/// Makes the names in a directory, and in all directories below it, durable.
pub fn sync_tree(dir: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_tree(&entry.path())?;
        }
    }
    sync(dir)
}

/// Makes the names in a directory durable.
pub fn sync(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}
