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

/// Compaction runs by itself, while nothing is written. Without it the page takes as long for ever.
#[test]
fn a_page_over_deleted_keys_is_soon_quick() {
    const KEYS: usize = 40_000;
    let (_dir, data) = data();
    let value = format!("\"{}\"", "x".repeat(100));
    in_batches(&data, KEYS, |key| put(key, &value));
    apply(&data, &[put_one("kept", "1")]);
    in_batches(&data, KEYS, delete);
    let began = Instant::now();
    loop {
        let asked = Instant::now();
        let page = data.scan(&RangeQuery { limit: Some(100), ..RangeQuery::default() }).unwrap();
        let took = asked.elapsed();
        assert_eq!(page.entries.len(), 1);
        if took < Duration::from_millis(2) {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "a page still takes {took:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
