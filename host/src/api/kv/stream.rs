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
//! the order of their lines. A line that waits for its key holds up those after it.
//!
//! # Bounds
//!
//! The node reads no further while [`STREAM_WRITES_MAX`] lines or [`STREAM_BYTES_MAX`] bytes wait for their writes or for the client to
//! take their answers. So a client reads while it sends. What a stream holds counts towards the node's room for bodies.
//!
//! A task of its own drives the stream: hyper polls the body of an answer only while the client takes it, and a write that is not
//! polled would keep its place among the calls of plugins from others.
//!
//! # End
//!
//! The answer ends after the last line is answered. A node that stops or has no room, a line that is too long, and a client that breaks
//! off, or sends nothing for [`STREAM_IDLE_MAX`], end it early: the lines under way are still answered, and the last line of
//! the answer is a problem. A client that takes no answer for as long is cut off. If the client has gone, writes that no node has
//! appended yet are dropped.

use std::collections::HashSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::BytesMut;
use futures::future::{BoxFuture, ready};
use futures::stream::{FuturesOrdered, poll_fn};
use futures::{FutureExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Limited};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{Instrument as _, Span};

use super::entry;
use super::item::Item;
use crate::api::access::Grant;
use crate::api::problem::{Kind, Problem};
use crate::api::request::{self, App, Call, JSON_LINES};
use crate::api::{answer, browser};
use crate::limits::{
    BODIES_BYTES_MAX, HeldBytes, REFUSED_BODY_BYTES_MAX, REFUSED_BODY_DEADLINE, STREAM_BYTES_MAX, STREAM_IDLE_MAX,
    STREAM_LINE_BYTES_MAX, STREAM_WRITES_MAX, WRITE_DEADLINE,
};
use crate::telemetry::{TraceIdHex, request_trace_id, within_request};
use crate::write_path::Request;

/// Bytes of answers after which they are sent, though more are ready.
const CHUNK_BYTES: usize = 16 * 1024;

/// Time without a byte after which a client counts as quiet, once the stream has ended early.
const QUIET: Duration = Duration::from_millis(200);

pub(crate) async fn post(Call { app, grant, headers, mut body, .. }: Call) -> Result<Response, Problem> {
    let held = app.bodies.take(0).ok_or_else(no_room)?;
    // A client may ask before it sends (RFC 9110, section 10.1.1), and hyper tells it to once the body is read, but only before the
    // answer begins.
    let first = match headers.contains_key(header::EXPECT) {
        true => tokio::select! {
            first = timeout(STREAM_IDLE_MAX, read(&mut body)) => Some(first.map_err(|_| idle())?),
            () = app.draining.cancelled() => return Err(stopping()),
        },
        false => None,
    };
    let (answers, mut taken) = mpsc::channel::<Bytes>(1);
    let mut writes = Writes::new(app, grant, body, held);
    tokio::spawn(async move {
        if let Some(first) = first {
            writes.note(first);
        }
        writes.run(answers).await;
    });
    let answers = poll_fn(move |context| taken.poll_recv(context)).map(Ok::<_, Infallible>);
    let lines = HeaderValue::from_static(JSON_LINES);
    let mut response = answer::typed(StatusCode::OK, lines, Body::from_stream(answers));
    browser::contain(&mut response);
    Ok(response)
}

/// A stream of writes.
struct Writes {
    app: Arc<App>,
    grant: Grant,
    trace_id: TraceIdHex,
    span: Span,
    body: Body,
    /// Why nothing more is read; none while more is.
    end: Option<End>,
    lines: Lines,
    /// Room for what was read and not answered yet.
    held: HeldBytes,
    /// The next write, while it cannot begin.
    next: Option<Write>,
    /// The keys of the writes under way.
    keys: HashSet<String>,
    /// The writes under way, in the order of their lines.
    under_way: FuturesOrdered<BoxFuture<'static, Answer>>,
    /// The bytes of their lines.
    bytes: usize,
    answered: Answered,
    /// Since when no line has come and no write is under way.
    idle_since: Instant,
}

/// Why a stream ends.
enum End {
    /// The client has sent all.
    Whole,
    /// Early; the last line of the answer says why, once.
    Early(Option<Problem>),
}

/// Answers that the client has not taken yet.
struct Answered {
    text: BytesMut,
    /// How many lines they answer, and the bytes of these.
    lines: usize,
    bytes: usize,
    /// Since when there are some, or when the client last took some.
    since: Instant,
}

/// What a line asks for.
struct Write {
    number: u64,
    /// None if the line cannot be used.
    key: Option<String>,
    request: Result<Request, Problem>,
    bytes: usize,
}

/// The answer to a line, its key, and its bytes.
struct Answer {
    text: Vec<u8>,
    key: Option<String>,
    bytes: usize,
}

