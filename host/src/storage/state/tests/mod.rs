//! Tests of the state alone.

mod damage;
mod in_memory;
mod replacement;
mod unusable;

use std::io;

use bytes::Bytes;
use tempfile::TempDir;

use super::simulated;
use crate::storage::memory::{Operation as DiskOperation, SimDisk};
use crate::storage::*;

pub(super) fn data() -> (TempDir, Data) {
    let dir = tempfile::tempdir().unwrap();
    let data = open(&dir).unwrap();
    (dir, data)
}

/// Opens the state below a directory.
pub(super) fn open(dir: &TempDir) -> Result<Data, Error> {
    Data::open(&dir.path().join("data"), 8 << 20)
}

pub(super) fn put(key: &str, value: &str) -> Operation {
    Operation { space: Space::Kv, key: key.into(), action: Action::Put(Value::json(value.to_owned())) }
}

pub(super) fn delete(key: &str) -> Operation {
    Operation { space: Space::Kv, key: key.into(), action: Action::Delete }
}

pub(super) fn write(operations: Vec<Operation>, facts: Vec<Fact>) -> GuardedWrite {
    let precondition = |fact| Precondition { asked_by: AskedBy::Client, space: Space::Kv, fact };
    GuardedWrite {
        operations,
        preconditions: facts.into_iter().map(precondition).collect(),
        hook_epoch: Some(0),
        proposed_at_ms: 7,
        ..GuardedWrite::default()
    }
}

pub(super) fn put_one(key: &str, value: &str) -> GuardedWrite {
    write(vec![put(key, value)], vec![])
}

/// A write with an idempotency key.
fn named(key: &str, write: GuardedWrite) -> GuardedWrite {
    let fingerprint = Fingerprint::of(&write.operations, &write.preconditions).unwrap();
    GuardedWrite { idempotency: Some(Idempotency { key: key.into(), fingerprint, rewritten: false }), ..write }
}

/// The first of two writes with one idempotency key that hooks have changed, as the second one finds it.
fn repeated(level: FeatureLevel) -> Outcome {
    let (_dir, data) = data();
    let mut write = GuardedWrite { level, ..named("n", put_one("a", "1")) };
    write.idempotency.as_mut().unwrap().rewritten = true;
    apply(&data, &[write.clone(), write]).pop().unwrap()
}

fn revision_is(key: &str, revision: Option<u64>) -> Fact {
    Fact::Revision { key: key.into(), revision }
}

pub(super) fn apply(data: &Data, writes: &[GuardedWrite]) -> Vec<Outcome> {
    data.apply(writes, &[]).unwrap()
}

pub(super) fn value(data: &Data, key: &str) -> Option<Bytes> {
    Some(data.get(Space::Kv, key).unwrap()?.value.bytes)
}

/// All keys, as far as a query covers them.
pub(super) fn keys(data: &Data, query: &RangeQuery) -> Vec<String> {
    data.scan(query).unwrap().entries.into_iter().map(|entry| entry.key).collect()
}

#[test]
fn versions_count_the_writes_of_a_key_and_start_again_after_a_deletion() {
    let (_dir, data) = data();
    let both = write(vec![put("a", "2"), put("b", "1")], vec![]);
    let outcomes = apply(&data, &[put_one("a", "1"), both, write(vec![delete("a")], vec![]), put_one("a", "3")]);
    let Outcome::Applied { revision: 4, effects } = &outcomes[3] else { panic!("{outcomes:?}") };
    let Effect::Put(meta) = &effects[0] else { panic!("{effects:?}") };
    assert_eq!((meta.version, meta.revision, meta.created_at_ms), (1, 4, 7));
    assert_eq!(data.get(Space::Kv, "b").unwrap().unwrap().meta.revision, 2);
    assert_eq!(data.revision(), 4);
}

#[test]
fn a_write_that_changes_nothing_takes_no_revision() {
    let (_dir, data) = data();
    let outcomes = apply(&data, &[write(vec![delete("a")], vec![])]);
    assert_eq!(outcomes, [Outcome::Applied { revision: 0, effects: vec![Effect::Deleted { existed: false }] }]);
}

