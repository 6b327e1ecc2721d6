//! The API of a node that is starting: its probes answer, and everything else is refused, until the node has its state.
//!
//! A start may take long: a node whose state is lost waits for another one that gives it a state. An orchestrator must not take it
//! for dead meanwhile, and clients and other nodes must learn at once that they have to go elsewhere.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::get;

use super::access::Right;
use super::observe::Surroundings;
use super::problem::{Kind, Problem};
use super::route::{Probes, at_root, guarded};
use super::{answer, health, peer, schema};
use crate::net::BASE_PATH;

/// A node that is starting.
#[derive(Clone)]
pub(crate) struct Starting {
    /// What it waits for.
    pub reason: &'static str,
    /// The other nodes that it was started with.
    pub peer_urls: Vec<String>,
    pub surroundings: Arc<Surroundings>,
}

/// The API of a node until it can serve [`super::router()`].
pub(crate) fn starting_router(starting: Starting) -> Router {
    let reason = starting.reason;
    let surroundings = starting.surroundings.clone();
    let (livez, readyz) = (get(health::livez), get(readyz));
    let probes = Probes { livez, readyz, metrics: get(metrics), health: get(health) };
    // Whoever asks: it is the same for all paths.
    let refuse = guarded(&surroundings, Right::Open, async move || Problem::new(Kind::STARTING, reason));
    probes
        .router(&surroundings)
        .with_state(Arc::new(starting))
        .merge(Router::new().nest(BASE_PATH, at_root(peer::starting_routes(reason), &surroundings)))
        .fallback(refuse.clone())
        .method_not_allowed_fallback(refuse)
}

async fn readyz(State(starting): State<Arc<Starting>>) -> (StatusCode, String) {
    (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", starting.reason))
}

async fn metrics(State(starting): State<Arc<Starting>>) -> Response {
    health::metrics_of(&starting.surroundings.telemetry)
}

/// `GET /health/`: nothing is known of the cluster but the nodes that this one was started with.
async fn health(State(starting): State<Arc<Starting>>) -> Result<Response, Problem> {
    let node = |url| schema::NodeHealth {
        url,
        healthy: false,
        role: "voter",
        lag_entries: None,
        rtt_ms: None,
        disk_full: false,
        clock_offset_ms: None,
    };
    let nodes: Vec<_> = starting.peer_urls.iter().map(|url| node(url.as_str())).collect();
    let total_nodes = 1 + nodes.len();
    answer::ok(&schema::Health {
        status: "starting",
        reason: Some(starting.reason),
        cluster: schema::ClusterHealth {
            replication_enabled: !nodes.is_empty(),
            total_nodes,
            healthy_nodes: 0,
            required_for_quorum: total_nodes / 2 + 1,
            has_quorum: false,
            can_accept_writes: false,
            leader: None,
            nodes,
        },
        disk_full: None,
        clock: None,
    })
}
