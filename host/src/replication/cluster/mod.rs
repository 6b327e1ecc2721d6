//! The cluster: who this node is, who the other nodes are, and who leads.
//!
//! - `identity`: this node's stages, from an empty disk to a member of a cluster.
//! - `formation`, `discovery`: how nodes form a cluster, and how a node finds the one it belongs to.
//! - `membership`, `leadership`, `upgrade`, `change`: changes of the membership, of the leader and of the feature level.
//! - `standing`: whether this node still is the member that it was.
//! - `hello`, `peer_table`: the calls by which nodes report their state, and the state they reported.
//! - `time`: the cluster's time, from the clocks that hellos report.
//! - `view`: the cluster as this node sees it; `status`: the same, for its users.

pub(crate) mod change;
pub(crate) mod discovery;
pub(crate) mod formation;
pub(crate) mod hello;
pub(crate) mod identity;
pub(crate) mod leadership;
pub(crate) mod membership;
pub(crate) mod peer_table;
pub(crate) mod standing;
pub(crate) mod status;
pub(crate) mod time;
pub(crate) mod upgrade;
pub(crate) mod view;
