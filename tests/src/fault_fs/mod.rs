//! A file system that loses power, fails, delays and fills up, for processes that must survive it.
//!
//! Killing a process does not test its use of the disk: the kernel keeps unsynced writes. This file system, mounted by
//! FUSE, separates synced from unsynced data, so that [`FaultFs::cut`] leaves what a power cut would leave. It can also
//! run out of space, fail operations, delay syncs, and report syncs that it did not do.
//!
//! All data is in memory: at most 1 GiB, dropped with the test. The file system supports files, directories,
//! renames, locks (by the kernel) and sparse files. It has no links, owners, access times or shared memory maps.
//!
//! Mounting needs `/dev/fuse`, and either root or `fusermount3`.

mod content;
mod disk;
mod faults;
mod mount;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, MountOption};
use tempfile::TempDir;

use self::disk::Disk;
pub use self::disk::Tail;
pub use self::faults::Operation;
use self::faults::{Effect, Faults};
use self::mount::{Mounted, State};

/// The default capacity of a disk.
const CAPACITY_BYTES: u64 = 1024 * 1024 * 1024;

/// Time for the kernel to close the files of ended processes.
const CLOSE_LIMIT: Duration = Duration::from_secs(20);

/// A mounted disk. Dropping it unmounts it.
pub struct FaultFs {
    mounted: Mounted,
    /// Dropped before the directory is removed.
    session: Option<BackgroundSession>,
    dir: TempDir,
}

impl FaultFs {
    /// Mounts an empty disk on a new temporary directory.
    pub fn mount() -> Self {
        let dir = tempfile::Builder::new().prefix("brink-disk-").tempdir().unwrap();
        let state = State { disk: Disk::new(CAPACITY_BYTES), faults: Faults::default() };
        let mounted = Mounted(Arc::new(Mutex::new(state)));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("brink-fault-fs".to_owned())];
        let session = fuser::spawn_mount(mounted.clone(), dir.path(), &config);
        let session = session.unwrap_or_else(|error| panic!("a FUSE file system cannot be mounted: {error}"));
        Self { mounted, session: Some(session), dir }
    }

    /// The mount point.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes all syncs fail from now on, also those under way: after this, [`FaultFs::cut`] loses what was not synced now,
    /// however long the processes take to end.
    pub fn stop_syncs(&self) {
        self.fail(Operation::Sync, "");
    }

    /// Cuts the power: only durable data is left, and all faults are cleared. Panics if a process keeps a file open, so
    /// the processes that use the disk must have ended.
    #[track_caller]
    pub fn cut(&self, tail: Tail) {
        let began = Instant::now();
        while self.mounted.state().disk.open_files() > 0 {
            assert!(began.elapsed() < CLOSE_LIMIT, "a process keeps files open");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut state = self.mounted.state();
        state.disk.cut(tail);
        state.faults.clear();
    }

    /// Fails an operation on files under a path, relative to the root, with EIO.
    pub fn fail(&self, operation: Operation, under: impl AsRef<Path>) {
        self.mounted.state().faults.add(operation, under.as_ref(), Effect::Fail);
    }

    /// Delays syncs of files under a path.
    pub fn slow_syncs(&self, under: impl AsRef<Path>, delay: Duration) {
        self.mounted.state().faults.add(Operation::Sync, under.as_ref(), Effect::Delay(delay));
    }

    /// Makes syncs of files under a path report success without being done.
    pub fn lie_about_syncs(&self, under: impl AsRef<Path>) {
        self.mounted.state().faults.add(Operation::Sync, under.as_ref(), Effect::Lie);
    }

    /// Leaves this many free bytes. Writes beyond them fail with ENOSPC.
    pub fn set_free(&self, bytes: u64) {
        let mut state = self.mounted.state();
        state.disk.capacity_bytes = state.disk.used_bytes() + bytes;
    }

    /// Clears all faults and restores the capacity.
    pub fn heal(&self) {
        let mut state = self.mounted.state();
        state.faults.clear();
        state.disk.capacity_bytes = CAPACITY_BYTES;
    }

    /// Number of operations that a fault has failed so far.
    pub fn failed(&self) -> usize {
        self.mounted.state().faults.failed()
    }
}

