//! What surrounds every request of a client: its trace, its metrics, the rules for browsers, the right that it needs, the rendering
//! of problems, and the handling of panics.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::{FutureExt as _, TryFutureExt as _};
use tracing::Instrument as _;

use super::access::{Access, Grant, Right};
use super::browser::{self, Browsers, Verdict};
use super::caller::Callers;
use super::problem::Problem;
use crate::telemetry::{Telemetry, TraceContext, TraceIdHex, names, within_request};

const TRACE_ID: HeaderName = HeaderName::from_static("brink-trace-id");

/// What all requests of clients to a node meet.
pub(crate) struct Surroundings {
    pub telemetry: Telemetry,
    /// What pages may make a browser send.
    pub browsers: Browsers,
    /// Who may do what.
    pub access: Access,
    /// Which nodes are served.
    pub callers: Arc<Callers>,
}

/// [`observed`], as axum's middleware around a handler that needs a right. The handler finds the grant beside its request.
pub(super) async fn observe(
    State((surroundings, right)): State<(Arc<Surroundings>, Right)>,
    request: Request,
    next: Next,
) -> Response {
    let path = request.extensions().get::<MatchedPath>().cloned();
    let route = path.as_ref().map_or("unmatched", |path| path.as_str().trim_end_matches('/'));
    let serve = |mut request: Request, grant| {
        request.extensions_mut().insert::<Grant>(grant);
        next.run(request)
    };
    observed(&surroundings, route, right, request, serve).await
}

/// Serves a request within its span, unless a page of another site may have sent it or its sender lacks the right, and counts it by
/// its route.
pub(super) async fn observed<S: Future<Output = Response>>(
    Surroundings { telemetry, browsers, access, .. }: &Surroundings,
    route: &str,
    right: Right,
    request: Request,
    serve: impl FnOnce(Request, Grant) -> S,
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

    let (page, admitted) = match browsers.judge(&request) {
        Verdict::Serve(page) => (page, access.admit(right).map_err(Refusal::Problem)),
        Verdict::Preflight(page) => (Some(page), Err(Refusal::Preflight)),
        Verdict::Refuse(problem) => (None, Err(Refusal::Problem(problem))),
    };
    // The handler's future is made where it is polled: it is large, and moving it costs. What is rare is boxed beside it.
    let answer = async {
        match admitted {
            Ok(grant) => serve(request, grant).await,
            Err(Refusal::Preflight) => browser::preflight(),
            Err(Refusal::Problem(problem)) => problem.into_response(),
        }
    };
    // A panic in a handler ends its request, not the connection, on which others may follow.
    let answer = AssertUnwindSafe(answer).catch_unwind();
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
    browsers.harden(&mut response, page);
    telemetry.metrics().http(&method, route, response.status(), began.elapsed());
    response
}

/// What answers instead of a handler.
enum Refusal {
    Preflight,
    Problem(Problem),
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
