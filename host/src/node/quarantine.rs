//! Data that is damaged is set aside, not deleted: someone may want to look at it.
//!
//! A node whose log has lost what it had promised must not go on as the node it was. Its databases are moved into a
//! directory of their own below the data directory, named by the time, and it starts again with empty ones. Only the
//! newest such directory is kept. As long as it is there, the node founds no cluster: should all nodes have lost their
//! data, they must not quietly begin anew.

use std::io;
use std::path::{Path, PathBuf};

use super::databases::{DATA, LOG, WATERMARK};
use crate::storage::dir;

/// What the names of such directories begin with.
const PREFIX: &str = "damaged-";

/// What is moved. The watermark goes last: should this be interrupted, what is left is still known to be damaged.
const PARTS: [&str; 3] = [DATA, LOG, WATERMARK];

/// Moves the databases out of the way. Returns where they are now.
pub(super) fn set_aside(data_dir: &Path) -> io::Result<PathBuf> {
    let earlier = all(data_dir)?;
    let now = humantime::format_rfc3339_millis(crate::clock::now()).to_string().replace(':', "-");
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

/// Whether data was set aside here, and is still there.
pub(super) fn is_there(data_dir: &Path) -> io::Result<bool> {
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
    fn what_is_set_aside_is_kept_until_the_next_time() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!is_there(dir.path()).unwrap());
        let fill = |text: &str| {
            std::fs::create_dir(dir.path().join("log")).unwrap();
            std::fs::write(dir.path().join("log/0"), text).unwrap();
            std::fs::write(dir.path().join(WATERMARK), text).unwrap();
        };
        fill("first");
        let first = set_aside(dir.path()).unwrap();
        assert!(is_there(dir.path()).unwrap() && !dir.path().join("log").exists());
        assert_eq!(std::fs::read(first.join("log/0")).unwrap(), b"first");
        std::thread::sleep(std::time::Duration::from_millis(2));
        fill("second");
        let second = set_aside(dir.path()).unwrap();
        assert_eq!(std::fs::read(second.join(WATERMARK)).unwrap(), b"second");
        assert!(!first.exists());
    }
}
