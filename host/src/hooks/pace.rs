//! How fast a hook's calls are, as far as they have shown it; what a node makes of that.
//!
//! | a hook is | if its calls | its calls run |
//! |---|---|---|
//! | quick | are so short that handing them to another thread would cost several times what they take | where the request is handled |
//! | heavy | take long on average | on threads that stand back behind those that serve |
//! | stuck | failed after a millisecond or more, the last time | as heavy ones, one at a time, and with rests between them |
//! | none of these | | on blocking threads |
//!
//! Being quick is earned by every short call and lost by long ones. A call that was expected to be short and is not is
//! stopped after [`STOP_AFTER`] and made again elsewhere: no call sees another's leftovers or has effects, so nobody can tell.
//! Being stopped costs what [`STOP_COST`] short calls earn, so a plugin that alternates cannot take more of the async
//! threads' time in long calls than a hook that is quick throughout.
//!
//! A hook that goes on failing slowly, such as one that loops, has nothing to give for the time it takes. After each such call
//! but the first it rests, in the end four times as long as the call took, and a second at most.

use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long a short call takes, at most. A few take longer because the thread was not scheduled.
const SHORT: Duration = Duration::from_micros(100);

/// When a call that was expected to be short is stopped: its start, `configure` and the call together.
pub(super) const STOP_AFTER: Duration = Duration::from_millis(2);

/// What such a call may have and pass to the host. The host copies what it is passed, and some instructions fill whole
/// memories: neither is interrupted by a deadline. A call that needs more is made again elsewhere, too.
pub(super) const QUICK_MEMORY_BYTES: usize = 8 * 1024 * 1024;
pub(super) const QUICK_OUTPUT_BYTES: usize = 64 * 1024;

/// Writes that a quick call may judge, and their bytes: a call takes longer the more it is given.
const WRITES_MAX: usize = 16;
const BYTES_MAX: usize = 16 * 1024;

/// Where a hook begins: some calls must have been short before one is expected to be.
const CREDIT_AT_FIRST: i32 = -8;
const CREDIT_MAX: i32 = 256;
const CREDIT_MIN: i32 = -1_024;

/// What calls that are not short cost. A short one earns 1.
const LONG_COST: i32 = 4;
const STOP_COST: i32 = 256;

/// How long the calls of a heavy hook take on average, at least.
const HEAVY: Duration = Duration::from_millis(1);

/// The longest rest of a stuck hook, as so many times its last call, and at most.
const REST_FACTOR_MAX: u32 = 4;
const REST_MAX: Duration = Duration::from_secs(1);

/// The share of the newest call in the average: one of so many.
const AVERAGE_OVER: u64 = 8;

/// What a hook's calls have shown. Updates that are lost to others at the same time do no harm. All threads that judge read
/// this, so it is written to only where that changes something: a hook that is quick throughout then costs them nothing.
#[derive(Debug)]
pub(super) struct Pace {
    credit: AtomicI32,
    average_us: AtomicU64,
    /// Calls that failed slowly, one after the other.
    stuck: AtomicU32,
    /// Until when it rests, in microseconds from `since`.
    rests_until_us: AtomicU64,
    since: Instant,
}

impl Pace {
    pub(super) fn unknown() -> Self {
        Self {
            credit: AtomicI32::new(CREDIT_AT_FIRST),
            average_us: AtomicU64::new(0),
            stuck: AtomicU32::new(0),
            rests_until_us: AtomicU64::new(0),
            since: Instant::now(),
        }
    }

    /// Whether a call that is given this much is expected to be short.
    pub(super) fn is_quick(&self, writes: usize, bytes: usize) -> bool {
        writes <= WRITES_MAX && bytes <= BYTES_MAX && self.credit.load(Ordering::Relaxed) > 0
    }

    /// Whether calls are expected to take long.
    pub(super) fn is_heavy(&self) -> bool {
        self.is_stuck() || u128::from(self.average_us.load(Ordering::Relaxed)) >= HEAVY.as_micros()
    }

