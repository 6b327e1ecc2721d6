//! One key: `PUT`, `GET` and `DELETE` of `<base>/kv/<key>/`.

use std::sync::Arc;
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::problem::{Kind, Problem};
use super::request::{self, Consistency, Parameters};
use super::{App, value};
use crate::limits::{BODY_BYTES_MAX, PROMPT_READ_DEADLINE, STRONG_READ_DEADLINE, VALUE_BYTES_MAX, WRITE_DEADLINE};
use crate::storage::{Action, Data, Effect, Entry, Operation, Space, Value};
use crate::write_path::{Request, Written};

const CONSISTENCY: HeaderName = HeaderName::from_static("brink-consistency");
const REVISION: HeaderName = HeaderName::from_static("brink-revision");
const STALENESS: HeaderName = HeaderName::from_static("brink-staleness-ms");
const REPEATED: HeaderName = HeaderName::from_static("brink-repeated");
const PREFER: HeaderName = HeaderName::from_static("prefer");

/// Longest content type kept with a value, in bytes.
const CONTENT_TYPE_BYTES_MAX: usize = 255;

/// `PUT`: sets the value of a key.
pub(super) async fn put(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let key = request::key_of(&uri)?;
    Parameters::of(&uri, &[])?;
    let preconditions = request::preconditions(&headers, &key)?;
    let body = request::body(&headers, body, BODY_BYTES_MAX).await?;
    let value = value_of(&headers, body)?;

    let operation = Operation { space: Space::Kv, key, action: Action::Put(value) };
    let idempotency_key = request::idempotency_key(&headers)?;
    let request = Request { operations: vec![operation], preconditions, idempotency_key };
    let written = app.write_path.write(request, deadline(WRITE_DEADLINE)).await?;
    let (Some(Effect::Put(meta)), Some(operation)) = (written.effects.first(), written.operations.first()) else {
        return Err(Problem::new(Kind::INTERNAL, "the write had an unexpected effect"));
    };
    let status = if meta.version == 1 { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = if wants_minimal(&headers) {
        let status = if meta.version == 1 { StatusCode::CREATED } else { StatusCode::NO_CONTENT };
        status.into_response()
    } else {
        let mut text = String::new();
        let value = match &operation.action {
            Action::Put(value) => Some(value),
            Action::Delete => None,
        };
        value::push_entry(&mut text, &operation.key, *meta, value);
        json(status, text)
    };
    response.headers_mut().insert(header::ETAG, header_value(&request::etag(meta.revision)));
    Ok(telling_repetition(&written, response))
}

/// `DELETE`: removes a key.
pub(super) async fn delete(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let key = request::key_of(&uri)?;
    Parameters::of(&uri, &[])?;
    let preconditions = request::preconditions(&headers, &key)?;
    let operation = Operation { space: Space::Kv, key: key.clone(), action: Action::Delete };
    let idempotency_key = request::idempotency_key(&headers)?;
    let request = Request { operations: vec![operation], preconditions, idempotency_key };
    let written = app.write_path.write(request, deadline(WRITE_DEADLINE)).await?;
    match written.effects.first() {
        Some(Effect::Deleted { existed: true }) => {
            Ok(telling_repetition(&written, StatusCode::NO_CONTENT.into_response()))
        }
        _ => Err(absent(&key)),
    }
}

/// Says in the answer whether an earlier request did what this one asked for.
pub(super) fn telling_repetition(written: &Written, mut response: Response) -> Response {
    if written.repeated {
        response.headers_mut().insert(REPEATED, HeaderValue::from_static("true"));
    }
    response
}

/// `GET`: the entry of a key, as JSON or as its raw bytes.
pub(super) async fn get(State(app): State<Arc<App>>, uri: Uri, headers: HeaderMap) -> Result<Response, Problem> {
    let key = request::key_of(&uri)?;
    let mut parameters = Parameters::of(&uri, &["consistency"])?;
    let freshness = Freshness::establish(&app, parameters.consistency()?).await?;
    // The revision first: what the answer shows is at least as new as what it claims.
    let revision = app.data.revision();
    let found = match app.data.cached(&key) {
        Some(entry) => Some(entry),
        None => {
            let lookup = key.clone();
            read(&app, move |data| data.get_and_keep(&lookup)).await?
        }
    };
    freshness.count(&app);
    let Some(entry) = found else {
        let mut response = absent(&key).into_response();
        freshness.describe(revision, &mut response);
        return Ok(response);
    };
    let mut response = if request::has_already(&headers, entry.meta.revision) {
        StatusCode::NOT_MODIFIED.into_response()
    } else if wants_raw(&headers, &entry.value) {
        let content_type = header_value(&entry.value.content_type);
        ([(header::CONTENT_TYPE, content_type)], entry.value.bytes.clone()).into_response()
    } else {
        entry_json(&entry)
    };
    response.headers_mut().insert(header::ETAG, header_value(&request::etag(entry.meta.revision)));
    freshness.describe(revision, &mut response);
    Ok(response)
}

fn entry_json(entry: &Entry) -> Response {
    let mut text = String::with_capacity(256 + entry.value.bytes.len());
    value::push_entry(&mut text, &entry.key, entry.meta, Some(&entry.value));
    json(StatusCode::OK, text)
}

fn absent(key: &str) -> Problem {
    Problem::new(Kind::NOT_FOUND, format!("there is no entry with key {key:?}"))
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, text: String) -> Response {
    (status, [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text).into_response()
}

/// A header value from text of our own making; what cannot be one is left empty.
fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// The time by which a request must be answered.
pub(super) fn deadline(patience: std::time::Duration) -> tokio::time::Instant {
    tokio::time::Instant::now() + patience
}

/// The body of a `PUT` of a JSON value.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PutBody<'a> {
    #[serde(borrow)]
    value: &'a RawValue,
}

/// The value in the body of a `PUT`.
fn value_of(headers: &HeaderMap, body: Bytes) -> Result<Value, Problem> {
    let content_type = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or_default());
    let essence = content_type.map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
    match essence.as_deref() {
        None | Some(Value::JSON) => {
            let bytes = body;
            let body: PutBody<'_> = serde_json::from_slice(&bytes).map_err(|error| {
                Problem::new(Kind::BAD_BODY, format!("the body must be {{\"value\": <any JSON>}}: {error}"))
            })?;
            checked(Value::json(request::compact(bytes.slice_ref(body.value.get().as_bytes()))?))
        }
        // What curl sends when it is not told otherwise: almost surely meant to be JSON.
        Some("application/x-www-form-urlencoded" | "multipart/form-data") => Err(Problem::new(
            Kind::UNSUPPORTED_MEDIA_TYPE,
            "forms are not stored; for a JSON value send Content-Type: application/json with {\"value\": …}, for raw \
             bytes another content type such as application/octet-stream",
        )),
        Some(_) => {
            let content_type = content_type.unwrap_or_default();
            if content_type.is_empty() || content_type.len() > CONTENT_TYPE_BYTES_MAX {
                let detail = format!("the content type must have 1 to {CONTENT_TYPE_BYTES_MAX} bytes of ASCII");
                return Err(Problem::new(Kind::UNSUPPORTED_MEDIA_TYPE, detail));
            }
            checked(Value { content_type: content_type.to_owned(), bytes: body })
        }
    }
}

