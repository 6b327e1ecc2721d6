//! How the node is: `/health/`, `/livez`, `/readyz` and `/metrics`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::App;
use super::kv::json as json_answer;
use crate::replication::Status;

/// The media type of Prometheus' text format.
const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// `GET /health/`: the cluster as this node sees it; 200 with or without quorum.
pub(super) async fn health(State(app): State<Arc<App>>) -> Response {
    let mut health = health_json(&app.replication.status(), app.replication.disk_full().is_none());
    if let (Some(disk_full), Some(members)) = (app.replication.disk_full(), health.as_object_mut()) {
        members.insert("disk_full".to_owned(), json!(disk_full));
    }
    json_answer(StatusCode::OK, health.to_string())
}

fn health_json(status: &Status, has_space: bool) -> serde_json::Value {
    let word = match (status.has_quorum, has_space && status.healthy_nodes == status.total_nodes) {
        (true, true) => "healthy",
        (true, false) => "degraded",
        (false, _) => "no_quorum",
    };
    let nodes: Vec<_> = status
        .nodes
        .iter()
        .map(|node| {
            json!({
                "url": node.url,
                "healthy": node.healthy,
                "role": node.role,
                "lag_entries": node.lag_entries,
                "rtt_ms": node.rtt.map(|rtt| (rtt.as_secs_f64() * 1e6).round() / 1e3),
            })
        })
        .collect();
    json!({
        "status": word,
        "cluster": {
            "replication_enabled": status.replication_enabled,
            "total_nodes": status.total_nodes,
            "healthy_nodes": status.healthy_nodes,
            "required_for_quorum": status.required_for_quorum,
            "has_quorum": status.has_quorum,
            "can_accept_writes": status.has_quorum && has_space,
            "leader": status.leader,
            "nodes": nodes,
        },
    })
}

/// `GET /livez`: the process runs.
pub(super) async fn livez() -> &'static str {
    "ok\n"
}

/// `GET /readyz`: the node knows its cluster's leader, and its hooks are in force.
pub(super) async fn readyz(State(app): State<Arc<App>>) -> Response {
    let refuse = |why: &'static str| (StatusCode::SERVICE_UNAVAILABLE, why).into_response();
    match app.replication.status() {
        Status { ready: true, .. } if app.registry.is_ready() => "ok\n".into_response(),
        Status { ready: true, .. } => refuse("the node is compiling plugins\n"),
        Status { leader: None, .. } => refuse("no leader is known yet\n"),
        Status { state: "stopped", .. } => refuse("the consensus engine has stopped\n"),
        Status { .. } => refuse("the node has not caught up yet\n"),
    }
}

/// `GET /metrics`: for Prometheus.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let content_type = HeaderValue::from_static(PROMETHEUS_TEXT);
    ([(header::CONTENT_TYPE, content_type)], app.telemetry.metrics().render_prometheus()).into_response()
}
