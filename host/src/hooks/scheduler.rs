//! Decides when and where the calls of a hook run.
//!
//! Guests are called synchronously, and may compute for milliseconds or loop. How long a hook's calls have taken so far decides
//! where the next one runs:
//!
//! | the hook's calls so far | the next call runs |
//! |---|---|
//! | have credit: nearly all took at most 0.1 ms | *inline*, on the async thread that handles the request, for at most 2 ms |
//! | anything else | on a *blocking thread* |
//! | took 1 ms or more on average | on a *background thread*, which yields to the threads that serve |
//! | the last one failed after 1 ms or more | on a background thread, one at a time, after a *backoff* |
//!
//! **Inline** saves handing the call to another thread and back, which takes several times as long as a short call. Each short
//! call earns one credit, and others cost credit. A call that does not end in time is repeated on a blocking thread, which
//! cannot be noticed: no call has effects, or sees what another left. It costs the credit of [`INTERRUPT_COST`] short calls, so
//! a plugin that alternates between short and long calls occupies the async threads no longer than one that is always fast.
//!
//! **Backoff**: a hook that keeps failing slowly, such as one that loops, wastes the time of its calls. After each such call but
//! the first it waits, in the end four times as long as the call took, and at most one second.
//!
//! **Room**: a node runs a few instances per core, because guests compute, and may wait for reads. A call first waits for its
//! turn in the hook's own share, which is half of the node's room, then for room on the node. It holds neither while it waits
//! for another hook, so a slow hook delays its own writes only. Background calls have a room of their own.

use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rayon::ThreadPool;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout_at};

use crate::limits;
use crate::sandbox::{background_instances_max, instances_max};

/// Most time that a short call takes. A few take longer because their thread was not scheduled.
const SHORT: Duration = Duration::from_micros(100);

/// When an inline call is interrupted: its start, `configure` and the call together.
pub(super) const INLINE_DEADLINE: Duration = Duration::from_millis(2);

/// Most memory and output of an inline call. The host copies the output, and some instructions fill whole memories: a
/// deadline interrupts neither.
pub(super) const INLINE_MEMORY_BYTES: usize = 8 * 1024 * 1024;
pub(super) const INLINE_OUTPUT_BYTES: usize = 64 * 1024;

/// Most writes of an inline call, and most bytes of them: a call takes longer the more it is given.
const INLINE_WRITES_MAX: usize = 16;
const INLINE_BYTES_MAX: usize = 16 * 1024;

/// A new hook's credit: some calls must be short before one is expected to be.
const CREDIT_AT_FIRST: i32 = -8;
const CREDIT_MAX: i32 = 256;
const CREDIT_MIN: i32 = -1_024;

/// Credit that a call costs if it is not short, and if it was interrupted. A short call earns 1.
const LONG_COST: i32 = 4;
const INTERRUPT_COST: i32 = 256;

/// The average time from which on calls run in the background.
const SLOW: Duration = Duration::from_millis(1);

/// The longest backoff, as a multiple of the last call's time, and absolutely.
const BACKOFF_FACTOR_MAX: u32 = 4;
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Weight of the newest call in the average: one in this many.
const AVERAGE_OVER: u64 = 8;

/// The room of a node for calls. Cheap to clone; all clones share the same room.
#[derive(Clone)]
pub(super) struct Scheduler {
    /// One permit per call that runs inline or on a blocking thread.
    room: Arc<Semaphore>,
    /// One permit per call that runs in the background.
    background_room: Arc<Semaphore>,
    /// One permit per request that is being judged.
    queue: Arc<Semaphore>,
}

/// The share of one hook in the node's room, and the history of its calls.
pub(super) struct Share {
    /// All permits. The machine's number of cores may change later.
    max: u32,
    /// One permit per running call.
    permits: Arc<Semaphore>,
    /// One permit per write that waits for a turn.
    queue: Semaphore,
    pub(super) history: History,
    background: Arc<ThreadPool>,
}

