//! Tests of what is usable: alike for two versions, at the bounds, and byte by byte.

use serde::Deserialize;

use super::*;
use crate::storage::{AskedBy, Fingerprint, Idempotency, Precondition, RangeDigest, Space};

/// The fields of a command of the first version, as versions before [`FeatureLevel::CLOSED`] derive its encoding.
#[derive(Deserialize)]
struct Before {
    operations: Vec<Operation>,
    preconditions: Vec<Precondition>,
    hook_epoch: Option<u64>,
    proposed_at_ms: u64,
    idempotency: Option<Idempotency>,
}

/// What a version before [`FeatureLevel::CLOSED`] makes of a command; none if it ends.
fn decode_before(command: &[u8], time_ms: Option<u64>) -> Option<GuardedWrite> {
    let before: Before = match command {
        [0, 2, fields @ ..] => {
            let (operations, preconditions, hook_epoch, idempotency) = postcard::from_bytes(fields).ok()?;
            Before { operations, preconditions, hook_epoch, proposed_at_ms: time_ms?, idempotency }
        }
        [0, ..] => return None,
        command => postcard::from_bytes(command).ok()?,
    };
    let Before { operations, preconditions, hook_epoch, proposed_at_ms, idempotency } = before;
    let proposed_at_ms = time_ms.unwrap_or(proposed_at_ms);
    Some(GuardedWrite { operations, preconditions, hook_epoch, proposed_at_ms, idempotency, ..GuardedWrite::default() })
}

fn put(key: &str, value: Value) -> Operation {
    Operation { space: Space::Kv, key: key.to_owned(), action: Action::Put(value) }
}

fn precondition(fact: Fact) -> Precondition {
    Precondition { asked_by: AskedBy::Client, space: Space::Kv, fact }
}

fn range(start: &str, limit: u32) -> Fact {
    Fact::Range { start: start.to_owned(), end: String::new(), limit, digest: RangeDigest([7; 32]) }
}

fn named(key: &str) -> Option<Idempotency> {
    Some(Idempotency { key: key.to_owned(), fingerprint: Fingerprint([3; 32]), rewritten: false })
}

fn write(operations: Vec<Operation>, facts: Vec<Fact>) -> GuardedWrite {
    let preconditions = facts.into_iter().map(precondition).collect();
    GuardedWrite { operations, preconditions, hook_epoch: Some(1), proposed_at_ms: 7, ..GuardedWrite::default() }
}

/// A write with something of everything.
fn rich() -> GuardedWrite {
    let delete = Operation { space: Space::System, key: "hooks/h".to_owned(), action: Action::Delete };
    let text = Value::of_type("text/plain", Bytes::from_static(b"a text"));
    let revision = Fact::Revision { key: "a".to_owned(), revision: Some(300) };
    let facts = vec![revision, Fact::Exists { key: "b".to_owned() }, range("c", 100)];
    GuardedWrite { idempotency: named("n"), ..write(vec![put("k", Value::json("[1]")), delete, put("t", text)], facts) }
}

/// A command that is damaged in one of many ways, or not at all.
fn any_command(rng: &mut fastrand::Rng) -> Bytes {
    let level = [FeatureLevel::FIRST, FeatureLevel::STAMPED][rng.usize(0..2)];
    let mut command = rich().encode(level).unwrap().to_vec();
    let place = rng.usize(0..command.len());
    match rng.u8(0..6) {
        0 => command.truncate(place),
        1 => command[place] = rng.u8(..),
        2 => command.extend((0..rng.usize(1..4)).map(|_| rng.u8(..))),
        3 => command[1] = rng.u8(0..5),
        4 => command = (0..rng.usize(0..12)).map(|_| rng.u8(0..4)).collect(),
        _ => {}
    }
    command.into()
}

/// The time of a log at a level.
fn time_at(level: FeatureLevel) -> Option<u64> {
    (level >= FeatureLevel::STAMPED).then_some(9)
}

fn decoded(command: &Bytes, level: FeatureLevel) -> GuardedWrite {
    GuardedWrite::decode_or_refuse(command, time_at(level), level)
}

