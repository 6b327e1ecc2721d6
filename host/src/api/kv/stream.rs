//! Many writes on one connection: `POST <base>/kv/stream/`. Lines of JSON come in, and each is answered by a line of JSON, in order.
//!
//! # What a line is
//!
//! A line is an item as in a batch, which may also have an `idempotency_key`. It is a write of its own, like a `PUT`: judged by hooks,
//! committed and answered by itself. A line that fails is answered with its problem, and the stream goes on. Writes that are
//! under way at once share rounds, so a stream costs a fraction of as many requests.
//!
//! # Order
//!
//! Lines of different keys may commit in any order. Of one key, only one line is under way at a time, so these commit in
//! the order of their lines.
//!
//! # Bounds
//!
//! The node reads no further while [`STREAM_WRITES_MAX`] lines or [`STREAM_BYTES_MAX`] bytes are under way, and those are under way
//! until the client has read their answers. So a client reads while it sends. What a stream holds counts towards the
//! node's room for bodies. A client that leaves drops its writes which no node has appended yet.
//!
//! # End
//!
//! The answer ends after the last line is answered. A node that stops, a line that is too long, and a client that sends nothing for
//! [`STREAM_IDLE_MAX`] end it early: the lines under way are still answered, and the last line of the answer is a problem.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use bytes::BytesMut;
use futures::future::BoxFuture;
use futures::stream::{self, FuturesOrdered};
use futures::{FutureExt as _, StreamExt as _};
use http_body_util::BodyExt as _;
use tokio::time::{Instant, sleep, timeout};
use tracing::{Instrument as _, Span};

use super::entry;
use super::item::Item;
use crate::api::problem::{Kind, Problem};
use crate::api::request::{self, App, Call};
use crate::limits::{
    BODIES_BYTES_MAX, HeldBytes, STREAM_BYTES_MAX, STREAM_IDLE_MAX, STREAM_LINE_BYTES_MAX, STREAM_WRITES_MAX,
    WRITE_DEADLINE,
};
use crate::telemetry::{request_trace_id, within_request};
use crate::write_path::{Request, Written};

/// Bytes of answers that are sent at once.
const ANSWER_BYTES: usize = 16 * 1024;

pub(crate) async fn post(Call { app, headers, body, .. }: Call) -> Result<Response, Problem> {
    let Some(held) = app.bodies.take(0) else { return Err(no_room()) };
    let mut writes = Writes {
        trace_id: request_trace_id().unwrap_or_else(|| "".into()),
        span: Span::current(),
        lines: Lines { read: BytesMut::new(), held, count: 0 },
        body: Some(body),
        next: None,
        keys: HashSet::new(),
        under_way: FuturesOrdered::new(),
        sizes: VecDeque::new(),
        bytes: 0,
        last: None,
        app,
    };
    // A client that asks before it sends (RFC 9110, section 10.1.1) is told to, but only while there is no answer yet.
    if headers.contains_key(header::EXPECT) {
        let first = timeout(STREAM_IDLE_MAX, read(&mut writes.body)).await;
        first.map(|first| writes.note(first)).map_err(|_| idle())?;
    }
    let answers = stream::unfold(writes, async |mut writes| Some((writes.answers().await?, writes)));
    let answers = Body::from_stream(answers.map(Ok::<_, Infallible>));
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], answers).into_response())
}

/// A stream of writes.
struct Writes {
    app: Arc<App>,
    trace_id: Arc<str>,
    span: Span,
    /// None once nothing more is read.
    body: Option<Body>,
    lines: Lines,
    /// The next write, while it cannot begin.
    next: Option<Write>,
    /// The keys of the writes under way.
    keys: HashSet<String>,
    /// The writes under way, in the order of their lines.
    under_way: FuturesOrdered<BoxFuture<'static, Answer>>,
    /// The sizes of their lines, and the sum.
    sizes: VecDeque<usize>,
    bytes: usize,
    /// Why the stream ends early; its last line.
    last: Option<Problem>,
}

/// What a line asks for.
struct Write {
    number: u64,
    /// None if the line cannot be used.
    key: Option<String>,
    request: Result<Request, Problem>,
    bytes: usize,
    held: Option<HeldBytes>,
}

/// The answer to a line, and the key that it wrote.
struct Answer {
    number: u64,
    key: Option<String>,
    result: Result<Written, Problem>,
}

impl Writes {
    /// Waits for answers, and meanwhile reads and begins writes. None at the end.
    async fn answers(&mut self) -> Option<Bytes> {
        loop {
            self.begin();
            let is_idle = self.under_way.is_empty();
            let reads = self.body.is_some() && self.next.is_none() && self.has_room();
            if is_idle && !reads {
                let problem = self.last.take()?;
                return Some((self.line(problem) + "\n").into());
            }
            let draining = self.app.draining.clone();
            tokio::select! {
                biased;
                Some(first) = self.under_way.next(), if !is_idle => return Some(self.collect(first)),
                frame = read(&mut self.body), if reads => self.note(frame),
                () = draining.cancelled(), if self.body.is_some() => {
                    self.end(Problem::new(Kind::STOPPING, "the node is stopping; the lines before are answered, and no others are read"));
                }
                () = sleep(STREAM_IDLE_MAX), if is_idle => self.end(idle()),
            }
        }
    }

    fn has_room(&self) -> bool {
        self.under_way.len() < STREAM_WRITES_MAX && self.bytes < STREAM_BYTES_MAX
    }

    /// Reads nothing more. What was read in part is dropped.
    fn end(&mut self, problem: Problem) {
        self.body = None;
        self.lines.clear();
        self.last = Some(problem.with("line", self.lines.count + 1));
    }

