//! `brink bench`: load on a running cluster, and how it answered.
//!
//! # Latency without coordinated omission
//!
//! A client that waits for a slow answer does not send the requests that would have met the same stall, so a plain
//! histogram hides stalls (Gil Tene, "How NOT to Measure Latency"). With `--rate`, requests have their times by
//! schedule, and latency counts from there. Without it, every client sends as fast as it is answered; then the requests
//! that a stall kept from being sent are added as HdrHistogram's correction does, at the pace of the mean.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Common;
use super::client::{Client, Failure, Request, key_path};
use super::kv::Consistency;
use super::output::{self, Format};
use super::wire::Wire;
use crate::api::BASE_PATH;
use crate::limits::{BATCH_ITEMS_MAX, VALUE_BYTES_MAX};

/// Latencies above this count as this, in microseconds.
const LATENCY_US_MAX: u64 = 60_000_000;

/// Significant digits of latencies.
const DIGITS: u8 = 3;

/// Most clients at once.
const CLIENTS_MAX: usize = 4_096;

/// Most threads that send.
const THREADS_MAX: usize = 256;

/// The rest of a client whose request failed, so that a dead node is not hammered.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// In which the kernel counts CPU time for user space.
const TICKS_PER_SECOND: f64 = 100.0;

/// A loader that keeps its threads busier than this measures itself.
const LOADER_BUSY_MAX: f64 = 0.9;

/// Keys written at once to prepare reads; etcd takes no more than 128.
const PREPARE_ITEMS: usize = 128;

/// Drive a running cluster and report its throughput and latency
///
/// Clients are spread over the nodes of --url. Writes go to random keys under --prefix, which stay there afterwards.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Clients at once, each with one request in flight
    #[arg(short, long, value_name = "N", default_value_t = 16)]
    clients: usize,
    /// How long to measure, such as 10s or 2m
    #[arg(short, long, default_value = "10s", value_parser = humantime::parse_duration)]
    duration: Duration,
    /// How long to run before measuring
    #[arg(long, default_value = "1s", value_parser = humantime::parse_duration)]
    warmup: Duration,
    /// Bytes of a value
    #[arg(long, value_name = "BYTES", default_value_t = 256)]
    value_bytes: usize,
    /// How many different keys
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    keys: u64,
    /// The share of reads, 0 to 1; with reads, every key is written first
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    reads: f64,
    /// How fresh reads must be
    #[arg(long)]
    consistency: Option<Consistency>,
    /// Requests per second of all clients together; as fast as they are answered if absent
    #[arg(long, value_name = "N")]
    rate: Option<u64>,
    /// Threads that send requests [default: half of the cores]
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
    /// The API of the nodes: their own, or etcd's JSON gateway, to compare
    #[arg(long, default_value = "brink")]
    api: Api,
    /// Put before every key
    #[arg(long, default_value = "bench/")]
    prefix: String,
    #[command(flatten)]
    common: Common,
}

/// What the nodes speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Api {
    /// brink
    Brink,
    /// The v3 gateway of etcd
    Etcd,
}

