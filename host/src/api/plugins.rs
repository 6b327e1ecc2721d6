//! Plugins: `<base>/plugins/…`.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use tokio::time::timeout;

use super::extract::{Author, NoParameters, Query, Unread};
use super::problem::{Kind, Problem};
use super::{App, answer, schema};
use crate::limits::{PLUGIN_BYTES_MAX, UPLOAD_BODY_DEADLINE};

/// `GET /plugins/`.
pub(super) async fn list(_: Query<NoParameters>, State(app): State<Arc<App>>) -> Result<Response, Problem> {
    answer::ok(&schema::Plugins { plugins: app.registry.plugins().await? })
}

/// `GET /plugins/<name>/`.
pub(super) async fn get(
    _: Query<NoParameters>,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Response, Problem> {
    answer::ok(&app.registry.plugin(&name).await?.ok_or_else(|| absent(&name))?)
}

/// `PUT /plugins/<name>/`: uploads a component.
pub(super) async fn put(
    _: Query<NoParameters>,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    author: Result<Author, Problem>,
    body: Unread,
) -> Result<Response, Problem> {
    let upload = match app.registry.reserve_upload() {
        Ok(upload) => upload,
        Err(error) => return Err(body.refuse(error.into()).await),
    };
    let bytes = timeout(UPLOAD_BODY_DEADLINE, body.read(PLUGIN_BYTES_MAX)).await.map_err(|_| {
        let seconds = UPLOAD_BODY_DEADLINE.as_secs();
        Problem::new(Kind::BAD_BODY, format!("the body did not arrive within {seconds} seconds"))
    })??;
    let Author(author) = author?;
    answer::ok(&app.registry.put_plugin(&name, bytes, &author, upload).await?)
}

/// `DELETE /plugins/<name>/`.
pub(super) async fn delete(
    _: Query<NoParameters>,
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    Author(author): Author,
) -> Result<Response, Problem> {
    match app.registry.delete_plugin(&name, &author).await? {
        true => Ok(StatusCode::NO_CONTENT.into_response()),
        false => Err(absent(&name)),
    }
}

fn absent(name: &str) -> Problem {
    Problem::new(Kind::NOT_FOUND, format!("there is no plugin {name:?}"))
}
