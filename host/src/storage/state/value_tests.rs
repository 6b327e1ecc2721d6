//! Large values are stored apart from their entries, and only reads of values read them.

use bytes::Bytes;

use super::tables::{KV, KV_VALUES, META};
use super::tests::{apply, data, delete, keys, open, put, put_one, value, write};
use super::{Data, simulated};
use crate::storage::engine::{Durability, EVERYTHING, StorageEngine as _, WriteBatch};
use crate::storage::memory::SimDisk;
use crate::storage::{EntryMeta, Error, FeatureLevel, GuardedWrite, RangeQuery, Space, Value, format, record};

const SMALL: &str = "\"small\"";

fn large(fill: char) -> String {
    format!("\"{}\"", fill.to_string().repeat(10_000))
}

/// The keys whose values are stored apart.
fn apart(data: &Data) -> Vec<String> {
    let keys = data.inner.engine().keys(KV_VALUES, EVERYTHING).unwrap();
    keys.map(|key| record::decode_key(&key.unwrap()).unwrap()).collect()
}

#[test]
fn a_large_value_has_a_row_of_its_own_for_as_long_as_it_is_large() {
    let (_dir, data) = data();
    apply(&data, &[put_one("a", &large('1')), put_one("b", SMALL), put_one("c", &large('1'))]);
    assert_eq!(apart(&data), ["a", "c"]);
    assert_eq!(value(&data, "a").unwrap(), large('1'));
    apply(&data, &[put_one("a", SMALL), put_one("b", &large('2')), write(vec![delete("c")], vec![])]);
    assert_eq!(apart(&data), ["b"]);
    assert_eq!((value(&data, "a").unwrap(), value(&data, "b").unwrap()), (SMALL.into(), large('2').into()));
    // The last change of a batch counts, whatever came before it.
    apply(&data, &[put_one("b", &large('3')), put_one("b", SMALL), put_one("d", &large('1'))]);
    apply(&data, &[put_one("d", SMALL), put_one("d", &large('4')), put_one("e", &large('5'))]);
    apply(&data, &[put_one("e", &large('6')), write(vec![delete("e")], vec![])]);
    assert_eq!(apart(&data), ["d"]);
    assert_eq!(data.get(Space::Kv, "d").unwrap().unwrap().meta.version, 3);
}

/// The same after a restart, when apply has no memory of what it wrote.
#[test]
fn a_large_value_of_an_earlier_run_is_removed_with_its_entry() {
    let (dir, data) = data();
    apply(&data, &[put_one("a", &large('1')), put_one("b", &large('1'))]);
    drop(data);
    let data = Data::open(dir.path(), 8 << 20).unwrap();
    apply(&data, &[put_one("a", SMALL), write(vec![delete("b")], vec![])]);
    assert_eq!(apart(&data), [""; 0]);
}

/// The version before reads no values that are stored apart, and an upgrade can be undone until the feature level is raised.
#[test]
fn a_state_of_format_3_keeps_values_inside_until_the_feature_level_is_raised() {
    let disk = SimDisk::new(1);
    let mut batch = WriteBatch::default();
    format::set(&mut batch, META, 3);
    disk.open(false).unwrap().write(batch, Durability::All).unwrap();
    let data = simulated::open(&disk, 8 << 20).unwrap();
    let format = |data: &Data| data.inner.engine().get(META, format::KEY).unwrap().unwrap().to_vec();
    apply(&data, &[put_one("a", &large('1'))]);
    assert_eq!((apart(&data), format(&data)), (vec![], 3_u32.to_be_bytes().to_vec()));

    let raised = GuardedWrite { level: FeatureLevel::STAMPED, ..put_one("b", &large('2')) };
    apply(&data, &[raised]);
    assert_eq!((apart(&data), format(&data)), (vec!["b".to_owned()], 4_u32.to_be_bytes().to_vec()));
    data.sync().unwrap();
    drop(data);
    let data = simulated::open(&disk, 8 << 20).unwrap();
    assert_eq!((value(&data, "a").unwrap(), value(&data, "b").unwrap()), (large('1').into(), large('2').into()));
    apply(&data, &[put_one("a", &large('3'))]);
    assert_eq!(apart(&data), ["a", "b"]);
}

