//! Who belongs to the cluster: `<base>/cluster/members/` and `<base>/cluster/leader/`.
//!
//! Any node takes these calls; the leader makes the changes. Each says how things shall be, so it may be repeated until it
//! succeeds, and needs no `Idempotency-Key`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::App;
use super::kv::{deadline, json as json_answer};
use super::problem::{Kind, Problem};
use super::request::{self, Parameters};
use crate::limits::{MEMBERSHIP_BODY_BYTES_MAX, MEMBERSHIP_DEADLINE};
use crate::net;
use crate::replication::{Role, Status};

/// The body of `POST /cluster/members/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Member {
    url: String,
    #[serde(default = "voter")]
    role: Role,
}

fn voter() -> Role {
    Role::Voter
}

/// The body of `PUT /cluster/leader/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Leader {
    url: String,
}

/// `GET /cluster/members/`: the cluster's id, and every node with its id and role, this one included.
pub(super) async fn members(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    Parameters::of(&uri, &[])?;
    Ok(list(&app.replication.status()))
}

/// `POST /cluster/members/`: adds a node, or gives it another role; 200 once that is in force.
pub(super) async fn add(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri, &[])?;
    let body = request::body(&headers, body, MEMBERSHIP_BODY_BYTES_MAX).await?;
    let shape = "{\"url\": \"<base URL>\", \"role\": \"voter\" or \"learner\"}";
    let member: Member = serde_json::from_slice(&body).map_err(|error| malformed(shape, &error))?;
    app.replication.add_member(&base_url(&member.url)?, member.role, deadline(MEMBERSHIP_DEADLINE)).await?;
    Ok(list(&app.replication.status()))
}

/// `DELETE /cluster/members/<url>/`: removes a node; the URL is percent-encoded.
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Path(url): Path<String>,
    uri: Uri,
) -> Result<Response, Problem> {
    Parameters::of(&uri, &[])?;
    app.replication.remove_member(&base_url(&url)?, deadline(MEMBERSHIP_DEADLINE)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /cluster/leader/`: the leader's URL, `null` if none is known.
pub(super) async fn leader(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    Parameters::of(&uri, &[])?;
    let status = app.replication.status();
    Ok(json_answer(StatusCode::OK, json!({ "url": status.leader, "term": status.term }).to_string()))
}

/// `PUT /cluster/leader/`: hands the leadership to a voter.
pub(super) async fn transfer(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri, &[])?;
    let body = request::body(&headers, body, MEMBERSHIP_BODY_BYTES_MAX).await?;
    let leader: Leader =
        serde_json::from_slice(&body).map_err(|error| malformed("{\"url\": \"<base URL>\"}", &error))?;
    let url = base_url(&leader.url)?;
    app.replication.transfer_leader(&url, deadline(MEMBERSHIP_DEADLINE)).await?;
    Ok(json_answer(StatusCode::OK, json!({ "url": url }).to_string()))
}

fn list(status: &Status) -> Response {
    let is_leader = |url: &str| status.leader.as_deref() == Some(url);
    let member = |id: u64, url: &str, role: &str, healthy: bool, lag: Option<u64>| {
        json!({
            "url": url, "id": format!("{id:016x}"), "role": role, "leader": is_leader(url), "healthy": healthy,
            "lag_entries": lag,
        })
    };
    let own = member(status.self_id, &status.self_url, status.role, true, Some(status.self_lag_entries));
    let others = status.nodes.iter().map(|node| member(node.id, &node.url, node.role, node.healthy, node.lag_entries));
    let mut members: Vec<Value> = Some(own).filter(|_| status.is_member).into_iter().chain(others).collect();
    members.sort_by(|a, b| a["url"].as_str().cmp(&b["url"].as_str()));
    let cluster = status.cluster.map(|cluster| cluster.to_string());
    json_answer(StatusCode::OK, json!({ "cluster": cluster, "members": members }).to_string())
}

/// A node's base URL, as the nodes know it: without a slash at its end.
fn base_url(url: &str) -> Result<String, Problem> {
    net::base_url(url, net::Path::Required).map_err(|error| {
        let detail = format!("url is {url:?}: {error}; it must be a node's base URL, as /health/ shows");
        Problem::new(Kind::BAD_BODY, detail)
    })
}

fn malformed(shape: &str, error: &serde_json::Error) -> Problem {
    Problem::new(Kind::BAD_BODY, format!("the body must be {shape}: {error}"))
}
