//! Tests of the simulated disk.

use super::*;
use crate::storage::engine::EVERYTHING;

const TABLE: Table = Table(0);

fn put(db: &MemoryEngine, keys: &[u8], durability: Durability) -> Result<(), Error> {
    let mut batch = WriteBatch::default();
    keys.iter().for_each(|key| batch.insert(TABLE, [*key], "value"));
    db.write(batch, durability)
}

#[test]
fn a_loss_of_power_leaves_what_was_synced_and_a_prefix_of_the_rest_batch_by_batch() {
    let mut left = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let disk = SimDisk::new(seed);
        let db = disk.open(true).unwrap();
        for key in 0..10 {
            put(&db, &[key, 100 + key], if key == 4 { Durability::All } else { Durability::None }).unwrap();
        }
        disk.lose_power();
        let db = disk.open(true).unwrap();
        let keys: Vec<u8> = db.keys(TABLE, EVERYTHING).unwrap().map(|key| key.unwrap()[0]).collect();
        let first = u8::try_from(keys.len() / 2).unwrap();
        let expected: Vec<u8> = (0..first).chain(100..100 + first).collect();
        assert_eq!(keys, expected);
        left.insert(first);
    }
    assert_eq!(left, (5..=10).collect());
}

#[test]
fn a_process_that_lost_power_writes_nothing_more() {
    let disk = SimDisk::new(1);
    let before = disk.open(true).unwrap();
    disk.lose_power();
    let _after = disk.open(true).unwrap();
    assert!(matches!(put(&before, &[1], Durability::All), Err(Error::Closed)));
    drop(before);
    assert!(matches!(disk.open(true), Err(Error::Locked { .. })));
}

#[test]
fn after_a_failed_write_or_sync_nothing_is_written_until_the_database_is_opened_anew() {
    for operation in [Operation::Write, Operation::Sync] {
        let disk = SimDisk::new(1);
        let db = disk.open(true).unwrap();
        disk.fail_next(operation, io::ErrorKind::Other);
        for _ in 0..2 {
            put(&db, &[1], Durability::All).unwrap_err();
        }
        assert!(db.get(TABLE, &[1]).unwrap().is_none());
        drop(db);
        put(&disk.open(true).unwrap(), &[1], Durability::All).unwrap();
        assert_eq!(disk.records(), if operation == Operation::Write { (1, 1) } else { (2, 2) });
    }
}
