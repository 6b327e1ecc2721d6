//! What the tasks of replication know in common, and the cluster as this node sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::Instant as _;
use openraft::async_runtime::watch::WatchReceiver;
use tokio::sync::watch;
use tokio::time::Instant;

use super::engine::{Engine, EngineParts};
use super::identity::ClusterId;
use super::membership::Progress;
use super::reads::Lease;
use super::types::{Raft, TypeConfig, Vote};
use super::{Options, Transport};
use crate::telemetry::Telemetry;

pub(super) type Metrics = openraft::RaftMetrics<TypeConfig>;

/// Other clusters of which it is said that they have called; so many are a mistake that was said often enough.
const STRANGERS_MAX: usize = 16;

/// A peer that was silent for this long counts as down.
pub(super) const PEER_SILENCE_MAX: Duration = Duration::from_millis(1_500);

/// What the last exchange with a peer told.
#[derive(Debug, Clone, Default)]
pub(super) struct PeerState {
    /// The node that was last heard under the peer's URL.
    pub(super) id: Option<u64>,
    pub(super) seen: Option<Instant>,
    pub(super) rtt: Option<Duration>,
    pub(super) last_log_index: Option<u64>,
    /// If it leads: how far the logs of the others are known to match its own.
    pub(super) matched: BTreeMap<u64, u64>,
    pub(super) initialized: bool,
    /// The cluster that it belongs to.
    pub(super) cluster: Option<ClusterId>,
    /// Whether it has just restarted, and neither votes nor stands yet.
    pub(super) silent: bool,
    pub(super) prepared_revision: u64,
    /// Whether its disk is full.
    pub(super) is_full: bool,
    /// How often in a row the peer was tried in vain.
    pub(super) failures: u32,
}

/// So many failures in a row make it certain enough that a peer is gone: a single one may have met it as it started.
const FAILURES_MIN: u32 = 2;

impl PeerState {
    pub(super) fn is_healthy(&self) -> bool {
        self.seen.is_some_and(|seen| seen.elapsed() < PEER_SILENCE_MAX)
    }

    /// A node that lost its disk comes back under its URL, but it is not the one that it was.
    pub(super) fn is_healthy_as(&self, id: u64) -> bool {
        self.is_healthy() && self.id == Some(id)
    }

    fn is_gone(&self) -> bool {
        self.failures >= FAILURES_MIN
    }
}

/// The peers that can be reached, by what they belong to.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) without_cluster: Vec<String>,
    /// Those whose disk says that they belong to one, whether or not they have heard anything of it yet.
    pub(super) in_cluster: Vec<String>,
    /// Those of `in_cluster` that belong to this node's.
    pub(super) fellows: Vec<String>,
    /// Whether one of them knows a membership.
    pub(super) is_initialized: bool,
}

/// The state shared by the tasks of replication.
pub(super) struct Shared {
    pub(super) options: Options,
    /// The nodes this node was started with, itself included, by the ids they have if they form the cluster together.
    pub(super) founders: BTreeMap<u64, String>,
    /// The engine, under this node's id. Replaced if the node takes another id.
    engine: RwLock<Engine>,
    pub(super) engine_parts: EngineParts,
    /// Held while the node decides who it is, so that it does so once.
    pub(super) deciding: tokio::sync::Mutex<()>,
    pub(super) transport: Arc<dyn Transport>,
    pub(super) telemetry: Telemetry,
    pub(super) applied: watch::Receiver<u64>,
    /// When this node last knew itself up to date.
    fresh: Mutex<Option<Instant>>,
    /// What is known of each peer, by its URL.
    peers: Mutex<BTreeMap<String, PeerState>>,
    stopped: watch::Sender<bool>,
    /// What was last heard about this node's wish to be let in.
    joining: Mutex<Option<Progress>>,
    /// The store's revision up to which this node has prepared what it holds: plugins compiled, hooks in force.
    pub(super) prepared_revision: AtomicU64,
    /// Until when this node, just restarted, neither votes nor stands.
    pub(super) silent_until: Mutex<Option<Instant>>,
    /// The cluster that this node belongs to; 0 if none.
    cluster: AtomicU64,
    /// Other clusters that have called this node.
    strangers: Mutex<BTreeSet<ClusterId>>,
    /// The leader that was last heard since this node runs, with its term.
    heard: Mutex<Option<(u64, u64)>>,
    /// When this node may vouch for a read by its lease.
    pub(super) lease: Lease,
    /// Held while the membership changes, so that one change is under way at a time.
    pub(super) changing: tokio::sync::Mutex<()>,
}

