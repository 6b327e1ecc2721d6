//! The door for other nodes: `POST <base>/peer/<call>`.
//!
//! Bodies are postcard and opaque here. Their size is bounded by what a node may send: a whole plugin in one entry.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;

use crate::limits::PEER_BODY_BYTES_MAX;
use crate::replication::{
    CLUSTER_HEADER, Call, ClusterId, Envelope, Error, Handle, REFUSAL_HEADER, TO_HEADER, WriteOutcome,
};

/// The routes, relative to the base path.
pub(super) fn router(replication: Handle) -> Router {
    let mut router = Router::new();
    for call in Call::ALL {
        let path = format!("/peer/{}", call.name());
        router = match call {
            Call::Snapshot => router.route(&path, post(snapshot)),
            _ => router.route(
                &path,
                post(move |State(replication): State<Handle>, headers: HeaderMap, body: Bytes| async move {
                    match envelope(&headers) {
                        Ok(envelope) => answer(replication.serve(call, envelope, body).await),
                        Err(refusal) => refusal.into_response(),
                    }
                }),
            ),
        };
    }
    router.layer(DefaultBodyLimit::max(PEER_BODY_BYTES_MAX)).with_state(replication)
}

/// A snapshot may be larger than memory, so its body is read as it comes.
async fn snapshot(State(replication): State<Handle>, headers: HeaderMap, body: Body) -> Response {
    match envelope(&headers) {
        Ok(envelope) => answer(replication.serve_snapshot(envelope, body.into_data_stream()).await),
        Err(refusal) => refusal.into_response(),
    }
}

/// Which node the call is meant for, and from which cluster it comes.
fn envelope(headers: &HeaderMap) -> Result<Envelope, (StatusCode, String)> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let bad = |name| (StatusCode::BAD_REQUEST, format!("the header {name} is missing or malformed"));
    let to = text(TO_HEADER).and_then(|to| to.parse().ok()).ok_or_else(|| bad(TO_HEADER))?;
    let cluster = |digits| u64::from_str_radix(digits, 16).ok().and_then(ClusterId::new);
    let cluster = text(CLUSTER_HEADER).map(|digits| cluster(digits).ok_or_else(|| bad(CLUSTER_HEADER)));
    Ok(Envelope { to, cluster: cluster.transpose()? })
}

/// Other nodes are told why in plain words; they are not clients, so there is no problem object.
fn answer(result: Result<Bytes, Error>) -> Response {
    let refuse = |status, error: Error| (status, [(REFUSAL_HEADER, "true")], error.to_string()).into_response();
    match result {
        Ok(body) => body.into_response(),
        Err(error @ Error::Refused(_)) => refuse(StatusCode::CONFLICT, error),
        Err(error) if error.outcome() == WriteOutcome::NotWritten => refuse(StatusCode::SERVICE_UNAVAILABLE, error),
        // The call may have been acted on: a refusal would say that it was not.
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}
