//! Ranges over deleted keys.

use std::time::{Duration, Instant};

use super::Data;
use super::tests::{apply, data, delete, put, put_one, write};
use crate::storage::{Operation, RangeQuery};

/// Operations of one write.
const BATCH: usize = 1_000;

fn in_batches(data: &Data, keys: usize, operation: impl Fn(&str) -> Operation) {
    for first in (0..keys).step_by(BATCH) {
        let operations = (first..first + BATCH).map(|key| operation(&format!("deleted/{key:07}"))).collect();
        apply(data, &[write(operations, vec![])]);
    }
}

/// The time of a page over `keys` deleted keys as soon as it is below `goal`, and how long that took.
fn page_over_deleted(keys: usize, goal: Duration) -> Result<(Duration, Duration), Duration> {
    let (_dir, data) = data();
    let value = format!("\"{}\"", "x".repeat(100));
    in_batches(&data, keys, |key| put(key, &value));
    apply(&data, &[put_one("kept", "1")]);
    in_batches(&data, keys, delete);
    let began = Instant::now();
    loop {
        let asked = Instant::now();
        let page = data.scan(&RangeQuery { limit: Some(100), ..RangeQuery::default() }).unwrap();
        let took = asked.elapsed();
        assert_eq!(page.entries.len(), 1);
        if took < goal {
            return Ok((took, began.elapsed()));
        }
        if began.elapsed() > Duration::from_secs(60) {
            return Err(took);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Compaction runs by itself, while nothing is written. Otherwise the page takes as long for ever.
#[test]
fn a_page_over_deleted_keys_is_soon_quick() {
    let quick = page_over_deleted(40_000, Duration::from_millis(2));
    assert!(quick.is_ok(), "a page still takes {quick:?}");
}

#[test]
#[ignore = "takes a minute: the figure of the documentation"]
fn a_page_over_a_million_deleted_keys_takes_less_than_20_ms() {
    let (page, after) = page_over_deleted(1_000_000, Duration::from_millis(20)).unwrap();
    println!("a page takes {page:?}, {after:?} after the last deletion");
}
