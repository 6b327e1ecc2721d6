//! The bodies of responses, by type. Entries, pages and batches are written by hand, see `kv::entry`.
//!
//! IMPORTANT: the order of the fields is the order on the wire; clients and golden scripts see it.

use serde::{Deserialize, Serialize};

use crate::hooks::Tally;
use crate::registry::{HookInfo, HookStart, NodeReadiness};
use crate::storage::{DiskFull, FeatureLevel};

/// `GET /health/`.
#[derive(Serialize)]
pub(super) struct Health<'a> {
    /// `healthy`, `degraded`, `no_quorum`, `not_taking_part` or `starting`.
    pub(super) status: &'static str,
    /// Why this node takes no part in its cluster, or not yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<&'a str>,
    pub(super) cluster: ClusterHealth<'a>,
    /// Present while the node refuses writes for lack of disk space.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) disk_full: Option<DiskFull>,
    /// Present while the node's clock is far from the others'.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clock: Option<ClockHealth>,
}

/// A clock that is far from those of the other nodes.
#[derive(Serialize)]
pub(super) struct ClockHealth {
    /// Milliseconds that it is ahead of the middle of the others.
    pub(super) offset_ms: i64,
    /// The distance beyond which it is far.
    pub(super) bound_ms: u64,
}

/// The cluster as this node sees it. The counts include this node, `nodes` does not.
#[derive(Serialize)]
pub(super) struct ClusterHealth<'a> {
    pub(super) replication_enabled: bool,
    pub(super) total_nodes: usize,
    pub(super) healthy_nodes: usize,
    pub(super) required_for_quorum: usize,
    pub(super) has_quorum: bool,
    pub(super) can_accept_writes: bool,
    pub(super) leader: Option<&'a str>,
    pub(super) nodes: Vec<NodeHealth<'a>>,
}

#[derive(Serialize)]
pub(super) struct NodeHealth<'a> {
    pub(super) url: &'a str,
    pub(super) healthy: bool,
    pub(super) role: &'static str,
    /// Log entries it lacks, if known.
    pub(super) lag_entries: Option<u64>,
    /// Round trip of the last exchange in milliseconds, if it answers.
    pub(super) rtt_ms: Option<f64>,
    /// Present if its disk is full, so that it takes no writes.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(super) disk_full: bool,
    /// Milliseconds that its clock is ahead of the middle of the other nodes' clocks, if it is far from them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) clock_offset_ms: Option<i64>,
}

/// `GET /cluster/members/`, and the answer to `POST`.
#[derive(Serialize)]
pub(super) struct Members<'a> {
    /// The cluster's id in hexadecimal, once the node has found its cluster.
    pub(super) cluster: Option<String>,
    pub(super) feature_level: FeatureLevel,
    /// The nodes by URL, this one included.
    pub(super) members: Vec<Member<'a>>,
}

#[derive(Serialize)]
pub(super) struct Member<'a> {
    pub(super) url: &'a str,
    /// In hexadecimal.
    pub(super) id: String,
    pub(super) role: &'static str,
    pub(super) leader: bool,
    pub(super) healthy: bool,
    pub(super) lag_entries: Option<u64>,
    /// The highest feature level that it supports, if it answers.
    pub(super) supports_level: Option<FeatureLevel>,
}

/// `GET` and `PUT /cluster/feature-level/`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Level {
    pub(super) feature_level: FeatureLevel,
}

/// `GET /cluster/leader/`.
#[derive(Serialize)]
pub(super) struct Leader {
    pub(super) url: Option<String>,
    pub(super) term: u64,
}

/// `PUT /cluster/leader/`: its body, and its answer.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NewLeader {
    pub(super) url: String,
}

/// `GET /hooks/`.
#[derive(Serialize)]
pub(super) struct Hooks {
    pub(super) hooks: Vec<HookInfo>,
    pub(super) nodes: Vec<NodeReadiness>,
}

/// `GET /registry/stats/`: figures of the calls since the node started, and how the calls of each hook start.
#[derive(Serialize)]
pub(super) struct Stats<'a> {
    pub(super) node: &'a str,
    pub(super) calls: Vec<Tally>,
    pub(super) hooks: Vec<HookStart>,
}