impl Shared {
    pub(super) fn new(
        options: Options,
        founders: BTreeMap<u64, String>,
        engine: Engine,
        engine_parts: EngineParts,
        transport: Arc<dyn Transport>,
        telemetry: Telemetry,
        applied: watch::Receiver<u64>,
    ) -> Self {
        Self {
            lease: Lease::new(options.timing.election_max),
            options,
            founders,
            engine: RwLock::new(engine),
            engine_parts,
            deciding: tokio::sync::Mutex::new(()),
            transport,
            telemetry,
            applied,
            fresh: Mutex::new(None),
            peers: Mutex::new(BTreeMap::new()),
            stopped: watch::Sender::new(false),
            joining: Mutex::new(None),
            prepared_revision: AtomicU64::new(0),
            silent_until: Mutex::new(None),
            cluster: AtomicU64::new(0),
            strangers: Mutex::new(BTreeSet::new()),
            heard: Mutex::new(None),
            changing: tokio::sync::Mutex::new(()),
        }
    }

    /// The engine.
    pub(super) fn raft(&self) -> Raft {
        self.read_engine().raft.clone()
    }

    /// This node's id.
    pub(super) fn id(&self) -> u64 {
        self.read_engine().id
    }

    /// Whether the id is this node's for good, so that it may take part under it.
    pub(super) fn is_decided(&self) -> bool {
        self.read_engine().decided
    }

    fn read_engine(&self) -> std::sync::RwLockReadGuard<'_, Engine> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The id of this node is on disk.
    pub(super) fn decide(&self) {
        self.engine.write().unwrap_or_else(PoisonError::into_inner).decided = true;
    }

    pub(super) fn set_engine(&self, engine: Engine) {
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = engine;
    }

    pub(super) fn metrics(&self) -> Metrics {
        self.raft().metrics().borrow_watched().clone()
    }

    /// The cluster that this node belongs to.
    pub(super) fn cluster(&self) -> Option<ClusterId> {
        ClusterId::new(self.cluster.load(Ordering::Acquire))
    }

    /// This node belongs to a cluster: its disk says so.
    pub(super) fn set_cluster(&self, cluster: ClusterId) {
        self.cluster.store(cluster.get(), Ordering::Release);
        self.transport.set_cluster(cluster);
    }

    /// Notes that another cluster has called this node, and says so if it is news.
    pub(super) fn note_stranger(&self, own: ClusterId, stranger: ClusterId) {
        let mut strangers = lock(&self.strangers);
        if strangers.len() < STRANGERS_MAX && strangers.insert(stranger) {
            tracing::warn!(cluster = %own, %stranger, "a node of another cluster calls this one, and is refused");
        }
    }

    /// The leader and its URL, if this node knows one.
    pub(super) fn leader(&self) -> Option<(u64, String)> {
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        let leader = self.known_leader(&metrics)?;
        let node = metrics.membership_config.membership().get_node(&leader)?;
        Some((leader, node.addr.clone()))
    }

    /// The leader, if this node is it or has heard it since it runs. That a node voted for one before it was restarted
    /// says nothing of now.
    pub(super) fn known_leader(&self, metrics: &Metrics) -> Option<u64> {
        let leader = metrics.current_leader?;
        let is_known = match leader == metrics.id {
            true => metrics.state == ServerState::Leader,
            false => *lock(&self.heard) == Some((metrics.current_term, leader)),
        };
        is_known.then_some(leader)
    }

    /// Notes that a leader was heard, and obeyed.
    pub(super) fn note_leader(&self, vote: &Vote) {
        *lock(&self.heard) = Some((vote.leader_id.term, vote.leader_id.node_id));
    }

    /// Whether this node, just restarted, neither votes nor stands yet.
    pub(super) fn is_silent(&self) -> bool {
        lock(&self.silent_until).is_some_and(|until| Instant::now() < until)
    }

