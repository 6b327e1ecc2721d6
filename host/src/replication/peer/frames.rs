//! Calls and answers as bytes on a connection.
//!
//! All numbers are big-endian:
//!
//! ```text
//! call:    length u32 | number u32 | call u8   | to u64 | cluster u64 (0: none) | body
//! answer:  length u32 | number u32 | status u8 | body (or the reason, as text)
//! ```
//!
//! where `length` counts the bytes that follow it. An answer has the number of its call. Both ends agree on a version of this when the
//! connection is opened ([`VERSION`](super::protocol::VERSION)).
//!
//! The reader is ours. `tokio_util`'s length-delimited codec accepts a connection that ends right after a length as
//! complete, and a decoder of our own inside its `FramedRead` would be ten lines shorter at the price of one more layer
//! on the path of every append.

use std::io;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, sleep, timeout};

use super::protocol::{Call, CallError, Envelope, Failure};
use crate::limits::{ByteBudget, HeldBytes, PEER_STALL_MAX, PLUGIN_BYTES_MAX};
use crate::replication::error::{Error, WriteOutcome};
use crate::replication::types::ClusterId;

pub(crate) const READ_BYTES: usize = 64 * 1024;

/// Free space in the read buffer below which a new buffer is allocated, in bytes.
const READ_BYTES_MIN: usize = 4 * 1024;

/// Bytes for which room is made before they arrive; more if as many have arrived.
const STEP_BYTES: usize = 1024 * 1024;

/// Interval at which a frame looks for room that others have given back.
const ROOM_POLL: Duration = Duration::from_millis(10);

/// Largest body of a call between nodes, or of its answer, in bytes. The largest are appends; see `log_store`, which keeps them
/// below it.
pub(crate) const PEER_BODY_BYTES_MAX: usize = PLUGIN_BYTES_MAX + 8 * 1024 * 1024;

/// Bytes of a frame before the body, after the length.
pub(crate) const CALL_HEAD: usize = 21;
pub(crate) const ANSWER_HEAD: usize = 5;

/// The statuses of an answer: the call was served; the peer has not acted on it; the peer may have acted on it.
pub(crate) const DONE: u8 = 0;
const REFUSED: u8 = 1;
const FAILED: u8 = 2;

/// A frame that breaks the protocol.
pub(crate) fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a malformed frame")
}

pub(crate) fn put_call(out: &mut BytesMut, number: u32, call: Call, envelope: Envelope, body: &[u8]) {
    out.put_u32(u32::try_from(CALL_HEAD + body.len()).unwrap_or(u32::MAX));
    out.put_u32(number);
    out.put_u8(call as u8);
    out.put_u64(envelope.to);
    out.put_u64(envelope.cluster.map_or(0, ClusterId::get));
    out.put_slice(body);
}

pub(crate) fn parse_call(mut frame: Bytes) -> io::Result<(u32, Call, Envelope, Bytes)> {
    if frame.len() < CALL_HEAD {
        return Err(malformed());
    }
    let (number, call) = (frame.get_u32(), frame.get_u8());
    let call = Call::from_repr(call).ok_or_else(malformed)?;
    let envelope = Envelope { to: frame.get_u64(), cluster: ClusterId::new(frame.get_u64()) };
    Ok((number, call, envelope, frame))
}

pub(crate) fn put_answer(out: &mut BytesMut, number: u32, answer: &Result<Bytes, Error>) {
    let text;
    let (status, body) = match answer {
        // It would break the connection, and with it the calls of others.
        Ok(body) if body.len() > PEER_BODY_BYTES_MAX => (FAILED, "the answer is too large".as_bytes()),
        Ok(body) => (DONE, body.as_ref()),
        Err(error) => {
            text = error.to_string();
            let may_have_acted = error.outcome() == WriteOutcome::Unknown;
            (if may_have_acted { FAILED } else { REFUSED }, text.as_bytes())
        }
    };
    out.put_u32(u32::try_from(ANSWER_HEAD + body.len()).unwrap_or(u32::MAX));
    out.put_u32(number);
    out.put_u8(status);
    out.put_slice(body);
}

/// Parses an answer's frame into its number and what the node at `url` answers. A status from a later version counts as
/// [`FAILED`].
pub(crate) fn parse_answer(mut frame: Bytes, url: &str) -> io::Result<(u32, Result<Bytes, CallError>)> {
    if frame.len() < ANSWER_HEAD {
        return Err(malformed());
    }
    let (number, status) = (frame.get_u32(), frame.get_u8());
    let failed = |failure| Err(CallError::new(failure, url, String::from_utf8_lossy(&frame)));
    let answer = match status {
        REFUSED => failed(Failure::Refused),
        DONE => Ok(frame),
        _ => failed(Failure::NoAnswer),
    };
    Ok((number, answer))
}

/// Reads frames. A frame takes memory as it arrives: its length alone takes none.
pub(crate) struct Frames<R> {
    reader: R,
    buffer: BytesMut,
    budget: Option<ByteBudget>,
    /// The room of the frame that arrives, or of the last one.
    held: Option<HeldBytes>,
    /// Since when there is no room for it.
    waits_since: Option<Instant>,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    pub(crate) fn of(reader: R) -> Self {
        Self { reader, buffer: BytesMut::with_capacity(READ_BYTES), budget: None, held: None, waits_since: None }
    }

