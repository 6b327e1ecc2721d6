//! The gate of strong reads.
//!
//! A read that passes the gate sees every write acknowledged before it came. All reads that wait at one moment share
//! one exchange: the leader answers from its lease, or asks a majority if the lease is old (read index, section 6.4 of
//! Ongaro's thesis); a follower asks the leader and waits until it has applied what the leader had committed.
//!
//! # When the lease is enough
//!
//! A follower that has heard the leader votes for nobody else for the length of a lease. So while a majority has
//! acknowledged what the leader sent within the last lease, there is no other leader, and the leader may vouch for a read
//! without asking anyone (section 6.4.1 of the thesis). That rests on more than openraft looks at, so [`Lease`] is
//! stricter:
//!
//! - **Clocks run at different rates.** A leader whose clock is slow would trust its lease after the followers' patience
//!   has ended. So it trusts it for nine tenths of its length.
//! - **A new leader** does not use its lease before a whole lease has passed since it won. Votes that were handed to it by
//!   its predecessor's transfer were given within that one's lease; whatever an earlier leader still believes is over by
//!   then, and only then. Until then it asks a majority.
//! - **A leader that has handed over** uses it no more in its term: the heir is elected while the lease still runs.
//!   openraft answers no reads at all then, by lease or otherwise, and goes on so until another leads.
//! - **A restarted voter** has forgotten what it promised: see `peers`.
//!
//! The term is that of the log position which openraft answers with, which belongs to the leadership that vouched, and
//! not that of its metrics, which may be older.
//!
//! A read may share only an exchange that begins after it came, so those that come during an exchange wait for the
//! next one. While a leader is being elected the reads wait for it, as long as their own deadlines allow.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::raft::ReadPolicy;
use openraft::raft::linearizable_read::LinearizerOption;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Shared;
use super::error::{Error, WriteOutcome};
use super::proposer::LEADER_POLL;
use super::shared::lock;
use super::transport::Call;
use super::types::{decode, encode};
use crate::limits::STRONG_READ_DEADLINE;

/// Reads waiting at the gate; over it a read is told that the node is busy.
const WAITING_READS_MAX: usize = 65_536;

/// How long one exchange may take: a leader that does not answer for so long is about to be succeeded.
const EXCHANGE_TIMEOUT: Duration = Duration::from_millis(500);

/// The leader keeps off the last of so many parts of its lease. Clocks may differ in rate by as much.
const LEASE_MARGIN: u32 = 10;

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

/// When this node, if it leads, may vouch for a read by its lease alone.
pub(super) struct Lease {
    /// For how long a follower keeps its promise.
    length: Duration,
    /// The newest term in which this node is known to lead.
    tenure: Mutex<Option<Tenure>>,
}

struct Tenure {
    term: u64,
    /// Not before this node won.
    since: Instant,
    /// Whom it has handed over to.
    heir: Option<u64>,
}

impl Lease {
    pub(super) fn new(length: Duration) -> Self {
        Self { length, tenure: Mutex::new(None) }
    }

    /// The part of a lease that is relied on.
    fn trusted(&self) -> Duration {
        self.length - self.length / LEASE_MARGIN
    }

    /// Whether a lease that was valid in a term may be used for a read that was asked for at an instant.
    fn covers(&self, term: u64, asked: Instant) -> bool {
        let mut tenure = lock(&self.tenure);
        match &*tenure {
            Some(known) if known.term == term => {
                known.heir.is_none() && asked.saturating_duration_since(known.since) >= self.length
            }
            Some(known) if known.term > term => false,
            _ => {
                // It leads now; since when is not known, so that it counts from now.
                *tenure = Some(Tenure { term, since: Instant::now(), heir: None });
                false
            }
        }
    }

    /// Uses the lease no more in a term, nor in earlier ones, in favour of an heir. Returns the heir that was named
    /// first in the term: two would stand against each other.
    pub(super) fn give_up(&self, term: u64, heir: u64) -> u64 {
        let mut tenure = lock(&self.tenure);
        match &*tenure {
            Some(Tenure { term: known, heir: Some(first), .. }) if *known == term => *first,
            Some(known) if known.term > term => heir,
            _ => {
                *tenure = Some(Tenure { term, since: Instant::now(), heir: Some(heir) });
                heir
            }
        }
    }
}

/// On the leader: the log index that a linearizable read must see, or none if this node cannot vouch for one.
pub(super) async fn read_index(shared: &Shared, deadline: Instant) -> Result<Option<u64>, Error> {
    let raft = shared.raft();
    let asked = Instant::now();
    let by_lease = LinearizerOption::new(Some(shared.lease.trusted()), false).with_wait_timeout(Duration::ZERO);
    if let Ok((read_log_id, _)) = raft.get_read_log_id(by_lease).await
        && shared.lease.covers(read_log_id.committed_leader_id().term, asked)
    {
        return Ok(Some(read_log_id.index()));
    }
    let confirmed = raft.get_read_log_id(ReadPolicy::ReadIndex);
    match tokio::time::timeout_at(deadline, confirmed).await {
        Ok(Ok((read_log_id, _))) => Ok(Some(read_log_id.index())),
        Ok(Err(_)) | Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LENGTH: Duration = Duration::from_millis(250);

    /// A lease of a node that leads in a term since the instant that is returned, or a little earlier.
    fn leading(term: u64) -> (Lease, Instant) {
        let lease = Lease::new(LENGTH);
        assert!(!lease.covers(term, Instant::now()), "nothing is known of this term yet");
        (lease, Instant::now())
    }

    #[test]
    fn a_new_leader_does_not_use_its_lease_before_a_whole_one_has_passed() {
        let (lease, since) = leading(3);
        assert!(!lease.covers(3, since));
        assert!(!lease.covers(3, since + LENGTH * 9 / 10));
        assert!(lease.covers(3, since + LENGTH));
        // It has lost its office and won it again.
        assert!(!lease.covers(5, since + LENGTH * 2));
        assert!(!lease.covers(5, since));
        assert!(!lease.covers(3, since + LENGTH * 2), "what it was vouched for in an earlier term counts no more");
        assert!(lease.covers(5, Instant::now() + LENGTH));
    }

    #[test]
    fn a_leader_that_hands_over_uses_its_lease_no_more_in_its_term() {
        let (lease, since) = leading(3);
        assert!(lease.covers(3, since + LENGTH));
        assert_eq!((lease.give_up(3, 7), lease.give_up(3, 8)), (7, 7), "one heir is enough");
        assert!(!lease.covers(3, since + LENGTH * 2));
        assert!(!lease.covers(4, since + LENGTH * 2));
        assert!(lease.covers(4, Instant::now() + LENGTH), "a later term is another office");
        // Metrics may lag: a term that is over is no reason.
        lease.give_up(3, 7);
        assert!(lease.covers(4, Instant::now() + LENGTH));
    }

    #[test]
    fn the_leader_gives_its_lease_up_before_the_followers_do() {
        assert!(Lease::new(LENGTH).trusted() < LENGTH);
        assert_eq!(Lease::new(LENGTH).trusted(), Duration::from_millis(225));
    }
}
