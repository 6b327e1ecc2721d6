//! The files in which snapshots arrive.
//!
//! A file is named after the snapshot's id, so that a sender can continue it after the connection broke or either of the two
//! was silent for a while; also after the receiver restarted. Few unfinished files are kept, and none for long: what remains
//! of a snapshot that nobody continues is removed by [`Spools::sweep`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::storage;

/// Unfinished snapshots kept: the one that arrives, and the one before, whose sender may continue.
const SPOOLS_MAX: usize = 2;

/// Time for which an unfinished snapshot is kept after its last use: longer than its sender tries to continue it.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(600);

const SPOOL_EXTENSION: &str = "snapshot";

/// The directory for arriving snapshots.
pub(super) struct Spools {
    dir: PathBuf,
    /// The files that are in use or were found, by the snapshot's id. By a clock that never jumps, unlike the files' own times.
    files: Mutex<BTreeMap<u64, Usage>>,
}

#[derive(Clone, Copy)]
struct Usage {
    /// Streams that write the file or wait for its installation.
    users: usize,
    idle_since: Instant,
}

impl Spools {
    pub(super) fn new(dir: PathBuf) -> Arc<Self> {
        Arc::new(Self { dir, files: Mutex::default() })
    }

    /// Number of bytes of a snapshot that have arrived. Blocks.
    pub(super) fn held(&self, id: u64) -> io::Result<u64> {
        match std::fs::metadata(path_of(&self.dir, id)) {
            Ok(metadata) => Ok(metadata.len()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(error) => Err(error),
        }
    }

    /// Opens the file for a stream that begins at byte `offset`, and removes all but the newest others. Blocks.
    pub(super) fn open(self: &Arc<Self>, id: u64, offset: u64) -> io::Result<Spool> {
        let in_use = self.enter(id);
        self.remove_idle(|newer, _| newer + 1 >= SPOOLS_MAX)?;
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path_of(&self.dir, id))?;
        if file.metadata()?.len() < offset {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "bytes before these are missing"));
        }
        Ok(Spool { file, in_use })
    }

    /// Removes the files that nobody uses or will continue: all, if this node needs no snapshot, else the old ones. Blocks.
    pub(super) fn sweep(&self, is_up_to_date: bool) -> io::Result<()> {
        self.remove_idle(|_, idle| is_up_to_date || idle > IDLE_MAX)
    }

    /// Removes idle files, given the number of idle ones that were used later, and for how long they have been idle.
    fn remove_idle(&self, is_dead: impl Fn(usize, Duration) -> bool) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            found.extend(id_of(&entry?.path()));
        }
        let dead: Vec<u64> = {
            let mut files = self.files.lock();
            for id in &found {
                files.entry(*id).or_insert(Usage { users: 0, idle_since: Instant::now() });
            }
            files.retain(|id, usage| usage.users > 0 || found.contains(id));
            let idle = files.iter().filter(|(_, usage)| usage.users == 0).map(|(id, usage)| (usage.idle_since, *id));
            let mut idle: Vec<_> = idle.collect();
            idle.sort_unstable_by(|a, b| b.cmp(a));
            let dead = idle.into_iter().enumerate().filter(|(newer, (since, _))| is_dead(*newer, since.elapsed()));
            dead.map(|(_, (_, id))| id).collect()
        };
        // A stream that begins to use one of them just now loses the file's name, and after a break it begins anew.
        dead.into_iter().try_for_each(|id| remove(&path_of(&self.dir, id)))
    }

    fn enter(self: &Arc<Self>, id: u64) -> InUse {
        let usage = Usage { users: 0, idle_since: Instant::now() };
        self.files.lock().entry(id).or_insert(usage).users += 1;
        InUse { spools: self.clone(), id }
    }
}

/// Keeps a file from being removed by others.
struct InUse {
    spools: Arc<Spools>,
    id: u64,
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(usage) = self.spools.files.lock().get_mut(&self.id) {
            usage.users -= 1;
            usage.idle_since = Instant::now();
        }
    }
}

/// The file of an arriving snapshot: always a prefix of it, without gaps, since a stream begins no later than the end of
/// the file.
pub(super) struct Spool {
    pub(super) file: File,
    in_use: InUse,
}

impl Spool {
    /// Removes the file. What was read or written by others goes on, until they close it. Blocks.
    pub(super) fn remove(&self) -> io::Result<()> {
        remove(&path_of(&self.in_use.spools.dir, self.in_use.id))
    }
}

