//! The log and the state on a modelled disk that loses, lies and fails.

use std::io;
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;

use super::memory::{Operation, SimDisk};
use super::*;

fn open(disk: &SimDisk) -> Result<Log, Error> {
    Log::open_on(disk, Box::new(|_, _| {}))
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

fn vote(log: &Log, name: &'static str) {
    wait(|done| log.save_meta("vote", Some(name.into()), true, done)).unwrap();
}

/// What a log is said to have lost when it is opened after the last `records` of its journal are gone.
fn loss(fill: impl FnOnce(&Log), records: usize) -> Option<String> {
    let disk = SimDisk::new(1);
    let log = open(&disk).unwrap();
    fill(&log);
    log.close();
    drop(log);
    disk.lose_tail(records);
    match open(&disk) {
        Ok(log) => {
            log.close();
            None
        }
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
    assert_eq!(loss(fill, 1).unwrap(), "entries 7 to 9 are gone");
    assert_eq!(loss(fill, 2).unwrap(), "entries 4 to 9 are gone");
    assert_eq!(loss(fill, 3).unwrap(), "entry 9 was the last, and the log is empty");
}

#[test]
fn a_log_whose_last_entry_is_another_one_is_refused() {
    let fill = |log: &Log| {
        append(log, 1..4);
        wait(|done| log.truncate_after(Some(2), done)).unwrap();
        wait(|done| log.append(vec![(3, "another".into())], done)).unwrap();
    };
    assert_eq!(loss(fill, 0), None);
    // Without the last two records the log ends with entry 3 too, the former one.
    assert_eq!(loss(fill, 2).unwrap(), "entry 3 is not the one that was written last");
}

#[test]
fn a_log_that_forgot_a_vote_is_refused() {
    let fill = |log: &Log| {
        vote(log, "first");
        append(log, 1..3);
        vote(log, "second");
    };
    assert_eq!(loss(fill, 0), None);
    assert_eq!(loss(fill, 1).unwrap(), "of 2 votes and ids the last 1 are gone");
}

#[test]
fn what_was_cut_on_purpose_is_not_missed() {
    assert_eq!(
        loss(
            |log| {
                append(log, 1..9);
                wait(|done| log.truncate_after(Some(3), done)).unwrap()
            },
            0
        ),
        None
    );
    assert_eq!(
        loss(
            |log| {
                append(log, 1..9);
                wait(|done| log.truncate_after(None, done)).unwrap()
            },
            0
        ),
        None
    );
    assert_eq!(
        loss(
            |log| {
                append(log, 1..9);
                wait(|done| log.purge_upto(4, "4".into(), done)).unwrap()
            },
            0
        ),
        None
    );
    assert_eq!(
        loss(
            |log| {
                append(log, 1..9);
                wait(|done| log.purge_upto(99, "99".into(), done)).unwrap()
            },
            0
        ),
        None
    );
    // Cutting is not synced; should a loss of power undo it, the log is longer than it must be.
    assert_eq!(
        loss(
            |log| {
                append(log, 1..9);
                wait(|done| log.purge_upto(99, "99".into(), done)).unwrap()
            },
            1
        ),
        None
    );
}

/// Whatever is written and cut, and whenever the power fails: a disk that keeps what was synced is never accused.
#[test]
fn an_honest_disk_is_never_accused() {
    for seed in 0..300 {
        let disk = SimDisk::new(seed);
        let mut rng = fastrand::Rng::with_seed(seed);
        for _ in 0..4 {
            let log = open(&disk).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            let (mut first, mut next) = log.first_last().unwrap().map_or((1, 1), |(first, last)| (first, last + 1));
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
                        log.purge_upto(upto, "p".into(), done);
                        first = upto + 1;
                        next = next.max(first);
                    }
                    2 => log.save_meta("vote", Some("v".into()), true, done),
                    3 => log.save_meta("committed", Some("c".into()), false, done),
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
        let log = open(&disk).unwrap();
        append(&log, 1..3);
        disk.fail_next(operation, io::ErrorKind::Other);
        assert!(matches!(wait(|done| log.append(entries(3..4), done)), Err(Error::Engine(_))));
        let records = disk.records();
        assert!(matches!(wait(|done| log.append(entries(4..5), done)), Err(Error::Poisoned(_))));
        assert_eq!(disk.records(), records);
        assert_eq!(log.read(1..3).unwrap(), ["entry 1", "entry 2"], "what is there can be read");
        let told = futures::FutureExt::now_or_never(log.poison().poisoned());
        assert!(matches!(told, Some(Error::Engine(_))), "{told:?}");
        log.close();
        drop(log);
        open(&disk).unwrap().close();
    }
}

#[test]
fn a_state_that_cannot_be_written_is_not_written_again() {
    let disk = SimDisk::new(1);
    let data = Data::open_on(&disk, 1 << 20).unwrap();
    let value = |text: &'static str| [("key", Bytes::from_static(text.as_bytes()))];
    data.apply(&[], &value("before")).unwrap();
    assert!(futures::FutureExt::now_or_never(data.poison().poisoned()).is_none());
    disk.fail_next(Operation::Write, io::ErrorKind::StorageFull);
    assert!(data.apply(&[], &value("failed")).is_err());
    assert!(matches!(data.apply(&[], &value("later")), Err(Error::Poisoned(_))));
    assert!(matches!(data.sync(), Err(Error::Poisoned(_))));
    assert_eq!(data.meta("key").unwrap().unwrap(), "before");
    assert!(futures::FutureExt::now_or_never(data.poison().poisoned()).is_some());
}
