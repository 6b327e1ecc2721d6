//! Which commands of the log can be applied.
//!
//! # Problem
//!
//! A committed command is in the log of every node for good. A node that fails on it fails again after each restart. A node that
//! skips it while another applies it has another state from then on. No honest node proposes such a command, but a log may hold one:
//! a peer that is faulty or hostile has sent it, or a version with a bug has written it.
//!
//! # Approach
//!
//! A command that is *unusable* is applied as a write that changes nothing, and its outcome says so. Whether it is usable depends on
//! its bytes and on the feature level at its position in the log, and on nothing else: neither on the node, nor on its version, its
//! settings, its state, or on how entries are batched.
//!
//! | at any level | from [`FeatureLevel::CLOSED`] on |
//! |---|---|
//! | its encoding is malformed | bytes follow the command |
//! | its version is above the level, or unknown | it exceeds a bound below |
//! | its idempotency key is longer than the tables hold | |
//!
//! An older version *ends* on what is in the first column, so it cannot have applied it. What is in the second it *applies*, so nodes of
//! both versions must go on doing so until the level says that no older one takes part.
//!
//! Below that level, keys may be such that the tables cannot hold or look for them. An older version ends when it comes to them, and
//! not if hooks or a precondition stop the write before. So the write is refused there, and not before ([`can_be_stored`],
//! [`can_be_looked_up`]).
//!
//! # IMPORTANT: changing it
//!
//! The bounds are part of the log's format. They look like those of [`crate::limits`], which may be lowered at any time and raised
//! up to these. Changing a bound here, or anything in what decodes, takes a new feature level. So does a new version of commands or
//! a new variant in one: below its level, it is unusable for the nodes that know it, as it is for those that do not.

use bytes::Bytes;

use super::FeatureLevel;
use super::command::{Action, Fact, GuardedWrite, Operation, Value};
use crate::limits;

/// Longest key of an operation or in a precondition, in bytes.
const KEY_BYTES_MAX: usize = 1_024;
/// Largest value, in bytes.
const VALUE_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Longest content type, in bytes.
const CONTENT_TYPE_BYTES_MAX: usize = 255;
/// Longest idempotency key, in bytes.
const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Most operations of a command, and most preconditions.
const OPERATIONS_MAX: usize = 65_536;
const PRECONDITIONS_MAX: usize = 65_536;
/// Most keys that the ranges of a command's preconditions cover, all together.
const RANGE_KEYS_MAX: u64 = 65_536;

/// Bytes of the keys that the tables hold, and that bounds of a range have.
const ROW_KEY_BYTES_MAX: usize = u16::MAX as usize;

/// Ranges of a transaction of the registry, at most: one for each kind of its entries.
const REGISTRY_RANGES_MAX: usize = 8;

// What this version proposes is within the bounds.
const _: () = {
    assert!(limits::KEY_BYTES_MAX <= KEY_BYTES_MAX && limits::VALUE_BYTES_MAX <= VALUE_BYTES_MAX);
    assert!(limits::CONTENT_TYPE_BYTES_MAX <= CONTENT_TYPE_BYTES_MAX);
    assert!(limits::IDEMPOTENCY_KEY_BYTES_MAX <= IDEMPOTENCY_KEY_BYTES_MAX);
    assert!(limits::BATCH_ITEMS_MAX <= OPERATIONS_MAX);
    // The last read of hooks may reach beyond what they may read.
    assert!(limits::BATCH_ITEMS_MAX + limits::WRITE_READ_KEYS_MAX < PRECONDITIONS_MAX);
    let ranges_max = 1 + REGISTRY_RANGES_MAX;
    assert!((limits::WRITE_READ_KEYS_MAX + ranges_max * (limits::PLUGIN_LIST_MAX + 1)) as u64 <= RANGE_KEYS_MAX);
};

impl GuardedWrite {
    /// Decodes a command of the log, in which the cluster has a feature level and a time at the command's position; no time below
    /// [`FeatureLevel::STAMPED`]. A command that is unusable there becomes a write that is, and changes nothing.
    pub fn decode_or_refuse(command: &Bytes, time_ms: Option<u64>, level: FeatureLevel) -> Self {
        match Self::decode_with_rest(command, time_ms) {
            Ok((write, rest)) if is_usable(&write, rest, level) => Self { level, ..write },
            _ => Self { level, is_unusable: true, ..Self::default() },
        }
    }
}

fn is_usable(write: &GuardedWrite, rest: usize, level: FeatureLevel) -> bool {
    match level < FeatureLevel::CLOSED {
        true => has_name_within(write, 0..=ROW_KEY_BYTES_MAX - 1),
        false => rest == 0 && is_within_bounds(write),
    }
}

fn is_within_bounds(write: &GuardedWrite) -> bool {
    let GuardedWrite { operations, preconditions, .. } = write;
    operations.len() <= OPERATIONS_MAX
        && preconditions.len() <= PRECONDITIONS_MAX
        && has_name_within(write, 1..=IDEMPOTENCY_KEY_BYTES_MAX)
        && operations.iter().all(is_operation_within_bounds)
        && preconditions.iter().all(|precondition| longest_key(&precondition.fact) <= KEY_BYTES_MAX)
        && preconditions.iter().map(|precondition| range_keys(&precondition.fact)).sum::<u64>() <= RANGE_KEYS_MAX
}

fn has_name_within(write: &GuardedWrite, bytes: std::ops::RangeInclusive<usize>) -> bool {
    write.idempotency.as_ref().is_none_or(|idempotency| bytes.contains(&idempotency.key.len()))
}

fn is_operation_within_bounds(operation: &Operation) -> bool {
    let has_value_within_bounds = match &operation.action {
        Action::Put(Value { content_type, bytes }) => {
            content_type.len() <= CONTENT_TYPE_BYTES_MAX && bytes.len() <= VALUE_BYTES_MAX
        }
        Action::Delete => true,
    };
    has_value_within_bounds && (1..=KEY_BYTES_MAX).contains(&operation.key.len())
}

fn longest_key(fact: &Fact) -> usize {
    match fact {
        Fact::Revision { key, .. } | Fact::Exists { key } => key.len(),
        Fact::Range { start, end, .. } => start.len().max(end.len()),
    }
}

fn range_keys(fact: &Fact) -> u64 {
    match fact {
        Fact::Range { limit, .. } => u64::from(*limit),
        Fact::Revision { .. } | Fact::Exists { .. } => 0,
    }
}

/// Whether the tables can hold what an operation leaves, and look for what was there. Always true of a command within its bounds.
pub(super) fn can_be_stored(operation: &Operation) -> bool {
    let is_put = matches!(operation.action, Action::Put(_));
    operation.key.len() <= ROW_KEY_BYTES_MAX && !(is_put && operation.key.is_empty())
}

/// Whether the tables can look for what a fact states. Always true of a command within its bounds.
pub(super) fn can_be_looked_up(fact: &Fact) -> bool {
    match fact {
        Fact::Revision { key, .. } | Fact::Exists { key } => key.len() <= ROW_KEY_BYTES_MAX,
        // A range ends before the key after its last one, which has one byte more.
        Fact::Range { start, end, .. } => start.len() <= ROW_KEY_BYTES_MAX && end.len() < ROW_KEY_BYTES_MAX,
    }
}

#[cfg(test)]
mod tests;