impl Scheduler {
    pub(super) fn new() -> Self {
        Self {
            room: Arc::new(Semaphore::new(instances_max())),
            background_room: Arc::new(Semaphore::new(background_instances_max())),
            queue: Arc::new(Semaphore::new(limits::PLUGIN_QUEUE_MAX)),
        }
    }

    /// Takes a place for a request; `None` if too many are being judged.
    pub(super) fn enqueue(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.queue).try_acquire_owned().ok()
    }

    /// Waits for the room of one call on the node. `None`: there was none until the deadline.
    pub(super) async fn room(&self, is_background: bool, deadline: Instant) -> Option<OwnedSemaphorePermit> {
        let room = if is_background { &self.background_room } else { &self.room };
        timeout_at(deadline.into(), Arc::clone(room).acquire_owned()).await.ok()?.ok()
    }
}

impl Share {
    /// The share of a new hook: half of what the node runs at once, so that one hook cannot take it all. Its background calls
    /// run on these threads.
    pub(super) fn new(background: Arc<ThreadPool>) -> Self {
        let max = (instances_max() as u32 / 2).max(1);
        Self {
            max,
            permits: Arc::new(Semaphore::new(max as usize)),
            queue: Semaphore::new(limits::PLUGIN_QUEUE_MAX / 2),
            history: History::new(),
            background,
        }
    }

    /// The threads of background calls, if the next call is one.
    pub(super) fn background(&self) -> Option<Arc<ThreadPool>> {
        self.history.is_slow().then(|| Arc::clone(&self.background))
    }

    /// Takes a turn, if there is one now: room for one call in the hook's share, given back when it is dropped.
    pub(super) fn try_turn(&self) -> Option<OwnedSemaphorePermit> {
        if !self.history.backoff().is_zero() {
            return None;
        }
        Arc::clone(&self.permits).try_acquire_many_owned(self.permits_per_call()).ok()
    }

    /// Waits for a turn. `None`: there was none by then, or too many writes wait already.
    pub(super) async fn turn(&self, until: Instant) -> Option<OwnedSemaphorePermit> {
        let turn = async {
            let _place = self.queue.try_acquire().ok()?;
            loop {
                let needed = self.permits_per_call();
                let permits = Arc::clone(&self.permits).acquire_many_owned(needed).await.ok()?;
                // The hook may have begun to fail while this write waited, and then needs more.
                if self.permits_per_call() > needed {
                    continue;
                }
                let backoff = self.history.backoff();
                if !backoff.is_zero() {
                    // All others wait behind this one.
                    sleep(backoff).await;
                }
                return Some(permits);
            }
        };
        timeout_at(until.into(), turn).await.ok()?
    }

    /// All permits while the hook is failing, so that its calls run one at a time.
    fn permits_per_call(&self) -> u32 {
        if self.history.is_failing() { self.max } else { 1 }
    }
}

/// The history of a hook's calls. Concurrent updates may be lost, which does no harm. All threads that judge read it, so it is
/// written to only when a value changes: a hook that is always fast then causes no traffic between caches.
#[derive(Debug)]
pub(super) struct History {
    credit: AtomicI32,
    average_us: AtomicU64,
    /// Calls that failed slowly, one after the other.
    slow_failures: AtomicU32,
    /// End of the backoff, in microseconds from `since`.
    backoff_until_us: AtomicU64,
    since: Instant,
}

impl History {
    fn new() -> Self {
        Self {
            credit: AtomicI32::new(CREDIT_AT_FIRST),
            average_us: AtomicU64::new(0),
            slow_failures: AtomicU32::new(0),
            backoff_until_us: AtomicU64::new(0),
            since: Instant::now(),
        }
    }

    pub(super) fn allows_inline(&self, writes: usize, bytes: usize) -> bool {
        writes <= INLINE_WRITES_MAX && bytes <= INLINE_BYTES_MAX && self.credit.load(Ordering::Relaxed) > 0
    }

    /// Whether calls are expected to take long.
    pub(super) fn is_slow(&self) -> bool {
        self.is_failing() || u128::from(self.average_us.load(Ordering::Relaxed)) >= SLOW.as_micros()
    }

