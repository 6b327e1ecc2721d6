//! What the tasks of replication know in common, and the cluster as this node sees it.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::watch;
use tokio::time::Instant;

use super::types::{Raft, TypeConfig};
use super::{Options, Transport};
use crate::telemetry::Telemetry;

type Metrics = openraft::RaftMetrics<TypeConfig>;

/// A peer that was silent for this long counts as down.
pub(super) const PEER_SILENCE_MAX: Duration = Duration::from_millis(1_500);

/// What the last exchange with a peer told.
#[derive(Debug, Clone, Default)]
pub(super) struct PeerState {
    pub(super) seen: Option<Instant>,
    pub(super) rtt: Option<Duration>,
    pub(super) last_log_index: Option<u64>,
    pub(super) initialized: bool,
    pub(super) prepared_revision: u64,
    /// How often in a row the peer was tried in vain.
    pub(super) failures: u32,
}

/// So many failures in a row make it certain enough that a peer is gone: a single one may have met it as it started.
const FAILURES_MIN: u32 = 2;

impl PeerState {
    fn is_healthy(&self) -> bool {
        self.seen.is_some_and(|seen| seen.elapsed() < PEER_SILENCE_MAX)
    }

    fn is_gone(&self) -> bool {
        self.failures >= FAILURES_MIN
    }
}

/// The state shared by the tasks of replication.
pub(super) struct Shared {
    pub(super) id: u64,
    pub(super) options: Options,
    /// The nodes this node was started with, itself included.
    pub(super) members: BTreeMap<u64, String>,
    pub(super) raft: Raft,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) telemetry: Telemetry,
    pub(super) applied: watch::Receiver<u64>,
    /// When this node last knew itself up to date.
    fresh: Mutex<Option<Instant>>,
    /// What is known of each peer.
    peers: Mutex<BTreeMap<u64, PeerState>>,
    stopped: watch::Sender<bool>,
    /// The store's revision up to which this node has prepared what it holds: plugins compiled, hooks in force.
    pub(super) prepared_revision: AtomicU64,
    /// Until when this node, just restarted, neither votes nor stands.
    pub(super) silent_until: Mutex<Option<Instant>>,
}

impl Shared {
    pub(super) fn new(
        id: u64,
        options: Options,
        members: BTreeMap<u64, String>,
        raft: Raft,
        transport: Arc<dyn Transport>,
        telemetry: Telemetry,
        applied: watch::Receiver<u64>,
    ) -> Self {
        let peers = members.keys().filter(|member| **member != id).map(|peer| (*peer, PeerState::default())).collect();
        Self {
            id,
            options,
            members,
            raft,
            transport,
            telemetry,
            applied,
            fresh: Mutex::new(None),
            peers: Mutex::new(peers),
            stopped: watch::Sender::new(false),
            prepared_revision: AtomicU64::new(0),
            silent_until: Mutex::new(None),
        }
    }

