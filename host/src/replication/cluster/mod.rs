//! The cluster: who this node is, who the other nodes are, and who leads.
//!
//! - `founders`: the nodes this one was started with.
//! - `identity`: this node's stages, from an empty disk to a member of a cluster.
//! - `formation`, `discovery`: how nodes form a cluster, and how a node finds the one it belongs to.
//! - `peer_table`, `hello`, `watch`: the state of the other nodes, and the calls that report it.
//! - `silence`: the promise of a voter that has restarted.
//! - `view`: the cluster as this node sees it; `status`: the same, for its users.
//! - `change`, `members`, `membership`, `leadership`: changes of the membership and of the leader.
//! - `prepared`: up to which revision the nodes have prepared the store's plugins and hooks.

pub(crate) mod change;
pub(crate) mod discovery;
pub(crate) mod formation;
pub(crate) mod founders;
pub(crate) mod hello;
pub(crate) mod identity;
pub(crate) mod leadership;
mod members;
pub(crate) mod membership;
pub(crate) mod peer_table;
pub(crate) mod prepared;
pub(crate) mod silence;
pub(crate) mod status;
pub(crate) mod view;
pub(crate) mod watch;
