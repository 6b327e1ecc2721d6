//! The clock of call deadlines: one thread that advances wasmtime's epoch while guests run.
//!
//! Compiled code compares the epoch with its deadline at every loop and function entry. While a call runs, the thread ticks
//! once a millisecond. When it sees no call, it checks again after [`REST`], and that time does not count towards any
//! deadline. So short calls, which it rarely sees, cause few wake-ups, and a long call is stopped up to [`REST`] and two
//! ticks late. After a second without a call the thread sleeps until the next one: an idle node pays nothing, and the call
//! that wakes it pays one system call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

/// The resolution of deadlines.
const TICK: Duration = Duration::from_millis(1);

/// Interval between checks while no call runs.
const REST: Duration = Duration::from_millis(4);

/// Checks without a call after which the thread sleeps.
const IDLE_CHECKS_MAX: u32 = 250;

/// Most ticks made up for at once when the thread was not scheduled for a while. Beyond the longest deadline, more ticks
/// make no difference.
const CATCH_UP_TICKS_MAX: u128 = 20_000;

/// Copies of a [`PerThread`]. With more threads than that, some threads share a copy.
const COPIES: usize = 16;

/// The ticking thread. Stops when dropped.
pub(super) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    running: PerThread<AtomicUsize>,
    is_asleep: AtomicBool,
    is_stopped: AtomicBool,
}

/// Keeps the epoch advancing until it is dropped.
pub(super) struct Running<'a>(&'a AtomicUsize);

impl Ticker {
    pub(super) fn start(engine: &wasmtime::Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new().name("plugin-ticker".to_owned()).spawn({
            let (shared, engine) = (Arc::clone(&shared), engine.clone());
            move || tick(&shared, &engine)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Called before a guest runs; the caller holds the answer until the guest has returned.
    pub(super) fn run(&self) -> Running<'_> {
        // IMPORTANT: both sides write their own flag before they read the other's, in one total order (`SeqCst`). So the
        // thread cannot fall asleep while a call starts.
        let running = self.shared.running.mine();
        running.fetch_add(1, Ordering::SeqCst);
        if self.shared.is_asleep.load(Ordering::SeqCst) {
            self.wake();
        }
        Running(running)
    }

    /// Number of ticks after which at least `duration` has passed: the first tick may come at once.
    pub(super) fn ticks(duration: Duration) -> u64 {
        let ticks = duration.as_nanos().div_ceil(TICK.as_nanos());
        u64::try_from(ticks).unwrap_or(u64::MAX / 2).saturating_add(1)
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.is_stopped.store(true, Ordering::SeqCst);
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn is_running(&self) -> bool {
        self.running.iter().any(|running| running.load(Ordering::SeqCst) > 0)
    }
}

fn tick(shared: &Shared, engine: &wasmtime::Engine) {
    let mut idle_checks = 0;
    while !shared.is_stopped.load(Ordering::SeqCst) {
        if shared.is_running() {
            idle_checks = 0;
            tick_while_running(shared, engine);
        }
        idle_checks += 1;
        if idle_checks >= IDLE_CHECKS_MAX {
            sleep_until_called(shared);
            idle_checks = 0;
        } else {
            thread::sleep(REST);
        }
    }
}

fn tick_while_running(shared: &Shared, engine: &wasmtime::Engine) {
    let mut ticked_at = Instant::now();
    while shared.is_running() && !shared.is_stopped.load(Ordering::SeqCst) {
        thread::sleep(TICK);
        let due = (ticked_at.elapsed().as_nanos() / TICK.as_nanos()).min(CATCH_UP_TICKS_MAX);
        for _ in 0..due {
            engine.increment_epoch();
            ticked_at += TICK;
        }
        if due == CATCH_UP_TICKS_MAX {
            ticked_at = Instant::now();
        }
    }
}

fn sleep_until_called(shared: &Shared) {
    shared.is_asleep.store(true, Ordering::SeqCst);
    while !shared.is_running() && !shared.is_stopped.load(Ordering::SeqCst) {
        thread::park();
    }
    shared.is_asleep.store(false, Ordering::SeqCst);
}

/// One `T` for each thread, or for a few threads, so that threads rarely write to the same cache line. Moving a cache line
/// between cores costs more than most updates of what is in it.
#[derive(Default)]
pub(super) struct PerThread<T>([CachePadded<T>; COPIES]);

thread_local! {
    /// Index of this thread's copy.
    static INDEX: usize = {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        NEXT.fetch_add(1, Ordering::Relaxed) % COPIES
    };
}

impl<T> PerThread<T> {
    pub(super) fn mine(&self) -> &T {
        let [first, ..] = &self.0;
        INDEX.with(|index| self.0.get(*index).unwrap_or(first))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|copy| &**copy)
    }
}