    /// Whether the last call failed slowly.
    pub(super) fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Relaxed) > 0
    }

    /// How long the hook still rests.
    pub(super) fn rest(&self) -> Duration {
        match self.is_stuck() {
            true => {
                Duration::from_micros(self.rests_until_us.load(Ordering::Relaxed)).saturating_sub(self.since.elapsed())
            }
            false => Duration::ZERO,
        }
    }

    /// Notes how a call ended.
    pub(super) fn note(&self, took: Duration, has_failed: bool) {
        if has_failed && took >= HEAVY {
            let before = self.stuck.load(Ordering::Relaxed).min(REST_FACTOR_MAX);
            let rest = took.saturating_mul(before).min(REST_MAX);
            self.rests_until_us.store(micros(self.since.elapsed() + rest), Ordering::Relaxed);
            self.stuck.store(before + 1, Ordering::Relaxed);
        } else if self.is_stuck() {
            self.stuck.store(0, Ordering::Relaxed);
        }
        let took_us = micros(took);
        let average_us = self.average_us.load(Ordering::Relaxed);
        let new_average_us = average_us - average_us.div_ceil(AVERAGE_OVER) + took_us / AVERAGE_OVER;
        if new_average_us != average_us {
            self.average_us.store(new_average_us, Ordering::Relaxed);
        }
        self.earn(if took <= SHORT { 1 } else { -LONG_COST });
    }

    /// Notes that a call was stopped.
    pub(super) fn note_stopped(&self) {
        self.earn(-STOP_COST);
    }

    fn earn(&self, credit: i32) {
        let old = self.credit.load(Ordering::Relaxed);
        let new = (old + credit).clamp(CREDIT_MIN, CREDIT_MAX);
        if new != old {
            self.credit.store(new, Ordering::Relaxed);
        }
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(pace: &Pace, took: Duration, count: usize) {
        (0..count).for_each(|_| pace.note(took, false));
    }

    #[test]
    fn credit_is_earned_by_short_calls_and_lost_by_others() {
        let pace = Pace::unknown();
        assert!(!pace.is_quick(1, 1));
        call(&pace, SHORT, 9);
        assert!(pace.is_quick(1, 1) && pace.is_quick(WRITES_MAX, BYTES_MAX));
        assert!(!pace.is_quick(WRITES_MAX + 1, 1) && !pace.is_quick(1, BYTES_MAX + 1));
        call(&pace, SHORT * 2, 1);
        assert!(!pace.is_quick(1, 1));
        call(&pace, SHORT, 10_000);
        pace.note_stopped();
        assert!(!pace.is_quick(1, 1));
        call(&pace, SHORT, 1);
        assert!(pace.is_quick(1, 1));
    }

    #[test]
    fn credit_that_is_lost_can_be_earned_again() {
        let pace = Pace::unknown();
        (0..1_000).for_each(|_| pace.note_stopped());
        call(&pace, SHORT, 1_025);
        assert!(pace.is_quick(1, 1));
    }

    #[test]
    fn a_hook_is_heavy_while_its_calls_take_long_on_average() {
        let pace = Pace::unknown();
        call(&pace, HEAVY / 2, 1_000);
        assert!(!pace.is_heavy());
        call(&pace, HEAVY * 100, 1);
        assert!(pace.is_heavy());
        call(&pace, SHORT, 50);
        assert!(!pace.is_heavy());
        call(&pace, HEAVY * 2, 20);
        assert!(pace.is_heavy());
    }

    #[test]
    fn a_hook_that_fails_slowly_is_stuck_and_rests_longer_each_time() {
        let pace = Pace::unknown();
        pace.note(SHORT, true);
        assert!(!pace.is_stuck());
        let took = Duration::from_millis(100);
        for times in [0, 1, 2, 3, 4, 4] {
            pace.note(took, true);
            let rest = pace.rest();
            assert!(pace.is_stuck() && pace.is_heavy());
            assert!(rest <= took * times && rest + took >= took * times, "{rest:?} {times}");
        }
        pace.note(Duration::from_secs(10), true);
        assert!(pace.rest() <= REST_MAX);
        pace.note(SHORT, false);
        assert!(!pace.is_stuck() && pace.rest().is_zero());
    }
}
