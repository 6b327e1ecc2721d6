//! The clients of a load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::super::request::Request;
use super::args::Args;
use super::connection::Connection;
use super::measured::{Kind, Measured};

/// Pause of a client after a failed request, so that it does not busy-loop on a dead node.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

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
    fn next_request(&self) -> (Kind, Request) {
        let key = format!("{}{}", self.args.prefix, fastrand::u64(0..self.args.keys));
        if fastrand::f64() < self.args.reads {
            return (Kind::Read, self.args.api.read(&key, self.args.consistency));
        }
        (Kind::Write, self.args.api.write(&key, &self.value))
    }
}

/// Runs the clients of one thread. Tasks of a single-threaded runtime are woken without another thread, which is cheap.
pub(super) fn run_clients(load: &Arc<Load>, thread: usize) -> std::io::Result<Measured> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let numbers = (thread..load.args.clients).step_by(load.threads);
        let clients: Vec<_> = numbers.map(|number| tokio::spawn(run_client(load.clone(), number))).collect();
        let mut total = Measured::default();
        for client in clients {
            total.add(client.await.unwrap_or_default());
        }
        Ok(total)
    })
}

/// Runs one client: sends one request after the other until the load ends.
async fn run_client(load: Arc<Load>, number: usize) -> Measured {
    let Some(url) = load.urls.get(number % load.urls.len().max(1)) else { return Measured::default() };
    let mut connection = Connection::new(url);
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