    /// The nodes of the cluster by their ids once it is formed; until then, those it will be formed of.
    pub(super) fn nodes(&self, metrics: &Metrics) -> BTreeMap<u64, String> {
        let nodes: BTreeMap<u64, String> =
            metrics.membership_config.nodes().map(|(id, node)| (*id, node.addr.clone())).collect();
        if nodes.is_empty() { self.founders.clone() } else { nodes }
    }

    /// The voters, like [`Shared::nodes`].
    pub(super) fn voters(&self, metrics: &Metrics) -> BTreeMap<u64, String> {
        let voters: BTreeSet<u64> = metrics.membership_config.voter_ids().collect();
        self.nodes(metrics).into_iter().filter(|(id, _)| voters.is_empty() || voters.contains(id)).collect()
    }

    /// Whether this node belongs to a cluster: it knows of a membership, though not necessarily its own.
    pub(super) fn is_initialized(&self) -> bool {
        let metrics = self.raft().metrics();
        metrics.borrow_watched().membership_config.voter_ids().next().is_some()
    }

    /// Whether this node has its place in the cluster. One that comes in the place of another has it once it has caught
    /// up.
    pub(super) fn has_its_place(&self) -> bool {
        has_its_place(&self.metrics(), &self.options.self_url)
    }

    /// The URLs of the nodes this one should know how they are.
    pub(super) fn peer_urls(&self) -> BTreeSet<String> {
        let mut urls: BTreeSet<String> = self.nodes(&self.metrics()).into_values().collect();
        // One that waits to be let in goes by those it was told of.
        if !urls.contains(&self.options.self_url) {
            urls.extend(self.options.peer_urls.iter().cloned());
        }
        urls.remove(&self.options.self_url);
        urls
    }

    /// How many voters can be reached, this node included.
    pub(super) fn reachable(&self) -> usize {
        self.reachable_of(&self.voters(&self.metrics()))
    }

    /// How many of these nodes can be reached, this one included.
    pub(super) fn reachable_of(&self, nodes: &BTreeMap<u64, String>) -> usize {
        let own = self.id();
        let peers = lock(&self.peers);
        let is_there = |id, url| id == own || peers.get(url).is_some_and(|peer| peer.is_healthy_as(id));
        nodes.iter().filter(|(id, url)| is_there(**id, *url)).count()
    }

    /// Whether it is certain enough that no majority can be reached, so that waiting is in vain.
    pub(super) fn quorum_is_out_of_reach(&self) -> bool {
        let voters = self.voters(&self.metrics());
        let peers = lock(&self.peers);
        let gone = voters.values().filter(|url| peers.get(*url).is_some_and(PeerState::is_gone)).count();
        voters.len() - gone <= voters.len() / 2
    }

    /// How many entries this node's log holds.
    pub(super) fn log_entries(&self) -> u64 {
        let metrics = self.metrics();
        metrics.last_log_index.unwrap_or(0).saturating_sub(metrics.purged.map_or(0, |purged| purged.index()))
    }

    /// On the leader: how many nodes hold its last entry, itself included.
    pub(super) fn holders_of_last_entry(&self) -> usize {
        let metrics = self.metrics();
        let own = self.id();
        let holds = |matched: &Option<super::LogId>| matched.map(|log_id| log_id.index()) >= metrics.last_log_index;
        let peers = metrics.replication.iter().flatten().filter(|(id, _)| **id != own);
        1 + peers.filter(|(_, matched)| holds(matched)).count()
    }

