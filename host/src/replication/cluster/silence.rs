//! The silence of a voter after a restart.
//!
//! A voter that restarts has forgotten that it promised the leader a lease. So for the length of one it grants no vote and
//! no pre-vote, accepts no leadership, and does not stand for election.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Added to the lease after a restart, for clocks that run at slightly different rates.
pub(crate) const RESTART_MARGIN: Duration = Duration::from_millis(100);

/// Whether this node keeps silent after a restart.
#[derive(Default)]
pub(crate) struct RestartSilence {
    until: Mutex<Option<Instant>>,
}

impl RestartSilence {
    /// Begins a silence; returns when it ends. It is in force at once: the node must keep it from its first answer on.
    pub(crate) fn begin(&self, lease: Duration) -> Instant {
        let until = Instant::now() + lease + RESTART_MARGIN;
        *self.until.lock() = Some(until);
        until
    }

    /// Whether the node keeps silent now.
    pub(crate) fn is_silent(&self) -> bool {
        self.until.lock().is_some_and(|until| Instant::now() < until)
    }
}
