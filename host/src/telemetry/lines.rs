//! Log lines and their formats. A line that is written within a request ends with the request's trace id.
//!
//! The id is taken from the request when a line is written. As a field of the request's span, where `tracing` would look for it, it
//! would be formatted for every request, although few requests log.
//!
//! Values come from strangers. None of them can begin a line, nor order anything of the terminal that shows it: text is made
//! [safe](crate::text) value by value, since its colors are orders too; JSON as a whole.

use std::borrow::Cow;
use std::fmt;

use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use super::context::request_trace_id;
use super::names;
use crate::text;

/// The format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Readable text.
    Text,
    /// One JSON object a line.
    Json,
}

/// A filter of log lines, which need no spans.
pub(super) fn line_filter(filter: &str) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(format!("{filter},{}=off", names::TRACE_TARGET))
}

/// Writes log lines.
pub(super) fn lines_layer<S, W>(format: LogFormat, filter: EnvFilter, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let layer = tracing_subscriber::fmt::layer().with_writer(writer);
    match format {
        LogFormat::Text => {
            let has_colors = std::env::var("NO_COLOR").map_or(true, |value| value.is_empty());
            let layer = layer.fmt_fields(SafeFields);
            let layer = layer.map_event_format(|lines| WithTraceId { lines: lines.with_ansi(has_colors), format });
            layer.with_filter(filter).boxed()
        }
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(false).with_span_list(false);
            layer.map_event_format(|lines| WithTraceId { lines, format }).with_filter(filter).boxed()
        }
    }
}

/// A format of lines, with the trace id added, and JSON made safe.
struct WithTraceId<F> {
    lines: F,
    format: LogFormat,
}

impl<S, N, F> FormatEvent<S, N> for WithTraceId<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'w> FormatFields<'w> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let trace_id = request_trace_id();
        if self.format == LogFormat::Text && trace_id.is_none() {
            return self.lines.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        let line = match self.format {
            LogFormat::Text => Cow::Borrowed(line.trim_end()),
            LogFormat::Json => text::safe_json(line.trim_end()),
        };
        match (trace_id, line.strip_suffix('}')) {
            (Some(trace_id), Some(line)) if self.format == LogFormat::Json => {
                writeln!(writer, "{line},\"trace_id\":\"{trace_id}\"}}")
            }
            (Some(trace_id), _) => writeln!(writer, "{line} trace_id={trace_id}"),
            (None, _) => writeln!(writer, "{line}"),
        }
    }
}

/// Writes the fields of a line as text, as `tracing_subscriber` does, but every value is [safe](text::safe).
pub struct SafeFields;

impl<'w> FormatFields<'w> for SafeFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut fields_writer = FieldsWriter { writer, is_first: true, result: Ok(()) };
        fields.record(&mut fields_writer);
        fields_writer.result
    }
}

struct FieldsWriter<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl FieldsWriter<'_> {
    fn write(&mut self, field: &Field, value: &str) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        let value = text::safe(value);
        match field.name() {
            "message" => self.writer.write_str(&value),
            // The name in italics, the sign dimmed.
            name if self.writer.has_ansi_escapes() => {
                write!(self.writer, "\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{value}")
            }
            name => write!(self.writer, "{name}={value}"),
        }
    }
}

impl Visit for FieldsWriter<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if self.result.is_ok() {
            self.result = self.write(field, &format!("{value:?}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::Arc;

    use parking_lot::Mutex;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;
    use crate::telemetry::{TraceIdHex, within_request_sync};

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The lines that are written.
    fn written(format: LogFormat, write: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let lines = lines_layer(format, line_filter("info").unwrap(), move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), write);
        String::from_utf8(written.0.lock().clone()).unwrap()
    }

    /// Writes a line outside of a request, and one within.
    fn write_two() {
        assert!(names::propose_span().is_disabled(), "spans cost every write, and lines need none");
        tracing::info!(a = 1, "outside");
        within_request_sync(Some(TraceIdHex::new(0x0af7)), || tracing::info!(b = "\"}", "within"));
    }

    #[test]
    fn a_line_within_a_request_has_its_trace_id() {
        let json = written(LogFormat::Json, write_two);
        let lines: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[0]["a"], lines[0].get("trace_id")), (2, &1.into(), None));
        assert_eq!((&lines[1]["b"], &lines[1]["trace_id"]), (&"\"}".into(), &format!("{:0>32}", "af7").into()));

        let text = written(LogFormat::Text, write_two);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(!lines[0].contains("trace_id") && lines[1].ends_with("0af7"), "{text}");
    }

    #[test]
    fn no_value_begins_a_line_or_orders_anything_of_a_terminal() {
        let hostile = "a\u{1b}[2J\r\nERROR forged\u{9b}2J\u{202e}";
        let write = || {
            tracing::warn!(shown = %hostile, quoted = hostile, "{hostile}");
            within_request_sync(Some(TraceIdHex::new(0x0af7)), || tracing::warn!(shown = %hostile, "{hostile}"));
        };
        let safe = "a\\u{1b}[2J\\r\\nERROR forged\\u{9b}2J\\u{202e}";
        let text = written(LogFormat::Text, write);
        // What is left are colors.
        let is_color = |rest: &str| rest.trim_start_matches(|char: char| char.is_ascii_digit()).starts_with('m');
        let has_orders = |line: &str| {
            line.split("\u{1b}[").skip(1).any(|rest| !is_color(rest))
                || line.replace("\u{1b}[", "").contains(|char: char| char.is_control() || char == '\u{202e}')
        };
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        for line in lines {
            assert!(!has_orders(line) && line.matches(safe).count() >= 2, "{line:?}");
        }

        let json = written(LogFormat::Json, write);
        assert_eq!(json.lines().count(), 2, "{json}");
        for line in json.lines() {
            assert!(!line.contains(|char: char| char.is_control() || char == '\u{202e}'), "{line:?}");
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!((&line["message"], &line["shown"]), (&hostile.into(), &hostile.into()));
        }
    }
}
