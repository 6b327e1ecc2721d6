//! What other nodes propose, checked before the leader logs it. An entry that no follower accepts would stop the cluster, and one that
//! says what no node would say may stop all writes: a hook that cannot be read, or a range that takes minutes to count.
//!
//! What is in the log already is applied as it is, alike on all nodes.

use std::collections::HashSet;

use super::error::Error;
use super::queue::{ROUND_BYTES_MAX, ROUND_WRITES_MAX};
use super::types::{Round, RoundWrite};
use crate::limits::{
    BATCH_ITEMS_MAX, COMMAND_BYTES_MAX, CONTENT_TYPE_BYTES_MAX, IDEMPOTENCY_KEY_BYTES_MAX, KEY_BYTES_MAX,
    PLUGIN_LIST_MAX, VALUE_BYTES_MAX, WRITE_READ_KEYS_MAX,
};
use crate::storage::{Action, Fact, GuardedWrite, Operation, Precondition, Value};

/// Says whether a write is one that this node's own doors could have made: what replication does not know.
pub type CheckProposed = fn(&GuardedWrite) -> bool;

/// Most preconditions of a write: one of each item of a batch, and what its hooks read, up to the read that was refused.
const PRECONDITIONS_MAX: usize = BATCH_ITEMS_MAX + WRITE_READ_KEYS_MAX + 1;

/// Longest bound of a range: a prefix, and the last character.
const BOUND_BYTES_MAX: usize = KEY_BYTES_MAX + char::MAX.len_utf8();

/// Checks a round that another node made.
pub(super) fn check(round: &Round, check_proposed: CheckProposed) -> Result<(), Error> {
    let refused = |what: &str| Err(Error::Refused(format!("the round {what}")));
    let bytes = round.command_bytes();
    match round.writes.len() {
        0 => return refused("has no writes"),
        1 if bytes > COMMAND_BYTES_MAX => return refused("has a write that is too large"),
        2.. if bytes > ROUND_BYTES_MAX => return refused("is too large"),
        ROUND_WRITES_MAX.. if round.writes.len() > ROUND_WRITES_MAX => return refused("has too many writes"),
        _ => {}
    }
    let is_sound = |write: &RoundWrite| {
        // The round gets its time when it is proposed.
        let write = GuardedWrite::decode(&write.command, Some(0));
        write.is_ok_and(|write| is_sound(&write) && check_proposed(&write))
    };
    if round.writes.iter().all(is_sound) { Ok(()) } else { refused("has a write that no node would make") }
}

fn is_sound(write: &GuardedWrite) -> bool {
    let is_name = |name: &str| (1..=IDEMPOTENCY_KEY_BYTES_MAX).contains(&name.len());
    write.operations.iter().all(is_sound_operation)
        && names_each_key_once(&write.operations)
        && write.preconditions.len() <= PRECONDITIONS_MAX
        && write.preconditions.iter().all(is_sound_precondition)
        && write.idempotency.as_ref().is_none_or(|idempotency| is_name(&idempotency.key))
}

fn is_key(key: &str) -> bool {
    (1..=KEY_BYTES_MAX).contains(&key.len())
}

fn is_sound_operation(operation: &Operation) -> bool {
    let is_sound_value = |value: &Value| {
        let is_visible = |byte| matches!(byte, b' '..=b'~' | b'\t');
        value.bytes.len() <= VALUE_BYTES_MAX
            && value.content_type.len() <= CONTENT_TYPE_BYTES_MAX
            && value.content_type.bytes().all(is_visible)
    };
    let has_sound_value = match &operation.action {
        Action::Put(value) => is_sound_value(value),
        Action::Delete => true,
    };
    has_sound_value && is_key(&operation.key)
}

fn names_each_key_once(operations: &[Operation]) -> bool {
    // Most writes have one operation.
    let mut seen = HashSet::with_capacity(if operations.len() > 1 { operations.len() } else { 0 });
    operations.len() <= 1 || operations.iter().all(|operation| seen.insert((operation.space, operation.key.as_str())))
}

