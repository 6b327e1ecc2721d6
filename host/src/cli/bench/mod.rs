//! `brink bench`: puts load on a running cluster, and reports throughput and latency.
//!
//! # Latency without coordinated omission
//!
//! A client that waits for a slow answer does not send the requests that the same stall would have delayed, so a plain
//! histogram hides stalls (Gil Tene, "How NOT to Measure Latency"). With `--rate`, requests have scheduled times, and
//! latencies are measured from those, in all APIs; those that were due and never sent, because the nodes were too slow, are
//! counted apart. Without it, every client sends as fast as it is answered; the requests that a stall
//! prevented are added as HdrHistogram's correction does, with the mean latency as the expected interval.
//!
//! # Cost
//!
//! The loader often shares its machine with the nodes and must cost less than they do. Its clients run on single-threaded
//! runtimes, and the report says how much CPU it used. A request costs the loader about 25 µs of CPU in a development build, most
//! of it in the kernel; hyper costs 2 µs more than HTTP written by hand.
//!
//! # Other stores
//!
//! `--api` names the API of the nodes. Those of etcd, Redis and NATS are for `cargo xtask bench-peers`: [`api`] speaks the few
//! requests that a load needs, so that all stores are loaded alike, by one connection and one request in flight for each
//! client. What an acknowledged write means differs between them; `docs/testing.md` says how.
//!
//! ```text
//! mod → stream → load → {api, pace} → report → args
//! ```

mod api;
mod args;
mod load;
mod pace;
mod report;
mod stream;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use tokio::time::Instant;

use self::api::{Call, Connection, Dialect, dialect};
pub(super) use self::args::Args;
use self::load::Load;
use self::report::Measured;
use super::{Client, Failure, Request, io};
use crate::limits::BATCH_ITEMS_MAX;

/// Maximum number of keys in a batch that prepares reads; etcd allows 128.
const PREPARE_ITEMS_MAX: usize = 128;

/// Maximum bytes of values in a batch that prepares reads.
const PREPARE_BYTES_MAX: usize = 1024 * 1024;

/// Number of connections that prepare reads in an API without batches.
const PREPARE_CONNECTIONS: u64 = 64;

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    args.check()?;
    let client = Client::new(&args.common)?;
    let urls: Vec<String> = client.urls.iter().map(|url| args.api.base_url(url).to_owned()).collect();
    // A node that cannot be reached fails the command at once.
    for url in &urls {
        match dialect(args.api) {
            Some(dialect) => drop(client.send_to(url, &Request::get(dialect.probe_path())).await?),
            None => Connection::new(args.api, url).open().await?,
        }
    }
    let value: String = std::iter::repeat_with(fastrand::alphanumeric).take(args.value_bytes).collect();
    if let (Some(url), true) = (urls.first(), args.reads > 0.0 && !args.prepared) {
        match dialect(args.api) {
            Some(dialect) => prepare(&client, dialect, url, &args, &value).await?,
            None => prepare_one_by_one(url, &args, &value).await?,
        }
    }
    let measure_from = Instant::now() + args.warmup;
    let until = measure_from + args.duration;
    // By default half of the cores; the others are left to nodes on the same machine.
    let half = || std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2));
    let threads = args.threads.unwrap_or_else(half).min(args.clients);
    let load = Arc::new(Load { urls, args, value, threads, measure_from, until, stopped: false.into() });
    let (began, cpu_before) = (Instant::now(), cpu_seconds());
    let drivers: Vec<_> = (0..threads)
        .map(|thread| {
            let load = load.clone();
            tokio::task::spawn_blocking(move || run_clients(&load, thread))
        })
        .collect();
    wait(&load).await;
    let ended = Instant::now().min(until);
    let cpu = (cpu_seconds() - cpu_before) / began.elapsed().as_secs_f64().max(0.001);

    let mut total = Measured::default();
    for driver in drivers {
        total.add(driver.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))?);
    }
    let seconds = ended.saturating_duration_since(measure_from).as_secs_f64();
    report::print(&total, &load.args, seconds, threads, cpu)
}

/// Runs the clients of one thread. Tasks of a single-threaded runtime are woken without another thread, which is cheap.
fn run_clients(load: &Arc<Load>, thread: usize) -> std::io::Result<Measured> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let numbers = (thread..load.args.clients).step_by(load.threads);
        let clients = numbers.map(|number| match load.args.stream {
            Some(window) => tokio::spawn(stream::run_client(load.clone(), number, window)),
            None => tokio::spawn(load::run_client(load.clone(), number)),
        });
        let clients: Vec<_> = clients.collect();
        let mut total = Measured::default();
        for client in clients {
            total.add(client.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))?);
        }
        Ok(total)
    })
}

/// Writes every key once, in batches, so that every read finds an entry.
async fn prepare(client: &Client, dialect: Dialect, url: &str, args: &Args, value: &str) -> Result<(), Failure> {
    let bar = io::progress(args.keys, "keys prepared");
    let items_max =
        (PREPARE_BYTES_MAX / (args.value_bytes + 1)).clamp(1, PREPARE_ITEMS_MAX.min(BATCH_ITEMS_MAX)) as u64;
    let mut first = 0;
    while first < args.keys {
        let last = (first + items_max).min(args.keys);
        let keys = (first..last).map(|number| format!("{}{number}", args.prefix));
        client.send_to(url, &dialect.write_all(keys, value)).await?;
        first = last;
        bar.set_position(first);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Writes every key once, each by a request of its own.
async fn prepare_one_by_one(url: &str, args: &Args, value: &str) -> Result<(), Failure> {
    let bar = io::progress(args.keys, "keys prepared");
    let writers = (0..PREPARE_CONNECTIONS).map(|first| {
        let (mut connection, bar) = (Connection::new(args.api, url), &bar);
        async move {
            for number in (first..args.keys).step_by(PREPARE_CONNECTIONS as usize) {
                let key = format!("{}{number}", args.prefix);
                connection.send(&Call::Write { key: &key, value, replicas: args.wait_replicas }).await?;
                bar.inc(1);
            }
            Ok(())
        }
    });
    let written: Result<Vec<()>, Failure> = futures::future::try_join_all(writers).await;
    bar.finish_and_clear();
    written.map(drop)
}

/// Waits for the end of the load or for Ctrl-C, and shows the progress.
async fn wait(load: &Load) {
    let left = || load.until.saturating_duration_since(Instant::now()).as_secs();
    let total = left();
    let bar = io::progress(total.max(1), "s");
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            _ = tokio::time::sleep_until(load.until) => break,
            _ = tokio::signal::ctrl_c() => break,
            _ = tick.tick() => bar.set_position(total.saturating_sub(left())),
        }
    }
    load.stopped.store(true, Ordering::Relaxed);
    bar.finish_and_clear();
}

/// The CPU time of this process so far.
fn cpu_seconds() -> f64 {
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1_000_000.0;
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| seconds(usage.user_time()) + seconds(usage.system_time()))
}
