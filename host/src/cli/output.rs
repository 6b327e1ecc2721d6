//! How results are printed: aligned for people, JSON for programs.

use std::io::{IsTerminal, Write};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::client::Failure;

/// Bytes of a value shown in a table.
const CELL_CHARS_MAX: usize = 60;

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns
    Table,
    /// JSON, as the node answered; lists have one object a line
    Json,
}

/// Prints one line.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

/// Prints bytes as they are.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Prints rows in aligned columns under their titles.
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

/// A value in one cell: its JSON text or that it is binary, cut where it is long.
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

/// A field as text: a string without its quotes.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// A progress bar on standard error, if that is a terminal. `length` is 0 if it is not known.
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
