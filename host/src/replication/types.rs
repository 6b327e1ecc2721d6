//! Ids, the types openraft works with, and their encoding on disk and on the wire.
//!
//! Everything is encoded with postcard, once: a [`Round`] carries commands that the receiving node encoded, and every
//! later hop copies those bytes without looking into them.

use std::{fmt, num::NonZeroU64};

use bytes::Bytes;
use openraft::{BasicNode, EntryPayload};
use serde::de::{self, DeserializeOwned, SeqAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::Error;
use crate::storage::{self, FeatureLevel, GuardedWrite, Outcome, shared};
use crate::{net, telemetry::TraceContext};

// The runtime is an associated type of openraft's configuration, so it cannot be passed in as a value. Making it a type
// parameter instead would make every type that holds an engine generic, for the sake of the simulation alone.
#[cfg(test)]
use super::sim::runtime::Runtime;
#[cfg(not(test))]
use openraft_rt_tokio::TokioRuntime as Runtime;

openraft::declare_raft_types!(
    /// openraft's type parameters in brink.
    pub TypeConfig:
        D = Round,
        R = Vec<Outcome>,
        NodeId = u64,
        Node = openraft::BasicNode,
        AsyncRuntime = Runtime,
);

/// The id of a cluster: a random number, the same on all its nodes forever.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClusterId(NonZeroU64);

impl ClusterId {
    pub(super) fn random() -> Self {
        Self(NonZeroU64::MIN.saturating_add(fastrand::u64(..u64::MAX)))
    }

    /// The id as a number.
    pub fn get(self) -> u64 {
        self.0.get()
    }

    /// The id with a number from [`ClusterId::get`]; none for 0.
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The node id derived from a base URL: the first eight bytes of its SHA-256. All nodes derive the same ids from the
/// same URLs, so forming a cluster needs no init command.
pub fn node_id(url: &str) -> u64 {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(url.as_bytes());
    digest.iter().take(8).fold(0, |id, byte| (id << 8) | u64::from(*byte))
}

/// A log position with the leader that wrote it.
pub(super) type LogId = openraft::alias::LogIdOf<TypeConfig>;
pub(super) type LogEntry = openraft::alias::EntryOf<TypeConfig>;
/// A vote, which also identifies a leader.
pub(super) type Vote = openraft::alias::VoteOf<TypeConfig>;
/// A membership with its log position.
pub(super) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// The log position and membership that a snapshot covers.
pub(super) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;
/// The state of the consensus engine, as it reports it.
pub(super) type Metrics = openraft::RaftMetrics<TypeConfig>;

/// The payload of one log entry: the guarded writes that shared a proposal, in order.
///
/// Encoded, a round starts with its version. Version 1 has no number of its own: it is the list of its writes, which is never
/// empty. Later versions start with 0 and the number.
#[derive(Clone, PartialEq, Eq)]
pub struct Round {
    /// Unix time in milliseconds of the leader that proposed the round; absent below [`FeatureLevel::STAMPED`].
    pub stamped_at_ms: Option<u64>,
    /// The feature level to which the round raises the cluster, if it does. Such a round has a time.
    pub raises_to: Option<FeatureLevel>,
    /// At most `ROUND_WRITES_MAX` (see `queue`); none in the round that raises the feature level.
    pub writes: Vec<RoundWrite>,
}

/// Room for what an encoded value has beside its rounds, and a write of a round beside its command, in bytes.
const SPARE_BYTES: usize = 64;
const WRITE_SPARE_BYTES: usize = 8;

/// What every version but the first starts with.
const VERSIONED: u64 = 0;

/// The version with a time.
const STAMPED: u8 = 2;

/// The version with a time and a feature level.
const RAISING: u8 = 3;

impl Round {
    /// Bytes of the commands.
    pub(super) fn command_bytes(&self) -> usize {
        self.writes.iter().map(|write| write.command.len()).sum()
    }

    /// Approximate size of the encoded round, in bytes.
    pub(super) fn encoded_bytes(&self) -> usize {
        self.command_bytes() + self.writes.len() * WRITE_SPARE_BYTES
    }

    /// The feature level that the cluster has at least from this round on.
    pub(super) fn level(&self) -> FeatureLevel {
        let stamped = if self.stamped_at_ms.is_some() { FeatureLevel::STAMPED } else { FeatureLevel::FIRST };
        stamped.max(self.raises_to.unwrap_or_default())
    }

    /// The guarded writes, in order, in a cluster that has this feature level. They take place at `time_ms`; without it, at the
    /// times that their commands have. Commands that cannot be applied are among them, as writes that change nothing.
    pub(super) fn guarded_writes(
        &self,
        time_ms: Option<u64>,
        level: FeatureLevel,
    ) -> impl Iterator<Item = GuardedWrite> + '_ {
        self.writes.iter().map(move |write| GuardedWrite::decode_or_refuse(&write.command, time_ms, level))
    }
}

impl Serialize for Round {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match (self.stamped_at_ms, self.raises_to) {
            (None, _) => self.writes.serialize(serializer),
            (Some(stamped_at_ms), None) => (VERSIONED, STAMPED, stamped_at_ms, &self.writes).serialize(serializer),
            (Some(stamped_at_ms), Some(level)) => {
                (VERSIONED, RAISING, stamped_at_ms, level, &self.writes).serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for Round {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // A list of unknown length whose items differ in type: `RoundVisitor` knows when to stop.
        deserializer.deserialize_tuple(usize::MAX, RoundVisitor)
    }
}

struct RoundVisitor;

const EXPECTED: &str = "a round of a version up to 3, and of a known feature level";

impl<'de> Visitor<'de> for RoundVisitor {
    type Value = Round;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(EXPECTED)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Round, A::Error> {
        let count = next(&mut items)?;
        if count != VERSIONED {
            let mut writes = Vec::new();
            for _ in 0..count {
                writes.push(next(&mut items)?);
            }
            return Ok(Round { stamped_at_ms: None, raises_to: None, writes });
        }
        let unknown = |number| Err(de::Error::invalid_value(Unexpected::Unsigned(number), &EXPECTED));
        let version = next(&mut items)?;
        if ![STAMPED, RAISING].contains(&version) {
            return unknown(u64::from(version));
        }
        let stamped_at_ms = Some(next(&mut items)?);
        let raises_to: Option<FeatureLevel> = if version == RAISING { Some(next(&mut items)?) } else { None };
        match raises_to {
            // What comes after it would have to be applied in a way that this version does not know.
            Some(level) if level > FeatureLevel::NEWEST => unknown(u64::from(level.0)),
            _ => Ok(Round { stamped_at_ms, raises_to, writes: next(&mut items)? }),
        }
    }
}

fn next<'de, T: Deserialize<'de>, A: SeqAccess<'de>>(items: &mut A) -> Result<T, A::Error> {
    items.next_element()?.ok_or_else(|| de::Error::custom("the round ends early"))
}

/// One write of a [`Round`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundWrite {
    /// The span that proposed the write, if its trace is sampled, so that every node can add its part to the trace.
    pub trace: Option<TraceContext>,
    /// A [`storage::GuardedWrite`], encoded by the node that received it.
    #[serde(deserialize_with = "shared::deserialize")]
    pub command: Bytes,
}

impl fmt::Debug for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Shows the size of the round and never its content: values do not belong in logs.
impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: usize = self.writes.iter().map(|write| write.command.len()).sum();
        write!(f, "round of {} writes, {bytes} bytes", self.writes.len())
    }
}