fn is_unusable(write: &GuardedWrite, level: FeatureLevel) -> bool {
    decoded(&write.encode(level).unwrap(), level).is_unusable
}

const BELOW: [FeatureLevel; 2] = [FeatureLevel::FIRST, FeatureLevel::STAMPED];

/// Below the level nodes of both versions take part. What the older one applies, the newer must apply alike.
#[test]
fn two_versions_refuse_alike() {
    let mut rng = fastrand::Rng::with_seed(5);
    let mut counts = [0; 2];
    for _ in 0..20_000 {
        let command = any_command(&mut rng);
        for level in BELOW {
            let write = decoded(&command, level);
            match decode_before(&command, time_at(level)) {
                Some(before) => assert_eq!(write, GuardedWrite { level, ..before }, "{command:?}"),
                None => assert!(write.is_unusable, "{command:?} at level {level}"),
            }
            counts[usize::from(write.is_unusable)] += 1;
        }
    }
    assert!(counts.iter().all(|count| *count > 5_000), "{counts:?}");
}

/// A version that knows more must refuse it as well, as long as the level does not allow it.
#[test]
fn a_command_of_a_version_above_the_level_is_unusable() {
    let command = rich().encode(FeatureLevel::STAMPED).unwrap();
    assert!(decoded(&command, FeatureLevel::FIRST).is_unusable);
    for version in [0, 1, 3, 4, 255] {
        let mut later = command.to_vec();
        later[1] = version;
        for level in 1..=FeatureLevel::NEWEST.0 {
            assert!(decoded(&later.clone().into(), FeatureLevel(level)).is_unusable, "{version} at level {level}");
        }
    }
}

#[test]
fn bytes_after_a_command_are_ignored_below_the_level_and_refused_from_it_on() {
    for encoded_at in BELOW {
        let command = rich().encode(encoded_at).unwrap();
        let longer = Bytes::from([&command[..], &[0]].concat());
        for level in BELOW.into_iter().filter(|level| *level >= encoded_at) {
            assert!(!decoded(&longer, level).is_unusable);
        }
        assert!(!decoded(&command, FeatureLevel::CLOSED).is_unusable);
        assert!(decoded(&longer, FeatureLevel::CLOSED).is_unusable);
    }
}

#[test]
fn each_bound_holds_from_the_level_on_and_not_below() {
    let key = |bytes: usize| "k".repeat(bytes);
    let one = |key: &str| write(vec![put(key, Value::json("1"))], vec![]);
    let delete = |key: String| write(vec![Operation { space: Space::System, key, action: Action::Delete }], vec![]);
    let value = |bytes: usize| write(vec![put("a", Value::json(vec![b'1'; bytes]))], vec![]);
    let of_type = |bytes: usize| write(vec![put("a", Value::of_type(&key(bytes), Bytes::new()))], vec![]);
    let given = |facts| write(vec![put("a", Value::json("1"))], facts);
    let by_name = |name: &str| GuardedWrite { idempotency: named(name), ..one("a") };
    let revision = |bytes: usize| given(vec![Fact::Revision { key: key(bytes), revision: None }]);
    let exists = |bytes: usize| given(vec![Fact::Exists { key: key(bytes) }]);
    let start = |bytes: usize| given(vec![range(&key(bytes), 1)]);
    let ranges = |limits: [u32; 2]| given(limits.map(|limit| range("a", limit)).to_vec());
    let end = |bytes: usize| {
        let fact = Fact::Range { start: String::new(), end: key(bytes), limit: 1, digest: RangeDigest([0; 32]) };
        given(vec![fact])
    };
    let many = |count: usize| write(vec![put("a", Value::json("1")); count], vec![]);
    let many_facts = |count: usize| given(vec![Fact::Exists { key: "a".to_owned() }; count]);
    let half = u32::try_from(RANGE_KEYS_MAX / 2).unwrap();
    for (name, within, beyond) in [
        ("a key", one(&key(KEY_BYTES_MAX)), one(&key(KEY_BYTES_MAX + 1))),
        ("an empty key", one("a"), one("")),
        ("a deleted key", delete(key(KEY_BYTES_MAX)), delete(key(KEY_BYTES_MAX + 1))),
        ("an empty deleted key", delete(key(1)), delete(String::new())),
        ("a value", value(VALUE_BYTES_MAX), value(VALUE_BYTES_MAX + 1)),
        ("a content type", of_type(CONTENT_TYPE_BYTES_MAX), of_type(CONTENT_TYPE_BYTES_MAX + 1)),
        ("a name", by_name(&key(IDEMPOTENCY_KEY_BYTES_MAX)), by_name(&key(IDEMPOTENCY_KEY_BYTES_MAX + 1))),
        ("an empty name", by_name("n"), by_name("")),
        ("the key of a revision", revision(KEY_BYTES_MAX), revision(KEY_BYTES_MAX + 1)),
        ("the key of an entry", exists(KEY_BYTES_MAX), exists(KEY_BYTES_MAX + 1)),
        ("the start of a range", start(KEY_BYTES_MAX), start(KEY_BYTES_MAX + 1)),
        ("the end of a range", end(KEY_BYTES_MAX), end(KEY_BYTES_MAX + 1)),
        ("the ranges", ranges([half, half]), ranges([half, half + 1])),
        ("the largest ranges", ranges([half, 0]), ranges([u32::MAX, u32::MAX])),
        ("the operations", many(OPERATIONS_MAX), many(OPERATIONS_MAX + 1)),
        ("the preconditions", many_facts(PRECONDITIONS_MAX), many_facts(PRECONDITIONS_MAX + 1)),
    ] {
        assert!(!is_unusable(&within, FeatureLevel::CLOSED), "{name}");
        assert!(is_unusable(&beyond, FeatureLevel::CLOSED), "{name}");
        for level in BELOW {
            assert!(!is_unusable(&beyond, level), "{name} at level {level}");
        }
    }
}

