//! How a write becomes durable on a majority, and how a read knows that it is fresh.
//!
//! # Problem
//!
//! Every node holds the whole store. A write may arrive at any of them, and once it is acknowledged it must survive
//! the loss of any minority, power loss of all nodes included (P1). Reads from any node must be able to be
//! linearizable (P2), and a node cut off from the others must still answer from what it has and say so (P5).
//!
//! # Approach
//!
//! Raft (Ongaro and Ousterhout 2014), with openraft as its engine. This module gives openraft what it needs and keeps
//! the rest of the node away from it:
//!
//! - `types`: a log entry is a [`Round`]: the finished commands of all writes that shared a proposal.
//! - `proposer`: gathers writes into rounds and takes them to the leader, wherever it is.
//! - `log_store`, `state_machine`: openraft's storage on the two databases of [`crate::storage`].
//! - `transport`: the one door to other nodes, as a trait; HTTP in production.
//! - `line`: the connections of that door, on which calls follow each other closely.
//! - `server`: what this node answers to others.
//! - `recovery`: whether what is on the disk fits together.
//! - `space`: what a node with a full disk does.
//! - `reads`: the gate of strong reads: leader lease or read index, shared by all reads that wait.
//! - `peers`: the other nodes and how they are.
//! - `identity`: who this node is: it forms the cluster with others, or joins it under an id of its own.
//! - `membership`: who belongs to the cluster, and who leads it.
//! - `log_cut`: when the log is cut, and where.
//! - `engine`: openraft under this node's id.
//! - `blocking`: where work is done that may block.
//! - `snapshot`: a whole state on its way to a node that is too far behind.
//! - `sim`: all of this under simulated time, network and disks, from seeds; for tests.
//!
//! # Guarantees
//!
//! - An acknowledged write is fsynced in the logs of a majority of the voters.
//! - A write that is refused says whether it may yet appear ([`WriteOutcome`]).
//! - A restarted voter neither votes nor stands for one lease, since it has forgotten whom it promised not to depose.
//! - Calls from another cluster, even one of the same URLs, change nothing.
//!
//! # Cost of one write on an idle cluster
//!
//! One fsync on the leader, in parallel with one round trip and one fsync on the fastest majority of followers; one
//! more round trip if the write came to a follower. Concurrent writes share rounds, and appends share fsyncs.
//! `data/` is not fsynced per write. A command is encoded once, on the node that received it; its bytes are copied into
//! the log entry, and once per follower into the request.
//!
//! # Failure model
//!
//! Nodes stop and come back, networks lose and delay messages, disks keep what was fsynced. Clocks may differ, and run at
//! rates that differ by less than a tenth (leader leases rely on it, see `reads`). Nodes do not lie.

mod blocking;
mod engine;
mod error;
mod identity;
mod line;
#[cfg(test)]
mod local_tests;
mod log_cut;
mod log_store;
mod membership;
mod peers;
mod proposer;
mod reads;
mod recovery;
mod server;
mod shared;
#[cfg(test)]
mod sim;
mod snapshot;
mod space;
mod state_machine;
mod status;
#[cfg(test)]
mod tests;
mod transport;
mod types;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

pub use self::blocking::Blocking;
use self::engine::EngineParts;
pub use self::error::{Error, WriteOutcome};
pub use self::identity::ClusterId;
pub use self::line::PROTOCOL;
use self::membership::Change;
pub use self::membership::Role;
use self::proposer::Pending;
pub use self::recovery::check as check_storage;
use self::shared::Shared;
pub use self::status::{PeerStatus, Status};
pub use self::transport::{
    CLUSTER_HEADER, Call, CallError, Envelope, HttpTransport, REFUSAL_HEADER, TO_HEADER, Transport,
};
use self::types::{LogId, decode};
pub use self::types::{Round, RoundWrite, TypeConfig, node_id};
use crate::limits::PROPOSE_QUEUE_MAX;
use crate::storage::{Data, DiskFull, FreeSpace, GuardedWrite, Log, Outcome};
use crate::telemetry::{Telemetry, TraceContext};

/// How a node takes part in its cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// The base URL under which the other nodes reach this one.
    pub self_url: String,
    /// The base URLs of the other nodes; empty for a single node.
    pub peer_urls: Vec<String>,
    /// Where snapshots from other nodes are spooled.
    pub spool_dir: PathBuf,
    /// Whether it may form a cluster with others. One that lost its data must not: it has a cluster.
    pub may_found: bool,
    /// How much room its disk has.
    pub free_space: FreeSpace,
    /// Raft's clock.
    pub timing: Timing,
    /// After how many log entries a snapshot is taken, so that the log can be cut. As many are kept behind it.
    pub snapshot_entries: u64,
    /// Where work is done that may block.
    pub blocking: Blocking,
}

/// Raft's clock. Failover takes about a lease plus a random time between `election_min` and `election_max`.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How often the leader says that it is there.
    pub heartbeat: Duration,
    /// Least time of silence, beyond the lease, after which a follower stands for election.
    pub election_min: Duration,
    /// Most time of silence, and the length of the leader's lease.
    pub election_max: Duration,
}

