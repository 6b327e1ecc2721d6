//! The types openraft works with, and how they are written to disk and to the wire.
//!
//! Everything is encoded with postcard, once: a [`Round`] carries commands that were encoded on the node that received
//! the write, and every later hop copies those bytes without looking into them.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::Error;
use crate::storage::{GuardedWrite, Outcome};
use crate::telemetry::TraceContext;

#[cfg(test)]
use super::sim::runtime::Runtime;
#[cfg(not(test))]
use openraft_rt_tokio::TokioRuntime as Runtime;

openraft::declare_raft_types!(
    /// openraft, specialised for brink.
    pub TypeConfig:
        D = Round,
        R = Vec<Outcome>,
        NodeId = u64,
        Node = openraft::BasicNode,
        AsyncRuntime = Runtime,
);

/// The consensus engine.
pub(super) type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;
/// A log position with the leader that wrote it.
pub(super) type LogId = openraft::alias::LogIdOf<TypeConfig>;
/// A log entry.
pub(super) type LogEntry = openraft::alias::EntryOf<TypeConfig>;
/// A vote, which is also the identity of a leader.
pub(super) type Vote = openraft::alias::VoteOf<TypeConfig>;
/// A membership with its log position.
pub(super) type StoredMembership = openraft::alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot covers.
pub(super) type SnapshotMeta = openraft::alias::SnapshotMetaOf<TypeConfig>;

/// The payload of one log entry: the guarded writes that shared a proposal round, in order.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// At least one, at most [`crate::limits::ROUND_WRITES_MAX`].
    pub writes: Vec<RoundWrite>,
}

/// One write of a [`Round`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundWrite {
    /// The span that proposed the write, if its trace is sampled, so that every node can add its part to the trace.
    pub trace: Option<TraceContext>,
    /// A [`GuardedWrite`], encoded by the node that received it.
    pub command: Bytes,
}

impl RoundWrite {
    /// Encodes a write.
    pub fn new(write: &GuardedWrite, trace: Option<TraceContext>) -> Result<Self, Error> {
        Ok(Self { trace, command: encode(write)? })
    }

    /// Decodes the write.
    pub fn decode(&self) -> Result<GuardedWrite, Error> {
        decode(&self.command)
    }
}

impl fmt::Debug for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Says how large the round is and never what is in it: values do not belong in logs.
impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: usize = self.writes.iter().map(|write| write.command.len()).sum();
        write!(f, "round of {} writes, {bytes} bytes", self.writes.len())
    }
}

/// Encodes a value for the log or the wire.
pub(super) fn encode<T: Serialize>(value: &T) -> Result<Bytes, Error> {
    Ok(postcard::to_stdvec(value).map_err(Error::Codec)?.into())
}

/// Decodes what [`encode`] wrote.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    postcard::from_bytes(bytes).map_err(Error::Codec)
}

/// The node id that belongs to a base URL: the first eight bytes of its SHA-256. Every node computes the same ids from
/// the same URLs, so that a cluster needs no init command.
pub fn node_id(url: &str) -> u64 {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(url.as_bytes());
    digest.iter().take(8).fold(0, |id, byte| (id << 8) | u64::from(*byte))
}
