//! Clients that send their writes as streams: many are under way on one connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use http_body_util::channel::Channel;
use hyper::body::Incoming;
use hyper::{Request, header};
use tokio::time::Instant;

use super::super::{Failure, Refusal, client, root_cause};
use super::api::{open, refusal};
use super::load::{ERROR_PAUSE, Load};
use super::report::{Kind, Measured};
use crate::net;

/// Chunks of lines that wait to be sent.
const CHUNKS_MAX: usize = 8;

/// Runs one client: keeps up to `window` writes under way until the load ends.
pub(super) async fn run_client(load: Arc<Load>, number: usize, window: usize) -> std::io::Result<Measured> {
    let mut measured = Measured::default();
    let Some(url) = load.url(number) else { return Ok(measured) };
    while goes_on(&load) {
        let mut client =
            Client { load: &load, url, under_way: VecDeque::with_capacity(window), measured: &mut measured };
        let began = Instant::now();
        let Err(failure) = client.run(window).await else { continue };
        // Those under way are lost with the stream. One that did not even begin counts as one error.
        if client.under_way.is_empty() {
            client.under_way.push_back(began);
        }
        let reason = failure.to_string();
        client.note(Some(failure));
        while !client.under_way.is_empty() {
            client.note(Some(bad_answer(url, reason.clone())));
        }
        tokio::time::sleep(ERROR_PAUSE).await;
    }
    Ok(measured)
}

fn goes_on(load: &Load) -> bool {
    !load.stopped.load(Ordering::Relaxed) && Instant::now() < load.until
}

/// A client with an open stream.
struct Client<'a> {
    load: &'a Load,
    url: &'a str,
    /// When the writes began that are not answered yet.
    under_way: VecDeque<Instant>,
    measured: &'a mut Measured,
}

impl Client<'_> {
    /// One stream, until the load ends. Fails if the stream ends before, or stands still.
    async fn run(&mut self, window: usize) -> Result<(), Failure> {
        let (lines, body) = Channel::new(CHUNKS_MAX);
        let mut answers = self.in_time(begin(self.url, body)).await??;
        let mut lines = Some(lines);
        let mut rest = BytesMut::new();
        loop {
            match &mut lines {
                Some(open) if goes_on(self.load) => {
                    let chunk = self.next_lines(window);
                    // Fails if the connection is gone, which the answers tell.
                    let _ = self.in_time(open.send_data(chunk)).await?;
                }
                _ => lines = None,
            }
            let Some(frame) = self.in_time(answers.frame()).await? else { break };
            let frame = frame.map_err(|error| bad_answer(self.url, root_cause(&error)))?;
            rest.extend_from_slice(&frame.into_data().unwrap_or_default());
            while let Some(end) = memchr::memchr(b'\n', &rest) {
                let line = rest.split_to(end + 1);
                let failure = (!line.starts_with(b"{\"key\":")).then(|| Failure::Refused(Refusal::of_line(&line)));
                if self.under_way.is_empty() {
                    return failure.map_or(Ok(()), Err);
                }
                self.note(failure);
            }
        }
        let is_whole = lines.is_none() && self.under_way.is_empty();
        if is_whole { Ok(()) } else { Err(bad_answer(self.url, "the stream ended early".to_owned())) }
    }

    /// The lines of as many writes as may be under way.
    fn next_lines(&mut self, window: usize) -> Bytes {
        let mut lines = String::new();
        while self.under_way.len() < window {
            // Quoted as JSON: the prefix may be any text.
            let key = serde_json::Value::from(self.load.key());
            lines.push_str(&format!("{{\"key\":{key},\"value\":\"{}\"}}\n", self.load.value));
            self.under_way.push_back(Instant::now());
        }
        lines.into()
    }

    /// Records the answer to the oldest write.
    fn note(&mut self, failure: Option<Failure>) {
        if let Some(began) = self.under_way.pop_front()
            && began >= self.load.measure_from
        {
            self.measured.note(Kind::Write, began.elapsed(), failure);
        }
    }

    async fn in_time<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        let answered = tokio::time::timeout(client::TIMEOUT, work).await;
        answered.map_err(|_| bad_answer(self.url, "it did not answer in time".to_owned()))
    }
}

/// Begins a stream on a connection of its own.
async fn begin(url: &str, lines: Channel<Bytes>) -> Result<Incoming, Failure> {
    let (authority, base_path) = net::authority_and_path(url);
    let request = Request::post(format!("{base_path}/kv/stream/"));
    let request = request.header(header::HOST, authority).header(header::CONTENT_TYPE, "application/x-ndjson");
    let request = request.body(lines).map_err(|error| Failure::Usage(error.to_string()))?;
    let mut sender = open(url).await?;
    let response = sender.send_request(request).await.map_err(|error| bad_answer(url, root_cause(&error)))?;
    let (status, body) = (response.status(), response.into_body());
    if status.is_success() { Ok(body) } else { Err(refusal(url, status, body).await?) }
}

fn bad_answer(url: &str, reason: String) -> Failure {
    Failure::BadAnswer { url: url.to_owned(), reason }
}