impl Timing {
    /// For nodes within a millisecond or two of each other.
    pub const LAN: Self = Self {
        heartbeat: Duration::from_millis(50),
        election_min: Duration::from_millis(150),
        election_max: Duration::from_millis(250),
    };
}

/// How long a snapshot may be under way to another node.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Entries of the log removed in one go once a snapshot covers them.
const PURGE_ENTRIES: u64 = 1_024;

/// How often it is looked whether the other nodes have prepared something. They tell with every hello.
const PREPARED_POLL: Duration = Duration::from_millis(25);

/// How often it is looked whether the engine still runs.
const FAILURE_POLL: Duration = Duration::from_millis(100);

/// How long a leader that stops tries to hand over.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(1);

/// Added to the lease after a restart, for clocks that run at slightly different rates.
const RESTART_MARGIN: Duration = Duration::from_millis(100);

/// This node's part in the cluster. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
    proposals: mpsc::Sender<Pending>,
    gate: reads::Gate,
}

impl Handle {
    /// Starts taking part: opens the engine on the databases, looks for the other nodes, forms the cluster with them
    /// if there is none yet.
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
        let founders: BTreeMap<u64, String> = std::iter::once(&options.self_url)
            .chain(&options.peer_urls)
            .map(|url| (node_id(url), url.clone()))
            .collect();
        if founders.len() != options.peer_urls.len() + 1 {
            return Err(StartError::Ambiguous);
        }
        let own = match identity::stored(&log)? {
            None if options.peer_urls.is_empty() => Some(identity::found_alone(&log).await?),
            own => own,
        };
        let engine_parts = EngineParts {
            config: Arc::new(engine_config(&options).validate()?),
            applied: watch::Sender::new(applied_index(&data)?),
            log,
            data,
            transport: transport.clone(),
            telemetry: telemetry.clone(),
            blocking: options.blocking.clone(),
        };
        let id = own.map_or_else(|| node_id(&options.self_url), |own| own.id);
        let engine = engine_parts.build(id, own.is_some()).await?;
        let applied = engine_parts.applied.subscribe();
        let shared = Arc::new(Shared::new(options, founders, engine, engine_parts, transport, telemetry, applied));
        if let Some(cluster) = own.and_then(|own| own.cluster) {
            shared.set_cluster(cluster);
        }
        peers::start(&shared).await?;
        tokio::spawn(space::attend(shared.clone()));
        log_cut::start(shared.clone());
        Ok(Self { proposals: proposer::start(shared.clone()), gate: reads::Gate::start(shared.clone()), shared })
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
        space::check(&self.shared)?;
        let (reply, answer) = oneshot::channel();
        let pending =
            Pending { write: RoundWrite::new(write, trace)?, deadline, queued: std::time::Instant::now(), reply };
        self.proposals.try_send(pending).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::Busy { limit: PROPOSE_QUEUE_MAX },
            mpsc::error::TrySendError::Closed(_) => Error::Stopped { outcome: WriteOutcome::NotWritten },
        })?;
        self.shared.telemetry.metrics().pending(1);
        let answer = answer.await.unwrap_or(Err(Error::Stopped { outcome: WriteOutcome::Unknown }));
        self.shared.telemetry.metrics().pending(-1);
        answer
    }

    /// Returns once this node's state holds every write that was acknowledged, by any node, before the call.
    ///
    /// # Errors
    ///
    /// If that cannot be established by the deadline.
    pub async fn read_barrier(&self, deadline: Instant) -> Result<(), Error> {
        self.gate.pass(deadline).await
    }

    /// How long ago this node last knew itself to be up to date.
    pub fn staleness(&self) -> Duration {
        self.shared.staleness()
    }

    /// The cluster as this node sees it.
    pub fn status(&self) -> Status {
        self.shared.status()
    }

    /// Adds a node to the cluster, or gives it another role. Returns once that is in force: a voter has caught up then.
    ///
    /// # Errors
    ///
    /// If the node cannot be added, or that was not done by the deadline; it may be asked for again.
    pub async fn add_member(&self, url: &str, role: Role, deadline: Instant) -> Result<(), Error> {
        membership::change(&self.shared, &Change::Add { url: url.to_owned(), role }, deadline).await
    }

    /// Removes a node from the cluster; it takes no part any more, whether it runs or not.
    ///
    /// # Errors
    ///
    /// As for [`Handle::add_member`].
    pub async fn remove_member(&self, url: &str, deadline: Instant) -> Result<(), Error> {
        membership::change(&self.shared, &Change::Remove { url: url.to_owned() }, deadline).await
    }

    /// Makes a voter the leader.
    ///
    /// # Errors
    ///
    /// As for [`Handle::add_member`].
    pub async fn transfer_leader(&self, url: &str, deadline: Instant) -> Result<(), Error> {
        membership::change(&self.shared, &Change::Transfer { url: url.to_owned() }, deadline).await
    }

    /// If this node leads: hands the leadership to another, so that its end costs writes no election.
    pub async fn hand_over(&self) {
        membership::hand_over(&self.shared, Instant::now() + HAND_OVER_DEADLINE).await;
    }

    /// Waits until the consensus engine has stopped by itself; for ever, if it does not. Returns why.
    pub async fn failed(&self) -> String {
        use openraft::error::Fatal;
        loop {
            match self.shared.metrics().running_state {
                Err(fatal @ (Fatal::StorageError(_) | Fatal::Panicked)) => return fatal.to_string(),
                Ok(()) | Err(Fatal::Stopped) => tokio::time::sleep(FAILURE_POLL).await,
            }
        }
    }

    /// If the disk of this node is full: the figures. Writes are refused then.
    pub fn disk_full(&self) -> Option<DiskFull> {
        self.shared.options.free_space.disk_full()
    }

    /// This node's base URL, as the others know it.
    pub fn url(&self) -> &str {
        &self.shared.options.self_url
    }

    /// The nodes that can be reached, this one included, and up to which revision of the store each has prepared what it
    /// holds.
    pub fn prepared(&self) -> Vec<(String, u64)> {
        let own = (self.url().to_owned(), self.shared.prepared_revision.load(Ordering::Relaxed));
        std::iter::once(own).chain(self.shared.prepared_peers()).collect()
    }

    /// Tells the other nodes up to which revision of the store this one has prepared what it holds.
    pub fn set_prepared(&self, revision: u64) {
        self.shared.prepared_revision.store(revision, Ordering::Relaxed);
    }

    /// Waits until every node that can be reached has prepared what the store held at `revision`. Returns the URLs of
    /// those that had not by the deadline.
    pub async fn wait_prepared(&self, revision: u64, deadline: Instant) -> Vec<String> {
        loop {
            let unprepared = self.shared.unprepared(revision);
            if unprepared.is_empty() || Instant::now() >= deadline {
                return unprepared;
            }
            tokio::time::sleep(PREPARED_POLL).await;
        }
    }

    /// The index of the last log entry this node has applied, as it changes.
    pub fn applied(&self) -> watch::Receiver<u64> {
        self.shared.applied.clone()
    }

    /// Answers one call, for the networks of tests.
    #[cfg(test)]
    pub(super) async fn serve(
        &self,
        call: Call,
        envelope: Envelope,
        body: bytes::Bytes,
    ) -> Result<bytes::Bytes, Error> {
        server::serve(&self.shared, call, envelope, body).await
    }

    /// Answers the calls that another node makes on a line, until either of them ends it.
    pub async fn serve_line(&self, io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite) {
        server::serve_line(&self.shared, io).await;
    }

    /// Receives a snapshot from the leader.
    ///
    /// # Errors
    ///
    /// If the snapshot is not meant for this node or cannot be taken now; one that is not whole changes nothing.
    pub async fn serve_snapshot<S, E>(&self, envelope: Envelope, body: S) -> Result<bytes::Bytes, Error>
    where
        S: futures::Stream<Item = Result<bytes::Bytes, E>> + Unpin + Send,
        E: std::error::Error + Send + Sync + 'static,
    {
        server::serve_snapshot(&self.shared, envelope, body).await
    }

    /// Stops taking part. What was acknowledged stays on disk; calls that follow are refused.
    pub async fn shutdown(&self) {
        self.shared.stop();
        if let Err(error) = self.shared.raft().shutdown().await {
            tracing::error!(%error, "the consensus engine did not stop cleanly");
        }
    }
}