    /// Takes what was read; none at the end.
    fn note(&mut self, frame: Option<Result<Bytes, axum::Error>>) {
        match frame {
            Some(Ok(chunk)) if !self.app.bodies.extend(&mut self.lines.held, chunk.len()) => self.end(no_room()),
            Some(Ok(chunk)) => self.lines.read.extend_from_slice(&chunk),
            Some(Err(_)) => self.end(Problem::new(Kind::BAD_BODY, "the stream ended early")),
            None => {
                self.body = None;
                self.lines.finish();
            }
        }
    }

    /// Begins the writes that were read, as far as there is room.
    fn begin(&mut self) {
        while self.has_room() {
            let Some(write) = self.next.take().or_else(|| self.next_write()) else { break };
            if write.key.as_ref().is_some_and(|key| self.keys.contains(key)) {
                self.next = Some(write);
                return;
            }
            self.keys.extend(write.key.clone());
            self.sizes.push_back(write.bytes);
            self.bytes += write.bytes;
            self.under_way.push_back(self.perform(write));
        }
        if self.lines.read.len() > STREAM_LINE_BYTES_MAX && !self.lines.has_line() {
            let detail = format!("line {} has more than {STREAM_LINE_BYTES_MAX} bytes", self.lines.count + 1);
            self.end(Problem::new(Kind::TOO_LARGE, detail));
        }
    }

    fn next_write(&mut self) -> Option<Write> {
        let (line, held) = self.lines.next()?;
        let (key, request) = match request_of(&line) {
            Ok((key, request)) => (Some(key), Ok(request)),
            Err(problem) => (None, Err(problem)),
        };
        Some(Write { number: self.lines.count, key, request, bytes: line.len(), held })
    }

    fn perform(&self, Write { number, key, request, held, .. }: Write) -> BoxFuture<'static, Answer> {
        let request = match request {
            Ok(request) => request,
            Err(problem) => return futures::future::ready(Answer { number, key, result: Err(problem) }).boxed(),
        };
        let app = self.app.clone();
        let work = async move {
            let written = app.write_path.write(request, Instant::now() + WRITE_DEADLINE).await;
            drop(held);
            Answer { number, key, result: written.map_err(Problem::from) }
        };
        within_request(self.trace_id.clone(), work.instrument(self.span.clone())).boxed()
    }

    /// The lines for an answer and for those that are ready after it.
    fn collect(&mut self, first: Answer) -> Bytes {
        let mut text = Vec::with_capacity(ANSWER_BYTES);
        let mut answer = Some(first);
        while let Some(Answer { number, key, result }) = answer.take() {
            self.bytes -= self.sizes.pop_front().unwrap_or_default();
            if let Some(key) = &key {
                self.keys.remove(key);
            }
            match result {
                Ok(written) => entry::push_line(&mut text, &written),
                Err(problem) => text.extend((self.line(problem.with("line", number)) + "\n").into_bytes()),
            }
            if text.len() < ANSWER_BYTES {
                answer = self.under_way.next().now_or_never().flatten();
            }
        }
        text.into()
    }

    fn line(&self, problem: Problem) -> String {
        problem.not_written().text(&self.trace_id)
    }
}

/// The next bytes of a body.
async fn read(body: &mut Option<Body>) -> Option<Result<Bytes, axum::Error>> {
    loop {
        match body.as_mut()?.frame().await? {
            Ok(frame) => match frame.into_data() {
                Ok(data) => return Some(Ok(data)),
                Err(_trailers) => continue,
            },
            Err(error) => return Some(Err(error)),
        }
    }
}

/// What was read of a stream, and its lines.
struct Lines {
    read: BytesMut,
    held: HeldBytes,
    /// Lines so far, empty ones included.
    count: u64,
}

impl Lines {
    fn has_line(&self) -> bool {
        memchr::memchr(b'\n', &self.read).is_some()
    }

    /// Takes the next whole line that is not empty, and its part of the node's room.
    fn next(&mut self) -> Option<(Bytes, Option<HeldBytes>)> {
        loop {
            let end = memchr::memchr(b'\n', &self.read)?;
            let line = self.read.split_to(end + 1).freeze();
            let held = self.held.split(line.len());
            self.count += 1;
            if !line.trim_ascii().is_empty() {
                return Some((line, held));
            }
        }
    }

    fn clear(&mut self) {
        drop(self.held.split(self.read.len()));
        self.read.clear();
    }

    /// Ends the last line, which may lack its newline.
    fn finish(&mut self) {
        if !self.read.is_empty() {
            self.read.extend_from_slice(b"\n");
        }
    }
}

fn request_of(line: &[u8]) -> Result<(String, Request), Problem> {
    let shape = "one line {\"key\", \"value\"} or {\"op\": \"delete\", \"key\"}";
    let mut item: Item = request::json(line, shape)?;
    let idempotency_key = item.idempotency_key.take();
    if let Some(key) = &idempotency_key {
        request::check_idempotency_key(key)?;
    }
    let (operation, precondition) = item.check()?;
    let (key, preconditions) = (operation.key.clone(), precondition.into_iter().collect());
    Ok((key, Request { operations: vec![operation], preconditions, idempotency_key }))
}

fn no_room() -> Problem {
    let detail =
        format!("this node has no room for the line: the bodies that it holds may have {BODIES_BYTES_MAX} bytes");
    Problem::new(Kind::BUSY, detail)
}

fn idle() -> Problem {
    Problem::new(Kind::BAD_BODY, format!("no line came within {} seconds", STREAM_IDLE_MAX.as_secs()))
}
