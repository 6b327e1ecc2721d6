//! From a node's writes to committed rounds.
//!
//! Writes that arrive while an earlier round is in flight share the next round, so that batches grow with the load: an idle
//! node proposes a single write at once, a busy node fills its rounds. A slow round, because of a wide network or a lost
//! leader, delays the next one by at most [`ROUND_PATIENCE`]. A round is sent to the leader, wherever it is, and is sent
//! again only if it is certain that no node has appended it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::error::{Error, WriteOutcome};
use super::peer::protocol::{Call, Failure, Transport};
use super::types::{Round, RoundWrite, TypeConfig, decode, encode};
use super::{cluster::leadership::Leadership, cluster::view::ClusterView, disk_full};
use crate::clock;
use crate::limits::PROPOSE_QUEUE_MAX;
use crate::storage::{DiskFull, FeatureLevel, FreeSpace, GuardedWrite, Outcome};
use crate::telemetry::{Stage, Telemetry, TraceContext, names};

/// Most writes in a proposal round.
const ROUND_WRITES_MAX: usize = 1_024;

/// Most bytes of commands in a proposal round. A single larger write goes alone.
const ROUND_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Time that the writes of the next proposal round wait for the round in flight.
const ROUND_PATIENCE: Duration = Duration::from_millis(20);

/// Most proposal rounds in flight at once on a node.
const ROUNDS_IN_FLIGHT_MAX: usize = 8;

/// Pause before a node looks for the leader again.
pub(super) const LEADER_POLL: Duration = Duration::from_millis(20);

/// Time in which a former leader may still answer earlier requests.
const SUCCESSION_GRACE: Duration = Duration::from_millis(100);

/// Gathers writes into rounds, and proposes the rounds here or on the leader.
pub(super) struct Proposer {
    view: Arc<ClusterView>,
    leadership: Arc<Leadership>,
    free_space: FreeSpace,
    transport: Arc<dyn Transport>,
    telemetry: Telemetry,
    queue: mpsc::Sender<Pending>,
}

/// A write that waits for its outcome.
struct Pending {
    write: RoundWrite,
    deadline: Instant,
    queued: std::time::Instant,
    reply: oneshot::Sender<Result<Outcome, Error>>,
}

/// The leader's answer to a forwarded round.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) enum Forwarded {
    /// One outcome per write.
    Done(Vec<Outcome>),
    /// The node does not lead, or soon will not, and has appended nothing.
    NotLeader,
    /// The disks of the leader and of every possible successor are full. Nothing was appended.
    DiskFull(DiskFull),
    /// The leader could not complete the round.
    Failed { successful: u32, outcome: WriteOutcome },
    /// The leader lost the leadership while the round was in its log.
    LeaderLost,
}

/// The result of one attempt to commit a round. If none, no node has appended the round: it may be proposed again.
type Attempt = Option<Vec<Outcome>>;

impl Proposer {
    /// Starts the task that makes rounds; it ends with the proposer.
    pub(super) fn start(
        view: Arc<ClusterView>,
        leadership: Arc<Leadership>,
        free_space: FreeSpace,
        transport: Arc<dyn Transport>,
        telemetry: Telemetry,
    ) -> Arc<Self> {
        let (queue, writes) = mpsc::channel(PROPOSE_QUEUE_MAX);
        let proposer = Arc::new(Self { view, leadership, free_space, transport, telemetry, queue });
        tokio::spawn(make_rounds(Arc::downgrade(&proposer), writes));
        proposer
    }

