//! What is left of a request's body when its handler has answered.
//!
//! Many clients of HTTP/1.1 send a whole request before they look for the answer. One that is cut off while it sends sees an error
//! instead of the answer, or uses a connection for its next request that is about to end. So the server reads what a handler left,
//! and throws it away, before it hands over the answer. HTTP/2 needs none of this: a frame ends a body early.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::extract::Request;
use axum::http::{StatusCode, Version, header};
use bytes::Bytes;
use futures::{TryStreamExt as _, future};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Frame, Incoming, SizeHint};
use parking_lot::Mutex;
use tokio::time::timeout;

use crate::limits::{REFUSED_BODY_BYTES_MAX, REFUSED_BODY_DEADLINE};

/// What a connection of HTTP/1.1 knows about the body of its request. Such a connection has one request at a time.
#[derive(Clone, Default)]
pub(super) struct Unread(Arc<Mutex<State>>);

#[derive(Default)]
enum State {
    /// No request, or one with its answer: what is left of its body is nobody's business.
    #[default]
    Answered,
    /// A request without its answer.
    Handled,
    /// The same, and its handler has dropped the body.
    Left(Incoming),
}

impl Unread {
    /// The request as its handler gets it.
    pub(super) fn lend(&self, request: Request<Incoming>) -> Request {
        if request.body().is_end_stream() {
            return request.map(|_| Body::empty());
        }
        if request.version() == Version::HTTP_2 {
            return request.map(Body::new);
        }
        // A client that asks before it sends is told to once the body is read (RFC 9110, section 10.1.1).
        let is_sent = !request.headers().contains_key(header::EXPECT);
        *self.0.lock() = State::Handled;
        request.map(|body| Body::new(Lent { body: Some(body), is_sent, unread: self.clone() }))
    }

    /// Reads and throws away what the handler left, before it answers with this status.
    pub(super) async fn discard(&self, status: StatusCode) {
        let state = std::mem::take(&mut *self.0.lock());
        // A client that was too slow is not waited for again.
        if let State::Left(body) = state
            && status != StatusCode::REQUEST_TIMEOUT
        {
            let rest = Limited::new(body, REFUSED_BODY_BYTES_MAX).into_data_stream().try_for_each(|_| future::ok(()));
            // After the deadline, or after so many bytes, the client is cut off all the same.
            let _ = timeout(REFUSED_BODY_DEADLINE, rest).await;
        }
    }
}

/// The body of a request, while its handler has it.
struct Lent {
    /// None only while this is dropped.
    body: Option<Incoming>,
    /// Whether the client sends it, asked or not.
    is_sent: bool,
    unread: Unread,
}

impl hyper::body::Body for Lent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.is_sent = true;
        match &mut self.body {
            Some(body) => Pin::new(body).poll_frame(context),
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(body) = self.body.take().filter(|body| self.is_sent && !body.is_end_stream()) else { return };
        let mut state = self.unread.0.lock();
        if matches!(*state, State::Handled) {
            *state = State::Left(body);
        }
    }
}
