//! The cluster's time: the leader's clock, within a bound of the middle of the voters' clocks.
//!
//! # Problem
//!
//! The leader stamps each round with its time, and everything that depends on time uses the stamp. A clock may be wrong by hours
//! and may step at any moment, and the node with that clock may lead. Time that was once too late stays in the log.
//!
//! # Approach
//!
//! Each answer to a hello carries the wall time of its sender. A node keeps it as the distance to its own uptime, which nobody can
//! set, so a step of its own wall clock shows at once and not with the next hello. The middle is the median of the voters' clocks,
//! this node's included; a stamp is this node's wall time, moved to within [`CLOCK_OFFSET_MAX`] of the middle.
//!
//! **What is not known counts as early.** A voter that was not heard lately counts as one with a clock far behind, and of an even
//! number of clocks the earlier middle one counts. Until a majority was heard, time stands still at the newest stamp of the log. So as
//! long as the clocks of a majority are right, no stamp is later than a right clock by more than the bound and half a round trip:
//! names are not forgotten early. The price is paid while a clock that is far behind is one of a bare majority that can be heard: time
//! may stand still then.
//!
//! The first stamp of a log raises the feature level, and waits until the clocks of all voters were heard: should time begin too early,
//! it would jump once it is right. A node alone follows its own clock.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::limits::CLOCK_OFFSET_MAX;

/// Time for which a reading counts. Clocks that are not set drift apart by far less than the bound meanwhile.
const READING_AGE_MAX: Duration = Duration::from_secs(10);

/// Longest round trip of a reading. The clock was read somewhere on the way, so it is off by up to half of it.
const READING_TRIP_MAX: Duration = Duration::from_secs(1);

/// What another node's wall clock showed.
#[derive(Debug, Clone, Copy)]
pub(super) struct ClockReading {
    /// Its distance to this node's uptime.
    ahead_ms: i64,
    /// This node's uptime when it was read.
    at: Duration,
}

impl ClockReading {
    /// A clock that showed `unix_ms` between two moments of this node's uptime; none if they lie too far apart to tell anything.
    pub(super) fn between(began: Duration, ended: Duration, unix_ms: u64) -> Option<Self> {
        let trip = ended.saturating_sub(began);
        let read_at = began + trip / 2;
        (trip <= READING_TRIP_MAX).then(|| Self { ahead_ms: signed(unix_ms).saturating_sub(ms(read_at)), at: ended })
    }

    /// The better one of two readings of a clock. How long a hello was on its way that the peer sent by itself (not `is_answer`) is
    /// unknown: such a reading may be early, and counts only while there is no other.
    pub(super) fn better(before: Option<Self>, new: Option<Self>, is_answer: bool) -> Option<Self> {
        match (before, new) {
            (Some(before), Some(new)) if !is_answer && new.at.saturating_sub(before.at) <= READING_AGE_MAX => {
                Some(before)
            }
            (before, new) => new.or(before),
        }
    }
}

/// What the voters' clocks allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Bounds {
    /// The earliest and the latest stamp, as distances to this node's uptime.
    earliest_ms: i64,
    latest_ms: i64,
    /// Whether the clocks of all voters were heard.
    is_complete: bool,
}

/// The cluster's time, as this node knows it.
pub(crate) struct ClusterTime {
    clock: Clock,
    /// What the voters' clocks allow, as last heard; none until a majority of them was.
    bounds: Mutex<Option<Bounds>>,
    /// Whether this node's clock was last reported as wrong.
    is_reported: AtomicBool,
}

impl ClusterTime {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, bounds: Mutex::default(), is_reported: AtomicBool::new(false) }
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// This node's wall time, moved to within the bounds, in milliseconds since the Unix epoch; none until a majority of the voters'
    /// clocks was heard.
    pub(super) fn bounded_ms(&self) -> Option<u64> {
        let bounds = (*self.bounds.lock())?;
        let (own_ms, uptime_ms) = (signed(self.clock.unix_ms()), ms(self.clock.uptime()));
        let earliest_ms = uptime_ms.saturating_add(bounds.earliest_ms);
        let latest_ms = uptime_ms.saturating_add(bounds.latest_ms);
        Some(u64::try_from(own_ms.max(earliest_ms).min(latest_ms)).unwrap_or(0))
    }

    /// Whether the clocks of all voters were heard lately.
    pub(super) fn is_complete(&self) -> bool {
        self.bounds.lock().is_some_and(|bounds| bounds.is_complete)
    }

    /// Takes over what is known of the clocks of the other voters.
    pub(super) fn set_others(&self, readings: &[Option<ClockReading>]) {
        let bounds = bounds(self.heard(readings), readings.len() + 1);
        *self.bounds.lock() = bounds;
    }

    /// How far this node's wall clock is ahead of the middle of the other voters' clocks, in milliseconds; none if none was heard.
    pub(super) fn own_offset_ms(&self, others: &[Option<ClockReading>]) -> Option<i64> {
        offset_ms(self.own_ahead_ms(), self.heard(others))
    }

    /// The same for a clock that was read.
    pub(super) fn offset_ms(&self, reading: Option<ClockReading>, others: &[Option<ClockReading>]) -> Option<i64> {
        let clock = self.heard(&[reading]).pop()?;
        let mut others = self.heard(others);
        others.push(self.own_ahead_ms());
        offset_ms(clock, others)
    }

    /// Logs that this node's clock has become wrong, or right again.
    pub(super) fn report(&self, offset_ms: i64) {
        let is_far = is_far(offset_ms);
        if self.is_reported.swap(is_far, Ordering::Relaxed) == is_far {
            return;
        }
        if is_far {
            let bound = CLOCK_OFFSET_MAX;
            tracing::warn!(offset_ms, ?bound, "this node's clock is far from the other nodes' clocks");
        } else {
            tracing::info!(offset_ms, "this node's clock agrees with the other nodes' clocks again");
        }
    }

    fn own_ahead_ms(&self) -> i64 {
        signed(self.clock.unix_ms()).saturating_sub(ms(self.clock.uptime()))
    }

    /// The clocks that were read lately.
    fn heard(&self, readings: &[Option<ClockReading>]) -> Vec<i64> {
        let uptime = self.clock.uptime();
        let is_recent = |reading: &&ClockReading| uptime.saturating_sub(reading.at) <= READING_AGE_MAX;
        readings.iter().flatten().filter(is_recent).map(|reading| reading.ahead_ms).collect()
    }
}

