//! Log lines and their formats. A line that is written within a request ends with the request's trace id.
//!
//! The id is taken from the request when a line is written. As a field of the request's span, where `tracing` would look for it, it
//! would be formatted for every request, although few requests log.

use std::fmt;

use tracing::{Event, Subscriber};
use tracing_subscriber::filter::{EnvFilter, ParseError};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use super::context::request_trace_id;
use super::names;

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
            let layer = layer.map_event_format(|lines| WithTraceId { lines: lines.with_ansi(has_colors), format });
            layer.with_filter(filter).boxed()
        }
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(false).with_span_list(false);
            layer.map_event_format(|lines| WithTraceId { lines, format }).with_filter(filter).boxed()
        }
    }
}

/// A format of lines, with the trace id added.
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
        let Some(trace_id) = request_trace_id() else { return self.lines.format_event(context, writer, event) };
        let mut line = String::new();
        self.lines.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end();
        match (self.format, line.strip_suffix('}')) {
            (LogFormat::Json, Some(line)) => writeln!(writer, "{line},\"trace_id\":\"{trace_id}\"}}"),
            _ => writeln!(writer, "{line} trace_id={trace_id}"),
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

    /// The lines that are written outside of a request and within one.
    fn written(format: LogFormat) -> String {
        let written = Written::default();
        let writer = written.clone();
        let lines = lines_layer(format, line_filter("info").unwrap(), move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            assert!(names::propose_span().is_disabled(), "spans cost every write, and lines need none");
            tracing::info!(a = 1, "outside");
            within_request_sync(Some(TraceIdHex::new(0x0af7)), || tracing::info!(b = "\"}", "within"));
        });
        String::from_utf8(written.0.lock().clone()).unwrap()
    }

    #[test]
    fn a_line_within_a_request_has_its_trace_id() {
        let json = written(LogFormat::Json);
        let lines: Vec<serde_json::Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!((lines.len(), &lines[0]["a"], lines[0].get("trace_id")), (2, &1.into(), None));
        assert_eq!((&lines[1]["b"], &lines[1]["trace_id"]), (&"\"}".into(), &format!("{:0>32}", "af7").into()));

        let text = written(LogFormat::Text);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(!lines[0].contains("trace_id") && lines[1].ends_with("0af7"), "{text}");
    }
}