impl Api {
    /// A path that every node answers.
    fn hello(self) -> &'static str {
        match self {
            Self::Brink => "/health/",
            Self::Etcd => "/version",
        }
    }

    /// The base URL of a node, given as one of brink.
    fn base_url(self, url: &str) -> &str {
        match self {
            Self::Brink => url,
            Self::Etcd => url.strip_suffix(BASE_PATH).unwrap_or(url),
        }
    }

    fn write(self, key: &str, value: &str) -> Request {
        match self {
            Self::Brink => {
                Request::new(Method::PUT, key_path(key)).body("application/json", format!("{{\"value\":\"{value}\"}}"))
            }
            Self::Etcd => etcd("put", format!("{{\"key\":\"{}\",\"value\":\"{}\"}}", base64(key), base64(value))),
        }
    }

    fn read(self, key: &str, consistency: Option<Consistency>) -> Request {
        match self {
            Self::Brink => {
                let query = consistency.map_or(String::new(), |word| format!("?consistency={}", word.word()));
                Request::new(Method::GET, format!("{}{query}", key_path(key)))
            }
            Self::Etcd => {
                let local = matches!(consistency, Some(Consistency::Local));
                etcd("range", format!("{{\"key\":\"{}\",\"serializable\":{local}}}", base64(key)))
            }
        }
    }

    /// Writes many keys at once.
    fn write_all(self, keys: impl Iterator<Item = String>, value: &str) -> Request {
        match self {
            Self::Brink => {
                let items: Vec<Value> = keys.map(|key| json!({"key": key, "value": value})).collect();
                Request::new(Method::POST, "/kv/batch/").json(&json!({ "items": items }))
            }
            Self::Etcd => {
                let put = |key: String| json!({"requestPut": {"key": base64(&key), "value": base64(value)}});
                etcd("txn", json!({"success": keys.map(put).collect::<Vec<_>>()}).to_string())
            }
        }
    }
}

fn etcd(call: &str, body: String) -> Request {
    Request::new(Method::POST, format!("/v3/kv/{call}")).body("application/json", body)
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

/// Reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Write,
    Read,
}

/// What one client measured.
#[derive(Default)]
struct Measured {
    latencies: BTreeMap<Kind, Histogram<u64>>,
    errors: BTreeMap<String, u64>,
}

/// What all clients share.
struct Load {
    urls: Vec<String>,
    args: Args,
    value: String,
    threads: usize,
    /// When measuring begins and ends.
    measure_from: Instant,
    until: Instant,
    stopped: AtomicBool,
}

/// Runs the load and prints the report.
pub(super) async fn run(args: Args) -> Result<(), Failure> {
    check(&args)?;
    let client = Client::new(&args.common)?;
    let urls: Vec<String> = client.urls().iter().map(|url| args.api.base_url(url).to_owned()).collect();
    // One clear message if there is nobody, before any load.
    for url in &urls {
        client.send_to(url, &Request::new(Method::GET, args.api.hello())).await?;
    }
    let value: String = std::iter::repeat_with(fastrand::alphanumeric).take(args.value_bytes).collect();
    if let (Some(url), true) = (urls.first(), args.reads > 0.0) {
        prepare(&client, url, &args, &value).await?;
    }
    let measure_from = Instant::now() + args.warmup;
    let until = measure_from + args.duration;
    let threads = args.threads.unwrap_or_else(default_threads).min(args.clients);
    let load = Arc::new(Load { urls, args, value, threads, measure_from, until, stopped: false.into() });
    let (began, cpu_before) = (Instant::now(), cpu_seconds());
    let drivers: Vec<_> = (0..threads)
        .map(|thread| {
            let load = load.clone();
            tokio::task::spawn_blocking(move || drive_all(&load, thread))
        })
        .collect();
    watch(&load).await;
    let ended = Instant::now().min(until);
    let cpu = (cpu_seconds() - cpu_before) / began.elapsed().as_secs_f64().max(0.001);

    let mut total = Measured::default();
    for driver in drivers {
        total.add(driver.await.unwrap_or_else(|error| Err(std::io::Error::other(error)))?);
    }
    let seconds = ended.saturating_duration_since(measure_from).as_secs_f64();
    report(&load, &total, seconds, cpu)
}

/// As many as leave the other half of the cores to a node on the same machine.
fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| cores.get().div_ceil(2))
}

/// The CPU time this process has used so far.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name of the program, in parentheses, may hold anything; the times are the 12th and 13th field after it.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: f64 = fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum();
    ticks / TICKS_PER_SECOND
}

