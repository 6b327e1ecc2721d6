//! Requests of other nodes: `GET <base>/peer/challenge`, after which a node proves itself; `POST <base>/peer/line`, which is
//! upgraded to a connection for calls; `POST <base>/peer/snapshot` from a leader, and `GET <base>/peer/snapshot` from a node that
//! lost its state. All but the first are served only to nodes of the cluster (P11).

use std::sync::Arc;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures::{FutureExt as _, StreamExt as _};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::access::Right;
use super::caller::{self, Callers, Session};
use super::route::Route;
use crate::replication::{
    CHALLENGE_PATH, CLUSTER_HEADER, Caller, ClusterId, Envelope, Error, Greeting, Handle, INDEX_MIN_HEADER,
    NONCE_HEADER, PROOF_HEADER, PROTOCOL, REFUSAL_HEADER, TO_HEADER, URL_HEADER, VERSION_HEADER, WriteOutcome,
    common_version,
};

/// The node that is called.
#[derive(Clone)]
pub(super) struct Called {
    pub(super) replication: Handle,
    pub(super) callers: Arc<Callers>,
}

pub(super) fn routes() -> [Route<Called>; 3] {
    [
        Route::at(CHALLENGE_PATH).get(Right::Proof, challenge),
        Route::at("/peer/line").post(Right::Node, connection),
        Route::at("/peer/snapshot").post(Right::Node, snapshot).get(Right::Node, give_snapshot),
    ]
}

/// The routes of a node that takes no part yet: it refuses every call, whoever makes it.
pub(super) fn starting_routes(reason: &'static str) -> [Route<()>; 3] {
    let refuse = async move || refusal(StatusCode::SERVICE_UNAVAILABLE, reason.to_owned());
    [
        Route::at(CHALLENGE_PATH).get(Right::Proof, refuse),
        Route::at("/peer/line").post(Right::Proof, refuse),
        Route::at("/peer/snapshot").post(Right::Proof, refuse).get(Right::Proof, refuse),
    ]
}

/// Asks a node that wants to call to prove itself, and proves this node.
async fn challenge(
    State(Called { callers, .. }): State<Called>,
    Extension(session): Extension<Arc<Session>>,
    headers: HeaderMap,
) -> Response {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let Some(greeting) = Greeting::of_headers(text(NONCE_HEADER), text(URL_HEADER)) else {
        return malformed(NONCE_HEADER).into_response();
    };
    match callers.credentials.challenge(greeting) {
        Ok(Some((challenge, nonce, proof))) => {
            *session.lock() = Some(challenge);
            [(NONCE_HEADER, nonce), (PROOF_HEADER, proof)].into_response()
        }
        Ok(None) => (StatusCode::NOT_FOUND, "this node has no cluster secret").into_response(),
        Err(error) => refusal(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

/// Answers the calls of a node until it closes the connection.
async fn connection(
    State(Called { replication, callers }): State<Called>,
    Extension(caller): Extension<Caller>,
    mut request: Request,
) -> Response {
    let asked = request.headers().get(header::UPGRADE).is_some_and(|protocol| protocol == PROTOCOL);
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>().filter(|_| asked) else {
        let upgrade = [(header::UPGRADE, HeaderValue::from_static(PROTOCOL))];
        return (StatusCode::UPGRADE_REQUIRED, upgrade, "this is for other nodes").into_response();
    };
    let version = request.headers().get(VERSION_HEADER).map(|version| version.to_str().unwrap_or_default());
    let Some(version) = common_version(version) else {
        return (StatusCode::BAD_REQUEST, format!("the header {VERSION_HEADER} is malformed")).into_response();
    };
    tokio::spawn(async move {
        match upgrade.await {
            Ok(connection) => tokio::select! {
                () = replication.serve_connection(&caller, TokioIo::new(connection)) => {}
                () = callers.credentials.withdrawn(caller.secret()) => {
                    tracing::info!("a connection of another node was ended: the secret that it was opened by is gone");
                }
            },
            Err(error) => tracing::debug!(%error, "a connection from another node was not upgraded"),
        }
    });
    let upgraded = [
        (header::CONNECTION, HeaderValue::from_static("upgrade")),
        (header::UPGRADE, HeaderValue::from_static(PROTOCOL)),
        (HeaderName::from_static(VERSION_HEADER), HeaderValue::from(version)),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, upgraded).into_response()
}

/// A snapshot may be larger than memory, so its body is read as it comes.
async fn snapshot(
    State(Called { replication, callers }): State<Called>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    match envelope(&headers) {
        Ok(envelope) => tokio::select! {
            served = replication.serve_snapshot(envelope, body.into_data_stream()) => answer(served),
            () = callers.credentials.withdrawn(caller.secret()) => caller::refused(),
        },
        Err(refusal) => refusal.into_response(),
    }
}

/// Answers with a snapshot of this node's state as it is read.
async fn give_snapshot(
    State(called): State<Called>,
    Extension(caller): Extension<Caller>,
    headers: HeaderMap,
) -> Response {
    let index_min = headers.get(INDEX_MIN_HEADER).and_then(|index| index.to_str().ok()?.parse().ok());
    match (envelope(&headers), index_min) {
        (Ok(envelope), Some(index_min)) => match called.replication.give_snapshot(envelope, index_min).await {
            Ok(body) => {
                // What arrived until then is no snapshot, and the receiver finds that out.
                let withdrawn = async move { called.callers.credentials.withdrawn(caller.secret()).await };
                Body::from_stream(body.take_until(withdrawn.boxed())).into_response()
            }
            Err(error) => answer(Err(error)),
        },
        (Err(refusal), _) => refusal.into_response(),
        (_, None) => malformed(INDEX_MIN_HEADER).into_response(),
    }
}

fn malformed(header: &str) -> (StatusCode, String) {
    (StatusCode::BAD_REQUEST, format!("the header {header} is missing or malformed"))
}

/// Which node the call is meant for, and from which cluster it comes.
fn envelope(headers: &HeaderMap) -> Result<Envelope, (StatusCode, String)> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let to = text(TO_HEADER).and_then(|to| to.parse().ok()).ok_or_else(|| malformed(TO_HEADER))?;
    let cluster = |digits| u64::from_str_radix(digits, 16).ok().and_then(ClusterId::new);
    let cluster = text(CLUSTER_HEADER).map(|digits| cluster(digits).ok_or_else(|| malformed(CLUSTER_HEADER)));
    Ok(Envelope { to, cluster: cluster.transpose()? })
}

/// Other nodes are told why in plain words; they are not clients, so there is no problem object.
fn answer(result: Result<Bytes, Error>) -> Response {
    match result {
        Ok(body) => body.into_response(),
        Err(error @ Error::Refused(_)) => refusal(StatusCode::CONFLICT, error.to_string()),
        Err(error) if error.outcome() == WriteOutcome::NotWritten => {
            refusal(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
        }
        // The call may have been acted on: a refusal would say that it was not.
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response(),
    }
}

/// The call changed nothing.
fn refusal(status: StatusCode, why: String) -> Response {
    (status, [(REFUSAL_HEADER, "true")], why).into_response()
}
