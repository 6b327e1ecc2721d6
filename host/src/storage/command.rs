//! The guarded write: the one primitive behind every change of the store.
//!
//! A guarded write is a list of operations, applied as a whole or not at all, and the conditions for applying it: the
//! client's demands, the facts that a plugin read to decide, and the hook epoch it was judged under. It also carries
//! the time of its proposal, so that applying it needs no clock.
//!
//! # Versions
//!
//! A command in the log starts with its version. Version 1 has no number of its own: it starts with the number of its operations,
//! which is never 0. Later versions start with 0 and the number. Version 2 carries no time, since the leader stamps the round.
//! Which version a node writes is up to the cluster's [feature level](super::FeatureLevel). A command that no node can have meant is
//! refused when it is applied, alike everywhere (see `usability`).

use std::borrow::Cow;
use std::fmt;

use bytes::Bytes;
use serde::de::Visitor;
use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};

use super::{FeatureLevel, shared};

/// Operations and the conditions for applying them, as the log carries them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardedWrite {
    /// Applied in order, all or none. No key occurs twice.
    pub operations: Vec<Operation>,
    /// All must hold when the write is applied.
    pub preconditions: Vec<Precondition>,
    /// The hook epoch the write was judged under; `None` for writes that no hook judges (the registry's own).
    pub hook_epoch: Option<u64>,
    /// Unix time in milliseconds at which the write was proposed.
    pub proposed_at_ms: u64,
    /// Present if the client sent an `Idempotency-Key`, so that a repeated write is applied once (P4).
    pub idempotency: Option<Idempotency>,
    /// The feature level under which the write was proposed: what applying it may leave in the state.
    #[serde(skip)]
    pub level: FeatureLevel,
    /// Whether the command cannot be applied. The write is empty then, and applying it changes nothing.
    #[serde(skip)]
    pub is_unusable: bool,
}

/// What every version but the first starts with.
const VERSIONED: u8 = 0;

/// The version without a time of its own.
const STAMPED: u8 = 2;

impl GuardedWrite {
    /// The bytes for the log of a cluster at this feature level.
    ///
    /// # Errors
    ///
    /// None that a write can cause.
    pub fn encode(&self, level: FeatureLevel) -> Result<Bytes, postcard::Error> {
        if level < FeatureLevel::STAMPED {
            return postcard::to_stdvec(self).map(Bytes::from);
        }
        let fields = (&self.operations, &self.preconditions, &self.hook_epoch, &self.idempotency);
        let mut command = Vec::with_capacity(self.encoded_bytes_estimate());
        command.extend([VERSIONED, STAMPED]);
        postcard::to_extend(&fields, command).map(Bytes::from)
    }

    /// The estimated length of the encoded command, so that its memory is allocated once.
    fn encoded_bytes_estimate(&self) -> usize {
        let of_operation = |operation: &Operation| {
            let value = match &operation.action {
                Action::Put(value) => value.bytes.len() + value.content_type.len(),
                Action::Delete => 0,
            };
            operation.key.len() + value + 16
        };
        let preconditions = self.preconditions.len() * 64;
        64 + self.operations.iter().map(of_operation).sum::<usize>() + preconditions
    }

    /// Decodes a command of a round, with the round's time if it was stamped. Its values are parts of the command's memory.
    ///
    /// # Errors
    ///
    /// If the bytes are malformed, of a later version, or have no time.
    pub fn decode(command: &Bytes, stamped_at_ms: Option<u64>) -> Result<Self, postcard::Error> {
        Ok(Self::decode_with_rest(command, stamped_at_ms)?.0)
    }

    /// The same, and the number of bytes after the command.
    pub(super) fn decode_with_rest(
        command: &Bytes,
        stamped_at_ms: Option<u64>,
    ) -> Result<(Self, usize), postcard::Error> {
        shared::within(command, || Self::decode_fields(command, stamped_at_ms))
    }

    fn decode_fields(command: &[u8], stamped_at_ms: Option<u64>) -> Result<(Self, usize), postcard::Error> {
        let level = if stamped_at_ms.is_some() { FeatureLevel::STAMPED } else { FeatureLevel::FIRST };
        if let [VERSIONED, version, fields @ ..] = command {
            let (STAMPED, Some(proposed_at_ms)) = (*version, stamped_at_ms) else {
                return Err(postcard::Error::DeserializeBadEncoding);
            };
            let ((operations, preconditions, hook_epoch, idempotency), rest) = postcard::take_from_bytes(fields)?;
            let is_unusable = false;
            let write = Self { operations, preconditions, hook_epoch, proposed_at_ms, idempotency, level, is_unusable };
            return Ok((write, rest.len()));
        }
        let (write, rest): (Self, _) = postcard::take_from_bytes(command)?;
        Ok((Self { proposed_at_ms: stamped_at_ms.unwrap_or(write.proposed_at_ms), level, ..write }, rest.len()))
    }