    /// Waits until this node has applied the log up to `index`; false if the deadline comes first.
    pub(super) async fn wait_applied(&self, index: u64, deadline: Instant) -> bool {
        // tokio wakes those who watch one value in random order, and a simulation must not depend on that.
        #[cfg(test)]
        if matches!(self.options.blocking, super::Blocking::Simulated) {
            while *self.applied.borrow() < index && Instant::now() < deadline {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            return *self.applied.borrow() >= index;
        }
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
        let metrics = self.raft().metrics();
        let metrics = metrics.borrow_watched();
        if metrics.state == ServerState::Leader
            && let Some(acked) = metrics.last_quorum_acked
        {
            return acked.elapsed();
        }
        lock(&self.fresh).map_or_else(|| Duration::from_secs(u64::from(u32::MAX)), |fresh| fresh.elapsed())
    }

    /// Notes that a peer was heard, and what it told.
    pub(super) fn note_heard(&self, url: &str, id: u64, update: impl FnOnce(&mut PeerState)) {
        let mut peers = lock(&self.peers);
        let Some(state) = peers.get_mut(url) else { return };
        if state.is_gone() {
            tracing::info!(url, "a node can be reached again");
        }
        state.id = Some(id);
        state.failures = 0;
        state.seen = Some(Instant::now());
        update(state);
    }

    /// Notes that a peer was tried in vain.
    pub(super) fn note_silent(&self, url: &str, reason: &dyn std::fmt::Display) {
        let mut peers = lock(&self.peers);
        let Some(state) = peers.get_mut(url) else { return };
        state.failures = state.failures.saturating_add(1);
        state.seen = None;
        if state.failures == FAILURES_MIN {
            tracing::warn!(url, %reason, "a node cannot be reached");
        }
    }

    /// Begins to keep what is known of a peer; false if that is done already.
    pub(super) fn attend_to(&self, url: &str) -> bool {
        use std::collections::btree_map::Entry;
        match lock(&self.peers).entry(url.to_owned()) {
            Entry::Vacant(vacant) => {
                vacant.insert(PeerState::default());
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Forgets a peer.
    pub(super) fn forget(&self, url: &str) {
        lock(&self.peers).remove(url);
    }

    /// What is known of all peers, by URL.
    pub(super) fn peers(&self) -> BTreeMap<String, PeerState> {
        lock(&self.peers).clone()
    }

    /// What is known of a peer.
    pub(super) fn peer(&self, url: &str) -> Option<PeerState> {
        lock(&self.peers).get(url).cloned()
    }

    /// The peers that can be reached.
    pub(super) fn survey(&self) -> Survey {
        let (own, mut survey) = (self.cluster(), Survey::default());
        for (url, peer) in lock(&self.peers).iter().filter(|(_, peer)| peer.is_healthy()) {
            let side = if peer.cluster.is_some() { &mut survey.in_cluster } else { &mut survey.without_cluster };
            side.push(url.clone());
            if own.is_some() && peer.cluster == own {
                survey.fellows.push(url.clone());
                survey.is_initialized |= peer.initialized;
            }
        }
        survey
    }

    /// Whether a peer that can be reached belongs to a cluster.
    pub(super) fn sees_cluster(&self, cluster: ClusterId) -> bool {
        lock(&self.peers).values().any(|peer| peer.is_healthy() && peer.cluster == Some(cluster))
    }

    /// The peers that can be reached, and up to which revision of the store they have prepared what it held.
    pub(super) fn prepared_peers(&self) -> Vec<(String, u64)> {
        let peers = lock(&self.peers);
        let reached = peers.iter().filter(|(_, peer)| peer.is_healthy());
        reached.map(|(url, peer)| (url.clone(), peer.prepared_revision)).collect()
    }

    /// Those of them that have not yet prepared what the store held at a revision.
    pub(super) fn unprepared(&self, revision: u64) -> Vec<String> {
        let peers = self.prepared_peers().into_iter();
        peers.filter(|(_, prepared)| *prepared < revision).map(|(url, _)| url).collect()
    }

    /// Notes what came of asking to be let in, and says so if it is news.
    pub(super) fn note_join(&self, progress: &Progress) {
        if lock(&self.joining).replace(progress.clone()).as_ref() == Some(progress) {
            return;
        }
        match progress {
            Progress::Unknown => tracing::warn!(
                url = self.options.self_url,
                "the cluster does not know this node; `brink cluster add` on one of its nodes lets it in"
            ),
            progress => tracing::info!(?progress, "this node has asked to be let in"),
        }
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
}

/// On the leader: how far the logs of the others are known to match its own.
pub(super) fn matched(metrics: &Metrics) -> BTreeMap<u64, u64> {
    let matched = metrics.replication.iter().flatten();
    matched.filter_map(|(id, matched)| Some((*id, matched.as_ref()?.index()))).collect()
}

/// See [`Shared::has_its_place`].
pub(super) fn has_its_place(metrics: &Metrics, url: &str) -> bool {
    let mut with_url = metrics.membership_config.nodes().filter(|(_, node)| node.addr == url);
    with_url.next().is_some_and(|(id, _)| *id == metrics.id) && with_url.next().is_none()
}

/// Locks a mutex whose data is consistent between any two statements, so that a panic elsewhere does not matter.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
