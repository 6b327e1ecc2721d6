//! How a response is made: its JSON, its entity tag, and the headers that state its freshness.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use serde::Serialize;

use super::extract;
use super::problem::Problem;

const CONSISTENCY: HeaderName = HeaderName::from_static("brink-consistency");
const REVISION: HeaderName = HeaderName::from_static("brink-revision");
const STALENESS: HeaderName = HeaderName::from_static("brink-staleness-ms");
const REPEATED: HeaderName = HeaderName::from_static("brink-repeated");

/// A response of status 200 with a body of [`super::schema`].
pub(super) fn ok(body: &impl Serialize) -> Result<Response, Problem> {
    match serde_json::to_string(body) {
        Ok(text) => Ok(json(StatusCode::OK, text)),
        Err(error) => Err(Problem::internal(&error)),
    }
}

/// A response of JSON text.
pub(super) fn json(status: StatusCode, text: String) -> Response {
    with_body(status, HeaderValue::from_static("application/json"), text)
}

/// A response with a body of some media type.
pub(super) fn with_body(status: StatusCode, media_type: HeaderValue, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}

/// The header value of a text that brink made, or accepted as a header before. Any other text becomes empty.
pub(super) fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

/// Sets the entity tag of an entry.
pub(super) fn set_etag(response: &mut Response, revision: u64) {
    response.headers_mut().insert(header::ETAG, header_value(&extract::etag(revision)));
}

/// States the freshness of a read: its revision, its consistency, and how stale a local read may be.
pub(super) fn set_freshness(
    response: &mut Response,
    revision: u64,
    consistency: &'static str,
    staleness: Option<Duration>,
) {
    let headers = response.headers_mut();
    headers.insert(REVISION, HeaderValue::from(revision));
    headers.insert(CONSISTENCY, HeaderValue::from_static(consistency));
    if let Some(staleness) = staleness {
        headers.insert(STALENESS, HeaderValue::from(u64::try_from(staleness.as_millis()).unwrap_or(u64::MAX)));
    }
}

/// States that an earlier request with the same `Idempotency-Key` made the write, if one did.
pub(super) fn set_repeated(response: &mut Response, repeated: bool) {
    if repeated {
        response.headers_mut().insert(REPEATED, HeaderValue::from_static("true"));
    }
}
