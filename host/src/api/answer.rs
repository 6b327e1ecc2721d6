//! How a response is made: its JSON, its lines of JSON, its entity tag.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use futures::{Stream, StreamExt as _, future};
use serde::Serialize;

use super::problem::Problem;
use super::request::{Form, JSON_LINES, etag};

/// Room for the headers of a response: those of a read, and what `observe` and axum add. Their map does not grow again.
const HEADERS_ROOM: usize = 12;

pub(super) fn ok(body: &impl Serialize) -> Result<Response, Problem> {
    serde_json::to_string(body).map(|text| json(StatusCode::OK, text)).map_err(Problem::internal)
}

pub(super) fn json(status: StatusCode, text: impl Into<Body>) -> Response {
    typed(status, HeaderValue::from_static("application/json"), text)
}

/// A response of any media type.
pub(super) fn typed(status: StatusCode, media_type: HeaderValue, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().reserve(HEADERS_ROOM);
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}

/// A response with one line of JSON per item (NDJSON), sent as the items come. Other responses may share the items.
pub(super) fn json_lines<T: Serialize>(items: impl Stream<Item = Arc<T>> + Send + 'static) -> Response {
    let lines = items.filter_map(|item| {
        let line = serde_json::to_string(&*item).map(|line| Ok::<_, Infallible>(line + "\n"));
        future::ready(line.ok())
    });
    typed(StatusCode::OK, HeaderValue::from_static(JSON_LINES), Body::from_stream(lines))
}

/// The header value of a text that brink made, or accepted as a header before. Any other text becomes empty.
pub(super) fn header_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}

pub(super) fn set_etag(response: &mut Response, revision: u64, form: Form) {
    response.headers_mut().insert(header::ETAG, header_value(&etag(revision, form)));
}

/// States that an earlier request with the same `Idempotency-Key` made the write, if one did.
pub(super) fn set_repeated(response: &mut Response, repeated: bool) {
    if repeated {
        response.headers_mut().insert("brink-repeated", HeaderValue::from_static("true"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_item_is_a_line_of_json() {
        let response = json_lines(futures::stream::iter([Arc::new(vec![1, 2]), Arc::default()]));
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(body, "[1,2]\n[]\n");
    }
}
