//! The gate of strong reads, and the staleness of local ones.
//!
//! A read that passes the gate sees every write acknowledged before it arrived. All reads that wait at one moment share one
//! exchange: the leader answers by its [lease](super::lease), or asks a majority if the lease is too old (read index,
//! section 6.4 of Ongaro's thesis). A follower asks the leader and waits until it has applied the entries that the leader
//! had committed.
//!
//! A read may share only an exchange that begins after the read arrived, so reads that arrive during an exchange wait for
//! the next one. During an election reads wait for the new leader, as long as their deadlines allow.
//!
//! # Local reads after a restart
//!
//! A crash takes what was applied since the last sync, and the last positions up to which the log was committed, so a node
//! may come back with an older state than it had shown. It cannot know how much older: the end of its log may not be
//! committed. So its local reads wait until one strong read has passed the gate since the start: from then on its state holds
//! all that was committed before, and local reads never wait again. They are answered all the same (P5), with their
//! staleness, if there is no quorum, and once a node has been behind for [`RECOVERY_MAX`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use openraft::{ServerState, async_runtime::Instant as _, raft::ReadPolicy, raft::linearizable_read::LinearizerOption};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::error::{Error, Limit, WriteOutcome};
use super::lease::{LEASE, TRUSTED};
use super::peer::protocol::{Call, Transport};
use super::types::{decode, encode};
use super::{cluster::view::ClusterView, proposer::LEADER_POLL, suspensions::Suspensions};
use crate::clock::Clock;
use crate::limits::STRONG_READ_DEADLINE;

/// Reads waiting at the gate; over it a read is refused as busy.
const WAITING_READS_MAX: usize = 65_536;

/// Maximum duration of one exchange: a leader that takes longer is about to lose the leadership.
const EXCHANGE_TIMEOUT: Duration = Duration::from_millis(500);

/// Interval at which a node that lags looks whether reads still wait for it.
const ABANDONED_POLL: Duration = Duration::from_millis(500);

/// Time after the start of a node in which local reads wait until it is as new as before.
const RECOVERY_MAX: Duration = Duration::from_secs(10);

/// The staleness of a node that has never been up to date since it started.
const NEVER: Duration = Duration::from_secs(u32::MAX as u64);

/// A read that waits at the gate.
type WaitingRead = oneshot::Sender<Result<(), Error>>;

/// The gate of strong reads, and the age of this node's state.
pub(super) struct Reads {
    view: Arc<ClusterView>,
    suspensions: Suspensions,
    transport: Arc<dyn Transport>,
    /// When this node last knew its state to be up to date.
    up_to_date: Mutex<Option<Instant>>,
    gate: mpsc::Sender<WaitingRead>,
    /// The highest log index that reads have waited for this node to apply.
    awaited: AtomicU64,
    /// Whether a strong read has passed the gate since the start.
    has_recovered: AtomicBool,
    started: Instant,
}

impl Reads {
    /// Starts the gate's task; it ends with the gate.
    pub(super) fn start(view: Arc<ClusterView>, clock: Clock, transport: Arc<dyn Transport>) -> Arc<Self> {
        let (gate, queue) = mpsc::channel(WAITING_READS_MAX);
        let (up_to_date, has_recovered, started) = (Mutex::default(), AtomicBool::new(false), Instant::now());
        let (suspensions, awaited) = (Suspensions::new(clock), AtomicU64::new(0));
        let reads = Arc::new(Self { view, suspensions, transport, up_to_date, gate, awaited, has_recovered, started });
        tokio::spawn(serve_gate(Arc::downgrade(&reads), queue));
        reads
    }

    /// Returns once this node's state holds every write acknowledged before the call.
    pub(super) async fn pass(&self, deadline: Instant) -> Result<(), Error> {
        self.view.check_standing()?;
        let (reply, answer) = oneshot::channel();
        self.gate.try_send(reply).map_err(|_| Error::Busy { limit: Limit::WaitingReads(WAITING_READS_MAX) })?;
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(Ok(answer)) => {
                self.has_recovered.fetch_or(answer.is_ok(), Ordering::AcqRel);
                answer
            }
            Ok(Err(_)) => Err(Error::Stopped { outcome: WriteOutcome::NotWritten }),
            Err(_) => Err(self.too_late()),
        }
    }

    /// Returns once the state is at least as new as any that this node has shown before it restarted; also if that cannot be
    /// established now.
    pub(super) async fn recover(&self) {
        if self.has_recovered.load(Ordering::Acquire) {
            return;
        }
        let now = Instant::now();
        let deadline = (self.started + RECOVERY_MAX).min(now + STRONG_READ_DEADLINE);
        if now < deadline
            && let Err(error) = self.pass(deadline).await
        {
            tracing::debug!(%error, "a local read may show an older state than before the restart");
        }
    }

    /// Lets reads pass once this node has applied the log up to `index`. Each has a deadline of its own: a change of the registry
    /// waits longer for a node that has just started than a client's read.
    async fn release(self: Arc<Self>, index: u64, mut waiting: Vec<WaitingRead>) {
        while !self.view.raft.applied().wait_for(index, Instant::now() + ABANDONED_POLL).await {
            waiting.retain(|reader| !reader.is_closed());
            if waiting.is_empty() {
                return;
            }
        }
        answer_all(waiting, &Ok(()));
    }

    /// One exchange: returns the log index that this node must have applied.
    async fn exchange(&self, deadline: Instant) -> Result<u64, Error> {
        if self.view.quorum_is_out_of_reach() {
            return Err(self.unreachable());
        }
        let index = match self.view.leads() {
            true => self.read_index(deadline).await?,
            false => self.ask_leader(deadline).await?,
        };
        index.ok_or_else(|| self.unreachable())
    }

    /// Asks the leader for its [`Self::read_index`]; none if this node knows no leader.
    async fn ask_leader(&self, deadline: Instant) -> Result<Option<u64>, Error> {
        // If this node has just become the leader, the read is tried again.
        let leader = self.view.leader().filter(|(leader, _)| *leader != self.view.raft.id());
        let Some((leader, url)) = leader else { return Ok(None) };
        let remaining = deadline.saturating_duration_since(Instant::now());
        let answer = self.transport.call(leader, &url, Call::ReadIndex, encode(&remaining)?, remaining).await;
        decode(&answer.map_err(|_| self.unreachable())?)
    }

    /// On the leader: the log index that a linearizable read must see; none if this node cannot confirm that it leads.
    pub(super) async fn read_index(&self, deadline: Instant) -> Result<Option<u64>, Error> {
        let raft = self.view.raft.raft();
        let by_lease = LinearizerOption::new(Some(TRUSTED), false).with_wait_timeout(Duration::ZERO);
        let asked = Instant::now();
        if let Ok((read_log_id, _)) = raft.get_read_log_id(by_lease).await
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

    /// The error of a read whose deadline has passed.
    fn too_late(&self) -> Error {
        match self.awaited.load(Ordering::Relaxed).saturating_sub(self.view.raft.applied().index()) {
            entries @ 1.. if !self.view.quorum_is_out_of_reach() => Error::Lagging { entries },
            _ => self.unreachable(),
        }
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
            Ok(index) => {
                reads.awaited.fetch_max(index, Ordering::Relaxed);
                drop(tokio::spawn(reads.clone().release(index, std::mem::take(&mut waiting))));
            }
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