/// A value within its limit.
pub(super) fn checked(value: Value) -> Result<Value, Problem> {
    match value.bytes.len() {
        0..=VALUE_BYTES_MAX => Ok(value),
        bytes => Err(Problem::new(
            Kind::TOO_LARGE,
            format!("the value has {bytes} bytes; at most {VALUE_BYTES_MAX} are allowed"),
        )),
    }
}

/// Whether the client wants no body back (RFC 7240).
fn wants_minimal(headers: &HeaderMap) -> bool {
    let minimal = |value: &str| value.split(',').any(|one| one.trim().eq_ignore_ascii_case("return=minimal"));
    headers.get(PREFER).and_then(|value| value.to_str().ok()).is_some_and(minimal)
}

/// Whether the client wants the raw value: it accepts `application/octet-stream`, or the value's own type.
fn wants_raw(headers: &HeaderMap, value: &Value) -> bool {
    let Some(accept) = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()) else { return false };
    let own = if value.is_json() { None } else { value.content_type.split(';').next().map(str::trim) };
    accept.split(',').filter_map(|range| range.split(';').next()).map(str::trim).any(|range| {
        range.eq_ignore_ascii_case("application/octet-stream") || own.is_some_and(|own| range.eq_ignore_ascii_case(own))
    })
}

/// What a read knows of its own freshness.
pub(super) enum Freshness {
    Linearizable { began: Instant },
    Local { began: Instant, staleness: std::time::Duration },
}

impl Freshness {
    /// Makes sure that a read is as fresh as it must be.
    pub(super) async fn establish(app: &App, consistency: Consistency) -> Result<Self, Problem> {
        let began = Instant::now();
        let patience = match consistency {
            Consistency::Local => None,
            Consistency::Strong => Some(STRONG_READ_DEADLINE),
            Consistency::Prompt => Some(PROMPT_READ_DEADLINE),
        };
        if let Some(patience) = patience {
            match app.replication.read_barrier(deadline(patience)).await {
                Ok(()) => return Ok(Self::Linearizable { began }),
                Err(error) if consistency == Consistency::Strong => {
                    let detail = format!("a linearizable read is not possible now: {error}; consistency=local is");
                    return Err(Problem::new(Kind::QUORUM_UNAVAILABLE, detail));
                }
                Err(error) => tracing::debug!(%error, "the read falls back to local"),
            }
        }
        // Taken before the read, so that it never claims too much.
        Ok(Self::Local { began, staleness: app.replication.staleness() })
    }

    /// Says in the headers how fresh the answer is.
    pub(super) fn describe(&self, revision: u64, response: &mut Response) {
        let headers = response.headers_mut();
        headers.insert(REVISION, HeaderValue::from(revision));
        let word = self.word();
        headers.insert(CONSISTENCY, HeaderValue::from_static(word));
        if let Self::Local { staleness, .. } = self {
            headers.insert(STALENESS, HeaderValue::from(u64::try_from(staleness.as_millis()).unwrap_or(u64::MAX)));
        }
    }

    fn word(&self) -> &'static str {
        match self {
            Self::Linearizable { .. } => "linearizable",
            Self::Local { .. } => "local",
        }
    }

    /// Counts the read.
    pub(super) fn count(&self, app: &App) {
        let (Self::Linearizable { began } | Self::Local { began, .. }) = self;
        app.telemetry.metrics().read(self.word(), began.elapsed());
    }
}

/// Reads from storage. Any read may wait for the disk, so none runs on an async thread.
pub(super) async fn read<T: Send + 'static>(
    app: &App,
    read: impl FnOnce(&Data) -> Result<T, crate::storage::Error> + Send + 'static,
) -> Result<T, Problem> {
    let data = app.data.clone();
    match tokio::task::spawn_blocking(move || read(&data)).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Problem::new(Kind::STOPPING, "the node is stopping")),
    }
}
