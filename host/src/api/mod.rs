//! The HTTP API: paths, and what surrounds every request.
//!
//! Handlers decode and check, hand over to [`crate::write_path`], [`crate::replication`] and [`crate::storage`], and
//! write the answer. Statuses and problem types are chosen in `problem`, nowhere else. A trailing slash is accepted
//! everywhere and means nothing.

mod batch;
mod cluster;
mod health;
mod kv;
mod peer;
mod problem;
mod range;
mod registry;
mod request;
mod value;

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use tracing::Instrument;

use self::problem::{Kind, Problem};
use crate::hooks::Record;
pub use crate::net::BASE_PATH;
use crate::registry::Registry;
use crate::replication;
use crate::storage::Data;
use crate::telemetry::{Telemetry, TraceContext, new_trace_id, within_request};
use crate::write_path::WritePath;

const TRACE_ID: HeaderName = HeaderName::from_static("brink-trace-id");

/// What handlers work with.
pub struct App {
    /// The way of writes.
    pub write_path: WritePath,
    /// The node's part in the cluster.
    pub replication: replication::Handle,
    /// Plugins and hooks.
    pub registry: Registry,
    /// What plugins did on this node.
    pub plugin_record: Record,
    /// True once the node stops: answers without an end must end then.
    pub draining: CancellationToken,
    /// The node's own state.
    pub data: Data,
    /// Metrics and traces.
    pub telemetry: Telemetry,
}

/// The whole API of a node, its door for other nodes included.
pub fn router(app: App) -> Router {
    let replication = app.replication.clone();
    let key = || MethodRouter::new().get(kv::get).put(kv::put).delete(kv::delete);
    let mut clients = Router::new().route("/kv/{*key}", key());
    let paths = [
        ("/kv", get(range::list)),
        // Only POST is the batch: `batch` is a key like any other.
        ("/kv/batch", key().merge(post(batch::post))),
        ("/health", get(health::health)),
        ("/livez", get(health::livez)),
        ("/readyz", get(health::readyz)),
        ("/metrics", get(health::metrics)),
        ("/cluster/members", get(cluster::members).post(cluster::add)),
        ("/cluster/members/{url}", delete(cluster::remove)),
        ("/cluster/leader", get(cluster::leader).put(cluster::transfer)),
        ("/plugins", get(registry::plugins)),
        ("/plugins/{name}", get(registry::plugin).put(registry::put_plugin).delete(registry::delete_plugin)),
        ("/hooks", get(registry::hooks)),
        ("/hooks/{name}/rollback", post(registry::roll_back)),
        ("/registry/history", get(registry::history)),
        ("/registry/lines", get(registry::lines)),
        ("/registry/stats", get(registry::stats)),
        ("/hooks/{name}", get(registry::hook).put(registry::put_hook).delete(registry::delete_hook)),
    ];
    for (path, methods) in paths {
        clients = clients.route(path, methods.clone()).route(&format!("{path}/"), methods);
    }
    let root = Router::new()
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(health::metrics));
    Router::new()
        .nest(BASE_PATH, clients)
        .merge(root)
        .fallback(|| async {
            Problem::new(Kind::NOT_FOUND, format!("there is no such path; the API is under {BASE_PATH}/"))
        })
        .method_not_allowed_fallback(|| async {
            Problem::new(Kind::METHOD_NOT_ALLOWED, "the method is not allowed here; Allow names those that are")
        })
        .layer(CatchPanicLayer::custom(|_| {
            Problem::new(Kind::INTERNAL, "the node failed; its log says why").into_response()
        }))
        .layer(from_fn_with_state(app.telemetry.clone(), observe))
        .with_state(Arc::new(app))
        .merge(Router::new().nest(BASE_PATH, peer::router(replication)))
}

/// Around every request of a client: its trace, its metrics, and the rendering of problems.
async fn observe(State(telemetry): State<Telemetry>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let method = request.method().clone();
    let is_read = method.is_safe();
    let route = request.extensions().get::<MatchedPath>().map(|path| path.as_str().trim_end_matches('/').to_owned());
    let route = route.unwrap_or_else(|| "unmatched".to_owned());

    let parent = TraceContext::extract(request.headers());
    // Known before the span unless the trace begins with it: a field that is recorded later costs more than all others.
    let known = match (parent, telemetry.exports_traces()) {
        (Some(parent), _) => Some(parent.trace_id_hex()),
        (None, false) => Some(new_trace_id()),
        (None, true) => None,
    };
    let span =
        tracing::info_span!(target: "brink::request", "http.request", %method, route, trace_id = known.as_deref());
    if let Some(parent) = parent {
        parent.set_parent(&span);
    }
    let trace_id = known.unwrap_or_else(|| {
        let trace_id = TraceContext::of_span(&span).map_or_else(new_trace_id, |trace| trace.trace_id_hex());
        span.record("trace_id", trace_id.as_str());
        trace_id
    });

    let mut response = async {
        let mut response = within_request(trace_id.as_str().into(), next.run(request)).await;
        match response.extensions_mut().remove::<Problem>() {
            // What a call that writes does not say otherwise of, it has not written.
            Some(problem) if !is_read => with_headers_of(response, problem.not_written().render(&trace_id)),
            Some(problem) => with_headers_of(response, problem.render(&trace_id)),
            None => response,
        }
    }
    .instrument(span)
    .await;
    if let Ok(value) = HeaderValue::from_str(&trace_id) {
        response.headers_mut().insert(TRACE_ID, value);
    }
    telemetry.metrics().http(method.as_str(), &route, response.status().as_u16(), began.elapsed());
    response
}

/// The rendered problem, with the headers that the handler or the router had set.
fn with_headers_of(bare: Response, mut rendered: Response) -> Response {
    for (name, value) in bare.headers() {
        if !rendered.headers().contains_key(name) && name != axum::http::header::CONTENT_LENGTH {
            rendered.headers_mut().insert(name, value.clone());
        }
    }
    rendered
}
