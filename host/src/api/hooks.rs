//! Hooks: `<base>/hooks/…`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use serde::Deserialize;

use super::extract::{self, Author, Body, NoParameters, Query};
use super::problem::{Kind, Problem};
use super::{App, answer, schema};
use crate::hooks::Binding;
use crate::limits::{HOOK_BODY_BYTES_MAX, ROLL_BACK_BODY_BYTES_MAX};

/// The body of `POST /hooks/<name>/rollback/`; an empty one means the state before the last change.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RollBack {
    /// The number of a change.
    to: Option<u64>,
}

/// `GET /hooks/`: the hooks, and which of the nodes that can be reached have them in force.
pub(super) async fn list(_: Query<NoParameters>, State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let (hooks, nodes) = (app.registry.hooks().await?, app.registry.readiness().await?);
    let nodes = nodes.into_iter().map(|(url, ready)| schema::NodeReadiness { url, ready }).collect();
    answer::ok(&schema::Hooks { hooks, nodes })
}

/// `GET /hooks/<name>/`.
pub(super) async fn get(
    _: Query<NoParameters>,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    answer::ok(&app.registry.hook(&name).await?.ok_or_else(|| absent(&name))?)
}

/// `PUT /hooks/<name>/`: sets which plugin judges which writes.
pub(super) async fn put(
    _: Query<NoParameters>,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    author: Result<Author, Problem>,
    Body(body): Body<HOOK_BODY_BYTES_MAX>,
) -> Result<Response, Problem> {
    let binding = Binding::parse(&body)?;
    let Author(author) = author?;
    answer::ok(&app.registry.put_hook(&name, binding, &author).await?)
}

/// `DELETE /hooks/<name>/`.
pub(super) async fn delete(
    _: Query<NoParameters>,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Author(author): Author,
) -> Result<Response, Problem> {
    match app.registry.delete_hook(&name, &author).await? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(absent(&name)),
    }
}

/// `POST /hooks/<name>/rollback/`: restores an earlier state of a hook; 204 if the hook did not exist then.
pub(super) async fn roll_back(
    _: Query<NoParameters>,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Author(author): Author,
    Body(body): Body<ROLL_BACK_BODY_BYTES_MAX>,
) -> Result<Response, Problem> {
    let RollBack { to } = match body.is_empty() {
        true => RollBack::default(),
        false => extract::json(&body, "empty or {\"to\": <the number of a change>}")?,
    };
    match app.registry.roll_back(&name, to, &author).await? {
        Some(hook) => answer::ok(&hook),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

fn absent(name: &str) -> Problem {
    Problem::new(Kind::NOT_FOUND, format!("there is no hook {name:?}"))
}
