//! The gate of strong reads.
//!
//! A read that passes the gate sees every write acknowledged before it came. All reads that wait at one moment share
//! one exchange: the leader answers from its lease, or asks a majority if the lease is old (read index, section 6.4 of
//! Ongaro's thesis); a follower asks the leader and waits until it has applied what the leader had committed.
//!
//! A read may share only an exchange that begins after it came, so those that come during an exchange wait for the
//! next one.

use std::sync::Arc;

use openraft::raft::ReadPolicy;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::error::{Error, WriteOutcome};
use super::transport::Call;
use super::types::{decode, encode};
use crate::limits::STRONG_READ_DEADLINE;

/// Reads waiting at the gate; over it a read is told that the node is busy.
const WAITING_READS_MAX: usize = 65_536;

type Waiting = oneshot::Sender<Result<(), Error>>;

/// The gate. Cheap to clone.
#[derive(Clone)]
pub(super) struct Gate {
    queue: mpsc::Sender<Waiting>,
}

impl Gate {
    /// Starts the gate's task; it ends when every gate is dropped.
    pub(super) fn start(shared: Arc<Shared>) -> Self {
        let (queue, receiver) = mpsc::channel(WAITING_READS_MAX);
        tokio::spawn(serve_reads(shared, receiver));
        Self { queue }
    }

    /// Returns once this node's state holds every write acknowledged before the call.
    pub(super) async fn pass(&self, deadline: Instant) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.queue.try_send(reply).map_err(|_| Error::Busy { limit: WAITING_READS_MAX })?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::Stopped { outcome: WriteOutcome::NotWritten }),
            Err(_) => Err(Error::NoQuorum { successful: 1, outcome: WriteOutcome::NotWritten }),
        }
    }
}

async fn serve_reads(shared: Arc<Shared>, mut queue: mpsc::Receiver<Waiting>) {
    while let Some(first) = queue.recv().await {
        let mut waiting = vec![first];
        while let Ok(next) = queue.try_recv() {
            waiting.push(next);
        }
        let answer = exchange(&shared, Instant::now() + STRONG_READ_DEADLINE).await;
        for reply in waiting {
            // A reader that gave up no longer listens.
            let _ = reply.send(answer.clone());
        }
    }
}

/// One exchange: learns how far a read must see and waits until this node's state is there.
async fn exchange(shared: &Shared, deadline: Instant) -> Result<(), Error> {
    let unreachable = || Error::NoQuorum { successful: shared.reachable(), outcome: WriteOutcome::NotWritten };
    if shared.quorum_is_out_of_reach() {
        return Err(unreachable());
    }
    let index = match shared.leader() {
        Some((leader, _)) if leader == shared.id => read_index(shared, deadline).await?.ok_or_else(unreachable)?,
        Some((leader, url)) => {
            let remaining = deadline.saturating_duration_since(Instant::now());
            let answer = shared.transport.call(leader, &url, Call::ReadIndex, encode(&remaining)?, remaining).await;
            decode::<Option<u64>>(&answer.map_err(|_| unreachable())?)?.ok_or_else(unreachable)?
        }
        None => return Err(unreachable()),
    };
    shared.wait_applied(index, deadline).await.then_some(()).ok_or_else(unreachable)
}

/// On the leader: the log index that a linearizable read must see, or none if this node cannot vouch for one.
pub(super) async fn read_index(shared: &Shared, deadline: Instant) -> Result<Option<u64>, Error> {
    if let Ok((read_log_id, _)) = shared.raft.get_read_log_id(ReadPolicy::LeaseRead).await {
        return Ok(Some(read_log_id.index()));
    }
    let confirmed = shared.raft.get_read_log_id(ReadPolicy::ReadIndex);
    match tokio::time::timeout_at(deadline, confirmed).await {
        Ok(Ok((read_log_id, _))) => Ok(Some(read_log_id.index())),
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}