    /// Frames that take room of a budget, and wait for it.
    pub(crate) fn within(reader: R, budget: ByteBudget) -> Self {
        Self { budget: Some(budget), ..Self::of(reader) }
    }

    /// The room of the frame that was read last.
    pub(crate) fn take_held(&mut self) -> Option<HeldBytes> {
        self.held.take()
    }

    /// Takes room, so that the frame has as much as this; false if there is none now.
    fn hold(&mut self, bytes: usize) -> bool {
        let Some(budget) = &self.budget else { return true };
        match &mut self.held {
            Some(held) => match bytes.checked_sub(held.bytes()) {
                Some(more) => budget.extend(held, more),
                None => true,
            },
            None => {
                self.held = budget.take(bytes);
                self.held.is_some()
            }
        }
    }

    /// Waits a little for room. Fails if there has been none for long.
    async fn wait_for_room(&mut self) -> io::Result<()> {
        let since = *self.waits_since.get_or_insert_with(Instant::now);
        if since.elapsed() > PEER_STALL_MAX {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no room for a call"));
        }
        sleep(ROOM_POLL).await;
        Ok(())
    }

    /// The next frame, without its length; none at the end of the connection. Cancel safe.
    pub(crate) async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(head) = self.buffer.first_chunk::<4>() {
                let length = usize::try_from(u32::from_be_bytes(*head)).map_err(io::Error::other)?;
                if length > CALL_HEAD + PEER_BODY_BYTES_MAX {
                    return Err(malformed());
                }
                let missing = (4 + length).saturating_sub(self.buffer.len());
                let step = missing.min(STEP_BYTES.max(self.buffer.len()));
                if !self.hold(if missing == 0 { length } else { self.buffer.len() + step }) {
                    self.wait_for_room().await?;
                    continue;
                }
                self.waits_since = None;
                if missing == 0 {
                    self.buffer.advance(4);
                    return Ok(Some(self.buffer.split_to(length).freeze()));
                }
                self.buffer.reserve(step);
            }
            // Frames share the buffer they were read into. A new one is allocated when it is full, not for each frame.
            if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
                self.buffer.reserve(READ_BYTES);
            }
            let is_between = self.buffer.is_empty();
            let read = self.reader.read_buf(&mut self.buffer);
            let read = match is_between {
                true => read.await?,
                false => timeout(PEER_STALL_MAX, read).await.map_err(|_| io::ErrorKind::TimedOut)??,
            };
            if read == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// A frame of so many bytes, without most of them.
    fn begun(length: usize, sent: usize) -> Vec<u8> {
        let mut begun = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        begun.resize(4 + sent, 7);
        begun
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_takes_memory_as_it_arrives_and_breaks_its_connection_if_it_stalls() {
        let length = CALL_HEAD + PEER_BODY_BYTES_MAX;
        for sent in [0, 100, 3 * STEP_BYTES] {
            let budget = ByteBudget::new(2 * PEER_BODY_BYTES_MAX);
            let (mut near, far) = tokio::io::duplex(READ_BYTES);
            let mut frames = Frames::within(far, budget);
            let write = async { near.write_all(&begun(length, sent)).await.unwrap() };
            let (read, ()) = tokio::join!(frames.next(), write);
            assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
            let (room, held) = (3 * (sent + STEP_BYTES), frames.held.as_ref().map_or(0, HeldBytes::bytes));
            assert!(frames.buffer.capacity() <= room && held <= room, "{} and {held}", frames.buffer.capacity());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_waits_for_room_and_gives_it_back() {
        let budget = ByteBudget::new(4 * STEP_BYTES);
        let (mut near, far) = tokio::io::duplex(READ_BYTES);
        let mut frames = Frames::within(far, budget.clone());
        let length = 2 * STEP_BYTES;
        let sent = begun(length, length);
        tokio::spawn(async move {
            for _ in 0..3 {
                near.write_all(&sent).await.unwrap();
            }
            std::future::pending::<()>().await;
        });
        assert_eq!(frames.next().await.unwrap().unwrap().len(), length);
        let first = frames.take_held().unwrap();
        assert!(first.bytes() >= length);
        let waits = timeout(PEER_STALL_MAX / 2, frames.next());
        assert!(waits.await.is_err(), "there is no room for two");
        drop(first);
        assert_eq!(frames.next().await.unwrap().unwrap().len(), length);
        // Nobody gives it back.
        let _second = frames.take_held();
        assert_eq!(frames.next().await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn an_answer_that_is_too_large_fails_alone_and_not_the_connection() {
        let mut out = BytesMut::new();
        put_answer(&mut out, 7, &Ok(vec![0; PEER_BODY_BYTES_MAX + 1].into()));
        out.advance(4);
        let (number, answer) = parse_answer(out.freeze(), "http://b").unwrap();
        assert_eq!((number, answer.unwrap_err().failure), (7, Failure::NoAnswer));
    }
}