impl Drop for FaultFs {
    fn drop(&mut self) {
        // Detaches even while a process left behind by a failed test uses the disk.
        if let Err(error) = rustix::mount::unmount(self.dir.path(), rustix::mount::UnmountFlags::DETACH) {
            eprintln!("{} was not unmounted: {error}", self.dir.path().display());
        }
        drop(self.session.take());
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn a_mounted_disk_keeps_synced_data_and_loses_the_rest() {
        let fs = FaultFs::mount();
        let path = fs.path().join("a/f");
        fs::create_dir(fs.path().join("a")).unwrap();
        let mut file = File::options().create_new(true).read(true).append(true).open(&path).unwrap();
        file.set_len(3).unwrap();
        file.write_all(b"kept").unwrap();
        file.sync_data().unwrap();
        file.write_all(b"lost").unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut found = Vec::new();
        file.read_to_end(&mut found).unwrap();
        assert_eq!(found, b"\0\0\0keptlost");
        drop(file);
        File::open(fs.path().join("a")).unwrap().sync_all().unwrap();
        File::open(fs.path()).unwrap().sync_all().unwrap();
        fs::write(fs.path().join("a/new"), "x").unwrap();
        fs.cut(Tail::Lost);
        assert_eq!(fs::read(&path).unwrap(), b"\0\0\0kept");
        let names: Vec<_> =
            fs::read_dir(fs.path().join("a")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["f"]);
    }

    #[test]
    fn faults_affect_only_the_named_files_until_they_are_cleared() {
        let fs = FaultFs::mount();
        for name in ["good", "bad"] {
            fs::create_dir(fs.path().join(name)).unwrap();
        }
        let open =
            |name| File::options().create(true).truncate(false).read(true).write(true).open(fs.path().join(name));
        let (good, bad) = (open("good/f").unwrap(), open("bad/f").unwrap());
        let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error().unwrap();
        let eio = rustix::io::Errno::IO.raw_os_error();
        fs.fail(Operation::Write, "bad");
        fs.fail(Operation::Sync, "bad");
        good.write_all_at(b"x", 0).unwrap();
        assert_eq!(errno(bad.write_all_at(b"x", 0)), eio);
        assert_eq!(errno(bad.sync_all()), eio);
        assert_eq!(fs.failed(), 2);
        fs.heal();
        bad.write_all_at(b"x", 0).unwrap();

        fs.set_free(8_192);
        assert_eq!(errno(good.write_all_at(&[1; 12_288], 4_096)), rustix::io::Errno::NOSPC.raw_os_error());
        let free = rustix::fs::statvfs(fs.path()).unwrap();
        assert_eq!(free.f_bavail * free.f_frsize, 8_192);

        fs.slow_syncs("", Duration::from_millis(200));
        let began = Instant::now();
        good.sync_data().unwrap();
        assert!(began.elapsed() >= Duration::from_millis(200));
    }

    #[test]
    fn a_sync_under_way_is_lost_once_syncs_have_stopped() {
        let fs = FaultFs::mount();
        let file = File::create_new(fs.path().join("f")).unwrap();
        File::open(fs.path()).unwrap().sync_all().unwrap();
        file.write_all_at(b"x", 0).unwrap();
        fs.slow_syncs("", Duration::from_millis(200));
        std::thread::scope(|scope| {
            let sync = scope.spawn(|| file.sync_all());
            std::thread::sleep(Duration::from_millis(50));
            fs.stop_syncs();
            assert!(sync.join().unwrap().is_err());
        });
        drop(file);
        fs.cut(Tail::Lost);
        assert_eq!(fs::read(fs.path().join("f")).unwrap(), b"");
    }

    #[test]
    fn a_lock_excludes_others() {
        let fs = FaultFs::mount();
        let path = fs.path().join("lock");
        let first = File::create_new(&path).unwrap();
        first.try_lock().unwrap();
        assert!(File::open(&path).unwrap().try_lock().is_err());
        drop(first);
        File::open(&path).unwrap().try_lock().unwrap();
    }

    #[test]
    fn a_false_sync_is_exposed_by_a_power_cut() {
        let fs = FaultFs::mount();
        let file = File::create_new(fs.path().join("f")).unwrap();
        File::open(fs.path()).unwrap().sync_all().unwrap();
        fs.lie_about_syncs("f");
        file.write_all_at(b"promised", 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        fs.cut(Tail::Torn { bytes: 4 });
        assert_eq!(fs::read(fs.path().join("f")).unwrap(), b"prom");
    }
}
