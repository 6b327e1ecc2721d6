//! The gate of strong reads.
//!
//! A read that passes the gate sees every write acknowledged before it came. All reads that wait at one moment share
//! one exchange: the leader answers from its lease, or asks a majority if the lease is old (read index, section 6.4 of
//! Ongaro's thesis); a follower asks the leader and waits until it has applied what the leader had committed.
//!
//! A read may share only an exchange that begins after it came, so those that come during an exchange wait for the
//! next one. While a leader is being elected the reads wait for it, as long as their own deadlines allow.

use std::sync::Arc;
use std::time::Duration;

use openraft::raft::ReadPolicy;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::error::{Error, WriteOutcome};
use super::proposer::LEADER_POLL;
use super::transport::Call;
use super::types::{decode, encode};
use crate::limits::STRONG_READ_DEADLINE;

/// Reads waiting at the gate; over it a read is told that the node is busy.
const WAITING_READS_MAX: usize = 65_536;

/// How long one exchange may take: a leader that does not answer for so long is about to be succeeded.
const EXCHANGE_TIMEOUT: Duration = Duration::from_millis(500);

type Waiting = oneshot::Sender<Result<(), Error>>;

/// The gate. Cheap to clone.
#[derive(Clone)]
pub(super) struct Gate {
    queue: mpsc::Sender<Waiting>,
    shared: Arc<Shared>,
}

impl Gate {
    /// Starts the gate's task; it ends when every gate is dropped.
    pub(super) fn start(shared: Arc<Shared>) -> Self {
        let (queue, receiver) = mpsc::channel(WAITING_READS_MAX);
        tokio::spawn(serve_reads(shared.clone(), receiver));
        Self { queue, shared }
    }

    /// Returns once this node's state holds every write acknowledged before the call.
    pub(super) async fn pass(&self, deadline: Instant) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(reply).map_err(|_| Error::Busy { limit: WAITING_READS_MAX })?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::Stopped { outcome: WriteOutcome::NotWritten }),
            Err(_) => Err(unreachable(&self.shared)),
        }
    }
}

async fn serve_reads(shared: Arc<Shared>, mut queue: mpsc::Receiver<Waiting>) {
    let mut waiting = Vec::new();
    loop {
        if waiting.is_empty() {
            let Some(first) = queue.recv().await else { return };
            waiting.push(first);
        }
        while waiting.len() < WAITING_READS_MAX
            && let Ok(next) = queue.try_recv()
        {
            waiting.push(next);
        }
        match exchange(&shared, Instant::now() + EXCHANGE_TIMEOUT).await {
            Ok(index) if *shared.applied.borrow() >= index => answer_all(waiting.drain(..), &Ok(())),
            // A node that lags must not hold up the reads that come after these.
            Ok(index) => drop(tokio::spawn(release(shared.clone(), index, std::mem::take(&mut waiting)))),
            Err(error) if shared.quorum_is_out_of_reach() => answer_all(waiting.drain(..), &Err(error)),
            // The next leader will be there before most readers lose patience.
            Err(_) => {
                tokio::time::sleep(LEADER_POLL).await;
                waiting.retain(|reader| !reader.is_closed());
            }
        }
    }
}

fn answer_all(waiting: impl IntoIterator<Item = Waiting>, answer: &Result<(), Error>) {
    for reader in waiting {
        // A reader that gave up no longer listens.
        let _ = reader.send(answer.clone());
    }
}

/// Lets reads pass once this node's state has come to `index`.
async fn release(shared: Arc<Shared>, index: u64, waiting: Vec<Waiting>) {
    let caught_up = shared.wait_applied(index, Instant::now() + STRONG_READ_DEADLINE).await;
    answer_all(waiting, &if caught_up { Ok(()) } else { Err(unreachable(&shared)) });
}

/// One exchange: learns up to which log index this node's state must have come.
async fn exchange(shared: &Shared, deadline: Instant) -> Result<u64, Error> {
    if shared.quorum_is_out_of_reach() {
        return Err(unreachable(shared));
    }
    let index = match shared.leader() {
        Some((leader, _)) if leader == shared.id() => read_index(shared, deadline).await?,
        Some((leader, url)) => {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let answer = shared.transport.call(leader, &url, Call::ReadIndex, encode(&remaining)?, remaining).await;
            decode::<Option<u64>>(&answer.map_err(|_| unreachable(shared))?)?
        }
        None => None,
    };
    index.ok_or_else(|| unreachable(shared))
}

fn unreachable(shared: &Shared) -> Error {
    Error::NoQuorum { successful: shared.reachable(), outcome: WriteOutcome::NotWritten }
}

/// On the leader: the log index that a linearizable read must see, or none if this node cannot vouch for one.
pub(super) async fn read_index(shared: &Shared, deadline: Instant) -> Result<Option<u64>, Error> {
    let raft = shared.raft();
    if let Ok((read_log_id, _)) = raft.get_read_log_id(ReadPolicy::LeaseRead).await {
        return Ok(Some(read_log_id.index()));
    }
    let confirmed = raft.get_read_log_id(ReadPolicy::ReadIndex);
    match tokio::time::timeout_at(deadline, confirmed).await {
        Ok(Ok((read_log_id, _))) => Ok(Some(read_log_id.index())),
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}
