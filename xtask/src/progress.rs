//! The progress of a build.
//!
//! On a terminal cargo draws a bar. Elsewhere it lists what it compiles, but not how much is left. There, cargo draws its
//! bar into a pipe, and its numbers are printed as a line now and then.

use std::io::{BufReader, IsTerminal as _, Read};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// The time between two lines.
const INTERVAL: Duration = Duration::from_secs(15);

/// Cargo's words before the name of a crate. Its numbers say more.
const LISTED: [&str; 3] = ["Compiling", "Downloaded", "Downloading"];

/// The control sequence by which cargo removes its bar.
const CLEAR_LINE: &str = "\x1b[K";

/// Runs a `cargo build` and shows how far it is.
pub(crate) fn build(what: &str, mut cargo: Command) -> anyhow::Result<()> {
    let status = if std::io::stderr().is_terminal() {
        cargo.status().context("cargo cannot be run")?
    } else {
        cargo.env("CARGO_TERM_PROGRESS_WHEN", "always").env("CARGO_TERM_PROGRESS_WIDTH", "120");
        let mut cargo = cargo.stderr(Stdio::piped()).spawn().context("cargo cannot be run")?;
        let output = cargo.stderr.take().context("cargo has no output")?;
        report(what, output, |line| eprintln!("{line}"))?;
        cargo.wait()?
    };
    if !status.success() {
        bail!("{what} cannot be built: {status}");
    }
    Ok(())
}

/// Reads cargo's output to its end. Prints warnings and errors at once, and the numbers of the bar from time to time.
fn report(what: &str, output: impl Read, mut print: impl FnMut(&str)) -> std::io::Result<()> {
    let began = Instant::now();
    let mut next = began;
    let mut line = Vec::new();
    for byte in BufReader::new(output).bytes() {
        let byte = byte?;
        if byte != b'\n' && byte != b'\r' {
            line.push(byte);
            continue;
        }
        let text = String::from_utf8_lossy(&line).replace(CLEAR_LINE, "");
        line.clear();
        match position(&text) {
            Some(_) if Instant::now() < next => {}
            Some((steps, now)) => {
                let seconds = began.elapsed().as_secs();
                let (done, total) = steps.split_once('/').unwrap_or((steps, "?"));
                let time = format!("{} min {} s", seconds / 60, seconds % 60);
                print(&format!("building {what}: {done} of {total} steps, {time}; now {now}"));
                next = Instant::now() + INTERVAL;
            }
            None if text.trim().is_empty() || LISTED.iter().any(|word| text.trim_start().starts_with(word)) => {}
            None => print(&text),
        }
    }
    Ok(())
}

/// The numbers in cargo's bar and the crates being built: `212/340` and `serde, syn` of `Building [==> ] 212/340: serde, syn`.
fn position(line: &str) -> Option<(&str, &str)> {
    line.trim_start().strip_prefix("Building [")?.split_once("] ")?.1.trim_end().split_once(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_becomes_a_line_and_errors_stay() {
        let output = "   Compiling serde v1.0.229\n\
            \x20   Building [==>      ] 2/8: serde, syn(build)  \r\
            \x20   Building [==>      ] 3/8: serde\r\x1b[K\
            error: no such thing\n";
        let mut lines = Vec::new();
        report("brink", output.as_bytes(), |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["building brink: 2 of 8 steps, 0 min 0 s; now serde, syn(build)", "error: no such thing"]);
    }
}
