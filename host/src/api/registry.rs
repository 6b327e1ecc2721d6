//! Plugins and hooks: `<base>/plugins/…` and `<base>/hooks/…`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, future, stream};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use super::App;
use super::kv::json as json_answer;
use super::problem::{Kind, Problem};
use super::request::{self, Parameters};
use crate::hooks::{Binding, Line};
use crate::limits::{HOOK_CONFIG_BYTES_MAX, NAME_BYTES_MAX, PLUGIN_BYTES_MAX, UPLOAD_BODY_DEADLINE};
use crate::registry::Author;

/// Room in the body of a hook for all but its configuration, in bytes.
const HOOK_BODY_SPARE_BYTES: usize = 16 * 1024;

/// The body of a rollback, in bytes.
const ROLL_BACK_BODY_BYTES_MAX: usize = 1024;

/// The header in which a client says for whom it acts.
const USER: &str = "brink-user";

/// `PUT /plugins/<name>/`: uploads a component.
pub(super) async fn put_plugin(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri, &[])?;
    let upload = match app.registry.reserve_upload() {
        Ok(upload) => upload,
        Err(error) => return Err(request::refuse(&headers, body, error.into()).await),
    };
    let bytes = timeout(UPLOAD_BODY_DEADLINE, request::body(&headers, body, PLUGIN_BYTES_MAX)).await;
    let bytes = bytes.map_err(|_| {
        let seconds = UPLOAD_BODY_DEADLINE.as_secs();
        Problem::new(Kind::BAD_BODY, format!("the body did not arrive within {seconds} seconds"))
    })??;
    answer(StatusCode::OK, &app.registry.put_plugin(&name, bytes, &author(&headers)?, upload).await?)
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
pub(super) async fn delete_plugin(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    match app.registry.delete_plugin(&name, &author(&headers)?).await? {
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
    answer(StatusCode::OK, &app.registry.put_hook(&name, binding, &author(&headers)?).await?)
}

/// `GET /hooks/`: the hooks, and which nodes that can be reached have them in force.
pub(super) async fn hooks(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let (hooks, nodes) = (app.registry.hooks().await?, app.registry.readiness().await?);
    let nodes: Vec<_> = nodes.iter().map(|(url, is_ready)| json!({ "url": url, "ready": is_ready })).collect();
    answer(StatusCode::OK, &json!({ "hooks": hooks, "nodes": nodes }))
}

/// `GET /hooks/<name>/`.
pub(super) async fn hook(State(app): State<Arc<App>>, Path(name): Path<String>) -> Result<Response, Problem> {
    let found = app.registry.hook(&name).await?;
    answer(StatusCode::OK, &found.ok_or_else(|| absent("hook", &name))?)
}

/// `DELETE /hooks/<name>/`.
pub(super) async fn delete_hook(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    match app.registry.delete_hook(&name, &author(&headers)?).await? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(absent("hook", &name)),
    }
}

/// The body of `POST /hooks/<name>/rollback/`; empty for the state before the last change.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RollBack {
    /// The number of a change.
    to: Option<u64>,
}

/// `POST /hooks/<name>/rollback/`: makes a hook what it was; 204 if that is to be removed.
pub(super) async fn roll_back(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Parameters::of(&uri, &[])?;
    let body = request::body(&headers, body, ROLL_BACK_BODY_BYTES_MAX).await?;
    let RollBack { to } = match body.is_empty() {
        true => RollBack::default(),
        false => serde_json::from_slice(&body).map_err(|error| {
            Problem::new(
                Kind::BAD_BODY,
                format!("the body must be empty or {{\"to\": <the number of a change>}}: {error}"),
            )
        })?,
    };
    match app.registry.roll_back(&name, to, &author(&headers)?).await? {
        Some(hook) => answer(StatusCode::OK, &hook),
        None => Ok(StatusCode::NO_CONTENT.into_response()),
    }
}

/// `GET /registry/history/`: what was changed, when and by whom, newest first.
pub(super) async fn history(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    Parameters::of(&uri, &[])?;
    answer(StatusCode::OK, &json!({ "changes": app.registry.history().await? }))
}

/// `GET /registry/stats/`: what the calls of plugins came to on this node since it started.
pub(super) async fn stats(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    Parameters::of(&uri, &[])?;
    let hooks = app.registry.starts();
    answer(
        StatusCode::OK,
        &json!({ "node": app.replication.url(), "calls": app.plugin_record.tallies(), "hooks": hooks }),
    )
}

/// `GET /registry/lines/?follow=true&hook=&plugin=`: what plugins wrote on this node, a line of JSON each; with `follow`,
/// also what they will write.
pub(super) async fn lines(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    let mut parameters = Parameters::of(&uri, &["follow", "hook", "plugin"])?;
    let (follow, hook, plugin) = (parameters.flag("follow")?, parameters.get("hook"), parameters.get("plugin"));
    let (kept, coming) = app.plugin_record.lines();
    let coming = stream::unfold(coming, |mut coming| async move {
        loop {
            match coming.recv().await {
                Ok(line) => return Some((line, coming)),
                // Who reads too slowly misses lines, and gets the next.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let stopped = app.draining.clone().cancelled_owned();
    let all = match follow {
        true => stream::iter(kept).chain(coming.take_until(stopped)).boxed(),
        false => stream::iter(kept).boxed(),
    };
    let is_wanted = move |line: &Line| {
        hook.as_ref().is_none_or(|hook| line.hook == *hook)
            && plugin.as_ref().is_none_or(|plugin| line.plugin == *plugin)
    };
    let texts = all.filter_map(move |line| {
        let text = is_wanted(&line).then(|| serde_json::to_string(&*line).ok()).flatten();
        future::ready(text.map(|text| Ok::<_, Infallible>(text + "\n")))
    });
    let content_type = [(CONTENT_TYPE, "application/x-ndjson")];
    Ok((content_type, Body::from_stream(texts)).into_response())
}

/// Who makes a change, as the client says in `Brink-User`.
fn author(headers: &HeaderMap) -> Result<Author, Problem> {
    let Some(by) = headers.get(USER) else { return Ok(Author::named(None)) };
    match by.to_str() {
        Ok(by) if (1..=NAME_BYTES_MAX).contains(&by.len()) => Ok(Author::named(Some(by.to_owned()))),
        _ => Err(request::wrong(
            "Brink-User",
            &format!("{by:?}"),
            &format!("1 to {NAME_BYTES_MAX} visible characters of ASCII"),
        )),
    }
}

fn absent(what: &str, name: &str) -> Problem {
    Problem::new(Kind::NOT_FOUND, format!("there is no {what} {name:?}"))
}

fn answer(status: StatusCode, body: &impl Serialize) -> Result<Response, Problem> {
    let text = serde_json::to_string(body).map_err(|error| Problem::new(Kind::INTERNAL, error.to_string()))?;
    Ok(json_answer(status, text))
}
