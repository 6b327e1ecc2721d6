//! Who this node is: its stages, from an empty disk to a member of a cluster.
//!
//! # Problem
//!
//! There is no init command: every node is started with the URLs of the others. And a node that lost its disk must never
//! vote under its former id, since it has forgotten its promises and its data (P8).
//!
//! # Approach
//!
//! An id belongs to a disk, not to a URL. It is stored in the log's database before the node takes part in anything. A
//! cluster has an id too, a random number. It is stored beside the node's, and every call between nodes names it.
//!
//! A node goes through these stages ([`Stage`]), each of which has only the fields known in it:
//!
//! - *Unidentified*: a node with an empty disk. Together with others that see no cluster it forms one (see `formation`)
//!   and becomes a member under the id derived from its URL. If it sees a cluster, it becomes a member if it has accepted
//!   that cluster's id during its formation, and takes a random id otherwise. A node that set its damaged data aside has
//!   an empty disk too, but never forms a cluster, for it has one.
//! - *Waiting*: a node with an id of its own that asks to be let in. If the cluster has a node with its URL, the leader
//!   replaces that one once the new node has caught up; otherwise an operator adds it.
//! - *Member*: a node that belongs to a cluster, forever: the first cluster whose leader sent it the log, or the one it
//!   helped to form. A node that is started alone founds a cluster under random ids, which no other node needs to know.
//!
//! # Guarantees
//!
//! - An unidentified node neither votes nor takes log entries, so an empty disk never counts as a copy.
//! - A node becomes a founder only of a cluster whose id it has accepted, on this disk. So as long as it meets a node of
//!   its cluster, a node that lost its disk never takes its former id again, even if other nodes that lost theirs form a
//!   new cluster under the same URLs and node ids at that moment.
//! - A call from another cluster is refused before anything else is checked.
//!
//! # Failure model
//!
//! If a majority loses its disks, the rest does not form a cluster by itself. A node with an empty disk cannot tell a
//! cluster that was never formed from a cluster of which no node can be reached: if a majority of the nodes have empty
//! disks while the nodes with data are away, they form a new cluster. When the nodes with data return, they keep apart
//! from it and report it. Worse, if one of the majority accepted the old cluster's id and stopped before it heard that the
//! id was chosen, the majority founds that cluster again, and nodes that return follow its decisions.

use std::{collections::BTreeSet, sync::Arc};

use parking_lot::{Mutex, RwLock};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::oneshot;

use crate::replication::error::{Error, WriteOutcome};
use crate::replication::types::{ClusterId, decode_stored, encode};
use crate::replication::{peer::protocol::Transport, raft::engine::RaftHandle};
use crate::storage::{FeatureLevel, Log};

const IDENTITY: &str = "identity";

/// Name of the feature level that a founder supported when it formed its cluster.
pub(super) const FOUNDED_AT: &str = "founded-at-level";

/// Maximum number of foreign clusters to warn about.
const FOREIGN_CLUSTERS_MAX: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It has no id of its own yet, and its engine takes no part.
    Unidentified,
    /// It has an id of its own and waits to be let into a cluster.
    Waiting {
        id: u64,
    },
    Member {
        id: u64,
        cluster: ClusterId,
    },
}

impl Stage {
    /// The node's own id, once it has one.
    pub(crate) fn id(self) -> Option<u64> {
        match self {
            Self::Unidentified => None,
            Self::Waiting { id } | Self::Member { id, .. } => Some(id),
        }
    }

    /// The node's cluster, once it belongs to one.
    pub(crate) fn cluster(self) -> Option<ClusterId> {
        match self {
            Self::Unidentified | Self::Waiting { .. } => None,
            Self::Member { cluster, .. } => Some(cluster),
        }
    }

    /// The stage that the disk shows.
    pub(crate) fn stored(log: &Log) -> Result<Self, Error> {
        Ok(match stored::<Stored>(log, IDENTITY)? {
            None => Self::Unidentified,
            Some((id, None)) => Self::Waiting { id },
            Some((id, Some(cluster))) => Self::Member { id, cluster },
        })
    }

    /// Founds a cluster of one node. Its id is random and not derived from its URL: if the cluster grows, and the node
    /// then loses its disk and is started alone again, it must not be taken for the node it was.
    pub(crate) async fn found_alone(log: &Log) -> Result<Self, Error> {
        let (id, cluster) = (new_node_id(), ClusterId::random());
        store(log, FOUNDED_AT, &FeatureLevel::NEWEST).await?;
        store(log, IDENTITY, &(id, Some(cluster))).await?;
        Ok(Self::Member { id, cluster })
    }
}

/// The identity on disk: the id, and the cluster of a member.
type Stored = (u64, Option<ClusterId>);

