//! The bodies of responses, by type. Entries, pages and batches are written by hand, see `kv::entry`.
//!
//! IMPORTANT: the order of the fields is the order on the wire; clients and golden scripts see it.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::hooks::Tally;
use crate::registry::{Change, HookInfo, HookStart, PluginInfo};
use crate::replication::WriteOutcome;
use crate::storage::DiskFull;

/// Any error, as a problem object (RFC 9457).
#[derive(Serialize)]
pub(super) struct Problem<'a> {
    pub(super) r#type: String,
    pub(super) title: &'static str,
    pub(super) status: u16,
    /// The explanation for people.
    pub(super) detail: &'a str,
    /// Whether the write happened, if the request was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) outcome: Option<WriteOutcome>,
    /// The members that this type of problem adds.
    #[serde(flatten)]
    pub(super) extra: &'a Map<String, Value>,
    pub(super) trace_id: &'a str,
}

/// `GET /health/`.
#[derive(Serialize)]
pub(super) struct Health<'a> {
    /// `healthy`, `degraded` or `no_quorum`.
    pub(super) status: &'static str,
    pub(super) cluster: ClusterHealth<'a>,
    /// Present while the node refuses writes for lack of disk space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) disk_full: Option<DiskFull>,
}

/// The cluster as this node sees it.
#[derive(Serialize)]
pub(super) struct ClusterHealth<'a> {
    pub(super) replication_enabled: bool,
    /// Nodes of the cluster, this one included.
    pub(super) total_nodes: usize,
    /// Nodes that answered lately, this one included.
    pub(super) healthy_nodes: usize,
    pub(super) required_for_quorum: usize,
    pub(super) has_quorum: bool,
    pub(super) can_accept_writes: bool,
    /// The leader's base URL, if one is known.
    pub(super) leader: Option<&'a str>,
    /// The other nodes.
    pub(super) nodes: Vec<NodeHealth<'a>>,
}

/// Another node as this node sees it.
#[derive(Serialize)]
pub(super) struct NodeHealth<'a> {
    pub(super) url: &'a str,
    pub(super) healthy: bool,
    /// `voter` or `learner`.
    pub(super) role: &'static str,
    /// Log entries it lacks, if known.
    pub(super) lag_entries: Option<u64>,
    /// Round trip of the last exchange in milliseconds, if it answers.
    pub(super) rtt_ms: Option<f64>,
}

/// `GET /cluster/members/`, and the answer to `POST`.
#[derive(Serialize)]
pub(super) struct Members<'a> {
    /// The cluster's id in hexadecimal, once the node has found its cluster.
    pub(super) cluster: Option<String>,
    /// The nodes by URL, this one included.
    pub(super) members: Vec<Member<'a>>,
}

/// A node of the cluster.
#[derive(Serialize)]
pub(super) struct Member<'a> {
    pub(super) url: &'a str,
    /// Its id in hexadecimal.
    pub(super) id: String,
    /// `voter` or `learner`.
    pub(super) role: &'static str,
    pub(super) leader: bool,
    pub(super) healthy: bool,
    /// Log entries it lacks, if known.
    pub(super) lag_entries: Option<u64>,
}

/// `GET /cluster/leader/`.
#[derive(Serialize)]
pub(super) struct Leader<'a> {
    /// The leader's base URL, if one is known.
    pub(super) url: Option<&'a str>,
    /// Raft's term.
    pub(super) term: u64,
}

/// The answer to `PUT /cluster/leader/`.
#[derive(Serialize)]
pub(super) struct NewLeader {
    pub(super) url: String,
}

/// `GET /plugins/`.
#[derive(Serialize)]
pub(super) struct Plugins {
    pub(super) plugins: Vec<PluginInfo>,
}

/// `GET /hooks/`.
#[derive(Serialize)]
pub(super) struct Hooks {
    pub(super) hooks: Vec<HookInfo>,
    /// The nodes that can be reached.
    pub(super) nodes: Vec<NodeReadiness>,
}

/// Whether the hooks are in force on a node.
#[derive(Serialize)]
pub(super) struct NodeReadiness {
    pub(super) url: String,
    pub(super) ready: bool,
}

/// `GET /registry/history/`.
#[derive(Serialize)]
pub(super) struct History {
    /// Newest first.
    pub(super) changes: Vec<Change>,
}

/// `GET /registry/stats/`.
#[derive(Serialize)]
pub(super) struct Stats<'a> {
    /// The base URL of the node that answers.
    pub(super) node: &'a str,
    /// Figures of the calls since the node started, by hook.
    pub(super) calls: Vec<Tally>,
    /// How the calls of each hook start.
    pub(super) hooks: Vec<HookStart>,
}
