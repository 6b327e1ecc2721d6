//! From finished writes to committed ones: rounds, the leader, and what is known when something breaks.
//!
//! Writes that arrive while an earlier round is in flight share the next round, so that batching follows load: an idle
//! node proposes a single write at once, a busy one fills its rounds. A round that takes long, over a wide network or
//! because its leader is lost, does not hold up the next for longer than [`ROUND_PATIENCE`]. A round goes to the leader,
//! wherever it is, and is sent again only when it is certain that nobody appended it.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::error::{Error, WriteOutcome};
use super::transport::{Call, CallError};
use super::types::{Round, RoundWrite, TypeConfig, decode, encode};
use super::{membership, space};
use crate::clock;
use crate::limits::{PROPOSE_QUEUE_MAX, ROUND_BYTES_MAX, ROUND_PATIENCE, ROUND_WRITES_MAX, ROUNDS_IN_FLIGHT_MAX};
use crate::storage::{DiskFull, Outcome};
use crate::telemetry::{Stage, names};

/// How long a node waits before it looks for the leader again, if nothing tells it sooner.
pub(super) const LEADER_POLL: std::time::Duration = std::time::Duration::from_millis(20);

/// How long a leader that has been succeeded may take to answer what it was asked before.
const SUCCESSION_GRACE: std::time::Duration = std::time::Duration::from_millis(100);

/// A write that waits for its outcome.
pub(super) struct Pending {
    pub(super) write: RoundWrite,
    pub(super) deadline: Instant,
    pub(super) queued: std::time::Instant,
    pub(super) reply: oneshot::Sender<Result<Outcome, Error>>,
}

/// The answer to a round that was forwarded to the leader.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub(super) enum Forwarded {
    /// One outcome per write.
    Done(Vec<Outcome>),
    /// This node is not the leader, or soon will not be, and has appended nothing.
    NotLeader,
    /// The leader's disk is full, and so are those of the nodes that could take over. Nothing was appended.
    DiskFull(DiskFull),
    /// The leader could not finish the round.
    Failed { successful: u32, outcome: WriteOutcome },
    /// The leader lost its office while the round was in its log.
    LeaderLost,
}

/// Starts the task that makes rounds; it ends when every sender is gone.
pub(super) fn start(shared: Arc<Shared>) -> mpsc::Sender<Pending> {
    let (sender, receiver) = mpsc::channel(PROPOSE_QUEUE_MAX);
    tokio::spawn(make_rounds(shared, receiver));
    sender
}

