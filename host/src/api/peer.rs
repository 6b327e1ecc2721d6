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
use crate::replication::{Call, Error, Handle, REFUSAL_HEADER, TO_HEADER};

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
                    match addressee(&headers) {
                        Ok(to) => answer(replication.serve(call, to, body).await),
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
    match addressee(&headers) {
        Ok(to) => answer(replication.serve_snapshot(to, body.into_data_stream()).await),
        Err(refusal) => refusal.into_response(),
    }
}

/// Which node the call is meant for.
fn addressee(headers: &HeaderMap) -> Result<u64, (StatusCode, String)> {
    let to = headers.get(TO_HEADER).and_then(|value| value.to_str().ok()).and_then(|value| value.parse().ok());
    to.ok_or_else(|| (StatusCode::BAD_REQUEST, format!("the header {TO_HEADER} is missing")))
}

/// Other nodes are told why in plain words; they are not clients, so there is no problem object.
fn answer(result: Result<Bytes, Error>) -> Response {
    let refuse = |status, error: Error| (status, [(REFUSAL_HEADER, "true")], error.to_string()).into_response();
    match result {
        Ok(body) => body.into_response(),
        Err(error @ Error::Refused(_)) => refuse(StatusCode::CONFLICT, error),
        Err(error) => refuse(StatusCode::SERVICE_UNAVAILABLE, error),
    }
}