impl Writes {
    fn new(app: Arc<App>, grant: Grant, body: Body, held: HeldBytes) -> Self {
        let now = Instant::now();
        Self {
            app,
            grant,
            trace_id: request_trace_id().unwrap_or_else(TraceIdHex::random),
            span: Span::current(),
            body,
            end: None,
            lines: Lines::default(),
            held,
            next: None,
            keys: HashSet::new(),
            under_way: FuturesOrdered::new(),
            bytes: 0,
            answered: Answered { text: BytesMut::new(), lines: 0, bytes: 0, since: now },
            idle_since: now,
        }
    }

    /// Reads lines, performs and answers them, until the stream ends or the client has gone.
    async fn run(mut self, answers: mpsc::Sender<Bytes>) {
        let draining = self.app.draining.clone();
        loop {
            self.begin();
            let (is_idle, reads) = (self.under_way.is_empty(), self.end.is_none());
            let has_answers = !self.answered.text.is_empty();
            if is_idle && !reads && !has_answers {
                let Some(End::Early(last)) = &mut self.end else { return };
                let Some(last) = last.take() else { return discard(self.body).await };
                let last = line_of(last, &self.trace_id);
                self.answered.text.extend_from_slice(&last);
                continue;
            }
            let (idle_until, taken_until) = (self.idle_since + STREAM_IDLE_MAX, self.answered.since + STREAM_IDLE_MAX);
            tokio::select! {
                biased;
                room = answers.reserve(), if has_answers => match room {
                    Ok(room) => room.send(self.take_answers()),
                    Err(_) => return,
                },
                () = answers.closed() => return,
                Some(answer) = self.under_way.next(), if !is_idle => self.answer(answer),
                frame = read(&mut self.body), if reads && self.next.is_none() && self.has_room() => self.note(frame),
                () = draining.cancelled(), if reads => self.end(stopping(), self.lines.count + 1),
                () = sleep_until(taken_until), if has_answers => return,
                () = sleep_until(idle_until), if is_idle && reads && !has_answers => {
                    self.end(idle(), self.lines.count + 1);
                }
            }
        }
    }

    fn has_room(&self) -> bool {
        self.under_way.len() + self.answered.lines < STREAM_WRITES_MAX
            && self.bytes + self.answered.bytes < STREAM_BYTES_MAX
    }

    /// Reads nothing more, because of a problem with the line of this number. Lines that have not begun are dropped.
    fn end(&mut self, problem: Problem, number: u64) {
        let number = self.next.take().map_or(number, |next| next.number);
        self.lines.clear();
        self.end = Some(End::Early(Some(problem.with("line", number))));
    }

    /// Takes what was read; none at the end.
    fn note(&mut self, frame: Option<Result<Bytes, axum::Error>>) {
        match frame {
            Some(Ok(chunk)) if !self.app.bodies.extend(&mut self.held, chunk.len()) => {
                self.end(no_room(), self.lines.count + 1);
            }
            Some(Ok(chunk)) => self.lines.read.extend_from_slice(&chunk),
            Some(Err(_)) => {
                self.end(Problem::new(Kind::BAD_BODY, "the stream broke off"), self.lines.count + 1);
            }
            None => {
                self.end = Some(End::Whole);
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
            self.bytes += write.bytes;
            self.under_way.push_back(self.perform(write));
        }
        if self.lines.is_too_long() {
            self.end(too_long(), self.lines.count + 1);
        }
    }

    fn next_write(&mut self) -> Option<Write> {
        loop {
            let line = self.lines.next()?;
            let number = self.lines.count;
            if line.len() > STREAM_LINE_BYTES_MAX {
                self.end(too_long(), number);
                return None;
            }
            if line.trim_ascii().is_empty() {
                drop(self.held.split(line.len()));
                continue;
            }
            let (key, request) = match request_of(&line, &self.grant) {
                Ok((key, request)) => (Some(key), Ok(request)),
                Err(problem) => (None, Err(problem)),
            };
            return Some(Write { number, key, request, bytes: line.len() });
        }
    }

    fn perform(&self, Write { number, key, request, bytes }: Write) -> BoxFuture<'static, Answer> {
        let trace_id = self.trace_id;
        let failed = move |problem: Problem| line_of(problem.with("line", number), &trace_id);
        let request = match request {
            Ok(request) => request,
            Err(problem) => return ready(Answer { text: failed(problem), key, bytes }).boxed(),
        };
        let app = self.app.clone();
        let work = async move {
            let written = app.write_path.write(request, Instant::now() + WRITE_DEADLINE).await;
            let text = written.map_err(Problem::from).and_then(|written| entry::line(&written));
            Answer { text: text.unwrap_or_else(failed), key, bytes }
        };
        within_request(self.trace_id, work.instrument(self.span.clone())).boxed()
    }

    /// Takes the answer to a line, and those that are ready after it.
    fn answer(&mut self, first: Answer) {
        let now = Instant::now();
        if self.answered.text.is_empty() {
            self.answered.since = now;
        }
        let mut next = Some(first);
        while let Some(Answer { text, key, bytes }) = next.take() {
            if let Some(key) = &key {
                self.keys.remove(key);
            }
            self.bytes -= bytes;
            let answered = &mut self.answered;
            answered.text.extend_from_slice(&text);
            answered.lines += 1;
            answered.bytes += bytes;
            if answered.text.len() < CHUNK_BYTES {
                next = self.under_way.next().now_or_never().flatten();
            }
        }
        self.idle_since = now;
    }