/// The base URL of a member in its normal form. Earlier versions stored a host's name as the host writes it.
pub(super) fn url_of(node: &BasicNode) -> String {
    net::with_one_localhost(node.addr.to_ascii_lowercase())
}

/// Approximate size of the encoded round of an entry, in bytes; 0 without one.
pub(super) fn encoded_bytes(entry: &LogEntry) -> usize {
    match &entry.payload {
        EntryPayload::Normal(round) => round.encoded_bytes(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

/// The sampled traces of the writes in an entry.
pub(super) fn traces_of(entry: &LogEntry) -> impl Iterator<Item = TraceContext> + '_ {
    let writes = match &entry.payload {
        EntryPayload::Normal(round) => round.writes.as_slice(),
        EntryPayload::Blank | EntryPayload::Membership(_) => &[],
    };
    writes.iter().filter_map(|write| write.trace)
}

/// Encodes a value for the log or the wire.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Bytes, Error> {
    encode_with_rounds(value, 0)
}

/// Encodes a value. `bytes` is the approximate size of the rounds in it, so that its memory is allocated once.
pub(super) fn encode_with_rounds<T: Serialize>(value: &T, bytes: usize) -> Result<Bytes, Error> {
    Ok(postcard::to_extend(value, Vec::with_capacity(SPARE_BYTES + bytes)).map_err(Error::Codec)?.into())
}

/// Decodes a stored value, if there is one.
pub(super) fn decode_stored<T>(stored: Result<Option<Bytes>, storage::Error>) -> Result<Option<T>, Error>
where
    T: DeserializeOwned,
{
    stored?.map(|bytes| decode(&bytes)).transpose()
}

/// Decodes a value that [`encode`] wrote.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    postcard::from_bytes(bytes).map_err(Error::Codec)
}

