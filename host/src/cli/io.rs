//! Input and output of commands: files and standard input; aligned tables for people, JSON for programs, progress bars.

use std::fmt::Display;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::failure::Failure;
use crate::json;
use crate::limits::JSON_LEVELS_MAX;

pub(super) const MEBIBYTE: f64 = 1_048_576.0;

/// Characters of a value shown in a table; the rest is cut.
const CELL_CHARS_MAX: usize = 60;

/// Characters of a digest shown to people.
const DIGEST_CHARS: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Aligned columns
    Table,
    /// The node's JSON; lists print one object per line
    Json,
}

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
pub(super) fn table<const N: usize>(
    titles: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Result<(), Failure> {
    let rows: Vec<[String; N]> = std::iter::once(titles.map(str::to_owned)).chain(rows).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        rows.iter().map(|row| row[column].chars().count()).chain([titles[column].len()]).max().unwrap_or(0)
    });
    let mut out = std::io::stdout().lock();
    for row in &rows {
        let cells: Vec<String> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// The items of a JSON array; none of any other value.
pub(super) fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
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

pub(super) fn texts<const N: usize>(object: &Value, fields: [&str; N]) -> [String; N] {
    fields.map(|field| text(&object[field]))
}

/// The strings of a JSON array, joined.
pub(super) fn words(list: &Value) -> String {
    items(list).map(text).collect::<Vec<_>>().join("+")
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

/// A progress bar on standard error, hidden unless that is a terminal. A `length` of 0 means that it is not known.
pub(super) fn progress(length: u64, unit: &str) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    if length == 0 {
        return ProgressBar::new_spinner();
    }
    let style = ProgressStyle::with_template(&format!("{{bar:40}} {{pos}}/{{len}} {unit} {{eta}}"));
    ProgressBar::new(length).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Reads a file, or standard input if the path is `-`.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = match path == Path::new("-") {
        true => std::io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes),
        false => std::fs::read(path),
    };
    read.map_err(Failure::of_file(path))
}

/// The text of an argument, or the content of the file that it names as `@FILE`.
pub(super) fn text_or_file(argument: &str) -> Result<Vec<u8>, Failure> {
    match argument.strip_prefix('@') {
        Some(file) => read_file(file.as_ref()),
        None => Ok(argument.as_bytes().to_vec()),
    }
}

/// The value of `--config`: JSON, or `@FILE` with JSON.
pub(super) fn config(argument: &str) -> Result<Value, Failure> {
    let wrong = |error: &dyn Display| {
        Failure::Usage(format!("--config: {argument}: it must be JSON, or @ and a file of JSON ({error})"))
    };
    let text = text_or_file(argument)?;
    let config = serde_json::from_slice(&text).map_err(|error| wrong(&error))?;
    // serde_json keeps the last of two members with one name.
    json::check(&text, JSON_LEVELS_MAX).map_err(|error| wrong(&error))?;
    Ok(config)
}