#[test]
fn a_name_that_the_tables_cannot_hold_is_unusable_at_every_level() {
    let by_name = |bytes: usize| GuardedWrite { idempotency: named(&"n".repeat(bytes)), ..rich() };
    for level in BELOW {
        assert!(!is_unusable(&by_name(ROW_KEY_BYTES_MAX - 1), level));
        assert!(is_unusable(&by_name(ROW_KEY_BYTES_MAX), level));
    }
}

#[test]
fn an_unusable_write_is_empty() {
    let command = Bytes::from_static(b"\xff\xff");
    let expected = GuardedWrite { level: FeatureLevel::CLOSED, is_unusable: true, ..GuardedWrite::default() };
    assert_eq!(decoded(&command, FeatureLevel::CLOSED), expected);
}

/// Whether bytes decode is decided by libraries too. If one of these changes, two versions would have different states.
#[test]
fn which_bytes_are_usable_stays_as_it_is() {
    // One operation that puts the key "k" as JSON "1"; nothing else.
    let usable: &[u8] = b"\0\x02\x01\0\x01k\0\x10application/json\x011\0\0\0";
    assert_eq!(usable, write_of_these_bytes().encode(FeatureLevel::CLOSED).unwrap());
    // The place, and what is there instead.
    let cases: [(usize, &[u8], bool); 12] = [
        (0, &[0], true),
        // A length that has more bytes than it needs, or too many, or none.
        (2, &[0x81, 0x00], true),
        (2, &[0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00], true),
        (2, &[0x81, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00], false),
        (2, &[0x02], false),
        // A space and an action that are unknown.
        (3, &[2], false),
        (6, &[2], false),
        // Text that is not UTF-8.
        (5, &[0xff], false),
        (8, &[0xff], false),
        // Lengths beyond the end.
        (4, &[200], false),
        (24, &[0xff, 0xff, 0xff, 0xff, 0x0f], false),
        // An option that is neither there nor absent.
        (27, &[2], false),
    ];
    for (place, bytes, is_usable) in cases {
        let command = [&usable[..place], bytes, &usable[place + 1..]].concat();
        assert_eq!(!decoded(&command.into(), FeatureLevel::CLOSED).is_unusable, is_usable, "{bytes:?} at {place}");
    }
}

fn write_of_these_bytes() -> GuardedWrite {
    GuardedWrite { operations: vec![put("k", Value::json("1"))], ..GuardedWrite::default() }
}