/// [`decode`], with commands that are parts of `bytes` and not copies. The memory of `bytes` stays as long as one of them.
pub(super) fn decode_shared<T: DeserializeOwned>(bytes: &Bytes) -> Result<T, Error> {
    shared::within(bytes, || decode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round of version 1, as earlier versions of brink derive its encoding.
    #[derive(Serialize, Deserialize)]
    struct FirstRound {
        writes: Vec<RoundWrite>,
    }

    fn writes() -> Vec<RoundWrite> {
        ["one", "two"].map(|command| RoundWrite { trace: None, command: command.into() }).into()
    }

    #[test]
    fn a_round_without_a_time_has_the_bytes_that_earlier_versions_read_and_write() {
        let bytes = encode(&FirstRound { writes: writes() }).unwrap();
        let round = Round { stamped_at_ms: None, raises_to: None, writes: writes() };
        assert_eq!(encode(&round).unwrap(), bytes);
        assert_eq!(decode::<Round>(&bytes).unwrap(), round);
    }

    #[test]
    fn a_round_with_a_time_is_read_back_even_inside_other_values() {
        for (writes, raises_to) in [(writes(), None), (vec![], None), (writes(), Some(FeatureLevel::NEWEST))] {
            let rounds = vec![(Round { stamped_at_ms: Some(1 << 41), raises_to, writes }, 7_u64); 2];
            assert_eq!(decode::<Vec<(Round, u64)>>(&encode(&rounds).unwrap()).unwrap(), rounds);
        }
    }

    #[test]
    fn a_round_of_a_later_version_and_one_that_ends_early_are_refused() {
        assert!(decode::<Round>(&[0, 4, 1, 0]).is_err());
        for raises_to in [None, Some(FeatureLevel::NEWEST)] {
            let bytes = encode(&Round { stamped_at_ms: Some(5), raises_to, writes: writes() }).unwrap();
            for length in 0..bytes.len() {
                assert!(decode::<Round>(&bytes[..length]).is_err(), "{length} bytes");
            }
        }
    }

    #[test]
    fn a_round_with_a_time_has_the_bytes_that_a_version_before_reads_unless_it_raises_the_level() {
        let round = |raises_to| Round { stamped_at_ms: Some(5), raises_to, writes: writes() };
        let write = |command: &'static str| (None::<TraceContext>, Bytes::from(command));
        let second = encode(&(0_u64, 2_u8, 5_u64, [write("one"), write("two")].to_vec())).unwrap();
        assert_eq!(encode(&round(None)).unwrap(), second);
        assert_eq!(encode(&round(Some(FeatureLevel::CLOSED))).unwrap()[..4], [0, 3, 5, 3]);
    }

    #[test]
    fn a_round_that_raises_the_cluster_above_what_this_version_knows_is_refused() {
        let raising = |level| Round { stamped_at_ms: Some(5), raises_to: Some(level), writes: vec![] };
        let beyond = FeatureLevel(FeatureLevel::NEWEST.0 + 1);
        assert!(decode::<Round>(&encode(&raising(FeatureLevel::NEWEST)).unwrap()).is_ok());
        assert!(decode::<Round>(&encode(&raising(beyond)).unwrap()).is_err());
    }

    #[test]
    fn a_member_is_found_by_the_normal_form_of_its_url() {
        assert_eq!(url_of(&BasicNode::new("http://NODEA:8000/kv-store/v1")), "http://nodea:8000/kv-store/v1");
        assert_eq!(url_of(&BasicNode::new("http://localhost:8000/kv-store/v1")), "http://127.0.0.1:8000/kv-store/v1");
        assert_eq!(url_of(&BasicNode::new("http://localhost.lan:1/kv-store/v1")), "http://localhost.lan:1/kv-store/v1");
    }
}
