//! Spans that are recorded after they have ended. One append or apply serves the writes of many traces, so its span is
//! recorded once in each of them.

use std::time::SystemTime;

use opentelemetry::trace::{Span as _, SpanBuilder, TraceContextExt, Tracer as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::SdkTracer;

use super::context::TraceContext;

/// Records ended spans. Does nothing while traces are off. Cheap to clone.
#[derive(Clone, Default)]
pub struct Tracer {
    tracer: Option<SdkTracer>,
}

impl Tracer {
    pub(super) fn new(tracer: SdkTracer) -> Self {
        Self { tracer: Some(tracer) }
    }

    /// Records a span with its start and end, as a child of `parent`.
    pub fn record_span(
        &self,
        name: &'static str,
        parent: TraceContext,
        began: SystemTime,
        ended: SystemTime,
        attributes: &[KeyValue],
    ) {
        let Some(tracer) = &self.tracer else { return };
        let parent = Context::new().with_remote_span_context(parent.span_context());
        let builder = SpanBuilder::from_name(name).with_start_time(began).with_attributes(attributes.to_vec());
        tracer.build_with_context(builder, &parent).end_with_timestamp(ended);
    }
}