    /// Whether the last call failed slowly.
    fn is_failing(&self) -> bool {
        self.slow_failures.load(Ordering::Relaxed) > 0
    }

    /// How long the hook still has to wait.
    pub(super) fn backoff(&self) -> Duration {
        if !self.is_failing() {
            return Duration::ZERO;
        }
        Duration::from_micros(self.backoff_until_us.load(Ordering::Relaxed)).saturating_sub(self.since.elapsed())
    }

    pub(super) fn record(&self, took: Duration, has_failed: bool) {
        if has_failed && took >= SLOW {
            let before = self.slow_failures.load(Ordering::Relaxed).min(BACKOFF_FACTOR_MAX);
            let backoff = took.saturating_mul(before).min(BACKOFF_MAX);
            self.backoff_until_us.store(micros(self.since.elapsed() + backoff), Ordering::Relaxed);
            self.slow_failures.store(before + 1, Ordering::Relaxed);
        } else if self.is_failing() {
            self.slow_failures.store(0, Ordering::Relaxed);
        }
        let took_us = micros(took);
        let average_us = self.average_us.load(Ordering::Relaxed);
        let new_average_us = average_us - average_us.div_ceil(AVERAGE_OVER) + took_us / AVERAGE_OVER;
        if new_average_us != average_us {
            self.average_us.store(new_average_us, Ordering::Relaxed);
        }
        self.earn(if took <= SHORT { 1 } else { -LONG_COST });
    }

    pub(super) fn record_interrupted(&self) {
        self.earn(-INTERRUPT_COST);
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

    fn call(history: &History, took: Duration, count: usize) {
        (0..count).for_each(|_| history.record(took, false));
    }

    #[test]
    fn credit_is_earned_by_short_calls_and_lost_by_others() {
        let history = History::new();
        assert!(!history.allows_inline(1, 1));
        call(&history, SHORT, 9);
        assert!(history.allows_inline(1, 1) && history.allows_inline(INLINE_WRITES_MAX, INLINE_BYTES_MAX));
        assert!(!history.allows_inline(INLINE_WRITES_MAX + 1, 1) && !history.allows_inline(1, INLINE_BYTES_MAX + 1));
        call(&history, SHORT * 2, 1);
        assert!(!history.allows_inline(1, 1));
        call(&history, SHORT, 10_000);
        history.record_interrupted();
        assert!(!history.allows_inline(1, 1));
        call(&history, SHORT, 1);
        assert!(history.allows_inline(1, 1));
    }

    #[test]
    fn credit_that_is_lost_can_be_earned_again() {
        let history = History::new();
        (0..1_000).for_each(|_| history.record_interrupted());
        call(&history, SHORT, 1_025);
        assert!(history.allows_inline(1, 1));
    }

    #[test]
    fn a_hook_is_slow_while_its_calls_take_long_on_average() {
        let history = History::new();
        call(&history, SLOW / 2, 1_000);
        assert!(!history.is_slow());
        call(&history, SLOW * 100, 1);
        assert!(history.is_slow());
        call(&history, SHORT, 50);
        assert!(!history.is_slow());
        call(&history, SLOW * 2, 20);
        assert!(history.is_slow());
    }

    #[test]
    fn a_hook_that_fails_slowly_backs_off_longer_each_time() {
        let history = History::new();
        history.record(SHORT, true);
        assert!(!history.is_failing());
        let took = Duration::from_millis(100);
        for times in [0, 1, 2, 3, 4, 4] {
            history.record(took, true);
            let backoff = history.backoff();
            assert!(history.is_failing() && history.is_slow());
            assert!(backoff <= took * times && backoff + took >= took * times, "{backoff:?} {times}");
        }
        history.record(Duration::from_secs(10), true);
        assert!(history.backoff() <= BACKOFF_MAX);
        history.record(SHORT, false);
        assert!(!history.is_failing() && history.backoff().is_zero());
    }
}
