//! The other nodes: how they are, and what they know.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::error::Error;
use super::identity::ClusterId;
use super::shared::{PeerState, Shared, lock, matched};
use super::transport::{ANYONE, Call};
use super::types::{decode, encode};
use super::{RESTART_MARGIN, StartError, identity, membership};

/// How often a peer is asked how it is.
const HELLO_INTERVAL: Duration = Duration::from_millis(250);

/// How often a peer is asked while there is no leader.
const HELLO_INTERVAL_FORMING: Duration = Duration::from_millis(25);

/// How long a peer may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// What a node says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) id: u64,
    /// Whether the id is its own for good.
    pub(super) decided: bool,
    pub(super) url: String,
    /// Whether it belongs to a cluster, and knows who else does.
    pub(super) initialized: bool,
    /// The cluster that it belongs to.
    pub(super) cluster: Option<ClusterId>,
    /// Whether it has just restarted, and neither votes nor stands yet.
    silent: bool,
    /// The URLs it was started with.
    pub(super) knows: BTreeSet<String>,
    last_log_index: Option<u64>,
    /// If it leads: how far the logs of the others are known to match its own.
    matched: BTreeMap<u64, u64>,
    /// The store's revision up to which it has compiled plugins and put hooks in force.
    prepared_revision: u64,
    /// Whether its disk is full.
    is_full: bool,
}

impl Hello {
    fn tell(&self, state: &mut PeerState) {
        state.last_log_index = self.last_log_index;
        state.matched.clone_from(&self.matched);
        state.initialized = self.initialized;
        state.cluster = self.cluster;
        state.silent = self.silent;
        state.prepared_revision = self.prepared_revision;
        state.is_full = self.is_full;
    }
}

/// Starts the tasks that watch the peers, and forms the cluster or rejoins it.
pub(super) async fn start(shared: &Arc<Shared>) -> Result<(), StartError> {
    let raft = shared.raft();
    let is_restart = raft.is_initialized().await?;
    if is_restart && !is_only_voter(shared) {
        begin_restart_promise(shared);
    } else {
        raft.runtime_config().elect(true);
    }
    tokio::spawn(attend(shared.clone()));
    tokio::spawn(membership::tend(shared.clone()));
    if !is_restart {
        if shared.options.peer_urls.is_empty() {
            identity::initialize_alone(shared).await;
            return Ok(());
        }
    } else if is_only_voter(shared) {
        // Nobody else can hold a lease or a vote.
        raft.trigger().elect(false).await?;
    }
    tokio::spawn(identity::find_cluster(shared.clone()));
    Ok(())
}

fn is_only_voter(shared: &Shared) -> bool {
    let metrics = shared.metrics();
    metrics.membership_config.voter_ids().eq(std::iter::once(shared.id()))
}

/// A voter that restarts has forgotten that it promised the leader a lease, so for the length of one it stays silent:
/// it grants no vote and no pre-vote, takes no leadership that is handed to it, and its engine, which was built so, does
/// not stand. The promise is in force when this returns, before the node answers anybody.
fn begin_restart_promise(shared: &Arc<Shared>) {
    let until = Instant::now() + shared.options.timing.election_max + RESTART_MARGIN;
    // At once, and not in the task: the node answers others as soon as this returns.
    *lock(&shared.silent_until) = Some(until);
    let raft = shared.raft();
    tokio::spawn(async move {
        tokio::time::sleep_until(until).await;
        raft.runtime_config().elect(true);
    });
}

/// Keeps an eye on every node of the cluster, as nodes come and go, and shows its state in the metrics.
async fn attend(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    tokio::pin!(stopped);
    loop {
        for url in shared.peer_urls() {
            if shared.attend_to(&url) {
                tokio::spawn(watch_peer(shared.clone(), url));
            }
        }
        publish(&shared);
        tokio::select! {
            biased;
            () = &mut stopped => return,
            () = tokio::time::sleep(interval(&shared)) => {}
        }
    }
}

fn interval(shared: &Shared) -> Duration {
    if shared.leader().is_some() { HELLO_INTERVAL } else { HELLO_INTERVAL_FORMING }
}

/// Asks one node again and again how it is, as long as it is one of the cluster.
async fn watch_peer(shared: Arc<Shared>, url: String) {
    let stopped = shared.stopped();
    tokio::pin!(stopped);
    while shared.peer_urls().contains(&url) {
        match ask(&shared, &url).await {
            Ok((hello, rtt)) => shared.note_heard(&url, hello.id, |state| {
                state.rtt = Some(rtt);
                hello.tell(state);
            }),
            Err(error) => shared.note_silent(&url, &error),
        }
        tokio::select! {
            biased;
            () = &mut stopped => return,
            () = tokio::time::sleep(interval(&shared)) => {}
        }
    }
    shared.forget(&url);
}

/// Asks a node how it is.
pub(super) async fn ask(shared: &Shared, url: &str) -> Result<(Hello, Duration), Error> {
    let began = std::time::Instant::now();
    let greeting = encode(&hello(shared))?;
    let answer = shared.transport.call(ANYONE, url, Call::Hello, greeting, HELLO_TIMEOUT).await;
    let rtt = began.elapsed();
    Ok((decode(&answer.map_err(|error| Error::Refused(error.to_string()))?)?, rtt))
}

/// Answers a peer, which shows by asking that it is there.
pub(super) fn answer(shared: &Shared, greeting: &Hello) -> Hello {
    shared.note_heard(&greeting.url, greeting.id, |state| greeting.tell(state));
    hello(shared)
}

/// What this node says of itself.
fn hello(shared: &Shared) -> Hello {
    let metrics = shared.metrics();
    Hello {
        id: shared.id(),
        decided: shared.is_decided(),
        url: shared.options.self_url.clone(),
        initialized: shared.is_initialized(),
        cluster: shared.cluster(),
        silent: shared.is_silent(),
        knows: shared.options.peer_urls.iter().cloned().collect(),
        last_log_index: metrics.last_log_index,
        matched: matched(&metrics),
        prepared_revision: shared.prepared_revision.load(Ordering::Relaxed),
        is_full: shared.options.free_space.is_full(),
    }
}

/// Shows the cluster's state in the metrics.
fn publish(shared: &Shared) {
    let status = shared.status();
    let metrics = shared.telemetry.metrics();
    metrics.set_log_entries(shared.log_entries());
    metrics.set_cluster(status.term, shared.leader().map(|(leader, _)| leader), status.has_quorum);
    for node in &status.nodes {
        if let Some(lag) = node.lag_entries {
            metrics.set_replication_lag(&node.url, lag);
        }
    }
}