/// Without their values, so that reading one would fail.
#[test]
fn keys_revisions_and_writes_do_not_read_large_values() {
    let disk = SimDisk::new(1);
    let data = simulated::open(&disk, 8 << 20).unwrap();
    apply(&data, &[write(vec![put("a", &large('1')), put("b", &large('2'))], vec![])]);
    let digest = data.digest_range("", "", 10).unwrap().1;
    let mut batch = WriteBatch::default();
    ["a", "b"].iter().for_each(|key| batch.set(KV_VALUES, *key, None));
    data.inner.engine().write(batch, Durability::All).unwrap();
    drop(data);
    let data = simulated::open(&disk, 8 << 20).unwrap();
    let page = data.scan(&RangeQuery { keys_only: true, ..RangeQuery::default() }).unwrap();
    let found: Vec<_> = page.entries.iter().map(|entry| (&*entry.key, entry.meta.version)).collect();
    assert_eq!(found, [("a", 1), ("b", 1)]);
    assert_eq!(data.keys(Space::Kv, "").unwrap(), ["a", "b"]);
    assert_eq!(data.digest_range("", "", 10).unwrap().1, digest);
    let fact = crate::storage::Fact::Range { start: String::new(), end: String::new(), limit: 10, digest };
    let outcome = apply(&data, &[write(vec![delete("a"), put("b", SMALL)], vec![fact])]).remove(0);
    assert!(matches!(outcome, crate::storage::Outcome::Applied { revision: 2, .. }), "{outcome:?}");
    apply(&data, &[put_one("c", &large('3'))]);
    let mut batch = WriteBatch::default();
    batch.set(KV_VALUES, "c", None);
    data.inner.engine().write(batch, Durability::None).unwrap();
    assert!(matches!(data.get(Space::Kv, "c"), Err(Error::Corrupt(_))), "a missing value is noticed");
}

/// As version 3 of the format stored an entry with a value of any length.
fn old_row(meta: EntryMeta, value: &str) -> Vec<u8> {
    let mut row = Vec::new();
    record::encode_whole(meta, Value::JSON, value.as_bytes(), &mut row).unwrap();
    row
}

#[test]
fn entries_of_format_3_are_read_and_changed() {
    let (_dir, data) = data();
    let meta = EntryMeta { version: 4, revision: 9, created_at_ms: 1, updated_at_ms: 2 };
    let mut batch = WriteBatch::default();
    for key in ["changed", "deleted", "kept"] {
        batch.insert(KV, key, old_row(meta, &large('1')));
    }
    data.inner.engine().write(batch, Durability::None).unwrap();
    let kept = data.get(Space::Kv, "kept").unwrap().unwrap();
    assert_eq!((kept.meta, kept.value), (meta, Value::json(large('1'))));
    apply(&data, &[put_one("changed", &large('2')), write(vec![delete("deleted")], vec![])]);
    assert_eq!(data.get(Space::Kv, "changed").unwrap().unwrap().meta.version, 5);
    assert_eq!(
        (apart(&data), keys(&data, &RangeQuery::default())),
        (vec!["changed".into()], vec!["changed".into(), "kept".into()])
    );
}

#[test]
fn a_snapshot_carries_entries_as_format_3_does_and_stores_them_in_this_one() {
    let (_source, source) = data();
    apply(&source, &[put_one("a", &large('1')), put_one("b", SMALL)]);
    let meta = source.get(Space::Kv, "a").unwrap().unwrap().meta;
    let chunks: Vec<Bytes> = source.snapshot().into_chunks().map(Result::unwrap).collect();
    let row = old_row(meta, &large('1'));
    assert!(chunks[1].windows(row.len()).any(|bytes| bytes == row), "the row that the version before reads");
    let (dir, target) = data();
    apply(&target, &[put_one("old", &large('1'))]);
    target.install(chunks.iter().cloned().map(Ok), &[]).unwrap();
    let check = |target: &Data| {
        assert_eq!(apart(target), ["a"]);
        assert_eq!(target.get(Space::Kv, "a").unwrap(), source.get(Space::Kv, "a").unwrap());
        let again: Vec<Bytes> = target.snapshot().into_chunks().map(Result::unwrap).collect();
        assert_eq!(again, chunks);
    };
    check(&target);
    drop(target);
    check(&open(&dir).unwrap());
}
