//! Hellos: the calls by which nodes report their state to each other, and learn who can be reached.

use std::sync::atomic::{AtomicU64, Ordering};
use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::peer_table::{Hello, HelloMore, KnownMembership};
use super::{identity::Identity, time::ClockReading, view::ClusterView};
use crate::replication::peer::credential::Caller;
use crate::replication::peer::protocol::{ANYONE, Call, CallError, Failure, Transport};
use crate::replication::types::{Metrics, url_of};
use crate::replication::{error::Error, lease::Lease, raft::engine::matched};
use crate::storage::{FeatureLevel, FreeSpace};
use crate::telemetry::Telemetry;

/// Maximum time for a peer to answer.
const HELLO_TIMEOUT: Duration = Duration::from_secs(1);

/// Interval of hellos to a peer.
const HELLO_INTERVAL: Duration = Duration::from_millis(250);

/// Interval of hellos to a peer while there is no leader.
const HELLO_INTERVAL_FORMING: Duration = Duration::from_millis(25);

/// Interval at which the peers' prepared revisions are checked. They arrive with every hello.
const PREPARED_POLL: Duration = Duration::from_millis(25);

pub(crate) struct Greeter {
    pub(crate) identity: Arc<Identity>,
    pub(crate) view: Arc<ClusterView>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) free_space: FreeSpace,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) telemetry: Telemetry,
    /// The revision of the store up to which this node has compiled plugins and put hooks in force.
    pub(crate) prepared: AtomicU64,
    /// A random number of this run of the process.
    pub(crate) run: u64,
}

impl Greeter {
    /// Watches the other nodes: starts a task for each node of the cluster, as nodes come and go.
    pub(crate) async fn watch_peers(self: Arc<Self>, tasks: TaskTracker, stop: CancellationToken) {
        loop {
            for url in self.view.watched_urls() {
                if self.view.peers.add(&url) {
                    tasks.spawn(self.clone().watch_peer(url, stop.clone()));
                }
            }
            self.view.note_clocks();
            self.view.publish(self.identity.stage().cluster(), &self.telemetry);
            if stop.run_until_cancelled(tokio::time::sleep(self.interval())).await.is_none() {
                return;
            }
        }
    }

    pub(super) fn interval(&self) -> Duration {
        if self.view.leader().is_some() { HELLO_INTERVAL } else { HELLO_INTERVAL_FORMING }
    }

    /// Asks a node for its state again and again, as long as it belongs to the cluster.
    async fn watch_peer(self: Arc<Self>, url: String, stop: CancellationToken) {
        while self.view.watched_urls().contains(&url) {
            stop.run_until_cancelled(self.greet(&url)).await;
            if stop.run_until_cancelled(tokio::time::sleep(self.interval())).await.is_none() {
                return;
            }
        }
        self.view.peers.remove(&url);
    }

    async fn greet(&self, url: &str) {
        let began = self.view.time.clock().uptime();
        match self.ask(url).await {
            Ok(hello) if self.is_own(&hello) => self.note_failure(url, &"it is this node itself"),
            Ok(hello) => self.note(url, hello, began, Some(self.view.time.clock().uptime().saturating_sub(began))),
            Err(error) => self.note_failure(url, &error),
        }
    }

    fn note_failure(&self, url: &str, reason: &dyn std::fmt::Display) {
        self.view.peers.note_failure(url, reason, self.view.expects(url));
    }

    /// Records a hello, and where its sender is reached if it is a member. If this node asked for it, it began to at an uptime of
    /// `began`, and the answer took `rtt`.
    fn note(&self, url: &str, hello: Hello, began: Duration, rtt: Option<Duration>) {
        let is_fellow = hello.cluster.is_some() && hello.cluster == self.identity.stage().cluster();
        let is_member =
            || self.view.raft.with_metrics(|metrics| metrics.membership_config.get_node(&hello.id).is_some());
        if is_fellow && hello.decided && is_member() && !self.is_own(&hello) && !self.view.peers.has_twin(&hello) {
            self.view.addresses.note(hello.id, &hello.url);
        }
        let ended = began + rtt.unwrap_or_default();
        let reading = hello.time_ms().and_then(|time_ms| ClockReading::between(began, ended, time_ms));
        self.view.peers.note_heard(url, hello, rtt, reading);
        self.view.note_clocks();
    }

