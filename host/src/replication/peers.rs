//! Who is there: looking for the other nodes, forming the cluster, watching their health.
//!
//! No init command: every node knows the URLs of all, and node ids follow from URLs. Once a node that belongs to no
//! cluster reaches a majority that belongs to none either, it initialises Raft with the whole list. Several nodes may
//! do so at once, with the same list, which is safe; a node that sees an existing cluster waits until its leader
//! brings it the log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::error::Error;
use super::shared::{Shared, lock};
use super::transport::Call;
use super::types::{decode, encode};
use super::{RESTART_MARGIN, StartError};

/// How often a peer is asked how it is.
const HELLO_INTERVAL: Duration = Duration::from_millis(250);

/// How often a peer is asked while there is no cluster yet.
const HELLO_INTERVAL_FORMING: Duration = Duration::from_millis(25);

/// How long a peer may take to say hello.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// What a node says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    initialized: bool,
    /// The ids of the nodes it was started with.
    members: Vec<u64>,
    last_log_index: Option<u64>,
    /// The store's revision up to which it has compiled plugins and put hooks in force.
    prepared_revision: u64,
}

/// Starts the tasks that watch the peers, and forms the cluster or rejoins it.
pub(super) async fn start(shared: &Arc<Shared>) -> Result<(), StartError> {
    tokio::spawn(publish(shared.clone()));
    for (peer, url) in shared.members.clone() {
        if peer != shared.id {
            tokio::spawn(watch_peer(shared.clone(), peer, url));
        }
    }
    if !shared.raft.is_initialized().await? {
        if shared.members.len() == 1 {
            initialize(shared).await;
        } else {
            tokio::spawn(form_cluster(shared.clone()));
        }
    } else if is_only_voter(shared) {
        // Nobody else can hold a lease or a vote.
        shared.raft.trigger().elect(false).await?;
    } else {
        tokio::spawn(keep_restart_promise(shared.clone()));
    }
    Ok(())
}

fn is_only_voter(shared: &Shared) -> bool {
    let metrics = shared.raft.metrics();
    let metrics = metrics.borrow_watched();
    metrics.membership_config.voter_ids().eq(std::iter::once(shared.id))
}

/// A voter that restarts has forgotten that it promised the leader a lease, so for the length of one it stays silent.
async fn keep_restart_promise(shared: Arc<Shared>) {
    let until = Instant::now() + shared.options.timing.election_max + RESTART_MARGIN;
    *lock(&shared.silent_until) = Some(until);
    shared.raft.runtime_config().elect(false);
    tokio::time::sleep_until(until).await;
    shared.raft.runtime_config().elect(true);
}

async fn initialize(shared: &Shared) {
    let members: BTreeMap<u64, openraft::BasicNode> =
        shared.members.iter().map(|(id, url)| (*id, openraft::BasicNode::new(url))).collect();
    match shared.raft.initialize(members).await {
        Ok(()) => tracing::info!(nodes = shared.members.len(), "cluster formed"),
        // The leader was quicker: its log is here already.
        Err(error) => tracing::debug!(%error, "not initialised here"),
    }
}

async fn form_cluster(shared: Arc<Shared>) {
    let majority = shared.members.len() / 2 + 1;
    let stopped = shared.stopped();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            () = &mut stopped => return,
            () = tokio::time::sleep(HELLO_INTERVAL_FORMING) => {}
        }
        if shared.raft.is_initialized().await.unwrap_or(true) {
            return;
        }
        let (without_cluster, cluster_exists) = shared.survey();
        if !cluster_exists && without_cluster + 1 >= majority {
            initialize(&shared).await;
            return;
        }
    }
}

async fn watch_peer(shared: Arc<Shared>, peer: u64, url: String) {
    let stopped = shared.stopped();
    tokio::pin!(stopped);
    let mut warned = false;
    loop {
        match ask(&shared, peer, &url).await {
            Ok((hello, rtt)) => {
                if hello.members != shared.members.keys().copied().collect::<Vec<_>>() && !warned && !hello.initialized
                {
                    tracing::warn!(%url, "this node was started with another list of nodes");
                    warned = true;
                }
                shared.note_heard(peer, |state| {
                    state.rtt = Some(rtt);
                    state.last_log_index = hello.last_log_index;
                    state.initialized = hello.initialized;
                    state.prepared_revision = hello.prepared_revision;
                });
            }
            Err(error) => shared.note_silent(peer, &error),
        }
        let formed = shared.leader().is_some();
        tokio::select! {
            () = &mut stopped => return,
            () = tokio::time::sleep(if formed { HELLO_INTERVAL } else { HELLO_INTERVAL_FORMING }) => {}
        }
    }
}

async fn ask(shared: &Shared, peer: u64, url: &str) -> Result<(Hello, Duration), Error> {
    let began = std::time::Instant::now();
    let answer = shared.transport.call(peer, url, Call::Hello, encode(&shared.id)?, HELLO_TIMEOUT).await;
    let rtt = began.elapsed();
    Ok((decode(&answer.map_err(|error| Error::Refused(error.to_string()))?)?, rtt))
}

/// Shows the cluster's state in the metrics, again and again.
async fn publish(shared: Arc<Shared>) {
    let stopped = shared.stopped();
    tokio::pin!(stopped);
    loop {
        let status = shared.status();
        let metrics = shared.telemetry.metrics();
        metrics.set_log_entries(shared.log_entries());
        metrics.set_cluster(status.term, shared.leader().map(|(leader, _)| leader), status.has_quorum);
        for node in &status.nodes {
            if let Some(lag) = node.lag_entries {
                metrics.set_replication_lag(&node.url, lag);
            }
        }
        tokio::select! {
            () = &mut stopped => return,
            () = tokio::time::sleep(HELLO_INTERVAL) => {}
        }
    }
}

/// What this node says of itself to a peer, which shows by asking that it is there.
pub(super) async fn hello(shared: &Shared, peer: u64) -> Result<bytes::Bytes, Error> {
    shared.note_heard(peer, |_| ());
    let stopped = |_| Error::Stopped { outcome: super::WriteOutcome::NotWritten };
    let last_log_index = shared.raft.metrics().borrow_watched().last_log_index;
    encode(&Hello {
        initialized: shared.raft.is_initialized().await.map_err(stopped)?,
        members: shared.members.keys().copied().collect(),
        last_log_index,
        prepared_revision: shared.prepared_revision.load(Ordering::Relaxed),
    })
}
