//! The calls between nodes, and the trait that carries them.
//!
//! Everything a node sends to another passes through [`Transport`], so that replication can run on a simulated network.

use std::time::Duration;

use bytes::Bytes;
use futures::{future::BoxFuture, stream::BoxStream};

use crate::replication::types::ClusterId;

/// A request that one node makes of another. Its number on a connection is its position in this list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::FromRepr, strum::IntoStaticStr)]
#[repr(u8)]
#[strum(serialize_all = "kebab-case")]
pub enum Call {
    /// Raft's AppendEntries, heartbeats included.
    Append,
    /// Raft's RequestVote.
    Vote,
    /// A vote request that binds nobody: would you elect me?
    PreVote,
    /// The leader asks this node to take over.
    TransferLeader,
    /// A snapshot, or the rest of one, streamed.
    Snapshot,
    /// How many bytes of a snapshot have arrived?
    SnapshotOffset,
    /// A round of writes for the leader.
    Propose,
    /// Which log index must a linearizable read see?
    ReadIndex,
    /// Who are you, and how are you?
    Hello,
    /// A step of forming a cluster.
    Form,
    /// A step of a membership change.
    Members,
    /// A node whose state is lost asks for a snapshot, which is streamed. Never made on a connection for calls: earlier
    /// versions would not know its number.
    FetchSnapshot,
}

impl Call {
    /// Whether the call is one of Raft's own. These are frequent, and small or urgent: if a peer does not answer one in
    /// time, it is better to call again on a new connection.
    pub(crate) const fn is_raft_call(self) -> bool {
        matches!(self, Self::Append | Self::Vote | Self::PreVote | Self::TransferLeader)
    }
}

/// Why a call failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{url} {failure}: {reason}")]
pub struct CallError {
    pub(crate) failure: Failure,
    /// The peer.
    pub(crate) url: String,
    /// The network's error, or the peer's reason to refuse.
    pub(crate) reason: String,
}

/// What a failed call has done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, strum::Display)]
pub(crate) enum Failure {
    /// No connection could be made: the peer has not seen the call.
    #[strum(to_string = "cannot be reached")]
    NotSent,
    /// The peer runs, and answers no calls yet: it has not seen the call.
    #[strum(to_string = "is starting")]
    Starting,
    /// The call was sent, and no complete answer arrived: the peer may have acted on it.
    #[strum(to_string = "did not answer")]
    NoAnswer,
    /// The peer refused: it has not acted on the call.
    #[strum(to_string = "refused")]
    Refused,
}

impl CallError {
    pub(crate) fn new(failure: Failure, url: impl Into<String>, reason: impl ToString) -> Self {
        Self { failure, url: url.into(), reason: reason.to_string() }
    }
}

/// The receiver and the origin of a call.
#[derive(Debug, Clone, Copy)]
pub struct Envelope {
    /// The id of the node that the call is meant for.
    pub to: u64,
    /// The caller's cluster, if it belongs to one.
    pub cluster: Option<ClusterId>,
}

/// Carries calls between nodes.
///
/// An implementation never repeats a call that the peer may have seen, since a write without a name must not be applied
/// twice. However long a call's timeout is, it notices within `VANISHED_AFTER` that the peer has vanished.
pub trait Transport: Send + Sync + 'static {
    /// Sets the cluster that all later calls name as their origin. Called once, when the node joins its cluster.
    fn set_cluster(&self, cluster: ClusterId);

    /// Sends a call to the node with the id `to` at the base URL `url`, and waits for the answer for at most `timeout`.
    ///
    /// The call is on its way when this returns, before the future is polled. Calls of one kind are sent in the order in
    /// which they were made, and normally arrive in that order.
    fn call(&self, to: u64, url: &str, call: Call, body: Bytes, timeout: Duration) -> Answer<'_>;

    /// Makes the call [`Call::Snapshot`], with a body that is produced while it is sent. There is no timeout: the caller
    /// watches the progress.
    fn send_snapshot(&self, to: u64, url: &str, body: SnapshotBody) -> Answer<'_>;

    /// Asks the node at a base URL for a snapshot that covers the log up to `index_min` at least. The stream ends with an
    /// error if it breaks. There is no timeout: the caller watches the progress.
    fn fetch_snapshot(&self, url: &str, index_min: u64) -> Fetched<'_>;
}

/// Waits for the beginning of a snapshot.
pub type Fetched<'a> = BoxFuture<'a, Result<SnapshotBody, CallError>>;

/// Waits for the answer to a call.
pub type Answer<'a> = BoxFuture<'a, Result<Bytes, CallError>>;

/// The body of a snapshot on its way.
pub type SnapshotBody = BoxStream<'static, std::io::Result<Bytes>>;

/// The receiver of calls to nodes whose id is unknown: whichever node is at the URL.
pub(crate) const ANYONE: u64 = 0;

/// Time until the connection to a vanished peer breaks, whatever the call's timeout. A snapshot may take hours; if its
/// receiver lost power, replication to it must not wait that long.
pub(crate) const VANISHED_AFTER: Duration = Duration::from_secs(3);

/// Where a node asks another for a challenge, below the base URL.
pub const CHALLENGE_PATH: &str = "/peer/challenge";

/// Header: what a node has drawn at random, so that the other's proof is new.
pub const NONCE_HEADER: &str = "brink-peer-nonce";

/// Header: the base URL of the node that asks for a challenge.
pub const URL_HEADER: &str = "brink-peer-url";

/// Header: the proof that a node has the cluster's secret.
pub const PROOF_HEADER: &str = "brink-peer-proof";

/// Header: the id of the node that a snapshot is meant for. A node that took over an address must not accept a snapshot for
/// its predecessor.
pub const TO_HEADER: &str = "brink-peer-to";

/// Header: the caller's cluster, as sixteen hexadecimal digits. Absent while the caller looks for a cluster or forms one.
pub const CLUSTER_HEADER: &str = "brink-cluster";

/// Header: the log index that a snapshot must cover at least.
pub const INDEX_MIN_HEADER: &str = "brink-index-min";

/// Header: marks a refusal by a node itself. An error without it may come from something in between, and the node may
/// have acted on the call.
pub const REFUSAL_HEADER: &str = "brink-peer-refusal";

/// Header: the newest version of frames that the caller knows; in the answer, the version that both ends speak from then on. The first
/// version has no header.
pub const VERSION_HEADER: &str = "brink-peer-version";

/// The newest version of frames that this version of brink knows.
pub const VERSION: u32 = 1;

/// The version of frames to speak with a caller that knows `theirs`; none if there is none.
pub fn common_version(theirs: Option<&str>) -> Option<u32> {
    let theirs = theirs.map_or(Some(1), |theirs| theirs.parse().ok());
    theirs.filter(|theirs| *theirs > 0).map(|theirs| VERSION.min(theirs))
}

/// The protocol name in the `Upgrade` header that turns an HTTP request into a connection for calls.
pub const PROTOCOL: &str = "brink-line";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_versions_speak_the_older_one() {
        assert_eq!(common_version(None), Some(1), "the first version has no header");
        assert_eq!(common_version(Some("7")), Some(VERSION));
        assert_eq!(common_version(Some("0")), None);
        assert_eq!(common_version(Some("seven")), None);
    }
}
