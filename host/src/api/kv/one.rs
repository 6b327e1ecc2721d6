//! One key: `PUT`, `GET` and `DELETE` of `<base>/kv/<key>/`.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use tokio::time::Instant;

use super::read::{Freshness, read};
use super::{entry, value};
use crate::api::problem::{Kind, Problem};
use crate::api::request::{self, Call, Consistency, Form};
use crate::api::{answer, body, browser};
use crate::limits::{BODY_BYTES_MAX, WRITE_DEADLINE};
use crate::storage::{Action, Effect, Operation, Space};
use crate::write_path::{Change, Request};

pub(crate) async fn put(call: Call) -> Result<Response, Problem> {
    let key = call.key()?;
    let Call { app, headers, body, .. } = call;
    let preconditions = request::preconditions(&headers, &key)?;
    let body = body::read(&app, &headers, body, BODY_BYTES_MAX).await?;
    let value = value::of_body(&headers, body.bytes.clone())?;
    let idempotency_key = request::idempotency_key(&headers)?;
    let operations = vec![Operation { space: Space::Kv, key, action: Action::Put(value) }];
    let request = Request { operations, preconditions, idempotency_key };
    let written = app.write_path.write(request, Instant::now() + WRITE_DEADLINE).await?;
    let Some(Change { key, effect: Effect::Put(meta), value }) = written.changes.first() else {
        return Err(Problem::internal("the write had an unexpected effect"));
    };
    let whole = |status| {
        let mut response = answer::json(status, entry::one(key, *meta, value.as_ref()));
        browser::contain(&mut response);
        response
    };
    let mut response = match (request::prefers_minimal(&headers), meta.version) {
        (true, 1) => StatusCode::CREATED.into_response(),
        (true, _) => StatusCode::NO_CONTENT.into_response(),
        (false, 1) => whole(StatusCode::CREATED),
        (false, _) => whole(StatusCode::OK),
    };
    answer::set_etag(&mut response, meta.revision, Form::Json);
    answer::set_repeated(&mut response, written.repeated);
    Ok(response)
}

pub(crate) async fn delete(call: Call) -> Result<Response, Problem> {
    let key = call.key()?;
    let Call { app, headers, .. } = call;
    let preconditions = request::preconditions(&headers, &key)?;
    let idempotency_key = request::idempotency_key(&headers)?;
    let operations = vec![Operation { space: Space::Kv, key: key.clone(), action: Action::Delete }];
    let request = Request { operations, preconditions, idempotency_key };
    let written = app.write_path.write(request, Instant::now() + WRITE_DEADLINE).await?;
    match written.changes.first() {
        Some(Change { effect: Effect::Deleted { existed: true }, .. }) => {
            let mut response = StatusCode::NO_CONTENT.into_response();
            answer::set_repeated(&mut response, written.repeated);
            Ok(response)
        }
        _ => Err(absent(&key)),
    }
}

/// `GET`: the entry of a key, as JSON or as its raw bytes.
pub(crate) async fn get(call: Call<Consistency>) -> Result<Response, Problem> {
    let key = call.key()?;
    let Call { app, parameters, headers, .. } = call;
    let freshness = Freshness::establish(&app, parameters).await?;
    // Taken before the entry: the response shows a state at least as new as the revision it claims.
    let before = app.data.revision();
    let found = match app.data.cached(&key) {
        Some(entry) => Some(entry),
        None => {
            let lookup = key.clone();
            read(&app, move |data| data.get_and_keep(&lookup)).await?
        }
    };
    freshness.count(&app);
    // The entry may be newer.
    let revision = found.as_ref().map_or(before, |entry| before.max(entry.meta.revision));
    let Some(entry) = found else {
        let mut response = absent(&key).into_response();
        freshness.describe(revision, &mut response);
        return Ok(response);
    };
    let form = request::accepted(&headers, &entry.value);
    let mut response = match form {
        _ if request::has_already(&headers, entry.meta.revision, form) => StatusCode::NOT_MODIFIED.into_response(),
        Form::Raw => {
            let media_type = answer::header_value(&entry.value.content_type);
            answer::typed(StatusCode::OK, media_type, entry.value.bytes.clone())
        }
        Form::Json => answer::json(StatusCode::OK, entry::one(&entry.key, entry.meta, Some(&entry.value))),
    };
    answer::set_etag(&mut response, entry.meta.revision, form);
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    browser::contain(&mut response);
    freshness.describe(revision, &mut response);
    Ok(response)
}

fn absent(key: &str) -> Problem {
    Problem::new(Kind::NOT_FOUND, format!("there is no entry with key {key:?}"))
}