    fn is_own(&self, hello: &Hello) -> bool {
        hello.more.as_ref().is_some_and(|more| more.run == self.run)
    }

    /// Whether another process than this one answers at a URL under an id.
    pub(super) async fn has_twin(&self, url: &str, id: u64) -> bool {
        self.ask(url)
            .await
            .is_ok_and(|hello| hello.decided && hello.id == id && hello.more.is_some() && !self.is_own(&hello))
    }

    pub(super) async fn ask(&self, url: &str) -> Result<Hello, CallError> {
        let unusable = |error: Error| CallError::new(Failure::Refused, url, error);
        let hello = self.hello().encode().map_err(unusable)?;
        let answer = self.transport.call(ANYONE, url, Call::Hello, hello, HELLO_TIMEOUT).await?;
        Hello::decode(&answer).map_err(unusable)
    }

    /// Answers a peer's hello. It says where calls to the peer go from then on, so the caller must have proved that it is at its URL.
    pub(crate) fn answer(&self, greeting: &[u8], caller: &Caller) -> Result<Bytes, Error> {
        let greeting = Hello::decode(greeting)?;
        if !caller.may_speak_for(&greeting.url) {
            return Err(spoken_for(&greeting.url));
        }
        let url = greeting.url.clone();
        self.note(&url, greeting, self.view.time.clock().uptime(), None);
        self.hello().encode()
    }

    fn hello(&self) -> Hello {
        let metrics = self.view.raft.metrics();
        let stage = self.identity.stage();
        Hello {
            id: self.view.raft.id(),
            decided: stage.id().is_some(),
            url: self.view.founders.own_url.clone(),
            initialized: self.view.raft.is_initialized(),
            cluster: stage.cluster(),
            silent: self.lease.is_silent(),
            knows: self.view.founders.peer_urls(),
            last_log_index: metrics.last_log_index,
            matched: matched(&metrics),
            prepared_revision: self.prepared.load(Ordering::Relaxed),
            is_full: self.free_space.is_full(),
            more: Some(HelloMore {
                supports: FeatureLevel::NEWEST,
                run: self.run,
                time_ms: self.view.time.clock().unix_ms(),
                membership: committed_membership(&metrics),
            }),
        }
    }

    /// Waits until every peer that can be reached has prepared `revision` of the store. Returns the URLs of those that have
    /// not by the deadline.
    pub(crate) async fn wait_prepared(&self, revision: u64, deadline: Instant) -> Vec<String> {
        loop {
            let late = self.view.peers.prepared().into_iter().filter(|(_, prepared)| *prepared < revision);
            let late: Vec<String> = late.map(|(url, _)| url).collect();
            if late.is_empty() || Instant::now() >= deadline {
                return late;
            }
            tokio::time::sleep(PREPARED_POLL).await;
        }
    }
}

/// The refusal of a call that speaks for a node which is not its caller.
pub(crate) fn spoken_for(url: &str) -> Error {
    Error::Refused(format!("the caller has not proved itself as the node at {url}"))
}

/// The newest membership that this node has, committed or not.
pub(super) fn membership_of(metrics: &Metrics) -> Option<KnownMembership> {
    let membership = &metrics.membership_config;
    let nodes = membership.nodes().map(|(id, node)| (*id, url_of(node))).collect();
    membership.log_id().as_ref().map(|log_id| KnownMembership { index: log_id.index(), nodes })
}

/// The membership, if this node knows that it is committed.
fn committed_membership(metrics: &Metrics) -> Option<KnownMembership> {
    let applied = metrics.last_applied.as_ref().map(|log_id| log_id.index());
    membership_of(metrics).filter(|membership| Some(membership.index) <= applied)
}
