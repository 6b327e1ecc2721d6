//! Writes that cannot be applied.

use super::*;

/// The longest key of a row, in bytes.
const ROW_KEY_BYTES_MAX: usize = 65_535;

fn at(level: FeatureLevel, write: GuardedWrite) -> GuardedWrite {
    GuardedWrite { level, ..write }
}

#[test]
fn an_unusable_write_changes_nothing_and_is_not_remembered() {
    let (_dir, data) = data();
    apply(&data, &[put_one("a", "1")]);
    let before = simulated::digest(&data);
    let unusable = GuardedWrite { is_unusable: true, level: FeatureLevel::NEWEST, ..named("n", put_one("a", "2")) };
    assert_eq!(apply(&data, std::slice::from_ref(&unusable)), [Outcome::Unusable]);
    assert_eq!(data.apply_in_memory(&[unusable], &[]).unwrap().unwrap(), [Outcome::Unusable]);
    assert_eq!(simulated::digest(&data), before);
    let usable = named("n", put_one("a", "2"));
    assert!(matches!(apply(&data, &[usable])[..], [Outcome::Applied { revision: 2, .. }]));
}

/// The state goes to the disk later, in one batch of many writes: one that the tables refuse would end the node then.
#[test]
fn what_the_tables_cannot_hold_is_refused_below_the_level_that_bounds_keys() {
    let long = "k".repeat(ROW_KEY_BYTES_MAX + 1);
    for level in [FeatureLevel::FIRST, FeatureLevel::STAMPED] {
        let (_dir, data) = data();
        apply(&data, &[put_one("a", "1")]);
        data.sync().unwrap();
        let refused = |operations, facts| {
            let write = named("n", write(operations, facts));
            assert_eq!(apply(&data, &[at(level, write)]), [Outcome::Unusable]);
        };
        refused(vec![put("b", "1"), put("", "1")], vec![]);
        refused(vec![put("b", "1"), put(&long, "1")], vec![]);
        refused(vec![put("b", "1"), delete(&long)], vec![]);
        refused(vec![put("b", "1")], vec![Fact::Exists { key: long.clone() }]);
        refused(vec![put("b", "1")], vec![revision_is(&long, None)]);
        let range = |start: &str, end: &str| {
            let digest = RangeDigest::of([]);
            Fact::Range { start: start.to_owned(), end: end.to_owned(), limit: 1, digest }
        };
        refused(vec![put("b", "1")], vec![range(&long, "")]);
        refused(vec![put("b", "1")], vec![range("", &long[1..])]);
        data.sync().unwrap();
        assert_eq!((data.revision(), keys(&data, &RangeQuery::default())), (1, vec!["a".to_owned()]));
    }
}

/// An older version comes through these, so they must go on having the same effect.
#[test]
fn what_an_older_version_applies_below_the_level_is_applied() {
    let longest = "k".repeat(ROW_KEY_BYTES_MAX);
    let (_dir, data) = data();
    let absent = vec![revision_is(&longest, None)];
    let to_longest =
        Fact::Range { start: longest.clone(), end: longest[1..].to_owned(), limit: 1, digest: RangeDigest::of([]) };
    let outcomes = apply(
        &data,
        &[
            at(FeatureLevel::STAMPED, write(vec![put(&longest, "1")], absent)),
            at(FeatureLevel::STAMPED, write(vec![delete(""), put("a", "1")], vec![to_longest])),
        ],
    );
    assert!(outcomes.iter().all(|outcome| matches!(outcome, Outcome::Applied { .. })), "{outcomes:?}");
    data.sync().unwrap();
    assert_eq!(keys(&data, &RangeQuery::default()), ["a", &longest]);

    // A condition that fails before is the outcome, and remembered, as an older version does that does not come any further.
    let fails = at(FeatureLevel::STAMPED, named("n", write(vec![put("", "1")], vec![revision_is("a", None)])));
    let failed = Outcome::PreconditionFailed { index: 0, current: Some(2) };
    let repeated = Outcome::Repeated { first: Box::new(failed.clone()), rewritten: None };
    assert_eq!(apply(&data, &[fails.clone(), fails]), [failed, repeated]);
}
