//! What plugins did on this node: their last log lines, and figures of their calls.
//!
//! Both are bounded, and end with the process. The node's log and its metrics have the same permanently.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::broadcast;

use crate::limits::{HOOKS_MAX, PLUGIN_DEADLINE_MAX, PLUGIN_LINES_KEPT};

/// Significant decimal digits of call times.
const DIGITS: u8 = 2;

/// Most hooks with figures: those in force, and as many former ones. Beyond it the former ones are removed.
const FIGURES_MAX: usize = HOOKS_MAX * 2;

/// A line that a plugin logged, or a failure of it.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    /// Unix time in milliseconds.
    pub at_ms: u64,
    /// The hook.
    pub hook: String,
    /// The plugin's name.
    pub plugin: String,
    /// The plugin's version.
    pub digest: String,
    /// The trace of the request whose write was judged; absent for lines that no request caused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// `debug`, `info`, `warn` or `error`.
    pub level: &'static str,
    /// The text.
    pub message: String,
}

/// Figures of a hook's calls since the node started.
#[derive(Debug, Serialize)]
pub struct Tally {
    /// The hook.
    pub hook: String,
    /// The plugin's name.
    pub plugin: String,
    /// Number of calls.
    pub calls: u64,
    /// Number of calls by result: `accepted`, `rejected`, or how the plugin failed.
    pub results: BTreeMap<&'static str, u64>,
    /// Median time of a call, in microseconds.
    pub p50_us: u64,
    /// 99th percentile, in microseconds.
    pub p99_us: u64,
    /// The longest call, in microseconds.
    pub max_us: u64,
    /// The largest linear memory of an instance, in bytes.
    pub memory_bytes: u64,
}

/// The record of a node. Cheap to clone; all clones are the same record.
#[derive(Clone)]
pub struct Record {
    /// Protects the order of lines: each is stored and sent under it.
    last: Arc<Mutex<VecDeque<Arc<Line>>>>,
    lines: broadcast::Sender<Arc<Line>>,
    /// By hook and plugin. Protects the list, not the figures.
    figures: Arc<Mutex<BTreeMap<(String, String), Figures>>>,
}

/// The figures of one hook. Cheap to clone; all clones are the same figures.
#[derive(Clone)]
pub struct Figures(Arc<Mutex<Counts>>);

struct Counts {
    micros: Histogram<u64>,
    results: BTreeMap<&'static str, u64>,
    memory_bytes: usize,
}

impl Default for Record {
    fn default() -> Self {
        Self { last: Arc::default(), lines: broadcast::Sender::new(PLUGIN_LINES_KEPT), figures: Arc::default() }
    }
}

impl Record {
    /// Stores a line, and sends it to followers.
    pub fn say(&self, line: Line) {
        let line = Arc::new(line);
        let mut last = self.last.lock();
        if last.len() == PLUGIN_LINES_KEPT {
            last.pop_front();
        }
        last.push_back(line.clone());
        // An error means that nobody follows. Sent under the lock, so that a new follower misses no line and sees none twice.
        let _ = self.lines.send(line);
    }

    /// The stored lines, oldest first, and all that follow.
    pub fn lines(&self) -> (Vec<Arc<Line>>, broadcast::Receiver<Arc<Line>>) {
        let last = self.last.lock();
        (last.iter().cloned().collect(), self.lines.subscribe())
    }

    /// The figures of a hook, to count its calls in. They are listed while there is room, or somebody holds them.
    /// `None` if the bounds of the histogram are invalid, which a test would show.
    pub fn of_hook(&self, hook: &str, plugin: &str) -> Option<Figures> {
        let mut all = self.figures.lock();
        let name = (hook.to_owned(), plugin.to_owned());
        if all.len() >= FIGURES_MAX && !all.contains_key(&name) {
            all.retain(|_, figures| Arc::strong_count(&figures.0) > 1);
        }
        match all.entry(name) {
            Entry::Occupied(known) => Some(known.get().clone()),
            Entry::Vacant(new) => {
                // The measured time includes waiting, which the deadline bounds.
                let max_us = PLUGIN_DEADLINE_MAX.as_micros() as u64 * 2;
                let micros = Histogram::new_with_max(max_us, DIGITS).ok()?;
                let counts = Counts { micros, results: BTreeMap::new(), memory_bytes: 0 };
                Some(new.insert(Figures(Arc::new(Mutex::new(counts)))).clone())
            }
        }
    }

    /// The figures of every hook.
    pub fn tallies(&self) -> Vec<Tally> {
        let all = self.figures.lock();
        let tallies = all.iter().map(|((hook, plugin), figures)| {
            let calls = figures.0.lock();
            Tally {
                hook: hook.clone(),
                plugin: plugin.clone(),
                calls: calls.micros.len(),
                results: calls.results.clone(),
                p50_us: calls.micros.value_at_quantile(0.5),
                p99_us: calls.micros.value_at_quantile(0.99),
                max_us: calls.micros.max(),
                memory_bytes: calls.memory_bytes as u64,
            }
        });
        tallies.collect()
    }
}

impl Figures {
    /// Counts a call.
    pub fn count(&self, took: Duration, result: &'static str, memory_bytes: usize) {
        let mut calls = self.0.lock();
        calls.micros.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        *calls.results.entry(result).or_default() += 1;
        calls.memory_bytes = calls.memory_bytes.max(memory_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(number: usize) -> Line {
        let (hook, plugin, digest) = ("h".to_owned(), "p".to_owned(), String::new());
        Line { at_ms: 0, hook, plugin, digest, trace_id: None, level: "info", message: number.to_string() }
    }

    #[test]
    fn the_newest_lines_are_kept_and_who_follows_misses_none() {
        let record = Record::default();
        (0..PLUGIN_LINES_KEPT + 5).for_each(|number| record.say(line(number)));
        let (kept, mut coming) = record.lines();
        assert_eq!(kept.len(), PLUGIN_LINES_KEPT);
        assert_eq!(kept[0].message, "5");
        record.say(line(99_999));
        assert_eq!(coming.try_recv().unwrap().message, "99999");
    }

    #[test]
    fn calls_are_counted_by_hook_and_bounded() {
        let record = Record::default();
        for (result, micros) in [("accepted", 10), ("accepted", 20), ("rejected", 1_000)] {
            record.of_hook("h", "p").unwrap().count(Duration::from_micros(micros), result, 65_536);
        }
        let tallies = record.tallies();
        let tally = &tallies[0];
        assert_eq!((tally.calls, tally.results["accepted"], tally.results["rejected"]), (3, 2, 1));
        assert_eq!((tally.p50_us, tally.memory_bytes), (20, 65_536));
        let in_force = record.of_hook("h", "p").unwrap();
        for number in 0..FIGURES_MAX * 2 {
            record.of_hook(&number.to_string(), "p").unwrap().count(Duration::from_secs(3_600), "timed_out", 0);
        }
        assert!((1..=FIGURES_MAX).contains(&record.tallies().len()));
        in_force.count(Duration::from_micros(10), "accepted", 65_536);
        assert!(record.tallies().iter().any(|tally| (&*tally.hook, tally.calls) == ("h", 4)));
    }
}
