//! The leader's lease: how long the leader may answer strong reads by it, and how its voters keep it.
//!
//! A follower that has heard the leader votes for no other node for the length of a lease. While a majority has
//! acknowledged messages that the leader sent within the last lease, there is no other leader, and the leader may answer a
//! strong read without asking anyone (Ongaro's thesis, section 6.4.1). Two rules make openraft's own lease safe:
//!
//! - **Clocks run at different rates.** A leader with a slow clock would trust its lease after the followers have stopped
//!   waiting. So it trusts nine tenths of the length.
//! - **A restarted voter** has forgotten that it promised the leader a lease. So for the length of one it keeps silent: it
//!   grants no vote and no pre-vote, accepts no leadership, and does not stand for election. It needs no margin of its own,
//!   since the promise is older than the silence, and the leader trusts only a part of it.
//! - **A leader whose machine was suspended** asks a majority until a whole lease has passed (see `suspensions`).
//!
//! The votes of a leadership transfer ignore leases. That harms no lease:
//!
//! - **The leader that hands over** confirms no reads any more: openraft refuses them in that term from then on.
//! - **A later leader**, elected because the successor learns of the transfer late, confirms reads only once the first entry
//!   of its term is committed. A majority holds that entry then and the successor does not, so it is not elected. Had it
//!   taken the entry, it would have obeyed the later leader and given up its own election.
//!
//! For the same reason a new leader need not wait before it uses its lease: only voters that have heard it in its term count
//! for the lease, and their promises hold from then on.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The length of the leader's lease, and the longest silence after it before a follower stands for election.
pub(super) const LEASE: Duration = Duration::from_millis(250);

/// The part of a lease that the leader trusts: nine tenths, since clock rates differ by less than a tenth.
pub(super) const TRUSTED: Duration = Duration::from_millis(225);

/// This node's promise to a leader, if it has restarted.
#[derive(Default)]
pub(super) struct Lease {
    /// The end of the silence after a restart.
    silent_until: Mutex<Option<Instant>>,
    /// Whether it is silent for another reason (see `cluster/standing`).
    barred: AtomicBool,
}

impl Lease {
    /// Begins the silence after a restart; returns when it ends. It is in force at once: the node must keep it from its first
    /// answer on.
    pub(super) fn keep_silent(&self) -> Instant {
        let until = Instant::now() + LEASE;
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_leader_gives_its_lease_up_before_the_followers_do() {
        assert_eq!(TRUSTED, LEASE * 9 / 10);
    }
}
