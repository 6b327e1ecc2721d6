//! The gate of strong reads, and the staleness of local ones.
//!
//! A read that passes the gate sees every write acknowledged before it arrived. All reads that wait at one moment share one
//! exchange: the leader answers by its [lease](super::lease), or asks a majority if the lease is too old (read index,
//! section 6.4 of Ongaro's thesis). A follower asks the leader and waits until it has applied the entries that the leader
//! had committed.
//!
//! A read may share only an exchange that begins after the read arrived, so reads that arrive during an exchange wait for
//! the next one. During an election reads wait for the new leader, as long as their deadlines allow.

use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::{ServerState, async_runtime::Instant as _, raft::ReadPolicy, raft::linearizable_read::LinearizerOption};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::error::{Error, WriteOutcome};
use super::lease::{LEASE, Lease, TRUSTED};
use super::peer::protocol::{Call, Transport};
use super::types::{decode, encode};
use super::{cluster::view::ClusterView, proposer::LEADER_POLL, suspensions::Suspensions};
use crate::clock::Clock;
use crate::limits::STRONG_READ_DEADLINE;

/// Reads waiting at the gate; over it a read is refused as busy.
const WAITING_READS_MAX: usize = 65_536;

/// Maximum duration of one exchange: a leader that takes longer is about to lose the leadership.
const EXCHANGE_TIMEOUT: Duration = Duration::from_millis(500);

/// The staleness of a node that has never been up to date since it started.
const NEVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A read that waits at the gate.
type WaitingRead = oneshot::Sender<Result<(), Error>>;

/// The gate of strong reads, and the age of this node's state.
pub(super) struct Reads {
    view: Arc<ClusterView>,
    lease: Arc<Lease>,
    suspensions: Suspensions,
    transport: Arc<dyn Transport>,
    /// When this node last knew its state to be up to date.
    up_to_date: Mutex<Option<Instant>>,
    gate: mpsc::Sender<WaitingRead>,
}

impl Reads {
    /// Starts the gate's task; it ends with the gate.
    pub(super) fn start(
        view: Arc<ClusterView>,
        lease: Arc<Lease>,
        clock: Clock,
        transport: Arc<dyn Transport>,
    ) -> Arc<Self> {
        let (gate, queue) = mpsc::channel(WAITING_READS_MAX);
        let reads = Arc::new(Self {
            view,
            lease,
            suspensions: Suspensions::new(clock),
            transport,
            up_to_date: Mutex::default(),
            gate,
        });
        tokio::spawn(serve_gate(Arc::downgrade(&reads), queue));
        reads
    }

    /// Returns once this node's state holds every write acknowledged before the call.
    pub(super) async fn pass(&self, deadline: Instant) -> Result<(), Error> {
        self.view.check_standing()?;
        let (reply, answer) = oneshot::channel();
        self.gate.try_send(reply).map_err(|_| Error::Busy { limit: WAITING_READS_MAX })?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(Error::Stopped { outcome: WriteOutcome::NotWritten }),
            Err(_) => Err(self.unreachable()),
        }
    }

    /// Lets reads pass once this node has applied the log up to `index`.
    async fn release(self: Arc<Self>, index: u64, waiting: Vec<WaitingRead>) {
        let caught_up = self.view.raft.applied().wait_for(index, Instant::now() + STRONG_READ_DEADLINE).await;
        answer_all(waiting, &if caught_up { Ok(()) } else { Err(self.unreachable()) });
    }

    /// One exchange: returns the log index that this node must have applied.
    async fn exchange(&self, deadline: Instant) -> Result<u64, Error> {
        if self.view.quorum_is_out_of_reach() {
            return Err(self.unreachable());
        }
        let index = match self.view.leader() {
            Some((leader, _)) if leader == self.view.raft.id() => self.read_index(deadline).await?,
            Some((leader, url)) => {
                let remaining = deadline.saturating_duration_since(Instant::now());
                let answer = self.transport.call(leader, &url, Call::ReadIndex, encode(&remaining)?, remaining).await;
                decode::<Option<u64>>(&answer.map_err(|_| self.unreachable())?)?
            }
            None => None,
        };
        index.ok_or_else(|| self.unreachable())
    }

    /// On the leader: the log index that a linearizable read must see; none if this node cannot confirm that it leads.
    pub(super) async fn read_index(&self, deadline: Instant) -> Result<Option<u64>, Error> {
        let raft = self.view.raft.raft();
        let asked = Instant::now();
        let by_lease = LinearizerOption::new(Some(TRUSTED), false).with_wait_timeout(Duration::ZERO);
        if let Ok((read_log_id, _)) = raft.get_read_log_id(by_lease).await
            && self.lease.covers(read_log_id.committed_leader_id().term, asked)
            // Looked at after openraft has looked at its clock.
            && self.suspensions.last().is_none_or(|woke| asked >= woke + LEASE)
        {
            return Ok(Some(read_log_id.index()));
        }
        let confirmed = raft.get_read_log_id(ReadPolicy::ReadIndex);
        match tokio::time::timeout_at(deadline, confirmed).await {
            Ok(Ok((read_log_id, _))) => Ok(Some(read_log_id.index())),
            Ok(Err(_)) | Err(_) => Ok(None),
        }
    }

    /// Records that the state is up to date now.
    pub(super) fn note_up_to_date(&self) {
        *self.up_to_date.lock() = Some(Instant::now());
    }

    /// Time since the state was last known to be up to date. On a leader, time since a majority last acknowledged it. A suspension of
    /// the machine counts.
    pub(super) fn staleness(&self) -> Duration {
        let acked = self.view.raft.with_metrics(|metrics| match metrics.state {
            ServerState::Leader => metrics.last_quorum_acked.map(|acked| acked.elapsed()),
            _ => None,
        });
        let age = acked.or_else(|| self.up_to_date.lock().map(|last| last.elapsed()));
        age.map_or(NEVER, |age| self.suspensions.true_age(age))
    }

    fn unreachable(&self) -> Error {
        self.view.no_quorum(WriteOutcome::NotWritten)
    }
}

/// Answers the reads at the gate.
async fn serve_gate(reads: Weak<Reads>, mut queue: mpsc::Receiver<WaitingRead>) {
    let mut waiting = Vec::new();
    loop {
        if waiting.is_empty() {
            let Some(first) = queue.recv().await else { return };
            waiting.push(first);
        }
        let Some(reads) = reads.upgrade() else { return };
        while waiting.len() < WAITING_READS_MAX
            && let Ok(next) = queue.try_recv()
        {
            waiting.push(next);
        }
        match reads.exchange(Instant::now() + EXCHANGE_TIMEOUT).await {
            Ok(index) if reads.view.raft.applied().index() >= index => answer_all(waiting.drain(..), &Ok(())),
            // A node that lags must not delay the reads that come after these.
            Ok(index) => drop(tokio::spawn(reads.clone().release(index, std::mem::take(&mut waiting)))),
            Err(error) if reads.view.quorum_is_out_of_reach() => answer_all(waiting.drain(..), &Err(error)),
            // The next leader is elected before most deadlines pass.
            Err(_) => {
                tokio::time::sleep(LEADER_POLL).await;
                waiting.retain(|reader| !reader.is_closed());
            }
        }
    }
}

fn answer_all(waiting: impl IntoIterator<Item = WaitingRead>, answer: &Result<(), Error>) {
    for reader in waiting {
        // Sending fails if the reader has stopped waiting.
        let _ = reader.send(answer.clone());
    }
}
