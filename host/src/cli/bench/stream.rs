//! Clients that send their writes as streams: many are under way on one connection.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use hyper::{Request, header};
use tokio::time::Instant;

use super::super::{Failure, Refusal, root_cause};
use super::load::{ERROR_PAUSE, Load, open};
use super::report::{Kind, Measured};
use crate::net;

/// Chunks of lines that wait to be sent.
const CHUNKS_MAX: usize = 8;

/// Bytes of lines after which a chunk is sent.
const CHUNK_BYTES: usize = 16 * 1024;

/// Runs one client: keeps up to `window` writes under way until the load ends.
pub(super) async fn run_client(load: Arc<Load>, number: usize, window: usize) -> Measured {
    let mut measured = Measured::default();
    let Some(url) = load.url(number) else { return measured };
    while goes_on(&load) {
        let began = Instant::now();
        if let Err(failure) = run_stream(&load, url, window, &mut measured).await {
            measured.note(Kind::Write, began.elapsed(), Some(failure));
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }
    measured
}

fn goes_on(load: &Load) -> bool {
    !load.stopped.load(Ordering::Relaxed) && Instant::now() < load.until
}

/// One stream, until the load ends or the stream does.
async fn run_stream(load: &Load, url: &str, window: usize, measured: &mut Measured) -> Result<(), Failure> {
    let (lines, body) = Channel::new(CHUNKS_MAX);
    let mut answers = begin(url, body).await?;
    let mut lines = Some(lines);
    let mut under_way: VecDeque<Instant> = VecDeque::with_capacity(window);
    let mut rest = BytesMut::new();
    loop {
        match &mut lines {
            Some(open) if goes_on(load) => send(load, open, window, &mut under_way).await,
            _ => lines = None,
        }
        let Some(frame) = answers.frame().await else { break };
        rest.extend_from_slice(&frame.map_err(|error| bad_answer(url, &error))?.into_data().unwrap_or_default());
        while let Some(end) = memchr::memchr(b'\n', &rest) {
            let line = rest.split_to(end + 1);
            let failure = (!line.starts_with(b"{\"key\":")).then(|| Failure::Refused(Refusal::of_line(&line)));
            let Some(began) = under_way.pop_front() else { return failure.map_or(Ok(()), Err) };
            if began >= load.measure_from {
                measured.note(Kind::Write, began.elapsed(), failure);
            }
        }
    }
    Ok(())
}

/// Begins a stream on a connection of its own.
async fn begin(url: &str, lines: Channel<Bytes>) -> Result<Incoming, Failure> {
    let (authority, base_path) = net::authority_and_path(url);
    let request = Request::post(format!("{base_path}/kv/stream/")).header(header::HOST, authority).body(lines);
    let request = request.map_err(|error| Failure::Usage(error.to_string()))?;
    let mut sender = open(url).await?;
    let response = sender.send_request(request).await.map_err(|error| bad_answer(url, &error))?;
    let status = response.status();
    let body = response.into_body();
    if status.is_success() {
        return Ok(body);
    }
    let problem = body.collect().await.map_err(|error| bad_answer(url, &error))?;
    Err(Failure::Refused(Refusal::parse(status, &problem.to_bytes())))
}

/// Sends as many lines as may be under way.
async fn send(load: &Load, lines: &mut Sender<Bytes>, window: usize, under_way: &mut VecDeque<Instant>) {
    let mut chunk = BytesMut::with_capacity(CHUNK_BYTES + load.value.len());
    while under_way.len() < window {
        let line = format!("{{\"key\":\"{}\",\"value\":\"{}\"}}\n", load.key(), load.value);
        chunk.extend_from_slice(line.as_bytes());
        under_way.push_back(Instant::now());
        if chunk.len() >= CHUNK_BYTES {
            // Fails if the connection is gone, which the answers tell.
            let _ = lines.send_data(chunk.split().freeze()).await;
        }
    }
    if !chunk.is_empty() {
        let _ = lines.send_data(chunk.freeze()).await;
    }
}

fn bad_answer(url: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    Failure::BadAnswer { url: url.to_owned(), reason: root_cause(error) }
}
