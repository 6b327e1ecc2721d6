//! Bodies of requests, each within its limit, and all together within the node's.
//!
//! A body counts from its arrival to the end of its request, so that what follows (hooks, the queue of writes) holds no more
//! bodies than the node has room for. It takes its room as it arrives, and must arrive in time: as a whole, without long pauses,
//! and not too slowly.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use bytes::BytesMut;
use futures::FutureExt as _;
use http_body_util::BodyExt as _;
use tokio::time::{Instant, timeout_at};

use super::problem::{Kind, Problem};
use super::request::App;
use crate::limits::{
    BODIES_BYTES_MAX, BODY_BYTES_PER_S_MIN, BODY_DEADLINE, BODY_STALL_MAX, BODY_STEP_BYTES, ByteBudget, HeldBytes,
    PLUGIN_BYTES_MAX, UPLOAD_BODY_DEADLINE,
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
        return Err(too_large(bytes_max));
    }
    let Some(mut held) = app.bodies.take(announced.unwrap_or(0).min(BODY_STEP_BYTES)) else {
        return Err(no_room());
    };
    let bytes = collect(announced, body, bytes_max, BODY_DEADLINE, Some((&app.bodies, &mut held))).await?;
    Ok(Received { bytes, _held: held })
}

/// Reads the body of an upload. The number of uploads bounds their memory.
pub(super) async fn read_upload(headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    let announced = announced(headers);
    if announced.is_some_and(|bytes| bytes > PLUGIN_BYTES_MAX) {
        return Err(too_large(PLUGIN_BYTES_MAX));
    }
    collect(announced, body, PLUGIN_BYTES_MAX, UPLOAD_BODY_DEADLINE, None).await
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

/// Reads a body as it arrives, and takes `room` for it in steps, unless its memory is bounded otherwise.
async fn collect(
    announced: Option<usize>,
    mut body: Body,
    bytes_max: usize,
    deadline: Duration,
    mut room: Option<(&ByteBudget, &mut HeldBytes)>,
) -> Result<Bytes, Problem> {
    let mut arrival = None;
    let mut all = BytesMut::new();
    loop {
        // Most bodies have arrived with their heads: they need no clock.
        let frame = match body.frame().now_or_never() {
            Some(frame) => frame,
            None => {
                let due = arrival.get_or_insert_with(|| Arrival::new(deadline)).due(all.len());
                let frame = timeout_at(due, body.frame()).await;
                frame.map_err(|_| late(all.len(), deadline))?
            }
        };
        let Some(frame) = frame else { return Ok(all.freeze()) };
        let frame = frame.map_err(|_| Problem::new(Kind::BAD_BODY, "the body ended early"))?;
        let Ok(chunk) = frame.into_data() else { continue };
        let bytes = all.len() + chunk.len();
        if bytes > bytes_max {
            return Err(too_large(bytes_max));
        }
        if let Some((bodies, held)) = &mut room
            && bytes > held.bytes()
        {
            let step = BODY_STEP_BYTES.min(announced.unwrap_or(0).saturating_sub(held.bytes()));
            if !bodies.extend(held, step.max(bytes - held.bytes())) {
                return Err(no_room());
            }
        }
        if announced == Some(chunk.len()) {
            return Ok(chunk);
        }
        all.reserve(announced.map_or(chunk.len(), |announced| announced.saturating_sub(all.len())));
        all.extend_from_slice(&chunk);
    }
}

fn late(arrived: usize, deadline: Duration) -> Problem {
    let detail = format!(
        "of the body, {arrived} bytes arrived in time: it may pause for {} seconds, must then bring {BODY_BYTES_PER_S_MIN} bytes in \
         a second, and be complete after {}",
        BODY_STALL_MAX.as_secs(),
        deadline.as_secs()
    );
    Problem::new(Kind::REQUEST_TIMEOUT, detail)
}

/// How a body arrives that did not come with its head.
struct Arrival {
    began: Instant,
    deadline: Duration,
}

impl Arrival {
    fn new(deadline: Duration) -> Self {
        Self { began: Instant::now(), deadline }
    }

    /// When the next part must have come, after so many bytes.
    fn due(&self, arrived: usize) -> Instant {
        let slowest = BODY_STALL_MAX + Duration::from_secs(arrived as u64 / BODY_BYTES_PER_S_MIN);
        (Instant::now() + BODY_STALL_MAX).min(self.began + self.deadline.min(slowest))
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt as _;

    use super::*;

    async fn collected(chunks: &[&'static [u8]], length: Option<usize>, room: &ByteBudget) -> Result<Bytes, Problem> {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok::<_, std::io::Error>(Bytes::from_static(chunk))).collect();
        let body = Body::from_stream(futures::stream::iter(chunks));
        let mut held = room.take(0).unwrap();
        collect(length, body, 10, BODY_DEADLINE, Some((room, &mut held))).await
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

    #[tokio::test]
    async fn a_body_takes_room_as_it_arrives_and_no_more_than_it_has() {
        let (room, bytes) = (ByteBudget::new(8 * BODY_STEP_BYTES), 3 * BODY_STEP_BYTES + 1);
        let (mut sender, body) = futures::channel::mpsc::channel(0);
        let body = Body::from_stream(body.map(Ok::<_, std::io::Error>));
        let mut held = room.take(0).unwrap();
        let free = |room: &ByteBudget| room.take(7 * BODY_STEP_BYTES).is_some();
        {
            let reading = collect(Some(bytes), body, bytes, BODY_DEADLINE, Some((&room, &mut held)));
            let mut reading = std::pin::pin!(reading);
            // A body that is only announced leaves the room to others.
            assert!(reading.as_mut().now_or_never().is_none() && free(&room));
            sender.try_send(Bytes::from(vec![b'a'; BODY_STEP_BYTES + 1])).unwrap();
            assert!(reading.as_mut().now_or_never().is_none() && !free(&room));
            sender.try_send(Bytes::from(vec![b'b'; 2 * BODY_STEP_BYTES])).unwrap();
            drop(sender);
            assert_eq!(reading.await.map_err(|_| ()).unwrap().len(), bytes);
        }
        assert_eq!(held.bytes(), bytes);
    }

    /// Reads a body of which so many bytes come every second.
    async fn slowly(bytes_per_s: u64, deadline: Duration) -> (Result<Bytes, Problem>, Duration) {
        let began = Instant::now();
        let chunks = futures::stream::repeat(Bytes::from(vec![0; bytes_per_s as usize]));
        let chunks = chunks.take(if bytes_per_s == 0 { 0 } else { 100 }).then(|chunk| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok::<_, std::io::Error>(chunk)
        });
        let body = Body::from_stream(chunks.chain(futures::stream::pending()));
        (collect(None, body, usize::MAX, deadline, None).await, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_pauses_or_is_slow_or_late_is_given_up() {
        let enough = BODY_BYTES_PER_S_MIN + 1_024;
        // Nothing; less than the least; enough, until it pauses after 100 seconds; enough, until the deadline.
        for (bytes_per_s, deadline_s, at_s) in
            [(0, 600, 10), (1, 600, 10), (enough / 2, 600, 20), (enough, 600, 110), (enough, 50, 50)]
        {
            let (read, took) = slowly(bytes_per_s, Duration::from_secs(deadline_s)).await;
            assert!(format!("{read:?}").contains("request-timeout"), "{read:?}");
            assert_eq!(took.as_secs(), at_s, "{bytes_per_s}");
        }
    }
}