/// Why a node could not start taking part.
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

fn applied_index(data: &Data) -> Result<u64, Error> {
    match data.meta(state_machine::APPLIED)? {
        Some(bytes) => Ok(decode::<LogId>(&bytes)?.index()),
        None => Ok(0),
    }
}

fn engine_config(options: &Options) -> openraft::Config {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    openraft::Config {
        cluster_name: "brink".to_owned(),
        heartbeat_interval: ms(options.timing.heartbeat),
        election_timeout_min: ms(options.timing.election_min),
        election_timeout_max: ms(options.timing.election_max),
        install_snapshot_timeout: ms(SNAPSHOT_TIMEOUT),
        snapshot_policy: openraft::SnapshotPolicy::LogsSinceLast(options.snapshot_entries),
        // Never by the engine itself: `log_cut` knows who still needs it.
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: options.snapshot_entries.saturating_mul(2),
        purge_batch_size: PURGE_ENTRIES.min(options.snapshot_entries),
        enable_pre_vote: Some(true),
        // Allowed once it is certain that no promise of before a restart stands against it.
        enable_elect: false,
        // A restarted leader must win an election again: its lease is gone with its memory.
        enable_leader_restore: Some(false),
        removed_leader_step_down: openraft::StepDownPolicy::Never,
        ..openraft::Config::default()
    }
}