fn check(args: &Args) -> Result<(), Failure> {
    let wrong = |flag: &str, found: &dyn std::fmt::Display, allowed: String| {
        Err(Failure::Usage(format!("--{flag}: {found}: it must be {allowed}")))
    };
    if !(1..=CLIENTS_MAX).contains(&args.clients) {
        return wrong("clients", &args.clients, format!("1 to {CLIENTS_MAX}"));
    }
    if args.value_bytes > VALUE_BYTES_MAX - 2 {
        return wrong("value-bytes", &args.value_bytes, format!("at most {}", VALUE_BYTES_MAX - 2));
    }
    if !(0.0..=1.0).contains(&args.reads) {
        return wrong("reads", &args.reads, "0 to 1".to_owned());
    }
    if args.keys == 0 {
        return wrong("keys", &args.keys, "at least 1".to_owned());
    }
    if let Some(threads) = args.threads.filter(|threads| !(1..=THREADS_MAX).contains(threads)) {
        return wrong("threads", &threads, format!("1 to {THREADS_MAX}"));
    }
    if args.rate == Some(0) {
        return wrong("rate", &0, "at least 1".to_owned());
    }
    if args.duration.is_zero() {
        return wrong("duration", &"0s", "longer".to_owned());
    }
    Ok(())
}

/// Writes every key once, so that reads find what they ask for.
async fn prepare(client: &Client, url: &str, args: &Args, value: &str) -> Result<(), Failure> {
    let bar = output::progress(args.keys, "keys prepared");
    let items_max = (1024 * 1024 / (args.value_bytes + 1)).clamp(1, PREPARE_ITEMS.min(BATCH_ITEMS_MAX)) as u64;
    let mut first = 0;
    while first < args.keys {
        let last = (first + items_max).min(args.keys);
        let keys = (first..last).map(|number| format!("{}{number}", args.prefix));
        client.send_to(url, &args.api.write_all(keys, value)).await?;
        first = last;
        bar.set_position(first);
    }
    bar.finish_and_clear();
    Ok(())
}

/// The clients of one thread. One thread needs no other to wake it, so that a request costs little.
fn drive_all(load: &Arc<Load>, thread: usize) -> std::io::Result<Measured> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let numbers = (thread..load.args.clients).step_by(load.threads);
        let clients: Vec<_> = numbers.map(|number| tokio::spawn(drive(load.clone(), number))).collect();
        let mut total = Measured::default();
        for client in clients {
            total.add(client.await.unwrap_or_default());
        }
        Ok(total)
    })
}

/// One client: one request after the other until the time is over.
async fn drive(load: Arc<Load>, number: usize) -> Measured {
    let Some(url) = load.urls.get(number % load.urls.len().max(1)) else { return Measured::default() };
    let mut wire = Wire::to(url);
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
        let result = wire.send(&request).await;
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

impl Load {
    fn next_request(&self) -> (Kind, Request) {
        let key = format!("{}{}", self.args.prefix, fastrand::u64(0..self.args.keys));
        if fastrand::f64() < self.args.reads {
            return (Kind::Read, self.args.api.read(&key, self.args.consistency));
        }
        (Kind::Write, self.args.api.write(&key, &self.value))
    }
}

/// Waits for the end, or for Ctrl-C, and shows how it goes.
async fn watch(load: &Load) {
    let total = load.until.saturating_duration_since(Instant::now()).as_secs();
    let bar = output::progress(total.max(1), "s");
    let mut tick = tokio::time::interval(Duration::from_millis(200));
    loop {
        tokio::select! {
            _ = tokio::time::sleep_until(load.until) => break,
            _ = tokio::signal::ctrl_c() => break,
            _ = tick.tick() => {
                bar.set_position(total.saturating_sub(load.until.saturating_duration_since(Instant::now()).as_secs()));
            }
        }
    }
    load.stopped.store(true, Ordering::Relaxed);
    bar.finish_and_clear();
}

impl Measured {
    fn note(&mut self, kind: Kind, latency: Duration, failure: Option<Failure>) {
        match failure {
            Some(Failure::Refused(refusal)) => {
                let name = format!("{} {}", refusal.status.as_u16(), refusal.slug());
                *self.errors.entry(name).or_default() += 1;
            }
            Some(failure) => *self.errors.entry(failure.to_string()).or_default() += 1,
            None => {
                let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_US_MAX);
                if let Some(histogram) = self.histogram(kind) {
                    histogram.saturating_record(us.clamp(1, LATENCY_US_MAX));
                }
            }
        }
    }

    fn histogram(&mut self, kind: Kind) -> Option<&mut Histogram<u64>> {
        match self.latencies.entry(kind) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(entry) => Some(entry.insert(Histogram::new_with_bounds(1, LATENCY_US_MAX, DIGITS).ok()?)),
        }
    }

    fn add(&mut self, other: Self) {
        for (kind, latencies) in other.latencies {
            if let Some(histogram) = self.histogram(kind) {
                // The bounds are the same, so every value has its place.
                let _ = histogram.add(latencies);
            }
        }
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
    }
}