fn path_of(dir: &Path, id: u64) -> PathBuf {
    dir.join(format!("{id:016x}.{SPOOL_EXTENSION}"))
}

/// The id of the snapshot that a file holds.
fn id_of(path: &Path) -> Option<u64> {
    let name = path.file_name()?.to_str()?.strip_suffix(SPOOL_EXTENSION)?.strip_suffix('.')?;
    u64::from_str_radix(name, 16).ok()
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The frames of a snapshot's file, from the first on.
pub(super) fn frames(file: &File) -> io::Result<impl Iterator<Item = Result<Bytes, storage::Error>> + Send + use<>> {
    let left = file.metadata()?.len();
    let mut file = BufReader::new(file.try_clone()?);
    file.seek(SeekFrom::Start(0))?;
    let mut frames = Frames { file, left };
    Ok(std::iter::from_fn(move || frames.next().map_err(storage::Error::from).transpose()))
}

struct Frames {
    file: BufReader<File>,
    /// Bytes of the file that were not read yet.
    left: u64,
}

impl Frames {
    /// The next frame. It has no limit of its own: it may hold a row of any size that a state has, as large as the command that
    /// wrote it. What the file does not hold is never allocated.
    fn next(&mut self) -> io::Result<Option<Bytes>> {
        if self.file.fill_buf()?.is_empty() {
            return Ok(None);
        }
        let mut length = [0; 4];
        self.file.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length);
        self.left = self.left.checked_sub(4 + u64::from(length)).ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut frame = vec![0; usize::try_from(length).map_err(io::Error::other)?];
        self.file.read_exact(&mut frame)?;
        Ok(Some(frame.into()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    /// A directory with one unfinished file of one byte for each id, in that order of their use.
    fn left_behind(ids: impl IntoIterator<Item = u64>) -> (tempfile::TempDir, Arc<Spools>) {
        let dir = tempfile::tempdir().unwrap();
        let spools = Spools::new(dir.path().to_path_buf());
        for id in ids {
            spools.open(id, 0).unwrap().file.write_all_at(b"x", 0).unwrap();
        }
        (dir, spools)
    }

    fn files(dir: &tempfile::TempDir) -> usize {
        std::fs::read_dir(dir.path()).unwrap().count()
    }

    #[tokio::test]
    async fn few_unfinished_snapshots_are_kept() {
        let (dir, spools) = left_behind(0..5);
        assert_eq!(files(&dir), SPOOLS_MAX);
        assert_eq!(spools.held(4).unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_snapshot_that_nobody_continues_is_removed_after_a_while_also_after_a_restart() {
        let (dir, _) = left_behind([1]);
        let restarted = Spools::new(dir.path().to_path_buf());
        restarted.sweep(false).unwrap();
        tokio::time::advance(IDLE_MAX).await;
        let arriving = restarted.open(2, 0).unwrap();
        restarted.sweep(false).unwrap();
        assert_eq!(files(&dir), 2);
        tokio::time::advance(Duration::from_secs(1)).await;
        restarted.sweep(false).unwrap();
        assert_eq!((files(&dir), restarted.held(1).unwrap()), (1, 0));
        // A file in use stays for as long as it is used, and is idle from then on.
        tokio::time::advance(2 * IDLE_MAX).await;
        restarted.sweep(false).unwrap();
        assert_eq!(files(&dir), 1);
        drop(arriving);
        restarted.sweep(false).unwrap();
        assert_eq!(files(&dir), 1);
        tokio::time::advance(2 * IDLE_MAX).await;
        restarted.sweep(false).unwrap();
        assert_eq!(files(&dir), 0);
    }

    #[tokio::test]
    async fn a_node_that_is_up_to_date_keeps_no_unfinished_snapshot() {
        let (dir, spools) = left_behind([1]);
        let arriving = spools.open(2, 0).unwrap();
        spools.sweep(true).unwrap();
        assert_eq!((files(&dir), spools.held(1).unwrap()), (1, 0));
        drop(arriving);
        spools.sweep(true).unwrap();
        assert_eq!(files(&dir), 0);
    }

    #[test]
    fn a_frame_that_claims_more_than_the_file_holds_is_refused_before_it_is_allocated() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &[0xff; 8]).unwrap();
        assert!(frames(&file).unwrap().next().unwrap().is_err());
    }
}
