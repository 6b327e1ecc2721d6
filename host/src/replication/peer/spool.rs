//! The files in which snapshots arrive.
//!
//! A file is named after the snapshot's id, so that a sender can continue it after the connection broke or the receiver
//! restarted. Few unfinished files are kept, and none for long.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::storage;

/// Longest frame accepted, in bytes.
pub(super) const FRAME_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Unfinished snapshots kept: the one that arrives, and the one before, whose sender may continue.
const SPOOLS_MAX: usize = 2;

/// Time for which an unfinished snapshot is kept after its last byte.
const SPOOL_AGE_MAX: Duration = Duration::from_secs(3_600);

const SPOOL_EXTENSION: &str = "snapshot";

/// Number of bytes of a snapshot that have arrived. Blocks.
pub(crate) fn held(dir: &Path, id: u64) -> io::Result<u64> {
    match std::fs::metadata(spool_path(dir, id)) {
        Ok(metadata) => Ok(metadata.len()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error),
    }
}

fn spool_path(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.{SPOOL_EXTENSION}"))
}

/// The file of an arriving snapshot: always a prefix of it, without gaps, since a stream begins no later than the end of
/// the file.
pub(super) struct Spool {
    pub(super) file: File,
    path: PathBuf,
}

impl Spool {
    /// Opens the file for a stream that begins at byte `offset`, and removes outdated files. Blocks.
    pub(super) fn open(dir: &Path, id: u64, offset: u64) -> io::Result<Self> {
        let path = spool_path(dir, id);
        sweep(dir, &path)?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
        if file.metadata()?.len() < offset {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "bytes before these are missing"));
        }
        Ok(Self { file, path })
    }

    /// Verifies that the snapshot is complete, and unlinks the file: it exists as long as it is open. Blocks.
    pub(super) fn finish(&self) -> io::Result<File> {
        let verified = storage::verify_snapshot(frames(&self.file)?);
        std::fs::remove_file(&self.path)?;
        verified.map_err(io::Error::other)?;
        self.file.try_clone()
    }
}

/// Removes the files that no sender will continue: old ones, and all but the newest ones besides `keep`.
fn sweep(dir: &Path, keep: &Path) -> io::Result<()> {
    let mut others = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path != keep && path.extension().is_some_and(|extension| extension == SPOOL_EXTENSION) {
            let written = path.metadata().and_then(|metadata| metadata.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
            others.push((written, path));
        }
    }
    others.sort_by(|a, b| b.cmp(a));
    for (position, (written, path)) in others.iter().enumerate() {
        let is_old = written.elapsed().is_ok_and(|age| age > SPOOL_AGE_MAX);
        if is_old || position + 1 >= SPOOLS_MAX {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// The frames of a snapshot's file, from the first on.
pub(super) fn frames(file: &File) -> io::Result<impl Iterator<Item = Result<Bytes, storage::Error>> + Send + use<>> {
    let mut file = BufReader::new(file.try_clone()?);
    file.seek(SeekFrom::Start(0))?;
    Ok(std::iter::from_fn(move || read_frame(&mut file).map_err(storage::Error::from).transpose()))
}

fn read_frame(file: &mut BufReader<File>) -> io::Result<Option<Bytes>> {
    if file.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut length = [0; 4];
    file.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(io::Error::other)?;
    if length > FRAME_BYTES_MAX {
        let message = format!("a frame of {length} bytes; at most {FRAME_BYTES_MAX} are allowed");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    let mut frame = vec![0; length];
    file.read_exact(&mut frame)?;
    Ok(Some(frame.into()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn few_unfinished_snapshots_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        for id in 0..5 {
            Spool::open(dir.path(), id, 0).unwrap().file.write_all_at(b"x", 0).unwrap();
        }
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), SPOOLS_MAX);
        assert_eq!(held(dir.path(), 4).unwrap(), 1);
    }
}
