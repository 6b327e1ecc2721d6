//! The middleware around every request of a client: its trace, its metrics, and the rendering of problems.

use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use tracing::{Instrument as _, Span};

use super::problem::Problem;
use crate::telemetry::{Telemetry, TraceContext, names, new_trace_id, within_request};

const TRACE_ID: HeaderName = HeaderName::from_static("brink-trace-id");

/// Serves a request within its span, and counts it.
pub(super) async fn observe(State(telemetry): State<Telemetry>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>();
    let route = route.map_or("unmatched", |path| path.as_str().trim_end_matches('/')).to_owned();

    let parent = TraceContext::extract(request.headers());
    // A field that is recorded after the span was made costs more than all others, so the trace id is found first unless
    // the exporter draws it with the span.
    let known = match (parent, telemetry.exports_traces()) {
        (Some(parent), _) => Some(parent.trace_id_hex()),
        (None, false) => Some(new_trace_id()),
        (None, true) => None,
    };
    let span = tracing::info_span!(target: names::REQUEST_TARGET, names::SPAN_REQUEST, %method, route, trace_id = known.as_deref());
    if let Some(parent) = parent {
        parent.set_parent(&span);
    }
    let trace_id = known.unwrap_or_else(|| record_trace_id(&span));

    let serve = async {
        let mut response = within_request(trace_id.as_str().into(), next.run(request)).await;
        match response.extensions_mut().remove::<Problem>() {
            // A failed write without an explicit outcome was not written.
            Some(problem) if !method.is_safe() => with_headers_of(response, problem.not_written().render(&trace_id)),
            Some(problem) => with_headers_of(response, problem.render(&trace_id)),
            None => response,
        }
    };
    let mut response = serve.instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(&trace_id) {
        response.headers_mut().insert(TRACE_ID, value);
    }
    telemetry.metrics().http(method.as_str(), &route, response.status().as_u16(), began.elapsed());
    response
}

/// Records the trace id of a span that begins a trace.
fn record_trace_id(span: &Span) -> String {
    let trace_id = TraceContext::of_span(span).map_or_else(new_trace_id, |trace| trace.trace_id_hex());
    span.record("trace_id", trace_id.as_str());
    trace_id
}

/// The rendered problem, with the headers that the handler or the router had set.
fn with_headers_of(bare: Response, mut rendered: Response) -> Response {
    for (name, value) in bare.headers() {
        if !rendered.headers().contains_key(name) && name != header::CONTENT_LENGTH {
            rendered.headers_mut().insert(name, value.clone());
        }
    }
    rendered
}
