//! Requests of other nodes: `POST <base>/peer/line`, which is upgraded to a connection for calls,
//! `POST <base>/peer/snapshot` from a leader, and `GET <base>/peer/snapshot` from a node that lost its state.

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

use super::access::Right;
use super::route::Route;
use crate::replication::{
    CLUSTER_HEADER, ClusterId, Envelope, Error, Handle, INDEX_MIN_HEADER, PROTOCOL, REFUSAL_HEADER, TO_HEADER,
    VERSION_HEADER, WriteOutcome, common_version,
};

pub(super) fn routes() -> [Route<Handle>; 2] {
    [
        Route::at("/peer/line").post(Right::Node, connection),
        Route::at("/peer/snapshot").post(Right::Node, snapshot).get(Right::Node, give_snapshot),
    ]
}

/// The routes of a node that takes no part yet: it refuses every call.
pub(super) fn starting_routes(reason: &'static str) -> [Route<()>; 2] {
    let refuse = async move || refusal(StatusCode::SERVICE_UNAVAILABLE, reason.to_owned());
    [
        Route::at("/peer/line").post(Right::Node, refuse),
        Route::at("/peer/snapshot").post(Right::Node, refuse).get(Right::Node, refuse),
    ]
}

/// Answers the calls of a node until it closes the connection.
async fn connection(State(replication): State<Handle>, mut request: Request) -> Response {
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
            Ok(connection) => replication.serve_connection(TokioIo::new(connection)).await,
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
async fn snapshot(State(replication): State<Handle>, headers: HeaderMap, body: Body) -> Response {
    match envelope(&headers) {
        Ok(envelope) => answer(replication.serve_snapshot(envelope, body.into_data_stream()).await),
        Err(refusal) => refusal.into_response(),
    }
}

/// Answers with a snapshot of this node's state as it is read.
async fn give_snapshot(State(replication): State<Handle>, headers: HeaderMap) -> Response {
    let index_min = headers.get(INDEX_MIN_HEADER).and_then(|index| index.to_str().ok()?.parse().ok());
    match (envelope(&headers), index_min) {
        (Ok(envelope), Some(index_min)) => match replication.give_snapshot(envelope, index_min).await {
            Ok(body) => Body::from_stream(body).into_response(),
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
