//! Lines: kept connections on which calls between nodes follow each other closely.
//!
//! # Problem
//!
//! A write costs several calls between nodes. As HTTP requests of their own they cost more than what they carry, and
//! Raft's appends must arrive in order, so each would wait for the answer to the one before.
//!
//! # Approach
//!
//! A line begins as an HTTP request that asks to be upgraded (RFC 9110, section 7.8), on the same listener as everything
//! else, and then carries frames both ways. A call is a frame with a number; its answer is a frame with the same number,
//! and comes when it is ready. Calls arrive in the order in which they were made. A node keeps one line per peer for Raft's own
//! messages and one for what nodes ask of each other, so that neither holds up the other.
//!
//! All numbers are big-endian:
//!
//! ```text
//! call:    length u32 | number u32 | call u8   | to u64 | cluster u64 (0: none) | body
//! answer:  length u32 | number u32 | status u8 | body (or why not, as text)
//! ```
//!
//! where `length` counts what follows it.
//!
//! # Guarantees
//!
//! A call is sent at most once. One that fails with [`CallError::NotSent`] has not left this node; after
//! [`CallError::NoAnswer`] the peer may have acted on it.
//!
//! # Failure model
//!
//! A line that breaks fails every call that waits for an answer, and the next call makes a new one. A peer that vanishes
//! without a word is noticed by the kernel ([`UNACKNOWLEDGED_MAX`]), one that is silent for long by the caller, who
//! [resets](Line::reset) the line.

use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use http::{HeaderValue, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, oneshot};

use super::error::{Error, WriteOutcome};
use super::identity::ClusterId;
use super::shared::lock;
use super::transport::{Call, CallError, Envelope};
use crate::limits::PEER_BODY_BYTES_MAX;
use crate::net;

/// What the upgrade is called.
pub const PROTOCOL: &str = "brink-line";

/// Calls that wait to be sent on a line; over it a call fails at once.
const QUEUED_CALLS_MAX: usize = 1_024;

/// Calls of one line that are served at once; further ones wait in the connection.
const SERVED_CALLS_MAX: usize = 1_024;

/// Bytes of answers that may wait to be sent; over it no further call is read until the peer has taken some.
const UNSENT_BYTES_MAX: usize = 1024 * 1024;

/// How long a line may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);

/// How long what was sent may stay unacknowledged by the peer's kernel before the line counts as broken.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(2);

/// Bytes gathered for one write to the network; a larger frame goes whole.
const WRITE_BYTES: usize = 64 * 1024;

/// Bytes read from the network at once.
const READ_BYTES: usize = 64 * 1024;

/// Room for a read below which a new buffer is made, in bytes.
const READ_BYTES_MIN: usize = 4 * 1024;

/// Waiting calls beyond which those that nobody waits for any more are forgotten.
const WAITING_SWEEP: usize = 256;

const CALL_HEAD: usize = 21;
const ANSWER_HEAD: usize = 5;

/// How an answer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Done = 0,
    /// The peer has not acted on the call.
    Refused = 1,
    /// It may have.
    Failed = 2,
}

/// What is on its way to a peer.
struct Queued {
    call: Call,
    envelope: Envelope,
    body: Bytes,
    reply: Reply,
}

type Reply = oneshot::Sender<Result<Bytes, CallError>>;

/// The calling end of a line. Cheap to clone; the line ends with the last clone.
#[derive(Clone)]
pub(super) struct Line {
    url: Arc<str>,
    queue: mpsc::Sender<Queued>,
    resets: Arc<Notify>,
}

impl Line {
    /// A line to the node at a base URL. It connects when it is first used.
    pub(super) fn to(url: &str) -> Self {
        let (queue, calls) = mpsc::channel(QUEUED_CALLS_MAX);
        let line = Self { url: url.into(), queue, resets: Arc::new(Notify::new()) };
        tokio::spawn(keep_line(line.url.clone(), calls, line.resets.clone()));
        line
    }

