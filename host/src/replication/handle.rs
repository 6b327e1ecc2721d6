//! The room's door: starts a node's part in the cluster, and offers it to the rest of the node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::cluster::change::{Change, Role};
use super::cluster::discovery::Discovery;
use super::cluster::formation::Formation;
use super::cluster::hello::Greeter;
use super::cluster::identity::{Identity, Member, Stage};
use super::cluster::leadership::Leadership;
use super::cluster::membership::Membership;
use super::cluster::peer_table::PeerTable;
use super::cluster::status::{Status, StatusReport};
use super::cluster::view::{ClusterView, Founders};
use super::disk_full;
use super::error::Error;
use super::lease::Lease;
use super::log_cut;
use super::options::Options;
use super::peer::protocol::{Call, Envelope, Transport};
use super::proposer::{Proposals, Proposer};
use super::raft::engine::{EngineParts, RaftHandle};
use super::raft::state_machine::Applied;
use super::reads::{Gate, Reads};
use super::server::Server;
use super::types::TypeConfig;
use crate::storage::{Data, DiskFull, GuardedWrite, Log, Outcome};
use crate::telemetry::{Telemetry, TraceContext};

/// Interval at which the consensus engine is checked for a failure.
const FAILURE_POLL: Duration = Duration::from_millis(100);

/// Maximum time for a stopping leader to hand over.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(1);

/// Maximum time for the tasks of replication to end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);

