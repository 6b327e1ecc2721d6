//! The state of the node, for people, orchestrators and scrapers: `/health/`, `/livez`, `/readyz` and `/metrics`.
//!
//! These handlers ignore query parameters: their callers add parameters of their own, such as the cache busters of load
//! balancers and the `params` of a Prometheus job, and must not take a healthy node for a broken one.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};

use super::problem::Problem;
use super::{App, answer, schema};
use crate::limits::CLOCK_OFFSET_MAX;
use crate::replication::Status;
use crate::storage::DiskFull;
use crate::telemetry::Telemetry;

const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `GET /health/`: the cluster as this node sees it; 200 with or without quorum.
pub(super) async fn health(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    answer::ok(&health_of(&app.replication.status(), app.replication.disk_full()))
}

fn health_of(status: &Status, disk_full: Option<DiskFull>) -> schema::Health<'_> {
    let has_space = disk_full.is_none();
    let with_space = status.nodes.iter().filter(|node| node.healthy && node.role == "voter" && !node.disk_full).count();
    let with_space = with_space + usize::from(has_space && status.role == "voter");
    let all_have_space = has_space && status.nodes.iter().all(|node| !node.disk_full);
    let nodes = status.nodes.iter().map(|node| schema::NodeHealth {
        url: &node.url,
        healthy: node.healthy,
        role: node.role,
        lag_entries: node.lag_entries,
        rtt_ms: node.rtt.map(|rtt| (rtt.as_secs_f64() * 1e6).round() / 1e3),
        disk_full: node.disk_full,
        clock_offset_ms: node.far_clock_ms(),
    });
    let bound_ms = u64::try_from(CLOCK_OFFSET_MAX.as_millis()).unwrap_or(u64::MAX);
    let clock = status.far_clock_ms().map(|offset_ms| schema::ClockHealth { offset_ms, bound_ms });
    let is_whole = all_have_space && clock.is_none() && status.healthy_nodes == status.total_nodes;
    schema::Health {
        status: match (status.has_quorum, is_whole) {
            _ if status.barred.is_some() => "not_taking_part",
            (true, true) => "healthy",
            (true, false) => "degraded",
            (false, _) => "no_quorum",
        },
        reason: status.barred.as_deref(),
        cluster: schema::ClusterHealth {
            replication_enabled: status.replication_enabled,
            total_nodes: status.total_nodes,
            healthy_nodes: status.healthy_nodes,
            required_for_quorum: status.required_for_quorum,
            has_quorum: status.has_quorum,
            can_accept_writes: status.has_quorum && has_space && with_space >= status.required_for_quorum,
            leader: status.leader.as_deref(),
            nodes: nodes.collect(),
        },
        disk_full,
        clock,
    }
}

/// `GET /livez`: the process runs.
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the node knows its cluster's leader, and its hooks are in force.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Response {
    let refuse = |why: &'static str| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    match app.replication.status() {
        Status { barred: Some(reason), .. } => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
        Status { ready: true, .. } if app.registry.is_ready() => "ok\n".into_response(),
        Status { ready: true, .. } => refuse("the node is compiling plugins\n"),
        Status { leader: None, .. } => refuse("no leader is known yet\n"),
        Status { state: "stopped", .. } => refuse("the consensus engine has stopped\n"),
        Status { .. } => refuse("the node has not caught up yet\n"),
    }
}

/// `GET /metrics`: for Prometheus.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    metrics_of(&app.telemetry)
}

pub(super) fn metrics_of(telemetry: &Telemetry) -> Response {
    ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], telemetry.metrics().render_prometheus()).into_response()
}