    /// Makes a call. It is queued when this returns; the future waits for its answer.
    pub(super) fn call(
        &self,
        call: Call,
        envelope: Envelope,
        body: Bytes,
    ) -> impl Future<Output = Result<Bytes, CallError>> + Send + use<> {
        let (reply, answer) = oneshot::channel();
        let queued = self.queue.try_send(Queued { call, envelope, body, reply });
        let url = self.url.clone();
        async move {
            if queued.is_err() {
                return Err(not_sent(&url, &"too many calls wait for this node"));
            }
            answer.await.unwrap_or_else(|_| Err(no_answer(&url, &"the node stops")))
        }
    }

    /// Gives up the connection. The next call makes a new one.
    pub(super) fn reset(&self) {
        self.resets.notify_waiters();
    }
}

fn not_sent(url: &str, reason: &dyn std::fmt::Display) -> CallError {
    CallError::NotSent { url: url.to_owned(), reason: reason.to_string() }
}

pub(super) fn no_answer(url: &str, reason: &dyn std::fmt::Display) -> CallError {
    CallError::NoAnswer { url: url.to_owned(), reason: reason.to_string() }
}

/// Connects whenever there is something to send, until nobody holds the line any more.
async fn keep_line(url: Arc<str>, mut calls: mpsc::Receiver<Queued>, resets: Arc<Notify>) {
    while let Some(first) = calls.recv().await {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connect(&url)).await;
        let io = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(io) => io,
            Err(error) => {
                refuse_all(&url, first, &mut calls, &error);
                continue;
            }
        };
        let waiting = Mutex::new(Waiting::default());
        let broken = tokio::select! {
            broken = carry(&url, io, first, &mut calls, &waiting) => broken,
            () = resets.notified() => Err(io::ErrorKind::TimedOut.into()),
        };
        let reason = broken.err().unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
        for reply in lock(&waiting).replies.drain().map(|(_, reply)| reply) {
            // A caller that gave up no longer listens.
            let _ = reply.send(Err(no_answer(&url, &reason)));
        }
    }
}

fn refuse_all(url: &str, first: Queued, calls: &mut mpsc::Receiver<Queued>, error: &io::Error) {
    let mut next = Some(first);
    while let Some(queued) = next {
        let _ = queued.reply.send(Err(not_sent(url, error)));
        next = calls.try_recv().ok();
    }
}

/// Asks the node for a line.
async fn connect(url: &str) -> io::Result<TokioIo<hyper::upgrade::Upgraded>> {
    let (authority, base_path) = net::authority_and_path(url);
    let stream = net::connect(url, Some(UNACKNOWLEDGED_MAX)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::post(format!("{base_path}/peer/line"))
        .header(header::HOST, authority)
        .header(header::CONNECTION, HeaderValue::from_static("upgrade"))
        .header(header::UPGRADE, HeaderValue::from_static(PROTOCOL))
        .body(http_body_util::Empty::<Bytes>::new())
        .map_err(io::Error::other)?;
    let response = sender.send_request(request).await.map_err(io::Error::other)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(io::Error::other(format!("it does not speak {PROTOCOL}: {}", response.status())));
    }
    Ok(TokioIo::new(hyper::upgrade::on(response).await.map_err(io::Error::other)?))
}

/// Calls that wait for their answers, by number.
#[derive(Default)]
struct Waiting {
    replies: HashMap<u32, Reply>,
    last: u32,
}

impl Waiting {
    fn add(&mut self, reply: Reply) -> u32 {
        if self.replies.len() >= WAITING_SWEEP {
            self.replies.retain(|_, reply| !reply.is_closed());
        }
        self.last = self.last.wrapping_add(1);
        self.replies.insert(self.last, reply);
        self.last
    }
}