    /// The leader and its URL, if this node knows one.
    pub(super) fn leader(&self) -> Option<(u64, String)> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let leader = metrics.current_leader?;
        let url = metrics.membership_config.membership().get_node(&leader).map(|node| node.addr.clone());
        Some((leader, url.or_else(|| self.members.get(&leader).cloned())?))
    }

    /// The voters: of the cluster once it is formed, until then those it will be formed of.
    fn voters(&self, metrics: &Metrics) -> Vec<u64> {
        let voters: Vec<u64> = metrics.membership_config.voter_ids().collect();
        if voters.is_empty() { self.members.keys().copied().collect() } else { voters }
    }

    /// How many voters can be reached, this node included.
    pub(super) fn reachable(&self) -> usize {
        let metrics = self.raft.metrics().borrow_watched().clone();
        self.reachable_of(&self.voters(&metrics))
    }

    fn reachable_of(&self, voters: &[u64]) -> usize {
        let peers = lock(&self.peers);
        let healthy = |voter: &&u64| **voter == self.id || peers.get(voter).is_some_and(PeerState::is_healthy);
        voters.iter().filter(healthy).count()
    }

    /// Whether it is certain enough that no majority can be reached, so that waiting is in vain.
    pub(super) fn quorum_is_out_of_reach(&self) -> bool {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let voters = self.voters(&metrics);
        let peers = lock(&self.peers);
        let gone = voters.iter().filter(|voter| peers.get(voter).is_some_and(PeerState::is_gone)).count();
        voters.len() - gone <= voters.len() / 2
    }

    /// How many entries this node's log holds.
    pub(super) fn log_entries(&self) -> u64 {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        metrics.last_log_index.unwrap_or(0).saturating_sub(metrics.purged.map_or(0, |purged| purged.index()))
    }

    /// On the leader: how many nodes hold its last entry, itself included.
    pub(super) fn holders_of_last_entry(&self) -> usize {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let holds = |matched: &Option<super::LogId>| matched.map(|log_id| log_id.index()) >= metrics.last_log_index;
        let peers = metrics.replication.iter().flatten().filter(|(id, _)| **id != self.id);
        1 + peers.filter(|(_, matched)| holds(matched)).count()
    }

    /// Waits until this node has applied the log up to `index`; false if the deadline comes first.
    pub(super) async fn wait_applied(&self, index: u64, deadline: Instant) -> bool {
        let mut applied = self.applied.clone();
        let reached = applied.wait_for(|applied| *applied >= index);
        matches!(tokio::time::timeout_at(deadline, reached).await, Ok(Ok(_)))
    }

    /// Notes that this node has just been up to date.
    pub(super) fn note_fresh(&self) {
        *lock(&self.fresh) = Some(Instant::now());
    }

    /// How long ago this node last knew itself up to date; since its start, if it never did.
    pub(super) fn staleness(&self) -> Duration {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state == ServerState::Leader
            && let Some(acked) = metrics.last_quorum_acked
        {
            return acked.elapsed();
        }
        lock(&self.fresh).map_or_else(|| Duration::from_secs(u64::from(u32::MAX)), |fresh| fresh.elapsed())
    }

    /// Notes that a peer was heard, and what it told.
    pub(super) fn note_heard(&self, peer: u64, update: impl FnOnce(&mut PeerState)) {
        let mut peers = lock(&self.peers);
        let Some(state) = peers.get_mut(&peer) else { return };
        if state.is_gone() {
            tracing::info!(url = self.members.get(&peer), "a node can be reached again");
        }
        state.failures = 0;
        state.seen = Some(Instant::now());
        update(state);
    }

    /// Notes that a peer was tried in vain.
    pub(super) fn note_silent(&self, peer: u64, reason: &dyn std::fmt::Display) {
        let mut peers = lock(&self.peers);
        let Some(state) = peers.get_mut(&peer) else { return };
        state.failures = state.failures.saturating_add(1);
        state.seen = None;
        if state.failures == FAILURES_MIN {
            tracing::warn!(url = self.members.get(&peer), %reason, "a node cannot be reached");
        }
    }

    /// How many peers can be reached and belong to no cluster yet, and whether one that can be reached does.
    pub(super) fn survey(&self) -> (usize, bool) {
        let peers = lock(&self.peers);
        let reachable = || peers.values().filter(|peer| peer.is_healthy());
        (reachable().filter(|peer| !peer.initialized).count(), reachable().any(|peer| peer.initialized))
    }

    /// The peers that can be reached and have not yet prepared what the store held at a revision.
    pub(super) fn unprepared(&self, revision: u64) -> Vec<String> {
        let peers = lock(&self.peers);
        let lags = |id: &u64| peers.get(id).is_some_and(|peer| peer.is_healthy() && peer.prepared_revision < revision);
        self.members.iter().filter(|(id, _)| lags(id)).map(|(_, url)| url.clone()).collect()
    }

    /// Ends the tasks of replication.
    pub(super) fn stop(&self) {
        self.stopped.send_replace(true);
    }

    /// Resolves when the node stops.
    pub(super) fn stopped(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut stopped = self.stopped.subscribe();
        async move {
            // An error means that the node is gone altogether.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        }
    }

    /// The cluster as this node sees it.
    pub(super) fn status(&self) -> Status {
        let metrics = self.raft.metrics().borrow_watched().clone();
        let voters = self.voters(&metrics);
        let urls: BTreeMap<u64, String> = self
            .members
            .clone()
            .into_iter()
            .chain(metrics.membership_config.nodes().map(|(id, node)| (*id, node.addr.clone())))
            .collect();
        let newest = self.newest_log_index(&metrics);
        let peers = lock(&self.peers).clone();
        let nodes: Vec<PeerStatus> = urls
            .iter()
            .filter(|(id, _)| **id != self.id)
            .map(|(id, url)| {
                let peer = peers.get(id).cloned().unwrap_or_default();
                PeerStatus {
                    url: url.clone(),
                    healthy: peer.is_healthy(),
                    role: if voters.contains(id) { "voter" } else { "learner" },
                    lag_entries: peer.last_log_index.map(|index| newest.saturating_sub(index)),
                    rtt: peer.rtt.filter(|_| peer.is_healthy()),
                }
            })
            .collect();
        let required = voters.len() / 2 + 1;
        let leader = metrics.current_leader.and_then(|leader| urls.get(&leader).cloned());
        let lease = self.options.timing.election_max * 2;
        let leads = metrics.state == ServerState::Leader;
        let acked = !leads || metrics.last_quorum_acked.is_some_and(|acked| acked.elapsed() < lease);
        Status {
            replication_enabled: urls.len() > 1,
            self_url: self.options.self_url.clone(),
            role: role(&metrics),
            term: metrics.current_term,
            has_quorum: leader.is_some() && acked && self.reachable_of(&voters) >= required,
            ready: metrics.running_state.is_ok() && leader.is_some(),
            leader,
            total_nodes: urls.len(),
            healthy_nodes: 1 + nodes.iter().filter(|node| node.healthy).count(),
            required_for_quorum: required,
            nodes,
        }
    }

    /// The newest log index anyone is known to have.
    fn newest_log_index(&self, metrics: &Metrics) -> u64 {
        let peers = lock(&self.peers);
        let theirs = peers.values().filter_map(|peer| peer.last_log_index).max().unwrap_or(0);
        metrics.last_log_index.unwrap_or(0).max(theirs)
    }
}

