//! Tests of the buffer.

use std::collections::BTreeMap;
use std::ops::Bound;

use super::*;
use crate::storage::engine::EVERYTHING;
use crate::storage::engine::memory::{Operation, SimDisk, SimGenerations};

const TABLES: [Table; 2] = [Table(0), Table(1)];

fn by_writer(bytes: usize) -> Flushes {
    Flushes { interval: None, bytes }
}

fn open(disk: &SimDisk) -> Arc<dyn StorageEngine> {
    Buffered::new(SimGenerations::new(disk), by_writer(usize::MAX / 2)).open().unwrap()
}

fn key(rng: &mut fastrand::Rng) -> Vec<u8> {
    vec![rng.u8(0..40)]
}

/// What a range has, read from both ends in turns that the generator draws.
fn read(rng: &mut fastrand::Rng, mut rows: Rows) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    loop {
        let is_first = rng.bool();
        let Some(row) = (if is_first { rows.next() } else { rows.next_back() }) else { break };
        let (key, value) = row.unwrap();
        if is_first { &mut front } else { &mut back }.push((key.to_vec(), value.to_vec()));
    }
    front.extend(back.into_iter().rev());
    front
}

#[test]
fn views_show_what_was_written_before_whatever_is_flushed() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let disk = SimDisk::new(seed);
        let engine = Buffered::new(SimGenerations::new(&disk), by_writer(rng.usize(1..1_500))).open().unwrap();
        let mut model: BTreeMap<(usize, Vec<u8>), Vec<u8>> = BTreeMap::new();
        let mut views = Vec::new();
        for _ in 0..40 {
            let mut batch: BTreeMap<(usize, Vec<u8>), Option<Vec<u8>>> = BTreeMap::new();
            let changes = if rng.u8(..) == 0 { 2 * IN_PLACE_CHANGES_MAX } else { rng.usize(1..6) };
            for _ in 0..changes {
                let value = rng.bool().then(|| vec![rng.u8(..)]);
                batch.insert((rng.usize(0..TABLES.len()), key(&mut rng)), value);
            }
            let mut changes = WriteBatch::default();
            for ((table, key), value) in batch {
                changes.set(Table(table), key.as_slice(), value.as_deref().map(Into::into));
                match value {
                    Some(value) => drop(model.insert((table, key), value)),
                    None => drop(model.remove(&(table, key))),
                }
            }
            engine.write(changes, Durability::None).unwrap();
            views.push((engine.view(), model.clone()));
        }
        for (view, model) in views {
            let table = rng.usize(0..TABLES.len());
            let (first, last) = (key(&mut rng), key(&mut rng));
            if first > last {
                continue;
            }
            let found = view.get(Table(table), &first).unwrap().map(|value| value.to_vec());
            assert_eq!(found.as_ref(), model.get(&(table, first.clone())), "seed {seed}");
            let expected = model.range((table, first.clone())..=(table, last.clone()));
            let expected: Vec<_> = expected.map(|((_, key), value)| (key.clone(), value.clone())).collect();
            let bounds = (Bound::Included(first), Bound::Included(last));
            assert_eq!(read(&mut rng, view.range(Table(table), bounds.clone()).unwrap()), expected, "seed {seed}");
            let keys: Vec<_> = view.keys(Table(table), bounds).unwrap().map(|key| key.unwrap().to_vec()).collect();
            assert!(keys.iter().eq(expected.iter().map(|(key, _)| key)), "seed {seed}");
        }
    }
}

#[test]
fn a_crash_takes_what_was_not_flushed_and_a_sync_keeps_all() {
    let disk = SimDisk::new(1);
    let engine = open(&disk);
    let write = |number: u8| {
        let mut batch = WriteBatch::default();
        TABLES.into_iter().for_each(|table| batch.insert(table, [number], [number]));
        engine.write(batch, Durability::None).unwrap();
    };
    (0..3).for_each(write);
    engine.sync().unwrap();
    (3..6).for_each(write);
    disk.lose_power();
    let engine = open(&disk);
    for table in TABLES {
        assert_eq!(engine.keys(table, EVERYTHING).unwrap().count(), 3);
    }
}

#[test]
fn a_failed_flush_ends_the_use_of_the_database() {
    let disk = SimDisk::new(1);
    let engine = open(&disk);
    let write = || {
        let mut batch = WriteBatch::default();
        batch.insert(Table(0), [1], [1]);
        engine.write(batch, Durability::None)
    };
    write().unwrap();
    disk.fail_next(Operation::Write, std::io::ErrorKind::Other);
    assert!(engine.sync().is_err());
    assert!(write().is_err() && engine.sync().is_err() && engine.check().is_err());
}

#[test]
fn a_full_layer_is_flushed_by_its_writer_and_all_is_flushed_at_the_end() {
    let disk = SimDisk::new(1);
    let engine = Buffered::new(SimGenerations::new(&disk), Flushes::USUAL).open().unwrap();
    let value = vec![0; FLUSH_BYTES / 2];
    for number in 0..10_u8 {
        let mut batch = WriteBatch::default();
        batch.insert(Table(0), [number], value.as_slice());
        engine.write(batch, Durability::None).unwrap();
    }
    drop(engine);
    let engine = SimGenerations::new(&disk).open().unwrap();
    assert_eq!(engine.keys(Table(0), EVERYTHING).unwrap().count(), 10);
}
#[test]
fn a_check_finds_a_flush_that_failed_in_the_background() {
    let disk = SimDisk::new(1);
    let behind = Flushes { interval: Some(Duration::from_millis(1)), bytes: FLUSH_BYTES };
    let engine = Buffered::new(SimGenerations::new(&disk), behind).open().unwrap();
    engine.check().unwrap();
    disk.fail_next(Operation::Write, io::ErrorKind::Other);
    let mut batch = WriteBatch::default();
    batch.insert(Table(0), [1], [1]);
    engine.write(batch, Durability::None).unwrap();
    let began = std::time::Instant::now();
    while engine.check().is_ok() {
        assert!(began.elapsed() < Duration::from_secs(30), "the failure was not found");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(engine.write(WriteBatch::default(), Durability::None).is_err());
    assert_eq!(engine.get(Table(0), &[1]).unwrap().as_deref(), Some(&[1][..]));
}

#[test]
fn memory_has_what_was_written_until_it_is_flushed_and_has_room_for_a_small_batch() {
    let disk = SimDisk::new(1);
    let engine = Buffered::new(SimGenerations::new(&disk), by_writer(1_000)).open().unwrap();
    let write = |key: &[u8], length| {
        let mut batch = WriteBatch::default();
        batch.insert(TABLES[0], key, vec![0; length]);
        engine.write(batch, Durability::None).unwrap();
    };
    write(b"a", 10);
    let memory = engine.memory().expect("room for more");
    assert_eq!(memory.get(TABLES[0], b"a").unwrap().unwrap().len(), 10);
    assert!(matches!(memory.get(TABLES[0], b"b"), Err(Error::NotInMemory)));
    assert!(matches!(memory.range(TABLES[0], EVERYTHING), Err(Error::NotInMemory)));
    drop(memory);
    write(b"b", 1_600);
    assert!(engine.memory().is_none(), "a writer may have to flush");
    engine.sync().unwrap();
    assert!(engine.memory().is_some());
}
