//! The clock of plugin deadlines: one thread that advances the engine's epoch while plugins run.
//!
//! Compiled code compares the epoch with its deadline at every loop and function entry. A tick is a millisecond in which
//! the thread has seen a call run. Where it sees none it looks again after [`REST`], and that time counts for nobody: short
//! calls, which it hardly ever sees, then cost few wake-ups, and a call that takes long is stopped up to [`REST`] and two ticks
//! late. After a second without a call the thread sleeps until the next one, so an idle node pays nothing; the call that wakes
//! it pays one system call.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use wasmtime::Engine;

use super::per_thread::PerThread;

/// The resolution of deadlines.
const TICK: Duration = Duration::from_millis(1);

/// How long the thread rests when it has seen no call.
const REST: Duration = Duration::from_millis(4);

/// Looks without a call after which the thread sleeps.
const IDLE_LOOKS_MAX: u32 = 250;

/// Ticks made up for at once when the thread was not scheduled for a while; beyond the longest deadline more make no
/// difference.
const CATCH_UP_TICKS_MAX: u128 = 20_000;

/// The ticking thread. Stops when dropped.
pub(super) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    /// Running calls.
    running: PerThread<AtomicUsize>,
    is_asleep: AtomicBool,
    is_stopped: AtomicBool,
}

/// Keeps the epoch advancing while it lives.
pub(super) struct Running<'a>(&'a AtomicUsize);

impl Ticker {
    /// Starts the thread for an engine.
    pub(super) fn start(engine: &Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let thread = thread::Builder::new().name("plugin-ticker".to_owned()).spawn({
            let (shared, engine) = (Arc::clone(&shared), engine.clone());
            move || tick(&shared, &engine)
        })?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Call before a plugin runs; hold the answer until it has returned.
    pub(super) fn run(&self) -> Running<'_> {
        // IMPORTANT: both sides write their own flag before they read the other's, in one total order (`SeqCst`), so
        // that the thread cannot fall asleep unseen by a call that starts at the same time.
        let running = self.shared.running.mine();
        running.fetch_add(1, Ordering::SeqCst);
        if self.shared.is_asleep.load(Ordering::SeqCst) {
            self.wake();
        }
        Running(running)
    }

    /// Ticks after which at least `duration` has passed: the first one may come at once.
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
            // The thread cannot panic, and there would be nobody to tell.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn is_running(&self) -> bool {
        self.running.iter().any(|running| running.load(Ordering::SeqCst) > 0)
    }
}

fn tick(shared: &Shared, engine: &Engine) {
    let mut idle_looks = 0;
    while !shared.is_stopped.load(Ordering::SeqCst) {
        if shared.is_running() {
            idle_looks = 0;
            tick_while_running(shared, engine);
        }
        idle_looks += 1;
        if idle_looks >= IDLE_LOOKS_MAX {
            sleep_until_called(shared);
            idle_looks = 0;
        } else {
            thread::sleep(REST);
        }
    }
}

fn tick_while_running(shared: &Shared, engine: &Engine) {
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