/// Sends calls and hands out answers until the connection breaks, or nobody calls any more.
async fn carry(
    url: &str,
    io: impl AsyncRead + AsyncWrite,
    first: Queued,
    calls: &mut mpsc::Receiver<Queued>,
    waiting: &Mutex<Waiting>,
) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(io);
    let send = async {
        let mut out = BytesMut::new();
        let mut next = Some(first);
        while let Some(queued) = next {
            put_call(&mut out, queued, waiting);
            while out.len() < WRITE_BYTES
                && let Ok(queued) = calls.try_recv()
            {
                put_call(&mut out, queued, waiting);
            }
            writer.write_all_buf(&mut out).await?;
            next = calls.recv().await;
        }
        Ok(())
    };
    let receive = async {
        let mut frames = Frames::of(reader);
        while let Some(mut frame) = frames.next().await? {
            if frame.len() < ANSWER_HEAD {
                return Err(malformed());
            }
            let (number, status) = (frame.get_u32(), frame.get_u8());
            if let Some(reply) = lock(waiting).replies.remove(&number) {
                let _ = reply.send(answer_of(url, status, frame));
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    };
    tokio::select! {
        sent = send => sent,
        received = receive => received,
    }
}

fn put_call(out: &mut BytesMut, queued: Queued, waiting: &Mutex<Waiting>) {
    let Queued { call, envelope, body, reply } = queued;
    if reply.is_closed() {
        return;
    }
    let number = lock(waiting).add(reply);
    out.put_u32(u32::try_from(CALL_HEAD + body.len()).unwrap_or(u32::MAX));
    out.put_u32(number);
    out.put_u8(call.number());
    out.put_u64(envelope.to);
    out.put_u64(envelope.cluster.map_or(0, ClusterId::get));
    out.put_slice(&body);
}

fn answer_of(url: &str, status: u8, body: Bytes) -> Result<Bytes, CallError> {
    if status == Status::Done as u8 {
        return Ok(body);
    }
    let reason = String::from_utf8_lossy(&body).into_owned();
    let url = url.to_owned();
    Err(match status == Status::Refused as u8 {
        true => CallError::Refused { url, reason },
        false => CallError::NoAnswer { url, reason },
    })
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a malformed frame")
}

/// Frames as they come.
struct Frames<R> {
    reader: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> Frames<R> {
    fn of(reader: R) -> Self {
        Self { reader, buffer: BytesMut::with_capacity(READ_BYTES) }
    }

    /// The next frame; none at the end. May be dropped and asked again without losing anything.
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some(head) = self.buffer.first_chunk::<4>() {
                let length = usize::try_from(u32::from_be_bytes(*head)).map_err(io::Error::other)?;
                if length > CALL_HEAD + PEER_BODY_BYTES_MAX {
                    return Err(malformed());
                }
                if self.buffer.len() >= 4 + length {
                    self.buffer.advance(4);
                    return Ok(Some(self.buffer.split_to(length).freeze()));
                }
                self.buffer.reserve(4 + length - self.buffer.len());
            }
            // What was read shares the buffer; a new one is made when this one is used up, and not for each frame.
            if self.buffer.capacity() - self.buffer.len() < READ_BYTES_MIN {
                self.buffer.reserve(READ_BYTES);
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
        }
    }
}

/// The serving end: answers calls until the line ends. Calls are begun in the order they come, and answered as each is
/// done.
pub(super) async fn serve<F>(
    io: impl AsyncRead + AsyncWrite,
    mut serve_call: impl FnMut(Call, Envelope, Bytes) -> F,
) -> io::Result<()>
where
    F: Future<Output = Result<Bytes, Error>>,
{
    let (reader, mut writer) = tokio::io::split(io);
    let mut frames = Frames::of(reader);
    let mut served = FuturesUnordered::new();
    let mut out = BytesMut::new();
    loop {
        tokio::select! {
            biased;
            frame = frames.next(), if served.len() < SERVED_CALLS_MAX && out.len() < UNSENT_BYTES_MAX => {
                let Some(mut frame) = frame? else { return Ok(()) };
                if frame.len() < CALL_HEAD {
                    return Err(malformed());
                }
                let (number, call) = (frame.get_u32(), frame.get_u8());
                let call = Call::of_number(call).ok_or_else(malformed)?;
                let envelope = Envelope { to: frame.get_u64(), cluster: ClusterId::new(frame.get_u64()) };
                let mut answer = Box::pin(serve_call(call, envelope, frame).map(move |answer| (number, answer)));
                // Begun here and now, so that what must come in order does.
                match futures::poll!(&mut answer) {
                    std::task::Poll::Ready((number, answer)) => put_answer(&mut out, number, &answer),
                    std::task::Poll::Pending => served.push(answer),
                }
            }
            Some((number, answer)) = served.next() => put_answer(&mut out, number, &answer),
            written = writer.write_buf(&mut out), if !out.is_empty() => {
                if written? == 0 {
                    return Err(io::ErrorKind::WriteZero.into());
                }
            }
        }
    }
}

fn put_answer(out: &mut BytesMut, number: u32, answer: &Result<Bytes, Error>) {
    let text;
    let (status, body) = match answer {
        Ok(body) => (Status::Done, body.as_ref()),
        Err(error) => {
            text = error.to_string();
            let may_have_acted = error.outcome() == WriteOutcome::Unknown;
            (if may_have_acted { Status::Failed } else { Status::Refused }, text.as_bytes())
        }
    };
    out.put_u32(u32::try_from(ANSWER_HEAD + body.len()).unwrap_or(u32::MAX));
    out.put_u32(number);
    out.put_u8(status as u8);
    out.put_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends this in chunks to a line that answers with the body, takes so many bytes of answers, and ends it.
    fn serve_bytes(sent: &[u8], chunk: usize, answers: usize) -> (io::Result<()>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (mut near, far) = tokio::io::duplex(READ_BYTES);
            let caller = async move {
                for chunk in sent.chunks(chunk) {
                    // It breaks when the other end has had enough.
                    if near.write_all(chunk).await.is_err() {
                        break;
                    }
                    tokio::task::yield_now().await;
                }
                let mut answered = vec![0; answers];
                near.read_exact(&mut answered).await.unwrap();
                answered
            };
            let echo = serve(far, |_, _, body| async move { Ok(body) });
            tokio::join!(echo, caller)
        })
    }

    fn call(number: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(CALL_HEAD + body.len()).unwrap();
        let mut frame = [length.to_be_bytes(), number.to_be_bytes()].concat();
        frame.push(Call::Hello.number());
        frame.extend([0; 16]);
        frame.extend(body);
        frame
    }

    fn answer(number: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(ANSWER_HEAD + body.len()).unwrap();
        [&length.to_be_bytes()[..], &number.to_be_bytes(), &[Status::Done as u8], body].concat()
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
    fn a_line_that_ends_within_a_frame_is_broken() {
        let sent = call(1, b"one");
        for length in 1..sent.len() {
            assert_eq!(kind_of_end(&sent[..length]), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn malformed_frames_end_the_line() {
        let too_long = u32::try_from(CALL_HEAD + PEER_BODY_BYTES_MAX + 1).unwrap();
        assert_eq!(kind_of_end(&too_long.to_be_bytes()), io::ErrorKind::InvalidData, "refused before its body comes");
        let too_short = [&20_u32.to_be_bytes()[..], &[0; 20]].concat();
        assert_eq!(kind_of_end(&too_short), io::ErrorKind::InvalidData);
        let mut unknown = call(1, b"one");
        unknown[8] = u8::MAX;
        assert_eq!(kind_of_end(&unknown), io::ErrorKind::InvalidData);
    }

    #[test]
    fn random_bytes_break_nothing_but_the_line() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut broken = 0;
        for _ in 0..2_000 {
            let mut sent = call(1, b"one");
            sent.extend(std::iter::repeat_with(|| random.u8(..)).take(40));
            // A short length, so that what follows is looked at.
            let at = random.usize(..sent.len());
            sent[at] = random.u8(..32);
            let (ended, _) = serve_bytes(&sent, random.usize(1..=sent.len()), 0);
            broken += usize::from(ended.is_err());
        }
        assert!(broken > 1_000, "{broken} of 2,000");
    }

    /// What waits for a peer that takes no answers is bounded (P9).
    #[tokio::test]
    async fn a_peer_that_takes_no_answers_is_read_no_further() {
        let (mut near, far) = tokio::io::duplex(READ_BYTES);
        let served = Mutex::new(0_usize);
        let body = vec![1; 16 * 1024];
        let serve = serve(far, |_, _, body| {
            *lock(&served) += body.len();
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
        assert!(tokio::time::timeout(Duration::from_millis(300), stalled).await.is_err(), "it took all calls");
        assert!(*lock(&served) <= UNSENT_BYTES_MAX + 3 * READ_BYTES, "{} bytes", lock(&served));
    }
}
