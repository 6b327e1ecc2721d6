//! Bodies of requests, each within its limit, and all together within the node's.
//!
//! A body counts from its arrival to the end of its request, so that what follows (hooks, the queue of writes) holds no more
//! bodies than the node has room for. A body of announced length takes its room at once, another one as it arrives.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use bytes::BytesMut;
use futures::{TryStreamExt as _, future};
use http_body_util::{BodyExt as _, Limited};
use tokio::time::timeout;

use super::problem::{Kind, Problem};
use super::request::App;
use crate::limits::{
    BODIES_BYTES_MAX, BODY_DEADLINE, ByteBudget, HeldBytes, PLUGIN_BYTES_MAX, REFUSED_BODY_BYTES_MAX,
    REFUSED_BODY_DEADLINE, UPLOAD_BODY_DEADLINE,
};

/// A body in memory. It counts until it is dropped.
pub(super) struct Received {
    pub(super) bytes: Bytes,
    _held: HeldBytes,
}

/// Reads a body of at most `bytes_max` bytes, if the node has room for it.
pub(super) async fn read(app: &App, headers: &HeaderMap, body: Body, bytes_max: usize) -> Result<Received, Problem> {
    let announced = announced(headers);
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        return Err(refuse(headers, body, too_large(bytes_max)).await);
    }
    let Some(mut held) = app.bodies.take(announced.unwrap_or(0)) else {
        return Err(refuse(headers, body, no_room()).await);
    };
    let room = announced.is_none().then_some((&app.bodies, &mut held));
    let bytes = collect(headers, body, bytes_max, BODY_DEADLINE, room).await?;
    Ok(Received { bytes, _held: held })
}

/// Reads the body of an upload. The number of uploads bounds their memory.
pub(super) async fn read_upload(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    if announced(headers).is_some_and(|bytes| bytes > PLUGIN_BYTES_MAX) {
        return Err(refuse(headers, body, too_large(PLUGIN_BYTES_MAX)).await);
    }
    collect(headers, body, PLUGIN_BYTES_MAX, UPLOAD_BODY_DEADLINE, None).await
}

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

fn announced(headers: &HeaderMap) -> Option<usize> {
    headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok())
}

fn too_large(bytes_max: usize) -> Problem {
    Problem::new(Kind::TOO_LARGE, format!("the body has more than {bytes_max} bytes"))
}

fn no_room() -> Problem {
    let detail = format!("this node has no room for the body: those that it holds may have {BODIES_BYTES_MAX} bytes");
    Problem::new(Kind::BUSY, detail)
}

/// Reads a body as it arrives. It takes `room` for each chunk, unless it has its room already.
async fn collect(
    headers: &HeaderMap,
    mut body: Body,
    bytes_max: usize,
    deadline: Duration,
    mut room: Option<(&ByteBudget, &mut HeldBytes)>,
) -> Result<Bytes, Problem> {
    let announced = announced(headers);
    let mut all = BytesMut::new();
    let arrived = timeout(deadline, async {
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::new(Kind::BAD_BODY, "the body ended early"))?;
            let Ok(chunk) = frame.into_data() else { continue };
            if all.len() + chunk.len() > bytes_max {
                return Err(too_large(bytes_max));
            }
            if room.as_mut().is_some_and(|(bodies, held)| !bodies.extend(held, chunk.len())) {
                return Err(no_room());
            }
            if announced == Some(chunk.len()) {
                return Ok(Some(chunk));
            }
            all.reserve(announced.map_or(chunk.len(), |announced| announced.saturating_sub(all.len())));
            all.extend_from_slice(&chunk);
        }
        Ok(None)
    });
    let arrived = arrived.await;
    match arrived {
        Ok(Ok(Some(whole))) => Ok(whole),
        Ok(Ok(None)) => Ok(all.freeze()),
        Ok(Err(problem)) => Err(refuse(headers, body, problem).await),
        Err(_) => {
            let detail = format!("the body did not arrive within {} seconds", deadline.as_secs());
            Err(Problem::new(Kind::BAD_BODY, detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn collected(chunks: &[&'static [u8]], length: Option<usize>, room: &ByteBudget) -> Result<Bytes, Problem> {
        let headers = length.map(|length| (header::CONTENT_LENGTH, length.into()));
        let headers = HeaderMap::from_iter(headers);
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok::<_, std::io::Error>(Bytes::from_static(chunk))).collect();
        let body = Body::from_stream(futures::stream::iter(chunks));
        let mut held = room.take(0).unwrap();
        let room = length.is_none().then_some((room, &mut held));
        collect(&headers, body, 10, BODY_DEADLINE, room).await
    }

    #[tokio::test]
    async fn a_body_arrives_whole_however_it_is_cut() {
        let room = ByteBudget::new(10);
        for length in [None, Some(6)] {
            for chunks in [&[&b"abcdef"[..]][..], &[b"abc", b"def"], &[b"", b"abcde", b"f"]] {
                assert_eq!(collected(chunks, length, &room).await.unwrap(), "abcdef", "{chunks:?}");
            }
        }
        assert_eq!(collected(&[], None, &room).await.unwrap(), "");
    }

    #[tokio::test]
    async fn a_body_of_unknown_length_is_bounded_as_it_arrives() {
        let refused = collected(&[b"abcdef", b"ghijk"], None, &ByteBudget::new(100)).await.unwrap_err();
        assert!(format!("{refused:?}").contains("the body has more than 10 bytes"), "{refused:?}");
        let room = ByteBudget::new(5);
        assert!(collected(&[b"abc", b"def"], None, &room).await.is_err());
        assert!(room.take(5).is_some(), "a refused body holds nothing");
    }
}
