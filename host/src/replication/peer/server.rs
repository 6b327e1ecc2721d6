//! The serving end of a connection: reads calls, answers them.

use std::io;

use bytes::{Bytes, BytesMut};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use super::frames::{self, Frames};
use super::protocol::{Call, Envelope};
use crate::limits::ByteBudget;
use crate::replication::error::Error;

/// Calls of one connection that are served at once; further calls wait in the connection.
const SERVED_CALLS_MAX: usize = 1_024;

/// Bytes of answers that may wait to be sent; over it no further call is read until the peer has received some.
const UNSENT_BYTES_MAX: usize = 1024 * 1024;

/// Answers calls until the connection ends. Calls start in the order in which they arrive; each answer is sent when it is
/// ready. The bodies of calls take room of a budget until they are served.
pub(crate) async fn serve<F>(
    io: impl AsyncRead + AsyncWrite,
    budget: ByteBudget,
    mut serve_call: impl FnMut(Call, Envelope, Bytes) -> F,
) -> io::Result<()>
where
    F: Future<Output = Result<Bytes, Error>>,
{
    let (reader, mut writer) = tokio::io::split(io);
    let mut frames = Frames::within(reader, budget);
    let mut served = FuturesUnordered::new();
    let mut out = BytesMut::new();
    loop {
        tokio::select! {
            biased;
            frame = frames.next(), if served.len() < SERVED_CALLS_MAX && out.len() < UNSENT_BYTES_MAX => {
                let Some(frame) = frame? else { return Ok(()) };
                let (number, call, envelope, body) = frames::parse_call(frame)?;
                let held = frames.take_held();
                let mut answer = Box::pin(serve_call(call, envelope, body).map(move |answer| {
                    drop(held);
                    (number, answer)
                }));
                // Polled at once, so that calls take effect in the order in which they arrive, unless one has to look into the log first.
                match futures::poll!(&mut answer) {
                    std::task::Poll::Ready((number, answer)) => frames::put_answer(&mut out, number, &answer),
                    std::task::Poll::Pending => served.push(answer),
                }
            }
            Some((number, answer)) = served.next() => frames::put_answer(&mut out, number, &answer),
            written = writer.write_buf(&mut out), if !out.is_empty() => {
                if written? == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use parking_lot::Mutex;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::limits::PEER_BODIES_BYTES_MAX;
    use crate::replication::peer::frames::{ANSWER_HEAD, CALL_HEAD, DONE, PEER_BODY_BYTES_MAX, READ_BYTES};

    fn budget() -> ByteBudget {
        ByteBudget::new(PEER_BODIES_BYTES_MAX)
    }

    /// Sends bytes in chunks to a server that echoes bodies, reads `answers` bytes of answers, and closes the connection.
    fn serve_bytes(sent: &[u8], chunk: usize, answers: usize) -> (io::Result<()>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let (mut near, far) = tokio::io::duplex(READ_BYTES);
            let caller = async move {
                for chunk in sent.chunks(chunk) {
                    // Writing fails once the server has closed the connection.
                    if near.write_all(chunk).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                let mut answered = vec![0; answers];
                near.read_exact(&mut answered).await.unwrap();
                answered
            };
            let echo = serve(far, budget(), |_, _, body| async move { Ok(body) });
            tokio::join!(echo, caller)
        })
    }

    fn call(number: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(CALL_HEAD + body.len()).unwrap();
        let mut frame = [length.to_be_bytes(), number.to_be_bytes()].concat();
        frame.push(Call::Hello as u8);
        frame.extend([0; 16]);
        frame.extend(body);
        frame
    }

    fn answer(number: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(ANSWER_HEAD + body.len()).unwrap();
        [&length.to_be_bytes()[..], &number.to_be_bytes(), &[DONE], body].concat()
    }

    fn kind_of_end(sent: &[u8]) -> io::ErrorKind {
        serve_bytes(sent, sent.len(), 0).0.unwrap_err().kind()
    }

    #[test]
    fn calls_are_answered_however_they_are_cut() {
        let sent = [call(1, b"one"), call(2, b""), call(3, &[7; 500])].concat();
        let expected = [answer(1, b"one"), answer(2, b""), answer(3, &[7; 500])].concat();
        for chunk in 1..=sent.len() {
            let (ended, answered) = serve_bytes(&sent, chunk, expected.len());
            ended.unwrap();
            assert_eq!(answered, expected);
        }
    }

    #[test]
    fn a_connection_that_ends_within_a_frame_is_broken() {
        let sent = call(1, b"one");
        for length in 1..sent.len() {
            assert_eq!(kind_of_end(&sent[..length]), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn malformed_frames_end_the_connection() {
        let too_long = u32::try_from(CALL_HEAD + PEER_BODY_BYTES_MAX + 1).unwrap();
        assert_eq!(kind_of_end(&too_long.to_be_bytes()), io::ErrorKind::InvalidData, "refused before its body comes");
        let too_short = [&20_u32.to_be_bytes()[..], &[0; 20]].concat();
        assert_eq!(kind_of_end(&too_short), io::ErrorKind::InvalidData);
        let mut unknown = call(1, b"one");
        unknown[8] = u8::MAX;
        assert_eq!(kind_of_end(&unknown), io::ErrorKind::InvalidData);
    }

    #[test]
    fn random_bytes_break_nothing_but_the_connection() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut broken = 0;
        for _ in 0..2_000 {
            let mut sent = call(1, b"one");
            sent.extend(std::iter::repeat_with(|| random.u8(..)).take(40));
            // A short length, so that the bytes after it are parsed.
            let at = random.usize(..sent.len());
            sent[at] = random.u8(..32);
            let (ended, _) = serve_bytes(&sent, random.usize(1..=sent.len()), 0);
            broken += usize::from(ended.is_err());
        }
        assert!(broken > 1_000, "{broken} of 2,000");
    }

    /// The answers waiting for a peer that reads none are bounded (P9).
    #[tokio::test]
    async fn a_peer_that_reads_no_answers_is_read_no_further() {
        let (mut near, far) = tokio::io::duplex(READ_BYTES);
        let served = Mutex::new(0_usize);
        let body = vec![1; 16 * 1024];
        let serve = serve(far, budget(), |_, _, body| {
            *served.lock() += body.len();
            async move { Ok(body) }
        });
        let flood = async {
            for number in 0..1_000 {
                near.write_all(&call(number, &body)).await.unwrap();
            }
        };
        let stalled = async {
            tokio::select! { _ = serve => (), () = flood => () }
        };
        assert!(tokio::time::timeout(Duration::from_millis(300), stalled).await.is_err(), "it read all calls");
        assert!(*served.lock() <= UNSENT_BYTES_MAX + 3 * READ_BYTES, "{} bytes", served.lock());
    }
}
