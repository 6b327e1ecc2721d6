//! The clients of a load, each with one request in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::api::{Call, Connection};
use super::args::Args;
use super::pace::Pace;
use super::report::{Kind, Measured};

/// Pause of a client after a failed request, so that it does not busy-loop on a dead node.
pub(super) const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// A load that is running, shared by its clients.
pub(super) struct Load {
    pub(super) urls: Vec<String>,
    pub(super) args: Args,
    pub(super) value: String,
    pub(super) threads: usize,
    /// Requests that are sent from here to `until` are measured.
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

    fn next_call<'a>(&'a self, key: &'a str) -> (Kind, Call<'a>) {
        if fastrand::f64() < self.args.reads {
            return (Kind::Read, Call::Read { key, consistency: self.args.consistency });
        }
        (Kind::Write, Call::Write { key, value: &self.value, replicas: self.args.wait_replicas })
    }
}

/// Runs one client: sends one request after the other until the load ends; with a schedule, each when it is due.
pub(super) async fn run_client(load: Arc<Load>, number: usize) -> std::io::Result<Measured> {
    let mut measured = Measured::default();
    let Some(url) = load.url(number) else { return Ok(measured) };
    let mut connection = Connection::new(load.args.api, url);
    let clients = load.args.clients;
    let start = load.measure_from - load.args.warmup;
    let mut pace = load.args.rate.map(|rate| Pace::new(rate, clients, number, start)).transpose()?;
    while !load.stopped.load(Ordering::Relaxed) {
        // The time from which the latency counts: a request that waits for an earlier answer has begun nevertheless.
        let began = match &mut pace {
            None => Instant::now(),
            Some(pace) => pace.next().await?,
        };
        if began >= load.until {
            break;
        }
        let key = load.key();
        let (kind, call) = load.next_call(&key);
        // If requests are late, those that were due before the measurement are a part of it.
        let counts = Instant::now() >= load.measure_from;
        let result = connection.send(&call).await;
        let is_error = result.is_err();
        if counts {
            measured.note(kind, began.elapsed(), result.err());
        }
        if is_error {
            tokio::time::sleep(ERROR_PAUSE).await;
        }
    }
    measured.unsent += pace.map_or(0, |pace| pace.due_until(load.until.min(Instant::now())));
    Ok(measured)
}