    /// Proposes a write and waits until it is committed and applied by the leader.
    pub(super) async fn propose(
        &self,
        write: &GuardedWrite,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Result<Outcome, Error> {
        self.view.check_standing()?;
        disk_full::check(&self.free_space)?;
        let (reply, answer) = oneshot::channel();
        let command = write.encode(self.view.raft.applied().level()).map_err(Error::Codec)?;
        let write = RoundWrite { trace, command: command.into() };
        let pending = Pending { write, deadline, queued: std::time::Instant::now(), reply };
        self.queue.try_send(pending).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::Busy { limit: PROPOSE_QUEUE_MAX },
            mpsc::error::TrySendError::Closed(_) => Error::Stopped { outcome: WriteOutcome::NotWritten },
        })?;
        let metrics = self.telemetry.metrics();
        metrics.pending(1);
        let answer = answer.await.unwrap_or(Err(Error::Stopped { outcome: WriteOutcome::Unknown }));
        metrics.pending(-1);
        answer
    }

    /// Proposes one round and tells each writer its outcome.
    async fn run_round(
        self: Arc<Self>,
        pending: Vec<Pending>,
        _in_flight: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
    ) {
        for write in &pending {
            self.telemetry.metrics().write_stage(Stage::Queue, write.queued.elapsed());
        }
        let Some(deadline) = pending.iter().map(|write| write.deadline).min() else { return };
        let (writes, replies): (Vec<_>, Vec<_>) = pending.into_iter().map(|write| (write.write, write.reply)).unzip();
        match self.commit(Round { stamped_at_ms: None, writes }, deadline).await {
            Ok(outcomes) => {
                for (reply, outcome) in replies.into_iter().zip(outcomes) {
                    // Sending fails if the writer has stopped waiting; its write stands.
                    let _ = reply.send(Ok(outcome));
                }
            }
            Err(error) => {
                for reply in replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    async fn commit(&self, round: Round, deadline: Instant) -> Result<Vec<Outcome>, Error> {
        loop {
            let attempt = match self.view.leader() {
                Some((leader, _)) if leader == self.view.raft.id() => {
                    self.propose_here(round.clone(), deadline).await?
                }
                Some((leader, url)) => self.forward(leader, &url, &round, deadline).await?,
                None => None,
            };
            match attempt {
                Some(outcomes) => return Ok(outcomes),
                // Waiting helps only while a majority can be reached to elect a leader.
                None if self.view.quorum_is_out_of_reach() || Instant::now() + LEADER_POLL >= deadline => {
                    return Err(self.view.no_quorum(WriteOutcome::NotWritten));
                }
                None => tokio::time::sleep(LEADER_POLL).await,
            }
        }
    }

    /// Proposes on this node, which believes that it leads.
    async fn propose_here(&self, mut round: Round, deadline: Instant) -> Result<Attempt, Error> {
        use openraft::{error::ClientWriteError, impls::ProgressResponder};

        round.stamped_at_ms = self.stamp(&round);
        let began = (std::time::Instant::now(), clock::now());
        let traces: Vec<_> = round.writes.iter().filter_map(|write| write.trace).collect();
        let (responder, committed, completed) = ProgressResponder::<TypeConfig, _>::new();
        let stopped = |outcome| move |_| Error::Stopped { outcome };
        self.view
            .raft
            .raft()
            .client_write_ff(round, Some(responder))
            .await
            .map_err(stopped(WriteOutcome::NotWritten))?;

        let in_flight = async {
            if let Ok(log_id) = committed.await {
                let ended = clock::now();
                self.telemetry.metrics().write_stage(Stage::Commit, began.0.elapsed());
                for trace in &traces {
                    let position = [names::log_index(log_id.index())];
                    self.telemetry.record_span(names::SPAN_COMMIT, *trace, began.1, ended, &position);
                }
            }
            completed.await
        };
        match tokio::time::timeout_at(deadline, in_flight).await {
            Ok(Ok(Ok(response))) => Ok(Some(response.data)),
            Ok(Ok(Err(ClientWriteError::ForwardToLeader(_)))) => Ok(None),
            // The entry was in the log when the leader lost the leadership; its successor may have committed it.
            Ok(Ok(Err(_))) => Err(Error::LeaderLost),
            Ok(Err(_)) => Err(Error::Stopped { outcome: WriteOutcome::Unknown }),
            Err(_) => Err(Error::NoQuorum {
                successful: self.view.raft.holders_of_last_entry(),
                outcome: WriteOutcome::Unknown,
            }),
        }
    }

    /// The time of a round that this node proposes; none while the feature level allows none.
    fn stamp(&self, round: &Round) -> Option<u64> {
        let applied = self.view.raft.applied();
        // This node may not have applied yet what the node that encoded a command has.
        let is_due = applied.level() >= FeatureLevel::STAMPED
            || round.writes.iter().any(|write| GuardedWrite::needs_stamp(&write.command));
        is_due.then(|| self.view.stamp_ms())
    }

    /// Sends a round to the leader. It may be sent again only if it was certainly not appended.
    async fn forward(&self, leader: u64, url: &str, round: &Round, deadline: Instant) -> Result<Attempt, Error> {
        let began = clock::now();
        let remaining = deadline.saturating_duration_since(Instant::now());
        let call = self.transport.call(leader, url, Call::Propose, encode(&(round, remaining))?, remaining);
        let answer = tokio::select! {
            biased;
            answer = call => answer,
            () = self.succession(leader) => return Err(Error::LeaderLost),
        };
        let ended = clock::now();
        for trace in round.writes.iter().filter_map(|write| write.trace) {
            self.telemetry.record_span(names::SPAN_FORWARD, trace, began, ended, &[]);
        }
        match answer {
            // An unreadable answer does not mean that the round was not appended.
            Ok(body) => match decode(&body).map_err(|_| Error::LeaderLost)? {
                Forwarded::Done(outcomes) => Ok(Some(outcomes)),
                Forwarded::NotLeader => Ok(None),
                Forwarded::DiskFull(disk_full) => Err(Error::DiskFull(disk_full)),
                Forwarded::Failed { successful, outcome } => {
                    Err(Error::NoQuorum { successful: usize::try_from(successful).unwrap_or(usize::MAX), outcome })
                }
                Forwarded::LeaderLost => Err(Error::LeaderLost),
            },
            Err(error) => match error.failure {
                Failure::NotSent | Failure::Refused => Ok(None),
                Failure::NoAnswer if Instant::now() >= deadline => Err(self.view.no_quorum(WriteOutcome::Unknown)),
                Failure::NoAnswer => Err(Error::LeaderLost),
            },
        }
    }

    /// Completes shortly after a node other than `leader` leads. A leader that handed over still answers within that time. A
    /// leader that hangs or was cut off never answers, and rounds that wait for it would hold up the next ones.
    async fn succession(&self, leader: u64) {
        while self.view.leader().is_none_or(|(current, _)| current == leader) {
            tokio::time::sleep(LEADER_POLL).await;
        }
        tokio::time::sleep(SUCCESSION_GRACE).await;
    }

    /// Serves a round that another node forwarded.
    pub(super) async fn serve(&self, body: &[u8]) -> Result<Forwarded, Error> {
        let (round, remaining): (Round, Duration) = decode(body)?;
        if self.view.leader().is_none_or(|(leader, _)| leader != self.view.raft.id()) {
            return Ok(Forwarded::NotLeader);
        }
        if let Err(Error::DiskFull(disk_full)) = disk_full::check(&self.free_space) {
            return Ok(if self.leadership.successor_with_space().is_some() {
                Forwarded::NotLeader
            } else {
                Forwarded::DiskFull(disk_full)
            });
        }
        // A little earlier than the other side's, so that it receives our answer and not a timeout.
        let deadline = Instant::now() + remaining.saturating_sub(LEADER_POLL);
        Ok(match self.propose_here(round, deadline).await {
            Ok(Some(outcomes)) => Forwarded::Done(outcomes),
            Ok(None) => Forwarded::NotLeader,
            Err(Error::LeaderLost) => Forwarded::LeaderLost,
            Err(error) => Forwarded::Failed {
                successful: match error {
                    Error::NoQuorum { successful, .. } => u32::try_from(successful).unwrap_or(u32::MAX),
                    _ => 1,
                },
                outcome: error.outcome(),
            },
        })
    }
}

/// Makes rounds of the queued writes until the proposer is dropped.
async fn make_rounds(proposer: Weak<Proposer>, mut queue: mpsc::Receiver<Pending>) {
    let in_flight = Arc::new(Semaphore::new(ROUNDS_IN_FLIGHT_MAX));
    // Held by the round that the next round waits for.
    let latest = Arc::new(Semaphore::new(1));
    let mut left_over = None;
    loop {
        let Ok(permit) = in_flight.clone().acquire_owned().await else { return };
        let first = match left_over.take() {
            Some(pending) => pending,
            None => {
                let Some(pending) = queue.recv().await else { return };
                pending
            }
        };
        let turn = tokio::time::timeout(ROUND_PATIENCE, latest.clone().acquire_owned()).await;
        let turn = turn.ok().and_then(Result::ok);
        let mut bytes = first.write.command.len();
        let mut round = vec![first];
        while round.len() < ROUND_WRITES_MAX {
            let Ok(next) = queue.try_recv() else { break };
            bytes += next.write.command.len();
            if bytes > ROUND_BYTES_MAX {
                left_over = Some(next);
                break;
            }
            round.push(next);
        }
        let Some(proposer) = proposer.upgrade() else { return };
        tokio::spawn(proposer.run_round(round, (permit, turn)));
    }
}
