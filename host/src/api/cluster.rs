//! Members and leader of the cluster: `<base>/cluster/members/` and `<base>/cluster/leader/`.
//!
//! Any node takes these calls; the leader makes the changes. A call states the result that it wants, so it may be repeated
//! until it succeeds and needs no `Idempotency-Key`.

use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;
use tokio::time::Instant;

use super::problem::{Kind, Problem};
use super::request::{self, Call, Segment};
use super::{answer, body, schema};
use crate::limits::{MEMBERSHIP_BODY_BYTES_MAX, MEMBERSHIP_DEADLINE};
use crate::net;
use crate::replication::{Role, Status};
use crate::storage::FeatureLevel;

/// `GET /cluster/members/`: the cluster's id, and every node with its id and role, this one included.
pub(super) async fn members(call: Call) -> Result<Response, Problem> {
    answer::ok(&members_of(&call.app.replication.status()))
}

/// The body of `POST /cluster/members/`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewMember {
    url: String,
    #[serde(default = "voter")]
    role: Role,
}

fn voter() -> Role {
    Role::Voter
}

/// `POST /cluster/members/`: adds a node, or gives it another role; 200 once that is in force.
pub(super) async fn add(Call { app, headers, body, .. }: Call) -> Result<Response, Problem> {
    let body = body::read(&app, &headers, body, MEMBERSHIP_BODY_BYTES_MAX).await?;
    let shape = "{\"url\": \"<base URL>\", \"role\": \"voter\" or \"learner\"}";
    let NewMember { url, role } = request::json(&body.bytes, shape)?;
    app.replication.add_member(&base_url(&url)?, role, Instant::now() + MEMBERSHIP_DEADLINE).await?;
    answer::ok(&members_of(&app.replication.status()))
}

/// `DELETE /cluster/members/<url>/`: removes a node; the URL is percent-encoded.
pub(super) async fn remove(Segment(url): Segment, call: Call) -> Result<Response, Problem> {
    call.app.replication.remove_member(&base_url(&url)?, Instant::now() + MEMBERSHIP_DEADLINE).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /cluster/leader/`: the leader's URL, `null` if none is known.
pub(super) async fn leader(call: Call) -> Result<Response, Problem> {
    let status = call.app.replication.status();
    answer::ok(&schema::Leader { url: status.leader, term: status.term })
}

/// `PUT /cluster/leader/`: hands the leadership to a voter.
pub(super) async fn transfer(Call { app, headers, body, .. }: Call) -> Result<Response, Problem> {
    let body = body::read(&app, &headers, body, MEMBERSHIP_BODY_BYTES_MAX).await?;
    let schema::NewLeader { url } = request::json(&body.bytes, "{\"url\": \"<base URL>\"}")?;
    let url = base_url(&url)?;
    app.replication.transfer_leader(&url, Instant::now() + MEMBERSHIP_DEADLINE).await?;
    answer::ok(&schema::NewLeader { url })
}

/// `GET /cluster/feature-level/`.
pub(super) async fn level(call: Call) -> Result<Response, Problem> {
    answer::ok(&schema::Level { feature_level: call.app.replication.status().level })
}

/// `PUT /cluster/feature-level/`: raises the level to this version's, which every node must support.
pub(super) async fn raise_level(Call { app, headers, body, .. }: Call) -> Result<Response, Problem> {
    let body = body::read(&app, &headers, body, MEMBERSHIP_BODY_BYTES_MAX).await?;
    let schema::Level { feature_level } = request::json(&body.bytes, "{\"feature_level\": <number>}")?;
    let (level, newest) = (app.replication.status().level, FeatureLevel::NEWEST);
    if feature_level != level && feature_level != newest {
        let detail =
            format!("feature_level is {feature_level}: it must be {level}, the cluster's, or {newest}, this version's");
        return Err(Problem::new(Kind::BAD_BODY, detail));
    }
    if feature_level > level {
        app.replication.upgrade(Instant::now() + MEMBERSHIP_DEADLINE).await?;
    }
    answer::ok(&schema::Level { feature_level })
}

fn members_of(status: &Status) -> schema::Members<'_> {
    let member = |id: u64, url, role, healthy, lag_entries, supports_level| schema::Member {
        url,
        id: format!("{id:016x}"),
        role,
        leader: status.leader.as_deref() == Some(url),
        healthy,
        lag_entries,
        supports_level,
    };
    let (lag, newest) = (Some(status.self_lag_entries), Some(FeatureLevel::NEWEST));
    let own = member(status.self_id, &*status.self_url, status.role, true, lag, newest);
    let others = status
        .nodes
        .iter()
        .map(|node| member(node.id, &*node.url, node.role, node.healthy, node.lag_entries, node.supports));
    let mut members: Vec<_> = Some(own).filter(|_| status.is_member).into_iter().chain(others).collect();
    members.sort_by(|a, b| a.url.cmp(b.url));
    let cluster = status.cluster.map(|cluster| cluster.to_string());
    schema::Members { cluster, feature_level: status.level, members }
}

fn base_url(url: &str) -> Result<String, Problem> {
    net::member_url(url).map_err(|error| {
        let detail = format!("url is {url:?}: {error}; it must be a node's base URL, as /health/ shows");
        Problem::new(Kind::BAD_BODY, detail)
    })
}
