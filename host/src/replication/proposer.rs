//! From a node's writes to committed rounds.
//!
//! Writes that arrive while an earlier round is in flight share the next round, so that batches grow with the load: an idle
//! node proposes a single write at once, a busy node fills its rounds. A slow round, because of a wide network or a lost
//! leader, delays the next one by at most [`ROUND_PATIENCE`]; waiting for more writers (see [`super::gathering`]) delays it by
//! 2 ms. A round is sent to the leader, wherever it is, and is sent
//! again only if it is certain that no node has appended it. On the leader, it waits among the leader's own writes, so that the
//! rounds of all nodes share one log entry.
//!
//! Each write has its own deadline. If it passes before the write is in a log, the write is dropped, and its caller knows that
//! it is not written; if it passes later, only this caller learns that the outcome is unknown, and the others of the round
//! wait on. [`super::queue`] bounds what waits and what is in flight.

use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::error::{Error, Limit, WriteOutcome};
use super::gathering::Gathering;
use super::peer::protocol::{Call, Failure, Transport};
use super::proposed::{self, CheckProposed};
use super::queue::{self, Proposal, Queue};
use super::types::{Round, RoundWrite, TypeConfig, decode, decode_shared, encode_with_rounds};
use super::{cluster::leadership::Leadership, cluster::view::ClusterView, disk_full};
use crate::clock;
use crate::limits::{COMMAND_BYTES_MAX, PROPOSE_QUEUE_BYTES_MAX};
use crate::storage::{DiskFull, FeatureLevel, FreeSpace, GuardedWrite, Outcome};
use crate::telemetry::{Stage, Telemetry, TraceContext, names};

/// Longest time between two rounds while the earlier one is in flight.
const ROUND_PATIENCE: Duration = Duration::from_millis(20);

/// Most bytes of a node's proposal rounds in flight at once; a single larger round goes alone. Small, so that what is in a log is
/// committed by its deadline on slow disks too: a write that waits instead is *not written* if it waits too long.
const IN_FLIGHT_BYTES_MAX: u32 = 8 * 1024 * 1024;

/// What a round in flight counts as at least, so that there are at most eight.
const IN_FLIGHT_BYTES_MIN: u32 = IN_FLIGHT_BYTES_MAX / 8;

/// Interval at which the queue is searched for writes that nobody waits for any more, while no round can be made.
const SWEEP_INTERVAL: Duration = Duration::from_millis(20);

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
    check_proposed: CheckProposed,
    queue: Arc<Queue>,
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
    Failed {
        successful: u32,
        outcome: WriteOutcome,
        /// Whether the leader has no room for the round. Earlier versions neither send nor read it.
        #[serde(deserialize_with = "absent_is_false")]
        is_busy: bool,
    },
    /// The leader lost the leadership while the round was in its log.
    LeaderLost,
}

