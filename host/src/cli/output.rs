//! Output of commands: aligned tables for people, JSON for programs, progress bars for terminals.

use std::io::{IsTerminal, Write};
use std::time::{Duration, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::failure::Failure;

/// Characters of a value shown in a table; the rest is cut.
const CELL_CHARS_MAX: usize = 60;

/// Characters of a digest shown to people.
const DIGEST_CHARS: usize = 12;

/// Output formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns
    Table,
    /// The node's JSON; lists print one object per line
    Json,
}

/// Prints one line.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

/// Prints bytes without a line end.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Prints rows in aligned columns below their titles.
pub(super) fn table(titles: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
        cells.chain(titles.get(column).map(|title| title.len())).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let mut out = std::io::stdout().lock();
    let titles: Vec<String> = titles.iter().map(|title| (*title).to_owned()).collect();
    for row in std::iter::once(&titles).chain(rows) {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// The table cell of an entry's value: JSON text, cut if it is long, or the content type of any other value.
pub(super) fn cell(entry: &Value) -> String {
    let text = match (entry.get("value"), entry["content_type"].as_str()) {
        (Some(value), _) => value.to_string(),
        (None, Some(content_type)) => format!("({content_type})"),
        (None, None) => String::new(),
    };
    let mut chars = text.chars();
    let shown: String = chars.by_ref().take(CELL_CHARS_MAX).collect();
    if chars.next().is_some() { format!("{shown}…") } else { shown }
}

/// A JSON value as text: a string without its quotes, null as `-`.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// The strings of a JSON array, joined.
pub(super) fn words(list: &Value) -> String {
    let words: Vec<String> = list.as_array().into_iter().flatten().map(text).collect();
    words.join("+")
}

/// The start of an object's `digest`.
pub(super) fn digest(object: &Value) -> String {
    text(&object["digest"]).chars().take(DIGEST_CHARS).collect()
}

/// A number of milliseconds since the Unix epoch as RFC 3339.
pub(super) fn time(unix_ms: &Value) -> String {
    let at = UNIX_EPOCH + Duration::from_millis(unix_ms.as_u64().unwrap_or(0));
    humantime::format_rfc3339_millis(at).to_string()
}

/// Whole microseconds.
pub(super) fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Milliseconds.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// Bytes in MiB.
pub(super) fn mebibytes(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// A progress bar on standard error, hidden unless that is a terminal. A `length` of 0 means that it is not known.
pub(super) fn progress(length: u64, unit: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    if length == 0 {
        return ProgressBar::new_spinner();
    }
    let style = format!("{{bar:40}} {{pos}}/{{len}} {unit} {{eta}}");
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template(&style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