/// Stores a value in the log's database; returns once it is durable.
pub(super) async fn store<T: Serialize>(log: &Log, key: &'static str, value: &T) -> Result<(), Error> {
    let (done, stored) = oneshot::channel();
    log.save_named(key, Some(encode(value)?), Box::new(|result| drop(done.send(result))));
    Ok(stored.await.map_err(|_| Error::Stopped { outcome: WriteOutcome::NotWritten })??)
}

/// A value that [`store`] has stored, if there is one.
pub(super) fn stored<T: DeserializeOwned>(log: &Log, key: &'static str) -> Result<Option<T>, Error> {
    decode_stored(Ok(log.named(key)))
}

/// A random node id, which no node has ever had.
fn new_node_id() -> u64 {
    fastrand::u64(1..)
}

pub(crate) struct Identity {
    /// Its database also holds the values that change under the same right as the stage.
    pub(super) log: Log,
    transport: Arc<dyn Transport>,
    stage: RwLock<Stage>,
    /// Held while the node goes from one stage to the next.
    deciding: tokio::sync::Mutex<()>,
    /// Other clusters that have called this node.
    foreign: Mutex<BTreeSet<ClusterId>>,
}

impl Identity {
    /// The identity of a node in a stage that its disk shows.
    pub(crate) fn new(log: Log, transport: Arc<dyn Transport>, stage: Stage) -> Self {
        if let Some(cluster) = stage.cluster() {
            transport.set_cluster(cluster);
        }
        let deciding = tokio::sync::Mutex::new(());
        Self { log, transport, stage: RwLock::new(stage), deciding, foreign: Mutex::default() }
    }

    pub(crate) fn stage(&self) -> Stage {
        *self.stage.read()
    }

    /// Whether the node has an id of its own, so that it may take part under it.
    pub(crate) fn is_identified(&self) -> bool {
        self.stage() != Stage::Unidentified
    }

    /// Waits for the exclusive right to change the stage.
    pub(crate) async fn decide(&self) -> Decision<'_> {
        Decision { identity: self, _deciding: self.deciding.lock().await }
    }

    /// Lets the node into a cluster whose leader has sent it the log.
    pub(crate) async fn join(&self, cluster: ClusterId) -> Result<(), Error> {
        let decision = self.decide().await;
        match self.stage() {
            Stage::Member { cluster: own, .. } if own == cluster => Ok(()),
            Stage::Member { cluster: own, .. } => Err(foreign_call(own, cluster)),
            Stage::Unidentified => Err(unidentified()),
            // Its entries are of no cluster, or of another one than the leader's.
            Stage::Waiting { .. } if self.log.first_last().is_some() || self.log.purged_marker().is_some() => {
                Err(Error::Refused("this node has a log of its own; it can join with an empty --data-dir".to_owned()))
            }
            Stage::Waiting { id } => {
                decision.become_member(id, cluster).await?;
                tracing::info!(%cluster, "this node was let into a cluster");
                Ok(())
            }
        }
    }

    /// Refuses a call from a foreign cluster; warns about it the first time.
    pub(crate) fn refuse_foreign(&self, own: ClusterId, foreign: ClusterId) -> Error {
        let mut known = self.foreign.lock();
        if known.len() < FOREIGN_CLUSTERS_MAX && known.insert(foreign) {
            tracing::warn!(cluster = %own, %foreign, "a node of another cluster calls this one, and is refused");
        }
        foreign_call(own, foreign)
    }
}

fn foreign_call(own: ClusterId, foreign: ClusterId) -> Error {
    Error::Refused(format!("this node belongs to cluster {own}, and the call comes from cluster {foreign}"))
}

/// The refusal of a call that only an identified node serves.
pub(crate) fn unidentified() -> Error {
    Error::Refused("this node does not know yet who it is".to_owned())
}

/// The exclusive right to change the stage.
pub(crate) struct Decision<'a> {
    pub(super) identity: &'a Identity,
    _deciding: tokio::sync::MutexGuard<'a, ()>,
}

impl Decision<'_> {
    pub(super) async fn become_member(&self, id: u64, cluster: ClusterId) -> Result<(), Error> {
        store(&self.identity.log, IDENTITY, &(id, Some(cluster))).await?;
        self.identity.transport.set_cluster(cluster);
        *self.identity.stage.write() = Stage::Member { id, cluster };
        Ok(())
    }

    /// Gives the node an id that no node has had before, and its engine with it.
    pub(super) async fn take_new_id(&self, raft: &RaftHandle) -> Result<(), Error> {
        let id = new_node_id();
        store::<Stored>(&self.identity.log, IDENTITY, &(id, None)).await?;
        let stopped = |_| Error::Stopped { outcome: WriteOutcome::NotWritten };
        raft.restart_under(id).await.map_err(stopped)?;
        *self.identity.stage.write() = Stage::Waiting { id };
        let id = format!("{id:016x}");
        tracing::info!(id, "this node has no data and sees a cluster: it joins as a new member");
        Ok(())
    }
}