    /// Whether a command needs a round with a time.
    pub fn needs_stamp(command: &[u8]) -> bool {
        command.first() == Some(&VERSIONED)
    }
}

/// A client's idempotency key for a write. A write whose key is remembered is not applied; it gets the outcome of the
/// first write with that key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    /// The key: 1 to [`crate::limits::IDEMPOTENCY_KEY_BYTES_MAX`] bytes.
    pub key: String,
    /// The client's request, before any hook: a different request must not use the same key.
    pub fingerprint: Fingerprint,
    /// Whether hooks changed the operations, so that a repeated request does not tell what was written.
    pub rewritten: bool,
}

/// A SHA-256 over a client's request: its operations and its preconditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// Hashes a request.
    pub fn of(operations: &[Operation], preconditions: &[Precondition]) -> Result<Self, postcard::Error> {
        Ok(Self(Sha256::digest(postcard::to_stdvec(&(operations, preconditions))?).into()))
    }
}

/// Which of the two key spaces of a node an operation is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Space {
    /// The entries of clients.
    #[default]
    Kv,
    /// The replicated registry: plugins and hooks.
    System,
}

/// Keys of [`Space::System`] under this prefix are hooks: a write that changes one sets the hook epoch to its revision.
pub const HOOKS_PREFIX: &str = "hooks/";

/// Keys of [`Space::System`] under this prefix are plugins.
pub const PLUGINS_PREFIX: &str = "plugins/";

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// The space the key is in.
    pub space: Space,
    /// The key; for [`Space::Kv`], 1 to [`crate::limits::KEY_BYTES_MAX`] bytes.
    pub key: String,
    /// The change.
    pub action: Action,
}

/// The change that an [`Operation`] makes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Sets the value of the key, creating it if needed.
    Put(Value),
    /// Removes the key; nothing happens if it has no entry.
    Delete,
}

/// A value with its media type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Value {
    /// The media type; [`Value::JSON`] for values that arrived as JSON.
    #[serde(deserialize_with = "media_type")]
    pub content_type: Cow<'static, str>,
    /// The bytes; compact JSON text if the media type is JSON.
    #[serde(deserialize_with = "shared::deserialize")]
    pub bytes: Bytes,
}

impl Value {
    /// The media type of JSON values.
    pub const JSON: &'static str = "application/json";

    /// A JSON value; `text` must be valid JSON.
    pub fn json(text: impl Into<Bytes>) -> Self {
        Self { content_type: Self::JSON.into(), bytes: text.into() }
    }

    /// A value of a media type.
    pub fn of_type(content_type: &str, bytes: Bytes) -> Self {
        // Most values are JSON, and need no memory of their own for that.
        let content_type = if content_type == Self::JSON { Self::JSON.into() } else { content_type.to_owned().into() };
        Self { content_type, bytes }
    }

    /// Whether the media type is JSON.
    pub fn is_json(&self) -> bool {
        self.content_type == Self::JSON
    }

    /// Whether the media type has the syntax of JSON (RFC 6839, section 3.1), such as `application/geo+json`.
    pub fn is_json_syntax(&self) -> bool {
        let essence = self.content_type.split(';').next().unwrap_or_default().trim();
        let is_json = |name: &str| name.eq_ignore_ascii_case("json");
        essence.eq_ignore_ascii_case(Self::JSON) || essence.rsplit_once('+').is_some_and(|(_, suffix)| is_json(suffix))
    }
}

fn media_type<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Cow<'static, str>, D::Error> {
    deserializer.deserialize_str(MediaType)
}

struct MediaType;

impl Visitor<'_> for MediaType {
    type Value = Cow<'static, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a media type")
    }

    fn visit_str<E>(self, content_type: &str) -> Result<Self::Value, E> {
        Ok(Value::of_type(content_type, Bytes::new()).content_type)
    }
}

/// A fact about the store that must hold when a write is applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Precondition {
    /// Who relies on it; decides the answer to a failure.
    pub asked_by: AskedBy,
    /// The space of the keys.
    pub space: Space,
    /// The fact.
    pub fact: Fact,
}

/// Who relies on a [`Precondition`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum AskedBy {
    /// The client demanded it: a failure is the answer to the client.
    Client,
    /// A plugin read it to decide: on failure the write goes back through the hooks.
    Plugin,
}

