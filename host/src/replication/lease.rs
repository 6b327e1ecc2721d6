//! The leader's lease: when the leader may answer a strong read by it, and how its voters keep it.
//!
//! A follower that has heard the leader votes for no other node for the length of a lease. While a majority has
//! acknowledged messages that the leader sent within the last lease, there is no other leader, and the leader may answer a
//! strong read without asking anyone (Ongaro's thesis, section 6.4.1). openraft's own check is not enough for that, so
//! [`Lease`] is stricter:
//!
//! - **Clocks run at different rates.** A leader with a slow clock would trust its lease after the followers have stopped
//!   waiting. So it trusts nine tenths of the length.
//! - **A new leader** does not use its lease until a whole lease has passed since it won. The votes of a leadership
//!   transfer are given while the predecessor's lease still runs; only after one lease does the predecessor no longer
//!   trust it. Until then the new leader asks a majority.
//! - **A leader that has handed over** no longer uses its lease in that term: its successor is elected while the lease
//!   still runs. openraft answers no reads at all in that state, until another node leads.
//! - **A restarted voter** has forgotten that it promised the leader a lease. So for the length of one it keeps silent: it
//!   grants no vote and no pre-vote, accepts no leadership, and does not stand for election.
//! - **A leader whose machine was suspended** asks a majority until a whole lease has passed (see `suspensions`).
//!
//! The term is that of the log position openraft answers with, since it belongs to the leadership that confirmed the read.
//! The term of openraft's metrics may be older.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The length of the leader's lease, and the longest silence after it before a follower stands for election.
pub(super) const LEASE: Duration = Duration::from_millis(250);

/// The part of a lease that the leader trusts: nine tenths, since clock rates differ by less than a tenth.
pub(super) const TRUSTED: Duration = Duration::from_millis(225);

/// Added to the silence after a restart, for clocks that run at slightly different rates.
pub(super) const RESTART_MARGIN: Duration = Duration::from_millis(100);

/// This node's lease if it leads, and its promise to a leader if it has restarted.
#[derive(Default)]
pub(super) struct Lease {
    /// The end of the silence after a restart.
    silent_until: Mutex<Option<Instant>>,
    /// Whether it is silent for another reason (see `cluster/standing`).
    barred: AtomicBool,
    /// The newest term in which this node is known to lead.
    tenure: Mutex<Option<Tenure>>,
}

struct Tenure {
    term: u64,
    /// Not earlier than the election.
    since: Instant,
    /// The node it has handed over to.
    successor: Option<u64>,
}

impl Lease {
    /// Begins the silence after a restart; returns when it ends. It is in force at once: the node must keep it from its first
    /// answer on.
    pub(super) fn keep_silent(&self) -> Instant {
        let until = Instant::now() + LEASE + RESTART_MARGIN;
        *self.silent_until.lock() = Some(until);
        until
    }

    /// Whether the node must neither vote nor stand now.
    pub(super) fn is_silent(&self) -> bool {
        self.is_barred() || self.silent_until.lock().is_some_and(|until| Instant::now() < until)
    }

    /// Keeps the node silent while it is no member, or another process has its id.
    pub(super) fn bar(&self, barred: bool) {
        self.barred.store(barred, Ordering::Release);
    }

    pub(super) fn is_barred(&self) -> bool {
        self.barred.load(Ordering::Acquire)
    }

    /// Whether a lease that was valid in `term` may answer a read that began at `asked`.
    pub(super) fn covers(&self, term: u64, asked: Instant) -> bool {
        let mut tenure = self.tenure.lock();
        match &*tenure {
            Some(known) if known.term == term => {
                known.successor.is_none() && asked.saturating_duration_since(known.since) >= LEASE
            }
            Some(known) if known.term > term => false,
            _ => {
                // It leads now; since the time of its election is unknown, the lease counts from now.
                *tenure = Some(Tenure { term, since: Instant::now(), successor: None });
                false
            }
        }
    }

    /// Stops using the lease in `term` and all earlier ones, in favour of a successor. Returns the successor that was
    /// named first in the term: two would compete with each other.
    pub(super) fn give_up(&self, term: u64, successor: u64) -> u64 {
        let mut tenure = self.tenure.lock();
        match &*tenure {
            Some(Tenure { term: known, successor: Some(first), .. }) if *known == term => *first,
            Some(known) if known.term > term => successor,
            _ => {
                *tenure = Some(Tenure { term, since: Instant::now(), successor: Some(successor) });
                successor
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The lease of a node that leads in a term since the returned instant, or shortly before.
    fn leading(term: u64) -> (Lease, Instant) {
        let lease = Lease::default();
        assert!(!lease.covers(term, Instant::now()), "nothing is known of this term yet");
        (lease, Instant::now())
    }

    #[test]
    fn a_new_leader_does_not_use_its_lease_before_a_whole_one_has_passed() {
        let (lease, since) = leading(3);
        assert!(!lease.covers(3, since));
        assert!(!lease.covers(3, since + LEASE * 9 / 10));
        assert!(lease.covers(3, since + LEASE));
        // It has lost the leadership and won it again.
        assert!(!lease.covers(5, since + LEASE * 2));
        assert!(!lease.covers(5, since));
        assert!(!lease.covers(3, since + LEASE * 2), "a lease of an earlier term no longer counts");
        assert!(lease.covers(5, Instant::now() + LEASE));
    }

    #[test]
    fn a_leader_that_hands_over_uses_its_lease_no_more_in_its_term() {
        let (lease, since) = leading(3);
        assert!(lease.covers(3, since + LEASE));
        assert_eq!((lease.give_up(3, 7), lease.give_up(3, 8)), (7, 7), "one successor is enough");
        assert!(!lease.covers(3, since + LEASE * 2));
        assert!(!lease.covers(4, since + LEASE * 2));
        assert!(lease.covers(4, Instant::now() + LEASE), "a later term has a lease of its own");
        // Metrics may lag: a past term does not affect the current one.
        lease.give_up(3, 7);
        assert!(lease.covers(4, Instant::now() + LEASE));
    }

    #[test]
    fn the_leader_gives_its_lease_up_before_the_followers_do() {
        assert_eq!(TRUSTED, LEASE * 9 / 10);
    }
}
