//! W3C trace context: links the spans of one request across nodes.

use std::fmt::Write as _;
use std::sync::Arc;

use http::HeaderMap;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use serde::{Deserialize, Serialize};
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The header that carries the context.
const TRACEPARENT: &str = "traceparent";

/// The position of a span in its trace (W3C Trace Context, level 1). `tracestate` is not carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
}

impl TraceContext {
    /// Parses the value of a `traceparent` header. `None` if it is malformed.
    pub fn parse(traceparent: &str) -> Option<Self> {
        let mut parts = traceparent.trim().split('-');
        let version = parts.next().filter(|part| part.len() == 2)?;
        let trace_id = hex::<16>(parts.next()?)?;
        let span_id = hex::<8>(parts.next()?)?;
        let [flags] = hex::<1>(parts.next()?)?;
        let well_formed = match version {
            "00" => parts.next().is_none(),
            // Later versions may append fields.
            _ => version != "ff" && hex::<1>(version).is_some(),
        };
        let present = trace_id != [0; 16] && span_id != [0; 8];
        (well_formed && present).then_some(Self { trace_id, span_id, flags })
    }

    /// The context in the headers of a request, if they have a valid one.
    pub fn extract(headers: &HeaderMap) -> Option<Self> {
        Self::parse(headers.get(TRACEPARENT)?.to_str().ok()?)
    }

    /// The context of a span. `None` if its trace is not sampled, or traces are off.
    pub fn of_span(span: &tracing::Span) -> Option<Self> {
        if span.is_disabled() {
            return None;
        }
        let context = span.context();
        let context = context.span().span_context().clone();
        (context.is_valid() && context.is_sampled()).then(|| Self {
            trace_id: context.trace_id().to_bytes(),
            span_id: context.span_id().to_bytes(),
            flags: context.trace_flags().to_u8(),
        })
    }

    /// Makes this the parent of a span.
    pub fn set_parent(&self, span: &tracing::Span) {
        let context = opentelemetry::Context::new().with_remote_span_context(self.span_context());
        if let Err(error) = span.set_parent(context) {
            tracing::trace!(?error, "the span is not exported");
        }
    }

    /// The trace id in hexadecimal.
    pub fn trace_id_hex(&self) -> String {
        to_hex(&self.trace_id)
    }

    pub(super) fn span_context(&self) -> SpanContext {
        SpanContext::new(
            TraceId::from_bytes(self.trace_id),
            SpanId::from_bytes(self.span_id),
            TraceFlags::new(self.flags),
            true,
            TraceState::default(),
        )
    }
}

tokio::task_local! {
    /// The trace id of the current request, in hexadecimal.
    static REQUEST: Arc<str>;
}

/// Runs the work of a request. Within it, [`request_trace_id`] returns this trace id.
pub async fn within_request<T>(trace_id: Arc<str>, work: impl Future<Output = T>) -> T {
    REQUEST.scope(trace_id, work).await
}

/// As [`within_request`], for work on another thread.
pub fn within_request_sync<T>(trace_id: Option<Arc<str>>, work: impl FnOnce() -> T) -> T {
    match trace_id {
        Some(trace_id) => REQUEST.sync_scope(trace_id, work),
        None => work(),
    }
}

/// The trace id of the current request. `None` outside of requests.
pub fn request_trace_id() -> Option<Arc<str>> {
    REQUEST.try_with(Arc::clone).ok()
}

/// A random trace id in hexadecimal, for a request without a `traceparent`.
pub fn new_trace_id() -> String {
    let mut bytes = [0; 16];
    for byte in &mut bytes {
        *byte = fastrand::u8(..);
    }
    to_hex(&bytes)
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Parses exactly `N` bytes of lower-case hexadecimal.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != N * 2 || digits.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read() {
        assert_eq!(TraceContext::parse(GOOD).unwrap().trace_id_hex(), "0af7651916cd43dd8448eb211c80319c");
        assert!(TraceContext::parse(&GOOD.replacen("00", "cc", 1)).is_some());
        assert!(TraceContext::parse(&format!("{}-more", GOOD.replacen("00", "01", 1))).is_some());
    }

    #[test]
    fn a_malformed_traceparent_is_ignored() {
        let wrong = [
            "",
            "00",
            &GOOD.to_uppercase(),
            &GOOD.replacen("00", "ff", 1),
            &format!("{GOOD}-more"),
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0af7651916cd43dd8448eb211c8031-b7ad6b7169203331-01",
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b716920333-01",
        ];
        for traceparent in wrong {
            assert_eq!(TraceContext::parse(traceparent), None, "{traceparent}");
        }
    }
}