fn is_sound_precondition(precondition: &Precondition) -> bool {
    match &precondition.fact {
        Fact::Revision { key, .. } | Fact::Exists { key } => is_key(key),
        Fact::Range { start, end, limit, .. } => {
            start.len() <= BOUND_BYTES_MAX && end.len() <= BOUND_BYTES_MAX && *limit as usize <= PLUGIN_LIST_MAX
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{AskedBy, FeatureLevel, Fingerprint, Idempotency, RangeDigest, Space};

    fn put(key: &str, content_type: &str, bytes: usize) -> Operation {
        let action = Action::Put(Value::of_type(content_type, vec![b'1'; bytes].into()));
        Operation { space: Space::Kv, key: key.to_owned(), action }
    }

    fn of(operations: Vec<Operation>) -> GuardedWrite {
        GuardedWrite { operations, ..GuardedWrite::default() }
    }

    fn with(fact: Fact, count: usize) -> GuardedWrite {
        let precondition = Precondition { asked_by: AskedBy::Client, space: Space::Kv, fact };
        GuardedWrite { preconditions: vec![precondition; count], ..of(vec![put("a", Value::JSON, 1)]) }
    }

    fn named(name: &str) -> GuardedWrite {
        let idempotency = Idempotency { key: name.to_owned(), fingerprint: Fingerprint([0; 32]), rewritten: false };
        GuardedWrite { idempotency: Some(idempotency), ..of(vec![put("a", Value::JSON, 1)]) }
    }

    fn passes(write: &GuardedWrite, check_proposed: CheckProposed) -> bool {
        let command = write.encode(FeatureLevel::STAMPED).unwrap();
        let writes = vec![RoundWrite { trace: None, command }];
        check(&Round { stamped_at_ms: None, raises_to: None, writes }, check_proposed).is_ok()
    }

    #[test]
    fn a_write_that_no_node_would_make_is_refused() {
        let long = |bytes| "k".repeat(bytes);
        let range = |end: &str, limit: usize| Fact::Range {
            start: String::new(),
            end: end.to_owned(),
            limit: u32::try_from(limit).unwrap_or(u32::MAX),
            digest: RangeDigest([0; 32]),
        };
        let exists = |key: &str| Fact::Exists { key: key.to_owned() };
        let system = |key: &str| Operation { space: Space::System, ..put(key, Value::JSON, 1) };
        let prefix_end = format!("{}{}", long(KEY_BYTES_MAX), char::MAX);
        for (number, (write, is_sound)) in [
            (of(vec![put("a", "text/plain; charset=utf-8", 1), put("b", Value::JSON, VALUE_BYTES_MAX)]), true),
            (of(vec![put("a", Value::JSON, 1), system("a")]), true),
            (of(vec![put(&long(KEY_BYTES_MAX), &long(CONTENT_TYPE_BYTES_MAX), 1)]), true),
            (of(vec![put("", Value::JSON, 1)]), false),
            (of(vec![system("")]), false),
            (of(vec![put(&long(KEY_BYTES_MAX + 1), Value::JSON, 1)]), false),
            (of(vec![put("a", Value::JSON, VALUE_BYTES_MAX + 1)]), false),
            (of(vec![put("a", &long(CONTENT_TYPE_BYTES_MAX + 1), 1)]), false),
            (of(vec![put("a", "\u{1b}[2J", 1)]), false),
            (of(vec![put("a", Value::JSON, 1), put("b", Value::JSON, 1), put("a", Value::JSON, 1)]), false),
            (with(exists("a"), PRECONDITIONS_MAX), true),
            (with(exists("a"), PRECONDITIONS_MAX + 1), false),
            (with(exists(""), 1), false),
            (with(exists(&long(KEY_BYTES_MAX + 1)), 1), false),
            (with(range(&prefix_end, PLUGIN_LIST_MAX), 1), true),
            (with(range("", PLUGIN_LIST_MAX + 1), 1), false),
            (with(range("", usize::MAX), 1), false),
            (with(range(&long(BOUND_BYTES_MAX + 1), 1), 1), false),
            (named(&long(IDEMPOTENCY_KEY_BYTES_MAX)), true),
            (named(""), false),
            (named(&long(IDEMPOTENCY_KEY_BYTES_MAX + 1)), false),
        ]
        .into_iter()
        .enumerate()
        {
            assert_eq!(passes(&write, |_| true), is_sound, "case {number}");
            assert!(!passes(&write, |_| false), "case {number}");
        }
    }
}
