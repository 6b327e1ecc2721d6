//! What plugins did on this node: the lines they wrote last, and what their calls came to.
//!
//! Both are bounded and of this process alone: lines are kept until newer ones take their place, figures begin anew when
//! the node starts. What must last goes to the node's log and to its metrics, which have the same.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::sync::broadcast;

use crate::limits::{HOOKS_MAX, PLUGIN_DEADLINE_MAX, PLUGIN_LINES_KEPT};

/// Digits of a histogram of calls.
const DIGITS: u8 = 2;

/// Hooks of which figures are kept: those that are in force, and as many again that were; one more, and the latter are
/// forgotten.
const FIGURES_MAX: usize = HOOKS_MAX * 2;

/// One line that a plugin wrote, or one failure of it.
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
    /// The trace of the request whose write was judged; absent for what no request caused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// `debug`, `info`, `warn` or `error`.
    pub level: &'static str,
    /// The text.
    pub message: String,
}

/// What the calls of a hook came to since the node started.
#[derive(Debug, Serialize)]
pub struct Tally {
    /// The hook.
    pub hook: String,
    /// The plugin's name.
    pub plugin: String,
    /// How many calls there were.
    pub calls: u64,
    /// How many came to what: `accepted`, `rejected`, or how the plugin failed.
    pub results: BTreeMap<&'static str, u64>,
    /// Half of the calls took at most so long, in microseconds.
    pub p50_us: u64,
    /// All but one of a hundred took at most so long, in microseconds.
    pub p99_us: u64,
    /// The longest took so long, in microseconds.
    pub max_us: u64,
    /// The most linear memory that an instance had, in bytes.
    pub memory_bytes: u64,
}

/// The record of a node. Cheap to clone; all clones are the same record.
#[derive(Clone)]
pub struct Record(Arc<Inner>);

struct Inner {
    last: Mutex<VecDeque<Arc<Line>>>,
    lines: broadcast::Sender<Arc<Line>>,
    figures: Mutex<BTreeMap<(String, String), Figures>>,
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
        let (lines, _) = broadcast::channel(PLUGIN_LINES_KEPT);
        Self(Arc::new(Inner { last: Mutex::default(), lines, figures: Mutex::default() }))
    }
}

impl Record {
    /// Keeps a line, and hands it to those who follow.
    pub fn say(&self, line: Line) {
        let line = Arc::new(line);
        let mut last = lock(&self.0.last);
        if last.len() == PLUGIN_LINES_KEPT {
            last.pop_front();
        }
        last.push_back(line.clone());
        // Nobody has to listen. Under the lock, so that who begins to follow misses no line and sees none twice.
        let _ = self.0.lines.send(line);
    }

    /// The lines kept, oldest first, and those that will come.
    pub fn lines(&self) -> (Vec<Arc<Line>>, broadcast::Receiver<Arc<Line>>) {
        let last = lock(&self.0.last);
        (last.iter().cloned().collect(), self.0.lines.subscribe())
    }

    /// The figures of a hook, in which its calls are to be counted. They are listed as long as there is room, or somebody has
    /// them.
    pub fn of_hook(&self, hook: &str, plugin: &str) -> Option<Figures> {
        let mut all = lock(&self.0.figures);
        let name = (hook.to_owned(), plugin.to_owned());
        if all.len() >= FIGURES_MAX && !all.contains_key(&name) {
            all.retain(|_, figures| Arc::strong_count(&figures.0) > 1);
        }
        match all.entry(name) {
            Entry::Occupied(known) => Some(known.get().clone()),
            Entry::Vacant(new) => Some(new.insert(Figures(Arc::new(Mutex::new(Counts::new()?)))).clone()),
        }
    }

    /// What the calls of every hook came to.
    pub fn tallies(&self) -> Vec<Tally> {
        let all = lock(&self.0.figures);
        let tallies = all.iter().map(|((hook, plugin), figures)| {
            let calls = lock(&figures.0);
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
        let mut calls = lock(&self.0);
        calls.micros.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        *calls.results.entry(result).or_default() += 1;
        calls.memory_bytes = calls.memory_bytes.max(memory_bytes);
    }
}

impl Counts {
    /// None yet; `None` if the bounds of the histogram make no sense, which a test would show.
    fn new() -> Option<Self> {
        // A call is measured with what it waits for, which its deadline bounds.
        let max_us = u64::try_from(PLUGIN_DEADLINE_MAX.as_micros()).ok()?.saturating_mul(2);
        let micros = Histogram::new_with_max(max_us, DIGITS).ok()?;
        Some(Self { micros, results: BTreeMap::new(), memory_bytes: 0 })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
