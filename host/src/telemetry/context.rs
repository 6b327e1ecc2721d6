//! W3C trace context: links the spans of one request across nodes.

use std::fmt;
use std::ops::Deref;

use http::{HeaderMap, HeaderName};
use opentelemetry::Context;
use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};
use serde::{Deserialize, Serialize};
use tracing_opentelemetry::OpenTelemetrySpanExt;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The position of a span in its trace (W3C Trace Context, level 1). `tracestate` is not carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
}

impl TraceContext {
    /// Parses the value of a `traceparent` header. `None` if it is malformed.
    fn parse(traceparent: &str) -> Option<Self> {
        let is_digit = |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let mut parts = traceparent.trim().split('-');
        let mut next = |digits| parts.next().filter(|part| part.len() == digits && part.bytes().all(is_digit));
        let (version, trace_id, span_id, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        let context = Self {
            trace_id: TraceId::from_hex(trace_id).ok()?.to_bytes(),
            span_id: SpanId::from_hex(span_id).ok()?.to_bytes(),
            flags: u8::from_str_radix(flags, 16).ok()?,
        };
        let present = context.trace_id != [0; 16] && context.span_id != [0; 8];
        // Later versions may append fields.
        let well_formed = version != "ff" && (version != "00" || parts.next().is_none());
        (well_formed && present).then_some(context)
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
        if let Err(error) = span.set_parent(self.to_parent()) {
            tracing::trace!(?error, "the span is not exported");
        }
    }

    pub(crate) fn trace_id_hex(&self) -> TraceIdHex {
        TraceIdHex::new(u128::from_be_bytes(self.trace_id))
    }

    /// The parent of spans on this node.
    pub(super) fn to_parent(self) -> Context {
        let (trace_id, span_id) = (TraceId::from_bytes(self.trace_id), SpanId::from_bytes(self.span_id));
        let flags = TraceFlags::new(self.flags);
        Context::new().with_remote_span_context(SpanContext::new(trace_id, span_id, flags, true, TraceState::default()))
    }
}

/// A trace id as people see it: 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TraceIdHex([u8; 32]);

impl TraceIdHex {
    /// A trace id by its number.
    pub fn new(id: u128) -> Self {
        let mut rest = id;
        let mut digits = [0; 32];
        for digit in digits.iter_mut().rev() {
            let nibble = (rest & 0xf) as u8;
            *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
            rest >>= 4;
        }
        Self(digits)
    }

    /// A random trace id, for a request without a `traceparent`.
    pub fn random() -> Self {
        Self::new(fastrand::u128(..))
    }
}

impl Deref for TraceIdHex {
    type Target = str;

    fn deref(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Display for TraceIdHex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

tokio::task_local! {
    /// The trace id of the current request.
    static REQUEST: TraceIdHex;
}

/// Runs the work of a request. Within it, [`request_trace_id`] returns this trace id.
pub async fn within_request<T>(trace_id: TraceIdHex, work: impl Future<Output = T>) -> T {
    REQUEST.scope(trace_id, work).await
}

/// As [`within_request`], for work on another thread.
pub fn within_request_sync<T>(trace_id: Option<TraceIdHex>, work: impl FnOnce() -> T) -> T {
    match trace_id {
        Some(trace_id) => REQUEST.sync_scope(trace_id, work),
        None => work(),
    }
}

/// The trace id of the current request. `None` outside of requests.
pub fn request_trace_id() -> Option<TraceIdHex> {
    REQUEST.try_with(|trace_id| *trace_id).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read() {
        assert_eq!(&*TraceContext::parse(GOOD).unwrap().trace_id_hex(), "0af7651916cd43dd8448eb211c80319c");
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
            "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ];
        for traceparent in wrong {
            assert_eq!(TraceContext::parse(traceparent), None, "{traceparent}");
        }
    }
}