    /// Takes the answers for the client. What they answer holds room no longer.
    fn take_answers(&mut self) -> Bytes {
        let answered = &mut self.answered;
        drop(self.held.split(answered.bytes));
        (answered.lines, answered.bytes, answered.since) = (0, 0, Instant::now());
        answered.text.split().freeze()
    }
}

/// The next bytes of a body.
async fn read(body: &mut Body) -> Option<Result<Bytes, axum::Error>> {
    loop {
        match body.frame().await? {
            Ok(frame) => match frame.into_data() {
                Ok(data) => return Some(Ok(data)),
                Err(_trailers) => continue,
            },
            Err(error) => return Some(Err(error)),
        }
    }
}

/// Reads on until the client is quiet: one that is cut off while it sends does not see the answer.
async fn discard(body: Body) {
    let mut rest = Limited::new(body, REFUSED_BODY_BYTES_MAX);
    let until_quiet = async { while let Ok(Some(Ok(_))) = timeout(QUIET, rest.frame()).await {} };
    let _ = timeout(REFUSED_BODY_DEADLINE, until_quiet).await;
}

/// What was read of a stream and is not performed yet.
#[derive(Default)]
struct Lines {
    read: BytesMut,
    /// Bytes at its beginning that are known to hold no end of a line.
    searched: usize,
    /// Lines so far, empty ones included.
    count: u64,
}

impl Lines {
    /// Takes the next whole line, with its end.
    fn next(&mut self) -> Option<Bytes> {
        let rest = self.read.get(self.searched..).unwrap_or_default();
        let Some(end) = memchr::memchr(b'\n', rest) else {
            self.searched = self.read.len();
            return None;
        };
        let line = self.read.split_to(self.searched + end + 1).freeze();
        self.searched = 0;
        self.count += 1;
        Some(line)
    }

    /// Whether the next line is too long, though its end was not read yet.
    fn is_too_long(&self) -> bool {
        self.searched > STREAM_LINE_BYTES_MAX
    }

    /// Ends the last line, which may lack its end.
    fn finish(&mut self) {
        if !self.read.is_empty() {
            self.read.extend_from_slice(b"\n");
        }
    }

    fn clear(&mut self) {
        self.read.clear();
        self.searched = 0;
    }
}

fn request_of(line: &[u8], grant: &Grant) -> Result<(String, Request), Problem> {
    let mut item: Item = serde_json::from_slice(line).map_err(|error| {
        let shape = "{\"key\", \"value\"} or {\"op\": \"delete\", \"key\"}";
        Problem::new(Kind::BAD_BODY, format!("the line must be {shape}: {error}"))
    })?;
    let idempotency_key = item.idempotency_key.take();
    if let Some(key) = &idempotency_key {
        request::check_idempotency_key(key)
            .map_err(|wrong| Problem::new(Kind::BAD_BODY, format!("the line's idempotency_key {wrong}")))?;
    }
    let (operation, precondition) = item.check(grant)?;
    let (key, preconditions) = (operation.key.clone(), precondition.into_iter().collect());
    Ok((key, Request { operations: vec![operation], preconditions, idempotency_key }))
}

/// A problem as a line of the answer. A failed write without an explicit outcome was not written.
fn line_of(problem: Problem, trace_id: &str) -> Vec<u8> {
    (problem.not_written().text(trace_id) + "\n").into_bytes()
}

fn no_room() -> Problem {
    let detail =
        format!("this node has no room for the line: the bodies that it holds may have {BODIES_BYTES_MAX} bytes");
    Problem::new(Kind::BUSY, detail)
}

fn too_long() -> Problem {
    Problem::new(Kind::TOO_LARGE, format!("the line has more than {STREAM_LINE_BYTES_MAX} bytes"))
}

fn idle() -> Problem {
    Problem::new(Kind::BAD_BODY, format!("no line came within {} seconds", STREAM_IDLE_MAX.as_secs()))
}

fn stopping() -> Problem {
    Problem::new(Kind::STOPPING, "the node is stopping; the lines before this one are answered, and no others are read")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::access::Rights;

    #[test]
    fn each_line_must_be_covered() {
        let grant = Grant::new(Rights::WRITE, Some(["a/".to_owned()].into()));
        let asked = |line: &str| request_of(line.as_bytes(), &grant);
        assert_eq!(asked(r#"{"key":"a/1","value":1}"#).unwrap().0, "a/1");
        for line in [
            r#"{"key":"b","value":1}"#,
            r#"{"op":"delete","key":"a"}"#,
            r#"{"key":"b","value":1,"idempotency_key":"n"}"#,
        ] {
            let problem = asked(line).unwrap_err().text("");
            assert!(problem.contains(":forbidden"), "{problem}");
        }
    }
}
