//! The log lines of one call of a plugin: what it logs, and what it writes to standard output and standard error.
//!
//! Lines go to the node's log as events of target `plugin` when the call has ended. The last ones of standard error are
//! kept, because that is where a panic says what happened.

use std::collections::VecDeque;

use super::bindings::brink::hooks::log::Level;
use super::runtime::Observer;
use super::text::{cut, one_line};
use crate::limits;

/// Digits of a plugin's version in the node's log.
const VERSION_CHARS: usize = 12;

/// Lines of standard error kept to explain a trap.
const LAST_LINES_MAX: usize = 8;

/// Bytes kept of each of them.
const LAST_LINE_BYTES_MAX: usize = 512;

/// What Rust adds to a panic's message. A plugin has no environment, so it is no advice.
const RUST_ADVICE: &str = "note: run with `RUST_BACKTRACE=1`";

/// Who speaks: for log lines and errors.
#[derive(Debug, Default)]
pub(super) struct Speaker {
    /// The hook's name; empty while a plugin is only being compiled.
    pub(super) hook: String,
    /// The plugin's name.
    pub(super) plugin: String,
    /// The plugin's version.
    pub(super) digest: String,
}

impl Speaker {
    /// Says a line, to the node's log and to the observer.
    pub(super) fn say(&self, observer: &dyn Observer, level: Level, line: String) {
        let Self { hook, plugin, digest } = self;
        let version = cut(digest, VERSION_CHARS);
        match level {
            Level::Debug => tracing::debug!(target: "plugin", hook, plugin, version, "{line}"),
            Level::Info => tracing::info!(target: "plugin", hook, plugin, version, "{line}"),
            Level::Warn => tracing::warn!(target: "plugin", hook, plugin, version, "{line}"),
            Level::Error => tracing::error!(target: "plugin", hook, plugin, version, "{line}"),
        }
        let level = match level {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        observer.said(hook, plugin, digest, level, line);
    }
}

/// The lines of one call.
pub(super) struct Lines {
    unsaid: Vec<(Level, String)>,
    left: usize,
    unfinished: Vec<u8>,
    last: VecDeque<String>,
}

impl Lines {
    pub(super) fn new() -> Self {
        let left = limits::PLUGIN_LOG_LINES_MAX;
        Self { unsaid: Vec::new(), left, unfinished: Vec::new(), last: VecDeque::new() }
    }

    /// Says what has not been said yet.
    pub(super) fn say(&mut self, speaker: &Speaker, observer: &dyn Observer) {
        self.finish();
        for (level, line) in self.unsaid.drain(..) {
            speaker.say(observer, level, line);
        }
    }

    /// Drops the lines so far, and all that follow.
    pub(super) fn forget(&mut self) {
        self.unsaid.clear();
        self.left = 0;
    }

    /// One line of the `log` interface. Beyond the limits it is cut or dropped.
    pub(super) fn log(&mut self, level: Level, message: &str) {
        if self.left == 0 {
            return;
        }
        self.left -= 1;
        self.unsaid.push((level, one_line(cut(message, limits::PLUGIN_LOG_LINE_BYTES_MAX))));
    }

    /// Bytes written to standard output or standard error, in pieces of any size.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = limits::PLUGIN_LOG_LINE_BYTES_MAX.saturating_sub(self.unfinished.len());
            self.unfinished.extend(piece.iter().take(room));
            if piece.ends_with(b"\n") {
                self.finish();
            }
        }
    }

    /// What was written last, as one text; empty if nothing was.
    pub(super) fn last_words(&mut self) -> String {
        self.finish();
        let lines: Vec<&str> = self.last.iter().map(String::as_str).collect();
        lines.join("; ")
    }

    /// Ends the line that is being written.
    pub(super) fn finish(&mut self) {
        let bytes = std::mem::take(&mut self.unfinished);
        let text = String::from_utf8_lossy(&bytes);
        let text = text.trim();
        if text.is_empty() {
            return;
        }
        self.log(Level::Warn, text);
        if text.starts_with(RUST_ADVICE) {
            return;
        }
        if self.last.len() == LAST_LINES_MAX {
            self.last.pop_front();
        }
        self.last.push_back(one_line(cut(text, LAST_LINE_BYTES_MAX)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::runtime::{Calls, Unobserved};
    use super::*;

    #[derive(Default)]
    struct Said(Mutex<Vec<String>>);

    impl Observer for Said {
        fn calls_of(&self, _: &str, _: &str) -> Arc<dyn Calls> {
            Arc::new(Unobserved)
        }

        fn said(&self, _: &str, _: &str, _: &str, _: &'static str, line: String) {
            self.0.lock().unwrap().push(line);
        }
    }

    #[test]
    fn lines_are_said_at_the_end_unless_they_are_forgotten() {
        let (speaker, said) = (Speaker::default(), Said::default());
        let mut lines = Lines::new();
        lines.log(Level::Info, "one");
        lines.write(b"two\nthr");
        lines.write(b"ee");
        assert!(said.0.lock().unwrap().is_empty());
        lines.say(&speaker, &said);
        lines.say(&speaker, &said);
        assert_eq!(*said.0.lock().unwrap(), ["one", "two", "three"]);

        let mut lines = Lines::new();
        lines.log(Level::Info, "four");
        lines.forget();
        lines.write(b"five");
        lines.say(&speaker, &said);
        assert_eq!(said.0.lock().unwrap().len(), 3);
    }
}
