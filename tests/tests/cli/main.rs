//! The command line: each command with its output and exit code.

use std::time::{Duration, Instant};

use brink_tests::{Run, brink};

mod bad_input;
mod bench;
mod commands;
mod real_data;
mod terminals;

/// Time for a cluster to choose a leader. Only a guard.
const LIMIT: Duration = Duration::from_secs(60);

/// Runs `brink` again while the node fails, as it does during an election. Only for commands that do the same when they are
/// repeated.
fn settled(url: &str, args: &[&str]) -> Run {
    let began = Instant::now();
    loop {
        let run = brink(url, args);
        if run.code != 1 || began.elapsed() > LIMIT {
            return run;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
