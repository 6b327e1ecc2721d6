//! Reads of one moment: no read shows a part of a batch, and none shows a state older than an earlier read did.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::tests::{apply, put, write};
use crate::storage::engine::write_behind::Flushes;
use crate::storage::*;

const WRITES: u64 = 1_500;

/// Other keys that each write changes, so that it takes a while.
const OTHERS: u64 = 30;

/// So often that every read meets the end of a layer in the buffer, and rows that are in the tables alone.
const FLUSHES: Flushes = Flushes { interval: Some(Duration::from_millis(1)), bytes: 16 * 1024 };

/// The keys that each write changes together.
const PAIR: [&str; 2] = ["a", "b"];

/// A value that names the revision of its write; every third is stored apart.
fn value_at(revision: u64) -> String {
    let width = if revision.is_multiple_of(3) { 4_000 } else { 8 };
    format!("1{revision:0width$}")
}

fn write_at(revision: u64) -> GuardedWrite {
    let others = (0..OTHERS).map(|number| put(&format!("other/{number}"), "1"));
    write(PAIR.iter().map(|key| put(key, &value_at(revision))).chain(others).collect(), vec![])
}

/// A way to read; returns the revision that it shows.
type Reading<'a> = (&'static str, Box<dyn Fn() -> u64 + Send + Sync + 'a>);

/// Every way to read the pair, or something that tells how new the state is.
fn readings<'a>(data: &'a Data, revisions: &'a HashMap<[u8; 32], u64>) -> Vec<Reading<'a>> {
    let shown = |entry: &Entry| {
        assert_eq!(entry.value.bytes, value_at(entry.meta.revision), "a value of another moment than its entry");
        entry.meta.revision
    };
    let as_a_client = move |key: &str| {
        let found = data.cached(key).or_else(|| data.get_and_keep(key).unwrap());
        shown(&found.unwrap())
    };
    vec![
        ("a client's read of a", Box::new(move || as_a_client("a"))),
        ("a client's read of b", Box::new(move || as_a_client("b"))),
        ("get of a", Box::new(move || shown(&data.get(Space::Kv, "a").unwrap().unwrap()))),
        ("get of b", Box::new(move || shown(&data.get(Space::Kv, "b").unwrap().unwrap()))),
        (
            "scan",
            Box::new(move || {
                let page = data.scan(&RangeQuery { end: Some("b".into()), ..RangeQuery::default() }).unwrap();
                let found: Vec<u64> = page.entries.iter().map(shown).collect();
                assert_eq!(found, [page.revision; 2], "a page of more than one moment");
                page.revision
            }),
        ),
        (
            "digest",
            Box::new(move || {
                let (_, digest) = data.digest_range("a", "b", 10).unwrap();
                *revisions.get(&digest.0).expect("a digest of more than one moment")
            }),
        ),
        ("the store's revision", Box::new(|| data.revision())),
    ]
}

#[test]
fn no_read_shows_part_of_a_batch_or_goes_back_behind_an_earlier_one() {
    let dir = tempfile::tempdir().unwrap();
    let data = Data::open_flushed(&dir.path().join("data"), 8 << 20, FLUSHES).unwrap();
    let digest = |revision| (RangeDigest::of(PAIR.map(|key| (key, revision))).0, revision);
    let revisions: HashMap<_, _> = (1..=WRITES).map(digest).collect();
    let readings = readings(&data, &revisions);
    // The newest revision that any reader has seen.
    let seen = AtomicU64::new(0);
    apply(&data, &[write_at(1)]);
    let read_on = &|first: usize| {
        for (name, read) in readings.iter().cycle().skip(first) {
            let before = seen.load(Ordering::SeqCst);
            let shown = read();
            assert!(shown >= before, "{name} showed {shown} after {before} had been shown");
            seen.fetch_max(shown, Ordering::SeqCst);
            if shown == WRITES {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4).map(|first| scope.spawn(move || read_on(2 * first))).collect();
        for revision in 2..=WRITES {
            PAIR.iter().for_each(|key| drop(data.get_and_keep(key).unwrap()));
            apply(&data, &[write_at(revision)]);
        }
        readers.into_iter().for_each(|reader| reader.join().unwrap());
    });
}
