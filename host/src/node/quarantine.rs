//! Damaged data is set aside, not deleted: someone may want to look at it.
//!
//! A node whose log has lost entries that it had made durable must not go on under its old identity. Its databases move to
//! a directory below the data directory, named by the time, and it starts with empty ones. Only the newest such directory
//! is kept. While there is one, the node never founds a cluster: if all nodes lose their data, they must not quietly start
//! over.

use std::io;
use std::path::{Path, PathBuf};

use crate::clock;
use crate::storage::dir;

/// The log's database, below the data directory.
pub(super) const LOG: &str = "log";

/// The state's database.
pub(super) const DATA: &str = "data";

/// The log's watermark, beside its database.
const WATERMARK: &str = "log.watermark";

/// Prefix of the directories that hold damaged data.
const PREFIX: &str = "damaged-";

/// Moved in this order. The watermark goes last: if the move is interrupted, the rest is still recognized as damaged.
const PARTS: [&str; 3] = [DATA, LOG, WATERMARK];

/// Sets the databases aside. Returns the directory they are in now.
pub(super) fn set_aside(data_dir: &Path) -> io::Result<PathBuf> {
    let earlier = all(data_dir)?;
    let now = humantime::format_rfc3339_millis(clock::now()).to_string().replace(':', "-");
    let aside = data_dir.join(format!("{PREFIX}{now}"));
    dir::create(&aside)?;
    for part in PARTS {
        match std::fs::rename(data_dir.join(part), aside.join(part)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        dir::sync(&aside)?;
        dir::sync(data_dir)?;
    }
    for dir in earlier {
        std::fs::remove_dir_all(dir)?;
    }
    Ok(aside)
}

/// Whether data was set aside here and is still there.
pub(super) fn exists(data_dir: &Path) -> io::Result<bool> {
    Ok(!all(data_dir)?.is_empty())
}

fn all(data_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(data_dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_that_was_set_aside_is_kept_until_the_next_time() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!exists(dir.path()).unwrap());
        let fill = |text: &str| {
            std::fs::create_dir(dir.path().join("log")).unwrap();
            std::fs::write(dir.path().join("log/0"), text).unwrap();
            std::fs::write(dir.path().join(WATERMARK), text).unwrap();
        };
        fill("first");
        let first = set_aside(dir.path()).unwrap();
        assert!(exists(dir.path()).unwrap() && !dir.path().join("log").exists());
        assert_eq!(std::fs::read(first.join("log/0")).unwrap(), b"first");
        std::thread::sleep(std::time::Duration::from_millis(2));
        fill("second");
        let second = set_aside(dir.path()).unwrap();
        assert_eq!(std::fs::read(second.join(WATERMARK)).unwrap(), b"second");
        assert!(!first.exists());
    }
}