/// Whether a clock is too far from the others.
pub(super) fn is_far(offset_ms: i64) -> bool {
    u128::from(offset_ms.unsigned_abs()) > CLOCK_OFFSET_MAX.as_millis()
}

/// The bounds for one of `voters` clocks, given those of the others that were heard.
fn bounds(mut others: Vec<i64>, voters: usize) -> Option<Bounds> {
    others.sort_unstable();
    let unheard = voters.saturating_sub(others.len() + 1);
    // The position of the middle among this node's clock and those that were heard: before them are the ones that were not.
    let middle = (voters.saturating_sub(1) / 2).checked_sub(unheard)?;
    // This node's clock is the middle if it lies between these two.
    let before = middle.checked_sub(1).and_then(|before| others.get(before));
    let after = others.get(middle);
    let allowance_ms = ms(CLOCK_OFFSET_MAX);
    Some(Bounds {
        earliest_ms: before.map_or(i64::MIN, |before| before.saturating_sub(allowance_ms)),
        latest_ms: after.map_or(i64::MAX, |after| after.saturating_add(allowance_ms)),
        is_complete: unheard == 0,
    })
}

/// How far a clock is ahead of the middle of others; 0 between the two middle ones of an even number.
fn offset_ms(clock: i64, mut others: Vec<i64>) -> Option<i64> {
    others.sort_unstable();
    let (low, high) = (others.get(others.len().checked_sub(1)? / 2)?, others.get(others.len() / 2)?);
    Some(clock.saturating_sub(clock.max(*low).min(*high)))
}

