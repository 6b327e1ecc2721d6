//! A wall clock that a test sets while a process runs by it.
//!
//! libfaketime (Debian: libfaketime) answers the process's questions for the time of day. Its other clocks stay as they are, as
//! on a machine whose wall clock is set.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

/// Directory of the libraries of each architecture.
const LIBRARIES_DIR: &str = "/usr/lib";

/// The wall clock of one process.
pub struct FakeClock {
    dir: TempDir,
}

impl FakeClock {
    /// A clock that is right.
    pub fn new() -> Self {
        let clock = Self { dir: tempfile::Builder::new().prefix("brink-clock-").tempdir().unwrap() };
        clock.set("+0");
        clock
    }

    /// Sets the clock: a distance to the right time (`+90`, `-25h`), or the time of the process's start
    /// (`@2020-01-01 00:00:10`).
    pub fn set(&self, time: &str) {
        // The process may read it at any moment, so it is replaced at once.
        let next = self.dir.path().join("next");
        std::fs::write(&next, time).unwrap();
        std::fs::rename(next, self.file()).unwrap();
    }

    /// A command that runs another one by this clock (see [`crate::Place::wrapper`]).
    pub fn wrapper(&self) -> Vec<String> {
        // A killed process leaves files that are named by its id, and one that gets the same id does not start with them.
        let run = "rm -f /dev/shm/*faketime_*_$$; exec \"$@\"";
        let preload = format!("LD_PRELOAD={}", library().display());
        let file = format!("FAKETIME_TIMESTAMP_FILE={}", self.file().display());
        let settings = ["FAKETIME_NO_CACHE=1", "FAKETIME_DONT_FAKE_MONOTONIC=1"];
        ["sh", "-c", run, "sh", "env", &preload, &file].into_iter().chain(settings).map(str::to_owned).collect()
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("time")
    }
}

impl Default for FakeClock {
    fn default() -> Self {
        Self::new()
    }
}

/// The right time, so far from now (`-2 seconds`), as entries show it.
pub fn right_time(distance: &str) -> String {
    let output = Command::new("date").args(["-u", "-d", distance, "+%FT%T.%3NZ"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn library() -> PathBuf {
    let arches = std::fs::read_dir(Path::new(LIBRARIES_DIR)).unwrap().flatten().map(|arch| arch.path());
    let mut found = arches.map(|arch| arch.join("faketime/libfaketimeMT.so.1")).filter(|library| library.exists());
    found.next().expect("libfaketime is installed")
}
