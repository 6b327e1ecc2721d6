//! Tests of the log alone, on a real disk and on one that loses power, lies and fails.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::simulated;
use crate::storage::memory::{Operation, SimDisk};
use crate::storage::{Done, Error, Log};

fn open(dir: &TempDir) -> Result<Log, Error> {
    Log::open(&dir.path().join("log"), Box::new(|_, _| {}), false)
}

fn new_log() -> (TempDir, Log) {
    let dir = tempfile::tempdir().unwrap();
    let log = open(&dir).unwrap();
    (dir, log)
}

/// Closes a log and its disk.
fn shut(log: Log) {
    log.close();
}

fn entries(range: std::ops::Range<u64>) -> Vec<(u64, Bytes)> {
    range.map(|index| (index, format!("entry {index}").into())).collect()
}

fn wait(operation: impl FnOnce(Done)) -> Result<(), Error> {
    let (sender, receiver) = mpsc::channel();
    operation(Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv_timeout(Duration::from_secs(10)).unwrap()
}

fn append(log: &Log, range: std::ops::Range<u64>) {
    wait(|done| log.append(entries(range), done)).unwrap();
}

#[test]
fn entries_can_be_read_at_once_and_are_reported_after_a_sync() {
    let dir = tempfile::tempdir().unwrap();
    let synced = Arc::new(Mutex::new(0));
    let seen = synced.clone();
    let log = Log::open(&dir.path().join("log"), Box::new(move |_, entries| *seen.lock() += entries), false).unwrap();
    let (sender, receiver) = mpsc::channel();
    log.append(entries(1..4), Box::new(move |result| sender.send(result.map(|()| *synced.lock())).unwrap()));
    assert_eq!(log.read(0..10, usize::MAX).unwrap(), ["entry 1", "entry 2", "entry 3"]);
    assert_eq!(receiver.recv_timeout(Duration::from_secs(10)).unwrap().unwrap(), 3);
}

#[test]
fn the_log_survives_closing_with_its_truncations_and_purges() {
    let (dir, log) = new_log();
    log.append(entries(0..100), Box::new(|_| {}));
    log.truncate_after(Some(79), Box::new(|_| {}));
    log.append(vec![(80, "again".into())], Box::new(|_| {}));
    wait(|done| log.purge_upto(9, "nine".into(), done)).unwrap();
    log.save_named("vote", Some("mine".into()), Box::new(|_| {}));
    shut(log);

    let log = open(&dir).unwrap();
    assert_eq!(log.first_last(), Some((10, 80)));
    assert_eq!(log.read(0..12, usize::MAX).unwrap(), ["entry 10", "entry 11"]);
    assert_eq!(log.read(79..200, usize::MAX).unwrap(), ["entry 79", "again"]);
    assert_eq!(log.read(10..50, 1).unwrap(), ["entry 10"]);
    assert_eq!((log.purged_marker(), log.named("vote")), (Some("nine".into()), Some("mine".into())));
    wait(|done| log.purge_upto(500, "all".into(), done)).unwrap();
    assert_eq!(log.first_last(), None);
    append(&log, 501..502);
    assert_eq!(log.first_last(), Some((501, 501)));
}

#[test]
fn a_damaged_entry_is_noticed() {
    let (dir, log) = new_log();
    append(&log, 1..3);
    shut(log);
    damage(&dir, "entry 2");
    let Err(Error::Lost { what, .. }) = open(&dir) else { panic!("the damage is not noticed") };
    assert_eq!(what, "entry 2 is damaged or missing");
    let log = Log::open(&dir.path().join("log"), Box::new(|_, _| {}), true).unwrap();
    assert_eq!(log.read(0..10, usize::MAX).unwrap(), ["entry 1"]);
    shut(log);
    shut(open(&dir).unwrap());
}

/// Changes a byte of an entry on the disk.
fn damage(dir: &TempDir, entry: &str) {
    let segments = std::fs::read_dir(dir.path().join("log")).unwrap().map(|file| file.unwrap().path());
    for path in segments.filter(|path| path.extension().is_some_and(|extension| extension == "segment")) {
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(start) = bytes.windows(entry.len()).position(|window| window == entry.as_bytes()) {
            bytes[start] ^= 1;
            return std::fs::write(&path, bytes).unwrap();
        }
    }
    panic!("{entry} is not on the disk");
}

/// What is on the disk at its place is none of the log any more, or not yet.
#[test]
fn what_cannot_be_read_while_the_log_is_truncated_condemns_nothing() {
    let (dir, log) = new_log();
    append(&log, 1..9);
    shut(log);
    let log = open(&dir).unwrap();
    damage(&dir, "entry 2");
    let before = log.inner.shared.tail.lock().truncations;
    wait(|done| log.truncate_after(Some(4), done)).unwrap();
    assert!(log.read_from_disk(2..3, usize::MAX, before).is_err());
    append(&log, 5..6);
    assert!(log.read_from_disk(2..3, usize::MAX, before + 1).is_err());
    assert!(matches!(wait(|done| log.append(entries(6..7), done)), Err(Error::Poisoned(_))));
}

/// Damage found while the log is in use ends its use for good.
#[test]
fn an_entry_that_is_damaged_while_the_log_is_open_condemns_it() {
    let (dir, log) = new_log();
    append(&log, 1..5);
    shut(log);
    let log = open(&dir).unwrap();
    damage(&dir, "entry 2");
    assert!(matches!(log.get(2), Err(Error::Corrupt { .. })));
    assert!(matches!(wait(|done| log.append(entries(5..6), done)), Err(Error::Poisoned(_))));
    shut(log);
    assert!(matches!(open(&dir), Err(Error::Lost { .. })));
}

#[test]
fn a_closed_log_refuses_changes() {
    let (_dir, log) = new_log();
    log.close();
    assert!(matches!(wait(|done| log.append(entries(1..2), done)), Err(Error::Closed)));
}

fn log_on(disk: &SimDisk) -> Log {
    simulated::open_on_thread(disk).unwrap()
}

/// First and last index of the log on a disk.
fn range_on(disk: &SimDisk) -> Option<(u64, u64)> {
    let log = log_on(disk);
    let range = log.first_last();
    shut(log);
    range
}

#[test]
fn what_was_reported_as_written_survives_a_loss_of_power_at_any_time() {
    for seed in 0..30 {
        let disk = SimDisk::new(seed);
        let log = log_on(&disk);
        let reported = Arc::new(Mutex::new(0));
        for index in 1..200 {
            let reported = reported.clone();
            let note = move |result: Result<(), Error>| {
                if result.is_ok() {
                    *reported.lock() = index;
                }
            };
            log.append(entries(index..index + 1), Box::new(note));
            if index == 50 + 5 * seed {
                disk.lose_power();
            }
        }
        log.close();
        let last = range_on(&disk).map_or(0, |(_, last)| last);
        let reported = *reported.lock();
        assert!(last >= reported, "{reported} was reported, and the log ends at {last}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_simulated_log_reports_a_write_once_its_sync_has_taken_its_time() {
    let disk = SimDisk::new(1);
    disk.set_sync_time(20..=20);
    let log = simulated::open(&disk, false).unwrap();
    let began = tokio::time::Instant::now();
    let (sender, receiver) = tokio::sync::oneshot::channel();
    log.append(entries(1..2), Box::new(move |result| sender.send(result).unwrap()));
    tokio::time::sleep(Duration::from_millis(10)).await;
    // Written but not yet synced.
    assert_eq!(disk.records(), (3, 2));
    receiver.await.unwrap().unwrap();
    assert_eq!(began.elapsed(), Duration::from_millis(20));
}

#[test]
fn a_log_that_could_not_be_written_takes_nothing_more_until_it_is_opened_anew() {
    let disk = SimDisk::new(1);
    disk.set_sync_time(1..=2);
    let log = log_on(&disk);
    append(&log, 1..2);
    disk.fail_next(Operation::Sync, io::ErrorKind::Other);
    assert!(matches!(wait(|done| log.append(entries(2..3), done)), Err(Error::Io(_))));
    assert!(matches!(wait(|done| log.append(entries(3..4), done)), Err(Error::Poisoned(_))));
    shut(log);

    let log = log_on(&disk);
    disk.fail_next(Operation::Write, io::ErrorKind::StorageFull);
    assert!(wait(|done| log.append(entries(3..4), done)).is_err());
    shut(log);
    // A record whose sync failed may be there or not. Here it is there, until a lying disk loses it.
    assert_eq!(range_on(&disk), Some((1, 2)));
    // The three records after it are of the two segments that were begun since.
    disk.lose_tail(4);
    assert!(matches!(simulated::open_on_thread(&disk), Err(Error::Lost { .. })));
    disk.wipe();
    assert_eq!(range_on(&disk), None);
}

/// The reported loss when a log is opened after the last `records` of its journal are gone.
fn loss(fill: impl FnOnce(&Log), records: usize) -> Option<String> {
    let disk = SimDisk::new(1);
    let log = log_on(&disk);
    fill(&log);
    shut(log);
    disk.lose_tail(records);
    match simulated::open_on_thread(&disk).map(shut) {
        Ok(()) => None,
        Err(Error::Lost { what, .. }) => Some(what),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_log_that_lost_entries_it_had_synced_is_refused() {
    let fill = |log: &Log| {
        append(log, 1..4);
        append(log, 4..7);
        append(log, 7..10);
    };
    assert_eq!(loss(fill, 0), None);
    assert_eq!(loss(fill, 1).unwrap(), "entries 7 to 9 are damaged or missing");
    assert_eq!(loss(fill, 2).unwrap(), "entries 4 to 9 are damaged or missing");
    // One record deletes the empty segment that the log began with.
    assert_eq!(loss(fill, 4).unwrap(), "entries 1 to 9 are damaged or missing");
}

#[test]
fn a_log_whose_last_entry_is_another_one_is_refused() {
    let fill = |log: &Log| {
        append(log, 1..4);
        wait(|done| log.truncate_after(Some(2), done)).unwrap();
        wait(|done| log.append(vec![(3, "another".into())], done)).unwrap();
    };
    assert_eq!(loss(fill, 0), None);
    // Without the last two records the log ends with entry 3 as well, but with the old one.
    assert_eq!(loss(fill, 2).unwrap(), "entry 3 is not the one that was written last");
}

#[test]
fn a_log_that_forgot_a_vote_is_refused() {
    let fill = |log: &Log| {
        let vote = || wait(|done| log.save_named("vote", Some("mine".into()), done)).unwrap();
        vote();
        append(log, 1..3);
        vote();
    };
    assert_eq!(loss(fill, 0), None);
    assert_eq!(loss(fill, 1).unwrap(), "of 2 votes and ids the last 1 are gone");
}

#[test]
fn what_was_cut_on_purpose_is_not_missed() {
    let after_cut = |cut: &dyn Fn(&Log, Done), records| {
        let fill = |log: &Log| {
            append(log, 1..9);
            wait(|done| cut(log, done)).unwrap();
        };
        loss(fill, records)
    };
    let purge_all = |log: &Log, done: Done| log.purge_upto(99, "99".into(), done);
    assert_eq!(after_cut(&|log, done| log.truncate_after(Some(3), done), 0), None);
    assert_eq!(after_cut(&|log, done| log.truncate_after(None, done), 0), None);
    assert_eq!(after_cut(&|log, done| log.purge_upto(4, "4".into(), done), 0), None);
    assert_eq!(after_cut(&purge_all, 0), None);
    // A purge is not synced; if a power loss undoes it, the log is longer than necessary.
    assert_eq!(after_cut(&purge_all, 1), None);
}

/// A disk that keeps synced data is never accused, whichever operations run and whenever the power fails.
#[test]
fn an_honest_disk_is_never_accused() {
    for seed in 0..1_000 {
        let disk = SimDisk::new(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..4 {
            let log = simulated::open_on_thread(&disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let purged =
                log.purged_marker().map_or(0, |marker| String::from_utf8_lossy(&marker).parse::<u64>().unwrap());
            let (mut first, mut next) =
                log.first_last().map_or((purged + 1, purged + 1), |(first, last)| (first, last + 1));
            for _ in 0..rng.u32(1..12) {
                let done = Box::new(|_| {});
                match rng.u32(..8) {
                    0 if next > first => {
                        let keep = rng.u64(first - 1..next);
                        log.truncate_after(Some(keep), done);
                        next = keep + 1;
                    }
                    1 => {
                        let upto = rng.u64(first - 1..next + 3);
                        log.purge_upto(upto, upto.to_string().into(), done);
                        first = upto + 1;
                        next = next.max(first);
                    }
                    2 => log.save_named("vote", Some("v".into()), done),
                    3 => log.note_named("committed", "c".into()),
                    _ => {
                        let count = rng.u64(1..5);
                        let entry = |index| (index, format!("{index} {}", rng.u32(..)).into());
                        log.append((next..next + count).map(entry).collect(), done);
                        next += count;
                    }
                }
            }
            if rng.bool() {
                log.close();
            }
            disk.lose_power();
        }
    }
}

#[test]
fn after_a_failed_write_or_sync_nothing_more_is_tried_and_the_node_is_told() {
    for operation in [Operation::Write, Operation::Sync] {
        let disk = SimDisk::new(1);
        let log = log_on(&disk);
        append(&log, 1..3);
        disk.fail_next(operation, io::ErrorKind::Other);
        assert!(matches!(wait(|done| log.append(entries(3..4), done)), Err(Error::Io(_))));
        let records = disk.records();
        assert!(matches!(wait(|done| log.append(entries(4..5), done)), Err(Error::Poisoned(_))));
        assert_eq!(disk.records(), records);
        assert_eq!(log.read(1..3, usize::MAX).unwrap(), ["entry 1", "entry 2"], "what is there can be read");
        let told = futures::FutureExt::now_or_never(log.poison().poisoned());
        assert!(matches!(told, Some(Error::Io(_))), "{told:?}");
        shut(log);
        shut(log_on(&disk));
    }
}

/// Segments of few entries, so that a test fills several.
fn large(range: std::ops::Range<u64>) -> Vec<(u64, Bytes)> {
    range.map(|index| (index, vec![index as u8; 3 * 1024 * 1024].into())).collect()
}

fn segments(dir: &TempDir) -> usize {
    let files = std::fs::read_dir(dir.path().join("log")).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|extension| extension == "segment")).count()
}

#[test]
fn entries_are_found_in_all_segments_and_purged_segments_are_deleted() {
    let (dir, log) = new_log();
    for index in 1..21 {
        wait(|done| log.append(large(index..index + 1), done)).unwrap();
    }
    assert_eq!(segments(&dir), 4, "five entries of 3 MiB in each");
    let check = |log: &Log| {
        for index in [1, 5, 6, 12, 20] {
            assert_eq!(log.get(index).unwrap().unwrap(), large(index..index + 1)[0].1);
        }
        assert_eq!(log.read(4..8, usize::MAX).unwrap().len(), 4);
        assert_eq!(log.read(1..20, 4 * 1024 * 1024).unwrap().len(), 2);
    };
    check(&log);
    shut(log);
    let log = open(&dir).unwrap();
    check(&log);
    wait(|done| log.purge_upto(11, "11".into(), done)).unwrap();
    assert_eq!((segments(&dir), log.first_last()), (3, Some((12, 20))));
    shut(log);
    let log = open(&dir).unwrap();
    assert_eq!((log.get(11).unwrap(), log.get(12).unwrap().map(|entry| entry[0])), (None, Some(12)));
}

#[test]
fn a_torn_tail_that_nobody_was_told_of_is_cut() {
    let (dir, log) = new_log();
    append(&log, 1..4);
    shut(log);
    // The crash left half a record, and whatever the disk held there before.
    let files = std::fs::read_dir(dir.path().join("log")).unwrap().map(|file| file.unwrap().path());
    let newest = files.filter(|path| path.extension().is_some_and(|extension| extension == "segment")).max().unwrap();
    let mut bytes = std::fs::read(&newest).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    let mut torn = Vec::new();
    super::record::put_entry(&mut torn, 2, 4, b"a torn entry");
    bytes[end..end + 20].copy_from_slice(&torn[..20]);
    bytes[end + 20..end + 500].fill(7);
    std::fs::write(&newest, bytes).unwrap();
    for _ in 0..2 {
        let log = open(&dir).unwrap();
        assert_eq!(log.read(0..10, usize::MAX).unwrap(), ["entry 1", "entry 2", "entry 3"]);
        shut(log);
    }
    let log = open(&dir).unwrap();
    append(&log, 4..6);
    shut(log);
    let log = open(&dir).unwrap();
    assert_eq!(log.read(3..10, usize::MAX).unwrap(), ["entry 3", "entry 4", "entry 5"]);
}

#[test]
fn an_entry_that_would_leave_a_gap_is_refused() {
    let (_dir, log) = new_log();
    append(&log, 1..4);
    assert!(matches!(wait(|done| log.append(entries(5..6), done)), Err(Error::Corrupt(_))));
}

/// Whatever bit of a log's files flips: the log is refused, or holds what it held.
#[test]
fn a_flipped_bit_is_noticed_or_changes_nothing() {
    let (dir, log) = new_log();
    append(&log, 1..5);
    wait(|done| log.save_named("vote", Some("mine".into()), done)).unwrap();
    wait(|done| log.truncate_after(Some(3), done)).unwrap();
    append(&log, 4..8);
    shut(log);
    shut(open(&dir).unwrap());
    let files = std::fs::read_dir(dir.path().join("log")).unwrap().map(|file| file.unwrap().path());
    let segments = files.filter(|path| path.extension().is_some_and(|extension| extension == "segment"));
    let segments: Vec<(PathBuf, Vec<u8>)> = segments.map(|path| (path.clone(), used(&path))).collect();
    let expected: Vec<Bytes> = entries(1..8).into_iter().map(|(_, entry)| entry).collect();
    let mut noticed = 0;
    for (number, (path, bytes)) in segments.iter().enumerate() {
        for place in (0..bytes.len()).step_by(3) {
            let copy = tempfile::tempdir().unwrap();
            std::fs::create_dir(copy.path().join("log")).unwrap();
            std::fs::copy(dir.path().join("log.watermark"), copy.path().join("log.watermark")).unwrap();
            for (other, (path, bytes)) in segments.iter().enumerate() {
                let mut bytes = bytes.clone();
                if other == number {
                    bytes[place] ^= 1 << (place % 8);
                }
                std::fs::write(copy.path().join("log").join(path.file_name().unwrap()), bytes).unwrap();
            }
            match open(&copy) {
                Ok(log) => {
                    assert_eq!(log.read(0..9, usize::MAX).unwrap(), expected, "{} at {place}", path.display());
                    assert_eq!(log.named("vote").unwrap(), "mine", "{} at {place}", path.display());
                    shut(log);
                }
                Err(Error::Lost { .. }) => noticed += 1,
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(noticed > 50, "{noticed} of the flipped bits were noticed");
}

/// The part of a segment that was written.
fn used(path: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(path).unwrap();
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1);
    bytes
}

#[test]
fn a_truncation_gives_back_the_space_that_was_reserved() {
    let (dir, log) = new_log();
    for first in 0..20 {
        append(&log, first..first + 2);
        wait(|done| log.truncate_after(Some(first), done)).unwrap();
    }
    let files = std::fs::read_dir(dir.path().join("log")).unwrap();
    let bytes: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(bytes < 2 * super::segments::SEGMENT_BYTES, "{bytes} bytes");
    shut(log);
    let log = open(&dir).unwrap();
    assert_eq!(log.read(0..30, usize::MAX).unwrap().len(), 20);
    shut(log);
}