#[test]
fn a_write_with_an_idempotency_key_is_applied_once_and_repeats_its_first_outcome() {
    let (_dir, data) = data();
    let create = named("n", write(vec![put("a", "1")], vec![revision_is("a", None)]));
    let outcomes = apply(&data, &[create.clone(), put_one("a", "2"), create.clone()]);
    let first = Box::new(outcomes[0].clone());
    assert!(matches!(*first, Outcome::Applied { revision: 1, .. }));
    let repeated = Outcome::Repeated { first, rewritten: None };
    assert_eq!(outcomes[2], repeated);
    assert_eq!(apply(&data, std::slice::from_ref(&create)), std::slice::from_ref(&repeated));
    assert_eq!(data.recall(create.idempotency.as_ref().unwrap(), 8).unwrap(), Some(repeated));
    assert_eq!(value(&data, "a").unwrap(), "2");
}

#[test]
fn a_failed_client_precondition_is_remembered_and_changed_hooks_are_not() {
    let (_dir, data) = data();
    let update = named("n", write(vec![put("a", "2")], vec![revision_is("a", Some(1))]));
    let refused = apply(&data, std::slice::from_ref(&update)).remove(0);
    assert!(matches!(refused, Outcome::PreconditionFailed { index: 0, current: None }));
    apply(&data, &[put_one("a", "1")]);
    let repeated = Outcome::Repeated { first: Box::new(refused), rewritten: None };
    assert_eq!(apply(&data, &[update]), [repeated]);

    let judged_before = GuardedWrite { hook_epoch: Some(9), ..named("m", put_one("b", "1")) };
    assert_eq!(apply(&data, std::slice::from_ref(&judged_before)), [Outcome::HooksChanged { epoch: 0 }]);
    let judged_again = GuardedWrite { hook_epoch: Some(0), ..judged_before };
    assert!(matches!(apply(&data, &[judged_again])[..], [Outcome::Applied { .. }]));
}

#[test]
fn an_idempotency_key_belongs_to_one_request() {
    let (_dir, data) = data();
    let writes = [named("n", put_one("a", "1")), named("n", put_one("a", "2"))];
    assert_eq!(apply(&data, &writes)[1], Outcome::IdempotencyKeyReused);
    assert_eq!(value(&data, "a").unwrap(), "1");
}

#[test]
fn a_failed_precondition_applies_nothing_and_returns_the_current_revision() {
    let (_dir, data) = data();
    apply(&data, &[put_one("a", "1")]);
    let refused = |facts| write(vec![put("a", "9"), put("c", "9")], facts);
    let writes = [
        refused(vec![revision_is("a", Some(1)), revision_is("a", None)]),
        refused(vec![revision_is("a", Some(2))]),
        refused(vec![Fact::Exists { key: "c".into() }]),
    ];
    let outcomes = apply(&data, &writes);
    let failed = |index, current| Outcome::PreconditionFailed { index, current };
    assert_eq!(outcomes, [failed(1, Some(1)), failed(0, Some(1)), failed(0, None)]);
    assert_eq!(value(&data, "a").unwrap(), "1");
    assert!(value(&data, "c").is_none());
}

#[test]
fn later_writes_of_a_batch_see_earlier_ones() {
    let (_dir, data) = data();
    let guarded = |revision| write(vec![put("a", "1")], vec![revision_is("a", revision)]);
    let outcomes = apply(&data, &[guarded(None), guarded(None), guarded(Some(1))]);
    assert!(matches!(outcomes[0], Outcome::Applied { revision: 1, .. }));
    assert_eq!(outcomes[1], Outcome::PreconditionFailed { index: 0, current: Some(1) });
    assert!(matches!(outcomes[2], Outcome::Applied { revision: 2, .. }));
}

#[test]
fn a_range_precondition_notices_changed_removed_and_new_keys() {
    for change in [put("p/2", "1"), put("p/1", "2"), delete("p/3")] {
        let (_dir, data) = data();
        apply(&data, &[write(vec![put("p/1", "1"), put("p/3", "1"), put("q", "1")], vec![])]);
        let (keys, digest) = data.digest_range("p/", "p/z", 100).unwrap();
        assert_eq!(keys, ["p/1", "p/3"]);
        let fact = Fact::Range { start: "p/".into(), end: "p/z".into(), limit: 100, digest };
        let guarded = || write(vec![put("ok", "1")], vec![fact.clone()]);
        // The change is noticed in the same batch and in later ones.
        let outcomes = apply(&data, &[guarded(), write(vec![change], vec![]), guarded()]);
        assert!(matches!(outcomes[0], Outcome::Applied { .. }), "{outcomes:?}");
        assert!(matches!(outcomes[2], Outcome::PreconditionFailed { index: 0, current: None }), "{outcomes:?}");
        assert!(matches!(apply(&data, &[guarded()])[0], Outcome::PreconditionFailed { .. }));
    }
}