fn ms(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

fn signed(unix_ms: u64) -> i64 {
    i64::try_from(unix_ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU64;

    use super::*;
    use crate::clock::Clocks;

    const HOUR_MS: u64 = 3_600_000;
    /// The right time when the node's uptime is 0.
    const START_MS: u64 = 1_000_000 * HOUR_MS;

    #[derive(Default)]
    struct Set {
        wall_ms: AtomicU64,
        uptime_ms: AtomicU64,
    }

    impl Clocks for Set {
        fn unix_ms(&self) -> u64 {
            self.wall_ms.load(Ordering::Relaxed)
        }

        fn uptime(&self) -> Duration {
            Duration::from_millis(self.uptime_ms.load(Ordering::Relaxed))
        }
    }

    /// A node whose wall clock shows this, at an uptime of 0.
    fn node(wall_ms: u64) -> (Arc<Set>, ClusterTime) {
        let set = Arc::new(Set { wall_ms: wall_ms.into(), ..Set::default() });
        (set.clone(), ClusterTime::new(Clock::new(set)))
    }

    /// The stamp of a node whose wall clock shows this, given the others'.
    fn stamp_ms(wall_ms: u64, others: &[Option<ClockReading>]) -> Option<u64> {
        let (_, time) = node(wall_ms);
        time.set_others(others);
        time.bounded_ms()
    }

    fn reading(unix_ms: u64) -> Option<ClockReading> {
        ClockReading::between(Duration::ZERO, Duration::ZERO, unix_ms)
    }

    fn bound_ms() -> u64 {
        u64::try_from(CLOCK_OFFSET_MAX.as_millis()).unwrap()
    }

    #[test]
    fn a_leader_with_a_wrong_clock_stamps_within_the_bound_of_the_others() {
        let right = [reading(START_MS), reading(START_MS + 5)];
        assert_eq!(stamp_ms(START_MS + 25 * HOUR_MS, &right), Some(START_MS + 5 + bound_ms()));
        assert_eq!(stamp_ms(START_MS / 2, &right), Some(START_MS - bound_ms()));
        assert_eq!(stamp_ms(START_MS + bound_ms(), &right), Some(START_MS + bound_ms()));
    }

    #[test]
    fn a_wrong_clock_of_a_follower_does_not_move_the_leaders_time() {
        for wrong_ms in [START_MS / 2, START_MS + 25 * HOUR_MS] {
            assert_eq!(stamp_ms(START_MS, &[reading(START_MS), reading(wrong_ms)]), Some(START_MS));
        }
    }

    #[test]
    fn a_step_of_the_leaders_own_clock_shows_at_once() {
        let (set, time) = node(START_MS);
        time.set_others(&[reading(START_MS), reading(START_MS)]);
        set.uptime_ms.store(100, Ordering::Relaxed);
        for stepped_ms in [START_MS + 25 * HOUR_MS, START_MS - 25 * HOUR_MS] {
            set.wall_ms.store(stepped_ms, Ordering::Relaxed);
            let stamp_ms = time.bounded_ms().unwrap();
            assert_eq!(stamp_ms.abs_diff(START_MS + 100), bound_ms(), "{stamp_ms}");
        }
    }

    #[test]
    fn a_voter_that_was_not_heard_counts_as_early() {
        let late_ms = START_MS + 25 * HOUR_MS;
        // Of five clocks two may be wrong. While the other right ones are not heard, they must not decide.
        let others = [reading(late_ms), reading(START_MS), None, None];
        assert_eq!(stamp_ms(late_ms, &others), Some(START_MS + bound_ms()));
        // A pair cannot tell whose clock is wrong.
        for others in [vec![reading(START_MS), None], vec![reading(START_MS)]] {
            assert_eq!(stamp_ms(late_ms, &others), Some(START_MS + bound_ms()));
        }
        assert_eq!(stamp_ms(START_MS, &[reading(late_ms)]), Some(START_MS));
    }

    #[test]
    fn without_a_majority_of_clocks_there_is_no_time() {
        assert_eq!(stamp_ms(START_MS, &[None, None]), None);
        assert_eq!(stamp_ms(START_MS, &[None]), None);
        let (_, time) = node(START_MS);
        assert_eq!(time.bounded_ms(), None);
    }

    #[test]
    fn time_may_begin_once_all_clocks_were_heard() {
        let (_, time) = node(START_MS);
        assert!(!time.is_complete());
        time.set_others(&[reading(START_MS), None]);
        assert!(!time.is_complete());
        time.set_others(&[reading(START_MS), reading(START_MS)]);
        assert!(time.is_complete());
    }

    #[test]
    fn a_node_alone_follows_its_own_clock() {
        assert_eq!(stamp_ms(START_MS / 2, &[]), Some(START_MS / 2));
        let (_, time) = node(START_MS);
        assert_eq!(time.own_offset_ms(&[]), None);
    }

    #[test]
    fn a_reading_counts_for_a_while_and_not_if_its_answer_took_too_long() {
        let (set, time) = node(START_MS);
        set.uptime_ms.store(10_000, Ordering::Relaxed);
        assert_eq!(time.heard(&[reading(START_MS)]).len(), 1);
        set.uptime_ms.store(10_001, Ordering::Relaxed);
        assert_eq!(time.heard(&[reading(START_MS)]).len(), 0);
        let after = |trip_ms| ClockReading::between(Duration::ZERO, Duration::from_millis(trip_ms), START_MS);
        assert_eq!(after(1_000).map(|reading| reading.ahead_ms), Some(signed(START_MS) - 500));
        assert!(after(1_001).is_none());
    }

    #[test]
    fn a_hello_that_nobody_asked_for_tells_a_clock_only_while_no_other_does() {
        let at = |seconds, unix_ms| {
            let at = Duration::from_secs(seconds);
            ClockReading::between(at, at, unix_ms)
        };
        let better =
            |before, new, is_answer| ClockReading::better(before, new, is_answer).map(|reading| reading.at.as_secs());
        assert_eq!(better(None, at(1, START_MS), false), Some(1));
        assert_eq!(better(at(1, START_MS), at(2, START_MS), false), Some(1));
        assert_eq!(better(at(1, START_MS), at(12, START_MS), false), Some(12));
        assert_eq!(better(at(1, START_MS), at(2, START_MS), true), Some(2));
        assert_eq!(better(at(1, START_MS), None, true), Some(1));
    }

    #[test]
    fn a_clock_is_judged_by_the_middle_of_the_others() {
        assert_eq!(offset_ms(50, vec![]), None);
        assert_eq!(offset_ms(50, vec![20]), Some(30));
        assert_eq!(offset_ms(50, vec![90, 20]), Some(0));
        assert_eq!(offset_ms(50, vec![90, 60]), Some(-10));
        assert_eq!(offset_ms(50, vec![90, 20, 45]), Some(5));
        let (bound, beyond) = (ms(CLOCK_OFFSET_MAX), ms(CLOCK_OFFSET_MAX) + 1);
        assert!(!is_far(bound) && !is_far(-bound) && is_far(beyond) && is_far(-beyond) && is_far(i64::MIN));
    }
}