fn role(metrics: &Metrics) -> &'static str {
    match metrics.state {
        ServerState::Leader => "leader",
        ServerState::Candidate => "candidate",
        ServerState::Follower => "follower",
        ServerState::Learner => "learner",
        ServerState::Shutdown => "stopped",
    }
}

/// Locks a mutex whose data is consistent between any two statements, so that a panic elsewhere does not matter.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The cluster as one node sees it.
#[derive(Debug, Clone)]
pub struct Status {
    /// Whether there are other nodes.
    pub replication_enabled: bool,
    /// This node's base URL.
    pub self_url: String,
    /// `leader`, `follower`, `candidate`, `learner` or `stopped`.
    pub role: &'static str,
    /// Raft's term.
    pub term: u64,
    /// The leader's base URL, if one is known.
    pub leader: Option<String>,
    /// Nodes of the cluster, this one included.
    pub total_nodes: usize,
    /// Nodes that answered lately, this one included.
    pub healthy_nodes: usize,
    /// Voters that make a majority.
    pub required_for_quorum: usize,
    /// Whether a leader and a majority can be reached.
    pub has_quorum: bool,
    /// Whether this node has found its cluster and can serve.
    pub ready: bool,
    /// The other nodes.
    pub nodes: Vec<PeerStatus>,
}

/// Another node, as this one sees it.
#[derive(Debug, Clone)]
pub struct PeerStatus {
    /// Its base URL.
    pub url: String,
    /// Whether it answered lately.
    pub healthy: bool,
    /// `voter` or `learner`.
    pub role: &'static str,
    /// Log entries it lacks, as far as is known.
    pub lag_entries: Option<u64>,
    /// Round trip of the last exchange, if it is healthy.
    pub rtt: Option<Duration>,
}