/// A range precondition is checked against the state that the earlier writes of its batch leave.
#[test]
fn a_range_precondition_in_a_batch_sees_what_the_batch_has_changed_so_far() {
    let first = || write(["a", "b", "c", "d", "e"].map(|key| put(key, "1")).into(), vec![]);
    let changes = [vec![delete("a"), delete("b"), put("bb", "1")], vec![put("c", "2"), delete("e"), put("f", "1")]];
    for limit in 0..6 {
        for (start, end) in [("", ""), ("b", "e"), ("c", ""), ("aa", "bz"), ("z", "a")] {
            let (_dir, between) = data();
            apply(&between, &[first()]);
            changes.iter().for_each(|change| drop(apply(&between, &[write(change.clone(), vec![])])));
            let (_, digest) = between.digest_range(start, end, limit).unwrap();
            let fact = Fact::Range { start: start.into(), end: end.into(), limit, digest };
            let (_dir, data) = data();
            apply(&data, &[first()]);
            let earlier = changes.iter().map(|change| write(change.clone(), vec![]));
            let outcomes = apply(&data, &earlier.chain([write(vec![put("ok", "1")], vec![fact])]).collect::<Vec<_>>());
            assert!(matches!(outcomes[2], Outcome::Applied { .. }), "{start}..{end} {limit}: {outcomes:?}");
        }
    }
}

#[test]
fn a_write_judged_under_older_hooks_is_not_applied() {
    let (_dir, data) = data();
    let hook = Operation { space: Space::System, key: "hooks/h".into(), action: Action::Put(Value::json("{}")) };
    let unjudged = GuardedWrite { hook_epoch: None, ..write(vec![hook], vec![]) };
    let outcomes = apply(&data, &[put_one("a", "1"), unjudged, put_one("a", "2")]);
    assert_eq!(outcomes[2], Outcome::HooksChanged { epoch: 2 });
    assert_eq!(data.hook_epoch(), 2);
    assert_eq!(value(&data, "a").unwrap(), "1");
}

#[test]
fn pages_cover_a_range_without_gaps_in_both_directions() {
    let (_dir, data) = data();
    let names = ["a", "a/b", "aé", "b", "bz", "c", "🦀"];
    apply(&data, &[write(names.iter().map(|name| put(name, "1")).collect(), vec![])]);
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    for reverse in [false, true] {
        let mut found: Vec<String> = Vec::new();
        loop {
            let query = RangeQuery { after: found.last().cloned(), reverse, limit: Some(2), ..RangeQuery::default() };
            let page = data.scan(&query).unwrap();
            found.extend(page.entries.into_iter().map(|entry| entry.key));
            if !page.has_more {
                break;
            }
        }
        if reverse {
            found.reverse();
        }
        assert_eq!(found, sorted);
    }
    let between = |start: &str, end: &str| {
        keys(&data, &RangeQuery { start: Some(start.into()), end: Some(end.into()), ..RangeQuery::default() })
    };
    assert_eq!(between("a/b", "b"), ["a/b", "aé", "b"]);
    assert_eq!(between("z", "a"), [""; 0]);
    let prefix = RangeQuery { prefix: Some("a".into()), ..RangeQuery::default() };
    assert_eq!(keys(&data, &prefix), ["a", "a/b", "aé"]);
}

/// Every write changes the same key, so its revision must be the one of the page.
#[test]
fn a_page_has_the_revision_of_its_moment() {
    let (_dir, data) = data();
    apply(&data, &[put_one("a", "0")]);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for number in 0..5_000 {
                apply(&data, &[put_one("a", &number.to_string())]);
            }
        });
        while !writer.is_finished() {
            let page = data.scan(&RangeQuery::default()).unwrap();
            assert_eq!(page.entries[0].meta.revision, page.revision);
        }
    });
}

#[test]
fn the_state_survives_closing_and_a_second_process_is_refused() {
    let (dir, data) = data();
    data.apply(&[put_one("a", "1")], &[("applied", "x".into())]).unwrap();
    assert!(matches!(open(&dir), Err(Error::Locked { .. })));
    drop(data);
    let data = open(&dir).unwrap();
    assert_eq!(data.revision(), 1);
    assert_eq!(data.meta("applied").unwrap().unwrap(), "x");
}

