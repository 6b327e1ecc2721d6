//! The clients of a load, and their connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::StatusCode;
use hyper::body::{Body, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::Instant;

use super::super::{Failure, Refusal, Request, client, root_cause};
use super::args::Args;
use super::report::{Kind, Measured};
use crate::net;

/// Pause of a client after a failed request, so that it does not busy-loop on a dead node.
pub(super) const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// Maximum bytes of a problem object.
const PROBLEM_BYTES_MAX: usize = 1024 * 1024;

/// A load that is running, shared by its clients.
pub(super) struct Load {
    pub(super) urls: Vec<String>,
    pub(super) args: Args,
    pub(super) value: String,
    pub(super) threads: usize,
    /// Requests that begin from here to `until` are measured.
    pub(super) measure_from: Instant,
    pub(super) until: Instant,
    pub(super) stopped: AtomicBool,
}

impl Load {
    /// A random key.
    pub(super) fn key(&self) -> String {
        format!("{}{}", self.args.prefix, fastrand::u64(0..self.args.keys))
    }

    /// The node of a client.
    pub(super) fn url(&self, number: usize) -> Option<&String> {
        self.urls.get(number % self.urls.len().max(1))
    }

    fn next_request(&self) -> (Kind, Request) {
        let key = self.key();
        if fastrand::f64() < self.args.reads {
            return (Kind::Read, self.args.api.read(&key, self.args.consistency));
        }
        (Kind::Write, self.args.api.write(&key, &self.value))
    }
}

/// Runs one client: sends one request after the other until the load ends.
pub(super) async fn run_client(load: Arc<Load>, number: usize) -> Measured {
    let Some(url) = load.url(number) else { return Measured::default() };
    let mut connection = Connection { url: url.clone(), sender: None };
    let interval = load.args.rate.map(|rate| Duration::from_secs_f64(load.args.clients as f64 / rate as f64));
    let mut due = Instant::now() + interval.unwrap_or_default().mul_f64(number as f64 / load.args.clients as f64);
    let mut measured = Measured::default();
    while !load.stopped.load(Ordering::Relaxed) {
        let began = match interval {
            None => Instant::now(),
            Some(interval) => {
                let began = due;
                due += interval;
                tokio::time::sleep_until(began).await;
                began
            }
        };
        if began >= load.until {
            break;
        }
        let (kind, request) = load.next_request();
        let result = connection.send(request).await;
        let is_error = result.is_err();
        if began >= load.measure_from {
            measured.note(kind, began.elapsed(), result.err());
        }
        if is_error {
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }
    measured
}

/// A kept-alive HTTP/1.1 connection to a node, opened by the first request, and again after it broke.
///
/// It uses hyper's client without a pool: every client of the load has one connection and one request in flight.
struct Connection {
    url: String,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Connection {
    /// Sends a request and reads the whole answer, which must be a success.
    async fn send(&mut self, request: Request) -> Result<(), Failure> {
        let answered = tokio::time::timeout(client::TIMEOUT, self.exchange(request)).await;
        answered.unwrap_or_else(|_| {
            Err(Failure::BadAnswer { url: self.url.clone(), reason: "it did not answer in time".to_owned() })
        })
    }

    async fn exchange(&mut self, request: Request) -> Result<(), Failure> {
        let request = request.into_http(&self.url).map_err(|error| Failure::Usage(error.to_string()))?;
        // The sender is put back only after a whole answer, so that an error or a timeout closes the connection.
        let mut sender = match self.sender.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => open(&self.url).await?,
        };
        let url = &self.url;
        let bad_answer = |error: &(dyn std::error::Error + 'static)| Failure::BadAnswer {
            url: url.clone(),
            reason: root_cause(error),
        };
        sender.ready().await.map_err(|error| bad_answer(&error))?;
        let response = sender.send_request(request).await.map_err(|error| bad_answer(&error))?;
        let (status, mut body) = (response.status(), response.into_body());
        if !status.is_success() {
            let refused = refusal(url, status, body).await?;
            self.sender = Some(sender);
            return Err(refused);
        }
        while let Some(frame) = body.frame().await {
            frame.map_err(|error| bad_answer(&error))?;
        }
        self.sender = Some(sender);
        Ok(())
    }
}

/// The failure that an answer without success tells.
pub(super) async fn refusal(url: &str, status: StatusCode, body: Incoming) -> Result<Failure, Failure> {
    let collected = Limited::new(body, PROBLEM_BYTES_MAX).collect().await;
    let problem = collected.map_err(|error| Failure::BadAnswer { url: url.to_owned(), reason: root_cause(&*error) })?;
    Ok(Failure::Refused(Refusal::parse(status, &problem.to_bytes())))
}

/// Opens a connection. Its task ends when the sender is dropped, or when the node closes the connection.
pub(super) async fn open<B>(url: &str) -> Result<SendRequest<B>, Failure>
where
    B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>> + Send + 'static,
{
    let unreachable = |reason: String| Failure::Unreachable { url: url.to_owned(), reason };
    let stream = net::connect(url, None).await.map_err(|error| unreachable(error.to_string()))?;
    let handshake = http1::handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake.map_err(|error| unreachable(error.to_string()))?;
    // An error of the connection fails its request as well.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}