/// Why a node could not start to take part.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// openraft refuses the timing.
    #[error("the timing of elections is contradictory")]
    Timing(#[from] openraft::ConfigError),
    /// Two nodes have the same URL, or this node is in its own list.
    #[error("the list of other nodes names a node twice, or this node itself")]
    Ambiguous,
    /// The engine could not read its state.
    #[error("the stored state of this node cannot be read")]
    Engine(#[from] openraft::error::Fatal<TypeConfig>),
    /// The stored state cannot be read.
    #[error(transparent)]
    State(#[from] Error),
}

/// This node's part in the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Handle(pub(super) Arc<Parts>);

/// The concerns of replication that the rest of the node uses.
pub(super) struct Parts {
    leadership: Arc<Leadership>,
    status: Arc<StatusReport>,
    proposals: Proposals,
    gate: Gate,
    /// Also the owner of the concerns that other nodes reach through calls.
    pub(super) server: Server,
    /// Long-running tasks, which end when `server.stop` is cancelled.
    tasks: TaskTracker,
}

impl Handle {
    /// Starts to take part: opens the engine on the databases, looks for the other nodes, and forms the cluster with them if
    /// there is none yet.
    ///
    /// # Errors
    ///
    /// If the stored state cannot be read, or the options contradict each other.
    pub async fn start(
        options: Options,
        log: Log,
        data: Data,
        transport: Arc<dyn Transport>,
        telemetry: Telemetry,
    ) -> Result<Self, StartError> {
        let founders = Founders::new(&options.self_url, &options.peer_urls).ok_or(StartError::Ambiguous)?;
        let stage = match Stage::stored(&log)? {
            Stage::Unidentified if founders.is_alone() => Stage::Member(Member::found_alone(&log).await?),
            stage => stage,
        };
        let engine_parts = EngineParts {
            config: Arc::new(options.openraft().validate()?),
            applied: Arc::new(Applied::of(&data)?),
            log: log.clone(),
            data,
            transport: transport.clone(),
            telemetry: telemetry.clone(),
            blocking: options.blocking.clone(),
        };
        let id = stage.id().unwrap_or_else(|| founders.own_id());
        let raft = RaftHandle::start(engine_parts, id).await?;
        let view = Arc::new(ClusterView { raft, founders, peers: PeerTable::default(), heard: Mutex::default() });
        let identity = Arc::new(Identity::new(log, transport.clone(), stage));
        let handle = Self(Arc::new(Parts::new(&options, view, identity, transport, telemetry)));
        handle.begin(&options).await?;
        Ok(handle)
    }

    /// Begins to take part: forms the cluster or rejoins it, and starts the tasks.
    async fn begin(&self, options: &Options) -> Result<(), StartError> {
        let server = &self.0.server;
        let (raft, founders) = (&server.view.raft, &server.view.founders);
        let is_restart = raft.raft().is_initialized().await?;
        if is_restart && !raft.is_only_voter() {
            // At once, and not in a task: the node answers others as soon as this returns.
            let until = server.lease.keep_silent();
            let raft = raft.raft();
            self.spawn(async move |stop| {
                if stop.run_until_cancelled(tokio::time::sleep_until(until)).await.is_some() {
                    raft.runtime_config().elect(true);
                }
            });
        } else {
            raft.raft().runtime_config().elect(true);
        }
        self.spawn(|stop| server.greeter.clone().watch_peers(self.0.tasks.clone(), stop));
        self.spawn(|stop| server.membership.clone().finish_joint(stop));
        if !is_restart && founders.is_alone() {
            raft.initialize(&BTreeMap::from([(raft.id(), founders.own_url().to_owned())])).await;
        } else {
            if is_restart && raft.is_only_voter() {
                // No other node can hold a lease or a vote.
                raft.raft().trigger().elect(false).await?;
            }
            let discovery = Discovery {
                identity: server.identity.clone(),
                view: server.view.clone(),
                formation: server.formation.clone(),
                membership: server.membership.clone(),
                began: Instant::now(),
                highest: 0,
                joining: None,
            };
            self.spawn(|stop| discovery.discover(stop));
        }
        let (free_space, leadership) = (options.free_space.clone(), self.0.leadership.clone());
        self.spawn(|stop| disk_full::watch(free_space, leadership, stop));
        self.spawn(|stop| log_cut::run(server.view.clone(), options.snapshot_entries, stop));
        Ok(())
    }

    /// Starts a task that ends when this node stops.
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(CancellationToken) -> F) {
        self.0.tasks.spawn(task(self.0.server.stop.clone()));
    }

    /// Proposes a write and waits until it is committed and applied by the leader.
    ///
    /// # Errors
    ///
    /// Each error knows whether the write may yet appear: [`Error::outcome`].
    pub async fn propose(
        &self,
        write: &GuardedWrite,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Result<Outcome, Error> {
        self.0.proposals.propose(write, trace, deadline).await
    }

    /// Returns once this node's state contains every write that any node acknowledged before the call.
    ///
    /// # Errors
    ///
    /// If that cannot be established by the deadline.
    pub async fn read_barrier(&self, deadline: Instant) -> Result<(), Error> {
        self.0.gate.pass(deadline).await
    }

    /// Time since this node last knew its state to be up to date.
    pub fn staleness(&self) -> Duration {
        self.0.server.reads.staleness()
    }

    /// The cluster as this node sees it.
    pub fn status(&self) -> Status {
        self.0.status.status()
    }

    /// Adds a node to the cluster, or changes its role. Returns once the change is in force: a new voter has caught up then.
    ///
    /// # Errors
    ///
    /// If the change is impossible, or not complete by the deadline; it may be requested again.
    pub async fn add_member(&self, url: &str, role: Role, deadline: Instant) -> Result<(), Error> {
        self.0.server.membership.change(&Change::Add { url: url.to_owned(), role }, deadline).await
    }

    /// Removes a node from the cluster, whether it runs or not.
    ///
    /// # Errors
    ///
    /// As for [`Handle::add_member`].
    pub async fn remove_member(&self, url: &str, deadline: Instant) -> Result<(), Error> {
        self.0.server.membership.change(&Change::Remove { url: url.to_owned() }, deadline).await
    }

    /// Makes a voter the leader.
    ///
    /// # Errors
    ///
    /// As for [`Handle::add_member`].
    pub async fn transfer_leader(&self, url: &str, deadline: Instant) -> Result<(), Error> {
        self.0.server.membership.change(&Change::Transfer { url: url.to_owned() }, deadline).await
    }

    /// Hands the leadership to another voter if this node leads, so that stopping it costs no election.
    pub async fn hand_over(&self) {
        self.0.leadership.hand_over(Instant::now() + HAND_OVER_DEADLINE).await;
    }

    /// Completes if the consensus engine fails, with the reason.
    pub async fn failed(&self) -> String {
        use openraft::error::Fatal;
        loop {
            match self.0.server.view.raft.with_metrics(|metrics| metrics.running_state.clone()) {
                Err(fatal @ (Fatal::StorageError(_) | Fatal::Panicked)) => return fatal.to_string(),
                Ok(()) | Err(Fatal::Stopped) => tokio::time::sleep(FAILURE_POLL).await,
            }
        }
    }

    /// The figures of this node's disk, if it is full; writes are refused then.
    pub fn disk_full(&self) -> Option<DiskFull> {
        self.0.server.free_space.disk_full()
    }

    /// This node's base URL, as the others know it.
    pub fn url(&self) -> &str {
        self.0.server.view.founders.own_url()
    }

    /// The URLs of the nodes that can be reached, this one included, each with the revision of the store up to which it has
    /// compiled plugins and put hooks in force.
    pub fn prepared(&self) -> Vec<(String, u64)> {
        let own = (self.url().to_owned(), self.0.server.greeter.prepared.load(Ordering::Relaxed));
        std::iter::once(own).chain(self.0.server.view.peers.prepared()).collect()
    }

    /// Tells the other nodes up to which revision of the store this one has compiled plugins and put hooks in force.
    pub fn set_prepared(&self, revision: u64) {
        self.0.server.greeter.prepared.store(revision, Ordering::Relaxed);
    }

    /// Waits until every other node that can be reached has prepared `revision` of the store. Returns the URLs of those that
    /// have not by the deadline.
    pub async fn wait_prepared(&self, revision: u64, deadline: Instant) -> Vec<String> {
        self.0.server.greeter.wait_prepared(revision, deadline).await
    }

    /// The index of the last log entry this node has applied, as it changes.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.0.server.view.raft.applied().subscribe()
    }

    /// Answers one call of another node, for transports that carry single calls.
    ///
    /// # Errors
    ///
    /// If the call is not meant for this node, or cannot be served now.
    pub async fn serve(&self, call: Call, envelope: Envelope, body: Bytes) -> Result<Bytes, Error> {
        self.0.server.serve(call, envelope, body).await
    }

    /// Answers the calls of another node on a connection, until either side ends it.
    pub async fn serve_connection(&self, io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite) {
        self.0.server.serve_connection(io).await;
    }

    /// Receives a snapshot from the leader.
    ///
    /// # Errors
    ///
    /// If the snapshot is not meant for this node or cannot be installed now. An incomplete snapshot changes nothing.
    pub async fn serve_snapshot<S, E>(&self, envelope: Envelope, body: S) -> Result<Bytes, Error>
    where
        S: futures::Stream<Item = Result<Bytes, E>> + Unpin + Send,
        E: std::error::Error + Send + Sync + 'static,
    {
        self.0.server.serve_snapshot(envelope, body).await
    }

    /// Stops taking part. Acknowledged writes stay on disk; later calls are refused.
    pub async fn shutdown(&self) {
        self.0.server.stop.cancel();
        if let Err(error) = self.0.server.view.raft.raft().shutdown().await {
            tracing::error!(%error, "the consensus engine did not stop cleanly");
        }
        self.0.tasks.close();
        if tokio::time::timeout(DRAIN_DEADLINE, self.0.tasks.wait()).await.is_err() {
            tracing::debug!(deadline = ?DRAIN_DEADLINE, "some tasks of replication still run");
        }
    }
}

impl Parts {
    /// Connects the concerns of a node whose engine has started.
    fn new(
        options: &Options,
        view: Arc<ClusterView>,
        identity: Arc<Identity>,
        transport: Arc<dyn Transport>,
        telemetry: Telemetry,
    ) -> Self {
        let (lease_length, free_space) = (options.timing.election_max, options.free_space.clone());
        let lease = Arc::new(Lease::new(lease_length));
        let leadership = Arc::new(Leadership { view: view.clone(), lease: lease.clone() });
        let status = Arc::new(StatusReport {
            identity: identity.clone(),
            view: view.clone(),
            lease_length,
            telemetry: telemetry.clone(),
        });
        let greeter = Arc::new(Greeter {
            identity: identity.clone(),
            view: view.clone(),
            status: status.clone(),
            lease: lease.clone(),
            free_space: free_space.clone(),
            transport: transport.clone(),
            prepared: AtomicU64::new(0),
        });
        let formation = Arc::new(Formation {
            may_found: options.may_found,
            identity: identity.clone(),
            view: view.clone(),
            transport: transport.clone(),
        });
        let membership = Arc::new(Membership {
            identity: identity.clone(),
            view: view.clone(),
            greeter: greeter.clone(),
            leadership: leadership.clone(),
            transport: transport.clone(),
            changing: tokio::sync::Mutex::new(()),
        });
        let proposer = Arc::new(Proposer {
            view: view.clone(),
            leadership: leadership.clone(),
            free_space: free_space.clone(),
            transport: transport.clone(),
            telemetry,
        });
        let reads =
            Arc::new(Reads { view: view.clone(), lease: lease.clone(), transport, up_to_date: Mutex::default() });
        let (proposals, gate) = (Proposals::start(proposer.clone()), Gate::start(reads.clone()));
        let server = Server {
            identity,
            view,
            greeter,
            formation,
            membership,
            lease,
            proposer,
            reads,
            free_space,
            spool_dir: options.spool_dir.clone(),
            blocking: options.blocking.clone(),
            stop: CancellationToken::new(),
        };
        Self { leadership, status, proposals, gate, server, tasks: TaskTracker::new() }
    }
}