/// What a [`Precondition`] states.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fact {
    /// The entry of `key` has exactly this revision; `None`: the key has no entry.
    Revision {
        /// The key.
        key: String,
        /// Its revision, or `None` for no entry.
        revision: Option<u64>,
    },
    /// `key` has an entry, of any revision.
    Exists {
        /// The key.
        key: String,
    },
    /// The first `limit` entries from `start` to `end` are the same ones at the same revisions: their
    /// [`RangeDigest`] has not changed. Covers phantoms.
    Range {
        /// First key, inclusive.
        start: String,
        /// Last key, inclusive; empty for no upper bound.
        end: String,
        /// How many entries the digest covers, at most [`crate::limits::PLUGIN_LIST_MAX`].
        limit: u32,
        /// Their digest.
        digest: RangeDigest,
    },
}

/// A SHA-256 over the keys and revisions of a range, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeDigest(pub [u8; 32]);

impl RangeDigest {
    /// The digest of keys with their revisions, in key order.
    pub fn of<'a>(entries: impl IntoIterator<Item = (&'a str, u64)>) -> Self {
        let mut hash = Sha256::new();
        for (key, revision) in entries {
            hash.update((key.len() as u64).to_be_bytes());
            hash.update(key.as_bytes());
            hash.update(revision.to_be_bytes());
        }
        Self(hash.finalize().into())
    }
}

/// The result of applying a guarded write. The same on every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Every operation was applied, in one revision.
    Applied {
        /// The store's revision after the write. A write that changed nothing leaves the revision as it was.
        revision: u64,
        /// One effect per operation, in order.
        effects: Vec<Effect>,
    },
    /// A precondition did not hold; nothing was applied.
    PreconditionFailed {
        /// Position of the precondition in [`GuardedWrite::preconditions`].
        index: u32,
        /// The current revision of the key it names; `None` for no entry, and for ranges.
        current: Option<u64>,
    },
    /// The hooks have changed since the write was judged; nothing was applied.
    HooksChanged {
        /// The hook epoch now in force.
        epoch: u64,
    },
    /// A write with this idempotency key came before; nothing was applied.
    Repeated {
        /// The outcome of the first one: applied, or a client's precondition failed.
        first: Box<Outcome>,
        /// Present if hooks had changed the operations: those that were written, or none if they are not remembered. The
        /// values are then known as long as the entries have the revision of the write.
        rewritten: Option<Vec<Operation>>,
    },
    /// A different write with this idempotency key came before; nothing was applied.
    IdempotencyKeyReused,
    /// The command cannot be applied: it is malformed, or beyond the bounds of its format. Nothing was applied. No node proposes such
    /// a command by itself.
    Unusable,
}

/// The effect of one operation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Effect {
    /// The key now has this entry.
    Put(EntryMeta),
    /// The key is gone.
    Deleted {
        /// Whether it had an entry before.
        existed: bool,
    },
}

/// The metadata of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryMeta {
    /// Number of writes of the key since it was created, from 1.
    pub version: u64,
    /// The store's revision at which it was last written.
    pub revision: u64,
    /// Unix time in milliseconds of its creation.
    pub created_at_ms: u64,
    /// Unix time in milliseconds of its last write.
    pub updated_at_ms: u64,
}

/// An entry of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Version, revision and times.
    pub meta: EntryMeta,
    /// The value.
    pub value: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write() -> GuardedWrite {
        let action = Action::Put(Value::json("1"));
        let operations = vec![Operation { space: Space::Kv, key: "a".to_owned(), action }];
        GuardedWrite { operations, hook_epoch: Some(3), proposed_at_ms: 7, ..GuardedWrite::default() }
    }

    #[test]
    fn a_command_of_the_first_level_has_its_own_time_unless_the_round_has_one() {
        let bytes = write().encode(FeatureLevel::FIRST).unwrap();
        assert!(!GuardedWrite::needs_stamp(&bytes));
        assert_eq!(GuardedWrite::decode(&bytes, None).unwrap(), write());
        let stamped = GuardedWrite { proposed_at_ms: 9, level: FeatureLevel::STAMPED, ..write() };
        assert_eq!(GuardedWrite::decode(&bytes, Some(9)).unwrap(), stamped);
    }

    #[test]
    fn a_command_without_a_time_takes_that_of_its_round() {
        let bytes = write().encode(FeatureLevel::STAMPED).unwrap();
        assert!(GuardedWrite::needs_stamp(&bytes));
        let stamped = GuardedWrite { proposed_at_ms: 9, level: FeatureLevel::STAMPED, ..write() };
        assert_eq!(GuardedWrite::decode(&bytes, Some(9)).unwrap(), stamped);
        assert!(GuardedWrite::decode(&bytes, None).is_err());
    }

    #[test]
    fn a_command_of_a_later_version_is_refused() {
        let mut bytes = write().encode(FeatureLevel::STAMPED).unwrap().to_vec();
        bytes[1] += 1;
        assert!(GuardedWrite::decode(&bytes.into(), Some(9)).is_err());
    }
}
