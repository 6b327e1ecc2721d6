//! How long the machine itself stands still while a test measures.

use std::fs::File;
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pause between two looks.
const INTERVAL: Duration = Duration::from_millis(20);

/// A machine that stands still for longer spoils a measurement: less than a lease.
const STILL_MAX: Duration = Duration::from_millis(200);

/// Runs of a measurement. The last one is judged in any case.
const RUNS: usize = 5;

/// Runs a measurement that says what is wrong, and panics if something is. It is repeated if the machine stood still meanwhile:
/// if a thread with nothing to do was not run, or one byte was not synced, for the most part of a lease.
pub async fn undisturbed(mut measure: impl AsyncFnMut() -> Result<(), String>) {
    for run in 1..=RUNS {
        let watch = Watch::start();
        let Err(wrong) = measure().await else { return };
        let still = watch.longest();
        assert!(still > STILL_MAX && run < RUNS, "run {run}, in which the machine stood still for {still:?}: {wrong}");
        println!("run {run} is repeated, since the machine stood still for {still:?}: {wrong}");
    }
}

/// A thread that notes for how long it stands still.
pub struct Watch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Duration>>,
}

impl Watch {
    /// Begins to look.
    pub fn start() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut file = tempfile::tempfile().unwrap();
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                longest = longest.max(look(&mut file));
            }
            longest
        });
        Self { stop, thread: Some(thread) }
    }

    /// Whether the machine has stood still since the start, for so long that it spoils a measurement.
    pub fn has_stood_still(self) -> bool {
        self.longest() > STILL_MAX
    }

    /// The longest standstill since the start.
    fn longest(mut self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Sleeps, and syncs a byte. Returns the time that this took beyond the sleep.
fn look(file: &mut File) -> Duration {
    let began = Instant::now();
    std::thread::sleep(INTERVAL);
    file.write_all(b".").unwrap();
    file.sync_data().unwrap();
    began.elapsed().saturating_sub(INTERVAL)
}