#[test]
fn an_unknown_format_is_refused_and_named() {
    let (dir, data) = data();
    drop(data);
    {
        let db = fjall::Database::builder(dir.path().join("data")).open().unwrap();
        let meta = db.keyspace("meta", fjall::KeyspaceCreateOptions::default).unwrap();
        meta.insert("format", 99_u32.to_be_bytes()).unwrap();
    }
    let error = open(&dir).err().unwrap();
    assert!(matches!(error, Error::Format { found: 99, .. }), "{error}");
}

/// A read that begins after a write was applied must not find the replaced entry, whatever is cached meanwhile.
#[test]
fn cached_entries_are_never_older_than_what_was_applied() {
    use std::sync::atomic::{AtomicU64, Ordering};
    const WRITES: u64 = 5_000;
    let (_dir, data) = data();
    let applied = AtomicU64::new(0);
    let read = || {
        let mut hits = 0_u64;
        loop {
            let before = applied.load(Ordering::Acquire);
            let cached = data.cached("a");
            hits += u64::from(cached.is_some());
            let found = cached.or_else(|| data.get_and_keep("a").unwrap());
            let revision = found.map_or(0, |entry| entry.meta.revision);
            assert!(revision >= before, "{revision} was read after {before} was applied");
            if before == WRITES {
                return hits;
            }
        }
    };
    std::thread::scope(|scope| {
        let readers = [(); 3].map(|()| scope.spawn(read));
        for revision in 1..=WRITES {
            apply(&data, &[put_one("a", "1")]);
            applied.store(revision, Ordering::Release);
        }
        let hits: u64 = readers.into_iter().map(|reader| reader.join().unwrap()).sum();
        assert!(hits > 0, "nothing was cached");
    });
    let _ = apply(&data, &[write(vec![delete("a")], vec![])]);
    assert!(data.cached("a").is_none());
}

#[test]
fn the_state_on_a_simulated_disk_is_the_state_on_a_real_one() {
    let disk = SimDisk::new(1);
    let (_dir, real) = data();
    let simulated = simulated::open(&disk, 8 << 20).unwrap();
    for data in [&real, &simulated] {
        apply(data, &[write(vec![put("a", "1"), put("b", "2")], vec![]), write(vec![delete("a")], vec![])]);
        apply(data, &[named("n", write(vec![put("c", "3")], vec![revision_is("b", Some(1))]))]);
    }
    let chunks = |data: &Data| data.snapshot().into_chunks().map(Result::unwrap).collect::<Vec<_>>();
    assert_eq!(chunks(&simulated), chunks(&real));
    simulated.sync().unwrap();
    drop(simulated);
    disk.lose_power();
    assert_eq!(chunks(&simulated::open(&disk, 8 << 20).unwrap()), chunks(&real));
}

#[test]
fn a_state_that_cannot_be_written_is_not_written_again() {
    let disk = SimDisk::new(1);
    let data = simulated::open(&disk, 1 << 20).unwrap();
    let value = |text: &'static str| [("key", Bytes::from(text))];
    data.apply(&[], &value("before")).unwrap();
    assert!(futures::FutureExt::now_or_never(data.poison().poisoned()).is_none());
    data.sync().unwrap();
    disk.fail_next(DiskOperation::Write, io::ErrorKind::StorageFull);
    // The log has what is not written, so readers may see it.
    data.apply(&[], &value("not written")).unwrap();
    assert!(data.sync().is_err());
    assert!(matches!(data.apply(&[], &value("later")), Err(Error::Poisoned(_))));
    assert!(matches!(data.sync(), Err(Error::Poisoned(_))));
    assert_eq!(data.meta("key").unwrap().unwrap(), "not written");
    assert!(futures::FutureExt::now_or_never(data.poison().poisoned()).is_some());
    drop(data);
    assert_eq!(simulated::open(&disk, 1 << 20).unwrap().meta("key").unwrap().unwrap(), "before");
}

#[test]
fn what_hooks_made_of_a_write_is_remembered_at_the_first_feature_level_only() {
    let outcomes = [FeatureLevel::FIRST, FeatureLevel::NEWEST].map(repeated);
    let [Outcome::Repeated { rewritten: Some(kept), .. }, Outcome::Repeated { rewritten: Some(noted), .. }] = &outcomes
    else {
        panic!("{outcomes:?}")
    };
    assert_eq!((kept.as_slice(), noted.as_slice()), (&[put("a", "1")][..], &[][..]));
}
