//! Hellos: the calls by which nodes report their state to each other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::identity::Identity;
use super::peer_table::PeerState;
use super::prepared::Prepared;
use super::silence::RestartSilence;
use super::view::ClusterView;
use crate::replication::error::Error;
use crate::replication::ids::ClusterId;
use crate::replication::peer::protocol::{ANYONE, Call, Transport};
use crate::replication::raft::engine::matched;
use crate::replication::types::{decode, encode};
use crate::storage::FreeSpace;

/// Maximum time for a peer to answer.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// A node's report of its own state.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(super) id: u64,
    /// Whether the node is identified, so that the id is its own.
    pub(super) decided: bool,
    pub(super) url: String,
    /// Whether it knows a membership.
    initialized: bool,
    /// The cluster it belongs to.
    pub(super) cluster: Option<ClusterId>,
    /// Whether it keeps silent after a restart.
    silent: bool,
    /// The URLs it was started with.
    pub(super) knows: BTreeSet<String>,
    last_log_index: Option<u64>,
    /// If it leads: for each node, the index up to which its log is known to match the leader's.
    matched: BTreeMap<u64, u64>,
    /// The revision of the store up to which it has compiled plugins and put hooks in force.
    prepared_revision: u64,
    /// Whether its disk is full.
    is_full: bool,
}

impl Hello {
    fn update(&self, state: &mut PeerState) {
        state.last_log_index = self.last_log_index;
        state.matched.clone_from(&self.matched);
        state.initialized = self.initialized;
        state.cluster = self.cluster;
        state.silent = self.silent;
        state.prepared_revision = self.prepared_revision;
        state.is_full = self.is_full;
    }
}

/// Sends and answers hellos.
pub(crate) struct Greeter {
    pub(crate) identity: Arc<Identity>,
    pub(crate) view: Arc<ClusterView>,
    pub(crate) silence: Arc<RestartSilence>,
    pub(crate) prepared: Arc<Prepared>,
    pub(crate) free_space: FreeSpace,
    pub(crate) transport: Arc<dyn Transport>,
}

impl Greeter {
    /// Asks the node at a URL for its state; returns it with the round trip.
    pub(super) async fn ask(&self, url: &str) -> Result<(Hello, Duration), Error> {
        let began = std::time::Instant::now();
        let greeting = encode(&self.hello())?;
        let answer = self.transport.call(ANYONE, url, Call::Hello, greeting, HELLO_TIMEOUT).await;
        let rtt = began.elapsed();
        Ok((decode(&answer.map_err(|error| Error::Refused(error.to_string()))?)?, rtt))
    }

    /// Asks a peer for its state and records the answer.
    pub(super) async fn greet(&self, url: &str) {
        match self.ask(url).await {
            Ok((hello, rtt)) => self.view.peers.note_heard(url, hello.id, |state| {
                state.rtt = Some(rtt);
                hello.update(state);
            }),
            Err(error) => self.view.peers.note_failure(url, &error),
        }
    }

    /// Answers a peer's hello and records its state.
    pub(crate) fn answer(&self, greeting: &Hello) -> Hello {
        self.view.peers.note_heard(&greeting.url, greeting.id, |state| greeting.update(state));
        self.hello()
    }

    fn hello(&self) -> Hello {
        let metrics = self.view.raft.metrics();
        let stage = self.identity.stage();
        Hello {
            id: self.view.raft.id(),
            decided: stage.id().is_some(),
            url: self.view.founders.own_url().to_owned(),
            initialized: self.view.raft.is_initialized(),
            cluster: stage.cluster(),
            silent: self.silence.is_silent(),
            knows: self.view.founders.peer_urls(),
            last_log_index: metrics.last_log_index,
            matched: matched(&metrics),
            prepared_revision: self.prepared.own(),
            is_full: self.free_space.is_full(),
        }
    }
}
