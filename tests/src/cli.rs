//! The command line, as users run it.

use std::fs::File;
use std::io::Read as _;
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

use crate::artifacts::brink_bin;

/// The output and the exit code of a command.
#[derive(Debug)]
pub struct Run {
    /// The exit code, or -1 if a signal ended the process.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Run {
    /// Returns the run. Panics if its exit code differs.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }
}

/// Time limit of a command in seconds. `timeout` then ends it with code 124.
const SECONDS_MAX: &str = "120";

/// Time limit of a command that waits for the compilers of a node, which have a low priority.
const COMPILING_SECONDS_MAX: &str = "300";

/// Runs `brink` with arguments, against the node at `url`.
pub fn brink(url: &str, args: &[&str]) -> Run {
    brink_with(&[("BRINK_URL", url)], args)
}

/// The same for a command that deploys or binds a large plugin.
pub fn brink_compiling(url: &str, args: &[&str]) -> Run {
    run(COMPILING_SECONDS_MAX, &[("BRINK_URL", url)], args)
}

/// Runs `brink` with arguments and a terminal as its standard output, and returns what that gets. It puts a carriage return before
/// each line end.
pub fn brink_on_terminal(url: &str, args: &[&str]) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&terminal).unwrap();
    unlockpt(&terminal).unwrap();
    let name = ptsname(&terminal, Vec::new()).unwrap();
    let end = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let mut command = Command::new("timeout");
    command.args(["--foreground", SECONDS_MAX]).arg(brink_bin()).args(args).env("BRINK_URL", url).stdin(Stdio::null());
    let mut child = command.stdout(end).stderr(Stdio::null()).spawn().unwrap();
    // Its copy of the other end.
    drop(command);
    let (mut terminal, mut got, mut some) = (File::from(terminal), Vec::new(), [0; 4096]);
    // Reading fails when nobody has the other end any more.
    while let Ok(length @ 1..) = terminal.read(&mut some) {
        got.extend_from_slice(&some[..length]);
    }
    assert!(child.wait().unwrap().success());
    String::from_utf8(got).unwrap()
}

/// Runs `brink` with arguments and environment variables.
pub fn brink_with(env: &[(&str, &str)], args: &[&str]) -> Run {
    run(SECONDS_MAX, env, args)
}

fn run(seconds_max: &str, env: &[(&str, &str)], args: &[&str]) -> Run {
    let mut command = Command::new("timeout");
    command.arg(seconds_max).arg(brink_bin()).args(args).envs(env.iter().copied()).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code().unwrap_or(-1), out: text(output.stdout), err: text(output.stderr) }
}
