//! The refusal of a request whose body has not been read.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use futures::{TryStreamExt as _, future};
use http_body_util::{BodyExt as _, Limited};
use tokio::time::timeout;

use super::problem::Problem;
use crate::limits::{REFUSED_BODY_BYTES_MAX, REFUSED_BODY_DEADLINE};

/// Answers with a problem and discards the body: a client that is cut off while it sends does not see the answer.
pub(super) async fn refuse(headers: &HeaderMap, body: Body, problem: Problem) -> Problem {
    // A client that asks before it sends has sent nothing yet (RFC 9110, section 10.1.1).
    if !headers.contains_key(header::EXPECT) {
        let rest = Limited::new(body, REFUSED_BODY_BYTES_MAX).into_data_stream().try_for_each(|_| future::ok(()));
        // After the deadline, or after so many bytes, the client is cut off all the same.
        let _ = timeout(REFUSED_BODY_DEADLINE, rest).await;
    }
    problem
}