async fn make_rounds(shared: Arc<Shared>, mut queue: mpsc::Receiver<Pending>) {
    let in_flight = Arc::new(Semaphore::new(ROUNDS_IN_FLIGHT_MAX));
    // Held by the round that the next one waits for.
    let latest = Arc::new(Semaphore::new(1));
    let mut left_over = None;
    loop {
        let Ok(permit) = in_flight.clone().acquire_owned().await else { return };
        let first = match left_over.take() {
            Some(pending) => pending,
            None => match queue.recv().await {
                Some(pending) => pending,
                None => return,
            },
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
        tokio::spawn(run_round(shared.clone(), round, (permit, turn)));
    }
}

/// Proposes one round and tells each writer what came of it.
async fn run_round(
    shared: Arc<Shared>,
    pending: Vec<Pending>,
    _in_flight: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
) {
    for write in &pending {
        shared.telemetry.metrics().write_stage(Stage::Queue, write.queued.elapsed());
    }
    let Some(deadline) = pending.iter().map(|write| write.deadline).min() else { return };
    let (writes, replies): (Vec<_>, Vec<_>) = pending.into_iter().map(|write| (write.write, write.reply)).unzip();
    match propose(&shared, Round { writes }, deadline).await {
        Ok(outcomes) => {
            for (reply, outcome) in replies.into_iter().zip(outcomes) {
                // A writer that gave up no longer listens; its write stands.
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

/// What one attempt to have a round committed came to.
enum Attempt {
    Done(Vec<Outcome>),
    /// Nobody appended the round: it may be proposed again.
    NotAppended,
}

async fn propose(shared: &Arc<Shared>, round: Round, deadline: Instant) -> Result<Vec<Outcome>, Error> {
    loop {
        let attempt = match shared.leader() {
            Some((leader, _)) if leader == shared.id() => propose_here(shared, round.clone(), deadline).await?,
            Some((leader, url)) => forward(shared, leader, &url, &round, deadline).await?,
            None => Attempt::NotAppended,
        };
        match attempt {
            Attempt::Done(outcomes) => return Ok(outcomes),
            // Waiting helps while a majority is there to elect a leader, and not otherwise.
            Attempt::NotAppended if shared.quorum_is_out_of_reach() => return Err(no_quorum(shared)),
            Attempt::NotAppended if Instant::now() + LEADER_POLL >= deadline => return Err(no_quorum(shared)),
            Attempt::NotAppended => tokio::time::sleep(LEADER_POLL).await,
        }
    }
}

fn no_quorum(shared: &Shared) -> Error {
    Error::NoQuorum { successful: shared.reachable(), outcome: WriteOutcome::NotWritten }
}

/// Proposes on this node, which believes to be the leader.
async fn propose_here(shared: &Arc<Shared>, round: Round, deadline: Instant) -> Result<Attempt, Error> {
    use openraft::error::ClientWriteError;
    use openraft::impls::ProgressResponder;

    let began = (std::time::Instant::now(), clock::now());
    let traces: Vec<_> = round.writes.iter().filter_map(|write| write.trace).collect();
    let (responder, committed, completed) = ProgressResponder::<TypeConfig, _>::new();
    let stopped = |outcome| move |_| Error::Stopped { outcome };
    shared.raft().client_write_ff(round, Some(responder)).await.map_err(stopped(WriteOutcome::NotWritten))?;

    let in_flight = async {
        if let Ok(log_id) = committed.await {
            let ended = clock::now();
            shared.telemetry.metrics().write_stage(Stage::Commit, began.0.elapsed());
            for trace in &traces {
                let position = [names::log_index(log_id.index())];
                shared.telemetry.tracer().record_span(names::SPAN_COMMIT, *trace, began.1, ended, &position);
            }
        }
        completed.await
    };
    match tokio::time::timeout_at(deadline, in_flight).await {
        Ok(Ok(Ok(response))) => Ok(Attempt::Done(response.data)),
        Ok(Ok(Err(ClientWriteError::ForwardToLeader(_)))) => Ok(Attempt::NotAppended),
        // The entry was in the log of a leader that has lost its office; its successor may have committed it.
        Ok(Ok(Err(_))) => Err(Error::LeaderLost),
        Ok(Err(_)) => Err(Error::Stopped { outcome: WriteOutcome::Unknown }),
        Err(_) => Err(Error::NoQuorum { successful: shared.holders_of_last_entry(), outcome: WriteOutcome::Unknown }),
    }
}

/// Sends the round to the leader. Only a round that was surely not appended may be tried again.
async fn forward(shared: &Shared, leader: u64, url: &str, round: &Round, deadline: Instant) -> Result<Attempt, Error> {
    let began = clock::now();
    let remaining = deadline.saturating_duration_since(Instant::now());
    let call = shared.transport.call(leader, url, Call::Propose, encode(&(round, remaining))?, remaining);
    let answer = tokio::select! {
        biased;
        answer = call => answer,
        () = succession(shared, leader) => return Err(Error::LeaderLost),
    };
    let ended = clock::now();
    for trace in round.writes.iter().filter_map(|write| write.trace) {
        shared.telemetry.tracer().record_span(names::SPAN_FORWARD, trace, began, ended, &[]);
    }
    match answer {
        // An answer that cannot be read does not say that the round was not appended.
        Ok(body) => match decode(&body).map_err(|_| Error::LeaderLost)? {
            Forwarded::Done(outcomes) => Ok(Attempt::Done(outcomes)),
            Forwarded::NotLeader => Ok(Attempt::NotAppended),
            Forwarded::DiskFull(disk_full) => Err(Error::DiskFull(disk_full)),
            Forwarded::Failed { successful, outcome } => {
                Err(Error::NoQuorum { successful: usize::try_from(successful).unwrap_or(usize::MAX), outcome })
            }
            Forwarded::LeaderLost => Err(Error::LeaderLost),
        },
        Err(CallError::NotSent { .. } | CallError::Refused { .. }) => Ok(Attempt::NotAppended),
        Err(CallError::NoAnswer { .. }) if Instant::now() >= deadline => {
            Err(Error::NoQuorum { successful: shared.reachable(), outcome: WriteOutcome::Unknown })
        }
        Err(CallError::NoAnswer { .. }) => Err(Error::LeaderLost),
    }
}

/// Returns once another than `leader` leads, and has for a moment: one that handed over still answers what it was asked.
/// One that stands still or was cut off never does, and rounds that wait for it would hold up those that come after.
async fn succession(shared: &Shared, leader: u64) {
    while shared.leader().is_none_or(|(current, _)| current == leader) {
        tokio::time::sleep(LEADER_POLL).await;
    }
    tokio::time::sleep(SUCCESSION_GRACE).await;
}

/// Serves a round that another node forwarded.
pub(super) async fn serve(shared: &Arc<Shared>, body: &[u8]) -> Result<Forwarded, Error> {
    let (round, remaining): (Round, std::time::Duration) = decode(body)?;
    if shared.leader().is_none_or(|(leader, _)| leader != shared.id()) {
        return Ok(Forwarded::NotLeader);
    }
    if let Err(Error::DiskFull(disk_full)) = space::check(shared) {
        let has_heir = membership::heir_with_space(shared).is_some();
        return Ok(if has_heir { Forwarded::NotLeader } else { Forwarded::DiskFull(disk_full) });
    }
    // A little less than the other side waits, so that its answer is ours and not a broken connection.
    let deadline = Instant::now() + remaining.saturating_sub(LEADER_POLL);
    Ok(match propose_here(shared, round, deadline).await {
        Ok(Attempt::Done(outcomes)) => Forwarded::Done(outcomes),
        Ok(Attempt::NotAppended) => Forwarded::NotLeader,
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
