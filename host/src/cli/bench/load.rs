//! The clients of a load, each with one request in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::api::{Call, Connection};
use super::args::Args;
use super::report::{Kind, Measured};

/// Pause of a client after a failed request, so that it does not busy-loop on a dead node.
pub(super) const ERROR_PAUSE: Duration = Duration::from_millis(10);

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

    fn next_call<'a>(&'a self, key: &'a str) -> (Kind, Call<'a>) {
        if fastrand::f64() < self.args.reads {
            return (Kind::Read, Call::Read { key, consistency: self.args.consistency });
        }
        (Kind::Write, Call::Write { key, value: &self.value, replicas: self.args.wait_replicas })
    }
}

/// Runs one client: sends one request after the other until the load ends.
pub(super) async fn run_client(load: Arc<Load>, number: usize) -> Measured {
    let Some(url) = load.url(number) else { return Measured::default() };
    let mut connection = Connection::new(load.args.api, url);
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
        let key = load.key();
        let (kind, call) = load.next_call(&key);
        let result = connection.send(&call).await;
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
