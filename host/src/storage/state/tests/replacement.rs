//! The state replaced by a snapshot: by a whole one only, at one moment, and while it is read.

use std::time::{Duration, Instant};

use super::*;

/// Time for a replaced state to be removed.
const REMOVED_WITHIN: Duration = Duration::from_secs(10);

/// A state of several chunks.
fn filled() -> (TempDir, Data) {
    let (dir, data) = data();
    let big = format!("\"{}\"", "x".repeat(10_000));
    let operations = (0..200).map(|i| put(&format!("k/{i:03}"), &big)).collect();
    data.apply(&[write(operations, vec![])], &[("applied", "42".into())]).unwrap();
    (dir, data)
}

/// Another state, to be replaced.
fn old() -> (TempDir, Data) {
    let (dir, data) = data();
    apply(&data, &[put_one("old", "1"), put_one("old", "2")]);
    (dir, data)
}

fn chunks(data: &Data) -> Vec<Bytes> {
    data.snapshot().into_chunks().map(Result::unwrap).collect()
}

fn install(target: &Data, chunks: &[Bytes]) -> Result<(), Error> {
    target.install(chunks.iter().cloned().map(Ok), &[("installed", "here".into())])
}

/// The names in the directory of a state.
fn names(dir: &TempDir) -> Vec<String> {
    let names = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

pub(super) fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < REMOVED_WITHIN, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_snapshot_installs_as_the_state_of_its_moment() {
    let (_dir, source) = filled();
    let reader = source.snapshot();
    apply(&source, &[put_one("later", "1")]);
    let chunks: Vec<Bytes> = reader.into_chunks().map(Result::unwrap).collect();
    assert!(chunks.len() > 3);

    let (dir, target) = old();
    install(&target, &chunks).unwrap();
    let check = |target: &Data| {
        assert_eq!(target.meta("installed").unwrap().unwrap(), "here");
        assert_eq!((value(target, "old"), value(target, "later")), (None, None));
        assert_eq!(target.get(Space::Kv, "k/007").unwrap(), source.get(Space::Kv, "k/007").unwrap());
        assert_eq!((target.revision(), target.meta("applied").unwrap()), (1, Some("42".into())));
        assert_eq!(keys(target, &RangeQuery::default()).len(), 200);
    };
    check(&target);
    drop(target);
    let target = open(&dir).unwrap();
    check(&target);
    // The new state goes on, and can be replaced again.
    apply(&target, &[put_one("later", "1")]);
    install(&target, &chunks).unwrap();
    check(&target);
}

#[test]
fn a_truncated_or_changed_snapshot_is_noticed_and_leaves_the_state_as_it_was() {
    let (_dir, source) = filled();
    let chunks = chunks(&source);
    let mut flipped = chunks.clone();
    let mut bytes = flipped[2].to_vec();
    bytes[1_000] ^= 1;
    flipped[2] = bytes.into();
    let (dir, target) = old();
    for damaged in [chunks[..chunks.len() - 1].to_vec(), flipped, Vec::new()] {
        assert!(verify_snapshot(damaged.iter().cloned().map(Ok), []).is_err());
        assert!(matches!(install(&target, &damaged), Err(Error::Corrupt(_))));
        assert_eq!((value(&target, "old").unwrap(), target.revision()), ("2".into(), 2));
    }
    apply(&target, &[put_one("old", "3")]);
    drop(target);
    let target = open(&dir).unwrap();
    assert_eq!((value(&target, "old").unwrap(), target.revision()), ("3".into(), 3));
    assert_eq!(names(&dir), ["data"]);
    verify_snapshot(chunks.into_iter().map(Ok), []).unwrap();
}

#[test]
fn reads_go_on_while_a_snapshot_is_installed() {
    let (_dir, source) = filled();
    let (_dir, target) = old();
    let chunks = chunks(&source);
    std::thread::scope(|scope| {
        let (target, reader) = (&target, target.clone());
        let reads = chunks.iter().cloned().map(|chunk| {
            let (answer, read) = std::sync::mpsc::channel();
            let reader = reader.clone();
            scope.spawn(move || {
                let found = (reader.get_and_keep("old").unwrap(), keys(&reader, &RangeQuery::default()));
                answer.send((found.0.map(|entry| entry.value.bytes.clone()), found.1, reader.revision())).unwrap();
            });
            let read = read.recv_timeout(Duration::from_secs(10)).expect("a read waits for the snapshot");
            assert_eq!(read, (Some("2".into()), vec!["old".to_owned()], 2));
            Ok(chunk)
        });
        target.install(reads, &[]).unwrap();
    });
    assert!(target.cached("old").is_none());
    assert_eq!(target.revision(), 1);
}

#[test]
fn a_reader_ends_on_the_state_it_began_with_and_only_then_is_that_removed() {
    let (_dir, source) = filled();
    let (dir, target) = old();
    let before = chunks(&target);
    let reader = target.snapshot();
    install(&target, &chunks(&source)).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(names(&dir), ["data", "data-1", "data.current"]);
    let read: Vec<Bytes> = reader.clone().into_chunks().map(Result::unwrap).collect();
    assert_eq!(read, before);
    drop(reader);
    eventually("the replaced state stays", || names(&dir) == ["data-1", "data.current"]);
    // So do those after it, with their journals.
    for _ in 0..3 {
        install(&target, &before).unwrap();
    }
    eventually("replaced states pile up", || names(&dir) == ["data-4", "data.current"]);
}

#[test]
fn what_an_interrupted_replacement_leaves_is_removed_at_the_next_start() {
    let (dir, target) = old();
    drop(target);
    std::fs::create_dir_all(dir.path().join("data-7/keyspaces")).unwrap();
    std::fs::write(dir.path().join("data-7/0.jnl"), "half").unwrap();
    std::fs::write(dir.path().join("data.current-new"), "7").unwrap();
    let target = open(&dir).unwrap();
    assert_eq!(value(&target, "old").unwrap(), "2");
    assert!(!dir.path().join("data-7").exists());
    let (_dir, source) = filled();
    install(&target, &chunks(&source)).unwrap();
    drop(target);
    assert_eq!(open(&dir).unwrap().meta("applied").unwrap().unwrap(), "42");
}

/// The power is cut before each change of the disk in turn. What the disk keeps of unsynced changes depends on the seed.
#[test]
fn a_power_cut_at_any_moment_leaves_the_state_from_before_or_that_of_the_snapshot() {
    let snapshot = |keys: u32| {
        let source = simulated::open(&SimDisk::new(1), 1 << 20).unwrap();
        let big = format!("\"{}\"", "x".repeat(100_000));
        (0..keys).for_each(|key| drop(apply(&source, &[put_one(&format!("new/{key}"), &big)])));
        (simulated::digest(&source), chunks(&source))
    };
    let (new_digest, new) = snapshot(10);
    assert!(new.len() > 4);
    for seed in 0..60 {
        let mut was_old = 0;
        for changes in 0.. {
            let disk = SimDisk::new(seed);
            let target = simulated::open(&disk, 1 << 20).unwrap();
            apply(&target, &[put_one("old", "1"), put_one("old", "2")]);
            target.sync().unwrap();
            let old_digest = simulated::digest(&target);
            disk.lose_power_after(changes);
            let installed = target.install(new.iter().cloned().map(Ok), &[]);
            let is_cut = installed.is_err();
            drop(target);
            disk.lose_power();
            let found = simulated::digest(&simulated::open(&disk, 1 << 20).unwrap());
            assert_eq!(disk.generations(), 1);
            if !is_cut {
                assert_eq!(found, new_digest, "seed {seed}: what was installed is gone");
                break;
            }
            assert!(found == old_digest || found == new_digest, "seed {seed}, cut after {changes} changes");
            was_old += u32::from(found == old_digest);
        }
        assert!(was_old > 4, "{was_old}");
    }
}

#[test]
fn a_failure_of_the_disk_ends_the_use_of_the_state_but_not_of_what_is_there() {
    for operation in [DiskOperation::Write, DiskOperation::Sync] {
        let disk = SimDisk::new(1);
        let target = simulated::open(&disk, 1 << 20).unwrap();
        apply(&target, &[put_one("old", "1")]);
        target.sync().unwrap();
        let (_dir, source) = filled();
        disk.fail_next(operation, io::ErrorKind::Other);
        assert!(install(&target, &chunks(&source)).is_err());
        assert!(matches!(target.apply(&[], &[]), Err(Error::Poisoned(_))));
        assert_eq!(value(&target, "old").unwrap(), "1");
        drop(target);
        assert_eq!(value(&simulated::open(&disk, 1 << 20).unwrap(), "old").unwrap(), "1");
    }
}

#[test]
fn a_full_disk_costs_the_snapshot_and_not_the_state() {
    for operation in [DiskOperation::Write, DiskOperation::Sync] {
        let disk = SimDisk::new(1);
        let target = simulated::open(&disk, 1 << 20).unwrap();
        apply(&target, &[put_one("old", "1")]);
        let (_dir, source) = filled();
        disk.fail_next(operation, io::ErrorKind::StorageFull);
        assert!(install(&target, &chunks(&source)).unwrap_err().is_disk_full());
        apply(&target, &[put_one("old", "2")]);
        assert_eq!((value(&target, "old").unwrap(), disk.generations()), ("2".into(), 1));
        install(&target, &chunks(&source)).unwrap();
        assert_eq!((value(&target, "old"), target.meta("applied").unwrap()), (None, Some("42".into())));
    }
}

/// A file system of limited size, mounted on a directory.
struct SmallDisk(TempDir);

impl SmallDisk {
    const MIB: u32 = 40;

    fn mount() -> Self {
        let disk = Self(tempfile::tempdir().unwrap());
        assert!(disk.set_size("-t", "tmpfs", Self::MIB), "mounting a file system needs root: run this test as root");
        disk
    }

    fn grow(&self, mib: u32) {
        assert!(self.set_size("-o", "remount", mib));
    }

    fn set_size(&self, flag: &str, with: &str, mib: u32) -> bool {
        let mut command = std::process::Command::new("mount");
        command.args([flag, with, "-o", &format!("size={mib}m"), "tmpfs"]).arg(self.0.path());
        command.output().is_ok_and(|output| output.status.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg("-l").arg(self.0.path()).output();
        assert!(unmounted.unwrap().status.success());
    }
}

#[test]
fn a_snapshot_that_does_not_fit_leaves_nothing_behind_and_is_installed_once_there_is_space() {
    let disk = SmallDisk::mount();
    let (_dir, source) = data();
    let mut random = fastrand::Rng::with_seed(1);
    for number in 0..2 * SmallDisk::MIB {
        let value: String = (0..1 << 20).map(|_| random.alphanumeric()).collect();
        apply(&source, &[put_one(&format!("k/{number}"), &format!("\"{value}\""))]);
    }
    let (chunks, target) = (chunks(&source), open(&disk.0).unwrap());
    apply(&target, &[put_one("old", "1")]);
    for round in 2..5 {
        let refused = install(&target, &chunks).unwrap_err();
        assert!(refused.is_disk_full(), "{refused:?}");
        eventually("an unfinished state stays", || names(&disk.0) == ["data"]);
        apply(&target, &[put_one("old", &round.to_string())]);
        target.sync().unwrap();
        assert_eq!(value(&target, "old").unwrap(), round.to_string());
    }
    disk.grow(8 * SmallDisk::MIB);
    install(&target, &chunks).unwrap();
    assert_eq!(value(&target, "k/3"), value(&source, "k/3"));
    eventually("replaced states stay", || names(&disk.0) == ["data-4", "data.current"]);
    drop(target);
    assert_eq!(value(&open(&disk.0).unwrap(), "k/79"), value(&source, "k/79"));
}

#[test]
fn a_state_that_an_earlier_version_was_replacing_is_discarded() {
    let (dir, data) = old();
    data.apply(&[], &[(super::super::INSTALLING, Bytes::new())]).unwrap();
    drop(data);
    for _ in 0..2 {
        let data = open(&dir).unwrap();
        assert_eq!(keys(&data, &RangeQuery::default()), [""; 0]);
        assert_eq!((data.revision(), data.meta("applied").unwrap()), (0, None));
    }
}

#[test]
fn a_pointer_with_flipped_bits_names_no_state() {
    let (_dir, source) = filled();
    let (dir, target) = old();
    install(&target, &chunks(&source)).unwrap();
    drop(target);
    let path = dir.path().join("data.current");
    let pointer = std::fs::read(&path).unwrap();
    for at in 0..pointer.len() * 8 {
        let mut flipped = pointer.clone();
        flipped[at / 8] ^= 1 << (at % 8);
        std::fs::write(&path, flipped).unwrap();
        assert!(matches!(open(&dir), Err(Error::Corrupt(_))), "bit {at}");
    }
    // Nor does a missing one, which would have another state take the place of this one.
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(open(&dir), Err(Error::Corrupt(_))));
    std::fs::write(&path, pointer).unwrap();
    assert_eq!(open(&dir).unwrap().meta("applied").unwrap().unwrap(), "42");
}