fn report(load: &Load, measured: &Measured, seconds: f64, loader_cores: f64) -> Result<(), Failure> {
    let args = &load.args;
    let quantiles = [("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("p99_9_ms", 0.999)];
    let mut summary = json!({
        "clients": args.clients, "seconds": round(seconds), "value_bytes": args.value_bytes,
        "errors": measured.errors.values().sum::<u64>(), "errors_by_kind": measured.errors,
        "loader_threads": load.threads, "loader_cores": round(loader_cores),
    });
    let mut rows = Vec::new();
    for (kind, raw) in &measured.latencies {
        let name = if *kind == Kind::Write { "writes" } else { "reads" };
        // With a schedule, latencies count from the scheduled time already.
        let latencies = if args.rate.is_some() { raw.clone() } else { raw.clone_correct(raw.mean() as u64) };
        let ms = |us: u64| round(us as f64 / 1_000.0);
        let per_second = round(raw.len() as f64 / seconds.max(0.001));
        let mut figures = json!({"count": raw.len(), "per_second": per_second});
        let mut row = vec![name.to_owned(), raw.len().to_string(), format!("{per_second:.0}")];
        for (title, quantile) in quantiles {
            let value = ms(latencies.value_at_quantile(quantile));
            figures[title] = json!(value);
            row.push(format!("{value:.2}"));
        }
        figures["max_ms"] = json!(ms(raw.max()));
        row.push(format!("{:.2}", ms(raw.max())));
        summary[name] = figures;
        rows.push(row);
    }
    if args.common.output == Format::Json {
        return output::line(&summary.to_string());
    }
    output::line(&format!("{} clients, {seconds:.1} s, values of {} bytes", args.clients, args.value_bytes))?;
    output::table(&["", "COUNT", "PER SECOND", "P50 MS", "P90 MS", "P99 MS", "P99.9 MS", "MAX MS"], &rows)?;
    for (error, count) in &measured.errors {
        output::line(&format!("{count} errors: {error}"))?;
    }
    if loader_cores > LOADER_BUSY_MAX * load.threads as f64 {
        output::line(
            "the loader was busy all the time: with more --threads, or fewer others on this machine, there may be more",
        )?;
    }
    Ok(())
}

/// To two digits after the point.
fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_shows_in_the_corrected_quantiles() {
        let mut measured = Measured::default();
        for _ in 0..999 {
            measured.note(Kind::Write, Duration::from_millis(1), None);
        }
        measured.note(Kind::Write, Duration::from_secs(1), None);
        let raw = measured.histogram(Kind::Write).unwrap().clone();
        let corrected = raw.clone_correct(raw.mean() as u64);
        assert!(raw.value_at_quantile(0.99) < 1_100);
        // Half of the second's requests were never sent; they are counted with what they would have waited.
        assert!(corrected.value_at_quantile(0.99) > 900_000, "{}", corrected.value_at_quantile(0.99));
    }

    #[test]
    fn errors_are_counted_by_kind_and_not_as_latency() {
        let mut measured = Measured::default();
        measured.note(Kind::Read, Duration::ZERO, Some(Failure::Usage("x".to_owned())));
        let mut total = Measured::default();
        total.add(measured);
        assert_eq!((total.errors.get("x"), total.latencies.len()), (Some(&1), 0));
    }
}
