//! The status of the cluster as one node sees it, for clients and operators.

use std::time::Duration;

use openraft::{ServerState, async_runtime::Instant as _};

use super::{time, view::ClusterView};
use crate::replication::types::{ClusterId, Metrics};
use crate::replication::{lease::LEASE, raft::engine::matched};
use crate::storage::FeatureLevel;
use crate::telemetry::Telemetry;

/// The cluster as one node sees it.
#[derive(Debug, Clone)]
pub struct Status {
    /// Whether there are other nodes.
    pub replication_enabled: bool,
    /// The cluster that this node belongs to, once it has found it.
    pub cluster: Option<ClusterId>,
    /// This node's id.
    pub self_id: u64,
    /// This node's base URL.
    pub self_url: String,
    /// `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub state: &'static str,
    /// `voter` or `learner`.
    pub role: &'static str,
    /// Log entries that this node lacks, as far as known.
    pub self_lag_entries: u64,
    /// Whether the membership contains this node. It does not contain a node that waits to be let in or was removed.
    pub is_member: bool,
    /// Why this node takes no part in its cluster; none if it does.
    pub barred: Option<String>,
    /// The cluster's feature level.
    pub level: FeatureLevel,
    /// Raft's term.
    pub term: u64,
    /// The leader's base URL, if one is known.
    pub leader: Option<String>,
    /// Number of nodes in the cluster, this one included.
    pub total_nodes: usize,
    /// Number of nodes that answered lately, this one included.
    pub healthy_nodes: usize,
    /// Number of voters that make a majority.
    pub required_for_quorum: usize,
    /// Whether a leader and a majority can be reached.
    pub has_quorum: bool,
    /// Whether this node has found its cluster, has its place in it, and can serve requests.
    pub ready: bool,
    /// How far this node's clock is ahead of the middle of the other voters' clocks, in milliseconds, if any was heard.
    pub clock_offset_ms: Option<i64>,
    /// The other nodes.
    pub nodes: Vec<PeerStatus>,
}

/// Another node, as this one sees it.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    pub id: u64,
    pub url: String,
    /// Whether it answered lately.
    pub healthy: bool,
    /// `voter` or `learner`.
    pub role: &'static str,
    /// Log entries it lacks, as far as known.
    pub lag_entries: Option<u64>,
    /// Round trip of the last exchange, if it is healthy.
    pub rtt: Option<Duration>,
    /// Whether its disk is full, so that it takes no writes.
    pub disk_full: bool,
    /// The highest feature level that it supports, if it is healthy.
    pub supports: Option<FeatureLevel>,
    /// How far its clock is ahead of the middle of the other nodes' clocks, in milliseconds, if it was heard.
    pub clock_offset_ms: Option<i64>,
}

impl Status {
    /// The offset of this node's clock in milliseconds, if it is too far from the others'.
    pub fn far_clock_ms(&self) -> Option<i64> {
        self.clock_offset_ms.filter(|offset_ms| time::is_far(*offset_ms))
    }
}

impl PeerStatus {
    /// The same for its clock.
    pub fn far_clock_ms(&self) -> Option<i64> {
        self.clock_offset_ms.filter(|offset_ms| time::is_far(*offset_ms))
    }
}

impl ClusterView {
    /// The status of this node, which belongs to `cluster`, and of the others.
    pub(crate) fn status(&self, cluster: Option<ClusterId>) -> Status {
        let metrics = self.raft.metrics();
        let (nodes, voters) = (self.nodes(&metrics), self.voters(&metrics));
        let peers = self.peers.all();
        let (own_index, leads) = (metrics.last_log_index.unwrap_or(0), metrics.state == ServerState::Leader);
        // The newest index that any node is known to have.
        let theirs = peers.values().filter(|_| !leads).filter_map(|peer| peer.hello.last_log_index);
        let newest = theirs.fold(own_index, u64::max);
        // The leader knows best how far the others are.
        let matched = match self.leader() {
            Some((leader, url)) if leader != metrics.id => peers.get(&url).map(|leader| leader.hello.matched.clone()),
            _ => Some(matched(&metrics)),
        };
        let clocks = self.other_clocks(&voters);
        let clocks_but =
            |id: &u64| -> Vec<_> { clocks.iter().filter(|(other, _)| *other != id).map(|(_, clock)| *clock).collect() };
        let known = |id: &u64| matched.as_ref().and_then(|matched| matched.get(id).copied());
        let others: Vec<PeerStatus> = nodes
            .iter()
            .filter(|(id, _)| **id != metrics.id)
            .map(|(id, url)| {
                let peer = peers.get(url).cloned().unwrap_or_default();
                let healthy = peer.is_healthy_as(*id);
                PeerStatus {
                    id: *id,
                    url: url.clone(),
                    healthy,
                    disk_full: healthy && peer.hello.is_full,
                    supports: healthy.then(|| peer.hello.supports()),
                    role: role_of(voters.contains_key(id)),
                    lag_entries: known(id).or(peer.hello.last_log_index).map(|has| newest.saturating_sub(has)),
                    rtt: peer.rtt.filter(|_| peer.is_healthy()),
                    clock_offset_ms: self.time.offset_ms(self.peers.clock_of(*id, url), &clocks_but(id)),
                }
            })
            .collect();
        let required = voters.len() / 2 + 1;
        let leader = self.known_leader(&metrics).and_then(|leader| nodes.get(&leader).cloned());
        // A leader without other voters needs nobody's acknowledgement.
        let acked =
            !leads || required == 1 || metrics.last_quorum_acked.is_some_and(|acked| acked.elapsed() < LEASE * 2);
        Status {
            replication_enabled: nodes.len() > 1,
            cluster,
            self_id: metrics.id,
            self_lag_entries: newest.saturating_sub(own_index),
            self_url: self.founders.own_url.clone(),
            state: state(&metrics),
            role: role_of(voters.contains_key(&metrics.id)),
            is_member: nodes.contains_key(&metrics.id),
            barred: self.standing.lock().reason(),
            level: self.raft.applied().level(),
            term: metrics.current_term,
            has_quorum: leader.is_some() && acked && self.reachable_of(&voters) >= required,
            ready: metrics.running_state.is_ok() && leader.is_some() && self.has_its_place(&metrics),
            leader,
            total_nodes: 1 + others.len(),
            healthy_nodes: 1 + others.iter().filter(|node| node.healthy).count(),
            required_for_quorum: required,
            clock_offset_ms: self.time.own_offset_ms(&clocks_but(&metrics.id)),
            nodes: others,
        }
    }

    /// Shows the cluster's state in the metrics.
    pub(super) fn publish(&self, cluster: Option<ClusterId>, telemetry: &Telemetry) {
        let status = self.status(cluster);
        let metrics = telemetry.metrics();
        metrics.set_log_entries(self.raft.log_entries());
        metrics.set_cluster(status.term, self.leader().map(|(leader, _)| leader), status.has_quorum);
        if let Some(offset_ms) = status.clock_offset_ms {
            metrics.set_clock_offset(offset_ms);
            self.time.report(offset_ms);
        }
        for node in &status.nodes {
            if let Some(lag) = node.lag_entries {
                metrics.set_replication_lag(&node.url, lag);
            }
        }
    }
}

fn role_of(is_voter: bool) -> &'static str {
    if is_voter { "voter" } else { "learner" }
}

fn state(metrics: &Metrics) -> &'static str {
    match metrics.state {
        ServerState::Leader => "leader",
        ServerState::Candidate => "candidate",
        ServerState::Follower => "follower",
        ServerState::Learner => "learner",
        ServerState::Shutdown => "stopped",
    }
}
