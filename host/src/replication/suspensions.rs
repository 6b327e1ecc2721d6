//! Suspensions of the machine, during which monotonic time stands still.
//!
//! # Problem
//!
//! A lease is counted in monotonic time, and so are the ages of what was heard, here and in openraft. A machine that was suspended
//! (closed, or frozen by its host) goes on as if no time had passed, while the others may have elected another leader.
//!
//! # Approach
//!
//! A second clock goes on meanwhile ([`Clock::uptime`]). The difference between the two grows by each suspension, and shows it as soon as any
//! thread runs again. A leader does not trust a lease until a whole one has passed since then; ages count what was missed.
//!
//! # What needs nothing
//!
//! - **A process that is paused** (SIGSTOP, a busy machine) loses nothing: monotonic time goes on.
//! - **A pause or a suspension after a lease was found valid** does no harm. The read had arrived by then, so it may see the state of that
//!   moment; the state that it goes on to read holds every write that was acknowledged until then.
//! - **Promises of this node to others** get longer, never shorter: the silence after a restart, and the time in which a follower
//!   votes for nobody else.
//! - **Peers** that were heard before count as reachable for a moment more. No promise rests on that.
//! - **Timeouts and retries** are merely late.
//!
//! # Failure model
//!
//! A virtual machine that its host stops without any of its clocks going on is not noticed. Until it hears from the others,
//! strong reads by its lease may miss writes; its host must not stop it for longer than the part of a lease that is not trusted.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::clock::Clock;

/// Shortest suspension that is noticed: more than two clocks that are read one after the other differ by, and little of the part of
/// a lease that is not trusted.
const LENGTH_MIN: Duration = Duration::from_millis(1);

/// Suspensions that are remembered, to tell the age of what was heard before them.
const NOTICED_MAX: usize = 64;

/// The suspensions of this node's machine.
pub(super) struct Suspensions {
    clock: Clock,
    /// An arbitrary moment before all others.
    origin: Instant,
    seen: Mutex<Seen>,
}

/// What the clocks have shown.
struct Seen {
    /// Uptime without the monotonic time since `origin`: the least since the last suspension, since time passes between reading
    /// one clock and the other.
    difference: Duration,
    /// When each of the last suspensions was noticed, and its length.
    noticed: Vec<(Instant, Duration)>,
}

impl Suspensions {
    pub(super) fn new(clock: Clock) -> Self {
        let (origin, difference) = (Instant::now(), clock.uptime());
        Self { clock, origin, seen: Mutex::new(Seen { difference, noticed: Vec::new() }) }
    }

    /// When the last suspension was noticed, if there was one.
    pub(super) fn last(&self) -> Option<Instant> {
        self.look(Instant::now(), |noticed| noticed.last().map(|(woke, _)| *woke))
    }

    /// The true age of something, given its age in monotonic time.
    pub(super) fn true_age(&self, age: Duration) -> Duration {
        let now = Instant::now();
        self.look(now, |noticed| {
            let since = noticed.iter().filter(|(woke, _)| now.saturating_duration_since(*woke) < age);
            age + since.map(|(_, length)| *length).sum::<Duration>()
        })
    }

    /// Reads the clocks, then the suspensions noticed so far.
    fn look<T>(&self, now: Instant, read: impl FnOnce(&[(Instant, Duration)]) -> T) -> T {
        let mut seen = self.seen.lock();
        let difference = self.clock.uptime().saturating_sub(now.saturating_duration_since(self.origin));
        let length = difference.saturating_sub(seen.difference);
        if length > LENGTH_MIN {
            tracing::info!(?length, "the machine was suspended");
            if seen.noticed.len() >= NOTICED_MAX {
                seen.noticed.remove(0);
            }
            seen.noticed.push((now, length));
            seen.difference = difference;
        }
        seen.difference = seen.difference.min(difference);
        read(&seen.noticed)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::clock::Clocks;

    /// A machine that was suspended for so many milliseconds.
    struct Machine {
        began: Instant,
        suspended_ms: Arc<AtomicU64>,
    }

    impl Clocks for Machine {
        fn unix_ms(&self) -> u64 {
            0
        }

        fn uptime(&self) -> Duration {
            self.began.elapsed() + Duration::from_millis(self.suspended_ms.load(Ordering::Relaxed))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_suspension_is_noticed_once_and_counts_in_ages_from_before_it() {
        let suspended_ms = Arc::new(AtomicU64::new(0));
        let machine = Machine { began: Instant::now(), suspended_ms: suspended_ms.clone() };
        let suspensions = Suspensions::new(Clock::new(Arc::new(machine)));
        let second = Duration::from_secs(1);
        tokio::time::advance(second).await;
        assert_eq!((suspensions.last(), suspensions.true_age(second)), (None, second));

        suspended_ms.store(60_000, Ordering::Relaxed);
        let woke = Instant::now();
        assert_eq!(suspensions.last(), Some(woke));
        tokio::time::advance(second).await;
        assert_eq!(suspensions.last(), Some(woke));
        assert_eq!((suspensions.true_age(second), suspensions.true_age(2 * second)), (second, 62 * second));

        suspended_ms.store(65_000, Ordering::Relaxed);
        assert_eq!((suspensions.true_age(second), suspensions.true_age(2 * second)), (6 * second, 67 * second));
        assert_eq!(suspensions.last(), Some(woke + second));
    }

    #[test]
    fn a_machine_that_runs_is_not_suspended() {
        let suspensions = Suspensions::new(Clock::system());
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(suspensions.last(), None);
    }
}
