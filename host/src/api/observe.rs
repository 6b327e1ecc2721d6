//! What surrounds every request of a client: its trace, its metrics, the rendering of problems, and the handling of panics.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::{FutureExt as _, TryFutureExt as _};
use tracing::Instrument as _;

use super::problem::Problem;
use crate::telemetry::{Telemetry, TraceContext, TraceIdHex, names, within_request};

const TRACE_ID: HeaderName = HeaderName::from_static("brink-trace-id");

/// [`observed`], as axum's middleware.
pub(super) async fn observe(State(telemetry): State<Telemetry>, request: Request, next: Next) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let route = path.as_ref().map_or("unmatched", |path| path.as_str().trim_end_matches('/'));
    observed(&telemetry, route, request, |request| next.run(request)).await
}

/// Serves a request within its span, and counts it by its route.
pub(super) async fn observed<S: Future<Output = Response>>(
    telemetry: &Telemetry,
    route: &str,
    request: Request,
    serve: impl FnOnce(Request) -> S,
) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let parent = TraceContext::extract(request.headers());
    let span = names::request_span(&method, route);
    if let Some(parent) = parent {
        parent.set_parent(&span);
    }
    let trace = parent.or_else(|| TraceContext::of_span(&span));
    let trace_id = trace.map_or_else(TraceIdHex::random, |trace| trace.trace_id_hex());

    // A panic in a handler ends its request, not the connection, on which others may follow.
    let answer = AssertUnwindSafe(serve(request)).catch_unwind();
    let answer = answer.unwrap_or_else(|_| Problem::internal("a handler panicked").into_response());
    let mut response = within_request(trace_id, answer).instrument(span).await;
    if let Some(problem) = response.extensions_mut().remove::<Problem>() {
        // A failed write without an explicit outcome was not written.
        let problem = if method.is_safe() { problem } else { problem.not_written() };
        response = with_headers_of(response, problem.render(&trace_id));
    }
    if let Ok(value) = HeaderValue::from_str(&trace_id) {
        response.headers_mut().insert(TRACE_ID, value);
    }
    telemetry.metrics().http(&method, route, response.status(), began.elapsed());
    response
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
