//! Input and output of commands: files and standard input; aligned tables for people, JSON for programs, progress bars.
//!
//! No other file of the host writes to standard output (`xtask/src/tidy` checks that), so nothing that a stranger wrote orders
//! anything of a terminal. Text for people is [safe](crate::text) wherever it goes. What programs read, JSON and values, is
//! unchanged, and made safe only on a terminal.

use std::borrow::Cow;
use std::fmt::Display;
use std::fs::File;
use std::io::{BufWriter, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::failure::Failure;
use crate::limits::JSON_LEVELS_MAX;
use crate::{json, text};

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

/// Prints text for people, which may have several lines. Parts that come from others must be [safe](text::safe) already.
pub(super) fn line(text: &str) -> Result<(), Failure> {
    Ok(writeln!(std::io::stdout().lock(), "{}", text::safe_lines(text))?)
}

/// Prints JSON and a line end.
pub(super) fn json(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let text = if out.is_terminal() { text::safe_json(text) } else { Cow::Borrowed(text) };
    Ok(writeln!(out, "{text}")?)
}

/// Prints a value's bytes, and a line end if they are JSON. They are unchanged, except on a terminal if it is not `is_raw`.
pub(super) fn value(bytes: &[u8], is_json: bool, is_raw: bool) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let shown = if out.is_terminal() && !is_raw { safe_value(bytes, is_json) } else { Cow::Borrowed(bytes) };
    out.write_all(&shown)?;
    if is_json {
        out.write_all(b"\n")?;
    }
    Ok(out.flush()?)
}

/// A value as a terminal may show it.
fn safe_value(bytes: &[u8], is_json: bool) -> Cow<'_, [u8]> {
    let text = String::from_utf8_lossy(bytes);
    let safe = if is_json { text::safe_json(&text) } else { text::safe_lines(&text) };
    match safe {
        Cow::Borrowed(safe) if safe.as_bytes() == bytes => Cow::Borrowed(bytes),
        safe => Cow::Owned(safe.into_owned().into_bytes()),
    }
}

/// Prints a script of our own, unchanged.
pub(super) fn script(bytes: &[u8]) -> Result<(), Failure> {
    Ok(std::io::stdout().lock().write_all(bytes)?)
}

/// Says on standard error why something failed. It may be closed; then nobody hears it.
pub(super) fn complain(reason: &impl Display) {
    let _ = writeln!(std::io::stderr(), "brink: {}", text::safe_lines(&reason.to_string()));
}

/// Where a command writes many lines of JSON: a file, or standard output.
pub(super) struct JsonLines {
    out: BufWriter<Box<dyn Write>>,
    /// `None` for standard output.
    file: Option<PathBuf>,
    is_terminal: bool,
}

impl JsonLines {
    /// Creates the file; `None` is standard output.
    pub(super) fn create(file: Option<PathBuf>) -> Result<Self, Failure> {
        let out: Box<dyn Write> = match &file {
            Some(path) => Box::new(File::create(path).map_err(Failure::of_file(path))?),
            None => Box::new(std::io::stdout()),
        };
        let is_terminal = file.is_none() && std::io::stdout().is_terminal();
        Ok(Self { out: BufWriter::new(out), file, is_terminal })
    }

    pub(super) fn write(&mut self, line: &impl serde::Serialize) -> Result<(), Failure> {
        let written = match self.is_terminal {
            true => serde_json::to_string(line)
                .map_err(std::io::Error::from)
                .and_then(|text| self.out.write_all(text::safe_json(&text).as_bytes())),
            false => serde_json::to_writer(&mut self.out, line).map_err(std::io::Error::from),
        };
        written.and_then(|()| self.out.write_all(b"\n")).map_err(|error| self.failed(error))
    }

    /// Writes what waits, at the end.
    pub(super) fn finish(mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|error| self.failed(error))
    }

    fn failed(&self, error: std::io::Error) -> Failure {
        match &self.file {
            Some(path) => Failure::of_file(path)(error),
            None => Failure::Output(error),
        }
    }
}

/// Prints rows in aligned columns below their titles.
pub(super) fn table<const N: usize>(
    titles: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> Result<(), Failure> {
    let rows = std::iter::once(titles.map(str::to_owned)).chain(rows);
    let rows: Vec<[String; N]> = rows.map(|row| row.map(|cell| text::safe(&cell).into_owned())).collect();
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

/// A JSON value as safe text on one line: a string without its quotes, null as `-`.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text::safe(text).into_owned(),
        Value::Null => "-".to_owned(),
        other => text::safe(&other.to_string()).into_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_orders_nothing_of_a_terminal() {
        let shown = |bytes: &[u8], is_json| String::from_utf8(safe_value(bytes, is_json).into_owned()).unwrap();
        assert_eq!(shown(b"a\tb\n\x1b]0;x\x07\xff", false), "a\tb\n\\u{1b}]0;x\\u{7}\u{fffd}");
        assert_eq!(shown("{\"a\": \"\u{9b}\"}".as_bytes(), true), "{\"a\": \"\\u009b\"}");
        assert!(matches!(safe_value("é\n".as_bytes(), false), Cow::Borrowed(_)));
    }

    #[test]
    fn the_text_of_a_json_value_is_on_one_line() {
        assert_eq!(text(&serde_json::json!("a\n\u{1b}")), "a\\n\\u{1b}");
        assert_eq!(text(&serde_json::json!(["\u{9b}"])), "[\"\\u{9b}\"]");
        assert_eq!(text(&Value::Null), "-");
    }
}
