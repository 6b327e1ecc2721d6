//! The room's door: starts a node's part in the cluster, and offers it to the rest of the node.

use std::sync::atomic::{AtomicU64, Ordering};
use std::{collections::BTreeMap, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::cluster::change::{Change, Role};
use super::cluster::identity::{Identity, Stage};
use super::cluster::view::{ClusterView, Founders};
use super::cluster::{
    discovery::Discovery, formation::Formation, hello::Greeter, leadership::Leadership, membership::Membership,
    peer_table::PeerTable, standing::StandingWatch, status::Status, time::ClusterTime, upgrade,
};
use super::raft::engine::{EngineParts, RaftHandle};
use super::raft::state_machine::{Applied, StateMachine};
use super::{
    addresses::AddressBook,
    blocking::Blocking,
    disk_full,
    doorkeeper::Doorkeeper,
    error::Error,
    lease::Lease,
    log_cut::LogCut,
    lost_state::Recovery,
    options::Options,
    peer::protocol::Transport,
    peer::receiver::{Receiver, SWEEP_INTERVAL},
    peer::snapshot::Transfers,
    proposer::Proposer,
    raft::log_store::LogStore,
    raft::network::Network,
    reads::Reads,
    start_error::StartError,
};
use crate::limits::{ByteBudget, MEMBERS_MAX, PEER_BODIES_BYTES_MAX};
use crate::storage::{Data, DiskFull, FeatureLevel, FreeSpace, GuardedWrite, Log, Outcome};
use crate::telemetry::{Telemetry, TraceContext};

/// Interval at which the consensus engine is checked for a failure.
const FAILURE_POLL: Duration = Duration::from_millis(100);

/// Maximum time for a stopping leader to hand over.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(1);

/// Maximum time for the tasks of replication to end.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);

/// Snapshots that other nodes fetch at the same time; further ones are refused, and ask again.
const FETCHES_MAX: usize = 2;

/// This node's part in the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Handle(pub(super) Arc<Parts>);

/// The concerns of replication.
pub(super) struct Parts {
    pub(super) identity: Arc<Identity>,
    pub(super) view: Arc<ClusterView>,
    pub(super) greeter: Arc<Greeter>,
    pub(super) formation: Arc<Formation>,
    pub(super) membership: Arc<Membership>,
    leadership: Arc<Leadership>,
    pub(super) lease: Arc<Lease>,
    pub(super) doorkeeper: Arc<Doorkeeper>,
    pub(super) proposer: Arc<Proposer>,
    pub(super) reads: Arc<Reads>,
    pub(super) free_space: FreeSpace,
    pub(super) receiver: Arc<Receiver>,
    pub(super) blocking: Blocking,
    /// Room for the calls of other nodes.
    pub(super) peer_bodies: ByteBudget,
    /// One permit for each snapshot that another node may fetch at the same time.
    pub(super) fetches: Arc<Semaphore>,
    pub(super) stop: CancellationToken,
    /// Long-running tasks, which end when `stop` is cancelled.
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
        if options.peer_urls.len() >= MEMBERS_MAX {
            return Err(StartError::TooMany);
        }
        let founders = Founders::new(&options.self_url, &options.peer_urls).ok_or(StartError::Ambiguous)?;
        let stage = match Stage::stored(&log)? {
            _ if founders.is_alone() => Formation::alone(&log, options.may_found).await?,
            stage => stage,
        };
        Recovery { options: &options, log: &log, data: &data, transport: &*transport }.run(stage).await?;
        let addresses = Arc::new(AddressBook::default());
        let transfers = Arc::new(Transfers::default());
        let engine_parts = EngineParts {
            config: Arc::new(options.openraft().validate()?),
            network: Network {
                transport: transport.clone(),
                telemetry: telemetry.clone(),
                blocking: options.blocking.clone(),
                addresses: addresses.clone(),
                transfers: transfers.clone(),
            },
            log_store: LogStore { log: log.clone(), telemetry: telemetry.clone(), blocking: options.blocking.clone() },
            state_machine: StateMachine {
                applied: Arc::new(Applied::of(&data)?),
                data,
                telemetry: telemetry.clone(),
                blocking: options.blocking.clone(),
            },
        };
        upgrade::check_level(engine_parts.state_machine.applied.level())?;
        let id = stage.id().unwrap_or_else(|| founders.own_id());
        let raft = RaftHandle::start(engine_parts, id).await?;
        let view = Arc::new(ClusterView {
            raft,
            founders,
            peers: PeerTable::default(),
            time: ClusterTime::new(options.clock.clone()),
            addresses,
            heard: Mutex::default(),
            standing: Mutex::default(),
        });
        let identity = Arc::new(Identity::new(log.clone(), transport.clone(), stage));
        let (keep, free_space) = (options.snapshot_entries, options.free_space.clone());
        let log_cut = LogCut::new(view.clone(), log, transfers, free_space, keep);
        let handle = Self(Arc::new(Parts::new(options, view, identity, transport, telemetry)));
        handle.begin(log_cut).await?;
        Ok(handle)
    }

    /// Begins to take part: forms the cluster or rejoins it, and starts the tasks.
    async fn begin(&self, log_cut: LogCut) -> Result<(), StartError> {
        let parts = &self.0;
        let (raft, founders) = (&parts.view.raft, &parts.view.founders);
        let is_restart = raft.raft().is_initialized().await?;
        let standing = StandingWatch { greeter: parts.greeter.clone(), lease: parts.lease.clone() };
        if is_restart && !raft.is_only_voter() {
            // At once, and not in a task: the node answers others as soon as this returns.
            let until = parts.lease.keep_silent();
            let (raft, lease) = (raft.raft(), parts.lease.clone());
            self.spawn(async move |stop| {
                if stop.run_until_cancelled(tokio::time::sleep_until(until)).await.is_some() {
                    raft.runtime_config().elect(!lease.is_barred());
                }
            });
            standing.begin();
        } else {
            raft.raft().runtime_config().elect(true);
        }
        self.spawn(|stop| standing.watch(stop));
        self.spawn(|stop| parts.greeter.clone().watch_peers(parts.tasks.clone(), stop));
        self.spawn(|stop| parts.membership.clone().finish_changes(stop));
        self.spawn(|stop| parts.membership.clone().raise_level_of_new_cluster(stop));
        if !is_restart && founders.is_alone() {
            raft.initialize(&BTreeMap::from([(raft.id(), founders.own_url.clone())])).await;
        } else {
            if is_restart && raft.is_only_voter() {
                // No other node can hold a lease or a vote.
                raft.raft().trigger().elect(false).await?;
            }
            let discovery = Discovery {
                identity: parts.identity.clone(),
                view: parts.view.clone(),
                formation: parts.formation.clone(),
                membership: parts.membership.clone(),
                began: Instant::now(),
                highest: 0,
                joining: None,
            };
            self.spawn(|stop| discovery.discover(stop));
        }
        self.spawn(|stop| disk_full::watch(parts.free_space.clone(), parts.leadership.clone(), stop));
        self.spawn(|stop| log_cut.run(stop));
        let reads = parts.reads.clone();
        let is_up_to_date = move || reads.staleness() < SWEEP_INTERVAL;
        self.spawn(|stop| parts.receiver.clone().sweep(is_up_to_date, stop));
        Ok(())
    }

    /// Starts a task that ends when this node stops.
    fn spawn<F: Future<Output = ()> + Send + 'static>(&self, task: impl FnOnce(CancellationToken) -> F) {
        self.0.tasks.spawn(task(self.0.stop.clone()));
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
        self.0.proposer.propose(write, trace, deadline).await
    }

    /// Returns once this node's state contains every write that any node acknowledged before the call.
    ///
    /// # Errors
    ///
    /// If that cannot be established by the deadline.
    pub async fn read_barrier(&self, deadline: Instant) -> Result<(), Error> {
        self.0.reads.pass(deadline).await
    }

    /// Before a local read: returns once this node's state is at least as new as any that it has shown, also before it
    /// restarted. Returns at once from the first strong read on, and if there is no quorum.
    pub async fn recover_reads(&self) {
        self.0.reads.recover().await;
    }

    /// Time since this node last knew its state to be up to date.
    pub fn staleness(&self) -> Duration {
        self.0.reads.staleness()
    }

    /// The cluster's time now, in milliseconds since the Unix epoch, as this node knows it: its own clock, within a bound of the
    /// middle of the voters' clocks.
    pub fn time_ms(&self) -> u64 {
        self.0.view.time_ms()
    }

    /// The time of the newest write that this node has applied, in milliseconds since the Unix epoch; none in a log without times.
    pub fn applied_time_ms(&self) -> Option<u64> {
        Some(self.0.view.raft.applied().time_ms()).filter(|time_ms| *time_ms > 0)
    }

    /// The cluster as this node sees it.
    pub fn status(&self) -> Status {
        self.0.view.status(self.0.identity.stage().cluster())
    }

    /// Adds a node to the cluster, or changes its role. Returns once the change is in force: a new voter has caught up then.
    ///
    /// # Errors
    ///
    /// If the change is impossible, or not complete by the deadline; it may be requested again.
    pub async fn add_member(&self, url: &str, role: Role, deadline: Instant) -> Result<(), Error> {
        self.0.membership.change(&Change::Add { url: url.to_owned(), role }, deadline).await
    }

    /// Removes a node from the cluster, whether it runs or not. Fails as [`Handle::add_member`] does.
    pub async fn remove_member(&self, url: &str, deadline: Instant) -> Result<(), Error> {
        self.0.membership.change(&Change::Remove { url: url.to_owned() }, deadline).await
    }

    /// Makes a voter the leader. Fails as [`Handle::add_member`] does.
    pub async fn transfer_leader(&self, url: &str, deadline: Instant) -> Result<(), Error> {
        self.0.membership.change(&Change::Transfer { url: url.to_owned() }, deadline).await
    }

    /// Raises the cluster's feature level to the highest that this version supports. Fails as [`Handle::add_member`] does, and if a
    /// node does not support it.
    pub async fn upgrade(&self, deadline: Instant) -> Result<(), Error> {
        self.0.membership.change(&Change::Upgrade, deadline).await?;
        self.read_barrier(deadline).await.map_err(|_| Error::MembershipPending)?;
        // A leader of an earlier version raises the level to the one that it knows.
        let (level, newest) = (self.0.view.raft.applied().level(), FeatureLevel::NEWEST);
        match level < newest {
            true => Err(Error::MembershipRefused(format!(
                "the cluster has feature level {level}, and not {newest}: its leader does not support it"
            ))),
            false => Ok(()),
        }
    }

    /// Hands the leadership to another voter if this node leads, so that stopping it costs no election.
    pub async fn hand_over(&self) {
        self.0.leadership.hand_over(Instant::now() + HAND_OVER_DEADLINE).await;
    }

    /// Completes if the consensus engine fails, with the reason.
    pub async fn failed(&self) -> String {
        use openraft::error::Fatal;
        loop {
            match self.0.view.raft.with_metrics(|metrics| metrics.running_state.clone()) {
                Err(fatal @ (Fatal::StorageError(_) | Fatal::Panicked)) => return fatal.to_string(),
                Ok(()) | Err(Fatal::Stopped) => tokio::time::sleep(FAILURE_POLL).await,
            }
        }
    }

    /// The figures of this node's disk, if it is full; writes are refused then.
    pub fn disk_full(&self) -> Option<DiskFull> {
        self.0.free_space.disk_full()
    }

    /// This node's base URL, as the others know it.
    pub fn url(&self) -> &str {
        &self.0.view.founders.own_url
    }

    /// The URLs of the nodes that can be reached, this one included, each with the revision of the store up to which it has
    /// compiled plugins and put hooks in force.
    pub fn prepared(&self) -> Vec<(String, u64)> {
        let own = (self.url().to_owned(), self.0.greeter.prepared.load(Ordering::Relaxed));
        std::iter::once(own).chain(self.0.view.peers.prepared()).collect()
    }

    /// Tells the other nodes up to which revision of the store this one has compiled plugins and put hooks in force.
    pub fn set_prepared(&self, revision: u64) {
        self.0.greeter.prepared.store(revision, Ordering::Relaxed);
    }

    /// Waits until every other node that can be reached has prepared `revision` of the store. Returns the URLs of those that
    /// have not by the deadline.
    pub async fn wait_prepared(&self, revision: u64, deadline: Instant) -> Vec<String> {
        self.0.greeter.wait_prepared(revision, deadline).await
    }

    /// The index of the last log entry this node has applied, as it changes.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.0.view.raft.applied().subscribe()
    }

    /// Stops taking part. Acknowledged writes stay on disk; later calls are refused.
    pub async fn shutdown(&self) {
        self.0.stop.cancel();
        if let Err(error) = self.0.view.raft.raft().shutdown().await {
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
        options: Options,
        view: Arc<ClusterView>,
        identity: Arc<Identity>,
        transport: Arc<dyn Transport>,
        telemetry: Telemetry,
    ) -> Self {
        let Options { free_space, spool_dir, blocking, may_found, clock, check_proposed, .. } = options;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let receiver = Receiver::new(spool_dir, free_space.clone(), blocking.clone(), tasks.clone(), stop.clone());
        let lease = Arc::new(Lease::default());
        let leadership = Arc::new(Leadership { view: view.clone(), successor: Mutex::default() });
        let greeter = Arc::new(Greeter {
            identity: identity.clone(),
            view: view.clone(),
            lease: lease.clone(),
            free_space: free_space.clone(),
            transport: transport.clone(),
            telemetry: telemetry.clone(),
            prepared: AtomicU64::new(0),
            run: fastrand::u64(..),
        });
        let formation = Arc::new(Formation {
            may_found,
            identity: identity.clone(),
            view: view.clone(),
            transport: transport.clone(),
            other_lists: Mutex::default(),
        });
        let membership = Arc::new(Membership {
            identity: identity.clone(),
            view: view.clone(),
            greeter: greeter.clone(),
            leadership: leadership.clone(),
            transport: transport.clone(),
            changing: tokio::sync::Mutex::new(()),
        });
        let proposer = Proposer::start(
            view.clone(),
            leadership.clone(),
            free_space.clone(),
            transport.clone(),
            telemetry,
            check_proposed,
        );
        let reads = Reads::start(view.clone(), clock, transport);
        Self {
            identity,
            view: view.clone(),
            greeter,
            formation,
            membership,
            leadership,
            lease,
            doorkeeper: Arc::new(Doorkeeper::new(view)),
            proposer,
            reads,
            free_space,
            receiver: Arc::new(receiver),
            blocking,
            peer_bodies: ByteBudget::new(PEER_BODIES_BYTES_MAX),
            fetches: Arc::new(Semaphore::new(FETCHES_MAX)),
            stop,
            tasks,
        }
    }
}
