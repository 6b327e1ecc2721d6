//! The log lines of one call: what the guest logs, and what it writes to standard output and standard error.
//!
//! Lines go to the node's log, as events of target `plugin`, when the call has ended. The last lines of standard error are
//! kept until then, because a panic writes its message there.

use std::collections::VecDeque;

use super::bindings::brink::hooks::log::Level;
use crate::limits;

/// Digits of a plugin's digest in the node's log.
const VERSION_CHARS: usize = 12;

/// Lines of standard error kept to explain a trap.
const LAST_LINES_MAX: usize = 8;

/// Bytes kept of each.
const LAST_LINE_BYTES_MAX: usize = 512;

/// Rust adds this advice to a panic's message. It is useless here: a plugin has no environment.
const RUST_ADVICE: &str = "note: run with `RUST_BACKTRACE=1`";

/// Receives the log lines of guests, beside the node's log.
pub trait LogSink: Send + Sync {
    /// A guest wrote a line, or failed. Called on the thread that runs the guest, in the span of the request; must not
    /// block. `level` is `debug`, `info`, `warn` or `error`.
    fn log(&self, source: &LogSource, level: &'static str, line: String) {
        let _ = (source, level, line);
    }
}

impl LogSink for () {}

/// Whose lines they are.
#[derive(Debug, Default)]
pub struct LogSource {
    /// The hook's name; empty while a plugin is only being compiled.
    pub hook: String,
    /// The plugin's name.
    pub plugin: String,
    /// The plugin's version.
    pub digest: String,
}

impl LogSource {
    /// Writes a line to the node's log and to the sink.
    pub(crate) fn log(&self, sink: &dyn LogSink, level: Level, line: String) {
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
        sink.log(self, level, line);
    }
}

#[derive(Default)]
pub(super) struct Lines {
    pending: Vec<(Level, String)>,
    /// Number of lines so far.
    count: usize,
    /// A line of standard output or standard error that has not ended.
    unfinished: Vec<u8>,
    last: VecDeque<String>,
}

impl Lines {
    /// Writes the lines that have not been written yet.
    pub(super) fn flush(&mut self, source: &LogSource, sink: &dyn LogSink) {
        self.finish();
        for (level, line) in self.pending.drain(..) {
            source.log(sink, level, line);
        }
    }

    /// Drops the lines so far, and all that follow.
    pub(super) fn discard(&mut self) {
        self.pending.clear();
        self.count = limits::PLUGIN_LOG_LINES_MAX;
    }

    /// Adds a line of the `log` interface. Beyond the limits it is cut or dropped.
    pub(super) fn log(&mut self, level: Level, message: &str) {
        if self.count < limits::PLUGIN_LOG_LINES_MAX {
            self.count += 1;
            self.pending.push((level, one_line(cut(message, limits::PLUGIN_LOG_LINE_BYTES_MAX))));
        }
    }

    /// Adds bytes written to standard output or standard error, in pieces of any size.
    pub(super) fn write(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = limits::PLUGIN_LOG_LINE_BYTES_MAX.saturating_sub(self.unfinished.len());
            self.unfinished.extend(piece.iter().take(room));
            if piece.ends_with(b"\n") {
                self.finish();
            }
        }
    }

    /// The last lines of standard output and standard error, as one text; empty if there are none.
    pub(super) fn last_words(&mut self) -> String {
        self.finish();
        self.last.make_contiguous().join("; ")
    }

    fn finish(&mut self) {
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

/// The start of `text`: at most `bytes_max` bytes, ending between two characters.
pub(crate) fn cut(text: &str, bytes_max: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes_max)).unwrap_or_default()
}

/// `text` with every control character replaced by a space, so that it cannot forge other lines of a log.
pub(crate) fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Said(Mutex<Vec<String>>);

    impl LogSink for Said {
        fn log(&self, _: &LogSource, _: &'static str, line: String) {
            self.0.lock().push(line);
        }
    }

    #[test]
    fn lines_are_written_at_the_end_unless_they_are_discarded() {
        let (source, said) = (LogSource::default(), Said::default());
        let mut lines = Lines::default();
        lines.log(Level::Info, "one");
        lines.write(b"two\nthr");
        lines.write(b"ee");
        assert!(said.0.lock().is_empty());
        lines.flush(&source, &said);
        lines.flush(&source, &said);
        assert_eq!(*said.0.lock(), ["one", "two", "three"]);

        let mut lines = Lines::default();
        lines.log(Level::Info, "four");
        lines.discard();
        lines.write(b"five");
        lines.flush(&source, &said);
        assert_eq!(said.0.lock().len(), 3);
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(["h", "hé", "hé"], [cut("héllo", 2), cut("héllo", 3), cut("hé", 10)]);
    }
}