/// Reads a last field that earlier versions do not send.
fn absent_is_false<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Ok(serde::Deserialize::deserialize(deserializer).unwrap_or_default())
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
        check_proposed: CheckProposed,
    ) -> Arc<Self> {
        let queue = Arc::new(Queue::new());
        let parts = Self { view, leadership, free_space, transport, telemetry, check_proposed, queue: queue.clone() };
        let proposer = Arc::new(parts);
        tokio::spawn(make_rounds(Arc::downgrade(&proposer), queue));
        proposer
    }

    /// Proposes a write and waits until it is committed and applied by the leader. If the returned future is dropped, so is a
    /// write that is still queued.
    pub(super) async fn propose(
        &self,
        write: &GuardedWrite,
        trace: Option<TraceContext>,
        deadline: Instant,
    ) -> Result<Outcome, Error> {
        self.view.check_standing()?;
        disk_full::check(&self.free_space)?;
        let command = write.encode(self.view.raft.applied().level()).map_err(Error::Codec)?;
        if command.len() > COMMAND_BYTES_MAX {
            return Err(Error::TooLarge { bytes: command.len() });
        }
        let held = self.queue.reserve(command.len()).ok_or_else(|| self.overloaded(Limit::QueuedBytes))?;
        let answer = self.queue.push(RoundWrite { trace, command }, held, deadline);
        let answer = answer.ok_or_else(|| self.overloaded(Limit::QueuedWrites))?;
        let _pending = self.telemetry.metrics().pending();
        answer.await.unwrap_or(Err(Error::Stopped { outcome: WriteOutcome::Unknown }))
    }

    /// Proposes one round, again while it is certain that no node has appended it, and tells each writer its outcome.
    async fn run_round(
        self: Arc<Self>,
        mut proposal: Proposal,
        _in_flight: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
    ) {
        for caller in &proposal.callers {
            self.telemetry.metrics().write_stage(Stage::Queue, caller.queued.elapsed());
        }
        let mut was_attempted = false;
        while proposal.retain_waiting(|| self.too_late(was_attempted)) {
            was_attempted = true;
            match self.attempt(&mut proposal).await {
                Ok(Some(outcomes)) => return proposal.conclude(outcomes),
                Err(error) => return proposal.fail(&error),
                Ok(None) => {}
            }
            // Who forwarded a round finds the next leader. Waiting helps the others while a majority can elect one.
            if proposal.hand_back() && self.view.quorum_is_out_of_reach() {
                return proposal.fail(&self.view.no_quorum(WriteOutcome::NotWritten));
            }
            let poll = Instant::now() + LEADER_POLL;
            let deadline = queue::first_deadline(&proposal.callers);
            tokio::time::sleep_until(deadline.map_or(poll, |deadline| deadline.min(poll))).await;
        }
    }

    /// One attempt to commit a round, where the leader is. Callers whose deadline passes meanwhile are told that their writes may yet
    /// appear.
    async fn attempt(&self, proposal: &mut Proposal) -> Result<Attempt, Error> {
        let leader = self.view.leader();
        let leads = leader.as_ref().is_some_and(|(leader, _)| *leader == self.view.raft.id());
        // No round is forwarded twice.
        if !leads && !proposal.hand_back() {
            return Ok(None);
        }
        let Some((leader, url)) = leader else { return Ok(None) };
        let Proposal { round, callers, .. } = proposal;
        let in_doubt = || self.in_doubt();
        let Some(last) = queue::last_deadline(callers) else { return Ok(None) };
        let commit = async {
            match leads {
                true => self.propose_here(round.clone()).await,
                false => self.forward(leader, &url, round, last).await,
            }
        };
        let mut committed = pin!(commit);
        while let Some(first) = queue::first_deadline(callers) {
            match tokio::time::timeout_at(first, &mut committed).await {
                Ok(attempt) => return attempt,
                Err(_) => queue::tell_late(callers, in_doubt),
            }
        }
        Err(in_doubt())
    }

    /// The error of a write that is refused because of a limit.
    fn overloaded(&self, limit: Limit) -> Error {
        match self.view.quorum_is_out_of_reach() {
            true => self.view.no_quorum(WriteOutcome::NotWritten),
            false => Error::Busy { limit },
        }
    }

    /// The error of a write whose deadline passed before a node appended it. If it was attempted, no leader took it.
    fn too_late(&self, was_attempted: bool) -> Error {
        match self.view.leader() {
            Some(_) if !was_attempted => self.overloaded(Limit::Deadline),
            _ => self.view.no_quorum(WriteOutcome::NotWritten),
        }
    }

    /// The error of a write whose deadline passed while its round was in flight.
    fn in_doubt(&self) -> Error {
        match self.view.leader() {
            Some((leader, _)) if leader == self.view.raft.id() => {
                Error::NoQuorum { successful: self.view.raft.holders_of_last_entry(), outcome: WriteOutcome::Unknown }
            }
            _ => self.view.no_quorum(WriteOutcome::Unknown),
        }
    }

    /// Proposes on this node, which believes that it leads.
    async fn propose_here(&self, mut round: Round) -> Result<Attempt, Error> {
        use openraft::{error::ClientWriteError, impls::ProgressResponder};

        // The others commit without this node's disk, however slow it is, and what it has not synced is in memory.
        if self.view.raft.unsynced_bytes() > PROPOSE_QUEUE_BYTES_MAX {
            return Err(self.overloaded(Limit::UnsyncedBytes));
        }
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

        if let Ok(log_id) = committed.await {
            let ended = clock::now();
            self.telemetry.metrics().write_stage(Stage::Commit, began.0.elapsed());
            for trace in &traces {
                let position = [names::log_index(log_id.index())];
                self.telemetry.record_span(names::SPAN_COMMIT, *trace, began.1, ended, &position);
            }
        }
        match completed.await {
            Ok(Ok(response)) => Ok(Some(response.data)),
            Ok(Err(ClientWriteError::ForwardToLeader(_))) => Ok(None),
            // The entry was in the log when the leader lost the leadership; its successor may have committed it.
            Ok(Err(_)) => Err(Error::LeaderLost),
            Err(_) => Err(Error::Stopped { outcome: WriteOutcome::Unknown }),
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
        let body = encode_with_rounds(&(round, remaining), round.encoded_bytes())?;
        let call = self.transport.call(leader, url, Call::Propose, body, remaining);
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
                Forwarded::Failed { is_busy: true, .. } => Err(self.overloaded(Limit::LeaderBytes)),
                Forwarded::Failed { successful, outcome, .. } => {
                    Err(Error::NoQuorum { successful: usize::try_from(successful).unwrap_or(usize::MAX), outcome })
                }
                Forwarded::LeaderLost => Err(Error::LeaderLost),
            },
            Err(error) => match error.failure {
                Failure::NotSent | Failure::Starting | Failure::Refused => Ok(None),
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

    /// Serves a round that another node forwarded. After an error nothing was appended.
    pub(super) async fn serve(&self, body: &Bytes) -> Result<Forwarded, Error> {
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
        let not_written = |is_busy| Forwarded::Failed { successful: 1, outcome: WriteOutcome::NotWritten, is_busy };
        let Some(held) = self.queue.reserve(body.len()) else { return Ok(not_written(true)) };
        let (round, remaining): (Round, Duration) = decode_shared(body)?;
        proposed::check(&round, self.check_proposed)?;
        // A little earlier than the other side's, so that it receives our answer and not a timeout.
        let remaining = remaining.saturating_sub(LEADER_POLL);
        if remaining.is_zero() {
            return Ok(not_written(false));
        }
        let answer = self.queue.push_round(round, held, Instant::now() + remaining);
        let Some(answer) = answer else { return Ok(not_written(true)) };
        Ok(match answer.await.unwrap_or(Err(Error::Stopped { outcome: WriteOutcome::Unknown })) {
            Ok(Some(outcomes)) => Forwarded::Done(outcomes),
            Ok(None) => Forwarded::NotLeader,
            Err(Error::LeaderLost) => Forwarded::LeaderLost,
            Err(error) => Forwarded::Failed {
                successful: match error {
                    Error::NoQuorum { successful, .. } => u32::try_from(successful).unwrap_or(u32::MAX),
                    _ => 1,
                },
                outcome: error.outcome(),
                is_busy: matches!(error, Error::Busy { .. }),
            },
        })
    }
}

impl Drop for Proposer {
    fn drop(&mut self) {
        // Ends the task that makes rounds.
        self.queue.wake();
    }
}

/// Makes rounds of the queued writes until the proposer is dropped.
async fn make_rounds(proposer: Weak<Proposer>, queue: Arc<Queue>) {
    let in_flight = Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX as usize));
    let room = |bytes: u32| in_flight.clone().acquire_many_owned(bytes);
    // Held by the round that the next round waits for.
    let latest = Arc::new(Semaphore::new(1));
    let mut gathering = Gathering::new();
    loop {
        let ended = tokio::time::timeout(ROUND_PATIENCE, latest.clone().acquire_owned()).await;
        let turn = ended.ok().and_then(Result::ok);
        if turn.is_some() {
            queue.gather(&mut gathering).await;
        }
        let (mut permit, mut proposal) = loop {
            if proposer.strong_count() == 0 {
                return;
            }
            queue.filled().await;
            let Some(Ok(permit)) = swept(&proposer, None, room(IN_FLIGHT_BYTES_MIN)).await else { return };
            // Nothing is left to take if the writes were dropped, or taken with the last round after they had been announced.
            if let Some(proposal) = queue.take_round() {
                break (permit, proposal);
            }
        };
        gathering.made(proposal.round.writes.len());
        let bytes = u32::try_from(proposal.round.command_bytes()).unwrap_or(u32::MAX);
        let more = bytes.clamp(IN_FLIGHT_BYTES_MIN, IN_FLIGHT_BYTES_MAX) - IN_FLIGHT_BYTES_MIN;
        let Some(Ok(more)) = swept(&proposer, Some(&mut proposal), room(more)).await else { return };
        permit.merge(more);
        let turn = turn.or_else(|| latest.clone().try_acquire_owned().ok());
        let Some(proposer) = proposer.upgrade() else { return };
        tokio::spawn(proposer.run_round(proposal, (permit, turn)));
    }
}

/// Waits for something, and meanwhile drops the writes that nobody waits for, from the queue and from the round that was taken
/// from it. None if the proposer is dropped.
async fn swept<T>(
    proposer: &Weak<Proposer>,
    mut taken: Option<&mut Proposal>,
    wait: impl Future<Output = T>,
) -> Option<T> {
    let mut wait = pin!(wait);
    loop {
        if let Ok(done) = tokio::time::timeout(SWEEP_INTERVAL, &mut wait).await {
            return Some(done);
        }
        let proposer = proposer.upgrade()?;
        proposer.queue.sweep(|| proposer.too_late(false));
        if let Some(taken) = &mut taken {
            taken.retain_waiting(|| proposer.too_late(false));
        }
    }
}
