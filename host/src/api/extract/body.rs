//! Bodies within their limits.

use std::convert::Infallible;
use std::error::Error as _;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use futures::StreamExt as _;
use http_body_util::LengthLimitError;
use serde::Deserialize;

use crate::api::problem::{Kind, Problem};
use crate::limits::{REFUSED_BODY_BYTES_MAX, REFUSED_BODY_DEADLINE};

/// A body of at most so many bytes.
pub(crate) struct Body<const BYTES_MAX: usize>(pub(crate) Bytes);

/// A body that has not been read yet.
pub(crate) struct Unread {
    body: axum::body::Body,
    announced_bytes: Option<usize>,
    /// The client asks before it sends (RFC 9110, section 10.1.1).
    expects_continue: bool,
}

/// Reads a JSON object that a handler takes; `shape` shows it to people.
pub(crate) fn json<'a, T: Deserialize<'a>>(body: &'a [u8], shape: &str) -> Result<T, Problem> {
    serde_json::from_slice(body)
        .map_err(|error| Problem::new(Kind::BAD_BODY, format!("the body must be {shape}: {error}")))
}

impl<S: Sync, const BYTES_MAX: usize> FromRequest<S> for Body<BYTES_MAX> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        Unread::new(&parts.headers, body).read(BYTES_MAX).await.map(Self)
    }
}

impl<S: Sync> FromRequest<S> for Unread {
    type Rejection = Infallible;

    async fn from_request(request: Request, _: &S) -> Result<Self, Infallible> {
        let (parts, body) = request.into_parts();
        Ok(Self::new(&parts.headers, body))
    }
}

impl Unread {
    /// The body of a request with these headers.
    pub(crate) fn new(headers: &HeaderMap, body: axum::body::Body) -> Self {
        let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        Self {
            body,
            announced_bytes: announced.and_then(|length| length.parse().ok()),
            expects_continue: headers.contains_key(header::EXPECT),
        }
    }

    /// Reads at most `bytes_max` bytes. A body that announces more is refused without being kept.
    pub(crate) async fn read(self, bytes_max: usize) -> Result<Bytes, Problem> {
        let too_large = || Problem::new(Kind::TOO_LARGE, format!("the body has more than {bytes_max} bytes"));
        if self.announced_bytes.is_some_and(|bytes| bytes > bytes_max) {
            return Err(self.refuse(too_large()).await);
        }
        axum::body::to_bytes(self.body, bytes_max).await.map_err(|error| {
            let is_limit = error.source().is_some_and(|source| source.is::<LengthLimitError>());
            if is_limit { too_large() } else { Problem::new(Kind::BAD_BODY, "the body ended early") }
        })
    }

    /// Answers with a problem and discards the body: a client that is cut off while it sends does not see the answer.
    pub(crate) async fn refuse(self, problem: Problem) -> Problem {
        // Such a client has sent nothing yet.
        if !self.expects_continue {
            // After the deadline the client is cut off all the same.
            let _ = tokio::time::timeout(REFUSED_BODY_DEADLINE, discard(self.body)).await;
        }
        problem
    }
}

async fn discard(body: axum::body::Body) {
    let mut chunks = body.into_data_stream();
    let mut left = REFUSED_BODY_BYTES_MAX;
    while let Some(Ok(bytes)) = chunks.next().await {
        left = left.saturating_sub(bytes.len());
        if left == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read(body: axum::body::Body) -> Result<Bytes, Problem> {
        let request = Request::new(body);
        Body::<4>::from_request(request, &()).await.map(|Body(bytes)| bytes)
    }

    #[tokio::test]
    async fn a_body_without_an_announced_length_is_limited_too() {
        let chunks = |count: usize| {
            let chunks = vec![Ok::<_, Infallible>(Bytes::from_static(b"ab")); count];
            axum::body::Body::from_stream(futures::stream::iter(chunks))
        };
        assert_eq!(read(chunks(2)).await.unwrap(), "abab");
        let refused = read(chunks(3)).await.unwrap_err();
        assert!(format!("{refused:?}").contains("the body has more than 4 bytes"), "{refused:?}");
    }

    #[test]
    fn a_malformed_object_is_refused_with_its_shape() {
        let refused = json::<Vec<u8>>(b"[", "[<numbers>]").unwrap_err();
        assert!(format!("{refused:?}").contains("the body must be [<numbers>]: EOF"), "{refused:?}");
    }
}
