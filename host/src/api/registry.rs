//! Plugins and hooks: `<base>/plugins/…` and `<base>/hooks/…`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::json;

use super::App;
use super::kv::json as json_answer;
use super::problem::{Kind, Problem};
use super::request::{self, Parameters};
use crate::hooks::Binding;
use crate::limits::{HOOK_CONFIG_BYTES_MAX, PLUGIN_BYTES_MAX};

/// Room in the body of a hook for all but its configuration, in bytes.
const HOOK_BODY_SPARE_BYTES: usize = 16 * 1024;

/// `PUT /plugins/<name>/`: uploads a component.
pub(super) async fn put_plugin(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri, &[])?;
    let bytes = request::body(&headers, body, PLUGIN_BYTES_MAX).await?;
    answer(StatusCode::OK, &app.registry.put_plugin(&name, bytes).await?)
}

/// `GET /plugins/`.
pub(super) async fn plugins(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    answer(StatusCode::OK, &json!({ "plugins": app.registry.plugins().await? }))
}

/// `GET /plugins/<name>/`.
pub(super) async fn plugin(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, Problem> {
    let found = app.registry.plugin(&name).await?;
    answer(StatusCode::OK, &found.ok_or_else(|| absent("plugin", &name))?)
}

/// `DELETE /plugins/<name>/`.
pub(super) async fn delete_plugin(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, Problem> {
    match app.registry.delete_plugin(&name).await? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(absent("plugin", &name)),
    }
}

/// `PUT /hooks/<name>/`: says what runs where.
pub(super) async fn put_hook(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri, &[])?;
    let body = request::body(&headers, body, HOOK_CONFIG_BYTES_MAX + HOOK_BODY_SPARE_BYTES).await?;
    let binding = Binding::parse(&body)?;
    answer(StatusCode::OK, &app.registry.put_hook(&name, binding).await?)
}

/// `GET /hooks/`.
pub(super) async fn hooks(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    answer(StatusCode::OK, &json!({ "hooks": app.registry.hooks().await? }))
}

/// `GET /hooks/<name>/`.
pub(super) async fn hook(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, Problem> {
    let found = app.registry.hook(&name).await?;
    answer(StatusCode::OK, &found.ok_or_else(|| absent("hook", &name))?)
}

/// `DELETE /hooks/<name>/`.
pub(super) async fn delete_hook(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, Problem> {
    match app.registry.delete_hook(&name).await? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(absent("hook", &name)),
    }
}

fn absent(what: &str, name: &str) -> Problem {
    Problem::new(Kind::NOT_FOUND, format!("there is no {what} {name:?}"))
}

fn answer(status: StatusCode, body: &impl Serialize) -> Result<Response, Problem> {
    let text = serde_json::to_string(body).map_err(|error| Problem::new(Kind::INTERNAL, error.to_string()))?;
    Ok(json_answer(status, text))
}
